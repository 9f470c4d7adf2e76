"""The groups of cases that are made of a model: padding, positions, cache, masks, generation, ..."""

from __future__ import annotations

from typing import Any

import numpy as np
import oracle
from maker import Maker
from mistakes import wrong_logits
from tiny_models import PAD, load


def padded(ids: np.ndarray, amounts: list[int], side: str) -> tuple[np.ndarray, np.ndarray]:
    """`ids` with the first or last `amounts[row]` places of each row made padding, and the mask."""
    mask = np.ones_like(ids)
    for row, amount in enumerate(amounts):
        places = slice(0, amount) if side == "left" else slice(ids.shape[1] - amount, None)
        ids[row, places], mask[row, places] = PAD, 0
    return ids, mask


def positions_from(mask: np.ndarray) -> np.ndarray:
    """Position ids as generation derives them from a mask: real tokens count from 0, padding gets 1."""
    return np.where(mask == 1, np.cumsum(mask, axis=-1) - 1, 1)


def forward(make: Maker) -> None:
    rows = make.lengths.get("rows", 3)
    inputs = {"input_ids": make.ids(rows, make.lengths.get("seq", 9))}
    results, wrong = make.both(inputs), wrong_logits(make.exact, inputs)
    title = f"Logits of {('one row', 'two rows', 'three rows')[rows - 1]}"
    make.write("forward", title, inputs, results, ("logits", "last_hidden_state"), wrong=wrong)


def outputs(make: Maker) -> None:
    inputs = {"input_ids": make.ids(make.lengths.get("rows", 3), make.lengths.get("outputs", 7))}
    results, wrong = make.both(inputs), wrong_logits(make.exact, inputs)
    wanted = ("logits", "hidden_states.", "attentions.", "past_key_values.")
    title = "Every output: logits, all hidden states, all attentions, all keys and values"
    features = ("hidden-states", "attentions", "cache")
    make.write("outputs", title, inputs, results, wanted, features=features, wrong=wrong)


def loss(make: Maker) -> None:
    ids = make.ids(2, 8)
    labels = ids.copy()
    labels[0, :3], labels[1, 5] = -100, -100
    ids, mask = padded(ids, [0, 2], "right")
    labels[mask == 0] = -100
    inputs = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    results = make.both(inputs)
    assert abs(oracle.library_loss(make.model, inputs) - results[0]["loss"]) < 1e-5
    title = "Mean loss of the next token, ignoring labels of -100"
    make.write("loss", title, inputs, results, ("loss",), features=("loss", "right-padding"))


def padding(make: Maker) -> None:
    for side in ("left", "right"):
        ids, mask = padded(make.ids(3, 8), [0, 3, 5], side)
        inputs = {"input_ids": ids, "attention_mask": mask}
        title = f"Padding on the {side}; without position_ids every row counts from 0 at its first place"
        wanted = ("logits", "last_hidden_state")
        results, more = make.both(inputs), {"real": mask == 1, "wrong": padding_mistakes(make, inputs)}
        make.write(f"{side}-padding", title, inputs, results, wanted, features=(f"{side}-padding",), **more)


