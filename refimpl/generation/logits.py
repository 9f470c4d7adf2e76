"""From the logits of one position to the next token, on the host and in float64.

The filters are pure functions [vocab] -> [vocab]; a token that is ruled out gets -inf.  They are
applied in the order of transformers: repetition penalty, temperature, top_k, top_p.
"""

from __future__ import annotations

import numpy as np

from refimpl.errors import NumericalError
from refimpl.generation.config import GenerationConfig
from refimpl.generation.random import uniform


def apply_repetition_penalty(logits: np.ndarray, seen: np.ndarray, penalty: float) -> np.ndarray:
    """Make the tokens in `seen` less likely (arXiv:1909.05858): divide positive logits, multiply negative ones."""
    changed = logits.copy()
    changed[seen] = np.where(logits[seen] < 0, logits[seen] * penalty, logits[seen] / penalty)
    return changed


def apply_temperature(logits: np.ndarray, temperature: float) -> np.ndarray:
    """Below 1 the likely tokens become likelier, above 1 less so."""
    with np.errstate(over="ignore"):  # a tiny temperature leaves the likeliest alone, at 0
        return (logits - logits.max()) / temperature


def apply_top_k(logits: np.ndarray, top_k: int) -> np.ndarray:
    """Keep the k likeliest tokens, and those that tie with the last of them."""
    if top_k >= logits.size:
        return logits
    return np.where(logits < np.partition(logits, -top_k)[-top_k], -np.inf, logits)


def apply_top_p(logits: np.ndarray, top_p: float) -> np.ndarray:
    """Keep the fewest likeliest tokens whose probabilities sum to at least `top_p`."""
    ranked = _ranks(logits)
    ranked_probabilities = probabilities(logits[ranked])
    likelier = np.cumsum(ranked_probabilities) - ranked_probabilities  # the sum of all likelier tokens
    kept = logits.copy()
    kept[ranked[likelier >= top_p]] = -np.inf
    return kept


def _ranks(logits: np.ndarray) -> np.ndarray:
    """The ids by falling logit; among equals the lower id comes first."""
    return np.lexsort((np.arange(logits.size), -logits))


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax.  [vocab] -> [vocab]"""
    exponentials = np.exp(logits - logits.max())
    return exponentials / exponentials.sum()


def filtered(logits: np.ndarray, config: GenerationConfig) -> np.ndarray:
    """What is left to draw from."""
    if config.temperature is not None:
        logits = apply_temperature(logits, config.temperature)
    if config.top_k:
        logits = apply_top_k(logits, config.top_k)
    if config.top_p is not None and config.top_p < 1.0:
        logits = apply_top_p(logits, config.top_p)
    return logits


def draw(logits: np.ndarray, number: float) -> int:
    """The token at which the cumulated probability passes `number` from [0, 1).

    Tokens are ranked by falling probability, then by id, so that logits which differ by rounding
    only give the same token except next to a border.
    """
    ranked = _ranks(logits)
    cumulated = np.cumsum(probabilities(logits[ranked]))
    return int(ranked[min(np.searchsorted(cumulated, number * cumulated[-1], side="right"), logits.size - 1)])


def choose(
    logits: np.ndarray, config: GenerationConfig, seed: int, row: int, position: int, seen: np.ndarray
) -> int:
    """The next token of one row, whose tokens so far are `seen`.  [vocab] -> id

    Raises: NumericalError when the logits hold NaN, or rule out every token.
    """
    logits = logits.astype(np.float64)
    if np.isnan(logits).any() or not np.isfinite(logits.max()):
        raise NumericalError(
            "the logits leave nothing to choose from",
            where=f"row {row}, position {position}",
            row=row,
            position=position,
        )
    if config.repetition_penalty not in (None, 1.0):
        logits = apply_repetition_penalty(logits, seen, config.repetition_penalty)
    if config.is_greedy:
        return int(np.argmax(logits))  # the lowest id among equals
    return draw(filtered(logits, config), uniform(seed, row, position))
