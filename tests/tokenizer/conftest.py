"""Vocabularies for the tests: the toy one, the sparse copy of the published one, and the published one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from refimpl.tokenizer import GPTNeoXJapaneseTokenizer

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "tokenizer"

Make = Callable[..., GPTNeoXJapaneseTokenizer]


def write_vocabulary(folder: Path, lines: list[str], emoji: dict[str, Any]) -> Path:
    """`vocab.txt` (without a last line end, like the published one) and `emoji.json` in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_bytes("\n".join(lines).encode("utf-8"))
    (folder / "emoji.json").write_text(json.dumps(emoji), encoding="utf-8")
    return folder


def expand(name: str, folder: Path) -> Path:
    """A vocabulary of the goldens as files; the lines that a sparse one leaves out hold private-use characters."""
    content = json.loads((GOLDEN / name).read_text(encoding="utf-8"))
    lines = content["lines"]
    if isinstance(lines, dict):
        lines = [lines.get(str(index), chr(0xF0000 + index)) for index in range(content["size"])]
    return write_vocabulary(folder, lines, {key: content[key] for key in ("emoji", "emoji_inv")})


def maker(folder: Path, **fixed: Any) -> Make:
    return lambda **options: GPTNeoXJapaneseTokenizer(
        folder / "vocab.txt", folder / "emoji.json", **{**fixed, **options}
    )


@pytest.fixture(scope="session")
def sparse_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return expand("japanese_sparse.json", tmp_path_factory.mktemp("vocabulary") / "sparse")


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return expand("japanese_toy.json", tmp_path_factory.mktemp("vocabulary") / "toy")


@pytest.fixture(scope="session")
def make_sparse(sparse_folder: Path) -> Make:
    """Makes tokenizers with the published ids of the words that the goldens need."""
    return maker(sparse_folder)


@pytest.fixture(scope="session")
def make_toy(toy_folder: Path) -> Make:
    """Makes tokenizers with a vocabulary of 22 lines that has no byte words."""
    return maker(toy_folder, unk_token="<unk>")


@pytest.fixture(scope="session")
def sparse(make_sparse: Make) -> GPTNeoXJapaneseTokenizer:
    return make_sparse()


@pytest.fixture(scope="session")
def original(make_sparse: Make) -> GPTNeoXJapaneseTokenizer:
    return make_sparse(compat="original")


@pytest.fixture
def toy(make_toy: Make) -> GPTNeoXJapaneseTokenizer:
    return make_toy()


@pytest.fixture(scope="session")
def make_full(data_folder: Path) -> Make:
    """Makes tokenizers with the whole published vocabulary, where it is at hand."""
    return maker(data_folder / "japanese_bpe")
