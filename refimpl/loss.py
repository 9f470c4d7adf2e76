"""The loss of a language model, and the choice of the positions that get logits."""

from __future__ import annotations

from typing import Any

import numpy as np

from refimpl.backends.base import Backend
from refimpl.errors import InputError
from refimpl.inputs import host_array

Array = Any

IGNORE_INDEX = -100


def keep_positions(hidden_states: Array, logits_to_keep: Any) -> Array:
    """The last `logits_to_keep` positions (0: all), or those of an index array.

    [batch, seq, hidden] -> [batch, kept, hidden]
    """
    if isinstance(logits_to_keep, int | np.integer):
        if logits_to_keep < 0:
            raise InputError("must not be negative", where="logits_to_keep", found=str(logits_to_keep))
        return hidden_states[:, -int(logits_to_keep) :] if logits_to_keep else hidden_states
    positions = host_array(logits_to_keep, "logits_to_keep", "iu")
    seq = hidden_states.shape[1]
    if positions.ndim != 1 or (abs(positions + 0.5) > seq).any():
        raise InputError(
            "not positions",
            where="logits_to_keep",
            found=str(positions)[:80],
            allowed=f"whole numbers from {-seq} to {seq - 1}",
        )
    return hidden_states[:, positions]


def causal_lm_loss(backend: Backend, logits: Array, labels: Any) -> Array:
    """The mean of -log p(next label): position i of the logits against label i + 1.

    [batch, seq, vocab], [batch, seq] -> scalar in the compute dtype.  Labels of -100 are left out; if
    none is left the mean is NaN, as in transformers.
    Raises: InputError for labels of another shape or outside the vocabulary.
    """
    batch, seq, vocab = logits.shape
    targets = host_array(labels, "labels", "iu")
    if targets.shape != (batch, seq):
        raise InputError(
            "wrong shape",
            where="labels",
            found=str(list(targets.shape)),
            allowed=f"[batch, seq] of the logits = [{batch}, {seq}]",
        )
    kept = targets != IGNORE_INDEX
    if ((targets < 0) | (targets >= vocab))[kept].any():
        raise InputError(
            "label outside the vocabulary", where="labels", allowed=f"0 to {vocab - 1}, or {IGNORE_INDEX}"
        )
    rows, columns = np.nonzero(kept[:, 1:])
    if rows.size == 0:
        return backend.xp.asarray(float("nan"), dtype=backend.dtype)
    chosen = logits[rows, columns]  # [kept, vocab]
    shifted = chosen - chosen.max(axis=-1, keepdims=True)
    log_total = backend.xp.log(backend.xp.exp(shifted).sum(axis=-1))
    label_scores = shifted[np.arange(rows.size), targets[rows, columns + 1]]
    return (log_total - label_scores).mean()
