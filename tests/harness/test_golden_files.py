"""The golden suite itself: nothing missing, nothing stale, nothing that could hide a failing test."""

from __future__ import annotations

import ast
import copy
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import safetensors.numpy

from tests.goldens import (
    GOLDEN,
    at_real_tokens,
    check,
    expected_of,
    find_cases,
    load_manifest,
    load_tensors,
    read_bytes,
    real_tokens,
    regenerate,
)

MAKERS = sorted((GOLDEN / "make").glob("*.py"))
FILES = load_manifest()["files"]
CASES = load_manifest()["cases"]
TENSOR_CASES = [case for case in CASES if case["level"] != "tokenizer"]
WRONG_CASES = [case for case in CASES if "wrong" in case]

#: The mistakes whose logits must be recorded for each family; a mistake that the family cannot make is not there.
SHARED_MISTAKES = {
    "tanh-gelu",
    "erf-gelu",
    "default-eps",
    "default-base",
    "qkv-before-heads",
    "interleaved-rotary",
    "whole-rotary",
    "quarter-rotary",
    "exponent-over-head",
    "no-rope-scaling",
    "no-attention-factor",
    "always-short-factors",
    "always-long-factors",
    "unscaled-attention",
    "tied-head",
    "parallel-residual",
    "padding-visible",
    "positions-from-mask",
    "tables-for-each-row",
    "prefix-recomputed",
    "keys-rotated-anew",
    "frequencies-stay-long",
    "positions-restart",
    "rope-misread",
    "stored-head",
}
MISTAKES = {
    "gpt_neox": SHARED_MISTAKES | {"no-attention-bias", "sequential-residual", "one-norm"},
    "gpt_neox_japanese": SHARED_MISTAKES | {"no-dense-bias", "dense-bias-everywhere"},
}
PAIR = ("gpt_neox/tiny-plain/forward", "gpt_neox/tiny-sequential/forward")
ROPE_TYPES = {"linear", "dynamic", "yarn", "longrope", "llama3"}


