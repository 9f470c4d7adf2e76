"""The tiny random models: their configs, how their weights are drawn, and their folders."""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import torch
from common import write_tensors
from transformers import GPTNeoXJapaneseConfig, GPTNeoXJapaneseForCausalLM

FAMILY = "gpt_neox_japanese"
PAD, BOS = 0, 1


@dataclass(frozen=True)
class Tiny:
    """One tiny model: its config, how its random weights are drawn, and the groups of cases made of it."""

    config: dict[str, Any]
    groups: tuple[str, ...] = ("forward",)
    features: tuple[str, ...] = ()
    seed: int = 0
    v4_spelling: bool = False
    prelu: float | None = None
    extra_tensors: Callable[[dict[str, np.ndarray], GPTNeoXJapaneseConfig], dict[str, np.ndarray]] | None = (
        None
    )
    lengths: dict[str, int] = field(default_factory=dict)


def old_buffers(tensors: dict[str, np.ndarray], config: GPTNeoXJapaneseConfig) -> dict[str, np.ndarray]:
    """What old checkpoints store beside the weights, and the tied head written out."""
    longest, width = config.max_position_embeddings, oracle.rotary_width(config)
    more = {"embed_out.weight": tensors[f"{FAMILY}.embed_in.weight"]}
    for layer in range(config.num_hidden_layers):
        at = f"{FAMILY}.layers.{layer}.attention."
        more[at + "bias"] = np.tril(np.ones((longest, longest), dtype=bool))[None, None]
        more[at + "masked_bias"] = np.array(-1e9, dtype=np.float32)
        more[at + "rotary_emb.inv_freq"] = (10000.0 ** (-np.arange(0, width, 2) / width)).astype(np.float32)
    return more


BASE = {
    "vocab_size": 43,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_multiple_size": 4,
    "max_position_embeddings": 64,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": 42,
}

MODELS = {
    "tiny-plain": Tiny(
        {"vocab_size": 61, "hidden_size": 24, "num_attention_heads": 3, "num_hidden_layers": 3},
        (
            "outputs",
            "loss",
            "padding",
            "positions",
            "embeds",
            "cache",
            "mask4d",
            "keep",
            "greedy",
            "hole",
            "layers",
            "long",
        ),
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
}


def build(name: str, tiny: Tiny, folder: Path) -> GPTNeoXJapaneseForCausalLM:
    """Draw the weights of `tiny`, write its folder, and load it back as any user would."""
    settings = BASE | tiny.config
    rope = {
        "rotary_pct": settings.pop("rotary_pct", 1.0),
        "rotary_emb_base": settings.pop("rotary_emb_base", 10000),
    }
    config = GPTNeoXJapaneseConfig(**settings, **rope, architectures=["GPTNeoXJapaneseForCausalLM"])
    model = GPTNeoXJapaneseForCausalLM._from_config(config, attn_implementation="eager").eval()
    draw_weights(model, tiny.seed or zlib.crc32(name.encode()), tiny.prelu)
    write_folder(model, tiny, rope, folder)
    loaded = load(folder)
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[key]), (
            f"{name}: {key} changed on the way through the file"
        )
    assert loaded.config.rope_parameters == config.rope_parameters, f"{name}: rope parameters changed"
    return loaded


def load(folder: Path) -> GPTNeoXJapaneseForCausalLM:
    model = GPTNeoXJapaneseForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32
    )
    return model.eval()


@torch.no_grad()
def draw_weights(model: GPTNeoXJapaneseForCausalLM, seed: int, prelu: float | None) -> None:
    """Weights large enough that every wrong variant shows: no norm is the identity, no bias is zero."""
    numbers = np.random.Generator(np.random.PCG64(seed))
    for name, parameter in sorted(model.named_parameters()):
        spread, centre = 0.25, 0.0
        if "layernorm" in name or "layer_norm" in name:
            spread, centre = 0.3, 1.0 if name.endswith("weight") else 0.0
        elif name.endswith("dense_bias"):
            spread = 0.5
        elif "embed" in name:
            spread = 0.4
        values = centre + spread * numbers.standard_normal(tuple(parameter.shape))
        if name.endswith("act.weight"):
            values = np.full(tuple(parameter.shape), prelu)
        parameter.copy_(torch.from_numpy(values.astype(np.float32)))


def write_folder(model: GPTNeoXJapaneseForCausalLM, tiny: Tiny, rope: dict[str, Any], folder: Path) -> None:
    config = json.loads(model.config.to_json_string())
    if tiny.v4_spelling:
        del config["rope_parameters"]
        config |= rope
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    tensors = {key: tensor.numpy() for key, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del tensors["embed_out.weight"]
    if tiny.extra_tensors is not None:
        tensors |= tiny.extra_tensors(tensors, model.config)
    write_tensors(tensors, folder / "model.safetensors", {"format": "pt"})


def model_folder(name: str) -> str:
    """Where the model `name` lies, relative to the folder of the goldens."""
    return f"models/{FAMILY}/{name}"
