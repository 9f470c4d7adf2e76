"""Live comparison with transformers: random small models of both families, and the model inside the package.

REFIMPL_MODELS says how many random models are compared; the default has every rotary type in every spelling.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import refimpl
from tests.conformance.comparison import Call
from tests.conformance.ours import run_ours
from tests.conformance.random_models import ACTIVATIONS, MODELS, ROPE_TYPES, SPELLINGS, RandomModel
from tests.conformance.theirs import expect, load_theirs, torch, transformers

TEXTS = [
    "吾輩は猫である。名前はまだ無い。",
    "むかしむかし、あるところに",
    "雨が降って来た。私は",
    "「どうしたんです」と彼は",
    "その夜、",
    "東京の町を歩きながら、僕は考えた。",
]


def compare(folder: Path, backend: str, calls: dict[str, Call], theirs: Any, where: str) -> None:
    """Every output of every call, in float32 and in float64, against transformers in both."""
    ours = {
        dtype: refimpl.AutoModelForCausalLM.from_pretrained(folder, backend=backend, dtype=dtype)
        for dtype in ("float32", "float64")
    }
    expected = expect(theirs, calls)
    for name, call in calls.items():
        for dtype, model in ours.items():
            expected.check(run_ours(model, call), name, dtype, f"{where} on {backend}")


# --- random models -------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(MODELS))
def test_many_random_models_give_what_transformers_gives(seed: int, backend: str, tmp_path: Path) -> None:
    model = RandomModel(seed)
    model.save(tmp_path)
    compare(tmp_path, backend, model.calls(), load_theirs(tmp_path), f"random model {seed}, {model.family}")


def test_the_random_models_are_varied() -> None:
    models = [RandomModel(seed) for seed in range(48)]
    combinations = {(model.family, model.rope_type, model.spelling) for model in models}
    assert len(combinations) == 2 * len(ROPE_TYPES) * len(SPELLINGS)
    assert {model.settings["hidden_act"] for model in models} == set(ACTIVATIONS)
    for name in ("tie_word_embeddings", "use_parallel_residual", "attention_bias"):
        found = [model.settings[name] for model in models if name in model.settings]
        assert {True, False} == set(found), name
    assert len({model.settings["num_hidden_layers"] for model in models}) == 4
    beyond = [
        model.settings["max_position_embeddings"] < model.calls()["plain"].real.shape[1] for model in models
    ]
    assert 5 < sum(beyond) < 43


# --- generation ----------------------------------------------------------------------------------


def compare_greedy(
    folder: Path, backend: str, ids: np.ndarray, mask: np.ndarray, theirs: Any, new_tokens: int
) -> None:
    """Greedy ids of each row, up to the first step at which two tokens lie closer than rounding can tell."""
    model = refimpl.AutoModelForCausalLM.from_pretrained(folder, backend=backend, dtype="float32")
    asked: dict[str, Any] = {"max_new_tokens": new_tokens, "do_sample": False}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the text is longer than max_position_embeddings")
        found = refimpl.to_numpy(model.generate(ids, attention_mask=mask, **asked))
    with torch.no_grad():
        out = theirs.generate(
            torch.from_numpy(ids),
            attention_mask=torch.from_numpy(mask),
            return_dict_in_generate=True,
            output_logits=True,
            **asked,
        )
    wanted, logits = out.sequences.numpy(), torch.stack(out.logits, dim=1)  # [batch, new, vocab]
    best = logits.topk(2, dim=-1).values
    close = (best[..., 0] - best[..., 1] < 1e-4 * best.abs().max()).numpy()
    assert close.mean() < 0.2, "hardly a step decides anything"
    for row in range(len(ids)):
        steps = int(close[row].argmax()) if close[row].any() else close.shape[1]
        compared = ids.shape[1] + steps
        assert found[row, :compared].tolist() == wanted[row, :compared].tolist(), row


@pytest.mark.parametrize("seed", range(48, 48 + MODELS // 4))
def test_many_random_models_continue_like_transformers(seed: int, backend: str, tmp_path: Path) -> None:
    """Rows with padding on the left, beyond what the model was made for."""
    model = RandomModel(seed)
    model.save(tmp_path)
    call = model.calls()["padding on the left"]
    ids, mask = call.inputs["input_ids"], call.inputs["attention_mask"]
    compare_greedy(tmp_path, backend, ids, mask, load_theirs(tmp_path), 12)


# --- the comparison can fail ---------------------------------------------------------------------


def change_weight(name: str, factor: float) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        dict(model.base_model.named_parameters())[name].data.mul_(factor)

    return change


def leave_out_the_scale(model: Any) -> None:
    for layer in model.base_model.layers:
        layer.attention.scaling = layer.attention.norm_factor = 1.0


def turn_the_residual(model: Any) -> None:
    for layer in model.base_model.layers:
        layer.use_parallel_residual = not layer.use_parallel_residual


def take_another_gelu(model: Any) -> None:
    for layer in model.base_model.layers:
        layer.mlp.act = transformers.activations.ACT2FN["gelu_new"]


def take_another_base(model: Any) -> None:
    model.config.rope_parameters["rope_theta"] *= 1.001


#: family and settings, and what is done to the model of transformers
DAMAGES = {
    "a weight a thousandth larger": ("gpt_neox", change_weight("layers.0.attention.dense.weight", 1.001)),
    "no bias of query, key, value": (
        "gpt_neox",
        change_weight("layers.0.attention.query_key_value.bias", 0.0),
    ),
    "no bias of the attention": ("gpt_neox", change_weight("layers.1.attention.dense.bias", 0.0)),
    "no bias of the MLP": ("gpt_neox", change_weight("layers.1.mlp.dense_4h_to_h.bias", 0.0)),
    "no bias of a norm": ("gpt_neox", change_weight("final_layer_norm.bias", 0.0)),
    "no scale": ("gpt_neox", leave_out_the_scale),
    "the other residual": ("gpt_neox", turn_the_residual),
    "the other gelu": ("gpt_neox", take_another_gelu),
    "another base": ("gpt_neox", take_another_base),
    "no bias of the last layer": ("gpt_neox_japanese", change_weight("layers.1.attention.dense_bias", 0.0)),
    "no scale, Japanese": ("gpt_neox_japanese", leave_out_the_scale),
    "another base, Japanese": ("gpt_neox_japanese", take_another_base),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_model_is_noticed(damage: str, backend: str, tmp_path: Path) -> None:
    family, change = DAMAGES[damage]
    model = RandomModel(1, family)
    model.settings.update(num_hidden_layers=2, hidden_act="gelu")
    if family == "gpt_neox":
        model.settings.update(attention_bias=True)
    model.save(tmp_path)
    theirs, calls = load_theirs(tmp_path), {"plain": model.calls()["plain"]}
    compare(tmp_path, backend, calls, theirs, "as it is")
    with torch.no_grad():
        change(theirs)
    with pytest.raises(AssertionError, match=r"differs by|another winner"):
        compare(tmp_path, backend, calls, theirs, damage)


# --- the embedded model --------------------------------------------------------------------------


@lru_cache
def embedded_theirs() -> Any:
    return load_theirs(refimpl.embedded_model_path())


@pytest.mark.parametrize("text", TEXTS)
def test_the_embedded_model_gives_what_transformers_gives(
    text: str, embedded_model: Path, backend: str
) -> None:
    ids = np.array(refimpl.AutoTokenizer.from_pretrained(embedded_model)([text])["input_ids"])
    their_tokenizer = transformers.GPTNeoXJapaneseTokenizer(
        embedded_model / "vocab.txt", embedded_model / "emoji.json"
    )
    assert ids.tolist() == [their_tokenizer(text)["input_ids"]]
    calls = {"plain": Call({"input_ids": ids}, np.ones(ids.shape, dtype=bool))}
    compare(embedded_model, backend, calls, embedded_theirs(), text)


@pytest.mark.parametrize("text", TEXTS)
def test_the_embedded_model_continues_like_transformers(
    text: str, embedded_model: Path, backend: str
) -> None:
    ids = np.array(refimpl.AutoTokenizer.from_pretrained(embedded_model)([text])["input_ids"])
    compare_greedy(embedded_model, backend, ids, np.ones_like(ids), embedded_theirs(), 24)
