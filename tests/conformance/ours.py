"""Our side of a comparison."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

import refimpl
from refimpl.rotary import RotaryEmbedding
from tests.conformance.comparison import FAMILIES, Call, Outputs, Tables, outputs_of

#: What is said of calls that are right, and that these tests make on purpose.
EXPECTED_WARNINGS = ("the text is longer than max_position_embeddings", "inputs_embeds show no padding")


def run_ours(model: Any, call: Call) -> Outputs:
    """What our model gives for a call, by name."""
    with warnings.catch_warnings():
        for message in EXPECTED_WARNINGS:
            warnings.filterwarnings("ignore", message)
        return outputs_of(model, call, lambda value: value, refimpl.to_numpy)


def our_tables(settings: dict[str, Any], positions: np.ndarray, dtype: str, backend: str) -> Tables:
    """cos and sin, [batch, seq, rotary_ndims / 2], of a `config.json` with these settings."""
    config = getattr(refimpl, f"{FAMILIES[settings['model_type']]}Config").from_dict(settings)
    tables = RotaryEmbedding(refimpl.get_backend(backend, dtype=dtype), config)(positions)
    cos, sin = (refimpl.to_numpy(table) for table in tables)
    return cos, sin
