"""Layer norm, rotary embedding and activations: what happens to each number or row between the matrix products."""

from __future__ import annotations

import numpy as np
from numba import njit, types

from refimpl.backends.numba.regions import parallel
from refimpl.backends.numba.vectors import (
    LANES,
    broadcast,
    exp,
    fma,
    load,
    load_first,
    magnitude,
    store,
    store_first,
    total,
    where_negative,
)

#: Less than so many numbers are not worth more than one thread.
_WORTH_A_REGION = 16_384

_ZERO, _ONE = np.float32(0), np.float32(1)


# --- layer norm ----------------------------------------------------------------------------------


@njit(nogil=True, cache=True, error_model="numpy")
def _norm_rows(part, parts, x, weight, bias, eps, y):
    rows, hidden = x.shape
    whole = hidden // LANES * LANES
    for row in range(rows * part // parts, rows * (part + 1) // parts):
        first = row * hidden
        sums = broadcast(_ZERO)
        for i in range(0, whole, LANES):
            sums = sums + load(x, first + i)
        mean = total(sums)
        for i in range(whole, hidden):
            mean += x[row, i]
        mean /= np.float32(hidden)
        means = broadcast(mean)
        sums = broadcast(_ZERO)
        for i in range(0, whole, LANES):
            centred = load(x, first + i) - means
            sums = fma(centred, centred, sums)
        variance = total(sums)
        for i in range(whole, hidden):
            variance += (x[row, i] - mean) * (x[row, i] - mean)
        factor = _ONE / np.sqrt(variance / np.float32(hidden) + eps)
        factors = broadcast(factor)
        for i in range(0, whole, LANES):
            store(y, first + i, fma((load(x, first + i) - means) * factors, load(weight, i), load(bias, i)))
        for i in range(whole, hidden):
            y[row, i] = (x[row, i] - mean) * factor * weight[i] + bias[i]


@njit(nogil=True, cache=True)
def layer_norm(pool, x, weight, bias, eps, y):
    """y = (x - mean) / sqrt(variance + eps) * weight + bias of each row.  float32 [rows, hidden]; eps is a float32"""
    if x.size < _WORTH_A_REGION:
        _norm_rows(0, 1, x, weight, bias, eps, y)
    else:
        parallel(pool, _norm_rows, (x, weight, bias, eps, y))


# --- rotary embedding ----------------------------------------------------------------------------


@njit(nogil=True, cache=True, error_model="numpy")
def _rotate_rows(part, parts, x, cos, sin, y):
    batches, heads, seq, head_dim = x.shape
    half = cos.shape[2]
    rows = batches * heads * seq
    for row in range(rows * part // parts, rows * (part + 1) // parts):
        t, head, batch = row % seq, row // seq % heads, row // (seq * heads)
        angle = batch if cos.shape[0] > 1 else 0
        for i in range(half):
            first, second = x[batch, head, t, i], x[batch, head, t, i + half]
            y[batch, head, t, i] = first * cos[angle, t, i] - second * sin[angle, t, i]
            y[batch, head, t, i + half] = second * cos[angle, t, i] + first * sin[angle, t, i]
        for i in range(2 * half, head_dim):
            y[batch, head, t, i] = x[batch, head, t, i]


_strided = types.Array(types.float32, 4, "A", readonly=True)
_angles = types.Array(types.float32, 3, "C", readonly=True)


@njit(
    [types.void(types.int64[::1], _strided, _angles, _angles, types.float32[:, :, :, ::1])],
    nogil=True,
    cache=True,
)
def rotate(pool, x, cos, sin, y):
    """Turn pairs of dimensions.  [batch, heads, seq, head_dim], 2 x [batch or 1, seq, pairs], all float32"""
    if x.size < _WORTH_A_REGION:
        _rotate_rows(0, 1, x, cos, sin, y)
    else:
        parallel(pool, _rotate_rows, (x, cos, sin, y))


# --- activations ---------------------------------------------------------------------------------

# erfc(z) = t exp(-z**2) P(t) with t = 1 / (1 + z / 2), for z from 0 to 10.  P is the polynomial with the smallest
# squares of relative errors at 400 Chebyshev points; the largest of these errors is 5e-8.  Highest power first.
_COEFFICIENTS = (
    -0.06010870635509491, 0.2894461154937744, -0.4968295693397522, 0.2885151505470276, -0.03339901939034462,
    0.20536042749881744, 0.2424793839454651, 0.28245383501052856, 0.28208234906196594,
)  # fmt: skip
_ERFC = tuple(np.float32(coefficient) for coefficient in _COEFFICIENTS)


@njit(nogil=True, cache=True, inline="always")
def _gelu(x):
    """x * Phi(x), Phi(x) = erfc(-x / sqrt(2)) / 2; for negative x without a difference of near numbers."""
    z = magnitude(x) * broadcast(np.float32(np.sqrt(0.5)))
    t = broadcast(_ONE) / fma(z, broadcast(np.float32(0.5)), broadcast(_ONE))
    value = broadcast(_ERFC[0])
    value = fma(value, t, broadcast(_ERFC[1]))
    value = fma(value, t, broadcast(_ERFC[2]))
    value = fma(value, t, broadcast(_ERFC[3]))
    value = fma(value, t, broadcast(_ERFC[4]))
    value = fma(value, t, broadcast(_ERFC[5]))
    value = fma(value, t, broadcast(_ERFC[6]))
    value = fma(value, t, broadcast(_ERFC[7]))
    value = fma(value, t, broadcast(_ERFC[8]))
    tail = broadcast(np.float32(0.5)) * (value * t) * exp(broadcast(_ZERO) - z * z)
    return x * where_negative(x, tail, broadcast(_ONE) - tail)


@njit(nogil=True, cache=True, inline="always")
def _sigmoid(x):
    small = exp(broadcast(_ZERO) - magnitude(x))
    return where_negative(x, small, broadcast(_ONE)) / (broadcast(_ONE) + small)


@njit(nogil=True, cache=True, inline="always")
def _silu(x):
    return x * _sigmoid(x)


@njit(nogil=True, cache=True, inline="always")
def _quick_gelu(x):
    return x * _sigmoid(x * broadcast(np.float32(1.702)))


@njit(nogil=True, cache=True, inline="always")
def _gelu_tanh(x):
    """0.5 x (1 + tanh(u)) = x sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x**3)"""
    cube = x * x * x
    inner = fma(cube, broadcast(np.float32(0.044715)), x)
    return x * _sigmoid(inner * broadcast(np.float32(2 * np.sqrt(2 / np.pi))))


@njit(nogil=True, cache=True, inline="always")
def _gelu_fast(x):
    inner = fma(x * x, broadcast(np.float32(0.044715)), broadcast(_ONE))
    return x * _sigmoid(x * broadcast(np.float32(2 * 0.7978845608)) * inner)


#: The activations that are compiled, by their number in `_bent`; the names are those of `activations.py`.
ACTIVATIONS = {
    "gelu": 0, "gelu_python": 0,
    "gelu_new": 1, "gelu_accurate": 1, "gelu_pytorch_tanh": 1, "gelu_python_tanh": 1,
    "gelu_fast": 2,
    "silu": 3, "swish": 3,
    "quick_gelu": 4,
    "sigmoid": 5,
}  # fmt: skip


@njit(nogil=True, cache=True, inline="always")
def _bent(which, x):
    if which == 0:
        return _gelu(x)
    if which == 1:
        return _gelu_tanh(x)
    if which == 2:
        return _gelu_fast(x)
    if which == 3:
        return _silu(x)
    if which == 4:
        return _quick_gelu(x)
    return _sigmoid(x)


@njit(nogil=True, cache=True, error_model="numpy")
def _bend(part, parts, which, x, y):
    vectors = (x.size + LANES - 1) // LANES
    for vector in range(vectors * part // parts, vectors * (part + 1) // parts):
        place = vector * LANES
        if place + LANES <= x.size:
            store(y, place, _bent(which, load(x, place)))
        else:
            store_first(y, place, x.size - place, _bent(which, load_first(x, place, x.size - place)))


@njit(nogil=True, cache=True)
def activate(pool, which, x, y):
    """y = the activation number `which` of x.  float32 [n]"""
    if x.size < _WORTH_A_REGION:
        _bend(0, 1, which, x, y)
    else:
        parallel(pool, _bend, (which, x, y))
