"""Whether there is a GPU, a CuPy for it and a driver for both: one clear error for each thing that is missing."""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Callable
from functools import cache
from glob import glob
from pathlib import Path
from typing import Any

from refimpl.errors import BackendError, ResourceLimitError, quote

#: The first CuPy whose arrays know bfloat16.
_OLDEST_CUPY = 14

#: The extras of this package that install a CuPy, by the major version of CUDA that it is for.
_EXTRAS = (12, 13)

#: The oldest architecture that there are kernels for: Volta.
_OLDEST_CAPABILITY = 70

# Codes of the CUDA runtime (cudaError_t).
_INSUFFICIENT_DRIVER, _NO_DEVICE = 35, 100


# --- cheap questions, asked before anything is imported --------------------------------------------


def gpu_seems_there() -> bool:
    """Whether an NVIDIA driver shows itself; a look at the file system, which takes some microseconds.

    `CUDA_VISIBLE_DEVICES` that is empty or -1 hides every GPU, here as from CUDA itself.
    """
    if os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1"):
        return False
    if sys.platform == "win32":
        return (Path(os.environ.get("SYSTEMROOT", r"C:\Windows")) / "System32" / "nvcuda.dll").exists()
    # The card; the card behind the Linux of Windows; that of a Jetson.
    return bool(glob("/dev/nvidia[0-9]*")) or any(
        map(os.path.exists, ("/usr/lib/wsl/lib/libcuda.so", "/dev/nvhost-gpu"))
    )


@cache
def usable() -> bool:
    """Whether "auto" may take this backend.  Where a GPU seems to be there and it may not, a warning says why, once."""
    if not gpu_seems_there():
        return False
    try:
        open_device(None)
    except BackendError as error:
        warnings.warn(f"the GPU is not used: {error}", stacklevel=4)
        return False
    return True


# --- CuPy and the device -----------------------------------------------------------------------------


def load_cupy() -> Any:
    """The module `cupy`.  Raises: BackendError where it is missing, broken, too old, or made for AMD's GPUs."""
    try:
        import cupy
    except ModuleNotFoundError as error:
        if error.name != "cupy":
            raise _broken(error) from error
        raise BackendError("the cupy backend needs CuPy", found="no package cupy", hint=_install()) from error
    except Exception as error:  # whatever its libraries say
        raise _broken(error) from error
    version = str(getattr(cupy, "__version__", "none"))
    if int((re.match(r"\d+", version) or ["0"])[0]) < _OLDEST_CUPY:
        raise BackendError(
            "this CuPy is too old",
            found=f"CuPy {version}",
            allowed=f"CuPy {_OLDEST_CUPY} and later",
            hint=f"Remove it (pip uninstall {_installed_cupy()}) and install another: {_install()}",
        )
    if getattr(cupy.cuda.runtime, "is_hip", False):
        raise BackendError("the cupy backend needs a GPU of NVIDIA", found="a CuPy for ROCm", hint=_install())
    return cupy


def open_device(device: str | None) -> int:
    """The number of the device that `device` names ("cuda", "cuda:1"; None: the first), after a try of what it needs.

    Raises: BackendError for anything that keeps it from computing.
    """
    index = _index(device)
    cupy = load_cupy()
    count = _count(cupy)
    if index >= count:
        raise BackendError(
            "there is no such GPU",
            where="device",
            found=quote(device),
            allowed="cuda:0" if count == 1 else f"cuda:0 to cuda:{count - 1}",
            hint=_hidden(),
        )
    _try_out(cupy, index)
    return index


def _index(device: str | None) -> int:
    match = re.fullmatch(r"cuda(?::(\d{1,4}))?", "cuda" if device is None else str(device))
    if match is None:
        raise BackendError(
            "not a device of the cupy backend", where="device", found=quote(device), allowed="cuda, cuda:N"
        )
    return int(match[1] or 0)


def _count(cupy: Any) -> int:
    """How many GPUs there are, at least one."""
    runtime = cupy.cuda.runtime
    try:
        count = runtime.getDeviceCount()
    except runtime.CUDARuntimeError as error:
        raise _no_cuda(cupy, error) from error
    if count < 1:
        raise _no_gpu()
    return count


