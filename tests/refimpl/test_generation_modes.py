"""Beams, several texts, prompt lookup, given caches, long texts, streams, and what a dict of outputs holds."""

from __future__ import annotations

import queue
import threading
import warnings

import numpy as np
import pytest

from refimpl import (
    AutoTokenizer,
    DynamicCache,
    PromptCache,
    StaticCache,
    TextIteratorStreamer,
    embedded_model_path,
    to_numpy,
)
from refimpl.errors import ContextOverflowError, InputError, NumericalError
from refimpl.generation.beams import _largest
from refimpl.generation.logits import draw_several, log_probabilities, probabilities
from refimpl.generation.next_logits import look_up
from tests.tiny import tiny_ids, tiny_model

PROMPT = tiny_ids(1)
NO_END = {"eos_token_id": [], "pad_token_id": 1}
SAMPLE = {"do_sample": True, "top_k": 0, **NO_END}


@pytest.fixture
def model(backend):
    return tiny_model(backend)


def log_probability(model, text, start):
    """Of the tokens after `start`, by one forward pass."""
    logits = to_numpy(model(text[None]).logits)[0].astype(np.float64)
    steps = log_probabilities(logits)[np.arange(len(text) - 1), text[1:]]
    return steps[start - 1 :].sum()


# --- beams -------------------------------------------------------------------------------------------


def test_beams_of_the_whole_vocabulary_find_the_likeliest_text():
    model = tiny_model(vocab_size=7, backend="numpy")
    prompt = np.array([[3, 5, 4]])
    everything = [[*prompt[0], a, b] for a in range(7) for b in range(7)]
    best = max(everything, key=lambda text: log_probability(model, np.array(text), 3))
    found = model.generate(prompt, num_beams=7, max_new_tokens=2, eos_token_id=[], pad_token_id=0)
    assert found.tolist() == [best]


def test_the_score_of_a_beam_is_its_log_probability(model):
    for penalty in (0.0, 1.0, 2.0):
        out = model.generate(
            PROMPT, num_beams=4, num_return_sequences=3, max_new_tokens=6, length_penalty=penalty, **NO_END,
            return_dict_in_generate=True, output_scores=True,
        )  # fmt: skip
        start = PROMPT.shape[1]
        wanted = [log_probability(model, text, start) / 6**penalty for text in out.sequences]
        assert out.sequences_scores == pytest.approx(wanted, rel=1e-5)
        assert sorted(wanted, reverse=True) == wanted
        made = model.compute_transition_scores(out.sequences, out.scores, out.beam_indices)
        assert made.sum(axis=1) / 6**penalty == pytest.approx(wanted, rel=1e-5)


def test_more_beams_find_no_worse_text(model):
    scores = [
        log_probability(
            model, model.generate(PROMPT, num_beams=n, max_new_tokens=8, **NO_END)[0], PROMPT.shape[1]
        )
        for n in (1, 8)
    ]
    assert scores[1] >= scores[0]


def test_beams_of_a_row_do_not_depend_on_its_neighbours(model):
    ids = tiny_ids(3)
    mask = np.ones_like(ids)
    mask[1, :4] = 0
    options = {"num_beams": 3, "max_new_tokens": 7, "eos_token_id": [5, 9, 13], "pad_token_id": 1}
    together = model.generate(ids, attention_mask=mask, **options)
    for row in range(3):
        alone = model.generate(ids[row : row + 1, mask[row] == 1], **options)[0, mask[row].sum() :].tolist()
        assert together[row, ids.shape[1] :].tolist()[: len(alone)] == alone


@pytest.mark.parametrize("options", [{}, {"use_cache": False}, {"cache_implementation": "static"}])
def test_no_cache_changes_beams(model, options):
    asked = {"num_beams": 3, "max_new_tokens": 6, **NO_END}
    assert (model.generate(PROMPT, **asked) == model.generate(PROMPT, **asked, **options)).all()