def schema_errors(manifest: object) -> list[str]:
    schema = json.loads((GOLDEN / "manifest.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    errors = jsonschema.Draft202012Validator(schema).iter_errors(manifest)
    return [f"{error.json_path}: {error.message[:200]}" for error in errors]


def test_the_manifest_follows_its_schema() -> None:
    assert schema_errors(load_manifest()) == []


@pytest.mark.parametrize(
    "key", ["id", "level", "operation", "inputs", "expect", "source", "tolerance", "expected"]
)
def test_the_schema_refuses_a_case_without(key: str) -> None:
    case = copy.deepcopy(find_cases(level="model", feature="left-padding")[0])
    del case[key]
    assert schema_errors({**load_manifest(), "cases": [case]}) != []


def test_the_schema_refuses_an_empty_suite_and_unknown_keys() -> None:
    assert schema_errors({**load_manifest(), "cases": []}) != []
    assert schema_errors({**load_manifest(), "cases": [{**CASES[0], "tolerances": {}}]}) != []


@pytest.mark.parametrize(
    "operation", ["activation", "attention", "model", "cached_model", "generate", "load", "layers"]
)
def test_there_are_cases_of(operation: str) -> None:
    assert find_cases(operation=operation), f"no case of {operation}: make the goldens again: {regenerate()}"


def test_every_activation_has_a_case() -> None:
    from refimpl.backends.activations import ACTIVATIONS

    named = {case["inputs"]["arguments"]["name"] for case in find_cases(operation="activation")}
    assert named == set(ACTIVATIONS)


def test_case_ids_are_unique() -> None:
    repeated = [name for name, count in Counter(case["id"] for case in CASES).items() if count > 1]
    assert repeated == []


@pytest.mark.parametrize("entry", FILES, ids=lambda entry: entry["path"])
def test_a_file_is_the_one_in_the_manifest(entry: dict) -> None:
    assert len(read_bytes(entry["path"])) == entry["bytes"]
    if "tensors" in entry:
        found = {
            name: {"dtype": str(array.dtype), "shape": list(array.shape)}
            for name, array in load_tensors(entry["path"]).items()
        }
        assert found == entry["tensors"]


def test_no_file_is_left_over() -> None:
    folders = [GOLDEN / name for name in ("models", "vectors", "tokenizer")]
    there = {p.relative_to(GOLDEN).as_posix() for f in folders for p in f.rglob("*") if p.is_file()}
    listed = {entry["path"] for entry in FILES if not entry["path"].startswith("../")}
    assert there == listed, f"make the manifest again: {regenerate()}"


def test_no_file_is_listed_twice_or_used_by_no_case() -> None:
    paths = [entry["path"] for entry in FILES]
    assert len(paths) == len(set(paths))
    used = {case["inputs"][key] for case in CASES for key in ("file", "vocabulary") if key in case["inputs"]}
    folders = used | {case["model"] for case in CASES if "model" in case}  # a vocabulary can be a folder
    idle = [path for path in paths if path not in used and path.rpartition("/")[0] not in folders]
    assert idle == []


@pytest.mark.parametrize("case", TENSOR_CASES, ids=lambda case: case["id"])
def test_what_a_case_names_is_there(case: dict) -> None:
    inputs = load_tensors(case["inputs"]["file"])
    assert set(case["inputs"]["tensors"].values()) <= set(inputs)
    if "model" in case:
        listed = {entry["path"] for entry in FILES}
        weights = "pytorch_model.bin" if "pickled-weights" in case["features"] else "model.safetensors"
        assert {f"{case['model']}/config.json", f"{case['model']}/{weights}"} <= listed
    if "expected" not in case:
        return
    tensors, expected = load_tensors(case["expected"]["file"]), case["expected"]
    assert set(expected["outputs"]) == set(case["tolerance"])
    for output, by_dtype in expected["outputs"].items():
        shapes = {tensors[name].shape for name in by_dtype.values()}
        assert len(shapes) == 1, f"{output}: the precisions differ in shape"
        for dtype, name in by_dtype.items():
            assert tensors[name].dtype == dtype
            assert dtype == "int64" or np.isfinite(tensors[name]).all(), f"{output}: NaN or infinity"
    assert set(case.get("wrong", {}).values()) <= set(tensors)
    if "real_tokens" in expected:
        real = tensors[expected["real_tokens"]]
        assert real.dtype == bool
        assert real.any()
        assert not real.all()


@pytest.mark.parametrize(
    "case", [case for case in TENSOR_CASES if "expected" in case], ids=lambda case: case["id"]
)
def test_the_library_s_own_float32_result_passes(case: dict) -> None:
    tensors = load_tensors(case["expected"]["file"])
    for output, by_dtype in case["expected"]["outputs"].items():
        for dtype, name in by_dtype.items():
            check(case, output, tensors[name], dtype)


@pytest.mark.parametrize("case", [case for case in CASES if "detects" in case], ids=lambda case: case["id"])
def test_a_case_catches_the_mistakes_it_names(case: dict) -> None:
    allowed = case["tolerance"]["logits"]["float32"]
    missed = {mistake: size for mistake, size in case["detects"].items() if size < 10 * allowed}
    assert missed == {}, f"these would pass, or nearly: {missed} (allowed {allowed})"


@pytest.mark.parametrize("case", WRONG_CASES, ids=lambda case: case["id"])
def test_a_recorded_mistake_lies_far_from_the_right_logits(case: dict) -> None:
    """Far enough that a result of float32 can be told from it, and that it can be named."""
    tensors, real = load_tensors(case["expected"]["file"]), real_tokens(case)
    right = at_real_tokens(expected_of(case, "logits"), "logits", real)
    tolerance = case["tolerance"]["logits"]
    for mistake, name in case["wrong"].items():
        wrong = tensors[name]
        assert (wrong.dtype, wrong.shape) == (np.dtype("float64"), right.shape), mistake
        assert np.isfinite(wrong).all(), mistake
        distance = np.max(np.abs(at_real_tokens(wrong, "logits", real) - right)) / tolerance["largest"]
        assert distance >= 100 * tolerance["float32"], f"{mistake} is too close: {distance}"
    assert len(case["detects"]) >= len(case["wrong"])


@pytest.mark.parametrize("family", MISTAKES)
def test_every_mistake_is_recorded_for_each_family(family: str) -> None:
    cases = [case for case in WRONG_CASES if case["id"].startswith(f"{family}/")]
    assert {mistake for case in cases for mistake in case["wrong"]} == MISTAKES[family]
    text = (GOLDEN / "README.md").read_text(encoding="utf-8")
    assert [mistake for mistake in MISTAKES[family] if f"`{mistake}`" not in text] == []


@pytest.mark.parametrize("family", MISTAKES)
def test_a_model_s_outputs_are_recorded_with_mistakes(family: str) -> None:
    """All but the longest texts, whose wrong logits would take too much room."""
    cases = [case for case in CASES if case["id"].startswith(f"{family}/")]
    whole = [case for case in cases if case["id"].endswith(("/forward", "/outputs"))]
    assert len(whole) > 20
    plain = [case["id"] for case in whole if "wrong" not in case and "trained" not in case["features"]]
    assert plain in ([], ["gpt_neox_japanese/tiny-short-context/forward"])


def test_the_two_mistakes_with_a_growing_cache_are_not_the_same() -> None:
    """Whoever computes everything anew and whoever turns the keys that are there differ above the first layer."""
    cases = [
        case for case in WRONG_CASES if {"prefix-recomputed", "keys-rotated-anew"} <= case["wrong"].keys()
    ]
    assert len(cases) == 8
    for case in cases:
        tensors = load_tensors(case["expected"]["file"])
        anew, turned = (tensors[case["wrong"][name]] for name in ("prefix-recomputed", "keys-rotated-anew"))
        first = case["inputs"]["arguments"]["feed_lengths"][0][0]
        assert np.max(np.abs(anew - turned)[:, :first]) < 1e-12
        assert np.max(np.abs(anew - turned)) > 1e-3 * case["tolerance"]["logits"]["largest"]


@pytest.mark.parametrize(
    "case", [case for case in CASES if case["operation"] == "layers"], ids=lambda case: case["id"]
)
def test_the_order_of_the_layers_names_every_output(case: dict) -> None:
    order, outputs = case["expected"]["order"], case["expected"]["outputs"]
    assert sorted(order) == sorted(outputs)
    assert (order[0], order[-1]) == ("embed_in", "logits")
    for before, after in (
        ("query_key_value", "rotary_query"),
        ("rotary_key", "context"),
        ("context", "dense"),
    ):
        names = [f"layers.0.attention.{name}" for name in (before, after)]
        assert order.index(names[0]) < order.index(names[1])


def test_every_feature_is_explained() -> None:
    text = (GOLDEN / "README.md").read_text(encoding="utf-8")
    glossary = text[text.index("## Features") : text.index("## The models")]
    named = {feature for case in CASES if case["level"] != "tokenizer" for feature in case["features"]}
    assert sorted(feature for feature in named if f"`{feature}`" not in glossary) == []


@pytest.mark.parametrize("case", [case for case in CASES if "after" in case], ids=lambda case: case["id"])
def test_a_case_comes_after_one_of_the_same_model(case: dict) -> None:
    before = [other for other in CASES if other["id"] == case["after"]]
    assert [other["model"] for other in before] == [case["model"]]


def test_the_residual_pair_differs_in_one_word_of_the_config() -> None:
    folders = [f"models/gpt_neox/{name}" for name in ("tiny-plain", "tiny-sequential")]
    weights = [read_bytes(f"{folder}/model.safetensors") for folder in folders]
    assert weights[0] == weights[1]
    parallel, sequential = (json.loads(read_bytes(f"{folder}/config.json")) for folder in folders)
    assert parallel.pop("use_parallel_residual") is True
    assert sequential.pop("use_parallel_residual") is False
    assert parallel == sequential
    logits = [expected_of(case, "logits") for case in CASES if case["id"] in PAIR]
    assert np.max(np.abs(logits[0] - logits[1])) > 0.1 * np.max(np.abs(logits[0]))


def test_pickled_weights_give_what_the_same_weights_give_in_safetensors() -> None:
    plain, pickled = (f"gpt_neox/{name}" for name in ("tiny-plain", "tiny-pickled"))
    assert read_bytes(f"models/{plain}/config.json") == read_bytes(f"models/{pickled}/config.json")
    vectors = [load_tensors(f"vectors/{model}/forward.safetensors") for model in (plain, pickled)]
    assert vectors[0].keys() == vectors[1].keys()
    for name, array in vectors[0].items():
        assert np.array_equal(array, vectors[1][name]), name


def test_every_rope_type_is_there_in_every_spelling() -> None:
    """In each family every type, and over both families every type in each of the three spellings."""
    found = set()
    for path in sorted((GOLDEN / "models").glob("gpt_neox*/tiny-*/config.json")):
        config = json.loads(path.read_text(encoding="utf-8"))
        for key in ("rope_scaling", "rope_parameters"):
            for spelling in ("type", "rope_type"):
                rope = config.get(key) or {}
                if spelling in rope:
                    found.add((config["model_type"], rope[spelling], f"{key}.{spelling}"))
    spellings = {"rope_scaling.type", "rope_scaling.rope_type", "rope_parameters.rope_type"}
    for rope_type in ROPE_TYPES:
        assert {family for family, name, _ in found if name == rope_type} >= set(MISTAKES), rope_type
        assert {spelling for _, name, spelling in found if name == rope_type} >= spellings, rope_type


def test_a_wrong_result_fails_and_the_message_says_what_to_do() -> None:
    case = find_cases(operation="model", feature="left-padding")[0]
    tensors = load_tensors(case["expected"]["file"])
    logits = tensors[case["expected"]["outputs"]["logits"]["float64"]].copy()
    real = tensors[case["expected"]["real_tokens"]]
    logits[~real] = 1e6
    check(case, "logits", logits, "float64")
    row, place = np.argwhere(real)[0]
    logits[row, place, 3] += 1e-3
    with pytest.raises(AssertionError) as caught:
        check(case, "logits", logits, "float64")
    for part in (case["id"], "logits", f"[{row}, {place}, 3]", "allowed", regenerate()):
        assert part in str(caught.value)


@pytest.mark.parametrize("path", MAKERS, ids=lambda path: path.name)
def test_a_maker_never_imports_what_it_is_to_test(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    rooms = {"refimpl", "backends", "tokenizer"}
    assert [name for name in names if name.split(".")[0] in rooms] == []
    text = path.read_text(encoding="utf-8")
    assert "importlib" not in text
    assert "__import__" not in text


def keep_bits(before: Path, now: Path) -> str:
    program = [sys.executable, GOLDEN / "make/keep_bits.py", before, "--golden", now]
    return subprocess.run(program, check=True, capture_output=True, text=True).stdout


def test_what_only_rounding_changed_keeps_its_bytes(tmp_path: Path) -> None:
    """Goldens made again on another CPU: the old bits stay, and what is new is taken."""
    name = "vectors/gpt_neox/tiny-plain/left-padding.safetensors"
    before, now = tmp_path / "before", tmp_path / "now"
    old = safetensors.numpy.load(read_bytes(name))
    (metadata,) = [{"cases": json.dumps([case])} for case in CASES if case["inputs"]["file"] == name]
    rounded = {key: array * (1 + 1e-15) if array.dtype == np.float64 else array for key, array in old.items()}
    changed = rounded | {"input_ids": old["input_ids"] + 1}
    for folder, tensors in ((before, old), (now, rounded)):
        (folder / name).parent.mkdir(parents=True)
        safetensors.numpy.save_file(tensors, folder / name, metadata)
    assert (now / name).read_bytes() != (before / name).read_bytes()
    assert "nothing changed" in keep_bits(before, now)
    assert (now / name).read_bytes() == (before / name).read_bytes()
    safetensors.numpy.save_file(changed, now / name, metadata)
    assert name in keep_bits(before, now)
    kept = safetensors.numpy.load_file(now / name)
    assert np.array_equal(kept["input_ids"], changed["input_ids"])
    assert kept["logits.float64"].tobytes() == old["logits.float64"].tobytes()


def test_there_are_makers() -> None:
    assert {"make_models.py", "make_ops.py", "make_manifest.py"} <= {path.name for path in MAKERS}


def test_the_suite_stays_small() -> None:
    size = sum(entry["bytes"] for entry in FILES if not entry["path"].startswith("../"))
    assert size + (GOLDEN / "manifest.json").stat().st_size < 13_500_000
