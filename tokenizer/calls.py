"""Calling a tokenizer: texts, settings -> rows of ids with their masks, for any tokenizer.

A call without settings goes straight from `encode_text` to its answer (`_encode_simply`); every other one through
`_encode_rows`: what it is about (`inputs.py`) -> `TextEncoding` of each text -> truncation (`rows.py`) ->
`Encoding` -> padding -> columns (`batch.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

from refimpl.errors import InputError, TextInputError, quote
from refimpl.tokenizer import batch as layout
from refimpl.tokenizer import rows as assembly
from refimpl.tokenizer.batch_encoding import BatchEncoding
from refimpl.tokenizer.codec import TokenCodec
from refimpl.tokenizer.encoding import BARE, Encoding, Frame, TextEncoding, join_words
from refimpl.tokenizer.inputs import pairs, pairs_of_str
from refimpl.tokenizer.options import NO_LIMIT, Options, as_integer, resolve_options

_LOG = logging.getLogger(__name__)


class TokenizerCalls(TokenCodec):
    """Text -> ids, the way it is asked for: one or many, alone or in pairs, cut, padded, as lists or arrays."""

    model_input_names: Sequence[str] = ("input_ids", "attention_mask")

    #: To which of the two families in transformers a tokenizer belongs: what truncation cuts off becomes further
    #: rows, texts are str only, a single text is padded even if it is empty, and so on (`rows.py`).
    overflow_as_rows: ClassVar[bool] = False

    init_kwargs: dict[str, Any]
    model_max_length: int
    padding_side: str
    truncation_side: str
    _warned_too_long = False

    @property
    def is_fast(self) -> bool:
        """Whether transformers has a fast tokenizer for this one: see `overflow_as_rows`."""
        return self.overflow_as_rows

    @property
    def pad_token_type_id(self) -> int:
        """What `token_type_ids` has where a row is padded."""
        return self._pad_token_type_id

    @pad_token_type_id.setter
    def pad_token_type_id(self, value: int) -> None:
        number = as_integer(value)
        if number is None:
            raise InputError("pad_token_type_id is not an int", found=quote(value))
        self._pad_token_type_id = number

    @property
    def max_len_single_sentence(self) -> int:
        """How many tokens of a text the model takes beside the special ones."""
        return self.model_max_length - self.num_special_tokens_to_add()

    @property
    def max_len_sentences_pair(self) -> int:
        """How many tokens of two texts together the model takes beside the special ones."""
        return self.model_max_length - self.num_special_tokens_to_add(pair=True)

    # ---- special tokens around texts

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """How many special tokens encoding puts around a text or a pair of texts."""
        return len(self._frame(pair))

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """The ids of one or two texts as the model wants them: here, simply joined."""
        return token_ids_0 if token_ids_1 is None else token_ids_0 + token_ids_1

    def _frame(self, pair: bool) -> Frame:
        """What `build_inputs_with_special_tokens` puts around texts, seen by giving it two marks for texts."""
        first, second = -1, -2
        alone = self.build_inputs_with_special_tokens([first])
        before, after = alone[: alone.index(first)], alone[alone.index(first) + 1 :]
        if not pair:
            return Frame(before, [], after)
        both = self.build_inputs_with_special_tokens([first], [second])
        start, end = both.index(first), both.index(second)
        return Frame(both[:start], both[start + 1 : end], both[end + 1 :], closing=len(after))

    def create_token_type_ids_from_sequences(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """0 for the first text and its special tokens, 1 for the second."""
        first = len(self.build_inputs_with_special_tokens(token_ids_0))
        whole = len(self.build_inputs_with_special_tokens(token_ids_0, token_ids_1))
        return [0] * first + [1] * (whole - first)

    def get_special_tokens_mask(
        self,
        token_ids_0: list[int],
        token_ids_1: list[int] | None = None,
        already_has_special_tokens: bool = False,
    ) -> list[int]:
        """1 for a special token and 0 for a token of the text.

        The ids are those of texts, to which encoding would add special tokens, or (with
        `already_has_special_tokens`) finished ids. Raises: InputError for a pair of finished ids.
        """
        if already_has_special_tokens:
            if token_ids_1 is not None:
                raise InputError("finished ids are one row, not a pair")
            special = set(self.all_special_ids)
            return [int(index in special) for index in token_ids_0]
        second = None if token_ids_1 is None else TextEncoding(token_ids_1)
        frame = self._frame(second is not None)
        return Encoding(TextEncoding(token_ids_0), second, frame, self._tokens_of).special_tokens_mask

    # ---- text -> tokens

    def tokenize(
        self,
        text: str,
        pair: str | None = None,
        add_special_tokens: bool = False,
        *,
        split_special_tokens: bool | None = None,
        surrogates: str | None = None,
    ) -> list[str]:
        """The tokens of a text, or of two, on request with the special tokens around them.

        `split_special_tokens` treats added tokens that stand in the text as ordinary text.
        Raises: InputError (not a str), TextInputError (not valid Unicode).
        """
        reading: dict[str, Any] = {"split_special_tokens": split_special_tokens, "surrogates": surrogates}
        tokens = super().tokenize(text, **reading)
        return self._around_tokens(tokens, pair, add_special_tokens, reading)

    def _around_tokens(
        self, tokens: list[str], pair: str | None, add_special_tokens: bool, reading: dict[str, Any]
    ) -> list[str]:
        """The tokens of a text with those of a second one and the special ones."""
        if self.overflow_as_rows:
            pair = pair or None  # as in a call: an empty second text is none
        frame = self._frame(pair is not None) if add_special_tokens else BARE
        before, between, after = map(self._tokens_of, (frame.before, frame.between, frame.after))
        second = [] if pair is None else self.tokenize(pair, **reading)
        return [*before, *tokens, *between, *second, *after]

    # ---- texts -> rows

    def __call__(
        self,
        text: Any = None,
        text_pair: Any = None,
        text_target: Any = None,
        text_pair_target: Any = None,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        stride: int = 0,
        is_split_into_words: bool = False,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_tensors: str | None = None,
        return_token_type_ids: bool | None = None,
        return_attention_mask: bool | None = None,
        return_overflowing_tokens: bool = False,
        return_special_tokens_mask: bool = False,
        return_offsets_mapping: bool = False,
        return_length: bool = False,
        verbose: bool = True,
        *,
        split_special_tokens: bool | None = None,
        surrogates: str | None = None,
        max_target_length: int | None = None,
    ) -> BatchEncoding:
        """The ids of a text, a pair of texts, or a list of either, with their masks.

        A text is a str or a list of words (with `is_split_into_words`: `word_ids()` then number the given words,
        and each is encoded as a text of its own: after a space only with `add_prefix_space=True`).  Where
        `overflow_as_rows` is False it may also be a list of ids, and the second text a list of tokens.
        The ids of `text_target` come as `labels`.

        `truncation`: True or "longest_first" (of a pair the longer text first), "only_first", "only_second", to
        `max_length`, else to the model's; `max_length` alone asks for it too.  `padding`: True or "longest" (to
        the longest row), "max_length"; then up to a multiple of `pad_to_multiple_of`.  `return_overflowing_tokens`
        returns what was cut off, after `stride` tokens that were not: as `overflowing_tokens`, or as further rows
        with `overflow_to_sample_mapping`.  `return_offsets_mapping` adds `offset_mapping`: for each token the
        characters (start, end) of its text.
        Shapes: one text gives lists `[seq]`; a list of texts `[batch, seq]`; arrays are `[batch, seq]`.
        Raises: InputError (options, kinds of input, rows of different lengths as an array),
            TextInputError (a text that is not valid Unicode), ResourceLimitError (padding, overflow).
        """
        if text_target is not None:
            settings = {name: value for name, value in locals().items() if name not in _INPUTS}
            return self._with_labels(
                (text, text_pair), (text_target, text_pair_target), max_target_length, settings
            )
        if (
            padding is False
            and (truncation is None or truncation is False)
            and max_length is None
            and stride == 0
            and text_pair is None
            and is_split_into_words is False
            and pad_to_multiple_of is padding_side is return_tensors is None
            and return_token_type_ids is None
            and not (
                return_overflowing_tokens
                or return_special_tokens_mask
                or return_offsets_mapping
                or return_length
            )
        ):
            simple = self._encode_simply(
                text, add_special_tokens, return_attention_mask, split_special_tokens, surrogates, verbose
            )
            if simple is not None:
                return simple
        options = self._resolve(
            padding=padding,
            truncation=truncation,
            max_length=max_length,
            stride=stride,
            pad_to_multiple_of=pad_to_multiple_of,
            padding_side=padding_side,
            return_tensors=return_tensors,
            return_token_type_ids=return_token_type_ids,
            return_attention_mask=return_attention_mask,
            return_overflowing_tokens=return_overflowing_tokens,
            return_special_tokens_mask=return_special_tokens_mask,
            return_offsets_mapping=return_offsets_mapping,
            return_length=return_length,
            add_special_tokens=add_special_tokens,
            is_split_into_words=is_split_into_words,
            split_special_tokens=split_special_tokens,
            surrogates=surrogates,
            verbose=verbose,
        )
        find_pairs = pairs_of_str if self.overflow_as_rows else pairs
        inputs, single = find_pairs(text, text_pair, is_split_into_words)
        return self._encode_rows(inputs, options, single)

    def _resolve(
        self,
        *,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        stride: int = 0,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_tensors: str | None = None,
        return_token_type_ids: bool | None = None,
        return_attention_mask: bool | None = None,
        return_overflowing_tokens: bool = False,
        return_special_tokens_mask: bool = False,
        return_offsets_mapping: bool = False,
        return_length: bool = False,
        **others: Any,
    ) -> Options:
        """The settings of a call, checked, with what the tokenizer says where the call says nothing."""
        names = self.model_input_names
        wanted = {
            "token_type_ids": _first_known(return_token_type_ids, "token_type_ids" in names),
            "attention_mask": _first_known(return_attention_mask, "attention_mask" in names),
            "overflowing_tokens": return_overflowing_tokens,
            "special_tokens_mask": return_special_tokens_mask,
            "offsets_mapping": return_offsets_mapping,
            "length": return_length,
        }
        return resolve_options(
            padding=padding,
            truncation=truncation,
            max_length=max_length,
            stride=stride,
            pad_to_multiple_of=pad_to_multiple_of,
            padding_side=self.padding_side if padding_side is None else padding_side,
            truncation_side=self.truncation_side,
            return_tensors=return_tensors,
            model_max_length=self.model_max_length,
            returned=frozenset(name for name, is_wanted in wanted.items() if is_wanted),
            **others,
        )

    def _encode_simply(
        self,
        text: Any,
        add_special_tokens: bool,
        with_mask: bool | None,
        split_special_tokens: bool | None,
        surrogates: str | None,
        verbose: bool,
    ) -> BatchEncoding | None:
        """The answer to a call without settings for a str or a list of str; None for anything else.

        For every object that a long list of texts leaves behind Python looks through all others now and then:
        there are as few of them as can be.
        """
        if "token_type_ids" in self.model_input_names:
            return None
        reading: dict[str, Any] = {"split_special_tokens": split_special_tokens, "surrogates": surrogates}
        ids: Any
        mask: Any
        if type(text) is str:
            ids = self.encode_text(text, **reading).ids
            if add_special_tokens:
                ids = self.build_inputs_with_special_tokens(ids)
            mask, longest = [1] * len(ids), len(ids)
        elif type(text) is list and set(map(type, text)) == {str}:
            ids = [encoding.ids for encoding in self.encode_texts(text, **reading)]
            if add_special_tokens and self._frame(False) != BARE:
                ids = list(map(self.build_inputs_with_special_tokens, ids))
            lengths = list(map(len, ids))
            mask, longest = [[1] * length for length in lengths], max(lengths)
        else:
            return None
        if verbose and longest > self.model_max_length:
            self._warn_of_length(longest)
        if not _first_known(with_mask, "attention_mask" in self.model_input_names):
            columns = {"input_ids": ids}
        else:
            columns = {"input_ids": ids, "attention_mask": mask}
        again = partial(
            self._texts_again,
            self._revision,
            text if type(text) is str else tuple(text),
            {"add_special_tokens": add_special_tokens, **reading},
        )
        return BatchEncoding(columns, again, is_fast=self.overflow_as_rows)

    def _encode_rows(self, inputs: list[tuple[Any, Any]], options: Options, single: bool) -> BatchEncoding:
        """The answer to any call: one row, or with overflow several, for each text or pair of `inputs`."""
        if not inputs:
            raise InputError("the batch is empty", allowed="at least one text")
        with_offsets = "offsets_mapping" in options.returned
        rows, cuts = self._rows(self._read(inputs, options, with_offsets, single), options, single)
        again = partial(self._rows_again, self._revision, inputs, options, single)
        return self._answer(rows, cuts, options, single, rows if with_offsets else again)

    def _answer(
        self,
        rows: list[Encoding],
        cuts: list[assembly.Cut],
        options: Options,
        single: bool,
        encodings: Any = None,
    ) -> BatchEncoding:
        if options.verbose and options.max_length is None:
            self._warn_of_length(max(map(len, rows)))
        make_columns = layout.columns_of_rows if self.overflow_as_rows else layout.columns_beside_overflow
        columns = make_columns(rows, cuts, options, single, self.pad_token_type_id)
        if options.return_tensors is not None:
            columns = layout.to_arrays(columns)
        return BatchEncoding(columns, encodings, is_fast=self.overflow_as_rows)

    def _texts_again(
        self, revision: int, texts: str | tuple[str, ...], settings: dict[str, Any]
    ) -> list[Encoding]:
        listed = [texts] if isinstance(texts, str) else texts
        return self._rows_again(revision, [(text, None) for text in listed], Options(**settings))

    def _rows_again(
        self, revision: int, inputs: list[tuple[Any, Any]], options: Options, single: bool = False
    ) -> list[Encoding]:
        """The rows of an earlier call, now with all they know. Raises: InputError when they may be others now."""
        if revision != self._revision or not self.is_repeatable:
            raise InputError(
                "the tokenizer would not make the same encoding again: it has other tokens now, or draws them",
                hint="Call it with return_offsets_mapping=True to know at once where tokens come from.",
            )
        return self._rows(self._read(inputs, options, self.has_offsets, single), options, single)[0]

    def _read(
        self, inputs: list[tuple[Any, Any]], options: Options, offsets: bool, single: bool
    ) -> list[tuple[TextEncoding, TextEncoding | None]]:
        """The texts of a call, encoded. Raises: as `__call__`; `where` says which text of several."""
        reading: dict[str, Any] = {
            "split_special_tokens": options.split_special_tokens,
            "surrogates": options.surrogates,
            "offsets": offsets,
        }
        firsts, seconds = [one for one, _ in inputs], [other for _, other in inputs if other is not None]
        if set(map(type, firsts + seconds)) == {str} and not single and not options.is_split_into_words:
            first_encodings = self.encode_texts(firsts, **reading)
            second_encodings = iter(self.encode_texts(seconds, **reading) if seconds else [])
            return [
                (first, None if other is None else next(second_encodings))
                for first, (_, other) in zip(first_encodings, inputs, strict=True)
            ]
        encodings = []
        for index, (one, other) in enumerate(inputs):
            try:
                first = self._read_text(one, options, reading)
                encodings.append((first, None if other is None else self._read_text(other, options, reading)))
            except TextInputError as error:
                if not single:
                    error.where = f"text {index}" if error.where is None else f"text {index}, {error.where}"
                raise
        return encodings

    def _read_text(self, text: Any, options: Options, reading: dict[str, Any]) -> TextEncoding:
        """One text in any of the forms that `__call__` takes."""
        if isinstance(text, str):
            return self.encode_text(text, **reading)
        if isinstance(text, list | tuple) and all(isinstance(word, str) for word in text):
            if options.is_split_into_words and (text or self.overflow_as_rows):
                return self._read_words(list(text), reading)
            if text and not reading["offsets"]:
                return TextEncoding(self.convert_tokens_to_ids(text))
        if isinstance(text, list | tuple) and text and not reading["offsets"]:
            ids = [as_integer(index) for index in text]
            if None not in ids:
                return TextEncoding(ids)  # type: ignore[arg-type]
        raise InputError(
            "the text cannot be read",
            found=f"{type(text).__name__} {quote(text)}",
            allowed="str, list of words, list of ids (but these have no offsets), or a list of these",
        )

    def _read_words(self, words: list[str], reading: dict[str, Any]) -> TextEncoding:
        try:
            return join_words(self.encode_texts(words, **reading), reading["offsets"], self._tokens_of)
        except TextInputError as error:
            error.where = str(error.where).replace("text", "word")
            raise

    def _rows(
        self, texts: list[tuple[TextEncoding, TextEncoding | None]], options: Options, single: bool
    ) -> tuple[list[Encoding], list[assembly.Cut]]:
        """The rows of encoded texts, truncated and padded, and how each text or pair was cut."""
        frames: dict[bool, Frame] = {False: BARE, True: BARE}
        if options.add_special_tokens:
            frames = {pair: self._frame(pair) for pair in {second is not None for _, second in texts}}
        if self.overflow_as_rows:
            assembly.check_stride(self.num_special_tokens_to_add(), options)
        cut = assembly.cut_into_rows if self.overflow_as_rows else assembly.shorten
        cuts = [cut(one, other, len(frames[other is not None]), options) for one, other in texts]
        rows, main = [], []
        for parts in cuts:
            pieces = [Encoding(*row, frames[row[1] is not None], self._tokens_of) for row in parts.rows]
            rows += pieces
            main.append(pieces[0])
        if not self.overflow_as_rows and "token_type_ids" in options.returned:
            self._set_types(rows, cuts, options)
        empty = single and not self.overflow_as_rows and not rows[0].ids
        if not empty:  # transformers leaves a single empty text unpadded
            assembly.pad_rows(rows, main, self.pad_token_id, options)
        return rows, cuts

    def _set_types(self, rows: list[Encoding], cuts: list[assembly.Cut], options: Options) -> None:
        for row, cut in zip(rows, cuts, strict=True):
            (first, second), ids = cut.rows[0], [0] * len(row)
            if options.add_special_tokens:
                ids = self.create_token_type_ids_from_sequences(first.ids, second.ids if second else None)
            row.set_types(ids)

    def _tokens_of(self, ids: list[int]) -> list[str]:
        return self.convert_ids_to_tokens(ids)

    def _warn_of_length(self, length: int) -> None:
        if not self._warned_too_long and length > self.model_max_length > 0:
            self._warned_too_long = True
            _LOG.warning("%d ids are more than the model takes (%d)", length, self.model_max_length)

    # ---- other ways to ask for the same

    def _with_labels(
        self,
        inputs: tuple[Any, Any],
        targets: tuple[Any, Any],
        max_target_length: int | None,
        settings: dict[str, Any],
    ) -> BatchEncoding:
        """The encoding of `inputs` with the ids of `targets` as labels; of `targets` alone without inputs."""
        longest = settings["max_length"] if max_target_length is None else max_target_length
        labels = self(*targets, **{**settings, "max_length": longest})
        if inputs[0] is None:
            return labels
        encoding = self(*inputs, **settings)
        encoding["labels"] = labels["input_ids"]
        return encoding

    def encode(self, text: Any, text_pair: Any = None, **options: Any) -> Any:
        """The `input_ids` of `tokenizer(text, text_pair, **options)`."""
        return self(text, text_pair, **options)["input_ids"]

    def encode_plus(self, text: Any, text_pair: Any = None, **options: Any) -> BatchEncoding:
        """`tokenizer(text, text_pair, **options)`, by its name in transformers 4."""
        return self(text, text_pair, **options)

    def batch_encode_plus(self, batch_text_or_text_pairs: Any, **options: Any) -> BatchEncoding:
        """`tokenizer(batch, **options)` for a list of texts or of pairs, by its name in transformers 4."""
        if not isinstance(batch_text_or_text_pairs, list | tuple):
            raise InputError("this is not a batch", found=quote(batch_text_or_text_pairs), allowed="a list")
        return self(batch_text_or_text_pairs, **options)

    def prepare_for_model(
        self,
        ids: list[int],
        pair_ids: list[int] | None = None,
        add_special_tokens: bool = True,
        *,
        prepend_batch_axis: bool = False,
        return_tensors: str | None = None,
        verbose: bool = True,
        **settings: Any,
    ) -> BatchEncoding:
        """One text or pair that is ids already, as `tokenizer(...)` returns one; `settings` as there.

        But `max_length` alone does not truncate.
        Arrays are `[seq]`, or `[1, seq]` with `prepend_batch_axis`.  Raises: InputError.
        """
        if settings.get("return_offsets_mapping"):
            raise InputError("ids do not know where they stand in a text")
        settings = {
            "truncation": False,
            "add_special_tokens": add_special_tokens,
            "verbose": verbose,
            **settings,
        }
        options = self._resolve(**settings)
        second = None if pair_ids is None else TextEncoding(_checked_ids(pair_ids))
        rows, cuts = self._rows([(TextEncoding(_checked_ids(ids)), second)], options, True)
        encoding = self._answer(rows, cuts, options, True)
        return encoding.convert_to_tensors(return_tensors, prepend_batch_axis)

    def truncate_sequences(
        self,
        ids: list[int],
        pair_ids: list[int] | None = None,
        num_tokens_to_remove: int = 0,
        truncation_strategy: str = "longest_first",
        stride: int = 0,
    ) -> tuple[list[int], list[int] | None, list[int]]:
        """A text or a pair without some of its ids, and the ids cut off with `stride` more.

        `longest_first` returns nothing of what it cuts off a pair.  Raises: InputError.
        """
        if num_tokens_to_remove <= 0:
            return ids, pair_ids, []
        options = resolve_options(
            padding=False,
            truncation=truncation_strategy,
            max_length=0,
            stride=stride,
            pad_to_multiple_of=None,
            padding_side=self.padding_side,
            truncation_side=self.truncation_side,
            return_tensors=None,
            model_max_length=NO_LIMIT,
        )
        pair = None if pair_ids is None else TextEncoding(pair_ids)
        if options.truncation == "do_not_truncate":
            return ids, pair_ids, []
        [(first, second)], lost = assembly.remove(TextEncoding(ids), pair, num_tokens_to_remove, options)
        return first.ids, None if second is None else second.ids, lost

    def apply_chat_template(self, *_conversation: Any, **_options: Any) -> Any:
        """Raises: InputError. The models come without a chat template, and a template is a program: none is run."""
        found = (
            "a chat_template that came with the tokenizer" if "chat_template" in self.init_kwargs else None
        )
        raise InputError(
            "chat templates are not run here",
            found=found,
            hint="Write the conversation as the text that the model was trained on, and encode that.",
        )

    # ---- rows that are there already

    def pad(
        self,
        encoded_inputs: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        padding: bool | str = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
        verbose: bool = True,
    ) -> BatchEncoding:
        """An encoding, or a list of encodings, with its rows filled up to one length.

        Arrays are `[batch, seq]`, of a single row `[seq]`.
        Raises: InputError when there are no `input_ids`, or rows and columns do not fit.
        """
        options = resolve_options(
            padding=padding,
            truncation=False,
            max_length=max_length,
            stride=0,
            pad_to_multiple_of=pad_to_multiple_of,
            padding_side=padding_side or self.padding_side,
            truncation_side=self.truncation_side,
            return_tensors=return_tensors,
            model_max_length=self.model_max_length,
        )
        rows, single = layout.as_rows(encoded_inputs)
        if not rows:
            raise InputError("the batch is empty", allowed="at least one row")
        pad_id = self.pad_token_id
        assembly.check_pad_id(pad_id, options)
        if _first_known(return_attention_mask, "attention_mask" in self.model_input_names):
            for row in rows:
                row.setdefault("attention_mask", [1] * len(row["input_ids"]))
        length = assembly.padded_length([len(row["input_ids"]) for row in rows], len(rows), options)
        if not single or rows[0]["input_ids"]:  # transformers leaves a single empty row unpadded
            rows = [
                layout.pad_row(row, length, options.padding_side, pad_id, self.pad_token_type_id)
                for row in rows
            ]
        columns = rows[0] if single else layout.collate(rows)
        return BatchEncoding(columns if return_tensors is None else layout.to_arrays(columns))


_INPUTS = ("self", "text", "text_pair", "text_target", "text_pair_target", "max_target_length")


def _first_known(given: bool | None, default: bool) -> bool:
    return default if given is None else given


def _checked_ids(ids: Any) -> list[int]:
    numbers = [as_integer(index) for index in ids] if isinstance(ids, list | tuple) else [None]
    if None in numbers:
        raise InputError("these are not ids", found=quote(ids), allowed="a list of int")
    return numbers  # type: ignore[return-value]
