"""`refimpl convert --packed` and `refimpl quantize --packed`: the same model, in panels; all of it or nothing."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from refimpl import AutoModelForCausalLM
from refimpl.checkpoints.locate import find_weights, open_weights
from refimpl.checkpoints.panel_file import PanelFile
from tests.cli.conftest import write_model
from tests.cli.test_main import error_of
from tests.refimpl.checkpoints.failures import failing, same_tensors
from tests.tiny import save_tiny, tiny_ids, tiny_neox

FORMS = {
    "int8": ["--weight-dtype", "int8"],
    "nf4": ["--weight-dtype", "nf4"],
    "nf4 double": ["--weight-dtype", "nf4", "--double-quant"],
}


@pytest.fixture
def call(inside):
    """Calls that succeed; gives the report."""

    def call(*arguments) -> dict:
        result = inside(*arguments, "--json", *(["-q"] if arguments[0] != "inspect" else []))
        assert (result.returncode, result.stderr) == (0, b""), result.stderr
        return json.loads(result.stdout)

    return call


@pytest.fixture(scope="session")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose dense layers have a form in panels in NF4 too."""
    folder = tmp_path_factory.mktemp("wide")
    return save_tiny(folder, tiny_neox(hidden_size=128, num_attention_heads=2, intermediate_size=192))


def weights(folder: Path) -> dict[str, np.ndarray]:
    file = open_weights(find_weights(folder))
    return {name: np.asarray(file[name]) for name in file}


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def logits(folder: Path, backend: str) -> bytes:
    model = AutoModelForCausalLM.from_pretrained(folder, backend=backend)
    return model(tiny_ids()).logits.tobytes()


# --- what is written -----------------------------------------------------------------------------


def test_the_whole_model_there_and_back(inside, call, model, tmp_path, backend):
    result = inside("convert", model, tmp_path / "new", "--packed")
    assert result.returncode == 0, result.stderr
    names = ["packed.safetensors", "vocab.txt", "emoji.json", "config.json"]
    assert result.stdout.decode() == "".join(f"{tmp_path}/new/{name}\n" for name in names)
    assert sorted(os.listdir(tmp_path / "new")) == sorted(names)
    for name in names[1:]:
        assert (tmp_path / "new" / name).read_bytes() == (model / name).read_bytes()
    assert isinstance(open_weights(find_weights(tmp_path / "new")), PanelFile)
    assert same_tensors(weights(tmp_path / "new"), weights(model))
    assert logits(tmp_path / "new", backend) == logits(model, backend)
    assert call("convert", tmp_path / "new", tmp_path / "back")["packed"] is False
    assert call("convert", model, tmp_path / "copy")["packed"] is False
    assert content(tmp_path / "back") == content(tmp_path / "copy")
    assert call("convert", tmp_path / "new", tmp_path / "again", "--packed")["packed"] is True
    assert content(tmp_path / "again") == content(tmp_path / "new")


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_dtypes(call, model, tmp_path, dtype):
    call("convert", model, tmp_path / "ordinary", "--dtype", dtype)
    report = call("convert", model, tmp_path / "new", "--dtype", dtype, "--packed")
    assert report["dtypes"] == [dtype]
    assert report["bytes"] == open_weights(find_weights(tmp_path / "new")).nbytes
    assert same_tensors(weights(tmp_path / "new"), weights(tmp_path / "ordinary"))
    assert (tmp_path / "new/config.json").read_bytes() == (tmp_path / "ordinary/config.json").read_bytes()


@pytest.mark.parametrize("form", FORMS)
def test_quantized(call, wide, tmp_path, form, backend):
    """Packed at once, or an ordinary quantized model packed afterwards: the same bytes."""
    call("quantize", wide, tmp_path / "ordinary", *FORMS[form])
    report = call("quantize", wide, tmp_path / "new", *FORMS[form], "--packed")
    assert (report["packed"], report["quantized"]) == (True, 12)
    file = open_weights(find_weights(tmp_path / "new"))
    assert len(file.packed) == 14
    assert report["bytes"] == file.nbytes
    assert same_tensors(weights(tmp_path / "new"), weights(tmp_path / "ordinary"))
    assert logits(tmp_path / "new", backend) == logits(tmp_path / "ordinary", backend)
    call("convert", tmp_path / "ordinary", tmp_path / "after", "--packed")
    assert content(tmp_path / "after") == content(tmp_path / "new")
    call("convert", tmp_path / "new", tmp_path / "back")
    assert content(tmp_path / "back") == content(tmp_path / "ordinary")


def test_a_packed_model_is_quantized(call, wide, tmp_path):
    call("convert", wide, tmp_path / "packed", "--packed")
    call("quantize", tmp_path / "packed", tmp_path / "new", *FORMS["nf4"])
    call("quantize", wide, tmp_path / "wanted", *FORMS["nf4"])
    assert content(tmp_path / "new") == content(tmp_path / "wanted")


@pytest.mark.parametrize("form", [None, "nf4 double"])
def test_parts(call, wide, tmp_path, form):
    verb = ["convert"] if form is None else ["quantize"]
    options = [*(FORMS[form] if form else ()), "--packed"]
    call(*verb, wide, tmp_path / "one", *options)
    report = call(*verb, wide, tmp_path / "many", *options, "--max-shard-size", "70KB")
    assert report["weight_files"] > 3
    assert report["files"][: report["weight_files"] + 1] == [
        *(f"packed-{i:05d}-of-{report['weight_files']:05d}.safetensors" for i in range(1, report["weight_files"] + 1)),
        "packed.safetensors.index.json",
    ]  # fmt: skip
    assert same_tensors(weights(tmp_path / "many"), weights(tmp_path / "one"))
    assert logits(tmp_path / "many", "numba") == logits(tmp_path / "one", "numba")


