"""Numbers on their way to 8 or 4 bits: the parts in which they are taken, their absmax, the nearest value of a table.

What is made of them says `refimpl.backends.quantized`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from refimpl.errors import CheckpointValueError, InputError

# bitsandbytes divides by no smaller number, so that a block of zeros gives zeros.
_SMALLEST_DIVISOR = np.float32(1e-38)

# So many numbers are quantized together: what is computed on the way stays in the cache. Every block size divides it.
_PART = 1 << 16

# Up to so many midpoints, comparing with each of them is faster than searching.
_FEW_MIDPOINTS = 32

_DENSE_DTYPES = ("float16", "bfloat16", "float32", "float64")

_ONE = np.float32(1)


# --- parts of a matrix -------------------------------------------------------------------------------


def rows_for_int8(array: np.ndarray, name: str | None) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Some rows after the others: which, their numbers as float16 [rows, in], and the absmax of each, float32 [rows].

    Raises: CheckpointValueError, as `quantize_int8`.
    """
    count = max(1, _PART // array.shape[1])
    for first in range(0, array.shape[0], count):
        rows = slice(first, first + count)
        values = _as_float16(array[rows])
        absmax = _largest(values)
        if not np.isfinite(absmax).all():
            _refuse_infinite(array, name)
            what = "float16, through which weights go to int8, cannot hold a number of this tensor"
            _refuse_infinite(_as_float16(array), name, what, array)
        yield rows, values, absmax


def parts_for_nf4(
    array: np.ndarray, block: int, name: str | None
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """The matrix row by row in parts of whole blocks, but for the last: where a part begins, its numbers [n] in their
    own dtype, and the absmax of each block, float32 [blocks].

    Raises: CheckpointValueError, as `quantize_nf4`.
    """
    flat = array.reshape(-1)
    for first in range(0, flat.size, _PART):
        values = flat[first : first + _PART]
        absmax = absmax_of(values, block)
        if not np.isfinite(absmax).all():
            _refuse_infinite(as_float32(array), name, source=array)
        yield first, values, absmax


def as_float32(array: np.ndarray) -> np.ndarray:
    """`array` in float32; infinity for what is too large."""
    with np.errstate(over="ignore"):
        return array.astype(np.float32, copy=False)


def _as_float16(array: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return array if array.dtype == np.float16 else as_float32(array).astype(np.float16)


# --- arithmetic --------------------------------------------------------------------------------------


def absmax_of(values: np.ndarray, block: int) -> np.ndarray:
    """The largest magnitude of each block; NaN where a block holds NaN.  float [n] -> float32 [blocks]"""
    full = values.size - values.size % block
    absmax = _largest(values[:full].reshape(-1, block))
    if full == values.size:
        return absmax
    return np.append(absmax, np.maximum(_largest(values[None, full:]), _SMALLEST_DIVISOR))


def _largest(rows: np.ndarray) -> np.ndarray:
    """The largest magnitude of each row; NaN where a row holds NaN.  float [n, m] -> float32 [n]"""
    if not rows.dtype.isnative:
        rows = as_float32(rows)
    # Without the sign, the bits of floats rise as their magnitudes do. Whole numbers are compared faster, and only
    # the largest are converted: rounding changes no order.
    bits = np.dtype(f"u{rows.itemsize}")
    magnitudes = rows.view(bits) & bits.type(np.iinfo(bits).max >> 1)
    return as_float32(magnitudes.max(axis=1).view(rows.dtype))


def divided_by_absmax(values: np.ndarray, absmax: np.ndarray, block: int) -> np.ndarray:
    """Each number divided by the absmax of its block.  float32 [n], [blocks] -> [n]"""
    full = values.size - values.size % block
    # Multiplied by the rounded reciprocal, which is not the same as divided.
    units = _ONE / np.maximum(absmax[: full // block], _SMALLEST_DIVISOR)
    scaled = (values[:full].reshape(-1, block) * units[:, None]).reshape(-1)
    if full < values.size:  # bitsandbytes treats a last block that is not full differently: it divides
        scaled = np.concatenate([scaled, values[full:] / absmax[-1]])
    return np.clip(scaled, -_ONE, _ONE, out=scaled)


def nearest(values: np.ndarray, code: np.ndarray) -> np.ndarray:
    """The place of the nearest value in a rising table; the lower one where two are equally near.

    float32 [...], float32 [entries] -> uint8 [...]
    """
    midpoints = (code[:-1] + code[1:]) / np.float32(2)
    if len(midpoints) > _FEW_MIDPOINTS:
        return np.searchsorted(midpoints, values, side="left").astype(np.uint8)
    # The same places, many times faster: a comparison is one instruction for many numbers. Counted from above, so
    # that NaN gets the place that the search gives it.
    places = np.full(values.shape, len(midpoints), np.uint8)
    for midpoint in midpoints:
        places -= (values <= midpoint).view(np.uint8)
    return places


# --- checks ------------------------------------------------------------------------------------------


def check_matrix(array: np.ndarray, name: str | None) -> None:
    if array.ndim != 2 or not array.size or array.dtype.name not in _DENSE_DTYPES:
        raise InputError(
            "only a matrix of floats can be quantized",
            where=name,
            found=f"{array.dtype.name} {list(array.shape)}",
            allowed=f"[out, in] in {', '.join(_DENSE_DTYPES)}",
        )


def _refuse_infinite(
    array: np.ndarray,
    name: str | None,
    what: str = "a matrix with NaN or infinity cannot be quantized",
    source: np.ndarray | None = None,
) -> None:
    wrong = ~np.isfinite(array)
    if wrong.any():
        first = [int(i) for i in np.argwhere(wrong)[0]]
        value = float((array if source is None else source)[tuple(first)])
        raise CheckpointValueError(
            what,
            where=name,
            found=f"{value!r} at {first} ({int(wrong.sum())} such numbers)",
            tensor=name,
            count=int(wrong.sum()),
            first_index=first,
        )
