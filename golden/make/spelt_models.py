"""Tiny models whose config says the rotary settings in several spellings at once, or in one that few programs read.

What a config means is said by docs/spec/rotary.md.  Where transformers reads the same, it is asked to; where it does
not, the model is built from what the file means.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tiny_models import BOS, PAD, Spreads, Tiny

Rope = dict[str, Any]

#: Small, because there are many; one head of 8 dimensions.
SHARED: dict[str, Any] = {
    "vocab_size": 11,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "max_position_embeddings": 12,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": 10,
}

LATER_IGNORED = (
    "transformers 5.23.0 does not hear these names beside the object for these two models, so the model "
)
LATER_IGNORED += "was built from what docs/spec/rotary.md says"


@dataclass(frozen=True)
class Spelt:
    """One way to write the settings.

    `file` are the keys of the config, `rope` is what they mean, `misread` what a reader could take them for; the
    base is 10000 and the part that is rotated the default of the class where nothing is said.  `analytic` says why
    transformers cannot be asked.
    """

    title: str
    file: dict[str, Any]
    rope: Rope
    misread: Rope
    analytic: str | None = None
    misread_context: int | None = None


_LINEAR = {"rope_type": "linear", "factor": 2.5}
_FOUND = {"rope_theta": 100, "partial_rotary_factor": 0.5}
_OTHER = {"rope_theta": 10000, "partial_rotary_factor": 1.0}
_EARLIER = {"rotary_emb_base": 100, "rotary_pct": 0.5}
_LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 0.2, "high_freq_factor": 2.0}
_DYNAMIC = {"rope_type": "dynamic", "factor": 2.0}

SPELT = {
    "two-objects": Spelt(
        "rope_scaling and rope_parameters: the first one alone counts, with the base and share of the class",
        {
            "rope_scaling": {"type": "linear", "factor": 2.5},
            "rope_parameters": _DYNAMIC | {"rope_theta": 50, "partial_rotary_factor": 0.5},
        },
        _LINEAR,
        _LINEAR | {"rope_theta": 50, "partial_rotary_factor": 0.5},
    ),
    "names-beside-object": Spelt(
        "rotary_emb_base and rotary_pct go before the base and share inside rope_parameters",
        _EARLIER | {"rope_parameters": _LINEAR | _OTHER},
        _LINEAR | _FOUND,
        _LINEAR | _OTHER,
        "transformers 5.23.0 takes those inside, so the model was built from what docs/spec/rotary.md says",
    ),
    "two-names": Spelt(
        "rotary_emb_base goes before rope_theta, and rotary_pct before partial_rotary_factor",
        _EARLIER | _OTHER,
        _FOUND,
        _OTHER,
    ),
    "later-names": Spelt(
        "rope_theta and partial_rotary_factor beside the object, and nothing else",
        _FOUND,
        _FOUND,
        {},
        LATER_IGNORED,
    ),
    "later-names-beside-object": Spelt(
        "rope_theta and partial_rotary_factor stand beside rope_parameters too: those inside count",
        _OTHER | {"rope_parameters": _LINEAR | _FOUND},
        _LINEAR | _FOUND,
        _LINEAR | _OTHER,
    ),
    "type-in-parameters": Spelt(
        "The key type inside rope_parameters; rope_scaling is null, which is as good as absent",
        {"rope_scaling": None, "rope_parameters": {"type": "linear", "factor": 2.5, **_FOUND}},
        _LINEAR | _FOUND,
        _FOUND,
    ),
    "two-types": Spelt(
        "rope_type goes before type in the same object",
        {"rope_parameters": {"type": "linear", **_DYNAMIC, **_FOUND}},
        _DYNAMIC | _FOUND,
        _DYNAMIC | _FOUND | {"rope_type": "linear"},
    ),
    "no-type": Spelt("An object without a type: default", {"rope_parameters": _FOUND}, _FOUND, {}),
    "length-beside-object": Spelt(
        "original_max_position_embeddings beside the object goes before the one inside",
        _EARLIER
        | {"rope_scaling": _LLAMA3 | {"original_max_position_embeddings": 6}}
        | {"original_max_position_embeddings": 16},
        _LLAMA3 | _FOUND | {"original_max_position_embeddings": 16},
        _LLAMA3 | _FOUND | {"original_max_position_embeddings": 6},
    ),
    "dynamic-with-length": Spelt(
        "The type dynamic grows from max_position_embeddings; original_max_position_embeddings means nothing to it",
        _EARLIER | {"rope_scaling": _DYNAMIC | {"original_max_position_embeddings": 6}},
        _DYNAMIC | _FOUND | {"original_max_position_embeddings": 6},
        _DYNAMIC | _FOUND,
        misread_context=6,
    ),
}


def spelt_models(
    more: dict[str, Any], spreads: Spreads, names: tuple[str, ...] = tuple(SPELT)
) -> dict[str, Tiny]:
    """A model for each of `names`; `more` are settings of the family."""
    return {f"tiny-spelling-{name}": _model(SPELT[name], more, spreads) for name in names}


def _model(spelt: Spelt, more: dict[str, Any], spreads: Spreads) -> Tiny:
    v4 = "rope_parameters" not in spelt.file and bool(spelt.file.keys() & {"rotary_emb_base", "rope_scaling"})
    scaled = (f"rope-{spelt.rope['rope_type']}", "rope-scaling") if "rope_type" in spelt.rope else ()
    return Tiny(
        SHARED | more | {"rope_parameters": {"rope_type": "default", **spelt.rope}},
        ("spelt",),
        ("rope-spelling", *scaled, *("v4-config",) * v4),
        written=spelt.file,
        analytic=spelt.analytic,
        spreads=spreads,
    )
