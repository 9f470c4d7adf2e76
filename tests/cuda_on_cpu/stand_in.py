"""The stand-in for the module `cupy`: as much of CuPy as the cupy backend uses, as strict as CuPy is, on the CPU.

    with cuda_on_cpu() as gpu:
        model = GPTNeoXForCausalLM.from_pretrained(folder, backend="cupy")

What is tested so has run on no GPU: the sources of the kernels, the launches, the shapes and the memory are the real
ones; the compiler, the speed and the arithmetic of the hardware are not.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any

import pytest

from tests.cuda_on_cpu import functions, gpu, libraries, memory
from tests.cuda_on_cpu.runner import compiler

_CUBLAS = ("gemmEx", "setMathMode", "getMathMode", "setStream", "CUBLASError")
_RUNTIME = (
    *("getDeviceCount", "getDevice", "setDevice", "driverGetVersion", "runtimeGetVersion", "memGetInfo"),
    *("deviceSynchronize", "CUDARuntimeError", "getDeviceProperties"),
    *(name for name in vars(libraries) if name.startswith("CUDA_R_")),
)
_MEMORY = ("Memory", "MemoryPointer", "MemoryPool", "alloc", "set_allocator", "get_allocator")

#: Modules that know `cupy` by its name, and are loaded anew with the stand-in and without it.
_OURS = "refimpl.backends.cupy"


def _module(name: str, **contents: Any) -> ModuleType:
    module = ModuleType(name)
    vars(module).update(contents)
    return module


def _null_stream() -> gpu.Stream:
    return gpu.null_stream(gpu.gpu().current_device)


def make_modules(version: str = "14.2.0") -> dict[str, ModuleType]:
    """The stand-in's modules by their names in `sys.modules`."""
    blas = {name: getattr(libraries, name) for name in (*_CUBLAS, *_starting(libraries, "CUBLAS_"))}
    cublas = _module("cupy_backends.cuda.libs.cublas", **blas)
    nvrtc = _module("cupy_backends.cuda.libs.nvrtc", getVersion=libraries.getVersion)
    runtime = _module(
        "cupy.cuda.runtime", is_hip=False, **{name: getattr(libraries, name) for name in _RUNTIME}
    )
    driver = _module("cupy_backends.cuda.api.driver", CUDADriverError=libraries.CUDADriverError)
    memories = {name: getattr(memory, name) for name in _MEMORY}
    cuda_memory = _module("cupy.cuda.memory", OutOfMemoryError=memory.OutOfMemoryError, **memories)

    class Stream(gpu.Stream):
        pass

    Stream.null = _null_stream()
    streams = {
        "Stream": Stream,
        "Event": gpu.Event,
        "get_current_stream": gpu.current_stream,
    }
    stream = _module("cupy.cuda.stream", **streams)
    graph = _module("cupy.cuda.graph", Graph=gpu.Graph)
    device = _module("cupy.cuda.device", Device=gpu.Device)
    compiler_module = _module("cupy.cuda.compiler", CompileException=libraries.CompileException)
    cuda = _module(
        "cupy.cuda",
        **memories,
        **streams,
        using_allocator=memory.using_allocator,
        alloc_pinned_memory=memory.alloc_pinned_memory,
        Device=gpu.Device,
        Graph=gpu.Graph,
        runtime=runtime,
        driver=driver,
        memory=cuda_memory,
        stream=stream,
        device=device,
        compiler=compiler_module,
        nvrtc=nvrtc,
        cublas=cublas,
        is_available=lambda: gpu.gpu().devices > 0,
    )
    cupy = _module(
        "cupy",
        **functions.namespace(),
        __version__=version,
        cuda=cuda,
        RawModule=libraries.RawModule,
        RawKernel=libraries.RawKernel,
        get_default_memory_pool=memory.get_default_memory_pool,
        is_available=cuda.is_available,
    )
    libs = _module("cupy_backends.cuda.libs", cublas=cublas, nvrtc=nvrtc)
    api = _module("cupy_backends.cuda.api", runtime=runtime, driver=driver)
    backends_cuda = _module("cupy_backends.cuda", libs=libs, api=api)
    backends = _module("cupy_backends", cuda=backends_cuda)
    modules = {
        **{"cupy": cupy, "cupy.cuda": cuda, "cupy_backends": backends, "cupy_backends.cuda": backends_cuda},
        **{"cupy_backends.cuda.libs": libs, "cupy_backends.cuda.api": api},
        **{m.__name__: m for m in (cublas, nvrtc, runtime, driver, cuda_memory, stream, graph, device)},
        "cupy.cuda.compiler": compiler_module,
        "cupy_backends.cuda.api.runtime": runtime,
    }
    for name in ("cupy", "cupy.cuda", *(n for n in modules if n.count(".") < 3 and n.startswith("cupy_b"))):
        modules[name].__path__ = []  # packages: modules are imported from them
    return modules


def _starting(module: ModuleType, prefix: str) -> list[str]:
    return [name for name in vars(module) if name.startswith(prefix)]


@contextmanager
def cuda_on_cpu(version: str = "14.2.0", **settings: Any) -> Iterator[gpu.Gpu]:
    """Install the stand-in as `cupy`, and take every trace of it away in the end.

    `settings` are attributes of `Gpu`, which a test may change later too.  The test is skipped where there is no g++.
    """
    if compiler() is None:
        pytest.skip("needs g++, which compiles the kernels for the CPU")
    before = _taken_out()
    with gpu.new_gpu(**settings) as state:
        modules = make_modules(version)
        sys.modules.update(modules)
        library = libraries.Library()
        import_module(f"{_OURS}.cublas")._library = lambda: library  # else it would be looked for on the disk
        try:
            yield state
        finally:
            _taken_out()
            sys.modules.update(before)
            parent = sys.modules.get("refimpl.backends")
            if parent is not None:  # the package remembers what was imported from it
                vars(parent).pop("cupy", None)
                if _OURS in before:
                    parent.cupy = before[_OURS]  # type: ignore[attr-defined]
            gc.collect()


def _taken_out() -> dict[str, ModuleType]:
    """Remove CuPy, the stand-in and our modules over them from `sys.modules`."""
    roots = ("cupy", "cupy_backends", "cupyx", _OURS)
    names = [name for name in sys.modules if any(name == r or name.startswith(r + ".") for r in roots)]
    return {name: sys.modules.pop(name) for name in names}
