"""The filters of sampling, and the choice of a token, on the host.

A filter takes scores `[..., vocab]` and returns new ones of the same shape and dtype, in which a token that is
ruled out has -inf.  With `keep` it leaves at least so many tokens, which beam search needs.  Which of them are
applied, and in which order, stands in `refimpl/generation/chain.py`.
Formulas: the papers named below; results: transformers 5.23, generation/logits_process.py.
"""

from __future__ import annotations

import numpy as np

from refimpl.errors import NumericalError
from refimpl.generation.random import uniform

#: Of how many of the likeliest tokens `apply_top_h` looks at.
TOP_H_TOKENS = 100


def probabilities(scores: np.ndarray) -> np.ndarray:
    """Softmax over the last dimension.  [..., vocab] -> [..., vocab]"""
    exponentials = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def log_probabilities(scores: np.ndarray) -> np.ndarray:
    """log softmax(scores), so that the probabilities sum to 1 again: `renormalize_logits`."""
    shifted = scores - scores.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def entropy(scores: np.ndarray) -> np.ndarray:
    """-sum(p log p) of p = softmax(scores), with 0 log 0 = 0.  [..., vocab] -> [..., 1]"""
    p = probabilities(scores)
    return -_times(p, log_probabilities(scores)).sum(axis=-1, keepdims=True)


def apply_temperature(scores: np.ndarray, temperature: float) -> np.ndarray:
    """scores / temperature: below 1 the likely tokens become likelier, above 1 less so."""
    with np.errstate(over="ignore", invalid="ignore"):
        divided = scores / temperature
        if not np.isfinite(divided.max(axis=-1)).all():
            # The largest score has left the numbers.  A constant changes no probability, so that it may become 0.
            divided = (scores - scores.max(axis=-1, keepdims=True)) / temperature
    return divided


def apply_top_h(scores: np.ndarray, top_h: float) -> np.ndarray:
    """Keep the likeliest tokens, of the first 100, whose shares of the entropy, -p log p, sum to at most
    `top_h` times all of it, and the likeliest one always (arXiv:2509.02510)."""
    ranked = _ranks(scores)[..., :TOP_H_TOKENS]
    best = np.take_along_axis(scores, ranked, axis=-1)
    shares = -_times(probabilities(best), log_probabilities(best))
    removed = np.cumsum(shares, axis=-1) > top_h * entropy(best)
    removed[..., 0] = False
    all_removed = np.ones(scores.shape, dtype=bool)
    np.put_along_axis(all_removed, ranked, removed, axis=-1)
    return np.where(all_removed, -np.inf, scores).astype(scores.dtype)


def apply_top_k(scores: np.ndarray, top_k: int, keep: int = 1) -> np.ndarray:
    """Keep the k likeliest tokens, and those that tie with the last of them (arXiv:1805.04833)."""
    top_k = max(top_k, keep)
    if top_k >= scores.shape[-1]:
        return scores
    return np.where(scores < _nth(scores, top_k), -np.inf, scores).astype(scores.dtype)


def apply_top_p(scores: np.ndarray, top_p: float, keep: int = 1) -> np.ndarray:
    """Keep the fewest likeliest tokens whose probabilities sum to at least `top_p` (arXiv:1904.09751)."""
    ranked = _ranks(scores)
    p = probabilities(np.take_along_axis(scores, ranked, axis=-1))
    removed = np.cumsum(p, axis=-1) - p >= top_p  # the sum of all that are likelier
    removed[..., :keep] = False
    return _without(scores, ranked, removed)


def apply_min_p(scores: np.ndarray, min_p: float, keep: int = 1) -> np.ndarray:
    """Keep the tokens that are at least `min_p` times as probable as the likeliest (arXiv:2407.01082)."""
    p = probabilities(scores)
    return _above(scores, min_p * p.max(axis=-1, keepdims=True), keep)


def apply_typical_p(scores: np.ndarray, mass: float, keep: int = 1) -> np.ndarray:
    """Keep the tokens whose surprise, -log p, is nearest to its mean, the entropy, until their probabilities
    sum to `mass` (arXiv:2202.00666).  Those that are as far away as the last of them stay too."""
    distance = np.abs(-log_probabilities(scores) - entropy(scores))
    ranked = np.argsort(distance, axis=-1, kind="stable")
    cumulated = np.cumsum(probabilities(np.take_along_axis(scores, ranked, axis=-1)), axis=-1)
    last = np.maximum((cumulated < mass).sum(axis=-1, keepdims=True), keep - 1)
    last = np.minimum(last, scores.shape[-1] - 1)
    limit = np.take_along_axis(distance, np.take_along_axis(ranked, last, axis=-1), axis=-1)
    return np.where(distance > limit, -np.inf, scores).astype(scores.dtype)


