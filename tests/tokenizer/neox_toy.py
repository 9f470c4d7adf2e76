"""A small byte-level vocabulary for tests, in every form in which a tokenizer takes one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from refimpl.tokenizer import GPTNeoXTokenizerFast
from refimpl.tokenizer.byte_level import BYTE_CHARACTERS

MERGES = [
    *("Ġ t", "h e", "Ġt he", "l l", "e ll", "H ell", "Hell o", "o r", "Ġ w", "Ġw or", "l d", "Ġwor ld"),
    *("Ã ©", "ä ¸", "a a", "aa aa", "' s", "Ġ Ġ"),
]


def vocabulary() -> dict[str, int]:
    """`<|endoftext|>` 0, `<|padding|>` 1, the bytes, then what the merges make."""
    tokens = ["<|endoftext|>", "<|padding|>", *BYTE_CHARACTERS, *(m.replace(" ", "") for m in MERGES)]
    return {token: index for index, token in enumerate(tokens)}


def toy(**options: Any) -> GPTNeoXTokenizerFast:
    return GPTNeoXTokenizerFast(vocab=vocabulary(), merges=MERGES, **{"impl": "plain", **options})


def added(index: int, content: str, **options: bool) -> dict[str, Any]:
    """An entry of `added_tokens`."""
    names = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return {"id": index, "content": content, **dict.fromkeys(names, False), **options}


def content() -> dict[str, Any]:
    """What a `tokenizer.json` holds."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            added(0, "<|endoftext|>", special=True),
            added(1, "<|padding|>", special=True),
            added(len(vocabulary()), "   ", normalized=True),
        ],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": byte_level,
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "vocab": vocabulary(),
            "merges": MERGES,
        },
    }


def write(folder: Path, tokenizer_json: Any) -> Path:
    """`tokenizer.json` in `folder`; its path."""
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(tokenizer_json), encoding="utf-8")
    return path


def write_two(folder: Path) -> tuple[Path, Path]:
    """`vocab.json` and `merges.txt` in `folder`; their paths."""
    vocab, merges = folder / "vocab.json", folder / "merges.txt"
    vocab.write_text(json.dumps(vocabulary()), encoding="utf-8")
    merges.write_text("#version: 0.2\n" + "\n".join(MERGES) + "\n", encoding="utf-8")
    return vocab, merges
