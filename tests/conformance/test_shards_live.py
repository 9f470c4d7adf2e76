"""One state dict in 1 to 20 files of each format, written by the packages that publish models, read bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import refimpl
from refimpl.checkpoints.locate import find_weights, open_weights
from tests.conformance.test_torch_files_live import bits
from tests.conformance.theirs import torch, transformers

FORMATS = {"safetensors": "model", "bin": "pytorch_model"}
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def a_model() -> Any:
    torch.manual_seed(0)
    config = transformers.GPTNeoXConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    return transformers.GPTNeoXForCausalLM(config)


def state_dict(dtype: Any) -> dict[str, Any]:
    """The weights of a model, with buffers as old versions stored them."""
    found = {name: tensor.to(dtype) for name, tensor in a_model().state_dict().items()}
    for layer in range(2):
        attention = f"gpt_neox.layers.{layer}.attention"
        found[f"{attention}.bias"] = torch.tril(torch.ones(8, 8, dtype=torch.bool))[None, None]
        found[f"{attention}.masked_bias"] = torch.tensor(-1e9)
        found[f"{attention}.rotary_emb.inv_freq"] = torch.rand(2)
    return found


def write(folder: Path, tensors: dict[str, Any], count: int, ending: str, indexed: bool) -> None:
    """The tensors, by turns in `count` files, with their index or as one file alone."""
    import safetensors.torch

    stem = FORMATS[ending]
    names = [f"{stem}-{number:05}-of-{count:05}.{ending}" for number in range(1, count + 1)]
    names = names if indexed else [f"{stem}.{ending}"]
    parts: dict[str, dict[str, Any]] = {name: {} for name in names}
    for number, (key, tensor) in enumerate(tensors.items()):
        parts[names[number % count]][key] = tensor
    for name, part in parts.items():
        if ending == "safetensors":
            safetensors.torch.save_file(part, folder / name, metadata={"format": "pt"})
        else:
            torch.save(part, folder / name)
    if indexed:
        total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        index = {
            "metadata": {"total_size": total},
            "weight_map": {key: name for name, part in parts.items() for key in part},
        }
        (folder / f"{stem}.{ending}.index.json").write_text(json.dumps(index, indent=2) + "\n")


def check(folder: Path, tensors: dict[str, Any], files: int) -> None:
    path = find_weights(folder)
    for mmap in (True, False):
        found = open_weights(path, mmap)
        assert found.keys() == tensors.keys()
        assert len(found.paths) == files
        for name, tensor in tensors.items():
            array = found[name]
            assert array.dtype.name == str(tensor.dtype).removeprefix("torch.")
            assert array.shape == tuple(tensor.shape)
            assert array.tobytes() == bits(tensor), name
        assert found.nbytes == found.stored_bytes == sum(len(bits(tensor)) for tensor in tensors.values())


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_file(tmp_path: Path, dtype: Any, ending: str) -> None:
    tensors = state_dict(dtype)
    write(tmp_path, tensors, 1, ending, indexed=False)
    check(tmp_path, tensors, 1)


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("count", range(1, 21))
def test_files_with_an_index(tmp_path: Path, count: int, ending: str) -> None:
    """The dtypes take turns."""
    tensors = state_dict(DTYPES[count % 3])
    write(tmp_path, tensors, count, ending, indexed=True)
    check(tmp_path, tensors, count)


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("size", [3000, 6000, "1GB"])
def test_files_of_the_package_of_the_hub(tmp_path: Path, size: int | str, ending: str) -> None:
    """It says itself which tensor goes into which file, and writes the index."""
    import huggingface_hub

    tensors = state_dict(torch.float32)
    huggingface_hub.save_torch_state_dict(
        tensors, tmp_path, max_shard_size=size, safe_serialization=ending == "safetensors"
    )
    files = len(list(tmp_path.glob(f"*.{ending}")))
    assert (files > 3) == (size != "1GB")
    check(tmp_path, tensors, files)


@pytest.mark.parametrize("size", [3000, 6000, "1GB"])
def test_files_of_transformers(tmp_path: Path, size: int | str) -> None:
    """Version 5 has another name for the output head than the files."""
    model = a_model()
    model.save_pretrained(tmp_path, max_shard_size=size)
    tensors = {name.replace("lm_head", "embed_out"): t for name, t in model.state_dict().items()}
    check(tmp_path, tensors, len(list(tmp_path.glob("*.safetensors"))))


def test_a_model_is_the_same_from_all_of_them(tmp_path: Path) -> None:
    theirs, found = a_model(), []
    ids = [[3, 1, 4, 1, 5, 9, 2, 6]]
    for ending in FORMATS:
        for count in (1, 7, 20):
            folder = tmp_path / f"{ending}{count}"
            theirs.config.save_pretrained(folder)
            write(folder, state_dict(torch.float32), count, ending, indexed=True)
            model = refimpl.AutoModelForCausalLM.from_pretrained(folder)
            found.append(model(ids).logits.tobytes())
    assert len(set(found)) == 1
