"""The keys and values of the tokens seen so far, so that they are computed only once.

A cache is an argument of the model, never hidden in a layer: whoever holds it decides what is
remembered.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Self

from refimpl.arrays import to_numpy
from refimpl.backends import float_dtype
from refimpl.backends.base import Backend
from refimpl.errors import InputError, quote
from refimpl.inputs import check_cache

Array = Any

# Storage grows by a quarter, and by so many positions at least: a token is then copied a constant
# number of times on average, and little stays empty.
_BLOCK = 64


class _LayerCache:
    """Keys and values of one layer, in storage that may be longer than what is filled."""

    def __init__(self, key: Array, value: Array):
        self.key_storage, self.value_storage = key, value  # [batch, heads, capacity, head_dim]
        self.length = key.shape[2]

    @classmethod
    def reserved(cls, key: Array, capacity: int, dtype: Any, xp: Any) -> Self:
        """Storage for keys and values like `key`, with nothing in it."""
        shape = (*key.shape[:2], capacity, key.shape[3])
        layer = cls(xp.empty(shape, dtype or key.dtype), xp.empty(shape, dtype or key.dtype))
        layer.length = 0
        return layer

    def append(self, key: Array, value: Array, backend: Backend) -> None:
        end, capacity = self.length + key.shape[2], self.key_storage.shape[2]
        if end > capacity:
            self.move(max(end, capacity + max(_BLOCK, capacity // 4)), backend)
        backend.store(self.key_storage, self.value_storage, key, value, self.length)
        self.length = end

    def move(self, capacity: int, backend: Backend) -> None:
        larger = self.reserved(self.key_storage, capacity, None, backend.xp)
        backend.store(larger.key_storage, larger.value_storage, *self.pair, 0)
        self.key_storage, self.value_storage = larger.key_storage, larger.value_storage

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
        dtype: "float16" or "bfloat16" keep keys and values rounded, in half the memory; None: as the backend does.
    """

    def __init__(self, pairs: Iterable[tuple[Array, Array]] = (), *, config: Any = None, dtype: Any = None):
        self.dtype = float_dtype(dtype)
        # Copied, because a cache writes into its storage and the caller's arrays stay as they are.
        self._layers = [_LayerCache(key.copy(), value.copy()) for key, value in pairs]

    def update(self, key: Array, value: Array, layer_idx: int, backend: Backend) -> tuple[Array, Array]:
        """Append the keys and values of new tokens; return all of that layer.

        2 x [batch, heads, new, head_dim] -> 2 x [batch, heads, past + new, head_dim]
        """
        if layer_idx == len(self._layers):
            self._layers.append(_LayerCache.reserved(key, key.shape[2], self.dtype, backend.xp))
        self._layers[layer_idx].append(key, value, backend)
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
        rows = to_numpy(beam_idx).tolist()  # any backend takes a list
        for layer in self._layers:
            layer.key_storage, layer.value_storage = layer.key_storage[rows], layer.value_storage[rows]

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
        return DynamicCache(dtype=backend.cache_dtype) if use_cache else None
    cache = past_key_values
    if not isinstance(cache, DynamicCache):
        try:
            kept = backend.cache_dtype or backend.dtype
            cache = DynamicCache((backend.asarray(k, kept), backend.asarray(v, kept)) for k, v in cache)
        except (TypeError, ValueError, AttributeError, IndexError) as error:
            raise InputError(
                "not a cache",
                where="past_key_values",
                found=quote(past_key_values),
                allowed="a DynamicCache, or a tuple of (key, value) per layer",
            ) from error
    if cache.dtype is None and (not len(cache) or cache[0][0].dtype == backend.cache_dtype):
        cache.dtype = backend.cache_dtype
    expected = (*shape[:2], cache.get_seq_length(), shape[2])
    check_cache(backend, cache, num_layers, expected, cache.dtype or backend.dtype)
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
