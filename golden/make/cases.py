"""The groups of cases that are made of a model: padding, positions, cache, masks, generation, ..."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import oracle
from common import numeric_outputs, significant, write_case_file
from mistakes import wrong_variants
from tiny_models import FAMILY, PAD
from transformers import GPTNeoXJapaneseForCausalLM

SPEC = "docs/spec/gpt_neox_japanese.md"

#: Greedy cases whose winner leads by less (relative to the largest logit) would turn on rounding.
SMALLEST_LEAD = 1e-3

SOURCE = {
    "kind": "independent",
    "library": "transformers",
    "version": "5.23.0",
    "address": "https://github.com/huggingface/transformers/tree/v5.23.0/src/transformers/models/gpt_neox_japanese",
    "command": "python golden/make/make_models.py",
    "how": "eager attention on CPU, one thread; float32 as the library computes it; float64 is the same code "
    "on a double model, with rotary tables and loss in float64 (the library keeps those two in float32)",
}


@dataclass
class Maker:
    """Writes the cases of one model: runs it in both precisions and stores what came out."""

    name: str
    model: GPTNeoXJapaneseForCausalLM
    folder: str
    golden: Path
    features: tuple[str, ...] = ()
    lengths: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.exact = oracle.float64_twin(self.model)
        self.numbers = np.random.Generator(np.random.PCG64(7))

    def ids(self, batch: int, seq: int) -> np.ndarray:
        return self.numbers.integers(3, self.model.config.vocab_size - 1, size=(batch, seq), dtype=np.int64)

    def both(self, inputs: dict[str, np.ndarray], keep: Any = 0) -> tuple[dict[str, Any], dict[str, Any]]:
        return oracle.run(self.exact, inputs, keep), oracle.run(self.model, inputs, keep)

    def write(
        self,
        case: str,
        title: str,
        inputs: dict[str, np.ndarray],
        results: tuple[dict[str, np.ndarray], dict[str, np.ndarray]],
        wanted: tuple[str, ...] = ("logits",),
        *,
        operation: str = "model",
        level: str = "model",
        features: tuple[str, ...] = (),
        arguments: dict[str, Any] | None = None,
        real: np.ndarray | None = None,
        **more: Any,
    ) -> None:
        """One case whose outputs are numbers; `wanted` are prefixes of output names."""
        exact, single = ({n: a for n, a in r.items() if n.startswith(wanted)} for r in results)
        file = f"vectors/{FAMILY}/{self.name}/{case}.safetensors"
        tensors, expected, tolerance = numeric_outputs(file, exact, single, real)
        if real is not None:
            tensors["real"] = real
            expected["real_tokens"] = "real"
        more |= {"expected": expected, "tolerance": tolerance}
        more["expect"] = {"kind": "return" if real is None else "ignore_rows"}
        self.save(case, title, file, inputs, tensors, operation, level, features, arguments or {}, more)

    def write_ids(
        self, case: str, title: str, inputs: dict[str, np.ndarray], ids: np.ndarray, **more: Any
    ) -> None:
        """One case whose output is a row of ids, to be met exactly."""
        file = f"vectors/{FAMILY}/{self.name}/{case}.safetensors"
        arguments, features = more.pop("arguments"), more.pop("features", ())
        more |= {
            "expected": {"file": file, "outputs": {"sequences": {"int64": "sequences"}}},
            "tolerance": {"sequences": {"scale": "exact"}},
            "expect": {"kind": "return"},
        }
        tensors = {"sequences": ids}
        self.save(case, title, file, inputs, tensors, "generate", "generation", features, arguments, more)

    def save(
        self,
        case: str,
        title: str,
        file: str,
        inputs: dict[str, np.ndarray],
        tensors: dict[str, np.ndarray],
        operation: str,
        level: str,
        features: tuple[str, ...],
        arguments: dict[str, Any],
        more: dict[str, Any],
    ) -> None:
        entry = {
            "id": f"{FAMILY}/{self.name}/{case}",
            "title": title,
            "level": level,
            "operation": operation,
            "features": sorted({*self.features, *features}),
            "required": True,
            "spec": SPEC,
            "model": self.folder,
            "inputs": {"file": file, "tensors": {name: name for name in inputs}, "arguments": arguments},
            "source": SOURCE,
            **more,
        }
        write_case_file(self.golden / file, {**inputs, **tensors}, [entry])


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
    inputs = {"input_ids": make.ids(3, make.lengths.get("seq", 9))}
    results = make.both(inputs)
    detects = wrong_variants(make.model, inputs, results[0]["logits"])
    make.write(
        "forward", "Logits of three rows", inputs, results, ("logits", "last_hidden_state"), detects=detects
    )


def outputs(make: Maker) -> None:
    inputs = {"input_ids": make.ids(3, 7)}
    results = make.both(inputs)
    wanted = ("logits", "hidden_states.", "attentions.", "past_key_values.")
    detects = wrong_variants(make.model, inputs, results[0]["logits"])
    title = "Every output: logits, all hidden states, all attentions, all keys and values"
    features = ("hidden-states", "attentions", "cache")
    make.write("outputs", title, inputs, results, wanted, features=features, detects=detects)


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
        results = make.both(inputs)
        make.write(
            f"{side}-padding", title, inputs, results, wanted, features=(f"{side}-padding",), real=mask == 1
        )


def positions(make: Maker) -> None:
    ids, mask = padded(make.ids(3, 8), [0, 3, 5], "left")
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions_from(mask)}
    title = "Left padding with the position ids that generation derives from the mask"
    results, features = make.both(inputs), ("left-padding", "position-ids")
    make.write("left-padding-positions", title, inputs, results, features=features, real=mask == 1)
    mask = np.array([[1, 1, 0, 0, 1, 1, 0, 1], [1, 1, 1, 1, 1, 1, 1, 1]])
    inputs = {"input_ids": make.ids(2, 8), "attention_mask": mask}
    title = "Padding inside a row: a forward call counts its places all the same, so distances do not shrink"
    features = ("padding-inside",)
    make.write("mask-with-holes", title, inputs, make.both(inputs), features=features, real=mask == 1)
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
    ids, mask = padded(make.ids(2, 8), [0, 3], "left")
    plain = {"input_ids": make.ids(2, 8)}
    left = {"input_ids": ids, "attention_mask": mask, "position_ids": positions_from(mask)}
    splits = [[cut, 8 - cut] for cut in range(1, 8)] + [[1] * 8, [3, 1, 4]]
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
    features = ("logits-to-keep", "beyond-max-position-embeddings", "long")
    arguments = {"logits_to_keep": 4}
    make.write("long", title, inputs, make.both(inputs, 4), features=features, arguments=arguments)


def beyond(make: Maker) -> None:
    forward(make)
    ids = make.ids(1, 12)
    greedy_case(
        make, "greedy-beyond", "Greedy generation across max_position_embeddings", ids, None, 10, None
    )


def layers(make: Maker) -> None:
    inputs = {"input_ids": make.ids(1, 6)}
    results = oracle.trace(make.exact, inputs), oracle.trace(make.model, inputs)
    title = "What every part of every layer gives, by the path of its weights"
    make.write(
        "layers", title, inputs, results, ("",), operation="layers", level="layer", features=("layers",)
    )


def greedy(make: Maker) -> None:
    ids, mask, new = _prompts_that_end_differently(make)
    greedy_case(make, "greedy", "Greedy ids of a batch with left padding", ids, mask, 8, None)
    title = "Row 1 meets eos early and is filled with pad, row 0 goes on"
    result = greedy_case(make, "greedy-eos", title, ids, mask, 8, _early_end(new))
    assert (result[1] == PAD).any()
    assert result.shape[1] == ids.shape[1] + 8
    title = "Several eos ids; all rows end before max_new_tokens and generation stops"
    result = greedy_case(make, "greedy-eos-list", title, ids, mask, 8, sorted({int(row[2]) for row in new}))
    assert result.shape[1] < ids.shape[1] + 8


def hole(make: Maker) -> None:
    """Padding inside a prompt: the only place where the position ids of generation show.

    Rotary attention sees distances alone, so padding on the left changes no distance between real tokens.
    """
    mask = np.array([[1, 1, 0, 0, 0, 1, 1], [1, 1, 1, 1, 1, 1, 1]])
    for _ in range(200):
        ids = np.where(mask == 1, make.ids(2, 7), PAD)
        inputs = {"input_ids": ids, "attention_mask": mask}
        sequences, lead = oracle.greedy(make.model, inputs, new_tokens=6, eos=None, pad=PAD)
        if lead > SMALLEST_LEAD and not np.array_equal(
            sequences, oracle.greedy_by_place(make.model, inputs, 6)
        ):
            break
    else:
        raise AssertionError(f"{make.name}: no prompt shows the position ids; choose another seed")
    title = "Padding inside a prompt: position ids count real tokens only, so distances shrink"
    greedy_case(make, "greedy-hole", title, ids, mask, 6, None)


def _prompts_that_end_differently(make: Maker) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids, mask and greedy continuation of a batch in which a token ends row 1 early and row 0 never."""
    for _ in range(200):
        ids, mask = padded(make.ids(3, 6), [0, 2, 4], "left")
        inputs = {"input_ids": ids, "attention_mask": mask}
        sequences, lead = oracle.greedy(make.model, inputs, new_tokens=8, eos=None, pad=PAD)
        new = sequences[:, 6:]
        if lead > SMALLEST_LEAD and _early_end(new) is not None and PAD not in new:
            return ids, mask, new
    raise AssertionError(f"{make.name}: no batch ends differently; choose another seed")


