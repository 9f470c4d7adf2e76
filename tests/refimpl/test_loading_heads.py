"""One checkpoint, several models: with another head, without a head, and the classes that a file names."""

from __future__ import annotations

import json
import sys
import warnings

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from refimpl import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPTNeoXForCausalLM,
    GPTNeoXForQuestionAnswering,
    GPTNeoXForSequenceClassification,
    GPTNeoXForTokenClassification,
    GPTNeoXJapaneseForCausalLM,
    GPTNeoXModel,
    to_numpy,
)
from refimpl.auto import class_by_architecture
from refimpl.errors import (
    CheckpointFormatError,
    CheckpointMismatchError,
    CheckpointValueError,
    ConfigError,
    InputError,
    UnsafeCheckpointError,
)
from tests.tiny import save_tiny, tiny_config, tiny_ids, tiny_neox, tiny_neox_config

HEADS = [GPTNeoXForQuestionAnswering, GPTNeoXForSequenceClassification, GPTNeoXForTokenClassification]


def first(model):
    return to_numpy(model(tiny_ids(1, 6), return_dict=False)[0])


@pytest.mark.parametrize("head", HEADS)
def test_a_new_head_is_named_and_always_the_same(backend, tmp_path, head):
    save_tiny(tmp_path, tiny_neox(backend=backend))
    with pytest.warns(UserWarning, match="random values") as caught:
        model = head.from_pretrained(tmp_path, backend=backend, num_labels=3)
    text = str(caught[0].message)
    names = [name for name in model.state_dict() if not name.startswith("gpt_neox.")]
    assert names
    assert all(name in text for name in names)
    assert "embed_out.weight of the file is not used" in text
    with pytest.warns(UserWarning, match="random values"):
        again = head.from_pretrained(tmp_path, backend=backend, num_labels=3)
    np.testing.assert_array_equal(first(model), first(again))


@pytest.mark.parametrize("prefixed", [True, False])
@pytest.mark.parametrize("head", [GPTNeoXForCausalLM, *HEADS])
def test_every_model_shares_its_base(backend, tmp_path, head, prefixed):
    """The base model reads any file, and any head reads the file of a base model."""
    model = tiny_neox(head, backend, pad_token_id=0)
    tensors = {k: np.ascontiguousarray(to_numpy(v)) for k, v in model.state_dict().items()}
    if not prefixed:
        tensors = {k.removeprefix("gpt_neox."): v for k, v in tensors.items() if k.startswith("gpt_neox.")}
    model.config.save_pretrained(tmp_path)
    save_file(tensors, tmp_path / "model.safetensors")
    base = GPTNeoXModel.from_pretrained(tmp_path, backend=backend)
    np.testing.assert_array_equal(first(base), first(model.base_model))
    if prefixed:
        np.testing.assert_array_equal(first(head.from_pretrained(tmp_path, backend=backend)), first(model))
    else:
        with pytest.warns(UserWarning, match="random values"):
            again = head.from_pretrained(tmp_path, backend=backend)
        np.testing.assert_array_equal(first(again.base_model), first(base))


def test_half_a_head_is_an_error(backend, tmp_path):
    save_tiny(tmp_path, tiny_neox(GPTNeoXForTokenClassification, backend))
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["classifier.bias"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointMismatchError) as caught:
        GPTNeoXForTokenClassification.from_pretrained(tmp_path, backend=backend)
    assert caught.value.missing == ["classifier.bias"]


