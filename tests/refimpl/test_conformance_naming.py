"""Outputs that are those of a recorded mistake are named; those that are right, or wrong otherwise, are not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refimpl.conformance.case_judge import _Judging, judge
from refimpl.conformance.protocol import Capabilities, inline
from refimpl.conformance.results import Result
from refimpl.conformance.suite import Suite
from refimpl.conformance.summary import explained
from tests.goldens import GOLDEN, find_cases, load_manifest, load_tensors

WRONG = [case for case in load_manifest()["cases"] if "wrong" in case]
LINES = [
    (
        case,
        json.loads(
            (GOLDEN / case["inputs"]["file"]).read_text("utf-8").split("\n")[case["inputs"]["line"] - 1]
        ),
    )
    for case in find_cases(operation="tokenizer")
]
WRONG_LINES = [(case, line) for case, line in LINES if "wrong" in line or "wrong_decoded" in line]


@pytest.fixture(scope="module")
def suite() -> Suite:
    return Suite(GOLDEN)


def engine(dtype: str, *outputs: str) -> Capabilities:
    """One that gives these outputs only."""
    return Capabilities("test", "1", dtype, has={"outputs": outputs})


def judged(suite: Suite, case: dict, logits: np.ndarray, dtype: str) -> Result:
    value = inline(logits.astype(dtype))
    ways = range(len(case["inputs"]["arguments"].get("feed_lengths", ())))
    names = [f"logits.{way}" for way in ways] if case["operation"] == "cached_model" else ["logits"]
    answer = {"outputs": dict.fromkeys(names, value)}
    return judge(suite, case, answer, engine(dtype, "logits", "logits.*"))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_recorded_mistake_is_named(dtype: str, suite: Suite) -> None:
    """With as much rounding as float32 has.  Mistakes that give the same logits have both names."""
    missed = []
    for case in WRONG:
        tensors = load_tensors(case["expected"]["file"])
        for mistake, key in case["wrong"].items():
            result = judged(suite, case, tensors[key], dtype)
            assert result.status == "fail"
            near = [named.mistake for named in result.mistakes]
            twins = [
                name for name in near if not np.allclose(tensors[case["wrong"][name]], tensors[key], 0, 1e-4)
            ]
            if mistake not in near or twins:
                missed.append((case["id"], mistake, near))
    assert missed == []


def test_what_is_right_is_named_after_nothing(suite: Suite) -> None:
    for case in WRONG:
        names = case["expected"]["outputs"]["logits"]
        for dtype in ("float32", "float64"):
            result = judged(suite, case, load_tensors(case["expected"]["file"])[names[dtype]], dtype)
            assert (result.status, result.mistakes) == ("pass", [])


def test_a_mistake_of_another_kind_is_named_after_nothing(suite: Suite) -> None:
    random = np.random.default_rng(0)
    for case in WRONG:
        logits = load_tensors(case["expected"]["file"])[case["expected"]["outputs"]["logits"]["float64"]]
        for size in (1e-4, 1e-2, 1.0):
            noise = size * case["tolerance"]["logits"]["largest"] * random.standard_normal(logits.shape)
            assert judged(suite, case, logits + noise, "float64").mistakes == [], case["id"]


def test_what_a_mistake_is_said_to_be(suite: Suite) -> None:
    case = next(case for case in WRONG if case["id"] == "gpt_neox/tiny-plain/forward")
    tensors = load_tensors(case["expected"]["file"])
    result = judged(suite, case, tensors[case["wrong"]["interleaved-rotary"]], "float64")
    assert str(result.mistakes[0]) == "interleaved-rotary gives the same logits (recorded, to 0)"
    assert [str(entry) for entry in explained([result])] == [f"interleaved-rotary: 1 case ({case['id']})"]


# --- tokenizers ----------------------------------------------------------------------------------


def of_line(suite: Suite, case: dict, line: dict, **outputs: Any) -> Result:
    return judge(suite, case, {"outputs": outputs}, engine("float32", *outputs))


def test_wrong_ids_are_named(suite: Suite) -> None:
    assert len(WRONG_LINES) > 50
    for case, line in WRONG_LINES:
        for mistake, ids in line.get("wrong", {}).items():
            result = of_line(suite, case, line, ids=ids)
            assert result.status == "fail"
            assert mistake in [named.mistake for named in result.mistakes], case["id"]
        for mistake, text in line.get("wrong_decoded", {}).items():
            result = of_line(suite, case, line, decoded=text)
            assert mistake in [named.mistake for named in result.mistakes], case["id"]


def test_every_mistake_of_a_tokenizer_is_explained() -> None:
    names = {
        name for _, line in WRONG_LINES for key in ("wrong", "wrong_decoded") for name in line.get(key, ())
    }
    text = (GOLDEN / "README.md").read_text(encoding="utf-8")
    assert [name for name in sorted(names) if f"`{name}`" not in text] == []
    assert len(names) >= 10


def test_right_ids_are_named_after_nothing(suite: Suite) -> None:
    for case, line in LINES:
        if "ids" in line and "text" in line:
            result = of_line(suite, case, line, ids=line["ids"])
            assert (result.status, result.mistakes) == ("pass", [])
    case, line = next((case, line) for case, line in LINES if line.get("ids") and "text" in line)
    assert of_line(suite, case, line, ids=[*line["ids"], 0]).mistakes == []
    assert of_line(suite, case, line, ids=[float(index) for index in line["ids"]]).status == "fail"


def test_a_mistake_beside_something_smaller_is_named_by_its_share(tmp_path: Path) -> None:
    """Logits that a mistake gives and, on top of it, noise far beyond rounding."""
    rng = np.random.default_rng(0)
    cases = [case for case in find_cases(operation="model") if "tanh-gelu" in case.get("wrong", {})][:12]
    assert cases
    suite = Suite(GOLDEN)
    for case in cases:
        tensors = suite.tensors(case["expected"]["file"])
        right = tensors[case["expected"]["outputs"]["logits"]["float64"]]
        wrong = tensors[case["wrong"]["tanh-gelu"]]
        made = np.sqrt(np.mean((wrong - right) ** 2))
        for size, named in ((0.2, ["tanh-gelu"]), (2.0, [])):
            found = wrong + size * made * rng.normal(size=wrong.shape)
            judging = _Judging(suite, case, {}, "float64", tmp_path)
            assert [one.mistake for one in judging._explaining("logits", "logits", found)] == named
        noise = right + made * rng.normal(size=right.shape)
        assert not _Judging(suite, case, {}, "float64", tmp_path)._explaining("logits", "logits", noise)