def apply_epsilon_cutoff(scores: np.ndarray, epsilon: float, keep: int = 1) -> np.ndarray:
    """Keep the tokens of at least the probability `epsilon`, and the likeliest ones always (arXiv:2210.15191)."""
    return _above(scores, np.asarray(epsilon), keep)


def apply_eta_cutoff(scores: np.ndarray, epsilon: float, keep: int = 1) -> np.ndarray:
    """Keep the tokens of at least the probability min(epsilon, sqrt(epsilon) * exp(-entropy)), and the likeliest
    ones always (arXiv:2210.15191)."""
    return _above(scores, np.minimum(epsilon, np.sqrt(epsilon) * np.exp(-entropy(scores))), keep)


def _above(scores: np.ndarray, threshold: np.ndarray, keep: int) -> np.ndarray:
    """-inf for each token below a probability, except for the `keep` likeliest and those that tie with them."""
    removed = (probabilities(scores) < threshold) & (scores < _nth(scores, keep))
    return np.where(removed, -np.inf, scores).astype(scores.dtype)


def _nth(scores: np.ndarray, n: int) -> np.ndarray:
    """The nth largest score, or the smallest if there are fewer.  [..., vocab] -> [..., 1]"""
    n = min(n, scores.shape[-1])
    if n == 1:
        return scores.max(axis=-1, keepdims=True)
    return np.partition(scores, -n, axis=-1)[..., -n, None]


def _ranks(scores: np.ndarray) -> np.ndarray:
    """The ids by falling score; among equals the lower id comes first."""
    return np.argsort(-scores, axis=-1, kind="stable")


def _without(scores: np.ndarray, ranked: np.ndarray, removed: np.ndarray) -> np.ndarray:
    """-inf for each token `ranked[..., i]` with `removed[..., i]`."""
    by_id = np.empty_like(removed)
    np.put_along_axis(by_id, ranked, removed, axis=-1)
    return np.where(by_id, -np.inf, scores).astype(scores.dtype)


def _times(p: np.ndarray, log_p: np.ndarray) -> np.ndarray:
    """p log p, with 0 log 0 = 0."""
    return p * np.where(p > 0, log_p, 0)


def draw(scores: np.ndarray, number: float) -> int:
    """The token at which the cumulated probability passes `number` from [0, 1).  [vocab] -> id

    Tokens are ranked by falling probability, then by id, so that scores which differ by rounding
    only give the same token except next to a border.
    """
    possible = np.flatnonzero(scores != -np.inf)
    ranked = possible[_ranks(scores[possible])]
    return int(ranked[_passed(probabilities(scores[ranked]), number)])


def draw_several(scores: np.ndarray, count: int, seed: int, row: int, position: int) -> np.ndarray:
    """`count` different places, drawn one after the other without putting back.  [any] -> [count]

    Where too few have a probability, the largest of the others follow.
    """
    ranked = _ranks(scores)
    p = probabilities(scores[ranked])
    drawn: list[int] = []
    for index in range(min(count, np.count_nonzero(p))):
        drawn.append(_passed(p, uniform(seed, row, position, index)))
        p[drawn[-1]] = 0
    rest = np.setdiff1d(np.arange(min(ranked.size, 2 * count)), drawn)
    return ranked[[*drawn, *rest][:count]]


def _passed(p: np.ndarray, number: float) -> int:
    """The first place at which the cumulated weights are above `number` from [0, 1) times their sum."""
    cumulated = np.cumsum(p)
    place = int(np.searchsorted(cumulated, number * cumulated[-1], side="right"))
    return place if place < p.size else int(np.flatnonzero(p)[-1])


def check_scores(scores: np.ndarray, row: int, position: int) -> None:
    """Raises: NumericalError when the scores hold NaN, rule out every token, or exceed the numbers.  [vocab]"""
    if np.isnan(scores).any() or not np.isfinite(scores.max()):
        raise NumericalError(
            "the logits leave nothing to choose from",
            where=f"row {row}, position {position}",
            row=row,
            position=position,
        )


def choose(scores: np.ndarray, is_greedy: bool, seed: int, row: int, position: int) -> int:
    """The next token of one row with so many tokens, from scores that were processed.  [vocab] -> id

    Raises: NumericalError when there is nothing to choose from.
    """
    check_scores(scores, row, position)
    if is_greedy:
        return int(np.argmax(scores))  # the lowest id among equals
    return draw(scores, uniform(seed, row, position))
