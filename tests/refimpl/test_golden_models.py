"""Every golden case of operations, models and generation, on every backend, in both precisions.

The steps inside the layers are in `test_trace.py`.
"""

from __future__ import annotations

import contextlib
import warnings
from functools import cache
from typing import Any

import numpy as np
import pytest

import refimpl
from refimpl.auto import class_by_architecture
from refimpl.backends import get_backend
from refimpl.backends.mask import AttentionMask
from refimpl.config import GPTNeoXConfig, GPTNeoXJapaneseConfig
from refimpl.errors import CheckpointMismatchError, ConfigError, InputError, UnsafeCheckpointError
from refimpl.rotary import RotaryEmbedding
from tests.goldens import check, find_cases, inputs_of, load_manifest, model_folder, read_bytes

DTYPES = ("float32", "float64")
ERRORS = {"input": InputError, "config": ConfigError, "checkpoint": CheckpointMismatchError}


def golden(*operations: str, errors: bool = False) -> pytest.MarkDecorator:
    """Run a test once for each case of these operations."""
    cases = [case for operation in operations for case in find_cases(operation=operation)]
    chosen = [case for case in cases if (case["expect"]["kind"] == "error") == errors]
    assert chosen, f"no golden case of {operations}"
    return pytest.mark.parametrize("case", chosen, ids=lambda case: case["id"])


both_precisions = pytest.mark.parametrize("dtype", DTYPES)


@cache
def load_model(folder: str, backend: str, dtype: str) -> Any:
    path = model_folder({"model": folder})
    for name in ("config.json", weight_file(folder)):
        read_bytes(f"{folder}/{name}")  # checks the hash
    config = refimpl.AutoConfig.from_pretrained(path)
    with warnings.catch_warnings():
        if any("warning-at-load" in case["features"] for case in cases_of(folder)):
            warnings.filterwarnings("ignore", "the file holds an embed_out.weight")
        return class_by_architecture(config, path).from_pretrained(path, backend=backend, dtype=dtype)


def weight_file(folder: str) -> str:
    pickled = any("pickled-weights" in case["features"] for case in cases_of(folder))
    return "pytorch_model.bin" if pickled else "model.safetensors"


def cases_of(folder: str) -> list[dict]:
    return [case for case in load_manifest()["cases"] if case.get("model") == folder]


def model_of(case: dict, backend: str, dtype: str) -> Any:
    return load_model(case["model"], backend, dtype)


def expected_warnings(case: dict) -> Any:
    """A context longer than the model's own is announced, and so is padding that cannot be seen; nothing else."""
    if "beyond-max-position-embeddings" in case["features"]:
        return pytest.warns(UserWarning, match="max_position_embeddings")
    if "warning" in case["features"]:
        return pytest.warns(UserWarning, match="inputs_embeds")
    return contextlib.nullcontext()


# --- operations ----------------------------------------------------------------------------------


def run_operation(case: dict, ops: Any) -> dict[str, Any]:
    """The outputs of one operation of a backend, by name."""
    arguments = case["inputs"]["arguments"]
    given = {
        name: ops.asarray(array, dtype=ops.dtype if array.dtype.kind == "f" else None)
        for name, array in inputs_of(case).items()
    }
    if case["operation"] == "activation":
        parameters = tuple(given[name] for name in arguments["parameters"])
        return {"y": ops.activation(given["x"], arguments["name"], parameters)}
    if case["operation"] == "rotary_tables":
        config = rotary_config(arguments)
        return dict(zip(("cos", "sin"), RotaryEmbedding(ops, config)(given["position_ids"]), strict=True))
    if case["operation"] == "softmax":
        return {"y": ops.softmax(given["x"])}
    return {"y": getattr(ops, case["operation"])(**given, **arguments)}


def rotary_config(arguments: dict[str, Any]) -> Any:
    shape = {"hidden_size": 2 * arguments["head_dim"], "num_attention_heads": 2}
    if "rope_parameters" in arguments:
        more = {name: arguments[name] for name in ("rope_parameters", "max_position_embeddings")}
        return GPTNeoXConfig(**shape, **more)
    return GPTNeoXJapaneseConfig(
        **shape, rotary_pct=arguments["rotary_pct"], rotary_emb_base=arguments["rotary_emb_base"]
    )


@golden("activation", "layer_norm", "linear", "rotary", "rotary_tables", "softmax")
@both_precisions
def test_operation(case: dict, backend: str, dtype: str) -> None:
    for output, found in run_operation(case, get_backend(backend, dtype=dtype)).items():
        check(case, output, refimpl.to_numpy(found), dtype)


@golden("attention")
@both_precisions
def test_attention(case: dict, backend: str, dtype: str) -> None:
    ops, arguments = get_backend(backend, dtype=dtype), case["inputs"]["arguments"]
    given = inputs_of(case)
    query, key, value = (ops.asarray(given[name], dtype=ops.dtype) for name in ("query", "key", "value"))
    masks = [AttentionMask(offset=arguments.get("past", 0), bias=ops.asarray(given["mask"], dtype=ops.dtype))]
    if "past" in arguments:
        visible = ops.asarray(given["key_visible"]) if "key_visible" in given else None
        masks.append(AttentionMask(offset=arguments["past"], key_visible=visible))
    for mask in masks:
        context, weights = ops.attention(query, key, value, mask, arguments["scale"], need_weights=True)
        check(case, "context", refimpl.to_numpy(context), dtype)
        check(case, "weights", refimpl.to_numpy(weights), dtype)
        context, _ = ops.attention(query, key, value, mask, arguments["scale"])
        check(case, "context", refimpl.to_numpy(context), dtype)


