"""What a call of `generate()` asks for, checked and complete, before the model is asked for anything."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from refimpl.cache import DynamicCache
from refimpl.errors import ContextOverflowError, InputError, quote
from refimpl.generation.chain import AllowedTokens, ScoreProcessing, check_in_vocabulary
from refimpl.generation.config import GenerationConfig
from refimpl.generation.next_logits import LookedUpLogits, NextLogits
from refimpl.generation.processors import PADDING, ClassifierFreeGuidance, LogitsProcessor
from refimpl.generation.random import fresh_seed
from refimpl.generation.stopping import StoppingCriterion, StopStrings, TimeLimit
from refimpl.inputs import as_id_array, check_embeds, check_seed, host_array
from refimpl.static_cache import StaticCache

#: Arguments of transformers that change nothing here: these models have no token types, and one device.
_WITHOUT_EFFECT = ("token_type_ids", "synced_gpus", "use_model_defaults", "trust_remote_code")

#: Arguments of `generate()` that are no settings.
OBJECTS = (
    "logits_processor", "stopping_criteria", "seed", "negative_prompt_ids",
    "negative_prompt_attention_mask", "prefix_allowed_tokens_fn", "past_key_values", "inputs_embeds",
)  # fmt: skip


@dataclass
class Request:
    """Everything a loop over tokens needs.

    ids: `[rows, prompt]`, a row for each text that is written: every prompt `copies` times.
    lengths: `[rows]`, tokens without padding.
    limit: how many tokens prompt and new ones may be together.
    fill: the id after the end of a row.
    hidden_prompt: how many tokens of `ids` only stand for embeddings.
    """

    config: GenerationConfig
    ids: np.ndarray
    lengths: np.ndarray
    copies: int
    limit: int
    fill: int
    seed: int
    next_logits: NextLogits
    processing: ScoreProcessing
    criteria: list[StoppingCriterion]
    hidden_prompt: int = 0


def make_request(
    model: Any,
    input_ids: Any,
    attention_mask: Any,
    generation_config: GenerationConfig | None,
    overrides: dict[str, Any],
    *,
    logits_processor: LogitsProcessor | Sequence[LogitsProcessor] | None = None,
    stopping_criteria: StoppingCriterion | Sequence[StoppingCriterion] | None = None,
    seed: int | None = None,
    tokenizer: Any = None,
    negative_prompt_ids: Any = None,
    negative_prompt_attention_mask: Any = None,
    prefix_allowed_tokens_fn: AllowedTokens | None = None,
    past_key_values: DynamicCache | None = None,
    inputs_embeds: Any = None,
) -> Request:
    """The arguments are those of `generate()`.  Raises: InputError, ContextOverflowError."""
    vocab_size = model.config.vocab_size
    overrides = {name: value for name, value in overrides.items() if name not in _WITHOUT_EFFECT}
    given = (generation_config or GenerationConfig()).updated(**overrides)
    hint = "Use eos_token_id=[] to end with none."
    check_in_vocabulary("eos_token_id", given.eos_token_ids, vocab_size, hint)
    config = given.completed(model.generation_config)
    fill = fill_id(config, vocab_size)
    ids, mask, embeds = _prompts(model, config, input_ids, attention_mask, inputs_embeds)
    hidden_prompt = ids.shape[1] if input_ids is None and embeds is not None else 0
    limit = config.length_limit(ids.shape[1])
    limit = _within_context(config, ids.shape[1], limit, model.config.max_position_embeddings)
    check_lengths(config, ids.shape[1], limit)
    copies = _copies(config)
    _check_mode(config, len(ids), copies, past_key_values)

    prompts = np.where(mask == 1, ids, PADDING)
    if hidden_prompt:  # nobody knows these tokens, so that none of them counts as seen
        prompts = np.full_like(prompts, PADDING)
    guidance = _guidance(model, config, len(ids), copies, negative_prompt_ids, negative_prompt_attention_mask)
    ids, prompts, mask = (array.repeat(copies, axis=0) for array in (ids, prompts, mask))
    if embeds is not None:
        embeds = model.backend.xp.repeat(embeds, copies, axis=0)
    processing = ScoreProcessing(
        config,
        prompts,
        limit,
        vocab_size,
        _functions(logits_processor, "logits_processor"),
        guidance,
        prefix_allowed_tokens_fn,
        copies,
    )
    criteria: list[StoppingCriterion] = [*_functions(stopping_criteria, "stopping_criteria")]
    if config.max_time is not None:
        criteria.append(TimeLimit(config.max_time))
    if config.stop_string_list:
        criteria.append(StopStrings(tokenizer, config.stop_string_list, mask))
    cache = past_key_values if past_key_values is not None else _new_cache(config, limit)
    options: dict[str, Any] = {
        "copies": copies,
        "context": model.config.max_position_embeddings if config.context_overflow == "slide" else None,
        "embeds": embeds,
        "needs": config.needed_outputs,
    }
    if config.prompt_lookup_num_tokens is None:
        next_logits = NextLogits(model, mask, cache, **options)
    else:
        next_logits = LookedUpLogits(
            model,
            mask,
            cache,
            num_tokens=config.prompt_lookup_num_tokens,
            max_ngram=config.max_matching_ngram_size or 1,
            limit=limit,
            **options,
        )
    seed = fresh_seed() if seed is None else check_seed(seed)
    lengths = mask.sum(axis=1)
    return Request(
        config, ids, lengths, copies, limit, fill, seed, next_logits, processing, criteria, hidden_prompt
    )


def _prompts(
    model: Any, config: GenerationConfig, input_ids: Any, attention_mask: Any, inputs_embeds: Any
) -> tuple[np.ndarray, np.ndarray, Any]:
    """Ids and mask, 2 x [batch, prompt], and embeddings where they are given; ids of 0 stand for unknown ones."""
    vocab_size, hidden_size = model.config.vocab_size, model.config.hidden_size
    if inputs_embeds is None:
        if input_ids is None and config.bos_token_id is None:
            raise InputError("without a prompt there must be a bos_token_id", where="input_ids")
        ids = as_id_array([[config.bos_token_id]] if input_ids is None else input_ids, vocab_size).copy()
        return ids, prompt_mask(ids, attention_mask, config), None
    embeds = check_embeds(model.backend, inputs_embeds, hidden_size)
    if input_ids is None:
        ids = np.zeros(embeds.shape[:2], dtype=np.int64)
        attention_mask = np.ones_like(ids) if attention_mask is None else attention_mask
    else:
        ids = as_id_array(input_ids, vocab_size).copy()
    if embeds.shape[:2] != ids.shape:
        raise InputError(
            "must have a row for each id",
            where="inputs_embeds",
            found=str(list(embeds.shape)),
            allowed=f"[batch, seq, hidden] = {[*ids.shape, hidden_size]}",
        )
    return ids, prompt_mask(ids, attention_mask, config), embeds


def _copies(config: GenerationConfig) -> int:
    """How many rows a prompt has in the model."""
    beams, texts = config.num_beams or 1, config.num_return_sequences or 1
    if beams > 1:
        if texts > beams:
            raise InputError(
                "there are only as many texts as beams",
                where="num_return_sequences",
                found=str(texts),
                allowed=f"at most num_beams = {beams}",
            )
        return beams
    if texts > 1 and config.is_greedy:
        raise InputError(
            "there is one likeliest text",
            where="num_return_sequences",
            found=str(texts),
            hint="Use do_sample=True to draw several, or num_beams to search for several.",
        )
    return texts


def _check_mode(config: GenerationConfig, batch: int, copies: int, past_key_values: Any) -> None:
    """Raises: InputError for options that contradict each other."""
    if past_key_values is not None:
        if not isinstance(past_key_values, DynamicCache):
            raise InputError(
                "not a cache",
                where="past_key_values",
                found=quote(past_key_values),
                allowed="a DynamicCache, StaticCache or PromptCache",
                hint="DynamicCache.from_legacy_cache makes one of a tuple.",
            )
        if not config.use_cache:
            raise InputError("there is a cache, and use_cache=False", where="past_key_values")
        if config.cache_dtype is not None:
            raise InputError("a given cache has a dtype already", where="cache_dtype")
        if copies > 1:
            raise InputError(
                "a given cache has one row for each prompt",
                where="past_key_values",
                found="num_beams or num_return_sequences above 1",
            )
    if config.prompt_lookup_num_tokens is not None:
        for name, fits in (
            ("num_beams", (config.num_beams or 1) == 1),
            ("num_return_sequences", copies == 1),
            ("use_cache", config.use_cache),
        ):
            if not fits:
                raise InputError(
                    "prompt lookup follows one text with a cache",
                    where="prompt_lookup_num_tokens",
                    found=f"{name}={getattr(config, name)}",
                )
        if batch > 1:
            raise InputError(
                "prompt lookup is for one prompt",
                where="prompt_lookup_num_tokens",
                found=f"a batch of {batch}",
            )
        if isinstance(past_key_values, StaticCache) or config.cache_implementation == "static":
            raise InputError(
                "what is looked up may be longer than a static cache",
                where="prompt_lookup_num_tokens",
                hint="Use a DynamicCache.",
            )
    if config.asked_outputs and not config.return_dict_in_generate:
        warnings.warn(
            f"without return_dict_in_generate=True nothing shows {', '.join(config.asked_outputs)}",
            stacklevel=4,
        )


def _new_cache(config: GenerationConfig, limit: int) -> DynamicCache | None:
    if not config.use_cache:
        return None
    dtype = None if config.cache_dtype == "float32" else config.cache_dtype
    if config.cache_implementation == "static":
        return StaticCache(max_cache_len=limit, dtype=dtype)
    return DynamicCache(dtype=dtype)


def _within_context(config: GenerationConfig, prompt: int, limit: int, context: int) -> int:
    """The limit, where the end of the model's context is one.  Raises: ContextOverflowError."""
    if limit <= context or config.context_overflow not in ("stop", "error"):
        return limit
    if config.context_overflow == "stop" and prompt < context:
        return context
    raise ContextOverflowError(
        "the prompt and the new tokens are more than the model's context",
        found=f"{prompt} + {limit - prompt} tokens",
        allowed=f"{context} together",
        hint='context_overflow="stop" ends there, "slide" forgets the beginning, "continue" goes on regardless.',
    )


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


