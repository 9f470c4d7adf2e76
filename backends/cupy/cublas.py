"""`gemmEx` of cuBLAS, also while a stream is being recorded, where CuPy's own refuses.

cuBLAS can be recorded; CuPy (14.2) does not try, and raises NotImplementedError.  The library that it has loaded is
then called without it, with the same handle.

Source: https://docs.nvidia.com/cuda/cublas, "CUDA Graphs Support", cublasSetWorkspace, cublasGemmEx.
"""

from __future__ import annotations

import ctypes
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np

from refimpl.backends.cupy.modules import cupy
from refimpl.errors import BackendError

#: Scratch of a recorded product: as much as cuBLAS takes by itself on Hopper.  Without it the graph would hold
#: allocations of its own.
_WORKSPACE = 32 << 20

# Which arguments of cublasGemmEx are addresses, the handle first; the others are ints.
_ADDRESSES = (0, 6, 7, 10, 13, 14)


def gemm_ex(*arguments: int) -> None:
    """cublasGemmEx on the current stream and device, by the arguments of CuPy's `gemmEx` after the handle."""
    cp = cupy()
    handle = cp.cuda.Device().cublas_handle
    try:
        cp.cuda.cublas.gemmEx(handle, *arguments)
    except NotImplementedError:
        _recorded(handle, arguments)


def _recorded(handle: int, arguments: tuple[int, ...]) -> None:
    cp, library = cupy(), _library()
    stream = ctypes.c_void_p(cp.cuda.get_current_stream().ptr)
    # Given back to the pool of the recorded step at once: what gets it next runs after this product.
    workspace = cp.empty(_WORKSPACE, np.uint8)
    given = [
        ctypes.c_void_p(argument) if place in _ADDRESSES else ctypes.c_int(argument)
        for place, argument in enumerate((handle, *arguments))
    ]
    _check(library.cublasSetStream_v2(given[0], stream))
    try:
        address, size = ctypes.c_void_p(workspace.data.ptr), ctypes.c_size_t(_WORKSPACE)
        _check(library.cublasSetWorkspace_v2(given[0], address, size))
        _check(library.cublasGemmEx(*given))
    finally:
        library.cublasSetStream_v2(given[0], stream)  # which takes the workspace away from the handle


@cache
def _library() -> Any:
    """cuBLAS itself; CuPy finds it by the same package."""
    found = import_module("cuda.pathfinder").load_nvidia_dynamic_lib("cublas")
    return ctypes.CDLL(found.abs_path)


def _check(status: int) -> None:
    if status:
        raise BackendError("cuBLAS cannot compute a recorded product", found=f"cublasStatus_t {status}")
