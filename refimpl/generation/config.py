"""The settings of `generate()`, with the names and defaults of `generation_config.json`."""

from __future__ import annotations

import difflib
import numbers
import operator
import os
import warnings
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

from refimpl.config import PreTrainedConfig
from refimpl.errors import ConfigError, InputError, quote
from refimpl.hub import resolve
from refimpl.json_reader import read_json_object

GENERATION_CONFIG_NAME = "generation_config.json"

DEFAULT_NEW_TOKENS = 20

#: What holds where neither the call nor the model says anything.
DEFAULTS = {
    "do_sample": False,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "repetition_penalty": 1.0,
    "use_cache": True,
}

#: Options of transformers that change the text and are not offered here, with the value that changes nothing.
NOT_OFFERED = {
    "num_beams": 1, "num_return_sequences": 1, "no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0, "length_penalty": 1.0, "early_stopping": False, "min_length": 0,
    "min_new_tokens": 0, "min_p": 0.0, "typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0,
    "bad_words_ids": None, "suppress_tokens": None, "begin_suppress_tokens": None, "forced_bos_token_id": None,
    "forced_eos_token_id": None, "sequence_bias": None, "exponential_decay_length_penalty": None,
    "guidance_scale": 1.0, "stop_strings": None, "max_time": None, "penalty_alpha": 0.0,
    "renormalize_logits": False, "prompt_lookup_num_tokens": None, "return_dict_in_generate": False,
}  # fmt: skip


@dataclass
class GenerationConfig:
    """How text is generated.  None: not said here; the model's settings, then `DEFAULTS`, fill it in.

    Raises: InputError for a value that means nothing.
    """

    #: Length of prompt and new tokens together; `max_new_tokens` counts the new ones and wins. None of
    #: the two: 20 new tokens.
    max_length: int | None = None
    max_new_tokens: int | None = None
    #: False: always the likeliest token.  True: draw from the distribution that the next three shape.
    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None  # 0: all tokens
    top_p: float | None = None
    #: Above 1: what stands in the text already gets less likely, also when `do_sample` is False.
    repetition_penalty: float | None = None
    #: Generation of a row ends with one of these; [] means with none.
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    use_cache: bool | None = None
    #: Settings of the file that are not known here.
    unused_keys: dict[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        for name, low in (("max_length", 1), ("max_new_tokens", 0), ("top_k", 0)):
            value = getattr(self, name)
            if value is not None:
                setattr(self, name, _whole_number(name, value, low, f"a whole number of at least {low}"))
        if self.temperature is not None and not (_is_real(self.temperature) and 0 <= self.temperature < 1e9):
            raise _error(
                "temperature", self.temperature, "a number of at least 0 (0: always the likeliest token)"
            )
        if self.top_p is not None and not (_is_real(self.top_p) and 0 < self.top_p <= 1):
            raise _error("top_p", self.top_p, "a number above 0 and at most 1")
        penalty = self.repetition_penalty
        if penalty is not None and not (_is_real(penalty) and 0 < penalty < 1e9):
            raise _error("repetition_penalty", penalty, "a number above 0 (1: no change)")
        for name in ("do_sample", "use_cache"):
            if not isinstance(getattr(self, name), bool | None):
                raise _error(name, getattr(self, name), "True or False")
        for token_id in [*self.eos_token_ids, self.pad_token_id, self.bos_token_id]:
            if token_id is not None:
                _whole_number("a special token id", token_id, None, "a whole number (eos: or a list of them)")

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
        """A copy with some settings replaced; None leaves a setting as it is.

        Raises: InputError for an option that is unknown (the nearest is named) or not offered.
        """
        known = self._known()
        for name, value in overrides.items():
            if name in NOT_OFFERED and (value is None or value == NOT_OFFERED[name]):
                continue
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                raise InputError(
                    "not offered by generate()" if name in NOT_OFFERED else "unknown option of generate()",
                    found=f"{name}={quote(value)}",
                    allowed=", ".join(sorted(known)),
                    hint=f"Did you mean {near[0]}?" if near else None,
                )
        given = {name: value for name, value in overrides.items() if name in known and value is not None}
        if "max_length" in given and "max_new_tokens" not in given:
            given["max_new_tokens"] = None  # the later word wins
        return replace(self, **given)

    def completed(self, other: GenerationConfig) -> GenerationConfig:
        """What is not said here, as `other` says it, or else by default."""
        both = {name: getattr(self, name) for name in self._known()}
        has_length = self.max_length is not None or self.max_new_tokens is not None
        for name, value in both.items():
            if value is None and not (has_length and name in ("max_length", "max_new_tokens")):
                both[name] = getattr(other, name)
            if both[name] is None:
                both[name] = DEFAULTS.get(name)
        return GenerationConfig(**both)

    @classmethod
    def _known(cls) -> list[str]:
        return [f.name for f in fields(cls) if f.name != "unused_keys"]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """From the content of a `generation_config.json`.  It warns of options that change the text elsewhere."""
        known = cls._known()
        config = cls(**{name: value for name, value in values.items() if name in known})
        config.unused_keys = {name: value for name, value in values.items() if name not in known}
        ignored = [
            f"{name}={quote(value)}"
            for name, value in config.unused_keys.items()
            if name in NOT_OFFERED and value is not None and value != NOT_OFFERED[name]
        ]
        if ignored:
            warnings.warn(
                f"generation settings of the model that are not offered here: {', '.join(ignored)}",
                stacklevel=4,
            )
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
        """From `generation_config.json` of a folder or a Hub repository.  Raises: MissingFileError, ConfigError."""
        path = resolve(name_or_path, GENERATION_CONFIG_NAME, **hub_options)
        assert path is not None
        try:
            return cls.from_dict(read_json_object(path, ConfigError))
        except InputError as error:
            raise ConfigError(str(error), where=path) from error


def settings_of_model(name_or_path: str | os.PathLike[str], **hub_options: Any) -> GenerationConfig | None:
    """The settings that a model's files hold, or None where they hold none."""
    if resolve(name_or_path, GENERATION_CONFIG_NAME, required=False, **hub_options) is None:
        return None
    return GenerationConfig.from_pretrained(name_or_path, **hub_options)


def _is_real(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _whole_number(name: str, value: Any, low: int | None, allowed: str) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise _error(name, value, allowed) from None
    if isinstance(value, bool) or not (low is None or low <= number) or number >= 1 << 31:
        raise _error(name, value, allowed)
    return number


def _error(name: str, value: Any, allowed: str) -> InputError:
    return InputError("not a possible value", where=name, found=quote(value), allowed=allowed)
