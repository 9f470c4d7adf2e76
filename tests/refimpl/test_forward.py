"""Every argument of a forward call does what it says, and wrong ones are refused before anything runs."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from refimpl import GPTNeoXJapaneseModel, to_numpy
from refimpl.errors import InputError
from tests.tiny import tiny_config, tiny_ids, tiny_model, tiny_neox


@pytest.fixture(params=["gpt_neox", "gpt_neox_japanese"])
def model(backend, request):
    if request.param == "gpt_neox":
        return tiny_neox(backend=backend, dtype="float64")
    return tiny_model(backend, "float64")


def close(a, b, bound=1e-12):
    assert np.abs(to_numpy(a) - to_numpy(b)).max() <= bound


def test_outputs_and_their_shapes(model):
    ids = tiny_ids()
    out = model(ids, labels=ids, output_attentions=True, output_hidden_states=True)
    assert list(out) == ["loss", "logits", "past_key_values", "hidden_states", "attentions"]
    assert out.logits.shape == (2, 9, 40)
    assert [h.shape for h in out.hidden_states] == [(2, 9, 24)] * 4
    assert [a.shape for a in out.attentions] == [(2, 3, 9, 9)] * 3
    assert out[0] is out["loss"] is out.loss
    assert out.to_tuple()[1] is out.logits
    assert "attentions" not in model(ids)
    with pytest.raises(KeyError):
        model(ids)["attentions"]
    close(out.attentions[1].sum(-1), np.ones((2, 3, 9)))
    # The last hidden state is the one after the final norm, which the head reads.
    close(out.hidden_states[-1] @ model.embed_out.weight.T, out.logits)
    assert model(ids, return_dict=False)[0].shape == (2, 9, 40)


def test_the_config_gives_the_defaults(backend):
    model = tiny_model(backend, output_attentions=True, output_hidden_states=True, return_dict=False)
    out = model(tiny_ids())
    assert isinstance(out, tuple)
    assert len(out) == 4
    assert model(tiny_ids(), return_dict=True, output_attentions=False).attentions is None


def test_no_token_sees_a_later_one(model):
    ids = tiny_ids()
    changed = ids.copy()
    changed[:, 5:] = 3
    close(model(ids).logits[:, :5], model(changed).logits[:, :5])


def test_embeddings_instead_of_ids(model):
    ids = tiny_ids()
    close(model(inputs_embeds=to_numpy(model.get_input_embeddings().weight)[ids]).logits, model(ids).logits)


def test_padding_on_the_left_changes_nothing_for_real_tokens(model):
    ids = tiny_ids(1, 6)
    padded = np.concatenate([np.full((1, 3), 7), ids], axis=1)
    mask = np.array([[0, 0, 0, 1, 1, 1, 1, 1, 1]])
    positions = np.array([[0, 0, 0, 0, 1, 2, 3, 4, 5]])
    out = model(padded, attention_mask=mask, position_ids=positions)
    close(out.logits[:, 3:], model(ids).logits)
    assert np.isfinite(out.logits).all()


def test_position_ids_shift_only_together(model):
    """Rotary positions are relative: moving all of them changes nothing, moving some does."""
    ids = tiny_ids()
    close(model(ids, position_ids=np.arange(9) + 20).logits, model(ids).logits)
    moved = np.array([[0, 1, 2, 3, 4, 5, 6, 7, 30]])
    assert np.abs(model(ids, position_ids=moved).logits - model(ids).logits).max() > 1e-3


def test_a_four_dimensional_mask_replaces_the_causal_rule(model):
    ids = tiny_ids()
    causal = np.tril(np.ones((9, 9), bool))[None, None].repeat(2, axis=0)
    close(model(ids, attention_mask=causal).logits, model(ids).logits)
    close(model(ids, attention_mask=np.where(causal, 0.0, -1e30)).logits, model(ids).logits)
    everything = np.ones((2, 1, 9, 9), bool)
    assert np.abs(model(ids, attention_mask=everything).logits[:, 0] - model(ids).logits[:, 0]).max() > 1e-3


def test_head_mask(model):
    ids = tiny_ids()
    close(model(ids, head_mask=np.ones(3)).logits, model(ids).logits)
    out = model(ids, head_mask=np.array([[1, 1, 1], [0, 1, 1], [1, 1, 1]]), output_attentions=True)
    assert not out.attentions[1][:, 0].any()
    assert out.attentions[1][:, 1].any()
    assert np.abs(out.logits - model(ids).logits).max() > 1e-3


def test_token_type_ids_have_no_effect(model):
    ids = tiny_ids()
    assert (model(ids, token_type_ids=np.ones_like(ids)).logits == model(ids).logits).all()


@pytest.mark.parametrize("keep", [1, 4, 9, 20, np.array([0, 3, 3]), np.array([-1])])
def test_logits_to_keep(model, keep):
    ids = tiny_ids()
    full = to_numpy(model(ids).logits)
    expected = full[:, keep] if isinstance(keep, np.ndarray) else full[:, -keep:]
    close(model(ids, logits_to_keep=keep).logits, expected)


def test_loss_by_hand(model):
    ids = tiny_ids()
    labels = ids.copy()
    labels[0, :4] = -100
    out = model(ids, labels=labels)
    terms = []
    for row, column in np.ndindex(2, 8):
        if labels[row, column + 1] != -100:
            scores = to_numpy(out.logits)[row, column]
            terms.append(np.log(np.exp(scores).sum()) - scores[labels[row, column + 1]])
    close(out.loss, np.mean(terms))
    assert np.isnan(float(model(ids, labels=np.full_like(ids, -100)).loss))


def test_a_model_without_a_head(backend):
    model = GPTNeoXJapaneseModel(tiny_config(), backend=backend)
    out = model(tiny_ids())
    assert list(out) == ["last_hidden_state", "past_key_values"]
    assert out.last_hidden_state.shape == (2, 9, 24)


def test_a_float32_model_stays_float32(backend):
    out = tiny_model(backend)(
        tiny_ids(), labels=tiny_ids(), output_attentions=True, output_hidden_states=True
    )
    arrays = [out.loss, out.logits, *out.hidden_states, *out.attentions, *out.past_key_values[0]]
    assert {a.dtype.name for a in arrays} == {"float32"}


def test_two_models_with_different_rotary_bases_do_not_share_a_table(backend):
    ids = tiny_ids()
    a, b = (tiny_model(backend, "float64", rotary_emb_base=base) for base in (10000, 100))
    first = a(ids).logits
    assert np.abs(b(ids).logits - first).max() > 1e-3
    assert (a(ids).logits == first).all()


def test_a_function_of_ones_own_as_activation(backend):
    own = tiny_model(backend, "float64", hidden_act=lambda x: np.maximum(x, 0))
    close(own(tiny_ids()).logits, tiny_model(backend, "float64", hidden_act="relu")(tiny_ids()).logits)


def test_beyond_the_context_it_warns_and_works(backend):
    model = tiny_model(backend, max_position_embeddings=8)
    with pytest.warns(UserWarning, match="max_position_embeddings = 8"):
        out = model(tiny_ids())
    assert np.isfinite(out.logits).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(tiny_ids(seq=8))


def test_weights_and_arguments_stay_as_they_are(model):
    ids, mask = tiny_ids(), np.ones((2, 9), np.int64)
    before = {name: np.array(to_numpy(a)) for name, a in model.state_dict().items()}
    ids_before, mask_before = ids.copy(), mask.copy()
    model(ids, attention_mask=mask, labels=ids)
    assert (ids == ids_before).all()
    assert (mask == mask_before).all()
    assert all((to_numpy(a) == before[name]).all() for name, a in model.state_dict().items())


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        ({}, "input_ids"),
        ({"input_ids": [[3]], "inputs_embeds": np.zeros((1, 1, 24))}, "input_ids"),
        ({"input_ids": [3, 4]}, "input_ids"),
        ({"input_ids": [[]]}, "input_ids"),
        ({"input_ids": np.zeros((0, 3), int)}, "input_ids"),
        ({"input_ids": [[3, 4], [5]]}, "input_ids"),
        ({"input_ids": [[3.0]]}, "input_ids"),
        ({"input_ids": [[True]]}, "input_ids"),
        ({"input_ids": [["3"]]}, "input_ids"),
        ({"input_ids": [[3, -1]]}, "input_ids[0, 1]"),
        ({"input_ids": [[3], [40]]}, "input_ids[1, 0]"),
        ({"input_ids": [[2**63]]}, "input_ids[0, 0]"),
        ({"inputs_embeds": np.zeros((1, 3, 23))}, "inputs_embeds"),
        ({"input_ids": [[3, 4]], "attention_mask": [[1]]}, "attention_mask"),
        ({"input_ids": [[3, 4]], "attention_mask": np.ones((1, 1, 2, 3))}, "attention_mask"),
        ({"input_ids": [[3, 4]], "attention_mask": np.ones((1, 2, 2, 2))}, "attention_mask"),
        ({"input_ids": [[3, 4]], "attention_mask": np.ones((1, 1, 2, 2), int)}, "attention_mask"),
        ({"input_ids": [[3, 4]], "attention_mask": [["1", "1"]]}, "attention_mask"),
        ({"input_ids": [[3, 4]], "attention_mask": [[1.0, float("nan")]]}, "attention_mask"),
        ({"input_ids": [[3, 4], [5, 6]], "attention_mask": [[1, 1], [1]]}, "attention_mask"),
        ({"input_ids": [[3, 4], [5, 6]], "position_ids": [[0, 1], [0]]}, "position_ids"),
        ({"input_ids": [[3, 4]], "head_mask": ["a", "b", "c"]}, "head_mask"),
        ({"input_ids": {"a": 1}}, "input_ids"),
        ({"input_ids": [[3, 4]], "labels": [[3, 4], [5]]}, "labels"),
        ({"inputs_embeds": [["x"]]}, "inputs_embeds"),
        ({"input_ids": [[3, 4]], "position_ids": [[0]]}, "position_ids"),
        ({"input_ids": [[3, 4]], "position_ids": [[0.0, 1.0]]}, "position_ids"),
        ({"input_ids": [[3, 4]], "head_mask": [1, 1]}, "head_mask"),
        ({"input_ids": [[3, 4]], "labels": [[3]]}, "labels"),
        ({"input_ids": [[3, 4]], "labels": [[3, 40]]}, "labels"),
        ({"input_ids": [[3, 4]], "labels": [[3, -1]]}, "labels"),
        ({"input_ids": [[3, 4]], "logits_to_keep": -1}, "logits_to_keep"),
        ({"input_ids": [[3, 4]], "logits_to_keep": True}, "logits_to_keep"),
        ({"input_ids": [[3, 4]], "attention_mask": np.full((1, 1, 2, 2), np.nan)}, "attention_mask"),
        ({"input_ids": [[3, 4]], "attention_mask": np.full((1, 1, 2, 2), np.inf)}, "attention_mask"),
        ({"input_ids": [[3, 4]], "logits_to_keep": [5]}, "logits_to_keep"),
        ({"input_ids": [[3, 4]], "logits_to_keep": [0.5]}, "logits_to_keep"),
    ],
)
def test_wrong_arguments(model, arguments, where):
    with pytest.raises(InputError) as caught:
        model(**arguments)
    assert where in str(caught.value)


def test_the_lowest_number_of_a_wider_dtype_in_a_mask(backend):
    model, ids = tiny_model(backend), tiny_ids()
    causal = np.tril(np.ones((9, 9), bool))[None, None]
    mask = np.where(causal, 0.0, np.finfo(np.float64).min)
    close(model(ids, attention_mask=mask).logits, model(ids).logits, bound=1e-4)
