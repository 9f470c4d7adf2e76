"""Compiled forms of the tokenizers' algorithms, with Numba.  Importing this folder's modules imports Numba.

The definitions are in plain Python: `japanese_text.py`, `byte_level.py` and `bpe.py`.  A kernel does the same
over arrays; the tests hold the two together.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType

from refimpl.kernel_cache import kernel_cache


def load(name: str) -> ModuleType:
    """The module `name` of this folder, its machine code kept in the user's kernel cache."""
    with kernel_cache(Path(__file__).parent):
        return import_module(f"{__name__}.{name}")
