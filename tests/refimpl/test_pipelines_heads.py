"""The pipelines that read features, labels and entities: shapes of results, options, and what is refused.

The numbers were recorded from transformers 5.23.0 with the same model folders;
`tests/conformance/test_pipelines_live.py` compares many more.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import refimpl
from refimpl.errors import InputError
from refimpl.pipelines import pipeline
from refimpl.pipelines.base import Pipeline
from refimpl.pipelines.token_classification import _Text
from tests.refimpl.pipeline_models import HEADS, TEXTS, save_pipeline_model
from tests.tiny import tiny_neox


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: save_pipeline_model(tmp_path_factory.mktemp("pipelines") / "model", name) for name in HEADS}


@pytest.fixture
def features(folders: dict[str, Path]) -> Pipeline:
    return pipeline("feature-extraction", folders["feature-extraction"])


@pytest.fixture
def classifier(folders: dict[str, Path]) -> Pipeline:
    return pipeline("text-classification", folders["text-classification"])


@pytest.fixture
def tagger(folders: dict[str, Path]) -> Pipeline:
    return pipeline("token-classification", folders["token-classification"])


def scores(results: list[dict[str, Any]]) -> list[float]:
    return [result["score"] for result in results]


# --- features ------------------------------------------------------------------------------------


def test_features_of_a_text(features: Pipeline) -> None:
    found = features(TEXTS[0])
    assert np.shape(found) == (1, 30, 24)
    assert type(found[0][0][0]) is float
    np.testing.assert_allclose(found[0][0][:4], [1.07724, -1.52744, 1.23216, 0.7074], atol=2e-5)
    np.testing.assert_allclose(found[0][-1][:4], [-0.45727, 1.65601, 0.98119, 1.43377], atol=2e-5)
    assert np.abs(found).sum() == pytest.approx(559.125, abs=2e-3)


def test_features_have_a_row_for_each_token_in_any_batch(features: Pipeline) -> None:
    alone = [features(text) for text in TEXTS]
    for size in (2, 5):
        for one, other in zip(features(TEXTS, batch_size=size), alone, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)
    lengths = [len(features.tokenizer(text).input_ids) for text in TEXTS]
    assert [len(states[0]) for states in alone] == lengths
    assert len(set(lengths)) > 1


def test_features_as_an_array_and_cut(features: Pipeline) -> None:
    found = features(TEXTS[0], return_tensors=True)
    assert isinstance(found, np.ndarray)
    assert found.shape == (1, 30, 24)
    cut = features(TEXTS[0], truncation=True, tokenize_kwargs={"max_length": 4, "padding": True})
    np.testing.assert_allclose(cut, found[:, :4], atol=1e-5)


def test_features_are_those_of_the_model_below_any_head(folders: dict[str, Path], features: Pipeline) -> None:
    folder = folders["text-classification"]
    model = refimpl.GPTNeoXForSequenceClassification.from_pretrained(folder)
    of_head = pipeline("feature-extraction", model, tokenizer=folder)
    assert np.shape(of_head(TEXTS[1])) == np.shape(features(TEXTS[1]))


def test_features_of_the_embedded_model() -> None:
    reader = pipeline("feature-extraction")
    ids = reader.tokenizer("吾輩は猫である。", return_tensors="np").input_ids
    wanted = refimpl.AutoModel.from_pretrained(refimpl.embedded_model_path())(ids).last_hidden_state
    np.testing.assert_allclose(reader("吾輩は猫である。", return_tensors=True), wanted, atol=1e-5)


# --- labels of texts -----------------------------------------------------------------------------

#: name in HEADS -> for two texts the labels from the best on, and their scores
LABELS = {
    "text-classification": [([0, 1, 2], [0.88597, 0.068288, 0.045742]), ([1, 0, 2], [0.75508, 0.231816, 0.013105])],
    "text-classification of several": [
        ([0, 3, 1, 2], [0.89188, 0.491535, 0.388682, 0.298683]),
        ([1, 0, 3, 2], [0.892483, 0.718185, 0.319142, 0.125923]),
    ],
    "text-classification of one": [([0], [0.89188]), ([0], [0.718185])],
    "text-classification of numbers": [([0, 1], [2.110092, -0.452856]), ([1, 0], [2.116355, 0.935475])],
}  # fmt: skip


@pytest.mark.parametrize("name", LABELS)
@pytest.mark.parametrize("batch_size", [1, 2])
def test_labels(folders: dict[str, Path], name: str, batch_size: int) -> None:
    judge = pipeline("sentiment-analysis", folders[name], batch_size=batch_size)
    for found, (labels, wanted) in zip(judge(TEXTS[:2], top_k=None), LABELS[name], strict=True):
        assert [result["label"] for result in found] == [f"LABEL_{label}" for label in labels]
        np.testing.assert_allclose(scores(found), wanted, atol=1e-5)
        assert all(type(score) is float for score in scores(found))


def test_the_best_label_and_how_many(classifier: Pipeline) -> None:
    best, second = classifier(TEXTS[0], top_k=2)
    assert classifier(TEXTS[0]) == [best]
    assert classifier(TEXTS[:1]) == [best]
    assert classifier(TEXTS[0], top_k=1) == [best]
    assert classifier(TEXTS[:1], top_k=1) == [[best]]
    assert classifier(TEXTS[:1], top_k=2) == [[best, second]]
    assert list(classifier(iter(TEXTS[:1]))) == [best]
    fixed = pipeline("text-classification", classifier.model, tokenizer=classifier.tokenizer, top_k=2)
    assert fixed(TEXTS[0]) == [[best, second]]  # as in transformers, whose option of the call is not said


def test_functions(classifier: Pipeline) -> None:
    def found(function: str | None) -> np.ndarray:
        return np.array(scores(classifier(TEXTS[0], top_k=None, function_to_apply=function)))

    raw = found("none")
    np.testing.assert_allclose(found("SOFTMAX"), np.exp(raw) / np.exp(raw).sum(), rtol=1e-5)
    np.testing.assert_allclose(found("sigmoid"), 1 / (1 + np.exp(-raw)), rtol=1e-5)
    np.testing.assert_array_equal(found(None), found("softmax"))
    np.testing.assert_array_equal(found("default"), found("softmax"))


def test_a_sigmoid_of_large_numbers(classifier: Pipeline) -> None:
    options = classifier.accept({"function_to_apply": "sigmoid", "top_k": None})
    found = scores(classifier._result(np.array([-1000.0, 1000.0, 0.0], dtype=np.float32), options))  # type: ignore[attr-defined]
    assert found == [1.0, 0.5, 0.0]


def test_pairs_of_texts(classifier: Pipeline) -> None:
    pair = {"text": TEXTS[0], "text_pair": TEXTS[1]}
    (joined,) = classifier([pair])
    ids = classifier.tokenizer(TEXTS[0], TEXTS[1]).input_ids
    logits = classifier.model(np.array([ids])).logits[0]
    assert joined["score"] == pytest.approx(np.exp(logits).max() / np.exp(logits).sum(), abs=1e-6)
    assert classifier(pair) == joined
    assert classifier({"text": TEXTS[0], "text_pair": None}) == classifier(TEXTS[0])[0]


def test_truncation_and_padding_of_the_tokenizer(classifier: Pipeline) -> None:
    ids = classifier.tokenizer(TEXTS[0]).input_ids[:3]
    short = classifier.tokenizer.decode(ids)
    cut = classifier(TEXTS[0], truncation=True, max_length=3, padding="max_length")
    assert cut[0]["score"] == pytest.approx(classifier(short)[0]["score"], abs=1e-6)
    assert cut != classifier(TEXTS[0])


def test_several_texts_need_a_padding_id(classifier: Pipeline) -> None:
    classifier.model.config.pad_token_id = None
    alone = classifier(TEXTS[:2])
    assert len(alone) == 2
    with pytest.raises(InputError, match="pad_token_id"):
        classifier(TEXTS[:2], batch_size=2)


# --- entities ------------------------------------------------------------------------------------

ENTITIES = {
    "simple": [
        ("PER", 0.575378, "ell", 1, 4), ("PER", 0.336805, " world", 6, 11), ("PER", 0.477889, ",", 11, 12),
        ("PER", 0.629834, " n", 16, 17), ("PER", 0.624097, "s ", 22, 24), ("PER", 0.32796, " and", 28, 31),
        ("LOC", 0.367749, " ", 32, 32), ("PER", 0.320901, " l", 34, 35), ("LOC", 0.397582, "i", 35, 36),
        ("LOC", 0.573231, "e", 37, 38), ("PER", 0.562223, "  ", 43, 43),
    ],
    "first": [
        ("PER", 0.336805, " world,", 6, 12), ("PER", 0.629834, " name", 16, 20), ("PER", 0.502449, " ", 24, 24),
        ("PER", 0.32796, " and", 28, 31), ("LOC", 0.367749, " ", 32, 32), ("PER", 0.320901, " live", 34, 38),
        ("PER", 0.562223, "  ", 43, 43),
    ],
    "average": [
        ("PER", 0.407347, " world,", 6, 12), ("PER", 0.366621, " name", 16, 20), ("PER", 0.461148, " is ", 21, 24),
        ("PER", 0.32796, " and", 28, 31), ("LOC", 0.367749, " ", 32, 32), ("LOC", 0.348018, " live", 34, 38),
        ("PER", 0.562223, "  ", 43, 43),
    ],
    "max": [
        ("PER", 0.477889, " world,", 6, 12), ("PER", 0.629834, " name", 16, 20), ("PER", 0.624097, " is ", 21, 24),
        ("PER", 0.32796, " and", 28, 31), ("LOC", 0.367749, " ", 32, 32), ("LOC", 0.573231, " live", 34, 38),
        ("PER", 0.562223, "  ", 43, 43),
    ],
}  # fmt: skip


def assert_entities(found: list[dict[str, Any]], wanted: list[tuple[str, float, str, int, int]]) -> None:
    names = ("entity_group", "score", "word", "start", "end")
    assert [list(entity) for entity in found] == [list(names)] * len(wanted)
    for entity, (group, score, *rest) in zip(found, wanted, strict=True):
        assert (entity["entity_group"], entity["word"], entity["start"], entity["end"]) == (group, *rest)
        assert entity["score"] == pytest.approx(score, abs=1e-5)
        assert type(entity["score"]) is float


@pytest.mark.parametrize("strategy", ENTITIES)
def test_entities(tagger: Pipeline, strategy: str) -> None:
    assert_entities(tagger(TEXTS[0], aggregation_strategy=strategy), ENTITIES[strategy])
    both = tagger([TEXTS[1], TEXTS[0]], aggregation_strategy=strategy.upper(), batch_size=2)
    assert_entities(both[1], ENTITIES[strategy])


def test_tokens(tagger: Pipeline) -> None:
    found = tagger(TEXTS[0])
    first, last = found[0], found[-1]
    assert first.pop("score") == pytest.approx(0.575378, abs=1e-5)
    assert first == {"entity": "I-PER", "index": 1, "word": "ell", "start": 1, "end": 4}
    assert last.pop("score") == pytest.approx(0.562223, abs=1e-5)
    assert last == {"entity": "B-PER", "index": 23, "word": "  ", "start": 43, "end": 43}
    assert len(found) == 12


def test_the_unknown_token_is_a_word_of_its_own_and_shown_as_its_text(tagger: Pipeline) -> None:
    text = _Text("an<|endoftext|>unknown", None, None)
    assert tagger.tokenizer.unk_token == "<|endoftext|>"
    (piece,) = tagger._pieces(text, tagger.accept({}), 0)  # type: ignore[attr-defined]
    tokens = list(tagger._tokens(text, piece, np.eye(30, 5)))  # type: ignore[attr-defined]
    (unknown,) = [token for token in tokens if token.token == "<|endoftext|>"]
    assert not unknown.goes_on
    assert tokens[tokens.index(unknown) + 1].goes_on


def test_ignored_labels(tagger: Pipeline) -> None:
    every = tagger(TEXTS[0], ignore_labels=[])
    assert len(every) == 30
    assert {entity["entity"] for entity in every} == {"O", "B-PER", "I-PER", "B-LOC", "I-LOC"}
    kept = tagger(TEXTS[0], aggregation_strategy="simple", ignore_labels=["PER"])
    assert {entity["entity_group"] for entity in kept} == {"O", "LOC"}


def test_a_long_text_in_pieces(tagger: Pipeline) -> None:
    tagger.tokenizer.model_max_length = 7
    wanted = [
        ("PER", 0.575378, "ell", 1, 4), ("PER", 0.336805, " world", 6, 11), ("PER", 0.477889, ",", 11, 12),
        ("LOC", 0.498922, " n", 16, 17), ("PER", 0.559833, "s B", 22, 25), ("PER", 0.466223, "b", 26, 27),
        ("PER", 0.397032, " and", 28, 31), ("PER", 0.377235, " ", 32, 32), ("LOC", 0.343573, " l", 34, 35),
        ("LOC", 0.368657, "i", 35, 36), ("PER", 0.28825, "  ", 43, 43), ("PER", 0.576204, "o", 44, 45),
    ]  # fmt: skip
    assert_entities(tagger(TEXTS[0], aggregation_strategy="simple", stride=3), wanted)
    cut = tagger(TEXTS[0], aggregation_strategy="simple")
    assert_entities(cut, wanted[:3])
    with pytest.raises(InputError, match="model_max_length, 7"):
        tagger(TEXTS[0], aggregation_strategy="simple", stride=7)


def test_words(tagger: Pipeline) -> None:
    (found,) = tagger(["Hello", "Bob"], is_split_into_words=True)
    assert [(entity["word"], entity["start"], entity["end"]) for entity in found] == [
        ("ell", 1, 4),
        ("b", 8, 9),
    ]
    assert tagger([["Hello", "Bob"]], is_split_into_words=True) == [found]
    (joined,) = tagger(["Hello", "Bob"], is_split_into_words=True, delimiter="---")
    assert [entity["start"] for entity in joined] == [1, 10]
    with pytest.raises(InputError, match=r"inputs\[1\]: not a list of words"):
        tagger([["Hello"], "Bob"], is_split_into_words=True)


# --- lists, bars, and what is refused ------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_long_list_shows_a_bar_on_a_terminal(classifier: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refimpl.pipelines.base._SECONDS_WITHOUT_PROGRESS", 0)
    shown = {}
    for kind in (Terminal, io.StringIO):
        monkeypatch.setattr("sys.stderr", kind())
        assert len(classifier(TEXTS)) == len(TEXTS)
        shown[kind] = __import__("sys").stderr.getvalue()
    assert "text-classification" in shown[Terminal]
    assert f"/{len(TEXTS)}" in shown[Terminal]
    assert shown[io.StringIO] == ""


def test_an_iterator_is_read_as_asked(tagger: Pipeline) -> None:
    read = []

    def texts() -> Iterator[str]:
        for text in TEXTS:
            read.append(text)
            yield text

    results = tagger(texts(), batch_size=2)
    assert next(results) == tagger(TEXTS[0])
    assert read == TEXTS[:2]
    assert len(list(results)) == len(TEXTS) - 1


@pytest.mark.parametrize("name", ["feature-extraction", "text-classification", "token-classification"])
@pytest.mark.parametrize("inputs", ["", ["the", ""]])
def test_a_text_without_tokens(folders: dict[str, Path], name: str, inputs: Any) -> None:
    with pytest.raises(InputError, match="the text has no tokens"):
        pipeline(name, folders[name])(inputs)


@pytest.mark.parametrize("inputs", [None, 5, b"x", [None], ["x", 5], [["x", "y"]], {"txt": "x"}, {"text": 5}])
def test_what_is_no_text(folders: dict[str, Path], inputs: Any) -> None:
    for name in ("feature-extraction", "text-classification", "token-classification"):
        with pytest.raises(InputError, match=r"not a (text|pair)"):
            pipeline(name, folders[name])(inputs)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("feature-extraction", {"return_tensors": "pt"}, "return_tensors"),
        ("feature-extraction", {"tokenize_kwargs": {"padding": "max_length"}}, "padding"),
        ("feature-extraction", {"tokenize_kwargs": {"return_offsets_mapping": True}}, "return_offsets_mapping"),
        ("feature-extraction", {"tokenize_kwargs": 5}, "tokenize_kwargs"),
        ("feature-extraction", {"truncation": True, "tokenize_kwargs": {"truncation": True}}, "twice"),
        ("text-classification", {"top_k": 0}, "top_k"),
        ("text-classification", {"top_k": True}, "top_k"),
        ("text-classification", {"topk": 3}, "Did you mean top_k"),
        ("text-classification", {"return_all_scores": True}, "return_all_scores"),
        ("text-classification", {"function_to_apply": "softmx"}, "Did you mean softmax"),
        ("text-classification", {"function_to_apply": 5}, "function_to_apply"),
        ("text-classification", {"padding": "right"}, "padding"),
        ("text-classification", {"batch_size": 0}, "batch_size"),
        ("token-classification", {"aggregation_strategy": "last"}, "none, simple, first, average, max"),
        ("token-classification", {"ignore_labels": "O"}, "ignore_labels"),
        ("token-classification", {"ignore_labels": [5]}, "ignore_labels"),
        ("token-classification", {"stride": 2}, "overlap"),
        ("token-classification", {"stride": -1, "aggregation_strategy": "simple"}, "stride"),
        ("token-classification", {"is_split_into_words": 1}, "is_split_into_words"),
        ("token-classification", {"delimiter": 5}, "delimiter"),
        ("token-classification", {"agregation_strategy": "first"}, "Did you mean aggregation_strategy"),
    ],
)  # fmt: skip
def test_options_that_mean_nothing(
    folders: dict[str, Path], name: str, options: dict[str, Any], message: str
) -> None:
    """They are refused in a call, and when the pipeline is made, before a long list is begun."""
    made = pipeline(name, folders[name])
    with pytest.raises(InputError, match=message):
        made(TEXTS[0], **options)
    with pytest.raises(InputError, match=message):
        pipeline(name, made.model, tokenizer=made.tokenizer, **options)


@pytest.mark.parametrize("task", ["text-classification", "token-classification", "question-answering"])
def test_a_model_with_another_head(task: str, folders: dict[str, Path], embedded_model: Path) -> None:
    with pytest.raises(InputError, match=f"has not the head for {task}; found GPTNeoXForCausalLM"):
        pipeline(task, tiny_neox(), tokenizer=folders["feature-extraction"])
    with pytest.raises(InputError, match=f"no head for {task}"):
        pipeline(task)
    with pytest.raises(refimpl.errors.ConfigError, match="for this type of model"):
        pipeline(task, embedded_model)
