"""The repositories that the examples name, as tiny models in a cache of huggingface_hub."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from refimpl import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GPTNeoXForTokenClassification,
    GPTNeoXJapaneseConfig,
    GPTNeoXJapaneseForCausalLM,
)
from tests.tiny import save_tiny
from tests.tokenizer.conftest import expand

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "tokenizer"

ABEJA = "abeja/gpt-neox-japanese-2.7b"
NEOX_20B = "EleutherAI/gpt-neox-20b"
TINY_RANDOM = "trl-internal-testing/tiny-random-GPTNeoXForCausalLM"
SWEDISH = "LarsJonasson/pythia-410m-deduped-sft-swedish"
GPT2 = "gpt2"

#: Lines of the published vocabulary that the examples need and the sparse one of the goldens leaves out.
WORDS = {656: "えま", 28459: "語", 28779: "使", 31621: "F", 31622: "G", 31623: "H", 31654: "g"}

#: What the tiny models have in common; the vocabularies keep their sizes, as the ids are the published ones.
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.2}


def build_hub(cache: Path) -> Path:
    """Write all repositories into `cache`, laid out as `HF_HUB_CACHE`."""
    folder = _snapshot(cache, ABEJA)
    config = GPTNeoXJapaneseConfig(
        **SIZES, intermediate_multiple_size=2, architectures=["GPTNeoXJapaneseForCausalLM"]
    )
    save_tiny(folder, GPTNeoXJapaneseForCausalLM(config, backend="numpy"))
    vocabulary = expand("japanese_sparse.json", folder) / "vocab.txt"
    lines = vocabulary.read_text(encoding="utf-8").split("\n")
    for token_id, word in WORDS.items():
        lines[token_id] = word
    vocabulary.write_text("\n".join(lines), encoding="utf-8", newline="\n")
    _tokenizer_config(folder, tokenizer_class="GPTNeoXJapaneseTokenizer")

    small = {"intermediate_size": 64, **SIZES}
    folder = _snapshot(cache, NEOX_20B)
    config_20b = GPTNeoXConfig(**small, architectures=["GPTNeoXForCausalLM"])
    save_tiny(folder, GPTNeoXForCausalLM(config_20b, backend="numpy"))
    shutil.copy(GOLDEN / "neox_20b_sparse" / "tokenizer.json", folder)
    _tokenizer_config(folder, tokenizer_class="GPTNeoXTokenizer")

    for name, model_class in ((TINY_RANDOM, GPTNeoXForCausalLM), (SWEDISH, GPTNeoXForTokenClassification)):
        folder = _snapshot(cache, name)
        config_small = GPTNeoXConfig(vocab_size=1024, **small, architectures=[model_class.__name__])
        save_tiny(folder, model_class(config_small, backend="numpy", seed=1))
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(GOLDEN / "neox_small" / file, folder)

    folder = _snapshot(cache, GPT2)
    for file in ("vocab.json", "merges.txt"):
        shutil.copy(GOLDEN / "gpt2_sparse" / file, folder)
    _tokenizer_config(folder, tokenizer_class="GPT2Tokenizer")
    return cache


def _snapshot(cache: Path, name: str) -> Path:
    """The folder of the only version of a repository."""
    commit = "0" * 40
    repository = cache / f"models--{name.replace('/', '--')}"
    folder = repository / "snapshots" / commit
    folder.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    return folder


def _tokenizer_config(folder: Path, **settings: Any) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
