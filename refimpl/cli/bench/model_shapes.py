"""Shapes of published models by name, for benchmarks that need no weights of theirs."""

from __future__ import annotations

import difflib
from typing import Any

from refimpl.config import GPTNeoXConfig, GPTNeoXJapaneseConfig
from refimpl.errors import InputError, quote

Config = GPTNeoXConfig | GPTNeoXJapaneseConfig


def _pythia(hidden_size: int, layers: int, heads: int) -> dict[str, Any]:
    """One of the Pythia suite (arXiv:2304.01373, table 1), with the vocabulary as its checkpoints pad it."""
    return {
        "model_type": "gpt_neox",
        "vocab_size": 50304,
        "hidden_size": hidden_size,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * hidden_size,
    }


#: name -> model_type, and the settings that are not the default of its config
SHAPES: dict[str, dict[str, Any]] = {
    "2.7b": {
        "model_type": "gpt_neox_japanese"
    },  # abeja/gpt-neox-japanese-2.7b is where the defaults come from
    "pythia-70m": _pythia(512, 6, 8),
    "pythia-160m": _pythia(768, 12, 12),
    "pythia-410m": _pythia(1024, 24, 16),
    "pythia-1b": _pythia(2048, 16, 8),
    "pythia-1.4b": _pythia(2048, 24, 16),
    "pythia-2.8b": _pythia(2560, 32, 32),
    "20b": {"model_type": "gpt_neox"},  # EleutherAI/gpt-neox-20b, likewise
}


def config_of_shape(name: str) -> Config:
    """The config of a shape. Raises: InputError for an unknown name."""
    if name not in SHAPES:
        near = difflib.get_close_matches(name, SHAPES, n=1)
        raise InputError(
            "--shape has an unknown name",
            found=quote(name),
            allowed=", ".join(SHAPES),
            hint=f"Did you mean {near[0]}?" if near else None,
        )
    settings = dict(SHAPES[name])
    if settings.pop("model_type") == "gpt_neox":
        return GPTNeoXConfig(**settings)
    return GPTNeoXJapaneseConfig(**settings)