def padding_mistakes(make: Maker, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The logits of two mistakes with a mask."""
    unmasked = {name: array for name, array in inputs.items() if name != "attention_mask"}
    counted = inputs | {"position_ids": positions_from(inputs["attention_mask"])}
    return {
        "padding-visible": oracle.run(make.exact, unmasked)["logits"],
        "positions-from-mask": oracle.run(make.exact, counted)["logits"],
    }


def positions(make: Maker) -> None:
    ids, mask = padded(make.ids(3, 8), [0, 3, 5], "left")
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions_from(mask)}
    title = "Left padding with the position ids that generation derives from the mask"
    results, features = make.both(inputs), ("left-padding", "position-ids")
    make.write("left-padding-positions", title, inputs, results, features=features, real=mask == 1)
    mask = np.array([[1, 1, 0, 0, 1, 1, 0, 1], [1, 1, 1, 1, 1, 1, 1, 1]])
    inputs = {"input_ids": make.ids(2, 8), "attention_mask": mask}
    title = "Padding inside a row: a forward call counts its places all the same, so distances do not shrink"
    results, wrong = make.both(inputs), padding_mistakes(make, inputs)
    features = ("padding-inside",)
    make.write("mask-with-holes", title, inputs, results, features=features, real=mask == 1, wrong=wrong)
    ids = make.ids(2, 6)
    given = np.array([[3, 4, 5, 9, 10, 30], [0, 1, 2, 3, 20, 21]])
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": given}
    title = "Position ids with an offset and gaps; the mask shows that all tokens are one sequence"
    make.write("positions-with-gaps", title, inputs, make.both(inputs), features=("position-ids",))


def embeds(make: Maker) -> None:
    shape = (2, 5, make.model.config.hidden_size)
    inputs = {"inputs_embeds": self_rounded(make.numbers.standard_normal(shape))}
    make.write(
        "inputs-embeds",
        "inputs_embeds instead of ids",
        inputs,
        make.both(inputs),
        features=("inputs-embeds",),
    )


def self_rounded(array: np.ndarray) -> np.ndarray:
    """Numbers that float32 holds exactly, so that both precisions start from the same input."""
    return array.astype(np.float32)


def cache(make: Maker) -> None:
    total = make.lengths.get("cache", 8)
    ids, mask = padded(make.ids(2, total), [0, 3], "left")
    plain = {"input_ids": make.ids(2, total)}
    left = {"input_ids": ids, "attention_mask": mask, "position_ids": positions_from(mask)}
    cuts = range(1, total) if total <= 8 else (1, total // 2, total - 1)
    splits = [[cut, total - cut] for cut in cuts] + [[1] * total, [3, 1, total - 4]]
    for case, inputs, real in (("cache-splits", plain, None), ("cache-splits-left-padding", left, mask == 1)):
        exact, single = make.both(inputs)
        for lengths in splits:
            rows = slice(None) if real is None else real
            difference = oracle.run_in_pieces(make.exact, inputs, lengths)[rows] - exact["logits"][rows]
            assert np.max(np.abs(difference)) < 1e-12, f"{make.name}/{case}: the oracle differs for {lengths}"
        title = "Fed in pieces through the cache, a sequence gives the logits of one forward pass"
        features = ("cache",) if real is None else ("cache", "left-padding", "position-ids")
        arguments = {"feed_lengths": splits}
        more: dict[str, Any] = {"operation": "cached_model", "arguments": arguments, "real": real}
        make.write(case, title, inputs, (exact, single), features=features, **more)


def mask4d(make: Maker) -> None:
    seq = 6
    blocked = np.triu(np.ones((2, 1, seq, seq), dtype=bool), 1)
    blocked[0, 0, 4:, :2] = True  # a hole in the past
    blocked[1, 0, :3, :3] = False  # a prefix that sees itself whole
    slope = -0.35 * np.abs(np.arange(seq)[:, None] - np.arange(seq))[None, None]
    additive = np.where(blocked, np.finfo(np.float32).min, slope).astype(np.float32)
    inputs = {"input_ids": make.ids(2, seq), "attention_mask": additive}
    title = "A mask [batch, 1, query, key] of numbers is added to the scores, and replaces the causal mask"
    wanted = ("logits", "attentions.")
    make.write("mask-4d", title, inputs, make.both(inputs), wanted, features=("4d-mask",))


def keep(make: Maker) -> None:
    inputs = {"input_ids": make.ids(2, 7)}
    title = "logits_to_keep = 2: the logits of the last two places only"
    results = make.both(inputs, 2)
    features = ("logits-to-keep",)
    make.write("logits-to-keep", title, inputs, results, features=features, arguments={"logits_to_keep": 2})
    indices = np.array([0, 3, 5])
    results = make.both(inputs, indices)
    title = "logits_to_keep as indices: the logits of those places, in that order"
    inputs = {**inputs, "logits_to_keep": indices}
    make.write("logits-to-keep-indices", title, inputs, results, features=features)


def long(make: Maker) -> None:
    inputs = {"input_ids": make.ids(1, 150)}
    title = "150 tokens, more than max_position_embeddings; the last four logits"
    features = ("logits-to-keep", "long")
    arguments = {"logits_to_keep": 4}
    make.write("long", title, inputs, make.both(inputs, 4), features=features, arguments=arguments)


def layers(make: Maker) -> None:
    inputs = {"input_ids": make.ids(1, make.lengths.get("layers", 6))}
    results = oracle.trace(make.exact, inputs), oracle.trace(make.model, inputs)
    title = "What every part of every layer gives, by the path of its weights"
    make.write(
        "layers", title, inputs, results, ("",), operation="layers", level="layer", features=("layers",)
    )


def stored_head(make: Maker) -> None:
    inputs = {"input_ids": make.ids(1, 5)}
    library = oracle.float64_twin(load(make.family, make.golden / make.folder))
    wrong = {"stored-head": oracle.run(library, inputs)["logits"]}
    title = "The config ties the head to the embedding, the file holds another: the embedding is used"
    make.write("forward", title, inputs, make.both(inputs), features=("warning-at-load",), wrong=wrong)


def width(make: Maker) -> None:
    inputs = {"input_ids": make.ids(1, 4)}
    width = make.model.base_model.layers[0].mlp.dense_h_to_4h.weight.shape[0]
    title = f"The MLP is {width} wide: a fraction is cut off, not rounded"
    make.write("mlp-width", title, inputs, make.both(inputs))
