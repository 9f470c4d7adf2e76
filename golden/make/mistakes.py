"""How far frequent mistakes lie from the right logits: what a case is able to catch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import oracle
import torch
from common import significant
from transformers.activations import ACT2FN


def wrong_variants(model: Any, inputs: dict[str, np.ndarray], right: np.ndarray) -> dict[str, float]:
    """How far the logits of frequent mistakes lie from the right ones, relative to the largest logit.

    A difference of 0 is left out: the mistake does not exist in this model.
    """
    found = {}
    for name, spoil in MISTAKES.items():
        wrong = oracle.float64_twin(model)
        spoil(wrong)
        logits = oracle.run(wrong, inputs)["logits"]
        difference = float(np.max(np.abs(logits - right)) / np.max(np.abs(right)))
        if difference > 0:
            found[name] = significant(difference, 2)
    return found


def _without_dense_bias(model: Any) -> None:
    model.gpt_neox_japanese.layers[-1].attention.dense_bias.zero_()


def _other_gelu(model: Any) -> None:
    other = {"gelu": "gelu_new", "gelu_new": "gelu"}.get(model.config.hidden_act, "gelu")
    for layer in model.gpt_neox_japanese.layers:
        layer.mlp.act = ACT2FN[other]


def _default_eps(model: Any) -> None:
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-5


def _default_base(model: Any) -> None:
    model.config.rope_parameters["rope_theta"] = 10000


def _split_qkv(model: Any) -> None:
    """Read the rows of query_key_value as [qkv, head, head_dim] instead of [head, qkv, head_dim]."""
    heads, hidden = model.config.num_attention_heads, model.config.hidden_size
    for layer in model.gpt_neox_japanese.layers:
        weight = layer.attention.query_key_value.weight
        weight.copy_(
            weight.clone().view(3, heads, hidden // heads, hidden).transpose(0, 1).reshape(weight.shape)
        )


def _neighbours_rotated(model: Any) -> None:
    """Pair neighbouring dimensions: the same as reordering the rotated rows of query and key."""
    width, heads = oracle.rotary_width(model.config), model.config.num_attention_heads
    head_dim = model.config.hidden_size // heads
    order = torch.cat([torch.arange(0, width, 2), torch.arange(1, width, 2), torch.arange(width, head_dim)])
    for layer in model.gpt_neox_japanese.layers:
        weight = layer.attention.query_key_value.weight
        rows = weight.clone().view(heads, 3, head_dim, -1)
        rows[:, :2] = rows[:, :2, order]
        weight.copy_(rows.view(weight.shape))


def _whole_head_rotated(model: Any) -> None:
    model.config.rope_parameters["partial_rotary_factor"] = 1.0
    for layer in model.gpt_neox_japanese.layers:
        layer.attention.rotary_ndims = layer.attention.head_size


def _exponent_over_head(model: Any) -> None:
    """base ** (-2 i / head_dim) equals another base with the exponent over the rotated width."""
    share = oracle.rotary_width(model.config) * model.config.num_attention_heads / model.config.hidden_size
    model.config.rope_parameters["rope_theta"] **= share


def _parallel_residual(model: Any) -> None:
    """Let the MLP read the layer's input, as GPT-NeoX does."""
    for layer in model.gpt_neox_japanese.layers:
        given: list[torch.Tensor] = []
        layer.register_forward_pre_hook(lambda module, args, given=given: given.append(args[0]))
        layer.post_attention_layernorm.register_forward_pre_hook(lambda module, args, given=given: given[-1])


MISTAKES: dict[str, Callable[[Any], None]] = {
    "dense_bias of the last layer left out": _without_dense_bias,
    "another gelu (erf for tanh, or tanh for erf), or gelu for another activation": _other_gelu,
    "layer_norm_eps 1e-5": _default_eps,
    "rotary base 10000": _default_base,
    "rows of query_key_value read as (qkv, head) instead of (head, qkv)": _split_qkv,
    "neighbouring dimensions rotated instead of halves": _neighbours_rotated,
    "rotary_pct ignored: the whole head rotated": _whole_head_rotated,
    "rotary exponent over head_dim instead of the rotated width": _exponent_over_head,
    "attention and MLP side by side, as in GPT-NeoX": _parallel_residual,
}
