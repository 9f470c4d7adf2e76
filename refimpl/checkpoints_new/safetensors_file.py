"""Weight files.  A safetensors file is 8 bytes of length, a JSON header, and the numbers themselves.

The numbers are mapped, not read: a tensor costs memory only when it is used, and start-up is quick.
Every check of the format is made by the `safetensors` package before a byte is believed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from refimpl.backends import to_dtype
from refimpl.errors import CheckpointFormatError, IncompleteCheckpointError, MissingFileError, quote

WEIGHTS_NAME = "model.safetensors"

_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip


class SafetensorsFile(Mapping[str, np.ndarray]):
    """The tensors of a safetensors file by name, as read-only arrays.

    Args:
        path: the file.
        mmap: map the file (default), or read it into memory of our own, which then no longer depends on
            the file staying as it is.

    Raises: MissingFileError, IncompleteCheckpointError for a truncated file or a placeholder,
        CheckpointFormatError for anything else that the format forbids.
    """

    def __init__(self, path: Path, mmap: bool = True):
        self.path = path
        self._entries, start = _read_header(path)
        self._data = np.memmap(path, np.uint8, "r", offset=0) if mmap else np.fromfile(path, np.uint8)
        self._data = self._data[start:]
        if not mmap:
            self._data.flags.writeable = False

    def __getitem__(self, name: str) -> np.ndarray:
        dtype, shape, begin, end = self._entries[name]
        return self._data[begin:end].view(dtype).reshape(shape).view(np.ndarray)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def dtype(self, name: str) -> np.dtype:
        return self._entries[name][0]

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entries[name][1]

    @property
    def nbytes(self) -> int:
        return sum(end - begin for _, _, begin, end in self._entries.values())


def _read_header(path: Path) -> tuple[dict[str, tuple[np.dtype, tuple[int, ...], int, int]], int]:
    """{name: (dtype, shape, begin, end)}, and where in the file the numbers begin."""
    from safetensors import SafetensorError, safe_open

    try:
        _refuse_truncated(path)
        with safe_open(path, framework="numpy"):  # checks the whole header
            pass
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except FileNotFoundError as error:
        raise MissingFileError("no such file", where=path) from error
    except OSError as error:
        raise CheckpointFormatError(f"the file cannot be read: {error}", where=path, path=path) from error
    except SafetensorError as error:
        raise CheckpointFormatError(
            f"not a valid safetensors file: {error}", where=path, path=path
        ) from error
    header.pop("__metadata__", None)
    entries = {}
    for name, entry in header.items():
        if entry["dtype"] not in _DTYPES:
            raise CheckpointFormatError(
                f"tensor {quote(name)} has a dtype that weights do not have",
                where=path,
                found=quote(entry["dtype"]),
                allowed=", ".join(_DTYPES),
                path=path,
            )
        dtype = to_dtype(_DTYPES[entry["dtype"]])
        entries[name] = (dtype, tuple(entry["shape"]), *entry["data_offsets"])
    return entries, 8 + length


# The format's own limit for the header.
_MAX_HEADER = 100_000_000


def _refuse_truncated(path: Path) -> None:
    """A cut download is the most common damage: say so, with figures, before the general check."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        if file.read(24).startswith(b"version https://git-lfs"):
            raise IncompleteCheckpointError(
                "this is a pointer to the weights, not the weights",
                where=path,
                hint="Fetch the real file (git lfs pull, or download it again).",
                path=path,
            )
        file.seek(0)
        length = int.from_bytes(file.read(8), "little")
        if length > _MAX_HEADER:
            return  # no safetensors file at all
        needed = 8 + length
        if size >= needed:
            try:
                header = json.loads(file.read(length))
                needed += max(
                    (entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"),
                    default=0,
                )
            except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
                return  # damaged in another way
    if size < needed:
        raise IncompleteCheckpointError(
            "the file is cut short, probably by an interrupted download",
            where=path,
            found=f"{size} bytes",
            allowed=f"{needed} bytes, as the file itself announces",
            hint="Download it again.",
            path=path,
        )
