"""The three task heads: what they return, their losses, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest

from refimpl import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    GPTNeoXForQuestionAnswering,
    GPTNeoXForSequenceClassification,
    GPTNeoXForTokenClassification,
    to_numpy,
)
from refimpl.errors import InputError
from tests.tiny import save_tiny, tiny_ids, tiny_neox


def log_softmax(x):
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def hidden(model, ids, **inputs):
    return to_numpy(model.gpt_neox(ids, **inputs).last_hidden_state)


# --- texts ---------------------------------------------------------------------------------------


def judge(backend, **changes):
    return tiny_neox(GPTNeoXForSequenceClassification, backend, "float64", **{"pad_token_id": 0, **changes})


def test_a_text_is_judged_by_its_last_token_that_is_not_padding(backend):
    model, ids = judge(backend, num_labels=3), tiny_ids(4, 6)
    ids[1, 4:] = 0  # padding on the right
    ids[2, :3] = 0  # on the left
    ids[3, [1, 5]] = 0  # inside, and at the end
    logits = to_numpy(model(ids).logits)
    states, places = hidden(model, ids), [5, 3, 5, 4]
    expected = (
        np.stack([states[row, place] for row, place in enumerate(places)]) @ to_numpy(model.score.weight).T
    )
    assert logits.shape == (4, 3)
    np.testing.assert_allclose(logits, expected, atol=1e-12)
    # What the mask says does not matter for the choice of the token.
    masked = to_numpy(model(ids, attention_mask=np.ones_like(ids)).logits)
    np.testing.assert_allclose(masked, logits, atol=1e-12)


def test_a_text_of_padding_alone_is_judged_by_its_first_place(backend):
    model = judge(backend)
    ids = np.zeros((1, 4), int)
    np.testing.assert_allclose(
        to_numpy(model(ids).logits), hidden(model, ids)[:, 0] @ to_numpy(model.score.weight).T, atol=1e-12
    )


def test_without_a_pad_token_only_one_text_can_be_judged(backend):
    model, ids = judge(backend, pad_token_id=None), tiny_ids(1, 5)
    expected = hidden(model, ids)[:, -1] @ to_numpy(model.score.weight).T
    np.testing.assert_allclose(to_numpy(model(ids).logits), expected, atol=1e-12)
    with pytest.raises(InputError, match="pad_token_id"):
        model(tiny_ids(2, 5))


def test_embeddings_show_no_padding(backend):
    model = judge(backend)
    embeds = np.random.default_rng(0).normal(size=(2, 5, 24))
    with pytest.warns(UserWarning, match="inputs_embeds"):
        logits = to_numpy(model(inputs_embeds=embeds).logits)
    expected = hidden(model, None, inputs_embeds=embeds)[:, -1] @ to_numpy(model.score.weight).T
    np.testing.assert_allclose(logits, expected, atol=1e-12)


def test_one_label_for_each_text(backend):
    model, ids = judge(backend, num_labels=3), tiny_ids(2, 6)
    out = model(ids, labels=[2, 0])
    expected = -log_softmax(to_numpy(out.logits))[[0, 1], [2, 0]].mean()
    assert float(out.loss) == pytest.approx(expected, abs=1e-12)
    assert float(model(ids, labels=[2, -100]).loss) == pytest.approx(
        -log_softmax(to_numpy(out.logits))[0, 2], abs=1e-12
    )
    assert list(out) == ["loss", "logits", "past_key_values"]
    assert model(ids, labels=[2, 0], return_dict=False)[1].shape == (2, 3)


@pytest.mark.parametrize("problem_type", [None, "multi_label_classification"])
def test_yes_or_no_for_each_label(backend, problem_type):
    model, ids = judge(backend, num_labels=3, problem_type=problem_type), tiny_ids(2, 6)
    labels = np.array([[1.0, 0.0, 0.5], [0.0, 0.0, 1.0]])
    out = model(ids, labels=labels)
    yes = 1 / (1 + np.exp(-to_numpy(out.logits)))
    expected = -(labels * np.log(yes) + (1 - labels) * np.log(1 - yes)).mean()
    assert float(out.loss) == pytest.approx(expected, abs=1e-12)
    if problem_type:
        assert np.isfinite(float(model(ids, labels=labels.round().astype(int)).loss))


def test_numbers(backend):
    ids = tiny_ids(2, 6)
    one, three = judge(backend, num_labels=1), judge(backend, num_labels=3, problem_type="regression")
    for labels in ([1.5, -2.0], [[1.5], [-2.0]]):
        out = one(ids, labels=labels)
        expected = ((to_numpy(out.logits)[:, 0] - [1.5, -2.0]) ** 2).mean()
        assert float(out.loss) == pytest.approx(expected, abs=1e-12)
    labels = np.arange(6.0).reshape(2, 3)
    out = three(ids, labels=labels)
    assert float(out.loss) == pytest.approx(((to_numpy(out.logits) - labels) ** 2).mean(), abs=1e-12)


def test_the_kind_of_problem_is_not_remembered(backend):
    model, ids = judge(backend, num_labels=2), tiny_ids(2, 6)
    model(ids, labels=[0, 1])
    assert model.config.problem_type is None
    assert np.isfinite(float(model(ids, labels=[[0.0, 1.0], [1.0, 0.0]]).loss))


@pytest.mark.parametrize(
    ("labels", "changes"),
    [
        ([0, 3], {}),
        ([0, -1], {}),
        ([0], {}),
        ([[0.0, 1.0]], {}),
        ([[0.0, 1.0, 2.0], [0.0, 0.0, 0.0]], {}),
        (["a", "b"], {}),
        ([[0.0, 1.0], [1.0, 0.0]], {"num_labels": 1}),
        ([0.5, 1.5], {"num_labels": 3, "problem_type": "single_label_classification"}),
    ],
)
def test_labels_that_mean_nothing(backend, labels, changes):
    model = judge(backend, **{"num_labels": 3, **changes})
    with pytest.raises(InputError):
        model(tiny_ids(2, 6), labels=labels)


# --- tokens --------------------------------------------------------------------------------------


def test_a_class_for_each_token(backend):
    model, ids = tiny_neox(GPTNeoXForTokenClassification, backend, "float64", num_labels=4), tiny_ids(2, 5)
    labels = np.random.default_rng(1).integers(0, 4, (2, 5))
    labels[0, :2] = -100
    out = model(ids, labels=labels, output_attentions=True, output_hidden_states=True)
    expected = hidden(model, ids) @ to_numpy(model.classifier.weight).T + to_numpy(model.classifier.bias)
    np.testing.assert_allclose(to_numpy(out.logits), expected, atol=1e-12)
    kept = labels != -100
    loss = -np.take_along_axis(log_softmax(expected)[kept], labels[kept][:, None], 1).mean()
    assert float(out.loss) == pytest.approx(loss, abs=1e-12)
    assert list(out) == ["loss", "logits", "hidden_states", "attentions"]
    assert (len(out.hidden_states), len(out.attentions)) == (4, 3)
    assert np.isnan(float(model(ids, labels=np.full((2, 5), -100)).loss))
    for wrong in (np.full((2, 5), 4), np.full((2, 4), 0), np.zeros((2, 5))):
        with pytest.raises(InputError):
            model(ids, labels=wrong)


# --- answers -------------------------------------------------------------------------------------


def test_where_an_answer_begins_and_ends(backend):
    model, ids = tiny_neox(GPTNeoXForQuestionAnswering, backend, "float64"), tiny_ids(3, 6)
    out = model(ids)
    both = hidden(model, ids) @ to_numpy(model.qa_outputs.weight).T + to_numpy(model.qa_outputs.bias)
    np.testing.assert_allclose(to_numpy(out.start_logits), both[..., 0], atol=1e-12)
    np.testing.assert_allclose(to_numpy(out.end_logits), both[..., 1], atol=1e-12)
    assert list(out) == ["start_logits", "end_logits"]
    assert model(ids, start_positions=[0, 1, 2]).loss is None
    starts, ends = np.array([1, 0, 9]), np.array([[2], [3], [4]])
    loss = float(model(ids, start_positions=starts, end_positions=ends).loss)
    start_loss = -log_softmax(both[..., 0])[[0, 1], [1, 0]].mean()  # the third was cut off
    end_loss = -log_softmax(both[..., 1])[[0, 1, 2], [2, 3, 4]].mean()
    assert loss == pytest.approx((start_loss + end_loss) / 2, abs=1e-12)
    negative = model(ids, start_positions=[1, -5, 9], end_positions=ends)
    assert float(negative.loss) == pytest.approx(loss, abs=1e-12)
    for wrong in ([1, 2], [[1, 2, 3]], [0.5, 1.0, 2.0]):
        with pytest.raises(InputError, match="start_positions"):
            model(ids, start_positions=wrong, end_positions=ends)


# --- all of them ---------------------------------------------------------------------------------

HEADS = [
    (GPTNeoXForQuestionAnswering, AutoModelForQuestionAnswering),
    (GPTNeoXForSequenceClassification, AutoModelForSequenceClassification),
    (GPTNeoXForTokenClassification, AutoModelForTokenClassification),
]


@pytest.mark.parametrize(("head", "auto"), HEADS)
def test_a_folder_gives_the_model_back(backend, tmp_path, head, auto):
    model = tiny_neox(head, backend, num_labels=5, pad_token_id=0)
    save_tiny(tmp_path, model)
    again = auto.from_pretrained(tmp_path, backend=backend)
    assert type(again) is head
    assert again.config.num_labels == 5
    a, b = model(tiny_ids(), return_dict=False), again(tiny_ids(), return_dict=False)
    assert (to_numpy(a[0]) == to_numpy(b[0])).all()


@pytest.mark.parametrize(("head", "auto"), HEADS)
def test_what_the_model_refuses_the_head_refuses(backend, head, auto):
    model = tiny_neox(head, backend, pad_token_id=0)
    for inputs in (
        {},
        {"input_ids": [[40]]},
        {"input_ids": [[]]},
        {"input_ids": [[3]], "inputs_embeds": [[[0.0]]]},
    ):
        with pytest.raises(InputError):
            model(**inputs)
    with pytest.raises(TypeError, match="start_position"):
        model(tiny_ids(), start_position=[0, 0])


def test_a_failed_call_leaves_the_cache_as_it_was(backend):
    model = judge(backend)
    cache = model(tiny_ids(2, 4)).past_key_values
    with pytest.raises(InputError):
        model(tiny_ids(2, 3), past_key_values=cache, labels=[7, 7])
    assert cache.get_seq_length() == 4
    model(tiny_ids(2, 3), past_key_values=cache, labels=[1, 0])
    assert cache.get_seq_length() == 7


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "uint64"])
def test_narrow_positions_mean_what_wide_ones_do(backend, dtype):
    """-100 does not fit in a byte; a position beyond the text is left out all the same."""
    model = tiny_neox(GPTNeoXForQuestionAnswering, backend, "float64")
    ids = tiny_ids(2, 7)
    losses = [
        float(model(ids, start_positions=np.array([1, 100], kind), end_positions=np.array([2, 3], kind)).loss)
        for kind in ("int64", dtype)
    ]
    assert losses[0] == losses[1]
