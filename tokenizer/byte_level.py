"""Text as the byte-level tokenizers see it: normalised, cut into words, each byte written as a character.

The words are those of the GPT-2 pattern: an English contraction (`'s`, `'re`, ...), or letters, or numbers, or
other characters, each with at most one space before it, or white space.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import groupby, pairwise
from typing import Any, NamedTuple

from refimpl.tokenizer.unicode_classes import INERT, LETTERS, NUMBERS, SPACES, CharacterClass

# ---- bytes as characters


def _byte_characters() -> list[str]:
    """The 188 bytes that Latin-1 prints stand for themselves, the others for U+0100 and what follows."""
    printed = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printed else next(others)) for byte in range(256)]


#: The character that stands for each byte in the tokens of a vocabulary: "Ġ" for a space, "Ċ" for a line end.
BYTE_CHARACTERS = _byte_characters()

_BYTE_OF = {ord(character): byte for byte, character in enumerate(BYTE_CHARACTERS)}
_CHARACTER_OF_BYTE = dict(enumerate(BYTE_CHARACTERS))


def to_characters(data: bytes) -> str:
    """Each byte as its character: `b" a"` -> `"Ġa"`."""
    return data.decode("latin-1").translate(_CHARACTER_OF_BYTE)


def to_bytes(token: str) -> bytes:
    """The bytes that a token stands for.

    A token with a character that stands for no byte is text as it is, as in the `tokenizers` package.
    """
    try:
        return bytes([_BYTE_OF[ord(character)] for character in token])
    except KeyError:
        return token.encode("utf-8")


# ---- text that remembers where it comes from


class AlignedText(NamedTuple):
    """A piece of text, and for each of its characters the index of the character it stands for in the original.

    The original characters of `text[start:end]` (not empty) are those from `origins[start]` to
    `origins[end - 1]`, both included.
    """

    text: str
    origins: Sequence[int]

    @classmethod
    def original(cls, text: str) -> AlignedText:
        return cls(text, range(len(text)))

    def part(self, start: int, end: int) -> AlignedText:
        return AlignedText(self.text[start:end], self.origins[start:end])

    def with_space(self) -> AlignedText:
        """With a space before it, which belongs to the first character, unless one is there."""
        if not self.text or self.text[0] == " ":
            return self
        return AlignedText(" " + self.text, [self.origins[0], *self.origins])

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Where `text[start:end]` stands in the original."""
        return self.origins[start], self.origins[end - 1] + 1


# ---- normalisation

_LONG_RUN = 64


def nfc(text: str) -> str:
    """`text` in the normalisation form NFC of Unicode 9.0, whatever version Python knows."""
    if is_normal(text):
        return text
    return "".join(
        piece if inert else unicodedata.normalize("NFC", _long_runs().sub(_in_canonical_order, piece))
        for piece, inert in _around_inert(text)
    )


def is_normal(text: str) -> bool:
    """Whether `nfc` leaves the text as it is, except that False is possible where it does.

    What newer versions of Unicode leave as it is, 9.0 does too: they only compose and sort more.
    """
    return text.isascii() or unicodedata.is_normalized("NFC", text)


@cache
def _long_runs() -> Any:
    import regex  # knows the marks; needed for a text that is not normalised only

    return regex.compile(rf"\p{{M}}{{{_LONG_RUN},}}")


def _in_canonical_order(run: Any) -> str:
    """A run of marks, decomposed and in the order of NFD.

    `unicodedata.normalize` sorts by insertion: the time that it needs for a run that is not in order grows
    with the square of its length.
    """
    decomposed = run[0].translate({ord(mark): unicodedata.normalize("NFD", mark) for mark in set(run[0])})
    parts = groupby(decomposed, key=lambda mark: unicodedata.combining(mark) == 0)
    return "".join(
        "".join(marks if are_starters else sorted(marks, key=unicodedata.combining))
        for are_starters, marks in parts
    )


