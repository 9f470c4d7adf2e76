"""Checks of what a caller hands to a model.

Backends do not check: NumPy reads a negative id from the end, a compiled kernel reads whatever lies
beyond the array.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from refimpl.arrays import to_numpy
from refimpl.backends.base import Backend
from refimpl.errors import InputError, quote

Array = Any

_KINDS = {"b": "truth values", "iu": "whole numbers", "f": "floats"}


def host_array(value: Any, name: str, kinds: str) -> np.ndarray:
    """`value` (an array of any backend, or nested lists) as an array on the host.

    kinds: NumPy's letters of the dtypes that make sense, of "b", "iu" and "f".
    Raises: InputError for rows of different lengths, and for anything else in it.
    """
    try:
        array = to_numpy(value)
    except ValueError as error:
        raise InputError(
            "the rows differ in length", where=name, hint="Pad them: tokenizer(texts, padding=True, ...)."
        ) from error
    if array.dtype.name == "bfloat16":  # to NumPy a type of its own; every number of it is a float32
        array = array.astype(np.float32)
    if array.dtype.kind not in kinds:
        allowed = ", ".join(text for letters, text in _KINDS.items() if letters in kinds)
        raise InputError("wrong kind of values", where=name, found=f"dtype {array.dtype}", allowed=allowed)
    return array


def backend_array(backend: Backend, value: Any, name: str, kinds: str) -> Array:
    """The same as an array of the backend; one that is of the backend already stays where it is."""
    if isinstance(value, backend.xp.ndarray) and value.dtype.kind in kinds:
        return value
    return backend.asarray(host_array(value, name, kinds))


def check_seed(seed: Any) -> int:
    """A seed as a Python int.  Raises: InputError unless it is a whole number of at least 0."""
    try:
        number = operator.index(seed)
    except TypeError:
        number = -1
    if number < 0 or isinstance(seed, bool):
        raise InputError(
            "not a seed", where="seed", found=quote(seed), allowed="a whole number of at least 0"
        )
    return number


def as_id_array(ids: Any, vocab_size: int, name: str = "input_ids") -> np.ndarray:
    """Token ids as an int64 array on the host.  [batch, seq] -> [batch, seq]

    Raises: InputError unless they are whole numbers from 0 to vocab_size - 1 in a rectangle of at least one.
    """
    array = host_array(ids, name, "iuf")
    if array.dtype.kind == "f" and array.size:  # an empty list alone is made of floats
        raise InputError("ids are whole numbers", where=name, found=f"dtype {array.dtype}")
    if array.ndim != 2 or array.size == 0:
        raise InputError(
            "wrong shape", where=name, found=str(list(array.shape)), allowed="[batch, seq], both at least 1"
        )
    wrong = (array < 0) | (array >= vocab_size)
    if wrong.any():
        row, column = (int(i) for i in np.argwhere(wrong)[0])
        raise InputError(
            "id outside the vocabulary",
            where=f"{name}[{row}, {column}]",
            found=str(array[row, column]),
            allowed=f"0 to {vocab_size - 1}",
        )
    return array.astype(np.int64, copy=False)


def check_ids(backend: Backend, input_ids: Any, vocab_size: int) -> Array:
    """The checked ids as an array of the backend.  [batch, seq] -> [batch, seq]"""
    return backend.asarray(as_id_array(input_ids, vocab_size))


def check_embeds(backend: Backend, inputs_embeds: Any, hidden_size: int) -> Array:
    """[batch, seq, hidden] -> [batch, seq, hidden] in the compute dtype"""
    array = backend_array(backend, inputs_embeds, "inputs_embeds", "iuf")
    if array.ndim != 3 or array.shape[2] != hidden_size or array.size == 0:
        raise InputError(
            "wrong shape",
            where="inputs_embeds",
            found=str(list(array.shape)),
            allowed=f"[batch, seq, hidden = {hidden_size}]",
        )
    return array.astype(backend.dtype, copy=False)


def check_cache(
    backend: Backend,
    cache: Any,
    num_layers: int,
    shape: tuple[int, int, int, int],
    dtype: np.dtype,
) -> None:
    """Raise InputError unless a cache (pairs of key and value) is empty, or has a pair of this shape for each layer."""
    if len(cache) not in (0, num_layers):
        raise InputError(
            "the cache belongs to another model",
            where="past_key_values",
            found=f"{len(cache)} layers",
            allowed=f"{num_layers} layers",
        )
    for index, pair in enumerate(cache):
        for array in pair:
            here = isinstance(array, backend.xp.ndarray)
            if not here or array.shape != shape or array.dtype != dtype:
                raise InputError(
                    "the cache was filled by another model or batch",
                    where=f"past_key_values[{index}]",
                    found=f"{list(array.shape)} {array.dtype}" + ("" if here else " of another backend"),
                    allowed=f"[batch, heads, seq, head_dim] = {list(shape)} {dtype}",
                )


def padded(
    rows: Sequence[Sequence[int]], fill: int = 0, side: Literal["left", "right"] = "right"
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of different lengths as one array, filled up on one side, with its mask.  -> 2 x [batch, seq], int64"""
    width = max(map(len, rows))
    ids = np.full((len(rows), width), fill, dtype=np.int64)
    mask = np.zeros_like(ids)
    for index, row in enumerate(rows):
        place = slice(width - len(row), None) if side == "left" else slice(len(row))
        ids[index, place], mask[index, place] = row, 1
    return ids, mask


def default_positions(past: int, seq: int) -> np.ndarray:
    """Count on from the cache.  -> [1, seq]"""
    return np.arange(past, past + seq)[None]


def warn_beyond_context(length: int, max_position_embeddings: int) -> None:
    """Warn (once, as Python's default filter does) when a text is longer than the model was made for."""
    if length > max_position_embeddings:
        warnings.warn(
            f"the text is longer than max_position_embeddings = {max_position_embeddings}: "
            "the model was not trained for such positions, its predictions may be poor",
            stacklevel=3,
        )


def check_positions(backend: Backend, position_ids: Any, batch: int, seq: int) -> Array:
    """[batch or 1, seq] (or [seq]) -> [batch or 1, seq]"""
    positions = backend_array(backend, position_ids, "position_ids", "iu")
    if positions.ndim == 1:
        positions = positions[None]
    if positions.shape not in ((batch, seq), (1, seq)):
        raise InputError(
            "wrong shape",
            where="position_ids",
            found=str(list(positions.shape)),
            allowed=f"[batch or 1, seq] = [{batch}, {seq}]",
        )
    return positions


def check_head_mask(backend: Backend, head_mask: Any, num_layers: int, num_heads: int) -> list[Array | None]:
    """[heads] or [layers, heads] -> one factor per head, [heads], for each layer"""
    if head_mask is None:
        return [None] * num_layers
    mask = backend_array(backend, head_mask, "head_mask", "biuf").astype(backend.dtype)
    if mask.shape == (num_heads,):
        return [mask] * num_layers
    if mask.shape == (num_layers, num_heads):
        return list(mask)
    raise InputError(
        "wrong shape",
        where="head_mask",
        found=str(list(mask.shape)),
        allowed=f"[heads] = [{num_heads}], or [layers, heads] = [{num_layers}, {num_heads}]",
    )
