"""Which file holds the weights, what is downloaded for it, and which reader it gets."""

from __future__ import annotations

import itertools
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file, save

from refimpl.checkpoints import SafetensorsFile
from refimpl.checkpoints.locate import WEIGHT_FILES, find_weights, open_weights
from refimpl.errors import (
    CheckpointFormatError,
    IncompleteCheckpointError,
    InputError,
    MissingFileError,
    UnsafeCheckpointError,
)
from tests.refimpl.hub_server import cut, flipped, status

FIND = "refimpl.checkpoints.locate:find_weights"
MODEL = Path(__file__).resolve().parents[3] / "golden/models/gpt_neox/tiny-plain"
CONFIG, WEIGHTS = (MODEL / "config.json").read_bytes(), (MODEL / "model.safetensors").read_bytes()

#: The beginning of a zip archive is all that finding needs of it.
ZIP = b"PK\x03\x04" + b"\0" * 60

#: What no one who loads these models needs.
REST = {
    name: b"not needed"
    for name in (
        *(".gitattributes", "README.md", "flax_model.msgpack", "tf_model.h5", "rust_model.ot", "model.gguf"),
        *("onnx/model.onnx", "training_args.bin", "optimizer.pt", "model.fp16.safetensors", "events.out"),
    )
}


def shards(ending: str = "safetensors", count: int = 3) -> dict[str, bytes]:
    """The model in several files, with their index."""
    tensors = load_file(MODEL / "model.safetensors")
    stem = "model" if ending == "safetensors" else "pytorch_model"
    names = [f"{stem}-{number + 1:05}-of-{count:05}.{ending}" for number in range(count)]
    parts: dict[str, dict[str, np.ndarray]] = {name: {} for name in names}
    for name, tensor in zip(itertools.cycle(names), tensors, strict=False):
        parts[name][tensor] = tensors[tensor]
    index = {"metadata": {}, "weight_map": {tensor: name for name in names for tensor in parts[name]}}
    files = {
        name: save(part) if ending == "safetensors" else ZIP + name.encode() for name, part in parts.items()
    }
    return {f"{stem}.{ending}.index.json": json.dumps(index).encode(), **files}


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def refused(call, *arguments, error=MissingFileError, **options) -> str:
    with pytest.raises(error) as caught:
        call(*arguments, **options)
    assert type(caught.value) is error
    return str(caught.value)


# --- folders -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("present", [WEIGHT_FILES[start:] for start in range(4)])
def test_the_order_in_a_folder(tmp_path, present):
    write(tmp_path, {**REST, **dict.fromkeys(present, b"x")})
    assert find_weights(tmp_path) == tmp_path / present[0]
    assert find_weights(str(tmp_path)) == tmp_path / present[0]


def test_a_subfolder(tmp_path):
    write(tmp_path, {"step1/model.safetensors": b"1", "step2/pytorch_model.bin": b"2"})
    assert find_weights(tmp_path, subfolder="step1").read_bytes() == b"1"
    assert find_weights(tmp_path, subfolder="step2/").read_bytes() == b"2"
    text = refused(find_weights, tmp_path)
    assert "'step1/model.safetensors' is there: in a subfolder. Say which with subfolder=..." in text


@pytest.mark.parametrize(
    ("name", "what", "advice"),
    [
        ("model.q8_0.gguf", "weights for llama.cpp", "converted"),
        ("tf_model.h5", "weights for TensorFlow", "from_tf"),
        ("tf_model-00001-of-00002.h5", "weights for TensorFlow", "from_tf"),
        ("flax_model.msgpack", "weights for Flax", "from_flax"),
        ("consolidated.00.pth", "as a training program writes them", "Convert"),
        ("mp_rank_00_model_states.pt", "as a training program writes them", "convert_neox_to_hf.py"),
        ("model.onnx", "a graph for ONNX", "exported"),
        ("onnx/decoder_model.onnx", "a graph for ONNX", "exported"),
        ("adapter_model.safetensors", "an adapter of PEFT", "merge_and_unload"),
        ("adapter_model.bin", "an adapter of PEFT", "merge_and_unload"),
        ("model-00001-of-00002.safetensors", "without the index", "index.json"),
        ("pytorch_model-00001-of-00002.bin", "without the index", "index.json"),
        ("model.fp16.safetensors", "a variant", "names above"),
        ("pytorch_model.fp16.bin", "a variant", "names above"),
        ("weights.safetensors", "a weight file of another name", "names above"),
    ],
)
def test_other_weights_are_named_with_what_to_do(tmp_path, name, what, advice):
    text = refused(find_weights, write(tmp_path, {"config.json": b"{}", name: b"x", "README.md": b"x"}))
    assert f"'{name}' is there: " in text
    assert what in text
    assert advice in text
    assert "README.md" in text  # as everything that was found
    assert all(readable in text for readable in WEIGHT_FILES)


