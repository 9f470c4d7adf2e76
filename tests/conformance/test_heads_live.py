"""Live comparison with transformers: the three task heads of GPT-NeoX, their losses, and files that they share.

REFIMPL_MODELS says how many random models there are; each head has a sixth of them.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import refimpl
from tests.conformance.comparison import Call
from tests.conformance.ours import run_ours
from tests.conformance.random_models import MODELS, Draw, RandomModel, labels_for, masks, random_lengths
from tests.conformance.theirs import expect, load_theirs, run_theirs

TASKS = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")


@dataclass(frozen=True)
class RandomHead:
    """A random model with a task head, and calls with all that a head does with a text."""

    seed: int
    task: str

    @cached_property
    def model(self) -> RandomModel:
        return RandomModel(50 + self.seed, "gpt_neox")

    @property
    def num_labels(self) -> int:
        return (1, 2, 5, 3)[self.seed % 4]

    def save(self, folder: Path, **more: Any) -> None:
        self.model.save(folder, self.task, num_labels=self.num_labels, **more)

    def calls(self) -> dict[str, Call]:
        """Without labels: texts of one length, and with padding on either side that the ids show."""
        draw = np.random.default_rng(3000 + self.seed)
        batch, seq = int(draw.integers(2, 5)), int(draw.integers(6, 30))
        ids = draw.integers(3, self.model.settings["vocab_size"], size=(batch, seq))
        right, left, holes = masks(draw, batch, seq)
        all_real = np.ones((batch, seq), dtype=bool)
        embeds = draw.normal(size=(batch, seq, self.model.settings["hidden_size"])).astype(np.float32)
        return {
            "plain": Call({"input_ids": ids}, all_real),
            "one text": Call({"input_ids": ids[:1]}, all_real[:1]),
            "embeddings": Call({"inputs_embeds": embeds}, all_real),
            "padding on the left": Call({"input_ids": ids * left, "attention_mask": left}, left == 1),
            "padding on the right": Call({"input_ids": ids * right, "attention_mask": right}, right == 1),
            "padding in between": Call({"input_ids": ids * holes, "attention_mask": holes}, holes == 1),
            "padding that no mask tells of": Call({"input_ids": ids * right}, all_real),
            "pieces": Call({"input_ids": ids}, all_real, random_lengths(draw, seq)),
        }

    def labelled_calls(self) -> dict[str | None, dict[str, Call]]:
        """Calls with labels, by the kind of problem that the config has to name for them."""
        draw = np.random.default_rng(4000 + self.seed)
        found: dict[str | None, dict[str, Call]] = {}
        for name in ("plain", "one text", "padding on the right"):
            call = self.calls()[name]
            for kind, (problem_type, labels) in self._labels(draw, call).items():
                labelled = Call(call.inputs | labels, call.real)
                found.setdefault(problem_type, {})[f"{name}, {kind}"] = labelled
        return found

    def _labels(self, draw: Draw, call: Call) -> dict[str, tuple[str | None, dict[str, np.ndarray]]]:
        if self.task == "ForSequenceClassification":
            kinds = labels_of_texts(draw, len(call.real), self.num_labels)
            return {
                kind: (problem_type, {"labels": labels}) for kind, (problem_type, labels) in kinds.items()
            }
        if self.task == "ForTokenClassification":
            classes = draw.integers(0, self.num_labels, size=call.real.shape)
            return {"a class for each token": (None, {"labels": labels_for(draw, classes, call.real)})}
        return {kind: (None, ends) for kind, ends in ends_of_answers(draw, *call.real.shape).items()}


def labels_of_texts(draw: Draw, batch: int, count: int) -> dict[str, tuple[str | None, np.ndarray]]:
    """Labels of every kind of problem for `count` labels, with the problem type that makes them so."""
    numbers = draw.normal(size=(batch, count))
    classes = draw.integers(0, count, size=batch)
    answers = draw.random((batch, count)).round(draw.integers(0, 2))
    found: dict[str, tuple[str | None, np.ndarray]] = {
        "numbers, said": ("regression", numbers),
        "a class, said": ("single_label_classification", classes),
        "a class in a column": ("single_label_classification", classes[:, None]),
        "yes or no, said": ("multi_label_classification", answers),
        "no class at all": ("single_label_classification", np.full(batch, -100)),
    }
    if count == 1:
        found |= {"numbers": (None, numbers[:, 0]), "numbers in a column": (None, numbers)}
    else:
        found |= {"a class": (None, classes), "yes or no": (None, answers)}
    if batch > 1:
        found["a class of some"] = (
            "single_label_classification",
            np.where(np.arange(batch) == 1, -100, classes),
        )
    return found


def ends_of_answers(draw: Draw, batch: int, seq: int) -> dict[str, dict[str, np.ndarray]]:
    def both(start: np.ndarray, end: np.ndarray) -> dict[str, np.ndarray]:
        return {"start_positions": start, "end_positions": end}

    inside = draw.integers(0, seq, size=(2, batch))
    anywhere = draw.integers(-3, 2 * seq, size=(2, batch))
    anywhere[:, 0] = seq, seq - 1  # the first place beyond, and the last one inside
    return {
        "inside": both(*inside),
        "in a column": both(inside[0][:, None], inside[1][:, None]),
        "anywhere": both(*anywhere),
        "not in the text": both(np.full(batch, seq + 5), np.full(batch, seq)),
        "marked as nothing": both(np.full(batch, -100), inside[1]),
    }


def load_ours(folder: Path, task: str, backend: str, dtype: str, **options: Any) -> Any:
    return getattr(refimpl, f"GPTNeoX{task}").from_pretrained(folder, backend=backend, dtype=dtype, **options)


def compare(
    folder: Path, task: str, backend: str, calls: dict[str, Call], where: str, problem_type: str | None = None
) -> None:
    """Every output of every call, in float32 and in float64."""
    theirs = load_theirs(folder, task)
    theirs.config.problem_type = problem_type
    expected = expect(theirs, calls)
    for dtype in ("float32", "float64"):
        model = load_ours(folder, task, backend, dtype)
        model.config.problem_type = problem_type
        for name, call in calls.items():
            expected.check(run_ours(model, call), name, dtype, f"{where} on {backend}")


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("seed", range(MODELS // 6))
def test_many_random_heads_give_what_transformers_gives(
    seed: int, task: str, backend: str, tmp_path: Path
) -> None:
    head = RandomHead(seed, task)
    head.save(tmp_path)
    compare(tmp_path, task, backend, head.calls(), f"{task} {seed}")


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("seed", range(MODELS // 6))
def test_many_random_heads_have_the_losses_of_transformers(
    seed: int, task: str, backend: str, tmp_path: Path
) -> None:
    head = RandomHead(seed, task)
    head.save(tmp_path)
    for problem_type, calls in head.labelled_calls().items():
        compare(tmp_path, task, backend, calls, f"{task} {seed}, {problem_type}", problem_type)


def test_the_random_heads_are_varied() -> None:
    heads = [RandomHead(seed, TASKS[0]) for seed in range(8)]
    assert {head.num_labels for head in heads} == {1, 2, 3, 5}
    said = {problem_type for head in heads for problem_type in head.labelled_calls()}
    assert said == {None, "regression", "single_label_classification", "multi_label_classification"}
    for name in ("use_parallel_residual", "attention_bias"):
        assert {head.model.settings[name] for head in heads} == {True, False}


def test_one_text_is_judged_without_a_padding_token(backend: str, tmp_path: Path) -> None:
    head = RandomHead(1, TASKS[0])
    head.model.settings["pad_token_id"] = None
    head.save(tmp_path)
    call = head.calls()["one text"]
    compare(tmp_path, TASKS[0], backend, {"one text": call}, "without a padding token")
    several = head.calls()["plain"]
    with pytest.raises(ValueError, match="padding token"):
        run_theirs(load_theirs(tmp_path, TASKS[0]), several, "float32")
    with pytest.raises(refimpl.errors.InputError, match="pad_token_id"):
        run_ours(load_ours(tmp_path, TASKS[0], backend, "float32"), several)


def test_a_text_of_padding_alone_is_judged_like_transformers(backend: str, tmp_path: Path) -> None:
    head = RandomHead(2, TASKS[0])
    head.save(tmp_path)
    ids = np.zeros((2, 5), dtype=np.int64)
    ids[1, 2] = 7
    call = Call({"input_ids": ids}, np.ones(ids.shape, dtype=bool))
    compare(tmp_path, TASKS[0], backend, {"padding alone": call}, "padding alone")


@pytest.mark.parametrize("task", TASKS)
def test_a_damaged_head_is_noticed(task: str, backend: str, tmp_path: Path) -> None:
    head = RandomHead(2, task)
    head.save(tmp_path)
    calls = {"plain": head.calls()["plain"]}
    expected = expect(load_theirs(tmp_path, task), calls)
    ours = load_ours(tmp_path, task, backend, "float32")
    expected.check(run_ours(ours, calls["plain"]), "plain", "float32", task)
    parameter = next(p for p in ours.named_parameters() if not p.key.startswith("gpt_neox."))
    parameter.assign(1.001 * refimpl.to_numpy(getattr(parameter.owner, parameter.name)), None)
    with pytest.raises(AssertionError, match="logits, float32: differs by"):
        expected.check(run_ours(ours, calls["plain"]), "plain", "float32", task)


# --- files of one class, read by another ---------------------------------------------------------

#: what the new head of each class consists of
HEADS = {
    "ForCausalLM": ["embed_out.weight"],
    "ForSequenceClassification": ["score.weight"],
    "ForTokenClassification": ["classifier.bias", "classifier.weight"],
    "ForQuestionAnswering": ["qa_outputs.bias", "qa_outputs.weight"],
}


def hidden_states(model: Any, call: Call) -> np.ndarray:
    """The last hidden states of our model, whatever its head."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the text is longer than max_position_embeddings")
        return refimpl.to_numpy(model.base_model(**call.inputs).last_hidden_state)


