"""What every kind of weight file has in common: tensors by name, mapped or owned, from a regular file.

Nothing in a weight file is trusted. The formats are read by `safetensors_file.py` and `torch_file.py`;
several files of one model by `sharded.py`.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping
from mmap import ACCESS_READ
from mmap import mmap as map_file
from pathlib import Path
from types import MappingProxyType
from typing import Self

import numpy as np

from refimpl.errors import (
    CheckpointFormatError,
    IncompleteCheckpointError,
    MissingFileError,
    RefimplError,
    ResourceLimitError,
    UnsafeCheckpointError,
    quote,
)

#: More tensors than any model has, and few enough that their names and shapes take little memory.
MAX_TENSORS = 100_000
MAX_NAME_BYTES = 512
#: What `is_tensor_name` allows, for messages.
NAMES = f"1 to {MAX_NAME_BYTES} bytes of UTF-8 without control characters"


class WeightFile(Mapping[str, np.ndarray]):
    """The tensors of one or several files by name, as read-only arrays.

    `file[name]` is a view of the mapped file where its layout allows; shapes and dtypes are known without
    touching a number.
    """

    #: The files that hold the numbers, in order.
    paths: list[Path]
    #: Texts that a file holds beside its tensors.
    metadata: Mapping[str, str] = MappingProxyType({})

    @property
    def parts(self) -> list[WeightFile]:
        """The files one by one."""
        return [self]

    def shape(self, name: str) -> tuple[int, ...]:
        raise NotImplementedError

    def dtype(self, name: str) -> np.dtype:
        raise NotImplementedError

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors; what they share counts once."""
        raise NotImplementedError

    @property
    def stored_bytes(self) -> int:
        """Bytes of the numbers in the files, whether or not a tensor uses them: what `mmap=False` reads."""
        raise NotImplementedError

    def is_view(self, name: str) -> bool:
        """Whether `file[name]` shows the numbers in their place; each access makes a copy where it does not."""
        raise NotImplementedError


def is_tensor_name(name: str) -> bool:
    """Whether a tensor can have this name: printable, because it will stand in messages and tables, and short."""
    return name.isprintable() and 0 < len(name.encode("utf-8")) <= MAX_NAME_BYTES


# --- regular files, and nothing else -----------------------------------------------------------------


class RegularFile:
    """A weight file, open for reading: a regular file inside the model's folder that is no placeholder.

    Attributes: `path`, `size` in bytes.

    Raises: MissingFileError; UnsafeCheckpointError for anything but a regular file (a pipe would block for ever)
        and for a symbolic link that leads out of its folder (see `resolve_inside`); IncompleteCheckpointError for
        an empty file or a placeholder; CheckpointFormatError when the system cannot read it; ResourceLimitError when
        it allows no more open files.
    """

    def __init__(self, path: Path):
        self.path = path
        self._file = open(_open_resolved(path, *resolve_inside(path)), "rb", buffering=0)  # noqa: SIM115
        try:
            self._status = os.fstat(self._file.fileno())
            _refuse_irregular(path, self._status)
            self.size = self._status.st_size
            refuse_placeholder(path, self.head(512))
            if self.size == 0:
                raise IncompleteCheckpointError("the file is empty", where=path, path=path)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def head(self, count: int) -> bytes:
        """The first `count` bytes, or fewer where the file has fewer."""
        parts, missing = [], min(count, self.size)
        try:
            self._file.seek(0)
            while missing and (part := self._file.read(missing)):
                parts.append(part)
                missing -= len(part)
        except OSError as error:
            raise _unreadable(self.path, error) from error
        return b"".join(parts)

    def content(self, mmap: bool) -> np.ndarray:
        """All bytes: mapped, or read into memory of our own.  -> uint8 [size], read-only

        What is mapped must not be made shorter while it is used: the system then ends the process.

        Raises: IncompleteCheckpointError when the file has changed since it was opened; ResourceLimitError when
            there is no memory for it.
        """
        self._refuse_changed()
        try:
            data = self._mapped() if mmap else self._owned()
        except MemoryError as error:
            raise ResourceLimitError(
                "there is no memory for the file",
                where=self.path,
                found=f"{self.size} bytes",
                hint="Map it instead (mmap=True).",
            ) from error
        except (OSError, ValueError) as error:
            self._refuse_changed()  # the better reason, if it is this
            raise _unreadable(self.path, error) from error
        self._refuse_changed()
        return data

    def _mapped(self) -> np.ndarray:
        return np.frombuffer(map_file(self._file.fileno(), self.size, access=ACCESS_READ), np.uint8)

    def _owned(self) -> np.ndarray:
        data = np.empty(self.size, np.uint8)
        self._file.seek(0)
        done = 0
        while done < self.size and (count := self._file.readinto(data.data[done:])):
            done += count
        if done < self.size:
            raise OSError(errno.EIO, f"only {done} of {self.size} bytes could be read")
        data.flags.writeable = False
        return data

    def _refuse_changed(self) -> None:
        now = os.fstat(self._file.fileno())
        if (now.st_size, now.st_mtime_ns) != (self._status.st_size, self._status.st_mtime_ns):
            raise IncompleteCheckpointError(
                "the file changed while it was read",
                where=self.path,
                found=f"{now.st_size} bytes",
                allowed=f"{self.size} bytes, as there were at first",
                hint="Wait until it is complete.",
                path=self.path,
            )


def open_bytes(path: Path, mmap: bool) -> np.ndarray:
    """The bytes of a regular file: mapped, or read into memory of our own.  -> uint8 [size], read-only

    Raises: as `RegularFile`, and as its `content`.
    """
    with RegularFile(path) as file:
        return file.content(mmap)


