"""The numba backend.  Importing this folder loads Numba, and its machine code from the user's kernel cache."""

from __future__ import annotations

from pathlib import Path

from refimpl.kernel_cache import kernel_cache

with kernel_cache(Path(__file__).parent):
    from refimpl.backends.numba.backend import NumbaBackend

__all__ = ["NumbaBackend"]
