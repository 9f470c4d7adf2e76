"""Classic mistakes inside the layers: activation, norms, the fused projection, biases, residuals, scores, the head.

Each function plants one into a `Copy` and returns whether the model has the place for it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from refimpl.checkpoints.locate import find_weights, open_weights
from refimpl.conformance.planting import Copy, Identity
from refimpl.layers import Activation, Embedding, Linear, TiedLinear

Array = Any

# --- activation ----------------------------------------------------------------------------------


def activation(copy: Copy, name: str) -> bool:
    """Another activation than the config names."""
    if copy.config.hidden_act == name:
        return False
    for layer in copy.layers:
        layer.mlp.act = Activation(copy.backend, name)
    return True


# --- norms ---------------------------------------------------------------------------------------


def eps(copy: Copy, value: float) -> bool:
    """Another number under the root than the config says."""
    if copy.config.layer_norm_eps == value:
        return False
    for norm in copy.norms():
        norm.eps = value
    return True


def _moments(x: Array) -> tuple[Array, Array]:
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred, (centred * centred).mean(axis=-1, keepdims=True)


def eps_outside_root(copy: Copy) -> bool:
    def layer_norm(plain: Any, x: Array, weight: Array, bias: Array, eps: float) -> Array:
        centred, variance = _moments(x)
        return centred / (copy.backend.xp.sqrt(variance) + eps) * weight + bias

    copy.around("layer_norm", layer_norm)
    return True


def unbiased_variance(copy: Copy) -> bool:
    width = copy.config.hidden_size
    if width < 2:
        return False

    def layer_norm(plain: Any, x: Array, weight: Array, bias: Array, eps: float) -> Array:
        centred, variance = _moments(x)
        return centred / copy.backend.xp.sqrt(variance * (width / (width - 1)) + eps) * weight + bias

    copy.around("layer_norm", layer_norm)
    return True


def rms_norm(copy: Copy) -> bool:
    def layer_norm(plain: Any, x: Array, weight: Array, bias: Array, eps: float) -> Array:
        square = (x * x).mean(axis=-1, keepdims=True)
        return x / copy.backend.xp.sqrt(square + eps) * weight + bias

    copy.around("layer_norm", layer_norm)
    return True


def no_norm_bias(copy: Copy) -> bool:
    copy.around("layer_norm", lambda plain, x, weight, bias, eps: plain(x, weight, 0 * bias, eps))
    return True


def one_plus_weight(copy: Copy) -> bool:
    copy.around("layer_norm", lambda plain, x, weight, bias, eps: plain(x, 1 + weight, bias, eps))
    return True


def swapped_norms(copy: Copy) -> bool:
    for layer in copy.layers:
        layer.input_layernorm, layer.post_attention_layernorm = (
            layer.post_attention_layernorm,
            layer.input_layernorm,
        )
    return True


def one_norm(copy: Copy) -> bool:
    if not getattr(copy.config, "use_parallel_residual", False):
        return False
    for layer in copy.layers:
        layer.post_attention_layernorm = layer.input_layernorm
    return True


def no_final_norm(copy: Copy) -> bool:
    copy.base.final_layer_norm = Identity(copy.backend)
    return True


# --- the fused projection and the heads ------------------------------------------------------------


def read_fused(copy: Copy, order: tuple[int, int, int]) -> bool:
    """Query, key and value taken from each other's places."""
    heads = copy.config.num_attention_heads

    def reorder(result: Array, args: Any, kwargs: Any) -> Array:
        parts = result.reshape(*result.shape[:2], heads, 3, -1)
        return parts[..., list(order), :].reshape(result.shape)

    for layer in copy.layers:
        copy.change(layer.attention, "query_key_value", after=reorder)
    return True


def qkv_before_heads(copy: Copy) -> bool:
    heads = copy.config.num_attention_heads
    if heads == 1:
        return False

    def reorder(result: Array, args: Any, kwargs: Any) -> Array:
        parts = result.reshape(*result.shape[:2], 3, heads, -1)
        return parts.swapaxes(2, 3).reshape(result.shape)

    for layer in copy.layers:
        copy.change(layer.attention, "query_key_value", after=reorder)
    return True


def heads_interleaved(copy: Copy) -> bool:
    heads = copy.config.num_attention_heads
    if heads == 1:
        return False

    def merge(args: Any, kwargs: Any) -> Any:
        (context,) = args
        parts = context.reshape(*context.shape[:2], heads, -1)
        return (parts.swapaxes(2, 3).reshape(context.shape),), kwargs

    for layer in copy.layers:
        copy.change(layer.attention, "dense", before=merge)
    return True


def transposed_dense(copy: Copy) -> bool:
    for layer in copy.layers:
        if not isinstance(layer.attention.dense.weight, np.ndarray):  # quantized
            return False
        layer.attention.dense.weight = layer.attention.dense.weight.T
    return True


def scale(copy: Copy, factor: float) -> bool:
    """Scores with another factor than 1 / sqrt(head_dim)."""
    if factor == copy.layers[0].attention.scale:
        return False
    for layer in copy.layers:
        layer.attention.scale = factor
    return True


