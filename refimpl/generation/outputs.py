"""What `generate()` returns with `return_dict_in_generate=True`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from refimpl.outputs import ModelOutput

Array = Any


@dataclass
class GenerateDecoderOnlyOutput(ModelOutput):
    """Of greedy decoding and sampling.

    sequences: [rows, seq], prompts and continuations, as `generate()` returns them otherwise.
    scores: new tokens x [rows, vocab], after all processors and filters; with `output_scores`.
    logits: new tokens x [rows, vocab], as the model gave them; with `output_logits`.
    attentions: new tokens x layers x [rows, heads, q_seq, kv_seq]; with `output_attentions`.  The first ones are those
        of the prompt.
    hidden_states: new tokens x (layers + 1) x [rows, q_seq, hidden]; with `output_hidden_states`.
    past_key_values: the cache; it holds everything but the last token.
    """

    sequences: np.ndarray | None = None
    scores: tuple[np.ndarray, ...] | None = None
    logits: tuple[np.ndarray, ...] | None = None
    attentions: tuple[tuple[Array, ...], ...] | None = None
    hidden_states: tuple[tuple[Array, ...], ...] | None = None
    past_key_values: Any = None


@dataclass
class GenerateBeamDecoderOnlyOutput(ModelOutput):
    """Of beam search: the same, for `rows * num_beams` running texts, and

    sequences_scores: [rows], log-probability of each text over its number of new tokens to the `length_penalty`.
    beam_indices: [rows, new tokens], the running text that each token was added to; -1 after the end.
    """

    sequences: np.ndarray | None = None
    sequences_scores: np.ndarray | None = None
    scores: tuple[np.ndarray, ...] | None = None
    logits: tuple[np.ndarray, ...] | None = None
    beam_indices: np.ndarray | None = None
    attentions: tuple[tuple[Array, ...], ...] | None = None
    hidden_states: tuple[tuple[Array, ...], ...] | None = None
    past_key_values: Any = None
