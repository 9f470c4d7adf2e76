"""`refimpl inspect`: figures from the headers, checked against the model itself."""

from __future__ import annotations

import json

import numpy as np
import pytest

import refimpl
from refimpl import AutoModelForCausalLM
from refimpl.cli.inspect import as_text
from tests.cli.conftest import CONTEXT, LINES, write_model
from tests.cli.test_main import error_of
from tests.tiny import save_tiny, tiny_neox


def report(inside, *arguments) -> dict:
    result = inside("inspect", *arguments, "--json")
    assert (result.returncode, result.stderr) == (0, b"")
    return json.loads(result.stdout)


def test_figures_are_those_of_the_loaded_model(inside, model):
    found = report(inside, model)
    loaded = AutoModelForCausalLM.from_pretrained(model, backend="numpy")
    weights = loaded.state_dict()
    assert found["parameters"] == loaded.num_parameters()
    assert found["memory"]["weights"] == sum(array.nbytes for array in weights.values())
    assert {t["name"]: (tuple(t["shape"]), t["dtype"], t["bytes"]) for t in found["tensors"]} == {
        name: (array.shape, str(array.dtype), array.nbytes) for name, array in weights.items()
    }
    assert found["file"]["tensors"] == len(found["tensors"])
    assert found["file"]["bytes"] == sum(t["bytes"] for t in found["tensors"])
    cache = loaded(np.arange(10)[None]).past_key_values
    assert found["memory"]["cache_per_token"] == sum(k.nbytes + v.nbytes for k, v in cache) / 10
    assert found["memory"]["cache_full_context"] == CONTEXT * found["memory"]["cache_per_token"]


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": "float64"},
        {"dtype": "float16"},
        {"dtype": "bfloat16"},
        {"weight_dtype": "float16"},
        {"dtype": "float64", "weight_dtype": "bfloat16"},
        {"dtype": "float16", "weight_dtype": "float32"},
        {"weight_dtype": "int8"},
        {"weight_dtype": "nf4"},
    ],
)
def test_memory_for_other_dtypes(inside, model, options):
    given = [word for name, dtype in options.items() for word in (f"--{name.replace('_', '-')}", dtype)]
    found = report(inside, model, *given)["memory"]
    loaded = AutoModelForCausalLM.from_pretrained(model, backend="numpy", **options)
    assert found["weights"] == sum(array.nbytes for array in loaded.state_dict().values())
    assert found["compute_dtype"] == str(loaded.dtype)


def test_weights_kept_in_16_bits_in_the_file(inside, tmp_path):
    from safetensors.numpy import load_file, save_file

    folder = write_model(tmp_path / "half")
    path = folder / "model.safetensors"
    save_file({name: array.astype(np.float16) for name, array in load_file(path).items()}, path)
    found = report(inside, folder)
    loaded = AutoModelForCausalLM.from_pretrained(folder, backend="numpy")
    assert found["memory"]["weight_dtype"] == "float16"
    assert found["memory"]["weights"] == sum(array.nbytes for array in loaded.state_dict().values())


def test_config_tokens_and_settings(inside, model_copy):
    config = json.loads((model_copy / "config.json").read_text())
    (model_copy / "config.json").write_text(json.dumps({**config, "rope_theta_scale": 3}))
    (model_copy / "generation_config.json").write_text('{"do_sample": true, "top_p": 0.8}')
    found = report(inside, model_copy)
    assert found["config"]["hidden_size"] == config["hidden_size"]
    assert found["unused_config_keys"] == {"rope_theta_scale": 3}
    assert "rope_theta_scale" not in found["config"]
    assert found["special_tokens"]["eos_token"] == {
        "token": "<|endoftext|>",
        "id": LINES.index("<|endoftext|>"),
    }
    assert (found["generation"]["do_sample"], found["generation"]["top_p"]) == (True, 0.8)
    assert (found["tied"], found["context"]) == (True, CONTEXT)


def test_a_model_without_a_tokenizer(inside, tmp_path):
    found = report(inside, save_tiny(tmp_path / "tiny", tie_word_embeddings=False))
    assert found["special_tokens"] is None
    assert found["tokenizer_error"]
    assert found["tied"] is False
    assert "  none: " in as_text(found)


def test_the_text_tells_the_same(inside, model):
    found = report(inside, model)
    text = inside("inspect", model).stdout.decode()
    assert text == as_text(found)
    assert text.startswith(f"model       {model} (gpt_neox_japanese)\n")
    for part in (
        f"{found['parameters']:,}",
        "28 tensors",
        "tied",
        f"{CONTEXT} tokens",
        "<|startoftext|>",
        "[292, 24]",
    ):
        assert part in text
    assert all(t["name"] in text for t in found["tensors"])
    assert "keys without a meaning" not in text
    assert inside("inspect", "--model", model).stdout.decode() == text


