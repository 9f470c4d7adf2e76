"""The table of the specification: every line of code stands where it says, every case exists, nothing is left out."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from pathlib import Path

from tests.goldens import load_manifest

REPOSITORY = Path(__file__).parents[2]
PAGE = REPOSITORY / "docs/spec/README.md"


def chapters() -> dict[str, str]:
    parts = re.split(r"^## (\d+\. .*)$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_every_line_stands_where_it_says():
    found = re.findall(r"`([\w/]+\.py)`: `([^`]+)`", PAGE.read_text(encoding="utf-8"))
    assert len(found) > 25
    for file, line in found:
        assert line in (REPOSITORY / file).read_text(encoding="utf-8"), f"{file}: {line}"


def test_every_chapter_names_cases_and_all_of_them_exist():
    ids = [case["id"] for case in load_manifest()["cases"]]
    assert len(chapters()) == 16
    for title, text in chapters().items():
        if "divergences.md" in text:
            continue
        named = re.findall(r"`([^`]+)`", re.search(r"^Cases: (.*)$", text, re.MULTILINE)[1])
        assert named, title
        for pattern in named:
            assert any(fnmatchcase(name, pattern) for name in ids), f"{title}: {pattern}"


def test_every_page_of_the_specification_is_named():
    text = PAGE.read_text(encoding="utf-8")
    for path in PAGE.parent.glob("*.md"):
        assert path == PAGE or f"]({path.name}" in text, path.name
