"""Launches of the kernels of attention: which one, and over how many blocks.

No choice depends on anything but shapes, strides, dtypes and the device, so that a launch can be recorded.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from refimpl.backends.cupy import modules
from refimpl.backends.mask import AttentionMask

Array = Any

#: The largest head_dim that the kernels take.
LARGEST_HEAD_DIM = 256

#: Up to so many queries each head's keys are cut into units, one block each: see attention_decode.cu.
FEW_QUERIES = 8

_UNIT_KEYS = 128

#: More queries share their keys between blocks where each gets at least so many, a multiple of every tile.
_PART_KEYS = 512
_TILE = 64
_MERGE_THREADS = 256
_ROWS = (1, 4)

#: What head_dim is filled up to in shared memory. A larger step costs products with zeros, a smaller one compiling.
_DIMS = (32, 64, 80, 96, 128, 192, 256)

#: In the order of the numbers in attention.cuh.
_TYPES = ("float32", "float16", "bfloat16")


def attend(
    query: Array, key: Array, value: Array, mask: AttentionMask, scale: float, dtype: np.dtype
) -> Array:
    """softmax(scale * query @ key.T, where visible) @ value, without holding the scores.

    query [batch, heads, q_seq, head_dim], key and value [batch, heads, kv_seq, head_dim], each float32, float16 or
    bfloat16, and maybe views of larger arrays -> context [batch, heads, q_seq, head_dim] in `dtype`, one of these.
    The context's memory lies as [batch, q_seq, heads, head_dim].  head_dim: at most `LARGEST_HEAD_DIM`.

    `mask` has no bias. Its offset may be an int64 array [1] on the device: query i then sees the keys up to
    offset + i, kv_seq is how many there is room for, and what lies beyond is never read, nor are hidden keys.

    Sums are in float32.  With more than `FEW_QUERIES` queries that are in 16 bits, as the keys are, the weights of
    the values are rounded to that type; otherwise nothing is rounded.  A value of another dtype than the keys' is
    converted first.  A query that sees nothing gives zeros.
    """
    cp = modules.cupy()
    batch, heads, queries, head_dim = query.shape
    context = cp.empty((batch, queries, heads, head_dim), dtype=dtype)
    if context.size:
        query, key = _with_rows(query), _with_rows(key)
        value = _with_rows(value.astype(key.dtype, copy=False))
        if queries <= FEW_QUERIES:
            _decode(query, key, value, mask, scale, context)
        else:
            _prefill(query, key, value, mask, scale, context)
    return context.transpose(0, 2, 1, 3)


def _decode(
    query: Array, key: Array, value: Array, mask: AttentionMask, scale: float, context: Array
) -> None:
    batch, heads, queries, head_dim = query.shape
    keys = key.shape[2]
    wide = _is_wide(key) and _is_wide(value)
    rows = _ROWS[0] if queries == 1 or not wide else _ROWS[1]
    units = max(1, -(-keys // _UNIT_KEYS))
    sums, marks = _scratch(query, units)
    modules.kernel("attention_decode", _decode_name(key.dtype, head_dim, rows, wide)).launch(
        (batch * heads * -(-queries // rows), units),
        (128,),
        *(query, _type_number(query), *_steps(query)),
        *(key, *_steps(key), value, *_steps(value)),
        *_visible(mask),
        *_offset(mask),
        *_sizes(heads, queries, keys, head_dim),
        np.float32(scale),
        *(sums, marks, context, _type_number(context)),
    )
    _merge(sums, marks, query, keys, units, _UNIT_KEYS, mask, context)


def _prefill(
    query: Array, key: Array, value: Array, mask: AttentionMask, scale: float, context: Array
) -> None:
    batch, heads, queries, head_dim = query.shape
    keys = key.shape[2]
    dim = next(size for size in _DIMS if size >= head_dim)
    wide = _is_wide(key) and _is_wide(value)
    # float32 queries of keys in 16 bits: the caller's cache is rounded, the caller's computation is not.
    fits = query.dtype == key.dtype and context.dtype in (np.float32, key.dtype)
    if fits and key.dtype.itemsize == 2 and modules.capability() >= 80:
        wide = wide and _is_wide(query)
        strips = 2
        if dim > 128 or batch * heads * -(-queries // 128) < modules.multiprocessors():
            strips = 1  # smaller tiles, because large ones would leave part of the card without work
        rows, threads = 64 * strips, 128
        file, name = "attention_prefill", _prefill_name(key.dtype, dim, strips)
        shared = (rows + 2 * _tile_keys(dim)) * (dim + 8) * 2
        query_arguments = (query, *_steps(query))
    else:
        rows, threads = _plain_tile(dim, modules.capability()), 256
        file, name = "attention_plain", _plain_name(key.dtype, dim, rows)
        shared = _plain_shared(dim, rows)
        query_arguments = (query, _type_number(query), *_steps(query))
    blocks = batch * heads * -(-queries // rows)
    part_keys = _part_keys(blocks, keys)
    parts = max(1, -(-keys // part_keys))
    sums, marks = _scratch(query, parts)
    modules.kernel(file, name).launch(
        (blocks, parts),
        (threads,),
        *query_arguments,
        *(key, *_steps(key), value, *_steps(value)),
        *_visible(mask),
        *_offset(mask),
        *_sizes(heads, queries, keys, head_dim, int(wide), part_keys),
        np.float32(scale),
        *(sums, marks, context, _type_number(context)),
        shared=shared,
    )
    _merge(sums, marks, query, keys, parts, part_keys, mask, context)


def _part_keys(blocks: int, keys: int) -> int:
    """How many keys a block takes: all, unless so few blocks over so many keys would leave the card without work."""
    wanted = -(-2 * modules.multiprocessors() // blocks)
    if blocks >= modules.multiprocessors() or keys < 2 * _PART_KEYS:
        return max(keys, 1)
    parts = min(wanted, keys // _PART_KEYS)
    return -(-keys // (parts * _TILE)) * _TILE


def _scratch(query: Array, units: int) -> tuple[Array | None, Array | None]:
    """Room for what `units` blocks find for each query: the sums of values, and two numbers beside them."""
    if units == 1:
        return None, None
    cp = modules.cupy()
    *rows, head_dim = query.shape
    padded = -(-head_dim // 4) * 4
    return cp.empty((*rows, units, padded), dtype=np.float32), cp.empty((*rows, units, 2), dtype=np.float32)


def _merge(
    sums: Array | None,
    marks: Array | None,
    query: Array,
    keys: int,
    units: int,
    unit_keys: int,
    mask: AttentionMask,
    context: Array,
) -> None:
    if units == 1:
        return
    batch, heads, queries, head_dim = query.shape
    modules.kernel("attention_decode", f"merge<{_MERGE_THREADS}>").launch(
        (batch * heads * queries,),
        (_MERGE_THREADS,),
        *(sums, marks, *_offset(mask)),
        *_sizes(heads, queries, keys, units, unit_keys, head_dim),
        *(context, _type_number(context)),
    )


# --- instances -----------------------------------------------------------------------------------


def instances(capability: int) -> list[tuple[str, str]]:
    """All (file, kernel) that `attend` can ask for on a device of that compute capability (70, 80, 90 ...)."""
    dtypes = [_TypeName(name) for name in _TYPES]
    found = {("attention_decode", f"merge<{_MERGE_THREADS}>"): None}
    for dtype in dtypes:
        for head_dim in (16, 32, 64, 128, 256):
            for rows, wide in ((_ROWS[0], True), (_ROWS[1], True), (_ROWS[0], False)):
                found["attention_decode", _decode_name(dtype, head_dim, rows, wide)] = None
        for dim in _DIMS:
            found["attention_plain", _plain_name(dtype, dim, _plain_tile(dim, capability))] = None
            if dtype.itemsize == 2 and capability >= 80:
                for strips in (1, 2) if dim <= 128 else (1,):
                    found["attention_prefill", _prefill_name(dtype, dim, strips)] = None
    return list(found)


class _TypeName:
    """As much of a dtype as naming kernels needs; bfloat16 is none of NumPy's own."""

    def __init__(self, name: str):
        self.name, self.itemsize = name, 4 if name == "float32" else 2


