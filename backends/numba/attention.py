"""Attention of float32 queries over cached keys and values, float32 or in 16 bits, one head of one text at a time.

The steps are those of the definition, for one query: a score for every key, the largest score, e**(score -
largest), their sum, and the sum of the values with these weights.  Nothing of [q_seq, kv_seq] is held: a thread
keeps the scores of four queries.

For the sake of the bits (see `regions.py`) every sum has one order: of a score, 16 dimensions at a time, then
`total`; of weights and values, key after key from the first.  Keys that are not visible add exactly 0, so a
text gets the same numbers with padding before it and without, in one prefill and token by token.
"""

from __future__ import annotations

import numpy as np
from numba import njit, types

from refimpl.backends.numba.regions import parallel
from refimpl.backends.numba.vectors import (
    LANES,
    broadcast,
    exp,
    fma,
    larger,
    largest,
    load,
    load_first,
    prefetch,
    store,
    store_first,
    total,
    totals,
)

#: Queries that read the same keys and values together.
_QUERIES = 4

#: Keys whose values are read while they are added to one group of 16 dimensions after the other.
_KEYS = 64

#: How many bytes ahead keys and values are asked for (see `tiles.py`).
_AHEAD = 3072

_HIDDEN = np.float32(-np.inf)
_ZERO, _ONE = np.float32(0), np.float32(1)


@njit(nogil=True, cache=True, error_model="numpy", inline="always")
def _part_of(array, place, dimension, head_dim):
    """16 numbers of a row of `head_dim` at `place`; what lies beyond the row is 0."""
    if dimension + LANES <= head_dim:
        return load(array, place + dimension)
    return load_first(array, place + dimension, head_dim - dimension)


@njit(nogil=True, cache=True, error_model="numpy")
def _score_one(query, query_at, key, key_at, step, keys, head_dim, scale, scores, row):
    """Four keys at a time: their sums then do not wait for each other."""
    ahead = _AHEAD // key.itemsize
    whole = keys // 4 * 4
    for t in range(0, whole, 4):
        at = key_at + t * step
        a = broadcast(_ZERO)
        b = broadcast(_ZERO)
        c = broadcast(_ZERO)
        d = broadcast(_ZERO)
        for dimension in range(0, head_dim, LANES):
            for i in range(4):
                prefetch(key, at + i * step + dimension + ahead)
            here = _part_of(query, query_at, dimension, head_dim)
            a = fma(here, _part_of(key, at, dimension, head_dim), a)
            b = fma(here, _part_of(key, at + step, dimension, head_dim), b)
            c = fma(here, _part_of(key, at + 2 * step, dimension, head_dim), c)
            d = fma(here, _part_of(key, at + 3 * step, dimension, head_dim), d)
        sums = totals(a, b, c, d)
        for i in range(4):
            scores[row, t + i] = sums[i] * scale
    for t in range(whole, keys):
        at = key_at + t * step
        a = broadcast(_ZERO)
        for dimension in range(0, head_dim, LANES):
            here = _part_of(query, query_at, dimension, head_dim)
            a = fma(here, _part_of(key, at, dimension, head_dim), a)
        scores[row, t] = total(a) * scale


@njit(nogil=True, cache=True, error_model="numpy")
def _score_four(query, query_at, key, key_at, step, keys, head_dim, scale, scores):
    second, third, fourth = query_at + head_dim, query_at + 2 * head_dim, query_at + 3 * head_dim
    for t in range(keys):
        at = key_at + t * step
        a = broadcast(_ZERO)
        b = broadcast(_ZERO)
        c = broadcast(_ZERO)
        d = broadcast(_ZERO)
        for dimension in range(0, head_dim, LANES):
            here = _part_of(key, at, dimension, head_dim)
            a = fma(_part_of(query, query_at, dimension, head_dim), here, a)
            b = fma(_part_of(query, second, dimension, head_dim), here, b)
            c = fma(_part_of(query, third, dimension, head_dim), here, c)
            d = fma(_part_of(query, fourth, dimension, head_dim), here, d)
        sums = totals(a, b, c, d)
        for row in range(_QUERIES):
            scores[row, t] = sums[row] * scale


