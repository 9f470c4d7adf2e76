"""The Rust package `tokenizers` on tokenizer.json, by its fastest calls (those without offsets)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tokenizers


def prepare(model: str, threads: int, options: dict[str, Any]) -> dict[str, Any]:
    """See refimpl/cli/bench/worker.py; the number of threads is in the environment, as the package wants it."""
    file = Path(model) / "tokenizer.json"
    if not file.is_file() or options:
        raise NotImplementedError("it reads tokenizer.json, and takes no further options")
    tokenizer = tokenizers.Tokenizer.from_file(str(file))

    def encode_batch(texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in tokenizer.encode_batch_fast(texts)]

    return {
        "what": "tokenizers.Tokenizer (Rust)",
        "versions": {"tokenizers": tokenizers.__version__},
        "threads": threads,
        "operations": {
            "encode": lambda text: encode_batch([text])[0],
            "encode_batch": encode_batch,
            "decode": lambda ids: tokenizer.decode(ids, skip_special_tokens=False),
            "decode_batch": lambda rows: tokenizer.decode_batch(rows, skip_special_tokens=False),
        },
    }
