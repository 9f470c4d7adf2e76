"""Mistakes that the suite has no numbers of are named all the same: what they give is computed here."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from refimpl.conformance import live_naming
from refimpl.conformance.case_judge import judge
from refimpl.conformance.live_naming import LiveNames
from refimpl.conformance.process import Limits
from refimpl.conformance.protocol import Capabilities, inline
from refimpl.conformance.results import Result, count
from refimpl.conformance.runner import Run, run_engine
from refimpl.conformance.selection import select
from refimpl.conformance.suite import Suite
from refimpl.conformance.variants import VARIANTS
from refimpl.conformance.wrong_operations import MEANINGS, WRONG, wrong_outputs
from tests.goldens import GOLDEN

#: Our own engine with a mistake in its operations, in float32: nothing of what names it takes part.
PLANTED = '''
import numpy as np
from refimpl.conformance import our_engine
from refimpl.conformance.our_engine import OurEngine

engine = OurEngine()
answer = engine


def neighbours(x, cos, sin):
    width = 2 * cos.shape[-1]
    turned = x.copy()
    first, second = x[..., 0:width:2], x[..., 1:width:2]
    turned[..., 0:width:2] = first * cos[:, None] - second * sin[:, None]
    turned[..., 1:width:2] = first * sin[:, None] + second * cos[:, None]
    return turned


def give_back(owner):
    """A backend whose rotary is another: `inside` replaces the operation, and removes what it has put there."""
    cls = type(owner)
    owner.__class__ = type("Wrong", (cls,), {"rotary": staticmethod(neighbours)})


def load_with(change, load=engine._load):
    def loaded(folder):
        model = load(folder)
        change(model)
        return model
    engine._load = engine._model = loaded


def interleaved():
    give_back(engine._ops)
    load_with(lambda model: give_back(model.backend))


def tanh():
    def wrong(cls):
        def activation(self, x, name, parameters=()):
            return cls.activation(self, x, "gelu_new" if name == "gelu" else name, parameters)
        return activation

    def change(owner):
        owner.__class__ = type("Wrong", (type(owner),), {"activation": wrong(type(owner))})

    change(engine._ops)
    load_with(lambda model: change(model.backend))


def qkv():
    """Rows read as (qkv, head): the product itself is right."""
    inside = our_engine.inside

    def order(array, heads, back=False):
        split = (heads, 3) if back else (3, heads)
        return array.reshape(*array.shape[:-1], *split, -1).swapaxes(-3, -2).reshape(array.shape)

    def change(model):
        heads = model.config.num_attention_heads
        for layer in model.base_model.layers:
            part = layer.attention.query_key_value

            class Reads:
                def __init__(self, part):
                    self.part = part
                def __getattr__(self, name):
                    return getattr(self.part, name)
                def __call__(self, x):
                    return order(self.part(x), heads)

            layer.attention.query_key_value = Reads(part)

    def shown(model, inputs, outputs):
        made = inside(model, inputs, outputs)
        heads = model.config.num_attention_heads
        return {k: order(v, heads, True) if k.endswith("query_key_value") else v for k, v in made.items()}

    our_engine.inside = shown
    load_with(change)
'''


@pytest.fixture(scope="module")
def suite() -> Suite:
    return Suite(GOLDEN)


def planted(suite: Suite, folder: Path, mistake: str, include: list[str]) -> Run:
    (folder / "planted.py").write_text(PLANTED + f"\n\n{mistake}()\n", encoding="utf-8")
    program = (
        "import sys; sys.path.insert(0, {!r}); from refimpl.conformance.serve import main; "
        "sys.exit(main(['planted:answer']))"
    )
    command = [sys.executable, "-c", program.format(str(folder))]
    return run_engine(suite, select(suite, include), command, limits=Limits(seconds=30))


@pytest.mark.parametrize(
    ("mistake", "name", "operation", "failing"),
    [
        ("interleaved", "interleaved-rotary", "rotary", 2),
        ("tanh", "tanh-gelu", "activation", 1),
        ("qkv", "qkv-before-heads", None, 0),
    ],
)
def test_a_mistake_of_an_engine_is_named_at_every_level(
    mistake: str, name: str, operation: str | None, failing: int, suite: Suite, tmp_path: Path
) -> None:
    failed = [
        result for result in planted(suite, tmp_path, mistake, ["op", "layer"]).results if result.failed
    ]
    assert len([result for result in failed if result.operation == operation]) == failing
    assert len([result for result in failed if result.operation == "layers"]) >= 5
    assert {result.operation for result in failed} <= {operation, "layers"}
    for result in failed:
        assert [named.mistake for named in result.mistakes] == [name], (result.id, result.mistakes)
        assert "(computed here, to " in str(result.mistakes[0])
        assert result.mistakes[0].partly == ""


def test_an_expected_failure_is_not_looked_into(suite: Suite, tmp_path: Path) -> None:
    (tmp_path / "planted.py").write_text(PLANTED + "\n\ntanh()\n", encoding="utf-8")
    cases = select(suite, ["layers"])
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from refimpl.conformance.serve import main; "
    )
    command = [sys.executable, "-c", program + "sys.exit(main(['planted:answer']))"]
    measured = run_engine(suite, cases, command, xfail={case["id"]: "tanh" for case in cases})
    assert count(measured.results) == {"xfail": len(cases)}
    assert [result.mistakes for result in measured.results] == [[]] * len(cases)


# --- one case at a time --------------------------------------------------------------------------


def given(suite: Suite, case: dict) -> dict[str, np.ndarray]:
    arrays = suite.tensors(case["inputs"]["file"])
    return {argument: arrays[name] for argument, name in case["inputs"]["tensors"].items()}


def right(suite: Suite, case: dict) -> dict[str, np.ndarray]:
    arrays = suite.tensors(case["expected"]["file"])
    return {name: arrays[dtypes["float64"]] for name, dtypes in case["expected"]["outputs"].items()}


def judged(suite: Suite, case: dict, outputs: dict, dtype: str, names: LiveNames | None = None) -> Result:
    answer = {"outputs": {name: inline(np.asarray(array).astype(dtype)) for name, array in outputs.items()}}
    return judge(suite, case, answer, Capabilities("test", "1", dtype), names=names)


def of_operation(suite: Suite, operation: str) -> list[dict]:
    return [case for case in suite.cases if case["operation"] == operation]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("operation", WRONG)
def test_every_wrong_form_is_named_or_right(operation: str, dtype: str, suite: Suite) -> None:
    """What a mistake gives is either what is right, within the tolerance of float32, or named after it."""
    named: set[str] = set()
    for case in of_operation(suite, operation):
        for name, outputs in wrong_outputs(operation, case["inputs"]["arguments"], given(suite, case)):
            result = judged(suite, case, outputs, dtype)
            mistakes = [entry.mistake for entry in result.mistakes]
            shapes = {k: v.shape for k, v in outputs.items()} == {
                k: v.shape for k, v in right(suite, case).items()
            }
            allowed = [
                (entry.difference or 0) <= 100 * case["tolerance"][entry.output]["float32"]
                for entry in result.outputs
            ]
            finite = all(np.isfinite(array).all() for array in outputs.values())
            if finite and (not shapes or not all(allowed)):
                assert name in mistakes, (case["id"], mistakes)
                assert all(entry.computed for entry in result.mistakes)
            named |= set(mistakes)
    assert named == set(WRONG[operation])


@pytest.mark.parametrize("operation", WRONG)
def test_noise_and_rounding_are_named_after_nothing(operation: str, suite: Suite) -> None:
    random = np.random.default_rng(0)
    for case in of_operation(suite, operation):
        wanted = right(suite, case)
        result = judged(suite, case, wanted, "float32")
        assert (result.status, result.mistakes) == ("pass", [])
        for size in (1e-4, 1e-2):
            noisy = {
                name: array + size * max(1.0, np.abs(array).max()) * random.standard_normal(array.shape)
                for name, array in wanted.items()
            }
            result = judged(suite, case, noisy, "float64")
            assert (result.status, result.mistakes) == ("fail", []), case["id"]


def test_a_missing_output_is_named_after_nothing(suite: Suite) -> None:
    """What is there is right: no mistake that changes only the other output is guessed."""
    case = of_operation(suite, "attention")[0]
    context = right(suite, case)["context"]
    assert judged(suite, case, {"context": context}, "float32").mistakes == []


def test_noise_in_the_steps_of_a_model_is_named_after_nothing(suite: Suite) -> None:
    random = np.random.default_rng(0)
    for case in select(suite, ["layers"]):
        wanted, names = right(suite, case), LiveNames(suite)
        assert judged(suite, case, wanted, "float32", names).status == "pass"
        assert names._left == live_naming.MOST_SECONDS  # what passes costs nothing
        for size in (2e-5, 1e-2):
            noisy = {
                name: array + size * np.abs(array).max() * random.standard_normal(array.shape)
                for name, array in wanted.items()
            }
            result = judged(suite, case, noisy, "float32", names)
            assert (result.status, result.mistakes) == ("fail", []), (case["id"], size)


def test_a_model_case_without_a_record_is_named(suite: Suite) -> None:
    """rms-norm is recorded nowhere."""
    from refimpl.conformance.trace import Call
    from refimpl.conformance.variants import planted as plant
    from refimpl.conformance.variants import run_copy

    case = next(c for c in select(suite, ["model"]) if c["id"].endswith("tiny-plain/left-padding"))
    inputs = given(suite, case)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    call = Call(ids, np.arange(ids.shape[1])[None], mask)
    model = live_naming._load(str(suite.folder / case["model"]), "float32")
    logits = run_copy(plant(model, [call], "rms-norm"), ["logits"]).arrays["logits"]
    names = LiveNames(suite)
    result = judged(suite, case, {"logits": logits}, "float32", names)
    assert [entry.mistake for entry in result.mistakes] == ["rms-norm"]
    assert judged(suite, case, {"logits": logits}, "float32").mistakes == []


def test_what_naming_may_cost_is_limited(suite: Suite) -> None:
    steps = select(suite, ["layers"])[0]
    case = next(c for c in select(suite, ["model"]) if c["id"].endswith("tiny-plain/left-padding"))
    zeros = {name: 0 * array for name, array in right(suite, case).items()}
    for names, skipped in ((LiveNames(suite, most=1), 2), (LiveNames(suite, seconds=1e-6), 3)):
        nothing = {name: 0 * array for name, array in right(suite, steps).items()}
        assert judged(suite, steps, nothing, "float32", names).mistakes == []
        for _ in range(3):
            assert judged(suite, case, zeros, "float32", names).mistakes == []
        assert (names.skipped, len(names.notes())) == (skipped, 1)
    assert LiveNames(suite).notes() == []


def test_a_model_that_is_not_loaded_here_is_named_after_nothing(suite: Suite, tmp_path: Path) -> None:
    case = dict(select(suite, ["layers"])[0], model=str(tmp_path))
    zeros = {name: 0 * array for name, array in right(suite, case).items()}
    result = judged(suite, case, zeros, "float32", LiveNames(suite))
    assert (result.status, result.mistakes) == ("fail", [])


def test_every_name_has_a_meaning() -> None:
    names = {name for wrong in WRONG.values() for name in wrong}
    assert sorted(names - VARIANTS.keys() - MEANINGS.keys()) == []
    assert MEANINGS.keys() <= names
