"""What every tokenizer of this package has in common: everything but the way it cuts text into tokens.

The way of the data: text -> pieces between added tokens -> tokens of the tokenizer's own algorithm ->
ids (`codec.py`) -> truncation, padding, columns (`calls.py`).  A tokenizer class supplies the abstract methods of
`TokenCodec`, the names of its vocabulary files and `save_vocabulary`.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from refimpl.errors import InputError, quote
from refimpl.tokenizer.calls import TokenizerCalls
from refimpl.tokenizer.options import NO_LIMIT, check_side
from refimpl.tokenizer.special_tokens import SPECIAL_TOKEN_NAMES


class PreTrainedTokenizer(TokenizerCalls):
    """Text -> ids -> text, with the names and the behaviour that transformers' tokenizers have.

    Keywords that no tokenizer here knows are kept and written back by `save_pretrained`.
    Raises: InputError for an option with a value that is not allowed.
    """

    vocab_files_names: ClassVar[dict[str, str]] = {}

    #: Sets of these files of which one suffices, the best first; empty: all are needed.
    vocab_files_groups: ClassVar[tuple[tuple[str, ...], ...]] = ()

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
        self.model_max_length = NO_LIMIT if model_max_length is None else model_max_length
        self.padding_side = check_side("padding_side", padding_side)
        self.truncation_side = check_side("truncation_side", truncation_side)
        self.name_or_path = name_or_path
        self.init_kwargs = options
        self.model_input_names = _names(options.get("model_input_names", self.model_input_names))
        self.pad_token_type_id = options.get("pad_token_type_id", 0)
        super().__init__(vocabulary, base_ids, special_tokens, **codec_options)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(name_or_path={self.name_or_path!r}, vocab_size={self.vocab_size}, "
            f"special_tokens={self.special_tokens_map}, added_tokens={self._added_ids})"
        )

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

    def save_files(
        self, save_directory: str | os.PathLike[str], filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        """Writes the files from which `from_pretrained` takes the vocabulary. Returns: their paths."""
        return self.save_vocabulary(save_directory, filename_prefix)

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


def _names(names: Any) -> Sequence[str]:
    if isinstance(names, list | tuple) and all(isinstance(name, str) for name in names):
        return names
    raise InputError("model_input_names is not a list of names", found=quote(names))
