"""Writing a file so that a crash leaves either the old file or the new one, never a part.

Several files that belong together are written by `refimpl.folder_switch`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from refimpl.errors import SaveError

try:
    import fcntl
except ImportError:  # Windows, where a file that is open cannot be deleted or replaced anyway
    fcntl = None  # type: ignore[assignment]

#: The folder in which several files lie until all of them can be put in place.
SAVING = ".refimpl-save"

# What systems answer when a folder cannot be synchronized at all.
_NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF, errno.EACCES, errno.EPERM}

# One call to the system writes at most 2 GiB.
_WRITE_BYTES = 1 << 26


def write_atomically(path: str | os.PathLike[str], content: str | bytes) -> Path:
    """Writes `content` (text as UTF-8) to `path` by way of a temporary file in the same folder.

    What a killed process left of an earlier attempt is removed.

    Returns: the path.
    Raises: SaveError when the folder is not there, the target is a symbolic link or a folder, the text
        is not valid Unicode, or the system refuses; whatever `path` held before is then untouched, unless
        the attribute `saved` of the error is true.
    """
    target = Path(path)
    temporary, saved = None, False
    try:
        _settle(target)
        if target.is_symlink() or target.is_dir():
            raise SaveError("the target is a symbolic link or a folder, not a file", where=target)
        data = content.encode("utf-8") if isinstance(content, str) else content
        remove_litter(target)
        temporary = target.with_name(f".{target.name}.tmp-{os.getpid()}-{os.urandom(4).hex()}")
        write_new_file(temporary, [data])
        os.replace(temporary, target)
        saved = True
        sync_folder(target.parent)
    except SaveError:
        raise
    except (OSError, ValueError) as error:
        raise save_error("the file cannot be written", target, error, saved=saved) from error
    finally:
        if temporary is not None and not saved:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
    return target


def write_new_file(path: Path, chunks: Iterable[Any]) -> None:
    """Writes a file that is not there yet, and waits until its content is on the disk.

    chunks: objects with a contiguous buffer; they are written one after the other.
    While it is open the file is locked: `remove_litter` tells by that whether its writer is still alive.
    Raises: OSError; what was written so far is then left to the caller.
    """
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        lock(handle)
        for chunk in chunks:
            rest = memoryview(chunk).cast("B")
            while rest:
                rest = rest[os.write(handle, rest[:_WRITE_BYTES]) :]
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(folder: str | os.PathLike[str]) -> Path:
    """Makes `folder`, with those above it, unless it is there.  Raises: SaveError."""
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise save_error("the folder cannot be made", path, error) from error
    return path


def sync_folder(folder: Path) -> None:
    """Makes the names in `folder` durable, where the system can do so.  Raises: OSError when the disk fails."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise


def lock(handle: int) -> bool | None:
    """Lock an open file (or folder) until it is closed; a killed process keeps no lock.

    Returns: True; False when another process or thread holds the lock; None where there are no locks.
    """
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def save_error(what: str, where: object, error: Exception, **details: Any) -> SaveError:
    """The SaveError for what the system has answered; `errno` and `saved` are attributes of it."""
    if details.get("saved"):
        what = "what is new is in place, but making that durable, or tidying up, has failed"
    return SaveError(f"{what} ({error})", where=where, errno=getattr(error, "errno", None), **details)


def _settle(target: Path) -> None:
    """Where a killed process left a link in place of the file, make it a file again."""
    if target.is_symlink() and os.readlink(target).startswith(f"{SAVING}/"):
        from refimpl.folder_switch import finish_interrupted

        finish_interrupted(target.parent)


def remove_litter(target: Path) -> None:
    """Remove the temporary files that killed processes left beside `target`."""
    pattern = re.compile(rf"\.{re.escape(target.name)}\.tmp-\d+-[0-9a-f]{{8}}")
    with contextlib.suppress(OSError):
        for name in filter(pattern.fullmatch, os.listdir(target.parent)):
            _remove_unless_locked(target.with_name(name))


def _remove_unless_locked(path: Path) -> None:
    with contextlib.suppress(OSError):
        if fcntl is None:
            path.unlink()
            return
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
        try:
            if lock(handle):
                path.unlink()
        finally:
            os.close(handle)
