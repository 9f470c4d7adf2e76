"""The tiny models with scaled rotary positions, which both families have: one of each type and more of some."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from tiny_models import Spreads, Tiny

#: How `config.json` says it: as `rope_scaling` with the key `type` or `rope_type`, or all in `rope_parameters`.
Spelling = Literal["type", "rope_type", "rope_parameters"]

#: What the type was stretched from; the texts of the cases are longer.
TRAINED = 12


@dataclass(frozen=True)
class Scaled:
    """A scaled type: its own settings, those of the model, and the groups of cases beside `beyond`."""

    rope_type: str
    rope: dict[str, Any]
    context: int
    groups: tuple[str, ...]


FIXED = ("cache", "positions_beyond")  # the same frequencies for every text
BY_LENGTH = ("short", "growing", "positions_beyond")  # other frequencies for long texts

_YARN: dict[str, Any] = {"factor": 4.0, "original_max_position_embeddings": TRAINED}
_WIDE_RAMP = _YARN | {"beta_fast": 1.5, "beta_slow": 0.05}
_LONGROPE: dict[str, Any] = {
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [1.5, 2.5, 4.0, 6.0],
    "original_max_position_embeddings": TRAINED,
}
_LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 0.2,
    "high_freq_factor": 2.0,
    "original_max_position_embeddings": 16,
}

SCALED = {
    "linear": Scaled("linear", {"factor": 2.5}, TRAINED, FIXED),
    "dynamic": Scaled("dynamic", {"factor": 2.0}, TRAINED, BY_LENGTH),
    "yarn": Scaled("yarn", _YARN, 48, FIXED),
    "yarn-mscale": Scaled("yarn", _WIDE_RAMP | {"mscale": 0.7, "mscale_all_dim": 1.6}, 48, ()),
    "yarn-attention-factor": Scaled(
        "yarn", _WIDE_RAMP | {"attention_factor": 0.8, "truncate": False}, 48, ()
    ),
    "longrope": Scaled("longrope", _LONGROPE, 48, BY_LENGTH),
    "longrope-attention-factor": Scaled(
        "longrope", _LONGROPE | {"factor": 3.0, "attention_factor": 1.5}, 24, ()
    ),
    "llama3": Scaled("llama3", _LLAMA3, 64, FIXED),
}


def scaled_models(
    shared: dict[str, Any], features: tuple[str, ...], spreads: Spreads, spellings: dict[str, Spelling]
) -> dict[str, Tiny]:
    """Every model of `SCALED`, its config spelt as `spellings` says."""
    return {
        f"tiny-{name}": _model(shared, features, spreads, SCALED[name], by) for name, by in spellings.items()
    }


def respelt_models(
    shared: dict[str, Any], features: tuple[str, ...], spreads: Spreads, spellings: dict[str, Spelling]
) -> dict[str, Tiny]:
    """Models of one layer that only show another spelling of the config."""
    one_layer = shared | {"num_hidden_layers": 1}
    return {
        f"tiny-{name}-by-{by.replace('_', '-')}": _model(
            one_layer, features, spreads, SCALED[name], by, ("forward",)
        )
        for name, by in spellings.items()
    }


def _model(
    shared: dict[str, Any],
    features: tuple[str, ...],
    spreads: Spreads,
    scaled: Scaled,
    spelling: Spelling,
    groups: tuple[str, ...] | None = None,
) -> Tiny:
    v4 = spelling != "rope_parameters"
    rope = {"type" if spelling == "type" else "rope_type": scaled.rope_type, **scaled.rope}
    config = {"rotary_emb_base": 100, "max_position_embeddings": scaled.context} | shared
    if v4:
        config["rope_scaling"] = rope
    else:
        part = config.pop("rotary_pct")
        config["rope_parameters"] = rope | {"rope_theta": 100, "partial_rotary_factor": part}
    return Tiny(
        config,
        groups or ("beyond", *scaled.groups),
        ("rope-scaling", f"rope-{scaled.rope_type}", "rotary-base", *features, *("v4-config",) * v4),
        v4_spelling=v4,
        spreads=spreads,
        lengths={"rows": 1, "seq": 16 if groups else 18, "prompt": 8, "cache": 16},
    )
