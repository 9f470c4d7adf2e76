"""The groups of cases about single arguments of a call: logits to keep, positions, labels, masks of four dimensions."""

from __future__ import annotations

from typing import Any

import numpy as np
import oracle
from cases import padded, padding_mistakes
from maker import Maker
from tiny_models import PAD

LOWEST = np.finfo(np.float32).min

#: What a mask of truth values, or of -inf, stands for.
HIDDEN = {
    "kind": "analytic",
    "command": "python golden/make/make_models.py",
    "how": "by docs/spec/calls.md; the numbers are those of transformers 5.23.0 for the mask of floats that has 0 at "
    "what is visible and the lowest float32 elsewhere (the library adds truth values as 0 and 1, and -inf alone in a "
    "row gives it NaN)",
}


def arguments(make: Maker) -> None:
    inputs = {"input_ids": make.ids(2, 7), "logits_to_keep": np.array([5, 0, 3, -1, 3])}
    results = make.both({"input_ids": inputs["input_ids"]}, inputs["logits_to_keep"])
    title = "logits_to_keep in an order of its own, one place twice, and one counted from the end"
    make.write("logits-to-keep-order", title, inputs, results, features=("logits-to-keep",))
    inputs = {"input_ids": make.ids(1, 4)}
    title = "logits_to_keep of more places than there are: all of them"
    more: dict[str, Any] = {"features": ("logits-to-keep",), "arguments": {"logits_to_keep": 9}}
    make.write("logits-to-keep-too-many", title, inputs, make.both(inputs, 9), **more)
    ids = make.ids(2, 5)
    inputs = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "position_ids": np.array([[2, 3, 7, 8, 20]]),
    }
    title = "Position ids [1, seq] are those of every row"
    make.write("positions-shared", title, inputs, make.both(inputs), features=("position-ids",))
    ids, mask = padded(make.ids(2, 6), [0, 3], "right")
    inputs = {"input_ids": ids, "attention_mask": mask, "labels": make.ids(2, 6)}
    results = make.both(inputs)
    without = inputs | {"labels": np.where(mask == 1, inputs["labels"], -100)}
    assert abs(make.both(without)[0]["loss"] - results[0]["loss"]) > 1e-2
    assert abs(oracle.library_loss(make.model, inputs) - results[0]["loss"]) < 1e-5
    title = "A label at a place that attention_mask hides counts like any other: only -100 leaves one out"
    make.write("loss-at-masked-places", title, inputs, results, ("loss",), features=("loss", "right-padding"))
    cached_mask(make)


def cached_mask(make: Maker) -> None:
    """Pieces through the cache with a mask, but without position ids."""
    mask = np.array([[1, 1, 0, 1, 0, 1], [0, 0, 1, 1, 1, 1]])
    inputs = {"input_ids": np.where(mask == 1, make.ids(2, 6), PAD), "attention_mask": mask}
    lengths = [3, 1, 2]
    results = tuple({"logits": oracle.run_in_pieces(m, inputs, lengths)} for m in (make.exact, make.model))
    whole = oracle.run(make.exact, inputs)["logits"]
    assert np.max(np.abs(whole - results[0]["logits"])[mask == 1]) < 1e-12
    restart = np.concatenate([np.arange(length) for length in lengths])
    again = inputs | {"position_ids": np.stack([restart, restart])}
    wrong = padding_mistakes(make, inputs)
    del wrong["padding-visible"]  # the cases of padding have it
    wrong["positions-restart"] = oracle.run_in_pieces(make.exact, again, lengths)
    title = (
        "Fed in pieces with a mask and without position ids: they count on from the cache, padding included"
    )
    more: dict[str, Any] = {"operation": "cached_model", "arguments": {"feed_lengths": [lengths]}}
    more |= {"features": ("cache", "left-padding", "padding-inside"), "real": mask == 1, "wrong": wrong}
    make.write("cache-mask", title, inputs, results, **more)


def masks(make: Maker) -> None:
    seq, heads = 5, make.model.config.num_attention_heads
    later = np.triu(np.ones((seq, seq), dtype=bool), 1)
    distance = np.abs(np.arange(seq)[:, None] - np.arange(seq))
    slopes = -0.5 * np.arange(1, heads + 1)[:, None, None] * distance
    additive = np.where(later, LOWEST, slopes).astype(np.float32)[None]
    inputs = {"input_ids": make.ids(2, seq), "attention_mask": additive}
    title = "A mask [1, heads, query, key]: other numbers for each head, the same for every row"
    wanted = ("logits", "attentions.0")
    make.write("mask-4d-heads", title, inputs, make.both(inputs), wanted, features=("4d-mask",))
    past, new = 3, 2
    ids = make.ids(2, past + new)
    first = oracle.run(make.model, {"input_ids": ids[:, :past].copy()})
    cached = {name: array for name, array in first.items() if name.startswith("past_key_values.")}
    additive = np.where(later, LOWEST, 0)[None, None, past:].repeat(2, axis=0).astype(np.float32)
    additive[0, 0, :, 1:3] = LOWEST
    additive[1, 0, 0, 4] = 0.25  # the first of the two new tokens sees the second
    inputs = {"input_ids": ids[:, past:].copy(), "attention_mask": additive, **cached}
    title = "A mask [batch, 1, new, cached + new] for two tokens after three in the cache"
    features = ("4d-mask", "cache", "given-cache")
    more: dict[str, Any] = {"operation": "tuple_cache", "features": features}
    make.write("mask-4d-cache", title, inputs, make.both(inputs), wanted, **more)
    hidden_rows(make)


def hidden_rows(make: Maker) -> None:
    """Masks of four dimensions in which some rows see nothing; the others never look at those places."""
    seq = 5
    nobody = np.zeros((2, seq), dtype=bool)
    nobody[0, :2], nobody[1, 2] = True, True
    blocked = np.triu(np.ones((seq, seq), dtype=bool), 1) | nobody[:, None] | nobody[:, :, None]
    ids = make.ids(2, seq)
    floats = {"input_ids": ids, "attention_mask": np.where(blocked, LOWEST, 0).astype(np.float32)[:, None]}
    results = make.both(floats)
    more: dict[str, Any] = {"features": ("4d-mask",), "real": ~nobody}
    title = "A mask with rows of the lowest float alone: all finite, and the other rows as if nothing were"
    make.write("mask-4d-hidden-rows", title, floats, results, **more)
    title = "The same mask in truth values: true is visible"
    inputs = {"input_ids": ids, "attention_mask": ~blocked[:, None]}
    make.write("mask-4d-bool", title, inputs, results, source=HIDDEN, **more)
    title = "The same mask with -inf: it hides as the lowest float does"
    inputs = {"input_ids": ids, "attention_mask": np.where(blocked, -np.inf, 0).astype(np.float32)[:, None]}
    make.write("mask-4d-infinite", title, inputs, results, source=HIDDEN, **more)
