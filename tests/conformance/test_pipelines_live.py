"""Live comparison with transformers: the pipelines that read labels, answers and features off a model.

Version 5 has no pipeline for question answering: its tests (`-k answers`) are skipped there and run with version
4, from which the values in `tests/refimpl/test_pipelines_answers.py` come too.
"""

from __future__ import annotations

import copy
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import refimpl
from tests.conformance.theirs import transformers
from tests.refimpl.pipeline_models import HEADS, QUESTIONS, TEXTS, save_pipeline_model

SCORE = 1e-5

AGGREGATION = ("none", "simple", "first", "average", "max")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """task -> the folder of a random model for it, with a tokenizer whose file says everything.

    transformers' class for GPT-NeoX leaves the space before a word in its offsets, whatever the file says; the general
    class obeys the file, as refimpl does.
    """
    found = {}
    for task in HEADS:
        folder = save_pipeline_model(tmp_path_factory.mktemp("pipelines") / task, task)
        path = folder / "tokenizer_config.json"
        settings = json.loads(path.read_text(encoding="utf-8"))
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
        path.write_text(json.dumps(settings), encoding="utf-8")
        found[task] = folder
    return found


def pair(task: str, folder: Path, **options: Any) -> tuple[Any, Any]:
    """The pipeline of refimpl, and that of transformers."""
    ours = refimpl.pipeline(task, folder, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = transformers.pipeline(task, str(folder), device=-1, **options)
    return ours, theirs


def ask(pipeline: Any, *inputs: Any, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of transformers: heuristics, sequential use, deprecations
        return pipeline(*copy.deepcopy(inputs), **copy.deepcopy(options))  # transformers writes into them


def assert_same(ours: Any, theirs: Any) -> None:
    """The same lists and dicts with the same values; scores to 1e-5."""
    if isinstance(theirs, list | tuple):
        assert isinstance(ours, list)
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_same(one, other)
    elif isinstance(theirs, dict):
        assert list(ours) == list(theirs)
        for name in theirs:
            assert_same(ours[name], theirs[name])
    elif isinstance(theirs, float | np.floating):
        assert type(ours) is float
        assert ours == pytest.approx(float(theirs), abs=SCORE)
    else:
        assert ours == theirs


# --- features ------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"tokenize_kwargs": {"max_length": 4}, "truncation": True}])
def test_features(folders: dict[str, Path], options: dict[str, Any]) -> None:
    ours, theirs = pair("feature-extraction", folders["feature-extraction"])
    for inputs in (TEXTS[0], TEXTS, TEXTS[:1]):
        assert_same(ask(ours, inputs, **options), ask(theirs, inputs, **options))


def test_features_as_an_array(folders: dict[str, Path]) -> None:
    ours, theirs = pair("feature-extraction", folders["feature-extraction"])
    found, wanted = (ask(pipeline, TEXTS[0], return_tensors=True) for pipeline in (ours, theirs))
    assert found.shape == tuple(wanted.shape)
    np.testing.assert_allclose(found, wanted.detach().numpy(), atol=SCORE)


# --- labels of texts -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [task for task in HEADS if task.startswith("text-classification")])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"top_k": None},
        {"top_k": 1},
        {"top_k": 2},
        {"function_to_apply": "sigmoid"},
        {"function_to_apply": "softmax", "top_k": None},
        {"function_to_apply": "none"},
        {"truncation": True, "max_length": 3},
        {"batch_size": 2, "top_k": 2},
        {"batch_size": 3},
    ],
)
def test_labels_of_texts(folders: dict[str, Path], kind: str, options: dict[str, Any]) -> None:
    ours, theirs = pair("text-classification", folders[kind])
    pairs = [{"text": TEXTS[0], "text_pair": TEXTS[1]}, {"text": TEXTS[2]}]
    for inputs in (TEXTS[0], TEXTS, TEXTS[:1], pairs[0], pairs):
        assert_same(ask(ours, inputs, **options), ask(theirs, inputs, **options))


def test_labels_with_options_of_the_pipeline(folders: dict[str, Path]) -> None:
    ours, theirs = pair("sentiment-analysis", folders["text-classification"], top_k=2)
    for inputs in (TEXTS[0], TEXTS):
        assert_same(ask(ours, inputs), ask(theirs, inputs))
        assert_same(ask(ours, inputs, top_k=None), ask(theirs, inputs, top_k=None))
    assert_same(list(ours(iter(TEXTS))), list(theirs(text for text in TEXTS)))


