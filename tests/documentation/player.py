"""Runs an example of the documentation after the substitution, statement by statement."""

from __future__ import annotations

import ast
import contextlib
import doctest
import io
from dataclasses import dataclass, field
from typing import Any

from tests.documentation.examples import EXAMPLES
from tests.documentation.substitution import substitute


@dataclass
class Played:
    """What came of an example: its names, and what it printed where the page shows a result, and elsewhere."""

    names: dict[str, Any]
    #: (what the page shows, what was printed), for each statement with a result on the page
    shown: list[tuple[str, str]] = field(default_factory=list)
    printed: str = ""


def program(name: str) -> list[tuple[str, str]]:
    """The statements of an example after the substitution, each with the result that the page shows, or ""."""
    code = next(example.code for example in EXAMPLES if example.name == name)
    session = doctest.DocTestParser().get_examples(code)
    if session:
        return [(substitute(part.source), part.want) for part in session]
    block = substitute(code)
    return [(ast.get_source_segment(block, node) or "", "") for node in ast.parse(block).body]


def play(name: str, smaller: dict[str, str] | None = None, **names: Any) -> Played:
    """Run an example.  `names` are there before it begins; `smaller` replaces sizes that no test can hold."""
    played = Played(names)
    for source, want in program(name):
        for large, small in (smaller or {}).items():
            assert source.count(large) <= 1
            source = source.replace(large, small)
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            exec(compile(source, name, "single"), names)
        if want:
            played.shown.append((want, output.getvalue()))
        else:
            played.printed += output.getvalue()
    return played
