"""The filters of sampling, and the choice of a token, on the host.

A filter takes the scores of some tokens of one row, `[any]`, and says which of them stay, as truth values `[any]`;
NaN always stays, to be refused when a token is chosen.  With `keep` at least so many tokens stay, which beam search
needs.  Which filters are applied, and in which order, stands in `refimpl/generation/chain.py`.
Formulas: the papers named below; results: transformers 5.23, generation/logits_process.py.
"""

from __future__ import annotations

import math

import numpy as np

from refimpl.errors import NumericalError
from refimpl.generation.random import uniform

#: Of how many of the likeliest tokens `in_top_h` looks at.
TOP_H_TOKENS = 100


def probabilities(scores: np.ndarray) -> np.ndarray:
    """Softmax over the last dimension.  [..., vocab] -> [..., vocab]"""
    exponentials = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def log_probabilities(scores: np.ndarray) -> np.ndarray:
    """log softmax(scores), so that the probabilities sum to 1 again: `renormalize_logits`."""
    shifted = scores - scores.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def entropy(scores: np.ndarray) -> float:
    """-sum(p log p) of p = softmax(scores), with 0 log 0 = 0.  [any] -> number"""
    return float(-_times(probabilities(scores), log_probabilities(scores)).sum())


def apply_temperature(scores: np.ndarray, temperature: float) -> np.ndarray:
    """scores / temperature: below 1 the likely tokens become likelier, above 1 less so.  [any] -> [any]"""
    divided = scores / temperature
    if not np.isfinite(divided.max()):
        # The largest score has left the numbers.  A constant changes no probability, so that it may become 0.
        divided = (scores - scores.max()) / temperature
    return divided


def in_top_h(scores: np.ndarray, top_h: float) -> np.ndarray:
    """The likeliest tokens, of the first 100, whose shares of the entropy, -p log p, sum to at most `top_h` times
    all of it, and the likeliest one always (arXiv:2509.02510)."""
    ranked = _ranks(scores)[:TOP_H_TOKENS]
    best = scores[ranked]
    shares = -_times(probabilities(best), log_probabilities(best))
    stays = np.cumsum(shares) <= top_h * entropy(best)
    stays[0] = True
    return _by_id(scores, ranked, stays)


def in_top_k(scores: np.ndarray, top_k: int, keep: int = 1) -> np.ndarray:
    """The k likeliest tokens, and those that tie with the last of them (arXiv:1805.04833)."""
    return ~(scores < _nth(scores, max(top_k, keep)))


def in_top_p(scores: np.ndarray, top_p: float, keep: int = 1) -> np.ndarray:
    """The fewest likeliest tokens whose probabilities sum to at least `top_p` (arXiv:1904.09751)."""
    ranked = _ranks(scores)
    p = probabilities(scores[ranked])
    stays = ~(np.cumsum(p) - p >= top_p)  # the sum of all that are likelier
    stays[:keep] = True
    return _by_id(scores, ranked, stays)


def above_min_p(scores: np.ndarray, min_p: float, keep: int = 1) -> np.ndarray:
    """The tokens that are at least `min_p` times as probable as the likeliest (arXiv:2407.01082)."""
    p = probabilities(scores)
    return _above(scores, min_p * p.max(), keep)


def typical(scores: np.ndarray, mass: float, keep: int = 1) -> np.ndarray:
    """The tokens whose surprise, -log p, is nearest to its mean, the entropy, until their probabilities sum to
    `mass` (arXiv:2202.00666), and those that are as far away as the last of them."""
    distance = np.abs(-log_probabilities(scores) - entropy(scores))
    ranked = np.argsort(distance, kind="stable")
    cumulated = np.cumsum(probabilities(scores[ranked]))
    last = min(max(int((cumulated < mass).sum()), keep - 1), scores.size - 1)
    return ~(distance > distance[ranked[last]])


def above_epsilon(scores: np.ndarray, epsilon: float, keep: int = 1) -> np.ndarray:
    """The tokens of at least the probability `epsilon`, and the likeliest ones always (arXiv:2210.15191)."""
    return _above(scores, epsilon, keep)


def above_eta(scores: np.ndarray, epsilon: float, keep: int = 1) -> np.ndarray:
    """The tokens of at least the probability min(epsilon, sqrt(epsilon) * exp(-entropy)), and the likeliest ones
    always (arXiv:2210.15191)."""
    return _above(scores, min(epsilon, math.sqrt(epsilon) * math.exp(-entropy(scores))), keep)


def _above(scores: np.ndarray, threshold: float, keep: int) -> np.ndarray:
    """The tokens of at least a probability, and the `keep` likeliest with those that tie with them."""
    return ~((probabilities(scores) < threshold) & (scores < _nth(scores, keep)))


def _nth(scores: np.ndarray, n: int) -> float:
    """The nth largest score, or the smallest if there are fewer."""
    n = min(n, scores.size)
    return scores.max() if n == 1 else np.partition(scores, -n)[-n]


def _ranks(scores: np.ndarray) -> np.ndarray:
    """The places by falling score; among equals the first comes first."""
    return np.argsort(-scores, kind="stable")


def _by_id(scores: np.ndarray, ranked: np.ndarray, stays: np.ndarray) -> np.ndarray:
    """`stays`, which is said of the tokens `ranked`, said of all tokens; the others do not stay."""
    by_id = np.zeros(scores.shape, dtype=bool)
    by_id[ranked] = stays
    return by_id


def _times(p: np.ndarray, log_p: np.ndarray) -> np.ndarray:
    """p log p, with 0 log 0 = 0."""
    return p * np.where(p > 0, log_p, 0)


def draw(scores: np.ndarray, number: float) -> int:
    """The token at which the cumulated probability passes `number` from [0, 1).  [vocab] -> id

    Tokens are ranked by falling probability, then by id, so that scores which differ by rounding
    only give the same token except next to a border.
    """
    ranked = _ranks(scores)
    return int(ranked[_passed(probabilities(scores[ranked]), number)])


def draw_several(scores: np.ndarray, count: int, seed: int, row: int, position: int) -> np.ndarray:
    """`count` different places, drawn one after the other without putting back.  [any] -> [count]

    Where too few have a probability, the largest of the others follow.
    """
    ranked = _ranks(scores)
    p = probabilities(scores[ranked])
    drawn: list[int] = []
    for index in range(min(count, int(np.count_nonzero(p)))):
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
    if not np.isfinite(scores.max()):  # which is NaN where any of them is
        raise _nothing_to_choose(row, position)


def check_likeliest(token_id: int, row: int, position: int) -> int:
    """The token that `NextLogits.likeliest` gave for a row with so many tokens.

    Raises: NumericalError when it says that there is nothing to choose from.
    """
    if token_id < 0:
        raise _nothing_to_choose(row, position)
    return token_id


def _nothing_to_choose(row: int, position: int) -> NumericalError:
    return NumericalError(
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