# --- models --------------------------------------------------------------------------------------


def named_outputs(out: Any) -> dict[str, Any]:
    """The outputs of a forward call by the names that the goldens use."""
    named = {name: value for name, value in out.items() if not isinstance(value, tuple)}
    named["last_hidden_state"] = out.hidden_states[-1]
    named |= {f"hidden_states.{i}": state for i, state in enumerate(out.hidden_states)}
    named |= {f"attentions.{i}": weights for i, weights in enumerate(out.attentions)}
    for i, (key, value) in enumerate(named.pop("past_key_values", ())):
        named |= {f"past_key_values.{i}.key": key, f"past_key_values.{i}.value": value}
    return named


def go_through(name: str, model: Any) -> None:
    """The calls of another case, which must leave no trace in the model."""
    case = next(case for case in load_manifest()["cases"] if case["id"] == name)
    with expected_warnings(case):
        for lengths in case["inputs"]["arguments"]["feed_lengths"]:
            fed_in_pieces(model, inputs_of(case), lengths)


@golden("model")
@both_precisions
def test_model(case: dict, backend: str, dtype: str) -> None:
    model = model_of(case, backend, dtype)
    if "after" in case:
        go_through(case["after"], model)
    with expected_warnings(case):
        out = model(
            **inputs_of(case),
            **case["inputs"]["arguments"],
            output_attentions=True,
            output_hidden_states=True,
            use_cache=True,
        )
    named = named_outputs(out)
    for output in case["expected"]["outputs"]:
        check(case, output, refimpl.to_numpy(named[output]), dtype)


@golden("model")
def test_model_without_further_outputs(case: dict, backend: str) -> None:
    """Asking for nothing else may take a faster path; the logits stay right."""
    outputs = [name for name in case["expected"]["outputs"] if name.endswith("logits")]
    if not outputs:
        pytest.skip("the case is not about logits")
    with expected_warnings(case):
        out = model_of(case, backend, "float32")(
            **inputs_of(case), **case["inputs"]["arguments"], use_cache=False
        )
    assert {"attentions", "hidden_states", "past_key_values"}.isdisjoint(out)
    for output in outputs:
        check(case, output, refimpl.to_numpy(out[output]), "float32")


@golden("tuple_cache")
@both_precisions
def test_a_tuple_of_keys_and_values_is_a_cache(case: dict, backend: str, dtype: str) -> None:
    """As version 4 of transformers returned it; the arrays given stay as they are."""
    model, given = model_of(case, backend, dtype), inputs_of(case)
    layers = range(model.config.num_hidden_layers)
    past = tuple(
        tuple(given.pop(f"past_key_values.{i}.{part}").astype(dtype) for part in ("key", "value"))
        for i in layers
    )
    lengths = [key.shape for key, _ in past]
    out = model(
        **given, past_key_values=past, output_attentions=True, output_hidden_states=True, use_cache=True
    )
    named = named_outputs(out)
    for output in case["expected"]["outputs"]:
        check(case, output, refimpl.to_numpy(named[output]), dtype)
    assert [key.shape for key, _ in past] == lengths


@golden("cached_model")
@both_precisions
def test_cache(case: dict, backend: str, dtype: str) -> None:
    model, given = model_of(case, backend, dtype), inputs_of(case)
    for lengths in case["inputs"]["arguments"]["feed_lengths"]:
        with expected_warnings(case):
            logits = fed_in_pieces(model, given, lengths)
        check(case, "logits", logits, dtype)


def fed_in_pieces(model: Any, given: dict[str, Any], lengths: list[int]) -> np.ndarray:
    """The logits of a text that goes through the cache in pieces of these lengths."""
    past, start, pieces = None, 0, []
    for length in lengths:
        part = {k: a[:, start : start + length] for k, a in given.items() if k != "attention_mask"}
        if "attention_mask" in given:
            part["attention_mask"] = given["attention_mask"][:, : start + length]
        out = model(**part, past_key_values=past, use_cache=True)
        past, start = out.past_key_values, start + length
        pieces.append(refimpl.to_numpy(out.logits))
    return np.concatenate(pieces, axis=1)


@golden("generate")
@both_precisions
def test_generation(case: dict, backend: str, dtype: str) -> None:
    with expected_warnings(case):
        ids = model_of(case, backend, dtype).generate(**inputs_of(case), **case["inputs"]["arguments"])
    check(case, "sequences", refimpl.to_numpy(ids), dtype)


# --- errors --------------------------------------------------------------------------------------


@golden("model", errors=True)
def test_a_wrong_call_is_refused(case: dict, backend: str) -> None:
    model = model_of(case, backend, "float32")
    with pytest.raises(ERRORS[case["expect"]["error"]]):
        model(**inputs_of(case), **case["inputs"]["arguments"])


@golden("load", errors=True)
def test_a_broken_folder_is_refused(case: dict, backend: str) -> None:
    error = ERRORS[case["expect"]["error"]]
    if "pickled-weights" in case["features"]:
        error = UnsafeCheckpointError
    with pytest.raises(error):
        load_model(case["model"], backend, "float32")


def test_every_case_has_a_test_here() -> None:
    here = {
        "activation", "layer_norm", "linear", "rotary", "rotary_tables", "softmax", "attention",
        "model", "cached_model", "tuple_cache", "generate", "load",
    }  # fmt: skip
    assert {case["operation"] for case in load_manifest()["cases"]} <= {
        *here, "tokenizer", "quantize", "process_scores", "layers",  # these in tests of their own
    }  # fmt: skip