def test_beam_sampling_repeats_with_its_seed(model):
    asked = {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 8, **SAMPLE}
    one, same, other = (model.generate(PROMPT, seed=seed, **asked) for seed in (1, 1, 2))
    assert one.tolist() == same.tolist() != other.tolist()


def test_beam_sampling_with_one_token_left_does_not_break(model):
    out = model.generate(PROMPT, num_beams=3, do_sample=True, top_k=1, max_new_tokens=4, seed=1, **NO_END)
    assert out.shape == (1, PROMPT.shape[1] + 4)


def test_guidance_of_beams(model):
    asked = {"num_beams": 3, "max_new_tokens": 5, "guidance_scale": 1.5, **NO_END}
    plain = model.generate(PROMPT, **asked)
    assert plain.tolist() == model.generate(PROMPT, **asked, use_cache=False).tolist()
    assert plain.tolist() != model.generate(PROMPT, **{**asked, "guidance_scale": 1.0}).tolist()


def test_a_beam_search_of_nothing_returns_the_prompt(model):
    assert model.generate(PROMPT, num_beams=2, max_new_tokens=0, **NO_END).tolist() == PROMPT.tolist()


def test_the_largest_of_equals_is_the_first():
    assert _largest(np.array([1.0, 3, 2, 3, 3]), 2).tolist() == [1, 3]
    assert _largest(np.array([1.0, 2]), 5).tolist() == [1, 0]


def test_several_draws_follow_the_distribution_without_putting_back():
    p = np.array([0.5, 0.3, 0.15, 0.05])
    pairs = np.array([draw_several(np.log(p), 2, 3, 0, i) for i in range(20_000)])
    assert (pairs[:, 0] != pairs[:, 1]).all()
    for first in range(4):
        for second in set(range(4)) - {first}:
            expected = p[first] * p[second] / (1 - p[first])
            found = ((pairs[:, 0] == first) & (pairs[:, 1] == second)).mean()
            assert found == pytest.approx(expected, abs=4 * np.sqrt(expected / 20_000))
    few = draw_several(np.array([-np.inf, 0.0, -np.inf]), 3, 1, 0, 0)
    assert sorted(few) == [0, 1, 2]
    assert few[0] == 1


# --- several texts ---------------------------------------------------------------------------------


def test_the_texts_of_a_prompt_are_rows_of_their_own(model):
    ids = tiny_ids(2)
    mask = np.ones_like(ids)
    mask[1, :3] = 0
    asked = {"max_new_tokens": 6, "seed": 4, **SAMPLE}
    found = model.generate(ids, attention_mask=mask, num_return_sequences=3, **asked)
    wanted = model.generate(ids.repeat(3, axis=0), attention_mask=mask.repeat(3, axis=0), **asked)
    assert found.tolist() == wanted.tolist()
    assert len({tuple(row) for row in found.tolist()}) > 2


def test_a_prompt_is_computed_once_for_its_texts(model, monkeypatch):
    fed = []
    whole = type(model.base_model).__call__

    def count(self, *args, **kwargs):
        given = kwargs["input_ids"] if kwargs["inputs_embeds"] is None else kwargs["inputs_embeds"]
        fed.append(given.shape[:2])
        return whole(self, *args, **kwargs)

    monkeypatch.setattr(type(model.base_model), "__call__", count)
    model.generate(PROMPT, num_return_sequences=4, max_new_tokens=2, seed=1, **SAMPLE)
    # A step that is recorded is called once more for it.
    assert (fed[0], set(fed[1:])) == (PROMPT.shape, {(4, 1)})


# --- prompt lookup ---------------------------------------------------------------------------------


def test_what_followed_before():
    text = np.array([1, 2, 3, 4, 1, 2, 5, 9, 1, 2])
    assert look_up(text, 2, 3).tolist() == [5, 9, 1]
    assert look_up(text[:-1], 3, 3).tolist() == [2, 5, 9]
    assert look_up(np.array([1, 2, 3]), 2, 3).tolist() == []
    assert look_up(text, 2, 0).tolist() == []
    assert look_up(np.array([4]), 2, 3).tolist() == []


