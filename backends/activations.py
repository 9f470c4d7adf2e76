"""Every activation function that a config can name, exactly as it is defined.

The names are those of transformers' table `ACT2FN`.  GELU alone has nine: they differ by up to
5e-4, far more than rounding, so the name in the config is obeyed to the letter.

Each function takes the backend (for its array namespace `xp` and `erfc`), the input of any shape,
and the learned parameters where the activation has some.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

Array = Any


def _normal_cdf(backend: Any, x: Array) -> Array:
    return 0.5 * backend.erfc(x * -math.sqrt(0.5))


def _sigmoid(backend: Any, x: Array) -> Array:
    xp = backend.xp
    small = xp.exp(-xp.abs(x))  # never overflows
    return xp.where(x >= 0, 1.0, small) / (1.0 + small)


def _softplus(backend: Any, x: Array) -> Array:
    xp = backend.xp
    return xp.maximum(x, 0) + xp.log1p(xp.exp(-xp.abs(x)))


def gelu(backend: Any, x: Array) -> Array:
    """x * Phi(x), Phi being the normal distribution function: the exact form (erf)."""
    return x * _normal_cdf(backend, x)


def gelu_tanh(backend: Any, x: Array) -> Array:
    """The tanh form: 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x**3)))."""
    return 0.5 * x * (1.0 + backend.xp.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x * x * x)))


def gelu_fast(backend: Any, x: Array) -> Array:
    """The tanh form with its constant cut to ten digits, as gpt-neox-20b writes it."""
    return 0.5 * x * (1.0 + backend.xp.tanh(x * 0.7978845608 * (1.0 + 0.044715 * x * x)))


def gelu_10(backend: Any, x: Array) -> Array:
    return backend.xp.clip(gelu(backend, x), -10.0, 10.0)


def quick_gelu(backend: Any, x: Array) -> Array:
    return x * _sigmoid(backend, 1.702 * x)


def silu(backend: Any, x: Array) -> Array:
    return x * _sigmoid(backend, x)


def relu(backend: Any, x: Array) -> Array:
    return backend.xp.maximum(x, 0)


def relu2(backend: Any, x: Array) -> Array:
    positive = relu(backend, x)
    return positive * positive


def relu6(backend: Any, x: Array) -> Array:
    return backend.xp.clip(x, 0.0, 6.0)


def leaky_relu(backend: Any, x: Array) -> Array:
    return backend.xp.where(x >= 0, x, 0.01 * x)


def prelu(backend: Any, x: Array, weight: Array) -> Array:
    return backend.xp.where(x >= 0, x, weight * x)


def hardswish(backend: Any, x: Array) -> Array:
    return x * backend.xp.clip(x + 3.0, 0.0, 6.0) / 6.0


def laplace(backend: Any, x: Array) -> Array:
    """The normal distribution function with mean 0.707107 and deviation 0.282095 (arXiv:2209.10655)."""
    return _normal_cdf(backend, (x - 0.707107) / 0.282095)


def mish(backend: Any, x: Array) -> Array:
    return x * backend.xp.tanh(_softplus(backend, x))


def sqrtsoftplus(backend: Any, x: Array) -> Array:
    return backend.xp.sqrt(_softplus(backend, x))


def xielu(backend: Any, x: Array, alpha_p: Array, alpha_n: Array, beta: Array, eps: Array) -> Array:
    """Quadratic above zero, exponential below, both slopes learned (arXiv:2411.13010)."""
    xp = backend.xp
    above = _softplus(backend, alpha_p) * x * x
    below = (xp.expm1(xp.minimum(x, eps)) - x) * (beta + _softplus(backend, alpha_n))
    return xp.where(x > 0, above, below) + beta * x


ACTIVATIONS: dict[str, Callable[..., Array]] = {
    "gelu": gelu,
    "gelu_10": gelu_10,
    "gelu_accurate": gelu_tanh,
    "gelu_fast": gelu_fast,
    "gelu_new": gelu_tanh,
    "gelu_python": gelu,
    "gelu_python_tanh": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "hardswish": hardswish,
    "laplace": laplace,
    "leaky_relu": leaky_relu,
    "linear": lambda backend, x: x,
    "mish": mish,
    "prelu": prelu,
    "quick_gelu": quick_gelu,
    "relu": relu,
    "relu2": relu2,
    "relu6": relu6,
    "sigmoid": _sigmoid,
    "silu": silu,
    "sqrtsoftplus": sqrtsoftplus,
    "swish": silu,
    "tanh": lambda backend, x: backend.xp.tanh(x),
    "xielu": xielu,
}

# The learned parameters of an activation: name -> (shape, initial value), in the order of the arguments.
ACTIVATION_PARAMETERS: dict[str, dict[str, tuple[tuple[int, ...], float]]] = {
    "prelu": {"weight": ((1,), 0.25)},
    "xielu": {
        "alpha_p": ((1,), math.log(math.expm1(0.8))),
        "alpha_n": ((1,), math.log(math.expm1(0.8 - 0.5))),
        "beta": ((), 0.5),
        "eps": ((), -1e-6),
    },
}
