"""The complementary error function against Python's own, and its coefficients computed again."""

from __future__ import annotations

import math

import numpy as np
import pytest

from refimpl.backends.erf import COEFFICIENTS, erfc

GRID = np.concatenate([np.linspace(-30, 30, 60_001), [-1e30, 1e30, 0.0, -0.0, 1e-300]])


@pytest.mark.parametrize(("dtype", "bound"), [("float64", 5e-16), ("float32", 4e-7)])
def test_absolute_error(dtype, bound):
    x = GRID.astype(dtype)
    expected = np.array([math.erfc(v) for v in x.tolist()])
    result = erfc(np, x)
    assert result.dtype == dtype
    assert np.abs(result - expected).max() <= bound


def test_relative_error_in_the_tail():
    """Where erfc is tiny a subtraction from 1 would have lost every digit."""
    x = np.linspace(0, 25, 10_001)
    expected = np.array([math.erfc(v) for v in x.tolist()])
    assert (np.abs(erfc(np, x) - expected) / expected).max() <= 2e-13


def test_shape_is_kept_beyond_one_chunk():
    x = np.linspace(-3, 3, 3 * 7 * 1000).reshape(3, 7, 1000)
    assert erfc(np, x).shape == x.shape
    assert erfc(np, x[:, ::2].swapaxes(0, 2))[5, 1, 2] == pytest.approx(math.erfc(x[2, 2, 5]), abs=1e-15)


def test_the_coefficients_are_those_of_the_stated_function():
    mpmath = pytest.importorskip("mpmath")
    mp = mpmath.mp
    mp.dps = 50
    nodes = [mp.cos(mp.pi * (k + mp.mpf(1) / 2) / 80) for k in range(80)]

    def g(t):
        z = 2 * (1 - t) / t
        return mp.log(mp.erfc(z) * mp.exp(z * z) / t)

    values = [g((y + 1) / 2) for y in nodes]
    for j, coefficient in enumerate(COEFFICIENTS):
        exact = mp.fsum(v * mp.cos(mp.pi * j * (k + mp.mpf(1) / 2) / 80) for k, v in enumerate(values)) / 40
        assert abs(coefficient - exact) <= 1e-15 * abs(exact) + mp.mpf(10) ** -30
