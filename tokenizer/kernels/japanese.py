"""The algorithm of `japanese_text.py` over arrays of code points, compiled.

Two differences in form, none in the result.  Emoji: instead of one pass over the text for each of some
thousand keys, all places where any key stands are found in one pass, sorted by the place of the key in its
table, and replaced in this order where nothing has been replaced before.  (That is the same only while no
key can stand across the border of a tag; `JapaneseEncoder` looks at the table before it comes here.)
Words: three characters are one integer, which a hash table turns into the word's id.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from refimpl.tokenizer.kernels.hashing import find_filtered
from refimpl.tokenizer.kernels.tries import follow

# What `JapaneseTables.traits` says of a code point: the number of its replacement in the low bits, and
REPLACED = 0x07
STARTS_EMOJI = 0x08
IS_KIGOU = 0x10
IS_U2000 = 0x20

_LESS_THAN, _CARRIAGE_RETURN, _LINE_FEED = 0x3C, 0x0D, 0x0A


class JapaneseTables(NamedTuple):
    """The vocabulary and the emoji table as arrays.

    Texts of several kinds lie one after the other in one array, the i-th from starts[i] to starts[i + 1].
    A trie (`tries.py`) has edges and a value for every node.
    """

    traits: np.ndarray  # [0x110000] uint8
    replacements: np.ndarray  # uint32: what white space and dashes become
    replacement_starts: np.ndarray
    emoji_trie: np.ndarray
    emoji_of_node: np.ndarray  # int32: the place in the table of the key that ends here, or -1
    emoji_lengths: np.ndarray  # int32, by place
    tags: np.ndarray  # uint32
    tag_starts: np.ndarray  # by place
    single: np.ndarray  # [0x110000] int32: the id of a word of one character, or -1
    words: np.ndarray  # hash table of c1 | c2 << 21, or c1 | c2 << 21 | (c3 + 1) << 42 -> id
    word_filter: np.ndarray
    bracket_trie: np.ndarray  # of the words of three or more characters that begin with "<"
    bracket_ids: np.ndarray  # int32, by node, or -1
    byte_ids: np.ndarray  # [256] int32
    symbol_ids: np.ndarray  # [2] int32: <KIGOU>, <U2000U2BFF>


@njit(cache=True, nogil=True)
def normalize(codes, tables):
    """Code points of one text -> the same with white space, dashes and emoji replaced."""
    written, origin = replace_characters(codes, tables)
    written, origin = replace_emoji(written, origin, codes.size, tables)
    return written


@njit(cache=True, nogil=True)
def encode(codes, text_ends, tables, is_normalized, want_spans):
    """Code points of several texts, joined -> their ids, joined.

    With `is_normalized` white space and emoji have been replaced before.
    Returns: ids int32 [tokens]; where the tokens of each text end, int64 [texts]; and, if wanted, the span
    of each token in the code points of its text, int64 [tokens, 2] (else an empty array).
    """
    ids = np.empty(4 * codes.size + 64, np.int32)  # four bytes of UTF-8 at most; more only if tags abound
    spans = np.empty((ids.size if want_spans else 0, 2), np.int64)
    ends = np.empty(text_ends.size, np.int64)
    count = start = 0
    for index in range(text_ends.size):
        text = codes[start : text_ends[index]]
        if is_normalized:
            written, origin = text.copy(), np.empty(0, np.int64)
        else:
            written, origin = replace_characters(text, tables)
            written, origin = replace_emoji(written, origin, text.size, tables)
        needed = count + 4 * written.size
        if needed > ids.size:
            ids = _grown(ids, 2 * needed)
            if want_spans:
                spans = _grown(spans, 2 * needed)
        count = segment(written, origin, tables, ids, spans, count)
        ends[index] = count
        start = text_ends[index]
    return ids[:count], ends, spans[: count if want_spans else 0]


@njit(cache=True, nogil=True)
def replace_characters(codes, tables):
    """White space and dashes -> tags and ー.

    Returns: the new code points, and for each (and one more, at the end) the place in `codes` it comes from.
    """
    size, position = 0, 0
    while position < codes.size:
        kind = tables.traits[codes[position]] & REPLACED
        size += tables.replacement_starts[kind + 1] - tables.replacement_starts[kind] if kind else 1
        position += 2 if _is_line_end_pair(codes, position) else 1
    written, origin = np.empty(size, np.uint32), np.empty(size + 1, np.int64)
    size, position = 0, 0
    while position < codes.size:
        kind = tables.traits[codes[position]] & REPLACED
        if kind:
            for at in range(tables.replacement_starts[kind], tables.replacement_starts[kind + 1]):
                written[size], origin[size] = tables.replacements[at], position
                size += 1
        else:
            written[size], origin[size] = codes[position], position
            size += 1
        position += 2 if _is_line_end_pair(codes, position) else 1
    origin[size] = codes.size
    return written, origin


@njit(cache=True, inline="always")
def _is_line_end_pair(codes, position):
    return (
        codes[position] == _CARRIAGE_RETURN
        and position + 1 < codes.size
        and codes[position + 1] == _LINE_FEED
    )


@njit(cache=True, nogil=True)
def replace_emoji(codes, origin, text_size, tables):
    """Emoji -> tags, in the order of the table. Returns: as `replace_characters`."""
    starts, places = _find_emoji(codes, tables.traits, tables.emoji_trie, tables.emoji_of_node)
    if starts.size == 0:
        return codes, origin
    replaced = np.zeros(codes.size, np.bool_)
    tag_of = np.full(codes.size, -1, np.int64)  # at the first character of a replaced emoji: its place
    size = codes.size
    for match in _stable_order(places, tables.emoji_lengths.size):  # of one key the leftmost first
        start, place = starts[match], places[match]
        end = start + tables.emoji_lengths[place]
        free = True
        for position in range(start, end):
            free &= not replaced[position]
        if free:
            replaced[start:end] = True
            tag_of[start] = place
            size += tables.tag_starts[place + 1] - tables.tag_starts[place] - (end - start)

    written, moved = np.empty(size, np.uint32), np.empty(size + 1, np.int64)
    size = position = 0
    while position < codes.size:
        place = tag_of[position]
        if place < 0:
            written[size], moved[size] = codes[position], origin[position]
            size += 1
            position += 1
        else:
            for at in range(tables.tag_starts[place], tables.tag_starts[place + 1]):
                written[size], moved[size] = tables.tags[at], origin[position]
                size += 1
            position += tables.emoji_lengths[place]
    moved[size] = text_size
    return written, moved


@njit(cache=True)
def _stable_order(values, limit):
    """The order that sorts `values` (0 to `limit` - 1) and leaves equals as they are: a counting sort."""
    next_place = np.zeros(limit + 1, np.int64)
    for value in values:
        next_place[value + 1] += 1
    for value in range(limit):
        next_place[value + 1] += next_place[value]
    order = np.empty(values.size, np.int64)
    for index in range(values.size):
        order[next_place[values[index]]] = index
        next_place[values[index]] += 1
    return order


@njit(cache=True)
def _find_emoji(codes, traits, trie, place_of_node):
    """Every place where a key stands, and the key's own place in its table; keys may overlap."""
    starts, places = np.empty(64, np.int64), np.empty(64, np.int64)
    count = 0
    for start in range(codes.size):
        if not traits[codes[start]] & STARTS_EMOJI:
            continue
        node = np.int64(0)
        for position in range(start, codes.size):
            node = follow(trie, node, codes[position])
            if node < 0:
                break
            if place_of_node[node] >= 0:
                if count == starts.size:
                    starts, places = _grown(starts, 2 * count), _grown(places, 2 * count)
                starts[count], places[count] = start, place_of_node[node]
                count += 1
    return starts[:count], places[:count]