# --- entities ------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", AGGREGATION)
@pytest.mark.parametrize("options", [{}, {"ignore_labels": []}, {"ignore_labels": ["PER", "B-LOC"]}])
def test_entities(folders: dict[str, Path], strategy: str, options: dict[str, Any]) -> None:
    ours, theirs = pair("ner", folders["token-classification"], aggregation_strategy=strategy)
    for inputs in (TEXTS[0], TEXTS, TEXTS[:1]):
        for size in (1, 3):
            found = ask(ours, inputs, batch_size=size, **options)
            assert_same(found, ask(theirs, inputs, batch_size=size, **options))


@pytest.mark.parametrize("strategy", AGGREGATION)
@pytest.mark.parametrize("delimiter", [None, "", "--"])
def test_entities_of_words(folders: dict[str, Path], strategy: str, delimiter: str | None) -> None:
    ours, theirs = pair("token-classification", folders["token-classification"])
    options = {"aggregation_strategy": strategy, "is_split_into_words": True, "delimiter": delimiter}
    words = [text.split() for text in TEXTS if text.split()]
    for inputs in (words[0], words, words[:1]):
        assert_same(ask(ours, inputs, **options), ask(theirs, inputs, **options))


@pytest.mark.parametrize("strategy", AGGREGATION[1:])
@pytest.mark.parametrize("stride", [0, 1, 3])
@pytest.mark.parametrize("length", [4, 7])
def test_entities_of_pieces(folders: dict[str, Path], strategy: str, stride: int, length: int) -> None:
    ours, theirs = pair("token-classification", folders["token-classification"])
    ours.tokenizer.model_max_length = theirs.tokenizer.model_max_length = length
    options = {"aggregation_strategy": strategy, "stride": stride, "ignore_labels": []}
    for size in (1, 2):
        assert_same(ask(ours, TEXTS, batch_size=size, **options), ask(theirs, TEXTS, **options))
    cut = {"aggregation_strategy": strategy}
    assert_same(ask(ours, TEXTS, **cut), ask(theirs, TEXTS, **cut))


def test_offsets_with_the_space_before_a_word(folders: dict[str, Path], tmp_path: Path) -> None:
    """transformers' class for GPT-NeoX never trims offsets; `trim_offsets=False` gives the same here."""
    folder = tmp_path / "model"
    shutil.copytree(folders["token-classification"], folder)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**settings, "tokenizer_class": "GPTNeoXTokenizer"}), encoding="utf-8")
    ours, theirs = pair("ner", folder)
    ours.tokenizer = refimpl.AutoTokenizer.from_pretrained(folder, trim_offsets=False)
    assert_same(ask(ours, TEXTS), ask(theirs, TEXTS))


# --- answers -------------------------------------------------------------------------------------


@pytest.fixture
def answering(folders: dict[str, Path]) -> tuple[Any, Any]:
    if "question-answering" not in transformers.pipelines.SUPPORTED_TASKS:
        pytest.skip(f"transformers {transformers.__version__} has no pipeline for question answering")
    return pair("question-answering", folders["question-answering"])


def is_real(answer: Any) -> bool:
    """Whether it is an answer, or "no answer": not a span that ends before it begins, of probability 0."""
    return isinstance(answer, list) or bool(answer["score"]) or answer["end"] == 0


def real_answers(answers: Any) -> Any:
    """Without the spans that fill up the answers to a short context."""
    if isinstance(answers, dict):
        return answers
    kept = [real_answers(answer) for answer in answers if is_real(answer)]
    return kept[0] if len(kept) == 1 and len(answers) > 1 else kept


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"top_k": 3},
        {"top_k": 30},
        {"align_to_words": False, "top_k": 4},
        {"max_answer_len": 1},
        {"max_answer_len": 3, "top_k": 2},
        {"max_seq_len": 20, "doc_stride": 4},
        {"max_seq_len": 20, "doc_stride": 0, "top_k": 5},
        {"handle_impossible_answer": True},
        {"handle_impossible_answer": True, "top_k": 4, "max_seq_len": 24, "doc_stride": 5},
        {"max_question_len": 40},
        {"batch_size": 3, "max_seq_len": 24, "doc_stride": 2},
    ],
)
def test_answers(answering: tuple[Any, Any], options: dict[str, Any]) -> None:
    ours, theirs = answering
    for inputs in (QUESTIONS[0], QUESTIONS, QUESTIONS[:1]):
        assert_same(ask(ours, inputs, **options), real_answers(ask(theirs, inputs, **options)))
    questions, contexts = ([asked[name] for asked in QUESTIONS] for name in ("question", "context"))
    for asked in (
        {"question": questions[0], "context": contexts[0]},
        {"question": questions, "context": contexts},
        {"question": questions, "context": contexts[0]},
        {"question": questions[:1], "context": contexts[0]},
    ):
        assert_same(ask(ours, **asked, **options), real_answers(ask(theirs, **asked, **options)))
