"""The cupy backend: the operations of `refimpl.backends.base` on an NVIDIA GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cupy
import numpy as np

from refimpl.backends import to_dtype
from refimpl.backends.base import Array, Backend
from refimpl.backends.cupy import attention, device, elementwise, products, transfer
from refimpl.backends.cupy.graph import RecordedStep
from refimpl.backends.likeliest import likeliest
from refimpl.backends.mask import AttentionMask
from refimpl.backends.panels import PanelMatrix, lies_in_panels, out_of_panels, unpacked_bytes
from refimpl.backends.quantized import QuantizedMatrix
from refimpl.errors import BackendError, quote

#: So many rows are read like one: the time goes into reading weights, and nothing is rounded to gain any.
FEW_ROWS = products.FEW_ROWS

#: In what the kernels read weights that are not quantized.
_WEIGHT_DTYPES = ("float32", "float16", "bfloat16")


class CuPyBackend(Backend):
    """Kernels and cuBLAS for float32; what has no kernel (float64, a mask of the caller's own) is computed by the
    definition.

    Every result is the same from run to run on one card.  With `matmul_dtype` ("float16" or "bfloat16") products of
    many rows are of rounded factors: what only products read (norms, activations, rotated keys, the context of
    attention) is then returned in that dtype, and keys and values are kept in it.

    Arrays of the host are taken by `asarray` and `weight` alone, and given by `to_numpy` alone.  Each of these, and
    each operation, makes the backend's device the current one of the thread.
    """

    name = "cupy"
    xp = cupy
    copies_weights = True

    def __init__(
        self,
        dtype: np.dtype,
        device: str | None = None,
        threads: int | None = None,
        matmul_dtype: str | None = None,
    ):
        if threads is not None:
            raise BackendError(
                "a GPU has no threads to choose",
                where="threads",
                found=quote(threads),
                hint='Leave it out, or say backend="numba".',
            )
        super().__init__(dtype)
        self._compiled = dtype == np.float32
        if matmul_dtype is not None and not self._compiled:
            raise BackendError(
                "matrix products can be rounded only where float32 is computed",
                where="matmul_dtype",
                found=quote(str(dtype)),
                allowed="dtype float32",
            )
        self._index = _open(device)
        self.device = f"cuda:{self._index}"
        self.matmul_dtype = matmul_dtype
        halves = matmul_dtype in ("float16", "bfloat16")
        self.cache_dtype = to_dtype(matmul_dtype) if halves and matmul_dtype else None

    def _enter(self) -> None:
        """Make this backend's device the current one."""
        if cupy.cuda.runtime.getDevice() != self._index:
            cupy.cuda.runtime.setDevice(self._index)

    def _reads(self, weight: Array) -> bool:
        """Whether the kernels read a weight of this form."""
        return self._compiled and (isinstance(weight, QuantizedMatrix) or weight.dtype.name in _WEIGHT_DTYPES)

    def _result_dtype(self, rows: int) -> np.dtype:
        """In what an operation returns what only products read."""
        return self.dtype if self.cache_dtype is None or rows <= FEW_ROWS else self.cache_dtype

    # --- arrays in and out ---------------------------------------------------------------------

    def asarray(self, array: Array, dtype: Any = None) -> Array:
        self._enter()
        return cupy.asarray(array, dtype=dtype)

    def weight(self, array: np.ndarray | PanelMatrix | QuantizedMatrix, weight_dtype: Any = None) -> Array:
        self._enter()
        if isinstance(array, QuantizedMatrix):
            moved = array.map_arrays(lambda part: transfer.upload(cupy, out_of_panels(part)))
            return products.prepared(moved) if self._compiled else moved
        source = out_of_panels(array)
        if isinstance(source, cupy.ndarray):
            source = cupy.asnumpy(source)
        kept = transfer.upload(cupy, source, weight_dtype)
        transfer.refuse_infinite(cupy, kept, source)
        return kept

    def copied_bytes(self, array: np.ndarray | PanelMatrix | QuantizedMatrix) -> int:
        size = array.nbytes
        if lies_in_panels(array):
            part = getattr(array, "CB", getattr(array, "packed", array))
            size += unpacked_bytes(array) - part.nbytes
        if isinstance(array, QuantizedMatrix) and self._compiled:
            size += products.prepared_bytes(array)
        return size

    def to_numpy(self, array: Array) -> Any:
        if isinstance(array, QuantizedMatrix):
            return array.map_arrays(self.to_numpy)
        self._enter()
        return cupy.asnumpy(array)

    def synchronize(self) -> None:
        cupy.cuda.Device(self._index).synchronize()

    def free_memory(self) -> int | None:
        return device.free_memory(cupy, self._index)

    # --- the operations ------------------------------------------------------------------------

    def embedding(self, ids: Array, weight: Array) -> Array:
        self._enter()
        if not self._reads(weight):
            return super().embedding(ids, weight)
        return elementwise.embedding(ids, weight)

    def linear(self, x: Array, weight: Array, bias: Array | None = None) -> Array:
        self._enter()
        if not self._reads(weight):
            return super().linear(x.astype(self.dtype, copy=False), weight, bias)
        return products.linear(x, weight, bias, self.matmul_dtype)

    def layer_norm(self, x: Array, weight: Array, bias: Array, eps: float) -> Array:
        self._enter()
        if not self._compiled:
            return super().layer_norm(x, weight, bias, eps)
        return elementwise.layer_norm(x, weight, bias, eps, self._result_dtype(x.size // x.shape[-1]))

    def activation(self, x: Array, name: str, parameters: tuple[Array, ...] = ()) -> Array:
        self._enter()
        if not self._compiled or name not in elementwise.ACTIVATIONS:
            return super().activation(x, name, parameters)
        return elementwise.activation(x, name, self._result_dtype(x.size // x.shape[-1]))

    def rotary(self, x: Array, cos: Array, sin: Array) -> Array:
        self._enter()
        if not self._compiled:
            return super().rotary(x, cos, sin)
        return elementwise.rotary(x, cos, sin, self._result_dtype(x.shape[0] * x.shape[2]))

    def softmax(self, scores: Array, visible: Array | None = None) -> Array:
        self._enter()
        return super().softmax(scores, visible)

    def attention(
        self,
        query: Array,
        key: Array,
        value: Array,
        mask: AttentionMask,
        scale: float,
        need_weights: bool = False,
    ) -> tuple[Array, Array | None]:
        self._enter()
        too_wide = query.shape[3] > attention.LARGEST_HEAD_DIM
        has_kernel = self._compiled and mask.bias is None and not too_wide
        context = weights = None
        if need_weights or not has_kernel:
            wide = query.astype(self.dtype, copy=False)
            context, weights = super().attention(wide, key, value, mask, scale, need_weights)
        # Also beside the definition's weights: the context is the same whether they are asked for or not.
        if has_kernel:
            result = self._result_dtype(query.shape[0] * query.shape[2])
            context = attention.attend(query, key, value, mask, scale, result)
        return context, weights

    # --- no operations of their own ------------------------------------------------------------

    def store(
        self, key_storage: Array, value_storage: Array, key: Array, value: Array, at: int | Array
    ) -> None:
        self._enter()
        if self._compiled:
            elementwise.store(key_storage, value_storage, key, value, at)
        else:
            where = at + cupy.arange(key.shape[2])
            key_storage[:, :, where], value_storage[:, :, where] = key, value

    def recorded(self, step: Callable[[], Array]) -> Callable[[], Array]:
        """`step`, recorded as one CUDA graph (see `graph.py`).  For `refimpl.generation.repeated_step`.

        By the definitions it is computed each time: CuPy's own products cannot be recorded.
        """
        self._enter()
        return RecordedStep(step) if self._compiled else step

    def likeliest(self, logits: Array) -> Array:
        """The greedy choice on the device.  [rows, vocab] -> int64 [rows]"""
        self._enter()
        return elementwise.likeliest(logits) if self._compiled else likeliest(cupy, logits)


def _open(name: str | None) -> int:
    """The number of the device; from now on a full one says so."""
    index = device.open_device(name)
    device.tell_when_full(cupy)
    return index
