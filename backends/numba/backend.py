"""The numba backend: the operations of `refimpl.backends.base`, compiled for the processor at hand."""

from __future__ import annotations

from typing import Any

import numpy as np

from refimpl.backends import to_dtype
from refimpl.backends.base import Array, Backend
from refimpl.backends.mask import AttentionMask
from refimpl.backends.numba import amx, attention, cpu, digits, elementwise, products, rounded
from refimpl.backends.numba.packed import (
    PackedInt8,
    PackedMatrix,
    PackedQuantized,
    aligned_empty,
    pack,
    scale_bytes,
)
from refimpl.backends.numba.regions import pool_of
from refimpl.backends.panels import QUAD, PanelMatrix, lies_in_panels
from refimpl.backends.quantized import QuantizedMatrix
from refimpl.errors import BackendError, quote

#: The dtypes of cached keys and values that the kernel of attention reads, and as what.
_CACHED = {np.dtype(np.float32): np.float32, np.dtype(np.float16): np.int16, to_dtype("bfloat16"): np.uint16}

#: Stands for "every key is visible" in the kernel of attention.
_ALL = np.ones((0, 0), np.bool_)


class NumbaBackend(Backend):
    """Kernels for float32; what has none (float64, a mask of the caller's own) is computed by the definition.

    Every number is computed in one order, whatever the number of threads and rows: a token gets the same bits
    alone and in a batch, in a prompt and after a cache, with padding and without.  With `matmul_dtype` ("bfloat16",
    see `rounded.py`, or "int8", see `digits.py`) products of many rows are of rounded numbers, and a prompt gets other
    bits than its tokens one by one.
    """

    name = "numba"
    xp = np

    def __init__(
        self,
        dtype: np.dtype,
        device: str | None = None,
        threads: int | None = None,
        matmul_dtype: str | None = None,
    ):
        if device not in (None, "cpu"):
            raise BackendError("the numba backend has one device", found=quote(device), allowed="cpu")
        if threads is not None and (type(threads) is not int or not 1 <= threads <= 1024):
            raise BackendError(
                "not a number of threads", where="threads", found=quote(threads), allowed="1 to 1024"
            )
        super().__init__(dtype)
        self.threads = threads
        self._pool = pool_of(threads)
        self._compiled = self.copies_weights = dtype == np.float32
        if matmul_dtype is not None and not self._compiled:
            raise BackendError(
                "matrix products can be rounded only where float32 is computed",
                where="matmul_dtype",
                found=quote(str(dtype)),
                allowed="dtype float32",
            )
        self.matmul_dtype = matmul_dtype
        self._unit = amx.shapes() if self._compiled and cpu.has_tiles() else None

    def weight(self, array: np.ndarray | PanelMatrix | QuantizedMatrix, weight_dtype: Any = None) -> Array:
        if not self._compiled:
            return super().weight(array, weight_dtype)
        stays = lies_in_panels(array) and (
            isinstance(array, QuantizedMatrix) or weight_dtype in (None, array.dtype)
        )
        return pack(array if stays else super().weight(array, weight_dtype), self._pool)

    def copied_bytes(self, array: np.ndarray | PanelMatrix | QuantizedMatrix) -> int:
        if not self._compiled or not lies_in_panels(array):
            return super().copied_bytes(array)
        return scale_bytes(array) if isinstance(array, QuantizedMatrix) else 0

    def to_numpy(self, array: Array) -> Any:
        packed = isinstance(array, PackedMatrix | PackedQuantized)
        return super().to_numpy(array.unpacked() if packed else array)

    def linear(self, x: Array, weight: Array, bias: Array | None = None) -> Array:
        if not isinstance(weight, PackedMatrix | PackedQuantized):
            return super().linear(x, weight, bias)
        out, length = weight.shape
        rows = x.size // length
        padded = weight.panels.shape[0] * weight.panels.shape[2]
        # One row is too short for the place to matter, and finding one takes longer.
        y = np.empty((1, padded), np.float32) if rows == 1 else aligned_empty((rows, padded), np.float32)
        inside = bias if padded == out else None
        pool, flat = self._pool.ready(), np.ascontiguousarray(x).reshape(rows, length)
        count = self._digits(rows) if isinstance(weight, PackedInt8) else 0
        if isinstance(weight, PackedInt8) and not count and length % QUAD:
            flat = np.pad(flat, ((0, 0), (0, -length % QUAD)))  # for whole words of weights
        kept = weight.panels, weight.code, weight.scale, weight.block
        if count:
            digits.multiply_in_digits(pool, flat, count, weight.panels, weight.scale, self._unit, inside, y)
        elif rows == 1:
            products.multiply_one_row(pool, flat, *kept, inside, y)
        elif rows < products.MANY_ROWS:
            products.multiply_few_rows(pool, flat, *kept, inside, y)
        elif self.matmul_dtype == "bfloat16":
            rounded.multiply_in_bfloat16(pool, flat, *kept, self._unit, inside, y)
        else:
            products.multiply_many_rows(pool, flat, *kept, inside, y)
        if padded != out:
            y = np.ascontiguousarray(y[:, :out])
            if bias is not None:
                y += bias
        return y.reshape(*x.shape[:-1], out)

    def _digits(self, rows: int) -> int:
        """In how many digits so many rows are multiplied by int8 weights; 0: in no whole numbers."""
        if self.matmul_dtype is not None and rows >= products.MANY_ROWS:
            return 1 if self.matmul_dtype == "int8" else 0
        return digits.DIGITS if self._unit is not None else 0

    def layer_norm(self, x: Array, weight: Array, bias: Array, eps: float) -> Array:
        if not self._compiled:
            return super().layer_norm(x, weight, bias, eps)
        x = np.ascontiguousarray(x)
        y = np.empty_like(x)
        flat = (-1, x.shape[-1])
        elementwise.layer_norm(
            self._pool.ready(), x.reshape(flat), weight, bias, np.float32(eps), y.reshape(flat)
        )
        return y

    def activation(self, x: Array, name: str, parameters: tuple[Array, ...] = ()) -> Array:
        which = elementwise.ACTIVATIONS.get(name)
        if which is None or not self._compiled:
            return super().activation(x, name, parameters)
        x = np.ascontiguousarray(x)
        y = np.empty_like(x)
        elementwise.activate(self._pool.ready(), which, x.reshape(-1), y.reshape(-1))
        return y

    def rotary(self, x: Array, cos: Array, sin: Array) -> Array:
        if not self._compiled:
            return super().rotary(x, cos, sin)
        y = np.empty(x.shape, np.float32)
        elementwise.rotate(self._pool.ready(), x, cos, sin, y)
        return y

    def attention(
        self,
        query: Array,
        key: Array,
        value: Array,
        mask: AttentionMask,
        scale: float,
        need_weights: bool = False,
    ) -> tuple[Array, Array | None]:
        if not self._compiled or mask.bias is not None or key.dtype not in _CACHED:
            return super().attention(query, key, value, mask, scale, need_weights)
        context = np.empty(query.shape, np.float32)
        attention.attend(
            self._pool.ready(),
            np.ascontiguousarray(query),
            _readable(key),
            _readable(value),
            _ALL if mask.key_visible is None else np.ascontiguousarray(mask.key_visible),
            mask.offset,
            np.float32(scale),
            context,
        )
        # The definition's weights beside it, so that the context is the same whether they are asked for or not.
        weights = super().attention(query, key, value, mask, scale, True)[1] if need_weights else None
        return context, weights


def _readable(array: np.ndarray) -> np.ndarray:
    """Cached keys or values as `attention.attend` reads them: with rows that lie together (a copy where they do not),
    and numbers of 16 bits as their bits."""
    array = array if array.strides[-1] == array.itemsize else np.ascontiguousarray(array)
    return array.view(_CACHED[array.dtype])
