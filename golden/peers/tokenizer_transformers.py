"""transformers' own tokenizer of a folder: GPTNeoXJapaneseTokenizer (Python) or GPTNeoXTokenizer (Rust)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import tokenizers
import transformers


def prepare(model: str, threads: int, options: dict[str, Any]) -> dict[str, Any]:
    """See refimpl/cli/bench/worker.py."""
    transformers.utils.logging.set_verbosity_error()
    japanese = (Path(model) / "emoji.json").is_file()
    if options and not japanese:
        raise NotImplementedError(f"the options {', '.join(options)} are those of the Japanese tokenizer")
    tokenizer_class = transformers.GPTNeoXJapaneseTokenizer if japanese else transformers.GPTNeoXTokenizer
    tokenizer = tokenizer_class.from_pretrained(model, **options)
    return {
        "what": f"{tokenizer_class.__name__} ({'Python' if japanese else 'Rust'})",
        "versions": {"transformers": transformers.__version__, "tokenizers": tokenizers.__version__},
        "threads": 1 if japanese else threads,
        "operations": {
            "encode": lambda text: tokenizer(text)["input_ids"],
            "encode_batch": lambda texts: tokenizer(texts)["input_ids"],
            "decode": tokenizer.decode,
            "decode_batch": tokenizer.batch_decode,
        },
    }
