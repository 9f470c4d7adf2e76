"""Rounding or mistake: what a result may differ from the right one, and what it does.

The right one is the model in float64.  How much rounding costs is measured: the model is computed in float32 too,
and a result of another program may lie `TIMES` as far from the right one as that, since it adds up in another order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from refimpl.conformance import steps
from refimpl.conformance.measures import scaled_error
from refimpl.conformance.trace import Call
from refimpl.errors import InputError, quote

#: How many times our own error another program may make.
TIMES = 8.0

#: dtype of a computation -> (unit roundoff, how many of them are always allowed, allowed without a model at hand)
ROUNDING = {
    "float64": (2.0**-53, 256, 1e-10),
    "float32": (2.0**-24, 128, 1e-4),
    "float16": (2.0**-11, 16, 3e-2),
    "bfloat16": (2.0**-8, 16, 2e-1),
}
#: What weights in 16 bits may cost where no model is at hand.
_WITHOUT_MODEL = {"float16": 1e-2, "bfloat16": 6e-2, "int8": 2e-1, "nf4": 5e-1}

#: What can be said of another program's precision.
DTYPES = ("float64", "float32", "float16", "bfloat16", "float16-weights", "bfloat16-weights")


@dataclass(frozen=True)
class Precision:
    """How something was computed: `compute` is the dtype of the computation, `weights` that of the large matrices.

    weights None: as in the file.
    """

    compute: str = "float32"
    weights: str | None = None

    @classmethod
    def parse(cls, text: str) -> Precision:
        """Raises: InputError unless `text` is one of `DTYPES`."""
        if text not in DTYPES:
            raise InputError(
                "unknown precision", where="--dtype", found=quote(text), allowed=", ".join(DTYPES)
            )
        name, _, weights = text.partition("-")
        if weights:
            return cls("float32", name)
        return cls(name, name if name in ("float16", "bfloat16") else None)

    def __str__(self) -> str:
        if self.weights is None or self.weights == self.compute:
            return self.compute
        return f"{self.compute}, weights in {self.weights}"

    @property
    def floor(self) -> float:
        unit, count, _ = ROUNDING[self.compute]
        return unit * count

    @property
    def without_model(self) -> float:
        """The error that is allowed, relative to the largest value, where nothing could be measured."""
        return max(ROUNDING[self.compute][2], _WITHOUT_MODEL.get(self.weights or "", 0.0))

    def limit(self, own_float32: float) -> float:
        """The error that is allowed where our own float32 run, with the same weights, makes this one."""
        unit, _, _ = ROUNDING[self.compute]
        return max(self.floor, TIMES * own_float32 * unit / ROUNDING["float32"][0])


def places_that_count(name: str, array: np.ndarray, call: Call | None) -> np.ndarray | None:
    """Bool, broadcastable to `array`: false at padding and at scores that nothing sees; None: all count."""
    if call is None:
        return None
    axes = steps.axes_of(name, array.ndim)
    if axes[:1] != ("batch",) or (call.input_ids is not None and len(call.input_ids) != array.shape[0]):
        return None
    masks = [_along(axes, {"batch", "seq"}, call.real_tokens())]
    if "kv_seq" in axes:
        masks.append(
            _along(
                axes, {"batch", "kv_seq"}, None if call.attention_mask is None else call.attention_mask != 0
            )
        )
    if axes == steps.PER_PAIR:
        causal = np.arange(array.shape[3])[None] <= np.arange(array.shape[2])[:, None] + call.past
        masks.append(causal[None, None])
    given = [mask for mask in masks if mask is not None]
    if not given:
        return None
    both = given[0]
    for mask in given[1:]:
        both = both & mask
    try:
        return np.broadcast_to(both, array.shape)
    except ValueError:  # an array of another length than the call
        return None


def _along(axes: tuple[str, ...], named: set[str], mask: np.ndarray | None) -> np.ndarray | None:
    """A [batch, length] mask, shaped to lie along the axes of these names."""
    if mask is None or not named <= set(axes):
        return None
    shape = iter(mask.shape)
    return mask.reshape([next(shape) if axis in named else 1 for axis in axes])


@dataclass
class Yardstick:
    """The right values of a step, and the error that is allowed.

    Attributes:
        right: in float64; where no model is at hand, what is compared with.
        own: the error of our own float32 run, relative to the largest value; None where none was made.
        limit: the error that is allowed, relative to the largest value.
        where: the places that count.
    """

    right: np.ndarray
    own: float | None
    limit: float
    where: np.ndarray | None

    def error(self, found: np.ndarray) -> float:
        """The largest error of `found`, relative to the largest right value."""
        return scaled_error(self.right, found, self.where)

    def allows(self, found: np.ndarray) -> bool:
        return self.error(found) <= self.limit


#: name of a step -> its yardstick; None where there is none
Yardsticks = Callable[[str], Yardstick | None]


def measured(
    right: Any, own: Any, call: Callable[[str], Call | None], precision: Precision
) -> dict[str, Yardstick]:
    """Yardsticks of a float64 trace and a float32 trace of the same calls."""
    made = {}
    for name, array in right.items():
        where = places_that_count(name, array, call(name))
        error = scaled_error(array, own[name], where)
        made[name] = Yardstick(array, error, precision.limit(error), where)
    return made