def test_an_adapter_is_told_before_what_lies_beside_it(tmp_path):
    files = {"optimizer.pt": b"", "training_args.bin": b"", "adapter_model.safetensors": b""}
    assert "an adapter of PEFT" in refused(find_weights, write(tmp_path, files))


def test_folders_without_anything(tmp_path):
    assert "no weights that can be read; found no files at all" in refused(find_weights, tmp_path)
    write(tmp_path, {f"file{number:02}\n.txt": b"" for number in range(30)})
    text = refused(find_weights, tmp_path)
    assert "and 20 more" in text
    assert "\n" not in text
    assert "neither" not in text
    assert "no folder" in refused(find_weights, tmp_path / "absent")
    assert "is empty" in refused(find_weights, "", error=InputError)


# --- the Hub -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "found", "heads"),
    [
        ({"model.safetensors": WEIGHTS, "pytorch_model.bin": ZIP, **shards()}, ["model.safetensors"], 1),
        ({**shards(), "pytorch_model.bin": ZIP}, list(shards()), 5),
        ({"pytorch_model.bin": ZIP, **shards("bin")}, ["pytorch_model.bin"], 3),
        (shards("bin", 2), list(shards("bin", 2)), 6),
    ],
)
def test_only_what_is_needed_is_downloaded(hub_server, hub_child, tmp_path, files, found, heads):
    hub_server.add("o/n", {"config.json": CONFIG, **REST, **files})
    path = Path(hub_child.call(FIND, "o/n", cache_dir=tmp_path))
    assert hub_server.asked("GET") == found
    assert path.name == found[0]
    assert {one.name: one.read_bytes() for one in path.parent.iterdir()} == {n: files[n] for n in found}
    # A small file is behind a redirect, which takes one more.
    assert len([r for r in hub_server.log if r.method == "HEAD" and "resolve-cache" not in r.path]) == heads
    # Whatever was absent in this version stays absent.
    hub_server.log.clear()
    assert hub_child.call(FIND, "o/n", cache_dir=tmp_path) == str(path)
    assert [r.file for r in hub_server.log if "resolve-cache" not in r.path] == ["model.safetensors"]
    hub_server.log.clear()
    commit = hub_server.repositories["o/n"].refs["main"]
    assert hub_child.call(FIND, "o/n", cache_dir=tmp_path, revision=commit) == str(path)
    assert hub_server.log == []


def test_the_parts_are_of_the_version_of_the_index(hub_server, hub_child, tmp_path):
    """Even if the branch moves on while they are downloaded."""
    files = shards()
    first = hub_server.add("o/n", files)
    moved = {name: content + b" " if name.endswith("json") else b"newer" for name, content in files.items()}

    def move_on(handler, content):
        hub_server.add("o/n", moved)
        handler.send(200, content)

    hub_server.fail("model.safetensors.index.json", move_on)
    path = Path(hub_child.call(FIND, "o/n", cache_dir=tmp_path))
    assert path.parent.name == first
    assert {one.name: one.read_bytes() for one in path.parent.iterdir()} == files
    newer = Path(hub_child.call(FIND, "o/n", cache_dir=tmp_path))
    assert newer.parent.name != first
    assert newer.with_name("model-00001-of-00003.safetensors").read_bytes() == b"newer"


def test_versions_and_subfolders_of_a_repository(hub_server, hub_child, tmp_path):
    hub_server.add("o/n", {"pytorch_model.bin": ZIP})
    hub_server.add("o/n", {"pytorch_model.bin": ZIP, "model.safetensors": WEIGHTS}, "refs/pr/3")
    hub_server.add("o/n", {f"deep/{name}": content for name, content in shards().items()}, "v2")
    assert hub_child.call(FIND, "o/n", cache_dir=tmp_path).endswith("/pytorch_model.bin")
    path = hub_child.call(FIND, "o/n", cache_dir=tmp_path, revision="refs/pr/3")
    assert Path(path).read_bytes() == WEIGHTS
    hub_server.log.clear()
    path = hub_child.call(FIND, "o/n", cache_dir=tmp_path, revision="v2", subfolder="deep")
    assert path.endswith("/deep/model.safetensors.index.json")
    assert hub_server.asked("GET") == [f"deep/{name}" for name in shards()]
    failure = hub_child.call(FIND, "o/n", cache_dir=tmp_path, revision="v2")
    assert "'deep/model.safetensors.index.json' is there: in a subfolder" in failure.text
    hub_server.add("o/n", {"config.json": CONFIG, "deep/model.gguf": b"GGUF"}, "v3")
    failure = hub_child.call(FIND, "o/n", cache_dir=tmp_path, revision="v3", subfolder="deep")
    assert "found model.gguf; allowed" in failure.text


