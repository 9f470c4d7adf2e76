"""The table of divergences: every row names golden cases or tests that exist, and notice the wrong answer."""

from __future__ import annotations

import ast
import re
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from tests.goldens import load_manifest

REPOSITORY = Path(__file__).parents[2]
PAGE = REPOSITORY / "docs/divergences.md"

NUMBERS = [*map(str, range(1, 15)), "14a", "14b", *map(str, range(15, 36))]


def rows() -> dict[str, list[str]]:
    """number -> the cells after it"""
    found: dict[str, list[str]] = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split(" | ")]
        if line.startswith("|") and re.fullmatch(r"\d+[ab]?", cells[0]):
            assert cells[0] not in found, f"{cells[0]} stands twice"
            found[cells[0]] = cells[1:]
    return found


def functions_of(path: Path) -> list[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test")
    ]


def test_all_thirty_seven_are_there():
    assert list(rows()) == NUMBERS
    assert len(NUMBERS) == 37


@pytest.mark.parametrize("number", NUMBERS)
def test_a_row_is_complete(number):
    """Question, right answer, and at least one case or test; each of those exists."""
    cells = rows()[number]
    assert len(cells) == 3, cells
    assert all(cells)
    names = re.findall(r"`([^`]+)`", cells[2])
    assert names, "an empty cell"
    assert re.sub(r"`[^`]+`|\s", "", cells[2]) == "", "something other than names of cases and tests"
    cases = [case["id"] for case in load_manifest()["cases"]]
    for name in names:
        if "::" in name:
            file, _, test = name.partition("::")
            assert any(fnmatchcase(found, test) for found in functions_of(REPOSITORY / file)), name
        else:
            assert any(fnmatchcase(case, name) for case in cases), name


def test_an_empty_cell_is_noticed(monkeypatch):
    monkeypatch.setitem(globals(), "rows", lambda: {"1": ["question", "right", ""]})
    with pytest.raises(AssertionError):
        test_a_row_is_complete("1")
    monkeypatch.setitem(globals(), "rows", lambda: {"1": ["question", "right", "`gpt_neox/no-such-case`"]})
    with pytest.raises(AssertionError, match="no-such-case"):
        test_a_row_is_complete("1")
