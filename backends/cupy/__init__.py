"""The cupy backend: the same operations on an NVIDIA GPU.

Importing this folder does not import CuPy; asking for `CuPyBackend` does, and says what to install where that fails.
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    if name != "CuPyBackend":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from refimpl.backends.cupy.device import load_cupy

    load_cupy()
    from refimpl.backends.cupy.backend import CuPyBackend

    return CuPyBackend
