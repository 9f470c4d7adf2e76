"""What changes the scores of the next token, besides the filters of sampling: NumPy functions of a whole batch.

Each takes `ids [rows, seq]`, the text so far with `PADDING` where a row has none, and `scores [rows, vocab]`; it
returns new scores of the same shape and dtype, in which a token that is ruled out has -inf.  Nothing is changed
in place.  What leaves the numbers becomes an infinity; the chain silences NumPy's warnings.  Which of them are
applied, and in which order, stands in `refimpl/generation/chain.py`.
Results: transformers 5.23, generation/logits_process.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from refimpl.generation.logits import log_probabilities

#: Stands in `ids` for a place that is no token of the text.
PADDING = -1

#: (ids [rows, seq], scores [rows, vocab]) -> scores [rows, vocab]
LogitsProcessor = Callable[[np.ndarray, np.ndarray], np.ndarray]


def penalize_repetition(ids: np.ndarray, scores: np.ndarray, penalty: float) -> np.ndarray:
    """For each token of the text: score / penalty where it is positive, score * penalty where it is negative
    (arXiv:1909.05858)."""
    return _scaled_where(ids, scores, penalty)


def favour_prompt(prompt: np.ndarray, scores: np.ndarray, penalty: float) -> np.ndarray:
    """The opposite for the tokens of the prompt, `[rows, prompt]`: `encoder_repetition_penalty` above 1 makes
    them likelier."""
    return _scaled_where(prompt, scores, 1 / penalty)


def _scaled_where(ids: np.ndarray, scores: np.ndarray, factor: float) -> np.ndarray:
    """A token that stands there several times is scaled once."""
    processed = scores.copy()
    for text, before, after in zip(ids, scores, processed, strict=True):
        tokens = text[text != PADDING]
        chosen = before[tokens]
        after[tokens] = np.where(chosen < 0, chosen * factor, chosen / factor)
    return processed


def ban_repeated_ngrams(
    ids: np.ndarray, scores: np.ndarray, size: int, source: np.ndarray | None = None
) -> np.ndarray:
    """-inf for each token that would repeat `size` tokens in a row of `source`, `[rows, any]`; that is the text
    itself, or the prompt for `encoder_no_repeat_ngram_size`.  arXiv:1705.04304, section 2.5, has three."""
    source = ids if source is None else source
    if ids.shape[1] < size - 1 or source.shape[1] < size:
        return scores
    windows = np.lib.stride_tricks.sliding_window_view(source, size, axis=1)  # [rows, places, size]
    end = ids[:, ids.shape[1] - (size - 1) :]
    repeats = (windows[..., :-1] == end[:, None]).all(axis=-1) & (windows != PADDING).all(axis=-1)
    rows, places = np.nonzero(repeats)
    processed = scores.copy()
    processed[rows, windows[rows, places, -1]] = -np.inf
    return processed


def add_sequence_bias(
    ids: np.ndarray, scores: np.ndarray, sequence_bias: Sequence[tuple[Sequence[int], float]]
) -> np.ndarray:
    """Add `bias` to the last token of each `(sequence, bias)` whose other tokens are the end of the text."""
    bias = np.zeros_like(scores)
    for sequence, number in sequence_bias:
        *before, last = sequence
        if len(before) <= ids.shape[1]:
            fits = (ids[:, ids.shape[1] - len(before) :] == np.array(before, dtype=ids.dtype)).all(axis=1)
            bias[fits, last] += number
    return scores + bias


def ban_sequences(ids: np.ndarray, scores: np.ndarray, sequences: Sequence[Sequence[int]]) -> np.ndarray:
    """-inf for each token that would complete one of `sequences`: `bad_words_ids`."""
    return add_sequence_bias(ids, scores, [(sequence, -np.inf) for sequence in sequences])


def suppress(scores: np.ndarray, token_ids: Sequence[int]) -> np.ndarray:
    """-inf for these tokens."""
    processed = scores.copy()
    processed[:, list(token_ids)] = -np.inf
    return processed


def force(scores: np.ndarray, token_ids: Sequence[int]) -> np.ndarray:
    """0 for these tokens, -inf for all others."""
    processed = np.full_like(scores, -np.inf)
    processed[:, list(token_ids)] = 0
    return processed


def remove_invalid(scores: np.ndarray) -> np.ndarray:
    """0 for NaN; for infinities the largest and the lowest finite number of the dtype."""
    limits = np.finfo(scores.dtype)
    return np.nan_to_num(scores, nan=0.0, posinf=limits.max, neginf=limits.min)


def raise_eos(scores: np.ndarray, eos_ids: Sequence[int], factor: float, steps: int) -> np.ndarray:
    """score + |score| * (factor ** steps - 1) for the tokens that end a text, where the score is finite:
    `exponential_decay_length_penalty` after so many steps beyond its start."""
    if steps <= 0:
        return scores
    processed = scores.copy()
    growth = (np.float64(factor) ** steps - 1).astype(scores.dtype)
    for token_id in dict.fromkeys(eos_ids):
        column = scores[:, token_id]
        raised = column + np.abs(column) * growth
        # A power that has left the numbers would make the row useless; the largest one ends it all the same.
        raised = np.nan_to_num(raised, nan=0.0, posinf=np.finfo(scores.dtype).max)
        processed[:, token_id] = np.where(np.isfinite(column), raised, column)
    return processed


class ClassifierFreeGuidance:
    """scale * (log p - log q) + log q, with p of the text and q of one that lacks the prompt (arXiv:2306.17806).

    q is the model's own answer to another prompt, which each new token is added to.  What the caller's processors
    see, and all that follows, are these sums and no longer logits.

    Args:
        scale: above 1 moves the text towards the prompt; 1 would change nothing.
        next_logits: ids `[rows, n]` -> logits `[rows, vocab]`, called with the negative prompt (whatever it is)
            and all new tokens.
        negative_ids: the other prompt, `[rows, n]`; None: the last token of the prompt.
    """

    def __init__(
        self,
        scale: float,
        next_logits: Callable[[np.ndarray], np.ndarray],
        negative_ids: np.ndarray | None = None,
    ):
        self.scale, self._next_logits, self._ids = scale, next_logits, negative_ids
        self._start = 0  # of the new tokens

    def __call__(self, ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        if not self._start:
            self._start = ids.shape[1]
            self._ids = ids[:, -1:] if self._ids is None else self._ids
        assert self._ids is not None
        text = np.concatenate([self._ids, ids[:, self._start :]], axis=1)
        without = log_probabilities(self._next_logits(text).astype(scores.dtype))
        return self.scale * (log_probabilities(scores) - without) + without
