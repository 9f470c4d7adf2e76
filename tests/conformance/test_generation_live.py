"""Live comparison with transformers: the options of `generate()`, with random settings and tiny random models.

REFIMPL_GENERATIONS says how many random combinations are compared.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import refimpl
from refimpl import GenerationConfig
from refimpl.errors import NumericalError
from refimpl.generation.chain import ScoreProcessing
from refimpl.generation.processors import PADDING
from tests.conformance.theirs import load_theirs, torch, transformers
from tests.tiny import save_tiny, tiny_model, tiny_neox

COMBINATIONS = int(os.environ.get("REFIMPL_GENERATIONS", "24"))
VOCAB = 40

FAMILIES = {"gpt_neox": tiny_neox, "gpt_neox_japanese": tiny_model}


def random_options(rng: np.random.Generator, prompt_length: int) -> dict[str, Any]:
    """Some options that change scores, none of which contradicts another."""

    def tokens(least: int, most: int) -> list[int]:
        return rng.choice(np.arange(3, VOCAB), rng.integers(least, most), replace=False).tolist()

    everything = {
        "repetition_penalty": float(rng.choice([0.6, 1.3, 2.5])),
        "no_repeat_ngram_size": int(rng.integers(2, 4)),
        "encoder_no_repeat_ngram_size": int(rng.integers(2, 4)),
        "bad_words_ids": [tokens(1, 3) for _ in range(6)],
        "sequence_bias": [[tokens(1, 3), float(rng.normal(0, 3))] for _ in range(6)],
        "suppress_tokens": tokens(1, 6),
        "begin_suppress_tokens": tokens(1, 12),
        "forced_eos_token_id": int(rng.integers(0, 3)),
        "exponential_decay_length_penalty": (int(rng.integers(0, 4)), float(rng.choice([1.2, 2.0]))),
        "guidance_scale": float(rng.choice([0.5, 1.5, 3.0])),
        "remove_invalid_values": True,
        "renormalize_logits": True,
        **(
            {"min_new_tokens": int(rng.integers(1, 8))}
            if rng.random() < 0.5
            else {"min_length": prompt_length + int(rng.integers(0, 8))}
        ),
    }
    chosen = rng.choice(list(everything), rng.integers(1, 6), replace=False)
    options = {name: everything[name] for name in chosen}
    # An eos that comes sometimes, and never without a choice: many ids.
    return {"eos_token_id": [2, *tokens(0, 5)], "pad_token_id": 1, **options}


def padded_prompts(rng: np.random.Generator, rows: int, seq: int) -> tuple[np.ndarray, np.ndarray]:
    """Prompts with padding on the left, by an id that stands nowhere else."""
    ids = rng.integers(3, 14, (rows, seq))
    mask = np.ones_like(ids)
    for row in range(1, rows):
        mask[row, : rng.integers(0, seq - 3)] = 0
    return np.where(mask == 1, ids, 1), mask


def continued_by_theirs(theirs: Any, ids: np.ndarray, mask: np.ndarray, **asked: Any) -> Any:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return theirs.generate(
            torch.from_numpy(ids),
            attention_mask=torch.from_numpy(mask),
            return_dict_in_generate=True,
            output_scores=True,
            **{name: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for name, v in asked.items()},
        )


def decided_steps(scores: torch.Tensor) -> np.ndarray:
    """How many steps of each row come before the first that rounding could turn.  [rows, new, vocab] -> [rows]"""
    best = scores.topk(2, dim=-1).values.numpy()
    with np.errstate(invalid="ignore"):  # two that are ruled out
        close = ~(best[..., 0] - best[..., 1] > 1e-4 * np.maximum(1, np.abs(best[..., 0])))
    return np.where(close.any(axis=1), close.argmax(axis=1), close.shape[1])


@pytest.mark.parametrize("seed", range(COMBINATIONS))
def test_greedy_text_with_random_options(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    family, backend = list(FAMILIES)[seed % 2], ("numpy", "numba")[seed // 2 % 2]
    theirs = load_theirs(save_tiny(tmp_path, FAMILIES[family](seed=seed)))
    ours = refimpl.AutoModelForCausalLM.from_pretrained(tmp_path, backend=backend)
    ids, mask = padded_prompts(rng, 3, 9)
    asked = {"max_new_tokens": 10, "do_sample": False, **random_options(rng, 9)}
    if "guidance_scale" in asked and rng.random() < 0.7:
        asked["negative_prompt_ids"], asked["negative_prompt_attention_mask"] = padded_prompts(rng, 3, 5)
    wanted = continued_by_theirs(theirs, ids, mask, **asked)
    scores = torch.stack(wanted.scores, dim=1)
    steps = decided_steps(scores)
    stuck = torch.isneginf(scores).all(dim=-1).any()
    if stuck:
        # transformers takes the first of tokens that are all ruled out.  Here that is an error, unless
        # the row has ended.
        with contextlib.suppress(NumericalError):
            ours.generate(ids, attention_mask=mask, **asked)
        return
    found = ours.generate(ids, attention_mask=mask, **asked)
    for row, count in enumerate(steps):
        end = 9 + int(count)
        assert found[row, :end].tolist() == wanted.sequences[row, :end].tolist(), f"row {row}: {asked}"


def test_the_random_options_are_varied_and_change_texts(tmp_path: Path) -> None:
    names = {name for seed in range(40) for name in random_options(np.random.default_rng(seed), 9)}
    assert len(names) == 16
    model = tiny_model()
    ids = padded_prompts(np.random.default_rng(0), 1, 9)[0]
    plain = model.generate(ids, max_new_tokens=10, eos_token_id=[])
    changed = 0
    for seed in range(20):
        options = random_options(np.random.default_rng(seed), 9)
        out = model.generate(ids, max_new_tokens=10, **options)
        changed += out.shape != plain.shape or bool((out != plain).any())
    assert changed >= 15


@pytest.mark.parametrize("seed", range(COMBINATIONS // 2))
def test_the_scores_that_are_drawn_from(seed: int, tmp_path: Path) -> None:
    """Sampling draws other numbers, but from the same scores: those of transformers' own text, step by step."""
    rng = np.random.default_rng(seed)
    family = list(FAMILIES)[seed % 2]
    model = FAMILIES[family](seed=seed)
    theirs = load_theirs(save_tiny(tmp_path, model))
    ids, mask = padded_prompts(rng, 2, 8)
    filters = {
        "temperature": float(rng.choice([0.5, 1.7])),
        "top_p": float(rng.uniform(0.3, 0.95)),
        "min_p": float(rng.uniform(0.01, 0.3)),
        "typical_p": float(rng.uniform(0.3, 0.95)),
        "top_h": float(rng.uniform(0.3, 0.95)),
        "epsilon_cutoff": float(rng.uniform(0.005, 0.05)),
        "eta_cutoff": float(rng.uniform(0.005, 0.2)),
    }
    options = {name: filters[name] for name in rng.choice(list(filters), rng.integers(1, 5), replace=False)}
    options |= {"do_sample": True, "top_k": int(rng.choice([0, 5, 50])), **random_options(rng, 8)}
    options.pop("guidance_scale", None)
    torch.manual_seed(seed)
    wanted = continued_by_theirs(theirs, ids, mask, max_new_tokens=5, **options)
    config = GenerationConfig(max_new_tokens=5, **options)
    processing = ScoreProcessing(config, np.where(mask == 1, ids, PADDING), 13, VOCAB)
    text, differing = wanted.sequences.numpy(), 0
    for step, scores in enumerate(wanted.scores):
        so_far = text[:, : 8 + step]
        real = np.concatenate([mask, np.ones((2, step), mask.dtype)], axis=1)
        positions = np.maximum(real.cumsum(axis=1) - 1, 0)
        logits = model(so_far, attention_mask=real, position_ids=positions).logits[:, -1]
        found, expected = processing.whole(so_far, logits), scores.numpy()
        # A token on the very border of a filter may fall to either side, and moves what is renormalized.
        if ((found > -1e30) != (expected > -1e30)).any():
            differing += 1
            continue
        kept = expected > -1e30
        assert np.abs(found[kept] - expected[kept]).max() < 1e-4 * max(1, np.abs(expected[kept]).max()), (
            options
        )
    assert differing <= 1, options


