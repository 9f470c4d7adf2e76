"""What encoding gives: the ids of one text, and finished rows that know where their tokens come from.

`TextEncoding` is one text before rows are truncated, joined and padded; `Encoding` is a row after that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from refimpl.errors import InputError

Span = tuple[int, int]

#: Ids -> their tokens.
Names = Callable[[list[int]], list[str]]


class TextEncoding(NamedTuple):
    """The ids of one text; on request, where each stands in the text and to which word it belongs.

    `offsets` are `(start, end)` in characters (code points) of the text that was given, end exclusive.
    `words` number the pieces into which the tokenizer cuts a text before it looks at its vocabulary, from 0;
    a token never belongs to two.  Either is None where nobody asked for it; all lists have one length.
    `tokens` is None where they are what `convert_ids_to_tokens` says.  The lists belong to the caller.
    """

    ids: list[int]
    offsets: list[Span] | None = None
    words: list[int] | None = None
    tokens: list[str] | None = None

    def part(self, start: int, stop: int) -> TextEncoding:
        """The tokens from `start` to `stop` (exclusive), which still know their places in the whole text."""
        if start <= 0 and stop >= len(self.ids):
            return self
        return TextEncoding(*(None if column is None else column[start:stop] for column in self))  # type: ignore


def join_words(encodings: list[TextEncoding], offsets: bool, names: Names) -> TextEncoding:
    """One text that was given as words: each word is one in `words`, and offsets count within their word."""
    ids = [index for encoding in encodings for index in encoding.ids]
    if not offsets:
        return TextEncoding(ids)
    tokens = None
    if any(encoding.tokens is not None for encoding in encodings):
        tokens = [token for encoding in encodings for token in encoding.tokens or names(encoding.ids)]
    return TextEncoding(
        ids,
        [span for encoding in encodings for span in encoding.offsets or []],
        [number for number, encoding in enumerate(encodings) for _ in encoding.ids],
        tokens,
    )


class CharSpan(NamedTuple):
    """Characters `start` to `end` (exclusive) of a text."""

    start: int
    end: int


class TokenSpan(NamedTuple):
    """Tokens `start` to `end` (exclusive) of a row."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Frame:
    """The ids that are put around texts: before the first, between the two, after the last.

    Of those between, the first `closing` end the first text (their type is 0), the others begin the second.
    """

    before: list[int]
    between: list[int]
    after: list[int]
    closing: int = 0

    def __len__(self) -> int:
        return len(self.before) + len(self.between) + len(self.after)


BARE = Frame([], [], [])


