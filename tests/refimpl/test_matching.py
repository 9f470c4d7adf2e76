"""Which tensor of a file is which weight: what is odd about a file is said, and never passed over."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from refimpl import GPTNeoXForCausalLM, GPTNeoXModel
from refimpl.errors import CheckpointMismatchError
from refimpl.matching import Matching
from tests.tiny import save_tiny, tiny_neox


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_tiny(tmp_path, tiny_neox())
    return tmp_path


def change(folder: Path, **tensors: np.ndarray) -> dict[str, np.ndarray]:
    found = load_file(folder / "model.safetensors") | {
        name.replace("__", "."): array for name, array in tensors.items()
    }
    save_file(found, folder / "model.safetensors")
    return found


@pytest.mark.parametrize(
    "name",
    ["gpt_neox.score.weight", "gpt_neox.embed_out.weight", "gpt_neox.lm_head.weight", "embed_in.weight", "x"],
)
def test_a_model_without_a_head_passes_over_heads_only(folder: Path, name: str) -> None:
    """A head has no prefix, and everything else has one; with `score.weight` beside it just the same."""
    plain = GPTNeoXModel.from_pretrained(folder)
    for others in ({}, {"score.weight": np.zeros((2, 24), np.float32)}):
        found = load_file(folder / "model.safetensors")
        save_file(found | others, folder / "model.safetensors")
        assert len(Matching(plain, found | others).unused_heads) == 1 + len(others)
        GPTNeoXModel.from_pretrained(folder)
        save_file(found | others | {name: np.zeros((2, 24), np.float32)}, folder / "model.safetensors")
        with pytest.raises(CheckpointMismatchError) as caught:
            GPTNeoXModel.from_pretrained(folder)
        assert caught.value.unexpected == [name]
        save_file(found, folder / "model.safetensors")


def test_a_quantized_copy_of_a_tied_head(folder: Path) -> None:
    """Nobody writes one; it is compared like any other copy."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    codes, absmax = np.ones((40, 24), np.int8), np.ones(40, np.float32)
    change(folder, embed_out__weight=codes, embed_out__SCB=absmax)
    with pytest.warns(UserWarning, match="differs from the input embedding"):
        GPTNeoXForCausalLM.from_pretrained(folder)
