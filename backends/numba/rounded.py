"""Matrix products of rounded numbers, for many rows: the option `matmul_dtype`.

`products.py` multiplies float32 by float32.  Here rows of x are first rounded to bfloat16, or to int8 with a unit for
each block of 512, and weights are made the same kind while they are read from the panels that all products share:

    bfloat16    float32, float16 and NF4 weights are rounded; bfloat16 and int8 are exact in it
    int8        int8 weights as they are; other weights have no such product

Sums are wide: float32 for bfloat16; for int8 whole numbers within a block, float32 from block to block.  What
multiplies is, in this order: AMX (`amx.py`), the instructions for words, float32 (both in `words.py`).
"""

from __future__ import annotations

import numpy as np
from numba import njit

from refimpl.backends.numba import amx
from refimpl.backends.numba.products import scales_at, weights_at
from refimpl.backends.numba.regions import parallel
from refimpl.backends.numba.tiles import CODES_PER_WORD, weights
from refimpl.backends.numba.vectors import (
    LANES,
    broadcast,
    fma,
    larger,
    largest,
    load,
    load_first,
    magnitude,
    prefetch,
    store,
    total,
)
from refimpl.backends.numba.words import (
    OUTPUTS,
    PAIR,
    PIECE,
    QUAD,
    load_whole,
    multiply_piece,
    store_bytes,
    store_pairs,
    store_quads,
    store_row,
)

#: k whose products are added up before the sums are put away.  So many squares of 127 are exact in float32.
BLOCK_OF_PAIRS, BLOCK_OF_QUADS = 256, 512

#: So many outputs take turns with a block of so many rows: all that together fits the cache of a core.
_GROUP, _ROWS_AT_ONCE = 256, 512

#: Words in a piece of x: 16 rows of 16.
_WORDS = PIECE * PIECE

_ZERO, _127 = np.float32(0), np.float32(127)

# Rows of smaller numbers become zeros in int8: 127 divided by them might be infinite.
_SMALLEST = np.float32(1e-30)


# --- rows of x --------------------------------------------------------------------------------------


