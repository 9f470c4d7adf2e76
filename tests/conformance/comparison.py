"""Calls of a model, what comes out of them by name, and when two results are the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

#: What a call gives, by name.
Outputs = dict[str, np.ndarray]
#: cos and sin, each [batch, seq, rotated dimensions / 2].
Tables = tuple[np.ndarray, np.ndarray]

#: model type -> how the classes of a family begin
FAMILIES = {"gpt_neox": "GPTNeoX", "gpt_neox_japanese": "GPTNeoXJapanese"}

# A float32 result is right when it is about as near to float64 as the library's own one is.
FLOAT32_FLOOR = 5e-6
TIMES_THEIR_NOISE = 4
FLOAT64_LIMIT = 1e-11
LOSS_LIMIT = {"float32": 1e-5, "float64": 1e-11}


@dataclass(frozen=True)
class Call:
    """The arguments of a forward call, by name, and how it is made.

    real: [batch, seq], where there is a token and no padding; only there results have to agree.
    lengths: feed the text in pieces of so many tokens through the cache; None: all at once.
    """

    inputs: dict[str, Any]
    real: np.ndarray
    lengths: tuple[int, ...] | None = None

    def pieces(self) -> list[dict[str, Any]]:
        """The arguments of each piece; the mask covers what is cached as well."""
        if self.lengths is None:
            return [self.inputs]
        ends = np.cumsum(self.lengths)
        assert ends[-1] == self.real.shape[1]
        return [
            {
                name: array[:, :end] if name == "attention_mask" else array[:, end - length : end]
                for name, array in self.inputs.items()
            }
            for end, length in zip(ends, self.lengths, strict=True)
        ]


def outputs_of(
    model: Any, call: Call, give: Callable[[Any], Any], take: Callable[[Any], np.ndarray]
) -> Outputs:
    """Every output of a call of either library, by name: "logits", "hidden_states.0", "past_key_values.0.key", ...

    give, take: make what the library reads of an argument, and an array on the host of what it gives.
    """
    found: Outputs = {}
    past = None
    for number, piece in enumerate(call.pieces()):
        out = model(
            **{name: give(value) for name, value in piece.items()},
            **({} if past is None else {"past_key_values": past}),
            use_cache=True,
            output_attentions=True,
            output_hidden_states=True,
        )
        prefix = "" if call.lengths is None else f"piece {number}, "
        for name, value in out.items():
            if name == "past_key_values":
                past = value
            elif isinstance(value, tuple):
                found |= {f"{prefix}{name}.{i}": take(array) for i, array in enumerate(value)}
            else:
                found[prefix + name] = take(value)
    for i, (key, value) in enumerate(_cached(past)):
        found |= {f"past_key_values.{i}.key": take(key), f"past_key_values.{i}.value": take(value)}
    return found


def _cached(cache: Any) -> list[tuple[Any, Any]]:
    if cache is None:
        return []
    if hasattr(cache, "layers") and hasattr(cache.layers[0], "keys"):
        return [(layer.keys, layer.values) for layer in cache.layers]
    return list(cache)


class Expected:
    """What the other library gives for some calls of one model, in float32 and float64, and its noise.

    Differences of an output are relative to its largest value over all these calls, and so is the noise, which is the
    largest of any call: of a single one both can happen to be small.
    """

    def __init__(self, single: dict[str, Outputs], exact: dict[str, Outputs], calls: dict[str, Call]):
        self.exact, self.calls = exact, calls
        self.largest: dict[str, float] = {}
        self.noise: dict[str, float] = {}
        for call, outputs in exact.items():
            for name, right in outputs.items():
                found = np.abs(_at_real_tokens(right, name, calls[call])).max(initial=0.0)
                self.largest[_kind(name)] = max(self.largest.get(_kind(name), 0.0), float(found))
        for call, outputs in single.items():
            for name, found in outputs.items():
                noise = 0.0 if name == "loss" else self.difference(found, call, name)
                self.noise[_kind(name)] = max(self.noise.get(_kind(name), 0.0), noise)

    def difference(self, found: np.ndarray, call: str, name: str) -> float:
        """The largest difference at real tokens."""
        pair = (found.astype(np.float64), self.exact[call][name])
        ours, exact = (_at_real_tokens(array, name, self.calls[call]) for array in pair)
        return float(np.abs(ours - exact).max()) / self.largest[_kind(name)]

    def check(self, found: Outputs, call: str, dtype: str, where: str) -> None:
        """Compare every output of a call with that of the other library.

        Raises: AssertionError that names the output, the largest difference and what is allowed.
        """
        assert list(found) == list(self.exact[call]), where
        for name, right in self.exact[call].items():
            place = f"{where}, {call}: {name}, {dtype}"
            assert found[name].dtype == dtype, place
            assert found[name].shape == right.shape, place
            if name == "loss":
                _check_loss(float(found[name]), float(right), LOSS_LIMIT[dtype], place)
                continue
            limit = FLOAT64_LIMIT
            if dtype == "float32":
                limit = max(FLOAT32_FLOOR, TIMES_THEIR_NOISE * self.noise[_kind(name)])
            difference = self.difference(found[name], call, name)
            assert difference <= limit, f"{place}: differs by {difference:.3g}, allowed {limit:.3g}"
            if name.endswith("logits"):
                ours, exact = (_at_real_tokens(a, name, self.calls[call]) for a in (found[name], right))
                _check_winners(ours, exact, 2 * limit * self.largest[_kind(name)], place)


def _kind(name: str) -> str:
    """The name of an output, of whichever piece of a text."""
    return name.split(", ")[-1]


def _check_loss(found: float, wanted: float, limit: float, place: str) -> None:
    if np.isnan(wanted):
        assert np.isnan(found), place
        return
    difference = abs(found - wanted) / max(1.0, abs(wanted))
    assert difference <= limit, f"{place}: differs by {difference:.3g}, allowed {limit:.3g}"


def _check_winners(found: np.ndarray, right: np.ndarray, lead_of_noise: float, place: str) -> None:
    """The largest value stands at the same place, unless the second is as near as noise can bring it."""
    if right.shape[-1] < 2:
        return
    best = np.sort(right, axis=-1)
    clear = best[..., -1] - best[..., -2] > lead_of_noise
    same = found.argmax(axis=-1) == right.argmax(axis=-1)
    assert same[clear].all(), f"{place}: another winner at {np.argwhere(clear & ~same)[0].tolist()}"


def _at_real_tokens(array: np.ndarray, name: str, call: Call) -> np.ndarray:
    """The part of an output that belongs to real tokens.  -> [tokens, ...]"""
    if name == "loss":
        return array
    real = call.real
    if name.startswith("piece "):
        number, name = name.removeprefix("piece ").split(", ")
        end = int(np.sum(call.lengths[: int(number) + 1]))  # type: ignore[index]
        real = real[:, end - call.lengths[int(number)] : end]  # type: ignore[index]
    if name.startswith(("attentions", "past_key_values")):  # [batch, heads, seq, ...]
        return array.transpose(0, 2, 1, 3)[real]
    if name.endswith("logits") and "logits_to_keep" in call.inputs:
        keep = call.inputs["logits_to_keep"]
        real = real[:, keep] if isinstance(keep, np.ndarray) else real[:, -keep:] if keep else real
    if name == "logits" and array.ndim == 2:  # one result for each text
        return array[real.any(axis=1)]
    return array[real]
