"""From a folder to a model: everything is taken, nothing is guessed, and damage is named."""

from __future__ import annotations

import json
import struct
import sys
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from refimpl import AutoModel, AutoModelForCausalLM, GPTNeoXJapaneseForCausalLM, GPTNeoXJapaneseModel
from refimpl.checkpoints import SafetensorsFile
from refimpl.errors import (
    BackendError,
    CheckpointFormatError,
    CheckpointMismatchError,
    CheckpointValueError,
    ConfigError,
    IncompleteCheckpointError,
    InputError,
    MissingFileError,
)
from tests.tiny import save_tiny, tiny_config, tiny_ids, tiny_model


@pytest.fixture
def folder(tmp_path):
    return save_tiny(tmp_path / "model")


def tensors_of(folder):
    return {name: np.array(array) for name, array in SafetensorsFile(folder / "model.safetensors").items()}


def load(folder, **options):
    return GPTNeoXJapaneseForCausalLM.from_pretrained(folder, backend="numpy", **options)


def test_what_was_saved_comes_back(folder, backend):
    model = GPTNeoXJapaneseForCausalLM.from_pretrained(folder, backend=backend)
    original = tiny_model(backend)
    assert model.num_parameters() == original.num_parameters()
    assert (model(tiny_ids()).logits == original(tiny_ids()).logits).all()


def test_the_key_of_a_weight_is_the_path_of_its_attribute():
    model = tiny_model()
    assert "embed_out.weight" not in model.state_dict()
    for key, array in model.state_dict().items():
        part = model
        for name in key.split("."):
            part = part[int(name)] if name.isdigit() else getattr(part, name)
        assert part is array
    # The bias of the attention exists in the last layer only.
    assert [key for key in model.state_dict() if "dense_bias" in key] == [
        "gpt_neox_japanese.layers.2.attention.dense_bias"
    ]


def test_mapped_weights_are_not_copied(folder):
    mapped, owned = load(folder), load(folder, mmap=False)
    weight = mapped.gpt_neox_japanese.embed_in.weight
    assert not weight.flags.owndata
    assert not weight.flags.writeable
    (folder / "model.safetensors").unlink()
    assert (mapped(tiny_ids()).logits == owned(tiny_ids()).logits).all()


@pytest.mark.parametrize(
    ("options", "compute", "kept"),
    [
        ({}, "float32", "float32"),
        ({"dtype": "float64"}, "float64", "float32"),
        ({"dtype": "float16"}, "float32", "float16"),
        ({"torch_dtype": "bfloat16"}, "float32", "bfloat16"),
        ({"dtype": "auto"}, "float32", "float32"),
        ({"weight_dtype": "float16"}, "float32", "float16"),
        ({"dtype": np.float32, "weight_dtype": np.float64}, "float32", "float64"),
        ({"device_map": "auto"}, "float32", "float32"),
    ],
)
def test_compute_dtype_and_weight_dtype(folder, options, compute, kept):
    model = load(folder, **options)
    assert model.dtype == compute
    assert model.gpt_neox_japanese.embed_in.weight.dtype.name == kept
    assert model.gpt_neox_japanese.layers[0].mlp.dense_4h_to_h.weight.dtype.name == kept
    assert model.gpt_neox_japanese.final_layer_norm.weight.dtype == compute
    assert model(tiny_ids()).logits.dtype == compute


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_a_16_bit_file_stays_16_bit_and_is_computed_exactly(folder, dtype):
    """Widening adds no rounding: the same numbers, stored in float32, give the same logits."""
    narrow = {name: array.astype(dtype) for name, array in tensors_of(folder).items()}
    save_file(narrow, folder / "model.safetensors")
    model = load(folder)
    assert model.gpt_neox_japanese.embed_in.weight.dtype == dtype
    logits = model(tiny_ids()).logits
    save_file(
        {name: array.astype(np.float32) for name, array in narrow.items()}, folder / "model.safetensors"
    )
    assert (load(folder)(tiny_ids()).logits == logits).all()


def test_a_model_without_a_head_and_one_with_a_head_share_files(folder):
    base = GPTNeoXJapaneseModel.from_pretrained(folder, backend="numpy")
    expected = load(folder).gpt_neox_japanese(tiny_ids()).last_hidden_state
    assert (base(tiny_ids()).last_hidden_state == expected).all()
    save_file({n: np.array(a) for n, a in base.state_dict().items()}, folder / "model.safetensors")
    assert (load(folder).gpt_neox_japanese(tiny_ids()).last_hidden_state == expected).all()