def _decode_name(dtype: Any, head_dim: int, rows: int, wide: bool) -> str:
    """16 bytes of a row of keys for each of 4, 8, 16 or 32 lanes; twice, where 32 lanes are not enough."""
    pieces = -(-head_dim * dtype.itemsize // 16)
    lanes = min(32, max(4, 1 << (pieces - 1).bit_length()))
    chunks = -(-pieces // 32)
    return f"decode<{modules.type_name(dtype)}, {lanes}, {chunks}, {rows}, {str(wide).lower()}>"


def _prefill_name(dtype: Any, dim: int, strips: int) -> str:
    return f"prefill<{modules.type_name(dtype)}, {dim}, {strips}, {_tile_keys(dim)}>"


def _tile_keys(dim: int) -> int:
    """Keys of a tile: as many as the registers of a thread have room for their scores."""
    return 64 if dim <= 128 else 32


def _plain_name(dtype: Any, dim: int, tile: int) -> str:
    return f"prefill_plain<{modules.type_name(dtype)}, {dim}, {tile}>"


def _plain_tile(dim: int, capability: int) -> int:
    """Rows of a tile: as many as fit into the shared memory that every card of that compute capability has."""
    room = {75: 64}.get(capability, 96) * 1024
    return next(tile for tile in (64, 32, 16) if _plain_shared(dim, tile) <= room)


def _plain_shared(dim: int, tile: int) -> int:
    return (2 * tile * (dim + 4) + tile * (tile + 4)) * 4


# --- arguments -----------------------------------------------------------------------------------


def _with_rows(array: Array) -> Array:
    """`array`, or a copy where the numbers of a row do not lie side by side."""
    if array.shape[-1] == 1 or array.strides[-1] == array.itemsize:
        return array
    return modules.cupy().ascontiguousarray(array)


def _is_wide(array: Array) -> bool:
    """Whether every row begins and ends at a multiple of 16 bytes."""
    steps = [step for size, step in zip(array.shape[:3], array.strides[:3], strict=True) if size > 1]
    places = (array.data.ptr, array.shape[3] * array.itemsize, *steps)
    return not any(place % 16 for place in places)


def _steps(array: Array) -> tuple[np.int64, ...]:
    """From batch to batch, head to head and row to row, in numbers."""
    return tuple(np.int64(step // array.itemsize) for step in array.strides[:3])


def _sizes(*sizes: int) -> tuple[np.int32, ...]:
    return tuple(np.int32(size) for size in sizes)


def _type_number(array: Array) -> np.int32:
    return np.int32(_TYPES.index(array.dtype.name))


def _visible(mask: AttentionMask) -> tuple[Array | None, np.int64]:
    visible = mask.key_visible
    if visible is None:
        return None, np.int64(0)
    if visible.shape[1] > 1 and visible.strides[1] != 1:
        visible = modules.cupy().ascontiguousarray(visible)
    return visible, np.int64(visible.strides[0] if visible.shape[0] > 1 else 0)


def _offset(mask: AttentionMask) -> tuple[Array | None, np.int32]:
    if isinstance(mask.offset, int | np.integer):
        return None, np.int32(mask.offset)
    return mask.offset, np.int32(0)
