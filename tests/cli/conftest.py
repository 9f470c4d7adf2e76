"""A model folder of our own: random weights, a vocabulary with every byte. And ways to call the command line."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from refimpl import cli
from tests.tiny import save_tiny

# A word on a line; "," as the last one would be lost in the `hf` reading, so it has no line here.
WORDS = [
    "吾輩",
    "である",
    "名前",
    "は",
    "猫",
    "で",
    "あ",
    "る",
    "。",
    "、",
    "無",
    "い",
    "a",
    "b",
    "c",
    "1",
    "2",
]
TAGS = [
    "<SP>",
    "<BR>",
    "<TAB>",
    "<KIGOU>",
    "<U2000U2BFF>",
    "<URL>",
    "<EMAIL>",
    "<TEL>",
    "<DATE>",
    "<PRICE>",
    "<BLOCK>",
]
BYTES = [f"<|byte{value}|>" for value in range(256)]
SPECIAL = ["<|startoftext|>", "<|endoftext|>"]
LINES = [*WORDS, *TAGS, "<|emoji1|>", *BYTES, *SPECIAL]
EMOJI = {"emoji": {"😀": "<|emoji1|>"}, "emoji_inv": {"<|emoji1|>": "😀"}}

CONTEXT = 512

Refimpl = Callable[..., subprocess.CompletedProcess[bytes]]


def write_model(folder: Path, **changes) -> Path:
    """A model folder without generation_config.json. Its embedding has 5 rows more than there are tokens."""
    settings = {
        "vocab_size": len(LINES) + 5,
        "max_position_embeddings": CONTEXT,
        "bos_token_id": LINES.index("<|startoftext|>"),
        "eos_token_id": LINES.index("<|endoftext|>"),
    }
    save_tiny(folder, **{**settings, **changes})
    (folder / "vocab.txt").write_text("\n".join(LINES) + "\n", encoding="utf-8")
    (folder / "emoji.json").write_text(json.dumps(EMOJI), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("cli") / "model")


@pytest.fixture
def model_copy(tmp_path: Path) -> Path:
    """A model folder to break."""
    return write_model(tmp_path / "model")


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """The environment of the processes: no Hub, no debugging, and output is buffered as it usually is."""
    left_out = ("REFIMPL_DEBUG", "PYTHONWARNINGS", "PYTHONUNBUFFERED")
    kept = {name: value for name, value in os.environ.items() if name not in left_out}
    return {**kept, "HF_HUB_OFFLINE": "1", "PYTHONUTF8": "1", "COLUMNS": "100"}


@pytest.fixture(scope="session")
def command() -> list[str]:
    """How the processes are started: as `python -m refimpl`, without the current folder on the path."""
    return [sys.executable, "-P", "-m", "refimpl"]


@pytest.fixture(scope="session")
def refimpl(environment: dict[str, str], command: list[str]) -> Refimpl:
    """Runs the command line in a process of its own; `stdin` defaults to nothing at all."""

    def call(
        *arguments: str | bytes | Path, stdin: bytes = b"", **options
    ) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [*command, *arguments],  # type: ignore[list-item]
            input=stdin,
            capture_output=True,
            timeout=60,
            **{"env": environment, **options},
        )

    return call


@pytest.fixture
def inside(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Refimpl:
    """As `refimpl`, but in this process: four times as quick."""

    def call(*arguments: str | Path, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        try:
            code = cli.main([os.fspath(argument) for argument in arguments])
        except SystemExit as end:  # argparse after --help
            code = int(end.code or 0)
        shown = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, code, shown.out.encode(), shown.err.encode())

    for name in ("REFIMPL_DEBUG", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    return call
