"""The tiny models of GPT-NeoX-Japanese."""

from __future__ import annotations

from typing import Any

import numpy as np
import oracle
from families import JAPANESE
from rope_models import scaled_models
from spelt_models import spelt_models
from tiny_models import ALL_GROUPS, BOS, PAD, STORED_HEAD, Spreads, Tensors, Tiny, another_head

SHARED: dict[str, Any] = {
    "vocab_size": 43,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_multiple_size": 4,
    "max_position_embeddings": 64,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": 42,
    "rotary_pct": 1.0,
    "rotary_emb_base": 10000,
}


def old_buffers(tensors: Tensors, config: Any) -> Tensors:
    """What old checkpoints store beside the weights, and the tied head written out."""
    longest, width = config.max_position_embeddings, oracle.ExactRotary(config).width
    more = {"embed_out.weight": tensors[f"{JAPANESE.name}.embed_in.weight"]}
    for layer in range(config.num_hidden_layers):
        at = f"{JAPANESE.name}.layers.{layer}.attention."
        more[at + "bias"] = np.tril(np.ones((longest, longest), dtype=bool))[None, None]
        more[at + "masked_bias"] = np.array(-1e9, dtype=np.float32)
        more[at + "rotary_emb.inv_freq"] = (10000.0 ** (-np.arange(0, width, 2) / width)).astype(np.float32)
    return more


def near_gelu(hidden: int) -> Spreads:
    """The MLP works left of zero, where the two forms of gelu differ most: its input is near 1 everywhere."""
    return {
        "post_attention_layernorm.weight": (0.0, 0.4),
        "post_attention_layernorm.bias": (1.0, 0.3),
        "dense_h_to_4h": (-2.2 / hidden, 1.2 / hidden**0.5),
        "dense_4h_to_h": (0.0, 1.0),
    }


MODELS = {
    "tiny-plain": Tiny(
        {"vocab_size": 61, "hidden_size": 24, "num_attention_heads": 3, "num_hidden_layers": 3}, ALL_GROUPS
    ),
    "tiny-partial-rotary": Tiny(
        {"hidden_size": 30, "num_attention_heads": 3, "rotary_pct": 0.25},
        ("outputs", "padding", "positions", "cache", "greedy", "layers"),
        ("partial-rotary", "v4-config"),
        v4_spelling=True,
    ),
    "tiny-half-rotary": Tiny(
        {"hidden_size": 24, "rotary_pct": 0.5}, ("forward", "padding"), ("partial-rotary",)
    ),
    "tiny-truncated-rotary": Tiny({"hidden_size": 20, "rotary_pct": 0.45}, ("forward",), ("partial-rotary",)),
    "tiny-rotary-base": Tiny(
        {"rotary_emb_base": 100}, ("forward", "cache"), ("rotary-base", "v4-config"), v4_spelling=True
    ),
    "tiny-multiple-1": Tiny({"intermediate_multiple_size": 1}, ("forward",), ("mlp-width",)),
    "tiny-multiple-2": Tiny({"intermediate_multiple_size": 2}, ("forward",), ("mlp-width",)),
    "tiny-multiple-fraction": Tiny(
        {"intermediate_multiple_size": 1, "num_hidden_layers": 1},
        ("width",),
        ("mlp-width",),
        unchecked={"intermediate_multiple_size": 1.3},
        analytic="the config of 5.23.0 takes whole numbers alone, its model multiplies and cuts off any number",
    ),
    "tiny-one-layer": Tiny({"num_hidden_layers": 1}, ("outputs", "cache", "layers"), ("one-layer",)),
    "tiny-untied": Tiny({"tie_word_embeddings": False}, ("forward", "loss", "greedy"), ("untied-head",)),
    "tiny-norm-eps": Tiny({"layer_norm_eps": 0.01}, ("forward",), ("layer-norm-eps",)),
    "tiny-gelu-new": Tiny({"hidden_act": "gelu_new"}, ("forward",), ("activation",)),
    "tiny-relu": Tiny({"hidden_act": "relu"}, ("forward",), ("activation",)),
    "tiny-silu": Tiny({"hidden_act": "silu"}, ("forward",), ("activation",)),
    "tiny-prelu": Tiny(
        {"hidden_act": "prelu"}, ("forward",), ("activation", "activation-parameters"), prelu=-0.6
    ),
    "tiny-short-context": Tiny(
        {"max_position_embeddings": 16}, ("beyond",), ("beyond-max-position-embeddings",), lengths={"seq": 24}
    ),
    "tiny-old-buffers": Tiny(
        {"max_position_embeddings": 16, "rotary_pct": 0.5},
        ("forward",),
        ("old-buffers", "v4-config", "partial-rotary"),
        v4_spelling=True,
        extra_tensors=old_buffers,
    ),
    "tiny-tied-other-head": Tiny(
        {"num_hidden_layers": 1}, ("stored_head",), extra_tensors=another_head, analytic=STORED_HEAD
    ),
    "tiny-class-defaults": Tiny(
        {"intermediate_multiple_size": 4, "max_position_embeddings": 2048},
        ("forward", "loss"),
        left_out=(
            "rope_parameters",
            "intermediate_multiple_size",
            "max_position_embeddings",
            "hidden_act",
            "layer_norm_eps",
            "tie_word_embeddings",
        ),
        spreads=near_gelu(16),
        lengths={"rows": 1, "seq": 7},
    ),
    "small": Tiny(
        {
            "vocab_size": 199,
            "hidden_size": 64,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "intermediate_multiple_size": 1,
            "max_position_embeddings": 128,
            "eos_token_id": 198,
        },
        ("forward", "outputs", "cache", "greedy"),
        ("float16-weights",),
        stored_dtype=np.float16,
        spreads=near_gelu(64),
        lengths={"rows": 1, "seq": 6, "outputs": 4, "cache": 6},
    ),
    **scaled_models(
        {"intermediate_multiple_size": 2, "vocab_size": 19, "eos_token_id": 18, "rotary_pct": 1.0},
        (),
        near_gelu(16),
        {
            "linear": "rope_type",
            "dynamic": "rope_parameters",
            "yarn": "type",
            "yarn-mscale": "rope_type",
            "yarn-attention-factor": "rope_parameters",
            "longrope": "type",
            "longrope-attention-factor": "rope_parameters",
            "llama3": "rope_parameters",
        },
    ),
    **spelt_models({"intermediate_multiple_size": 1}, {}, ("two-objects", "names-beside-object")),
}
