"""What a seed promises: the distribution, and the same text wherever a row stands."""

from __future__ import annotations

import os
from functools import cache

import numpy as np
import pytest

from refimpl import AutoModelForCausalLM, AutoTokenizer, PromptCache, embedded_model_path, to_numpy
from refimpl.generation.logits import draw, log_probabilities
from refimpl.generation.random import uniform
from tests.conftest import BACKENDS, usable_backend

#: REFIMPL_DRAWS says how many tokens are drawn; `make check-long` draws a million.
DRAWS = int(os.environ.get("REFIMPL_DRAWS", "50000"))
PROMPTS = ["吾輩は猫である。", "昔々、ある所に", "雨", "先生は", "「はい」と", "海の", "町を出て、", "私"]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(embedded_model_path())


@pytest.fixture(scope="module")
def model_on():
    """The model on a backend, loaded once."""

    @cache
    def loaded(backend):
        return AutoModelForCausalLM.from_pretrained(embedded_model_path(), backend=usable_backend(backend))

    return loaded


def test_draws_follow_the_distribution():
    """A chi-square test over 64 tokens whose probabilities span four orders of magnitude."""
    scores = np.random.default_rng(0).normal(0, 1.5, 64)
    expected = DRAWS * np.exp(log_probabilities(scores))
    counts = np.bincount([draw(scores, uniform(11, 0, i)) for i in range(DRAWS)], minlength=64)
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 103.4, "63 degrees of freedom: one time in a thousand, and the draws are fixed"


def padded(tokenizer, prompts, extra=0):
    rows = [tokenizer(prompt).input_ids for prompt in prompts]
    width = max(map(len, rows)) + extra
    ids = np.array([[0] * (width - len(row)) + row for row in rows])
    mask = np.array([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return ids, mask, width


def test_a_row_s_text_is_its_own(model_on, tokenizer):
    """Alone or in a batch of 8, with more padding, without a cache, with one that holds half of the text."""
    model, new = model_on("numba"), 24
    asked = {"max_new_tokens": new, "seed": 3, "do_sample": True, "eos_token_id": []}
    ids, mask, width = padded(tokenizer, PROMPTS)
    together = model.generate(ids, attention_mask=mask, **asked)[:, width:].tolist()
    ids, mask, width = padded(tokenizer, PROMPTS, extra=5)
    assert model.generate(ids, attention_mask=mask, **asked)[:, width:].tolist() == together
    short = {**asked, "use_cache": False}
    assert model.generate(ids, attention_mask=mask, **short)[:, width:].tolist() == together
    first = tokenizer(PROMPTS[0], return_tensors="np").input_ids
    assert model.generate(first, **asked)[0, first.shape[1] :].tolist() == together[0]
    cache = PromptCache()
    half = model.generate(first, past_key_values=cache, **{**asked, "max_new_tokens": new // 2})
    rest = model.generate(half, past_key_values=cache, **{**asked, "max_new_tokens": new - new // 2})
    assert cache.reused == half.shape[1] - 1
    assert rest[0, first.shape[1] :].tolist() == together[0]


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_two_backends_part_only_at_a_border(model_on, tokenizer, backend):
    """At the first step where the texts differ, the number that was drawn lies next to a border between tokens."""
    asked = {"max_new_tokens": 64, "do_sample": True, "eos_token_id": [], "top_k": 0, "top_p": 1.0}
    asked |= {"repetition_penalty": 1.0, "temperature": 1.0}
    parted, models = [], (model_on("numpy"), model_on(backend))
    for seed, prompt in enumerate(PROMPTS):
        ids = tokenizer(prompt, return_tensors="np").input_ids
        one, other = (model.generate(ids, seed=seed, **asked)[0] for model in models)
        differs = np.flatnonzero(one != other)
        if not differs.size:
            continue
        place = int(differs[0])
        logits = [to_numpy(model(one[None, :place]).logits)[0, -1].astype(np.float64) for model in models]
        most = np.abs(logits[0] - logits[1]).max()
        ranked = np.argsort(-logits[0], kind="stable")
        borders = np.cumsum(np.exp(log_probabilities(logits[0])[ranked]))
        distance = np.abs(borders - uniform(seed, 0, place)).min()
        # A sum of probabilities moves by at most twice the largest difference of the logits.
        assert distance < 2 * most, f"{prompt}: {distance} from a border, and the logits differ by {most}"
        parted.append((prompt, place - ids.shape[1], distance, most))
    print(f"steps at which numpy and {backend} part:", parted or "none")
