"""Tiny models with random weights, made in a moment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from refimpl import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GPTNeoXJapaneseConfig,
    GPTNeoXJapaneseForCausalLM,
    to_numpy,
)


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


def tiny_neox_config(**changes) -> GPTNeoXConfig:
    settings = {
        "vocab_size": 40,
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "intermediate_size": 37,
        "rotary_pct": 0.5,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
        "bos_token_id": 0,
        "eos_token_id": 2,
    }
    return GPTNeoXConfig(**{**settings, **changes})


def tiny_neox(
    model_class: Any = GPTNeoXForCausalLM,
    backend: str = "numpy",
    dtype: str = "float32",
    seed: int = 0,
    **changes,
) -> Any:
    """A tiny GPT-NeoX, or one with a task head, in which biases and norms are not trivial either."""
    model = model_class(tiny_neox_config(**changes), backend=backend, dtype=dtype, seed=seed)
    rng = np.random.default_rng(seed + 1)
    for parameter in model.named_parameters():
        if len(parameter.shape) == 1:
            parameter.assign(parameter.initial + rng.normal(0, 0.2, parameter.shape), None)
    return model


def tiny_ids(batch: int = 2, seq: int = 9, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(3, 40, (batch, seq))


def save_tiny(folder: Path, model: Any = None, **changes) -> Path:
    """Write a tiny model as an ordinary folder, with the package that others read it with."""
    from safetensors.numpy import save_file

    model = model or tiny_model(**changes)
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    save_file(
        {name: np.ascontiguousarray(to_numpy(a)) for name, a in model.state_dict().items()},
        folder / "model.safetensors",
    )
    return folder
