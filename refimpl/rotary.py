"""The angles of rotary position embedding (arXiv:2104.09864)."""

from __future__ import annotations

from typing import Any

import numpy as np

from refimpl.backends.base import Backend
from refimpl.config import GPTNeoXJapaneseConfig

Array = Any


class RotaryEmbedding:
    """cos and sin of position * base ** (-2 i / rotary_ndims), for i in 0 .. rotary_ndims / 2.

    The exponent runs over the rotated width, not over the head's.  Everything is computed in
    float32 at least, and cast to the compute dtype last: a rounded frequency shifts every later
    position.  In a float64 model the table is float64.
    """

    def __init__(self, backend: Backend, config: GPTNeoXJapaneseConfig):
        self.backend = backend
        self.table_dtype = np.float64 if backend.dtype == np.float64 else np.float32
        dimension: np.ndarray = np.arange(0, config.rotary_ndims, 2, dtype=self.table_dtype)
        inv_freq = 1.0 / self.table_dtype(config.rotary_emb_base) ** (dimension / config.rotary_ndims)
        self.inv_freq = backend.asarray(inv_freq)  # [rotary_ndims / 2]

    def __call__(self, position_ids: Array) -> tuple[Array, Array]:
        """[batch or 1, seq] -> cos and sin, each [batch or 1, seq, rotary_ndims / 2]"""
        angle = position_ids[:, :, None].astype(self.table_dtype) * self.inv_freq
        xp, dtype = self.backend.xp, self.backend.dtype
        return xp.cos(angle).astype(dtype), xp.sin(angle).astype(dtype)
