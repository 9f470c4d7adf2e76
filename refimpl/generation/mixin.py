"""`generate()`: from a prompt to new tokens."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from refimpl.backends.base import Backend
from refimpl.cache import DynamicCache
from refimpl.config_base import PreTrainedConfig
from refimpl.errors import InputError, quote
from refimpl.generation.chain import ScoreProcessing, check_in_vocabulary
from refimpl.generation.config import GenerationConfig, settings_of_model
from refimpl.generation.logits import choose
from refimpl.generation.processors import PADDING, ClassifierFreeGuidance, LogitsProcessor
from refimpl.generation.random import fresh_seed
from refimpl.generation.stopping import StoppingCriterion, StopStrings, TimeLimit
from refimpl.inputs import as_id_array, check_seed, host_array


class GenerationMixin:
    """Gives a language model `generate()`."""

    config: PreTrainedConfig
    backend: Backend
    _generation_config: GenerationConfig | None = None

    @property
    def generation_config(self) -> GenerationConfig:
        """The settings that `generate()` starts from: `generation_config.json`, else the model's config."""
        if self._generation_config is None:
            self._generation_config = GenerationConfig.from_model_config(self.config)
        return self._generation_config

    @generation_config.setter
    def generation_config(self, value: GenerationConfig) -> None:
        self._generation_config = value

    def load_generation_config(self, name_or_path: str | os.PathLike[str], **hub_options: Any) -> None:
        """Take the settings from the model's files, where they have any."""
        self._generation_config = settings_of_model(name_or_path, **hub_options)

    def generate(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        generation_config: GenerationConfig | None = None,
        streamer: Any = None,
        logits_processor: LogitsProcessor | Sequence[LogitsProcessor] | None = None,
        stopping_criteria: StoppingCriterion | Sequence[StoppingCriterion] | None = None,
        seed: int | None = None,
        tokenizer: Any = None,
        negative_prompt_ids: Any = None,
        negative_prompt_attention_mask: Any = None,
        **overrides: Any,
    ) -> np.ndarray:
        """The prompts with their continuations.  [batch, seq] -> [batch, seq + new], int64 on the host

        input_ids: prompts of equal length; shorter ones padded on the left, with 0 in `attention_mask`.
            None: start from `bos_token_id`.
        generation_config: settings; what they leave open, `self.generation_config` says. `overrides`
            (max_new_tokens=..., do_sample=..., temperature=..., repetition_penalty=..., eos_token_id=..., ...)
            win over both. docs/generation.md has them all.
        streamer: an object with `put(ids)`, called with the prompt and then with each token, and `end()`.
        logits_processor: functions that change the scores before a token is chosen; they come after those of
            the settings and before the filters of sampling, and get float64.
        stopping_criteria: functions of the ids and the changed scores; a row ends where one says true.
        seed: of sampling; None draws a new one. With equal seeds a row gets equal text, whatever its
            neighbours are.
        tokenizer: what `stop_strings` are looked for with.
        negative_prompt_ids, negative_prompt_attention_mask: what `guidance_scale` leads away from, `[batch, any]`.

        A row ends with `eos_token_id`; rows that ended are filled up with `pad_token_id` (by default the
        first eos id).
        Raises: InputError for prompts, masks or options that mean nothing or contradict each other;
            NumericalError for NaN logits, and where every token is ruled out.
        """
        given = (generation_config or GenerationConfig()).updated(**overrides)
        hint = "Use eos_token_id=[] to end with none."
        check_in_vocabulary("eos_token_id", given.eos_token_ids, self.config.vocab_size, hint)
        config = given.completed(self.generation_config)
        if input_ids is None:
            if config.bos_token_id is None:
                raise InputError("without a prompt there must be a bos_token_id", where="input_ids")
            input_ids = [[config.bos_token_id]]
        ids = as_id_array(input_ids, self.config.vocab_size).copy()
        mask = prompt_mask(ids, attention_mask, config)
        check_lengths(config, ids.shape[1])
        guidance = self._guidance(config, len(ids), negative_prompt_ids, negative_prompt_attention_mask)
        processing = ScoreProcessing(
            config,
            np.where(mask == 1, ids, PADDING),
            config.length_limit(ids.shape[1]),
            self.config.vocab_size,
            _functions(logits_processor, "logits_processor"),
            guidance,
        )
        criteria: list[StoppingCriterion] = [*_functions(stopping_criteria, "stopping_criteria")]
        if config.max_time is not None:
            criteria.append(TimeLimit(config.max_time))
        if config.stop_string_list:
            criteria.append(StopStrings(tokenizer, config.stop_string_list, mask))
        seed = fresh_seed() if seed is None else check_seed(seed)
        if streamer is not None:
            streamer.put(ids.copy())
        try:
            for longer in self._steps(ids, mask, config, processing, criteria, seed):
                ids = longer
                if streamer is not None:
                    streamer.put(ids[:, -1].copy())
        finally:
            # Also when interrupted: what was generated has then been handed over completely.
            if streamer is not None:
                streamer.end()
        return ids

    def _steps(
        self,
        ids: np.ndarray,
        mask: np.ndarray,
        config: GenerationConfig,
        processing: ScoreProcessing,
        criteria: Sequence[StoppingCriterion],
        seed: int,
    ) -> Iterator[np.ndarray]:
        """The ids after each step: [batch, seq + 1], [batch, seq + 2], ..."""
        pad_id = fill_id(config, self.config.vocab_size)
        finished = np.zeros(len(ids), dtype=bool)
        cache = DynamicCache() if config.use_cache else None
        limit = config.length_limit(ids.shape[1])
        while ids.shape[1] < limit and not finished.all():
            scores = processing(ids, mask, self._next_logits(ids, mask, cache))
            next_ids = np.array([pad_id] * len(ids))
            for row in np.flatnonzero(~finished).tolist():
                position = int(mask[row].sum())  # of the real text: padding on the left changes nothing
                next_ids[row] = choose(scores[row], config.is_greedy, seed, row, position)
            ids = np.concatenate([ids, next_ids[:, None]], axis=1)
            mask = np.concatenate([mask, np.ones((len(ids), 1), mask.dtype)], axis=1)
            finished |= np.isin(next_ids, config.eos_token_ids)
            for is_done in criteria:
                finished = finished | np.asarray(is_done(ids, scores), dtype=bool)
            yield ids

    def _guidance(
        self, config: GenerationConfig, rows: int, negative_ids: Any, negative_mask: Any
    ) -> ClassifierFreeGuidance | None:
        """What `guidance_scale` asks for, with a cache of its own."""
        if config.guidance_scale in (None, 1):
            return None
        ids = None if negative_ids is None else as_id_array(negative_ids, self.config.vocab_size)
        if ids is not None and len(ids) != rows:
            raise InputError(
                "must have a row for each prompt",
                where="negative_prompt_ids",
                found=f"shape {list(ids.shape)}",
                allowed=f"[{rows}, any]",
            )
        name = "negative_prompt_attention_mask"
        start = None if ids is None else prompt_mask(ids, negative_mask, config, name)
        cache = DynamicCache() if config.use_cache else None

        def next_logits(ids: np.ndarray) -> np.ndarray:
            mask = np.ones_like(ids)
            if start is not None:
                mask[:, : start.shape[1]] = start
            return self._next_logits(ids, mask, cache)

        return ClassifierFreeGuidance(config.guidance_scale, next_logits, ids)

    def _next_logits(self, ids: np.ndarray, mask: np.ndarray, cache: DynamicCache | None) -> np.ndarray:
        """The logits after the last token.  The tokens that the cache holds are not computed again."""
        past = 0 if cache is None else cache.get_seq_length()
        positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
        outputs = self(  # type: ignore[operator]
            input_ids=ids[:, past:],
            attention_mask=mask,
            position_ids=positions[:, past:],
            past_key_values=cache,
            use_cache=cache is not None,
            output_attentions=False,
            output_hidden_states=False,
            return_dict=True,
            logits_to_keep=1,
        )
        return self.backend.to_numpy(outputs.logits)[:, -1]


