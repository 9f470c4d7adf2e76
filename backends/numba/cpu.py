"""What the processor can do, asked before anything is compiled: an instruction that it lacks ends the process."""

from __future__ import annotations

import ctypes
import platform
import sys
from functools import cache
from typing import Any

from refimpl.errors import BackendError, quote

# What the names mean that are used to try other processors (NUMBA_CPU_NAME with NUMBA_CPU_FEATURES="").
_AVX2 = frozenset({"avx2", "fma", "f16c"})
_AVX512 = _AVX2 | {"avx512f", "avx512bw", "avx512vl", "avx512dq"}
_TILES = frozenset({"amx-tile", "amx-bf16", "amx-int8"})
_NAMED = {
    "haswell": _AVX2, "znver2": _AVX2, "znver3": _AVX2, "skylake": _AVX2, "x86-64-v3": _AVX2,
    "alderlake": _AVX2 | {"avxvnni"}, "skylake-avx512": _AVX512, "x86-64-v4": _AVX512,
    "cascadelake": _AVX512 | {"avx512vnni"}, "znver4": _AVX512 | {"avx512vnni", "avx512bf16"},
    "sapphirerapids": _AVX512 | _TILES | {"avx512vnni", "avx512bf16", "avxvnni"},
}  # fmt: skip

#: The features that some kernel asks for.
_ASKED_FOR = _AVX512 | _TILES | {"avx512vnni", "avx512bf16", "avxvnni"}

# Linux gives AMX to a process that asks: the numbers of the call, of the question, and of what is asked for.
_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA = 158, 0x1023, 18


@cache
def features() -> frozenset[str]:
    """The features that code may use, in LLVM's names.  Those of the host, unless Numba was told otherwise.

    Raises: BackendError where NUMBA_CPU_NAME or NUMBA_CPU_FEATURES claim what the processor lacks.
    """
    import numba
    from llvmlite import binding

    config: Any = numba.config  # its attributes are made at run time
    host = frozenset(name for name, present in binding.get_host_cpu_features().items() if present)
    if config.CPU_FEATURES is None:
        return host
    changes = [item.strip() for item in config.CPU_FEATURES.split(",") if item.strip()]
    claimed = _NAMED.get(config.CPU_NAME or "", host if config.CPU_NAME in (None, "host") else frozenset())
    claimed |= {item[1:] for item in changes if item.startswith("+")}
    claimed -= {item[1:] for item in changes if item.startswith("-")}
    missing = (claimed & _ASKED_FOR) - host
    if missing and is_x86():
        raise BackendError(
            "this processor lacks what the environment claims that it has",
            where="NUMBA_CPU_NAME, NUMBA_CPU_FEATURES",
            found=quote(", ".join(sorted(missing))),
            hint="Unset them: the processor is then asked itself.",
        )
    return claimed


def is_x86() -> bool:
    return platform.machine().lower() in ("x86_64", "amd64", "x86", "i386", "i686")


def is_arm64() -> bool:
    return platform.machine().lower() in ("arm64", "aarch64")


@cache
def has_tiles() -> bool:
    """Whether there is AMX, and the system lets this process use it: it is asked, once.

    Where it was not asked, or said no, the first instruction of AMX would end the process.
    """
    if not features() >= _TILES or not is_x86() or not sys.platform.startswith("linux"):
        return False
    syscall = ctypes.CDLL(None).syscall
    syscall.argtypes = [ctypes.c_long] * 3
    return syscall(_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA) == 0


def has_wide_registers() -> bool:
    """Whether there are 32 registers that hold a vector of 16 numbers each."""
    return "avx512f" in features()


def converts_half() -> bool:
    """Whether there is an instruction from float16 to float32."""
    return "f16c" in features() or has_wide_registers() or is_arm64()
