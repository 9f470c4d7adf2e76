"""What planting a mistake into a copy of a model needs: the copy, and parts that do something more or less.

A variant changes a `Copy` from outside: it swaps parts, replaces operations of the copy's own backend, or changes
the inputs of its calls. The text of the model stays as it is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from refimpl.backends import get_backend
from refimpl.conformance.trace import Call
from refimpl.layers import LayerNorm, Module
from refimpl.rotary import RotaryEmbedding

Array = Any


@dataclass
class Copy:
    """A model of its own that shares the numbers of its weights with another one, and the calls to make.

    Attributes:
        model: on a NumPy backend that is the copy's alone.
        only_new_rows: results show the last tokens of each call alone (so many as the call had before).
    """

    model: Any
    calls: list[Call]
    only_new_rows: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, model: Any, calls: list[Call]) -> Copy:
        """A copy of `model`, which is on the NumPy backend, to be changed."""
        backend = get_backend("numpy", dtype=str(np.dtype(model.dtype)))
        made = type(model).skeleton(copy.deepcopy(model.config), backend)
        made.name_or_path = model.name_or_path
        for new, old in zip(made.named_parameters(), model.named_parameters(), strict=True):
            setattr(new.owner, new.name, getattr(old.owner, old.name))
        return cls(made, [replace(call) for call in calls])

    @property
    def config(self) -> Any:
        return self.model.config

    @property
    def base(self) -> Any:
        return self.model.base_model

    @property
    def backend(self) -> Any:
        return self.model.backend

    @property
    def layers(self) -> list[Any]:
        return self.base.layers

    def norms(self) -> list[LayerNorm]:
        """Every layer norm, the final one last."""
        pairs = [(layer.input_layernorm, layer.post_attention_layernorm) for layer in self.layers]
        return [norm for pair in pairs for norm in pair] + [self.base.final_layer_norm]

    def set_rope(self, **settings: Any) -> None:
        """Compute the rotary tables with other settings; whether they fit is the caller's business."""
        config = copy.deepcopy(self.base.rotary_emb.config)
        config.rope_parameters.update(settings)
        self.base.rotary_emb = RotaryEmbedding(self.backend, config)

    @property
    def rope(self) -> dict[str, Any]:
        return self.base.rotary_emb.config.rope_parameters

    def change(self, owner: Any, name: Any, **how: Any) -> None:
        """Put a `Changed` in the place of a part."""
        part = owner[name] if isinstance(name, int) else getattr(owner, name)
        changed = Changed(part, **how)
        if isinstance(name, int):
            owner[name] = changed
        else:
            setattr(owner, name, changed)

    def around(self, operation: str, function: Callable[..., Any]) -> None:
        """Replace an operation of the backend: `function` is given the old one and its arguments."""
        plain = getattr(self.backend, operation)
        setattr(self.backend, operation, lambda *args, **kwargs: function(plain, *args, **kwargs))


class Changed(Module):
    """A part, with something done to what it is given or to what it gives.

    before: its arguments (args, kwargs) -> others.
    after: its result, args and kwargs -> another result.
    recorded_inside: a trace shows the part itself, as a program with this mistake would, not what is done around it.
    """

    def __init__(
        self,
        part: Any,
        before: Callable[..., Any] | None = None,
        after: Callable[..., Any] | None = None,
        recorded_inside: bool = True,
    ):
        self.__dict__.update(part=part, _before=before, _after=after, recorded_inside=recorded_inside)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["part"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.__dict__:
            self.__dict__[name] = value
        else:
            setattr(self.part, name, value)

    def named_parameters(self, prefix: str = "") -> Any:
        return self.part.named_parameters(prefix)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._before is not None:
            args, kwargs = self._before(args, kwargs)
        result = self.part(*args, **kwargs)
        return result if self._after is None else self._after(result, args, kwargs)


class Identity(Module):
    """Gives what it is given."""

    def __call__(self, x: Array) -> Array:
        return x