def test_which_settings_win(tmp_path: Path) -> None:
    """The model's files, a config of the call, and the call itself."""
    save_tiny(tmp_path)
    ids, mask = padded_prompts(np.random.default_rng(1), 1, 6)

    def compare(config: dict[str, Any] | None, **asked: Any) -> list[int]:
        theirs, ours = load_theirs(tmp_path), refimpl.AutoModelForCausalLM.from_pretrained(tmp_path)
        found = ours.generate(
            ids, generation_config=None if config is None else GenerationConfig(**config), **asked
        )
        given = None if config is None else transformers.GenerationConfig(**config)
        wanted = continued_by_theirs(theirs, ids, mask, generation_config=given, **asked)
        assert found.tolist() == wanted.sequences.tolist()
        return found[0].tolist()

    path = tmp_path / "config.json"
    settings = {**json.loads(path.read_text()), "eos_token_id": None}
    texts = []
    path.write_text(json.dumps(settings))
    texts.append(compare(None))
    path.write_text(json.dumps({**settings, "suppress_tokens": texts[-1][6:8], "max_length": 14}))
    texts.append(compare(None))
    of_file = {"suppress_tokens": texts[-1][6:9], "max_new_tokens": 9}
    (tmp_path / "generation_config.json").write_text(json.dumps(of_file))
    texts.append(compare(None))
    texts.append(compare({"suppress_tokens": texts[-1][6:9]}))
    texts.append(compare({"suppress_tokens": texts[-1][6:9], "max_new_tokens": 8}, repetition_penalty=5.0))
    texts.append(compare({"repetition_penalty": 2.0}, repetition_penalty=5.0, suppress_tokens=[3]))
    assert [len(text) for text in texts] == [26, 14, 15, 15, 14, 15]
    assert all(one[:13] != other[:13] for one, other in itertools.pairwise(texts))


def test_stop_strings(embedded_model: Path) -> None:
    """The embedded model and its tokenizer; strings that end inside a token, and begin in the prompt."""
    theirs, ours = load_theirs(embedded_model), refimpl.AutoModelForCausalLM.from_pretrained(embedded_model)
    our_tokenizer = refimpl.AutoTokenizer.from_pretrained(embedded_model)
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(embedded_model)
    prompt = "吾輩は猫"
    ids = np.array([our_tokenizer.encode(prompt)])
    asked = {"max_new_tokens": 25, "do_sample": False, "repetition_penalty": 1.3}
    free = our_tokenizer.decode(ours.generate(ids, **asked)[0].tolist())
    # The library finds no token for a space or the end of a line.
    new = max(free[len(prompt) :].split(), key=len)
    lengths = set()
    for strings in (
        new[2:4],
        [new[5:6], "存在しない"],
        ["存在しない"],
        free[len(prompt) - 2 : len(prompt) + 1],
        prompt,
    ):
        found = ours.generate(ids, stop_strings=strings, tokenizer=our_tokenizer, **asked)
        wanted = continued_by_theirs(
            theirs, ids, np.ones_like(ids), stop_strings=strings, tokenizer=their_tokenizer, **asked
        )
        assert found.tolist() == wanted.sequences.tolist(), strings
        lengths.add(found.shape[1])
    assert len(lengths) >= 3