@pytest.mark.parametrize("wanted", HEADS)
@pytest.mark.parametrize("stored", ["Model", *HEADS])
def test_a_file_of_one_class_is_read_by_another(
    stored: str, wanted: str, backend: str, tmp_path: Path
) -> None:
    """The model inside is the same; a head that the file lacks is random, and named in a warning."""
    model = RandomModel(4, "gpt_neox")
    model.settings["tie_word_embeddings"] = False
    model.save(tmp_path, stored)
    call = model.calls()["plain"]
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        ours = load_ours(tmp_path, wanted, backend, "float64")
    messages = [str(warning.message) for warning in seen]
    if stored == wanted:
        assert messages == []
    else:
        assert len(messages) == 1
        assert all(key in messages[0] for key in HEADS[wanted])
        assert ("is not used" in messages[0]) == (stored != "Model")
    right = run_theirs(load_theirs(tmp_path, "Model"), call, "float64")["last_hidden_state"]
    np.testing.assert_allclose(hidden_states(ours, call), right, atol=1e-11 * np.abs(right).max())
    again = getattr(ours, HEADS[wanted][0].partition(".")[0]).weight
    assert np.isfinite(refimpl.to_numpy(again)).all()


@pytest.mark.parametrize("stored", ["Model", *HEADS])
def test_the_model_without_a_head_reads_every_file(stored: str, backend: str, tmp_path: Path) -> None:
    model = RandomModel(6, "gpt_neox")
    model.save(tmp_path, stored)
    call = model.calls()["padding on the right"]
    ours = load_ours(tmp_path, "Model", backend, "float64")  # a warning would be an error
    expected = expect(load_theirs(tmp_path, "Model"), {"plain": call})
    expected.check(run_ours(ours, call), "plain", "float64", f"{stored} as a model without a head")


@pytest.mark.parametrize("stored", ["Model", "ForCausalLM"])
@pytest.mark.parametrize("wanted", ["Model", "ForCausalLM"])
def test_japanese_files_are_shared_too(stored: str, wanted: str, backend: str, tmp_path: Path) -> None:
    model = RandomModel(5, "gpt_neox_japanese")
    model.settings["tie_word_embeddings"] = True
    model.save(tmp_path, stored)
    call = model.calls()["padding on the right"]
    ours = getattr(refimpl, f"GPTNeoXJapanese{wanted}").from_pretrained(
        tmp_path, backend=backend, dtype="float64"
    )
    expected = expect(load_theirs(tmp_path, wanted), {"plain": call})
    expected.check(run_ours(ours, call), "plain", "float64", f"{stored} as {wanted}")
