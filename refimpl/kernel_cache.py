"""Where compiled kernels are kept between runs.

Numba stores machine code beside a pickled index, so whoever can write there runs code as the user,
and it notices an edited function but not an edited helper in another file.  Therefore the folder is
private to the user, and its name is a hash of all kernel sources, of the versions of Numba and
llvmlite, and of the processor: code that could be stale is never looked at.

Kernels and their intrinsics are module globals: a function made in a closure is never found in the
cache again.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

#: Called with a line for people where machine code has to be made first, which takes seconds. The command line sets it.
announce: Callable[[str], None] | None = None


def cache_root() -> Path:
    """`$REFIMPL_CACHE_DIR`, else `$XDG_CACHE_HOME/refimpl`, else `~/.cache/refimpl`."""
    own = os.environ.get("REFIMPL_CACHE_DIR")
    if own:
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    # The standard says that a relative path there is to be ignored.
    return (Path(base) if base and os.path.isabs(base) else Path.home() / ".cache") / "refimpl"


def content_key(sources: Iterator[Path] | list[Path], *versions: str) -> str:
    """A hash of the kernel sources and of everything else that machine code depends on."""
    digest = hashlib.sha256()
    for part in versions:
        digest.update(part.encode() + b"\0")
    for path in sorted(sources):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:24]


def private_folder(path: Path) -> bool:
    """Make `path` if need be; whether it is a folder of our own that nobody else can write to."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        state = path.lstat()
        if not stat.S_ISDIR(state.st_mode):
            return False  # a link may lead anywhere
        if not hasattr(os, "getuid"):
            return True  # Windows: a profile folder is private already
        return state.st_uid == os.getuid() and not state.st_mode & 0o022
    except OSError:
        return False


@contextmanager
def kernel_cache(package: Path) -> Iterator[Path | None]:
    """While the kernels of `package` (a folder of .py files) are imported: cache them in their own folder.

    Yields the folder, or None where no private one can be had; kernels are then compiled in every process.
    Numba asks for the folder when a function is decorated, so that code of others, decorated
    elsewhere, keeps its own place.
    """
    import llvmlite
    import numba

    config: Any = numba.config  # its attributes are made at run time
    key = content_key(
        list(package.glob("*.py")), numba.__version__, llvmlite.__version__, _cpu_name(config.CPU_NAME)
    )
    folder = cache_root() / "kernels" / key
    usable = private_folder(cache_root()) and private_folder(folder.parent) and private_folder(folder)
    before = config.CACHE_DIR
    if usable:
        config.CACHE_DIR = str(folder)
    if announce is not None and not (usable and any(folder.rglob("*.nbi"))):
        announce(
            "Compiling for this processor, which takes some ten seconds"
            + (", once ..." if usable else " ...")
        )
    try:
        yield folder if usable else None
    finally:
        config.CACHE_DIR = before


def _cpu_name(override: str | None) -> str:
    from llvmlite import binding

    features = ",".join(sorted(name for name, present in binding.get_host_cpu_features().items() if present))
    return f"{override or binding.get_host_cpu_name()}:{features}"
