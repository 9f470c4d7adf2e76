"""Writes the trained model as a folder that transformers, and every reader of its format, can load.

    python golden/make/export_embedded.py FOLDER

Called by `train_embedded.py --export FOLDER` too.  What is written: `model.safetensors` in float16 (tied, so without
`embed_out`), `config.json`, `generation_config.json`, `vocab.txt`, `emoji.json`, `tokenizer_config.json`,
`README.md` (the model card) and `training_log.json`.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import corpus
import torch
from embedded_model import (
    CHECKPOINT,
    CONTEXT,
    LOG,
    TOKENS_PER_STEP,
    WORK,
    bits_per_character,
    load_tokenizer,
    model_config,
)
from transformers import GenerationConfig, GPTNeoXJapaneseForCausalLM

SAMPLE = "held_back_bits_per_character"  # as the log calls it
SAMPLING = {"do_sample": True, "temperature": 0.8, "top_k": 50, "top_p": 0.95, "repetition_penalty": 1.1}


def export(folder: Path, characters: int | None = None) -> None:
    """Exports the last checkpoint; `characters` shortens the evaluation (per held-back work) for a first look."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = load_tokenizer()
    config = model_config(tokenizer)
    model = GPTNeoXJapaneseForCausalLM(config)
    state = torch.load(CHECKPOINT, weights_only=True)
    model.load_state_dict(state["model"])
    model.half()
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        **SAMPLING,
    )
    model.save_pretrained(folder)
    for name in ("vocab.txt", "emoji.json"):
        shutil.copyfile(WORK / name, folder / name)
    settings = {
        "tokenizer_class": "GPTNeoXJapaneseTokenizer",
        "bos_token": tokenizer.bos_token,
        "eos_token": tokenizer.eos_token,
        "pad_token": tokenizer.pad_token,
        "unk_token": tokenizer.unk_token,
        "do_clean_text": False,
        "model_max_length": CONTEXT,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    summary = summarize(model, state, bits_per_character(model.float(), characters), characters)
    (folder / "training_log.json").write_text(json.dumps(summary, indent=1) + "\n")
    (folder / "README.md").write_text(model_card(summary), encoding="utf-8")


def summarize(model: GPTNeoXJapaneseForCausalLM, state: dict, bits: float, characters: int | None) -> dict:
    entries = [json.loads(line) for line in LOG.read_text().splitlines()]
    curve = {entry["step"]: entry for entry in entries if "loss" in entry and entry["step"] % 100 == 0}
    measured = {entry["step"]: entry[SAMPLE] for entry in entries if SAMPLE in entry}
    sizes = {name: json.loads((WORK / f"{name}.json").read_text()) for name in ("training", "held_back")}
    held_back = {name: sum(counts) for name, counts in sizes["held_back"].items()}
    return {
        "parameters": model.num_parameters(),
        "steps": state["step"],
        "tokens_seen": state["step"] * TOKENS_PER_STEP,
        "training_seconds": round(state["seconds"]),
        "training_works": len(sizes["training"]["characters"]),
        "training_characters": sum(sizes["training"]["characters"]),
        "training_tokens": sum(sizes["training"]["tokens"]),
        "held_back_works": len(sizes["held_back"]["characters"]),
        "held_back_characters": held_back["characters"],
        "held_back_characters_per_token": round(held_back["characters"] / held_back["tokens"], 4),
        "bits_per_character": round(bits, 4),
        "bits_per_character_of": "all held-back works"
        if characters is None
        else "the held-back works' beginnings",
        "torch": torch.__version__,
        "training_loss_by_step": {step: round(entry["loss"], 4) for step, entry in sorted(curve.items())},
        "sample_bits_per_character_by_step": {step: round(bits, 4) for step, bits in measured.items()},
    }


def model_card(summary: dict) -> str:
    config = model_config(load_tokenizer())
    shape = f"{config.num_hidden_layers} layers, hidden size {config.hidden_size}, {config.num_attention_heads} heads"
    passes = summary["tokens_seen"] / summary["training_tokens"]
    return f"""---
language: ja
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
---

# A small GPT-NeoX-Japanese model, trained on Aozora Bunko

This is a real, but small, GPT-NeoX-Japanese model: {summary["parameters"]:,} parameters
({shape}, tied embeddings), stored in float16.
It exists so that the program has something to run, offline, from the first minute, and so that tests run on weights
that were trained and not drawn at random.

## What it can and cannot do

It continues Japanese prose in the manner of literature of the Meiji to early Shōwa era. Sentences are mostly
well-formed; a thread of thought is not kept for long, and nothing it says is knowledge. Without the repetition
penalty that `generation_config.json` sets, it tends to go round in circles. It has seen no other language, no
dialogue with a user, no code and no modern text. It was trained on unfiltered literary works of the years before
1967, and can repeat the prejudices and the language of that time. Do not use it to inform or to decide.

## Text it was trained on

{summary["training_works"]:,} works ({summary["training_characters"]:,} characters) in new kanji and new kana by authors
who died in 1967 or before: works in the public domain in Japan. The texts were typed and proofread by the volunteers
of [Aozora Bunko](https://www.aozora.gr.jp/) (青空文庫), to whom thanks are due. They were taken from
{corpus.REPOSITORY}
at commit `{corpus.COMMIT}`; ruby, notes and colophons were removed. The names of the
{summary["held_back_works"]} works that were held back are in `golden/make/held_back.txt` of the source repository.

## Training

- Vocabulary: {config.vocab_size:,} lines, trained on the same works with `refimpl train-vocab`;
  {summary["held_back_characters_per_token"]:.3f} characters per token on the held-back works.
- {summary["steps"]:,} steps, {summary["tokens_seen"]:,} tokens ({passes:.1f} passes over the text),
  {summary["training_seconds"] / 60:.0f} minutes on two CPU cores shared with other work.
- Muon for the matrices of the layers, AdamW for the embedding, norms and bias; constant rate, then linear decay to
  zero; sequences of 256 tokens, towards the end of {CONTEXT} tokens; no dropout. All of it is in
  `golden/make/train_embedded.py`.

## Measure

**{summary["bits_per_character"]:.3f} bits per character** on {summary["bits_per_character_of"]}, computed from the
float16 weights of this folder with bfloat16 matrix products. That is the sum of -log2 p over all tokens of the works,
divided by the number of characters of their original text. Each work begins with `<|startoftext|>`; windows of
{CONTEXT} tokens advance by {CONTEXT // 2}, and each token is counted once, in the first window that holds it: every
token is predicted from at least {CONTEXT // 2} tokens before it, or from all that there are at the start of a work.

## Licence

The weights, the vocabulary and the emoji table: Apache-2.0. The works are in the public domain.
"""


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    export(Path(sys.argv[1]))