def test_a_repository_of_other_weights(hub_server, hub_child, tmp_path):
    hub_server.add("o/n", {"config.json": CONFIG, "tiny.Q4_0.gguf": b"GGUF"})
    failure = hub_child.call(FIND, "o/n", cache_dir=tmp_path)
    assert failure.names[0] == "MissingFileError"
    assert failure.text.startswith("o/n: no weights that can be read; found config.json, tiny.Q4_0.gguf")
    assert "weights for llama.cpp" in failure.text
    assert hub_server.asked("GET") == []
    # The list of names is not worth an error of its own.
    hub_server.add("o/n", {"config.json": CONFIG, "a.gguf": b"GGUF"}, token="hf_x")
    assert "no such repository" in hub_child.call(FIND, "o/n", cache_dir=tmp_path / "new").text


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "", ".", "x\0"])
def test_an_index_that_names_more_than_files(hub_server, hub_child, tmp_path, name):
    index = json.dumps({"weight_map": {"a": "model-1.safetensors", "b": name}}).encode()
    hub_server.add("o/n", {"model.safetensors.index.json": index, "model-1.safetensors": WEIGHTS})
    failure = hub_child.call(FIND, "o/n", cache_dir=tmp_path)
    assert failure.names[0] == "UnsafeCheckpointError"
    assert hub_server.asked("GET") == ["model.safetensors.index.json"]


def test_a_part_that_the_repository_lacks(hub_server, hub_child, tmp_path):
    files = shards()
    del files["model-00002-of-00003.safetensors"]
    hub_server.add("o/n", {**files, "pytorch_model.bin": ZIP})
    failure = hub_child.call(FIND, "o/n", cache_dir=tmp_path)
    assert failure.text.startswith("o/n/model-00002-of-00003.safetensors: the repository has no such file")
    assert "pytorch_model.bin" not in hub_server.asked("HEAD")


@pytest.mark.parametrize("fault", [flipped, cut(0.7), status(500), status(403)])
def test_a_failure_leads_to_no_other_file(hub_server, hub_child, tmp_path, fault):
    hub_server.add("o/n", {"model.safetensors": WEIGHTS, "pytorch_model.bin": ZIP})
    hub_server.fail("model.safetensors", status(503), method="HEAD", times=20)
    assert not hub_child.call(FIND, "o/n", cache_dir=tmp_path)
    hub_server.forget()
    hub_server.fail("model.safetensors", fault)
    found = [hub_child.call(FIND, "o/n", cache_dir=tmp_path) for _ in range(3)]
    assert "pytorch_model.bin" not in hub_server.asked("HEAD")
    assert found[-1]
    assert all(Path(path).read_bytes() == WEIGHTS for path in found if path)


@pytest.mark.parametrize("files", [{"model.safetensors": WEIGHTS}, shards(), {"pytorch_model.bin": ZIP}])
@pytest.mark.parametrize("how", ["local_files_only", "HF_HUB_OFFLINE", "unreachable"])
def test_offline_whatever_is_cached_is_taken(
    hub_server, hub_child, offline_child, lonely_child, tmp_path, files, how
):
    hub_server.add("o/n", files)
    path = hub_child.call(FIND, "o/n", cache_dir=tmp_path)
    hub_server.log.clear()
    children = {"HF_HUB_OFFLINE": offline_child, "unreachable": lonely_child}
    child = children.get(how, hub_child)
    options = {"cache_dir": tmp_path, "local_files_only": how == "local_files_only"}
    assert child.call(FIND, "o/n", **options) == path
    failure = child.call(FIND, "o/other", **options)
    assert failure.names[0] == "MissingFileError"
    assert failure.reason == ("unreachable" if how == "unreachable" else "not cached")
    assert how == "unreachable" or "Fetch it once without local_files_only" in failure.text
    assert hub_server.log == []


