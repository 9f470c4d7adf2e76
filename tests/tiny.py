"""Tiny models with random weights, made in a moment."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from refimpl import GPTNeoXJapaneseConfig, GPTNeoXJapaneseForCausalLM


def tiny_config(**changes) -> GPTNeoXJapaneseConfig:
    settings = {
        "vocab_size": 40,
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "intermediate_multiple_size": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,  # large, so that mistakes show
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return GPTNeoXJapaneseConfig(**{**settings, **changes})


def tiny_model(
    backend: str = "numpy", dtype: str = "float32", seed: int = 0, **changes
) -> GPTNeoXJapaneseForCausalLM:
    return GPTNeoXJapaneseForCausalLM(tiny_config(**changes), backend=backend, dtype=dtype, seed=seed)


def tiny_ids(batch: int = 2, seq: int = 9, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(3, 40, (batch, seq))


def save_tiny(folder: Path, model: GPTNeoXJapaneseForCausalLM | None = None, **changes) -> Path:
    """Write a tiny model as an ordinary folder, with the package that others read it with."""
    from safetensors.numpy import save_file

    model = model or tiny_model(**changes)
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    save_file(
        {name: np.ascontiguousarray(a) for name, a in model.state_dict().items()},
        folder / "model.safetensors",
    )
    return folder
