"""Golden vectors of what the options of `generate()` do to scores, alone and in the pairs that interact.

`python golden/make/make_processors.py` writes `golden/vectors/processors/*.safetensors`.  The processors, and their
order, are those that transformers makes of the options for a text whose first `prompt_length` places are the prompt.
"""

from __future__ import annotations

import argparse
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from common import GOLDEN, judge, write_case_file
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM
from transformers.modeling_outputs import CausalLMOutput

VOCAB, ROWS, LENGTH, EOS = 32, 3, 12, 2
SOURCE = {
    "kind": "independent",
    "library": "transformers",
    "version": "5.23.0",
    "address": "https://github.com/huggingface/transformers/tree/v5.23.0/src/transformers/generation",
    "command": "python golden/make/make_processors.py",
}

#: What `extreme` says of a score that is no ordinary number.
RULED_OUT, LOWEST, LARGEST = -2, -1, 1

Arrays = dict[str, np.ndarray]
SAMPLE = {"do_sample": True, "top_k": 0}

#: name -> options of `generate()`; eos_token_id is 2 and prompt_length 8 where nothing else is said.  `whole`: no
#: padding, because the library takes it for text there, and what a row is filled with should not matter.
CASES: dict[str, dict[str, Any]] = {
    "nothing": {},
    "repetition-penalty": {"repetition_penalty": 1.7},
    "repetition-reward": {"repetition_penalty": 0.5},
    "encoder-repetition-penalty": {"encoder_repetition_penalty": 1.5, "whole": True},
    "no-repeat-ngram-1": {"no_repeat_ngram_size": 1, "whole": True},
    "no-repeat-ngram-2": {"no_repeat_ngram_size": 2},
    "no-repeat-ngram-3": {"no_repeat_ngram_size": 3},
    "no-repeat-ngram-longer-than-text": {"no_repeat_ngram_size": LENGTH + 1},
    "encoder-no-repeat-ngram-2": {"encoder_no_repeat_ngram_size": 2},
    "bad-words": {"bad_words_ids": [[7], [8, 9], [5, 6, 11], [EOS], [26, 27, 28, 30]]},
    "sequence-bias": {"sequence_bias": [[[7], 2.5], [[5, 6], -3.0], [[6], 1.25], [[4, 5, 12], 4.0]]},
    "suppress-tokens": {"suppress_tokens": [3, 17, 31]},
    "begin-suppress-tokens": {"begin_suppress_tokens": [3, 17], "prompt_length": LENGTH},
    "begin-suppress-tokens-later": {"begin_suppress_tokens": [3, 17]},
    "begin-suppress-after-forced-bos": {
        "begin_suppress_tokens": [3, 17], "forced_bos_token_id": 5, "prompt_length": 1, "length": 2
    },
    "forced-bos": {"forced_bos_token_id": 9, "prompt_length": 1, "length": 1},
    "forced-bos-later": {"forced_bos_token_id": 9},
    "forced-eos": {"forced_eos_token_id": EOS, "max_length": LENGTH + 1},
    "forced-eos-several": {"forced_eos_token_id": [EOS, 6], "max_new_tokens": 5},
    "forced-eos-earlier": {"forced_eos_token_id": EOS, "max_length": LENGTH + 2},
    "min-length": {"min_length": LENGTH + 1},
    "min-length-reached": {"min_length": LENGTH},
    "min-new-tokens": {"min_new_tokens": 5, "eos_token_id": [EOS, 11]},
    "min-new-tokens-reached": {"min_new_tokens": 4},
    "exponential-decay": {"exponential_decay_length_penalty": [1, 1.5], "eos_token_id": [EOS, 11]},
    "exponential-decay-earlier": {"exponential_decay_length_penalty": [4, 1.5]},
    "renormalize": {"renormalize_logits": True},
    "guidance": {"guidance_scale": 1.5},
    "remove-invalid-values": {"remove_invalid_values": True, "invalid": True},
    "temperature": {"temperature": 0.7, **SAMPLE},
    "top-k": {"do_sample": True, "top_k": 5},
    "top-k-ties": {"do_sample": True, "top_k": 3, "ties": True},
    "top-p": {"top_p": 0.8, **SAMPLE},
    "min-p": {"min_p": 0.1, **SAMPLE},
    "top-h": {"top_h": 0.6, **SAMPLE},
    "typical-p": {"typical_p": 0.7, **SAMPLE},
    "epsilon-cutoff": {"epsilon_cutoff": 0.02, **SAMPLE},
    "eta-cutoff": {"eta_cutoff": 0.04, **SAMPLE},
    "greedy-ignores-filters": {"top_k": 2, "top_p": 0.3, "temperature": 0.5},
    # Pairs in which the order, or what the other one has left, decides.
    "bias-then-repetition-penalty": {
        "sequence_bias": [[[4], 6.0], [[5], -6.0], [[6], 6.0]], "repetition_penalty": 2.0
    },
    "both-repetition-penalties": {
        "encoder_repetition_penalty": 1.5, "repetition_penalty": 2.0, "whole": True
    },
    "ngram-then-bias": {
        "no_repeat_ngram_size": 1, "sequence_bias": [[[4], 9.0], [[20], 9.0]], "whole": True
    },
    "min-length-and-decay": {"min_length": 20, "exponential_decay_length_penalty": [0, 2.0]},
    "forced-eos-beside-min-length": {
        "forced_eos_token_id": EOS, "min_length": LENGTH + 1, "max_length": LENGTH + 1
    },
    "forced-eos-then-suppress": {
        "forced_eos_token_id": [EOS, 6], "max_length": LENGTH + 1, "suppress_tokens": [6]
    },
    "bad-words-then-remove-invalid": {"bad_words_ids": [[7], [9]], "remove_invalid_values": True},
    "remove-invalid-then-suppress": {"remove_invalid_values": True, "suppress_tokens": [7], "invalid": True},
    "penalty-then-temperature": {"repetition_penalty": 1.7, "temperature": 0.7, **SAMPLE},
    "temperature-then-top-p": {"temperature": 1.8, "top_p": 0.8, **SAMPLE},
    "top-k-then-top-p": {"do_sample": True, "top_k": 6, "top_p": 0.8},
    "top-k-then-typical-p": {"do_sample": True, "top_k": 6, "typical_p": 0.6},
    "top-h-then-top-k": {"do_sample": True, "top_h": 0.6, "top_k": 3},
    "top-p-then-eta": {"do_sample": True, "top_k": 0, "top_p": 0.9, "eta_cutoff": 0.2},
    "min-p-then-epsilon": {"do_sample": True, "top_k": 0, "min_p": 0.05, "epsilon_cutoff": 0.08},
    "top-k-then-renormalize": {"do_sample": True, "top_k": 4, "renormalize_logits": True},
    "guidance-then-repetition-penalty": {"guidance_scale": 2.0, "repetition_penalty": 1.5},
    "all-of-sampling": {
        "repetition_penalty": 1.2, "no_repeat_ngram_size": 2, "min_new_tokens": 6, "do_sample": True,
        "temperature": 1.3, "top_h": 0.95, "top_k": 20, "top_p": 0.95, "min_p": 0.01, "typical_p": 0.95,
        "epsilon_cutoff": 0.001, "eta_cutoff": 0.002, "renormalize_logits": True,
    },
}  # fmt: skip


