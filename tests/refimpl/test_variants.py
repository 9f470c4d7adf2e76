"""Every wrong variant is found and named where it is planted, and gives the logits that the goldens record."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refimpl import AutoConfig
from refimpl.auto import class_by_architecture
from refimpl.conformance.compare import compare
from refimpl.conformance.foreign import Given
from refimpl.conformance.judge import Precision
from refimpl.conformance.trace import Call, Trace, replay
from refimpl.conformance.variants import VARIANTS, planted, run_copy
from tests.goldens import (
    GOLDEN,
    find_cases,
    inputs_of,
    load_manifest,
    load_tensors,
    model_folder,
    real_tokens,
)
from tests.tiny import save_tiny, tiny_model, tiny_neox

SEQ = 14

#: Mistakes that the goldens record and that no copy of a model can show: how a config is read, and what an earlier
#: call of the same model left behind.
NOT_LIVE = {"rope-misread", "frequencies-stay-long"}

#: REFIMPL_VARIANTS=all compares with every recorded mistake of every case.
ALL_RECORDED = os.environ.get("REFIMPL_VARIANTS") == "all"

#: variant -> (model, calls) on which it shows; "neox" and "plain" for those that are not here.
WHERE = {
    "erf-gelu": ("gelu-new", "plain"),
    "default-eps": ("eps", "plain"),
    "llama-eps": ("eps", "plain"),
    "tiny-eps": ("eps", "plain"),
    "eps-outside-root": ("eps", "plain"),
    "no-rope-scaling": ("yarn", "plain"),
    "no-attention-factor": ("yarn", "plain"),
    "always-short-factors": ("longrope", "plain"),
    "always-long-factors": ("longrope", "short"),
    "tables-for-each-row": ("longrope", "far"),
    "positions-from-mask": ("neox", "padded"),
    "positions-not-shifted": ("neox", "shifted"),
    "positions-restart": ("neox", "cached"),
    "padding-visible": ("neox", "padded"),
    "mask-without-past": ("neox", "cached"),
    "stale-cache": ("neox", "cached"),
    "overwritten-token": ("neox", "cached"),
    "keys-rotated-anew": ("dynamic", "cached"),
    "prefix-recomputed": ("dynamic", "cached"),
    "no-dense-bias": ("japanese", "plain"),
    "dense-bias-everywhere": ("japanese", "plain"),
    "dense-bias-in-first": ("japanese", "plain"),
    "dense-bias-after-mlp": ("japanese", "plain"),
    "parallel-residual": ("japanese", "plain"),
    "stored-head": ("stored-head", "plain"),
}

MODELS = ("neox", "sequential", "japanese", "eps", "gelu-new", "yarn", "longrope", "dynamic", "stored-head")
CALLS = ("plain", "short", "padded", "shifted", "cached", "far")


def with_biases(model: Any) -> Any:
    rng = np.random.default_rng(5)
    for parameter in model.named_parameters():
        if len(parameter.shape) == 1:
            parameter.assign(parameter.initial + rng.normal(0, 0.2, parameter.shape), None)
    return model


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models that show mistakes: biases that are not 0, half-rotated heads, a base and an eps of their own."""
    new = tmp_path_factory.mktemp("models")
    made = {
        # Heads of 12 dimensions, of which 4 are rotated: a quarter, the half and all are three things.
        "neox": tiny_neox(
            hidden_size=32, num_attention_heads=2, rotary_pct=0.5, rotary_emb_base=300, num_hidden_layers=2
        ),
        "sequential": tiny_neox(use_parallel_residual=False, num_hidden_layers=2),
        "japanese": with_biases(tiny_model(rotary_pct=0.5)),
        # Variances near eps.
        "eps": tiny_neox(initializer_range=0.003, layer_norm_eps=1e-4, num_hidden_layers=2),
        "gelu-new": tiny_neox(hidden_act="gelu_new", num_hidden_layers=2),
    }
    saved = {name: save_tiny(new / name, model) for name, model in made.items()}
    golden = {
        "yarn": "tiny-yarn",
        "longrope": "tiny-longrope",
        "dynamic": "tiny-dynamic",
        "stored-head": "tiny-tied-other-head",
    }
    return saved | {name: GOLDEN / "models/gpt_neox" / folder for name, folder in golden.items()}


