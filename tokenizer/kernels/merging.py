"""The merges of one word, compiled: `bpe.py` tells the rule, and this is the same over arrays.

Of all pairs of neighbours that have a rule the one with the lowest rank is merged, of equal ranks the
leftmost, again and again.  A short word is searched for that pair every time; in a long one, where this would
take time that grows with the square of its length, the pairs wait in a heap.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from refimpl.tokenizer.kernels.hashing import find, find_filtered

# Up to this many bytes looking at every pair is quicker than a heap (measured on English and Japanese).
LONGEST_SHORT = 128

#: Rows of `work`, which has as many columns as the longest word has bytes: five rows of int32, and the rest is
#: room for three int64 for every byte.
WORK_ROWS = 11
_SYMBOLS, _STARTS, _FOLLOWING, _PREVIOUS, _RANKS, _REST = 0, 1, 2, 3, 4, 5

_LOW = np.int64(0xFFFFFFFF)
_NO_RANK = np.int32(-1)
_NO_RULE = np.int64(1 << 62)


@njit(cache=True)
def merge(text, start, end, byte_ids, merges, merge_filter, work, ids, count):
    """Writes the ids of the word text[start:end] from `ids[count]` on. Returns: the new count.

    `merges` is a hash table (left + 1) << 32 | right -> rank << 32 | id of the merged token.  Row 1 of `work`
    receives where each token begins in `text`.
    """
    symbols, starts = work[_SYMBOLS], work[_STARTS]
    size = 0
    for at in range(start, end):
        if byte_ids[text[at]] >= 0:
            symbols[size], starts[size] = byte_ids[text[at]], at
            size += 1
    if size <= LONGEST_SHORT:
        size = _merge_short(
            symbols, starts, size, merges, merge_filter, work[_REST:].reshape(-1).view(np.int64)
        )
    else:
        size = _merge_long(symbols, starts, size, merges, merge_filter, work)
    for token in range(size):
        ids[count + token] = symbols[token]
    return count + size


@njit(cache=True)
def _merge_short(symbols, starts, size, merges, merge_filter, rules):
    """Merges the first `size` symbols in place. Returns: how many are left.  `rules` is room for one per pair."""
    for left in range(size - 1):
        rules[left] = _rule(symbols[left], symbols[left + 1], merges, merge_filter)
    while size > 1:
        best = 0
        for left in range(1, size - 1):
            if rules[left] < rules[best]:
                best = left
        if rules[best] == _NO_RULE:
            break
        symbols[best] = rules[best] & _LOW
        size -= 1
        for left in range(best + 1, size):
            symbols[left], starts[left] = symbols[left + 1], starts[left + 1]
        for left in range(best + 1, size - 1):
            rules[left] = rules[left + 1]
        for left in range(max(best - 1, 0), min(best + 1, size - 1)):
            rules[left] = _rule(symbols[left], symbols[left + 1], merges, merge_filter)
    return size


@njit(cache=True)
def _rule(left, right, merges, merge_filter):
    """rank << 32 | id for a pair, or more than that of any rule."""
    found = find_filtered(merges, merge_filter, _pair(left, right))
    return found if found >= 0 else _NO_RULE


@njit(cache=True)
def _merge_long(symbols, starts, size, merges, merge_filter, work):
    """As `_merge_short`, with the symbols in a chain.

    The heap holds rank << 32 | place for every pair; one that has changed since has another rank.
    """
    following, previous, ranks = work[_FOLLOWING], work[_PREVIOUS], work[_RANKS]
    heap, waiting = work[_REST:].reshape(-1).view(np.int64), 0  # each merge brings at most two new pairs
    for place in range(size):
        following[place], previous[place] = place + 1, place - 1
    for left in range(size):
        waiting = _consider(left, size, symbols, following, ranks, merges, merge_filter, heap, waiting)
    while waiting:
        rank, left, waiting = _pop(heap, waiting)
        if ranks[left] != rank:
            continue
        right = following[left]
        symbols[left] = find(merges, _pair(symbols[left], symbols[right])) & _LOW
        ranks[right] = _NO_RANK
        following[left] = following[right]
        if following[left] < size:
            previous[following[left]] = left
        waiting = _consider(left, size, symbols, following, ranks, merges, merge_filter, heap, waiting)
        if previous[left] >= 0:
            waiting = _consider(
                previous[left], size, symbols, following, ranks, merges, merge_filter, heap, waiting
            )
    place = tokens = 0
    while place < size:
        symbols[tokens], starts[tokens] = symbols[place], starts[place]
        tokens += 1
        place = following[place]
    return tokens


@njit(cache=True)
def _consider(left, size, symbols, following, ranks, merges, merge_filter, heap, waiting):
    """Notes the rank of the pair that begins at `left`, and lets it wait in the heap. Returns: how many wait."""
    ranks[left] = _NO_RANK
    right = following[left]
    if right >= size:
        return waiting
    found = find_filtered(merges, merge_filter, _pair(symbols[left], symbols[right]))
    if found < 0:
        return waiting
    ranks[left] = found >> 32
    entry, place = ranks[left] << 32 | left, waiting
    while place > 0 and heap[(place - 1) >> 1] > entry:
        heap[place] = heap[(place - 1) >> 1]
        place = (place - 1) >> 1
    heap[place] = entry
    return waiting + 1


@njit(cache=True)
def _pop(heap, waiting):
    """The lowest rank, its place, and how many wait after it has gone."""
    top, waiting = heap[0], waiting - 1
    entry, place = heap[waiting], 0
    while 2 * place + 1 < waiting:
        child = 2 * place + 1
        if child + 1 < waiting and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= entry:
            break
        heap[place] = heap[child]
        place = child
    heap[place] = entry
    return top >> 32, top & _LOW, waiting


@njit(cache=True, inline="always")
def _pair(left, right):
    return np.uint64(left + 1) << np.uint64(32) | np.uint64(right)
