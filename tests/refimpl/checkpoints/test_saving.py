"""What is written: the bytes of the safetensors package, the shards of transformers, every bit of every number."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from huggingface_hub import split_state_dict_into_shards_factory
from huggingface_hub.serialization._base import parse_size_to_int
from safetensors import safe_open
from safetensors.numpy import load_file
from safetensors.numpy import save as serialize

from refimpl.backends.quantized import quantize_int8, quantize_nf4
from refimpl.checkpoints import SafetensorsFile
from refimpl.checkpoints.locate import find_weights, open_weights
from refimpl.checkpoints.safetensors_writer import DTYPES, size_in_bytes, split_into_shards
from refimpl.checkpoints.saving import save_weights, stored_as, write_weights
from refimpl.errors import CheckpointValueError, InputError
from refimpl.folder_switch import replaced_files
from refimpl.quantized_files import stored_tensors
from tests.refimpl.checkpoints.failures import same_tensors

REPOSITORY = Path(__file__).parents[3]


def dtype_of(name: str) -> np.dtype:
    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)


def some_tensors() -> dict[str, np.ndarray]:
    """One of each dtype, in several shapes, under names of all kinds."""
    draw = np.random.default_rng(0)
    shapes = [(), (0,), (3,), (2, 5), (4, 0, 2), (1, 1, 7), (3, 2, 2, 2)]
    names = ["a", "日本", "z.weight", "A", 'quo"te\\', "é", "w" * 512, "b.0", "b.10", "b.2", "c", "d", "e"]
    return {
        name: np.asarray(draw.standard_normal(shapes[i % len(shapes)]) * 100).astype(dtype_of(dtype))
        for i, (name, dtype) in enumerate(zip(names, DTYPES, strict=True))
    }


# --- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("metadata", [None, {"made by": "日本"}])
def test_the_bytes_are_those_of_the_package(tmp_path, metadata):
    tensors = some_tensors()
    assert save_weights(tmp_path / "new", tensors, metadata=metadata) == [
        tmp_path / "new" / "model.safetensors"
    ]
    written = (tmp_path / "new" / "model.safetensors").read_bytes()
    if metadata is None:
        assert written == serialize(tensors, {"format": "pt"})
    else:  # the package writes several texts in a random order
        with safe_open(tmp_path / "new" / "model.safetensors", "numpy") as file:
            assert file.metadata() == {"format": "pt", **metadata}
    assert same_tensors(load_file(tmp_path / "new" / "model.safetensors"), tensors)
    assert same_tensors(SafetensorsFile(tmp_path / "new" / "model.safetensors"), tensors)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_all_65536_patterns_of_16_bits_survive(tmp_path, dtype):
    patterns = np.arange(1 << 16, dtype=np.uint16).view(dtype_of(dtype)).reshape(256, 256)
    save_weights(tmp_path, {"all": patterns})
    for read in (load_file, SafetensorsFile):
        found = read(tmp_path / "model.safetensors")["all"]
        assert found.dtype == dtype_of(dtype)
        assert np.array_equal(found.view(np.uint16), patterns.view(np.uint16))


@pytest.mark.parametrize("dtype", [name for name in DTYPES if name != "bool"])
def test_layouts_and_byte_orders(tmp_path, dtype):
    array = (np.random.default_rng(1).standard_normal((7, 6, 5)) * 50).astype(dtype_of(dtype))
    wide = np.zeros((7, 6, 10), dtype_of(dtype))
    wide[:, :, ::2] = array
    tensors = {
        "transposed": np.ascontiguousarray(array.T).T,
        "every other": wide[:, :, ::2],
        "reversed": np.ascontiguousarray(array[::-1])[::-1],
        "fortran": np.asfortranarray(array),
        "repeated": np.broadcast_to(array, (7, 6, 5)),
    }
    if dtype != "bfloat16":
        tensors["big-endian"] = array.astype(array.dtype.newbyteorder(">"))
    save_weights(tmp_path, tensors)
    found = load_file(tmp_path / "model.safetensors")
    for name in tensors:
        assert found[name].tobytes() == array.tobytes(), name


def test_large_arrays_are_written_in_pieces(tmp_path):
    """Larger than a piece, as it lies and turned round."""
    array = np.arange(5_000_003, dtype=np.float32)
    save_weights(tmp_path, {"a": array, "b": array[::-1]})
    found = load_file(tmp_path / "model.safetensors")
    assert np.array_equal(found["a"], array)
    assert np.array_equal(found["b"], array[::-1])


PEAK = """
import sys, threading, time
import numpy as np
from refimpl.checkpoints.saving import save_weights, stored_as, write_weights
from refimpl.folder_switch import replaced_files

