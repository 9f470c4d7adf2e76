"""Rotary frequencies of every rope type by their definitions, in float64, and the settings of the goldens.

Written from the papers and the documentation, with NumPy alone, so that it can be held against transformers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

Rope = dict[str, Any]

LINEAR = "https://arxiv.org/abs/2306.15595"
YARN = "https://arxiv.org/abs/2309.00071"
LONGROPE = "https://arxiv.org/abs/2402.13753"
ROFORMER = "https://arxiv.org/abs/2104.09864"
LLAMA3 = "https://github.com/meta-llama/llama-models"


# --- the definitions -----------------------------------------------------------------------------


def rotated_width(head_dim: int, rope: Rope) -> int:
    """How many dimensions of a head are rotated: cut off, not rounded."""
    return int(head_dim * rope["partial_rotary_factor"])


def plain_frequencies(base: float, width: int) -> np.ndarray:
    """base ** (-2 i / width), [width / 2]: the radians by which pair i turns from one place to the next."""
    return float(base) ** (-np.arange(0, width, 2, dtype=np.float64) / width)


def frequencies(rope: Rope, head_dim: int, longest: int, length: int) -> tuple[np.ndarray, float]:
    """Radians a place for each pair, [width / 2], and the factor on cos and sin.

    `longest` is max_position_embeddings; `length` the largest position id plus 1, of the whole batch.
    """
    width = rotated_width(head_dim, rope)
    kinds = {"default": _default, "linear": _linear, "dynamic": _dynamic, "yarn": _yarn}
    kinds |= {"longrope": _longrope, "llama3": _llama3}
    return kinds[rope["rope_type"]](rope, width, longest, length)


def tables(
    rope: Rope, head_dim: int, longest: int, position_ids: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin [batch, seq, width / 2], times the attention factor."""
    radians, factor = frequencies(rope, head_dim, longest, int(position_ids.max()) + 1)
    angles = position_ids[..., None].astype(np.float64) * radians
    return np.cos(angles) * factor, np.sin(angles) * factor


def _default(rope: Rope, width: int, longest: int, length: int) -> tuple[np.ndarray, float]:
    return plain_frequencies(rope["rope_theta"], width), 1.0


def _linear(rope: Rope, width: int, longest: int, length: int) -> tuple[np.ndarray, float]:
    """Position interpolation: every position is divided by the factor."""
    return plain_frequencies(rope["rope_theta"], width) / rope["factor"], 1.0


def _dynamic(rope: Rope, width: int, longest: int, length: int) -> tuple[np.ndarray, float]:
    """NTK-aware: beyond the trained length the base grows, so that the slowest pair is stretched most."""
    stretch = rope["factor"] * max(length, longest) / longest - (rope["factor"] - 1)
    return plain_frequencies(rope["rope_theta"] * stretch ** (width / (width - 2)), width), 1.0


