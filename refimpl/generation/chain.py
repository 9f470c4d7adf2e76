"""Which changes of the scores the settings ask for, in the order of transformers.

1. what is always applied: guidance_scale, sequence_bias, encoder_repetition_penalty, repetition_penalty,
   no_repeat_ngram_size, encoder_no_repeat_ngram_size, bad_words_ids, min_length, min_new_tokens,
   prefix_allowed_tokens_fn, forced_bos_token_id, forced_eos_token_id, remove_invalid_values,
   exponential_decay_length_penalty, suppress_tokens, begin_suppress_tokens;
2. the caller's `logits_processor`;
3. when sampling: temperature, top_h, top_k, top_p, min_p, typical_p, epsilon_cutoff, eta_cutoff;
4. renormalize_logits.

Source: transformers 5.23, generation/utils.py, `_get_logits_processor`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from refimpl.errors import InputError, quote
from refimpl.generation import logits, processors
from refimpl.generation.config import GenerationConfig
from refimpl.generation.logits import choose
from refimpl.generation.processors import PADDING, LogitsProcessor

#: scores [rows, vocab] -> scores [rows, vocab]
Change = Callable[[np.ndarray], np.ndarray]
#: scores [any] -> other scores of the same tokens, or which of them stay (bool)
Filter = Callable[[np.ndarray], np.ndarray]


#: (prompt, ids of the text so far) -> the ids that may come next
AllowedTokens = Callable[[int, np.ndarray], Sequence[int]]


@dataclass(frozen=True)
class Candidates:
    """What may come next in one row.

    token_ids: `[any]`, rising; None: the whole vocabulary.
    scores: of these tokens, float64; -inf where one is ruled out all the same.
    """

    token_ids: np.ndarray | None
    scores: np.ndarray

    def choose(self, is_greedy: bool, seed: int, row: int, position: int) -> int:
        """The next token of a row with so many tokens.

        Raises: NumericalError when there is nothing to choose from.
        """
        place = choose(self.scores, is_greedy, seed, row, position)
        return place if self.token_ids is None else int(self.token_ids[place])

    def whole(self, vocab_size: int) -> np.ndarray:
        """[vocab], -inf for all other tokens."""
        if self.token_ids is None:
            return self.scores
        whole = np.full(vocab_size, -np.inf)
        whole[self.token_ids] = self.scores
        return whole


class ScoreProcessing:
    """All changes of the scores in one generation, in their order, in float64.

    Args:
        config: complete settings.
        prompt: `[rows, prompt]`, with `PADDING` where a row has no token.
        limit: how many tokens prompt and new ones may be together.
        vocab_size: ids of the settings must be below it.
        custom: the caller's processors.  They see the ids as they are, padding too.
        guidance: what `guidance_scale` adds; it comes first.
        allowed_tokens: the caller's `prefix_allowed_tokens_fn`.
        copies: so many rows in a row belong to one prompt.

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
        allowed_tokens: AllowedTokens | None = None,
        copies: int = 1,
    ):
        check_ids(config, vocab_size)
        self._prompt, self._is_padded = prompt, bool((prompt == PADDING).any())
        only = None if allowed_tokens is None else _only_allowed(allowed_tokens, vocab_size, copies)
        self._always = [
            *([guidance] if guidance else []),
            *_always(config, prompt, limit, vocab_size, only),
        ]
        self._custom = custom
        self._filters = [*([] if config.is_greedy else _filters(config)), *_last(config)]

    @property
    def changes_nothing(self) -> bool:
        """Whether what may come next is the whole vocabulary, with the logits as its scores."""
        return not (self._always or self._custom or self._filters)

    def __call__(self, ids: np.ndarray, scores: np.ndarray) -> list[Candidates]:
        """ids [rows, seq], logits [rows, vocab] -> what may come next in each row

        Raises: InputError when a processor of the caller returns something else than scores.
        """
        scores = scores.astype(np.float64)
        # A row that holds NaN or rules out everything is refused when a token of it is chosen; one that has
        # ended is not.  A factor beyond the numbers makes infinities, which say the same.
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            text = self._text(ids) if self._always else ids
            for processor in self._always:
                scores = processor(text, scores)
            for processor in self._custom:
                scores = _returned(processor(ids, scores), scores.shape)
            return [self._filtered(row) for row in scores]

    def whole(self, ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """The same as scores [rows, vocab], float64, with -inf for each token that is ruled out."""
        return np.stack([candidates.whole(scores.shape[1]) for candidates in self(ids, scores)])

    def _text(self, ids: np.ndarray) -> np.ndarray:
        """The ids with `PADDING` at padding.  [rows, seq] -> [rows, seq]"""
        if not self._is_padded:
            return ids
        return np.concatenate([self._prompt, ids[:, self._prompt.shape[1] :]], axis=1)

    def _filtered(self, scores: np.ndarray) -> Candidates:
        """Each filter sees only what those before it have left, which are often few.  [vocab] -> some of it"""
        token_ids = None
        for filtered in self._filters:
            result = filtered(scores)
            if result.dtype != bool:
                scores = result
                continue
            kept = np.flatnonzero(result)
            token_ids = kept if token_ids is None else token_ids[kept]
            scores = scores[kept]
        return Candidates(token_ids, scores)


def _always(
    config: GenerationConfig,
    prompt: np.ndarray,
    limit: int,
    vocab_size: int,
    only_allowed: LogitsProcessor | None,
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
    if only_allowed is not None:
        yield only_allowed
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


def _when(fits: Callable[[int], bool], change: Change) -> LogitsProcessor:
    """Change the scores where the text has a fitting length, padding included."""
    return lambda ids, scores: change(scores) if fits(ids.shape[1]) else scores


def _only_allowed(allowed_tokens: AllowedTokens, vocab_size: int, copies: int) -> LogitsProcessor:
    """-inf for everything but what the caller's function allows after a text."""

    def rule_out(ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        processed = np.full_like(scores, -np.inf)
        for row, text in enumerate(ids):
            token_ids = np.asarray(allowed_tokens(row // copies, text[text != PADDING]))
            if token_ids.ndim != 1 or token_ids.dtype.kind not in "iu" or not token_ids.size:
                raise InputError(
                    "must return the ids that may come next, at least one",
                    where="prefix_allowed_tokens_fn",
                    found=quote(token_ids.tolist()),
                )
            check_in_vocabulary("prefix_allowed_tokens_fn", token_ids.tolist(), vocab_size)
            processed[row, token_ids] = scores[row, token_ids]
        return processed

    return rule_out


def _filters(config: GenerationConfig) -> Iterator[Filter]:
    # A temperature changes no order, so that top_k may come before it: what follows then has little to do.
    # A beam that could only end would leave nothing to follow.
    keep = len(config.eos_token_ids) + 1 if (config.num_beams or 1) > 1 else 1
    cut_first = config.top_h is None
    if config.top_k and cut_first:
        yield partial(logits.in_top_k, top_k=config.top_k, keep=keep)
    if config.temperature not in (None, 1):
        yield partial(logits.apply_temperature, temperature=config.temperature)
    if config.top_h is not None:
        yield partial(logits.in_top_h, top_h=config.top_h)
    if config.top_k and not cut_first:
        yield partial(logits.in_top_k, top_k=config.top_k, keep=keep)
    if config.top_p not in (None, 1):
        yield partial(logits.in_top_p, top_p=config.top_p, keep=keep)
    if config.min_p:
        yield partial(logits.above_min_p, min_p=config.min_p, keep=keep)
    if config.typical_p not in (None, 1):
        yield partial(logits.typical, mass=config.typical_p, keep=keep)
    if config.epsilon_cutoff:
        yield partial(logits.above_epsilon, epsilon=config.epsilon_cutoff, keep=keep)
    if config.eta_cutoff:
        yield partial(logits.above_eta, epsilon=config.eta_cutoff, keep=keep)


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
