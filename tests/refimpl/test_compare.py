"""Comparisons: the figures, rounding or mistake, numbers of other programs, and what is wrong with them."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from refimpl import AutoModelForCausalLM
from refimpl.conformance.compare import DEPARTS, EQUAL, ROUNDING, UNREADABLE, compare
from refimpl.conformance.comparison_page import page
from refimpl.conformance.comparison_report import as_json, junit
from refimpl.conformance.foreign import read_given
from refimpl.conformance.judge import Precision, places_that_count
from refimpl.conformance.measures import difference, logits_difference, ulp_histogram
from refimpl.conformance.trace import Call, Trace, replay
from refimpl.errors import InputError, MissingFileError
from tests.goldens import expected_of, find_cases, inputs_of, model_folder
from tests.tiny import save_tiny, tiny_ids, tiny_neox

MASK = np.array([[0, 0, 0, 1, 1, 1, 1, 1, 1], [1] * 9])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model") / "neox", tiny_neox())


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, backend="numpy")


def traced(model: Any, **inputs: Any) -> Trace:
    with model.trace() as trace:
        model(tiny_ids(), **inputs)
    return trace


@pytest.fixture
def a(model: Any) -> Trace:
    return traced(model)


def save_folder(folder: Path, arrays: dict[str, np.ndarray]) -> str:
    folder.mkdir()
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return str(folder)


# --- figures -------------------------------------------------------------------------------------


def test_the_figures_of_a_difference() -> None:
    wanted = np.array([[1.0, -2.0], [0.0, 4.0]])
    found = np.array([[1.5, -2.0], [0.25, 4.0]])
    one = difference(wanted, found)
    assert (one.max_abs, one.max_rel, one.scaled, one.place) == (0.5, 0.5, 0.125, [0, 0])
    assert one.rmse == pytest.approx(np.sqrt((0.25 + 0.0625) / 4))
    assert one.nmse == pytest.approx(0.3125 / 21)
    assert one.cosine == pytest.approx((1.5 + 4 + 16) / np.sqrt(21 * (2.25 + 4 + 0.0625 + 16)))
    only_right = difference(wanted, found, np.array([[False, True], [False, True]]))
    assert only_right.is_none
    assert only_right.scaled == 0
    assert difference(np.zeros(3), np.zeros(3)).cosine is None


def test_distances_in_float32_numbers() -> None:
    one = np.float32(1)
    up = np.nextafter(one, np.float32(2))
    assert ulp_histogram(np.array([one]), np.array([up]))[:3] == [0, 1, 0]
    tiny = np.float32(1e-45)
    # The smallest numbers on both sides of 0 are two apart, and 0 and -0 are one number.
    assert ulp_histogram(np.array([tiny, 0.0]), np.array([-tiny, -0.0]))[:3] == [1, 0, 1]
    assert ulp_histogram(np.array([1.0, 1.0]), np.array([2.0, 1.0]))[-1] == 1
    assert ulp_histogram(np.array([1.0]), np.array([1.0 + 100 * 2.0**-23]))[7] == 1


def test_what_a_difference_means_for_the_next_token() -> None:
    wanted = np.log([[[0.5, 0.25, 0.25], [0.2, 0.4, 0.4]]])
    found = np.log([[[0.25, 0.5, 0.25], [0.2, 0.4, 0.4]]])
    one = logits_difference(wanted, found)
    assert one.positions == 2
    assert one.kl_max == pytest.approx(0.5 * np.log(2) - 0.25 * np.log(2))
    assert one.kl_mean == pytest.approx(one.kl_max / 2)
    assert (one.top1, one.top5) == (0.5, 1.0)
    assert one.smallest_margin == pytest.approx(0)
    assert one.largest_lost_margin == pytest.approx(np.log(2))
    assert logits_difference(wanted, found, np.array([[False, True]])).top1 == 1
    vocab = np.arange(12.0)[None]
    assert logits_difference(vocab, -vocab).top5 == 0
    assert logits_difference(vocab, np.roll(vocab, 1)).top5 == pytest.approx(4 / 5)


def test_places_that_have_no_right_value_do_not_count() -> None:
    call = Call(np.zeros((2, 3), int), np.arange(3)[None], np.array([[0, 1, 1], [1, 1, 1]]))
    rows = places_that_count("gpt_neox.layers.0", np.zeros((2, 3, 4)), call)
    assert rows is not None
    assert rows[:, :, 0].tolist() == [[False, True, True], [True, True, True]]
    pairs = places_that_count("gpt_neox.layers.0.attention.scores", np.zeros((2, 1, 3, 3)), call)
    assert pairs is not None
    assert pairs[0, 0].tolist() == [[False] * 3, [False, True, False], [False, True, True]]
    assert pairs[1, 0].tolist() == np.tri(3, dtype=bool).tolist()
    keys = places_that_count("gpt_neox.layers.0.attention.key", np.zeros((2, 1, 3, 4)), call)
    assert keys is not None
    assert not keys[0, 0, 0].any()
    assert places_that_count("logits", np.zeros((2, 3)), call) is None  # of a classifier: one row for a text


# --- rounding or mistake -------------------------------------------------------------------------


def test_the_same_numbers_are_equal(a: Trace, folder: Path, tmp_path: Path) -> None:
    b = read_given(save_folder(tmp_path / "b", a.arrays), a)
    made = compare(a, b, model=str(folder))
    assert made.is_fine
    assert {step.verdict for step in made.steps} == {EQUAL}
    assert [step.name for step in made.steps] == list(a)
    assert (made.missing, made.unused, made.notes) == ([], [], [])


@pytest.mark.parametrize("case", find_cases(operation="layers"), ids=lambda case: case["id"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_numbers_of_transformers_are_rounding(case: dict[str, Any], dtype: str, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_folder(case), backend="numpy")
    with model.trace() as a:
        model(**inputs_of(case))
    arrays = {name: expected_of(case, name, dtype) for name in case["expected"]["outputs"]}
    made = compare(a, read_given(save_folder(tmp_path / "b", arrays), a), model=str(model_folder(case)))
    assert made.is_fine, made.first
    assert made.precision == Precision(dtype)
    # `attention` and `mlp` stand there twice.
    assert len(made.steps) == sum(not name.endswith(("attention", "mlp")) for name in arrays)


def test_a_small_mistake_is_none_of_rounding(a: Trace, folder: Path, tmp_path: Path) -> None:
    name = "gpt_neox.layers.1.attention.dense"
    arrays = dict(a.arrays)
    arrays[name] = arrays[name].copy()
    arrays[name][1, 4, 7] += 3e-5 * np.abs(arrays[name]).max()
    b = read_given(save_folder(tmp_path / "b", arrays), a)
    made = compare(a, b, model=str(folder))
    assert made.first is not None
    assert made.first.name == name
    assert [step.verdict for step in made.steps].count(DEPARTS) == 1
    assert made.first.difference is not None
    assert made.first.difference.place == [1, 4, 7]
    assert int(np.argmax(made.first.positions)) == 4
    assert made.looked
    assert made.named is None
    # Without the model the same is within the tolerance of float32.
    assert compare(a, b).is_fine
    assert "no model" in compare(a, b).judged_by


def test_numbers_at_padding_do_not_count(model: Any, folder: Path, tmp_path: Path) -> None:
    a = traced(model, attention_mask=MASK)
    arrays = {name: array.copy() for name, array in a.items() if ".layers.1." in name or name == "logits"}
    for name, array in arrays.items():
        if array.ndim == 3:
            array[0, :3] = np.nan
        elif name.endswith(("scores", "probabilities")):
            array[0, :, :3], array[:, :, np.triu(np.ones((9, 9), bool), 1)] = np.nan, np.inf
        else:
            array[0, :, :3] = np.nan
    b = read_given(save_folder(tmp_path / "b", arrays), a)
    made = compare(a, b, model=str(folder))
    assert made.is_fine
    assert len(made.steps) == len(arrays)


def test_weights_in_16_bits_are_told_from_mistakes(folder: Path, a: Trace, tmp_path: Path) -> None:
    other = AutoModelForCausalLM.from_pretrained(folder, backend="numpy", weight_dtype="bfloat16")
    b = read_given(save_folder(tmp_path / "b", dict(replay(other, a.calls))), a)
    made = compare(a, b, model=str(folder))
    assert made.is_fine
    assert made.precision == Precision("float32", "bfloat16")
    assert "bfloat16" in made.notes[0]
    assert not compare(a, b, model=str(folder), precision=Precision.parse("float32")).is_fine
    assert compare(a, b, model=str(folder), precision=Precision.parse("bfloat16")).is_fine


def test_a_trace_of_another_model_is_refused(a: Trace, tmp_path: Path) -> None:
    other = save_tiny(tmp_path / "other", tiny_neox(rotary_emb_base=500))
    b = read_given(save_folder(tmp_path / "b", a.arrays), a)
    with pytest.raises(InputError, match=r"config differs.*rotary_emb_base"):
        compare(a, b, model=str(other))


def test_a_trace_of_other_weights_is_noticed(a: Trace, tmp_path: Path) -> None:
    other = save_tiny(tmp_path / "other", tiny_neox(seed=3))
    b = read_given(save_folder(tmp_path / "b", a.arrays), a)
    made = compare(a, b, model=str(other), variants=False)
    assert not made.is_fine
    assert any("A itself departs from the model at gpt_neox.embed_in" in note for note in made.notes)


# --- numbers of other programs ---------------------------------------------------------------------


def test_a_map_of_names(a: Trace, folder: Path, tmp_path: Path) -> None:
    queries = {f"blk.{i}.q": a[f"gpt_neox.layers.{i}.attention.query"] for i in range(3)}
    theirs = {name: array.transpose(0, 2, 1, 3).reshape(18, 24) for name, array in queries.items()}
    theirs["out"] = a["logits"][:, None]
    theirs["wide"] = np.concatenate([a["gpt_neox.rotary_emb.cos"]] * 2, axis=-1)
    theirs["noise"] = np.ones(3, np.float32)
    save_file(
        {name: np.ascontiguousarray(array) for name, array in theirs.items()}, tmp_path / "b.safetensors"
    )
    rules = {
        "blk.{i}.q": {
            "name": "layers.{i}.attention.query",
            "reshape": [2, 9, 3, 8],
            "transpose": [0, 2, 1, 3],
        },
        "out": {"name": "logits", "squeeze": 1},
        "wide": {"name": "rotary_emb.cos", "slice": [None, None, [0, 2]]},
    }
    (tmp_path / "map.json").write_text(json.dumps(rules))
    b = read_given(str(tmp_path / "b.safetensors"), a, str(tmp_path / "map.json"))
    made = compare(a, b, model=str(folder))
    assert made.is_fine
    assert len(made.steps) == 5
    assert made.unused == ["noise"]
    assert len(made.missing) == len(a) - 5
    assert made.steps[1].theirs == "blk.0.q"


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"logitz": "logits"}, "not there.*Did you mean logits"),
        ({"logits": "gpt_neox.layers.9.mlp.act"}, "the trace does not have"),
        ({"logits": 3}, "must stand here"),
        ({"logits": {"name": "logits", "rotate": 1}}, "unknown: 'rotate'"),
        ({"logits": "layers.{i}"}, "stands for one number"),
        ({"logits": "logits", "gpt_neox.embed_in": "logits"}, "two names"),
    ],
)
def test_a_map_that_does_not_fit(a: Trace, tmp_path: Path, rules: dict[str, Any], message: str) -> None:
    b = save_folder(tmp_path / "b", {name: a[name] for name in ("logits", "gpt_neox.embed_in")})
    (tmp_path / "map.json").write_text(json.dumps(rules))
    with pytest.raises(InputError, match=message):
        read_given(b, a, str(tmp_path / "map.json"))


def test_no_common_name(a: Trace, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no name is a step.*--map"):
        read_given(save_folder(tmp_path / "b", {"foo": np.ones(2)}), a)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="found nothing"):
        read_given(str(tmp_path / "empty"), a)
    with pytest.raises(MissingFileError):
        read_given(str(tmp_path / "nowhere"), a)


def test_what_is_wrong_with_one_tensor_is_its_own_result(a: Trace, folder: Path, tmp_path: Path) -> None:
    arrays = dict(a.arrays)
    layer = "gpt_neox.layers.1"
    arrays[f"{layer}.mlp.act"] = arrays[f"{layer}.mlp.act"][:, :4]
    arrays[f"{layer}.mlp.dense_4h_to_h"] = arrays[f"{layer}.mlp.dense_4h_to_h"].astype(np.int64)
    arrays[layer] = np.where(np.arange(24) == 3, np.nan, arrays[layer])
    b_folder = save_folder(tmp_path / "b", arrays)
    whole = (tmp_path / "b" / "logits.npy").read_bytes()
    (tmp_path / "b" / "logits.npy").write_bytes(whole[:300])
    made = compare(a, read_given(b_folder, a), model=str(folder))
    found = {step.name: step for step in made.steps}
    assert "shape [2, 4, 37], not [2, 9, 37]" in found[f"{layer}.mlp.act"].why
    assert found[f"{layer}.mlp.dense_4h_to_h"].why == "not floats but int64"
    assert (found[layer].verdict, found[layer].why) == (DEPARTS, "nan at [0, 0, 3]")
    assert found["logits"].verdict == UNREADABLE
    fine = [step for step in made.steps if step.is_fine]
    assert len(fine) == len(a) - 4
    assert made.first is found[f"{layer}.mlp.act"]
    json.dumps(as_json(made), allow_nan=False)


def test_bfloat16_tensors_and_a_missing_batch_axis(a: Trace, tmp_path: Path) -> None:
    save_file({"logits": a["logits"].astype(ml_dtypes.bfloat16)}, tmp_path / "b.safetensors")
    made = compare(a, read_given(str(tmp_path / "b.safetensors"), a), precision=Precision.parse("bfloat16"))
    assert [step.verdict for step in made.steps] == [ROUNDING]
    one = Trace({"logits": a["logits"][:1]}, [], a.about)
    b = read_given(save_folder(tmp_path / "b", {"logits": a["logits"][0]}), one)
    assert compare(one, b).steps[0].verdict == EQUAL


def test_traces_of_other_inputs_are_refused(model: Any, a: Trace, tmp_path: Path) -> None:
    with model.trace() as other:
        model(tiny_ids(seed=5))
    with pytest.raises(InputError, match="different ids"):
        compare(a, read_given(str(other.save(tmp_path / "b.safetensors")), a))
    with model.trace() as other:
        model(tiny_ids())
        model(tiny_ids())
    with pytest.raises(InputError, match="different calls"):
        compare(a, read_given(str(other.save(tmp_path / "b.safetensors")), a))


def test_only_some_steps(a: Trace, folder: Path, tmp_path: Path) -> None:
    b = read_given(save_folder(tmp_path / "b", a.arrays), a)
    made = compare(a, b, model=str(folder), names=["*.1.mlp.*", "logits"])
    assert [step.name for step in made.steps][-1] == "logits"
    assert len(made.steps) == 4
    with pytest.raises(InputError, match="no such step"):
        compare(a, b, model=str(folder), names=["nothing"])


# --- reports -------------------------------------------------------------------------------------


class Page(HTMLParser):
    """A page whose elements are closed in order, and that asks for nothing from elsewhere."""

    VOID = ("meta", "br", "line", "circle", "rect", "polyline")

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.counts: dict[str, int] = {}
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        assert not {name for name, _ in attributes} & {"src", "href", "onclick"}
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attributes: Any) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page(a: Trace, folder: Path, tmp_path: Path) -> None:
    arrays = dict(a.arrays) | {"logits": a["logits"] + np.float32(0.5) * (np.arange(40) == 3)}
    made = compare(a, read_given(save_folder(tmp_path / "b", arrays), a), model=str(folder))
    shown = Page(page(made, "<a>", "b&<script>", a.about))
    assert "script" not in shown.counts
    assert shown.counts["svg"] == 3
    assert shown.counts["circle"] == len(a)
    assert "b&<script>" in shown.text
    assert "B departs" in shown.text
    assert shown.text.count("gpt_neox.layers.2.attention.probabilities") >= 3
    made = compare(a, read_given(str(tmp_path / "b"), a), names=["gpt_neox.rotary_emb.*"])
    assert "Everything agrees" in Page(page(made, "a", "b", {})).text


def test_the_reports(a: Trace, folder: Path, tmp_path: Path) -> None:
    arrays = dict(a.arrays) | {"logits": a["logits"] + 1}
    made = compare(a, read_given(save_folder(tmp_path / "b", arrays), a), model=str(folder))
    suite = ElementTree.fromstring(junit(made))
    assert (suite.get("tests"), suite.get("failures")) == (str(len(a)), "1")
    assert [case.get("name") for case in suite] == list(a)
    assert suite[-1][0].get("type") == DEPARTS
    report = as_json(made)
    assert report["verdict"] == "departs"
    assert report["first_departure"] == "logits"
    assert sum(report["steps"][-1]["difference"]["ulps"]) == a["logits"].size
    assert report["steps"][-1]["logits"]["top1"] == 1.0
