"""Every parameter, default and output that transformers' documentation of both models lists is there.

The pages are named as in `tests/documentation/examples.py`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import refimpl
from tests.documentation.examples import JAPANESE_4_37, JAPANESE_5_5, JAPANESE_BETWEEN, NEOX_4_34
from tests.tokenizer.conftest import GOLDEN, expand

NEOX_SIZES = {
    **{"vocab_size": 40, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3},
    **{"intermediate_size": 48, "pad_token_id": 0},
}
JAPANESE_SIZES = {"vocab_size": 40, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3}

#: page, class, the signature (and the listed parameters that it leaves out) with the defaults
CONFIGS = [
    (
        JAPANESE_4_37,
        "GPTNeoXJapaneseConfig",
        {
            **{"vocab_size": 32000, "hidden_size": 2560, "num_hidden_layers": 32, "num_attention_heads": 32},
            **{"intermediate_multiple_size": 4, "hidden_act": "gelu", "rotary_pct": 1.0},
            **{"rotary_emb_base": 10000, "max_position_embeddings": 2048, "initializer_range": 0.02},
            **{"layer_norm_eps": 1e-05, "use_cache": True, "bos_token_id": 31996, "eos_token_id": 31999},
            **{"attention_dropout": 0.1, "hidden_dropout": 0.0},
        },
    ),
    (JAPANESE_BETWEEN, "GPTNeoXJapaneseConfig", {"rope_scaling": None}),
    (
        JAPANESE_5_5,
        "GPTNeoXJapaneseConfig",
        {
            **{"vocab_size": 32000, "hidden_size": 2560, "num_hidden_layers": 32, "num_attention_heads": 32},
            **{"intermediate_multiple_size": 4, "hidden_act": "gelu", "max_position_embeddings": 2048},
            **{"initializer_range": 0.02, "layer_norm_eps": 1e-05, "use_cache": True},
            **{"bos_token_id": 31996, "eos_token_id": 31999, "attention_dropout": 0.1, "hidden_dropout": 0.0},
            **{"is_decoder": False, "pad_token_id": None, "tie_word_embeddings": True},
        },
    ),
    (
        NEOX_4_34,
        "GPTNeoXConfig",
        {
            **{"vocab_size": 50432, "hidden_size": 6144, "num_hidden_layers": 44, "num_attention_heads": 64},
            **{
                "intermediate_size": 24576,
                "hidden_act": "gelu",
                "rotary_pct": 0.25,
                "rotary_emb_base": 10000,
            },
            **{"attention_dropout": 0.0, "hidden_dropout": 0.0, "classifier_dropout": 0.1},
            **{"max_position_embeddings": 2048, "initializer_range": 0.02, "layer_norm_eps": 1e-05},
            **{"use_cache": True, "bos_token_id": 0, "eos_token_id": 2, "tie_word_embeddings": False},
            **{"use_parallel_residual": True, "rope_scaling": None},
        },
    ),
]

_TENSORS = "input_ids attention_mask position_ids inputs_embeds past_key_values"
_SWITCHES = "use_cache output_attentions output_hidden_states return_dict"
_OUTPUTS = "hidden_states attentions"

#: page, class, arguments of the forward call, fields of its output in order, labels that give a loss
FORWARD = [
    (
        JAPANESE_4_37,
        "GPTNeoXJapaneseModel",
        f"input_ids attention_mask head_mask inputs_embeds past_key_values {_SWITCHES}",
        f"last_hidden_state past_key_values {_OUTPUTS}",
        {},
    ),
    (
        JAPANESE_5_5,
        "GPTNeoXJapaneseModel",
        f"{_TENSORS} {_SWITCHES}",
        f"last_hidden_state past_key_values {_OUTPUTS}",
        {},
    ),
    (
        JAPANESE_4_37,
        "GPTNeoXJapaneseForCausalLM",
        f"input_ids attention_mask inputs_embeds head_mask past_key_values labels {_SWITCHES}",
        f"loss logits past_key_values {_OUTPUTS}",
        {"labels": [[3, 4, 5], [6, 7, -100]]},
    ),
    (
        JAPANESE_5_5,
        "GPTNeoXJapaneseForCausalLM",
        f"{_TENSORS} labels {_SWITCHES} logits_to_keep",
        f"loss logits past_key_values {_OUTPUTS}",
        {"labels": [[3, 4, 5], [6, 7, -100]]},
    ),
    (
        NEOX_4_34,
        "GPTNeoXModel",
        f"{_TENSORS} head_mask {_SWITCHES}",
        f"last_hidden_state past_key_values {_OUTPUTS}",
        {},
    ),
    (
        NEOX_4_34,
        "GPTNeoXForCausalLM",
        f"{_TENSORS} head_mask labels {_SWITCHES}",
        f"loss logits past_key_values {_OUTPUTS}",
        {"labels": [[3, 4, 5], [6, 7, -100]]},
    ),
    (
        NEOX_4_34,
        "GPTNeoXForQuestionAnswering",
        "input_ids attention_mask token_type_ids position_ids head_mask inputs_embeds start_positions end_positions "
        "output_attentions output_hidden_states return_dict",
        f"loss start_logits end_logits {_OUTPUTS}",
        {"start_positions": [0, 1], "end_positions": [2, 2]},
    ),
    (
        NEOX_4_34,
        "GPTNeoXForSequenceClassification",
        f"{_TENSORS} head_mask labels {_SWITCHES}",
        f"loss logits past_key_values {_OUTPUTS}",
        {"labels": [1, 0]},
    ),
    (
        NEOX_4_34,
        "GPTNeoXForTokenClassification",
        f"{_TENSORS} token_type_ids head_mask labels {_SWITCHES}",
        f"loss logits {_OUTPUTS}",
        {"labels": [[0, 1, -100], [1, 1, 0]]},
    ),
]


def make(name: str) -> Any:
    model_class = getattr(refimpl, name)
    sizes = JAPANESE_SIZES if "Japanese" in name else NEOX_SIZES
    return model_class(model_class.config_class(**sizes), backend="numpy")


def case_id(value: Any) -> str | None:
    return value if isinstance(value, str) and " " not in value.removeprefix("GPT-NeoX") else None


# --- configs -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("page", "name", "defaults"), CONFIGS)
def test_settings_and_their_defaults(page: str, name: str, defaults: dict[str, Any]) -> None:
    config_class = getattr(refimpl, name)
    assert {key: getattr(config_class(), key) for key in defaults} == defaults
    assert config_class(**defaults).to_dict() == config_class().to_dict()
    for key in defaults:
        assert config_class(**{key: defaults[key]}).to_dict() == config_class().to_dict(), f"{page}: {key}"


def test_rope_parameters_of_the_newest_page() -> None:
    settings = {"rope_theta": 5000.0, "rope_type": "linear", "factor": 2.0}
    config = refimpl.GPTNeoXJapaneseConfig(rope_parameters=settings)
    assert settings.items() <= config.rope_parameters.items()
    assert config.rotary_emb_base == 5000.0


def test_eos_may_be_a_list_and_the_activation_a_function() -> None:
    assert refimpl.GPTNeoXJapaneseConfig(eos_token_id=[31999, 0]).eos_token_id == [31999, 0]
    config = refimpl.GPTNeoXConfig(**NEOX_SIZES, hidden_act=lambda x: x * 0)
    assert np.isfinite(refimpl.GPTNeoXModel(config)([[1, 2]]).last_hidden_state).all()


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("GPTNeoXJapaneseForCausalLM", 2_598_837_760), ("GPTNeoXForCausalLM", 20_554_567_680)],
)
def test_the_default_sizes_are_those_of_the_published_models(name: str, parameters: int) -> None:
    """Counted without making them: the second is the figure that EleutherAI gives for its 20B model."""
    model_class = getattr(refimpl, name)
    model = model_class.skeleton(model_class.config_class(), refimpl.get_backend("numpy"))
    assert model.num_parameters() == parameters


# --- models --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("page", "name", "arguments", "fields", "labels"), FORWARD, ids=case_id)
def test_forward(page: str, name: str, arguments: str, fields: str, labels: dict[str, Any]) -> None:
    model = make(name)
    ids = np.array([[1, 2, 3], [4, 5, 6]])
    plain = model(ids)
    absent: dict[str, Any] = dict.fromkeys(arguments.split(), None)
    if "logits_to_keep" in absent:
        absent["logits_to_keep"] = 0
    given = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "position_ids": np.array([[0, 1, 2]]),
        "head_mask": np.ones(3),
        "token_type_ids": np.zeros_like(ids),
    }
    for settings in (absent | {"input_ids": ids}, absent | {k: given[k] for k in given if k in absent}):
        for found, wanted in zip(model(**settings).to_tuple(), plain.to_tuple(), strict=True):
            if isinstance(found, np.ndarray):
                assert np.allclose(found, wanted), page
    inputs = {k: np.array(v) for k, v in labels.items()}
    switches = {switch: True for switch in absent if switch.startswith(("use_", "output_"))}
    output = model(ids, **inputs, **switches)
    assert list(output.keys()) == fields.split()
    check_shapes(output)
    assert len(model(ids, **inputs, **switches, return_dict=False)) == len(fields.split())


def check_shapes(output: Any) -> None:
    """The shapes that the pages give: batch 2, sequence 3, hidden 24, 3 heads of 8, 2 layers."""
    shapes = {
        "loss": [()],
        "last_hidden_state": [(2, 3, 24)],
        "logits": [(2, 3, 40), (2, 3, 2), (2, 2)],  # of words, of classes for each token, of classes
        "start_logits": [(2, 3)],
        "end_logits": [(2, 3)],
    }
    for field in output:
        if field in shapes:
            assert output[field].shape in shapes[field]
    assert [states.shape for states in output.hidden_states] == [(2, 3, 24)] * 3
    assert [weights.shape for weights in output.attentions] == [(2, 3, 3, 3)] * 2
    if "past_key_values" in output:
        assert [(k.shape, v.shape) for k, v in output.past_key_values] == [((2, 3, 3, 8), (2, 3, 3, 8))] * 2


@pytest.mark.parametrize("name", ["GPTNeoXModel", "GPTNeoXJapaneseModel"])
def test_a_cache_as_the_tuple_of_older_pages(name: str) -> None:
    model = make(name)
    whole = model([[1, 2, 3]]).last_hidden_state
    past = tuple((keys, values) for keys, values in model([[1, 2]]).past_key_values)
    assert np.allclose(model([[3]], past_key_values=past).last_hidden_state, whole[:, 2:], atol=1e-6)


# --- tokenizers ----------------------------------------------------------------------------------


def test_japanese_tokenizer(tmp_path: Path) -> None:
    """( vocab_file emoji_file unk_token pad_token bos_token eos_token do_clean_text )"""
    folder = expand("japanese_sparse.json", tmp_path)
    files = {"vocab_file": str(folder / "vocab.txt"), "emoji_file": str(folder / "emoji.json")}
    defaults = {"unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    defaults |= {"bos_token": "<|startoftext|>"}
    plain = refimpl.GPTNeoXJapaneseTokenizer(**files)
    assert {key: getattr(plain, key) for key in defaults} == defaults
    text = "吾輩は猫である。 https://example.com"
    said = refimpl.GPTNeoXJapaneseTokenizer(**files, **defaults, do_clean_text=False)
    assert said(text) == plain(text)
    assert refimpl.GPTNeoXJapaneseTokenizer(**files, do_clean_text=True)(text) != plain(text)
    assert plain.convert_tokens_to_string(plain.tokenize("吾輩は猫である。")) == "吾輩は猫である。"


def test_neox_tokenizer(tmp_path: Path) -> None:
    """( vocab_file merges_file tokenizer_file unk_token bos_token eos_token add_prefix_space ), errors, trim_offsets"""
    by_json = {"tokenizer_file": str(GOLDEN / "neox_small" / "tokenizer.json")}
    parts = json.loads((GOLDEN / "neox_small" / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(parts["vocab"]), encoding="utf-8")
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in parts["merges"]]
    (tmp_path / "merges.txt").write_text("\n".join(merges), encoding="utf-8")
    by_parts = {"vocab_file": str(tmp_path / "vocab.json"), "merges_file": str(tmp_path / "merges.txt")}
    defaults = dict.fromkeys(("unk_token", "bos_token", "eos_token"), "<|endoftext|>")
    text = " The ships passed in the night."
    for files in (by_json, by_parts):
        plain = refimpl.GPTNeoXTokenizerFast(**files)
        assert {key: getattr(plain, key) for key in defaults} == defaults
        settings = {**defaults, "add_prefix_space": False, "errors": "replace", "trim_offsets": True}
        said = refimpl.GPTNeoXTokenizerFast(**files, **settings)
        offsets = {"return_offsets_mapping": True}
        assert said(text, **offsets) == plain(text, **offsets)
        assert plain.tokenize(text[1:]) != plain.tokenize(text)
        assert refimpl.GPTNeoXTokenizerFast(**files, add_prefix_space=True).tokenize(
            text[1:]
        ) == plain.tokenize(text)
