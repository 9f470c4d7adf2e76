"""Self-attention with rotary positions and a cache, and the mask it works under."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from refimpl.backends.base import Backend
from refimpl.backends.mask import AttentionMask
from refimpl.cache import DynamicCache
from refimpl.errors import InputError
from refimpl.inputs import backend_array
from refimpl.layers import Linear, Module

Array = Any


class Attention(Module):
    """Multi-head attention; every token sees itself and the tokens before it."""

    def __init__(self, backend: Backend, hidden_size: int, num_heads: int, layer_idx: int, bias: bool):
        super().__init__(backend)
        self.num_heads = num_heads
        self.layer_idx = layer_idx
        self.scale = 1.0 / math.sqrt(hidden_size // num_heads)
        self.query_key_value = Linear(backend, hidden_size, 3 * hidden_size, bias=bias)
        self.dense = Linear(backend, hidden_size, hidden_size, bias=bias)

    def __call__(
        self,
        hidden_states: Array,
        cos: Array,
        sin: Array,
        mask: AttentionMask,
        cache: DynamicCache | None,
        head_mask: Array | None,
        need_weights: bool,
    ) -> tuple[Array, Array | None]:
        """[batch, q_seq, hidden] -> [batch, q_seq, hidden], and the weights [batch, heads, q_seq, kv_seq] if needed"""
        ops = self.backend
        # 1. One product gives query, key and value.
        qkv = self.query_key_value(hidden_states)
        query, key, value = split_heads(qkv, self.num_heads)
        # 2. Position enters by rotating queries and keys.
        query, key = ops.rotary(query, cos, sin), ops.rotary(key, cos, sin)
        # 3. The cache adds the keys and values of earlier tokens.
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx, ops)
        # 4. Each query gathers the values of the keys that it resembles.
        context, weights = ops.attention(query, key, value, mask, self.scale, need_weights)
        if head_mask is not None:
            scale_per_head = head_mask[None, :, None, None]
            context = context * scale_per_head
            weights = None if weights is None else weights * scale_per_head
        # 5. The heads are laid side by side again, and mixed.
        return self.dense(merge_heads(context)), weights


def split_heads(qkv: Array, num_heads: int) -> tuple[Array, Array, Array]:
    """[batch, seq, 3 * hidden] -> query, key, value, each [batch, heads, seq, head_dim]

    The fused columns are ordered head by head: (head, [query, key, value], head_dim).
    """
    batch, seq, width = qkv.shape
    by_head = qkv.reshape(batch, seq, num_heads, 3, width // (3 * num_heads)).transpose(3, 0, 2, 1, 4)
    return by_head[0], by_head[1], by_head[2]


def merge_heads(context: Array) -> Array:
    """[batch, heads, seq, head_dim] -> [batch, seq, heads * head_dim]"""
    batch, heads, seq, head_dim = context.shape
    return context.transpose(0, 2, 1, 3).reshape(batch, seq, heads * head_dim)


def build_mask(
    backend: Backend, attention_mask: Any, batch: int, heads: int, q_seq: int, past: int
) -> AttentionMask:
    """The mask of a forward call from its `attention_mask` argument.

    None: causal.  [batch, past + q_seq], 1 for a token and 0 for padding: causal, without the padding.
    [batch or 1, heads or 1, q_seq, past + q_seq]: the caller's own rule instead of the causal one; a float
    mask is added to the scores, in a bool mask true means visible.  A finished `AttentionMask` stays as it is.

    Raises: InputError for any other shape, and for values that mean nothing.
    """
    if attention_mask is None or isinstance(attention_mask, AttentionMask):
        return attention_mask or AttentionMask(offset=past)
    xp = backend.xp
    mask = backend_array(backend, attention_mask, "attention_mask", "biuf")
    kv_seq = past + q_seq
    if mask.dtype.kind == "f" and bool((xp.isnan(mask) | xp.isposinf(mask)).any()):
        raise InputError(
            "NaN or infinity says neither visible nor hidden",
            where="attention_mask",
            allowed="numbers, and -inf for hidden in a mask that is added to the scores",
        )
    if mask.ndim == 2 and mask.shape == (batch, kv_seq):
        visible = mask != 0
        return AttentionMask(offset=past, key_visible=None if bool(visible.all()) else visible)
    fits = mask.ndim == 4 and mask.shape[2:] == (q_seq, kv_seq)
    if not fits or mask.shape[0] not in (1, batch) or mask.shape[1] not in (1, heads):
        raise InputError(
            "wrong shape",
            where="attention_mask",
            found=str(list(mask.shape)),
            allowed=f"[batch, past + seq] = [{batch}, {kv_seq}], or [batch, 1 or heads, seq, past + seq]",
        )
    if mask.dtype.kind in "iu":
        raise InputError(
            "whole numbers have no clear meaning in a mask of four dimensions",
            where="attention_mask",
            allowed="bool (true: visible), or floats that are added to the scores",
        )
    lowest = float(np.finfo(backend.dtype).min)
    if mask.dtype.kind == "b":
        bias = xp.where(mask, 0.0, lowest)
    else:  # cut to what both dtypes hold
        bias = xp.maximum(mask, max(lowest, float(np.finfo(mask.dtype).min)))
    return AttentionMask(offset=past, bias=bias.astype(backend.dtype))