def test_old_buffers_are_ignored(folder):
    tensors = tensors_of(folder)
    for layer in range(3):
        prefix = f"gpt_neox_japanese.layers.{layer}.attention"
        tensors[f"{prefix}.bias"] = np.tril(np.ones((1, 1, 64, 64), bool))
        tensors[f"{prefix}.masked_bias"] = np.array(-1e9, np.float32)
        tensors[f"{prefix}.rotary_emb.inv_freq"] = np.ones(4, np.float32)
    save_file(tensors, folder / "model.safetensors")
    assert (load(folder)(tiny_ids()).logits == tiny_model()(tiny_ids()).logits).all()


def test_a_stored_head_beside_a_tied_one(folder, recwarn):
    tensors = tensors_of(folder)
    tensors["embed_out.weight"] = tensors["gpt_neox_japanese.embed_in.weight"].copy()
    save_file(tensors, folder / "model.safetensors")
    tied = load(folder)(tiny_ids()).logits
    assert not recwarn.list
    tensors["embed_out.weight"] = tensors["embed_out.weight"] * 2
    save_file(tensors, folder / "model.safetensors")
    with pytest.warns(UserWarning, match="differs from the input embedding"):
        assert (load(folder)(tiny_ids()).logits == tied).all()
    assert np.allclose(load(folder, tie_word_embeddings=False)(tiny_ids()).logits, tied * 2, rtol=1e-5)


def test_every_kind_of_mismatch_is_in_one_error(folder):
    tensors = tensors_of(folder)
    del tensors["gpt_neox_japanese.final_layer_norm.bias"]
    tensors["gpt_neox_japanese.layers.0.attention.query_key_value.bias"] = np.zeros(72, np.float32)
    tensors["gpt_neox_japanese.embed_in.weight"] = np.zeros((41, 24), np.float32)
    tensors["gpt_neox_japanese.layers.1.mlp.dense_h_to_4h.weight"] = np.zeros((48, 24), np.int16)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointMismatchError) as caught:
        load(folder)
    assert caught.value.missing == ["gpt_neox_japanese.final_layer_norm.bias"]
    assert caught.value.unexpected == ["gpt_neox_japanese.layers.0.attention.query_key_value.bias"]
    assert [line.split(":")[0] for line in caught.value.mismatched] == [
        "gpt_neox_japanese.embed_in.weight",
        "gpt_neox_japanese.layers.1.mlp.dense_h_to_4h.weight",
    ]
    assert "[41, 24], config [40, 24]" in str(caught.value)


def test_each_tensor_in_turn_is_missed(folder):
    complete = tensors_of(folder)
    for name in complete:
        save_file({n: a for n, a in complete.items() if n != name}, folder / "model.safetensors")
        with pytest.raises(CheckpointMismatchError) as caught:
            load(folder)
        assert caught.value.missing == [name]


def test_every_truncation_is_refused(folder):
    path = folder / "model.safetensors"
    complete = path.read_bytes()
    header_end = 8 + struct.unpack("<Q", complete[:8])[0]
    for length in [
        *range(0, 40),
        header_end - 1,
        header_end,
        header_end + 5,
        len(complete) // 2,
        len(complete) - 1,
    ]:
        path.write_bytes(complete[:length])
        with pytest.raises(IncompleteCheckpointError) as caught:
            load(folder)
        assert caught.value.path == path


def test_damaged_weight_files(folder):
    path = folder / "model.safetensors"
    good = path.read_bytes()
    header = json.loads(good[8 : 8 + struct.unpack("<Q", good[:8])[0]])
    name = "gpt_neox_japanese.final_layer_norm.bias"
    begin, end = header[name]["data_offsets"]

    def with_header(**changes):
        text = json.dumps({**header, name: {**header[name], **changes}}).encode()
        return struct.pack("<Q", len(text)) + text + good[8 + struct.unpack("<Q", good[:8])[0] :]

    damaged = [
        (b"\xff" * 100, "begins with the length of its header"),
        (good + b"tail", "bytes after the last tensor"),
        (with_header(dtype="F8"), "a dtype that weights do not have"),
        (with_header(dtype="F8_E4M3", shape=[end - begin]), "a dtype that weights do not have"),
        (with_header(shape=[25]), "takes 100 bytes"),
        (with_header(shape=[-24]), "a shape that no weight has"),
        (with_header(shape="24"), "a shape that no weight has"),
        (with_header(data_offsets=[begin + 4, end]), "takes 96 bytes"),
        (with_header(data_offsets=[end, begin]), "wrong data_offsets"),
        (struct.pack("<Q", 5) + b"\xff\xfe{}x", "begin with {"),
        (struct.pack("<Q", 2) + b"[]", "begin with {"),
        (struct.pack("<Q", 40_000) + b"[" * 40_000, "begin with {"),
    ]
    for content, said in damaged:
        path.write_bytes(content)
        with pytest.raises(CheckpointFormatError, match=said) as caught:
            load(folder)
        if said.startswith(("a ", "takes", "wrong")):
            assert caught.value.tensor == name
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(IncompleteCheckpointError, match="pointer"):
        load(folder)


