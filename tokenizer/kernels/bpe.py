"""The algorithm of `byte_level.py` and `bpe.py` over the bytes of UTF-8, compiled.

A text goes through in one sweep: added tokens are cut out, what is left is cut into words, and a word is
looked up among those seen before or else merged.  Nothing of this is decided here: the order of merges, the
classes of characters and the added tokens come as arrays.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from refimpl.tokenizer.kernels.hashing import mixed
from refimpl.tokenizer.kernels.merging import WORK_ROWS, merge
from refimpl.tokenizer.kernels.tries import follow

OTHER, LETTER, NUMBER, SPACE = 0, 1, 2, 3

# The words seen before are kept with at most this many bytes and ids: 15 bytes and their number fill two
# integers, three ids and their number two more.
_MOST_BYTES, _MOST_IDS = 15, 3

_BLANK, _APOSTROPHE = 0x20, 0x27


class BPETables(NamedTuple):
    """The vocabulary as arrays. A trie (`tries.py`) has edges and a value for every node."""

    classes: np.ndarray  # [0x110000] uint8: OTHER, LETTER, NUMBER or SPACE
    byte_ids: np.ndarray  # [256] int32: the id of each byte; -1 for a byte that leaves no token
    merges: np.ndarray  # hash table (left + 1) << 32 | right -> rank << 32 | id of the merged token
    merge_filter: np.ndarray
    raw_first: np.ndarray  # [256] bool: the bytes with which an added token begins that is cut out first
    raw_trie: np.ndarray
    raw_ids: np.ndarray  # int32, by node, or -1
    normal_first: np.ndarray  # the same for the added tokens that are cut out second
    normal_trie: np.ndarray
    normal_ids: np.ndarray


def new_memory(words: int) -> np.ndarray:
    """Room for `words` (a power of two) words and their ids. Two calls at a time must not share it."""
    return np.zeros((words, 4), np.uint64)


@njit(cache=True, nogil=True)
def encode(text, text_ends, tables, memory, want_spans):
    """UTF-8 of several texts, joined -> their ids, joined.

    Returns: ids int32 [tokens]; where the tokens of each text end, int64 [texts]; and, if wanted, for each
    token its span in the bytes and the number of its word in its text, int64 [tokens, 3] (else empty).
    """
    ids = np.empty(text.size + 1, np.int32)  # no token stands for less than a byte
    spans = np.empty((ids.size if want_spans else 0, 3), np.int64)
    ends = np.empty(text_ends.size, np.int64)
    work = np.empty((WORK_ROWS, 256), np.int32)
    count = start = 0
    for index in range(text_ends.size):
        position, end, word = start, text_ends[index], 0
        while position < end:
            raw, raw_end, raw_id = _next_token(
                text, position, end, tables.raw_first, tables.raw_trie, tables.raw_ids
            )
            while position < raw:
                normal, normal_end, normal_id = _next_token(
                    text, position, raw, tables.normal_first, tables.normal_trie, tables.normal_ids
                )
                count, word, work = _encode_words(
                    text,
                    position,
                    normal,
                    tables.classes,
                    tables.byte_ids,
                    tables.merges,
                    tables.merge_filter,
                    memory,
                    work,
                    ids,
                    spans,
                    count,
                    word,
                )
                if normal_id >= 0:
                    ids[count] = normal_id
                    if want_spans:
                        spans[count, 0], spans[count, 1], spans[count, 2] = normal, normal_end, word
                    count += 1
                    word += 1
                position = normal_end
            if raw_id >= 0:
                ids[count] = raw_id
                if want_spans:
                    spans[count, 0], spans[count, 1], spans[count, 2] = raw, raw_end, word
                count += 1
                word += 1
            position = raw_end
        ends[index] = count
        start = end
    return ids[:count], ends, spans[: count if want_spans else 0]


@njit(cache=True)
def _next_token(text, start, end, first, trie, id_of_node):
    """The leftmost added token from `start` on, of several there the longest: (start, end, id), or (end, end, -1)."""
    for position in range(start, end):
        if first[text[position]]:
            node, index, stop = np.int64(0), np.int64(-1), position
            for at in range(position, end):
                node = follow(trie, node, text[at])
                if node < 0:
                    break
                if id_of_node[node] >= 0:
                    index, stop = np.int64(id_of_node[node]), at + 1
            if index >= 0:
                return position, stop, index
    return end, end, np.int64(-1)


@njit(cache=True)
def _encode_words(
    text, start, end, classes, byte_ids, merges, merge_filter, memory, work, ids, spans, count, word
):  # fmt: skip
    """Writes the ids of the words between `start` and `end`. Returns: the new count, the next word's number, `work`."""
    while start < end:
        stop = word_end(text, start, end, classes)
        first = count
        if stop - start == 1:
            if byte_ids[text[start]] >= 0:
                ids[count] = byte_ids[text[start]]
                count += 1
        elif spans.size or stop - start > _MOST_BYTES:
            if stop - start > work.shape[1]:
                work = np.empty((WORK_ROWS, 2 * (stop - start)), np.int32)
            count = merge(text, start, stop, byte_ids, merges, merge_filter, work, ids, count)
            for token in range(first, count if spans.size else first):
                spans[token, 0], spans[token, 2] = work[1, token - first], word
                spans[token, 1] = work[1, token - first + 1] if token + 1 < count else stop
        else:
            count = _remembered(text, start, stop, byte_ids, merges, merge_filter, memory, work, ids, count)
        if spans.size and stop - start == 1 and count > first:
            spans[first, 0], spans[first, 1], spans[first, 2] = start, stop, word
        word += 1
        start = stop
    return count, word, work


