"""How far two arrays lie apart: the figures of a comparison.  Everything is computed in float64.

`wanted` is what the figures are relative to, `found` what is judged; `where` (bool, of their shape) leaves out
places that have no right value, such as padding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

#: Classes of the histogram of distances in units in the last place of float32: the largest of each.
ULP_CLASSES = (0, 1, 2, 4, 8, 16, 64, 256, 4096)


@dataclass
class Difference:
    """What distinguishes two arrays.

    Attributes:
        max_abs: the largest |found - wanted|, at the index `place`.
        max_rel: the largest |found - wanted| / |wanted|, where wanted is not 0.
        scaled: `max_abs` relative to the largest |wanted|; this is what is judged.
        rmse: root of the mean square; nmse: sum of squares, relative to that of `wanted`.
        cosine: of the angle between the two as vectors; None where one of them is 0.
        ulps: for each of `ULP_CLASSES`, and for more, how many values lie so far apart in float32.
    """

    max_abs: float
    max_rel: float
    scaled: float
    rmse: float
    nmse: float
    cosine: float | None
    place: list[int]
    ulps: list[int]

    @property
    def is_none(self) -> bool:
        return self.max_abs == 0.0


def difference(wanted: np.ndarray, found: np.ndarray, where: np.ndarray | None = None) -> Difference:
    """All figures, of two finite arrays of one shape."""
    a, b = _pair(wanted, found, where)
    apart = np.abs(b - a)
    place = int(np.argmax(apart)) if apart.size else 0
    largest, nonzero = float(np.max(np.abs(a), initial=0.0)), a != 0
    squares, energy, other = float(np.sum(apart**2)), float(np.sum(a * a)), float(np.sum(b * b))
    most = float(np.max(apart, initial=0.0))
    return Difference(
        max_abs=most,
        max_rel=float(np.max(apart[nonzero] / np.abs(a[nonzero]), initial=0.0)),
        scaled=most / (largest or 1.0),
        rmse=float(np.sqrt(squares / max(a.size, 1))),
        nmse=squares / (energy or 1.0),
        cosine=float(np.sum(a * b) / np.sqrt(energy * other)) if energy and other else None,
        place=[int(i) for i in np.unravel_index(place, wanted.shape)] if apart.size else [],
        ulps=ulp_histogram(a, b),
    )


def scaled_error(wanted: np.ndarray, found: np.ndarray, where: np.ndarray | None = None) -> float:
    """The largest |found - wanted|, relative to the largest |wanted|."""
    a, b = _pair(wanted, found, where)
    return float(np.max(np.abs(b - a), initial=0.0)) / (float(np.max(np.abs(a), initial=0.0)) or 1.0)


def _pair(wanted: np.ndarray, found: np.ndarray, where: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Both in float64, with 0 in both where nothing is to be compared."""
    a, b = wanted.astype(np.float64), found.astype(np.float64)
    return (a, b) if where is None else (np.where(where, a, 0.0), np.where(where, b, 0.0))


def ulp_histogram(a: np.ndarray, b: np.ndarray) -> list[int]:
    """How many values are 0, 1, 2, up to 4, ... float32 numbers apart: a count for each class, and for the rest."""
    with np.errstate(over="ignore"):
        distance = np.abs(_ordered(b.astype(np.float32)) - _ordered(a.astype(np.float32)))
    classes = np.searchsorted(ULP_CLASSES, distance.reshape(-1))
    return np.bincount(classes, minlength=len(ULP_CLASSES) + 1).tolist()


def _ordered(array: np.ndarray) -> np.ndarray:
    """Whole numbers in the order of the floats, neighbours one apart; both zeros are 0."""
    bits = np.ascontiguousarray(array).view(np.int32).astype(np.int64)
    return np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)


@dataclass
class LogitsDifference:
    """What the difference means for the next token, over all positions that count.

    Attributes:
        kl_mean, kl_max: Kullback-Leibler divergence of `found` from `wanted`, in nats.
        top1: the part of positions whose likeliest token is the same; top5: the mean part of the five likeliest
            that are the same.
        smallest_margin: the smallest lead of the likeliest token over the second one, in `wanted`.
        largest_lost_margin: the largest lead that `wanted` gave to its token over the one that `found` prefers,
            0 where they always agree: a near-tie may flip by rounding, a clear lead may not.
    """

    positions: int
    kl_mean: float
    kl_max: float
    top1: float
    top5: float
    smallest_margin: float
    largest_lost_margin: float


def logits_difference(
    wanted: np.ndarray, found: np.ndarray, rows: np.ndarray | None = None
) -> LogitsDifference:
    """[..., vocab], [..., vocab]; `rows` [...] bool: the positions that count."""
    vocab = wanted.shape[-1]
    keep = slice(None) if rows is None else rows.reshape(-1)
    a = wanted.astype(np.float64).reshape(-1, vocab)[keep]
    b = found.astype(np.float64).reshape(-1, vocab)[keep]
    log_p, log_q = _log_softmax(a), _log_softmax(b)
    kl = np.maximum(np.sum(np.exp(log_p) * (log_p - log_q), axis=-1), 0.0)
    best_a, best_b, each = a.argmax(axis=-1), b.argmax(axis=-1), np.arange(len(a))
    count = min(5, vocab)
    first_a, first_b = (np.argsort(-one, axis=-1, kind="stable")[:, :count] for one in (a, b))
    common = (first_a[:, :, None] == first_b[:, None, :]).any(axis=2).mean(axis=1)
    ordered = np.sort(a, axis=-1)
    lead = ordered[:, -1] - ordered[:, -2] if vocab > 1 else np.zeros(len(a))
    return LogitsDifference(
        positions=len(a),
        kl_mean=float(kl.mean()) if len(a) else 0.0,
        kl_max=float(np.max(kl, initial=0.0)),
        top1=float((best_a == best_b).mean()) if len(a) else 1.0,
        top5=float(common.mean()) if len(a) else 1.0,
        smallest_margin=float(lead.min()) if len(a) else 0.0,
        largest_lost_margin=float(np.max(a[each, best_a] - a[each, best_b], initial=0.0)),
    )


def _log_softmax(scores: np.ndarray) -> np.ndarray:
    shifted = scores - scores.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def by_axis(wanted: np.ndarray, found: np.ndarray, axis: int, where: np.ndarray | None = None) -> list[float]:
    """For each place along `axis` the largest |found - wanted|, relative to the largest |wanted| of all."""
    a, b = _pair(wanted, found, where)
    others: Any = tuple(i for i in range(a.ndim) if i != axis)
    return (np.abs(b - a).max(axis=others) / (float(np.max(np.abs(a), initial=0.0)) or 1.0)).tolist()