def test_a_file_that_says_it_has_this_head_must_have_it(backend, tmp_path):
    save_tiny(tmp_path, tiny_neox(backend=backend, architectures=["GPTNeoXForCausalLM"]))
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["embed_out.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointMismatchError) as caught:
        GPTNeoXForCausalLM.from_pretrained(tmp_path, backend=backend)
    assert caught.value.missing == ["embed_out.weight"]
    with pytest.warns(UserWarning, match=r"embed_out\.weight"):
        GPTNeoXForCausalLM.from_pretrained(tmp_path, backend=backend, architectures=["GPTNeoXModel"])


def test_another_number_of_labels_is_an_error(backend, tmp_path):
    save_tiny(tmp_path, tiny_neox(GPTNeoXForSequenceClassification, backend, num_labels=3))
    with pytest.raises(CheckpointMismatchError) as caught:
        GPTNeoXForSequenceClassification.from_pretrained(tmp_path, backend=backend, num_labels=4)
    assert len(caught.value.mismatched) == 1
    assert "score.weight" in caught.value.mismatched[0]


def test_both_names_of_the_output_head(backend, tmp_path):
    model = tiny_neox(backend=backend)
    save_tiny(tmp_path, model)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = tensors.pop("embed_out.weight")
    save_file(tensors, tmp_path / "model.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path, backend=backend)
        np.testing.assert_array_equal(first(loaded), first(model))


def test_old_buffers_are_not_biases(backend, tmp_path):
    """`attention.bias` is an old mask; `attention.dense.bias` is a bias."""
    model = tiny_neox(backend=backend)
    save_tiny(tmp_path, model)
    tensors = load_file(tmp_path / "model.safetensors")
    for layer in range(3):
        at = f"gpt_neox.layers.{layer}.attention."
        tensors[at + "bias"] = np.ones((1, 1, 4, 4), bool)
        tensors[at + "masked_bias"] = np.array(-1e9, np.float32)
        tensors[at + "rotary_emb.inv_freq"] = np.ones(2, np.float32)
    save_file(tensors, tmp_path / "model.safetensors")
    np.testing.assert_array_equal(
        first(AutoModelForCausalLM.from_pretrained(tmp_path, backend=backend)), first(model)
    )
    del tensors["gpt_neox.layers.1.attention.dense.bias"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointMismatchError, match=r"1\.attention\.dense\.bias"):
        AutoModelForCausalLM.from_pretrained(tmp_path, backend=backend)


# --- the right class -----------------------------------------------------------------------------


def test_the_class_that_a_file_names(tmp_path):
    for head in (GPTNeoXModel, GPTNeoXForCausalLM, *HEADS):
        config = tiny_neox_config(architectures=[head.__name__])
        assert class_by_architecture(config, tmp_path) is head
    assert class_by_architecture(tiny_neox_config(), tmp_path) is GPTNeoXForCausalLM
    with pytest.raises(ConfigError, match="GPTNeoXRewardModel"):
        class_by_architecture(tiny_neox_config(architectures=["GPTNeoXRewardModel"]), tmp_path)


def test_a_classifier_of_a_language_model_s_file(backend, tmp_path):
    save_tiny(tmp_path, tiny_neox(backend=backend))
    assert type(AutoModel.from_pretrained(tmp_path, backend=backend)) is GPTNeoXModel
    with pytest.warns(UserWarning, match=r"score\.weight"):
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path, backend=backend, num_labels=7)
    assert first(model).shape == (1, 7)


def test_the_japanese_family_has_no_classifiers(tmp_path):
    save_tiny(tmp_path)
    with pytest.raises(ConfigError, match=r"no AutoModelForSequenceClassification.*allowed: AutoModel"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("stablelm_alpha", "MLP"),
        ("gpt2", "learned positions"),
        ("gptj", "neighbouring"),
        ("mamba", "allowed: gpt_neox"),
    ],
)
def test_other_architectures_are_refused_with_the_reason(tmp_path, model_type, reason):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    for refused in (AutoConfig, AutoModelForCausalLM):
        with pytest.raises(ConfigError, match=model_type) as caught:
            refused.from_pretrained(tmp_path)
        assert reason in str(caught.value)


@pytest.mark.parametrize("method", ["gptq", "awq", "hqq"])
def test_packed_weights_are_refused(tmp_path, method):
    save_tiny(tmp_path, tiny_neox())
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method, "bits": 4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert AutoConfig.from_pretrained(tmp_path).quantization_config["bits"] == 4
    with pytest.raises(ConfigError, match=method) as caught:
        AutoModelForCausalLM.from_pretrained(tmp_path)
    assert caught.value.key == "quantization_config"


def test_code_of_a_file_is_never_run(tmp_path):
    save_tiny(tmp_path, tiny_neox())
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {
        "auto_map": {"AutoModelForCausalLM": "modeling.Evil"},
        "custom_pipelines": {"x": {"impl": "evil.Evil"}},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "modeling.py").write_text("raise SystemExit('this must not run')")
    with pytest.warns(UserWarning, match="auto_map"):
        model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(model) is GPTNeoXForCausalLM
    assert model.config.to_dict()["custom_pipelines"] == config["custom_pipelines"]


def test_arguments_that_mean_nothing_here_are_accepted(backend, tmp_path):
    model = tiny_neox(backend=backend)
    save_tiny(tmp_path, model)
    given = {"attn_implementation": "sdpa", "low_cpu_mem_usage": True, "trust_remote_code": True}
    again = AutoModelForCausalLM.from_pretrained(tmp_path, backend=backend, use_safetensors=True, **given)
    np.testing.assert_array_equal(first(again), first(model))
    assert again.config == GPTNeoXForCausalLM.from_pretrained(tmp_path, backend=backend).config


def test_one_norm_for_both_is_another_model(tmp_path):
    """The form that the training code calls gpt-j-tied has no second norm; it was never published for this class."""
    save_tiny(tmp_path, tiny_neox())
    tensors = load_file(tmp_path / "model.safetensors")
    kept = {name: array for name, array in tensors.items() if "post_attention_layernorm" not in name}
    save_file(kept, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointMismatchError) as caught:
        GPTNeoXForCausalLM.from_pretrained(tmp_path)
    assert len(caught.value.missing) == 6
    assert all("post_attention_layernorm" in name for name in caught.value.missing)


