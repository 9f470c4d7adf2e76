"""Kernels of CUDA C++ run on the CPU: g++ compiles their text, threads of a block are fibers (`fibers.h`).

    run_kernel(text, "matvec<float16, 4>", (rows, 1, 1), (128, 1, 1), x, weight, y, np.int32(rows))

`text` may `#include "device.cuh"`, which is then the twin of that header in this folder. Arrays are read and written in
place. What a GPU would answer with an error, or with numbers that change from run to run, is a KernelError here:
threads that wait for others which have ended, misaligned addresses, an index outside of an array of known size,
writing beyond dynamic shared memory, arguments of another size than the parameters.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

FOLDER = Path(__file__).parent
HEADERS = ("prelude.h", "context.h", "fibers.h", "device.cuh")

#: How modules.py encloses the header that knows the hardware.
_REAL_HEADER = re.compile(r"^// device\.cuh begin\n.*?^// device\.cuh end\n", re.MULTILINE | re.DOTALL)
_DYNAMIC_SHARED = re.compile(r"\bextern\s+__shared__\s+([\w ]+?)\s+(\w+)\s*\[\s*\]\s*;")

_KEPT_DAYS = 7
_FLAGS = (
    *("-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-fno-strict-aliasing", "-w"),
    "-fsanitize=alignment,bounds",
)


class KernelError(Exception):
    """A launch that a GPU would refuse, end with an error, or answer unreliably."""


class CompileError(Exception):
    """What g++ said."""


def compiler() -> str | None:
    """The path of g++; None where there is none, or where programs have another format than on Linux."""
    return shutil.which("g++") if sys.platform == "linux" else None


class Parameter(ctypes.Structure):
    """Of a kernel; as in prelude.h."""

    _fields_ = (
        ("size", ctypes.c_int),
        ("kind", ctypes.c_char),
        ("pointee_size", ctypes.c_int),
        ("pointee_kind", ctypes.c_char),
    )


class Pointer(NamedTuple):
    """An address for a kernel, and the type of the numbers there."""

    address: int
    dtype: np.dtype

    def fits(self, parameter: Parameter) -> bool:
        """Whether a kernel with this parameter would take the numbers for what they are, as far as one can tell."""
        kind, size = parameter.pointee_kind, parameter.pointee_size
        if kind == b"f":
            return self.dtype.kind == "f" and self.dtype.itemsize == size
        if kind == b"s" and size == 2:
            return self.dtype.itemsize == 2  # float16 and bfloat16
        if kind in b"iu" and self.dtype.kind in "iu" and self.dtype.itemsize > 1 and size > 1:
            return self.dtype.itemsize == size
        return True


class Kernel:
    """One instance of a kernel."""

    def __init__(self, library: ctypes.PyDLL, number: int, name: str):
        self.name = name
        self._launch = library.cuda_on_cpu_launch
        self._number = number
        library.cuda_on_cpu_parameters.restype = ctypes.POINTER(Parameter)
        count = ctypes.c_int()
        found = library.cuda_on_cpu_parameters(number, ctypes.byref(count))
        self.parameters = [found[i] for i in range(count.value)]
        self._addresses = (ctypes.c_void_p * max(count.value, 1))()
        self._error = ctypes.create_string_buffer(512)

    def launch(
        self,
        grid: Sequence[int],
        block: Sequence[int],
        arguments: Sequence[Any],
        shared_mem: int = 0,
        order: int | None = None,
    ) -> None:
        """Run it. Arguments: NumPy arrays (their address), NumPy scalars, and None or np.uintp(0) for a null pointer.

        `order`: a seed that shuffles the blocks, the warps of a block and the lanes of a warp; None: as numbered.

        Raises: KernelError.
        """
        boxes = self.check(grid, block, arguments)
        for i, box in enumerate(boxes):
            self._addresses[i] = box.ctypes.data
        seed = None if order is None else ctypes.byref(ctypes.c_uint64(order & (2**64 - 1)))
        sizes = ctypes.c_uint * 3
        failed = self._launch(
            self._number,
            self._addresses,
            sizes(*_three(grid)),
            sizes(*_three(block)),
            ctypes.c_size_t(shared_mem),
            seed,
            self._error,
            ctypes.c_size_t(len(self._error)),
        )
        if failed:
            raise KernelError(f"{self.name}: {self._error.value.decode()}")

    def check(self, grid: Sequence[int], block: Sequence[int], arguments: Sequence[Any]) -> list[np.ndarray]:
        """The bytes of every argument.  Raises: KernelError for what cannot be launched."""
        grid, block = _three(grid), _three(block)
        if not (0 < block[0] * block[1] * block[2] <= 1024 and block[2] <= 64):
            raise KernelError(f"{self.name}: no block has this size: {block}")
        if not (0 < grid[0] < 2**31 and 0 < grid[1] < 2**16 and 0 < grid[2] < 2**16):
            raise KernelError(f"{self.name}: no grid has this size: {grid}")
        if len(arguments) != len(self.parameters):
            raise KernelError(
                f"{self.name}: {len(arguments)} arguments for {len(self.parameters)} parameters"
            )
        return [self._boxed(i, *pair) for i, pair in enumerate(zip(arguments, self.parameters, strict=True))]

    def _boxed(self, i: int, argument: Any, parameter: Parameter) -> np.ndarray:
        if isinstance(argument, np.ndarray):
            argument = Pointer(argument.ctypes.data, argument.dtype)
        if argument is None or isinstance(argument, Pointer):
            value: Any = np.uintp(argument.address if argument else 0)
            wanted = "p"
        elif isinstance(argument, np.generic):
            value = argument
            wanted = {"f": "f", "i": "iu", "u": "iup", "b": "iu", "V": "fs"}.get(argument.dtype.kind, "")
        else:
            raise KernelError(
                f"{self.name}: argument {i} is {type(argument).__name__}: neither an array nor a NumPy scalar"
            )
        size, kind = parameter.size, parameter.kind.decode()
        if value.dtype.itemsize != size or kind not in wanted:
            raise KernelError(
                f"{self.name}: argument {i} is {value.dtype.name}, the parameter has {size} bytes of kind {kind!r}"
            )
        if isinstance(argument, Pointer) and not argument.fits(parameter):
            raise KernelError(
                f"{self.name}: argument {i} is an array of {argument.dtype.name}, the parameter points to "
                f"{parameter.pointee_size} bytes of kind {parameter.pointee_kind.decode()!r}"
            )
        return np.array(value)


class Kernels:
    """The instances of kernels that were asked for by name."""

    def __init__(self, library: ctypes.PyDLL, names: Sequence[str]):
        self._kernels = {name: Kernel(library, i, name) for i, name in enumerate(names)}

    def __getitem__(self, name: str) -> Kernel:
        return self._kernels[name]

    def __contains__(self, name: str) -> bool:
        return name in self._kernels


@cache
def _loaded(path: Path) -> ctypes.PyDLL:
    # The state of a launch is global: the interpreter's lock is kept, so that there is one at a time.
    return ctypes.PyDLL(str(path))


def compile_kernels(text: str, names: Sequence[str], architecture: int = 900) -> Kernels:
    """Compile `text` with these instances ("matvec<float16, 4>"); a text that was compiled before is only loaded.

    Raises: CompileError.
    """
    source = _source(text, tuple(names))
    flags = (*_FLAGS, *_processor_flags(), f"-DCUDA_ON_CPU_ARCHITECTURE={architecture}")
    digest = hashlib.sha256()
    for part in (source, *flags, platform.machine(), _version(), *map(_header, HEADERS)):
        digest.update(part.encode() + b"\0")
    path = cache_folder() / f"{digest.hexdigest()[:32]}.so"
    if not path.exists():
        with _lock(path.with_suffix(".lock")):
            if not path.exists():
                _compile(source, flags, path)
    else:
        os.utime(path)
    return Kernels(_loaded(path), names)


def run_kernel(
    text: str,
    name: str,
    grid: Sequence[int],
    block: Sequence[int],
    *arguments: Any,
    shared_mem: int = 0,
    order: int | None = None,
) -> None:
    """Compile and run one kernel; see `Kernel.launch`."""
    compile_kernels(text, [name])[name].launch(grid, block, arguments, shared_mem, order)


def with_twin(text: str) -> str:
    """`text` with the header that modules.py pasted in taken out again, and the twin included in its place."""
    return _REAL_HEADER.sub(lambda found: '#include "device.cuh"\n' + "\n" * (found[0].count("\n") - 1), text)


def _three(sizes: Sequence[int]) -> tuple[int, int, int]:
    a, b, c = (*(int(n) for n in sizes), 1, 1)[:3]
    return a, b, c


def _source(text: str, names: tuple[str, ...]) -> str:
    text = _DYNAMIC_SHARED.sub(r"\1* \2 = (\1*)::cuda_on_cpu::dynamic_shared_memory;", with_twin(text))
    instances = "".join(
        f"static void run_{i}(void** a) {{ call(&{name}, a); }}\n" for i, name in enumerate(names)
    )
    table = "".join(
        f'    {{"{name}", parameters_of(&{name}), count_of(&{name}), run_{i}}},\n'
        for i, name in enumerate(names)
    )
    # Without a name of its own, static shared memory of a template would be merged by the linker, and cannot be where
    # the other shared memory is.
    return f"""#include "prelude.h"
