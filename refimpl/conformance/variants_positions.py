"""Classic mistakes with rotary positions, masks and the cache.

Each function plants one into a `Copy` and returns whether the model, or its calls, have the place for it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from refimpl.backends import to_dtype
from refimpl.backends.mask import AttentionMask
from refimpl.conformance.planting import Copy
from refimpl.conformance.trace import Call

Array = Any

# --- rotary --------------------------------------------------------------------------------------


def interleaved(copy: Copy) -> bool:
    if copy.base.rotary_emb.config.rotary_ndims == 2:
        return False  # one pair is its own neighbours

    def rotary(plain: Any, x: Array, cos: Array, sin: Array) -> Array:
        width, xp = 2 * cos.shape[-1], copy.backend.xp
        first, second = x[..., 0:width:2], x[..., 1:width:2]
        cos, sin = cos[:, None], sin[:, None]
        pairs = xp.stack([first * cos - second * sin, second * cos + first * sin], axis=-1)
        return xp.concatenate([pairs.reshape(*x.shape[:-1], width), x[..., width:]], axis=-1)

    copy.around("rotary", rotary)
    return True


def backwards(copy: Copy) -> bool:
    copy.around("rotary", lambda plain, x, cos, sin: plain(x, cos, -sin))
    return True


def at_the_end(copy: Copy) -> bool:
    """The last dimensions of each head rotated, instead of the first."""
    config = copy.base.rotary_emb.config
    start = config.head_dim - config.rotary_ndims
    if not start:
        return False

    def rotary(plain: Any, x: Array, cos: Array, sin: Array) -> Array:
        return copy.backend.xp.concatenate([x[..., :start], plain(x[..., start:], cos, sin)], axis=-1)

    copy.around("rotary", rotary)
    return True


def none(copy: Copy) -> bool:
    copy.around("rotary", lambda plain, x, cos, sin: x)
    return True


def keys_not_rotated(copy: Copy) -> bool:
    count = [0]

    def rotary(plain: Any, x: Array, cos: Array, sin: Array) -> Array:
        count[0] += 1  # an attention rotates the query first, then the key
        return plain(x, cos, sin) if count[0] % 2 else x

    copy.around("rotary", rotary)
    return True


def rotate_part(copy: Copy, part: float) -> bool:
    """Another part of each head, where that can be done."""
    config = copy.base.rotary_emb.config
    width = int(config.head_dim * part)
    smallest = 4 if copy.rope["rope_type"] == "dynamic" else 2
    if width == config.rotary_ndims or width < smallest or width % 2 or copy.rope["rope_type"] == "longrope":
        return False  # longrope has one divisor for each frequency
    copy.set_rope(partial_rotary_factor=part)
    return True


def exponent_over_head(copy: Copy) -> bool:
    """base ** (-2 i / head_dim) is another base with the exponent over the rotated width."""
    config = copy.base.rotary_emb.config
    if config.rotary_ndims == config.head_dim:
        return False
    copy.set_rope(rope_theta=float(copy.rope["rope_theta"]) ** (config.rotary_ndims / config.head_dim))
    return True


def default_base(copy: Copy) -> bool:
    if copy.rope["rope_theta"] == 10000:
        return False
    copy.set_rope(rope_theta=10000)
    return True


def no_scaling(copy: Copy) -> bool:
    if copy.rope["rope_type"] == "default":
        return False
    copy.set_rope(rope_type="default")
    return True


def no_attention_factor(copy: Copy) -> bool:
    if copy.rope["rope_type"] not in ("yarn", "longrope"):
        return False
    copy.set_rope(attention_factor=1.0)
    return True


def one_list(copy: Copy, length: int) -> bool:
    """The list of longrope for texts of `length`, whatever the length."""
    if copy.rope["rope_type"] != "longrope":
        return False
    tables = copy.base.rotary_emb
    tables.fixed = tables._frequencies(length)
    return True


def tables_for_each_row(copy: Copy) -> bool:
    tables = copy.base.rotary_emb
    if tables.fixed is not None:
        return False

    def each(position_ids: Array) -> tuple[Array, Array]:
        rows = [tables(position_ids[row : row + 1]) for row in range(len(position_ids))]
        cos, sin = zip(*rows, strict=True)
        return copy.backend.xp.concatenate(cos), copy.backend.xp.concatenate(sin)

    each.config = tables.config  # type: ignore[attr-defined]
    copy.base.rotary_emb = each
    return True


def rounded_tables(copy: Copy) -> bool:
    """cos and sin in bfloat16."""
    tables, narrow = copy.base.rotary_emb, to_dtype("bfloat16")

    def rounded(position_ids: Array) -> tuple[Array, Array]:
        cos, sin = tables(position_ids)
        return cos.astype(narrow).astype(cos.dtype), sin.astype(narrow).astype(sin.dtype)

    rounded.config = tables.config  # type: ignore[attr-defined]
    copy.base.rotary_emb = rounded
    return True


# --- positions -----------------------------------------------------------------------------------


def _positions(copy: Copy, change: Any) -> bool:
    """Other positions for each call: `change` gives them, or None where they stay."""
    changed = False
    for index, call in enumerate(copy.calls):
        positions = change(call)
        if positions is not None:
            copy.calls[index] = replace(call, position_ids=positions)
            changed = True
    return changed


def from_one(copy: Copy) -> bool:
    return _positions(copy, lambda call: call.position_ids + 1)


def from_mask(copy: Copy) -> bool:
    def counted(call: Call) -> np.ndarray | None:
        if call.attention_mask is None or not call.counts_on():
            return None
        return np.maximum(np.cumsum(call.attention_mask, axis=1) - 1, 0)[:, call.past :]

    return _positions(copy, counted)


def not_shifted(copy: Copy) -> bool:
    def by_place(call: Call) -> np.ndarray | None:
        return None if call.counts_on() else np.arange(call.past, call.past + call.seq)[None]

    return _positions(copy, by_place)


def restart(copy: Copy) -> bool:
    return _positions(copy, lambda call: np.arange(call.seq)[None] if call.past else None)


# --- masks ---------------------------------------------------------------------------------------


def padding_visible(copy: Copy) -> bool:
    masked = any(call.attention_mask is not None for call in copy.calls)
    copy.calls[:] = [replace(call, attention_mask=None) for call in copy.calls]
    return masked


def shifted_mask(copy: Copy, by: int) -> bool:
    """The causal rule moved by so many places."""

    def attention(plain: Any, query: Array, key: Array, value: Array, mask: AttentionMask, *rest: Any) -> Any:
        moved = AttentionMask(mask.offset + by, mask.key_visible, mask.bias)
        return plain(query, key, value, moved, *rest)

    copy.around("attention", attention)
    return True


def without_past(copy: Copy) -> bool:
    if not any(call.past for call in copy.calls):
        return False

    def attention(plain: Any, query: Array, key: Array, value: Array, mask: AttentionMask, *rest: Any) -> Any:
        return plain(query, key, value, AttentionMask(0, mask.key_visible, mask.bias), *rest)

    copy.around("attention", attention)
    return True


# --- the cache -----------------------------------------------------------------------------------


def stale_cache(copy: Copy) -> bool:
    """The keys and values of a call can be seen from the next call on only."""
    if not any(call.past for call in copy.calls):
        return False

    def attention(plain: Any, query: Array, key: Array, value: Array, mask: AttentionMask, *rest: Any) -> Any:
        past = mask.offset
        if past:
            visible = None if mask.key_visible is None else mask.key_visible[:, :past]
            key, value, mask = key[:, :, :past], value[:, :, :past], AttentionMask(past, visible)
        return plain(query, key, value, mask, *rest)

    copy.around("attention", attention)
    return True


def overwritten_token(copy: Copy) -> bool:
    """After the first call the cache is filled from one place too early: its last token is lost."""
    first = next((call.past for call in copy.calls if call.past), 0)
    if not first:
        return False

    def attention(plain: Any, query: Array, key: Array, value: Array, mask: AttentionMask, *rest: Any) -> Any:
        if mask.offset:
            key, value = np.delete(key, first - 1, axis=2), np.delete(value, first - 1, axis=2)
            visible = mask.key_visible
            visible = None if visible is None else np.delete(visible, first - 1, axis=1)
            mask = AttentionMask(mask.offset - 1, visible)
        return plain(query, key, value, mask, *rest)

    copy.around("attention", attention)
    return True


def _grows(copy: Copy) -> bool:
    """Whether the frequencies of a later call may be others than those of an earlier one."""
    return copy.base.rotary_emb.fixed is None and any(call.past for call in copy.calls)


def keys_rotated_anew(copy: Copy) -> bool:
    if not _grows(copy):
        return False
    tables = copy.base.rotary_emb
    seen: list[Array] = []
    newest: list[Array] = [None, None]
    plain_rotary, count = copy.backend.rotary, [0]

    def following(position_ids: Array) -> tuple[Array, Array]:
        if not seen or position_ids.min() == 0:
            seen.clear()
        seen.append(position_ids)
        cos, sin = tables(np.concatenate(seen, axis=1))
        newest[:] = [cos, sin]
        new = position_ids.shape[1]
        return cos[:, -new:], sin[:, -new:]

    def rotary(plain: Any, x: Array, cos: Array, sin: Array) -> Array:
        count[0] += 1
        return plain(x, cos, sin) if count[0] % 2 else x

    def attention(plain: Any, query: Array, key: Array, *rest: Any) -> Any:
        return plain(query, plain_rotary(key, *newest), *rest)

    following.config = tables.config  # type: ignore[attr-defined]
    copy.base.rotary_emb = following
    copy.around("rotary", rotary)
    copy.around("attention", attention)
    return True


def prefix_recomputed(copy: Copy) -> bool:
    if not _grows(copy):
        return False
    ids: list[np.ndarray] = []
    positions: list[np.ndarray] = []
    for index, call in enumerate(list(copy.calls)):
        ids.append(np.asarray(call.input_ids))
        positions.append(np.asarray(call.position_ids))
        every_id, every_position = np.concatenate(ids, axis=1), np.concatenate(positions, axis=1)
        copy.calls[index] = replace(call, past=0, input_ids=every_id, position_ids=every_position)
        copy.only_new_rows.append(call.seq)
    return True