def anonymous():
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon"):
            return int(line.split()[1])

source = np.memmap(sys.argv[1], np.float32, "r").view(np.ndarray)
tensors = {f"t{i}": part.reshape(1024, -1) for i, part in enumerate(np.split(source, 4))}
save_weights(sys.argv[2], {"small": np.ones(3)})
before, peak, running = anonymous(), 0, True

def watch():
    global peak
    while running:
        peak = max(peak, anonymous())
        time.sleep(0.001)

watcher = threading.Thread(target=watch)
watcher.start()
if sys.argv[3] == "as they are":
    save_weights(sys.argv[2], tensors)
else:
    with replaced_files(sys.argv[2], lambda name: False) as new:
        half = np.dtype("float16")
        write_weights(new, [stored_as(n, half, t.shape, tensors) for n, t in tensors.items()], "5GB")
running = False
watcher.join()
print(peak - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="looks into /proc")
@pytest.mark.parametrize("how", ["as they are", "in 16 bits"])
def test_saving_takes_little_memory(tmp_path, how):
    """128 MB that are mapped from a file: no copy of them is made, nor of the largest tensor."""
    np.zeros(32 << 20, np.float32).tofile(tmp_path / "numbers")
    result = subprocess.run(
        [sys.executable, "-c", PEAK, tmp_path / "numbers", tmp_path / "new", how],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert result.stderr == ""
    assert int(result.stdout) < 30_000  # KiB


# --- shards --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(40))
def test_shards_are_those_of_transformers(seed):
    """Its own function, which takes the sizes from the tensors."""
    draw = np.random.default_rng(seed)
    limit = int(draw.integers(1, 60))
    sizes = draw.integers(0, 80, int(draw.integers(1, 30)))
    tensors = {f"t{i}": np.zeros(size, np.uint8) for i, size in enumerate(sizes)}
    stored = [stored_as(name, array.dtype, array.shape, tensors) for name, array in tensors.items()]
    ours = {name: [t.name for t in shard] for name, shard in split_into_shards(stored, limit).items()}
    theirs = split_state_dict_into_shards_factory(
        tensors,
        get_storage_size=lambda array: array.nbytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=limit,
    )
    assert ours == theirs.filename_to_tensors


def test_index_and_shards(tmp_path):
    tensors = {f"t{i}": np.full(100, i, np.float32) for i in range(10)}
    paths = save_weights(tmp_path, tensors, max_shard_size="1.2KB")
    names = [f"model-0000{i}-of-00004.safetensors" for i in range(1, 5)]
    assert paths == [tmp_path / name for name in (*names, "model.safetensors.index.json")]
    index = json.loads(paths[-1].read_bytes())
    assert index["metadata"] == {"total_size": 4000}
    assert index["weight_map"] == {f"t{i}": names[i // 3] for i in range(10)}
    assert all(path.stat().st_size < 1600 for path in paths[:-1])
    assert same_tensors(open_weights(find_weights(tmp_path)), tensors)
    assert all(
        list(load_file(paths[i])) == [f"t{j}" for j in range(3 * i, min(10, 3 * i + 3))] for i in range(4)
    )


def test_the_boundaries_of_a_shard(tmp_path):
    tensors = {"a": np.zeros(60, np.uint8), "b": np.zeros(40, np.uint8), "c": np.zeros(101, np.uint8)}
    for limit, count in ((201, 1), (200, 2), (101, 2), (100, 2), (99, 3), (1, 3)):
        save_weights(tmp_path, tensors, max_shard_size=limit)
        files = [name for name in os.listdir(tmp_path) if name.endswith(".safetensors")]
        assert len(files) == count, limit
        assert ("model.safetensors" in files) == (count == 1)
        assert same_tensors(open_weights(find_weights(tmp_path)), tensors)


@pytest.mark.parametrize("size", ["5GB", "200MB", "1.5 kb", "3TB", " 7MB "])
def test_sizes(size):
    assert size_in_bytes(size) == parse_size_to_int(size)


@pytest.mark.parametrize(
    "size", [0, -1, 1.5, True, None, "", "5", "5GiB", "-5GB", "GB", "0.0001KB", "9" * 30 + "GB"]
)
def test_impossible_sizes(tmp_path, size):
    with pytest.raises(InputError, match='such as "5GB"') as caught:
        save_weights(tmp_path / "new", {"a": np.zeros(3)}, max_shard_size=size)
    assert caught.value.where == "max_shard_size"
    assert not (tmp_path / "new").exists()


def test_too_many_shards(tmp_path):
    tensors = {f"t{i}": np.zeros(2, np.uint8) for i in range(10_001)}
    with pytest.raises(InputError, match="which makes 10001 files"):
        save_weights(tmp_path / "new", tensors, max_shard_size=2)
    assert not (tmp_path / "new").exists()


# --- what can be saved ---------------------------------------------------------------------------


def test_a_tied_head_is_left_out(tmp_path):
    embedding, other = np.ones((5, 4), np.float32), np.ones((5, 4), np.float32)
    save_weights(tmp_path, {"m.embed_in.weight": embedding, "embed_out.weight": embedding, "x": other})
    assert set(load_file(tmp_path / "model.safetensors")) == {"m.embed_in.weight", "x"}
    save_weights(tmp_path, {"lm_head.weight": embedding[:], "m.embed_in.weight": embedding})
    assert set(load_file(tmp_path / "model.safetensors")) == {"m.embed_in.weight"}


def test_nothing_else_that_is_shared_is_left_out(tmp_path):
    """Equal numbers elsewhere, a part of the same memory, and arrays with two names are no tied head."""
    matrix = np.arange(20, dtype=np.float32).reshape(5, 4)
    tensors = {
        "embed_in.weight": matrix,
        "embed_out.weight": matrix.copy(),
        "turned": matrix.T,
        "row": matrix[0],
        "norm1.weight": matrix,
    }
    save_weights(tmp_path, tensors)
    assert same_tensors(load_file(tmp_path / "model.safetensors"), tensors)
    save_weights(tmp_path, {"embed_in.weight": matrix.T.reshape(5, 4), "embed_out.weight": matrix})
    assert len(load_file(tmp_path / "model.safetensors")) == 2


def test_quantized_matrices_are_written_in_their_parts(tmp_path):
    array = np.random.default_rng(2).standard_normal((8, 64)).astype(np.float32)
    matrices = {
        "a.weight": quantize_int8(array),
        "b.weight": quantize_nf4(array),
        "c.weight": quantize_nf4(array, double_quant=True),
    }
    save_weights(tmp_path, {**matrices, "d": array})
    wanted = {
        name: part for key, matrix in matrices.items() for name, part in stored_tensors(key, matrix).items()
    }
    assert same_tensors(load_file(tmp_path / "model.safetensors"), {**wanted, "d": array})


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({}, "no tensor"),
        ({"": np.zeros(1)}, "name"),
        ({"__metadata__": np.zeros(1)}, "name"),
        ({"a\nb": np.zeros(1)}, "name"),
        ({"\ud800": np.zeros(1)}, "name"),
        ({"é" * 257: np.zeros(1)}, "name"),
        ({1: np.zeros(1)}, "name"),
        ({"a": np.float32(1)}, "not an array"),
        ({"a": np.zeros(1, complex)}, "complex128"),
        ({"a": np.array(["text"])}, "str"),
        ({"a": np.array([None])}, "object"),
        ({"a": [1.0]}, "list"),
        ({"a": np.zeros((1,) * 9)}, "8 dimensions"),
        ({"a.weight": quantize_int8(np.ones((2, 2))), "a.SCB": np.ones(2)}, "one name"),
    ],
)
def test_what_no_file_can_hold(tmp_path, tensors, words):
    (tmp_path / "model.safetensors").write_bytes(b"kept")
    with pytest.raises(InputError, match=words):
        save_weights(tmp_path, tensors)
    assert (tmp_path / "model.safetensors").read_bytes() == b"kept"
    assert os.listdir(tmp_path) == ["model.safetensors"]


@pytest.mark.parametrize("metadata", [{"a": 1}, {1: "a"}, {"a": "\udc00"}])
def test_metadata_are_texts(tmp_path, metadata):
    with pytest.raises(InputError, match="texts"):
        save_weights(tmp_path / "new", {"a": np.zeros(1)}, metadata=metadata)
    assert not (tmp_path / "new").exists()


# --- failures of the source ----------------------------------------------------------------------


def test_the_caller_is_told_what_failed_on_the_way(tmp_path):
    """An error of the source is not one of the disk, and leaves nothing behind."""
    tensors = {"a": np.array([1.0, 70000.0], np.float32)}
    stored = [stored_as("a", np.dtype("float16"), (2,), tensors)]
    with (
        pytest.raises(CheckpointValueError, match="float16 cannot hold") as caught,
        replaced_files(tmp_path / "new", lambda name: False) as new,
    ):
        write_weights(new, stored, "5GB")
    assert (caught.value.tensor, caught.value.first_index) == ("a", [1])
    assert not (tmp_path / "new").exists()
