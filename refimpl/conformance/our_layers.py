"""What the parts of one of our models compute, by the path of their weights: the operation `layers` of the suite."""

from __future__ import annotations

from typing import Any

import numpy as np

import refimpl

_COMPUTED = ("logits", "rotary_query", "rotary_key", "context")


class _Watched:
    """Stands in for a part of a model and remembers what it gave, and what `dense` was given."""

    def __init__(self, part: Any, path: str, seen: dict[str, Any]):
        self._part, self._path, self._seen = part, path, seen

    def __getattr__(self, name: str) -> Any:
        return getattr(self._part, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._path.endswith("attention.dense"):
            self._seen[self._path.removesuffix("dense") + "context"] = args[0]
        result = self._part(*args, **kwargs)
        self._seen[self._path] = result[0] if isinstance(result, tuple) else result
        return result


def inside(model: Any, inputs: dict[str, np.ndarray], outputs: list[str]) -> dict[str, np.ndarray]:
    """The outputs of a forward call and of the parts of the model.  The parts are replaced: use the model no more.

    outputs: paths as `layers.0.attention.dense`, and `logits`, `...rotary_query`, `...rotary_key`, `...context`.
    Returns: name -> array; those that the model does not have are not there.
    """
    base = getattr(model, model.base_model_prefix)
    seen: dict[str, Any] = {}
    for path in sorted(outputs, key=lambda path: -path.count(".")):  # innermost first
        if not path.endswith(_COMPUTED):
            _watch(base, path, seen)
    rotated: list[Any] = []
    plain = model.backend.rotary

    def rotary(x: Any, cos: Any, sin: Any) -> Any:
        rotated.append(plain(x, cos, sin))
        return rotated[-1]

    model.backend.rotary = rotary
    try:
        seen["logits"] = model(**inputs).logits
    finally:
        del model.backend.rotary
    width = model.config.rotary_ndims
    for i in range(model.config.num_hidden_layers):
        seen[f"layers.{i}.attention.rotary_query"] = rotated[2 * i][..., :width]
        seen[f"layers.{i}.attention.rotary_key"] = rotated[2 * i + 1][..., :width]
    return {name: refimpl.to_numpy(array) for name, array in seen.items()}


def _watch(base: Any, path: str, seen: dict[str, Any]) -> None:
    *parents, name = path.split(".")
    owner = base
    for parent in parents:
        owner = owner[int(parent)] if parent.isdigit() else getattr(owner, parent)
    if name.isdigit():
        owner[int(name)] = _Watched(owner[int(name)], path, seen)
    else:
        setattr(owner, name, _Watched(getattr(owner, name), path, seen))