def prompt_mask(
    ids: np.ndarray, attention_mask: Any, config: GenerationConfig, name: str = "attention_mask"
) -> np.ndarray:
    """1 for a token, 0 for padding.  [batch, seq] -> [batch, seq]

    Without a mask, `pad_token_id` is padding, unless it is an eos id too (then nobody can tell).
    Raises: InputError for a mask of another shape, a row without tokens, or padding on the right.
    """
    if attention_mask is None:
        pad_id = config.pad_token_id
        is_padding = pad_id is not None and pad_id not in config.eos_token_ids and (ids == pad_id).any()
        mask = (ids != pad_id if is_padding else np.ones_like(ids)).astype(np.int64)
    else:
        mask = host_array(attention_mask, name, "biuf")
        if mask.shape != ids.shape or not np.isin(mask, (0, 1)).all():
            raise InputError(
                "must be 0 and 1, one for each id",
                where=name,
                found=f"shape {list(mask.shape)}",
                allowed=f"[batch, seq] = {list(ids.shape)}",
            )
        mask = mask.astype(np.int64)
    for row in np.flatnonzero(mask[:, -1] == 0):
        what = "padding must stand on the left of a prompt" if mask[row].any() else "a prompt without tokens"
        raise InputError(
            what,
            where=f"{name}[{row}]",
            hint='Use a tokenizer with padding_side="left" to pad prompts.',
        )
    return mask


def check_lengths(config: GenerationConfig, prompt_length: int) -> None:
    """Raises: InputError for options of length that contradict each other, or miss what they are about."""
    shortest, limit = config.length_minimum(prompt_length), config.length_limit(prompt_length)
    # A prompt that has reached max_length already is returned as it is.
    if limit > prompt_length and shortest > limit:
        raise InputError(
            "the shortest text is longer than the longest",
            where="min_length" if config.min_new_tokens is None else "min_new_tokens",
            found=f"at least {shortest} tokens with the prompt, at most {limit}",
            hint="Raise max_new_tokens, or lower min_new_tokens or min_length.",
        )
    if config.exponential_decay_length_penalty and not config.eos_token_ids:
        raise InputError("needs an eos_token_id", where="exponential_decay_length_penalty")


def _functions(given: Any, name: str) -> list[Any]:
    """A function, or several of them, as a list.  Raises: InputError for anything that cannot be called."""
    functions = [] if given is None else [given] if callable(given) and not isinstance(given, list) else given
    if not isinstance(functions, list | tuple) or not all(map(callable, functions)):
        raise InputError("not a list of functions", where=name, found=quote(given))
    return list(functions)


def fill_id(config: GenerationConfig, vocab_size: int) -> int:
    """The id that fills rows which ended.  Raises: InputError when it is outside the vocabulary."""
    eos_ids = config.eos_token_ids
    pad_id = config.pad_token_id if config.pad_token_id is not None else (eos_ids[0] if eos_ids else 0)
    if eos_ids and not 0 <= pad_id < vocab_size:
        raise InputError(
            "outside the vocabulary",
            where="pad_token_id",
            found=str(pad_id),
            allowed=f"0 to {vocab_size - 1}",
        )
    return pad_id
