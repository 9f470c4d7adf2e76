"""Compiled forms of the tokenizers' algorithms, with Numba.  Importing this folder's modules imports Numba.

The definitions are in plain Python: `japanese_text.py`, `byte_level.py` and `bpe.py`.  A kernel does the same
over arrays; the tests hold the two together.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType

# How many characters plain Python handles in the time in which compiled kernels are loaded from the cache.
_BREAK_EVEN = 100_000
_loaded: dict[str, ModuleType] = {}
_done_plainly: dict[str, int] = {}


def load_if_worth(name: str, characters: int) -> ModuleType | None:
    """The module `name` if this process has enough text for it, now or with what it had before; else None.

    A short text in a new process is done in plain Python before the kernels would be there.
    """
    module = _loaded.get(name)
    if module is not None:
        return module
    _done_plainly[name] = _done_plainly.get(name, 0) + characters
    return load(name) if _done_plainly[name] >= _BREAK_EVEN else None


def load(name: str) -> ModuleType:
    """The module `name` of this folder, its machine code kept in the user's kernel cache."""
    from refimpl.kernel_cache import kernel_cache

    with kernel_cache(Path(__file__).parent):
        _loaded[name] = import_module(f"{__name__}.{name}")
    return _loaded[name]
