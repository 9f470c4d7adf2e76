"""The groups of cases of greedy generation."""

from __future__ import annotations

from typing import Any

import numpy as np
import oracle
from cases import forward, padded
from common import significant
from maker import Maker
from tiny_models import PAD

#: Greedy cases whose winner leads by less (relative to the largest logit) would turn on rounding.
SMALLEST_LEAD = 1e-3


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


def beyond(make: Maker) -> None:
    """A text longer than the context, and generation from a prompt that grows beyond it."""
    forward(make)
    for _ in range(200):
        ids = make.ids(1, make.lengths.get("prompt", 12))
        sequences, lead = oracle.greedy(make.exact, {"input_ids": ids}, new_tokens=10, eos=None, pad=PAD)
        if lead > SMALLEST_LEAD and _without_eos(make, sequences):
            break
    else:
        raise AssertionError(f"{make.name}: no prompt goes on clearly; choose another seed")
    named = "original_" if make.limit < make.model.config.max_position_embeddings else ""
    title = f"Greedy generation across {named}max_position_embeddings"
    greedy_case(make, "greedy-beyond", title, ids, None, 10, None)


def hole(make: Maker) -> None:
    """Padding inside a prompt: the only place where the position ids of generation show.

    Rotary attention sees distances alone, so padding on the left changes no distance between real tokens.
    """
    mask = np.array([[1, 1, 0, 0, 0, 1, 1], [1, 1, 1, 1, 1, 1, 1]])
    for _ in range(200):
        ids = np.where(mask == 1, make.ids(2, 7), PAD)
        inputs = {"input_ids": ids, "attention_mask": mask}
        sequences, lead = oracle.greedy(make.model, inputs, new_tokens=6, eos=None, pad=PAD)
        by_place = oracle.greedy_by_place(make.model, inputs, 6)
        if lead > SMALLEST_LEAD and _without_eos(make, sequences) and not np.array_equal(sequences, by_place):
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
        goes_on = _without_eos(make, sequences) and PAD not in new
        if lead > SMALLEST_LEAD and goes_on and _early_end(new) is not None:
            return ids, mask, new
    raise AssertionError(f"{make.name}: no batch ends differently; choose another seed")


def _without_eos(make: Maker, sequences: np.ndarray) -> bool:
    """Whether the config's eos never comes, so that a case without eos does not depend on how that is said."""
    return make.model.config.eos_token_id not in sequences


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