@pytest.mark.parametrize("sampling", [{}, {"do_sample": True, "temperature": 0.3, "seed": 5, "top_k": 0}])
def test_prompt_lookup_is_the_same_text_in_fewer_steps(model, monkeypatch, sampling):
    piece = [5, 9, 13, 5, 20, 31]
    ids = np.array([piece * 3])
    mask = np.ones_like(ids)
    mask[0, :2] = 0
    asked = {"attention_mask": mask, "max_new_tokens": 40, "repetition_penalty": 0.7, **NO_END, **sampling}
    plain = model.generate(ids, **asked)
    calls = []
    whole = type(model).__call__
    monkeypatch.setattr(type(model), "__call__", lambda self, **kw: calls.append(1) or whole(self, **kw))
    cache = PromptCache()
    found = model.generate(ids, prompt_lookup_num_tokens=6, past_key_values=cache, **asked)
    assert found.tolist() == plain.tolist()
    assert len(calls) < 35
    assert cache.token_ids[0, 2:].tolist() == plain[0, 2 : cache.token_ids.shape[1]].tolist()


def test_nothing_is_guessed_beyond_the_end(model):
    ids = np.array([[5, 9, 5, 9, 5, 9]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = model.generate(ids, prompt_lookup_num_tokens=30, max_length=64, **NO_END)
    assert out.tolist() == model.generate(ids, max_length=64, **NO_END).tolist()


# --- caches ----------------------------------------------------------------------------------------


def test_going_on_from_a_cache(model):
    whole = model.generate(PROMPT, max_new_tokens=8, **NO_END)
    cache = DynamicCache()
    first = model.generate(PROMPT, max_new_tokens=3, past_key_values=cache, **NO_END)
    assert cache.get_seq_length() == first.shape[1] - 1
    assert model.generate(first, max_new_tokens=5, past_key_values=cache, **NO_END).tolist() == whole.tolist()
    with pytest.raises(InputError, match="must hold less than the prompt"):
        model.generate(PROMPT, past_key_values=cache)


def test_a_prompt_cache_computes_what_is_new(model):
    cache = PromptCache()
    first = model.generate(PROMPT, max_new_tokens=4, past_key_values=cache, **NO_END)
    longer = np.concatenate([first, [[7, 8, 9]]], axis=1)
    for text, common in ((longer, first.shape[1] - 1), (longer[:, :5], 4), (np.array([[9, 9, 9]]), 0)):
        found = model.generate(text, max_new_tokens=5, past_key_values=cache, **NO_END)
        assert found.tolist() == model.generate(text, max_new_tokens=5, **NO_END).tolist()
        assert cache.reused >= common
    again = model.generate(PROMPT, max_new_tokens=1, past_key_values=cache, **NO_END)
    assert (
        model.generate(again, max_new_tokens=1, past_key_values=cache, **NO_END).shape[1]
        == again.shape[1] + 1
    )
    assert cache.reused == PROMPT.shape[1]


def test_a_prompt_cache_knows_padding_from_text(model):
    ids = tiny_ids(2)
    mask = np.ones_like(ids)
    mask[1, :3] = 0
    cache = PromptCache()
    asked = {"max_new_tokens": 3, **NO_END}
    model.generate(ids, attention_mask=mask, past_key_values=cache, **asked)
    assert (cache.token_ids[1, :3] == -1).all()
    found = model.generate(ids, past_key_values=cache, **asked)
    assert found.tolist() == model.generate(ids, **asked).tolist()
    found = model.generate(ids[:1], past_key_values=cache, **asked)
    assert found.tolist() == model.generate(ids[:1], **asked).tolist()


def test_a_prompt_cache_in_a_file(model, tmp_path):
    cache = PromptCache()
    text = model.generate(PROMPT, max_new_tokens=4, past_key_values=cache, **NO_END)
    cache.save(tmp_path / "cache.safetensors")
    loaded = PromptCache.load(tmp_path / "cache.safetensors", model)
    assert loaded.token_ids.tolist() == cache.token_ids.tolist()
    found = model.generate(text, max_new_tokens=4, past_key_values=loaded, **NO_END)
    assert found.tolist() == model.generate(text, max_new_tokens=4, **NO_END).tolist()
    with pytest.raises(InputError, match="another model"):
        PromptCache.load(tmp_path / "cache.safetensors", tiny_model(seed=9))
    with pytest.raises(InputError, match="another model"):
        tiny_model(seed=9).generate(PROMPT, past_key_values=loaded)
    PromptCache().save(tmp_path / "empty.safetensors")
    with pytest.raises(InputError, match="another model"):
        PromptCache.load(tmp_path / "empty.safetensors", model)


def test_a_damaged_prompt_cache_is_refused(model, tmp_path):
    from safetensors.numpy import load_file, save_file

    from refimpl.errors import CheckpointFormatError
    from refimpl.prompt_cache import _FORMAT, _key_of

    cache = PromptCache()
    model.generate(PROMPT, max_new_tokens=1, past_key_values=cache, **NO_END)
    path = tmp_path / "cache.safetensors"
    cache.save(path)
    good, metadata = load_file(path), {"format": _FORMAT, "model": _key_of(model)}
    for change in (
        {"layers.1.key": None},
        {"token_ids": None},
        {"more": np.zeros(1)},
        {"layers.0.value": good["layers.0.value"][:, :, 1:]},
        {"token_ids": good["token_ids"].astype(np.int32)},
        {"token_ids": good["token_ids"][:, 1:]},
    ):
        tensors = {name: np.ascontiguousarray(t) for name, t in {**good, **change}.items() if t is not None}
        save_file(tensors, path, metadata)
        with pytest.raises(CheckpointFormatError):
            PromptCache.load(path, model)
    save_file(good, path, {"format": "another"})
    with pytest.raises(CheckpointFormatError, match="not a prompt cache"):
        PromptCache.load(path, model)


def test_a_static_cache_holds_what_was_said_and_no_more(model):
    wanted = model.generate(PROMPT, max_new_tokens=6, **NO_END)
    length = PROMPT.shape[1] + 6
    cache = StaticCache(config=model.config, max_cache_len=length)
    assert (
        model.generate(PROMPT, max_new_tokens=6, past_key_values=cache, **NO_END).tolist() == wanted.tolist()
    )
    assert cache.nbytes == 2 * 3 * length * 24 * 4
    with pytest.raises(ContextOverflowError, match=f"max_cache_len = {length}"):
        model.generate(wanted, max_new_tokens=9, past_key_values=cache, **NO_END)
    assert cache.get_seq_length() == length, "a refused token changes nothing"
    for wrong in (0, None, 2.5, True):
        with pytest.raises(InputError, match="max_cache_len"):
            StaticCache(max_cache_len=wrong)


# --- the end of the context ------------------------------------------------------------------------


def test_the_end_of_the_context():
    model = tiny_model(max_position_embeddings=16, backend="numba")
    with pytest.warns(UserWarning, match="max_position_embeddings"):
        long = model.generate(PROMPT, max_length=40, **NO_END)
    stopped = model.generate(PROMPT, max_length=40, context_overflow="stop", **NO_END)
    assert stopped.tolist() == long[:, :16].tolist()
    with pytest.raises(ContextOverflowError, match="16 together"):
        model.generate(PROMPT, max_length=40, context_overflow="error", **NO_END)
    with pytest.raises(ContextOverflowError):
        model.generate(long[:, :20], context_overflow="stop", **NO_END)


@pytest.mark.parametrize("options", [{}, {"use_cache": False}, {"prompt_lookup_num_tokens": 4}])
def test_a_text_that_slides_is_the_continuation_of_its_second_half(options):
    model = tiny_model(max_position_embeddings=16, backend="numba")
    text = model.generate(PROMPT, max_length=45, context_overflow="slide", **NO_END, **options)[0]
    seen, start = PROMPT.shape[1], 0
    while seen < 45:
        if seen - start > 16:
            start = seen - 8
        assert text[seen] == model(text[None, start:seen]).logits[0, -1].argmax()
        seen += 1
    assert start > 16


# --- a dict of outputs -----------------------------------------------------------------------------


def test_what_a_dict_holds(model):
    out = model.generate(
        PROMPT, max_new_tokens=3, return_dict_in_generate=True, output_scores=True, output_logits=True,
        output_attentions=True, output_hidden_states=True, repetition_penalty=2.0, **NO_END,
    )  # fmt: skip
    seq = PROMPT.shape[1]
    whole = model(out.sequences[:, :-1], output_attentions=True, output_hidden_states=True)
    logits, states = to_numpy(whole.logits), list(map(to_numpy, whole.hidden_states))
    attentions = list(map(to_numpy, whole.attentions))
    for step in range(3):
        assert out.logits[step][0] == pytest.approx(logits[0, seq - 1 + step], abs=1e-5)
        assert out.scores[step].argmax() == out.sequences[0, seq + step]
        rows = slice(0, seq) if step == 0 else slice(seq - 1 + step, seq + step)
        for layer, state in enumerate(out.hidden_states[step]):
            assert to_numpy(state) == pytest.approx(states[layer][:, rows], abs=1e-5)
        for layer, weights in enumerate(out.attentions[step]):
            seen = attentions[layer][:, :, rows, : seq + step]
            assert to_numpy(weights) == pytest.approx(seen, abs=1e-5)
    assert out.past_key_values.get_seq_length() == seq + 2
    assert out.keys() == ["sequences", "scores", "logits", "attentions", "hidden_states", "past_key_values"]


def test_outputs_that_nobody_can_see_are_announced(model):
    with pytest.warns(UserWarning, match="return_dict_in_generate=True nothing shows output_scores"):
        assert isinstance(model.generate(PROMPT, max_new_tokens=1, output_scores=True, **NO_END), np.ndarray)


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}])
def test_what_was_generated_until_an_error_is_not_lost(model, options):
    def fail(ids, scores):
        if ids.shape[1] == PROMPT.shape[1] + 3:
            return np.full_like(scores, np.nan)
        return scores

    with pytest.raises(NumericalError) as caught:
        model.generate(PROMPT, max_new_tokens=9, logits_processor=fail, **NO_END, **options)
    assert caught.value.sequences.shape == (1, PROMPT.shape[1] + 3)

    def interrupt(ids, scores):
        if ids.shape[1] == PROMPT.shape[1] + 2:
            raise KeyboardInterrupt
        return scores

    with pytest.raises(KeyboardInterrupt) as stopped:
        model.generate(PROMPT, max_new_tokens=9, logits_processor=interrupt, **NO_END, **options)
    assert stopped.value.sequences.shape[1] == PROMPT.shape[1] + 2


