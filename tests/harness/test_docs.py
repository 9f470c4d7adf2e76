"""What the documentation shows is true: its programs run, its links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PAGES = sorted(
    [REPOSITORY / "README.md", *(REPOSITORY / "docs").rglob("*.md"), REPOSITORY / "golden/README.md"]
)


def ids(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_programs_run(page, tmp_path, monkeypatch):
    """Every block of Python on a page, one after the other, in one namespace."""
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    for block in blocks:
        exec(compile(block, str(page), "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_files_that_are_named_exist(page):
    """`folder/file.py` in the text is a path from the root of the repository."""
    text = page.read_text(encoding="utf-8")
    for target in re.findall(
        r"`((?:refimpl|backends|tokenizer|tests|golden|docs)/[\w./-]+\.(?:py|json|md|txt))`", text
    ):
        if "scratch/" not in target:
            assert (REPOSITORY / target).exists(), target
