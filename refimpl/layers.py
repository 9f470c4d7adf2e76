"""The small parts that every model is built of: dense layers, embedding, layer norm, activation, MLP.

A module's attributes have the names of its weights in the checkpoint, so that the path of an
attribute *is* the key of a weight: `model.gpt_neox_japanese.layers[0].attention.dense.weight`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from refimpl.backends.activations import ACTIVATION_PARAMETERS
from refimpl.backends.base import Backend
from refimpl.backends.quantized import QuantizedMatrix
from refimpl.errors import CheckpointValueError, quote

Array = Any


@dataclass(frozen=True)
class Parameter:
    """What is known of a weight before its values are: where it belongs and its shape."""

    key: str
    owner: Module
    name: str
    shape: tuple[int, ...]
    #: The initial value of every element; None: random numbers.
    initial: float | None

    @property
    def is_matrix(self) -> bool:
        """Large matrices are kept in the weight dtype (or quantized), everything else in the compute dtype."""
        return len(self.shape) == 2

    def assign(self, array: np.ndarray | QuantizedMatrix, weight_dtype: np.dtype | None) -> None:
        """Keep `array` as the weight.  Raises: CheckpointValueError for a number that the dtype cannot hold."""
        setattr(self.owner, self.name, self.packed(array, weight_dtype, self.owner.backend))

    def packed(
        self, array: np.ndarray | QuantizedMatrix, weight_dtype: np.dtype | None, backend: Backend
    ) -> Array:
        """`array` in the form in which `backend` keeps this weight.  Raises: CheckpointValueError, as `assign`."""
        if isinstance(array, QuantizedMatrix):
            return backend.weight(array)
        if self.is_matrix:
            return backend.weight(self._narrowed(array, weight_dtype), weight_dtype)
        # Copied, so that a small vector does not keep a whole file in memory.
        return backend.asarray(np.array(array, dtype=backend.dtype))

    def _narrowed(self, array: np.ndarray, weight_dtype: np.dtype | None) -> np.ndarray:
        if weight_dtype is None or weight_dtype.itemsize >= array.dtype.itemsize:
            return array
        with np.errstate(over="ignore"):
            narrowed = array.astype(weight_dtype)
        lost = np.isinf(narrowed) & np.isfinite(array)
        if lost.any():
            raise CheckpointValueError(
                f"{weight_dtype} cannot hold a number of this tensor",
                where=self.key,
                found=quote(float(array[lost].flat[0])),
                hint='Keep the weights in bfloat16 or float32 (weight_dtype="bfloat16").',
                tensor=self.key,
                count=int(lost.sum()),
                first_index=[int(i) for i in np.argwhere(lost)[0]],
            )
        return narrowed


class Module:
    """Something with weights, and with parts that have weights."""

    def __init__(self, backend: Backend):
        self.backend = backend
        self._shapes: dict[str, tuple[tuple[int, ...], float | None]] = {}

    def declare(self, name: str, shape: tuple[int, ...], initial: float | None = None) -> None:
        """Announce a weight; its array becomes the attribute `name` when the model is loaded."""
        self._shapes[name] = (shape, initial)

    def named_parameters(self, prefix: str = "") -> Iterator[Parameter]:
        """Every weight of this module and its parts, in the order in which they were built."""
        for name, (shape, initial) in self._shapes.items():
            yield Parameter(prefix + name, self, name, shape, initial)
        for name, part in vars(self).items():
            if isinstance(part, Module):
                yield from part.named_parameters(f"{prefix}{name}.")
            elif isinstance(part, list):
                for index, item in enumerate(i for i in part if isinstance(i, Module)):
                    yield from item.named_parameters(f"{prefix}{name}.{index}.")


class Linear(Module):
    """x @ weight.T (+ bias).  [..., in_features] -> [..., out_features]"""

    weight: Array
    bias: Array | None = None

    def __init__(self, backend: Backend, in_features: int, out_features: int, bias: bool):
        super().__init__(backend)
        self.declare("weight", (out_features, in_features))
        if bias:
            self.declare("bias", (out_features,), initial=0.0)

    def __call__(self, x: Array) -> Array:
        return self.backend.linear(x, self.weight, self.bias)


class Embedding(Module):
    """One row of `weight` for each id.  [batch, seq] -> [batch, seq, hidden]"""

    weight: Array

    def __init__(self, backend: Backend, num_embeddings: int, hidden_size: int):
        super().__init__(backend)
        self.declare("weight", (num_embeddings, hidden_size))

    def __call__(self, ids: Array) -> Array:
        return self.backend.embedding(ids, self.weight)


class LayerNorm(Module):
    """Mean 0 and variance 1 over the last axis, then scaled and shifted.  [..., hidden] -> [..., hidden]"""

    weight: Array
    bias: Array

    def __init__(self, backend: Backend, hidden_size: int, eps: float):
        super().__init__(backend)
        self.declare("weight", (hidden_size,), initial=1.0)
        self.declare("bias", (hidden_size,), initial=0.0)
        self.eps = eps

    def __call__(self, x: Array) -> Array:
        return self.backend.layer_norm(x, self.weight, self.bias, self.eps)


class Activation(Module):
    """The activation that a config names (or a function of one's own).  [...] -> [...]"""

    def __init__(self, backend: Backend, hidden_act: str | Callable[[Array], Array]):
        super().__init__(backend)
        self.hidden_act = hidden_act
        if isinstance(hidden_act, str):
            for name, (shape, initial) in ACTIVATION_PARAMETERS.get(hidden_act, {}).items():
                self.declare(name, shape, initial)

    def __call__(self, x: Array) -> Array:
        if callable(self.hidden_act):
            return self.hidden_act(x)
        return self.backend.activation(
            x, self.hidden_act, tuple(getattr(self, name) for name in self._shapes)
        )


class MLP(Module):
    """Widen, bend, narrow.  [batch, seq, hidden] -> [batch, seq, hidden]"""

    def __init__(
        self,
        backend: Backend,
        hidden_size: int,
        intermediate_size: int,
        hidden_act: str | Callable[[Array], Array],
        bias: bool,
    ):
        super().__init__(backend)
        self.dense_h_to_4h = Linear(backend, hidden_size, intermediate_size, bias=bias)
        self.act = Activation(backend, hidden_act)
        self.dense_4h_to_h = Linear(backend, intermediate_size, hidden_size, bias=bias)

    def __call__(self, hidden_states: Array) -> Array:
        return self.dense_4h_to_h(self.act(self.dense_h_to_4h(hidden_states)))
