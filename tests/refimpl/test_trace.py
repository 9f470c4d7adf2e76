"""Traces: every step of the goldens by its name, nothing left behind, and clear errors."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import refimpl
from refimpl import (
    GPTNeoXForQuestionAnswering,
    GPTNeoXForSequenceClassification,
    GPTNeoXForTokenClassification,
    GPTNeoXModel,
    to_numpy,
)
from refimpl.conformance import steps
from refimpl.conformance.trace import Trace, replay
from refimpl.errors import CheckpointFormatError, InputError
from tests.goldens import GOLDEN, check, find_cases, inputs_of, model_folder
from tests.tiny import tiny_ids, tiny_model, tiny_neox, tiny_neox_config

MASK = np.array([[0, 0, 0, 1, 1, 1, 1, 1, 1], [1] * 9])


@pytest.mark.parametrize("case", find_cases(operation="layers"), ids=lambda case: case["id"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_steps_of_the_goldens(case: dict[str, Any], backend: str, dtype: str) -> None:
    model = refimpl.AutoModelForCausalLM.from_pretrained(model_folder(case), backend=backend, dtype=dtype)
    with model.trace() as trace:
        model(**inputs_of(case))
    for output in case["expected"]["outputs"]:
        check(case, output, trace[output], dtype)
    order = [steps.find(name, trace.arrays) for name in case["expected"]["order"]]
    # A golden lists a part again as what its last step gave (`attention`, `mlp`).
    once = [name for name in dict.fromkeys(order) if name is not None]
    assert once == [name for name in trace if name in once]


@pytest.mark.parametrize(
    "make", [tiny_model, tiny_neox, lambda **o: tiny_neox(use_parallel_residual=False, **o)]
)
def test_every_name_is_recorded_and_nothing_changes(make: Any, backend: str) -> None:
    model, ids = make(backend=backend), tiny_ids()
    weights = {name: id(array) for name, array in model.state_dict().items()}
    expected = to_numpy(model(ids, attention_mask=MASK).logits)
    with model.trace() as trace:
        traced = to_numpy(model(ids, attention_mask=MASK).logits)
        assert list(model.state_dict()) == list(weights)
    assert (traced == expected).all()
    assert (trace["logits"] == expected).all()
    only_elsewhere = ("inputs_embeds", "all_keys", "all_values")
    assert list(trace) == [name for name in steps.names_of(model) if not name.endswith(only_elsewhere)]
    for name, array in trace.items():
        assert array.dtype == np.float32, name
        assert array.ndim == len(steps.axes_of(name)), name
    assert (to_numpy(model(ids, attention_mask=MASK).logits) == expected).all()
    assert {name: id(array) for name, array in model.state_dict().items()} == weights
    assert "Recorder" not in repr(vars(model.base_model))


def test_steps_follow_from_one_another() -> None:
    model, ids = tiny_model(dtype="float64"), tiny_ids()
    with model.trace() as trace:
        out = model(ids, output_hidden_states=True, output_attentions=True)
    last = "gpt_neox_japanese.layers.2"
    attention = model.base_model.layers[2].attention
    biased = trace[f"{last}.attention.dense"] + attention.dense_bias
    assert (trace[f"{last}.attention.dense_bias"] == biased).all()
    assert (trace[f"{last}.after_attention"] == trace["gpt_neox_japanese.layers.1"] + biased).all()
    total = trace[f"{last}.after_attention"] + trace[f"{last}.mlp"]
    assert (trace[last] == total).all()
    assert (trace["gpt_neox_japanese.layers.1"] == out.hidden_states[2]).all()
    weights = trace[f"{last}.attention.probabilities"]
    assert (weights == out.attentions[2]).all()
    scores = np.where(np.tri(9, dtype=bool), trace[f"{last}.attention.scores"], -np.inf)
    assert np.allclose(model.backend.softmax(scores), weights, atol=1e-15)
    assert "gpt_neox_japanese.layers.1.attention.dense_bias" not in trace


def test_the_rotated_part_is_found_by_its_name() -> None:
    model = tiny_neox()
    with model.trace() as trace:
        model(tiny_ids())
    part = trace["gpt_neox.layers.1.attention.rotary_key"]
    assert part.shape[-1] == model.config.rotary_ndims == 4
    assert (part == trace["gpt_neox.layers.1.attention.key_rotated"][..., :4]).all()
    assert (trace["layers.1.attention.rotary_key"] == part).all()


def test_calls_through_a_cache_are_kept_apart() -> None:
    model, ids = tiny_neox(dtype="float64"), tiny_ids()
    with model.trace() as whole:
        model(ids)
    with model.trace() as trace:
        past = model(ids[:, :6], use_cache=True).past_key_values
        model(ids[:, 6:8], past_key_values=past)
        model(ids[:, 8:], past_key_values=past)
    assert [call.past for call in trace.calls] == [0, 6, 8]
    joined = np.concatenate([trace.of_call(number)["logits"] for number in range(3)], axis=1)
    assert np.allclose(joined, whole["logits"], atol=1e-12)
    name = "gpt_neox.layers.2.attention"
    assert trace[f"{name}.key@1"].shape[2] == 2
    assert trace[f"{name}.all_keys@1"].shape[2] == 8
    assert np.allclose(trace[f"{name}.all_keys@2"], whole[f"{name}.key_rotated"], atol=1e-12)
    assert np.allclose(trace[f"{name}.all_values@2"], whole[f"{name}.value"], atol=1e-12)
    assert f"{name}.all_keys" not in trace
    again = replay(model, trace.calls)
    assert list(again) == list(trace)
    assert all((again[name] == trace[name]).all() for name in trace)


def test_generation_can_be_traced() -> None:
    model, ids = tiny_neox(), tiny_ids(1)
    with model.trace("logits") as trace:
        made = model.generate(ids, max_new_tokens=3, do_sample=False, eos_token_id=None)
    assert list(trace) == ["logits", "logits@1", "logits@2"]
    assert [int(trace[name][0, -1].argmax()) for name in trace] == made[0, 9:].tolist()


@pytest.mark.parametrize(
    ("model_class", "names"),
    [
        (GPTNeoXModel, []),
        (GPTNeoXForQuestionAnswering, ["start_logits", "end_logits"]),
        (GPTNeoXForTokenClassification, ["logits"]),
        (GPTNeoXForSequenceClassification, ["logits"]),
    ],
)
def test_other_models(model_class: Any, names: list[str]) -> None:
    model = tiny_neox(model_class, pad_token_id=1)
    with model.trace() as trace:
        out = model(tiny_ids(), attention_mask=MASK)
    assert [name for name in trace if not name.startswith("gpt_neox.")] == names
    for name in names:
        assert (trace[name] == out[name]).all()
    assert len(trace) == 55 + len(names)
    again = replay(model, trace.calls)
    assert list(again) == list(trace)


def test_embeddings_and_head_masks_cannot_be_called_again() -> None:
    model = tiny_neox()
    with model.trace() as trace:
        model(inputs_embeds=np.ones((1, 3, 24)))
    assert (trace["gpt_neox.inputs_embeds"] == 1).all()
    assert "gpt_neox.embed_in" not in trace
    assert not trace.calls[0].repeatable
    with pytest.raises(InputError, match="cannot be made again"):
        replay(model, trace.calls)
    with model.trace() as trace:
        model(tiny_ids(), head_mask=[1, 0, 1])
    assert not trace.calls[0].repeatable
    assert (trace["gpt_neox.layers.0.attention.context"].reshape(2, 9, 3, 8)[:, :, 1] == 0).all()


# --- choosing ------------------------------------------------------------------------------------


def test_names_are_patterns() -> None:
    model = tiny_neox()
    with model.trace(["gpt_neox.layers.*.attention.query*", "logits"]) as trace:
        model(tiny_ids())
    each = ["query_key_value", "query", "query_rotated"]
    wanted = [f"gpt_neox.layers.{layer}.attention.{step}" for layer in range(3) for step in each]
    assert list(trace) == [*wanted, "logits"]


def test_a_pattern_without_a_step_names_the_nearest() -> None:
    model = tiny_neox()
    with pytest.raises(InputError, match=r"Did you mean gpt_neox\.layers\.0\.attention\.query\?"):
        model.trace(["gpt_neox.layers.0.attention.qurey"]).__enter__()
    with pytest.raises(InputError, match="not a pattern"):
        model.trace([3]).__enter__()  # type: ignore[list-item]
    with model.trace():  # nothing was left behind
        pass


# --- in and out ------------------------------------------------------------------------------------


def test_an_error_inside_leaves_the_model_as_it_was() -> None:
    model, ids = tiny_neox(), tiny_ids()
    expected = model(ids).logits
    with pytest.raises(InputError), model.trace():
        model(np.array([[99]]))
    assert type(model.base_model.embed_in).__name__ == "Embedding"
    assert type(model.base_model.layers[0].attention.backend).__name__ == "NumPyBackend"
    assert (model(ids).logits == expected).all()


def test_a_refused_call_is_none() -> None:
    model, ids = tiny_neox(), tiny_ids()
    with model.trace() as trace:
        with pytest.raises(InputError):
            model(ids, attention_mask=np.ones((2, 3)))
        model(inputs_embeds=np.ones((1, 3, 24)))
    assert len(trace.calls) == 1
    assert trace.calls[0].input_ids is None


def test_two_traces_of_one_model_are_refused() -> None:
    model = tiny_neox()
    with model.trace() as trace:
        with pytest.raises(InputError, match="traced already"):
            model.trace().__enter__()
        with pytest.raises(InputError, match="traced already"):
            model.base_model.trace().__enter__()
        model(tiny_ids())
    assert "logits" in trace
    assert type(model.embed_out).__name__ == "Linear"


def test_a_second_thread_is_refused() -> None:
    model, failures = tiny_neox(), []

    def call() -> None:
        try:
            model(tiny_ids())
        except InputError as error:
            failures.append(str(error))

    with model.trace():
        model(tiny_ids())
        thread = threading.Thread(target=call)
        thread.start()
        thread.join()
    assert len(failures) == 1
    assert "two threads" in failures[0]


# --- files ---------------------------------------------------------------------------------------


def test_a_file_holds_the_trace(tmp_path: Path) -> None:
    model = tiny_neox(dtype="float64")
    with model.trace() as trace:
        model(tiny_ids(), attention_mask=MASK)
    path = trace.save(tmp_path / "trace.safetensors")
    found = Trace.load(path)
    assert list(found) == list(trace)
    assert all((found[name] == trace[name]).all() and found[name].dtype == np.float64 for name in trace)
    assert (found.calls[0].input_ids == tiny_ids()).all()
    assert (found.calls[0].attention_mask == MASK).all()
    assert found.about["model_class"] == "GPTNeoXForCausalLM"
    assert found.about["dtype"] == "float64"
    assert set(load_file(path)) == set(trace)  # as everyone else reads it
    again = replay(model, found.calls)
    assert all((again[name] == trace[name]).all() for name in trace)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    model = tiny_neox()
    with model.trace("logits") as trace:
        model(tiny_ids())
    path = trace.save(tmp_path / "trace.safetensors")
    with safe_open(path, "np") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    (tmp_path / "cut.safetensors").write_bytes(path.read_bytes()[:-5])
    with pytest.raises(CheckpointFormatError):
        Trace.load(tmp_path / "cut.safetensors")
    save_file(tensors, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="not a trace"):
        Trace.load(tmp_path / "other.safetensors")
    for key, value in (
        ("order", "[]"),
        ("order", '["a"]'),
        ("calls", "[{}]"),
        ("about", "3"),
        ("calls", "{"),
    ):
        save_file(tensors, tmp_path / "bad.safetensors", metadata | {key: value})
        with pytest.raises(InputError, match="damaged"):
            Trace.load(tmp_path / "bad.safetensors")
    save_file(tensors, tmp_path / "new.safetensors", metadata | {"refimpl_trace": "2"})
    with pytest.raises(InputError, match="another version"):
        Trace.load(tmp_path / "new.safetensors")


def test_the_page_lists_every_step() -> None:
    page = (GOLDEN.parent / "docs/conformance/trace_and_compare.md").read_text(encoding="utf-8")
    for step in [*steps.FIRST, *steps.LAST, *steps.LAYER]:
        last = step.rpartition(".")[2] or "layers.N"
        assert f"`{step}`" in page or f"`{last}`" in page or f".{last}`" in page, step


def test_narrow_weights_are_told() -> None:
    for weight_dtype in ("float16", "bfloat16", "int8", "nf4"):
        model = GPTNeoXModel(tiny_neox_config(), backend="numpy", weight_dtype=weight_dtype)
        with model.trace() as trace:
            model(tiny_ids())
        assert trace.about["weight_dtype"] == weight_dtype
    with tiny_neox().trace() as trace:
        pass
    assert trace.about["weight_dtype"] is None
