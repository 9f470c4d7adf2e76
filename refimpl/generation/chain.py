"""Which changes of the scores the settings ask for, in the order of transformers.

1. what is always applied: guidance_scale, sequence_bias, encoder_repetition_penalty, repetition_penalty,
   no_repeat_ngram_size, encoder_no_repeat_ngram_size, bad_words_ids, min_length, min_new_tokens, forced_bos_token_id,
   forced_eos_token_id, remove_invalid_values, exponential_decay_length_penalty, suppress_tokens,
   begin_suppress_tokens;
2. the caller's `logits_processor`;
3. when sampling: temperature, top_h, top_k, top_p, min_p, typical_p, epsilon_cutoff, eta_cutoff;
4. renormalize_logits.

Source: transformers 5.23, generation/utils.py, `_get_logits_processor`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np

from refimpl.errors import InputError, quote
from refimpl.generation import logits, processors
from refimpl.generation.config import GenerationConfig
from refimpl.generation.processors import PADDING, LogitsProcessor

#: scores [rows, vocab] -> scores [rows, vocab]
Filter = Callable[[np.ndarray], np.ndarray]


class ScoreProcessing:
    """All changes of the scores in one generation, in their order, in float64.

    Args:
        config: complete settings.
        prompt: `[rows, prompt]`, with `PADDING` where a row has no token.
        limit: how many tokens prompt and new ones may be together.
        vocab_size: ids of the settings must be below it.
        custom: the caller's processors.  They see the ids as they are, padding too.
        guidance: what `guidance_scale` adds; it comes first.

    Raises: InputError for ids outside the vocabulary.
    """

    def __init__(
        self,
        config: GenerationConfig,
        prompt: np.ndarray,
        limit: int,
        vocab_size: int,
        custom: Sequence[LogitsProcessor] = (),
        guidance: LogitsProcessor | None = None,
    ):
        check_ids(config, vocab_size)
        self._always = [*([guidance] if guidance else []), *_always(config, prompt, limit, vocab_size)]
        self._custom = custom
        self._filters = [*([] if config.is_greedy else _filters(config)), *_last(config)]

    def __call__(self, ids: np.ndarray, mask: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """ids and mask [rows, seq], logits [rows, vocab] -> scores [rows, vocab], float64

        Raises: InputError when a processor of the caller returns something else than scores.
        """
        scores = scores.astype(np.float64)
        text = np.where(mask == 1, ids, PADDING)
        # A row that holds NaN or rules out everything is refused when a token of it is chosen; one that has
        # ended is not.
        with np.errstate(invalid="ignore", divide="ignore"):
            for processor in self._always:
                scores = processor(text, scores)
        for processor in self._custom:
            scores = _returned(processor(ids, scores), scores.shape)
        with np.errstate(invalid="ignore", divide="ignore"):
            for change in self._filters:
                scores = change(scores)
        return scores


def _always(
    config: GenerationConfig, prompt: np.ndarray, limit: int, vocab_size: int
) -> Iterator[LogitsProcessor]:
    start = prompt.shape[1]
    eos_ids = [token_id for token_id in config.eos_token_ids if 0 <= token_id < vocab_size]
    if config.sequence_bias:
        # A sequence that is listed twice has the later bias.
        biases = {tuple(sequence): bias for sequence, bias in config.sequence_bias}
        yield partial(processors.add_sequence_bias, sequence_bias=list(biases.items()))
    if (penalty := config.encoder_repetition_penalty) not in (None, 1):
        yield lambda ids, scores: processors.favour_prompt(prompt, scores, penalty)
    if config.repetition_penalty not in (None, 1):
        yield partial(processors.penalize_repetition, penalty=config.repetition_penalty)
    if config.no_repeat_ngram_size:
        yield partial(processors.ban_repeated_ngrams, size=config.no_repeat_ngram_size)
    if config.encoder_no_repeat_ngram_size:
        yield partial(processors.ban_repeated_ngrams, size=config.encoder_no_repeat_ngram_size, source=prompt)
    if config.bad_words_ids:
        ends = [[token_id] for token_id in config.eos_token_ids]
        words = dict.fromkeys(tuple(word) for word in config.bad_words_ids if word not in ends)
        yield partial(processors.ban_sequences, sequences=list(words))
    # min_new_tokens takes precedence, and then counts as a min_length.
    shortest = config.length_minimum(start)
    if eos_ids and shortest > 0:
        yield _when(lambda length: length < shortest, partial(processors.suppress, token_ids=eos_ids))
    if (bos := config.forced_bos_token_id) is not None:
        yield _when(lambda length: length == 1, partial(processors.force, token_ids=[bos]))
    if config.forced_eos_token_ids:
        forced = partial(processors.force, token_ids=config.forced_eos_token_ids)
        yield _when(lambda length: length == limit - 1, forced)
    if config.remove_invalid_values:
        yield lambda ids, scores: processors.remove_invalid(scores)
    if config.exponential_decay_length_penalty:
        after, factor = config.exponential_decay_length_penalty
        yield lambda ids, scores: processors.raise_eos(scores, eos_ids, factor, ids.shape[1] - start - after)
    if config.suppress_tokens:
        always = partial(processors.suppress, token_ids=config.suppress_tokens)
        yield _when(lambda length: True, always)
    if config.begin_suppress_tokens:
        # A forced bos after a prompt of one token leaves the beginning to the token after it.
        begin = start if start > 1 or config.forced_bos_token_id is None else start + 1
        first = partial(processors.suppress, token_ids=config.begin_suppress_tokens)
        yield _when(lambda length: length == begin, first)


def _when(fits: Callable[[int], bool], change: Filter) -> LogitsProcessor:
    """Change the scores where the text has a fitting length, padding included."""
    return lambda ids, scores: change(scores) if fits(ids.shape[1]) else scores


def _filters(config: GenerationConfig) -> Iterator[Filter]:
    if config.temperature not in (None, 1):
        yield partial(logits.apply_temperature, temperature=config.temperature)
    if config.top_h is not None:
        yield partial(logits.apply_top_h, top_h=config.top_h)
    if config.top_k:
        yield partial(logits.apply_top_k, top_k=config.top_k)
    if config.top_p not in (None, 1):
        yield partial(logits.apply_top_p, top_p=config.top_p)
    if config.min_p:
        yield partial(logits.apply_min_p, min_p=config.min_p)
    if config.typical_p not in (None, 1):
        yield partial(logits.apply_typical_p, mass=config.typical_p)
    if config.epsilon_cutoff:
        yield partial(logits.apply_epsilon_cutoff, epsilon=config.epsilon_cutoff)
    if config.eta_cutoff:
        yield partial(logits.apply_eta_cutoff, epsilon=config.eta_cutoff)


def _last(config: GenerationConfig) -> Iterator[Filter]:
    if config.renormalize_logits:
        yield logits.log_probabilities


def _returned(scores: object, shape: tuple[int, ...]) -> np.ndarray:
    array = np.asarray(scores)
    if array.shape != shape or array.dtype.kind not in "fiu":
        raise InputError(
            "a processor must return scores",
            where="logits_processor",
            found=f"{quote(array.dtype.name)} of shape {list(array.shape)}",
            allowed=f"numbers of shape [rows, vocab] = {list(shape)}",
        )
    return array.astype(np.float64)


def check_ids(config: GenerationConfig, vocab_size: int) -> None:
    """Raises: InputError for an option that names a token which does not exist."""
    bos = config.forced_bos_token_id
    named = {
        "sequence_bias": [token for sequence, _ in config.sequence_bias or [] for token in sequence],
        "bad_words_ids": [token for sequence in config.bad_words_ids or [] for token in sequence],
        "suppress_tokens": config.suppress_tokens or [],
        "begin_suppress_tokens": config.begin_suppress_tokens or [],
        "forced_bos_token_id": [] if bos is None else [bos],
        "forced_eos_token_id": config.forced_eos_token_ids,
    }
    for name, token_ids in named.items():
        check_in_vocabulary(name, token_ids, vocab_size)


def check_in_vocabulary(
    name: str, token_ids: Sequence[int], vocab_size: int, hint: str | None = None
) -> None:
    """Raises: InputError for the first id that is not below `vocab_size`, or negative."""
    for token_id in token_ids:
        if not 0 <= token_id < vocab_size:
            allowed = f"0 to {vocab_size - 1}"
            raise InputError(
                "outside the vocabulary", where=name, found=str(token_id), allowed=allowed, hint=hint
            )
