"""The angles of rotary position embedding (arXiv:2104.09864), and the ways to stretch them over longer texts.

Dimension pair i of a head turns by position * frequency[i].  The types differ in their frequencies, and
some multiply cos and sin by an attention factor.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from refimpl.backends.base import Backend
from refimpl.config import GPTNeoXConfig, GPTNeoXJapaneseConfig

Array = Any
Config = GPTNeoXConfig | GPTNeoXJapaneseConfig


class RotaryEmbedding:
    """cos and sin of position * frequency.

    Frequencies are computed in float64; they, the angles, cos and sin are float32 at least, and cast
    to the compute dtype last: a rounded frequency shifts every later position.  In a float64 model
    everything is float64.

    The types "dynamic" and "longrope" look at the length of the text: the largest position of the call
    (over all rows) + 1.  Keys in a cache stay as they were rotated when they came.
    """

    def __init__(self, backend: Backend, config: Config):
        self.backend = backend
        self.config = copy.deepcopy(config)  # what a model is made of does not change with its settings
        self.table_dtype = np.float64 if backend.dtype == np.float64 else np.float32
        self.fixed = None if config.rope_parameters["rope_type"] in _LENGTH_MATTERS else self._frequencies(0)

    def __call__(self, position_ids: Array) -> tuple[Array, Array]:
        """[batch or 1, seq] -> cos and sin, each [batch or 1, seq, rotary_ndims / 2]"""
        frequency, factor = self.fixed or self._frequencies(int(position_ids.max()) + 1)
        angle = position_ids[:, :, None].astype(self.table_dtype) * frequency
        xp, dtype = self.backend.xp, self.backend.dtype
        return (xp.cos(angle) * factor).astype(dtype), (xp.sin(angle) * factor).astype(dtype)

    def _frequencies(self, length: int) -> tuple[Array, np.floating]:
        """-> [rotary_ndims / 2], and the factor of cos and sin, for a text of that many positions"""
        frequency, factor = _FREQUENCIES[self.config.rope_parameters["rope_type"]](self.config, length)
        return self.backend.asarray(frequency.astype(self.table_dtype)), self.table_dtype(factor)


# Each function below gives the frequencies [rotary_ndims / 2] in float64, and the attention factor.


def _default(config: Config, length: int) -> tuple[np.ndarray, float]:
    """base ** (-2 i / rotary_ndims): the exponent runs over the rotated width, not over the head's."""
    return _powers(config.rotary_ndims, config.rope_parameters["rope_theta"]), 1.0


def _linear(config: Config, length: int) -> tuple[np.ndarray, float]:
    """Every position divided by `factor` (arXiv:2306.15595)."""
    return _default(config, length)[0] / config.rope_parameters["factor"], 1.0


def _dynamic(config: Config, length: int) -> tuple[np.ndarray, float]:
    """A base that grows with the text: slow pairs are stretched, fast ones hardly.

    Up to max_position_embeddings nothing changes.  (Known as dynamic NTK scaling.)
    """
    rope, width = config.rope_parameters, config.rotary_ndims
    stretch = max(length, config.max_position_embeddings) / config.max_position_embeddings
    grown = rope["factor"] * stretch - (rope["factor"] - 1)
    return _powers(width, rope["rope_theta"] * grown ** (width / (width - 2))), 1.0


def _yarn(config: Config, length: int) -> tuple[np.ndarray, float]:
    """Fast pairs as they were, slow ones divided by `factor`, a ramp between (arXiv:2309.00071).

    Fast is a pair that turns more than `beta_fast` times within the original length, slow one that
    turns less than `beta_slow` times.
    """
    rope, width = config.rope_parameters, config.rotary_ndims
    original, factor = _lengths(config)

    def pair_that_turns(times: float) -> float:
        return width * math.log(original / (times * 2 * math.pi)) / (2 * math.log(rope["rope_theta"]))

    low, high = pair_that_turns(rope.get("beta_fast", 32)), pair_that_turns(rope.get("beta_slow", 1))
    if rope.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    ramp = np.clip((np.arange(width // 2) - low) / (high - low if high != low else 0.001), 0.0, 1.0)
    frequency, _ = _default(config, length)
    attention_factor = rope.get("attention_factor")
    if attention_factor is None:
        over, under = rope.get("mscale") or 0.0, rope.get("mscale_all_dim") or 0.0
        both = over and under  # only together do they mean something
        attention_factor = _warmth(factor, over) / _warmth(factor, under) if both else _warmth(factor, 1.0)
    return frequency * (1 - ramp) + frequency / factor * ramp, attention_factor


def _warmth(factor: float, scale: float) -> float:
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _longrope(config: Config, length: int) -> tuple[np.ndarray, float]:
    """A divisor for each pair, from one list for short texts and another for long ones (arXiv:2402.13753)."""
    rope = config.rope_parameters
    original, factor = _lengths(config)
    divisors = np.array(rope["long_factor" if length > original else "short_factor"], dtype=np.float64)
    attention_factor = rope.get("attention_factor")
    if attention_factor is None:
        attention_factor = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return _default(config, length)[0] / divisors, attention_factor


def _llama3(config: Config, length: int) -> tuple[np.ndarray, float]:
    """Fast pairs as they were, slow ones divided by `factor`, smooth between (as Llama 3.1 does).

    Fast is a pair that turns more than `high_freq_factor` times within the original length, slow one that
    turns less than `low_freq_factor` times.
    """
    rope = config.rope_parameters
    frequency, _ = _default(config, length)
    turns = _lengths(config)[0] * frequency / (2 * math.pi)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    fast = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return frequency * fast + frequency / rope["factor"] * (1 - fast), 1.0


def _powers(width: int, base: float) -> np.ndarray:
    return float(base) ** (-np.arange(0, width, 2, dtype=np.float64) / width)


def _lengths(config: Config) -> tuple[int, float]:
    """The length that the model was first trained for, and how many times longer texts it is stretched to."""
    rope, longest = config.rope_parameters, config.max_position_embeddings
    original = rope.get("original_max_position_embeddings", longest)
    return original, rope.get("factor", longest / original)


_FREQUENCIES: dict[str, Callable[[Config, int], tuple[np.ndarray, float]]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "longrope": _longrope,
    "llama3": _llama3,
}

_LENGTH_MATTERS = ("dynamic", "longrope")