def test_unreachable_with_no_weights_in_the_cache(hub_server, hub_child, lonely_child, tmp_path):
    hub_server.add("o/n", {"config.json": CONFIG, "model.safetensors": WEIGHTS})
    hub_child.call("refimpl.hub:resolve", "o/n", "config.json", cache_dir=tmp_path)
    failure = lonely_child.call(FIND, "o/n", cache_dir=tmp_path)
    assert failure.reason == "unreachable"
    assert failure.text.startswith("o/n/model.safetensors: the Hub cannot be reached")


def test_offline_with_a_part_missing(hub_server, hub_child, tmp_path):
    hub_server.add("o/n", {**shards(), "pytorch_model.bin": ZIP})
    index = Path(hub_child.call(FIND, "o/n", cache_dir=tmp_path))
    index.with_name("model-00003-of-00003.safetensors").unlink()
    options = {"cache_dir": tmp_path, "local_files_only": True}
    failure = hub_child.call(FIND, "o/n", **options)
    assert failure.text.startswith("o/n/model-00003-of-00003.safetensors: not in the local cache")
    # Another form that is complete will do.
    hub_child.call("refimpl.hub:resolve", "o/n", "pytorch_model.bin", cache_dir=tmp_path)
    assert hub_child.call(FIND, "o/n", **options).endswith("/pytorch_model.bin")
    assert hub_child.call(FIND, "o/n", cache_dir=tmp_path) == str(index)


# --- which reader ------------------------------------------------------------------------------------


class TorchFile:
    parts = ()

    def __init__(self, path, mmap=True):
        self.path, self.mmap, self.paths = path, mmap, [path]

    def __iter__(self):
        return iter(())


@pytest.fixture(autouse=True)
def _torch_file(monkeypatch):
    """A stand-in for the reader of PyTorch files, which would refuse our empty archives."""
    monkeypatch.setitem(sys.modules, "refimpl.checkpoints.torch_file", SimpleNamespace(TorchFile=TorchFile))


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize(
    "name", ["model.safetensors", "MODEL.SAFETENSORS", "weights", "model.safetensors.new"]
)
def test_safetensors(tmp_path, name, mmap):
    path = write(tmp_path, {name: WEIGHTS}) / name
    tensors = open_weights(path, mmap=mmap)
    expected = load_file(MODEL / "model.safetensors")
    assert set(tensors) == set(expected)
    assert all(np.array_equal(tensors[name], array) for name, array in expected.items())
    if not mmap:  # the numbers are then our own
        with open(path, "r+b") as file:
            file.write(bytes(len(WEIGHTS)))
    assert np.array_equal(tensors["gpt_neox.embed_in.weight"], expected["gpt_neox.embed_in.weight"])


@pytest.mark.parametrize("name", ["model.safetensors", "weights"])
@pytest.mark.parametrize("length", [640, 896, 1152, 1408])
def test_a_length_that_begins_like_a_pickle(tmp_path, name, length):
    """A header of 640 bytes makes the first bytes of the file 80 02, which is how a pickle begins."""
    arrays = {"w": np.arange(6, dtype=np.float32)}
    whole = save(arrays)
    numbers = whole[8 + int.from_bytes(whole[:8], "little") :]
    header = json.dumps({"w": {"dtype": "F32", "shape": [6], "data_offsets": [0, 24]}}).encode().ljust(length)
    content = length.to_bytes(8, "little") + header + numbers
    assert (content[0], content[1]) == (0x80, length >> 8)
    tensors = open_weights(write(tmp_path, {name: content}) / name)
    assert type(tensors) is SafetensorsFile
    assert np.array_equal(tensors["w"], arrays["w"])


@pytest.mark.parametrize("beginning", [ZIP, b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "weights"])
def test_pytorch_files(tmp_path, name, beginning):
    opened = open_weights(str(write(tmp_path, {name: beginning}) / name), mmap=False)
    assert (type(opened), opened.path, opened.mmap) == (TorchFile, tmp_path / name, False)


