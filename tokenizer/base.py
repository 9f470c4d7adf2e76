"""What every tokenizer of this package has in common: everything but the way it cuts text into tokens.

The way of the data: text -> pieces between added tokens -> tokens of the tokenizer's own algorithm ->
ids (`codec.py`) -> truncation, masks, padding (`batch.py`).  A tokenizer class supplies the abstract
methods of `TokenCodec`, the names of its vocabulary files and `save_vocabulary`.
"""

from __future__ import annotations

import logging
import os
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from refimpl.errors import InputError, TextInputError, quote
from refimpl.tokenizer import batch as layout
from refimpl.tokenizer.batch import BatchEncoding, as_integer, resolve_options
from refimpl.tokenizer.codec import TokenCodec
from refimpl.tokenizer.special_tokens import SPECIAL_TOKEN_NAMES

_LOG = logging.getLogger(__name__)


class PreTrainedTokenizer(TokenCodec):
    """Text -> ids -> text, with the names and the behaviour that transformers' tokenizers have.

    Keywords that no tokenizer here knows are kept and written back by `save_pretrained`.
    Raises: InputError for an option with a value that is not allowed.
    """

    vocab_files_names: ClassVar[dict[str, str]] = {}
    model_input_names = ("input_ids", "attention_mask")

    def __init__(
        self,
        vocabulary: Mapping[str, int],
        base_ids: int,
        *,
        model_max_length: int | None = None,
        padding_side: str = "right",
        truncation_side: str = "right",
        name_or_path: str = "",
        **options: Any,
    ):
        special_tokens = {name: options.pop(name, None) for name in SPECIAL_TOKEN_NAMES}
        extra = options.pop("additional_special_tokens", None)
        codec_options = {name: options.pop(name) for name in _CODEC_OPTIONS if name in options}
        codec_options.setdefault("extra_special_tokens", extra)
        self.model_max_length = layout.NO_LIMIT if model_max_length is None else model_max_length
        self.padding_side = layout.check_side("padding_side", padding_side)
        self.truncation_side = layout.check_side("truncation_side", truncation_side)
        self.name_or_path = name_or_path
        self.init_kwargs = options
        self._warned_too_long = False
        super().__init__(vocabulary, base_ids, special_tokens, **codec_options)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(name_or_path={self.name_or_path!r}, vocab_size={self.vocab_size}, "
            f"special_tokens={self.special_tokens_map}, added_tokens={self._added_ids})"
        )

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """How many special tokens encoding puts around a text or a pair of texts."""
        return len(self.build_inputs_with_special_tokens([], [] if pair else None))

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """The ids of one or two texts as the model wants them: here, simply joined."""
        return token_ids_0 + (token_ids_1 or [])

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
        return [0] * (len(token_ids_0) + len(token_ids_1 or []))

    def __call__(
        self,
        text: Any,
        text_pair: Any = None,
        *,
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
        return_length: bool = False,
        split_special_tokens: bool | None = None,
        surrogates: str | None = None,
    ) -> BatchEncoding:
        """The ids of a text, a pair of texts, or a list of either, with their masks.

        A text is a str, a list of ids, or a list of words (with `is_split_into_words`); a list of str as
        the second text, without it, is a list of tokens.
        Shapes: one text gives lists `[seq]`; a list of texts `[batch, seq]`; arrays are `[batch, seq]`.
        Raises: InputError (options, kinds of input, rows of different lengths as an array),
            TextInputError (a text that is not valid Unicode).
        """
        options = resolve_options(
            padding=padding,
            truncation=truncation,
            max_length=max_length,
            stride=stride,
            pad_to_multiple_of=pad_to_multiple_of,
            padding_side=padding_side or self.padding_side,
            truncation_side=self.truncation_side,
            return_tensors=return_tensors,
            model_max_length=self.model_max_length,
        )
        wanted = {
            "token_type_ids": _first_known(return_token_type_ids, "token_type_ids" in self.model_input_names),
            "overflow": return_overflowing_tokens,
            "special_tokens_mask": return_special_tokens_mask,
            "length": return_length,
        }
        reading = {"split_special_tokens": split_special_tokens, "surrogates": surrogates}
        with_mask = _first_known(return_attention_mask, "attention_mask" in self.model_input_names)

        def row(one: Any, other: Any) -> dict[str, Any]:
            ids = self._read_ids(one, is_split_into_words, reading)
            pair_ids = None if other is None else self._read_ids(other, is_split_into_words, reading)
            return self._build_row(ids, pair_ids, options, add_special_tokens, wanted)

        if not layout.is_batch(text, is_split_into_words):
            return self._finish([row(text, text_pair)], options, with_mask, single=True)
        rows = []
        for index, (one, other) in enumerate(layout.pairs(text, text_pair, is_split_into_words)):
            try:
                rows.append(row(one, other))
            except TextInputError as error:
                error.where = f"text {index}"
                raise
        return self._finish(rows, options, with_mask)

    def encode(self, text: Any, text_pair: Any = None, **options: Any) -> Any:
        """The `input_ids` of `tokenizer(text, text_pair, **options)`."""
        return self(text, text_pair, **options)["input_ids"]

    def _read_ids(self, text: Any, is_split_into_words: bool, reading: dict[str, Any]) -> list[int]:
        """The ids of one text in any of the forms that `__call__` takes."""
        if isinstance(text, str):
            return self.convert_tokens_to_ids(self.tokenize(text, **reading))
        if isinstance(text, list | tuple) and text and all(isinstance(word, str) for word in text):
            if not is_split_into_words:
                return self.convert_tokens_to_ids(text)
            return self.convert_tokens_to_ids(
                [token for word in text for token in self.tokenize(word, **reading)]
            )
        if isinstance(text, list | tuple) and text:
            ids = [as_integer(index) for index in text]
            if None not in ids:
                return ids  # type: ignore[return-value]
        raise InputError(
            "the text cannot be read",
            found=f"{type(text).__name__} {quote(text)}",
            allowed="str, list of words, list of ids, or a list of these",
        )

    def _build_row(
        self,
        ids: list[int],
        pair_ids: list[int] | None,
        options: layout.Options,
        add_special_tokens: bool,
        wanted: dict[str, bool],
    ) -> dict[str, Any]:
        """One row of a batch before padding: truncated, with its special tokens."""
        if wanted["overflow"] and options.truncation == "longest_first" and pair_ids is not None:
            raise InputError(
                'truncation="longest_first" of a pair returns no overflowing tokens',
                allowed='truncation="only_first" or "only_second"',
            )
        extra = self.num_special_tokens_to_add(pair_ids is not None) if add_special_tokens else 0
        excess = len(ids) + len(pair_ids or []) + extra - (options.max_length or 0)
        overflow: list[int] = []
        if options.truncation != "do_not_truncate" and options.max_length and excess > 0:
            ids, pair_ids, overflow = layout.truncate(ids, pair_ids, excess, options)
        if add_special_tokens:
            whole = self.build_inputs_with_special_tokens(ids, pair_ids)
            types = self.create_token_type_ids_from_sequences(ids, pair_ids)
            mask = self.get_special_tokens_mask(ids, pair_ids)
        else:
            whole = ids + (pair_ids or [])
            types = mask = [0] * len(whole)
        if options.max_length is None and len(whole) > self.model_max_length and not self._warned_too_long:
            self._warned_too_long = True
            _LOG.warning("%d ids are more than the model takes (%d)", len(whole), self.model_max_length)
        row: dict[str, Any] = {"input_ids": whole}
        row |= {"token_type_ids": types} if wanted["token_type_ids"] else {}
        row |= {"special_tokens_mask": mask} if wanted["special_tokens_mask"] else {}
        row |= (
            {"overflowing_tokens": overflow, "num_truncated_tokens": excess}
            if wanted["overflow"] and overflow
            else {}
        )
        row |= {"length": len(whole)} if wanted["length"] else {}
        return row

    def pad(
        self,
        encoded_inputs: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        padding: bool | str = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
    ) -> BatchEncoding:
        """An encoding, or a list of encodings, with its rows filled up to one length.

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
        with_mask = _first_known(return_attention_mask, "attention_mask" in self.model_input_names)
        return self._finish(rows, options, with_mask, single=single)

    def _finish(
        self, rows: list[dict[str, Any]], options: layout.Options, with_mask: bool, single: bool = False
    ) -> BatchEncoding:
        """Rows -> one encoding: attention masks, padding, columns, arrays."""
        if not rows:
            raise InputError("the batch is empty", allowed="at least one text")
        if options.padding != "do_not_pad" and self.pad_token_id is None:
            raise InputError(
                "there is no token to pad with", hint="Set one: tokenizer.pad_token = tokenizer.eos_token"
            )
        for row in rows:
            if with_mask:
                row.setdefault("attention_mask", [1] * len(row["input_ids"]))
        length = layout.padded_length([len(row["input_ids"]) for row in rows], options)
        if not single or rows[0]["input_ids"]:  # transformers leaves a single empty text unpadded
            rows = [layout.pad_row(row, length, options.padding_side, self.pad_token_id) for row in rows]
        columns: dict[str, Any] = dict(rows[0]) if single else layout.collate(rows)
        if single and "length" in columns:  # after padding here, before it in a batch: as in transformers
            del columns["length"]
            columns["length"] = len(columns["input_ids"])
        if options.return_tensors is None:
            return BatchEncoding(columns)
        return BatchEncoding(layout.to_arrays({k: [v] for k, v in columns.items()} if single else columns))

    # ---- files

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        **options: Any,
    ) -> Self:
        """The tokenizer of a folder or of a repository on the Hub; `options` go before its own settings.

        Raises: MissingFileError, TokenizerFileError; InputError for `options`.
        """
        from refimpl.tokenizer.pretrained_files import load

        return load(
            cls,
            pretrained_model_name_or_path,
            options,
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            local_files_only=local_files_only,
            force_download=force_download,
        )

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        """Writes everything that `from_pretrained` needs, creating the folder.

        Returns: the paths of the files. Raises: SaveError.
        """
        from refimpl.tokenizer.pretrained_files import save

        return save(self, save_directory, filename_prefix)

    def saved_options(self) -> dict[str, Any]:
        """The settings that go into `tokenizer_config.json`, beside the special and added tokens."""
        return {
            **self.init_kwargs,
            "clean_up_tokenization_spaces": self.clean_up_tokenization_spaces,
            "model_max_length": self.model_max_length,
            "padding_side": self.padding_side,
            "truncation_side": self.truncation_side,
            **({"split_special_tokens": True} if self.split_special_tokens else {}),
            **({"surrogates": self.surrogates} if self.surrogates != "strict" else {}),
        }

    @abstractmethod
    def save_vocabulary(
        self, save_directory: str | os.PathLike[str], filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        """Writes the vocabulary files alone. Returns: their paths. Raises: SaveError."""


_CODEC_OPTIONS = (
    "extra_special_tokens",
    "added_tokens_decoder",
    "clean_up_tokenization_spaces",
    "split_special_tokens",
    "surrogates",
)


def _first_known(given: bool | None, default: bool) -> bool:
    return default if given is None else given
