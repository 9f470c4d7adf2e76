"""Matrix products of int8 weights in whole numbers, with x in digits.

The processor adds up products of int8 many times as fast as those of float32, and exactly.  So a row of x is written as
whole numbers, in a unit of its own for each block of 512 k:

    x = unit * (d1 * 254**2 + d2 * 254 + d3),   each digit from -127 to 127

Three digits are 23 bits below the largest number of a block, about what a sum in float32 keeps beside it.  Each digit
is a row of its own to the processor, whose products with the weights are exact in a block; then

    y = sum over blocks of unit * (y1 * 254**2 + y2 * 254 + y3)

One digit is x rounded to int8: the option `matmul_dtype="int8"`.

All rows are computed in the same way, a single one too, and whole numbers have the same sum in every order: a row gets
the same bits in any company, and on every processor that multiplies words.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from refimpl.backends.numba import amx
from refimpl.backends.numba.groups import (
    GROUP,
    ROWS_AT_ONCE,
    SOME_ROWS,
    WORDS,
    aligned_ints,
    ask_for,
    comes_next,
    multiply_rows,
    pieces_for,
    put_away,
)
from refimpl.backends.numba.products import aligned, weights_at
from refimpl.backends.numba.regions import parallel
from refimpl.backends.numba.vectors import (
    LANES,
    broadcast,
    fma,
    larger,
    largest,
    load,
    load_first,
    magnitude,
    nearest,
    store,
    total,
)
from refimpl.backends.numba.words import OUTPUTS, PIECE, QUAD, load_whole, multiply_as_read, store_bytes

#: Digits of a number in float32 products, and the base: digits of either sign fill it but for the borders.
DIGITS, _BASE = 3, np.float32(254)

#: k that share a unit.  So many squares of 127 are exact in float32, which processors without such words multiply.
BLOCK = 512

_ZERO, _127 = np.float32(0), np.float32(127)

# Rows of smaller numbers become zeros: 127 divided by them might be infinite.
_SMALLEST = np.float32(1e-30)


@njit(nogil=True, cache=True, error_model="numpy")
def _to_digits(part, parts, x, digits, words, units):
    """Row `r` of x becomes rows `r * digits` and following of `words`.  NaN or infinity make the unit NaN."""
    rows, length = x.shape
    _, pieces, size, _ = words.shape
    for row in range(rows * part // parts, rows * (part + 1) // parts):
        for block in range(units.shape[1]):
            begin = block * BLOCK
            end = min(length, begin + BLOCK)
            peak = broadcast(_ZERO)
            nothing = broadcast(_ZERO)  # NaN, where a number is NaN or infinite
            for k in range(begin, end, LANES):
                numbers = load_first(x, row * length + k, end - k)
                peak = larger(magnitude(numbers), peak)
                nothing = fma(numbers, broadcast(_ZERO), nothing)
            highest = largest(peak) + total(nothing)
            unit = highest / _127
            for _ in range(1, digits):
                unit /= _BASE
            units[row, block] = unit
            factor = broadcast(_127 / highest if highest > _SMALLEST else _ZERO)
            for k in range(begin, min(pieces * PIECE * QUAD, begin + BLOCK), LANES):
                word = k // QUAD
                rest = load_first(x, row * length + k, end - k) * factor
                for digit_row in range(row * digits, (row + 1) * digits):
                    row_at = (digit_row // PIECE * pieces + word // PIECE) * size + digit_row % PIECE
                    digit = nearest(rest)
                    store_bytes(words, row_at * PIECE + word % PIECE, digit)
                    rest = (rest - digit) * broadcast(_BASE)


@njit(nogil=True, cache=True, error_model="numpy")
def _add_block(whole, whole_at, rows, digits, units, first, block, sums, at):
    """Add the sums of a block, `whole` [rows * digits, 32], to the first 32 of `sums` [rows, GROUP], each from its
    place on."""
    for row in range(rows):
        unit = broadcast(units[first + row, block])
        for lane in range(0, OUTPUTS, LANES):
            digit_at, place = whole_at + row * digits * OUTPUTS + lane, at + row * GROUP + lane
            here = load_whole(whole, digit_at)
            for digit in range(1, digits):
                here = fma(here, broadcast(_BASE), load_whole(whole, digit_at + digit * OUTPUTS))
            before = load(sums, place) if block else broadcast(_ZERO)
            store(sums, place, fma(here, unit, before))


@njit(nogil=True, cache=True, error_model="numpy")
def _multiply_many(part, parts, x, units, digits, w, scale, unit, bias, y):
    """Each block of a panel for all rows; meanwhile the weights are fetched that come next."""
    panels, words, width = w.shape
    pieces, length = x.shape[1], words * QUAD
    before = np.empty(64, np.uint8)
    if unit is not None:
        amx.begin(unit, before)
    begin, end = panels * part // parts, panels * (part + 1) // parts
    most, at_once = min(ROWS_AT_ONCE, y.shape[0]), GROUP // width
    whole = aligned_ints(-(-SOME_ROWS * digits // PIECE) * PIECE * OUTPUTS)
    sums = aligned(most * GROUP)
    for first in range(0, y.shape[0], most):
        rows = min(most, y.shape[0] - first)
        for group in range(begin, end, at_once):
            here = min(at_once, end - group)
            for k in range(0, length, BLOCK):
                steps = min(BLOCK, length - k)
                for i in range(here):
                    w_at = weights_at(w, group + i, k, None)
                    next_at, count = comes_next(w, group, i, here, k, steps, None)
                    for row in range(0, rows, SOME_ROWS):
                        some = min(SOME_ROWS, rows - row)
                        ask_for(w, next_at + count * row // rows, count * some // rows)
                        # A row of digits may begin within a piece of 16, but not where `SOME_ROWS` of them begin.
                        x_at = ((first + row) * digits // PIECE * pieces + k // (PIECE * QUAD)) * WORDS
                        multiply_rows(
                            x, x_at, pieces * WORDS, some * digits, steps // (PIECE * QUAD), w, w_at, unit,
                            whole, 0, OUTPUTS, True,
                        )  # fmt: skip
                        _add_block(
                            whole, 0, some, digits, units, first + row, k // BLOCK,
                            sums, row * GROUP + i * width,
                        )  # fmt: skip
            put_away(sums, rows, here * width, scale, bias, y, first, group * width)
    if unit is not None:
        amx.end(before)


@njit(nogil=True, cache=True, error_model="numpy")
def _multiply_few(part, parts, x, units, digits, w, scale, unit, bias, y):
    """Rows whose digits fill less than a piece: panel after panel, each read once from its beginning to its end.

    The digits of one row are too few for a tile to gain by.
    The sums of a block are looked at when the next one has begun: they are ready then, and memory did not wait.
    """
    panels, words, width = w.shape
    rows, blocks, digit_rows = y.shape[0], units.shape[1], x.shape[2]
    before = np.empty(64, np.uint8)
    in_tiles = unit is not None and digit_rows > DIGITS
    if unit is not None and in_tiles:
        amx.begin(amx.shapes_of_rows(unit, digit_rows), before)
    whole, sums = aligned_ints(2 * PIECE * OUTPUTS), aligned(PIECE * GROUP)
    for panel in range(panels * part // parts, panels * (part + 1) // parts):
        for block in range(blocks):
            pieces = min(BLOCK, words * QUAD - block * BLOCK) // (PIECE * QUAD)
            w_at, x_at = weights_at(w, panel, block * BLOCK, None), block * BLOCK // QUAD * digit_rows
            here, other = block % 2 * PIECE * OUTPUTS, (block + 1) % 2 * PIECE * OUTPUTS
            if unit is None or not in_tiles:
                multiply_as_read(x, x_at, digit_rows, pieces, w, w_at, whole, here, OUTPUTS, True)
            else:
                amx.multiply_as_read(x, x_at, 0, digit_rows, pieces, w, w_at, whole, here, OUTPUTS, True)
            if block:
                _add_block(whole, other, rows, digits, units, 0, block - 1, sums, 0)
        _add_block(whole, (blocks - 1) % 2 * PIECE * OUTPUTS, rows, digits, units, 0, blocks - 1, sums, 0)
        put_away(sums, rows, width, scale, bias, y, 0, panel * width)
    if unit is not None and in_tiles:
        amx.end(before)


@njit(nogil=True, cache=True)
def multiply_in_digits(pool, x, digits, w, scale, unit, bias, y):
    """y = x @ w.T (+ bias), with `digits` digits of x.  Arguments as `multiply_many_rows`;

    w: int32 words of four int8 numbers [n, k / 4, 32], a multiple of 16 words.
    unit: `amx.shapes()`, or None where there are no tiles.
    """
    rows, pieces = x.shape[0], w.shape[1] // PIECE
    words = pieces_for(rows * digits, pieces)
    units = np.empty((rows, -(-x.shape[1] // BLOCK)), np.float32)
    if rows * digits < PIECE:
        _to_digits(0, 1, x, digits, words, units)
        parallel(pool, _multiply_few, (words, units, digits, w, scale, unit, bias, y))
    else:
        parallel(pool, _to_digits, (x, digits, words, units))
        parallel(pool, _multiply_many, (words, units, digits, w, scale, unit, bias, y))
