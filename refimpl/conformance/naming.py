"""Which classic mistake a result shows: the variants are computed, and the one that gives the same numbers is named."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from refimpl.conformance import steps
from refimpl.conformance.judge import Yardstick
from refimpl.conformance.measures import scaled_error
from refimpl.conformance.planting import Copy
from refimpl.conformance.trace import Call
from refimpl.conformance.variants import VARIANTS, planted, run_copy
from refimpl.errors import RefimplError

#: A variant's own rounding may be larger than that of the right model, which the yardsticks were made with.
_SLACK = 4.0
#: Where a step departs from the right model, a variant is at most so many times as far from it.
_CLOSER = 0.5
#: Of the square of a departure, what a variant that rounds to 16 bits may leave unexplained.
_UNEXPLAINED = 0.25
#: So many mistakes of one program are looked for.
MOST_MISTAKES = 3


@dataclass
class Named:
    """Mistakes that together give the numbers that were found.

    Attributes:
        names: the mistakes; most often one.
        error: the largest error against the variant, relative to the largest value, over the steps it explains.
        explained: how many steps it explains, of those that were compared, up to `until`.
        everything: whether it explains all of them.
        same: other mistakes that give the same numbers on this model.
    """

    names: list[str]
    error: float
    explained: int
    until: str
    everything: bool
    same: list[list[str]]

    @property
    def what(self) -> str:
        return "; ".join(VARIANTS[name].what for name in self.names)


class _Differs(Exception):
    """Raised inside a run whose numbers are others: nothing after them is needed."""


def name_mistakes(
    model: Any,
    calls: list[Call],
    found: Mapping[str, np.ndarray],
    yardsticks: Mapping[str, Yardstick],
    first: str,
    deadline: float | None = None,
) -> Named | None:
    """The mistakes that explain `found` from its first departing step on; None where none does.

    model: in float64 on the NumPy backend.
    found: what is to be explained, by name; a shape that the right model does not give must be explained too.  Of
        heads that are rotated in part it may have the rotated dimensions alone.
    yardsticks: of the right model, for the same names.
    first: the first step that departs; a variant that does not explain it is none.
    deadline: after this time (of `time.monotonic`) no more variants are computed.
    """
    known: list[str] = []
    best: list[tuple[list[str], _Fit]] = []
    for _ in range(MOST_MISTAKES):
        tried = [
            ([*known, name], _fit(model, calls, [*known, name], found, yardsticks))
            for name in VARIANTS
            if name not in known and (deadline is None or time.monotonic() < deadline)
        ]
        needed = best[0][1].explained + 1 if best else 1
        fits = [
            (names, fit)
            for names, fit in tried
            if fit is not None and fit.covers(first) and fit.explained >= needed
        ]
        if not fits:
            break
        most = max(fit.explained for _, fit in fits)
        best = [(names, fit) for names, fit in fits if fit.explained == most]
        # A variant that rounds explains more roughly: exact ones come first.
        best.sort(key=lambda pair: (pair[1].rough, pair[1].error))
        known = best[0][0]
        if best[0][1].explained == len(found):
            break
    if not best:
        return None
    names, fit = best[0]
    exact = [other for other, one in best[1:] if one.rough == fit.rough]
    return Named(names, fit.error, fit.explained, fit.until, fit.explained == len(found), exact)


@dataclass
class _Fit:
    error: float = 0.0
    explained: int = 0
    until: str = ""
    rough: bool = False
    seen: tuple[str, ...] = ()

    def covers(self, name: str) -> bool:
        return name in self.seen


def _fit(
    model: Any,
    calls: list[Call],
    names: list[str],
    found: Mapping[str, np.ndarray],
    yardsticks: Mapping[str, Yardstick],
) -> _Fit | None:
    """How far a run with these mistakes agrees with what was found; None where one has no place."""
    rounds = any(VARIANTS[name].rounds for name in names)
    fit = _Fit(rough=rounds)

    def receive(name: str, array: np.ndarray) -> None:
        if name not in found:
            return
        array = _part(name, array, found[name])
        error = _agreement(array, found[name], yardsticks[name], rounds)
        if error is None:
            raise _Differs
        fit.error = max(fit.error, error)
        fit.explained, fit.until, fit.seen = fit.explained + 1, name, (*fit.seen, name)

    try:
        made: Copy | None = planted(model, calls, *names)
        if made is None:
            return None
        wanted = {steps.split_call(name)[0] for name in found}
        run_copy(made, [name for name in steps.names_of(made.model) if name in wanted], receive)
    except (_Differs, RefimplError):
        pass
    return fit


def _part(name: str, variant: np.ndarray, found: np.ndarray) -> np.ndarray:
    """What was given of each head, where that is only what was rotated."""
    rotated = steps.split_call(name)[0].endswith("_rotated")
    return variant[..., : found.shape[-1]] if rotated and found.ndim == variant.ndim else variant


def _agreement(variant: np.ndarray, found: np.ndarray, yardstick: Yardstick, rounds: bool) -> float | None:
    """The error of `found` against the variant, relative to its largest value; None where they are not the same."""
    if variant.shape[:1] == (1,) and variant.shape[1:] == found.shape[1:]:
        variant = np.broadcast_to(variant, found.shape)  # rotary tables that all rows share
    if variant.shape != found.shape or not np.isfinite(variant).all():
        return None
    # A variant may have another width or length than the right model: then all places count.
    where = yardstick.where if yardstick.right.shape == found.shape else None
    error = scaled_error(variant, found, where)
    comparable = yardstick.right.shape == found.shape
    departure_error = yardstick.error(found) if comparable else np.inf
    # Where the right model is no explanation, a variant must be a much better one.
    closer = departure_error <= yardstick.limit or error <= _CLOSER * departure_error
    if error <= _SLACK * yardstick.limit and closer:
        return error
    if not rounds or not comparable:
        return None
    counts = True if where is None else where
    left = np.sum(np.where(counts, (found - variant) ** 2, 0))
    departure = np.sum(np.where(counts, (found - yardstick.right) ** 2, 0))
    return error if left <= _UNEXPLAINED * departure else None
