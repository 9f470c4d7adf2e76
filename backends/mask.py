"""Which keys a query may see, described without ever holding a [q_seq, kv_seq] array."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Array = Any


@dataclass(frozen=True)
class AttentionMask:
    """The causal rule, and padding or a mask of the caller's own.

    Query `i` sees the keys `0 .. offset + i`: `offset` is the number of cached keys before the first
    query (in a recorded step an array [1] of the backend; the keys may then go on beyond `offset + i`).
    """

    offset: int | Array = 0
    #: [batch, kv_seq] bool: false at padding. None: no padding.
    key_visible: Array | None = None
    #: [batch, 1 or heads, q_seq, kv_seq], added to the scores. It replaces the two rules above.
    bias: Array | None = None

    def visible(self, xp: Any, q_seq: int, kv_seq: int) -> Array | None:
        """Bool, broadcastable to [batch, heads, q_seq, kv_seq]; None where `bias` says it all."""
        if self.bias is not None:
            return None
        query_position = xp.arange(q_seq)[:, None] + self.offset
        visible = (xp.arange(kv_seq)[None, :] <= query_position)[None, None]
        if self.key_visible is not None:
            visible = visible & self.key_visible[:, None, None, :]
        return visible