def refuse_placeholder(path: Path, head: bytes) -> None:
    """Raise IncompleteCheckpointError for what often lies where weights should be."""
    if head.startswith(b"version https://git-lfs"):
        what, hint = (
            "this is a pointer to the weights, not the weights",
            "Fetch the real file (git lfs pull).",
        )
    elif head.lstrip()[:9].lower() == b"<!doctype" or head.lstrip()[:5].lower() == b"<html":
        what, hint = (
            "this is a web page, not the weights: the download gave an error page",
            "Download it again.",
        )
    elif path.name.endswith((".incomplete", ".part", ".crdownload", ".tmp")):
        what, hint = "this is the beginning of a download that was not finished", "Download it again."
    else:
        return
    raise IncompleteCheckpointError(what, where=path, hint=hint, path=path)


# --- links -------------------------------------------------------------------------------------------


def resolve_inside(path: Path) -> tuple[Path, Path]:
    """(root, file): the file that `path` leads to, every link resolved, and the folder that it may lie in.

    That is the folder of `path`. Only the cache of the Hub is made of links, from `models--owner--name/snapshots/
    REVISION/` to `../../blobs/`: they may lead anywhere inside the `models--*` folder, and nowhere else.

    Raises: UnsafeCheckpointError for a link that leads out of there, or in a circle; MissingFileError;
        CheckpointFormatError when the system cannot say.
    """
    try:
        real = Path(os.path.realpath(path, strict=True))
        root = _root(path.parent)
    except (FileNotFoundError, NotADirectoryError) as error:
        what = "the link leads to a file that is not there" if path.is_symlink() else "there is no such file"
        raise MissingFileError(what, where=path) from error
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno == errno.ELOOP:
            raise UnsafeCheckpointError("the symbolic links go in a circle", where=path) from error
        raise _unreadable(path, error) from error
    if not real.is_relative_to(root):
        raise UnsafeCheckpointError(
            "a symbolic link leads out of the model's folder",
            where=path,
            found=quote(str(real)),
            allowed=f"files in {root}",
            hint="If the link is yours, use the folder that it leads to.",
        )
    return root, real


def _root(folder: Path) -> Path:
    real = Path(os.path.realpath(folder, strict=True))
    # A link at REVISION itself must not hide that this is the cache, so the path is looked at as it was given too.
    cache = _cache_folder(Path(os.path.abspath(folder))) or _cache_folder(real)
    return real if cache is None else Path(os.path.realpath(cache, strict=True))


def _cache_folder(folder: Path) -> Path | None:
    """`models--owner--name` of `.../models--owner--name/snapshots/REVISION/...`."""
    for part in (folder, *folder.parents):
        if part.parent.name == "snapshots" and part.parent.parent.name.startswith("models--"):
            return part.parent.parent
    return None


_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_FILE = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | _NO_LINK
_FOLDER = getattr(os, "O_PATH", os.O_RDONLY) | getattr(os, "O_DIRECTORY", 0) | _NO_LINK
_BY_HANDLE = os.open in os.supports_dir_fd and os.stat in os.supports_dir_fd and _NO_LINK != 0

# What the system answers to "no link, please" where there is one after all.
_EXCHANGED = (errno.ELOOP, errno.ENOTDIR, errno.EMLINK)


def _open_resolved(path: Path, root: Path, real: Path) -> int:
    """A handle of the file `real` below `root`; there were no links on that way, and none is followed.

    Where the system can, each folder is opened in the one before: whoever exchanges a folder or the file for
    a link meanwhile gains nothing.
    """
    parts = real.relative_to(root).parts or (".",)
    handles: list[int] = []
    try:
        if not _BY_HANDLE:
            _refuse_irregular(path, os.lstat(real))
            return os.open(real, _FILE)
        handles.append(os.open(root, _FOLDER))
        for name in parts[:-1]:
            handles.append(os.open(name, _FOLDER, dir_fd=handles[-1]))
        # Opening a device can already do something, and a socket cannot be opened at all.
        _refuse_irregular(path, os.stat(parts[-1], dir_fd=handles[-1], follow_symlinks=False))
        return os.open(parts[-1], _FILE, dir_fd=handles[-1])
    except FileNotFoundError as error:
        raise MissingFileError("there is no such file", where=path) from error
    except (OSError, ValueError) as error:
        if isinstance(error, UnsafeCheckpointError):
            raise
        if isinstance(error, OSError) and error.errno in _EXCHANGED:
            raise UnsafeCheckpointError("exchanged for a link while it was opened", where=path) from error
        raise _unreadable(path, error) from error
    finally:
        for handle in handles:
            os.close(handle)


_KINDS = {
    stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFLNK: "a symbolic link",
}  # fmt: skip


def _refuse_irregular(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise UnsafeCheckpointError(
            "this is not a regular file", where=path, found=_KINDS.get(stat.S_IFMT(status.st_mode))
        )


# What the system answers when the file is in order, and it has no more to give.
_EXHAUSTED = {
    errno.EMFILE: "Allow more open files (ulimit -n), or save the model in fewer parts.",
    errno.ENFILE: "Close other programs.",
    errno.ENOMEM: None,
}


def _unreadable(path: Path, error: Exception) -> RefimplError:
    where = path if str(path).isprintable() else quote(str(path))
    what = f"the file cannot be read ({error})"
    if isinstance(error, OSError) and error.errno in _EXHAUSTED:
        return ResourceLimitError(what, where=where, hint=_EXHAUSTED[error.errno])
    return CheckpointFormatError(what, where=where, path=path)