@njit(cache=True, nogil=True)
def segment(codes, origin, tables, ids, spans, count):
    """Writes the ids of the words of `codes` from `ids[count]` on. Returns: the new count."""
    # A function that gets all tables counts a reference to each at every call: here they get the few they need.
    single, words, word_filter = tables.single, tables.words, tables.word_filter
    bracket_trie, bracket_ids = tables.bracket_trie, tables.bracket_ids
    traits, byte_ids, symbol_ids = tables.traits, tables.byte_ids, tables.symbol_ids
    position = 0
    while position < codes.size:
        index, length = np.int64(-1), 1
        if codes[position] == _LESS_THAN:
            index, length = _longest_tag(codes, position, bracket_trie, bracket_ids)
        if index < 0:
            index, length = _smallest_id(codes, position, single, words, word_filter)
        first = count
        if index >= 0:
            ids[count] = index
            count += 1
        else:
            length = 1
            count = _spell(codes[position], traits, byte_ids, symbol_ids, ids, count)
        position += length
        if spans.size:
            start, end = origin[position - length], position
            while origin[end] == origin[position - 1]:  # a piece of a tag stands for what the tag stands for
                end += 1
            for token in range(first, count):
                spans[token, 0], spans[token, 1] = start, origin[end]
    return count


@njit(cache=True)
def _longest_tag(codes, position, trie, value_of_node):
    """The longest word of more than two characters that begins with "<" and stands here: (id, length) or (-1, 0)."""
    node, index, length = np.int64(0), np.int64(-1), 0
    for end in range(position, codes.size):
        node = follow(trie, node, codes[end])
        if node < 0:
            break
        if value_of_node[node] >= 0:
            index, length = np.int64(value_of_node[node]), end + 1 - position
    return index, length


@njit(cache=True)
def _smallest_id(codes, position, single, words, word_filter):
    """Of the words of up to three characters here the one with the smallest id, of equal ids the longest."""
    index, length = np.int64(single[codes[position]]), 1
    if position + 1 < codes.size:
        key = np.uint64(codes[position]) | np.uint64(codes[position + 1]) << np.uint64(21)
        other = find_filtered(words, word_filter, key)
        if other >= 0 and (index < 0 or other <= index):
            index, length = other, 2
        if position + 2 < codes.size:
            key |= np.uint64(codes[position + 2] + 1) << np.uint64(42)
            other = find_filtered(words, word_filter, key)
            if other >= 0 and (index < 0 or other <= index):
                index, length = other, 3
    return index, length


@njit(cache=True)
def _spell(code, traits, byte_ids, symbol_ids, ids, count):
    """Writes the ids for a character without a word: its range, or its bytes of UTF-8."""
    if traits[code] & IS_KIGOU:
        ids[count] = symbol_ids[0]
        return count + 1
    if traits[code] & IS_U2000:
        ids[count] = symbol_ids[1]
        return count + 1
    if code < 0x80:
        ids[count] = byte_ids[code]
        return count + 1
    continuations = 1 if code < 0x800 else 2 if code < 0x10000 else 3
    lead = (0xF80 >> continuations) & 0xFF
    ids[count] = byte_ids[lead | code >> (6 * continuations)]
    for step in range(1, continuations + 1):
        ids[count + step] = byte_ids[0x80 | (code >> (6 * (continuations - step)) & 0x3F)]
    return count + 1 + continuations


@njit(cache=True)
def _grown(array, size):
    """A copy of `array` with room for `size` rows."""
    new = np.empty((size, *array.shape[1:]), array.dtype)
    new[: array.shape[0]] = array
    return new
