"""The choice of tokens by hand-made distributions, and the loop around it."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from refimpl import GenerationConfig, GPTNeoXJapaneseForCausalLM
from refimpl.errors import ConfigError, InputError, NumericalError
from refimpl.generation.logits import (
    apply_repetition_penalty,
    apply_temperature,
    apply_top_k,
    apply_top_p,
    choose,
    draw,
    probabilities,
)
from refimpl.generation.random import fresh_seed, uniform
from tests.tiny import save_tiny, tiny_ids, tiny_model

#: Probabilities 0.5, 0.25, 0.125, 0.125.
NOTHING = np.array([], int)
LOGITS = np.log(np.array([0.25, 0.5, 0.125, 0.125]))


def kept(logits):
    return np.flatnonzero(np.isfinite(logits)).tolist()


# --- one choice --------------------------------------------------------------------------------


def test_temperature():
    assert probabilities(apply_temperature(LOGITS, 0.5)).tolist() == pytest.approx(
        [2 / 11, 8 / 11, 0.5 / 11, 0.5 / 11]
    )


def test_repetition_penalty():
    logits = np.array([3.0, -1.0, 2.0, 0.0])
    changed = apply_repetition_penalty(logits, np.array([0, 1, 1, 3]), 2.0)
    assert changed.tolist() == [1.5, -2.0, 2.0, 0.0]
    assert logits[0] == 3.0
    config = GenerationConfig(repetition_penalty=2.0)
    assert choose(logits, config, 0, 0, 0, np.array([0])) == 2
    assert choose(logits, config, 0, 0, 0, NOTHING) == 0


@pytest.mark.parametrize(("k", "expected"), [(1, [1]), (2, [0, 1]), (3, [0, 1, 2, 3]), (9, [0, 1, 2, 3])])
def test_top_k_keeps_ties_with_the_last(k, expected):
    assert kept(apply_top_k(LOGITS, k)) == expected


@pytest.mark.parametrize(
    ("p", "expected"),
    [(0.01, [1]), (0.49, [1]), (0.51, [0, 1]), (0.74, [0, 1]), (0.8, [0, 1, 2]), (0.9, [0, 1, 2, 3])],
)
def test_top_p_keeps_the_fewest_that_reach_it(p, expected):
    assert kept(apply_top_p(LOGITS, p)) == expected


@pytest.mark.parametrize(
    ("number", "token"),
    [(0.0, 1), (0.4999, 1), (0.5001, 0), (0.7499, 0), (0.7501, 2), (0.8751, 3), (1 - 2**-53, 3)],
)
def test_draw_goes_down_the_ranks(number, token):
    assert draw(LOGITS, number) == token


def test_draws_follow_the_distribution():
    counts = np.bincount([draw(LOGITS, uniform(5, 0, i)) for i in range(20_000)], minlength=4)
    chi_square = ((counts - 20_000 * np.exp(LOGITS)) ** 2 / (20_000 * np.exp(LOGITS))).sum()
    assert chi_square < 16.3  # one time in a thousand, and the draws are fixed


def test_greedy_takes_the_lowest_id_of_equals():
    assert choose(np.array([0.0, 2.0, 2.0]), GenerationConfig(), 0, 0, 0, NOTHING) == 1
    assert (
        choose(np.array([0.0, 2.0, 1.0]), GenerationConfig(do_sample=True, temperature=0.0), 0, 0, 0, NOTHING)
        == 1
    )
    assert choose(np.array([0.0, 2.0, 1.0]), GenerationConfig(do_sample=True, top_k=1), 0, 0, 0, NOTHING) == 1


@pytest.mark.parametrize("logits", [[0.0, math.nan], [-math.inf, -math.inf], [math.inf, 0.0]])
def test_nothing_is_chosen_from_broken_logits(logits):
    with pytest.raises(NumericalError):
        choose(np.array(logits), GenerationConfig(), 0, 0, 0, NOTHING)


def test_random_numbers_known_answers():
    """SplitMix64 of three numbers; for other languages to check theirs against."""
    assert [uniform(0, 0, 0).hex(), uniform(1, 2, 3).hex(), uniform(2**63 - 1, 7, 2048).hex()] == KNOWN
    values = [uniform(s, r, p) for s in range(10) for r in range(10) for p in range(10)]
    assert len(set(values)) == 1000
    assert 0.48 < np.mean(values) < 0.52
    assert fresh_seed() != fresh_seed()


KNOWN = ["0x1.1c13ade1c7e5cp-3", "0x1.a0e68ea1fbc6cp-1", "0x1.926ed2435c151p-1"]


# --- the loop ----------------------------------------------------------------------------------


@pytest.fixture
def model(backend):
    return tiny_model(backend)


def greedy_by_hand(model, ids, steps):
    for _ in range(steps):
        ids = np.concatenate([ids, model(ids).logits[:, -1].argmax(-1)[:, None]], axis=1)
    return ids


def test_greedy_equals_one_full_forward_per_token(model):
    ids = tiny_ids()
    out = model.generate(ids, max_new_tokens=10, eos_token_id=[])
    assert out.dtype == np.int64
    assert (out == greedy_by_hand(model, ids, 10)).all()
    assert (model.generate(ids, max_new_tokens=10, eos_token_id=[], use_cache=False) == out).all()


def test_lengths(model):
    ids = tiny_ids(1)
    assert model.generate(ids, eos_token_id=[]).shape == (1, 29)
    assert model.generate(ids, max_length=12, eos_token_id=[]).shape == (1, 12)
    assert model.generate(ids, max_length=5, eos_token_id=[]).shape == (1, 9)
    assert (model.generate(ids, max_new_tokens=0) == ids).all()
    assert model.generate(ids, max_length=10, max_new_tokens=3, eos_token_id=[]).shape == (1, 12)
    model.generation_config = GenerationConfig(max_new_tokens=7)
    assert model.generate(ids).shape == (1, 16)
    assert model.generate(ids, max_length=11).shape == (1, 11)


def test_a_row_that_ended_is_filled_up(model):
    ids = tiny_ids(3)
    free = model.generate(ids, max_new_tokens=12, eos_token_id=[])
    eos = int(free[0, 11])
    ends = [9 + new.index(eos) if eos in (new := row[9:].tolist()) else None for row in free]
    out = model.generate(ids, max_new_tokens=12, eos_token_id=[eos, 39], pad_token_id=0)
    for row, expected, end in zip(out, free, ends, strict=True):
        stop = out.shape[1] if end is None else end + 1
        assert (row[:stop] == expected[:stop]).all()
        assert not row[stop:].any()
    assert (model.generate(ids[:1], max_new_tokens=12, eos_token_id=eos) == free[:1, : ends[0] + 1]).all()


def test_a_row_does_not_depend_on_its_neighbours(backend):
    model = tiny_model(backend, "float64")
    short, long = tiny_ids(1, 4, seed=1), tiny_ids(1, 9, seed=2)
    padded = np.concatenate([np.full((1, 5), 2), short], axis=1)
    batch, mask = np.concatenate([padded, long]), np.ones((2, 9), int)
    mask[0, :5] = 0
    for options in ({}, {"do_sample": True, "seed": 7}):
        options = {"max_new_tokens": 12, "eos_token_id": [], **options}
        both = model.generate(batch, attention_mask=mask, **options)
        alone = model.generate(short, **options)
        assert (both[0, 5:] == alone[0]).all()


def test_padding_is_found_by_its_id_unless_it_ends_text_too(backend):
    model = tiny_model(backend, "float64")
    short = tiny_ids(1, 4)
    padded = np.concatenate([np.zeros((1, 2), int), short], axis=1)
    alone = model.generate(short, max_new_tokens=6, eos_token_id=[])
    found = model.generate(padded, max_new_tokens=6, eos_token_id=[], pad_token_id=0)
    assert (found[0, 2:] == alone[0]).all()


def test_sampling_repeats_with_its_seed(model):
    options = {"max_new_tokens": 20, "do_sample": True, "temperature": 1.5, "eos_token_id": []}
    ids = tiny_ids()
    first = model.generate(ids, seed=1, **options)
    assert (model.generate(ids, seed=1, **options) == first).all()
    assert (model.generate(ids, seed=2, **options) != first).any()
    assert (model.generate(ids, **options) != model.generate(ids, **options)).any()


def test_no_prompt_starts_from_bos(model):
    out = model.generate(max_new_tokens=3, eos_token_id=[])
    assert out[0, 0] == 1
    model.generation_config = GenerationConfig()
    with pytest.raises(InputError, match="bos_token_id"):
        model.generate()


def test_processors_and_criteria_of_ones_own(model):
    def forbid(ids, logits):
        logits = logits.copy()
        logits[:, :20] = -np.inf
        return logits

    ids = tiny_ids()
    out = model.generate(
        ids,
        max_new_tokens=20,
        logits_processor=[forbid],
        stopping_criteria=[lambda ids, logits: ids.shape[1] == 13],
    )
    assert out.shape == (2, 13)
    assert (out[:, 9:] >= 20).all()


def test_a_row_ends_where_a_criterion_says_so(model):
    ids = tiny_ids()

    def second_row_at_11(ids, logits):
        return np.array([False, ids.shape[1] == 11])

    options = {"max_new_tokens": 6, "eos_token_id": [], "pad_token_id": 0}
    free = model.generate(ids, **options)
    out = model.generate(ids, stopping_criteria=[second_row_at_11], **options)
    assert (out[0] == free[0]).all()
    assert (out[1, :11] == free[1, :11]).all()
    assert not out[1, 11:].any()


def test_settings_are_filled_in_from_the_model(model):
    ids = tiny_ids(1)
    model.generation_config = GenerationConfig(max_new_tokens=5, do_sample=True, eos_token_id=[])
    given = GenerationConfig(temperature=2.0)
    assert model.generate(ids, generation_config=given, seed=1).shape == (1, 14)
    sampled = model.generate(ids, temperature=2.0, seed=1)
    assert (model.generate(ids, generation_config=given, seed=1) == sampled).all()
    greedy = model.generate(ids, do_sample=False)
    assert (model.generate(ids, generation_config=GenerationConfig(do_sample=False)) == greedy).all()
    assert given == GenerationConfig(temperature=2.0)


def test_none_and_values_that_change_nothing_are_fine(model):
    ids = tiny_ids(1)
    plain = model.generate(ids, eos_token_id=[])
    same = model.generate(
        ids,
        eos_token_id=[],
        do_sample=False,
        temperature=None,
        top_p=None,
        num_beams=1,
        repetition_penalty=1.0,
    )
    assert (same == plain).all()
    assert model.generate(ids, max_new_tokens=np.int64(3), temperature=np.float32(0.5)).shape[1] <= 12


@pytest.mark.parametrize("seed", [1.5, "a", -1, True])
def test_what_is_no_seed(model, seed):
    with pytest.raises(InputError, match="seed"):
        model.generate(tiny_ids(), seed=seed)
    with pytest.raises(InputError, match="seed"):
        tiny_model(seed=seed)


def test_a_seed_of_numpy(model):
    options = {"do_sample": True, "max_new_tokens": 5}
    ids = tiny_ids()
    assert (model.generate(ids, seed=np.int64(3), **options) == model.generate(ids, seed=3, **options)).all()


def test_a_streamer_cannot_change_the_prompt(model):
    class Vandal(Recorder):
        def put(self, ids):
            ids[...] = 0

    ids = tiny_ids(1)
    before = ids.copy()
    out = model.generate(ids, max_new_tokens=3, eos_token_id=[], streamer=Vandal())
    assert (ids == before).all()
    assert (out == model.generate(before, max_new_tokens=3, eos_token_id=[])).all()


class Recorder:
    def __init__(self, stop_after=None):
        self.calls, self.ended, self.stop_after = [], False, stop_after

    def put(self, ids):
        self.calls.append(np.array(ids).tolist())
        if len(self.calls) == self.stop_after:
            raise KeyboardInterrupt

    def end(self):
        self.ended = True


def test_a_streamer_gets_the_prompt_and_then_each_token(model):
    ids, recorder = tiny_ids(1), Recorder()
    out = model.generate(ids, max_new_tokens=4, eos_token_id=[], streamer=recorder)
    assert recorder.calls == [ids.tolist(), *[[token] for token in out[0, 9:].tolist()]]
    assert recorder.ended


def test_an_interrupted_streamer_is_ended_too(model):
    recorder = Recorder(stop_after=3)
    with pytest.raises(KeyboardInterrupt):
        model.generate(tiny_ids(1), max_new_tokens=9, eos_token_id=[], streamer=recorder)
    assert recorder.ended


def test_generation_config_of_the_folder(tmp_path, backend):
    save_tiny(tmp_path)
    settings = {"max_new_tokens": 2, "eos_token_id": [5, 6], "num_beams": 1, "transformers_version": "5"}
    (tmp_path / "generation_config.json").write_text(json.dumps(settings))
    model = GPTNeoXJapaneseForCausalLM.from_pretrained(tmp_path, backend=backend)
    assert model.generation_config.eos_token_ids == [5, 6]
    assert model.generation_config.unused_keys == {"num_beams": 1, "transformers_version": "5"}
    assert model.generate([[7]], eos_token_id=[]).shape == (1, 3)


def test_options_of_the_file_that_are_not_offered_are_announced(tmp_path, backend):
    save_tiny(tmp_path)
    (tmp_path / "generation_config.json").write_text(
        '{"num_beams": 4, "no_repeat_ngram_size": 0, "top_k": null}'
    )
    with pytest.warns(UserWarning, match="num_beams=4") as caught:
        GPTNeoXJapaneseForCausalLM.from_pretrained(tmp_path, backend=backend)
    assert "no_repeat_ngram_size" not in str(caught[0].message)


def test_a_damaged_generation_config_is_named(tmp_path, backend):
    save_tiny(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"temperature": "hot"}')
    with pytest.raises(ConfigError, match=r"generation_config\.json.*temperature"):
        GPTNeoXJapaneseForCausalLM.from_pretrained(tmp_path, backend=backend)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_ids": []}, "input_ids"),
        ({"input_ids": [[]]}, "input_ids"),
        ({"input_ids": [[99]]}, "input_ids"),
        ({"attention_mask": [[1]]}, "attention_mask"),
        ({"attention_mask": np.full((2, 9), 2)}, "attention_mask"),
        ({"attention_mask": np.zeros((2, 9))}, "without tokens"),
        ({"attention_mask": np.array([[1] * 9, [1] * 8 + [0]])}, "padding_side"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"top_k": -1}, "top_k"),
        ({"top_k": 2.5}, "top_k"),
        ({"max_new_tokens": -1}, "max_new_tokens"),
        ({"max_length": 0}, "max_length"),
        ({"eos_token_id": "2"}, "special token"),
        ({"pad_token_id": 99}, "pad_token_id"),
        ({"do_sample": 1}, "do_sample"),
        ({"max_length": 10**400}, "max_length"),
        ({"temprature": 1.0}, "Did you mean temperature"),
        ({"num_beams": 4}, "not offered"),
    ],
)
def test_wrong_arguments(model, arguments, message):
    with pytest.raises(InputError) as caught:
        model.generate(**{"input_ids": tiny_ids(), **arguments})
    assert message in str(caught.value)