@njit(cache=True)
def word_end(text, start, end, classes):
    """Where the word that begins at `start` ends: one step of the GPT-2 pattern.

    's|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+
    """
    if text[start] == _APOSTROPHE:
        length = _contraction(text, start, end)
        if length:
            return start + length
    kind, position = _character(text, start, classes)
    if text[start] == _BLANK and position < end:
        after, after_end = _character(text, position, classes)
        if after != SPACE:
            kind, position = after, after_end
    last = start
    while position < end:
        after, after_end = _character(text, position, classes)
        if after != kind:
            break
        last, position = position, after_end
    if kind == SPACE and position < end and last > start:
        return last  # the last white space goes with what follows
    return position


@njit(cache=True)
def _contraction(text, start, end):
    """The length of 's, 't, 'm, 'd, 're, 've or 'll at `start`, else 0."""
    if start + 1 < end:
        one = text[start + 1]
        if one == ord("s") or one == ord("t") or one == ord("m") or one == ord("d"):
            return 2
        if start + 2 < end:
            two = text[start + 2]
            if (two == ord("e") and (one == ord("r") or one == ord("v"))) or (one == two == ord("l")):
                return 3
    return 0


@njit(cache=True, inline="always")
def _character(text, position, classes):
    """The class of the character at `position`, and where the next one begins."""
    lead = np.int64(text[position])
    if lead < 0x80:
        return classes[lead], position + 1
    if lead < 0xE0:
        return classes[(lead & 0x1F) << 6 | text[position + 1] & 0x3F], position + 2
    if lead < 0xF0:
        code = (lead & 0x0F) << 12 | (text[position + 1] & 0x3F) << 6 | text[position + 2] & 0x3F
        return classes[code], position + 3
    code = (lead & 0x07) << 18 | (text[position + 1] & 0x3F) << 12
    code |= (text[position + 2] & 0x3F) << 6 | text[position + 3] & 0x3F
    return classes[code], position + 4


@njit(cache=True)
def _remembered(text, start, end, byte_ids, merges, merge_filter, memory, work, ids, count):
    """`merge` for a short word, by way of a memory in which a new word takes the place of an older one."""
    low, high = np.uint64(0), np.uint64(end - start) << np.uint64(56)
    for at in range(min(8, end - start)):
        low |= np.uint64(text[start + at]) << np.uint64(8 * at)
    for at in range(8, end - start):
        high |= np.uint64(text[start + at]) << np.uint64(8 * (at - 8))
    slot = mixed(low ^ high * np.uint64(0xFF51AFD7ED558CCD)) & (memory.shape[0] - 1)
    if memory[slot, 0] == low and memory[slot, 1] == high:
        pair, rest = np.int64(memory[slot, 2]), np.int64(memory[slot, 3])
        ids[count] = pair & 0x7FFFFFFF
        number = rest >> 32
        if number > 1:
            ids[count + 1] = pair >> 32
        if number > 2:
            ids[count + 2] = rest & 0x7FFFFFFF
        return count + number
    after = merge(text, start, end, byte_ids, merges, merge_filter, work, ids, count)
    number = after - count
    if 1 <= number <= _MOST_IDS:
        memory[slot, 0], memory[slot, 1] = low, high
        second = np.int64(ids[count + 1]) if number > 1 else np.int64(0)
        third = np.int64(ids[count + 2]) if number > 2 else np.int64(0)
        memory[slot, 2] = np.uint64(second << 32 | ids[count])
        memory[slot, 3] = np.uint64(number << 32 | third)
    return after
