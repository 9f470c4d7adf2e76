"""Frequent mistakes, and the logits that they give: what a case is able to catch, and to name.

Each mistake has a name, under which its logits are recorded beside the right ones, and a sentence.  A mistake that
does not exist in a model leaves the model as it is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import oracle
import torch
from transformers.activations import ACT2FN

Logits = dict[str, np.ndarray]


def wrong_logits(exact: Any, inputs: dict[str, np.ndarray], names: Iterable[str] | None = None) -> Logits:
    """The logits of `inputs` under every mistake of `SPOILERS`, or of those of `names`, in float64.

    exact: a float64 twin; it stays as it is.
    """
    found = {}
    for name in names or SPOILERS:
        wrong = copy.deepcopy(exact)
        SPOILERS[name](wrong)
        found[name] = oracle.run(wrong, inputs)["logits"]
    return found


def _tanh_gelu(model: Any) -> None:
    for layer in model.base_model.layers:
        layer.mlp.act = ACT2FN["gelu_new"]


def _erf_gelu(model: Any) -> None:
    for layer in model.base_model.layers:
        layer.mlp.act = ACT2FN["gelu"]


def _default_eps(model: Any) -> None:
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-5


def _default_base(model: Any) -> None:
    model.base_model.rotary_emb.rope["rope_theta"] = 10000.0


def _qkv_before_heads(model: Any) -> None:
    """Read the rows of query_key_value as [qkv, head, head_dim] instead of [head, qkv, head_dim]."""
    heads = model.config.num_attention_heads
    for rows in _query_key_value(model):
        rows.copy_(rows.clone().view(3, heads, -1, rows.shape[-1]).transpose(0, 1).reshape(rows.shape))


def _neighbours_rotated(model: Any) -> None:
    """Pair neighbouring dimensions: the same as reordering the rotated rows of query and key."""
    rotary = model.base_model.rotary_emb
    order = torch.cat(
        [
            torch.arange(0, rotary.width, 2),
            torch.arange(1, rotary.width, 2),
            torch.arange(rotary.width, rotary.head_dim),
        ]
    )
    for rows in _query_key_value(model):
        parts = rows.clone().view(-1, 3, rotary.head_dim, rows.shape[-1])
        parts[:, :2] = parts[:, :2, order]
        rows.copy_(parts.view(rows.shape))


def _query_key_value(model: Any) -> list[torch.Tensor]:
    """Weight and bias (as one column) of every query_key_value: views, [rows, columns]."""
    parts = [layer.attention.query_key_value for layer in model.base_model.layers]
    biases = [part.bias[:, None] for part in parts if part.bias is not None]
    return [part.weight for part in parts] + biases


def _rotate_part(model: Any, part: float) -> None:
    """Rotate another part of each head, where that can be done."""
    rotary = model.base_model.rotary_emb
    width = int(rotary.head_dim * part)
    smallest = 4 if rotary.rope["rope_type"] == "dynamic" else 2
    if width < smallest or width % 2 or rotary.rope["rope_type"] == "longrope":
        return  # longrope has one divisor for each frequency
    rotary.rope["partial_rotary_factor"] = part
    for layer in model.base_model.layers:
        layer.attention.rotary_ndims = width


def _exponent_over_head(model: Any) -> None:
    """base ** (-2 i / head_dim) equals another base with the exponent over the rotated width."""
    rotary = model.base_model.rotary_emb
    rotary.rope["rope_theta"] **= rotary.width / rotary.head_dim


def _without_scaling(model: Any) -> None:
    model.base_model.rotary_emb.rope["rope_type"] = "default"


def _without_attention_factor(model: Any) -> None:
    if model.base_model.rotary_emb.rope["rope_type"] in ("yarn", "longrope"):
        model.base_model.rotary_emb.rope["attention_factor"] = 1.0


def _other_list(model: Any, length: int) -> None:
    """The list of longrope for texts of `length`, whatever the length."""
    if model.base_model.rotary_emb.rope["rope_type"] == "longrope":
        model.base_model.rotary_emb.length = length


def _without_scale(model: Any) -> None:
    for layer in model.base_model.layers:
        layer.attention.scaling = layer.attention.norm_factor = 1.0


def _head_of_embedding(model: Any) -> None:
    model.get_output_embeddings().weight.copy_(model.get_input_embeddings().weight)


def _without_attention_bias(model: Any) -> None:
    for layer in model.base_model.layers:
        for part in (layer.attention.query_key_value, layer.attention.dense):
            if part.bias is not None:
                part.bias.zero_()


def _without_dense_bias(model: Any) -> None:
    for layer in model.base_model.layers:
        if getattr(layer.attention, "dense_bias", None) is not None:
            layer.attention.dense_bias.zero_()


def _dense_bias_everywhere(model: Any) -> None:
    last = model.base_model.layers[-1].attention
    for layer in model.base_model.layers:
        if getattr(last, "dense_bias", None) is not None:
            layer.attention.dense_bias = last.dense_bias


def _parallel(model: Any) -> None:
    """Let the MLP read the layer's input."""
    for layer in model.base_model.layers:
        if hasattr(layer, "use_parallel_residual"):
            layer.use_parallel_residual = True
            continue
        given: list[torch.Tensor] = []
        layer.register_forward_pre_hook(lambda module, args, given=given: given.append(args[0]))
        layer.post_attention_layernorm.register_forward_pre_hook(lambda module, args, given=given: given[-1])


