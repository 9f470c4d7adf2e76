"""Golden texts of beam search, prompt lookup, and of the options of `generate()` working together.

`python golden/make/make_generation.py` writes `golden/vectors/generation/*.safetensors`: ids that transformers
generates with the tiny models.  Prompts are drawn until rounding decides nothing: noise on every logit, far above
that of float32, must leave all ids as they are.
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
from common import GOLDEN, write_case_file

#: Relative to the largest logit.
NOISE = 1e-5
ATTEMPTS = 200
PAD = 1  # transformers takes 0 for none
MODELS = {
    "gpt-neox": "models/gpt_neox/tiny-plain",
    "gpt-neox-japanese": "models/gpt_neox_japanese/tiny-plain",
}
SOURCE = {
    "kind": "independent",
    "library": "transformers",
    "version": "5.23.0",
    "address": "https://github.com/huggingface/transformers/tree/v5.23.0/src/transformers/generation",
    "command": "python golden/make/make_generation.py",
}

#: name -> options of `generate()`.  `rows`: of the batch (1); `repeated`: a prompt that repeats itself; `ends`: so many
#: ids end a text, none of them where nothing is said; `padded`: padding on the left.
CASES: dict[str, dict[str, Any]] = {
    "beams": {"num_beams": 4, "rows": 2},
    "beams-that-end": {"num_beams": 3, "ends": 3, "rows": 2},
    "beams-padded": {"num_beams": 3, "ends": 2, "rows": 3, "padded": True},
    "beams-short-texts-preferred": {"num_beams": 4, "ends": 4, "length_penalty": -1.0, "rows": 2},
    "beams-long-texts-preferred": {"num_beams": 4, "ends": 4, "length_penalty": 2.0, "rows": 2},
    "beams-early-stopping": {"num_beams": 4, "ends": 5, "early_stopping": True, "rows": 2},
    "beams-never-stopping-early": {
        "num_beams": 3, "ends": 5, "early_stopping": "never", "length_penalty": 1.5, "rows": 2
    },
    "beams-several-texts": {"num_beams": 5, "ends": 2, "num_return_sequences": 3},
    "greedy-repetition-penalty": {"repetition_penalty": 1.8},
    "greedy-no-repeat-ngram": {"no_repeat_ngram_size": 2, "repeated": True},
    "greedy-bad-words": {"bad_words_ids": [[5], [7, 9], [3, 4, 6], [11], [13]]},
    "greedy-sequence-bias": {"sequence_bias": [[[5], 4.0], [[5, 7], 6.0], [[7, 5], -8.0]]},
    "greedy-suppress-tokens": {"suppress_tokens": [3, 5, 7, 9, 11], "begin_suppress_tokens": [4, 6, 8]},
    "greedy-min-new-tokens": {"ends": 6, "min_new_tokens": 6, "rows": 2},
    "greedy-forced-eos": {"ends": 1, "forced_eos_token_id": 9},
    "greedy-exponential-decay": {"ends": 1, "exponential_decay_length_penalty": [2, 2.0]},
    "greedy-guidance": {"guidance_scale": 1.5},
    "prompt-lookup": {"prompt_lookup_num_tokens": 4, "repeated": True},
    # Pairs in which one option changes what the other has to choose from, or when it is asked.
    "beams-and-repetition-penalty": {"num_beams": 3, "repetition_penalty": 1.5, "rows": 2},
    "beams-and-no-repeat-ngram": {"num_beams": 3, "no_repeat_ngram_size": 2, "repeated": True},
    "beams-and-bad-words": {"num_beams": 3, "bad_words_ids": [[5], [7, 9], [3, 4, 6]], "rows": 2},
    "beams-and-min-new-tokens": {"num_beams": 3, "ends": 5, "min_new_tokens": 5, "rows": 2},
    "beams-and-forced-eos": {"num_beams": 3, "ends": 1, "forced_eos_token_id": 9},
    "beams-and-renormalize": {"num_beams": 3, "suppress_tokens": [3, 4, 5, 6], "renormalize_logits": True},
    "prompt-lookup-and-repetition-penalty": {
        "prompt_lookup_num_tokens": 4, "repetition_penalty": 0.6, "repeated": True
    },
    "prompt-lookup-and-eos": {"prompt_lookup_num_tokens": 4, "ends": 3, "repeated": True},
    "penalty-and-ngram": {"repetition_penalty": 0.5, "no_repeat_ngram_size": 2},
    "min-new-tokens-and-decay": {
        "ends": 3, "min_new_tokens": 5, "exponential_decay_length_penalty": [0, 2.5], "rows": 2
    },
    "ngram-and-bias": {"no_repeat_ngram_size": 1, "sequence_bias": [[[5], 6.0], [[7], 6.0]]},
}  # fmt: skip

NEW_TOKENS = 8


class Noise(transformers.LogitsProcessor):
    """Adds to each score what rounding could, and more."""

    def __init__(self, size: float, seed: int):
        self.size, self.numbers = size, torch.Generator().manual_seed(seed)

    def __call__(self, input_ids: Any, scores: torch.Tensor) -> torch.Tensor:
        finite = scores.masked_fill(scores.isinf(), 0)
        return scores + self.size * finite.abs().max() * torch.randn(scores.shape, generator=self.numbers)


def inputs_of(numbers: np.random.Generator, vocab: int, given: dict[str, Any]) -> dict[str, np.ndarray]:
    rows, length = given.get("rows", 1), 7
    ids = numbers.integers(3, vocab, (rows, length))
    if given.get("repeated"):
        ids = np.concatenate([ids, ids, ids[:, :3]], axis=1)
    if not given.get("padded"):
        return {"input_ids": ids}
    mask = np.ones_like(ids)
    for row in range(1, rows):
        mask[row, : 2 * row - 1] = 0
    return {"input_ids": np.where(mask == 1, ids, PAD), "attention_mask": mask}


def generated(model: Any, inputs: dict[str, np.ndarray], options: dict[str, Any], noise: int | None) -> list:
    with torch.no_grad():
        given = {name: torch.from_numpy(array) for name, array in inputs.items()}
        given.setdefault("attention_mask", torch.ones_like(given["input_ids"]))
        disturbed = [] if noise is None else [Noise(NOISE, noise)]
        return model.generate(**given, **options, logits_processor=disturbed).tolist()


def make(golden: Path, family: str, model: Any, name: str, given: dict[str, Any]) -> None:
    """One file with one case."""
    numbers = np.random.Generator(np.random.PCG64(list(f"{family}/{name}".encode())))
    asked = {key: value for key, value in given.items() if key not in ("rows", "repeated", "ends", "padded")}
    vocab = model.config.vocab_size
    plain = {
        "num_beams": asked.get("num_beams", 1),
        "num_return_sequences": asked.get("num_return_sequences", 1),
    }
    for _ in range(ATTEMPTS):
        inputs = inputs_of(numbers, vocab, given)
        ends = (
            numbers.choice(np.arange(3, vocab), given["ends"], replace=False).tolist()
            if "ends" in given
            else None
        )
        common = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "eos_token_id": ends, "pad_token_id": PAD}
        options = {**common, **asked}
        found = generated(model, inputs, options, None)
        # Padding counts as text in the library: its id must not come, or it would be penalized.
        new = np.array(found)[:, inputs["input_ids"].shape[1] :]
        is_clear = all(generated(model, inputs, options, noise) == found for noise in range(3))
        # The options must show, beside the search alone; prompt lookup alone must not.
        others = [key for key in asked if key not in (*plain, "prompt_lookup_num_tokens")]
        shows = not others or generated(model, inputs, {**common, **plain}, None) != found
        if ends:
            fits = bool(np.isin(new, ends).any())
        else:  # where nothing ends a text, the eos of the model must not matter
            own = np.ravel(model.generation_config.eos_token_id).tolist()
            fits = (
                not (new == PAD).any()
                and generated(model, inputs, {**options, "eos_token_id": own}, None) == found
            )
        if is_clear and shows and fits:
            break
    else:
        raise AssertionError(f"{family}/{name}: no prompt shows it clearly")
    if "prompt_lookup_num_tokens" in asked:
        without = {key: value for key, value in options.items() if key != "prompt_lookup_num_tokens"}
        assert generated(model, inputs, without, None) == found
    file = f"vectors/generation/{family}-{name}.safetensors"
    features = ["beam-search"] if "num_beams" in asked else ["greedy"]
    features += ["prompt-lookup"] if "prompt_lookup_num_tokens" in asked else []
    features += ["eos"] if ends else []
    features += ["left-padding"] if "attention_mask" in inputs else []
    features += ["score-processors"] if others and set(others) - {"length_penalty", "early_stopping"} else []
    case = {
        "id": f"generation/{family}/{name}",
        "title": f"Generated ids: {name.replace('-', ' ')}",
        "level": "generation",
        "operation": "generate",
        "features": sorted(features),
        "required": False,
        "spec": "docs/generation.md#golden-cases",
        "model": MODELS[family],
        "inputs": {"file": file, "tensors": {key: key for key in inputs}, "arguments": options},
        "expected": {"file": file, "outputs": {"sequences": {"int64": "sequences"}}},
        "tolerance": {"sequences": {"scale": "exact"}},
        "expect": {"kind": "return"},
        "source": SOURCE,
    }
    write_case_file(golden / file, {**inputs, "sequences": np.array(found)}, [case])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--golden", type=Path, default=GOLDEN, help="where the goldens lie")
    golden = parser.parse_args().golden
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    folder = golden / "vectors/generation"
    shutil.rmtree(folder, ignore_errors=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for family, place in MODELS.items():
            model = transformers.AutoModelForCausalLM.from_pretrained(golden / place, dtype="float32")
            for name, given in CASES.items():
                make(golden, family, model.eval(), name, given)
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{2 * len(CASES)} cases of generation, {size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
