"""Texts -> ids with the kernels of `bpe.py`: making the tables, and the way in and out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise

import numpy as np

from refimpl.tokenizer.bpe import BpeTables
from refimpl.tokenizer.encoding import TextEncoding
from refimpl.tokenizer.kernels import bpe, hashing, tries
from refimpl.tokenizer.unicode_classes import LETTERS, NUMBERS, SPACES, CharacterClass

# 1 MiB per thread: what stays in a processor's second cache.
_REMEMBERED_WORDS = 1 << 15

# The bytes 0xc0, 0xc1 and 0xf5 to 0xff do not occur in UTF-8.
_UTF8_BYTES = [byte for byte in range(0xF5) if byte not in (0xC0, 0xC1)]


def can_encode(tables: BpeTables) -> bool:
    """Whether the compiled form gives the plain one's ids with such a vocabulary, as with any published one."""
    has_all_bytes = all(tables.byte_ids[byte] is not None for byte in _UTF8_BYTES)
    return has_all_bytes and not tables.ignore_merges and not tables.fuse_unk


class BPEEncoder:
    """The compiled algorithm for one vocabulary.

    `raw_tokens` are the added tokens, with their ids, that are cut out of a text before all others,
    `normal_tokens` those that are cut out of what is left; None where the caller cuts them out.
    """

    def __init__(
        self,
        tables: BpeTables,
        raw_tokens: Mapping[str, int] | None,
        normal_tokens: Mapping[str, int] | None,
    ):
        self.cuts_out_added_tokens = raw_tokens is not None and normal_tokens is not None
        self._for_words = make_tables(tables)
        raw_first, raw_trie, raw_ids = _added(raw_tokens or {})
        normal_first, normal_trie, normal_ids = _added(normal_tokens or {})
        self._for_texts = self._for_words._replace(
            raw_first=raw_first,
            raw_trie=raw_trie,
            raw_ids=raw_ids,
            normal_first=normal_first,
            normal_trie=normal_trie,
            normal_ids=normal_ids,
        )
        self._memories: list[np.ndarray] = []

    def encode_words(self, texts: Sequence[str]) -> list[TextEncoding]:
        """The encodings of texts that are normalised and hold no added tokens.

        Raises: UnicodeEncodeError for a lone surrogate.
        """
        return self._encode(texts, self._for_words, False)

    def encode(self, texts: Sequence[str], *, offsets: bool = False) -> list[TextEncoding]:
        """The encodings of texts that are normalised; calls may run side by side.

        Raises: UnicodeEncodeError for a lone surrogate.
        """
        return self._encode(texts, self._for_texts, offsets)

    def _encode(self, texts: Sequence[str], tables: bpe.BPETables, offsets: bool) -> list[TextEncoding]:
        data = [text.encode("utf-8") for text in texts]
        joined = np.frombuffer(b"".join(data), np.uint8)
        text_ends = np.array(list(accumulate(map(len, data))), np.int64)
        memory = self._memories.pop() if self._memories else bpe.new_memory(_REMEMBERED_WORDS)
        ids, ends, spans = bpe.encode(joined, text_ends, tables, memory, offsets)
        self._memories.append(memory)
        flat, rows = ids.tolist(), list(pairwise([0, *ends.tolist()]))
        if not offsets:
            return [TextEncoding(flat[start:end]) for start, end in rows]
        # The number of the character to which each byte belongs, counted through all texts.
        characters = np.cumsum((joined & 0xC0) != 0x80) - 1
        first_characters = [0, *accumulate(map(len, texts))]
        encodings = []
        for (start, end), first in zip(rows, first_characters, strict=False):
            begins = characters[spans[start:end, 0]] - first
            stops = characters[spans[start:end, 1] - 1] + 1 - first
            pairs = list(zip(begins.tolist(), stops.tolist(), strict=True))
            encodings.append(TextEncoding(flat[start:end], pairs, spans[start:end, 2].tolist()))
        return encodings


def make_tables(tables: BpeTables) -> bpe.BPETables:
    """The vocabulary and its merges as arrays, without added tokens."""
    classes = np.full(0x110000, bpe.OTHER, np.uint8)
    for table, kind in ((LETTERS, bpe.LETTER), (NUMBERS, bpe.NUMBER), (SPACES, bpe.SPACE)):
        members = CharacterClass(table)
        for first, last in zip(members.firsts, members.lasts, strict=True):
            classes[first : last + 1] = kind
    lefts, rights = np.array(tables.lefts, np.uint64), np.array(tables.rights, np.uint64)
    results = np.array(tables.results, np.uint64)
    # Of two rules for one pair the later one counts, as in the plain form.
    pairs = (lefts + np.uint64(1)) << np.uint64(32) | rights
    merges = hashing.build(pairs, np.arange(len(results), dtype=np.uint64) << np.uint64(32) | results)
    unknown = -1 if tables.unk_id is None else tables.unk_id
    return bpe.BPETables(
        classes,
        np.array([unknown if index is None else index for index in tables.byte_ids], np.int32),
        merges,
        hashing.build_filter(pairs),
        *_added({}),
        *_added({}),
    )


def _added(tokens: Mapping[str, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The bytes with which tokens begin, and their trie."""
    spelled = [token.encode("utf-8") for token in tokens]
    first = np.zeros(256, np.bool_)
    first[[token[0] for token in spelled]] = True
    return first, *tries.build(spelled, tokens.values())