def _sequential(model: Any) -> None:
    """Let the MLP read what attention has been added to."""
    for layer in model.base_model.layers:
        layer.use_parallel_residual = False


def _one_norm(model: Any) -> None:
    """Let the MLP read what attention reads, as GPT-J does."""
    for layer in model.base_model.layers:
        if getattr(layer, "use_parallel_residual", False):
            layer.post_attention_layernorm = layer.input_layernorm


#: name -> how to make a float64 twin compute it wrong.
SPOILERS: dict[str, Callable[[Any], None]] = {
    "tanh-gelu": _tanh_gelu,
    "erf-gelu": _erf_gelu,
    "default-eps": _default_eps,
    "default-base": _default_base,
    "qkv-before-heads": _qkv_before_heads,
    "interleaved-rotary": _neighbours_rotated,
    "whole-rotary": lambda model: _rotate_part(model, 1.0),
    "quarter-rotary": lambda model: _rotate_part(model, 0.25),
    "exponent-over-head": _exponent_over_head,
    "no-rope-scaling": _without_scaling,
    "no-attention-factor": _without_attention_factor,
    "always-short-factors": lambda model: _other_list(model, 1),
    "always-long-factors": lambda model: _other_list(model, 1 << 20),
    "unscaled-attention": _without_scale,
    "tied-head": _head_of_embedding,
    "no-attention-bias": _without_attention_bias,
    "no-dense-bias": _without_dense_bias,
    "dense-bias-everywhere": _dense_bias_everywhere,
    "parallel-residual": _parallel,
    "sequential-residual": _sequential,
    "one-norm": _one_norm,
}

#: The mistakes with the frequencies of scaled types.
WITH_FREQUENCIES = ("no-rope-scaling", "no-attention-factor", "always-short-factors", "always-long-factors")

#: name -> what it is; the last ones are made where their cases are.
MISTAKES = {
    "tanh-gelu": "gelu in its tanh form instead of hidden_act",
    "erf-gelu": "gelu in its erf form instead of hidden_act",
    "default-eps": "layer_norm_eps 1e-5",
    "default-base": "rotary base 10000",
    "qkv-before-heads": "rows of query_key_value read as (qkv, head) instead of (head, qkv)",
    "interleaved-rotary": "neighbouring dimensions rotated instead of halves",
    "whole-rotary": "rotary_pct ignored: the whole head rotated",
    "quarter-rotary": "rotary_pct ignored: a quarter of the head rotated",
    "exponent-over-head": "rotary exponent over head_dim instead of the rotated width",
    "no-rope-scaling": "rotary scaling ignored: the type default",
    "no-attention-factor": "cos and sin not multiplied by the attention factor",
    "always-short-factors": "longrope with short_factor for a long text",
    "always-long-factors": "longrope with long_factor for a short text",
    "unscaled-attention": "scores not divided by the root of head_dim",
    "tied-head": "the input embedding used as output head",
    "no-attention-bias": "biases of the attention left out",
    "no-dense-bias": "dense_bias of the last layer left out",
    "dense-bias-everywhere": "dense_bias of the last layer added in every layer",
    "parallel-residual": "attention and MLP side by side, as in GPT-NeoX",
    "sequential-residual": "the MLP after the attention, as in GPT-NeoX-Japanese",
    "one-norm": "the MLP behind input_layernorm, as in GPT-J",
    "padding-visible": "the attention mask ignored: padding is seen",
    "positions-from-mask": "position ids counted along the mask in a forward call",
    "tables-for-each-row": "the rotary tables of a row chosen by its own largest position",
    "prefix-recomputed": "no cache: each piece computed together with all of the text before it",
    "keys-rotated-anew": "keys cached unrotated, and all rotated with the frequencies of the newest call",
    "frequencies-stay-long": "the frequencies of a long text kept for a short one after it",
    "positions-restart": "position ids counted from 0 again in each call with a cache",
    "rope-misread": "rotary settings taken from the wrong one of several spellings, or from none",
    "stored-head": "the output head of the file used although the config ties it to the embedding",
}