def _no_cuda(cupy: Any, error: Any) -> BackendError:
    """Why CUDA does not start."""
    runtime, status = cupy.cuda.runtime, getattr(error, "status", None)
    if status == _NO_DEVICE:
        return _no_gpu()
    driver, needed = runtime.driverGetVersion(), runtime.runtimeGetVersion()
    if driver == 0:
        return BackendError(
            "there is no driver of NVIDIA",
            found="none",
            hint="Install the driver of the GPU (nvidia-smi shows whether it works); "
            "in a container, start it with the GPU (docker run --gpus all).",
        )
    if status == _INSUFFICIENT_DRIVER or driver // 1000 < needed // 1000:
        fitting = [major for major in _EXTRAS if major <= driver // 1000]
        newer = f"Install a driver for CUDA {needed // 1000}"
        other = (
            f', or pip uninstall {_installed_cupy()}; pip install "refimpl[cuda{max(fitting, default=0)}]".'
        )
        return BackendError(
            "the driver of NVIDIA is too old for this CuPy",
            found=f"a driver for CUDA {_version(driver)}",
            allowed=f"one for CUDA {needed // 1000}, which this CuPy is made for",
            hint=newer + (other if fitting else "."),
        )
    return BackendError(
        "CUDA does not start", found=str(error), hint="nvidia-smi shows whether the driver works."
    )


def _no_gpu() -> BackendError:
    return BackendError("CUDA sees no GPU", found="none", allowed="at least one", hint=_hidden())


def _hidden() -> str | None:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return (
        None if visible is None else f"CUDA_VISIBLE_DEVICES={visible} says which ones this process may see."
    )


@cache
def _try_out(cupy: Any, index: int) -> None:
    """Compile and run something small, so that what is missing shows now and not in the middle of a model."""
    device = cupy.cuda.Device(index)
    capability = int(device.compute_capability)
    if capability < _OLDEST_CAPABILITY:
        raise BackendError(
            "this GPU is too old",
            where=f"cuda:{index}",
            found=f"compute capability {_dotted(capability)}",
            allowed=f"{_dotted(_OLDEST_CAPABILITY)} (Volta) and later",
        )
    for library, ask in (
        ("NVRTC, the compiler", lambda: cupy.cuda.nvrtc.getVersion()),
        ("cuBLAS, the matrix products", lambda: cupy.cuda.cublas),
    ):
        try:
            ask()
        except Exception as error:
            raise BackendError(
                f"CuPy does not find a library of CUDA: {library}",
                found=_first_line(error),
                hint=_libraries(cupy),
            ) from error
    newest = cupy.cuda.nvrtc.getVersion()
    if newest[0] >= 13 and capability < 75:
        raise BackendError(
            "CUDA 13 no longer compiles for this GPU",
            where=f"cuda:{index}",
            found=f"compute capability {_dotted(capability)}",
            allowed=f"7.5 and later; {_dotted(_OLDEST_CAPABILITY)} with CUDA 12",
            hint=f'pip uninstall {_installed_cupy()}; pip install "refimpl[cuda12]".',
        )
    try:
        with device:
            answer = int((cupy.ones(2, "float32") + 1).sum())
    except Exception as error:
        raise BackendError(
            "CuPy cannot compile or run a kernel here",
            where=f"cuda:{index}",
            found=_first_line(error),
            hint=_libraries(cupy),
        ) from error
    if answer != 4:
        raise BackendError(
            "the GPU computes wrongly", where=f"cuda:{index}", found=f"1 + 1 + 1 + 1 = {answer}"
        )


# --- what to say -------------------------------------------------------------------------------------


def _broken(error: Exception) -> BackendError:
    return BackendError(
        "CuPy cannot be loaded",
        found=_first_line(error),
        hint=f"pip uninstall {_installed_cupy()}, then install it again: {_install()}",
    )


def _first_line(error: Exception) -> str:
    """What an error says, without CuPy's frames and advice."""
    lines = [line.strip() for line in str(error).splitlines()]
    told = [line for line in lines if line.strip("=-") and not line.endswith(":")]
    after = lines.index("Original error:") + 1 if "Original error:" in lines else None
    line = lines[after] if after is not None and after < len(lines) else told[0] if told else ""
    line = line or type(error).__name__
    return line if len(line) <= 200 else line[:199] + "…"


def _install() -> str:
    return " or ".join(f'pip install "refimpl[cuda{major}]"' for major in _EXTRAS) + (
        ", the highest that nvidia-smi shows as CUDA version."
    )


def _libraries(cupy: Any) -> str:
    major = cupy.cuda.runtime.runtimeGetVersion() // 1000
    return f'pip install "refimpl[cuda{major}]" installs the libraries of CUDA as well.'


def _installed_cupy() -> str:
    """The name under which pip knows the CuPy that is there."""
    from importlib.metadata import packages_distributions

    return " ".join(sorted(set(packages_distributions().get("cupy", ["cupy"]))))


def _version(number: int) -> str:
    """12040 -> "12.4\""""
    return f"{number // 1000}.{number % 1000 // 10}"


def _dotted(capability: int) -> str:
    return f"{capability // 10}.{capability % 10}"


# --- memory ------------------------------------------------------------------------------------------


def free_memory(cupy: Any, index: int) -> int:
    """Bytes that can still be allocated on a device: what nobody has, and what CuPy's pool holds in reserve."""
    with cupy.cuda.Device(index) as device:
        return int(device.mem_info[0]) + int(cupy.get_default_memory_pool().free_bytes())


def told(cupy: Any, malloc: Callable[[int], Any]) -> Callable[[int], Any]:
    """`malloc` of a memory pool, but when nothing is left the error is a ResourceLimitError with the figures.

    It is an `OutOfMemoryError` of CuPy as well: whoever catches that one still does.
    """

    def allocate(size: int) -> Any:
        try:
            return malloc(size)
        except cupy.cuda.memory.OutOfMemoryError as error:
            index = cupy.cuda.runtime.getDevice()
            free = free_memory(cupy, index)
            raise _error_class(cupy)(
                "the memory of the GPU is full",
                where=f"cuda:{index}",
                found=f"{free:,} bytes free",
                allowed=f"at least the {size:,} bytes that are needed now",
                hint="Shorter texts, fewer at a time, or weights in fewer bits (dtype, weight_dtype) need less.",
                requested=size,
                free=free,
            ) from error

    return allocate


def tell_when_full(cupy: Any) -> None:
    """Let CuPy's own memory pool report as `told` says; an allocator that somebody else chose stays as it is."""
    plain = cupy.get_default_memory_pool().malloc
    if cupy.cuda.get_allocator() == plain:
        cupy.cuda.set_allocator(told(cupy, plain))


@cache
def _error_class(cupy: Any) -> Any:
    bases = (ResourceLimitError, cupy.cuda.memory.OutOfMemoryError)
    return type("DeviceMemoryError", bases, {"__module__": __name__})
