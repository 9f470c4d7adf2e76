"""Live comparison with transformers: the tables of every rotary type."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.conformance.comparison import FAMILIES, Tables
from tests.conformance.ours import our_tables
from tests.conformance.random_models import MODELS, ROPE_TYPES, SPELLINGS, random_rope, spell
from tests.conformance.theirs import their_tables

#: How far a table may be off, in units of one rounding of (1 + angle), times the factor of both tables.  Measured over
#: 900 settings: 1.4 in float32, where frequency, angle and function are rounded, and 3.0 in float64.  transformers
#: computes the frequencies in float32 too; of 10,000 settings one was off by 9.3.
ALLOWED = {"float32": 2.0, "float64": 8.0}
ALLOWED_THEM = 20.0
ROUNDING = {"float32": 2.0**-24, "float64": 2.0**-53}


def random_settings(draw: np.random.Generator, family: str, rope_type: str) -> dict[str, Any]:
    """The content of a `config.json` as version 5 spells it."""
    head_dim, heads = int(draw.integers(4, 130)), int(draw.integers(1, 5))
    width = 2 * int(draw.integers(2 if rope_type == "dynamic" else 1, head_dim // 2 + 1))
    longest = int(draw.choice([16, 100, 512, 2048, 4096]))
    return {
        "model_type": family,
        "hidden_size": heads * head_dim,
        "num_attention_heads": heads,
        "max_position_embeddings": longest,
        "rope_parameters": {
            "rope_theta": float(draw.choice([1.5, 100, 10000, 500000, 1e7])),
            "partial_rotary_factor": 1.0 if width == head_dim else (width + 0.5) / head_dim,
            **random_rope(draw, rope_type, width, longest),
        },
    }


def random_positions(draw: np.random.Generator, settings: dict[str, Any]) -> np.ndarray:
    """Two rows, one of which may go beyond what the model was made for: its end decides for both."""
    longest = settings["max_position_embeddings"]
    trained = settings["rope_parameters"].get("original_max_position_embeddings", longest)
    end = int(draw.choice([trained - 1, trained, longest - 1, longest, 3 * longest]))
    rows = [np.arange(12), np.sort(draw.integers(0, end, size=12))]
    rows[1][-1] = end
    return np.array(rows)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rope_type", ROPE_TYPES)
def test_many_random_tables_are_those_of_transformers(rope_type: str, family: str, backend: str) -> None:
    """In float64 the same numbers; in float32 as near to them as float32 can be, and as transformers is."""
    for seed in range(MODELS // 2):
        draw = np.random.default_rng(5000 + seed)
        settings = random_settings(draw, family, rope_type)
        positions = random_positions(draw, settings)
        spelt = spell(settings, SPELLINGS[seed % len(SPELLINGS)])
        exact = their_tables(spelt, positions, "float64")
        for dtype, allowed in ALLOWED.items():
            found = our_tables(spelt, positions, dtype, backend)
            assert found[0].dtype == found[1].dtype == dtype
            assert roundings(found, exact, positions, dtype) <= allowed, (seed, dtype, spelt)
        single = their_tables(spelt, positions, "float32")
        assert roundings(single, exact, positions, "float32") <= ALLOWED_THEM, (seed, spelt)


def roundings(found: Tables, exact: Tables, positions: np.ndarray, dtype: str) -> float:
    """The largest difference, in roundings.  No angle is larger than its position."""
    unit = ROUNDING[dtype] * (1 + positions[..., None]) * np.hypot(*exact).max()
    return max(float((np.abs(a - b) / unit).max()) for a, b in zip(found, exact, strict=True))
