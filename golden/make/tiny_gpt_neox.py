"""The tiny models of GPT-NeoX."""

from __future__ import annotations

from typing import Any

import numpy as np
import oracle
from families import NEOX
from rope_models import respelt_models, scaled_models
from spelt_models import spelt_models
from tiny_models import ALL_GROUPS, BOS, PAD, STORED_HEAD, Tensors, Tiny, another_head

#: Heads of 8 dimensions, of which 4 are rotated.
SHARED: dict[str, Any] = {
    "vocab_size": 23,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": 22,
    "rotary_pct": 0.5,
    "rotary_emb_base": 10000,
}

#: Heads of 16 dimensions, of which a quarter is rotated, as in nearly all published models.
QUARTER = {"hidden_size": 32, "rotary_pct": 0.25}
PLAIN = QUARTER | {"intermediate_size": 48, "vocab_size": 31, "eos_token_id": 30}

#: Heads of 10 dimensions, of which int(0.85 * 10) = 8 are rotated.
SCALED = {
    "hidden_size": 20,
    "rotary_pct": 0.85,
    "intermediate_size": 24,
    "vocab_size": 19,
    "eos_token_id": 18,
}

#: The MLP works where the two forms of gelu differ most.
SPREADS = {"dense_h_to_4h.bias": (-2.2, 0.8), "dense_4h_to_h.weight": (0.0, 1.0)}

SIZES = {"rows": 1, "seq": 7, "layers": 4}


def old_buffers(tensors: Tensors, config: Any) -> Tensors:
    """What old checkpoints store beside the weights; the mask as bytes, as the oldest have it."""
    longest, width = config.max_position_embeddings, oracle.ExactRotary(config).width
    more: Tensors = {}
    for layer in range(config.num_hidden_layers):
        at = f"{NEOX.name}.layers.{layer}.attention."
        more[at + "bias"] = np.tril(np.ones((longest, longest), dtype=np.uint8))[None, None]
        more[at + "masked_bias"] = np.array(-1e9, dtype=np.float32)
        more[at + "rotary_emb.inv_freq"] = (10000.0 ** (-np.arange(0, width, 2) / width)).astype(np.float16)
    return more


def pickled_buffers(tensors: Tensors, config: Any) -> Tensors:
    """The same, with the mask of the first layer as bytes and that of the others as truth values."""
    more = old_buffers(tensors, config)
    return {
        key: array.astype(bool) if key.endswith(".bias") and ".layers.0." not in key else array
        for key, array in more.items()
    }


def neox(
    config: dict[str, Any], groups: tuple[str, ...], features: tuple[str, ...] = (), **more: Any
) -> Tiny:
    """A model whose rotation is partial, as in nearly all of the family, unless `config` says otherwise."""
    partial = ("partial-rotary",) if config.get("rotary_pct", 0) < 1 else ()
    return Tiny(config, groups, (*features, *partial), **{"spreads": SPREADS, "lengths": SIZES, **more})


def activation(name: str) -> Tiny:
    return neox({"hidden_act": name, "num_hidden_layers": 1}, ("forward",), ("activation",))


