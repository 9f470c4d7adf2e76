"""The keys and values of the tokens seen so far, so that they are computed only once.

A cache is an argument of the model, never hidden in a layer: whoever holds it decides what is
remembered.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Self

from refimpl.errors import InputError, quote

Array = Any

# Storage grows by doubling, and by so many positions at least: a token is then copied a constant
# number of times on average.
_BLOCK = 64


class _LayerCache:
    """Keys and values of one layer, in storage that may be longer than what is filled."""

    def __init__(self, key: Array, value: Array):
        self.key_storage, self.value_storage = key, value  # [batch, heads, capacity, head_dim]
        self.length = key.shape[2]

    def append(self, key: Array, value: Array, xp: Any) -> None:
        if key.shape[:2] + key.shape[3:] != self.key_storage.shape[:2] + self.key_storage.shape[3:]:
            raise InputError(
                "the cache was filled by another model or batch",
                where="past_key_values",
                found=f"[batch, heads, seq, head_dim] = {list(self.key_storage.shape)}",
                allowed=f"batch, heads and head_dim of {list(key.shape)}",
            )
        end = self.length + key.shape[2]
        capacity = self.key_storage.shape[2]
        if end > capacity:
            grown = max(end, 2 * capacity, _BLOCK)
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
    """

    def __init__(self, pairs: Iterable[tuple[Array, Array]] = ()):
        # Copied, because a cache writes into its storage and the caller's arrays stay as they are.
        self._layers = [_LayerCache(key.copy(), value.copy()) for key, value in pairs]

    def update(self, key: Array, value: Array, layer_idx: int, xp: Any) -> tuple[Array, Array]:
        """Append the keys and values of new tokens; return all of that layer.

        2 x [batch, heads, new, head_dim] -> 2 x [batch, heads, past + new, head_dim]
        """
        if layer_idx == len(self._layers):
            # Contiguous, because the value is still a view into the larger fused projection.
            self._layers.append(_LayerCache(xp.ascontiguousarray(key), xp.ascontiguousarray(value)))
        else:
            self._layers[layer_idx].append(key, value, xp)
        return self._layers[layer_idx].pair

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """How many tokens the cache holds."""
        return self._layers[layer_idx].length if layer_idx < len(self._layers) else 0

    def crop(self, max_length: int) -> None:
        """Forget the tokens after the first `max_length` (a negative number: so many from the end)."""
        for layer in self._layers:
            keep = max_length if max_length >= 0 else layer.length + max_length
            layer.length = max(0, min(layer.length, keep))

    def to_legacy_cache(self) -> tuple[tuple[Array, Array], ...]:
        return tuple(self)

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
        return f"DynamicCache(layers={len(self)}, tokens={self.get_seq_length()})"


def open_cache(past_key_values: Any, use_cache: bool, num_layers: int) -> DynamicCache | None:
    """The cache of a forward call: the caller's, a new one, or none.

    Raises: InputError unless `past_key_values` is a cache, or a tuple of (key, value), of so many layers.
    """
    if past_key_values is None:
        return DynamicCache() if use_cache else None
    cache = past_key_values
    if not isinstance(cache, DynamicCache):
        try:
            cache = DynamicCache(cache)
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
    return cache
