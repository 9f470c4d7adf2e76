"""Whether the names in a handshake mean something: a mistyped one would pass in silence, and count for nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase

from refimpl.conformance.protocol import Capabilities
from refimpl.conformance.requests import wanted_outputs
from refimpl.conformance.suite import LEVELS, OPERATIONS, Suite
from refimpl.errors import EngineError, quote

#: Keys of the handshake that may be missing, so that a mistyped one would not be missed.
_OPTIONAL = ("version", "has", "lacks", "tensors", "encoding", "details")
_SHOWN = 8
_NUMBER = re.compile(r"\d+")


def check_keys(answer: Iterable[str]) -> None:
    """Raises: EngineError for a key of the handshake that looks like an optional one mistyped."""
    for key in answer:
        near = None if key in _OPTIONAL else _nearest(key, _OPTIONAL)
        if near is not None:
            raise _mistyped(f"the handshake has no {quote(key)}", near)


def check_names(engine: Capabilities, suite: Suite) -> list[str]:
    """The names and globs under `has` and `lacks`, held against the suite.

    Returns: what is to be said of those that fit nothing in it: an engine may know a newer suite, so they are allowed.
    Raises: EngineError for one that is like a name of the suite but for a letter or two.
    """
    notes = []
    for side, classes in (("has", engine.has), ("lacks", engine.lacks)):
        for kind, names in classes.items():
            known = _known(kind, suite)
            for name in names:
                if any(fnmatchcase(other, name) for other in known):
                    continue
                where, one = f"{side} {kind}", kind[:-1]
                near = _nearest(name, known)
                if near is not None:
                    raise _mistyped(f"the handshake ({where}) names {quote(name)}, which is no {one}", near)
                shown = sorted(known)[:_SHOWN] + (["…"] if len(known) > _SHOWN else [])
                notes.append(
                    f"the handshake ({where}) names {quote(name)}: no {one} of this suite ({', '.join(shown)})"
                )
    return notes


def _mistyped(what: str, near: str) -> EngineError:
    return EngineError(what, hint=f"Did you mean {near}?")


def _known(kind: str, suite: Suite) -> set[str]:
    if kind == "levels":
        return set(LEVELS)
    if kind == "operations":
        return {*OPERATIONS, *(case["operation"] for case in suite.cases)}
    if kind == "features":
        return {feature for case in suite.cases for feature in case["features"]}
    return {name for case in suite.cases for name in wanted_outputs(suite, case)}


def _nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that `name` is but for separators and capitals, or for a letter (of a long name: two)."""
    if any(sign in name for sign in "*?["):
        return None
    plain = _plain(name)
    # `layers.9` is no `layers.0` mistyped: the models of the suite are not that deep.
    others = [other for other in known if _NUMBER.sub("", other) != _NUMBER.sub("", name)]
    found = [(_typing_errors(plain, _plain(other)), other) for other in others]
    near = [(errors, other) for errors, other in found if errors <= (2 if len(plain) > 7 else 1)]
    return min(near)[1] if near and len(plain) > 2 else None


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "").replace(".", "")


def _typing_errors(a: str, b: str) -> int:
    """How many letters have to be put in, left out, replaced or swapped with the next one to make `b` of `a`."""
    rows: list[list[int]] = [list(range(len(b) + 1))]
    for i, one in enumerate(a, 1):
        row = [i]
        for j, other in enumerate(b, 1):
            row.append(min(rows[i - 1][j] + 1, row[j - 1] + 1, rows[i - 1][j - 1] + (one != other)))
            if i > 1 and j > 1 and one == b[j - 2] and other == a[i - 2]:
                row[j] = min(row[j], rows[i - 2][j - 2] + 1)
        rows.append(row)
    return rows[-1][-1]
