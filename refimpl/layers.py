"""The small parts that every model is built of: dense layers, embedding, layer norm, activation, MLP.

A module's attributes have the names of its weights in the checkpoint, so that the path of an
attribute *is* the key of a weight: `model.gpt_neox_japanese.layers[0].attention.dense.weight`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from refimpl.backends.activations import ACTIVATION_PARAMETERS
from refimpl.backends.base import Backend
from refimpl.parameter import Parameter

Array = Any


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


class TiedLinear(Linear):
    """A dense layer that uses the matrix of an embedding, whatever that becomes.  [..., hidden] -> [..., vocab]"""

    def __init__(self, embedding: Embedding):
        Module.__init__(self, embedding.backend)
        self.embedding = embedding

    def named_parameters(self, prefix: str = "") -> Iterator[Parameter]:
        """None: the matrix belongs to the embedding."""
        return iter(())

    @property
    def weight(self) -> Array:
        return self.embedding.weight


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