def test_nothing_of_the_model_obeys_the_terminal(inside, model_copy):
    config = json.loads((model_copy / "config.json").read_text())
    (model_copy / "config.json").write_text(json.dumps({**config, "note\x1b[2J": "\x9b"}, ensure_ascii=False))
    text = inside("inspect", model_copy).stdout.decode()
    assert "note\\x1b[2J" in text
    assert not any((ord(c) < 32 and c != "\n") or 127 <= ord(c) < 160 for c in text)


def test_no_weight_is_read(inside, model_copy):
    """A header that announces more than is there is refused; one over a hole is fine, and takes no memory."""
    path = model_copy / "model.safetensors"
    header_end = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    size = path.stat().st_size
    before = report(inside, model_copy)
    with open(path, "r+b") as file:
        file.truncate(header_end)
        file.truncate(size)
    assert report(inside, model_copy) == before


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--dtype", "float7"], "does not compute in this dtype; found 'float7'"),
        (["x", "y"], "unrecognized arguments: y"),
    ],
)
def test_wrong_options(inside, model, options, expected):
    given = options if options[0] == "x" else [model, *options]
    assert expected in error_of(inside("inspect", *given), 2)


def test_the_embedded_model(inside, embedded_model):
    if not (embedded_model / "model.safetensors").is_file():
        pytest.skip("the embedded model has no weights here")
    found = report(inside)
    assert found["model"] == str(embedded_model)
    assert found["unused_config_keys"].keys() <= {"transformers_version"}
    assert found["special_tokens"]["bos_token"]["token"] == "<|startoftext|>"


def test_a_model_with_a_task_head(inside, tmp_path):
    name = "GPTNeoXForTokenClassification"
    model = tiny_neox(getattr(refimpl, name), num_labels=5, architectures=[name])
    found = report(inside, save_tiny(tmp_path / "head", model))
    assert found["class"] == name
    assert found["parameters"] == model.num_parameters()
    assert f"head        that of {name}\n" in as_text(found)


def change_tensors(folder, change):
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_what_is_missing_or_surprising(inside, tmp_path):
    folder = save_tiny(tmp_path / "odd", tiny_neox(tie_word_embeddings=True))
    assert report(inside, folder)["remarks"] == []

    def change(tensors):
        del tensors["gpt_neox.layers.0.attention.dense.bias"]
        tensors["gpt_neox.layers.1.mlp.dense_h_to_4h.bias"] = np.zeros(3, np.float32)
        tensors["gpt_neox.layers.0.attention.masked_bias"] = np.array(-1e9, np.float32)
        tensors["stranger"] = np.zeros(1, np.float32)
        tensors["embed_out.weight"] = tensors["gpt_neox.embed_in.weight"].copy()
        tensors["gpt_neox.final_layer_norm.bias"] = tensors["gpt_neox.final_layer_norm.bias"].astype(
            np.float16
        )

    change_tensors(folder, change)
    remarks = report(inside, folder)["remarks"]
    assert remarks == [
        "missing: gpt_neox.layers.0.attention.dense.bias",
        "not a weight of this model: stranger",
        "wrong shape or type: gpt_neox.layers.1.mlp.dense_h_to_4h.bias: file [3], config [37]",
        "1 buffers of old versions, which say nothing",
        "the tied head is stored beside the embedding",
        "weights of several types: float16, float32",
    ]
    text = inside("inspect", folder).stdout.decode()
    assert all(f"  {remark}\n" in text for remark in remarks)


def test_numbers_that_are_none(inside, tmp_path):
    folder = save_tiny(tmp_path / "holes", tiny_neox())
    assert report(inside, folder)["values"] is None
    assert report(inside, folder, "--values")["values"] == []

    def spoil(tensors):
        weight = tensors["gpt_neox.layers.2.mlp.dense_h_to_4h.weight"].copy()
        weight[0, :3], weight[1, 1] = np.nan, -np.inf
        tensors["gpt_neox.layers.2.mlp.dense_h_to_4h.weight"] = weight

    change_tensors(folder, spoil)
    found = report(inside, folder, "--values")
    assert found["values"] == [
        {"name": "gpt_neox.layers.2.mlp.dense_h_to_4h.weight", "nan": 3, "infinite": 1}
    ]
    assert "dense_h_to_4h.weight: 3 NaN, 1 infinite\n" in as_text(found)


def test_the_bytes_of_every_form(inside, tmp_path):
    folder = save_tiny(tmp_path / "forms", tiny_neox())
    found = report(inside, folder)
    for form, size in found["bytes_by_weight_dtype"].items():
        loaded = AutoModelForCausalLM.from_pretrained(folder, backend="numpy", weight_dtype=form)
        assert size == sum(array.nbytes for array in loaded.state_dict().values()), form
    assert found["files"] == [
        {"name": "model.safetensors", "bytes": (folder / "model.safetensors").stat().st_size}
    ]
