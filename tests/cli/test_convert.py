"""`refimpl convert`: every weight arrives, nothing is overwritten unasked, nothing is lost when it fails."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from refimpl import AutoModelForCausalLM, cli
from refimpl.backends.quantized import quantize_int8
from refimpl.checkpoints.locate import find_weights, open_weights
from refimpl.matching import OLD_BUFFERS
from refimpl.quantized_files import stored_tensors
from tests.cli.test_main import error_of
from tests.refimpl.checkpoints import torch_files
from tests.refimpl.checkpoints.failures import failing, same_tensors
from tests.tiny import save_tiny, tiny_ids, tiny_neox

TOKENIZER = ("vocab.txt", "emoji.json")


@pytest.fixture(autouse=True)
def command(monkeypatch):
    monkeypatch.setitem(cli.COMMANDS, "convert", ("convert", "write a model as safetensors"))


@pytest.fixture
def convert(inside):
    """Calls that succeed; gives the report."""

    def call(*arguments) -> dict:
        result = inside("convert", *arguments, "--json", "-q")
        assert (result.returncode, result.stderr) == (0, b"")
        return json.loads(result.stdout)

    return call


def weights(folder: Path) -> dict[str, np.ndarray]:
    return dict(open_weights(find_weights(folder)))


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_whole_model_arrives(inside, model, tmp_path):
    result = inside("convert", model, tmp_path / "new" / "model")
    assert result.returncode == 0, result.stderr
    names = ["model.safetensors", *TOKENIZER, "config.json"]
    assert result.stdout.decode() == "".join(f"{tmp_path}/new/model/{name}\n" for name in names)
    assert sorted(os.listdir(tmp_path / "new" / "model")) == sorted(names)
    assert same_tensors(weights(tmp_path / "new" / "model"), weights(model))
    for name in (*TOKENIZER, "config.json"):
        assert (tmp_path / "new" / "model" / name).read_bytes() == (model / name).read_bytes()
    loaded, original = (AutoModelForCausalLM.from_pretrained(f) for f in (tmp_path / "new" / "model", model))
    assert (loaded(tiny_ids()).logits == original(tiny_ids()).logits).all()
    summary = result.stderr.decode()
    count = len(loaded.state_dict())
    assert summary.startswith(f"{count} tensors (float32), ")
    assert " in 1 file, " in summary
    assert "left out" not in summary


def test_shards_and_settings_of_generation(convert, model_copy, tmp_path):
    (model_copy / "generation_config.json").write_text('{"top_k": 7}')
    report = convert(model_copy, tmp_path / "new", "--max-shard-size", "30KB")
    shards = [name for name in report["files"] if name.endswith(".safetensors")]
    assert len(shards) == report["weight_files"] > 1
    assert report["files"] == [
        *shards,
        "model.safetensors.index.json",
        "generation_config.json",
        *TOKENIZER,
        "config.json",
    ]
    assert same_tensors(weights(tmp_path / "new"), weights(model_copy))
    convert(model_copy, tmp_path / "same", "--max-shard-size", "30000")  # bytes
    assert content(tmp_path / "same") == content(tmp_path / "new")
    again = convert(tmp_path / "new", tmp_path / "one")
    assert again["weight_files"] == 1
    assert again["bytes"] == report["bytes"] == sum(array.nbytes for array in weights(model_copy).values())
    assert same_tensors(weights(tmp_path / "one"), weights(model_copy))
    assert (tmp_path / "one" / "generation_config.json").read_text() == '{"top_k": 7}'


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_dtypes(convert, model, tmp_path, dtype):
    report = convert(model, tmp_path / "new", "--dtype", dtype)
    assert report["dtypes"] == [dtype]
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    assert same_tensors(
        weights(tmp_path / "new"), {name: array.astype(kind) for name, array in weights(model).items()}
    )
    config = json.loads((tmp_path / "new" / "config.json").read_bytes())
    original = json.loads((model / "config.json").read_bytes())
    assert config == {**original, "dtype": dtype, "torch_dtype": dtype}
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "new").config.dtype == dtype


def test_a_number_that_is_too_large(inside, model_copy, tmp_path):
    tensors = weights(model_copy)
    name = next(name for name in tensors if tensors[name].ndim == 2)
    tensors[name] = tensors[name].copy()
    tensors[name][1, 2] = 1e6
    save_file(tensors, model_copy / "model.safetensors")
    message = error_of(inside("convert", model_copy, tmp_path / "new", "--dtype", "float16"), 1)
    assert message.startswith(f"{name}: float16 cannot hold a number of this tensor; found 1000000.0")
    assert not (tmp_path / "new").exists()


def old_file(folder: Path, tied: bool) -> dict[str, np.ndarray]:
    """A `pytorch_model.bin` of old times: buffers beside the weights, and a tied head that shares its numbers."""
    save_tiny(folder, tiny_neox(tie_word_embeddings=tied))
    tensors = weights(folder)
    (folder / "model.safetensors").unlink()
    buffers = {
        f"gpt_neox.layers.{layer}{end}": np.ones(3, bool if end == OLD_BUFFERS[0] else np.float32)
        for layer in range(3)
        for end in OLD_BUFFERS
    }
    stored = {**tensors, **buffers}
    _, storages = torch_files.saved(stored)
    items = {
        name: (torch_files.KINDS[array.dtype.name], str(key), array)
        for key, (name, array) in enumerate(stored.items())
    }
    if tied:
        items["embed_out.weight"] = items["gpt_neox.embed_in.weight"]
    body = torch_files.dictionary(
        {
            name: torch_files.tensor(
                torch_files.storage(kind, key, array.size),
                0,
                array.shape,
                torch_files.contiguous(array.shape),
            )
            for name, (kind, key, array) in items.items()
        }
    )
    (folder / "pytorch_model.bin").write_bytes(torch_files.torch_file(torch_files.pickle_of(body), storages))
    return tensors


@pytest.mark.parametrize("tied", [False, True])
def test_a_file_of_pytorch(convert, inside, tmp_path, tied):
    tensors = old_file(tmp_path / "old", tied)
    assert ("embed_out.weight" in tensors) != tied
    report = convert(tmp_path / "old", tmp_path / "new")
    assert same_tensors(weights(tmp_path / "new"), tensors)
    assert report["left_out"] == 9 + tied
    result = inside("convert", tmp_path / "old", tmp_path / "newer")
    assert "refimpl: warning: no tokenizer: " in result.stderr.decode()
    assert f"left out, because the config says what they hold: {9 + tied}\n" in result.stderr.decode()
    # In the same folder: the old file stays, and is no longer what is read.
    before = (tmp_path / "old" / "pytorch_model.bin").read_bytes()
    convert(tmp_path / "old", tmp_path / "old", "--force")
    assert (tmp_path / "old" / "pytorch_model.bin").read_bytes() == before
    assert find_weights(tmp_path / "old").name == "model.safetensors"
    assert same_tensors(weights(tmp_path / "old"), tensors)


def test_a_head_of_its_own_is_kept(convert, tmp_path):
    """Equal to the embedding or not, and whatever the config says: it is not the same storage."""
    save_tiny(tmp_path / "old", tiny_neox(tie_word_embeddings=True))
    tensors = weights(tmp_path / "old")
    tensors = {**tensors, "embed_out.weight": tensors["gpt_neox.embed_in.weight"].copy()}
    save_file(tensors, tmp_path / "old" / "model.safetensors")
    assert convert(tmp_path / "old", tmp_path / "new")["left_out"] == 0
    assert same_tensors(weights(tmp_path / "new"), tensors)


def test_quantized_weights_go_as_they_are(convert, inside, tmp_path):
    save_tiny(tmp_path / "old", tiny_neox())
    tensors: dict[str, np.ndarray] = {}
    for name, array in weights(tmp_path / "old").items():
        dense = "layers" not in name or array.ndim != 2
        tensors |= {name: array} if dense else stored_tensors(name, quantize_int8(array))
    save_file(
        {name: np.array(array) for name, array in tensors.items()}, tmp_path / "old" / "model.safetensors"
    )
    config = json.loads((tmp_path / "old" / "config.json").read_bytes())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    (tmp_path / "old" / "config.json").write_text(json.dumps(config))
    convert(tmp_path / "old", tmp_path / "new")
    assert same_tensors(load_file(tmp_path / "new" / "model.safetensors"), tensors)
    message = error_of(inside("convert", tmp_path / "old", tmp_path / "no", "--dtype", "float16"), 2)
    assert "--dtype: quantized weights cannot be rounded" in message
    assert not (tmp_path / "no").exists()


# --- what is there already -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "model.safetensors",
        "pytorch_model.bin",
        "pytorch_model-00001-of-00002.bin",
        "vocab.txt",
    ],
)
def test_a_model_is_replaced_on_request_only(inside, model, tmp_path, name):
    (tmp_path / name).write_text("mine")
    (tmp_path / "notes.txt").write_text("mine")
    message = error_of(inside("convert", model, tmp_path), 2)
    assert f"the folder holds a model already; found '{name}'. " in message
    assert "--force" in message
    assert content(tmp_path) == {name: b"mine", "notes.txt": b"mine"}
    assert inside("convert", model, tmp_path, "--force").returncode == 0
    assert same_tensors(weights(tmp_path), weights(model))
    assert (tmp_path / "notes.txt").read_text() == "mine"
    if name.endswith(".bin"):  # nothing is lost that is not replaced
        assert (tmp_path / name).read_text() == "mine"


def test_no_tokenizer_of_another_model_stays(convert, model, tmp_path):
    """It would be taken for that of this model. Without a tokenizer of its own, a model leaves it."""
    (tmp_path / "tokenizer.json").write_text("{}")
    convert(model, tmp_path, "--force")
    assert not (tmp_path / "tokenizer.json").exists()
    save_tiny(tmp_path / "bare", tiny_neox())
    convert(tmp_path / "bare", tmp_path, "--force")
    assert (tmp_path / "vocab.txt").exists()
    assert json.loads((tmp_path / "config.json").read_bytes())["model_type"] == "gpt_neox"


def test_into_the_same_folder(convert, model_copy):
    tensors = {name: np.array(array) for name, array in weights(model_copy).items()}
    (model_copy / "notes").mkdir()
    convert(model_copy, model_copy, "--force", "--max-shard-size", "20KB")
    assert same_tensors(weights(model_copy), tensors)
    convert(model_copy, model_copy, "--force", "--dtype", "float16")
    assert same_tensors(
        weights(model_copy), {name: array.astype(np.float16) for name, array in tensors.items()}
    )
    assert sorted(os.listdir(model_copy)) == [
        "config.json",
        "emoji.json",
        "model.safetensors",
        "notes",
        "vocab.txt",
    ]


def test_each_operation_fails_once(inside, model, model_copy):
    """Into a folder that holds another model: it keeps it, whole, with its tokenizer."""
    (model_copy / "vocab.txt").write_text("other\n")
    before = content(model_copy)
    seen = 0
    for at in range(1, 3000, 3):  # every one: see the tests of saving
        with failing(OSError(errno.EIO, "broken"), at) as done:
            result = inside("convert", model, model_copy, "--force", "--dtype", "float64")
        if result.returncode == 0:
            if len(done) < at:
                break
        elif b"what is new is in place" not in result.stderr:
            assert content(model_copy) == before, (at, result.stderr)
            seen += 1
            continue
        assert set(os.listdir(model_copy)) == set(before)
        assert {array.dtype for array in weights(model_copy).values()} == {np.dtype(np.float64)}
        for name, old in before.items():
            (model_copy / name).write_bytes(old)
    assert seen > 15


# --- wrong calls ---------------------------------------------------------------------------------


def test_wrong_calls(inside, model, tmp_path):
    def error(code: int, *arguments: str | Path) -> str:
        return error_of(inside("convert", *arguments), code)

    (tmp_path / "file").write_text("mine")
    new = tmp_path / "new"
    assert "required" in error(2, model)
    assert "FOLDER: the name of the folder is empty" in error(2, model, "")
    assert "the name of the model is empty" in error(2, "", new)
    assert f"'{tmp_path}/file': this must be a folder, and there is a file" in error(
        2, model, tmp_path / "file"
    )
    assert "there is a file" in error(2, model, tmp_path / "file" / "below")
    assert "the folder cannot be used (File name too long)" in error(2, model, tmp_path / ("x" * 300))
    for size in ("5 potatoes", "0", "1.5", "9" * 30):
        assert 'such as "5GB"' in error(2, model, new, "--max-shard-size", size)
    assert "invalid choice" in error(2, model, new, "--dtype", "int8")
    assert "config.json" in error(1, tmp_path, new)
    assert "a folder, or owner/name" in error(1, tmp_path / "none", new)
    assert sorted(os.listdir(tmp_path)) == ["file"]


def test_a_model_that_is_not_known(inside, model_copy, tmp_path):
    (model_copy / "config.json").write_text('{"model_type": "llama"}')
    assert "this type of model is not supported" in error_of(
        inside("convert", model_copy, tmp_path / "new"), 1
    )
    assert not (tmp_path / "new").exists()


def test_a_damaged_file(inside, model_copy, tmp_path):
    data = (model_copy / "model.safetensors").read_bytes()
    (model_copy / "model.safetensors").write_bytes(data[:-100])
    assert "cut short" in error_of(inside("convert", model_copy, tmp_path / "new"), 1)
    assert not (tmp_path / "new").exists()


def test_help_is_quick(environment):
    program = (
        "import sys; from refimpl import cli; cli.COMMANDS['convert'] = ('convert', '')\n"
        "try: cli.main(['convert', '--help'])\n"
        "finally: sys.exit('numpy' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert "refimpl convert old_model new_model" in result.stdout
