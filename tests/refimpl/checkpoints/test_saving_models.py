"""Saved models come back: every weight, every setting, and the same logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refimpl import (
    AutoModelForCausalLM,
    GPTNeoXForCausalLM,
    GPTNeoXForSequenceClassification,
    GPTNeoXJapaneseForCausalLM,
    GPTNeoXModel,
)
from refimpl.backends.quantized import QuantizedMatrix
from refimpl.checkpoints import SafetensorsFile
from refimpl.checkpoints.locate import find_weights, open_weights
from refimpl.checkpoints.saving import save_model
from refimpl.errors import SaveError
from refimpl.quantization import BitsAndBytesConfig
from refimpl.quantized_files import stored_tensors
from tests.refimpl.checkpoints.failures import same_tensors
from tests.tiny import tiny_ids, tiny_model, tiny_neox


def weights_of(model: Any) -> dict[str, Any]:
    """The weights in a form that can be compared."""
    found = {}
    for key, weight in model.state_dict().items():
        parts = stored_tensors(key, weight) if isinstance(weight, QuantizedMatrix) else {key: weight}
        found |= {name: np.asarray(part) for name, part in parts.items()}
    return found


def check_round_trip(model: Any, folder: Path, size: int | str = "5GB", **options: Any) -> Any:
    save_model(model, folder, size)
    again = type(model).from_pretrained(folder, backend="numpy", **options)
    assert same_tensors(weights_of(again), weights_of(model))
    ids = tiny_ids()
    for name in ("logits", "last_hidden_state"):
        if hasattr(model(ids), name):
            assert np.array_equal(getattr(again(ids), name), getattr(model(ids), name))
    return again


@pytest.mark.parametrize(
    "make",
    [
        tiny_model,
        tiny_neox,
        lambda: tiny_model(tie_word_embeddings=False),
        lambda: tiny_neox(tie_word_embeddings=True),
        lambda: tiny_neox(GPTNeoXModel),
        lambda: tiny_neox(GPTNeoXForSequenceClassification, num_labels=3, pad_token_id=0),
        lambda: tiny_neox(attention_bias=False, hidden_act="xielu"),
    ],
)
@pytest.mark.parametrize("size", ["5GB", "5KB"])
def test_models_come_back(tmp_path, make, size):
    model = make()
    before = model.config.to_dict()
    check_round_trip(model, tmp_path, size)
    assert model.config.to_dict() == before
    config = json.loads((tmp_path / "config.json").read_bytes())
    assert config["architectures"] == [type(model).__name__]
    assert config["dtype"] == config["torch_dtype"] == "float32"
    assert (tmp_path / "generation_config.json").exists() == hasattr(model, "generate")
    assert ("embed_out.weight" in open_weights(find_weights(tmp_path))) == (
        hasattr(model, "embed_out") and not model.config.tie_word_embeddings
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_the_dtype_of_the_matrices(tmp_path, dtype):
    model = tiny_model()
    model.to(dtype)
    again = check_round_trip(model, tmp_path, dtype=dtype if dtype == "float64" else None)
    assert again.config.dtype == dtype
    stored = SafetensorsFile(tmp_path / "model.safetensors")
    # Norms of ones and zeros lose nothing in any dtype.
    assert {str(stored.dtype(name)) for name in stored} == {dtype}


def test_vectors_are_narrowed_only_where_nothing_is_lost(tmp_path):
    model = tiny_neox()
    model.to("float16")  # keeps the biases, which are random here, in float32
    check_round_trip(model, tmp_path)
    stored = SafetensorsFile(tmp_path / "model.safetensors")
    for parameter in model.named_parameters():
        assert stored.dtype(parameter.key) == ("float16" if parameter.is_matrix else "float32")
    exact = GPTNeoXForCausalLM.from_pretrained(tmp_path, backend="numpy")
    for parameter in exact.named_parameters():
        if not parameter.is_matrix:
            parameter.assign(np.asarray(getattr(parameter.owner, parameter.name)).astype(np.float16), None)
    check_round_trip(exact, tmp_path)
    stored = SafetensorsFile(tmp_path / "model.safetensors")
    assert {str(stored.dtype(name)) for name in stored} == {"float16"}


@pytest.mark.parametrize(
    ("quantization", "settings"),
    [
        ({"load_in_8bit": True}, {"load_in_8bit": True, "llm_int8_skip_modules": None}),
        (
            {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
            {"load_in_4bit": True, "bnb_4bit_use_double_quant": False, "llm_int8_skip_modules": None},
        ),
        (
            {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
            {"bnb_4bit_use_double_quant": True, "bnb_4bit_quant_type": "nf4"},
        ),
        (
            {"load_in_8bit": True, "llm_int8_skip_modules": ["gpt_neox.layers.1"]},
            {
                "llm_int8_skip_modules": [
                    "gpt_neox.layers.1.attention.query_key_value",
                    "gpt_neox.layers.1.attention.dense",
                    "gpt_neox.layers.1.mlp.dense_h_to_4h",
                    "gpt_neox.layers.1.mlp.dense_4h_to_h",
                ]  # the head was not named, and so is quantized
            },
        ),
    ],
)
def test_quantized_models_come_back(tmp_path, quantization, settings):
    save_model(tiny_neox(), tmp_path / "dense")
    model = GPTNeoXForCausalLM.from_pretrained(
        tmp_path / "dense", backend="numpy", quantization_config=BitsAndBytesConfig(**quantization)
    )
    again = check_round_trip(model, tmp_path / "new")
    stored = json.loads((tmp_path / "new" / "config.json").read_bytes())["quantization_config"]
    assert {name: stored[name] for name in settings} == settings
    assert stored["quant_method"] == "bitsandbytes"
    check_round_trip(again, tmp_path / "newer", "3KB")  # and what was read quantized is written again
    assert json.loads((tmp_path / "newer" / "config.json").read_bytes())["quantization_config"] == stored
    # A dense model does not keep the word of an earlier one.
    dense = tiny_neox()
    dense.config.unused_keys["quantization_config"] = stored
    save_model(dense, tmp_path / "newer")
    assert "quantization_config" not in json.loads((tmp_path / "newer" / "config.json").read_bytes())


def test_settings_of_generation(tmp_path):
    model = tiny_model()
    save_model(model, tmp_path)
    assert (
        json.loads((tmp_path / "generation_config.json").read_bytes())
        == {
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": model.config.pad_token_id,
        }
        or model.config.pad_token_id is None
    )
    model.generation_config = model.generation_config.updated(
        do_sample=True, temperature=np.float32(0.5), eos_token_id=[2, 3]
    )
    model.generation_config.unused_keys = {"transformers_version": "4.0", "_from_model_config": True}
    save_model(model, tmp_path)
    stored = json.loads((tmp_path / "generation_config.json").read_bytes())
    assert stored == {
        "bos_token_id": 1,
        "eos_token_id": [2, 3],
        "do_sample": True,
        "temperature": 0.5,
        "transformers_version": "4.0",
    }
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.generation_config.updated() == model.generation_config.updated() or (
        again.generation_config.temperature == 0.5
    )


def test_unknown_settings_of_the_config_are_kept(tmp_path):
    model = tiny_model()
    model.config.unused_keys["my_own"] = {"a": [1, None]}
    save_model(model, tmp_path)
    assert GPTNeoXJapaneseForCausalLM.from_pretrained(tmp_path).config.my_own == {"a": [1, None]}


def test_after_changes_of_the_model(tmp_path):
    model = tiny_neox()
    model.resize_token_embeddings(50)
    check_round_trip(model, tmp_path)
    model.set_output_embeddings(model.get_input_embeddings().weight)  # the same array, but not tied
    check_round_trip(model, tmp_path)
    assert "embed_out.weight" in SafetensorsFile(tmp_path / "model.safetensors")


def test_a_function_cannot_be_saved(tmp_path):
    model = tiny_model(hidden_act=np.tanh)
    with pytest.raises(SaveError, match="hidden_act: a function"):
        save_model(model, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_every_backend_writes_the_same_bytes(tmp_path):
    """However it arranges the numbers in memory."""
    save_model(tiny_neox(), tmp_path / "first")
    for backend in ("numpy", "numba"):
        model = GPTNeoXForCausalLM.from_pretrained(tmp_path / "first", backend=backend)
        save_model(model, tmp_path / backend)
        for path in (tmp_path / "first").iterdir():
            assert (tmp_path / backend / path.name).read_bytes() == path.read_bytes(), (backend, path.name)
