"""What the options of `generate()` do to scores: golden values of transformers, and known answers by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from refimpl import GenerationConfig
from refimpl.errors import InputError
from refimpl.generation import logits, processors
from refimpl.generation.chain import ScoreProcessing
from refimpl.generation.processors import PADDING, ClassifierFreeGuidance
from tests.goldens import check, find_cases, inputs_of

GOLDEN_CASES = find_cases(operation="process_scores")

#: Options of `generate()` that change scores; a golden case of each must be there.
OPTIONS = {
    "temperature", "top_h", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff",
    "repetition_penalty", "encoder_repetition_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size",
    "bad_words_ids", "sequence_bias", "suppress_tokens", "begin_suppress_tokens", "forced_bos_token_id",
    "forced_eos_token_id", "min_length", "min_new_tokens", "exponential_decay_length_penalty", "guidance_scale",
    "remove_invalid_values", "renormalize_logits",
}  # fmt: skip


def processing(
    vocab_size: int, prompt: np.ndarray, options: dict[str, Any], **more: Any
) -> tuple[GenerationConfig, ScoreProcessing]:
    config = GenerationConfig(**{"top_k": 0, **options})
    return config, ScoreProcessing(config, prompt, config.length_limit(prompt.shape[1]), vocab_size, **more)


def process(scores: Any, ids: Any = ((0,),), prompt_length: int | None = None, **options: Any) -> Any:
    """The scores of one row after everything that `options` ask for."""
    scores, ids = np.array([scores], dtype=float), np.array(ids)
    prompt = ids[:, : ids.shape[1] if prompt_length is None else prompt_length]
    custom = options.pop("custom", ())
    _, run = processing(scores.shape[1], prompt, options, custom=custom)
    return run.whole(ids, scores)[0].tolist()


# --- against transformers ------------------------------------------------------------------------


@pytest.mark.parametrize("case", GOLDEN_CASES, ids=lambda case: case["id"])
def test_golden_scores(case: dict) -> None:
    given, options = inputs_of(case), dict(case["inputs"]["arguments"])
    prompt_length = options.pop("prompt_length")
    ids, mask, scores = given["ids"], given["mask"], given["scores"]
    prompt = np.where(mask == 1, ids, PADDING)[:, :prompt_length]
    guidance = None
    if "guidance_scale" in options:
        guidance = ClassifierFreeGuidance(options["guidance_scale"], lambda ids: given["negative_scores"])
    config = GenerationConfig(**options)
    limit = config.length_limit(prompt_length)
    run = ScoreProcessing(config, prompt, limit, scores.shape[1], guidance=guidance)
    found = run.whole(ids, scores)
    limits, extreme = np.finfo(found.dtype), np.zeros(found.shape, dtype=np.int64)
    for number, code in ((-np.inf, -2), (limits.min, -1), (limits.max, 1)):
        extreme[found == number] = code
    check(case, "extreme", extreme, "int64")
    check(case, "scores", np.where(extreme == 0, found, 0), "float64")


def test_there_is_a_golden_case_of_every_option() -> None:
    named = {name for case in GOLDEN_CASES for name in case["inputs"]["arguments"]}
    assert named >= OPTIONS


def test_the_golden_cases_show_something() -> None:
    """All but those that are about nothing happening differ from the scores that they begin with."""
    quiet = {
        case["id"].removeprefix("processors/")
        for case in GOLDEN_CASES
        if np.array_equal(inputs_of(case)["scores"], _golden(case))
    }
    assert quiet == {
        "nothing", "no-repeat-ngram-longer-than-text", "begin-suppress-tokens-later", "forced-bos-later",
        "forced-eos-earlier", "min-length-reached", "min-new-tokens-reached", "exponential-decay-earlier",
        "greedy-ignores-filters",
    }  # fmt: skip


def _golden(case: dict) -> np.ndarray:
    from tests.goldens import expected_of

    extreme = expected_of(case, "extreme", "int64")
    return np.where(extreme == -2, -np.inf, expected_of(case, "scores"))


# --- by hand -------------------------------------------------------------------------------------

INF = np.inf


def test_a_penalty_divides_what_is_positive_and_multiplies_what_is_negative() -> None:
    assert process([3, -1, 2, 0], [[0, 1, 1, 3]], repetition_penalty=2.0) == [1.5, -2.0, 2.0, 0.0]
    assert process([3, -1, 2, 0], [[0, 1, 2]], prompt_length=2, encoder_repetition_penalty=2.0) == [
        6,
        -0.5,
        2,
        0,
    ]


def test_no_ngram_comes_twice() -> None:
    assert process([0, 0, 0, 0], [[1, 2, 1]], no_repeat_ngram_size=2) == [0, 0, -INF, 0]
    assert process([0, 0, 0, 0], [[1, 2, 1]], no_repeat_ngram_size=1) == [0, -INF, -INF, 0]
    assert process([0, 0, 0, 0], [[1, 2, 1]], no_repeat_ngram_size=3) == [0, 0, 0, 0]
    text = [[1, 2, 3, 0, 3, 1]]  # (1, 2) stands in the prompt, (3, 0) after it
    assert process([0, 0, 0, 0], text, prompt_length=3, encoder_no_repeat_ngram_size=2) == [0, 0, -INF, 0]
    assert process([0, 0, 0, 0], [[*text[0], 3]], prompt_length=3, encoder_no_repeat_ngram_size=2) == [0] * 4


def test_padding_is_no_text() -> None:
    """A token that fills a prompt on the left is neither penalized nor part of what must not be repeated."""
    ids, scores = np.array([[1, 1, 2, 1]]), np.ones((1, 3))
    text = np.array([[PADDING, PADDING, 2, 1]])
    for options in (
        {"no_repeat_ngram_size": 2},
        {"repetition_penalty": 2.0},
        {"encoder_repetition_penalty": 2.0},
    ):
        _, run = processing(3, text, options)
        _, alone = processing(3, text[:, 2:], options)
        assert (run.whole(ids, scores) == alone.whole(ids[:, 2:], scores)).all()
    assert processors.ban_repeated_ngrams(text[:, :3], scores, 1).tolist() == [[1, 1, -INF]]


def test_sequences() -> None:
    words = {(3,): 5.0, (1, 2): -1.5, (0, 1, 0): 2.0, (9, 9, 9, 9, 2): 7.0}
    assert process([0.0] * 10, [[0, 1]], sequence_bias=words)[:4] == [2, 0, -1.5, 5]
    listed = [[list(sequence), bias] for sequence, bias in words.items()]
    assert process([0.0] * 10, [[0, 1]], sequence_bias=listed)[:4] == [2, 0, -1.5, 5]
    assert process([0.0] * 4, [[0, 1]], sequence_bias=[[[3], 5.0], [[3], 1.0]])[3] == 1.0
    banned = process([0.0] * 4, [[0, 1]], bad_words_ids=[[3], [1, 2], [2, 0], [0]], eos_token_id=[0])
    assert banned == [0, 0, -INF, -INF]


def test_ends() -> None:
    options = {"eos_token_id": [1, 3]}
    assert process([5, 5, 5, 5], [[0, 0]], min_length=3, **options) == [5, -INF, 5, -INF]
    assert process([5, 5, 5, 5], [[0, 0, 0]], min_length=3, **options) == [5, 5, 5, 5]
    assert process([5, 5, 5, 5], [[0, 0, 0]], 2, min_new_tokens=2, **options) == [5, -INF, 5, -INF]
    assert process([5, 5, 5, 5], [[0, 0, 0]], 2, min_new_tokens=1, min_length=9, **options) == [5, 5, 5, 5]
    assert process([5, 5, 5, 5], [[0, 0]], min_length=3, eos_token_id=[]) == [5, 5, 5, 5]
    assert process([5, 5, 5], [[0, 0]], forced_eos_token_id=2, max_length=3) == [-INF, -INF, 0]
    assert process([5, 5, 5], [[0, 0]], forced_eos_token_id=2, max_length=4) == [5, 5, 5]
    decay = {"exponential_decay_length_penalty": (1, 2.0), **options}
    assert process([5, 4, 5, -4], [[0, 0, 0]], 2, **decay) == [5, 4, 5, -4]
    assert process([5, 4, 5, -4], [[0] * 5], 2, **decay) == [5, 16, 5, 8]
    assert process([5, -INF, 5, 0], [[0] * 5], 2, **decay) == [5, -INF, 5, 0]


def test_a_decay_that_leaves_the_numbers_ends_the_text() -> None:
    with np.errstate(over="ignore"):
        raised = processors.raise_eos(np.array([[5.0, 4.0]]), [1], 1e8, 1000)
    assert raised[0, 0] == 5
    assert raised[0, 1] == np.finfo(np.float64).max


def test_beginnings() -> None:
    assert process([1, 2, 3], [[0]], forced_bos_token_id=1) == [-INF, 0, -INF]
    assert process([1, 2, 3], [[0, 0]], 1, forced_bos_token_id=1) == [1, 2, 3]
    assert process([1, 2, 3], [[0, 0]], begin_suppress_tokens=[1]) == [1, -INF, 3]
    assert process([1, 2, 3], [[0, 0, 0]], 2, begin_suppress_tokens=[1]) == [1, 2, 3]
    both = {"forced_bos_token_id": 1, "begin_suppress_tokens": [2]}
    assert process([1, 2, 3], [[0, 1]], 1, **both) == [1, 2, -INF]
    assert process([1, 2, 3], suppress_tokens=[0, 2]) == [-INF, 2, -INF]


def test_what_is_invalid_is_removed_only_where_asked() -> None:
    limits = np.finfo(np.float64)
    assert process([np.nan, INF, -INF, 1], remove_invalid_values=True) == [0, limits.max, limits.min, 1]
    assert np.isnan(process([np.nan, 1])[0])


SAMPLE = {"do_sample": True}
#: Probabilities 0.5, 0.25, 0.125, 0.125 in another order.
HALVES = np.log([0.25, 0.5, 0.125, 0.125])


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"top_k": 2}, [0, 1]),
        ({"top_p": 0.7}, [0, 1]),
        ({"min_p": 0.51}, [1]),
        ({"min_p": 0.49}, [0, 1]),
        ({"min_p": 1.0}, [1]),
        ({"epsilon_cutoff": 0.2}, [0, 1]),
        ({"epsilon_cutoff": 0.9}, [1]),
        ({"eta_cutoff": 0.5}, [0, 1]),  # the entropy is 1.75 log 2: sqrt(0.5) * 2**-1.75 = 0.21
        ({"eta_cutoff": 0.1}, [0, 1, 2, 3]),
        ({"typical_p": 0.2}, [0]),  # -log p is nearest to the entropy at 0.25, then at 0.5
        ({"typical_p": 0.3}, [0, 1]),
        ({"top_h": 0.3}, [1]),  # shares of the entropy: 2/7, 2/7, 1.5/7, 1.5/7
        ({"top_h": 0.6}, [0, 1]),
        ({"top_h": 0.01}, [1]),
    ],
)
def test_filters_keep(options: dict, kept: list[int]) -> None:
    assert np.flatnonzero(np.isfinite(process(HALVES, **SAMPLE, **options))).tolist() == kept
    assert process(HALVES, **options) == HALVES.tolist(), "a filter changes nothing where nothing is drawn"


def test_top_h_looks_at_a_hundred_tokens() -> None:
    assert np.isfinite(process([0.0] * 150, **SAMPLE, top_h=1.0)).sum() <= 100


def test_temperature_keeps_to_the_numbers() -> None:
    assert process([1.0, 2.0], **SAMPLE, temperature=0.5) == [2, 4]
    assert process([1.0, 2.0], **SAMPLE, temperature=1e-320) == [-INF, 0]


def test_filters_change_nothing_themselves() -> None:
    scores = np.random.default_rng(0).normal(size=9).astype(np.float32)
    for stays, value in (
        (logits.in_top_h, 0.5),
        (logits.in_top_k, 3),
        (logits.in_top_p, 0.5),
        (logits.above_min_p, 0.5),
        (logits.typical, 0.5),
        (logits.above_epsilon, 0.2),
        (logits.above_eta, 0.2),
    ):
        before = scores.copy()
        found = stays(scores, value)
        assert found.dtype == bool
        assert (scores == before).all()
        assert 0 < found.sum() < 9


@pytest.mark.parametrize(
    "stays",
    [
        logits.in_top_k,
        logits.in_top_p,
        logits.above_min_p,
        logits.typical,
        logits.above_epsilon,
        logits.above_eta,
    ],
)
def test_filters_keep_at_least_so_many(stays: Any) -> None:
    sharp = np.array([0.0, 30, 1, 20, 10])
    value = 1 if stays is logits.in_top_k else 0.5
    assert np.flatnonzero(stays(sharp, value)).tolist() == [1]
    assert np.flatnonzero(stays(sharp, value, keep=3)).tolist() == [1, 3, 4]
    assert stays(sharp, value, keep=9).all()


def test_renormalized_scores_are_log_probabilities() -> None:
    found = process([1, 2, 3, 4], **SAMPLE, top_k=2, renormalize_logits=True)
    assert np.exp(found).sum() == pytest.approx(1)
    assert found[:2] == [-INF, -INF]


def test_one_s_own_processors_come_before_the_filters_and_after_the_rest() -> None:
    seen = []

    def note(ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        seen.append((ids.tolist(), scores.tolist()))
        return scores + 1

    found = process([4, 3], [[0]], repetition_penalty=2.0, temperature=0.5, custom=[note], **SAMPLE)
    assert seen == [([[0]], [[2, 3]])]
    assert found == [6, 8]


@pytest.mark.parametrize("wrong", [None, np.zeros((1, 3)), np.zeros(4), [["a", "b"]]])
def test_a_processor_must_return_scores(wrong: Any) -> None:
    with pytest.raises(InputError, match="logits_processor"):
        process([1, 2], custom=[lambda ids, scores: wrong])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sequence_bias", {(0, 4): 1.0}), ("bad_words_ids", [[0], [4, 0]]), ("suppress_tokens", [4]),
        ("begin_suppress_tokens", [4]), ("forced_bos_token_id", 4), ("forced_eos_token_id", [0, 4]),
        ("forced_eos_token_id", -1),
    ],
)  # fmt: skip
def test_tokens_that_do_not_exist_are_refused(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"{name}: outside the vocabulary.*0 to 3"):
        process([0, 0, 0, 0], **{name: value})


def test_guidance() -> None:
    """The negative prompt is asked about first, and then with each new token."""
    asked = []

    def next_logits(ids: np.ndarray) -> np.ndarray:
        asked.append(ids.tolist())
        return np.log([[0.5, 0.5]])

    guidance = ClassifierFreeGuidance(2.0, next_logits, np.array([[7, 8]]))
    found = guidance(np.array([[1, 2]]), np.log([[0.8, 0.2]]))
    assert np.exp(found) == pytest.approx(np.array([[0.8**2 / 0.5, 0.2**2 / 0.5]]))
    guidance(np.array([[1, 2, 3]]), np.zeros((1, 2)))
    assert asked == [[[7, 8]], [[7, 8, 3]]]
    asked.clear()
    guidance = ClassifierFreeGuidance(2.0, next_logits)
    guidance(np.array([[1, 2]]), np.zeros((1, 2)))
    guidance(np.array([[1, 2, 3]]), np.zeros((1, 2)))
    assert asked == [[[2]], [[2, 3]]]
