"""Generation on a backend that records the step of one token: the same texts as without."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from refimpl import DynamicCache, StaticCache
from refimpl.backends.likeliest import likeliest
from refimpl.backends.numpy import NumPyBackend
from refimpl.errors import ContextOverflowError
from refimpl.generation import repeated_step
from refimpl.generation.next_logits import LookedUpLogits, NextLogits
from refimpl.generation.repeated_step import RepeatedStep
from refimpl.prompt_cache import PromptCache
from tests.tiny import tiny_model, tiny_neox

IDS = np.array([[3, 4, 5, 6, 7], [8, 9, 10, 11, 12]])
PADDED = np.array([[0, 0, 5, 6, 7], [8, 9, 10, 11, 12]]), np.array([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])


class Recording(NumPyBackend):
    """NumPy that counts: `recorded` steps, and how often they were `repeated`."""

    def __init__(self, dtype: str = "float32") -> None:
        super().__init__(np.dtype(dtype))
        self.steps = self.repeated = 0

    def recorded(self, step: Callable[[], Any]) -> Callable[[], Any]:
        self.steps += 1

        def repeat() -> Any:
            self.repeated += 1
            return step()

        return repeat

    def likeliest(self, logits):
        return likeliest(np, logits)

    def store(self, key_storage, value_storage, key, value, at) -> None:
        where = at + np.arange(key.shape[2])
        key_storage[:, :, where], value_storage[:, :, where] = key, value


def both(make: Callable[..., Any] = tiny_model, **options: Any) -> tuple[Any, Any]:
    """The same model on a backend that does not record, and on one that does."""
    return make(backend="numpy", **options), make(backend=Recording(), dtype=None, **options)


SETTINGS = {
    "greedy": {},
    "sampled": {"do_sample": True, "seed": 4, "top_k": 20, "temperature": 1.5},
    "penalties": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    "static": {"cache_implementation": "static"},
}


@pytest.mark.parametrize("make", [tiny_model, tiny_neox])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=list(SETTINGS))
@pytest.mark.parametrize("padded", [False, True])
def test_the_text_is_that_of_single_calls(make, settings, padded):
    plain, recording = both(make)
    ids, mask = PADDED if padded else (IDS, np.ones_like(IDS))
    texts = [
        model.generate(
            ids, attention_mask=mask, max_new_tokens=12, eos_token_id=[], pad_token_id=0, **settings
        )
        for model in (plain, recording)
    ]
    assert np.array_equal(*texts)
    # The prompt and the first of the 12 tokens come from one call, the others from a step that was made once.
    assert (recording.backend.steps, recording.backend.repeated) == (1, 11)


def test_scores_are_those_of_single_calls():
    plain, recording = both()
    scores = [
        np.stack(
            model.generate(
                IDS, max_new_tokens=6, eos_token_id=[], output_logits=True, return_dict_in_generate=True
            ).logits
        )
        for model in (plain, recording)
    ]
    assert np.abs(scores[0] - scores[1]).max() <= 1e-5 * np.abs(scores[0]).max()


@pytest.mark.parametrize("make", [tiny_model, tiny_neox])
@pytest.mark.parametrize("asked", [{}, {"output_scores": True, "return_dict_in_generate": True}])
def test_rows_end_each_for_itself(make, asked):
    """By the choice of the step, and from scores: the same texts, in which the host fills up what has ended."""
    plain, recording = both(make, seed=5)
    options = {
        "attention_mask": PADDED[1],
        "max_new_tokens": 12,
        "eos_token_id": [20, 6, 28],
        "pad_token_id": 1,
    }
    texts = [model.generate(PADDED[0], **options, **asked) for model in (plain, recording)]
    one, other = (text if isinstance(text, np.ndarray) else text.sequences for text in texts)
    assert np.array_equal(one, other)
    ended = (one == 1).sum(axis=1)
    assert ended.max() >= 3
    assert ended[0] != ended[1]


def test_what_is_chosen_goes_on_without_the_host(monkeypatch):
    """Ids and positions are brought to the backend where they are others than the step has left there."""
    _, recording = both(tiny_neox, seed=5)
    brought = []
    asarray = recording.backend.asarray

    def counting(array, dtype=None):
        if np.shape(array) == (5,):
            brought.append(np.array(array).tolist())
        return asarray(array, dtype)

    monkeypatch.setattr(recording.backend, "asarray", counting)
    options = {"attention_mask": PADDED[1], "max_new_tokens": 8, "pad_token_id": 1}
    text = recording.generate(PADDED[0], eos_token_id=[], **options)
    assert brought == [[0] * 5, [*text[:, 5], 3, 5, 5]]
    brought.clear()
    text = recording.generate(PADDED[0], eos_token_id=[6], **options)
    assert text[1].tolist().index(6) == 7
    assert brought[2:] == [[text[0, at], 1, at - 2, at, at] for at in (8, 9, 10, 11)]


def test_a_caller_may_look_at_the_logits_or_the_choice():
    plain, recording = both(tiny_neox, seed=5)
    ids, mask = PADDED
    steps = [NextLogits(model, mask, DynamicCache()) for model in (plain, recording)]
    for is_choice in (True, False, True, True, False, False, True):
        if is_choice:
            one, other = (step.likeliest(ids) for step in steps)
            assert one.tolist() == other.tolist()
        else:
            one, other = (step(ids) for step in steps)
            assert np.abs(one - other).max() <= 1e-5 * np.abs(one).max()
            other = other.argmax(axis=1)
        ids = np.concatenate([ids, other[:, None]], axis=1)
    assert recording.backend.repeated == 6


def test_a_choice_that_was_taken_back_is_made_again():
    plain, recording = both(tiny_neox, seed=5)
    caches = DynamicCache(), DynamicCache()
    steps = [
        NextLogits(model, np.ones_like(IDS), cache)
        for model, cache in zip((plain, recording), caches, strict=True)
    ]
    text, found = IDS, []
    for _ in range(3):
        text = np.concatenate([text, steps[0].likeliest(text)[:, None]], axis=1)
    for ids in (IDS, text[:, :6], text[:, :7], text[:, :8], text[:, :7]):
        caches[1].crop(ids.shape[1] - 1)
        found.append(steps[1](ids).copy() if ids.shape[1] == 8 else steps[1].likeliest(ids))
    assert [one.tolist() for one in (*found[:3], found[4])] == text[:, [5, 6, 7, 7]].T.tolist()
    steps[1](text[:, :8])
    caches[1].crop(7)
    assert np.allclose(steps[1](text[:, :8]), found[3], atol=1e-5)


def test_looked_up_tokens_are_the_same_choice(monkeypatch):
    text = tiny_model(seed=5).generate(IDS[:1], max_new_tokens=10, eos_token_id=[])
    forward = LookedUpLogits._forward
    for model in both(seed=5):
        calls = []
        monkeypatch.setattr(
            LookedUpLogits, "_forward", lambda *a, c=calls, **k: c.append(1) or forward(*a, **k)
        )
        found = model.generate(IDS[:1], max_new_tokens=10, eos_token_id=[], prompt_lookup_num_tokens=3)
        assert np.array_equal(found, text)
        assert len(calls) < 8


def test_a_longer_text_gets_more_room(monkeypatch):
    monkeypatch.setattr(repeated_step, "_FEWEST", 4)
    monkeypatch.setattr(repeated_step, "_MOST", 5)
    plain, recording = both()
    texts = [model.generate(IDS, max_new_tokens=20, eos_token_id=[]) for model in (plain, recording)]
    assert np.array_equal(*texts)
    assert recording.backend.steps == 4  # 19 tokens, at most 5 in each


def test_the_cache_of_the_caller_holds_the_text():
    plain, recording = both()
    cache = DynamicCache()
    text = recording.generate(IDS, past_key_values=cache, max_new_tokens=6, eos_token_id=[])
    assert cache.get_seq_length() == text.shape[1] - 1
    expected = plain(text[:, :-1]).past_key_values
    for got, wanted in zip(cache, expected, strict=True):
        assert np.allclose(got, wanted, atol=1e-5)


def test_a_cache_that_was_shortened_goes_on_from_there():
    plain, recording = both()
    cache, again = PromptCache(), PromptCache()
    for text in (IDS[:1], IDS[:1, :3], np.array([[3, 4, 5, 6, 9, 9, 9]])):
        wanted = plain.generate(text, past_key_values=again, max_new_tokens=5, eos_token_id=[])
        got = recording.generate(text, past_key_values=cache, max_new_tokens=5, eos_token_id=[])
        assert np.array_equal(got, wanted)
        assert cache.reused == again.reused


def test_a_full_cache_is_an_error_and_nothing_is_written_beyond():
    _, recording = both()
    cache = StaticCache(max_cache_len=8)
    with pytest.raises(ContextOverflowError, match="the cache is full"):
        recording.generate(IDS, past_key_values=cache, max_new_tokens=12, eos_token_id=[])
    assert recording.backend.repeated == 3
    assert cache.get_seq_length() == 8


def test_beams_and_recorded_outputs_are_computed_call_by_call():
    plain, recording = both()
    texts = [model.generate(IDS, num_beams=3, max_new_tokens=8) for model in (plain, recording)]
    assert np.array_equal(*texts)
    recording.generate(IDS, max_new_tokens=3, output_hidden_states=True, return_dict_in_generate=True)
    recording.generate(IDS, max_new_tokens=3, use_cache=False)
    # Until the beams part for the first time they may have been repeated.
    assert recording.backend.repeated <= 1


def test_a_text_beyond_the_context_is_said_once_it_gets_there():
    _, recording = both(max_position_embeddings=10)
    with pytest.warns(UserWarning, match="max_position_embeddings"):
        recording.generate(IDS, max_new_tokens=8, eos_token_id=[])


def test_a_failed_step_leaves_the_cache_as_it_was(monkeypatch):
    _, recording = both()
    cache = DynamicCache()
    monkeypatch.setattr(
        recording.backend, "softmax", _fail_at(3 * 4)
    )  # 3 layers; the fourth call is a repeated one
    with pytest.raises(KeyboardInterrupt):
        recording.generate(IDS, past_key_values=cache, max_new_tokens=8, eos_token_id=[])
    assert {layer.length for layer in cache._layers} == {5 + 3}


def test_what_a_step_holds_is_given_up_with_it():
    _, recording = both()
    cache = DynamicCache()
    recording(IDS, past_key_values=cache)
    step = RepeatedStep(recording, cache, None)
    step(IDS[:, 0], np.array([5, 5]))
    gone = weakref.ref(step)
    gc.disable()
    try:
        del step
        assert gone() is None
    finally:
        gc.enable()


def _fail_at(count: int) -> Callable[..., Any]:
    calls = iter(range(count + 1))
    plain = NumPyBackend(np.dtype(np.float32))

    def softmax(scores: Any, visible: Any = None) -> Any:
        if next(calls) == count:
            raise KeyboardInterrupt
        return plain.softmax(scores, visible)

    return softmax
