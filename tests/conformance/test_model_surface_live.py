"""transformers itself, side by side: the arguments and methods of models, and the fields of what they return.

What earlier versions of its documentation show and version 5 has dropped stands here in tables.
"""

from __future__ import annotations

import dataclasses
import inspect
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import refimpl
from tests.conformance.theirs import torch, transformers
from tests.tiny import tiny_config, tiny_ids, tiny_neox, tiny_neox_config

TASKS = ["GPTNeoXForQuestionAnswering", "GPTNeoXForSequenceClassification", "GPTNeoXForTokenClassification"]
LANGUAGE_MODELS = ["GPTNeoXForCausalLM", "GPTNeoXJapaneseForCausalLM"]
MODELS = ["GPTNeoXModel", "GPTNeoXJapaneseModel", *LANGUAGE_MODELS, *TASKS]

# --- arguments of a call -------------------------------------------------------------------------

_ALWAYS = {
    "input_ids",
    "attention_mask",
    "position_ids",
    "head_mask",
    "inputs_embeds",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
}
_CACHED = _ALWAYS | {"past_key_values", "use_cache"}

#: The arguments that the pages of GPT-NeoX 4.34.0 and of GPT-NeoX-Japanese 4.37.2 and 5.5.3 list.
DOCUMENTED_ARGUMENTS = {
    "GPTNeoXModel": _CACHED,
    "GPTNeoXForCausalLM": _CACHED | {"labels"},
    "GPTNeoXForQuestionAnswering": _ALWAYS | {"token_type_ids", "start_positions", "end_positions"},
    "GPTNeoXForSequenceClassification": _CACHED | {"labels"},
    "GPTNeoXForTokenClassification": _CACHED | {"labels", "token_type_ids"},
    "GPTNeoXJapaneseModel": _CACHED,
    "GPTNeoXJapaneseForCausalLM": _CACHED | {"labels", "logits_to_keep"},
}


def arguments_of_theirs(name: str) -> list[str]:
    signature = inspect.signature(getattr(transformers, name).forward)
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return [p.name for p in signature.parameters.values() if p.kind not in kinds and p.name != "self"]


def tiny(name: str, backend: str) -> Any:
    model_class = getattr(refimpl, name)
    if "Japanese" in name:
        return model_class(tiny_config(), backend=backend)
    return tiny_neox(model_class, backend, pad_token_id=0, num_labels=3)


def value_of(argument: str, name: str, model: Any) -> Any:
    """A value of an argument that fits a text of 2 x 6 tokens."""
    config = model.config
    labels = {
        "GPTNeoXForSequenceClassification": np.array([2, 0]),
        "GPTNeoXForTokenClassification": np.ones((2, 6), dtype=np.int64),
    }
    values = {
        "input_ids": tiny_ids(2, 6),
        "attention_mask": np.array([[0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]]),
        "token_type_ids": np.zeros((2, 6), dtype=np.int64),
        "position_ids": np.arange(6)[None] * 2,
        "head_mask": np.array([[1.0, 0.0, 1.0]] * config.num_hidden_layers),
        "inputs_embeds": np.random.default_rng(0).normal(size=(2, 6, config.hidden_size)),
        "past_key_values": model.base_model(tiny_ids(2, 4), use_cache=True).past_key_values,
        "labels": labels.get(name, tiny_ids(2, 6)),
        "start_positions": np.array([1, 2]),
        "end_positions": np.array([2, 3]),
        "use_cache": True,
        "output_attentions": True,
        "output_hidden_states": True,
        "return_dict": False,
        "logits_to_keep": 2,
    }
    return values[argument]


@pytest.mark.parametrize("name", MODELS)
def test_every_argument_is_taken_and_changes_what_it_says(name: str, backend: str) -> None:
    model = tiny(name, backend)
    plain = model(input_ids=tiny_ids(2, 6))
    plain_result = refimpl.to_numpy(first_result(plain))
    for argument in sorted(DOCUMENTED_ARGUMENTS[name] | set(arguments_of_theirs(name))):
        given = {"input_ids": tiny_ids(2, 6), argument: value_of(argument, name, model)}
        if argument == "inputs_embeds":
            del given["input_ids"]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "inputs_embeds show no padding")
            out = model(**given)
        if argument == "return_dict":
            assert type(out) is tuple
            assert len(out) == len(plain)
            continue
        kept = first_result(out)
        changed = kept.shape != plain_result.shape or (refimpl.to_numpy(kept) != plain_result).any()
        changing = (
            "attention_mask",
            "position_ids",
            "head_mask",
            "inputs_embeds",
            "past_key_values",
            "logits_to_keep",
        )
        assert changed == (argument in changing), argument
        adds = {"output_attentions": "attentions", "output_hidden_states": "hidden_states", "labels": "loss"}
        if argument in adds:
            assert set(out) - set(plain) == {adds[argument]}
        if argument == "use_cache":
            assert ("past_key_values" in out) == (
                "past_key_values" in getattr(refimpl, type(out).__name__)().__dict__
            )
    with pytest.raises(TypeError):
        model(input_ids=tiny_ids(2, 6), no_such_argument=1)