def test_an_index(tmp_path):
    write(tmp_path, shards())
    tensors = open_weights(tmp_path / "model.safetensors.index.json")
    expected = load_file(MODEL / "model.safetensors")
    assert set(tensors) == set(expected)
    assert all(np.array_equal(tensors[name], array) for name, array in expected.items())
    assert [path.name for path in tensors.paths] == list(shards())[1:]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.safetensors", ZIP),
        ("MODEL.SafeTensors", b"\x80\x04."),
        ("model.safetensors", b'{"weight_map": {}}'),
        ("pytorch_model.bin", WEIGHTS),
        ("pytorch_model.bin", b'{"weight_map": {}}'),
        ("model.safetensors.index.json", WEIGHTS),
        ("pytorch_model.bin.index.json", ZIP),
    ],
)
def test_a_file_in_disguise_is_not_opened(tmp_path, name, content, monkeypatch):
    for reader in ("safetensors_file.SafetensorsFile", "sharded.ShardedFiles", "sharded.read_index"):
        monkeypatch.setattr(f"refimpl.checkpoints.{reader}", None)
    monkeypatch.setattr(sys.modules["refimpl.checkpoints.torch_file"], "TorchFile", None)
    text = refused(open_weights, write(tmp_path, {name: content}) / name, error=UnsafeCheckpointError)
    assert text.startswith(f"{tmp_path / name}: the file is not what its place and name say; found a")


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_an_index_leads_to_no_other_kind_of_file(tmp_path, ending):
    """One of safetensors never ends in a pickle, nor one index in another."""
    stem = "model" if ending == "safetensors" else "pytorch_model"
    other = ZIP if ending == "safetensors" else WEIGHTS
    index = tmp_path / f"{stem}.{ending}.index.json"
    for name, content in (
        ("part", other),
        (f"part.{ending}", other),
        ("part.bin" if ending == "safetensors" else "part.safetensors", other),
        ("part.index.json", b"{}"),
        ("part", b'{"weight_map": {"a": "part"}}'),
    ):
        write(tmp_path, {index.name: json.dumps({"weight_map": {"a": name}}).encode(), name: content})
        text = refused(open_weights, index, error=UnsafeCheckpointError)
        assert text.startswith(f"{tmp_path / name}: the file is not what its place and name say")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"GGUF\x03\0\0\0", "a GGUF file of llama.cpp"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
        (b"\x93NUMPY\x01\0", "a NumPy array"),
        (b"\x1f\x8b\x08\0\0\0", "a file compressed with gzip"),
        (b"\x28\xb5\x2f\xfd\0\0", "a file compressed with zstd"),
    ],
)
@pytest.mark.parametrize("name", ["weights", "model.safetensors", "pytorch_model.bin"])
def test_other_formats_are_named(tmp_path, name, content, what):
    text = refused(open_weights, write(tmp_path, {name: content}) / name, error=CheckpointFormatError)
    assert what in text


def test_what_nobody_knows(tmp_path):
    text = refused(
        open_weights, write(tmp_path, {"weights": b"\x07what\n"}) / "weights", error=CheckpointFormatError
    )
    assert r"one that begins with b'\x07what\n'" in text
    # With a name it goes to the reader of that name, which says where it is wrong.
    for name, broken in (
        ("model.safetensors", b"\xff" * 8 + WEIGHTS[8:]),
        ("model.safetensors.index.json", b"[]"),
    ):
        with pytest.raises(CheckpointFormatError) as caught:
            open_weights(write(tmp_path, {name: broken}) / name)
        assert "no weight file" not in str(caught.value)
    for length in range(40):
        with pytest.raises(IncompleteCheckpointError):
            open_weights(write(tmp_path, {"model.safetensors": WEIGHTS[:length]}) / "model.safetensors")


def test_what_is_no_weight_file(tmp_path):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    for name in ("model.safetensors", "pytorch_model.bin", "model.safetensors.index.json"):
        with pytest.raises(IncompleteCheckpointError, match="pointer"):
            open_weights(write(tmp_path, {name: pointer}) / name)
        with pytest.raises(IncompleteCheckpointError, match="web page"):
            open_weights(write(tmp_path, {name: b"<!DOCTYPE html>"}) / name)
    assert "no such file" in refused(open_weights, tmp_path / "absent.safetensors")
    os.mkfifo(tmp_path / "pipe.bin")
    (tmp_path / "folder.bin").mkdir()
    for name in ("pipe.bin", "folder.bin"):
        assert "not a regular file" in refused(open_weights, tmp_path / name, error=UnsafeCheckpointError)


def test_from_the_hub_to_the_numbers(hub_server, hub_child, tmp_path):
    hub_server.add("o/n", {"config.json": CONFIG, **shards()})
    tensors = open_weights(hub_child.call(FIND, "o/n", cache_dir=tmp_path))
    expected = load_file(MODEL / "model.safetensors")
    assert all(np.array_equal(tensors[name], array) for name, array in expected.items())
