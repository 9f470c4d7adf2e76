"""What loading is going to allocate is known before it does, for every way in which numbers can lie in a file."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from refimpl import GPTNeoXForCausalLM, GPTNeoXForSequenceClassification, GPTNeoXModel
from refimpl.checkpoints.locate import open_weights
from refimpl.errors import CheckpointFormatError, ResourceLimitError
from tests.refimpl.checkpoints.torch_files import (
    dictionary,
    padding,
    pickle_of,
    records_of,
    saved,
    storage,
    tensor,
    torch_file,
    write_archive,
)
from tests.tiny import save_tiny, tiny_neox, tiny_neox_config


@pytest.fixture
def weights(tmp_path: Path) -> dict[str, np.ndarray]:
    """Those of a tiny model; its config lies in the folder, and no weight file."""
    save_tiny(tmp_path, tiny_neox())
    found = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    return found


def numbers_in(weights: dict[str, np.ndarray], dimensions: int) -> int:
    return sum(array.size for array in weights.values() if array.ndim == dimensions)


def needed(folder: Path, model_class: Any = GPTNeoXForCausalLM, **options: Any) -> int:
    """The bytes without which the model is not loaded, and with which it is."""
    with pytest.raises(ResourceLimitError) as caught:
        model_class.from_pretrained(folder, backend="numpy", max_memory=0, **options)
    size = caught.value.requested  # type: ignore[attr-defined]
    with pytest.raises(ResourceLimitError):
        model_class.from_pretrained(folder, backend="numpy", max_memory=size - 1, **options)
    model_class.from_pretrained(folder, backend="numpy", max_memory=size, **options)
    return size


def written(path: Path, weights: dict[str, np.ndarray], shift: int) -> Path:
    """A safetensors or torch file in which all numbers begin `shift` bytes behind a multiple of 64."""
    if path.suffix == ".bin":
        records = records_of(*saved(weights))
        place = 0
        for record in records:
            begin = place + 30 + len(record.name) + 4
            record.extra = padding(-begin % 64 + (shift if "/data/" in record.name else 0))
            place = begin + len(record.extra) - 4 + len(record.content) + 16 * bool(record.content)
        path.write_bytes(write_archive(records))
        return path
    header, end = {}, 0
    for name, array in weights.items():
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [end, end + array.nbytes]}
        end += array.nbytes
    text = json.dumps(header).encode()
    text = text.ljust(len(text) + (shift - 8 - len(text)) % 64)
    path.write_bytes(
        len(text).to_bytes(8, "little") + text + b"".join(array.tobytes() for array in weights.values())
    )
    return path


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("shift", [0, 4, 2, 1])
def test_numbers_that_are_copied_are_counted(
    tmp_path: Path, weights: dict[str, np.ndarray], name: str, shift: int
) -> None:
    file = open_weights(written(tmp_path / name, weights, shift))
    for key in file:
        assert file.is_view(key) == (shift % 4 == 0) == np.shares_memory(file[key], file[key])
        assert file[key].tobytes() == weights[key].tobytes()
    copied = 4 * numbers_in(weights, 2) if shift % 4 else 0
    assert needed(tmp_path) == copied + 4 * numbers_in(weights, 1)
    stored = sum(array.nbytes for array in weights.values())
    assert file.stored_bytes == stored
    assert needed(tmp_path, mmap=False) == copied + 4 * numbers_in(weights, 1) + stored


def test_a_storage_counts_as_a_whole_when_it_is_read(tmp_path: Path, weights: dict[str, np.ndarray]) -> None:
    """A tensor can be a small part of what has to be read for it."""
    names, extra = list(weights), 1 << 18
    items, storages = {}, {}
    for key, (name, array) in enumerate(weights.items()):
        size = array.size + (extra if name == names[0] else 0)
        strides = tuple(math.prod(array.shape[axis + 1 :]) for axis in range(array.ndim))
        items[name] = tensor(storage("FloatStorage", str(key), size), 0, array.shape, strides)
        storages[str(key)] = array.tobytes().ljust(4 * size, b"\0")
    (tmp_path / "pytorch_model.bin").write_bytes(torch_file(pickle_of(dictionary(items)), storages))
    file = open_weights(tmp_path / "pytorch_model.bin")
    assert file.stored_bytes == file.nbytes + 4 * extra
    assert needed(tmp_path, mmap=False) == needed(tmp_path) + file.nbytes + 4 * extra


def test_numbers_in_any_order_are_the_same_model(
    tmp_path: Path, weights: dict[str, np.ndarray], backend: str
) -> None:
    """Matrices column by column, and vectors in every second number of a storage."""
    save_tiny(tmp_path / "rows", tiny_neox())
    items, storages = {}, {}
    for key, (name, array) in enumerate(weights.items()):
        stored = array.T if array.ndim == 2 else np.repeat(array, 2)
        strides = (1, array.shape[0]) if array.ndim == 2 else (2,)
        items[name] = tensor(storage("FloatStorage", str(key), stored.size), 0, array.shape, strides)
        storages[str(key)] = stored.tobytes()
    (tmp_path / "pytorch_model.bin").write_bytes(torch_file(pickle_of(dictionary(items)), storages))
    for options in ({}, {"weight_dtype": "nf4"}) if backend == "numpy" else ({},):
        for folder in (tmp_path, tmp_path / "rows"):
            model = GPTNeoXForCausalLM.from_pretrained(folder, backend=backend, **options)
            model.save_pretrained(folder / "saved")
        contents = [(f / "saved/model.safetensors").read_bytes() for f in (tmp_path, tmp_path / "rows")]
        assert contents[0] == contents[1]


def test_a_new_head_counts(tmp_path: Path, weights: dict[str, np.ndarray]) -> None:
    base = {name: array for name, array in weights.items() if name != "embed_out.weight"}
    written(tmp_path / "model.safetensors", base, 0)
    vectors = 4 * numbers_in(base, 1)
    assert needed(tmp_path, GPTNeoXModel) == vectors
    with pytest.warns(UserWarning, match="random values"):
        assert needed(tmp_path, GPTNeoXForSequenceClassification) == vectors + 4 * 2 * 24
    with pytest.warns(UserWarning, match="random values"):
        assert (
            needed(tmp_path, GPTNeoXForSequenceClassification, dtype="float16")
            == vectors + 2 * 2 * 24 + 2 * numbers_in(base, 2)
        )  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_what_is_stored_quantized_stays_so(tmp_path: Path, dtype: str) -> None:
    """Whatever the dtype, a matrix of the dense layers is not widened: it takes no memory beside the file."""
    model = GPTNeoXForCausalLM(tiny_neox_config(), backend="numpy", weight_dtype="int8")
    model.save_pretrained(tmp_path)
    file = open_weights(tmp_path / "model.safetensors")
    matrices = [name for name in file if len(file.shape(name)) == 2 and file.dtype(name) != np.int8]
    assert sorted(matrices) == ["embed_out.weight", "gpt_neox.embed_in.weight"]
    vectors = sum(math.prod(p.shape) for p in model.named_parameters() if not p.is_matrix)
    wide = sum(math.prod(file.shape(name)) for name in matrices)
    assert needed(tmp_path, dtype=dtype) == 4 * vectors + (2 * wide if dtype == "float16" else 0)


def test_an_error_about_a_quantized_matrix_names_the_file(tmp_path: Path) -> None:
    GPTNeoXForCausalLM(tiny_neox_config(), backend="numpy", weight_dtype="int8").save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    found = load_file(path)
    del found["gpt_neox.layers.0.attention.dense.weight"]
    save_file(found, path)
    with pytest.raises(CheckpointFormatError, match="part of a quantized matrix is missing") as caught:
        GPTNeoXForCausalLM.from_pretrained(tmp_path)
    assert str(path) in str(caught.value)
