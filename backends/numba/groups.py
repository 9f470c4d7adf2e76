"""What products of words have in common (`rounded.py`, `digits.py`): rows by 32 outputs, and where the sums lie.

A thread computes a group of outputs at a time.  Their sums lie in a small array of its own until all k are added up:
float32 [rows, GROUP], which stays in the cache of a core together with a block of the rows.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from refimpl.backends.numba import amx
from refimpl.backends.numba.products import aligned, weights_at
from refimpl.backends.numba.tiles import per_word
from refimpl.backends.numba.vectors import LANES, load, prefetch, store
from refimpl.backends.numba.words import OUTPUTS, PIECE, multiply_piece

#: So many outputs take turns with a block of so many rows: all that together fits the cache of a core.
GROUP, ROWS_AT_ONCE = 256, 512

#: Rows between two looks at what comes next.
SOME_ROWS = 2 * PIECE

#: Words in a piece of x: 16 rows of 16.
WORDS = PIECE * PIECE


@njit(nogil=True, cache=True, error_model="numpy")
def multiply_rows(x, x_at, x_stride, rows, pieces, w, w_at, unit, y, y_at, y_stride, first):
    """As `words.multiply_piece` for any number of rows.  There is room in y for a multiple of 16.

    x_stride: words from one piece of 16 rows to the next.
    unit: `amx.shapes()`, or None where there are no tiles.
    """
    row = 0
    while row < rows:
        here = 2 * PIECE if unit is not None and row + PIECE < rows else PIECE
        inputs, into = x_at + row // PIECE * x_stride, y_at + row * y_stride
        if unit is None:
            multiply_piece(x, inputs, PIECE, pieces, w, w_at, y, into, y_stride, first)
        elif here == PIECE:
            amx.multiply_16_rows(x, inputs, x_stride, PIECE, pieces, w, w_at, y, into, y_stride, first)
        else:
            amx.multiply_32_rows(x, inputs, x_stride, PIECE, pieces, w, w_at, y, into, y_stride, first)
        row += here


@njit(nogil=True, cache=True, error_model="numpy")
def comes_next(w, group, i, here, k, steps, code):
    """Where the weights lie that are needed after those of panel `i` of a group, and how many for 32 outputs."""
    count = steps // per_word(w, code) * OUTPUTS
    if i + 1 < here:
        return weights_at(w, group + i + 1, k, code), count
    if weights_at(w, group, k + steps, code) < weights_at(w, group + 1, 0, code):
        return weights_at(w, group, k + steps, code), count
    return weights_at(w, group + here, 0, code), count


@njit(nogil=True, cache=True, error_model="numpy")
def ask_for(w, place, count):
    """Ask for `count` weights from `place` on, which are needed next."""
    for i in range(0, count, 64 // w.itemsize):
        prefetch(w, place + i)


@njit(nogil=True, cache=True, error_model="numpy")
def put_away(sums, rows, outputs, scale, bias, y, first, output):
    """The sums of some rows and outputs, times the scale of each output, plus its bias, to their place in y."""
    for row in range(min(rows, y.shape[0] - first)):
        for lane in range(0, outputs, LANES):
            numbers = load(sums, row * GROUP + lane)
            if scale is not None:
                numbers = numbers * load(scale, output + lane)
            if bias is not None:
                numbers = numbers + load(bias, output + lane)
            store(y, (first + row) * y.shape[1] + output + lane, numbers)


@njit(nogil=True, cache=True)
def aligned_ints(size):
    """int32 [size], at the beginning of a cache line."""
    return aligned(size).view(np.int32)


@njit(nogil=True, cache=True)
def pieces_for(rows, pieces):
    """Room for the words of so many rows.  -> int32 [rows / 16, pieces, 16, 16]; for fewer [1, pieces, rows, 16]"""
    count, size = -(-rows // PIECE), min(rows, PIECE)
    whole = count * pieces * size * PIECE
    # Where there are no tiles, some rows after the last are read as well.
    return aligned_ints(whole + WORDS)[:whole].reshape(count, pieces, size, PIECE)
