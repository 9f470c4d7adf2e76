"""A model with random weights, made in seconds however large it is.

One short block of random numbers is laid into every matrix again and again.  Products, caches and memory take
no notice; only the text such a model writes is worth nothing.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from refimpl.auto import AutoModelForCausalLM
from refimpl.backends import to_dtype
from refimpl.backends.base import Backend
from refimpl.backends.quantized import Int8Matrix, NF4Matrix, QuantizedMatrix
from refimpl.errors import ResourceLimitError
from refimpl.memory import memory_limit, readable
from refimpl.parameter import Parameter
from refimpl.quantization import QUANTIZED_DTYPES, BitsAndBytesConfig, kept_bytes, quantization_of

# A prime, so that no row of a matrix begins where another does, and small enough for a processor's cache.
_PERIOD = 1_048_573

# The deviations of the numbers below, as multiples of the largest: uniform ones, and the codes of NF4.
_UNIFORM, _NF4 = 0.58, 0.517


def weight_bytes(model: Any, weight_dtype: str | None) -> int:
    """What the weights of `model` (a skeleton is enough) take when its matrices are kept so."""
    kept, quantization = _form(weight_dtype, model.backend)
    needed = 0
    for parameter in model.named_parameters():
        packed = kept_bytes(parameter.key, parameter.shape, quantization)
        dtype = kept if parameter.is_matrix else model.backend.dtype
        needed += math.prod(parameter.shape) * dtype.itemsize if packed is None else packed
    return needed


def refuse_without_room(needed: int, what: str) -> None:
    """Raise ResourceLimitError when `needed` bytes are more than a program should take."""
    limit = memory_limit()
    if limit is not None and needed > limit:
        raise ResourceLimitError(
            f"this needs {readable(needed)} of memory",
            where=what,
            found=f"{readable(limit)} at most",
            allowed="80 % of what is free",
            hint="Nothing was allocated. Try a smaller --shape, a narrower --weight-dtype, or no peers.",
            requested=needed,
            limit=limit,
        )


def random_model(config: Any, backend: Backend, weight_dtype: str | None, seed: int = 0) -> Any:
    """The language model of `config`, its matrices kept in `weight_dtype` (None: the compute dtype).

    int8 and nf4 weights are made as a file of bitsandbytes holds them; nothing is quantized.
    Raises: ResourceLimitError before anything is allocated.
    """
    model = AutoModelForCausalLM.class_for(config, "config").skeleton(config, backend)
    refuse_without_room(weight_bytes(model, weight_dtype), type(model).__name__)
    kept, quantization = _form(weight_dtype, backend)
    source = _Source(abs(config.initializer_range) or 0.02, kept, seed)
    for parameter in model.named_parameters():
        if parameter.initial is not None:
            parameter.assign(np.full(parameter.shape, parameter.initial, backend.dtype), kept)
        else:
            parameter.assign(source.matrix(parameter, quantization), kept)
    return model


def _form(weight_dtype: str | None, backend: Backend) -> tuple[np.dtype, BitsAndBytesConfig | None]:
    """The dtype of matrices that are not quantized, and which ones are."""
    if weight_dtype is None or weight_dtype in QUANTIZED_DTYPES:
        return backend.dtype, quantization_of(weight_dtype, None)
    return to_dtype(weight_dtype), None


class _Source:
    """Random matrices with a given deviation."""

    def __init__(self, deviation: float, dtype: np.dtype, seed: int):
        rng = np.random.default_rng(seed)
        self._deviation = deviation
        self._numbers = (rng.standard_normal(_PERIOD, dtype=np.float32) * deviation).astype(dtype)
        self._int8 = rng.integers(-127, 128, _PERIOD, dtype=np.int8)
        self._bytes = rng.integers(0, 256, _PERIOD, dtype=np.uint8)
        self._offset = 0

    def matrix(
        self, parameter: Parameter, quantization: BitsAndBytesConfig | None
    ) -> np.ndarray | QuantizedMatrix:
        rows, columns = shape = parameter.shape
        form = None if quantization is None else quantization.kept_as(parameter.key)
        if form == "int8":
            units = np.full(rows, self._deviation / _UNIFORM, np.float32)
            return Int8Matrix(CB=self._fill(self._int8, math.prod(shape)).reshape(shape), SCB=units)
        if form == "nf4":
            count = math.prod(shape)
            absmax = np.full(-(-count // 64), self._deviation / _NF4, np.float32)
            return NF4Matrix(
                packed=self._fill(self._bytes, -(-count // 2)), absmax=absmax, shape=(rows, columns)
            )
        return self._fill(self._numbers, math.prod(shape)).reshape(shape)

    def _fill(self, block: np.ndarray, count: int) -> np.ndarray:
        """`count` numbers: the block again and again, going on where the last matrix ended."""
        filled = np.empty(count, block.dtype)
        done = 0
        while done < count:
            part = block[self._offset : self._offset + count - done]
            filled[done : done + part.size] = part
            done += part.size
            self._offset = (self._offset + part.size) % block.size
        return filled
