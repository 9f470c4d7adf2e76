"""Kernels from their sources: compiled by NVRTC when they are first asked for, once for each device.

The one place that imports `cupy`, and only when it is called: the package can be read where there is none.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import resources
from typing import Any

import numpy as np

Array = Any

#: Bytes of shared memory that a kernel may ask for without being allowed more.
_PLAIN_SHARED = 48 * 1024

_OPTIONS = ("-std=c++17",)

_INCLUDE = re.compile(r'^#include "([\w.]+)"\n', re.MULTILINE)

_kernels: dict[tuple[int, str, str], Kernel] = {}
_properties: dict[int, tuple[int, int]] = {}


def cupy() -> Any:
    """The module `cupy`."""
    import cupy

    return cupy


class Kernel:
    """A compiled kernel on one device."""

    def __init__(self, function: Any):
        self._function = function
        self._shared = _PLAIN_SHARED

    def launch(
        self,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        *arguments: Any,
        shared: int = 0,
    ) -> None:
        """Run `grid` blocks of `block` threads on the current stream, with `shared` bytes of dynamic shared memory.

        Arguments are arrays (their first element's address is passed), NumPy scalars of exactly the type that the
        kernel declares, and None, which is a null pointer.
        """
        if shared > self._shared:
            self._function.max_dynamic_shared_size_bytes = self._shared = shared
        self._function(grid, block, tuple(_NULL if a is None else a for a in arguments), shared_mem=shared)


_NULL = np.uintp(0)


def kernel(file: str, expression: str) -> Kernel:
    """A kernel of `kernels/<file>.cu` on the current device: `kernel("products", "matvec<float16, 4>")`."""
    cp = cupy()
    key = (cp.cuda.runtime.getDevice(), file, expression)
    found = _kernels.get(key)
    if found is None:
        module = cp.RawModule(
            code=source(file), backend="nvrtc", options=_OPTIONS, name_expressions=(expression,)
        )
        found = _kernels[key] = Kernel(module.get_function(expression))
    return found


@cache
def source(file: str) -> str:
    """The text of `kernels/<file>.cu` with its headers pasted in, each where it is first included.

    A header `x.cuh` lies between the lines `// x.cuh begin` and `// x.cuh end`.
    """
    pasted: set[str] = set()

    def read(name: str) -> str:
        text = (resources.files(__package__) / "kernels" / name).read_text(encoding="utf-8")
        return _INCLUDE.sub(paste, text)

    def paste(include: re.Match[str]) -> str:
        name = include[1]
        if name in pasted:
            return ""
        pasted.add(name)
        return f"// {name} begin\n{read(name)}// {name} end\n"

    return read(f"{file}.cu")


def capability() -> int:
    """The compute capability of the current device: 70, 80, 90 ..."""
    return _of_device()[0]


def multiprocessors() -> int:
    """How many multiprocessors the current device has."""
    return _of_device()[1]


def _of_device() -> tuple[int, int]:
    index = cupy().cuda.runtime.getDevice()
    if index not in _properties:
        device = cupy().cuda.Device(index)
        _properties[index] = int(device.compute_capability), device.attributes["MultiProcessorCount"]
    return _properties[index]


#: The names that kernels have for the dtypes of arrays.
_TYPE_NAMES = {
    "float32": "float",
    "float16": "float16",
    "bfloat16": "bfloat16",
    "int8": "signed char",
    "uint8": "unsigned char",
}


def type_name(dtype: Any) -> str:
    """What a dtype is called in the kernels: "float", "float16", "bfloat16", "signed char", "unsigned char"."""
    return _TYPE_NAMES[dtype.name]
