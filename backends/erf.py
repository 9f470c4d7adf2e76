"""The complementary error function, which NumPy lacks and the exact GELU needs.

With t = 1 / (1 + z / 2), z >= 0, the function

    g(t) = log(erfc(z) * exp(z**2) / t)

is smooth on the whole half line 0 < t <= 1, so one Chebyshev series in y = 2 t - 1 gives erfc
everywhere: erfc(z) = t * exp(g(t) - z**2), and erfc(-z) = 2 - erfc(z).
`tests/backends/test_erf.py` computes the coefficients again with 50 digits.
"""

from __future__ import annotations

from typing import Any

COEFFICIENTS = (
    -1.3026537197817094342, 0.64196979235649026, 0.019476473204185836, -0.0095615147868086316,
    -0.00094659534448203687, 0.00036683949785276145, 4.2523324806907772e-05, -2.0278578112534243e-05,
    -1.6242900046470255e-06, 1.3036558355805232e-06, 1.5626441722066143e-08, -8.5238095914926543e-08,
    6.529054439098851e-09, 5.0593434955514689e-09, -9.9136415649303309e-10, -2.2736512229318359e-10,
    9.646791102015526e-11, 2.3940380830391147e-12, -6.8860275264975534e-12, 8.9448792730907257e-13,
    3.1309213993429581e-13, -1.1270822361367252e-13, 3.8109052551892321e-16, 7.106097613609237e-15,
    -1.5230282014571043e-15, -9.457494571291234e-17, 1.2102371892242790e-16,
)  # fmt: skip

# Below this size a term no longer changes a float32 result.
_FLOAT32_TERMS = 12

# So many elements at a time keep every intermediate in the processor's cache.
_CHUNK = 1 << 14


def erfc(xp: Any, x: Any) -> Any:
    """1 - erf(x), elementwise, in the dtype of `x` (float32 or float64); any shape."""
    flat = xp.ravel(x)
    out = xp.empty_like(flat)
    for start in range(0, flat.size, _CHUNK):
        out[start : start + _CHUNK] = _erfc_chunk(xp, flat[start : start + _CHUNK])
    return out.reshape(x.shape)


def _erfc_chunk(xp: Any, x: Any) -> Any:
    # erfc is 0 (or 2) to the last digit long before z = 30; the bound keeps z**2 finite.
    z = xp.minimum(xp.abs(x), 30.0)
    t = 1.0 / (1.0 + 0.5 * z)
    y = 2.0 * t - 1.0
    twice_y = 2.0 * y
    terms = COEFFICIENTS if x.dtype == xp.float64 else COEFFICIENTS[:_FLOAT32_TERMS]
    # Clenshaw's recurrence for the Chebyshev series.
    current, previous = xp.zeros_like(y), xp.zeros_like(y)
    for coefficient in reversed(terms[1:]):
        current, previous = twice_y * current - previous + coefficient, current
    g = y * current - previous + 0.5 * terms[0]
    positive = t * xp.exp(g - z * z)
    return xp.where(x >= 0, positive, 2.0 - positive)
