"""The log-probability of each token of a text, window by window, and what follows from them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np

from refimpl.arrays import to_numpy
from refimpl.errors import NumericalError
from refimpl.evaluation.windows import Window

# So many numbers of float64 at once: logits of a whole window would take gigabytes.
_BLOCK_NUMBERS = 1 << 22


class Estimate(NamedTuple):
    """A mean and its standard error, which takes the tokens as independent; None where there is one token only."""

    value: float
    standard_error: float | None


def mean_of(values: np.ndarray) -> Estimate:
    """The mean of at least one value."""
    count = len(values)
    error = float(values.std(ddof=1)) / math.sqrt(count) if count > 1 else None
    return Estimate(float(values.mean()), error)


def exp_of(estimate: Estimate) -> Estimate:
    """exp of a mean; its standard error to first order."""
    value = math.exp(estimate.value) if estimate.value < 700 else math.inf
    error = estimate.standard_error
    return Estimate(value, None if error is None else value * error)


class Losses:
    """-ln p of tokens, as they come in; the perplexity so far is known at any time."""

    def __init__(self) -> None:
        self._parts: list[np.ndarray] = []
        self._count, self._sum, self._squares = 0, 0.0, 0.0

    def __len__(self) -> int:
        return self._count

    def add(self, nll: np.ndarray) -> None:
        """[scored], float64"""
        self._parts.append(nll)
        self._count += len(nll)
        self._sum += float(nll.sum())
        self._squares += float((nll * nll).sum())

    @property
    def values(self) -> np.ndarray:
        """All of them in the order of the text.  [scored], float64"""
        return np.concatenate(self._parts) if self._parts else np.zeros(0)

    @property
    def mean(self) -> Estimate:
        """The mean in nats."""
        mean = self._sum / self._count
        if self._count < 2:
            return Estimate(mean, None)
        variance = max(self._squares / self._count - mean * mean, 0.0)
        return Estimate(mean, math.sqrt(variance / (self._count - 1)))

    @property
    def perplexity(self) -> Estimate:
        """exp of the mean."""
        return exp_of(self.mean)


def window_logits(
    model: Any, ids: np.ndarray, windows: Sequence[Window], batch_size: int = 1
) -> Iterator[tuple[Window, np.ndarray]]:
    """The logits from which the scored tokens of each window follow.

    Yields: (window, logits `[scored, vocab]`): row i speaks of token `window.first + i`.
    Raises: NumericalError for logits that are not finite.
    """
    for _, same in groupby(
        windows, key=lambda window: (window.end - window.start, window.first - window.start)
    ):
        alike = list(same)  # only rows of one shape can be read together
        for begin in range(0, len(alike), batch_size):
            yield from _read(model, ids, alike[begin : begin + batch_size])


def _read(model: Any, ids: np.ndarray, alike: list[Window]) -> Iterator[tuple[Window, np.ndarray]]:
    first = alike[0]
    rows = np.stack([ids[window.start : window.end] for window in alike])
    # The logits that speak of a token are those of the token before it.
    before = np.arange(first.first, first.end) - first.start - 1
    logits = to_numpy(model(rows, use_cache=False, return_dict=True, logits_to_keep=before).logits)
    for window, found in zip(alike, logits, strict=True):
        if not np.isfinite(found).all():
            raise NumericalError(
                "the logits are not finite",
                where=f"tokens {window.start} to {window.end - 1}",
                hint="A larger dtype may help: --dtype float64, or float32 in place of float16.",
                op="logits",
            )
        yield window, found


def log_probabilities(logits: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """ln of the softmax, in float64 and some rows at a time.  [rows, vocab] -> (rows, [some, vocab])"""
    size = max(1, _BLOCK_NUMBERS // logits.shape[1])
    for begin in range(0, len(logits), size):
        rows = slice(begin, min(begin + size, len(logits)))
        shifted = logits[rows].astype(np.float64)
        shifted -= shifted.max(axis=1, keepdims=True)
        shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        yield rows, shifted


def losses_of(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """-ln p of the target of each row.  [rows, vocab], [rows] -> [rows], float64"""
    found = np.empty(len(targets))
    for rows, log_probs in log_probabilities(logits):
        found[rows] = -log_probs[np.arange(len(log_probs)), targets[rows]]
    return found