def unscaled(copy: Copy) -> bool:
    return scale(copy, 1.0)


def doubly_scaled(copy: Copy) -> bool:
    return scale(copy, 1.0 / copy.config.head_dim)


def scale_of_hidden(copy: Copy) -> bool:
    return scale(copy, 1.0 / math.sqrt(copy.config.hidden_size))


def half_softmax(copy: Copy) -> bool:
    """Scores and weights in float16."""

    def softmax(plain: Any, scores: Array, visible: Array | None = None) -> Array:
        with np.errstate(over="ignore"):
            return plain(scores.astype(np.float16), visible).astype(scores.dtype)

    copy.around("softmax", softmax)
    return True


# --- biases --------------------------------------------------------------------------------------


def without_bias(copy: Copy, *parts: str) -> bool:
    """Biases of these dense layers left out."""
    found = False
    for layer in copy.layers:
        for path in parts:
            owner, name = path.split(".")
            part = getattr(getattr(layer, owner), name)
            found = found or part.bias is not None
            part.bias = None
    return found


def _dense_bias(copy: Copy) -> Array | None:
    return getattr(copy.layers[-1].attention, "dense_bias", None)


def no_dense_bias(copy: Copy) -> bool:
    if _dense_bias(copy) is None:
        return False
    copy.layers[-1].is_last = False
    return True


def dense_bias_everywhere(copy: Copy) -> bool:
    bias = _dense_bias(copy)
    if bias is None or len(copy.layers) == 1:
        return False
    for layer in copy.layers:
        layer.is_last, layer.attention.dense_bias = True, bias
    return True


def dense_bias_in_first(copy: Copy) -> bool:
    bias = _dense_bias(copy)
    if bias is None or len(copy.layers) == 1:
        return False
    copy.layers[0].is_last, copy.layers[0].attention.dense_bias = True, bias
    copy.layers[-1].is_last = False
    return True


def dense_bias_after_mlp(copy: Copy) -> bool:
    bias = _dense_bias(copy)
    if bias is None:
        return False
    copy.layers[-1].is_last = False
    copy.change(
        copy.layers,
        len(copy.layers) - 1,
        after=lambda result, args, kwargs: (result[0] + bias, result[1]),
        recorded_inside=False,
    )
    return True


# --- residuals -----------------------------------------------------------------------------------


def _remember_inputs(copy: Copy) -> list[Array]:
    """A list whose last item is the input of the layer that is being computed."""
    given: list[Array] = []

    def remember(args: Any, kwargs: Any) -> Any:
        given[:] = [args[0]]
        return args, kwargs

    for index in range(len(copy.layers)):
        copy.change(copy.layers, index, before=remember)
    return given


def parallel(copy: Copy) -> bool:
    if getattr(copy.config, "use_parallel_residual", False):
        return False
    given = _remember_inputs(copy)
    for layer in copy.layers:
        copy.change(layer, "post_attention_layernorm", before=lambda args, kwargs: ((given[-1],), kwargs))
    return True


def sequential(copy: Copy) -> bool:
    if not getattr(copy.config, "use_parallel_residual", False):
        return False
    for layer in copy.layers:
        layer.use_parallel_residual = False
    return True


def residual_from_normed(copy: Copy) -> bool:
    """The norm's output, instead of its input, is what attention is added to."""
    given = _remember_inputs(copy)

    def after(result: Any, args: Any, kwargs: Any) -> Any:
        return result[0] + (args[0] - given[-1]), result[1]

    for layer in copy.layers:
        copy.change(layer, "attention", after=after, recorded_inside=False)
    return True


def no_attention_residual(copy: Copy) -> bool:
    given = _remember_inputs(copy)
    for layer in copy.layers:
        copy.change(
            layer,
            "attention",
            after=lambda result, args, kwargs: (result[0] - given[-1], result[1]),
            recorded_inside=False,
        )
    return True


# --- embedding and head ----------------------------------------------------------------------------


def embedding_scaled(copy: Copy) -> bool:
    factor = math.sqrt(copy.config.hidden_size)
    copy.change(
        copy.base, "embed_in", after=lambda result, args, kwargs: result * factor, recorded_inside=False
    )
    return True


def tied_head(copy: Copy) -> bool:
    head = getattr(copy.model, "embed_out", None)
    if head is None or isinstance(head, TiedLinear):
        return False
    copy.model.embed_out = TiedLinear(copy.base.embed_in)
    return True


def stored_head(copy: Copy) -> bool:
    """Needs the files of the model."""
    if not isinstance(getattr(copy.model, "embed_out", None), TiedLinear) or not copy.model.name_or_path:
        return False
    embedding: Embedding = copy.base.embed_in
    tensors = open_weights(find_weights(copy.model.name_or_path, local_files_only=True))
    stored = next((tensors[name] for name in ("embed_out.weight", "lm_head.weight") if name in tensors), None)
    if stored is None or stored.shape != embedding.weight.shape:
        return False
    copy.model.embed_out = Linear(copy.backend, stored.shape[1], stored.shape[0], bias=False)
    copy.model.embed_out.weight = stored
    return True