def inputs_of(name: str, length: int, options: dict[str, Any]) -> Arrays:
    """Ids with repetitions and some padding on the left, and scores that float32 holds exactly."""
    numbers = np.random.Generator(np.random.PCG64(list(name.encode())))
    ids = numbers.integers(3, 9, (ROWS, length))
    ids[0, -4:] = [4, 5, 4, 5][-length:]
    ids[1, -4:] = [9, 4, 5, 6][-length:]
    ids[2, -1:] = 8
    mask = np.ones_like(ids)
    if length > 4:
        if not options.get("whole"):
            ids[2, :3], mask[2, :3] = 29, 0
        ids[0, :2] = [5, 6]
        ids[0, 3:5] = [5, 12]
    scores = (3 * numbers.standard_normal((ROWS, VOCAB))).astype(np.float32)
    if options.get("ties"):
        scores = np.round(scores)
    if options.get("invalid"):
        scores[0, 5], scores[1, 7], scores[2, 9] = np.nan, np.inf, -np.inf
    arrays = {"ids": ids, "mask": mask, "scores": scores}
    if "guidance_scale" in options:
        arrays["negative_scores"] = (3 * numbers.standard_normal((ROWS, VOCAB))).astype(np.float32)
    return arrays


class Processing:
    """What transformers makes of options, for a model of which only the config matters."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        config = GPTNeoXConfig(
            vocab_size=VOCAB, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
            bos_token_id=1, eos_token_id=EOS,
        )  # fmt: skip
        self.model = GPTNeoXForCausalLM(config)

    def __call__(self, inputs: Arrays, prompt_length: int, options: dict[str, Any], dtype: Any) -> np.ndarray:
        model, ids = self.model, torch.from_numpy(inputs["ids"])
        settings, _ = model._prepare_generation_config(None, **options)
        model._prepare_special_tokens(settings, device="cpu")
        settings = model._prepare_generated_length(
            generation_config=settings,
            has_default_max_length="max_length" not in options,
            has_default_min_length="min_length" not in options,
            model_input_name="input_ids",
            input_ids_length=prompt_length,
            inputs_tensor=ids[:, :prompt_length],
        )
        processors = model._get_logits_processor(
            generation_config=settings,
            input_ids_seq_length=prompt_length,
            encoder_input_ids=ids[:, :prompt_length],
            device="cpu",
            model_kwargs={"attention_mask": torch.from_numpy(inputs["mask"])},
        )
        if "negative_scores" in inputs:
            logits = torch.from_numpy(inputs["negative_scores"]).to(dtype)[:, None]
            processors[0].model = lambda *_, **__: CausalLMOutput(logits=logits)
        return processors(ids, torch.from_numpy(inputs["scores"].copy()).to(dtype)).numpy()


def separated(scores: np.ndarray) -> Arrays:
    """The numbers, 0 where there is none; and what stands there instead."""
    limits, extreme = np.finfo(scores.dtype), np.zeros(scores.shape, dtype=np.int64)
    assert not np.isnan(scores).any()
    assert not np.isposinf(scores).any()
    extreme[scores == limits.max] = LARGEST
    extreme[scores == limits.min] = LOWEST
    extreme[np.isneginf(scores)] = RULED_OUT
    return {"scores": np.where(extreme == 0, scores, 0).astype(scores.dtype), "extreme": extreme}


def make(golden: Path, run: Processing, name: str, given: dict[str, Any]) -> None:
    """One file with one case."""
    options = {"eos_token_id": EOS, **given}
    length, prompt_length = options.pop("length", LENGTH), options.pop("prompt_length", 8)
    inputs = inputs_of(name, length, options)
    for key in ("ties", "invalid", "whole"):
        options.pop(key, None)
    exact, single = (
        separated(run(inputs, prompt_length, options, dtype)) for dtype in (torch.float64, torch.float32)
    )
    assert (exact["extreme"] == single["extreme"]).all(), f"{name}: rounding decides what is ruled out"
    file = f"vectors/processors/{name}.safetensors"
    outputs = {
        "scores": {"float64": "scores.float64", "float32": "scores.float32"},
        "extreme": {"int64": "extreme"},
    }
    case = {
        "id": f"processors/{name}",
        "title": f"Processed scores: {name.replace('-', ' ')}",
        "level": "op",
        "operation": "process_scores",
        "features": [],
        "required": False,
        "spec": "docs/generation.md#golden-cases",
        "inputs": {
            "file": file,
            "tensors": {key: key for key in inputs},
            "arguments": {"prompt_length": prompt_length, **options},
        },
        "expected": {"file": file, "outputs": outputs},
        "tolerance": {
            "scores": judge("scores", exact["scores"], single["scores"], None, "element"),
            "extreme": {"scale": "exact"},
        },
        "expect": {"kind": "return"},
        "source": SOURCE,
    }
    tensors = {
        **inputs,
        "scores.float64": exact["scores"],
        "scores.float32": single["scores"],
        "extreme": exact["extreme"],
    }
    write_case_file(golden / file, tensors, [case])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--golden", type=Path, default=GOLDEN, help="where the goldens lie")
    golden = parser.parse_args().golden
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    folder = golden / "vectors/processors"
    shutil.rmtree(folder, ignore_errors=True)
    run = Processing()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, options in CASES.items():
            make(golden, run, name, options)
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{len(CASES)} cases of processors, {size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
