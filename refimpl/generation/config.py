"""The settings of `generate()`, with the names and defaults of `generation_config.json`."""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

from refimpl.config import PreTrainedConfig
from refimpl.errors import ConfigError, InputError, quote
from refimpl.hub import resolve
from refimpl.json_reader import read_json_object

GENERATION_CONFIG_NAME = "generation_config.json"

DEFAULT_NEW_TOKENS = 20


@dataclass
class GenerationConfig:
    """How text is generated.

    Raises: InputError for a value that means nothing.
    """

    #: Length of prompt and new tokens together; `max_new_tokens` counts the new ones and wins. None of
    #: the two: 20 new tokens.
    max_length: int | None = None
    max_new_tokens: int | None = None
    #: False: always the likeliest token.  True: draw from the distribution that the next three shape.
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int | None = 50
    top_p: float | None = 1.0
    #: Generation of a row ends with one of these.
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    use_cache: bool = True
    #: Settings of the file that are not known here.
    unused_keys: dict[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.validate()

    def validate(self) -> None:
        for name, low in (("max_length", 1), ("max_new_tokens", 0), ("top_k", 0)):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < low):
                raise _error(name, value, f"a whole number of at least {low}")
        if not _is_number(self.temperature) or not 0 <= self.temperature < float("inf"):
            raise _error(
                "temperature", self.temperature, "a number of at least 0 (0: always the likeliest token)"
            )
        if self.top_p is not None and not (_is_number(self.top_p) and 0 < self.top_p <= 1):
            raise _error("top_p", self.top_p, "a number above 0 and at most 1")
        ids = [*self.eos_token_ids, *(i for i in (self.pad_token_id, self.bos_token_id) if i is not None)]
        for token_id in ids:
            if type(token_id) is not int:
                raise _error(
                    "a special token id", token_id, "a whole number (eos_token_id: or a list of them)"
                )

    @property
    def eos_token_ids(self) -> list[int]:
        """The ids that end a row, as a list."""
        if self.eos_token_id is None:
            return []
        return self.eos_token_id if isinstance(self.eos_token_id, list) else [self.eos_token_id]

    @property
    def is_greedy(self) -> bool:
        return not self.do_sample or self.temperature == 0

    def length_limit(self, prompt_length: int) -> int:
        """How many tokens prompt and new ones may be together."""
        if self.max_new_tokens is not None:
            return prompt_length + self.max_new_tokens
        return self.max_length if self.max_length is not None else prompt_length + DEFAULT_NEW_TOKENS

    def updated(self, **overrides: Any) -> GenerationConfig:
        """A copy with some settings replaced.  Raises: InputError for an unknown one; the nearest is named."""
        known = {f.name for f in fields(self)} - {"unused_keys"}
        for name in overrides:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                raise InputError(
                    "unknown option of generate()",
                    found=quote(name),
                    allowed=", ".join(sorted(known)),
                    hint=f"Did you mean {near[0]}?" if near else None,
                )
        if "max_length" in overrides and "max_new_tokens" not in overrides:
            overrides["max_new_tokens"] = None  # what the caller says wins over the file
        return replace(self, **overrides)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        known = {f.name for f in fields(cls)} - {"unused_keys"}
        config = cls(**{name: value for name, value in values.items() if name in known})
        config.unused_keys = {name: value for name, value in values.items() if name not in known}
        return config

    @classmethod
    def from_model_config(cls, config: PreTrainedConfig) -> Self:
        """The special tokens of a model's config; everything else by default."""
        return cls(
            eos_token_id=config.eos_token_id,
            pad_token_id=config.pad_token_id,
            bos_token_id=config.bos_token_id,
        )

    @classmethod
    def from_pretrained(cls, name_or_path: str | os.PathLike[str], **hub_options: Any) -> Self:
        """From `generation_config.json` of a folder or a Hub repository."""
        path = resolve(name_or_path, GENERATION_CONFIG_NAME, **hub_options)
        assert path is not None
        return cls.from_dict(read_json_object(path, ConfigError))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _error(name: str, value: Any, allowed: str) -> InputError:
    return InputError("not a possible value", where=name, found=quote(value), allowed=allowed)
