"""What the parts of one of our models compute, by the path of their weights: the operation `layers` of the suite."""

from __future__ import annotations

from typing import Any

import numpy as np


def inside(model: Any, inputs: dict[str, np.ndarray], outputs: list[str]) -> dict[str, np.ndarray]:
    """The outputs of a forward call and of the parts of the model; those that it does not have are not there.

    outputs: paths as `layers.0.attention.dense`, and `logits`, `...rotary_query`, `...rotary_key`, `...context`.
    """
    with model.trace() as trace:
        model(**inputs)
    return {name: trace[name] for name in outputs if name in trace}