@njit(nogil=True, cache=True, error_model="numpy")
def _exponentials(scores, row, keys, seen, visible, batch):
    """Scores become e**(score - largest), and 0 for keys from `seen` on and those that are not visible."""
    if visible.size:
        for t in range(seen):
            if not visible[batch, t]:
                scores[row, t] = _HIDDEN
    end = (keys + LANES - 1) // LANES * LANES
    for t in range(seen, end):
        scores[row, t] = _HIDDEN
    first = row * scores.shape[1]
    peaks = load(scores, first)
    for t in range(LANES, end, LANES):
        peaks = larger(peaks, load(scores, first + t))
    peak = largest(peaks)
    if peak == _HIDDEN:
        for t in range(end):
            scores[row, t] = _ZERO
        return
    peaks = broadcast(peak)
    for t in range(0, end, LANES):
        store(scores, first + t, exp(load(scores, first + t) - peaks))


@njit(nogil=True, cache=True, error_model="numpy", inline="always")
def _value_of(value, place, dimension, head_dim):
    """As `_part_of`; behind the last dimension all are 1, so that the weights themselves are added up there."""
    return _part_of(value, place, dimension, head_dim) if dimension < head_dim else broadcast(_ONE)


@njit(nogil=True, cache=True, error_model="numpy")
def _gather_one(scores, row, value, value_at, step, keys, head_dim, sums):
    """sums[row] = the sum of the values, each times its weight; in the last 16 numbers the sum of the weights

    Four times 16 dimensions at a time: rows of values are then read in long pieces.
    """
    width, ahead = sums.shape[1], _AHEAD // value.itemsize
    whole = head_dim // (4 * LANES) * (4 * LANES)
    for begin in range(0, keys, _KEYS):
        end = min(keys, begin + _KEYS)
        for dimension in range(0, whole, 4 * LANES):
            into = row * width + dimension
            if begin == 0:
                a = broadcast(_ZERO)
                b = broadcast(_ZERO)
                c = broadcast(_ZERO)
                d = broadcast(_ZERO)
            else:
                a = load(sums, into)
                b = load(sums, into + LANES)
                c = load(sums, into + 2 * LANES)
                d = load(sums, into + 3 * LANES)
            for t in range(begin, end):
                at = value_at + t * step + dimension
                weight = broadcast(scores[row, t])
                for line in range(0, 4 * LANES, LANES):
                    prefetch(value, at + line + ahead)
                a = fma(weight, load(value, at), a)
                b = fma(weight, load(value, at + LANES), b)
                c = fma(weight, load(value, at + 2 * LANES), c)
                d = fma(weight, load(value, at + 3 * LANES), d)
            store(sums, into, a)
            store(sums, into + LANES, b)
            store(sums, into + 2 * LANES, c)
            store(sums, into + 3 * LANES, d)
        for dimension in range(whole, width, LANES):
            into = row * width + dimension
            a = broadcast(_ZERO) if begin == 0 else load(sums, into)
            for t in range(begin, end):
                at = value_at + t * step
                prefetch(value, at + dimension + ahead)
                a = fma(broadcast(scores[row, t]), _value_of(value, at, dimension, head_dim), a)
            store(sums, into, a)


@njit(nogil=True, cache=True, error_model="numpy")
def _gather_four(scores, value, value_at, step, keys, head_dim, sums):
    width = sums.shape[1]
    for begin in range(0, keys, _KEYS):
        end = min(keys, begin + _KEYS)
        for dimension in range(0, width, LANES):
            if begin == 0:
                a = broadcast(_ZERO)
                b = broadcast(_ZERO)
                c = broadcast(_ZERO)
                d = broadcast(_ZERO)
            else:
                a = load(sums, dimension)
                b = load(sums, width + dimension)
                c = load(sums, 2 * width + dimension)
                d = load(sums, 3 * width + dimension)
            for t in range(begin, end):
                here = _value_of(value, value_at + t * step, dimension, head_dim)
                a = fma(broadcast(scores[0, t]), here, a)
                b = fma(broadcast(scores[1, t]), here, b)
                c = fma(broadcast(scores[2, t]), here, c)
                d = fma(broadcast(scores[3, t]), here, d)
            store(sums, dimension, a)
            store(sums, width + dimension, b)
            store(sums, 2 * width + dimension, c)
            store(sums, 3 * width + dimension, d)