@cache
def load(folder: Path, dtype: str, weight_dtype: str | None = None, backend: str = "numpy") -> Any:
    config = AutoConfig.from_pretrained(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = class_by_architecture(config, folder)
        return made.from_pretrained(folder, backend=backend, dtype=dtype, weight_dtype=weight_dtype)


def calls_of(kind: str, vocab_size: int) -> list[Call]:
    ids = np.random.default_rng(1).integers(3, vocab_size, (2, SEQ))
    places = np.arange(SEQ)[None]
    mask = np.ones_like(ids)
    mask[0, :3] = 0
    if kind == "short":
        return [Call(ids[:, :4], places[:, :4])]
    if kind == "padded":
        return [Call(ids, places, mask)]
    if kind == "shifted":
        return [Call(ids, np.maximum(np.cumsum(mask, axis=1) - 1, 0), mask)]
    if kind == "far":
        near = places[0, :6]  # the first row stays below the length from which frequencies are others
        return [Call(ids[:, :6], np.stack([near, near + np.where(near > 3, 30, 0)]))]
    if kind == "cached":
        ends = (0, 9, 10, SEQ)
        return [Call(ids[:, start:end], places[:, start:end], past=start) for start, end in pairwise(ends)]
    return [Call(ids, places)]


def recorded(folder: Path, calls: list[Call]) -> Trace:
    """A trace in float32 of the right model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trace = replay(load(folder, "float32"), calls)
    trace.about["model"] = str(folder)
    return trace


def given(trace: Trace | dict[str, np.ndarray]) -> Given:
    arrays = dict(trace)
    return Given(arrays, {name: name for name in arrays}, {}, [])


@pytest.mark.parametrize("name", VARIANTS)
def test_a_planted_mistake_is_named(name: str, folders: dict[str, Path]) -> None:
    model, kind = WHERE.get(name, ("neox", "plain"))
    right = load(folders[model], "float32")
    calls = calls_of(kind, right.config.vocab_size)
    a = recorded(folders[model], calls)
    wrong = planted(right, calls, name)
    assert wrong is not None, "the variant has no place in this model"
    b = given({step: array for step, array in run_copy(wrong).items() if step in a})
    made = compare(a, b, model=str(folders[model]), precision=Precision())
    assert made.first is not None, "the variant makes no difference here"
    assert made.named is not None
    assert made.named.names == [name]
    assert made.named.same == []
    assert made.named.everything or VARIANTS[name].rounds


@pytest.mark.parametrize("name", ["interleaved-rotary", "tanh-gelu", "sequential-residual", "mask-sees-next"])
def test_logits_alone_are_enough(name: str, folders: dict[str, Path]) -> None:
    right = load(folders["neox"], "float32")
    calls = calls_of("plain", right.config.vocab_size)
    wrong = planted(right, calls, name)
    assert wrong is not None
    a, b = recorded(folders["neox"], calls), given({"logits": run_copy(wrong)["logits"]})
    made = compare(a, b, model=str(folders["neox"]))
    assert made.named is not None
    assert made.named.names == [name]


def test_two_mistakes_are_named_together(folders: dict[str, Path]) -> None:
    right = load(folders["neox"], "float32")
    calls = calls_of("plain", right.config.vocab_size)
    wrong = planted(right, calls, "interleaved-rotary", "tanh-gelu")
    assert wrong is not None
    a = recorded(folders["neox"], calls)
    made = compare(a, given(run_copy(wrong)), model=str(folders["neox"]))
    assert made.named is not None
    assert made.named.everything
    assert made.named.names == ["interleaved-rotary", "tanh-gelu"]
    assert made.first is not None
    assert made.first.name == "gpt_neox.layers.0.attention.query_rotated"


@pytest.mark.parametrize("how", ["float32", "numba", "float16", "bfloat16", "float64"])
@pytest.mark.parametrize("model", MODELS)
def test_no_mistake_is_named_in_a_right_run(model: str, how: str, folders: dict[str, Path]) -> None:
    """Other backends and precisions differ by rounding, whether or not they say what they are."""
    options: dict[str, Any] = {
        "float32": {"dtype": "float32"},
        "numba": {"dtype": "float32", "backend": "numba"},
        "float16": {"dtype": "float32", "weight_dtype": "float16"},
        "bfloat16": {"dtype": "float32", "weight_dtype": "bfloat16"},
        "float64": {"dtype": "float64"},
    }[how]
    other = load(folders[model], **options)
    for kind in ("padded", "cached"):
        calls = calls_of(kind, other.config.vocab_size)
        a = recorded(folders[model], calls)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            b = given(replay(other, calls))
        made = compare(a, b, model=str(folders[model]))
        assert made.is_fine, made.first
        assert made.named is None
        assert made.notes == [] or how in ("float16", "bfloat16")
        stated = Precision("float32", how) if how in ("float16", "bfloat16") else None
        assert compare(a, b, model=str(folders[model]), precision=stated).is_fine


def recorded_mistakes() -> list[Any]:
    """(case, mistake, tensor) of the recorded mistakes that a copy can show: three cases of each mistake, or all."""
    count: Counter[str] = Counter()
    found = []
    for case in load_manifest()["cases"]:
        for name, tensor in case.get("wrong", {}).items():
            count[name] += 1
            if name not in NOT_LIVE and (ALL_RECORDED or count[name] <= 3):
                found.append(pytest.param(case, name, tensor, id=f"{case['id']}-{name}"))
    return found


def calls_of_case(case: dict[str, Any]) -> list[Call]:
    inputs = inputs_of(case)
    ids = inputs["input_ids"]
    seq = ids.shape[1]
    lengths = case["inputs"]["arguments"].get("feed_lengths", [[seq]])[0]
    positions = np.atleast_2d(inputs.get("position_ids", np.arange(seq)))
    mask = inputs.get("attention_mask")
    calls, start = [], 0
    for length in lengths:
        end = start + length
        seen = None if mask is None or mask.all() else mask[:, :end]
        calls.append(Call(ids[:, start:end], positions[:, start:end], seen, past=start))
        start = end
    return calls


@pytest.mark.parametrize(("case", "name", "tensor"), recorded_mistakes())
def test_a_variant_gives_the_logits_that_are_recorded(case: dict[str, Any], name: str, tensor: str) -> None:
    calls = calls_of_case(case)
    made = planted(load(model_folder(case), "float64"), calls, name)
    assert made is not None, "the variant has no place in this model"
    trace = run_copy(made, ["logits"])
    found = np.concatenate([trace.of_call(number)["logits"] for number in range(len(calls))], axis=1)
    wanted, real = load_tensors(case["expected"]["file"])[tensor], real_tokens(case)
    found = found[:, found.shape[1] - wanted.shape[1] :]  # logits_to_keep
    apart = np.abs(found - wanted)
    if real is not None:
        apart = apart * real[:, :, None]
    assert apart.max() <= 1e-9 * np.abs(wanted).max()


def test_every_recorded_mistake_has_a_variant() -> None:
    recorded_names = {name for case in find_cases() for name in case.get("wrong", {})}
    assert recorded_names - NOT_LIVE <= set(VARIANTS)
    assert recorded_names >= NOT_LIVE


def test_a_copy_leaves_the_model_as_it_is(folders: dict[str, Path]) -> None:
    right = load(folders["neox"], "float32")
    calls = calls_of("plain", right.config.vocab_size)
    before = replay(right, calls)
    for name in VARIANTS:
        made = planted(right, calls, name)
        if made is not None:
            run_copy(made)
    after = replay(right, calls)
    assert all((before[step] == after[step]).all() for step in before)


def test_the_page_lists_every_variant() -> None:
    page = (GOLDEN.parent / "docs/conformance/trace_and_compare.md").read_text(encoding="utf-8")
    for variant in VARIANTS.values():
        assert f"| `{variant.name}` | {variant.what} |" in page
