"""What ends a text besides its length and `eos_token_id`.

Results: transformers 5.23, generation/stopping_criteria.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from refimpl.errors import InputError, quote

#: (ids so far [rows, seq], scores [rows, vocab]) -> whether to stop: all rows, or [rows]
StoppingCriterion = Callable[[np.ndarray, np.ndarray], bool | np.ndarray]


class TimeLimit:
    """Ends every row with the first token that comes later than `seconds` after now."""

    def __init__(self, seconds: float):
        self._end = time.monotonic() + seconds

    def __call__(self, ids: np.ndarray, scores: np.ndarray) -> bool:
        return time.monotonic() > self._end


class StopStrings:
    """Ends a row with the token that completes one of some strings.

    A string may begin in the prompt, and end inside the token; one that stands in the prompt already ends nothing.

    Args:
        tokenizer: anything with `decode(ids) -> str`.
        strings: what to look for.
        mask: of the prompts, `[prompts, prompt]`: 0 at padding.  There may be several rows in a row for each.

    Raises: InputError without a tokenizer.
    """

    def __init__(self, tokenizer: Any, strings: Sequence[str], mask: np.ndarray):
        if not callable(getattr(tokenizer, "decode", None)):
            raise InputError(
                "needs the tokenizer of the model",
                where="stop_strings",
                found=f"tokenizer={quote(tokenizer)}",
                hint="Give it to the call: generate(..., stop_strings=..., tokenizer=tokenizer).",
            )
        self._decode, self._strings = tokenizer.decode, strings
        self._is_text = mask == 1

    def __call__(self, ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """[rows, seq] -> [rows] bool"""
        return np.array([self._is_completed(self._text_of(ids, row)) for row in range(len(ids))])

    def _text_of(self, ids: np.ndarray, row: int) -> list[int]:
        start, is_text = self._is_text.shape[1], self._is_text[row * len(self._is_text) // len(ids)]
        return [*ids[row, :start][is_text].tolist(), *ids[row, start:].tolist()]

    def _is_completed(self, ids: list[int]) -> bool:
        """Whether a string ends in what the last token has added to the text, or changed of it."""
        before, now = self._decode(ids[:-1]) if ids[1:] else "", self._decode(ids)
        # A character whose bytes came in several tokens is another one when they are complete.
        same = (a == b for a, b in zip(before, now, strict=False))
        old = next((place for place, equal in enumerate(same) if not equal), min(len(before), len(now)))
        return any(now.find(string, max(0, old - len(string) + 1)) >= 0 for string in self._strings)