# --- embeddings ------------------------------------------------------------------------------------


def test_embeddings_instead_of_a_prompt(model):
    embeds = model.backend.to_numpy(model.get_input_embeddings()(PROMPT))
    wanted = model.generate(PROMPT, max_new_tokens=5, **NO_END)
    found = model.generate(inputs_embeds=embeds, max_new_tokens=5, **NO_END)
    assert found.tolist() == wanted[:, PROMPT.shape[1] :].tolist()
    both = model.generate(PROMPT, inputs_embeds=embeds, max_new_tokens=5, **NO_END)
    assert both.tolist() == wanted.tolist()


# --- streams ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def japanese():
    from refimpl import AutoModelForCausalLM

    path = embedded_model_path()
    return AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)


def test_a_stream_of_tokens(japanese):
    model, tokenizer = japanese
    prompt = "吾輩は"
    tokens = list(model.stream_generate(prompt, tokenizer, max_new_tokens=12, seed=3, eos_token_id=[]))
    ids = model.generate(**tokenizer(prompt, return_tensors="np"), max_new_tokens=12, seed=3, eos_token_id=[])
    start = ids.shape[1] - 12
    assert [token.token_id for token in tokens] == ids[0, start:].tolist()
    assert "".join(token.text for token in tokens) == tokenizer.decode(
        ids[0, start:], skip_special_tokens=True
    )
    assert [token.token for token in tokens] == tokenizer.convert_ids_to_tokens(ids[0, start:])
    logits = model(ids[:, :-1]).logits[0].astype(np.float64)
    for index, token in enumerate(tokens):
        wanted = np.log(probabilities(logits[start - 1 + index]))[token.token_id]
        assert token.logprob == pytest.approx(wanted, abs=1e-4)
    assert [token.finish_reason for token in tokens] == [None] * 11 + ["length"]
    assert tokens[0].tokens_per_second is None
    assert all(token.tokens_per_second > 0 for token in tokens[1:])