def test_pickled_weights_are_never_run(tmp_path):
    """A pickle that would run a program is refused for what it is, and nothing is run."""
    tiny_neox_config().save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"cposix\nsystem\n(S'exit 1'\ntR.")
    seen: list[str] = []
    sys.addaudithook(
        lambda event, _: seen.append(event) if event in ("pickle.find_class", "os.system") else None
    )
    with pytest.raises((CheckpointFormatError, UnsafeCheckpointError), match=r"pytorch_model\.bin"):
        GPTNeoXForCausalLM.from_pretrained(tmp_path)
    assert not seen


def with_tensors(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_two_spellings_of_the_keys_do_not_mix(backend, tmp_path):
    save_tiny(tmp_path, tiny_neox(backend=backend))
    with_tensors(tmp_path, lambda t: t.update({"final_layer_norm.weight": np.zeros(24, np.float32)}))
    for model in (GPTNeoXModel, GPTNeoXForCausalLM):
        with pytest.raises(CheckpointMismatchError) as caught:
            model.from_pretrained(tmp_path, backend=backend)
        assert caught.value.unexpected == ["final_layer_norm.weight"]
    with_tensors(tmp_path, lambda t: t.pop("gpt_neox.final_layer_norm.weight"))
    with pytest.raises(CheckpointMismatchError):
        GPTNeoXModel.from_pretrained(tmp_path, backend=backend)


def test_two_names_with_two_heads_have_no_right_answer(backend, tmp_path):
    model = tiny_neox(backend=backend)
    save_tiny(tmp_path, model)
    with_tensors(tmp_path, lambda t: t.update({"lm_head.weight": t["embed_out.weight"].copy()}))
    np.testing.assert_array_equal(
        first(GPTNeoXForCausalLM.from_pretrained(tmp_path, backend=backend)), first(model)
    )
    with_tensors(tmp_path, lambda t: t.update({"lm_head.weight": t["embed_out.weight"] * 3}))
    with pytest.raises(CheckpointMismatchError, match="two names"):
        GPTNeoXForCausalLM.from_pretrained(tmp_path, backend=backend)


@pytest.mark.parametrize("name", ["embed_out.bias", "scoreboard.weight", "embed_outlier", "score.bias"])
def test_only_the_weights_of_heads_are_heads(backend, tmp_path, name):
    save_tiny(tmp_path, tiny_neox(backend=backend, tie_word_embeddings=True))
    with_tensors(tmp_path, lambda t: t.update({name: np.zeros(3, np.float32)}))
    for model in (GPTNeoXModel, GPTNeoXForCausalLM):
        with pytest.raises(CheckpointMismatchError) as caught:
            model.from_pretrained(tmp_path, backend=backend)
        assert caught.value.unexpected == [name]


@pytest.mark.parametrize("copy", [np.zeros((3, 3), np.float32), np.zeros((40, 24), np.int32)])
def test_the_copy_of_a_tied_head_must_be_one(backend, tmp_path, copy):
    save_tiny(tmp_path, tiny_neox(backend=backend, tie_word_embeddings=True))
    with_tensors(tmp_path, lambda t: t.update({"embed_out.weight": copy}))
    with pytest.raises(CheckpointMismatchError) as caught:
        GPTNeoXForCausalLM.from_pretrained(tmp_path, backend=backend)
    assert len(caught.value.mismatched) == 1


def test_a_model_takes_the_config_of_its_family():
    with pytest.raises(InputError, match="GPTNeoXJapaneseConfig"):
        GPTNeoXForCausalLM(tiny_config())
    with pytest.raises(InputError, match="GPTNeoXConfig"):
        GPTNeoXJapaneseForCausalLM(tiny_neox_config())
    for wrong in ("a path", 5):
        with pytest.raises(InputError):
            AutoModelForCausalLM.from_config(wrong)


def test_numbers_that_are_none_are_refused_where_they_are_read(backend, tmp_path):
    save_tiny(tmp_path, tiny_neox(backend=backend))
    for name, value in (
        ("gpt_neox.final_layer_norm.bias", np.nan),
        ("gpt_neox.layers.1.mlp.dense_h_to_4h.bias", np.inf),
    ):
        save_tiny(tmp_path, tiny_neox(backend=backend))

        def spoil(tensors, name=name, value=value):
            tensors[name] = tensors[name].copy()
            tensors[name][3] = value

        with_tensors(tmp_path, spoil)
        with pytest.raises(CheckpointValueError) as caught:
            GPTNeoXForCausalLM.from_pretrained(tmp_path, backend=backend)
        assert (caught.value.tensor, caught.value.count, caught.value.first_index) == (name, 1, [3])
