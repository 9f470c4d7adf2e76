"""The groups of cases of scaled rotary positions.

The frequencies of `dynamic` and `longrope` depend on the length of the present call.  The library keeps those of
`dynamic` from call to call; the cases here are such that a model that has seen nothing before gives the same.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import oracle
import spelt_models
from maker import Maker
from mistakes import WITH_FREQUENCIES, wrong_logits


def short(make: Maker) -> None:
    inputs = {"input_ids": make.ids(1, make.limit - 2)}
    results, wrong = make.both(inputs), wrong_logits(make.exact, inputs, WITH_FREQUENCIES)
    title = "A text within the length that the model was trained on: the frequencies of short texts"
    make.write("short", title, inputs, results, wrong=wrong)


def positions_beyond(make: Maker) -> None:
    """One row stays short, the other goes far: the tables follow the largest position of all rows."""
    ids = make.ids(2, 6)
    far = make.limit + 5
    given = np.array([[0, 1, 2, 3, 4, 5], [0, 1, 2, 3, far, far + 1]])
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": given}
    rows = [{name: array[row : row + 1] for name, array in inputs.items()} for row in range(2)]
    alone = np.concatenate([oracle.run(make.exact, row)["logits"] for row in rows])
    title = "Position ids go far in one row; frequencies are chosen by the largest position of all rows"
    more: dict[str, Any] = {"features": ("position-ids",), "wrong": {"tables-for-each-row": alone}}
    make.write("positions-beyond", title, inputs, make.both(inputs), **more)


def growing(make: Maker) -> None:
    """A text that grows through the cache beyond the limit, and afterwards a short one."""
    total, past = make.lengths["seq"], make.limit - 4
    inputs = {"input_ids": make.ids(1, total)}
    title = "Fed in pieces, a text grows beyond the limit; keys in the cache keep the rotation they came with"
    for case, lengths in (
        ("cache-growing", [past] + [1] * (total - past)),
        ("cache-growing-in-pieces", [past, 6, total - past - 6]),
    ):
        results = tuple(
            {"logits": oracle.run_in_pieces(m, inputs, lengths)} for m in (make.exact, make.model)
        )
        arguments = {"feed_lengths": [lengths]}
        more: dict[str, Any] = {"operation": "cached_model", "features": ("cache",), "arguments": arguments}
        wrong = {
            "prefix-recomputed": _recomputed(make, inputs, lengths),
            "keys-rotated-anew": oracle.run_in_pieces(make.exact, inputs, lengths, follow=True),
        }
        make.write(case, title, inputs, results, wrong=wrong, **more)
    _short_after(make, f"{make.family.name}/{make.name}/{case}", inputs, lengths)


def spelt(make: Maker) -> None:
    """A text under the settings that the config means, and under those that a reader could take it for."""
    how = spelt_models.SPELT[make.name.removeprefix("tiny-spelling-")]
    inputs = {"input_ids": make.ids(1, 15)}
    misread = copy.deepcopy(make.exact)
    rotary = misread.base_model.rotary_emb
    plain = {"rope_type": "default", "rope_theta": 10000, "partial_rotary_factor": make.family.rotary_pct}
    rotary.rope = plain | how.misread
    rotary.context = how.misread_context or rotary.context
    for layer in misread.base_model.layers:
        layer.attention.rotary_ndims = rotary.width
    wrong = {"rope-misread": oracle.run(misread, inputs)["logits"]}
    make.write("forward", how.title, inputs, make.both(inputs), wrong=wrong)


def _recomputed(make: Maker, inputs: dict[str, np.ndarray], lengths: list[int]) -> np.ndarray:
    """The logits without a cache: each piece is computed together with all of the text before it."""
    ids, ends = inputs["input_ids"], np.cumsum(lengths)
    pieces = [
        oracle.run(make.exact, {"input_ids": ids[:, :end]})["logits"][:, end - length :]
        for end, length in zip(ends, lengths, strict=True)
    ]
    return np.concatenate(pieces, axis=1)


def _short_after(make: Maker, before: str, grown: dict[str, np.ndarray], lengths: list[int]) -> None:
    inputs = {"input_ids": make.ids(1, make.limit - 3)}
    exact, single = make.both(inputs)
    oracle.run_in_pieces(make.model, grown, lengths)
    after = oracle.run(make.model, inputs, new=False)
    assert np.array_equal(after["logits"], single["logits"]), (
        f"{make.name}: the library remembers the long text"
    )
    remembering = copy.deepcopy(make.exact)
    remembering.base_model.rotary_emb.length = sum(lengths)
    wrong = {"frequencies-stay-long": oracle.run(remembering, inputs)["logits"]}
    title = "A short text, called after a text that grew beyond the limit: as if that had never been"
    make.write("cache-growing-then-short", title, inputs, (exact, single), wrong=wrong, after=before)