def first_result(out: Any) -> Any:
    return next(out[name] for name in ("last_hidden_state", "logits", "start_logits") if name in out)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "GPTNeoXForTokenClassification"])
def test_ids_and_mask_come_first_as_there(name: str) -> None:
    """Further arguments are given by name; their order has changed between versions."""
    ours = [p for p in inspect.signature(getattr(refimpl, name).__call__).parameters if p != "self"]
    assert ours[:2] == arguments_of_theirs(name)[:2] == ["input_ids", "attention_mask"]


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_a_cache_can_be_the_tuple_of_earlier_versions(name: str, backend: str) -> None:
    model = tiny(name, backend)
    ids = tiny_ids(2, 6)
    past = model(ids[:, :4]).past_key_values
    pairs = tuple((refimpl.to_numpy(key).copy(), refimpl.to_numpy(value).copy()) for key, value in past)
    assert len(pairs) == model.config.num_hidden_layers
    assert pairs[0][0].shape == (2, 3, 4, model.config.head_dim)
    from_tuple, from_cache = (model(ids[:, 4:], past_key_values=given).logits for given in (pairs, past))
    np.testing.assert_array_equal(refimpl.to_numpy(from_tuple), refimpl.to_numpy(from_cache))


# --- what comes out ------------------------------------------------------------------------------

OUTPUTS = [
    "BaseModelOutputWithPast",
    "CausalLMOutputWithPast",
    "SequenceClassifierOutputWithPast",
    "TokenClassifierOutput",
    "QuestionAnsweringModelOutput",
]


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs_have_the_same_fields_in_the_same_order(name: str) -> None:
    theirs = getattr(transformers.modeling_outputs, name)
    found = [field.name for field in dataclasses.fields(getattr(refimpl, name))]
    assert found == [field.name for field in dataclasses.fields(theirs)]


@pytest.mark.parametrize("name", MODELS)
def test_a_call_returns_the_same_class_and_fields(name: str, backend: str, tmp_path: Path) -> None:
    """By default, and with all that can be asked for."""
    ours = tiny(name, backend)
    ours.config.save_pretrained(tmp_path)
    their_config = transformers.AutoConfig.from_pretrained(tmp_path)
    theirs = getattr(transformers, name)._from_config(their_config, attn_implementation="eager").eval()
    ids = tiny_ids(2, 6)
    all_of_it = {"output_attentions": True, "output_hidden_states": True, "use_cache": True}
    for asked in ({}, all_of_it, {"use_cache": False}):
        with torch.no_grad():
            wanted = theirs(torch.from_numpy(ids), **asked)
        found = ours(ids, **asked)
        assert type(found).__name__ == type(wanted).__name__
        assert list(found) == list(wanted), asked
        for key, value in wanted.items():
            if key == "past_key_values":
                assert len(found[key]) == len(value)
                assert found[key].get_seq_length() == value.get_seq_length()
            elif isinstance(value, tuple):
                assert [a.shape for a in found[key]] == [tuple(a.shape) for a in value]
            else:
                assert found[key].shape == tuple(value.shape)


# --- methods that the pages name -----------------------------------------------------------------

METHODS = (
    "from_pretrained",
    "get_input_embeddings",
    "set_input_embeddings",
    "get_output_embeddings",
    "resize_token_embeddings",
    "num_parameters",
    "prune_heads",
    "half",
    "float",
    "to",
    "cuda",
    "eval",
)


@pytest.mark.parametrize("name", MODELS)
def test_methods_that_the_pages_name_are_there(name: str) -> None:
    missing = [method for method in METHODS if not callable(getattr(getattr(refimpl, name), method, None))]
    assert missing == []


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("size", [31, 64])
def test_another_vocabulary_has_the_same_sizes(size: int, tied: bool, backend: str, tmp_path: Path) -> None:
    config = tiny_neox_config(tie_word_embeddings=tied, eos_token_id=2)
    ours = refimpl.GPTNeoXForCausalLM(config, backend=backend)
    config.save_pretrained(tmp_path)
    theirs = transformers.GPTNeoXForCausalLM(transformers.AutoConfig.from_pretrained(tmp_path))
    assert ours.num_parameters() == theirs.num_parameters()
    for resized in ({}, {"pad_to_multiple_of": 16}):
        ours.resize_token_embeddings(size, **resized)
        theirs.resize_token_embeddings(size, **resized)
        assert ours.config.vocab_size == theirs.config.vocab_size
        assert ours.get_input_embeddings().weight.shape == tuple(theirs.get_input_embeddings().weight.shape)
        assert ours.get_output_embeddings().weight.shape == tuple(theirs.get_output_embeddings().weight.shape)
        assert ours.num_parameters() == theirs.num_parameters()
