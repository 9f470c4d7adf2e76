"""The table of golden/README.md says what every case is given and what it wants."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any

import pytest

from tests.goldens import GOLDEN, find_cases, load_manifest, load_tensors

COLUMNS = ("arguments", "tensors", "outputs")
_LAYER = re.compile(r"(?<=\.)\d+(?=\.|$)")


def table() -> dict[str, dict[str, str]]:
    """Operation -> column -> cell."""
    text = (GOLDEN / "README.md").read_text(encoding="utf-8")
    part = text.split("### What each operation takes and gives", 1)[1].split("\n`detects`", 1)[0]
    rows = [
        [cell.strip() for cell in line[1:-1].split("|")] for line in part.splitlines() if line.startswith("|")
    ]
    return {row[0].strip("`"): dict(zip(COLUMNS, row[1:], strict=True)) for row in rows[2:]}


TABLE = table()


def described(cell: str) -> dict[str, tuple[bool, set[int]]]:
    """Name -> whether it is always there, and how many axes it may have (none known: an empty set).

    Names that are listed with commas share the shape behind the last of them.
    """
    found: dict[str, tuple[bool, set[int]]] = {}
    waiting: list[str] = []
    for name, optional, behind in re.findall(r"`([A-Za-z_][\w.]*)`(\??)([^`]*)", cell):
        known = found.get(name, (True, set()))
        found[name] = (known[0] and not optional, set(known[1]))
        waiting.append(name)
        shapes = re.findall(r"(?<!\])\[([^\]]*)\]", behind)
        if shapes:
            axes = {len(shape.split(",")) if shape else 0 for shape in shapes}
            for one in waiting:
                found[one] = (found[one][0], found[one][1] | axes)
        if behind.strip() not in (",", ""):
            waiting.clear()
    return found


def cases_of(operation: str) -> list[dict[str, Any]]:
    return find_cases(operation=operation)


def generic(name: str) -> str:
    return _LAYER.sub("N", name)


def test_every_operation_has_a_row() -> None:
    assert TABLE.keys() == {case["operation"] for case in load_manifest()["cases"]}


@pytest.mark.parametrize("operation", [name for name in TABLE if name not in ("tokenizer", "load")])
def test_the_row_names_what_the_cases_have(operation: str) -> None:
    seen: dict[str, list[set[str]]] = defaultdict(list)
    for case in cases_of(operation):
        seen["arguments"].append(set(case["inputs"]["arguments"]))
        seen["tensors"].append({generic(name) for name in case["inputs"]["tensors"]})
        if case["expect"]["kind"] != "error":
            seen["outputs"].append({generic(name) for name in case["expected"]["outputs"]})
    for column in COLUMNS:
        row = described(TABLE[operation][column])
        missing = set().union(*seen[column]) - row.keys()
        assert missing == set(), (operation, column)
        always = {name for name, (must, _) in row.items() if must and name in set().union(*seen[column])}
        whole = [names for names in seen[column] if column != "arguments" or names]
        for names in whole:
            assert always <= names, (operation, column, always - names)


@pytest.mark.parametrize(
    "operation", [name for name in TABLE if name not in ("tokenizer", "load", "quantize")]
)
def test_the_row_has_the_shapes_of_the_cases(operation: str) -> None:
    rows = {column: described(TABLE[operation][column]) for column in COLUMNS}
    for case in cases_of(operation):
        if case["expect"]["kind"] == "error":
            continue
        given = load_tensors(case["inputs"]["file"])
        for name, key in case["inputs"]["tensors"].items():
            assert given[key].ndim in rows["tensors"][generic(name)][1], (case["id"], name)
        wanted = load_tensors(case["expected"]["file"])
        for name, keys in case["expected"]["outputs"].items():
            array = wanted[keys.get("float64", keys.get("int64"))]
            assert array.ndim in rows["outputs"][generic(name)][1], (case["id"], name)