def _yarn(rope: Rope, width: int, longest: int, length: int) -> tuple[np.ndarray, float]:
    """Fast pairs stay, slow pairs are interpolated, between them a ramp over the number of the pair.

    The paper's ramp runs over the number of rotations; its authors' program, and all after it, over the pair.
    """
    base, trained = rope["rope_theta"], rope.get("original_max_position_embeddings") or longest
    factor = rope.get("factor") or longest / trained
    ends = [
        width * math.log(trained / (rotations * 2 * math.pi)) / (2 * math.log(base))
        for rotations in (rope.get("beta_fast") or 32, rope.get("beta_slow") or 1)
    ]
    if rope.get("truncate", True):
        ends = [math.floor(ends[0]), math.ceil(ends[1])]
    first, last = max(ends[0], 0), min(ends[1], width - 1)
    if first == last:
        last += 0.001
    slow = np.clip((np.arange(width // 2) - first) / (last - first), 0, 1)
    plain = plain_frequencies(base, width)
    return plain / factor * slow + plain * (1 - slow), _yarn_attention_factor(rope, factor)


def _yarn_attention_factor(rope: Rope, factor: float) -> float:
    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"])

    def mscale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1

    both = rope.get("mscale"), rope.get("mscale_all_dim")
    return mscale(both[0]) / mscale(both[1]) if all(both) else mscale(1.0)


def _longrope(rope: Rope, width: int, longest: int, length: int) -> tuple[np.ndarray, float]:
    """Each pair has a divisor of its own: one list up to the trained length, another beyond it."""
    trained = rope.get("original_max_position_embeddings") or longest
    divisors = np.array(rope["long_factor" if length > trained else "short_factor"], dtype=np.float64)
    factor = rope.get("factor") or longest / trained
    attention = rope.get("attention_factor")
    if attention is None:
        attention = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(trained))
    return plain_frequencies(rope["rope_theta"], width) / divisors, float(attention)


def _llama3(rope: Rope, width: int, longest: int, length: int) -> tuple[np.ndarray, float]:
    """By wavelength: short ones stay, long ones are divided by the factor, those between are mixed."""
    plain = plain_frequencies(rope["rope_theta"], width)
    turns = rope["original_max_position_embeddings"] * plain / (2 * math.pi)  # in the trained length
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    keep = np.clip((turns - low) / (high - low), 0, 1)
    return plain * keep + plain / rope["factor"] * (1 - keep), 1.0


# --- the cases -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class RopeCase:
    """One setting; it is made once for a whole head and once for a part of one."""

    title: str
    rope: Rope
    source: str
    longest: int = 2048
    positions: tuple[tuple[int, ...], ...] = ((0, 1, 2, 3, 100, 511), (512, 513, 1023, 2047, 2048, 4095))


#: head_dim and partial_rotary_factor: a whole head of 16, and 12 of 25 dimensions (int() cuts off 12.5).
WIDTHS = {"full": (16, 1.0), "partial": (25, 0.5)}

SHORT = [1.0, 1.0, 1.05, 1.1, 1.3, 1.7, 2.0, 2.5]
LONG = [1.0, 1.2, 2.0, 4.5, 7.0, 11.0, 14.5, 16.0]
BELOW = ((0, 1, 2, 3, 10, 100), (5, 6, 7, 8, 300, 510))
LAST = ((0, 1, 2, 3, 10, 100), (5, 6, 7, 8, 300, 511))
BEYOND = ((0, 1, 2, 3, 10, 100), (5, 6, 7, 8, 300, 512))

_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}
_LONGROPE = {
    "rope_type": "longrope",
    "short_factor": SHORT,
    "long_factor": LONG,
    "original_max_position_embeddings": 512,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 1024,
}

CASES: dict[str, RopeCase] = {
    "default": RopeCase("No scaling", {"rope_type": "default"}, ROFORMER),
    "linear": RopeCase(
        "Every position divided by the factor", {"rope_type": "linear", "factor": 2.5}, LINEAR
    ),
    "dynamic-below": RopeCase(
        "Within max_position_embeddings dynamic changes nothing",
        {"rope_type": "dynamic", "factor": 3.0}, YARN, 512, BELOW,
    ),
    "dynamic-at": RopeCase(
        "A length of exactly max_position_embeddings changes nothing either",
        {"rope_type": "dynamic", "factor": 3.0}, YARN, 512, LAST,
    ),
    "dynamic-beyond": RopeCase(
        "One place beyond: a larger base for the whole batch, also for the row that is short",
        {"rope_type": "dynamic", "factor": 3.0}, YARN, 512, BEYOND,
    ),
    "dynamic-far": RopeCase(
        "Eight times max_position_embeddings", {"rope_type": "dynamic", "factor": 2.0}, YARN, 512
    ),
    "yarn": RopeCase("The defaults of yarn; the tables are scaled by 0.1 ln(factor) + 1", _YARN, YARN, 4096),
    "yarn-attention-factor": RopeCase(
        "attention_factor goes before the factor that yarn derives",
        _YARN | {"attention_factor": 0.75, "mscale": 0.7, "mscale_all_dim": 1.2}, YARN, 4096,
    ),
    "yarn-mscale": RopeCase(
        "mscale and mscale_all_dim: the ratio of two scales",
        _YARN | {"mscale": 0.7, "mscale_all_dim": 1.2}, YARN, 4096,
    ),
    "yarn-mscale-alone": RopeCase(
        "mscale without mscale_all_dim has no effect", _YARN | {"mscale": 0.7}, YARN, 4096
    ),
    "yarn-betas": RopeCase("A ramp of another width", _YARN | {"beta_fast": 8, "beta_slow": 2}, YARN, 4096),
    "yarn-no-truncate": RopeCase(
        "truncate false: the ends of the ramp are not rounded", _YARN | {"truncate": False}, YARN, 4096
    ),
    "yarn-ratio": RopeCase(
        "factor null: max_position_embeddings over original_max_position_embeddings",
        _YARN | {"factor": None}, YARN, 3072,
    ),
    "yarn-own-length": RopeCase(
        "Without original_max_position_embeddings, max_position_embeddings stands for it",
        {"rope_type": "yarn", "factor": 4.0}, YARN, 1024,
    ),
    "yarn-singular": RopeCase(
        "A ramp without width becomes a step", _YARN | {"original_max_position_embeddings": 6}, YARN, 24,
        ((0, 1, 2, 3, 4, 5), (6, 7, 11, 12, 22, 23)),
    ),
    "longrope-short": RopeCase(
        "Up to original_max_position_embeddings the short list is used",
        _LONGROPE | {"factor": 4.0}, LONGROPE, 2048, LAST,
    ),
    "longrope-long": RopeCase(
        "One place beyond, the long list is used for the whole batch", _LONGROPE | {"factor": 4.0}, LONGROPE,
        2048, BEYOND,
    ),
    "longrope-attention-factor": RopeCase(
        "attention_factor goes before the factor that longrope derives",
        _LONGROPE | {"factor": 4.0, "attention_factor": 1.5}, LONGROPE,
    ),
    "longrope-ratio": RopeCase(
        "No factor: max_position_embeddings over original_max_position_embeddings", _LONGROPE, LONGROPE, 3072
    ),
    "longrope-factor-one": RopeCase(
        "A factor of 1 or less does not scale the tables", _LONGROPE | {"factor": 1.0}, LONGROPE
    ),
    "llama3": RopeCase(
        "Three bands of wavelengths: kept, mixed, divided by the factor", _LLAMA3, LLAMA3, 8192
    ),
    "llama3-wide": RopeCase(
        "Other ends of the bands, another base", _LLAMA3 | {"low_freq_factor": 0.5, "rope_theta": 500000.0},
        LLAMA3, 8192,
    ),
}  # fmt: skip


def settings(case: RopeCase, width: str) -> tuple[int, Rope]:
    """head_dim and the whole `rope_parameters` of a case, as transformers 5 spells them."""
    head_dim, share = WIDTHS[width]
    rope = {"rope_theta": 10000.0, "partial_rotary_factor": share, **case.rope}
    for name in {"short_factor", "long_factor"} & rope.keys():
        rope[name] = rope[name][: rotated_width(head_dim, rope) // 2]
    return head_dim, rope
