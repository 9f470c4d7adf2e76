"""Matrix products of numbers rounded to bfloat16, for many rows: the option `matmul_dtype="bfloat16"`.

`products.py` multiplies float32 by float32.  Here rows of x are rounded first, and weights while they are read from
the panels that all products share: bfloat16 and int8 lose nothing by it.  Sums are float32.  What multiplies is, in
this order: AMX (`amx.py`), the instructions for words, float32 (both in `words.py`).

`digits.py` has products with int8 weights in whole numbers.
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
from refimpl.backends.numba.products import aligned, scales_at, weights_at
from refimpl.backends.numba.regions import parallel
from refimpl.backends.numba.tiles import per_word, weights
from refimpl.backends.numba.vectors import LANES, broadcast, load, load_first
from refimpl.backends.numba.words import OUTPUTS, PAIR, PIECE, store_pairs, store_row

#: k whose products are added up before the sums are put away.
_BLOCK = 256

_ZERO = np.float32(0)


# --- rows of x --------------------------------------------------------------------------------------


@njit(nogil=True, cache=True, error_model="numpy")
def _round_to_pairs(part, parts, x, words):
    rows, length = x.shape
    count, pieces = words.shape[:2]
    for row in range(PIECE * (count * part // parts), PIECE * (count * (part + 1) // parts)):
        for piece in range(pieces):
            k = piece * PIECE * PAIR
            place = (row // PIECE * pieces + piece) * WORDS + row % PIECE * PIECE
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


# --- weights of 32 outputs --------------------------------------------------------------------------


@njit(nogil=True, cache=True, error_model="numpy")
def _weights_in_pairs(w, w_at, width, steps, code, scale, scale_at, block, k, words):
    """Words of `steps` rows of weights.  Places in a table are multiplied by their scales before they are rounded."""
    run = steps if code is None else min(block, steps)
    for lane in range(0, OUTPUTS, LANES):
        at = lane
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
                at += OUTPUTS
    words[-(-steps // PAIR) * OUTPUTS :] = 0


# --- products ---------------------------------------------------------------------------------------


@njit(nogil=True, cache=True, error_model="numpy")
def _multiply_pairs(part, parts, x, w, code, scale, block, unit, bias, y):
    """Panel after panel; the sums of a group of outputs lie in a small array of this thread until all k are added."""
    panels, _, width = w.shape
    pieces = x.shape[1]
    length = min(w.shape[1] * per_word(w, code), pieces * PIECE * PAIR)
    before = np.empty(64, np.uint8)
    if unit is not None:
        amx.begin(unit, before)
    begin, end = panels * part // parts, panels * (part + 1) // parts
    most = min(ROWS_AT_ONCE, PIECE * x.shape[0])
    at_once = GROUP // width
    words = aligned_ints(OUTPUTS * _BLOCK // PAIR)
    sums = aligned(most * GROUP)
    for first in range(0, PIECE * x.shape[0], most):
        rows = min(most, PIECE * x.shape[0] - first)
        for group in range(begin, end, at_once):
            here = min(at_once, end - group)
            for k in range(0, length, _BLOCK):
                steps = min(_BLOCK, length - k)
                x_at = (first // PIECE * pieces + k // (PIECE * PAIR)) * WORDS
                for i in range(here):
                    w_at = weights_at(w, group + i, k, code)
                    next_at, count = comes_next(w, group, i, here, k, steps, code)
                    for lane in range(0, width, OUTPUTS):
                        _weights_in_pairs(
                            w, w_at + lane, width, steps, code, scale,
                            scales_at(scale, group + i, 0) + lane, block, k, words,
                        )  # fmt: skip
                        ahead = next_at + lane // OUTPUTS * count
                        for row in range(0, rows, SOME_ROWS):
                            some = min(SOME_ROWS, rows - row)
                            ask_for(w, ahead + count * row // rows, count * some // rows)
                            multiply_rows(
                                x, x_at + row // PIECE * pieces * WORDS, pieces * WORDS, some,
                                -(-steps // (PIECE * PAIR)), words, 0, unit,
                                sums, row * GROUP + i * width + lane, GROUP, k == 0,
                            )  # fmt: skip
            if code is None:
                put_away(sums, rows, here * width, scale, bias, y, first, group * width)
            else:
                put_away(sums, rows, here * width, None, bias, y, first, group * width)
    if unit is not None:
        amx.end(before)


@njit(nogil=True, cache=True)
def multiply_in_bfloat16(pool, x, w, code, scale, block, unit, bias, y):
    """y = x @ w.T (+ bias) with both factors rounded to bfloat16, sums in float32.  Arguments as `multiply_many_rows`;

    unit: `amx.shapes()`, or None where there are no tiles.
    """
    pieces = -(-x.shape[1] // (PIECE * PAIR))
    words = pieces_for(x.shape[0], pieces)
    parallel(pool, _round_to_pairs, (x, words))
    parallel(pool, _multiply_pairs, (words, w, code, scale, block, unit, bias, y))