@njit(nogil=True, cache=True, error_model="numpy")
def _round_to_pairs(part, parts, x, words):
    rows, length = x.shape
    count, pieces = words.shape[:2]
    for row in range(PIECE * (count * part // parts), PIECE * (count * (part + 1) // parts)):
        for piece in range(pieces):
            k = piece * PIECE * PAIR
            place = (row // PIECE * pieces + piece) * _WORDS + row % PIECE * PIECE
            first = row * length + k
            if row >= rows:
                store_row(words, place, broadcast(_ZERO), broadcast(_ZERO))
            elif k + PIECE * PAIR <= length:
                store_row(words, place, load(x, first), load(x, first + LANES))
            else:
                rest = length - k
                store_row(
                    words, place, load_first(x, first, rest), load_first(x, first + LANES, rest - LANES)
                )


@njit(nogil=True, cache=True, error_model="numpy")
def _round_to_quads(part, parts, x, words, units):
    rows, length = x.shape
    count, pieces = words.shape[:2]
    for row in range(PIECE * (count * part // parts), PIECE * (count * (part + 1) // parts)):
        for block in range(units.shape[1]):
            begin = block * BLOCK_OF_QUADS
            end = min(length, begin + BLOCK_OF_QUADS) if row < rows else begin
            peak = broadcast(_ZERO)
            nothing = broadcast(_ZERO)  # NaN, where a number is NaN or infinite
            for k in range(begin, end, LANES):
                numbers = load_first(x, row * length + k, end - k)
                peak = larger(magnitude(numbers), peak)
                nothing = fma(numbers, broadcast(_ZERO), nothing)
            highest = largest(peak) + total(nothing)
            units[row, block] = highest / _127
            factor = broadcast(_127 / highest if highest > _SMALLEST else _ZERO)
            last = min(pieces * PIECE * QUAD, begin + BLOCK_OF_QUADS)
            for k in range(begin, last, LANES):
                word = k // QUAD
                place = (row // PIECE * pieces + word // PIECE) * _WORDS + row % PIECE * PIECE + word % PIECE
                store_bytes(words, place, load_first(x, row * length + k, end - k) * factor)


# --- weights of 32 outputs --------------------------------------------------------------------------


@njit(nogil=True, cache=True, error_model="numpy")
def _weights_in_pairs(w, w_at, width, steps, code, scale, scale_at, block, k, words):
    """Words of `steps` rows of weights.  Places in a table are multiplied by their scales before they are rounded."""
    half = -(-steps // (PIECE * PAIR)) * PIECE * LANES
    run = steps if code is None else min(block, steps)
    for lane in range(0, OUTPUTS, LANES):
        at = lane // LANES * half
        for begin in range(0, steps, run):
            unit = broadcast(_ZERO)
            if code is not None:
                unit = load(scale, scale_at + (k + begin) // block * width + lane)
            for step in range(begin, min(begin + run, steps), PAIR):
                first = weights(w, w_at + lane, width, step, code)
                second = broadcast(_ZERO)
                if step + 1 < steps:
                    second = weights(w, w_at + lane, width, step + 1, code)
                if code is not None:
                    first, second = first * unit, second * unit
                store_pairs(words, at, first, second)
                at += LANES
        words[at : (lane // LANES + 1) * half] = 0


@njit(nogil=True, cache=True, error_model="numpy")
def _weights_in_quads(w, w_at, width, steps, words):
    half = -(-steps // (PIECE * QUAD)) * PIECE * LANES
    bytes_of_words = words.view(np.int8)
    flat = w.reshape(-1)
    for lane in range(0, OUTPUTS, LANES):
        at = lane // LANES * half
        whole = steps // QUAD * QUAD
        for step in range(0, whole, QUAD):
            store_quads(words, at, w, w_at + step * width + lane, width)
            at += LANES
        words[at : (lane // LANES + 1) * half] = 0
        for step in range(whole, steps):
            for i in range(LANES):
                bytes_of_words[(at + i) * QUAD + step - whole] = flat[w_at + step * width + lane + i]


# --- products ---------------------------------------------------------------------------------------


@njit(nogil=True, cache=True, error_model="numpy")
def _multiply_rows(x, x_at, x_stride, rows, pieces, words, unit, y, y_at, y_stride, first, w, next_at, count):
    """`rows` rows, a multiple of 16, by 32 outputs.  Meanwhile the `count` weights are fetched that come next."""
    row = 0
    while row < rows:
        here = 2 * PIECE if unit is not None and row + 2 * PIECE <= rows else PIECE
        _ask_for(w, next_at + count * row // rows, count * here // rows)
        inputs, into = x_at + row // PIECE * x_stride, y_at + row * y_stride
        if unit is None:
            multiply_piece(x, inputs, pieces, words, y, into, y_stride, first)
        elif here == PIECE:
            amx.multiply_16_rows(x, inputs, x_stride, pieces, words, y, into, y_stride, first)
        else:
            amx.multiply_32_rows(x, inputs, x_stride, pieces, words, y, into, y_stride, first)
        row += here


@njit(nogil=True, cache=True, error_model="numpy")
def _comes_next(w, group, i, here, k, steps, code):
    """Where the weights lie that are needed after those of panel `i` of a group, and how many for 32 outputs."""
    count = steps * OUTPUTS if code is None else steps // CODES_PER_WORD * OUTPUTS
    if i + 1 < here:
        return weights_at(w, group + i + 1, k, code), count
    if weights_at(w, group, k + steps, code) < weights_at(w, group + 1, 0, code):
        return weights_at(w, group, k + steps, code), count
    return weights_at(w, group + here, 0, code), count


@njit(nogil=True, cache=True, error_model="numpy")
def _ask_for(w, place, count):
    """Ask for `count` weights from `place` on, which are needed next."""
    for i in range(0, count, 64 // w.itemsize):
        prefetch(w, place + i)


@njit(nogil=True, cache=True, error_model="numpy")
def _multiply_pairs(part, parts, x, w, code, scale, block, unit, bias, y):
    """Panel after panel; the sums of a group of outputs lie in a small array of this thread until all k are added."""
    panels, _, width = w.shape
    pieces = x.shape[1]
    length = w.shape[1] * (1 if code is None else CODES_PER_WORD)
    before = np.empty(64, np.uint8)
    if unit is not None:
        amx.begin(unit, before)
    begin, end = panels * part // parts, panels * (part + 1) // parts
    most = min(_ROWS_AT_ONCE, PIECE * x.shape[0])
    at_once = _GROUP // width
    words = _aligned_ints(OUTPUTS * BLOCK_OF_PAIRS // PAIR)
    sums = _aligned_ints(most * _GROUP).view(np.float32)
    for first in range(0, PIECE * x.shape[0], most):
        rows = min(most, PIECE * x.shape[0] - first)
        for group in range(begin, end, at_once):
            here = min(at_once, end - group)
            for k in range(0, length, BLOCK_OF_PAIRS):
                steps = min(BLOCK_OF_PAIRS, length - k)
                x_at = (first // PIECE * pieces + k // (PIECE * PAIR)) * _WORDS
                for i in range(here):
                    w_at = weights_at(w, group + i, k, code)
                    next_at, count = _comes_next(w, group, i, here, k, steps, code)
                    for lane in range(0, width, OUTPUTS):
                        _weights_in_pairs(
                            w, w_at + lane, width, steps, code, scale,
                            scales_at(scale, group + i, 0) + lane, block, k, words,
                        )  # fmt: skip
                        _multiply_rows(
                            x, x_at, pieces * _WORDS, rows, -(-steps // (PIECE * PAIR)), words, unit,
                            sums, i * width + lane, _GROUP, k == 0, w, next_at + lane // OUTPUTS * count, count,
                        )  # fmt: skip
            if code is None:
                _put_away(sums, rows, here * width, scale, bias, y, first, group * width)
            else:
                _put_away(sums, rows, here * width, None, bias, y, first, group * width)
    if unit is not None:
        amx.end(before)


@njit(nogil=True, cache=True, error_model="numpy")
def _put_away(sums, rows, outputs, scale, bias, y, first, output):
    """The sums of some rows and outputs, times the scale of each output, plus its bias, to their place in y."""
    for row in range(min(rows, y.shape[0] - first)):
        for lane in range(0, outputs, LANES):
            numbers = load(sums, row * _GROUP + lane)
            if scale is not None:
                numbers = numbers * load(scale, output + lane)
            if bias is not None:
                numbers = numbers + load(bias, output + lane)
            store(y, (first + row) * y.shape[1] + output + lane, numbers)


@njit(nogil=True, cache=True, error_model="numpy")
def _multiply_quads(part, parts, x, x_units, w, scale, unit, bias, y):
    panels, length, width = w.shape
    pieces = x.shape[1]
    before = np.empty(64, np.uint8)
    if unit is not None:
        amx.begin(unit, before)
    begin, end = panels * part // parts, panels * (part + 1) // parts
    most = min(_ROWS_AT_ONCE, PIECE * x.shape[0])
    at_once = _GROUP // width
    words = _aligned_ints(OUTPUTS * BLOCK_OF_QUADS // QUAD)
    whole = _aligned_ints(most * OUTPUTS)
    sums = _aligned_ints(most * _GROUP).view(np.float32)
    for first in range(0, PIECE * x.shape[0], most):
        rows = min(most, PIECE * x.shape[0] - first)
        for group in range(begin, end, at_once):
            here = min(at_once, end - group)
            for k in range(0, length, BLOCK_OF_QUADS):
                steps = min(BLOCK_OF_QUADS, length - k)
                x_at = (first // PIECE * pieces + k // (PIECE * QUAD)) * _WORDS
                for i in range(here):
                    w_at = weights_at(w, group + i, k, None)
                    next_at, count = _comes_next(w, group, i, here, k, steps, None)
                    for lane in range(0, width, OUTPUTS):
                        _weights_in_quads(w, w_at + lane, width, steps, words)
                        _multiply_rows(
                            x, x_at, pieces * _WORDS, rows, -(-steps // (PIECE * QUAD)), words, unit,
                            whole, 0, OUTPUTS, True, w, next_at + lane // OUTPUTS * count, count,
                        )  # fmt: skip
                        for row in range(rows):
                            factor = broadcast(x_units[first + row, k // BLOCK_OF_QUADS])
                            for half in range(0, OUTPUTS, LANES):
                                place = row * _GROUP + i * width + lane + half
                                numbers = broadcast(_ZERO)
                                if k:
                                    numbers = load(sums, place)
                                found = load_whole(whole, row * OUTPUTS + half)
                                store(sums, place, fma(found, factor, numbers))
            _put_away(sums, rows, here * width, scale, bias, y, first, group * width)
    if unit is not None:
        amx.end(before)


@njit(nogil=True, cache=True)
def _aligned_ints(size):
    """int32 [size], at the beginning of a cache line."""
    memory = np.empty(size + LANES, np.int32)
    skip = -memory.ctypes.data % 64 // 4
    return memory[skip : skip + size]


@njit(nogil=True, cache=True)
def _pieces_for(x, pieces):
    """Room for the words of x.  -> int32 [rows / 16, pieces, 16, 16]"""
    count = -(-x.shape[0] // PIECE)
    return _aligned_ints(count * pieces * _WORDS).reshape(count, pieces, PIECE, PIECE)


@njit(nogil=True, cache=True)
def multiply_in_bfloat16(pool, x, w, code, scale, block, unit, bias, y):
    """y = x @ w.T (+ bias) with both factors rounded to bfloat16, sums in float32.  Arguments as `multiply_many_rows`;

    unit: `amx.shapes()`, or None where there are no tiles.
    """
    pieces = -(-x.shape[1] // (PIECE * PAIR))
    words = _pieces_for(x, pieces)
    parallel(pool, _round_to_pairs, (x, words))
    parallel(pool, _multiply_pairs, (words, w, code, scale, block, unit, bias, y))


@njit(nogil=True, cache=True)
def multiply_in_int8(pool, x, w, scale, unit, bias, y):
    """y = x @ w.T (+ bias), x rounded to int8 with a unit for each row and block of 512 k; w: int8 panels."""
    pieces = -(-x.shape[1] // (PIECE * QUAD))
    words = _pieces_for(x, pieces)
    units = np.empty((words.shape[0] * PIECE, -(-x.shape[1] // BLOCK_OF_QUADS)), np.float32)
    parallel(pool, _round_to_quads, (x, words, units))
    parallel(pool, _multiply_quads, (words, units, w, scale, unit, bias, y))
