"""How the stand-in's operations are done: computed by NumPy, and the result copied into memory of the device.

While a stream captures, only the shape of a result is found out, and the computation is recorded.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.cuda_on_cpu.gpu import Device, forbid_while_capturing, gpu, refuse_while_capturing, submit
from tests.cuda_on_cpu.gpu import capturing as is_capturing
from tests.cuda_on_cpu.memory import MemoryPointer, alloc

SCALARS = (bool, int, float, complex, np.generic)


def check_dtype(dtype: Any) -> np.dtype:
    found = np.dtype(dtype)
    if found.kind not in "biufc" and found.name != "bfloat16":
        raise ValueError(f"Unsupported dtype {found}")
    return found


class Flags:
    def __init__(self, host: np.ndarray):
        self.c_contiguous = host.flags.c_contiguous
        self.f_contiguous = host.flags.f_contiguous
        self.owndata = host.base is None

    def __getitem__(self, name: str) -> bool:
        return getattr(self, name.lower())


class BaseArray:
    """Shape and strides as NumPy's; the numbers lie in memory of a device."""

    #: The class of every array that is made: `ndarray`, which derives from this one.
    made: type[BaseArray]

    def __init__(
        self,
        shape: Any,
        dtype: Any = float,
        memptr: MemoryPointer | None = None,
        strides: tuple[int, ...] | None = None,
        order: str = "C",
    ):
        dtype = check_dtype(dtype)
        shape = (operator.index(shape),) if not isinstance(shape, tuple | list) else tuple(shape)
        shape = tuple(operator.index(n) for n in shape)
        if any(n < 0 for n in shape):
            raise ValueError("Negative dimensions are not allowed")
        needed = math.prod(shape) * dtype.itemsize
        self.data = alloc(needed) if memptr is None else memptr
        room = self.data.mem.block.bytes[self.data.offset :]
        self._host = np.ndarray(shape, dtype, room, strides=strides, order="F" if order == "F" else "C")

    @classmethod
    def _view(cls, host: np.ndarray, data: MemoryPointer) -> BaseArray:
        """`host` lies in the memory of `data`."""
        array = cls.__new__(cls)
        array._host = host
        offset = host.__array_interface__["data"][0] - data.mem.ptr if host.size else data.offset
        array.data = MemoryPointer(data.mem, offset)
        return array

    # --- what it is ----------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, ...]:
        return self._host.shape

    @property
    def strides(self) -> tuple[int, ...]:
        return self._host.strides

    @property
    def dtype(self) -> np.dtype:
        return self._host.dtype

    @property
    def ndim(self) -> int:
        return self._host.ndim

    @property
    def size(self) -> int:
        return self._host.size

    @property
    def nbytes(self) -> int:
        return self._host.nbytes

    @property
    def itemsize(self) -> int:
        return self._host.itemsize

    @property
    def flags(self) -> Flags:
        return Flags(self._host)

    @property
    def device(self) -> Device:
        return Device(self.data.device_id)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "strides": self.strides,
            "data": (self.data.ptr, False),
            "version": 3,
        }


def refuse_host_arrays(values: Any) -> None:
    for value in values:
        if isinstance(value, np.ndarray):
            raise TypeError(f"Unsupported type {type(value)}")
        if isinstance(value, list | tuple):
            refuse_host_arrays(value)


def host_of(value: Any) -> Any:
    """The numbers of an array as NumPy sees them; anything else stays as it is."""
    if isinstance(value, BaseArray):
        return value._host
    if isinstance(value, list | tuple):
        return type(value)(map(host_of, value))
    return value


def check_devices(*values: Any) -> None:
    for value in values:
        if isinstance(value, list | tuple):
            check_devices(*value)
        elif isinstance(value, BaseArray) and value.data.device_id != gpu().current_device:
            raise ValueError(
                "Array device must be same as the current device: "
                f"array device = {value.data.device_id} while current = {gpu().current_device}"
            )


