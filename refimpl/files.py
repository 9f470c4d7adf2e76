"""Writing a file so that a crash leaves either the old file or the new one, never a part."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from refimpl.errors import SaveError


def write_atomically(path: str | os.PathLike[str], content: str | bytes) -> Path:
    """Writes `content` (text as UTF-8) to `path` by way of a temporary file in the same folder.

    Returns: the path.
    Raises: SaveError when the folder is not there, the target is a symbolic link or a folder, the text
        is not valid Unicode, or the system refuses; whatever `path` held before is then untouched.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.tmp-{os.getpid()}-{os.urandom(4).hex()}")
    try:
        if target.is_symlink() or target.is_dir():
            raise SaveError("the target is a symbolic link or a folder, not a file", where=target)
        data = content.encode("utf-8") if isinstance(content, str) else content
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except SaveError:
        raise
    except (OSError, UnicodeEncodeError) as error:
        raise SaveError(f"the file cannot be written ({error})", where=target) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    _sync_folder(target.parent)
    return target


def make_folder(folder: str | os.PathLike[str]) -> Path:
    """Makes `folder`, with those above it, unless it is there.  Raises: SaveError."""
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise SaveError(f"the folder cannot be made ({error})", where=path) from error
    return path


def _sync_folder(folder: Path) -> None:
    """Makes the new name itself durable, where the system can open a folder at all."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
