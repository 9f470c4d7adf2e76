"""`refimpl quantize`: the bytes that quantizing on loading and saving give, and nothing lost when it fails."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from refimpl import AutoModelForCausalLM, BitsAndBytesConfig, GPTNeoXModel
from refimpl.backends import quantized
from refimpl.backends.quantized import QuantizedMatrix
from refimpl.checkpoints.locate import find_weights, open_weights
from refimpl.quantized_files import QuantizedTensors
from tests.cli.conftest import write_model
from tests.cli.test_main import error_of
from tests.refimpl.checkpoints.failures import failing, same_tensors
from tests.tiny import save_tiny, tiny_ids, tiny_neox

FORMS = {
    "int8": (["--weight-dtype", "int8"], {"load_in_8bit": True}),
    "nf4": (["--weight-dtype", "nf4"], {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}),
    "nf4 double": (
        ["--weight-dtype", "nf4", "--double-quant"],
        {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    ),
}
every_form = pytest.mark.parametrize("form", FORMS)


@pytest.fixture
def quantize(inside):
    """Calls that succeed; gives the report."""

    def call(source: Path, target: Path, form: str, *arguments: str) -> dict:
        result = inside("quantize", source, target, *FORMS[form][0], *arguments, "--json", "-q")
        assert (result.returncode, result.stderr) == (0, b"")
        return json.loads(result.stdout)

    return call


def weights(folder: Path) -> dict[str, np.ndarray]:
    return dict(open_weights(find_weights(folder)))


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def in_dtype(folder: Path, dtype: str) -> None:
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    tensors = {name: array.astype(kind) for name, array in weights(folder).items()}
    save_file(tensors, folder / "model.safetensors")


# --- what is written -----------------------------------------------------------------------------


@every_form
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_the_bytes_of_a_saved_model(quantize, tmp_path, form, dtype):
    """Matrices of 96 x 80 have a last block that is not full, and blocks that go on in the next row."""
    save_tiny(tmp_path / "old", tiny_neox(hidden_size=96, intermediate_size=83))
    in_dtype(tmp_path / "old", dtype)
    report = quantize(tmp_path / "old", tmp_path / "new", form)
    settings = BitsAndBytesConfig(**FORMS[form][1])
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "old", quantization_config=settings, backend="numpy"
    )
    if dtype == "float64":  # a saved model has its vectors in the compute dtype
        model = AutoModelForCausalLM.from_pretrained(
            tmp_path / "old", quantization_config=settings, backend="numpy", dtype="float64"
        )
    model.save_pretrained(tmp_path / "saved")
    new, saved = (weights(tmp_path / name) for name in ("new", "saved"))
    assert same_tensors(new, saved)
    assert sum(array.nbytes for array in new.values()) == report["bytes"]
    assert report["bytes_before"] == sum(array.nbytes for array in weights(tmp_path / "old").values())
    assert (report["weight_dtype"], report["quantized"]) == (form.split()[0], 12)
    stored = [json.loads((tmp_path / name / "config.json").read_bytes()) for name in ("new", "saved")]
    assert stored[0]["quantization_config"] == stored[1]["quantization_config"]
    assert {**stored[0], "quantization_config": None} == {
        **json.loads((tmp_path / "old" / "config.json").read_bytes()),
        "quantization_config": None,
    }


@every_form
def test_it_is_loaded_as_it_is(quantize, tmp_path, form):
    save_tiny(tmp_path / "old", tiny_neox(hidden_size=192, intermediate_size=768))
    report = quantize(tmp_path / "old", tmp_path / "new", form)
    assert report["bytes"] < report["bytes_before"] * (0.31 if form == "int8" else 0.2)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "new", backend="numpy")
    kept = {key for key, weight in model.state_dict().items() if isinstance(weight, QuantizedMatrix)}
    assert len(kept) == report["quantized"] == 12
    assert all(".layers." in key for key in kept)
    on_loading = AutoModelForCausalLM.from_pretrained(
        tmp_path / "old", quantization_config=BitsAndBytesConfig(**FORMS[form][1]), backend="numpy"
    )
    assert (model(tiny_ids()).logits == on_loading(tiny_ids()).logits).all()


def test_the_whole_model_arrives(inside, model_copy, tmp_path):
    (model_copy / "generation_config.json").write_text('{"top_k": 7}')
    result = inside("quantize", model_copy, tmp_path / "new" / "model", "--weight-dtype", "nf4")
    assert result.returncode == 0, result.stderr
    names = ["model.safetensors", "generation_config.json", "vocab.txt", "emoji.json", "config.json"]
    assert result.stdout.decode() == "".join(f"{tmp_path}/new/model/{name}\n" for name in names)
    assert sorted(os.listdir(tmp_path / "new" / "model")) == sorted(names)
    for name in names[1:-1]:
        assert (tmp_path / "new" / "model" / name).read_bytes() == (model_copy / name).read_bytes()
    assert result.stderr.decode().startswith("12 matrices in nf4: ")
    assert " in 1 file, " in result.stderr.decode()


@every_form
def test_shards(quantize, model, tmp_path, form):
    one = quantize(model, tmp_path / "one", form)
    many = quantize(model, tmp_path / "many", form, "--max-shard-size", "5KB")
    assert one["weight_files"] == 1
    assert many["weight_files"] > 3
    assert many["files"][many["weight_files"]] == "model.safetensors.index.json"
    assert same_tensors(weights(tmp_path / "many"), weights(tmp_path / "one"))
    for name in ("output", "files", "weight_files", "seconds"):
        one.pop(name), many.pop(name)
    assert one == many


def test_a_model_without_a_head(quantize, tmp_path):
    """Its tensors have no prefix."""
    save_tiny(tmp_path / "old", tiny_neox(GPTNeoXModel))
    assert quantize(tmp_path / "old", tmp_path / "new", "int8")["quantized"] == 12
    kept = QuantizedTensors(weights(tmp_path / "new")).quantized
    assert all(name.startswith("layers.") for name in kept)
    loaded = GPTNeoXModel.from_pretrained(tmp_path / "new", backend="numpy")
    assert loaded(tiny_ids()).last_hidden_state.shape == (2, 9, 24)


@pytest.mark.parametrize(
    ("form", "function"), [("int8", "quantize_int8"), ("nf4", "quantize_nf4"), ("nf4 double", "quantize_nf4")]
)
def test_matrix_by_matrix(quantize, monkeypatch, model, tmp_path, form, function):
    """Each matrix once, never many of them before they are written, and by threads that end."""
    monkeypatch.setattr("refimpl.cli.quantize._threads", lambda: 2)
    original, quantized_now, running = getattr(quantized, function), [], []

    def counted(array, name):
        quantized_now.append(name)
        return original(array, name=name)

    from refimpl.cli.quantize import _Ahead

    inner = _Ahead._next

    def looked_at(self, name):
        found = inner(self, name)
        running.append(len(self._running))
        return found

    monkeypatch.setattr(quantized, function, counted)
    monkeypatch.setattr(_Ahead, "_next", looked_at)
    quantize(model, tmp_path / "new", form)
    assert len(quantized_now) == len(set(quantized_now)) == 12
    assert max(running) == 2
    assert len(running) == (12 if form == "nf4 double" else 24)
    assert not [thread for thread in threading.enumerate() if "ThreadPool" in thread.name]


def test_into_the_same_folder(quantize, model_copy):
    before = {name: np.array(array) for name, array in weights(model_copy).items()}
    (model_copy / "notes.txt").write_text("mine")
    quantize(model_copy, model_copy, "int8", "--force")
    assert sorted(os.listdir(model_copy)) == [
        "config.json",
        "emoji.json",
        "model.safetensors",
        "notes.txt",
        "vocab.txt",
    ]
    shown = QuantizedTensors(weights(model_copy))
    assert set(shown) == set(before)
    for name in shown.quantized:
        assert np.abs(np.asarray(shown[name]) - before[name]).max() <= np.abs(before[name]).max() / 200


# --- what is refused -----------------------------------------------------------------------------


@every_form
def test_a_quantized_model_is_refused(inside, quantize, model, tmp_path, form):
    quantize(model, tmp_path / "old", form)

    def refused() -> str:
        message = error_of(inside("quantize", tmp_path / "old", tmp_path / "new", *FORMS["nf4"][0]), 2)
        assert not (tmp_path / "new").exists()
        assert f"'{tmp_path}/old': the model is quantized already; found " in message
        return message

    assert f"found {'llm_int8' if form == 'int8' else 'nf4'} in its config" in refused()
    config = json.loads((tmp_path / "old" / "config.json").read_bytes())
    del config["quantization_config"]
    (tmp_path / "old" / "config.json").write_text(json.dumps(config))
    assert "found 12 quantized matrices, such as 'gpt_neox_japanese.layers." in refused()


def test_another_method_is_refused(inside, model_copy, tmp_path):
    config = json.loads((model_copy / "config.json").read_bytes())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (model_copy / "config.json").write_text(json.dumps(config))
    message = error_of(inside("quantize", model_copy, tmp_path / "new", *FORMS["nf4"][0]), 1)
    assert "weights quantized by this method cannot be read; found quant_method 'gptq'" in message


@every_form
@pytest.mark.parametrize("number", [np.nan, -np.inf])
def test_nan_and_infinity_are_named(inside, model_copy, form, number):
    tensors = {name: np.array(array) for name, array in weights(model_copy).items()}
    name = [name for name in tensors if name.endswith("dense_h_to_4h.weight")][1]
    tensors[name][3, 5] = tensors[name][4, 1] = number
    save_file(tensors, model_copy / "model.safetensors")
    before = content(model_copy)
    message = error_of(inside("quantize", model_copy, model_copy, "--force", *FORMS[form][0]), 1)
    assert message.startswith(f"{name}: a matrix with NaN or infinity cannot be quantized")
    assert f"found {number} at [3, 5] (2 such numbers)" in message
    assert content(model_copy) == before
    assert not [thread for thread in threading.enumerate() if "ThreadPool" in thread.name]


def test_a_number_beyond_float16(inside, quantize, model_copy, tmp_path):
    tensors = {name: np.array(array) for name, array in weights(model_copy).items()}
    name = next(name for name in tensors if "layers" in name and tensors[name].ndim == 2)
    tensors[name][1, 2] = 1e6
    save_file(tensors, model_copy / "model.safetensors")
    message = error_of(inside("quantize", model_copy, tmp_path / "new", *FORMS["int8"][0]), 1)
    assert message.startswith(f"{name}: float16, through which weights go to int8, cannot hold a number")
    assert "found 1000000.0 at [1, 2]" in message
    assert not (tmp_path / "new").exists()
    quantize(model_copy, tmp_path / "new", "nf4")


def test_a_model_with_nothing_to_quantize(inside, tmp_path):
    tensors = {
        name: array
        for name, array in weights(save_tiny(tmp_path / "old", tiny_neox())).items()
        if ".layers." not in name
    }
    save_file(tensors, tmp_path / "old" / "model.safetensors")
    message = error_of(inside("quantize", tmp_path / "old", tmp_path / "new", *FORMS["nf4"][0]), 2)
    assert "the model has no dense layers that could be quantized" in message
    assert not (tmp_path / "new").exists()


def test_a_disk_that_is_too_small(inside, monkeypatch, model, tmp_path):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: (1 << 40, 1 << 40, 1000))
    message = error_of(inside("quantize", model, tmp_path / "new", *FORMS["nf4"][0]), 1)
    assert "there is not enough room on the disk" in message
    assert not (tmp_path / "new").exists()


def test_a_model_is_replaced_on_request_only(inside, model, model_copy):
    before = content(model_copy)
    message = error_of(inside("quantize", model, model_copy, *FORMS["nf4"][0]), 2)
    assert "the folder holds a model already" in message
    assert content(model_copy) == before


def test_each_operation_fails_once(inside, tmp_path):
    """Into a folder that holds another model: it keeps it, whole."""
    source = write_model(tmp_path / "source", num_hidden_layers=1)
    target = write_model(tmp_path / "target", seed=5)
    before = content(target)
    seen = 0
    for at in range(1, 3000, 5):  # every one: see the tests of saving
        with failing(OSError(errno.EIO, "broken"), at) as done:
            result = inside("quantize", source, target, "--force", *FORMS["nf4 double"][0])
        if result.returncode == 0:
            if len(done) < at:
                break
        elif b"what is new is in place" not in result.stderr:
            assert content(target) == before, (at, result.stderr)
            seen += 1
            continue
        assert len(QuantizedTensors(weights(target)).quantized) == 4
        for name, old in before.items():
            (target / name).write_bytes(old)
    assert seen > 10


def test_wrong_calls(inside, model, tmp_path):
    def error(*arguments: str | Path) -> str:
        return error_of(inside("quantize", *arguments), 2)

    new = tmp_path / "new"
    assert "required: --weight-dtype" in error(model, new)
    assert "invalid choice: 'fp4' (choose from" in error(model, new, "--weight-dtype", "fp4")
    assert "--double-quant: int8 has no blocks" in error(
        model, new, "--weight-dtype", "int8", "--double-quant"
    )
    assert 'such as "5GB"' in error(model, new, *FORMS["nf4"][0], "--max-shard-size", "5 potatoes")
    assert "FOLDER: the name of the folder is empty" in error(model, "", *FORMS["nf4"][0])
    assert "the name of the model is empty" in error("", new, *FORMS["nf4"][0])
    assert "unknown option --weight-type (did you mean --weight-dtype?)" in error(
        model, new, "--weight-type", "nf4"
    )
    assert os.listdir(tmp_path) == []


def test_help_is_quick(environment):
    program = (
        "import sys; from refimpl import cli\n"
        "try: cli.main(['quantize', '--help'])\n"
        "finally: sys.exit('numpy' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert "refimpl quantize my_model my_model_int8 --weight-dtype int8" in result.stdout


def test_the_file_is_read_by_the_package(quantize, model, tmp_path):
    quantize(model, tmp_path / "new", "nf4 double")
    assert same_tensors(load_file(tmp_path / "new" / "model.safetensors"), weights(tmp_path / "new"))