def check_lengths(config: GenerationConfig, prompt_length: int, limit: int) -> None:
    """Raises: InputError for options of length that contradict each other, or miss what they are about."""
    shortest = config.length_minimum(prompt_length)
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


def _guidance(
    model: Any,
    config: GenerationConfig,
    batch: int,
    copies: int,
    negative_ids: Any,
    negative_mask: Any,
) -> ClassifierFreeGuidance | None:
    """What `guidance_scale` asks for, with a cache of its own."""
    if config.guidance_scale in (None, 1):
        return None
    ids = None if negative_ids is None else as_id_array(negative_ids, model.config.vocab_size)
    if ids is not None and len(ids) != batch:
        raise InputError(
            "must have a row for each prompt",
            where="negative_prompt_ids",
            found=f"shape {list(ids.shape)}",
            allowed=f"[{batch}, any]",
        )
    # Without another prompt the last token of the prompt stands for it, which is never padding.
    mask = np.ones((batch, 1), dtype=np.int64)
    if ids is not None:
        mask = prompt_mask(ids, negative_mask, config, "negative_prompt_attention_mask")
        ids = ids.repeat(copies, axis=0)
    # Running texts change places in beam search, which this text of its own does not follow: no cache there.
    cached = config.use_cache and (config.num_beams or 1) == 1
    next_logits = NextLogits(model, mask.repeat(copies, axis=0), DynamicCache() if cached else None)
    return ClassifierFreeGuidance(config.guidance_scale, next_logits, ids)


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