def test_one_form_takes_the_place_of_the_other(inside, call, model, tmp_path):
    """Nothing of the old form stays, which would be read in its place."""
    call("convert", model, tmp_path, "--packed", "--max-shard-size", "30KB")
    before = content(tmp_path)
    message = error_of(inside("convert", model, tmp_path, "--packed"), 2)
    assert "the folder holds a model already" in message
    assert "packed-00001-of-" in message
    assert content(tmp_path) == before
    small = {"vocab.txt", "emoji.json", "config.json"}
    for options, name in (([], "model.safetensors"), (["--packed"], "packed.safetensors")):
        call("convert", model, tmp_path, "--force", *options)
        assert set(os.listdir(tmp_path)) == {name, *small}
    call(
        "convert", tmp_path, tmp_path, "--force", "--packed", "--dtype", "float16"
    )  # the folder that is read from
    assert {array.dtype for array in weights(tmp_path).values()} == {np.dtype(np.float16)}


def test_inspect(call, inside, wide, tmp_path):
    call("convert", wide, tmp_path / "new", "--packed")
    packed, ordinary = call("inspect", tmp_path / "new"), call("inspect", wide)
    assert (packed["file"]["name"], packed["file"]["packed"]) == ("packed.safetensors", 14)
    assert ordinary["file"]["packed"] == 0
    for key in ("parameters", "memory", "tensors", "remarks", "unused_config_keys", "class"):
        if key == "tensors":
            packed[key], ordinary[key] = (sorted(r[key], key=lambda t: t["name"]) for r in (packed, ordinary))
        assert packed[key] == ordinary[key], key
    assert "; 14 matrices packed\n" in inside("inspect", tmp_path / "new").stdout.decode()
    assert "packed" not in inside("inspect", wide).stdout.decode()
    assert call("inspect", tmp_path / "new", "--values")["values"] == []


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("call_of", [["convert"], ["quantize", *FORMS["int8"]]])
def test_nan_and_infinity_are_named(inside, model_copy, call_of):
    """Also in a matrix that is not quantized."""
    tensors = weights(model_copy)
    name = next(name for name in tensors if name.endswith("embed_in.weight"))
    tensors[name] = tensors[name].copy()
    tensors[name][3, 5] = np.inf
    save_file(tensors, model_copy / "model.safetensors")
    before = content(model_copy)
    message = error_of(inside(call_of[0], model_copy, model_copy, *call_of[1:], "--packed", "--force"), 1)
    assert message.startswith(
        f"{name}: this tensor holds NaN or infinity, and is not packed; found inf at [3, 5]"
    )
    assert content(model_copy) == before


def test_numbers_without_a_form(inside, call, model, tmp_path):
    call("convert", model, tmp_path / "wide", "--dtype", "float64")
    message = error_of(inside("convert", tmp_path / "wide", tmp_path / "new", "--packed"), 2)
    assert message.startswith("no matrix of the model has a form in panels; found float64; ")
    assert "--dtype float32 --packed" in message
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("call_of", [["convert"], ["quantize", *FORMS["nf4"]]])
def test_a_disk_that_is_too_small(inside, monkeypatch, model, model_copy, tmp_path, call_of):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: (1 << 40, 1 << 40, 1000))
    before = content(model_copy)
    for target, options in ((tmp_path / "new", []), (model_copy, ["--force"])):
        message = error_of(inside(call_of[0], model, target, *call_of[1:], "--packed", *options), 1)
        assert "there is not enough room on the disk" in message
    assert not (tmp_path / "new").exists()
    assert content(model_copy) == before


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_a_folder_that_cannot_be_written_to(inside, model, tmp_path, code):
    with failing(OSError(code, os.strerror(code)), 1, ("mkdir",)):
        message = error_of(inside("convert", model, tmp_path / "new", "--packed"), 1)
    assert os.strerror(code) in message
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_each_operation_fails_once(inside, tmp_path, code):
    """Into a folder that holds another model: it keeps it, whole."""
    source = write_model(tmp_path / "source", num_hidden_layers=1)
    target = write_model(tmp_path / "target", seed=5)
    before = content(target)
    seen = 0
    for at in range(1, 3000, 4):  # every one: see the tests of saving
        with failing(OSError(code, "broken"), at) as done:
            result = inside("convert", source, target, "--force", "--packed")
        if result.returncode == 0:
            if len(done) < at:
                break
        elif b"what is new is in place" not in result.stderr:
            assert content(target) == before, (at, result.stderr)
            seen += 1
            continue
        assert set(os.listdir(target)) == {"packed.safetensors", *before} - {"model.safetensors"}
        assert same_tensors(weights(target), weights(source))
        shutil.rmtree(target)
        target.mkdir()
        for name, old in before.items():
            (target / name).write_bytes(old)
    assert seen > 10


@pytest.mark.parametrize("version", [1, 3])
def test_a_file_of_another_version(inside, call, model, tmp_path, version):
    call("convert", model, tmp_path, "--packed")
    path = tmp_path / "packed.safetensors"
    path.write_bytes(path.read_bytes().replace(rb"{\"version\":2,", rb"{\"version\":%d," % version))
    for verb in (
        ["inspect", tmp_path],
        ["convert", tmp_path, tmp_path / "new"],
        ["generate", "あ", "-m", tmp_path],
    ):
        message = error_of(inside(*verb), 1)
        assert (
            f"{path}: the matrices lie in an order of another version of refimpl; found version {version}"
            in message
        )
