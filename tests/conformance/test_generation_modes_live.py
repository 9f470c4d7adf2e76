"""Live comparison with transformers: beams, prompt lookup, several texts, and what a dict of outputs holds."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import refimpl
from tests.conformance.test_generation_live import FAMILIES, continued_by_theirs, padded_prompts
from tests.conformance.theirs import load_theirs, torch
from tests.tiny import save_tiny


def both(tmp_path: Path, seed: int) -> tuple[Any, Any]:
    """(their model, ours), with random weights of one of the families."""
    theirs = load_theirs(save_tiny(tmp_path, FAMILIES[list(FAMILIES)[seed % 2]](seed=seed)))
    backend = ("numpy", "numba")[seed // 2 % 2]
    return theirs, refimpl.AutoModelForCausalLM.from_pretrained(tmp_path, backend=backend)


def random_search(rng: np.random.Generator) -> dict[str, Any]:
    beams = int(rng.integers(2, 6))
    everything = {
        "length_penalty": float(rng.choice([-1.0, 0.0, 0.5, 2.0])),
        "early_stopping": [True, False, "never"][rng.integers(3)],
        "num_return_sequences": int(rng.integers(1, beams + 1)),
        "repetition_penalty": 1.4,
        "no_repeat_ngram_size": 2,
        "min_new_tokens": 3,
        "renormalize_logits": True,
        "bad_words_ids": [[5], [7, 8]],
    }
    chosen = rng.choice(list(everything), rng.integers(1, 6), replace=False)
    # Many ids that end a text: it then ends after a few tokens, at different lengths.  Padding counts as text there
    # and not here: its id must not come, or it would be penalized.
    ends = rng.choice(np.arange(3, 40), rng.integers(1, 8), replace=False).tolist()
    return {
        "num_beams": beams, "max_new_tokens": int(rng.integers(3, 12)), "eos_token_id": ends, "pad_token_id": 1,
        "suppress_tokens": [1], **{name: everything[name] for name in chosen},
    }  # fmt: skip


@pytest.mark.parametrize("seed", range(40))
def test_beam_search(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    theirs, ours = both(tmp_path, seed)
    ids, mask = padded_prompts(rng, int(rng.integers(1, 4)), 8)
    asked = {"do_sample": False, "output_logits": True, **random_search(rng)}
    wanted = continued_by_theirs(theirs, ids, mask, **asked)
    found = ours.generate(ids, attention_mask=mask, return_dict_in_generate=True, output_scores=True, **asked)
    assert found.sequences.tolist() == wanted.sequences.tolist(), asked
    assert found.beam_indices.tolist() == wanted.beam_indices.tolist()
    assert np.abs(found.sequences_scores - wanted.sequences_scores.numpy()).max() < 1e-4
    assert len(found.scores) == len(wanted.scores) == len(found.logits)
    made = ours.compute_transition_scores(found.sequences, found.scores, found.beam_indices)
    theirs_made = theirs.compute_transition_scores(wanted.sequences, wanted.scores, wanted.beam_indices)
    assert np.abs(made - theirs_made.numpy()).max() < 1e-4


@pytest.mark.parametrize("seed", range(8))
def test_prompt_lookup(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    theirs, ours = both(tmp_path, seed)
    piece = rng.integers(3, 14, 7)
    ids = np.concatenate([piece, piece, piece[:4]])[None]
    asked = {"max_new_tokens": 30, "do_sample": False, "eos_token_id": 2, "pad_token_id": 1}
    plain = ours.generate(ids, **asked)
    looked = {
        "prompt_lookup_num_tokens": int(rng.integers(1, 9)),
        "max_matching_ngram_size": int(rng.integers(1, 4)),
    }
    wanted = continued_by_theirs(theirs, ids, np.ones_like(ids), **asked, **looked)
    found = ours.generate(
        ids, return_dict_in_generate=True, output_scores=True, output_attentions=True, output_hidden_states=True,
        **asked, **looked,
    )  # fmt: skip
    assert found.sequences.tolist() == plain.tolist() == wanted.sequences.tolist()
    whole = ours.generate(
        ids, return_dict_in_generate=True, output_attentions=True, output_hidden_states=True, **asked
    )
    for name in ("attentions", "hidden_states"):
        for one, other in zip(getattr(found, name), getattr(whole, name), strict=True):
            for a, b in zip(one, other, strict=True):
                assert a.shape == b.shape
                assert np.abs(a - b).max() < 1e-4


@pytest.mark.parametrize("seed", range(4))
def test_a_dict_of_outputs(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    theirs, ours = both(tmp_path, seed)
    ids, mask = padded_prompts(rng, 2, 6)
    beams = 1 + 2 * (seed // 2 % 2)
    asked = {
        "max_new_tokens": 4, "do_sample": False, "output_logits": True, "output_attentions": True,
        "output_hidden_states": True, "eos_token_id": 2, "pad_token_id": 1, "num_beams": beams,
    }  # fmt: skip
    wanted = continued_by_theirs(theirs, ids, mask, **asked)
    found = ours.generate(ids, attention_mask=mask, return_dict_in_generate=True, output_scores=True, **asked)
    assert found.keys() == [key for key in wanted if key in found]
    assert found.sequences.tolist() == wanted.sequences.tolist()
    for name in ("scores", "logits"):
        for one, other in zip(getattr(found, name), getattr(wanted, name), strict=True):
            assert np.abs(one - other.numpy()).max() < 1e-4
    real = np.repeat(mask, beams, axis=0)
    for step, (one, other) in enumerate(zip(found.hidden_states, wanted.hidden_states, strict=True)):
        for a, b in zip(one, other, strict=True):
            assert a.shape == b.shape
            rows = real if step == 0 else np.ones(a.shape[:2])
            assert np.abs((a - b.numpy()) * rows[..., None]).max() < 1e-4
    for step, (one, other) in enumerate(zip(found.attentions, wanted.attentions, strict=True)):
        for a, b in zip(one, other, strict=True):
            assert a.shape == b.shape
            rows = real if step == 0 else np.ones(a.shape[0:1] + a.shape[2:3])
            assert np.abs((a - b.numpy()) * rows[:, None, :, None]).max() < 1e-4
    if beams == 1:
        made = ours.compute_transition_scores(found.sequences, found.scores, normalize_logits=True)
        theirs_made = theirs.compute_transition_scores(wanted.sequences, wanted.scores, normalize_logits=True)
        assert np.abs(made - theirs_made.numpy()).max() < 1e-4


def test_embeddings_instead_of_ids(tmp_path: Path) -> None:
    theirs, ours = both(tmp_path, 2)
    ids, mask = padded_prompts(np.random.default_rng(0), 2, 6)
    embeds = theirs.get_input_embeddings()(torch.from_numpy(ids)).detach()
    asked = {
        "max_new_tokens": 5,
        "do_sample": False,
        "eos_token_id": 2,
        "pad_token_id": 1,
        "repetition_penalty": 1.5,
    }
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = theirs.generate(inputs_embeds=embeds, attention_mask=torch.from_numpy(mask), **asked)
    found = ours.generate(inputs_embeds=embeds.numpy(), attention_mask=mask, **asked)
    assert found.tolist() == wanted.tolist()


def test_only_allowed_tokens(tmp_path: Path) -> None:
    theirs, ours = both(tmp_path, 3)
    ids, mask = padded_prompts(np.random.default_rng(0), 2, 6)

    def allowed(prompt: int, text: Any) -> list[int]:
        return [5, 6, 7] if prompt == 0 else [8 + len(text) % 3, 2]

    mask[:] = 1
    for beams in (1, 3):
        asked = {
            "max_new_tokens": 5,
            "do_sample": False,
            "eos_token_id": 2,
            "pad_token_id": 1,
            "num_beams": beams,
        }
        wanted = continued_by_theirs(theirs, ids, mask, prefix_allowed_tokens_fn=allowed, **asked)
        found = ours.generate(ids, attention_mask=mask, prefix_allowed_tokens_fn=allowed, **asked)
        assert found.tolist() == wanted.sequences.tolist()
