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


def unmasked(make: Maker) -> None:
    """Prompts that hold pad_token_id, without an attention mask."""
    for _ in range(200):
        ids, mask = padded(make.ids(2, 6), [0, 3], "left")
        told = {"input_ids": ids, "attention_mask": mask}
        masked, lead = oracle.greedy(make.model, told, new_tokens=6, eos=None, pad=PAD)
        seen, other_lead = oracle.greedy(make.model, {"input_ids": ids}, new_tokens=6, eos=PAD, pad=PAD)
        clear = min(lead, other_lead) > SMALLEST_LEAD and PAD not in seen[:, 6:]
        if clear and _without_eos(make, masked) and not np.array_equal(masked, seen):
            break
    else:
        raise AssertionError(f"{make.name}: no prompt shows whether padding is seen; choose another seed")
    title = "No mask: pad_token_id in a prompt is padding, since it ends no text"
    found = greedy_case(make, "greedy-pad-in-prompt", title, ids, None, 6, None, ("padding-token-in-prompt",))
    assert np.array_equal(found, masked)
    title = "No mask, and pad_token_id ends texts too: then it is a token like any other"
    found = greedy_case(make, "greedy-pad-is-eos", title, ids, None, 6, PAD, ("padding-token-in-prompt",))
    assert np.array_equal(found, seen)


def by_config(make: Maker) -> None:
    """The special tokens of the config: row 1 gives an eos early, row 0 never."""
    config = make.model.config
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    filling = ends[0] if config.pad_token_id is None else config.pad_token_id
    for _ in range(2000):
        inputs = {"input_ids": make.ids(2, 5)}
        found, lead = oracle.greedy_by_config(make.exact, inputs, 8)
        long, short = found[:, 5:]
        goes_on = not np.isin(long, [*ends, filling]).any()
        if goes_on and lead > SMALLEST_LEAD and _ends_early(short, ends, filling):
            break
    else:
        raise AssertionError(f"{make.name}: no prompt meets the eos of the config; choose another seed")
    single, _ = oracle.greedy_by_config(make.model, inputs, 8)
    assert np.array_equal(found, single), f"{make.name}: float32 and float64 chose differently"
    filled = (
        "pad_token_id"
        if config.pad_token_id is not None
        else "its first eos id, since it has no pad_token_id"
    )
    title = f"Nothing said in the call: a row ends with an eos of the config and is filled with {filled}"
    arguments = {"max_new_tokens": 8, "do_sample": False}
    more: dict[str, Any] = {"arguments": arguments, "features": ("greedy", "eos", "eos-of-config")}
    make.write_ids("greedy-by-config", title, inputs, found, smallest_lead=significant(lead), **more)


def _ends_early(row: np.ndarray, ends: list[int], filling: int) -> bool:
    """Whether a row of new tokens ends after its first one and before its last two, and not with `filling`."""
    places = np.flatnonzero(np.isin(row, [*ends, filling]))
    return len(places) > 2 and places[0] > 0 and row[places[0]] != filling


def tie(make: Maker) -> None:
    """Logits that are exactly equal, and larger than all others."""
    inputs = {"input_ids": make.ids(1, 4)}
    logits = oracle.run(make.exact, inputs)["logits"]
    best = [int(i) for i in np.flatnonzero(logits[0, -1] == logits[0, -1].max())]
    assert len(best) == 3, f"{make.name}: no tie: {best}"
    found, lead = oracle.greedy(make.model, inputs, new_tokens=3, eos=None, pad=PAD)
    assert lead == 0
    assert found[0, 4:].tolist() == [best[0]] * 3
    how = f"the rows {best} of the output head are zero, so their logits are 0, and all others are negative; "
    how += "by docs/spec/calls.md the lowest id wins (torch.argmax gives it too, and promises nothing)"
    source = {"kind": "analytic", "command": "python golden/make/make_models.py", "how": how}
    arguments = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None, "pad_token_id": PAD}
    title = "Several tokens with exactly the largest logit: the lowest id is chosen"
    more: dict[str, Any] = {"arguments": arguments, "features": ("greedy", "tie"), "source": source}
    make.write_ids("greedy-tie", title, inputs, found, **more)


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
    make: Maker,
    case: str,
    title: str,
    ids: np.ndarray,
    mask: np.ndarray | None,
    new_tokens: int,
    eos: Any,
    more_features: tuple[str, ...] = (),
) -> np.ndarray:
    inputs = {"input_ids": ids} if mask is None else {"input_ids": ids, "attention_mask": mask}
    asked: dict[str, Any] = {"new_tokens": new_tokens, "eos": eos, "pad": PAD}
    exact, lead = oracle.greedy(make.exact, inputs, **asked)
    single, _ = oracle.greedy(make.model, inputs, **asked)
    assert np.array_equal(exact, single), f"{make.name}/{case}: float32 and float64 chose differently"
    assert lead > SMALLEST_LEAD, f"{make.name}/{case}: the choice is too close, {lead}"
    arguments = {"max_new_tokens": new_tokens, "do_sample": False, "eos_token_id": eos, "pad_token_id": PAD}
    features = ["greedy", *more_features]
    if mask is not None:
        features.append("padding-inside" if mask[:, 0].all() else "left-padding")
    if eos is not None:
        features.append("eos")
    more = {"arguments": arguments, "features": tuple(features), "smallest_lead": significant(lead)}
    make.write_ids(case, title, inputs, exact, **more)
    return exact