class Encoding:
    """One finished row `[seq]`: its ids, and for each where it comes from.

    The names are those of an encoding of the `tokenizers` package.  Positions are indices of the row;
    `sequence` is 0 for the first text and 1 for the second; what has no answer is None.
    Raises: InputError where offsets or words are asked for and the tokenizer has none.
    """

    __slots__ = ("_names", "_offsets", "_padded", "_second_type", "_sequences", "_tokens", "_words", "ids")

    def __init__(
        self,
        first: TextEncoding,
        second: TextEncoding | None,
        frame: Frame,
        names: Names,
    ):
        before = len(frame.before)
        end = before + len(first.ids)
        self.ids: list[int]
        if second is None:
            self.ids = [*frame.before, *first.ids, *frame.after] if len(frame) else first.ids
            self._sequences = [range(before, end)]
            self._second_type = len(self.ids)  # from here on the type is 1
        else:
            self.ids = [*frame.before, *first.ids, *frame.between, *second.ids, *frame.after]
            start = end + len(frame.between)
            self._sequences = [range(before, end), range(start, start + len(second.ids))]
            self._second_type = end + frame.closing
        self._padded = (0, 0)
        self._names = names
        self._tokens: list[str] | None = None
        self._offsets: list[Span] | None = None
        self._words: list[int | None] | None = None
        if first.offsets is not None:
            self._place(first, second or TextEncoding([], [], []), frame)

    def _place(self, first: TextEncoding, second: TextEncoding, frame: Frame) -> None:
        before, between, after = len(frame.before), len(frame.between), len(frame.after)
        nowhere = [(0, 0)]
        self._offsets = [
            *nowhere * before,
            *(first.offsets or []),
            *nowhere * between,
            *(second.offsets or []),
            *nowhere * after,
        ]
        self._words = [
            *[None] * before,
            *(first.words or []),
            *[None] * between,
            *(second.words or []),
            *[None] * after,
        ]
        if first.tokens is not None or second.tokens is not None:
            names = self._names
            self._tokens = [
                *names(frame.before),
                *(first.tokens or names(first.ids)),
                *names(frame.between),
                *(second.tokens or names(second.ids)),
                *names(frame.after),
            ]

    def __len__(self) -> int:
        return len(self.ids)

    def __getstate__(self) -> dict[str, Any]:
        """The row without the tokenizer, so that pickling it does not pickle that."""
        state = {name: getattr(self, name) for name in self.__slots__}
        return {**state, "_tokens": self.tokens, "_names": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)

    def __repr__(self) -> str:
        return f"Encoding({len(self.ids)} ids, n_sequences={self.n_sequences})"

    def pad(self, length: int, side: str, pad_id: int) -> None:
        """Makes the row `length` long, when it is shorter, with `pad_id` on the left or the right."""
        missing = length - len(self.ids)
        if missing <= 0:
            return
        left = missing if side == "left" else 0
        right = missing - left
        self.ids = [pad_id] * left + self.ids + [pad_id] * right
        self._sequences = [range(r.start + left, r.stop + left) for r in self._sequences]
        self._second_type += left
        self._padded = (left, right)
        if self._tokens is not None:
            name = self._names([pad_id])
            self._tokens = name * left + self._tokens + name * right
        if self._offsets is not None and self._words is not None:
            self._offsets = [(0, 0)] * left + self._offsets + [(0, 0)] * right
            self._words = [None] * left + self._words + [None] * right

    def set_types(self, types: list[int]) -> None:
        """Takes the types of an unpadded row from a list of 0 followed by 1."""
        self._second_type = types.index(1) if 1 in types else len(types)

    # ---- columns, as long as the row

    def type_ids(self, pad_type: int = 0) -> list[int]:
        """0 for the first text, 1 for the second, `pad_type` for padding."""
        left, right = self._padded
        first = self._second_type - left
        second = len(self.ids) - left - right - first
        return [pad_type] * left + [0] * first + [1] * second + [pad_type] * right

    @property
    def attention_mask(self) -> list[int]:
        """1 for what counts, 0 for padding."""
        left, right = self._padded
        return [0] * left + [1] * (len(self.ids) - left - right) + [0] * right

    @property
    def special_tokens_mask(self) -> list[int]:
        """0 for the tokens of the texts, 1 for all that was put around them."""
        mask = [1] * len(self.ids)
        for sequence in self._sequences:
            mask[sequence.start : sequence.stop] = [0] * len(sequence)
        return mask

    @property
    def sequence_ids(self) -> list[int | None]:
        """The text of each token: 0, 1, or None for what is of no text."""
        ids: list[int | None] = [None] * len(self.ids)
        for number, sequence in enumerate(self._sequences):
            ids[sequence.start : sequence.stop] = [number] * len(sequence)
        return ids

    @property
    def tokens(self) -> list[str]:
        """The tokens."""
        if self._tokens is None:
            self._tokens = self._names(self.ids)
        return self._tokens

    @property
    def offsets(self) -> list[Span]:
        """The characters of each token as (start, end), end exclusive; (0, 0) for what is of no text."""
        if self._offsets is None:
            raise InputError("this tokenizer does not know where its tokens stand in the text")
        return self._offsets

    @property
    def word_ids(self) -> list[int | None]:
        """The number of the word to which each token belongs, counted in each text from 0."""
        if self._words is None:
            raise InputError("this tokenizer does not know to which words its tokens belong")
        return self._words

    words = word_ids

    @property
    def n_sequences(self) -> int:
        """How many texts the row holds: 1 or 2."""
        return len(self._sequences)

    # ---- from one kind of position to another

    def token_to_sequence(self, token: int) -> int | None:
        """The text of a token."""
        return next((n for n, sequence in enumerate(self._sequences) if token in sequence), None)

    def token_to_chars(self, token: int) -> CharSpan | None:
        """The characters of a token, in its text."""
        return None if self.token_to_sequence(token) is None else CharSpan(*self.offsets[token])

    def token_to_word(self, token: int) -> int | None:
        """The word of a token."""
        return None if self.token_to_sequence(token) is None else self.word_ids[token]

    def char_to_token(self, char: int, sequence: int = 0) -> int | None:
        """The first token that stands for a character of a text."""
        offsets = self.offsets
        for token in self._tokens_of(sequence):
            if offsets[token][0] <= char < offsets[token][1]:
                return token
        return None

    def char_to_word(self, char: int, sequence: int = 0) -> int | None:
        """The word of the first token that stands for a character of a text."""
        token = self.char_to_token(char, sequence)
        return None if token is None else self.word_ids[token]

    def word_to_tokens(self, word: int, sequence: int = 0) -> TokenSpan | None:
        """The tokens of a word of a text."""
        words = self.word_ids
        tokens = [token for token in self._tokens_of(sequence) if words[token] == word]
        return TokenSpan(tokens[0], tokens[-1] + 1) if tokens else None

    def word_to_chars(self, word: int, sequence: int = 0) -> CharSpan | None:
        """The characters of a word of a text, from its first token to its last."""
        span = self.word_to_tokens(word, sequence)
        if span is None:
            return None
        return CharSpan(self.offsets[span.start][0], self.offsets[span.end - 1][1])

    def _tokens_of(self, sequence: int) -> range:
        if sequence not in range(len(self._sequences)):
            raise InputError("the row has no such text", found=sequence, allowed=range(self.n_sequences))
        return self._sequences[sequence]
