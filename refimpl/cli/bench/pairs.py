"""Comparing two programs on a machine that others use too.

Its speed drifts, so two figures taken one after the other say little.  Here both programs are alive at once and
take turns, A B A B ...; what counts is the ratio within each pair, of which the median and the quartiles
are kept.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from refimpl.cli.bench.participants import Participant
from refimpl.errors import RefimplError

# Enough pairs were seen once a series has taken so long [s], and there are so many.
_LONG_SERIES, _FEW_PAIRS = 10.0, 3

# The least time [s]: a clock may be too coarse to see any pass.
_NOTHING = 1e-9

Run = Callable[[], float]


@dataclass(frozen=True)
class Spread:
    """The middle of some values, and the quarters of them below and above it."""

    median: float
    q1: float
    q3: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """None where there are no values."""
        if not values:
            return None
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, q1, q3)


@dataclass(frozen=True)
class Task:
    """Something to measure: `action` is "encode" or "decode", of each string by itself or of all in one call.

    It is done with one variant of the strings after the other.
    """

    case: str
    text: str
    action: str
    each: bool
    variants: Sequence[Sequence[str]] = field(repr=False)

    @property
    def operation(self) -> str:
        return self.action if self.each else f"{self.action}_batch"

    @property
    def sizes(self) -> list[int]:
        """The bytes of each variant, in UTF-8."""
        return [sum(len(string.encode()) for string in strings) for strings in self.variants]

    @property
    def bytes(self) -> int:
        """Those of a variant, on average."""
        return round(sum(self.sizes) / len(self.sizes))


@dataclass
class Against:
    """One peer in one task: `ratio` is how many times as long as we it takes, pair by pair."""

    name: str
    seconds: list[float] = field(default_factory=list)
    our_seconds: list[float] = field(default_factory=list)
    mb_per_s: Spread | None = None
    ratio: Spread | None = None
    same_result: bool | None = None
    difference: str | None = None
    failed: str | None = None


@dataclass
class Result:
    """One task with one number of threads.

    `strings`, `bytes`, `tokens` and `seconds` are those of one of the `variants`, on average.
    """

    case: str
    text: str
    action: str
    threads: int
    variants: int
    strings: int
    bytes: int
    tokens: int | None = None
    seconds: list[float] = field(default_factory=list)
    mb_per_s: Spread | None = None
    growth: Spread | None = None
    failed: str | None = None
    against: list[Against] = field(default_factory=list)


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """How many times as long they took, for each pair; above 1 we are faster."""
    return [their / our for our, their in zip(ours, theirs, strict=True)]


def speeds(size: int, seconds: Sequence[float]) -> list[float]:
    """`size` bytes in each of these times, in MB/s (1 MB = 1,000,000 bytes)."""
    return [size / 1e6 / one for one in seconds]


def take_turns(
    first: Run, second: Run, repeat: int, enough: float = _LONG_SERIES
) -> tuple[list[float], list[float]]:
    """The seconds of both, run `repeat` times in turn; fewer times where that takes `enough` seconds."""
    pairs: list[tuple[float, float]] = []
    spent = 0.0
    while len(pairs) < repeat and (spent < enough or len(pairs) < _FEW_PAIRS):
        pairs.append((first(), second()))
        spent += sum(pairs[-1])
    return [one for one, _ in pairs], [other for _, other in pairs]


class Prepared:
    """A participant that has the strings of a task, has done it once, and will repeat it on call."""

    def __init__(self, participant: Participant, task: Task, shortest: float):
        """`shortest` is how long one measurement should take at least [s]. Raises: RefimplError."""
        self.participant, self._task, self._sizes = participant, task, task.sizes
        numbers = range(len(task.variants))
        participant.ask("forget")
        for number, strings in enumerate(task.variants):
            participant.ask("give", name=f"strings {number}", items=list(strings))
        self._of = [f"strings {number}" for number in numbers]
        if task.action == "decode":
            for number, of in enumerate(self._of):
                participant.ask("make", name=f"ids {number}", operation="encode_batch", of=of, each=False)
            self._of = [f"ids {number}" for number in numbers]
        self.digests: list[list[str]] = []
        self.length = 0
        for number, of in enumerate(self._of):
            made = participant.ask(
                "make", name=f"result {number}", operation=task.operation, of=of, each=task.each
            )
            self.digests.append(made["digests"])
            self.length += sum(made["sizes"])
        self._next, self._times = 0, 1
        self._times = _times(self.run(), shortest)

    def run(self) -> float:
        """The seconds of doing the task with one variant; the next call goes on with the next ones.

        Raises: RefimplError.
        """
        answer = self.participant.ask(
            "run",
            operation=self._task.operation,
            of=self._of,
            each=self._task.each,
            first=self._next,
            times=self._times,
        )
        done = sum(self._sizes[(self._next + number) % len(self._sizes)] for number in range(self._times))
        self._next += self._times
        return max(answer["seconds"] * self._task.bytes / done, _NOTHING)

    def result(self, variant: int, index: int) -> Any:
        """The ids or the text of one string. Raises: RefimplError."""
        return self.participant.ask("show", name=f"result {variant}", index=index)["item"]


def measure(
    ours: Participant, peers: Sequence[Participant], task: Task, repeat: int, shortest: float
) -> Result:
    """One task: we alone, or with each peer in turn. What fails is said in the result."""
    count = len(task.variants)
    strings = round(sum(map(len, task.variants)) / count)
    result = Result(task.case, task.text, task.action, ours.threads, count, strings, task.bytes)
    try:
        prepared = Prepared(ours, task, shortest)
        result.tokens = round(prepared.length / count) if task.action == "encode" else None
        for peer in peers:
            result.against.append(_compare(prepared, peer, task, repeat, shortest))
            result.seconds += result.against[-1].our_seconds
        if not result.seconds:
            result.seconds = [prepared.run() for _ in range(repeat)]
    except RefimplError as error:
        result.failed = str(error)
    result.mb_per_s = Spread.of(speeds(result.bytes, result.seconds))
    return result


def _compare(ours: Prepared, peer: Participant, task: Task, repeat: int, shortest: float) -> Against:
    """Raises: RefimplError when it is we who fail."""
    against = Against(peer.name)
    try:
        theirs = Prepared(peer, task, shortest)
        against.same_result = theirs.digests == ours.digests
        if not against.same_result:
            against.difference = first_difference(ours, theirs)
            return against  # the speed of wrong results is worth nothing
        against.our_seconds, against.seconds = take_turns(ours.run, theirs.run, repeat)
    except RefimplError as error:
        if error.where == ours.participant.name:
            raise
        against.failed = error.what
    against.mb_per_s = Spread.of(speeds(task.bytes, against.seconds))
    against.ratio = Spread.of(ratios(against.our_seconds, against.seconds))
    return against


def first_difference(ours: Prepared, theirs: Prepared) -> str:
    """Where two results begin to differ, in words. Raises: RefimplError."""
    variant = _first_unequal(ours.digests, theirs.digests)
    some, others = ours.digests[variant], theirs.digests[variant]
    if len(some) != len(others):
        return f"{len(some)} results here, {len(others)} there"
    index = _first_unequal(some, others)
    mine, other = ours.result(variant, index), theirs.result(variant, index)
    place = _first_unequal(mine, other)
    return (
        f"string {index} of part {variant}, position {place}: {mine[place : place + 4]!r} here, "
        f"{other[place : place + 4]!r} there ({len(mine)} and {len(other)} long)"
    )


def _first_unequal(some: Sequence[Any], others: Sequence[Any]) -> int:
    """The first position with different elements; where one is the beginning of the other, its end."""
    unequal = (number for number, (a, b) in enumerate(zip(some, others, strict=False)) if a != b)
    return next(unequal, min(len(some), len(others)))


def growth(
    participant: Participant, operation: str, text: str, twice: str, repeat: int, shortest: float
) -> Spread | None:
    """How many times as long twice the text takes: 2 where the time is proportional. Raises: RefimplError."""
    participant.ask("give", name="once", items=[text])
    participant.ask("give", name="twice", items=[twice])

    def run(name: str, times: int) -> float:
        answer = participant.ask("run", operation=operation, of=[name], each=True, first=0, times=times)
        return max(answer["seconds"] / times, _NOTHING)

    times = _times(run("twice", 1), shortest)
    return Spread.of(ratios(*take_turns(lambda: run("once", times), lambda: run("twice", times), repeat)))


def _times(seconds: float, shortest: float) -> int:
    """How often to do something that takes `seconds`, so that all of it takes at least `shortest`."""
    return max(1, min(100_000, math.ceil(shortest / seconds)))


def rounded(value: Any) -> Any:
    """Six digits of every real number: a clock has no more."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return value
