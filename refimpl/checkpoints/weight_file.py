"""What every kind of weight file has in common: tensors by name, mapped or owned, from a regular file.

Nothing in a weight file is trusted. The formats are read by `safetensors_file.py` and `torch_file.py`;
several files of one model by `sharded.py`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from refimpl.errors import (
    CheckpointFormatError,
    IncompleteCheckpointError,
    MissingFileError,
    UnsafeCheckpointError,
)


class WeightFile(Mapping[str, np.ndarray]):
    """The tensors of one or several files by name, as read-only arrays.

    `file[name]` is a view of the mapped file where its layout allows; shapes and dtypes are known without
    touching a number.
    """

    #: The files that hold the numbers, in order.
    paths: list[Path]

    def shape(self, name: str) -> tuple[int, ...]:
        raise NotImplementedError

    def dtype(self, name: str) -> np.dtype:
        raise NotImplementedError

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors; what they share counts once."""
        raise NotImplementedError


def open_bytes(path: Path, mmap: bool) -> np.ndarray:
    """The bytes of a regular file: mapped, or read into memory of our own.  -> uint8 [size], read-only

    Raises: MissingFileError; UnsafeCheckpointError for anything but a regular file (a pipe would block for ever),
        and for a symbolic link that leads out of its folder (the links of the Hub's cache do not);
        IncompleteCheckpointError for a placeholder; CheckpointFormatError when the system cannot read it.
    """
    refuse_escaping_link(path)
    flags = (
        os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    )
    try:
        handle = os.open(path, flags)
    except FileNotFoundError as error:
        raise MissingFileError("there is no such file", where=path) from error
    except (OSError, ValueError) as error:
        raise CheckpointFormatError(f"the file cannot be read ({error})", where=path, path=path) from error
    with open(handle, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise UnsafeCheckpointError("this is not a regular file", where=path)
        try:
            refuse_placeholder(path, file.read(512))
            file.seek(0)
            if status.st_size == 0:
                raise IncompleteCheckpointError("the file is empty", where=path, path=path)
            if mmap:
                return np.memmap(file, np.uint8, "r").view(np.ndarray)
            data = np.fromfile(file, np.uint8)
        except OSError as error:
            raise CheckpointFormatError(
                f"the file cannot be read ({error})", where=path, path=path
            ) from error
    data.flags.writeable = False
    return data


def refuse_placeholder(path: Path, head: bytes) -> None:
    """Raise IncompleteCheckpointError for what often lies where weights should be."""
    if head.startswith(b"version https://git-lfs"):
        what, hint = (
            "this is a pointer to the weights, not the weights",
            "Fetch the real file (git lfs pull).",
        )
    elif head.lstrip()[:9].lower() in (b"<!doctype", b"<html><he") or head.lstrip()[:5].lower() == b"<html":
        what, hint = (
            "this is a web page, not the weights: the download gave an error page",
            "Download it again.",
        )
    elif path.name.endswith((".incomplete", ".part", ".crdownload", ".tmp")):
        what, hint = "this is the beginning of a download that was not finished", "Download it again."
    else:
        return
    raise IncompleteCheckpointError(what, where=path, hint=hint, path=path)


def refuse_escaping_link(path: Path) -> None:
    """Raise UnsafeCheckpointError for a symbolic link out of the model's folder.

    The cache of the Hub is made of links, from `models--owner--name/snapshots/REVISION/` to `../../blobs/`: a
    link may lead anywhere inside its `models--*` folder.
    """
    if not path.is_symlink():
        return
    folder = path.parent.resolve()
    inside = next(
        (parent for parent in (folder, *folder.parents) if parent.name.startswith("models--")), folder
    )
    target = path.resolve()
    if not target.is_relative_to(inside):
        raise UnsafeCheckpointError(
            "a symbolic link leads out of the model's folder",
            where=path,
            found=str(target),
            allowed=f"files in {inside}",
        )