def nfc_aligned(text: AlignedText) -> AlignedText:
    """As `nfc`.  A composed character stands for the first of those it is made of.

    The rule is that of the `tokenizers` package.  Every character of the result is counted: 0 for one that
    was there, and for one that was composed; 1 for the second and later ones into which a character fell apart
    and that stayed apart; minus 1 for each character that composition swallowed.  A result with a count up to
    0 stands for the next original character and skips as many as it swallowed; one with a positive count
    stands for the same original as the one before.
    """
    normal = nfc(text.text)
    if normal == text.text:
        return text
    counted = (
        item
        for piece, inert in _around_inert(text.text)
        for item in ([(character, 0) for character in piece] if inert else _compose(_decompose(piece)))
    )
    characters, origins, position = [], [], 0
    for character, count in counted:
        characters.append(character)
        origins.append(text.origins[position - 1 if count > 0 else position])
        position += 0 if count > 0 else 1 - count
    return AlignedText("".join(characters), origins)


@cache
def _inert() -> re.Pattern[str]:
    return re.compile(f"({CharacterClass(INERT).regular_expression()}+)")


def _around_inert(text: str) -> Iterator[tuple[str, bool]]:
    """The pieces of a text, with whether they consist of inert characters."""
    for index, piece in enumerate(_inert().split(text)):
        if piece:
            yield piece, bool(index % 2)


def _decompose(text: str) -> list[tuple[str, int]]:
    """The characters of NFD; 1 for all but the first of those that came out of one character."""
    parts: list[tuple[str, int]] = []
    marks: list[tuple[str, int]] = []
    for character in text:
        for index, part in enumerate(unicodedata.normalize("NFD", character)):
            if not unicodedata.combining(part):
                parts += _in_order(marks)
                marks = []
            marks.append((part, int(index > 0)))
    return parts + _in_order(marks)


def _in_order(marks: list[tuple[str, int]]) -> list[tuple[str, int]]:
    return sorted(marks, key=lambda mark: unicodedata.combining(mark[0]))


def _compose(parts: list[tuple[str, int]]) -> Iterator[tuple[str, int]]:
    """The characters of NFC with their counts, from those of NFD."""
    starter: tuple[str, int] | None = None
    waiting: list[tuple[str, int]] = []  # marks after the starter that did not compose with it
    for part, count in parts:
        rank = unicodedata.combining(part)
        last = unicodedata.combining(waiting[-1][0]) if waiting else None
        if starter is not None and (last is None or last < rank):
            composed = unicodedata.normalize("NFC", starter[0] + part)
            if len(composed) == 1:
                starter = composed, starter[1] + count - 1
                continue
        if rank:
            waiting.append((part, count))
        else:
            yield from [starter, *waiting] if starter else waiting
            starter, waiting = (part, count), []
    yield from [starter, *waiting] if starter else waiting


# ---- words

#: The pattern of the published tokenizers, as their files spell it.  It is compared, never compiled.
GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

_ASCII_PATTERN = re.compile(
    r"'(?:s|t|re|ve|m|ll|d)| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+", re.ASCII
)

_MOST_SHAPES = 1 << 16  # ought to be enough for any one language, and bounds the memory


class _Shapes(dict[int, str]):
    """For `str.translate`: an ASCII character of the same class; ASCII itself stays as it is."""

    def __init__(self) -> None:
        super().__init__()
        self._letters, self._numbers = CharacterClass(LETTERS), CharacterClass(NUMBERS)
        self._spaces = CharacterClass(SPACES)

    def __missing__(self, code: int) -> str:
        if code < 0x80:
            shape = chr(code)
        elif code in self._letters:
            shape = "A"  # not a letter that could end a contraction
        elif code in self._numbers:
            shape = "0"
        elif code in self._spaces:
            shape = "\t"  # not the space that a word may begin with
        else:
            shape = "!"
        if len(self) < _MOST_SHAPES:
            self[code] = shape
        return shape


@cache
def _shapes() -> _Shapes:
    return _Shapes()


def word_starts(text: str) -> list[int]:
    """Where the words of a text begin.

    Every character is replaced by an ASCII character of its class, so that one plain pattern is enough.
    """
    shape = text if text.isascii() else text.translate(_shapes())
    return [found.start() for found in _ASCII_PATTERN.finditer(shape)]


def word_texts(text: str) -> list[str]:
    """The words of a text."""
    if text.isascii():
        return _ASCII_PATTERN.findall(text)
    return [text[start:end] for start, end in pairwise([*word_starts(text), len(text)])]


def words(text: AlignedText) -> Iterator[AlignedText]:
    """The words of a text; they join to it again."""
    for start, end in pairwise([*word_starts(text.text), len(text.text)]):
        yield text.part(start, end)