def _shape_only(value: Any) -> Any:
    """Zeros in place of arrays: what is in them is not known while a stream captures."""
    if isinstance(value, BaseArray):
        return np.zeros(value.shape, value.dtype)
    if isinstance(value, list | tuple):
        return type(value)(map(_shape_only, value))
    return value


def view_of(array: BaseArray, host: np.ndarray) -> BaseArray:
    return BaseArray.made._view(host, array.data)


def view_or_copy(array: BaseArray, change: Callable[[np.ndarray], np.ndarray]) -> BaseArray:
    changed = change(array._host)
    if not changed.size or np.may_share_memory(changed, array._host):
        return view_of(array, changed)
    return compute(change, array)


def compute(function: Callable[..., Any], *values: Any, out: Any = None, order: str = "C") -> Any:
    """What `function` makes of the numbers of `values`, as an array of the device (a tuple of them for a tuple).

    `order` "K": with the strides of what `function` makes; otherwise contiguous, as kernels of CuPy write.
    """
    refuse_host_arrays(values)
    check_devices(*values, out)
    hosts = host_of(values)

    def run(given: Any) -> Any:
        with np.errstate(all="ignore"):
            return function(*given)

    if is_capturing():
        result = run(_shape_only(values))
    else:
        result = run(hosts)
    many = isinstance(result, tuple | list)
    results = [np.asarray(part) for part in (result if many else [result])]
    if out is not None:
        if not isinstance(out, BaseArray):
            raise TypeError("return arrays must be of ArrayType")
        if out.shape != results[0].shape:
            raise ValueError(f"Out shape is mismatched: {out.shape}, {results[0].shape}")
        targets = [out]
    else:
        targets = [_like(part, order) for part in results]

    def write(parts: list[Any]) -> None:
        for target, part in zip(targets_of_host, parts, strict=True):
            with np.errstate(all="ignore"):
                np.copyto(target, part, casting="same_kind")

    targets_of_host = [target._host for target in targets]
    if is_capturing():

        def step() -> None:
            made = run(hosts)
            write([np.asarray(part) for part in (made if many else [made])])

        submit(step)
    else:
        write(results)
    return tuple(targets) if many else targets[0]


def _like(host: np.ndarray, order: str) -> BaseArray:
    if order == "K" and host.flags.forc:
        return BaseArray.made(host.shape, host.dtype, order="F" if not host.flags.c_contiguous else "C")
    if order == "K":
        axes = sorted(range(host.ndim), key=lambda axis: -abs(host.strides[axis]))
        dense = BaseArray.made(tuple(host.shape[axis] for axis in axes), host.dtype)
        return view_of(dense, dense._host.transpose(np.argsort(axes)))
    return BaseArray.made(host.shape, host.dtype)


def from_host(value: Any, dtype: Any = None, order: str | None = None) -> BaseArray:
    """A copy of numbers of the host."""
    host = np.array(value, dtype, order=order or "K")  # type: ignore[call-overload]
    check_dtype(host.dtype)
    forbid_while_capturing()
    gpu().uploads += 1
    array = _like(host, "K")
    array._host[...] = host
    return array


def elementwise(ufunc: Any, *values: Any, out: Any = None, **options: Any) -> Any:
    """`compute` for a ufunc.

    Numbers of Python have no type of their own beside bfloat16 either, and its products stay bfloat16: what NumPy does
    with the dtypes of ml_dtypes differs from CuPy there.
    """
    if ufunc is np.matmul:
        refuse_while_capturing()
    arrays = [value for value in values if isinstance(value, BaseArray)]
    narrow = arrays[0].dtype if arrays and all(a.dtype.name == "bfloat16" for a in arrays) else None
    if narrow is None:
        return compute(lambda *hosts: ufunc(*hosts, **options), *values, out=out)
    weak = (bool, int, float)
    values = tuple(narrow.type(v) if isinstance(v, weak) else v for v in values)
    if ufunc is np.matmul:
        return compute(lambda *hosts: ufunc(*hosts, **options).astype(narrow), *values, out=out)
    return compute(lambda *hosts: ufunc(*hosts, **options), *values, out=out)
