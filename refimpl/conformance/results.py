"""What came of a case, as it is judged, logged and reported."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from typing import Any

#: Every outcome, best first. `refused`: an error where a result was wanted; `invalid`: no answer in the sense of
#: the protocol; `xfail`: failed as the list of known deviations says; `xpass`: on that list, and right.
STATUSES = (
    "pass", "xfail", "unsupported", "fail", "refused", "invalid", "crashed", "timeout", "xpass",
)  # fmt: skip

#: With one of these the run has failed.
FAILED = frozenset({"fail", "refused", "invalid", "crashed", "timeout", "xpass"})


@dataclass
class Judged:
    """One output beside what was expected.

    Attributes: `difference`, the largest, on the scale of the tolerance, and `tolerance`, None for exact outputs;
        `place` of it; `first`, the first place that is beyond the tolerance; `found` and `wanted` at `first`.
    """

    output: str
    passed: bool
    message: str = ""
    difference: float | None = None
    tolerance: float | None = None
    place: list[int] | None = None
    first: list[int] | None = None
    found: Any = None
    wanted: Any = None


@dataclass
class Named:
    """A mistake that an output matches.

    Attributes: `distance` from what the mistake gives, None where it is equal; `computed`: what it gives was computed
        here, from the inputs of the case; else it is recorded in the suite; `partly`: what of the other outputs it
        explains, "" where all; `share`: how much of the departure it explains, where something else is off too.
    """

    mistake: str
    output: str
    distance: float | None = None
    computed: bool = False
    partly: str = ""
    share: float | None = None

    def __str__(self) -> str:
        if self.share is not None:
            return (
                f"{self.mistake} explains {self.share:.0%} of the departure of {self.output}, not all of it"
            )
        said = ["computed here" if self.computed else "recorded"]
        said.append("exactly" if self.distance is None else f"to {self.distance:.1g}")
        said += [self.partly] if self.partly else []
        return f"{self.mistake} gives the same {self.output} ({', '.join(said)})"


@dataclass
class Result:
    """What came of one case.

    Attributes:
        outputs: those that were compared; of one that passed only the worst is worth a look.
        mistakes: known mistakes that explain the difference, the nearest first.
        not_given: expected outputs that the engine does not have, so that the case was judged in part.
        reason: of an expected failure, from the list of them.
    """

    id: str
    level: str
    operation: str
    required: bool
    status: str
    message: str = ""
    seconds: float = 0.0
    outputs: list[Judged] = field(default_factory=list)
    mistakes: list[Named] = field(default_factory=list)
    not_given: list[str] = field(default_factory=list)
    noise: list[str] = field(default_factory=list)
    stderr: list[str] = field(default_factory=list)
    reason: str | None = None

    @property
    def failed(self) -> bool:
        return self.status in FAILED

    @property
    def worst(self) -> Judged | None:
        """The first output that is wrong, in the order of computation."""
        return next((judged for judged in self.outputs if not judged.passed), None)

    def to_json(self) -> dict[str, Any]:
        """As it stands in logs and reports; of right outputs only how far they were off."""
        entry = asdict(self)
        keys = {True: ("output", "difference", "tolerance"), False: tuple(f.name for f in fields(Judged))}
        entry["outputs"] = [
            {key: judged[key] for key in keys[judged["passed"]] if judged[key] is not None}
            for judged in entry["outputs"]
        ]
        entry["mistakes"] = [
            {key: value for key, value in named.items() if value not in (None, "", False)}
            for named in entry["mistakes"]
        ]
        return {key: value for key, value in entry.items() if value not in (None, [], "")}

    @classmethod
    def from_json(cls, entry: dict[str, Any]) -> Result:
        """The result of a line of a log."""
        known = {key: value for key, value in entry.items() if key in {f.name for f in fields(cls)}}
        known["outputs"] = [Judged(**{"passed": True, **judged}) for judged in entry.get("outputs", ())]
        known["mistakes"] = [Named(**named) for named in entry.get("mistakes", ())]
        return cls(**known)


def count(results: Iterable[Result]) -> dict[str, int]:
    """How many results have each status; those that none has are left out."""
    found = dict.fromkeys(STATUSES, 0)
    for result in results:
        found[result.status] += 1
    return {status: number for status, number in found.items() if number}