@njit(nogil=True, cache=True, error_model="numpy")
def _attend(part, parts, query, key, value, visible, offset, scale, context):
    batches, heads, queries, head_dim = query.shape
    kv_seq = key.shape[2]
    scores = np.empty((_QUERIES, kv_seq + LANES), np.float32)
    sums = np.empty((_QUERIES, (head_dim + LANES - 1) // LANES * LANES + LANES), np.float32)
    groups = (queries + _QUERIES - 1) // _QUERIES
    tasks = batches * heads * groups
    for task in range(tasks * part // parts, tasks * (part + 1) // parts):
        group, head, batch = task % groups, task // groups % heads, task // (groups * heads)
        first = group * _QUERIES
        here = min(_QUERIES, queries - first)
        query_at = ((batch * heads + head) * queries + first) * head_dim
        size = key.itemsize
        key_at = (batch * key.strides[0] + head * key.strides[1]) // size
        value_at = (batch * value.strides[0] + head * value.strides[1]) // size
        key_step, value_step = key.strides[2] // size, value.strides[2] // size
        keys = min(kv_seq, offset + first + here)
        if here == _QUERIES:
            _score_four(query, query_at, key, key_at, key_step, keys, head_dim, scale, scores)
        else:
            for row in range(here):
                _score_one(
                    query,
                    query_at + row * head_dim,
                    key,
                    key_at,
                    key_step,
                    keys,
                    head_dim,
                    scale,
                    scores,
                    row,
                )
        for row in range(here):
            seen = min(keys, offset + first + row + 1)
            _exponentials(scores, row, keys, seen, visible, batch)
        if here == _QUERIES:
            _gather_four(scores, value, value_at, value_step, keys, head_dim, sums)
        else:
            for row in range(here):
                _gather_one(scores, row, value, value_at, value_step, keys, head_dim, sums)
        for row in range(here):
            weight = sums[row, sums.shape[1] - LANES]
            factor = broadcast(_ONE / weight if weight != _ZERO else _ZERO)
            for dimension in range(0, head_dim, LANES):
                result = load(sums, row * sums.shape[1] + dimension) * factor
                place = query_at + row * head_dim + dimension
                if dimension + LANES <= head_dim:
                    store(context, place, result)
                else:
                    store_first(context, place, head_dim - dimension, result)


_strided = [types.Array(dtype, 4, "A", readonly=True) for dtype in (types.float32, types.int16, types.uint16)]
_visible = types.Array(types.bool_, 2, "C", readonly=True)
_whole = types.float32[:, :, :, ::1]
_numbers = (types.int64, types.float32)


@njit(
    [types.void(types.int64[::1], _whole, cache, cache, _visible, *_numbers, _whole) for cache in _strided],
    nogil=True,
    cache=True,
)
def attend(pool, query, key, value, visible, offset, scale, context):
    """context = softmax(scale * query @ key.T, where visible) @ value, of causal attention

    query, context: float32 [batch, heads, q_seq, head_dim].
    key, value: float32 [batch, heads, kv_seq, head_dim], of which each row of `head_dim` numbers lies together; or
        the bits of float16 as int16, of bfloat16 as uint16, which are widened exactly.
    visible: bool [batch, kv_seq]; [0, 0]: all are.
    offset: of the first query, which sees keys 0 .. offset.
    A query that sees no key gets zeros.
    """
    parallel(pool, _attend, (query, key, value, visible, offset, scale, context))