MODELS = {
    "tiny-plain": neox(PLAIN, ("forward", *ALL_GROUPS)),
    "tiny-sequential": neox(
        PLAIN | {"use_parallel_residual": False},
        ("forward", "cache", "greedy", "layers"),
        ("sequential-residual",),
        weights_of="tiny-plain",
    ),
    "tiny-half-rotary": neox({}, ("forward", "positions", "cache"), ("v4-config",), v4_spelling=True),
    "tiny-whole-rotary": neox({"rotary_pct": 1.0}, ("forward", "positions")),
    "tiny-truncated-rotary": neox({"hidden_size": 20, "rotary_pct": 0.45}, ("forward",)),
    "tiny-rotary-base": neox(
        {"rotary_emb_base": 100, "rope_scaling": None},
        ("forward", "cache"),
        ("rotary-base", "v4-config"),
        v4_spelling=True,
    ),
    "tiny-bare-rope-parameters": neox(
        QUARTER | {"num_hidden_layers": 1, "rope_parameters": {"rope_type": "linear", "factor": 2.5}},
        ("forward",),
        ("rope-scaling", "rope-linear"),
    ),
    "tiny-no-bias": neox({"attention_bias": False}, ("forward", "cache", "layers"), ("no-attention-bias",)),
    "tiny-tied": neox(
        {"tie_word_embeddings": True},
        ("forward", "loss", "greedy"),
        ("tied-head", "v4-config"),
        v4_spelling=True,
    ),
    "tiny-lm-head": neox({}, ("forward",), ("lm-head-key",), stored_head="lm_head.weight"),
    "tiny-odd-mlp": neox({"intermediate_size": 37, "num_hidden_layers": 3}, ("forward",), ("mlp-width",)),
    "tiny-one-layer": neox({"num_hidden_layers": 1}, ("outputs", "cache", "layers"), ("one-layer",)),
    "tiny-norm-eps": neox({"layer_norm_eps": 0.01}, ("forward",), ("layer-norm-eps",)),
    "tiny-gelu-new": activation("gelu_new"),
    "tiny-gelu-fast": activation("gelu_fast"),
    "tiny-gelu-pytorch-tanh": activation("gelu_pytorch_tanh"),
    "tiny-gelu-python": activation("gelu_python"),
    "tiny-quick-gelu": activation("quick_gelu"),
    "tiny-relu": activation("relu"),
    "tiny-silu": activation("silu"),
    "tiny-short-context": neox(
        {"max_position_embeddings": 12}, ("beyond",), lengths={"rows": 1, "seq": 16, "prompt": 8}
    ),
    "tiny-old-buffers": neox(
        {"max_position_embeddings": 12},
        ("forward",),
        ("old-buffers", "v4-config"),
        v4_spelling=True,
        extra_tensors=old_buffers,
    ),
    "tiny-pickled": neox(
        PLAIN,
        ("forward",),
        ("old-buffers", "pickled-weights"),
        weights_of="tiny-plain",
        extra_tensors=pickled_buffers,
        pickled=True,
    ),
    "tiny-class-defaults": neox(
        QUARTER | {"max_position_embeddings": 2048, "eos_token_id": 2, "bos_token_id": 0},
        ("forward", "loss"),
        left_out=(
            "rope_parameters",
            "use_parallel_residual",
            "attention_bias",
            "max_position_embeddings",
            "hidden_act",
            "layer_norm_eps",
            "tie_word_embeddings",
            "bos_token_id",
            "eos_token_id",
        ),
    ),
    "tiny-tied-other-head": neox(
        {"tie_word_embeddings": True, "num_hidden_layers": 1},
        ("stored_head",),
        ("tied-head",),
        extra_tensors=another_head,
        analytic=STORED_HEAD,
    ),
    "tiny-no-padding-token": neox(
        {"pad_token_id": None, "eos_token_id": [21, 7], "num_hidden_layers": 1},
        ("by_config",),
        ("no-padding-token",),
    ),
    "tiny-equal-logits": neox(
        {"num_hidden_layers": 1},
        ("tie",),
        spreads={
            "final_layer_norm.weight": (0.0, 0.05),
            "final_layer_norm.bias": (1.0, 0.05),
            "lm_head": (-0.5, 0.2),
        },
        zero_rows=(17, 9, 13),
    ),
    "small": neox(
        {
            "vocab_size": 199,
            "hidden_size": 64,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "intermediate_size": 96,
            "max_position_embeddings": 128,
            "eos_token_id": 198,
            "rotary_pct": 0.25,
        },
        ("forward", "outputs", "cache", "greedy"),
        ("float16-weights",),
        stored_dtype=np.float16,
        spreads=SPREADS | {"dense_h_to_4h.weight": (0.0, 0.15), "dense_4h_to_h.weight": (0.0, 1.5)},
        lengths={"rows": 1, "seq": 6, "outputs": 4, "cache": 6},
    ),
    **scaled_models(
        SCALED,
        ("partial-rotary",),
        SPREADS,
        {
            "linear": "type",
            "dynamic": "type",
            "yarn": "rope_type",
            "yarn-mscale": "rope_parameters",
            "yarn-attention-factor": "type",
            "longrope": "rope_parameters",
            "longrope-attention-factor": "rope_type",
            "llama3": "rope_type",
        },
    ),
    **respelt_models(
        SCALED,
        ("partial-rotary",),
        SPREADS,
        {
            "linear": "rope_parameters",
            "dynamic": "rope_type",
            "yarn": "rope_parameters",
            "longrope": "rope_type",
            "llama3": "type",
        },
    ),
    **spelt_models({"intermediate_size": 8}, SPREADS),
}
