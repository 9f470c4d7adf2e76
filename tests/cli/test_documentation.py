"""What docs/cli.md shows of inspect, download, convert and quantize is what they print, in the order of the page."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.refimpl.checkpoints import torch_files
from tests.refimpl.hub_server import HubServer
from tests.tiny import save_tiny, tiny_neox

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"


def examples(section: str) -> list[tuple[str, str]]:
    """The commands that a section shows, each with what it prints."""
    text = PAGE.read_text(encoding="utf-8").split(f"\n## {section}\n")[1].split("\n## ")[0]
    blocks = re.findall(r"^```\n(\$.*?)^```", text, re.DOTALL | re.MULTILINE)
    parts = (
        part.partition("\n") for block in blocks for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]
    )
    return [(command, output) for command, _, output in parts]


def pattern(shown: str) -> str:
    """A line of three dots stands for any lines, and `…` for anything in a line; the seconds at an end differ."""
    lines = []
    for line in shown.splitlines():
        timed = re.fullmatch(r"(.*, )[0-9.]+ s", line)
        wanted = re.escape(timed[1] if timed else line).replace("…", ".*") + (r"[0-9.]+ s" if timed else "")
        lines.append(r"(.*\n)*" if line == "..." else wanted + r"\n")
    return "".join(lines)


def old_model(source: Path, folder: Path) -> None:
    """The model as one of old times: `pytorch_model.bin`, with masks in it."""
    shutil.copytree(source, folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    layers = sorted({name.split(".")[2] for name in tensors if ".layers." in name})
    for layer in layers:
        prefix = f"gpt_neox_japanese.layers.{layer}.attention"
        tensors[f"{prefix}.masked_bias"] = np.array(-1e9, np.float32)
        tensors[f"{prefix}.bias"] = np.ones((1, 1, 64, 64), np.uint8)
    (folder / "pytorch_model.bin").write_bytes(torch_files.save(tensors))


@pytest.fixture
def world(embedded_model: Path, environment: dict[str, str], tmp_path: Path) -> Iterator[dict[str, str]]:
    """A folder with `old_model`, and a Hub with two repositories; gives the environment."""
    if not (embedded_model / "model.safetensors").is_file():
        pytest.skip("the embedded model has no weights here")
    files = [path for path in embedded_model.iterdir() if path.is_file() and path.suffix != ".py"]
    (tmp_path / "source").mkdir()
    for path in files:
        shutil.copy(path, tmp_path / "source")
    old_model(tmp_path / "source", tmp_path / "old_model")
    with HubServer() as hub:
        hub.add("owner/model", tmp_path / "source")
        hub.add("owner/other", save_tiny(tmp_path / "tiny", tiny_neox()))
        yield {
            **environment,
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
            "NO_PROXY": "127.0.0.1",
        }


@pytest.mark.parametrize("section", ["inspect", "download", "convert", "quantize"])
def test_the_examples_are_real(section, world, command, tmp_path):
    found = examples(section)
    assert len(found) >= 2
    for line, shown in found:
        program, *arguments = shlex.split(line)
        assert program == "refimpl"
        result = subprocess.run(
            [*command, *arguments],
            cwd=tmp_path,
            env=world,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
        )
        assert re.fullmatch(pattern(shown), result.stdout), f"$ {line}\n{result.stdout}"