def test_missing_files(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    with pytest.raises(MissingFileError, match=r"model\.safetensors"):
        load(folder)
    with pytest.raises(MissingFileError, match="no folder"):
        load(tmp_path / "nowhere")


def test_config_and_overrides(folder):
    config = tiny_config(output_hidden_states=True)
    assert load(folder, config=config)(tiny_ids()).hidden_states is not None
    assert load(folder, output_hidden_states=True)(tiny_ids()).hidden_states is not None
    assert load(folder, config=config, output_hidden_states=False)(tiny_ids()).hidden_states is None
    assert config.output_hidden_states
    with pytest.raises(CheckpointMismatchError):
        load(folder, num_hidden_layers=4)


def test_auto_classes(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, backend="numpy")
    assert type(model) is GPTNeoXJapaneseForCausalLM
    assert model.eval() is model
    assert type(AutoModel.from_pretrained(folder, backend="numpy", device_map="auto")) is GPTNeoXJapaneseModel
    assert (
        type(AutoModelForCausalLM.from_config(tiny_config(), backend="numpy")) is GPTNeoXJapaneseForCausalLM
    )
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ConfigError, match="gpt_neox_japanese"):
        AutoModel.from_pretrained(folder)


def test_random_weights_follow_the_seed():
    a, b, c = tiny_model(seed=1), tiny_model(seed=1), tiny_model(seed=2)
    weight = "gpt_neox_japanese.layers.0.mlp.dense_h_to_4h.weight"
    assert (a.state_dict()[weight] == b.state_dict()[weight]).all()
    assert (a.state_dict()[weight] != c.state_dict()[weight]).any()
    assert 0.25 < a.state_dict()[weight].std() < 0.35
    assert (a.gpt_neox_japanese.final_layer_norm.weight == 1).all()


@pytest.mark.parametrize(
    "options", [{"weight_dtype": "int3"}, {"dtype": "float8"}, {"device": "cuda"}, {"backend": "x"}]
)
def test_unavailable_choices(folder, options):
    with pytest.raises(BackendError):
        GPTNeoXJapaneseForCausalLM.from_pretrained(folder, **options)


def test_the_other_name_of_the_head(folder):
    tensors = tensors_of(folder)
    tensors["lm_head.weight"] = tensors["gpt_neox_japanese.embed_in.weight"] * 2
    save_file(tensors, folder / "model.safetensors")
    tied = tiny_model()(tiny_ids()).logits
    assert np.allclose(load(folder, tie_word_embeddings=False)(tiny_ids()).logits, tied * 2, rtol=1e-5)
    base = GPTNeoXJapaneseModel.from_pretrained(folder, backend="numpy")
    assert base.num_parameters() == tiny_model().num_parameters()


def test_nothing_is_left_over_for_a_model_without_a_head_either(folder):
    tensors = tensors_of(folder)
    tensors["junk"] = np.zeros(3, np.float32)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointMismatchError) as caught:
        GPTNeoXJapaneseModel.from_pretrained(folder, backend="numpy")
    assert caught.value.unexpected == ["junk"]


def test_a_number_that_float16_cannot_hold(folder):
    tensors = tensors_of(folder)
    tensors["gpt_neox_japanese.layers.1.mlp.dense_4h_to_h.weight"][2, 5] = 7e4
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointValueError) as caught:
        load(folder, dtype="float16")
    assert caught.value.tensor == "gpt_neox_japanese.layers.1.mlp.dense_4h_to_h.weight"
    assert (caught.value.count, caught.value.first_index) == (1, [2, 5])
    assert np.isfinite(load(folder, dtype="bfloat16")(tiny_ids()).logits).all()


def test_a_small_vector_does_not_keep_the_file_in_memory(folder):
    model = load(folder, mmap=False, weight_dtype="float16")
    assert model.gpt_neox_japanese.final_layer_norm.weight.base is None


@pytest.mark.parametrize("config", [{}, "config.json", tiny_config])
def test_a_config_is_a_config(folder, config):
    with pytest.raises(InputError, match="config"):
        load(folder, config=config)


def test_a_misspelt_argument(folder):
    with pytest.raises(ConfigError, match="weigth_dtype"):
        load(folder, weigth_dtype="float16")


def test_a_bar_shows_when_there_is_much_to_load(folder, monkeypatch):
    import refimpl.model

    shown = []

    def bar(parameters, **options):
        shown.append(options["desc"])
        return parameters

    monkeypatch.setitem(sys.modules, "huggingface_hub.utils", SimpleNamespace(tqdm=bar))
    load(folder)
    assert shown == []
    monkeypatch.setattr(refimpl.model, "_PROGRESS_BYTES", 1)
    assert (load(folder)(tiny_ids()).logits == tiny_model()(tiny_ids()).logits).all()
    assert shown == ["Loading weights"]
