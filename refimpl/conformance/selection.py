"""Which cases are run, and which are known to fail."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from refimpl.conformance.suite import LEVELS, OPERATIONS, Case, Suite
from refimpl.errors import InputError, MissingFileError, SuiteError, quote


def tags(case: Case) -> set[str]:
    """The names by which a case can be chosen beside its id: level, operation, features, required or optional."""
    return {
        case["level"],
        case["operation"],
        *case["features"],
        "required" if case["required"] else "optional",
    }


def matches(case: Case, name: str) -> bool:
    """Whether `name` is a tag of the case, or a glob that fits its id."""
    return name in tags(case) or fnmatchcase(case["id"], name)


def select(
    suite: Suite,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    levels: Sequence[str] = (),
) -> list[Case]:
    """The cases that fit one of `include` (all, where there is none) and none of `exclude`, of one of `levels`.

    In the order of `OPERATIONS`: operations by themselves first, then whole models.
    Raises: InputError for a name that fits no case and for an unknown level; SuiteError where nothing is left.
    """
    for name in (*include, *exclude):
        if not any(matches(case, name) for case in suite.cases):
            raise _nothing(name, suite.cases)
    for level in levels:
        if level not in LEVELS:
            raise InputError("unknown level", found=quote(level), allowed=", ".join(LEVELS))
    chosen = [
        case
        for case in suite.cases
        if (not include or any(matches(case, name) for name in include))
        and not any(matches(case, name) for name in exclude)
        and (not levels or case["level"] in levels)
    ]
    if not chosen:
        raise SuiteError("no case is left to run", hint="See `refimpl conform run --list`.")
    rank = {operation: place for place, operation in enumerate(OPERATIONS)}
    return sorted(chosen, key=lambda case: rank.get(case["operation"], len(rank)))


def read_xfail(path: str | Path, cases: Iterable[Case]) -> dict[str, str]:
    """Id -> reason of the cases that are known to fail.

    The file has an id, or a glob of ids, and after white space the reason, on each line; `#` begins a comment line.
    Of several globs that fit a case the last gives the reason, and its own id before all globs.
    Raises: MissingFileError; InputError for a line without a reason, for one that fits no case of the suite, and for
        one that stands there twice.
    """
    cases = list(cases)
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise MissingFileError("no such file", where=quote(str(path))) from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the file cannot be read ({error})", where=quote(str(path))) from error
    reasons: dict[str, str] = {}
    lines: dict[str, int] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        pattern, *rest = line.strip().split(maxsplit=1)
        where = f"{path}, line {number}"
        if not rest:
            raise InputError("an expected failure needs a reason", where=where, found=quote(pattern))
        if pattern in lines:
            raise InputError(
                "this stands in the list twice",
                where=where,
                found=f"{quote(pattern)}, as in line {lines[pattern]}",
            )
        lines[pattern] = number
        fitting = [case["id"] for case in cases if fnmatchcase(case["id"], pattern)]
        if not fitting:
            raise _nothing(pattern, cases, where)
        named = pattern in fitting
        reasons |= {name: rest[0] for name in fitting if named or name not in lines}
    return reasons


def _nothing(name: str, cases: Iterable[Case], where: str | None = None) -> InputError:
    known = {case["id"] for case in cases}
    for case in cases:
        known |= tags(case)
    near = difflib.get_close_matches(name, known, n=1)
    return InputError(
        "fits no case of the suite",
        where=where,
        found=quote(name),
        allowed="an id, a glob of ids such as ops/*, or a level, an operation, a feature, required, optional",
        hint=f"Did you mean {near[0]}?" if near else None,
    )
