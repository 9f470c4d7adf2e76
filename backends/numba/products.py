"""Matrix products with weights in panels, in any of the forms in which they are kept.

A panel holds 32 or 64 outputs, [k, outputs]: what a tile needs for one k lies side by side, and a panel is one
stream from its beginning to its end.  The same panels serve a single token, where the speed is that of reading
them, and a long prompt, where they are read once for all tokens.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from refimpl.backends.numba.regions import parallel
from refimpl.backends.numba.tiles import (
    OUTPUTS,
    ROWS,
    per_word,
    row_of_32,
    row_of_64,
    tile_of_1,
    tile_of_2,
    tile_of_4,
    tile_of_all,
    weights,
)
from refimpl.backends.numba.vectors import LANES, load, store

#: So many k are added up in registers, then to the output: their inputs stay in the cache meanwhile.
BLOCK = 256

#: From so many rows on, weights are widened once for all of them; below, in every tile anew.
MANY_ROWS = 16

#: So many panels take turns with a block of so many rows of x: all that together fits the cache of a core.
_GROUP, _ROWS_AT_ONCE = 8, 512


@njit(nogil=True, cache=True, error_model="numpy")
def _block(x, x_at, w, w_at, width, steps, code, scale, scale_at, y, y_at, first):
    """One block of k for all rows: the tile with the most rows first."""
    rows, x_stride, y_stride = x.shape[0], x.shape[1], y.shape[1]
    row = 0
    while row + ROWS <= rows:
        tile_of_all(
            x, x_at + row * x_stride, x_stride, w, w_at, width, steps, code, scale, scale_at,
            y, y_at + row * y_stride, y_stride, first,
        )  # fmt: skip
        row += ROWS
    while row + 4 <= rows:
        tile_of_4(
            x, x_at + row * x_stride, x_stride, w, w_at, width, steps, code, scale, scale_at,
            y, y_at + row * y_stride, y_stride, first,
        )  # fmt: skip
        row += 4
    if row + 2 <= rows:
        tile_of_2(
            x, x_at + row * x_stride, x_stride, w, w_at, width, steps, code, scale, scale_at,
            y, y_at + row * y_stride, y_stride, first,
        )  # fmt: skip
        row += 2
    if row < rows:
        tile_of_1(
            x, x_at + row * x_stride, x_stride, w, w_at, width, steps, code, scale, scale_at,
            y, y_at + row * y_stride, y_stride, first,
        )  # fmt: skip


@njit(nogil=True, cache=True, error_model="numpy")
def _add_bias(y, bias, begin, end):
    for row in range(y.shape[0]):
        for output in range(begin, end, LANES):
            place = row * y.shape[1] + output
            store(y, place, load(y, place) + load(bias, output))


@njit(nogil=True, cache=True, error_model="numpy")
def weights_at(w, panel, k, code):
    """The place in `w` of the first weight of a panel for `k`."""
    return (panel * w.shape[1] + k // per_word(w, code)) * w.shape[2]


@njit(nogil=True, cache=True, error_model="numpy")
def scales_at(scale, panel, block):
    """The place in `scale` of the first factor of a panel for a block of k; there may be one for all blocks."""
    return 0 if scale is None else (panel * scale.shape[1] + block % scale.shape[1]) * scale.shape[2]


@njit(nogil=True, cache=True, error_model="numpy")
def _one_row(part, parts, x, w, code, scale, block, bias, y):
    """Panel after panel, each read once from its beginning to its end."""
    panels, _, width = w.shape
    for panel in range(panels * part // parts, panels * (part + 1) // parts):
        for k in range(0, x.shape[1], block):
            steps = min(block, x.shape[1] - k)
            w_at = weights_at(w, panel, k, code)
            scale_at = scales_at(scale, panel, k // block)
            if width == 64:
                row_of_64(x, k, 0, w, w_at, 64, steps, code, scale, scale_at, y, panel * 64, 0, k == 0)
            else:
                row_of_32(x, k, 0, w, w_at, 32, steps, code, scale, scale_at, y, panel * 32, 0, k == 0)
        if bias is not None:
            _add_bias(y, bias, panel * width, (panel + 1) * width)


@njit(nogil=True, cache=True, error_model="numpy")
def _few_rows(part, parts, x, w, code, scale, block, bias, y):
    """Weights are widened in the tile, for some rows at a time."""
    panels, _, width = w.shape
    for panel in range(panels * part // parts, panels * (part + 1) // parts):
        for k in range(0, x.shape[1], block):
            steps = min(block, x.shape[1] - k)
            w_at = weights_at(w, panel, k, code)
            scale_at = scales_at(scale, panel, k // block)
            for lane in range(0, width, OUTPUTS):
                _block(
                    x,
                    k,
                    w,
                    w_at + lane,
                    width,
                    steps,
                    code,
                    scale,
                    scale_at + lane,
                    y,
                    panel * width + lane,
                    k == 0,
                )
        if bias is not None:
            _add_bias(y, bias, panel * width, (panel + 1) * width)


@njit(nogil=True, cache=True, error_model="numpy")
def _lay_out(part, parts, x, blocks):
    """The blocks of x one after the other: [rows, k] -> [k / block, rows, block]"""
    rows, length = x.shape
    count, _, block = blocks.shape
    for row in range(rows * part // parts, rows * (part + 1) // parts):
        for i in range(count):
            k, into = row * length + i * block, (i * rows + row) * block
            steps = min(block, length - i * block)
            whole = steps // LANES * LANES
            for lane in range(0, whole, LANES):
                store(blocks, into + lane, load(x, k + lane))
            for lane in range(whole, steps):
                blocks[i, row, lane] = x[row, i * block + lane]


@njit(nogil=True, cache=True, error_model="numpy")
def _many_rows(part, parts, blocks, length, w, code, scale, bias, y, first):
    """Weights are widened once for all rows of `blocks`, whose place in y begins with row `first`.

    The sums of a group of panels and the widened weights lie in small arrays of this thread.
    """
    panels, _, width = w.shape
    end = panels * (part + 1) // parts
    _, rows, block = blocks.shape
    wide, sums = aligned(block * OUTPUTS), aligned(rows * _GROUP * width)
    for group in range(panels * part // parts, end, _GROUP):
        here = min(_GROUP, end - group)
        outputs = sums[: rows * here * width].reshape(rows, here * width)
        for k in range(0, length, block):
            steps = min(block, length - k)
            for i in range(here):
                panel = group + i
                w_at = weights_at(w, panel, k, code)
                scale_at = scales_at(scale, panel, k // block)
                for lane in range(0, width, OUTPUTS):
                    _widen(w, w_at + lane, width, steps, code, wide)
                    _block(
                        blocks[k // block], 0, wide, 0, OUTPUTS, steps, None, scale, scale_at + lane,
                        outputs, i * width + lane, k == 0,
                    )  # fmt: skip
        if bias is not None:
            _add_bias(outputs, bias[group * width :], 0, here * width)
        y[first : first + rows, group * width : (group + here) * width] = outputs


@njit(nogil=True, cache=True)
def aligned(size):
    """float32 [size], at the beginning of a cache line: registers are filled faster from whole ones."""
    memory = np.empty(size + LANES, np.float32)
    skip = -memory.ctypes.data % 64 // 4
    return memory[skip : skip + size]


@njit(nogil=True, cache=True, error_model="numpy")
def _widen(w, w_at, width, steps, code, wide):
    for k in range(steps):
        for lane in range(0, OUTPUTS, LANES):
            store(wide, k * OUTPUTS + lane, weights(w, w_at + lane, width, k, code))


@njit(nogil=True, cache=True)
def multiply_one_row(pool, x, w, code, scale, block, bias, y):
    """y = x @ w.T (+ bias).  float32 [1, k], panels [n, k, outputs] -> float32 [1, n * outputs]

    w: float32, int16 (bits of float16), uint16 (bits of bfloat16), or int32 words of four int8 numbers, and `code`
        None; or int32 words of eight places each in `code`, float32 [16].
    scale: float32 [n, blocks, outputs], a factor for each block of k; None: 1.
    block: how many k are added up before they are scaled and added to y.
    bias: float32 [n * outputs], or None.
    """
    parallel(pool, _one_row, (x, w, code, scale, block, bias, y))


@njit(nogil=True, cache=True)
def multiply_few_rows(pool, x, w, code, scale, block, bias, y):
    """As `multiply_one_row`, bit for bit.  float32 [rows, k] -> float32 [rows, n * outputs]"""
    parallel(pool, _few_rows, (x, w, code, scale, block, bias, y))


@njit(nogil=True, cache=True)
def multiply_many_rows(pool, x, w, code, scale, block, bias, y):
    """As `multiply_few_rows`, bit for bit.

    x is laid out in blocks first: its own rows are so far apart, often by a multiple of 4096 bytes, that they push
    each other out of the cache.
    """
    rows, length = x.shape
    most, count = min(_ROWS_AT_ONCE, rows), -(-length // block)
    memory = aligned(count * most * block)
    for first in range(0, rows, most):
        here = min(most, rows - first)
        blocks = memory[: count * here * block].reshape(count, here, block)
        parallel(pool, _lay_out, (x[first : first + here], blocks))
        parallel(pool, _many_rows, (blocks, length, w, code, scale, bias, y, first))
