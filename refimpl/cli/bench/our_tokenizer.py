"""What `worker.py` loads to measure our own tokenizers."""

from __future__ import annotations

import logging
from importlib import metadata
from typing import Any

from refimpl import __version__
from refimpl.auto import AutoTokenizer


def prepare(model: str, threads: int, options: dict[str, Any]) -> dict[str, Any]:
    """The tokenizer of the folder `model`, with `options` for its constructor."""
    logging.disable(logging.WARNING)  # long texts are meant
    tokenizer = AutoTokenizer.from_pretrained(model, **options)
    impl = getattr(tokenizer, "impl", "plain")
    shares = impl == "fast" and hasattr(tokenizer, "threads")
    if shares:
        tokenizer.threads = threads
    return {
        "what": f"{type(tokenizer).__name__}, impl {impl}",
        "versions": {"refimpl": __version__, **{name: metadata.version(name) for name in ("numpy", "numba")}},
        "threads": threads if shares else 1,
        "operations": {
            "encode": lambda text: tokenizer(text)["input_ids"],
            "encode_batch": lambda texts: tokenizer(texts)["input_ids"],
            "decode": tokenizer.decode,
            "decode_batch": tokenizer.batch_decode,
        },
    }