namespace {{
#line 1 "kernels"
{text}
}}
#line 1 "instances"
namespace cuda_on_cpu {{
{instances}
static const Instance instances[] = {{
{table}}};
}}
extern "C" __attribute__((visibility("default")))
const cuda_on_cpu::Parameter* cuda_on_cpu_parameters(int number, int* count) {{
    *count = cuda_on_cpu::instances[number].count;
    return cuda_on_cpu::instances[number].parameters;
}}
extern "C" __attribute__((visibility("default")))
int cuda_on_cpu_launch(int number, void** arguments, const unsigned* grid, const unsigned* block, size_t shared_bytes,
                       const uint64_t* seed, char* error, size_t error_size) {{
    return cuda_on_cpu::run_grid(cuda_on_cpu::instances[number].run, arguments, grid, block, shared_bytes, seed,
                                 __start_cuda_shared, size_t(__stop_cuda_shared - __start_cuda_shared), error,
                                 error_size);
}}
"""


def _compile(source: str, flags: tuple[str, ...], path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        text, parts, whole = (Path(folder) / name for name in ("kernels.cpp", "kernels.o", "kernels.so"))
        text.write_text(source, encoding="utf-8")
        # In two steps: the last would ask for the libraries of the checks, and prelude.h has what they call.
        for step in (
            [str(compiler()), *flags, f"-I{FOLDER}", "-c", str(text), "-o", str(parts)],
            [str(compiler()), "-shared", str(parts), "-o", str(whole), "-lm"],
        ):
            result = subprocess.run(step, capture_output=True, text=True)
            if result.returncode:
                raise CompileError(result.stderr)
        os.replace(whole, path)
    _forget_old(path.parent)


def _forget_old(folder: Path) -> None:
    for path in folder.glob("*.*"):
        try:
            if path.is_file() and path.stat().st_mtime < time.time() - _KEPT_DAYS * 86400:
                path.unlink()
        except OSError:
            continue  # another process was faster


@contextmanager
def _lock(path: Path):
    import fcntl

    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@cache
def cache_folder() -> Path:
    """A folder that is this user's own: what lies there is run."""
    folder = Path(tempfile.gettempdir()) / f"refimpl-cuda-on-cpu-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    state = folder.lstat()
    if state.st_uid != os.getuid() or state.st_mode & 0o022 or folder.is_symlink():
        return Path(tempfile.mkdtemp(prefix="refimpl-cuda-on-cpu-"))
    return folder


@cache
def _version() -> str:
    return subprocess.run([str(compiler()), "--version"], capture_output=True, text=True, check=True).stdout


@cache
def _header(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


@cache
def _processor_flags() -> tuple[str, ...]:
    """With instructions for a * b + c, `fmaf` is no call."""
    try:
        words = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        return ()
    return ("-mfma", "-mavx2") if {"fma", "avx2"} <= words else ()
