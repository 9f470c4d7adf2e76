"""The losses of the heads, and the choice of the positions that get logits."""

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
    if isinstance(logits_to_keep, int | np.integer) and not isinstance(logits_to_keep, bool):
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
    return hidden_states[:, positions.tolist()]


def causal_lm_loss(backend: Backend, logits: Array, labels: Any) -> Array:
    """The mean of -log p(next label): position i of the logits against label i + 1.

    [batch, seq, vocab], [batch, seq] -> scalar in the compute dtype.  Labels of -100 are left out.
    Raises: InputError for labels of another shape or outside the vocabulary.
    """
    targets = _class_labels(labels, logits.shape[:2], logits.shape[2])
    return cross_entropy(backend, logits[:, :-1], targets[:, 1:])


def token_classification_loss(backend: Backend, logits: Array, labels: Any) -> Array:
    """The mean of -log p(label) over the tokens; labels of -100 are left out.

    [batch, seq, num_labels], [batch, seq] -> scalar.  Raises: InputError, as `causal_lm_loss`.
    """
    return cross_entropy(backend, logits, _class_labels(labels, logits.shape[:2], logits.shape[2]))


def sequence_classification_loss(
    backend: Backend, logits: Array, labels: Any, problem_type: str | None
) -> Array:
    """The loss of one answer for each text.  [batch, num_labels], labels -> scalar in the compute dtype

    "single_label_classification": labels [batch], numbers of classes; the mean of -log p(label).
    "multi_label_classification": labels [batch, num_labels] from 0 to 1; every class is a yes or no of its
        own, and the loss is the mean over all of them.
    "regression": labels [batch, num_labels] (or [batch] for one); the mean of the squared differences.
    None: regression for one label; otherwise whole numbers mean single label, floats multi label.

    Raises: InputError for labels of another shape or outside their range.
    """
    batch, num_labels = logits.shape
    given = host_array(labels, "labels", "biuf")
    if problem_type is None:
        if num_labels == 1:
            problem_type = "regression"
        else:
            problem_type = ("single" if given.dtype.kind in "iu" else "multi") + "_label_classification"
    if problem_type == "single_label_classification":
        return cross_entropy(backend, logits, _class_labels(given.reshape(-1), (batch,), num_labels))
    if num_labels == 1 and given.shape == (batch,):
        given = given[:, None]
    _check_shape(given, (batch, num_labels))
    targets = backend.asarray(given, dtype=backend.dtype)
    if problem_type == "regression":
        difference = logits - targets
        return (difference * difference).mean()
    if not ((given >= 0) & (given <= 1)).all():
        raise InputError("not from no to yes", where="labels", allowed="0 to 1, for each class of each text")
    # -log of the probability of yes (target 1) or no (target 0), without overflow.
    xp = backend.xp
    return (xp.maximum(logits, 0) - logits * targets + xp.log1p(xp.exp(-xp.abs(logits)))).mean()


def question_answering_loss(
    backend: Backend, start_logits: Array, end_logits: Array, start_positions: Any, end_positions: Any
) -> Array:
    """The average of the losses of both ends of the answer.  2 x [batch, seq], 2 x [batch] -> scalar

    A position beyond the text (an answer that was cut off) is left out; a negative one counts as 0.
    Raises: InputError for positions of another shape.
    """
    losses = []
    for name, logits, positions in (
        ("start_positions", start_logits, start_positions),
        ("end_positions", end_logits, end_positions),
    ):
        batch, seq = logits.shape
        targets = host_array(positions, name, "iu").astype(np.int64)  # narrow types cannot hold IGNORE_INDEX
        targets = targets[:, 0] if targets.shape == (batch, 1) else targets
        _check_shape(targets, (batch,), name)
        inside = np.where(targets >= seq, IGNORE_INDEX, np.maximum(targets, 0))
        losses.append(cross_entropy(backend, logits, inside))
    return (losses[0] + losses[1]) / 2


def cross_entropy(backend: Backend, logits: Array, targets: np.ndarray) -> Array:
    """The mean of -log softmax(logits)[target].  [..., classes], [...] -> scalar in the compute dtype

    Targets of -100 are left out; if none is left the mean is NaN, as in transformers.
    """
    kept = np.nonzero(targets != IGNORE_INDEX)
    if kept[0].size == 0:
        return backend.xp.asarray(float("nan"), dtype=backend.dtype)
    rows, labels = np.arange(kept[0].size), targets[kept]
    chosen = logits[tuple(backend.asarray(index) for index in kept)]  # [kept, classes]
    shifted = chosen - chosen.max(axis=-1, keepdims=True)
    log_total = backend.xp.log(backend.xp.exp(shifted).sum(axis=-1))
    return (log_total - shifted[backend.asarray(rows), backend.asarray(labels)]).mean()


def _class_labels(labels: Any, shape: tuple[int, ...], classes: int) -> np.ndarray:
    """Labels from 0 to classes - 1 or -100, on the host.  Raises: InputError."""
    targets = host_array(labels, "labels", "iu").astype(np.int64)
    _check_shape(targets, shape)
    wrong = ((targets < 0) | (targets >= classes)) & (targets != IGNORE_INDEX)
    if wrong.any():
        raise InputError(
            "no such label",
            where="labels",
            found=str(targets[wrong][0]),
            allowed=f"0 to {classes - 1}, or {IGNORE_INDEX}",
        )
    return targets


def _check_shape(labels: np.ndarray, shape: tuple[int, ...], name: str = "labels") -> None:
    if labels.shape != shape:
        raise InputError("wrong shape", where=name, found=str(list(labels.shape)), allowed=str(list(shape)))
