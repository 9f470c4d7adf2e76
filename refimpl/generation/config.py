"""The settings of `generate()`, with the names and defaults of `generation_config.json`."""

from __future__ import annotations

import difflib
import os
import warnings
from dataclasses import dataclass, field, replace
from typing import Any, Self

from refimpl.config import PreTrainedConfig
from refimpl.errors import ConfigError, InputError, quote
from refimpl.generation import values
from refimpl.hub import resolve
from refimpl.json_reader import read_json_object

GENERATION_CONFIG_NAME = "generation_config.json"

DEFAULT_NEW_TOKENS = 20

#: What holds where neither the call nor the model says anything.  Every other option then changes nothing.
DEFAULTS = {
    "do_sample": False,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "repetition_penalty": 1.0,
    "num_beams": 1,
    "length_penalty": 1.0,
    "early_stopping": False,
    "num_return_sequences": 1,
    "max_matching_ngram_size": 2,
    "use_cache": True,
    "context_overflow": "continue",
}

#: Options of transformers that change the text and are not offered here, with the value that changes nothing.
NOT_OFFERED = {
    "num_beam_groups": 1, "diversity_penalty": 0.0, "constraints": None, "force_words_ids": None,
    "penalty_alpha": 0.0, "low_memory": False, "dola_layers": None, "assistant_model": None,
    "assistant_tokenizer": None, "is_assistant": False, "assistant_early_exit": None,
    "num_assistant_tokens": 20, "num_assistant_tokens_schedule": "constant",
    "assistant_confidence_threshold": 0.4,
    "assistant_lookbehind": 10, "target_lookbehind": 10, "assistant_ensemble_weight": None,
    "speculation_type": None, "use_mtp": None, "token_healing": False, "watermarking_config": None,
    "cache_config": None, "max_cache_len": None,
    "compile_config": None, "disable_compile": None, "prefill_chunk_size": None, "synced_gpus": False,
    "decoder_start_token_id": None,
}  # fmt: skip

#: What each option may be.
CHECKS: dict[str, values.Check] = {
    "max_length": values.whole(1),
    "max_new_tokens": values.whole(0),
    "min_length": values.whole(0),
    "min_new_tokens": values.whole(0),
    "max_time": values.not_negative,
    "stop_strings": values.strings,
    "do_sample": values.flag,
    "temperature": values.temperature,
    "top_k": values.whole(0, "0: all tokens"),
    "top_p": values.share,
    "min_p": values.threshold,
    "top_h": values.share,
    "typical_p": values.share,
    "epsilon_cutoff": values.cutoff,
    "eta_cutoff": values.cutoff,
    "repetition_penalty": values.factor("1: no change"),
    "encoder_repetition_penalty": values.factor("1: no change"),
    "no_repeat_ngram_size": values.whole(0, "0: anything may be repeated"),
    "encoder_no_repeat_ngram_size": values.whole(0, "0: anything may be repeated"),
    "bad_words_ids": values.sequences,
    "sequence_bias": values.biased_sequences,
    "suppress_tokens": values.token_ids,
    "begin_suppress_tokens": values.token_ids,
    "forced_bos_token_id": values.special_token,
    "forced_eos_token_id": values.special_tokens,
    "exponential_decay_length_penalty": values.decay,
    "guidance_scale": values.not_negative,
    "remove_invalid_values": values.flag,
    "renormalize_logits": values.flag,
    "eos_token_id": values.special_tokens,
    "pad_token_id": values.special_token,
    "bos_token_id": values.special_token,
    "num_beams": values.whole(1),
    "length_penalty": values.real(lambda value: True, "a number"),
    "early_stopping": values.early_stopping,
    "num_return_sequences": values.whole(1),
    "prompt_lookup_num_tokens": values.whole(1),
    "max_matching_ngram_size": values.whole(1),
    "return_dict_in_generate": values.flag,
    "output_scores": values.flag,
    "output_logits": values.flag,
    "output_attentions": values.flag,
    "output_hidden_states": values.flag,
    "use_cache": values.flag,
    "cache_implementation": values.one_of("dynamic", "static"),
    "cache_dtype": values.one_of("float32", "float16", "bfloat16"),
    "context_overflow": values.one_of("continue", "stop", "error", "slide"),
}

