"""What a tokenizer returns: columns of ids and masks, and the way from their tokens back to the text."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, Self

from refimpl.errors import InputError, quote
from refimpl.tokenizer.encoding import CharSpan, Encoding, TokenSpan
from refimpl.tokenizer.options import as_integer

Rows = Sequence[Encoding] | Callable[[], Sequence[Encoding]]


class BatchEncoding(dict[str, Any]):
    """A dict of columns whose keys are attributes too, ready for `model(**encoding)`.

    One text gives `input_ids` `[seq]` as a list; a list of texts gives `[batch, seq]`; arrays are int64
    and always `[batch, seq]`.

    `word_ids()`, `char_to_token()` and the like answer for one row, the first unless another is named.
    What they need is computed when it is first asked for, so that nobody else pays: the text is then encoded once
    more.  A copy can still do that; what was pickled before anybody asked cannot.
    """

    def __init__(
        self,
        data: dict[str, Any] | None = None,
        encodings: Rows | None = None,
        tensor_type: str | None = None,
        prepend_batch_axis: bool = False,
        *,
        is_fast: bool = False,
    ):
        super().__init__(data or ())
        self._encodings = encodings
        self.is_fast = is_fast
        if tensor_type is not None:
            self.convert_to_tensors(tensor_type, prepend_batch_axis)

    def __getattr__(self, name: str) -> Any:
        try:
            return dict.__getitem__(self, name)
        except KeyError:
            raise AttributeError(f"this encoding has no {name}; it has {', '.join(self)}") from None

    def __getitem__(self, key: Any) -> Any:
        """The column of a name; the row of a number; several rows of a slice.

        The rows of a tokenizer that is not `is_fast` are sliced out of the columns, as in transformers.
        """
        if isinstance(key, str):
            return dict.__getitem__(self, key)
        if isinstance(key, slice):
            return self.encodings[key] if self.is_fast else {name: self[name][key] for name in self}
        if as_integer(key) is None:
            raise KeyError(key)
        return self._row(key)

    @property
    def data(self) -> Self:
        """The columns: this very dict."""
        return self

    def to(self, device: Any = None, **_options: Any) -> Self:
        """Itself: arrays are NumPy's until a model takes them to its device."""
        return self

    def convert_to_tensors(self, tensor_type: str | None = None, prepend_batch_axis: bool = False) -> Self:
        """Turns the columns into arrays, in place. Raises: InputError (rows of different lengths)."""
        from refimpl.tokenizer.batch import to_arrays
        from refimpl.tokenizer.options import check_tensors

        if check_tensors(tensor_type) is not None:
            columns = {name: [column] for name, column in self.items()} if prepend_batch_axis else dict(self)
            arrays = to_arrays(columns)
            self.clear()
            self.update(arrays)
        return self

    # ---- rows

    @property
    def encodings(self) -> list[Encoding]:
        """The rows with all they know. Raises: InputError where they are not known."""
        if self._encodings is None:
            raise InputError(
                "this encoding does not know where its tokens come from",
                hint="Use the one that the tokenizer returned, or call it with return_offsets_mapping=True.",
            )
        if callable(self._encodings):
            self._encodings = self._encodings()
        return list(self._encodings)

    @property
    def n_sequences(self) -> int:
        """How many texts a row holds: 1, or 2 for pairs."""
        return self._row(0).n_sequences

    def tokens(self, batch_index: int = 0) -> list[str]:
        """The tokens of a row."""
        return self._row(batch_index).tokens

    def sequence_ids(self, batch_index: int = 0) -> list[int | None]:
        """For each token of a row 0 for the first text, 1 for the second, None for neither."""
        return self._row(batch_index).sequence_ids

    def word_ids(self, batch_index: int = 0) -> list[int | None]:
        """For each token of a row the number of its word, or None."""
        return self._row(batch_index).word_ids

    words = word_ids

    def token_to_sequence(self, batch_or_token_index: int, token_index: int | None = None) -> int | None:
        """The text (0 or 1) of a token: `(token)`, or `(row, token)`."""
        row, token = self._row_and_token(batch_or_token_index, token_index)
        return row.token_to_sequence(token)

    def token_to_word(self, batch_or_token_index: int, token_index: int | None = None) -> int | None:
        """The word of a token: `(token)`, or `(row, token)`."""
        row, token = self._row_and_token(batch_or_token_index, token_index)
        return row.token_to_word(token)

    def token_to_chars(self, batch_or_token_index: int, token_index: int | None = None) -> CharSpan | None:
        """The characters of a token in its text: `(token)`, or `(row, token)`."""
        row, token = self._row_and_token(batch_or_token_index, token_index)
        return row.token_to_chars(token)

    def word_to_tokens(
        self, batch_or_word_index: int, word_index: int | None = None, sequence_index: int = 0
    ) -> TokenSpan | None:
        """The tokens of a word: `(word)`, or `(row, word)`."""
        row, word = self._row_and_index(batch_or_word_index, word_index)
        return row.word_to_tokens(word, sequence_index)

    def word_to_chars(
        self, batch_or_word_index: int, word_index: int | None = None, sequence_index: int = 0
    ) -> CharSpan | None:
        """The characters of a word: `(word)`, or `(row, word)`."""
        row, word = self._row_and_index(batch_or_word_index, word_index)
        return row.word_to_chars(word, sequence_index)

    def char_to_token(
        self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0
    ) -> int | None:
        """The token of a character: `(character)`, or `(row, character)`."""
        row, char = self._row_and_index(batch_or_char_index, char_index)
        return row.char_to_token(char, sequence_index)

    def char_to_word(
        self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0
    ) -> int | None:
        """The word of a character: `(character)`, or `(row, character)`."""
        row, char = self._row_and_index(batch_or_char_index, char_index)
        return row.char_to_word(char, sequence_index)

    def _row(self, index: Any) -> Encoding:
        rows, number = self.encodings, as_integer(index)
        if number is None or not -len(rows) <= number < len(rows):
            raise InputError("there is no such row", found=quote(index), allowed=f"0 to {len(rows) - 1}")
        return rows[number]

    def _row_and_index(self, first: Any, second: Any) -> tuple[Encoding, int]:
        """`(index)` in the first row, or `(row, index)`."""
        row, index = (self._row(0), first) if second is None else (self._row(first), second)
        number = as_integer(index)
        if number is None:
            raise InputError("this is not an index", found=quote(index), allowed="int")
        return row, number

    def _row_and_token(self, first: Any, second: Any) -> tuple[Encoding, int]:
        row, token = self._row_and_index(first, second)
        return row, token + len(row) if token < 0 else token

    # ---- copies

    def copy(self) -> BatchEncoding:
        """The same columns in a new encoding."""
        return BatchEncoding(self, self._encodings, is_fast=self.is_fast)

    __copy__ = copy

    def __deepcopy__(self, memo: dict[int, Any]) -> BatchEncoding:
        return BatchEncoding(copy.deepcopy(dict(self), memo), self._encodings, is_fast=self.is_fast)

    def __reduce__(self) -> tuple[Any, ...]:
        rows = None if callable(self._encodings) else self._encodings
        return _restore, (dict(self), rows, self.is_fast)


def _restore(data: dict[str, Any], encodings: Rows | None, is_fast: bool) -> BatchEncoding:
    return BatchEncoding(data, encodings, is_fast=is_fast)
