"""`pipeline("question-answering")`: answers, pieces of long contexts, ways to ask, and what is refused.

The numbers were recorded from transformers 4.57.3, the last version that has this pipeline.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from refimpl.errors import InputError
from refimpl.pipelines import pipeline
from refimpl.pipelines.base import Pipeline
from refimpl.pipelines.question_answering import best_spans
from tests.refimpl.pipeline_models import QUESTIONS, save_pipeline_model


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    folder = save_pipeline_model(tmp_path_factory.mktemp("pipelines") / "model", "question-answering")
    return pipeline("question-answering", folder)


def assert_answers(found: Any, wanted: Any) -> None:
    if isinstance(wanted, list):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            assert_answers(one, other)
        return
    score, *rest = wanted
    assert list(found) == ["score", "start", "end", "answer"]
    assert [found["start"], found["end"], found["answer"]] == rest
    assert found["score"] == pytest.approx(score, abs=1e-5)
    assert type(found["score"]) is float


BAY = (0.014863, 29, 55, "Tokyo, the city of the bay")
BEST = [
    BAY,
    (0.785485, 0, 3, "Bob"),
    (0.02451, 17, 30, "どこで生れたか見当がつかぬ"),
    (0.059804, 15, 22, "lines  "),
]


def test_answers(oracle: Pipeline) -> None:
    assert_answers(oracle(QUESTIONS), BEST)
    assert_answers(oracle(QUESTIONS, batch_size=3), BEST)
    assert_answers(oracle(QUESTIONS[0]), BAY)


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (
            {"top_k": 3},
            [
                BAY,
                (0.007987, 40, 55, "city of the bay"),
                (0.006447, 40, 72, "city of the bay. The Bay is old,"),
            ],
        ),
        ({"align_to_words": False}, (0.010169, 32, 53, "yo, the city of the b")),
        ({"max_answer_len": 1}, (0.002355, 29, 34, "Tokyo")),
        ({"max_seq_len": 20, "doc_stride": 4}, (0.336297, 29, 34, "Tokyo")),
        ({"max_seq_len": 20, "doc_stride": 4, "batch_size": 4}, (0.336297, 29, 34, "Tokyo")),
        ({"handle_impossible_answer": True, "top_k": 2}, [BAY, (0.007987, 40, 55, "city of the bay")]),
    ],
)
def test_options(oracle: Pipeline, options: dict[str, Any], wanted: Any) -> None:
    assert_answers(oracle(QUESTIONS[0], **options), wanted)


def test_ways_to_ask(oracle: Pipeline) -> None:
    questions, contexts = ([asked[name] for asked in QUESTIONS] for name in ("question", "context"))
    assert_answers(oracle(question=questions[0], context=contexts[0]), BAY)
    assert_answers(oracle(questions[0], contexts[0]), BAY)
    assert_answers(oracle(QUESTIONS[:1]), BAY)  # a single question is not in a list, as in transformers
    assert_answers(oracle(question=questions[:1], context=contexts[0]), BAY)
    assert_answers(oracle(question=questions, context=contexts), BEST)
    assert_answers(oracle(tuple(QUESTIONS)), BEST)
    assert_answers(oracle(*QUESTIONS), BEST)
    assert_answers(list(oracle(iter(QUESTIONS), batch_size=2)), BEST)
    first, again = oracle(question=[questions[0]] * 2, context=contexts[0])
    assert first == again
    assert oracle([]) == []


def test_no_answer_is_an_empty_text(oracle: Pipeline) -> None:
    every = oracle(question="Who?", context="Bob.", handle_impossible_answer=True, top_k=50)
    (empty,) = [answer for answer in every if not answer["answer"]]
    assert (empty["start"], empty["end"]) == (0, 0)
    assert "" not in [answer["answer"] for answer in oracle(question="Who?", context="Bob.", top_k=50)]


def test_there_are_no_more_answers_than_spans(oracle: Pipeline) -> None:
    """transformers fills up with spans that end before they begin, of probability 0."""
    found = oracle(question="Who?", context="Bob.", top_k=50)
    assert [answer["answer"] for answer in found] == ["Bob", "Bob.", "."]
    assert all(answer["score"] > 0 for answer in found)


def test_equal_texts_are_one_answer(oracle: Pipeline) -> None:
    found = oracle(question="q", context="bay Bay", top_k=50)
    texts = [answer["answer"].lower() for answer in found]
    assert len(texts) == len(set(texts))


def test_a_question_is_cut_on_request(oracle: Pipeline) -> None:
    asked = {"question": "Where do I live in the city?", "context": QUESTIONS[0]["context"]}
    ids = oracle.tokenizer(asked["question"]).input_ids[:4]
    short = {**asked, "question": oracle.tokenizer.decode(ids)}
    assert oracle(asked, max_question_len=4) == oracle(short)
    assert oracle(asked) != oracle(short)
    assert oracle(asked, max_question_len=400) == oracle(asked)


def test_the_question_is_no_answer_where_the_context_stands_first(oracle: Pipeline) -> None:
    oracle.tokenizer.padding_side = "left"
    try:
        found = oracle(question="Bob and Alice", context="the city", top_k=40, align_to_words=False)
        assert len(found) > 2
        for answer in found:
            assert answer["answer"] == "the city"[answer["start"] : answer["end"]] != ""
            assert answer["start"] > 0  # the first token stands for "no answer", as in transformers
    finally:
        oracle.tokenizer.padding_side = "right"


def test_best_spans() -> None:
    start, end = np.array([0.1, 0.6, 0.3, 0.0]), np.array([0.5, 0.1, 0.2, 0.2])
    every = np.ones(4, dtype=bool)
    found = best_spans(start, end, every, 2, 15)
    assert [(span.start, span.end) for span in found] == [(1, 2), (1, 3)]
    assert [(span.start, span.end) for span in best_spans(start, end, every, 1, 1)] == [(1, 1)]
    masked = np.array([True, False, True, True])
    assert [(span.start, span.end) for span in best_spans(start, end, masked, 1, 15)] == [(2, 2)]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"question": "x", "context": ""}, "an empty text"),
        ({"question": "", "context": "x"}, "an empty text"),
        ({"question": "x", "context": None}, "not a text"),
        ({"question": "x", "context": 5}, "not a text"),
        ({"question": "x"}, "not a question"),
        ({"question": "x", "context": "y", "id": 1}, "not a question"),
        ("x", "not a question"),
        (None, "not a question"),
        ([{"question": "x", "context": "y"}, 5], r"inputs\[1\]"),
    ],
)
def test_what_is_no_question(oracle: Pipeline, asked: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        oracle(asked)


def test_arguments_that_do_not_fit_together(oracle: Pipeline) -> None:
    with pytest.raises(InputError, match="context: there is nothing to answer"):
        oracle(question="x")
    with pytest.raises(InputError, match="question: there is nothing to answer"):
        oracle(context="x")
    with pytest.raises(InputError, match="2 questions and 3 contexts"):
        oracle(question=["x", "y"], context=["a", "b", "c"])
    with pytest.raises(InputError, match="not both ways"):
        oracle(QUESTIONS[0], question="x", context="y")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 0}, "top_k"),
        ({"topk": 2}, "Did you mean top_k"),
        ({"max_answer_len": 0}, "max_answer_len"),
        ({"max_seq_len": 2.5}, "max_seq_len"),
        ({"max_question_len": 0}, "max_question_len"),
        ({"doc_stride": -1}, "doc_stride"),
        ({"doc_stride": 30, "max_seq_len": 20}, "at most max_seq_len, 20"),
        ({"doc_stride": 19, "max_seq_len": 20}, "stride"),
        ({"max_seq_len": 5}, "only_second"),
        ({"align_to_words": 1}, "align_to_words"),
        ({"handle_impossible_answer": "no"}, "handle_impossible_answer"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_options_that_mean_nothing(oracle: Pipeline, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        oracle(QUESTIONS[0], **options)
