"""What CuPy reaches of CUDA's libraries: the runtime, NVRTC with kernels from their text, and cuBLAS."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np

from tests.cuda_on_cpu.arrays import ndarray
from tests.cuda_on_cpu.gpu import (
    CUDADriverError,
    CUDARuntimeError,
    Device,
    Stream,
    capturing,
    check_device,
    current_stream,
    forbid_while_capturing,
    gpu,
    refuse_while_capturing,
    submit,
)
from tests.cuda_on_cpu.memory import memory_at
from tests.cuda_on_cpu.runner import CompileError, Kernel, Pointer, compile_kernels

# --- cupy.cuda.runtime -------------------------------------------------------------------------------

CUDA_R_32F, CUDA_R_64F, CUDA_R_16F, CUDA_R_8I, CUDA_R_16BF = 0, 1, 2, 3, 14


def getDeviceCount() -> int:
    if gpu().driver_version // 1000 < gpu().runtime_version // 1000:
        raise CUDARuntimeError(35)
    if gpu().devices == 0:
        raise CUDARuntimeError(100)
    return gpu().devices


def getDevice() -> int:
    return gpu().current_device


def setDevice(device: int) -> None:
    check_device(device)
    gpu().current_device = device


def getDeviceProperties(device: int) -> dict[str, Any]:
    """Of the many properties the name, which is text of C."""
    check_device(device)
    return {"name": b"a GPU on the CPU"}


def driverGetVersion() -> int:
    return gpu().driver_version


def runtimeGetVersion() -> int:
    return gpu().runtime_version


def memGetInfo() -> tuple[int, int]:
    return Device().mem_info


def deviceSynchronize() -> None:
    Device().synchronize()


# --- NVRTC -------------------------------------------------------------------------------------------


def getVersion() -> tuple[int, int]:
    return gpu().nvrtc_version


class CompileException(Exception):
    pass


class RawKernel:
    """What `RawModule.get_function` gives."""

    def __init__(self, kernel: Kernel, device_id: int):
        self._kernel = kernel
        self._device_id = device_id
        self._most_shared = 48 * 1024
        self.name = kernel.name

    @property
    def max_dynamic_shared_size_bytes(self) -> int:
        return self._most_shared

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, size: int) -> None:
        if size > gpu().most_shared_memory:
            raise CUDADriverError(1)
        self._most_shared = size

    def __call__(self, grid: Sequence[int], block: Sequence[int], args: Sequence[Any], **kwargs: Any) -> None:
        shared_mem = kwargs.pop("shared_mem", 0)
        if kwargs:
            raise TypeError(f"unexpected keyword arguments {sorted(kwargs)}")
        if gpu().current_device != self._device_id:
            raise RuntimeError(
                f"{self.name} was loaded on device {self._device_id}, and device {gpu().current_device} is current"
            )
        if shared_mem > self._most_shared:
            raise CUDADriverError(1)
        grid, block = tuple(map(int, grid)), tuple(map(int, block))
        arguments = [_argument(argument) for argument in args]
        memories = [argument.data.mem for argument in args if isinstance(argument, ndarray)]
        order, kernel = gpu().order, self._kernel
        kernel.check(grid, block, arguments)
        gpu().launches.append(self.name)
        if capturing():
            # The graph holds no memory, only addresses.
            submit(lambda: kernel.launch(grid, block, arguments, shared_mem, order))
            return
        kernel.launch(grid, block, arguments, shared_mem, order)
        for memory in memories:
            memory.check_guards()


def _argument(value: Any) -> Any:
    """As CuPy hands them over: whole numbers of Python have 64 bits, floats too."""
    if isinstance(value, ndarray):
        if value.data.device_id != gpu().current_device:
            raise ValueError(
                f"an array of device {value.data.device_id}, and {gpu().current_device} is current"
            )
        return Pointer(value.data.ptr, value.dtype)
    if isinstance(value, bool | int | float):
        return np.array(value)[()]
    if isinstance(value, np.generic):
        return value
    raise TypeError(f"Unsupported type {type(value)}")


class RawModule:
    def __init__(
        self,
        code: str | None = None,
        *,
        path: str | None = None,
        options: tuple[str, ...] = (),
        backend: str = "nvrtc",
        translate_cucomplex: bool = False,
        enable_cooperative_groups: bool = False,
        name_expressions: Sequence[str] | None = None,
        jitify: bool | None = None,
    ):
        if code is None or path is not None or backend != "nvrtc":
            raise TypeError("the stand-in compiles texts by NVRTC only")
        if not isinstance(options, tuple):
            raise TypeError("options must be a tuple")
        if name_expressions and not any(option.lstrip("-").startswith("std=c++") for option in options):
            raise ValueError("need to specify C++ standard for compiling template code")
        self.code, self.options, self.name_expressions = code, options, tuple(name_expressions or ())
        self._kernels: Any = None

    def compile(self, log_stream: Any = None) -> None:
        if self._kernels is None:
            forbid_while_capturing()  # loading a module may wait for the device
            try:
                self._kernels = compile_kernels(
                    self.code, self.name_expressions, 10 * int(gpu().compute_capability)
                )
            except CompileError as error:
                raise CompileException(str(error)) from error

    def get_function(self, name: str) -> RawKernel:
        self.compile()
        if name not in self._kernels:
            raise CUDADriverError(500)
        return RawKernel(self._kernels[name], gpu().current_device)


# --- cuBLAS ------------------------------------------------------------------------------------------

CUBLAS_OP_N, CUBLAS_OP_T, CUBLAS_OP_C = 0, 1, 2
CUBLAS_DEFAULT_MATH, CUBLAS_TENSOR_OP_MATH, CUBLAS_PEDANTIC_MATH, CUBLAS_TF32_TENSOR_OP_MATH = 0, 1, 2, 3
CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION = 16
CUBLAS_GEMM_DEFAULT, CUBLAS_GEMM_DEFAULT_TENSOR_OP = -1, 99
CUBLAS_COMPUTE_16F, CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_32F_PEDANTIC = 64, 68, 69
CUBLAS_COMPUTE_32F_FAST_16F, CUBLAS_COMPUTE_32F_FAST_16BF, CUBLAS_COMPUTE_32F_FAST_TF32 = 74, 75, 77
CUBLAS_COMPUTE_64F = 70
CUBLAS_POINTER_MODE_HOST, CUBLAS_POINTER_MODE_DEVICE = 0, 1


class CUBLASError(RuntimeError):
    def __init__(self, status: int):
        self.status = status
        names = {7: "CUBLAS_STATUS_INVALID_VALUE", 15: "CUBLAS_STATUS_NOT_SUPPORTED"}
        super().__init__(names[status])


_modes: dict[tuple[int, int], int] = {}


def setMathMode(handle: int, mode: int) -> None:
    gpu().math_modes.append(mode)
    _modes[id(gpu()), handle] = mode


def getMathMode(handle: int) -> int:
    return _modes.get((id(gpu()), handle), CUBLAS_DEFAULT_MATH)


def _numpy_type(code: int) -> np.dtype:
    if code == CUDA_R_16BF:
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype({0: np.float32, 1: np.float64, 2: np.float16, 3: np.int8}[code])


#: (type of A and B, type of C) of products with sums in float32.
_SUMMED_IN_FLOAT32 = {
    *(
        (CUDA_R_32F, CUDA_R_32F),
        (CUDA_R_16F, CUDA_R_32F),
        (CUDA_R_16F, CUDA_R_16F),
        (CUDA_R_16BF, CUDA_R_32F),
    ),
    *((CUDA_R_16BF, CUDA_R_16BF), (CUDA_R_8I, CUDA_R_32F)),
}
_FAST = {
    CUBLAS_COMPUTE_32F_FAST_TF32: "tf32",
    CUBLAS_COMPUTE_32F_FAST_16F: "float16",
    CUBLAS_COMPUTE_32F_FAST_16BF: "bfloat16",
}


def gemmEx(
    handle: int,
    transa: int,
    transb: int,
    m: int,
    n: int,
    k: int,
    alpha: int,
    A: int,
    Atype: int,
    lda: int,
    B: int,
    Btype: int,
    ldb: int,
    beta: int,
    C: int,
    Ctype: int,
    ldc: int,
    computeType: int,
    algo: int,
) -> None:
    """C = alpha op(A) op(B) + beta C, all of them stored by columns; alpha and beta lie on the host."""
    refuse_while_capturing()
    _gemm(
        *(handle, transa, transb, m, n, k, alpha, A, Atype, lda, B, Btype, ldb, beta, C, Ctype, ldc),
        *(computeType, algo),
    )


def _gemm(
    handle: int,
    transa: int,
    transb: int,
    m: int,
    n: int,
    k: int,
    alpha: int,
    A: int,
    Atype: int,
    lda: int,
    B: int,
    Btype: int,
    ldb: int,
    beta: int,
    C: int,
    Ctype: int,
    ldc: int,
    computeType: int,
    algo: int,
) -> None:
    rounded = _check_types(handle, Atype, Btype, Ctype, computeType)
    rows_a, rows_b = (m if transa == CUBLAS_OP_N else k), (k if transb == CUBLAS_OP_N else n)
    if min(m, n, k) < 0 or lda < max(1, rows_a) or ldb < max(1, rows_b) or ldc < max(1, m):
        raise CUBLASError(7)
    if handle != Device().cublas_handle:
        raise RuntimeError("the handle belongs to another device")
    scalar = ctypes.c_double if computeType == CUBLAS_COMPUTE_64F else ctypes.c_float
    by, keep = scalar.from_address(alpha).value, scalar.from_address(beta).value
    left = _matrix(A, Atype, rows_a, k if transa == CUBLAS_OP_N else m, lda)
    right = _matrix(B, Btype, rows_b, n if transb == CUBLAS_OP_N else k, ldb)
    into = _matrix(C, Ctype, m, n, ldc)
    sums = np.float64 if computeType == CUBLAS_COMPUTE_64F else np.float32
    names = {"transa": transa, "transb": transb, "m": m, "n": n, "k": k, "alpha": by, "beta": keep}
    names |= {"Atype": Atype, "Btype": Btype, "Ctype": Ctype, "computeType": computeType}
    gpu().products.append({**names, "rounded": rounded, "mode": getMathMode(handle)})

    def step() -> None:
        a, b = _rounded(left.astype(sums), rounded), _rounded(right.astype(sums), rounded)
        a, b = a if transa == CUBLAS_OP_N else a.T, b if transb == CUBLAS_OP_N else b.T
        with np.errstate(all="ignore"):
            product = sums(by) * (a @ b)
            into[...] = product if keep == 0 else product + sums(keep) * into.astype(sums)

    submit(step)


def _check_types(handle: int, Atype: int, Btype: int, Ctype: int, computeType: int) -> str | None:
    """To what float32 factors are rounded.  Raises for what cuBLAS does not support."""
    if computeType == CUBLAS_COMPUTE_64F:
        supported = {Atype, Btype, Ctype} == {CUDA_R_64F}
    elif computeType in _FAST:
        supported = {Atype, Btype, Ctype} == {CUDA_R_32F}
    else:
        # As CuPy does, a number below CUBLAS_COMPUTE_16F is taken for the type of the sums.
        supported = computeType in (CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_32F_PEDANTIC, CUDA_R_32F)
        supported = supported and Atype == Btype and (Atype, Ctype) in _SUMMED_IN_FLOAT32
    if supported and CUDA_R_16BF in (Atype, Ctype) and int(gpu().compute_capability) < 80:
        supported = False
    if not supported:
        raise CUBLASError(15)
    if computeType in _FAST:
        return _FAST[computeType]
    in_tf32 = getMathMode(handle) & 15 == CUBLAS_TF32_TENSOR_OP_MATH and computeType == CUBLAS_COMPUTE_32F
    return "tf32" if in_tf32 and Atype == CUDA_R_32F else None


def _matrix(address: int, code: int, rows: int, columns: int, leading: int) -> np.ndarray:
    """[rows, columns] in place, stored by columns that begin `leading` numbers apart."""
    dtype = _numpy_type(code)
    if not rows or not columns:
        return np.empty((rows, columns), dtype)
    count = leading * (columns - 1) + rows
    memory = memory_at(address, count * dtype.itemsize)
    start = address - memory.ptr
    numbers = memory.block.bytes[start : start + count * dtype.itemsize].view(dtype)
    return np.lib.stride_tricks.as_strided(
        numbers, (rows, columns), (dtype.itemsize, leading * dtype.itemsize), writeable=True
    )


def _rounded(x: np.ndarray, to: str | None) -> np.ndarray:
    if to is None:
        return x
    if to == "tf32":  # 10 binary digits after the point; NaN and infinity stay
        bits = np.ascontiguousarray(x).view(np.uint32)
        near = bits + np.uint32(0xFFF) + (bits >> np.uint32(13) & np.uint32(1))
        return np.where(np.isfinite(x), (near & np.uint32(0xFFFFE000)).view(np.float32), x)
    code = CUDA_R_16F if to == "float16" else CUDA_R_16BF
    with np.errstate(all="ignore"):
        return x.astype(_numpy_type(code)).astype(np.float32)


def setStream(handle: int, stream: int | Stream) -> None:
    """gemmEx takes the current stream anyway."""


class Library:
    """cuBLAS as `ctypes` reaches it: addresses are `c_void_p`, and every function says how it went."""

    def __init__(self) -> None:
        self._streams: dict[int, int] = {}
        self.workspaces: dict[int, int] = {}

    def cublasSetStream_v2(self, handle: Any, stream: Any) -> int:
        self._streams[handle.value] = stream.value or 0
        self.workspaces.pop(handle.value, None)
        return 0

    def cublasSetWorkspace_v2(self, handle: Any, address: Any, size: Any) -> int:
        memory_at(address.value, size.value)
        if address.value % 256:
            return 7
        self.workspaces[handle.value] = size.value
        return 0

    def cublasGemmEx(self, *arguments: Any) -> int:
        addresses = [place for place, a in enumerate(arguments) if isinstance(a, ctypes.c_void_p)]
        if addresses != [0, 6, 7, 10, 13, 14] or not all(isinstance(a.value, int) for a in arguments):
            raise TypeError("not the arguments of cublasGemmEx")
        handle = arguments[0].value
        if self._streams[handle] != current_stream().ptr:
            raise RuntimeError("this product goes into another stream")
        if capturing() and handle not in self.workspaces:
            raise RuntimeError("the graph would hold an allocation of cuBLAS")
        try:
            _gemm(*(argument.value for argument in arguments))
        except CUBLASError as error:
            return error.status
        return 0
