"""Quantized weights in a model: which are, how a config says it, and the files of bitsandbytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from refimpl import GPTNeoXJapaneseForCausalLM
from refimpl.backends.quantized import (
    Int8Matrix,
    NestedAbsmax,
    QuantizedMatrix,
    quantize_int8,
    quantize_nf4,
)
from refimpl.checkpoints import SafetensorsFile
from refimpl.errors import (
    CheckpointFormatError,
    CheckpointMismatchError,
    CheckpointValueError,
    ConfigError,
    InputError,
)
from refimpl.quantization import BitsAndBytesConfig, keep, quantization_of
from refimpl.quantized_files import QuantizedTensors, stored_tensors

NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
STATE = ".quant_state.bitsandbytes__nf4"

CONFIGS = {
    "int8": BitsAndBytesConfig(load_in_8bit=True),
    "nf4": BitsAndBytesConfig(**NF4),
    "nf4 double": BitsAndBytesConfig(**NF4, bnb_4bit_use_double_quant=True),
}
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def normal(*shape: int, seed: int = 0, scale: float = 0.05) -> np.ndarray:
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


# --- the config ----------------------------------------------------------------------------------


def test_defaults_are_those_of_transformers():
    assert BitsAndBytesConfig().to_dict() == {
        "quant_method": "bitsandbytes",
        "load_in_8bit": False,
        "load_in_4bit": False,
        "llm_int8_threshold": 6.0,
        "llm_int8_skip_modules": None,
        "llm_int8_enable_fp32_cpu_offload": False,
        "llm_int8_has_fp16_weight": False,
        "bnb_4bit_compute_dtype": "float32",
        "bnb_4bit_quant_type": "fp4",
        "bnb_4bit_use_double_quant": False,
        "bnb_4bit_quant_storage": "uint8",
    }
    assert BitsAndBytesConfig().quantization_method() is None
    assert CONFIGS["int8"].quantization_method() == "llm_int8"
    assert CONFIGS["nf4"].quantization_method() == "nf4"


@every_config
def test_a_config_survives_its_file(config):
    values = json.loads(json.dumps(config.to_dict()))
    assert BitsAndBytesConfig.from_dict(values) == config


def test_what_transformers_writes_is_read():
    values = {
        "_load_in_4bit": True, "_load_in_8bit": False, "quant_method": "bitsandbytes",
        "bnb_4bit_compute_dtype": "bfloat16", "bnb_4bit_quant_storage": "uint8", "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True, "llm_int8_enable_fp32_cpu_offload": False,
        "llm_int8_has_fp16_weight": False, "llm_int8_skip_modules": None, "llm_int8_threshold": 6.0,
        "load_in_4bit": True, "load_in_8bit": False,
    }  # fmt: skip
    config = BitsAndBytesConfig.from_dict(values)
    assert config.bnb_4bit_use_double_quant
    assert config.bnb_4bit_compute_dtype == "bfloat16"
    assert not BitsAndBytesConfig.from_dict(values, bnb_4bit_use_double_quant=False).bnb_4bit_use_double_quant
    del values["quant_method"]  # files from before there were others
    assert BitsAndBytesConfig.from_dict(values) == config


def test_dtypes_are_named_in_several_ways():
    for dtype in ("float16", np.float16, np.dtype("float16")):
        assert BitsAndBytesConfig(bnb_4bit_compute_dtype=dtype).bnb_4bit_compute_dtype == "float16"


@pytest.mark.parametrize(
    ("settings", "key", "words"),
    [
        ({"load_in_8bit": True, **NF4}, "load_in_4bit", "both"),
        ({"load_in_4bit": True}, "bnb_4bit_quant_type", 'Pass bnb_4bit_quant_type="nf4"'),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "int4"}, "bnb_4bit_quant_type", "'int4'"),
        ({"load_in_8bit": 1}, "load_in_8bit", "true or false"),
        ({"bnb_4bit_use_double_quant": None}, "bnb_4bit_use_double_quant", "true or false"),
        ({"llm_int8_threshold": -1}, "llm_int8_threshold", "from 0"),
        ({"llm_int8_threshold": float("nan")}, "llm_int8_threshold", "from 0"),
        ({"llm_int8_threshold": "6"}, "llm_int8_threshold", "from 0"),
        ({"llm_int8_skip_modules": "embed_out"}, "llm_int8_skip_modules", "list"),
        ({"llm_int8_skip_modules": ["layers.*"]}, "llm_int8_skip_modules", "regular expressions"),
        ({"llm_int8_skip_modules": [""]}, "llm_int8_skip_modules", "name of a module"),
        ({"bnb_4bit_compute_dtype": "int8"}, "bnb_4bit_compute_dtype", "bfloat16"),
        ({"bnb_4bit_compute_dtype": object()}, "bnb_4bit_compute_dtype", "bfloat16"),
        ({"bnb_4bit_quant_storage": "int64"}, "bnb_4bit_quant_storage", "uint8"),
    ],
)
def test_impossible_settings_are_refused(settings, key, words):
    with pytest.raises(ConfigError) as caught:
        BitsAndBytesConfig(**settings)
    assert caught.value.key == key
    assert words in str(caught.value)


@pytest.mark.parametrize("method", ["gptq", "awq", None, 3])
def test_other_methods_are_refused(method):
    with pytest.raises(ConfigError, match=f"quant_method {method!r}") as caught:
        BitsAndBytesConfig.from_dict({"quant_method": method, "bits": 4})
    assert caught.value.key == "quantization_config"


def test_from_dict_refuses_what_is_no_setting():
    with pytest.raises(ConfigError, match="Did you mean load_in_8bit"):
        BitsAndBytesConfig.from_dict(BitsAndBytesConfig().to_dict(), load_in_8bits=True)
    with pytest.raises(ConfigError, match="must be an object"):
        BitsAndBytesConfig.from_dict([])  # type: ignore[arg-type]


# --- which weights -------------------------------------------------------------------------------

DENSE = "gpt_neox.layers.1.attention.dense.weight"


@pytest.mark.parametrize(
    ("key", "kept"),
    [
        (DENSE, "nf4"),
        ("layers.0.mlp.dense_h_to_4h.weight", "nf4"),  # a model without a head
        ("gpt_neox_japanese.layers.0.attention.query_key_value.weight", "nf4"),
        ("gpt_neox.layers.1.attention.dense.bias", None),
        ("gpt_neox.embed_in.weight", None),
        ("embed_in.weight", None),
        ("embed_out.weight", None),
        ("score.weight", None),
        ("classifier.weight", None),
        ("qa_outputs.weight", None),
    ],
)
def test_the_dense_layers_are_quantized_and_nothing_else(key, kept):
    assert CONFIGS["nf4"].kept_as(key) == kept
    assert CONFIGS["int8"].kept_as(key) == ("int8" if kept else None)
    assert BitsAndBytesConfig().kept_as(key) is None


def test_named_modules_are_left_out_and_the_list_replaces_the_rule_for_heads():
    def skip(*names: str) -> BitsAndBytesConfig:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=list(names))

    assert skip().kept_as("embed_out.weight") == "int8"
    assert skip("embed_out").kept_as("embed_out.weight") is None
    assert skip("lm_head").kept_as("embed_out.weight") is None  # its name in transformers 5
    assert skip("embed_out").kept_as(DENSE) == "int8"
    assert skip().kept_as("gpt_neox.embed_in.weight") is None
    for name in ("dense", "gpt_neox.layers.1", "gpt_neox.layers.1.", "gpt_neox", "attention.dense"):
        assert skip(name).kept_as(DENSE) is None, name
    for name in ("gpt_neox.layers", "layers.1"):
        assert skip(name).kept_as(DENSE) == (None if name == "gpt_neox.layers" else "int8"), name
    assert skip("gpt_neox.layers.1").kept_as("gpt_neox.layers.11.attention.dense.weight") == "int8"


def test_a_changed_setting_is_checked_when_it_is_used():
    config = BitsAndBytesConfig(load_in_8bit=True)
    config.load_in_4bit = True
    with pytest.raises(ConfigError):
        config.kept_as(DENSE)


def test_keep():
    array, vector = normal(4, 64), normal(64)
    assert isinstance(keep(DENSE, array, CONFIGS["int8"]), Int8Matrix)
    assert isinstance(keep(DENSE, array, CONFIGS["nf4"]).absmax, np.ndarray)
    assert isinstance(keep(DENSE, array, CONFIGS["nf4 double"]).absmax, NestedAbsmax)
    assert keep(DENSE, array, None) is array
    assert keep(DENSE, vector, CONFIGS["int8"]) is vector
    assert keep("embed_out.weight", array, CONFIGS["int8"]) is array
    stored = quantize_int8(array)
    assert keep(DENSE, stored, CONFIGS["nf4"]) is stored
    array[0, 0] = np.nan
    with pytest.raises(CheckpointValueError, match=r"layers\.1\.attention"):
        keep(DENSE, array, CONFIGS["nf4"])


def test_weight_dtype_is_short_for_a_config():
    assert quantization_of(None, None) is None
    assert quantization_of("float16", None) is None
    assert quantization_of("int8", None) == CONFIGS["int8"]
    assert quantization_of(np.int8, None) == CONFIGS["int8"]
    assert quantization_of("nf4", None) == CONFIGS["nf4"]
    assert quantization_of("bfloat16", CONFIGS["nf4"]) is CONFIGS["nf4"]
    assert quantization_of(None, CONFIGS["nf4"].to_dict()) == CONFIGS["nf4"]
    assert quantization_of(None, BitsAndBytesConfig()) is None
    with pytest.raises(InputError, match="both"):
        quantization_of("int8", CONFIGS["nf4"])
    with pytest.raises(InputError, match="not a config"):
        quantization_of(None, "nf4")


# --- files ---------------------------------------------------------------------------------------

NAME = "layers.0.mlp.dense.weight"
MATRICES = {
    "int8": quantize_int8(normal(6, 40)),
    "nf4": quantize_nf4(normal(6, 40)),
    "nf4 odd": quantize_nf4(normal(5, 13)),
    "nf4 double": quantize_nf4(normal(300, 64), double_quant=True),
}
every_matrix = pytest.mark.parametrize("matrix", MATRICES.values(), ids=MATRICES)


def stored(form: str, **changes: Any) -> dict[str, np.ndarray]:
    """The tensors of a matrix, some replaced (None: taken away) by the end of their names."""
    tensors = stored_tensors(NAME, MATRICES[form])
    for end, value in changes.items():
        name = next(n for n in tensors if n == end or n.rpartition(".")[2] == end)
        if value is None:
            del tensors[name]
        else:
            tensors[name] = value(tensors[name]) if callable(value) else value
    return tensors


def state(**changes: Any) -> Any:
    """A function that changes the settings in a tensor of JSON."""

    def change(data: np.ndarray) -> np.ndarray:
        return np.frombuffer(json.dumps({**json.loads(bytes(data)), **changes}).encode(), dtype=np.uint8)

    return change


@every_matrix
def test_a_matrix_survives_its_file(matrix, tmp_path):
    tensors = {"before": normal(3), **stored_tensors(NAME, matrix), "layers.0.mlp.dense.bias": normal(6)}
    save_file(tensors, tmp_path / "model.safetensors")
    read = QuantizedTensors(SafetensorsFile(tmp_path / "model.safetensors"))
    assert sorted(read) == sorted(["before", NAME, "layers.0.mlp.dense.bias"])
    assert len(read) == 3
    assert read.quantized == [NAME]
    assert read.nbytes > 0
    found = read[NAME]
    assert type(found) is type(matrix)
    assert (found.dense() == matrix.dense()).all()
    again = stored_tensors(NAME, found)
    written = load_file(tmp_path / "model.safetensors")
    assert {name for name in written if name.startswith(NAME[:-6]) and "bias" not in name} == set(again)
    for name, array in again.items():
        assert array.dtype == written[name].dtype
        assert array.shape == written[name].shape
        assert array.tobytes() == written[name].tobytes()
    assert (read["before"] == normal(3)).all()


def test_the_names_and_shapes_are_those_of_bitsandbytes():
    def shapes(form: str) -> dict[str, tuple[str, list[int]]]:
        return {
            k.removeprefix("layers.0.mlp.dense."): (v.dtype.name, list(v.shape))
            for k, v in stored(form).items()
        }

    assert shapes("int8") == {
        "weight": ("int8", [6, 40]),
        "SCB": ("float32", [6]),
        "weight_format": ("uint8", []),
    }
    found = shapes("nf4 double")
    assert found.pop(f"weight{STATE}")[0] == "uint8"
    assert found == {
        "weight": ("uint8", [9600, 1]),
        "weight.absmax": ("uint8", [300]),
        "weight.quant_map": ("float32", [16]),
        "weight.nested_absmax": ("float32", [2]),
        "weight.nested_quant_map": ("float32", [256]),
    }
    text = bytes(stored("nf4 double")[NAME + STATE]).decode()
    assert text.startswith(
        '{"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [300, 64], "nested_bl'
    )


def test_another_storage_dtype_holds_the_same_bytes():
    for dtype in ("int8", "float16", "float32"):
        tensors = stored(
            "nf4", weight=lambda packed, dtype=dtype: packed.reshape(-1).view(dtype).reshape(-1, 1)
        )
        assert (QuantizedTensors(tensors)[NAME].packed == MATRICES["nf4"].packed).all()


def test_a_table_of_ones_own_is_used_for_the_nested_absmax():
    tensors = stored("nf4 double", nested_quant_map=lambda table: table * np.float32(2))
    found, usual = QuantizedTensors(tensors)[NAME], MATRICES["nf4 double"]
    offset = usual.absmax.nested_offset
    assert np.allclose(found.scales - offset, 2 * (usual.scales - offset), atol=1e-6)


@pytest.mark.parametrize(
    ("form", "changes", "words"),
    [
        ("int8", {"weight": None}, "missing"),
        ("int8", {"SCB": normal(5)}, r"allowed: float32 \[6\]"),
        ("int8", {"SCB": normal(6).astype(np.float16)}, "float16"),
        ("int8", {"weight": normal(6, 40)}, "int8 of 2 dimensions"),
        ("int8", {"weight_format": np.array(2, np.uint8)}, "order of a GPU"),
        ("nf4", {"weight": None}, "missing"),
        ("nf4", {"weight": np.zeros((119, 1), np.uint8)}, r"found uint8 \[119\]; allowed: uint8 \[120\]"),
        ("nf4", {"absmax": None}, "absmax: a part"),
        ("nf4", {"absmax": normal(5)}, r"float32 \[4\]"),
        ("nf4", {"absmax": np.zeros(4, np.uint8)}, "uint8"),
        ("nf4", {"quant_map": lambda table: -table}, "16 values"),
        ("nf4", {"bitsandbytes__nf4": np.zeros((1, 5), np.uint8)}, "1 dimensions"),
        ("nf4", {"bitsandbytes__nf4": np.frombuffer(b"{", np.uint8)}, "JSON"),
        ("nf4", {"bitsandbytes__nf4": np.frombuffer(b"\xff\xfe", np.uint8)}, "JSON"),
        ("nf4", {"bitsandbytes__nf4": np.frombuffer(b"[" * 9999, np.uint8)}, "JSON"),
        ("nf4", {"bitsandbytes__nf4": np.frombuffer(b"[]", np.uint8)}, "one JSON object"),
        ("nf4", {"bitsandbytes__nf4": state(quant_type="fp4")}, "quant_type"),
        ("nf4", {"bitsandbytes__nf4": state(blocksize=0)}, "blocksize"),
        ("nf4", {"bitsandbytes__nf4": state(blocksize=True)}, "blocksize"),
        ("nf4", {"bitsandbytes__nf4": state(blocksize=[64])}, "blocksize"),
        ("nf4", {"bitsandbytes__nf4": state(dtype="int8")}, "dtype"),
        ("nf4", {"bitsandbytes__nf4": state(shape=[240])}, "shape"),
        ("nf4", {"bitsandbytes__nf4": state(shape=[6, -40])}, "shape"),
        ("nf4", {"bitsandbytes__nf4": state(shape=[6, 10**12])}, "shape"),
        ("nf4", {"bitsandbytes__nf4": state(shape=None)}, "shape"),
        ("nf4", {"bitsandbytes__nf4": state(shape=[1 << 31, 1 << 31])}, "does not fit"),
        ("nf4 double", {"nested_absmax": normal(3)}, r"float32 \[2\]"),
        ("nf4 double", {"nested_absmax": None}, "uint8"),
        ("nf4 double", {"nested_quant_map": None}, "nested_quant_map: a part"),
        ("nf4 double", {"nested_quant_map": normal(255)}, r"float32 \[256\]"),
        ("nf4 double", {"bitsandbytes__nf4": state(nested_offset=None)}, "nested_offset"),
        ("nf4 double", {"bitsandbytes__nf4": state(nested_offset=float("nan"))}, "nested_offset"),
        ("nf4 double", {"bitsandbytes__nf4": state(nested_offset=10**400)}, "nested_offset"),
        ("nf4 double", {"bitsandbytes__nf4": state(nested_blocksize=0)}, "nested_blocksize"),
        ("nf4 double", {"bitsandbytes__nf4": state(nested_blocksize=256.0)}, "nested_blocksize"),
    ],
)
def test_damaged_files_are_refused(form, changes, words):
    tensors = QuantizedTensors(stored(form, **changes), where="a file")
    assert list(tensors) == [NAME]
    with pytest.raises(CheckpointFormatError, match=words) as caught:
        tensors[NAME]
    assert caught.value.where == "a file"


@pytest.mark.parametrize(
    ("form", "end"),
    [("int8", "SCB"), ("nf4", "absmax"), ("nf4 double", "nested_absmax"), ("nf4 double", "nested_quant_map")],
)
def test_nan_and_infinity_in_a_file_are_refused(form, end):
    def spoil(array: np.ndarray) -> np.ndarray:
        spoiled = array.copy()
        spoiled[1] = np.inf
        return spoiled

    with pytest.raises(CheckpointValueError, match="NaN or infinity") as caught:
        QuantizedTensors(stored(form, **{end: spoil}))[NAME]
    assert caught.value.tensor.endswith(end)
    assert caught.value.first_index == [1]


def test_fp4_is_refused_by_name():
    tensors = {name.replace("__nf4", "__fp4"): array for name, array in stored("nf4").items()}
    read = QuantizedTensors(tensors)
    assert list(read) == [NAME]
    with pytest.raises(CheckpointFormatError, match="found 'fp4'; allowed: nf4"):
        read[NAME]


def test_other_matrices_have_no_file_format():
    with pytest.raises(CheckpointFormatError):
        stored_tensors(NAME, QuantizedMatrix())


# --- models --------------------------------------------------------------------------------------

IDS = np.array([[11, 4, 250, 31, 8, 7999, 17, 2]])


@pytest.fixture(scope="module")
def dense(embedded_model: Path) -> Any:
    return GPTNeoXJapaneseForCausalLM.from_pretrained(embedded_model, backend="numpy")


def forms(model: Any) -> dict[str, str]:
    return {
        key: type(model.backend.to_numpy(weight)).__name__
        for key, weight in model.state_dict().items()
        if key.endswith("weight")
    }


@pytest.mark.parametrize(
    ("arguments", "form", "allowed"),
    [
        ({"weight_dtype": "int8"}, "Int8Matrix", 0.4),
        ({"weight_dtype": "nf4"}, "NF4Matrix", 4.0),
        ({"quantization_config": CONFIGS["nf4 double"]}, "NF4Matrix", 4.0),
        ({"quantization_config": CONFIGS["int8"].to_dict()}, "Int8Matrix", 0.4),
    ],
    ids=["int8", "nf4", "double", "dict"],
)
def test_a_model_quantized_on_loading(backend, embedded_model, dense, arguments, form, allowed):
    model = GPTNeoXJapaneseForCausalLM.from_pretrained(embedded_model, backend=backend, **arguments)
    found = forms(model)
    assert {k for k, v in found.items() if v == form} == {
        k for k, w in dense.state_dict().items() if ".layers." in k and w.ndim == 2
    }
    assert found["gpt_neox_japanese.embed_in.weight"] == "ndarray" or backend != "numpy"
    assert model.num_parameters() == dense.num_parameters()
    logits = model.backend.to_numpy(model(IDS).logits)
    difference = np.abs(logits - dense(IDS).logits)
    assert 0 < difference.max() < allowed
    assert np.isfinite(logits).all()
    assert (logits.argmax(-1) == dense(IDS).logits.argmax(-1)).mean() > 0.7


@every_config
def test_a_model_from_a_quantized_file(config, embedded_model, tmp_path):
    """The same model, quantized on loading and read from a file that holds it quantized."""
    loaded = GPTNeoXJapaneseForCausalLM.from_pretrained(
        embedded_model, backend="numpy", quantization_config=config
    )
    tensors = {}
    for key, weight in loaded.state_dict().items():
        tensors |= stored_tensors(key, weight) if isinstance(weight, QuantizedMatrix) else {key: weight}
    save_file(tensors, tmp_path / "model.safetensors")
    settings = json.loads((embedded_model / "config.json").read_text(encoding="utf-8"))
    settings["quantization_config"] = config.to_dict()
    (tmp_path / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    read = GPTNeoXJapaneseForCausalLM.from_pretrained(tmp_path, backend="numpy")
    assert forms(read) == forms(loaded)
    assert (read(IDS).logits == loaded(IDS).logits).all()
    # What is stored stays: asking for another form changes nothing, and a dtype is for the other matrices.
    for arguments in ({"weight_dtype": "nf4"}, {"weight_dtype": "int8"}, {"dtype": "float16"}):
        again = GPTNeoXJapaneseForCausalLM.from_pretrained(tmp_path, backend="numpy", **arguments)
        assert forms(again) == forms(loaded)
    double = GPTNeoXJapaneseForCausalLM.from_pretrained(tmp_path, backend="numpy", dtype="float64")
    assert np.abs(double(IDS).logits - loaded(IDS).logits).max() < 1e-3


def test_a_file_without_a_part_names_it(embedded_model, tmp_path):
    model = GPTNeoXJapaneseForCausalLM.from_pretrained(embedded_model, backend="numpy", weight_dtype="int8")
    tensors = {}
    for key, weight in model.state_dict().items():
        tensors |= stored_tensors(key, weight) if isinstance(weight, QuantizedMatrix) else {key: weight}
    name = "gpt_neox_japanese.layers.3.attention.dense.SCB"
    del tensors[name]
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((embedded_model / "config.json").read_bytes())
    with pytest.raises(CheckpointMismatchError, match="not a float type"):
        GPTNeoXJapaneseForCausalLM.from_pretrained(tmp_path, backend="numpy")


def test_a_quantized_model_is_changed_without_touching_what_is_quantized(embedded_model, dense):
    model = GPTNeoXJapaneseForCausalLM.from_pretrained(embedded_model, backend="numpy", weight_dtype="nf4")
    before, logits = forms(model), model(IDS).logits
    model.to("float64")
    assert forms(model) == before
    assert model(IDS).logits.dtype == np.float64
    assert np.abs(model(IDS).logits - logits).max() < 1e-3
    assert forms(model.half()) == before
    model.resize_token_embeddings(8010)
    assert model(IDS).logits.shape[-1] == 8010


def test_random_weights_can_be_quantized_too(dense):
    config = dense.config.updated(num_hidden_layers=1)
    plain = GPTNeoXJapaneseForCausalLM(config, backend="numpy", seed=3)
    model = GPTNeoXJapaneseForCausalLM(config, backend="numpy", seed=3, weight_dtype="int8")
    key = "gpt_neox_japanese.layers.0.mlp.dense_4h_to_h.weight"
    assert (model.state_dict()[key].CB == quantize_int8(plain.state_dict()[key]).CB).all()


def test_a_checkpoint_of_another_method_is_refused(embedded_model, tmp_path):
    settings = json.loads((embedded_model / "config.json").read_text(encoding="utf-8"))
    settings["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (tmp_path / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(ConfigError, match="gptq"):
        GPTNeoXJapaneseForCausalLM.from_pretrained(tmp_path)
