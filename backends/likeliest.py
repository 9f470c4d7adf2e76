"""The greedy choice: which of the logits is the largest."""

from __future__ import annotations

from typing import Any

Array = Any


def likeliest(xp: Any, logits: Array) -> Array:
    """The place of the largest logit of each row, the lowest of equal ones.  [rows, vocab] -> int64 [rows]

    -1 where the largest is no number (NaN counts as the largest, and a row of -inf has none): nothing can be chosen.
    """
    return xp.where(xp.isfinite(logits.max(axis=-1)), logits.argmax(axis=-1), -1)
