"""Arrays of the pretended GPUs, over NumPy's, and as strict as CuPy's.

Nothing becomes an array of the host by accident, no array of the host takes part in an operation, and what makes the
host wait is counted.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tests.cuda_on_cpu.computing import (
    SCALARS,
    BaseArray,
    check_devices,
    check_dtype,
    compute,
    elementwise,
    from_host,
    host_of,
    refuse_host_arrays,
    view_of,
    view_or_copy,
)
from tests.cuda_on_cpu.gpu import forbid_while_capturing, gpu, submit, wait


class ndarray(BaseArray):  # its name in CuPy
    __array_priority__ = 100
    __hash__ = None  # type: ignore[assignment]

    def __len__(self) -> int:
        return len(self._host)

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))

    # --- to the host and from it ---------------------------------------------------------------

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. "
            "Please use `.get()` to construct a NumPy array explicitly."
        )

    def get(self, stream: Any = None, order: str = "C", out: Any = None, blocking: bool = True) -> np.ndarray:
        if blocking:
            wait()
        else:
            forbid_while_capturing()
        if out is None:
            return np.array(self._host, order=order)  # type: ignore[call-overload]
        out[...] = self._host
        return out

    def set(self, arr: np.ndarray, stream: Any = None) -> None:
        if not isinstance(arr, np.ndarray):
            raise TypeError("Only numpy.ndarray can be set to cupy.ndarray")
        if self.dtype != arr.dtype:
            raise TypeError(f"{arr.dtype} array cannot be set to {self.dtype} array")
        if self.shape != arr.shape:
            raise ValueError(f"Shape mismatch. Old shape: {self.shape}, new shape: {arr.shape}")
        forbid_while_capturing()
        gpu().uploads += 1
        self._host[...] = arr

    def item(self) -> Any:
        wait()
        return self._host.item()

    def tolist(self) -> Any:
        wait()
        return self._host.tolist()

    def tobytes(self, order: str = "C") -> bytes:
        return self.get().tobytes(order)  # type: ignore[arg-type]

    def __bool__(self) -> bool:
        wait()
        return bool(self._host)

    def __int__(self) -> int:
        wait()
        return int(self._host)

    def __float__(self) -> float:
        wait()
        return float(self._host)

    def __index__(self) -> int:
        wait()
        return operator.index(self._host)

    def __repr__(self) -> str:
        wait()
        return repr(self._host)

    # --- other shapes of the same numbers ------------------------------------------------------

    @property
    def T(self) -> Any:
        return view_of(self, self._host.T)

    @property
    def mT(self) -> Any:
        return view_of(self, self._host.mT)

    def reshape(self, *shape: Any, order: str = "C", copy: Any = None) -> Any:
        shape = tuple(shape[0]) if len(shape) == 1 and isinstance(shape[0], tuple | list) else shape
        return view_or_copy(self, lambda host: host.reshape(shape, order=order))

    def ravel(self, order: str = "C") -> Any:
        return view_or_copy(self, lambda host: host.ravel(order))

    def transpose(self, *axes: Any) -> Any:
        return view_of(self, self._host.transpose(*axes))

    def swapaxes(self, axis1: int, axis2: int) -> Any:
        return view_of(self, self._host.swapaxes(axis1, axis2))

    def squeeze(self, axis: Any = None) -> Any:
        return view_of(self, self._host.squeeze(axis))

    def diagonal(self, offset: int = 0, axis1: int = 0, axis2: int = 1) -> Any:
        return view_of(self, self._host.diagonal(offset, axis1, axis2))

    def view(self, dtype: Any = None, type: Any = None) -> Any:
        return view_of(self, self._host.view() if dtype is None else self._host.view(check_dtype(dtype)))

    def flatten(self, order: str = "C") -> Any:
        return compute(lambda host: host.flatten(order), self)

    def copy(self, order: str = "C") -> Any:
        return compute(lambda host: host.copy(order), self, order="K")

    def astype(
        self, dtype: Any, order: str = "K", casting: Any = None, subok: Any = None, copy: bool = True
    ) -> Any:
        dtype = check_dtype(dtype)
        if not copy and dtype == self.dtype and order in ("K", "A"):
            return self
        return compute(lambda host: host.astype(dtype, order=order), self, order="K")

    # --- reading and writing parts -------------------------------------------------------------

    def __getitem__(self, index: Any) -> Any:
        parts = index if isinstance(index, tuple) else (index,)
        arrays = [part for part in parts if isinstance(part, ndarray | list)]
        refuse_host_arrays(parts)
        if not arrays:
            whole = parts if any(part is Ellipsis for part in parts) else (*parts, ...)
            return view_of(self, self._host[whole])
        parts = tuple(from_host(part) if isinstance(part, list) else part for part in parts)
        masks = [part for part in parts if isinstance(part, ndarray) and part.dtype == bool]
        if masks:
            wait()  # how many there are is known to the device only
        return compute(lambda host, *rest: host[rest], self, *parts)

    def __setitem__(self, index: Any, value: Any) -> None:
        parts = index if isinstance(index, tuple) else (index,)
        refuse_host_arrays((*parts, value))
        if not isinstance(value, (*SCALARS, ndarray)):
            raise TypeError(f"Unsupported type {type(value)}")
        parts = tuple(from_host(part) if isinstance(part, list) else part for part in parts)
        check_devices(self, value, *parts)
        into, number, where = self._host, host_of(value), tuple(map(host_of, parts))

        def write() -> None:
            with np.errstate(all="ignore"):
                into[where] = number

        submit(write)

    def fill(self, value: Any) -> None:
        self[...] = value

    # --- reductions and the like ---------------------------------------------------------------

    def max(self, axis: Any = None, out: Any = None, keepdims: bool = False) -> Any:
        return compute(lambda host: np.max(host, axis, keepdims=keepdims), self, out=out)

    def min(self, axis: Any = None, out: Any = None, keepdims: bool = False) -> Any:
        return compute(lambda host: np.min(host, axis, keepdims=keepdims), self, out=out)

    def sum(self, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: bool = False) -> Any:
        return compute(lambda host: np.sum(host, axis, dtype, keepdims=keepdims), self, out=out)

    def prod(self, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: bool = False) -> Any:
        return compute(lambda host: np.prod(host, axis, dtype, keepdims=keepdims), self, out=out)

    def mean(self, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: bool = False) -> Any:
        return compute(lambda host: np.mean(host, axis, dtype, keepdims=keepdims), self, out=out)

    def var(
        self, axis: Any = None, dtype: Any = None, out: Any = None, ddof: int = 0, keepdims: bool = False
    ) -> Any:
        return compute(lambda host: np.var(host, axis, dtype, ddof=ddof, keepdims=keepdims), self, out=out)

    def std(
        self, axis: Any = None, dtype: Any = None, out: Any = None, ddof: int = 0, keepdims: bool = False
    ) -> Any:
        return compute(lambda host: np.std(host, axis, dtype, ddof=ddof, keepdims=keepdims), self, out=out)

    def all(self, axis: Any = None, out: Any = None, keepdims: bool = False) -> Any:
        return compute(lambda host: np.all(host, axis, keepdims=keepdims), self, out=out)

    def any(self, axis: Any = None, out: Any = None, keepdims: bool = False) -> Any:
        return compute(lambda host: np.any(host, axis, keepdims=keepdims), self, out=out)

    def argmax(self, axis: Any = None, out: Any = None, dtype: Any = None, keepdims: bool = False) -> Any:
        return compute(lambda host: _numbers(np.argmax(host, axis, keepdims=keepdims), dtype), self, out=out)

    def argmin(self, axis: Any = None, out: Any = None, dtype: Any = None, keepdims: bool = False) -> Any:
        return compute(lambda host: _numbers(np.argmin(host, axis, keepdims=keepdims), dtype), self, out=out)

    def cumsum(self, axis: Any = None, dtype: Any = None, out: Any = None) -> Any:
        return compute(lambda host: np.cumsum(host, axis, dtype), self, out=out)

    def argsort(self, axis: Any = -1, kind: Any = None) -> Any:
        return compute(lambda host: np.argsort(host, axis, kind="stable"), self)

    def take(self, indices: Any, axis: Any = None, out: Any = None) -> Any:
        return compute(lambda host, which: np.take(host, which, axis), self, indices, out=out)

    def repeat(self, repeats: Any, axis: Any = None) -> Any:
        return compute(lambda host: np.repeat(host, repeats, axis), self)

    def clip(self, min: Any = None, max: Any = None, out: Any = None) -> Any:
        return compute(np.clip, self, min, max, out=out)

    # --- the protocols of NumPy ----------------------------------------------------------------

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        """`np.exp(array)` is `cupy.exp(array)`; with an array of the host among the inputs it is an error."""
        if method != "__call__" or any(not isinstance(i, (*SCALARS, ndarray)) for i in inputs):
            return NotImplemented
        out = options.pop("out", (None,))
        return elementwise(ufunc, *inputs, out=out[0], **options)


def _numbers(positions: Any, dtype: Any) -> Any:
    return np.asarray(positions, np.int64 if dtype is None else dtype)


BaseArray.made = ndarray
ndarray.__module__ = "cupy"


# --- operators ---------------------------------------------------------------------------------------


def _operator(ufunc: np.ufunc) -> tuple[Callable, Callable, Callable]:
    def checked(other: Any) -> bool:
        if isinstance(other, np.ndarray):
            raise TypeError(f"Unsupported type {type(other)}")
        return isinstance(other, (*SCALARS, ndarray))

    def forward(self: ndarray, other: Any) -> Any:
        return elementwise(ufunc, self, other) if checked(other) else NotImplemented

    def backward(self: ndarray, other: Any) -> Any:
        return elementwise(ufunc, other, self) if checked(other) else NotImplemented

    def in_place(self: ndarray, other: Any) -> Any:
        return elementwise(ufunc, self, other, out=self) if checked(other) else NotImplemented

    return forward, backward, in_place


_OPERATORS = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "truediv": np.true_divide,
    "floordiv": np.floor_divide,
    "mod": np.remainder,
    "pow": np.power,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "lshift": np.left_shift,
    "rshift": np.right_shift,
    "matmul": np.matmul,
}
for _name, _ufunc in _OPERATORS.items():
    for _prefix, _function in zip(("", "r", "i"), _operator(_ufunc), strict=True):
        setattr(ndarray, f"__{_prefix}{_name}__", _function)
for _name, _ufunc in {
    "lt": np.less,
    "le": np.less_equal,
    "eq": np.equal,
    "ne": np.not_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}.items():
    setattr(ndarray, f"__{_name}__", _operator(_ufunc)[0])
for _name, _ufunc in {
    "neg": np.negative,
    "pos": np.positive,
    "abs": np.absolute,
    "invert": np.invert,
}.items():
    setattr(ndarray, f"__{_name}__", lambda self, _ufunc=_ufunc: compute(_ufunc, self))
