"""What `stream_generate()` yields: one token at a time, with its text."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from refimpl.errors import InputError, quote
from refimpl.generation.logits import log_probabilities
from refimpl.generation.steps import Step
from refimpl.inputs import padded


@dataclass(frozen=True)
class GeneratedToken:
    """A new token of one row.

    row: of the batch.
    text: what this token completes: whole characters only, "" while one is unfinished.
    token, token_id: the token itself.
    logprob: its log-probability by the model alone, before processors and filters.
    tokens_per_second: of the row, since its first token; None there.
    finish_reason: None while the row goes on; "eos" when the token ends the text, "stop" when another criterion
        does, "length" when there is no room for more.
    """

    row: int
    text: str
    token: str
    token_id: int
    logprob: float
    tokens_per_second: float | None
    finish_reason: str | None


class TokenStream:
    """Turns the steps of a generation into its tokens.

    Args:
        tokenizer: of the model.
        rows: how many there are.
        limit: how many tokens prompt and new ones may be together.
    """

    def __init__(self, tokenizer: Any, rows: int, limit: int):
        from refimpl.tokenizer.streaming import StreamDecoder

        self._tokenizer, self._limit = tokenizer, limit
        self._decoders = [StreamDecoder(tokenizer, skip_special_tokens=True) for _ in range(rows)]
        self._began: float | None = None
        self._count = 0  # of tokens of each row that still runs

    def of(self, step: Step) -> Iterator[GeneratedToken]:
        """The new tokens of a step, row by row."""
        assert step.logits is not None
        now = time.perf_counter()
        speed = None
        if self._began is None:
            self._began = now
        else:
            self._count += 1
            speed = self._count / max(now - self._began, 1e-9)
        is_last = step.ids.shape[1] >= self._limit
        for row in np.flatnonzero(step.was_running).tolist():
            token_id = int(step.ids[row, -1])
            decoder = self._decoders[row]
            reason = (
                "eos" if step.ended_by_token[row]
                else "stop" if step.ended[row]
                else "length" if is_last
                else None
            )  # fmt: skip
            text = decoder.put(token_id) + (decoder.finish() if reason else "")
            yield GeneratedToken(
                row=row,
                text=text,
                token=self._tokenizer.convert_ids_to_tokens(token_id),
                token_id=token_id,
                logprob=float(log_probabilities(step.logits[row].astype(np.float64))[token_id]),
                tokens_per_second=speed,
                finish_reason=reason,
            )


def as_prompts(tokenizer: Any, texts: Any) -> tuple[np.ndarray, np.ndarray] | None:
    """The ids of a text or a list of texts, padded on the left, and their mask, 2 x [batch, seq]; None for what is
    no text.

    Raises: InputError for a text without tokens.
    """
    if isinstance(texts, str):
        texts = [texts]
    if not isinstance(texts, list | tuple) or not texts or not all(isinstance(text, str) for text in texts):
        return None
    rows = [tokenizer(text)["input_ids"] for text in texts]
    for text, row in zip(texts, rows, strict=True):
        if not row:
            raise InputError("a prompt without tokens", where="input_ids", found=quote(text))
    return padded(rows, side="left")
