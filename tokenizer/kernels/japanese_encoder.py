"""Texts -> ids with the kernels of `japanese.py`: making the tables, and the way in and out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, pairwise

import numpy as np

from refimpl.tokenizer.clean_text import clean_text
from refimpl.tokenizer.encoding import TextEncoding
from refimpl.tokenizer.japanese_files import EmojiTable, Vocabulary
from refimpl.tokenizer.japanese_text import KIGOU, REPLACEMENTS, U2000U2BFF, WINDOW
from refimpl.tokenizer.kernels import hashing, japanese, tries

_CODE_POINTS = 0x110000


def can_encode(vocabulary: Vocabulary, emoji: EmojiTable, added_ids: Mapping[str, int]) -> bool:
    """Whether the compiled form gives the plain one's ids for such tables, as it does for any sensible ones.

    A word that was also added, as a token with another id, has two ids; the plain form knows when which.
    """
    one_id = all(vocabulary.words.get(token, index) == index for token, index in added_ids.items())
    return one_id and _tags_stay_whole(emoji.tags)


def _tags_stay_whole(emoji_tags: Mapping[str, str]) -> bool:
    """Whether no emoji can be found across the border of a tag that another emoji has left."""
    tags = set(emoji_tags.values())
    parts = {tag[:n] for tag in tags for n in range(1, len(tag))}
    ends = {tag[n:] for tag in tags for n in range(1, len(tag))}
    return not any(
        any(tag in key for tag in tags)
        or any(key[n:] in parts for n in range(1, len(key)))
        or any(key[:n] in ends for n in range(1, len(key)))
        for key in emoji_tags
    )


class JapaneseEncoder:
    """The compiled algorithm for one vocabulary; `byte_ids` are the 256 ids that spell bytes."""

    def __init__(self, vocabulary: Vocabulary, emoji: EmojiTable, byte_ids: Sequence[int]):
        self._tables = make_tables(vocabulary, emoji.tags, byte_ids)

    def normalize(self, text: str) -> str:
        """As `japanese_text.normalize`. Raises: UnicodeEncodeError for a lone surrogate."""
        return japanese.normalize(_codes(text), self._tables).tobytes().decode("utf-32-le")

    def encode_cleaned(self, texts: Sequence[str]) -> list[TextEncoding]:
        """`encode` after `clean_text`."""
        return self.encode([clean_text(self.normalize(text)) for text in texts], is_normalized=True)

    def encode(
        self, texts: Sequence[str], *, is_normalized: bool = False, offsets: bool = False
    ) -> list[TextEncoding]:
        """The encodings of texts without added tokens; offsets only of texts that are not normalized yet.

        Raises: UnicodeEncodeError for a lone surrogate.
        """
        codes = _codes("".join(texts))
        text_ends = np.array(list(accumulate(map(len, texts))), np.int64)
        ids, ends, spans = japanese.encode(codes, text_ends, self._tables, is_normalized, offsets)
        flat, rows = ids.tolist(), list(pairwise([0, *ends.tolist()]))
        if not offsets:
            return [TextEncoding(flat[start:end]) for start, end in rows]
        return [
            TextEncoding(flat[start:end], _pairs(spans[start:end]), _words(spans[start:end]))
            for start, end in rows
        ]


def _codes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)


def _pairs(spans: np.ndarray) -> list[tuple[int, int]]:
    return list(zip(*spans.T.tolist(), strict=True))


def _words(spans: np.ndarray) -> list[int]:
    """Tokens that stand for one piece of the text (the bytes of a character) are one word."""
    return (np.cumsum(np.diff(spans[:, 0], prepend=-1) != 0) - 1).tolist()


def make_tables(
    vocabulary: Vocabulary, emoji_tags: Mapping[str, str], byte_ids: Sequence[int]
) -> japanese.JapaneseTables:
    """The vocabulary and the emoji table as arrays."""
    traits = np.zeros(_CODE_POINTS, np.uint8)
    # "\r\n" is found by looking ahead; number 0 means that a character stays.
    single_replacements = [(old, new) for old, new in REPLACEMENTS if len(old) == 1]
    replacements, replacement_starts = _joined(["", *(new for _, new in single_replacements)])
    for number, (old, _) in enumerate(single_replacements, 1):
        traits[ord(old)] |= number
    for first, last in KIGOU:
        traits[first : last + 1] |= japanese.IS_KIGOU
    traits[U2000U2BFF[0] : U2000U2BFF[1] + 1] |= japanese.IS_U2000
    for key in emoji_tags:
        traits[ord(key[0])] |= japanese.STARTS_EMOJI
    emoji_trie, emoji_of_node = tries.build(map(_symbols, emoji_tags), range(len(emoji_tags)))
    tags, tag_starts = _joined(emoji_tags.values())

    words = {word: index for word, index in vocabulary.words.items() if 1 <= len(word) <= WINDOW}
    single = np.full(_CODE_POINTS, -1, np.int32)
    for word, index in words.items():
        if len(word) == 1:
            single[ord(word)] = index
    pairs = [word for word in words if len(word) == 2]
    triples = [word for word in words if len(word) == 3 and word[0] != "<"]
    keys = _word_keys(pairs, triples)
    brackets = [word for word in vocabulary.words if word.startswith("<") and len(word) > 2]
    bracket_trie, bracket_ids = tries.build(
        map(_symbols, brackets), [vocabulary.words[word] for word in brackets]
    )
    return japanese.JapaneseTables(
        traits=traits,
        replacements=replacements,
        replacement_starts=replacement_starts,
        emoji_trie=emoji_trie,
        emoji_of_node=emoji_of_node,
        emoji_lengths=np.fromiter(map(len, emoji_tags), np.int32, len(emoji_tags)),
        tags=tags,
        tag_starts=tag_starts,
        single=single,
        words=hashing.build(keys, [words[word] for word in pairs + triples]),
        word_filter=hashing.build_filter(keys),
        bracket_trie=bracket_trie,
        bracket_ids=bracket_ids,
        byte_ids=np.array(byte_ids, np.int32),
        symbol_ids=np.array([vocabulary.words["<KIGOU>"], vocabulary.words["<U2000U2BFF>"]], np.int32),
    )


def _word_keys(pairs: list[str], triples: list[str]) -> np.ndarray:
    """Words of two, then of three characters as integers.

    Without a third character 0 stands in its place, and so it cannot stand for U+0000.
    """
    two = _codes("".join(pairs)).reshape(-1, 2).astype(np.uint64)
    three = _codes("".join(triples)).reshape(-1, 3).astype(np.uint64)
    first_two = np.concatenate((two, three[:, :2]))
    keys = first_two[:, 0] | first_two[:, 1] << np.uint64(21)
    keys[len(two) :] |= (three[:, 2] + np.uint64(1)) << np.uint64(42)
    return keys


def _symbols(word: str) -> list[int]:
    return list(map(ord, word))


def _joined(texts: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
    """Texts as code points one after the other, and where each begins (and the last one ends)."""
    listed = list(texts)
    starts = np.cumsum([0, *map(len, listed)], dtype=np.int64)
    return _codes("".join(listed)), starts