def _early_end(new: np.ndarray) -> int | None:
    """A token that row 1 gives first at its third to sixth step, and row 0 never."""
    fitting = [int(token) for token in new[1][2:6] if token not in new[0] and token not in new[1][:2]]
    return fitting[0] if fitting else None


def greedy_case(
    make: Maker, case: str, title: str, ids: np.ndarray, mask: np.ndarray | None, new_tokens: int, eos: Any
) -> np.ndarray:
    inputs = {"input_ids": ids} if mask is None else {"input_ids": ids, "attention_mask": mask}
    asked: dict[str, Any] = {"new_tokens": new_tokens, "eos": eos, "pad": PAD}
    exact, lead = oracle.greedy(make.exact, inputs, **asked)
    single, _ = oracle.greedy(make.model, inputs, **asked)
    assert np.array_equal(exact, single), f"{make.name}/{case}: float32 and float64 chose differently"
    assert lead > SMALLEST_LEAD, f"{make.name}/{case}: the choice is too close, {lead}"
    arguments = {"max_new_tokens": new_tokens, "do_sample": False, "eos_token_id": eos, "pad_token_id": PAD}
    features = ["greedy"]
    if mask is not None:
        features.append("padding-inside" if mask[:, 0].all() else "left-padding")
    if eos is not None:
        features.append("eos")
    more = {"arguments": arguments, "features": tuple(features), "smallest_lead": significant(lead)}
    make.write_ids(case, title, inputs, exact, **more)
    return exact


GROUPS: dict[str, Callable[[Maker], None]] = {
    function.__name__: function
    for function in (
        forward, outputs, loss, padding, positions, embeds, cache, mask4d, keep, long, beyond, layers, greedy, hole,
    )
}  # fmt: skip
