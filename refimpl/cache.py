"""The keys and values of the tokens seen so far, so that they are computed only once.

A cache is an argument of the model, never hidden in a layer: whoever holds it decides what is
remembered.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Self

from refimpl.backends import float_dtype
from refimpl.backends.base import Backend
from refimpl.errors import InputError, quote

Array = Any

# Storage grows by a quarter, and by so many positions at least: a token is then copied a constant
# number of times on average, and little stays empty.
_BLOCK = 64


class _LayerCache:
    """Keys and values of one layer, in storage that may be longer than what is filled."""

    def __init__(self, key: Array, value: Array):
        self.key_storage, self.value_storage = key, value  # [batch, heads, capacity, head_dim]
        self.length = key.shape[2]

    def append(self, key: Array, value: Array, xp: Any) -> None:
        end = self.length + key.shape[2]
        capacity = self.key_storage.shape[2]
        if end > capacity:
            grown = max(end, capacity + max(_BLOCK, capacity // 4))
            self.key_storage = self._grow(self.key_storage, grown, xp)
            self.value_storage = self._grow(self.value_storage, grown, xp)
        self.key_storage[:, :, self.length : end] = key
        self.value_storage[:, :, self.length : end] = value
        self.length = end

    def _grow(self, storage: Array, capacity: int, xp: Any) -> Array:
        batch, heads, _, head_dim = storage.shape
        larger = xp.empty((batch, heads, capacity, head_dim), dtype=storage.dtype)
        larger[:, :, : self.length] = storage[:, :, : self.length]
        return larger

    @property
    def pair(self) -> tuple[Array, Array]:
        """(key, value), each [batch, heads, length, head_dim]; views, not copies."""
        return self.key_storage[:, :, : self.length], self.value_storage[:, :, : self.length]


class DynamicCache:
    """A cache that grows with the text.

    It reads as the tuple of (key, value) per layer that earlier versions of transformers returned:
    `cache[layer][0]` is the key, [batch, heads, seq, head_dim]; `len(cache)` is the number of layers.
    These arrays are views of the cache's storage; `to_legacy_cache` gives copies.

    Args:
        pairs: (key, value) per layer to start from; they are copied.
        config: accepted as transformers does, and not needed.
        dtype: "float16" or "bfloat16" keep keys and values rounded, in half the memory; None: as they are computed.
    """

    def __init__(self, pairs: Iterable[tuple[Array, Array]] = (), *, config: Any = None, dtype: Any = None):
        self.dtype = float_dtype(dtype)
        # Copied, because a cache writes into its storage and the caller's arrays stay as they are.
        self._layers = [_LayerCache(key.copy(), value.copy()) for key, value in pairs]

    def update(self, key: Array, value: Array, layer_idx: int, xp: Any) -> tuple[Array, Array]:
        """Append the keys and values of new tokens; return all of that layer.

        2 x [batch, heads, new, head_dim] -> 2 x [batch, heads, past + new, head_dim]
        """
        if layer_idx == len(self._layers):
            # Contiguous, because the value is still a view into the larger fused projection.
            key, value = (xp.ascontiguousarray(array, dtype=self.dtype) for array in (key, value))
            self._layers.append(_LayerCache(key, value))
        else:
            self._layers[layer_idx].append(key, value, xp)
        return self._layers[layer_idx].pair

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """How many tokens the cache holds."""
        return self._layers[layer_idx].length if layer_idx < len(self._layers) else 0

    def crop(self, max_length: int) -> None:
        """Forget the tokens after the first `max_length` (a negative number: so many from the end)."""
        keep = operator.index(max_length)
        for layer in self._layers:
            layer.length = max(0, min(layer.length, keep if keep >= 0 else layer.length + keep))

    def reset(self) -> None:
        """Forget everything."""
        self._layers.clear()

    def reorder_cache(self, beam_idx: Array) -> None:
        """Row i becomes what row `beam_idx[i]` was.  A row may come several times, or not at all."""
        for layer in self._layers:
            layer.key_storage = layer.key_storage[beam_idx]
            layer.value_storage = layer.value_storage[beam_idx]

    def to_legacy_cache(self) -> tuple[tuple[Array, Array], ...]:
        """A copy as a tuple of (key, value) per layer."""
        return tuple((key.copy(), value.copy()) for key, value in self)

    @classmethod
    def from_legacy_cache(cls, past_key_values: Iterable[tuple[Array, Array]] | None = None) -> Self:
        return cls(past_key_values or ())

    @property
    def nbytes(self) -> int:
        """Bytes of storage, filled or not."""
        return sum(layer.key_storage.nbytes + layer.value_storage.nbytes for layer in self._layers)

    def __getitem__(self, layer_idx: int) -> tuple[Array, Array]:
        return self._layers[layer_idx].pair

    def __iter__(self) -> Iterator[tuple[Array, Array]]:
        return (layer.pair for layer in self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(layers={len(self)}, tokens={self.get_seq_length()})"


def open_cache(
    backend: Backend, past_key_values: Any, use_cache: bool, num_layers: int, shape: tuple[int, int, int]
) -> DynamicCache | None:
    """The cache of a forward call: the caller's, a new one, or none.

    shape: (batch, heads, head_dim) of the call.
    Raises: InputError unless `past_key_values` is a cache, or a tuple of (key, value), of this model and batch.
    """
    if past_key_values is None:
        return DynamicCache() if use_cache else None
    cache = past_key_values
    if not isinstance(cache, DynamicCache):
        try:
            pairs = [(backend.asarray(k, backend.dtype), backend.asarray(v, backend.dtype)) for k, v in cache]
            cache = DynamicCache(pairs)
        except (TypeError, ValueError, AttributeError, IndexError) as error:
            raise InputError(
                "not a cache",
                where="past_key_values",
                found=quote(past_key_values),
                allowed="a DynamicCache, or a tuple of (key, value) per layer",
            ) from error
    if len(cache) not in (0, num_layers):
        raise InputError(
            "the cache belongs to another model",
            where="past_key_values",
            found=f"{len(cache)} layers",
            allowed=f"{num_layers} layers",
        )
    batch, heads, head_dim = shape
    expected = (batch, heads, cache.get_seq_length(), head_dim)
    for index, pair in enumerate(cache):
        for array in pair:
            if array.shape != expected or array.dtype != (cache.dtype or backend.dtype):
                raise InputError(
                    "the cache was filled by another model or batch",
                    where=f"past_key_values[{index}]",
                    found=f"{list(array.shape)} {array.dtype}",
                    allowed=f"[batch, heads, seq, head_dim] = {list(expected)} {cache.dtype or backend.dtype}",
                )
    return cache


@contextmanager
def undone_on_failure(cache: Any) -> Iterator[None]:
    """Whatever fails inside, Ctrl-C too: a cache is then as it was before, and can be used again."""
    if not isinstance(cache, DynamicCache):
        yield
        return
    past = cache.get_seq_length()
    try:
        yield
    except BaseException:
        if past:
            cache.crop(past)
        else:
            cache.reset()
        raise
