"""A cache whose memory is reserved before the first token."""

from __future__ import annotations

from typing import Any

from refimpl.backends.base import Backend
from refimpl.cache import DynamicCache, _LayerCache
from refimpl.errors import ContextOverflowError, InputError, quote

Array = Any


class StaticCache(DynamicCache):
    """Holds up to `max_cache_len` tokens, never moves and never grows.

    Args:
        config: accepted as transformers does, and not needed.
        max_cache_len: how many tokens.
        dtype: as of a `DynamicCache`.

    Raises: InputError unless `max_cache_len` is a whole number above 0; ContextOverflowError when it is full.
    """

    def __init__(self, config: Any = None, max_cache_len: int | None = None, *, dtype: Any = None):
        super().__init__(dtype=dtype)
        if isinstance(max_cache_len, bool) or not isinstance(max_cache_len, int) or max_cache_len < 1:
            raise InputError(
                "not a number of tokens",
                where="max_cache_len",
                found=quote(max_cache_len),
                allowed="a whole number of at least 1",
            )
        self.max_cache_len = max_cache_len

    def update(self, key: Array, value: Array, layer_idx: int, backend: Backend) -> tuple[Array, Array]:
        new, past = key.shape[2], self.get_seq_length(layer_idx)
        if past + new > self.max_cache_len:
            raise ContextOverflowError(
                "the cache is full",
                where="past_key_values",
                found=f"{past} + {new} tokens",
                allowed=f"max_cache_len = {self.max_cache_len}",
                hint="Make it longer, or use a DynamicCache.",
            )
        if layer_idx == len(self._layers):
            self._layers.append(_LayerCache.reserved(key, self.max_cache_len, self.dtype, backend.xp))
        self._layers[layer_idx].append(key, value, backend)
        return self._layers[layer_idx].pair

    def __repr__(self) -> str:
        return f"StaticCache(layers={len(self)}, tokens={self.get_seq_length()} of {self.max_cache_len})"
