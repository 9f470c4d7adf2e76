"""What a run amounts to: counts by level and operation, and the mistakes that explain the failures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from refimpl.conformance.results import STATUSES, Result, count
from refimpl.conformance.suite import LEVELS

#: So many ids are listed with a mistake.
_IDS = 3


@dataclass
class Explained:
    """A recorded mistake, and the cases in which the outputs were those that it gives."""

    mistake: str
    cases: list[str]

    def __str__(self) -> str:
        shown = ", ".join(self.cases[:_IDS])
        rest = len(self.cases) - _IDS
        return f"{self.mistake}: {len(self.cases)} {plural('case', len(self.cases))} ({shown}" + (
            f", … and {rest} more)" if rest > 0 else ")"
        )


def plural(word: str, number: int) -> str:
    """`word`, with an s unless it is one."""
    return word if number == 1 else f"{word}s"


def explained(results: Iterable[Result]) -> list[Explained]:
    """The mistakes that were named, the most frequent first; cases that failed as expected count too."""
    cases: dict[str, list[str]] = {}
    for result in results:
        for mistake in dict.fromkeys(named.mistake for named in result.mistakes):
            cases.setdefault(mistake, []).append(result.id)
    return [
        Explained(name, ids) for name, ids in sorted(cases.items(), key=lambda item: (-len(item[1]), item[0]))
    ]


def rows_by_operation(results: Sequence[Result]) -> tuple[list[str], list[list[str]]]:
    """The head and the rows of a table: level, operation, number of cases, and the number with each status."""
    statuses = list(count(results))
    numbers = Counter((result.level, result.operation, result.status) for result in results)
    pairs = {(result.level, result.operation) for result in results}
    rows = []
    for level, operation in sorted(pairs, key=lambda pair: (LEVELS.index(pair[0]), pair[1])):
        found = [numbers[level, operation, status] for status in statuses]
        rows.append([level, operation, str(sum(found)), *(str(number) if number else "" for number in found)])
    total = count(results)
    rows.append(["all", "", str(len(results)), *(str(total[status]) for status in statuses)])
    return ["level", "operation", "cases", *statuses], rows


def in_part(results: Iterable[Result]) -> dict[str, int]:
    """Output that the engine does not have -> in how many cases it was left out of the judgement."""
    missing = Counter(
        ".".join("N" if part.isdigit() else part for part in name.split("."))
        for result in results
        if result.status != "unsupported"
        for name in set(result.not_given)
    )
    return dict(sorted(missing.items()))


def unsupported(results: Iterable[Result]) -> dict[str, int]:
    """Why cases were not asked, in the engine's words or as it declared -> how many cases."""
    reasons = Counter(result.message for result in results if result.status == "unsupported")
    return dict(reasons.most_common())


def exit_code(results: Sequence[Result]) -> int:
    """0: all that was measured is right, or fails as expected; 1: something failed, or nothing was measured."""
    measured = [result for result in results if result.status != "unsupported"]
    return int(not measured or any(result.failed for result in results))


def one_line(results: Sequence[Result]) -> str:
    """The counts in words, as `1060 pass, 58 unsupported`."""
    found = count(results)
    return ", ".join(f"{found[status]:,} {status}" for status in STATUSES if status in found)