#: Two names of one limit: whoever says one of them has said both.
_LIMITS = (("max_length", "max_new_tokens"), ("min_length", "min_new_tokens"))


@dataclass(init=False)
class GenerationConfig:
    """How text is generated.  None: not said here; the model's settings, then `DEFAULTS`, fill it in.

    docs/generation.md says what each option does.
    Raises: InputError for a value that means nothing, an option that is unknown (the nearest is named) or not
    offered, and options that contradict each other.
    """

    #: Length of prompt and new tokens together; `max_new_tokens` counts the new ones and wins. None of
    #: the two: 20 new tokens.
    max_length: int | None = None
    max_new_tokens: int | None = None
    #: No row ends with `eos_token_id` before this length; `min_new_tokens` counts the new ones and wins.
    min_length: int | None = None
    min_new_tokens: int | None = None
    max_time: float | None = None  # in seconds
    #: A row ends with the token that completes one of these; needs `tokenizer=` in the call.
    stop_strings: str | list[str] | None = None
    #: False: always the likeliest token.  True: draw from the distribution that these eight shape.
    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None  # 0: all tokens
    top_p: float | None = None
    min_p: float | None = None
    top_h: float | None = None
    typical_p: float | None = None
    epsilon_cutoff: float | None = None
    eta_cutoff: float | None = None
    #: Above 1: what stands in the text already gets less likely.  This and all that follow work when
    #: `do_sample` is False too.
    repetition_penalty: float | None = None
    encoder_repetition_penalty: float | None = None
    no_repeat_ngram_size: int | None = None
    encoder_no_repeat_ngram_size: int | None = None
    bad_words_ids: list[list[int]] | None = None
    sequence_bias: Any = None  # kept as [[[id, ...], bias], ...]
    suppress_tokens: list[int] | None = None
    begin_suppress_tokens: list[int] | None = None
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | list[int] | None = None
    exponential_decay_length_penalty: Any = None  # [start, factor]
    guidance_scale: float | None = None
    remove_invalid_values: bool | None = None
    renormalize_logits: bool | None = None
    #: Generation of a row ends with one of these; [] means with none.
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    #: Above 1: so many texts are followed at once, and the likeliest wins.  Long texts are judged by their
    #: log-probability over length ** length_penalty; when to stop looking, early_stopping says.
    num_beams: int | None = None
    length_penalty: float | None = None
    early_stopping: bool | str | None = None  # True, False or "never"
    num_return_sequences: int | None = None  # for each prompt
    #: Guess up to so many tokens from what followed the last ones before: the same text in fewer steps.
    prompt_lookup_num_tokens: int | None = None
    max_matching_ngram_size: int | None = None
    #: An object with all of these that are asked for, instead of the ids alone.
    return_dict_in_generate: bool | None = None
    output_scores: bool | None = None
    output_logits: bool | None = None
    output_attentions: bool | None = None
    output_hidden_states: bool | None = None
    use_cache: bool | None = None
    cache_implementation: str | None = None  # "dynamic" or "static"
    cache_dtype: str | None = None  # "float16" and "bfloat16" round what it keeps
    #: At `max_position_embeddings`: "continue" (with a warning), "stop", "error" or "slide".
    context_overflow: str | None = None
    #: Settings of the file that are not known here.
    unused_keys: dict[str, Any] = field(default_factory=dict, repr=False)

    def __init__(self, *, unused_keys: dict[str, Any] | None = None, **options: Any) -> None:
        options = _offered(options)
        for name, check in CHECKS.items():
            value = options.get(name)
            setattr(self, name, None if value is None else check(name, value))
        self.unused_keys = {} if unused_keys is None else unused_keys
        suppressed = set(self.suppress_tokens or ())
        bos = [] if self.forced_bos_token_id is None else [self.forced_bos_token_id]
        for name, forced in (
            ("forced_bos_token_id", bos),
            ("forced_eos_token_id", self.forced_eos_token_ids),
        ):
            if forced and suppressed.issuperset(forced):
                raise InputError(
                    "what is forced must not be suppressed",
                    where=name,
                    found=f"{quote(forced)} in suppress_tokens",
                    hint="Use min_new_tokens to prevent an early end.",
                )

    @property
    def eos_token_ids(self) -> list[int]:
        """The ids that end a row, as a list."""
        return _as_list(self.eos_token_id)

    @property
    def forced_eos_token_ids(self) -> list[int]:
        return _as_list(self.forced_eos_token_id)

    @property
    def stop_string_list(self) -> list[str]:
        return _as_list(self.stop_strings)

    @property
    def asked_outputs(self) -> tuple[str, ...]:
        """Which outputs beside the ids are asked for, whether there is something to show them or not."""
        names = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")
        return tuple(name for name in names if getattr(self, name))

    @property
    def needed_outputs(self) -> tuple[str, ...]:
        """Which of them are to be recorded."""
        return self.asked_outputs if self.return_dict_in_generate else ()

    @property
    def is_greedy(self) -> bool:
        return not self.do_sample or self.temperature == 0

    def length_limit(self, prompt_length: int) -> int:
        """How many tokens prompt and new ones may be together."""
        if self.max_new_tokens is not None:
            return prompt_length + self.max_new_tokens
        return self.max_length if self.max_length is not None else prompt_length + DEFAULT_NEW_TOKENS

    def length_minimum(self, prompt_length: int) -> int:
        """How many tokens prompt and new ones must be together before a row may end."""
        if self.min_new_tokens is not None:
            return prompt_length + self.min_new_tokens
        return self.min_length or 0

    def updated(self, **overrides: Any) -> GenerationConfig:
        """A copy with some settings replaced; None leaves a setting as it is.

        Raises: InputError for an option that is unknown (the nearest is named) or not offered.
        """
        given = {name: value for name, value in _offered(overrides).items() if value is not None}
        for length, new_tokens in _LIMITS:
            if length in given and new_tokens not in given:
                given[new_tokens] = None  # the later word wins
        return replace(self, **given)

    def completed(self, other: GenerationConfig) -> GenerationConfig:
        """What is not said here, as `other` says it, or else by default."""
        both = {name: getattr(self, name) for name in CHECKS}
        said = {name for limit in _LIMITS for name in limit if any(both[one] is not None for one in limit)}
        for name, value in both.items():
            if value is None and name not in said:
                both[name] = getattr(other, name)
            if both[name] is None:
                both[name] = DEFAULTS.get(name)
        return GenerationConfig(**both)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """From the content of a `generation_config.json`.  It warns of options that change the text elsewhere."""
        config = cls(**{name: value for name, value in values.items() if name in CHECKS})
        config.unused_keys = {name: value for name, value in values.items() if name not in CHECKS}
        ignored = [
            f"{name}={quote(value)}"
            for name, value in config.unused_keys.items()
            if name in NOT_OFFERED and not _changes_nothing(name, value)
        ]
        if ignored:
            warnings.warn(
                f"generation settings of the model that are not offered here: {', '.join(ignored)}",
                stacklevel=4,
            )
        return config

    @classmethod
    def from_model_config(cls, config: PreTrainedConfig) -> Self:
        """What a model's config says: its special tokens, and options of `generate()` that old files hold there.

        Raises: ConfigError for an option with a value that means nothing.
        """
        said = {name: value for name, value in config.unused_keys.items() if name in CHECKS}
        said |= {name: getattr(config, name) for name in ("eos_token_id", "pad_token_id", "bos_token_id")}
        try:
            return cls(**said)
        except InputError as error:
            raise ConfigError(str(error), where="config.json") from error

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


def _offered(options: dict[str, Any]) -> dict[str, Any]:
    """Without those that are not offered and change nothing.  Raises: InputError for what is left of these."""
    kept = {}
    for name, value in options.items():
        if name in CHECKS:
            kept[name] = value
        elif name not in NOT_OFFERED or not _changes_nothing(name, value):
            is_known = name in NOT_OFFERED
            near = [] if is_known else difflib.get_close_matches(name, CHECKS, n=1)
            raise InputError(
                "not offered by generate()" if is_known else "unknown option of generate()",
                found=f"{name}={quote(value)}",
                allowed=", ".join(sorted(CHECKS)),
                hint=f"Did you mean {near[0]}?" if near else None,
            )
    return kept


def _changes_nothing(name: str, value: Any) -> bool:
    return value is None or (isinstance(value, bool | int | float | str) and value == NOT_OFFERED[name])


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]
