"""The rules of the house: who may import whom, what importing loads, and what model code may name."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import refimpl

REPOSITORY = Path(__file__).parents[2]

THIRD_PARTY = {
    "tokenizer": {"numpy", "regex", "numba", "sentencepiece"},  # the last is optional
    "backends": {"numpy", "ml_dtypes", "numba", "llvmlite", "cupy"},
    # numba and llvmlite: kernel_cache; lm_eval: its adapter, which nothing else imports
    "refimpl": {"numpy", "safetensors", "huggingface_hub", "numba", "llvmlite", "lm_eval"},
}
HOUSE = {
    "tokenizer": {
        "refimpl.errors",
        "refimpl.files",
        "refimpl.hub",
        "refimpl.json_reader",
        "refimpl.kernel_cache",
        "refimpl.tokenizer",
    },
    "backends": {"refimpl.errors", "refimpl.kernel_cache", "refimpl.backends"},
    "refimpl": {"refimpl"},
}


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found.add(node.module or "")
    return found


def modules(room: str) -> list[Path]:
    return sorted((REPOSITORY / room).rglob("*.py"))


@pytest.mark.parametrize("room", ["tokenizer", "backends", "refimpl"])
def test_imports_go_one_way(room):
    assert modules(room)
    for path in modules(room):
        for name in imports(path):
            top = name.split(".")[0]
            if top == "refimpl":
                assert any(name == n or name.startswith(n + ".") for n in HOUSE[room]), f"{path}: {name}"
            else:
                assert top in sys.stdlib_module_names or top in THIRD_PARTY[room], f"{path}: {name}"


def test_model_code_knows_no_backend():
    for path in modules("refimpl"):
        text = path.read_text(encoding="utf-8").lower()
        if "cli" not in path.parts and path.name != "kernel_cache.py":
            assert "numba" not in text, path
            assert "cupy" not in text.replace('"cupy"', ""), path


def test_importing_loads_nothing_heavy():
    program = (
        "import sys, refimpl; heavy = {'torch', 'transformers', 'numba', 'cupy', 'numpy', 'huggingface_hub'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_using_the_model_loads_no_framework():
    program = (
        "import sys; from tests.tiny import tiny_model, tiny_ids; tiny_model().generate(tiny_ids(1), max_new_tokens=3);"
        "print(sorted({'torch', 'transformers', 'numba', 'cupy', 'huggingface_hub'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=REPOSITORY
    )
    assert result.stdout.strip() == "[]"


def test_every_public_name_can_be_imported():
    for name in refimpl.__all__:
        assert getattr(refimpl, name) is not None, name
    assert set(dir(refimpl)) == set(refimpl.__all__)
    with pytest.raises(AttributeError):
        refimpl.nothing  # noqa: B018


def test_every_folder_with_code_is_packaged():
    with open(REPOSITORY / "pyproject.toml", "rb") as file:
        packages = tomllib.load(file)["tool"]["setuptools"]["packages"]
    folders = {
        path.parent.relative_to(REPOSITORY)
        for room in ("refimpl", "backends", "tokenizer")
        for path in modules(room)
    }
    names = {".".join(folder.parts) for folder in folders}
    assert {n if n.startswith("refimpl") else f"refimpl.{n}" for n in names} == set(packages)


#: What a reader reads from config to logits, both families: the program that is the specification.
MODEL_TEXT = (
    *("backends/base.py", "backends/mask.py", "refimpl/config.py", "refimpl/layers.py", "refimpl/rotary.py"),
    *("refimpl/attention.py", "refimpl/cache.py", "refimpl/decoder.py"),
    *("refimpl/gpt_neox.py", "refimpl/gpt_neox_japanese.py"),
)


def test_the_model_can_be_read_in_one_sitting():
    lines = {name: (REPOSITORY / name).read_text(encoding="utf-8").count("\n") for name in MODEL_TEXT}
    assert sum(lines.values()) <= 1300, lines
    for name in MODEL_TEXT:
        assert f"`{name}`" in (REPOSITORY / "docs/reading_order.md").read_text(encoding="utf-8")
