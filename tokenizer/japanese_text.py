"""The algorithm of the Japanese tokenizer, step by step, on plain strings.

Encoding: `normalize` writes white space and emoji as tags; (`clean_text`, on request, writes URLs,
dates and the like as tags); `segment` cuts the result into words of the vocabulary.  Decoding:
`spelled_out` gives the bytes for which a word stands.

The method is that of https://github.com/tanreinama/Japanese-BPEEncoder_V2 (c477d8b).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

from refimpl.errors import TokenizerFileError
from refimpl.tokenizer.japanese_files import EmojiTable, Vocabulary, byte_of_tag, byte_tag
from refimpl.tokenizer.traced_text import Text

# In this order: "\r\n" is one line break, not two.
REPLACEMENTS = (
    (" ", "<SP>"),
    ("\u3000", "<SP>"),  # ideographic space
    ("\r\n", "<BR>"),
    ("\n", "<BR>"),
    ("\r", "<BR>"),
    ("\t", "<TAB>"),
    ("\u2014", "ー"),  # em dash
    ("\u2212", "ー"),  # minus sign
)

# Words are at most this long, except those that begin with "<".
WINDOW = 3

# Ranges of characters without a word that share one: symbols and combining marks, and the symbols
# from general punctuation to miscellaneous arrows.
KIGOU = ((0xA1, 0xBF), (0x1C0, 0x1C3), (0x2B9, 0x2FF), (0x300, 0x362))
U2000U2BFF = (0x2000, 0x2BFF)

DECODED_TAGS = {
    "<SP>": " ",
    "<BR>": "\n",
    "<TAB>": "\t",
    "<BLOCK>": "▀",
    "<KIGOU>": "ǀ",
    "<U2000U2BFF>": "‖",
}

Choose = Callable[[list[str]], str]


def normalize(text: Text, emoji_tags: Mapping[str, str]) -> Text:
    """`text` with white space, two dashes and emoji replaced, one after the other.

    The emoji go in the order of their table: what an earlier one has replaced, a later one cannot find.
    Raises: TokenizerFileError when a table makes text grow beyond any use of tags.
    """
    limit = 16 * len(text) + 1024
    for old, new in REPLACEMENTS:
        text = text.replace(old, new)
    for emoji, tag in emoji_tags.items():
        if emoji in text:
            text = text.replace(emoji, tag)
            if len(text) > limit:
                raise TokenizerFileError(
                    "the emoji table makes text grow without bound", found=f"{len(text)} characters"
                )
    return text


def segment(text: str, vocabulary: Vocabulary, choose: Choose) -> list[str]:
    """`text` cut into words, from left to right; `choose` picks one of several that fit."""
    return [word for _, _, words in steps(text, vocabulary, choose) for word in words]


def steps(text: str, vocabulary: Vocabulary, choose: Choose) -> Iterator[tuple[int, int, list[str]]]:
    """The steps of `segment`: where each begins and ends in `text`, and its word, or those that spell a character."""
    position = 0
    while position < len(text):
        candidates = find_words(text, position, vocabulary)
        if candidates:
            word = choose(candidates) if len(candidates) > 1 else candidates[0]
            words, end = [word], position + len(word)
        else:
            words, end = list(spell(text[position])), position + 1
        yield position, end, words
        position = end


def find_words(text: str, position: int, vocabulary: Vocabulary) -> list[str]:
    """The words with which `text` goes on at `position`, the longest first.

    After "<" they may be as long as the longest word, and one longer than two characters rules out all
    others: that is how tags are read whole.
    """
    reach = vocabulary.longest if text[position] == "<" else WINDOW
    candidates = []
    for end in range(min(len(text), position + reach), position, -1):
        word = text[position:end]
        if word in vocabulary.words:
            if word[0] == "<" and len(word) > 2:
                return [word]
            candidates.append(word)
    return candidates


def smallest_id(vocabulary: Vocabulary) -> Choose:
    """The choice that encoding makes: the word with the smallest id; of spellings of one id the longest.

    Ids follow frequency within each kind of word, so this is not the longest match.
    """
    return partial(min, key=vocabulary.words.__getitem__)


def spell(character: str) -> Iterator[str]:
    """The words for a character that is not in the vocabulary: its range, or its UTF-8 bytes."""
    code = ord(character)
    if any(first <= code <= last for first, last in KIGOU):
        yield "<KIGOU>"
    elif U2000U2BFF[0] <= code <= U2000U2BFF[1]:
        yield "<U2000U2BFF>"
    else:
        yield from map(byte_tag, character.encode("utf-8"))


def spelled_out(word: str, emoji: EmojiTable) -> bytes:
    """The UTF-8 bytes for which a word stands: less than a character for a byte word."""
    value = byte_of_tag(word)
    if value is not None:
        return bytes([value])
    return DECODED_TAGS.get(word, emoji.emoji.get(word, word)).encode("utf-8")
