"""The choice of tokens by hand-made distributions, and the loop around it."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest

from refimpl import GenerationConfig, GPTNeoXJapaneseForCausalLM, to_numpy
from refimpl.backends.likeliest import likeliest
from refimpl.errors import InputError, NumericalError
from refimpl.generation.logits import (
    apply_temperature,
    check_likeliest,
    choose,
    draw,
    in_top_k,
    in_top_p,
    probabilities,
)
from refimpl.generation.random import fresh_seed, uniform
from tests.tiny import save_tiny, tiny_ids, tiny_model

#: Probabilities 0.5, 0.25, 0.125, 0.125.
LOGITS = np.log(np.array([0.25, 0.5, 0.125, 0.125]))


# --- one choice --------------------------------------------------------------------------------


def test_temperature():
    assert probabilities(apply_temperature(LOGITS, 0.5)).tolist() == pytest.approx(
        [2 / 11, 8 / 11, 0.5 / 11, 0.5 / 11]
    )


@pytest.mark.parametrize(("k", "expected"), [(1, [1]), (2, [0, 1]), (3, [0, 1, 2, 3]), (9, [0, 1, 2, 3])])
def test_top_k_keeps_ties_with_the_last(k, expected):
    assert np.flatnonzero(in_top_k(LOGITS, k)).tolist() == expected


@pytest.mark.parametrize(
    ("p", "expected"),
    [(0.01, [1]), (0.49, [1]), (0.51, [0, 1]), (0.74, [0, 1]), (0.8, [0, 1, 2]), (0.9, [0, 1, 2, 3])],
)
def test_top_p_keeps_the_fewest_that_reach_it(p, expected):
    assert np.flatnonzero(in_top_p(LOGITS, p)).tolist() == expected


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
    assert choose(np.array([0.0, 2.0, 2.0]), True, 0, 0, 0) == 1
    assert likeliest(np, np.array([[0.0, 2.0, 2.0], [3.0, -np.inf, 3.0]])).tolist() == [1, 0]
    assert check_likeliest(0, 0, 0) == 0
    assert GenerationConfig(do_sample=True, temperature=0.0).is_greedy
    assert not GenerationConfig(do_sample=True).is_greedy


@pytest.mark.parametrize("is_greedy", [True, False])
@pytest.mark.parametrize("logits", [[0.0, math.nan], [-math.inf, -math.inf], [math.inf, 0.0]])
def test_nothing_is_chosen_from_broken_logits(logits, is_greedy):
    with pytest.raises(NumericalError, match="row 3, position 4"):
        choose(np.array(logits), is_greedy, 0, 3, 4)
    (token_id,) = likeliest(np, np.array([logits]))
    with pytest.raises(NumericalError, match="row 3, position 4"):
        check_likeliest(int(token_id), 3, 4)


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
        ids = np.concatenate([ids, to_numpy(model(ids).logits)[:, -1].argmax(-1)[:, None]], axis=1)
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
    settings = {
        "max_new_tokens": 2,
        "eos_token_id": [5, 6],
        "num_beam_groups": 1,
        "transformers_version": "5",
    }
    (tmp_path / "generation_config.json").write_text(json.dumps(settings))
    model = GPTNeoXJapaneseForCausalLM.from_pretrained(tmp_path, backend=backend)
    assert model.generation_config.eos_token_ids == [5, 6]
    assert model.generation_config.unused_keys == {"num_beam_groups": 1, "transformers_version": "5"}
    assert model.generate([[7]], eos_token_id=[]).shape == (1, 3)


# --- options in the loop -------------------------------------------------------------------------


def test_what_is_ruled_out_does_not_come(model):
    ids = tiny_ids(3)
    free = model.generate(ids, max_new_tokens=12, eos_token_id=[])
    bad = np.unique(free[:, 9:]).tolist()[:5]
    out = model.generate(ids, max_new_tokens=12, eos_token_id=[], suppress_tokens=bad)
    assert not np.isin(out[:, 9:], bad).any()
    out = model.generate(ids, max_new_tokens=25, eos_token_id=[], no_repeat_ngram_size=2)
    for row in out.tolist():
        pairs = list(itertools.pairwise(row))
        # The prompt may hold a pair twice.
        assert len(set(pairs[8:])) == len(pairs[8:])


def test_ends_are_kept_from_coming_and_forced(model):
    ids = tiny_ids(2)
    eos = model.generate(ids, max_new_tokens=1, eos_token_id=[])[:, -1].tolist()
    assert model.generate(ids, max_new_tokens=9, eos_token_id=eos).shape == (2, 10)
    assert model.generate(ids, max_new_tokens=9, eos_token_id=eos, min_new_tokens=4).shape[1] >= 13
    assert model.generate(ids, max_new_tokens=9, eos_token_id=eos, min_length=13).shape[1] >= 13
    forced = model.generate(ids, max_new_tokens=3, eos_token_id=[], forced_eos_token_id=7)
    assert forced[:, -1].tolist() == [7, 7]


def test_padding_on_the_left_changes_nothing(backend):
    model = tiny_model(backend, "float64")
    ids = tiny_ids(1, 4)
    padded, mask = np.concatenate([np.full((1, 3), 9), ids], axis=1), np.array([[0] * 3 + [1] * 4])
    for options in (
        {"no_repeat_ngram_size": 1},
        {"encoder_repetition_penalty": 3.0},
        {"repetition_penalty": 3.0, "encoder_no_repeat_ngram_size": 1},
        {"guidance_scale": 2.0},
        {"do_sample": True, "seed": 3, "typical_p": 0.9, "top_k": 0},
    ):
        options = {"max_new_tokens": 8, "eos_token_id": [], **options}
        alone = model.generate(ids, **options)
        assert (model.generate(padded, attention_mask=mask, **options)[:, 3:] == alone).all(), options


def test_guidance_leads_away_from_the_other_prompt(model):
    ids, other = tiny_ids(2, 6, seed=1), tiny_ids(2, 4, seed=2)
    options = {"max_new_tokens": 6, "eos_token_id": [], "guidance_scale": 1.7, "negative_prompt_ids": other}
    found = model.generate(ids, **options)
    assert (found == model.generate(ids, use_cache=False, **options)).all()
    text, away = ids, other
    for _ in range(6):
        with_prompt, without = (
            np.log(probabilities(to_numpy(model(one).logits)[:, -1].astype(np.float64)))
            for one in (text, away)
        )
        new = (without + 1.7 * (with_prompt - without)).argmax(-1)[:, None]
        text, away = np.concatenate([text, new], axis=1), np.concatenate([away, new], axis=1)
    assert (found == text).all()
    padded = np.concatenate([np.full((2, 2), 5), other], axis=1)
    options |= {"negative_prompt_ids": padded, "negative_prompt_attention_mask": [[0, 0, 1, 1, 1, 1]] * 2}
    assert (model.generate(ids, **options) == found).all()


class Letters:
    """A tokenizer with a letter for each id from 1 on: 1 is a, 2 is b; 28 is two letters, 30 and 31 half a one."""

    def decode(self, ids):
        letters = "".join(chr(96 + token) if token <= 26 else {28: "xy"}.get(token, "?") for token in ids)
        return letters.replace("??", "é")


def test_stop_strings():
    from refimpl.generation.stopping import StopStrings

    def stops(*ids, prompt=1, strings=("abc", "é", "y")):
        stop = StopStrings(Letters(), strings, np.ones((1, prompt), int))
        return stop(np.array([ids]), np.zeros((1, 40))).tolist() == [True]

    assert stops(1, 2, 3)
    assert stops(9, 1, 2, 3, prompt=3)
    assert not stops(1, 2, 3, 4)
    assert not stops(1, 2, 3, 2)
    assert stops(5, 28)  # it ends inside the token
    assert stops(28, strings=["x"])
    assert stops(5, 30, 31)
    assert not stops(5, 30)
    assert stops(1, 2, 3, 1, 2, 3)
    assert not stops(5, 6, strings=["abc", "efg"])
    padding = StopStrings(Letters(), ["ab"], np.array([[1, 0, 1], [1, 1, 1]]))
    assert padding(np.array([[1, 5, 2], [1, 5, 2]]), np.zeros((2, 40))).tolist() == [True, False]


def test_a_text_ends_with_a_stop_string(model):
    ids = tiny_ids(1, 5)
    free = model.generate(ids, max_new_tokens=9, eos_token_id=[])[0]
    letters = Letters().decode(free.tolist())
    options = {"max_new_tokens": 9, "eos_token_id": [], "suppress_tokens": list(range(27, 40))}
    free = model.generate(ids, **options)[0].tolist()
    letters = Letters().decode(free[5:])
    out = model.generate(ids, stop_strings=["0", letters[1:3]], tokenizer=Letters(), **options)[0].tolist()
    assert out == free[: 5 + letters.index(letters[1:3]) + 2]
    with pytest.raises(InputError, match="tokenizer"):
        model.generate(ids, stop_strings="ab")


def test_time_ends_a_text_after_a_token(model):
    ids = tiny_ids()
    assert model.generate(ids, max_new_tokens=9, eos_token_id=[], max_time=0).shape == (2, 10)
    assert model.generate(ids, max_new_tokens=9, eos_token_id=[], max_time=100).shape == (2, 18)


def test_one_function_instead_of_a_list(model):
    ids = tiny_ids()
    out = model.generate(ids, eos_token_id=[], stopping_criteria=lambda ids, scores: ids.shape[1] == 11)
    assert out.shape == (2, 11)
    with pytest.raises(InputError, match="logits_processor"):
        model.generate(ids, logits_processor=[3])


def test_everything_ruled_out_is_an_error(model):
    with pytest.raises(NumericalError, match="nothing to choose from"):
        model.generate(tiny_ids(1), suppress_tokens=list(range(40)))