def test_a_stream_of_several_texts(japanese):
    model, tokenizer = japanese
    prompts = ["吾輩は", "昔々、ある所に"]
    asked = {"max_new_tokens": 8, "do_sample": False}
    stop = model.generate(**tokenizer(prompts[0], return_tensors="np"), **asked)[0, -4]
    found = {0: [], 1: []}
    for token in model.stream_generate(prompts, tokenizer, eos_token_id=int(stop), **asked):
        found[token.row].append(token)
    for row, prompt in enumerate(prompts):
        alone = list(model.stream_generate(prompt, tokenizer, eos_token_id=int(stop), **asked))
        assert [token.token_id for token in found[row]] == [token.token_id for token in alone]
        assert found[row][-1].finish_reason in ("eos", "length")
    assert found[0][-1].finish_reason == "eos"


def test_a_stream_ends_where_a_string_is_complete(japanese):
    model, tokenizer = japanese
    text = "".join(
        t.text for t in model.stream_generate("吾輩は", tokenizer, max_new_tokens=9, do_sample=False)
    )
    stop = text[2:4]
    tokens = list(
        model.stream_generate("吾輩は", tokenizer, max_new_tokens=9, do_sample=False, stop_strings=stop)
    )
    assert tokens[-1].finish_reason == "stop"
    assert stop in "".join(token.text for token in tokens)


def test_what_cannot_be_streamed(japanese):
    model, tokenizer = japanese
    for arguments, message in (
        ({"tokenizer": None}, "tokenizer"),
        ({"num_beams": 2}, "num_beams"),
        ({"streamer": object()}, "streamer"),
        ({"return_dict_in_generate": True}, "return_dict"),
        ({"input_ids": ""}, "without tokens"),
        ({"temprature": 1}, "Did you mean temperature"),
    ):
        with pytest.raises(InputError, match=message):
            model.stream_generate(**{"input_ids": "吾輩は", "tokenizer": tokenizer, **arguments})


def test_text_from_another_thread(japanese):
    model, tokenizer = japanese
    inputs = tokenizer("吾輩は", return_tensors="np")
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60)
    asked = {**inputs, "max_new_tokens": 8, "seed": 2, "streamer": streamer}
    thread = threading.Thread(target=model.generate, kwargs=asked)
    thread.start()
    text = "".join(streamer)
    thread.join()
    del asked["streamer"]
    ids = model.generate(**asked)[0, inputs["input_ids"].shape[1] :]
    assert text == tokenizer.decode(ids)
    idle = TextIteratorStreamer(tokenizer, timeout=0.01)
    with pytest.raises(queue.Empty):
        next(idle)
