"""How far one run is from another on the same tokens: the statistics of llama.cpp.

Source: llama.cpp, tools/perplexity/README.md
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from refimpl.evaluation.base_file import BaseRows
from refimpl.evaluation.scoring import Estimate, exp_of, log_probabilities, mean_of

KL_PERCENTILES = (99.9, 99, 95, 90, 50, 10, 5, 1)
DELTA_P_PERCENTILES = (99.9, 99, 95, 90, 75, 50, 25, 10, 5, 1, 0.1)


@dataclass
class Divergence:
    """What is compared for each scored token; all arrays are [scored].

    kl: the Kullback-Leibler divergence of the run from the base, sum of p_base * ln(p_base / p), in nats.
    nll, base_nll: -ln p of the token of the text.
    same_top: whether the likeliest token is the same.
    """

    kl: np.ndarray = field(default_factory=lambda: np.zeros(0))
    nll: np.ndarray = field(default_factory=lambda: np.zeros(0))
    base_nll: np.ndarray = field(default_factory=lambda: np.zeros(0))
    same_top: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=bool))

    @classmethod
    def of_rows(cls, logits: np.ndarray, base: BaseRows, targets: np.ndarray) -> Self:
        """Of one window.  [rows, vocab], what the base says of the same rows, [rows]"""
        kl, nll = np.empty(len(targets)), np.empty(len(targets))
        same_top = logits.argmax(axis=1) == base.top
        for rows, log_probs in log_probabilities(logits):
            of_base = base.log_probs[rows]
            kl[rows] = (np.exp(of_base) * (of_base - log_probs)).sum(axis=1)
            nll[rows] = -log_probs[np.arange(len(log_probs)), targets[rows]]
        return cls(kl, nll, base.nll, same_top)

    @classmethod
    def joined(cls, parts: list[Divergence]) -> Self:
        """All windows as one."""
        names = ("kl", "nll", "base_nll", "same_top")
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    @property
    def delta_p(self) -> np.ndarray:
        """By how much the token of the text is likelier than in the base.  [scored], -1 to 1"""
        return np.exp(-self.nll) - np.exp(-self.base_nll)

    def report(self) -> dict[str, Any]:
        """All statistics, with their standard errors, as JSON values."""
        run, base = mean_of(self.nll), mean_of(self.base_nll)
        ratio = mean_of(self.nll - self.base_nll)
        return {
            "perplexity": _json(exp_of(run)),
            "base_perplexity": _json(exp_of(base)),
            "correlation": self._correlation(),
            "ln_perplexity_ratio": _json(ratio),
            "perplexity_ratio": _json(exp_of(ratio)),
            "perplexity_difference": _json(self._difference(exp_of(run), exp_of(base))),
            "kl_divergence": {
                **_json(mean_of(self.kl)),
                "maximum": float(self.kl.max()),
                **_percentiles(self.kl, KL_PERCENTILES),
                "minimum": float(self.kl.min()),
            },
            "delta_p": {
                **_json(mean_of(self.delta_p)),
                "maximum": float(self.delta_p.max()),
                **_percentiles(self.delta_p, DELTA_P_PERCENTILES),
                "minimum": float(self.delta_p.min()),
            },
            "rms_delta_p": _json(_root(mean_of(self.delta_p**2))),
            "same_top": _json(mean_of(self.same_top.astype(np.float64))),
        }

    def _covariance(self) -> np.ndarray:
        """Of the two means.  [2, 2]"""
        return np.cov(self.nll, self.base_nll) / len(self.nll)

    def _correlation(self) -> float | None:
        """Of the losses of the two runs; None where one of them never changes."""
        if len(self.nll) < 2 or not (self.nll.std() and self.base_nll.std()):
            return None
        return float(np.corrcoef(self.nll, self.base_nll)[0, 1])

    def _difference(self, run: Estimate, base: Estimate) -> Estimate:
        difference = run.value - base.value
        if len(self.nll) < 2:
            return Estimate(difference, None)
        slope = np.array([run.value, -base.value])
        return Estimate(difference, math.sqrt(max(float(slope @ self._covariance() @ slope), 0.0)))


def _root(mean_square: Estimate) -> Estimate:
    """The root of a mean of squares; its standard error to first order."""
    value = math.sqrt(mean_square.value)
    error = mean_square.standard_error
    return Estimate(value, None if error is None or not value else 0.5 * error / value)


def _json(estimate: Estimate) -> dict[str, float | None]:
    return {"mean": estimate.value, "standard_error": estimate.standard_error}


def _percentiles(values: np.ndarray, wanted: tuple[float, ...]) -> dict[str, float]:
    found = np.percentile(values, wanted)
    names = ["median" if percent == 50 else f"{percent:g}%" for percent in wanted]
    return {name: float(value) for name, value in zip(names, found, strict=True)}
