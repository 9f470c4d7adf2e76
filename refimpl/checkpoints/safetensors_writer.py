"""Writing safetensors files of any size with little memory: tensor by tensor, in pieces.

The bytes are those that the `safetensors` package writes for the same tensors: 8 bytes of length, a JSON header that
names the tensors by falling alignment and then by name, filled up with spaces to a multiple of 8, and the numbers.
The division into shards is that of transformers. Matrices in panels (`panel_file.py`) are our own addition.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from refimpl.checkpoints.safetensors_file import HEADER_BYTES
from refimpl.checkpoints.sharded import MAX_SHARDS
from refimpl.checkpoints.weight_file import MAX_TENSORS, NAMES, is_tensor_name
from refimpl.errors import CheckpointValueError, InputError, SaveError, quote

#: In the order in which the package writes them: those of large alignment first.
DTYPES = {
    "uint64": "U64", "int64": "I64", "float64": "F64", "float32": "F32", "uint32": "U32", "int32": "I32",
    "bfloat16": "BF16", "float16": "F16", "uint16": "U16", "int16": "I16", "int8": "I8", "uint8": "U8",
    "bool": "BOOL",
}  # fmt: skip

#: In the metadata of a file: the version of the layout, and of each tensor in panels the shape of the matrix.
PACKED_KEY, PACKED_VERSION = "refimpl_packed", 2
CACHE_LINE = 64

_ORDER = list(DTYPES)
_PIECE_BYTES = 1 << 24
_MAX_RANK = 8
_SIZE = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?) ?([KMGT]B)", re.IGNORECASE)
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


@dataclass(frozen=True)
class StoredTensor:
    """What a file says of a tensor, and where its numbers come from when their turn comes.

    Attributes:
        dtype: in the file. `load` may give another float type, which is then converted piece by piece.
        load: gives the array, of shape `shape`.
        panels_of: the shape [out, in] of the matrix whose panels these are; None for any other tensor.
    """

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    load: Callable[[], np.ndarray]
    panels_of: tuple[int, int] | None = None

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def pieces(self) -> Iterator[memoryview]:
        """The bytes in the file, row by row and little-endian, in pieces of bounded size.

        Raises: CheckpointValueError for a number that `dtype` cannot hold.
        """
        for piece in self.numbers():
            if sys.byteorder == "big":
                piece = piece.byteswap()
            yield np.ascontiguousarray(piece).view(np.uint8).data

    def numbers(self) -> Iterator[np.ndarray]:
        """The numbers row by row in `dtype`, in pieces [n] of bounded size.  Raises: as `pieces`."""
        array = self.load()
        if tuple(array.shape) != self.shape:
            raise SaveError(
                "a tensor has changed while it was saved",
                where=self.name,
                found=str(list(array.shape)),
                allowed=str(list(self.shape)),
            )
        # Other layouts are read through an iterator, which copies one piece at a time.
        numbers = array.reshape(-1) if array.flags.c_contiguous else array.flat
        count = _PIECE_BYTES // 8
        for start in range(0, array.size, count):
            piece = numbers[start : start + count]
            if piece.dtype != self.dtype:
                lost = self._lost(piece)
                if lost.any():
                    raise self._too_large(float(piece[lost][0]), start + int(np.argmax(lost)))
                with np.errstate(all="ignore"):
                    piece = piece.astype(self.dtype)
            yield piece

    def _lost(self, piece: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            return np.isfinite(piece) & ~np.isfinite(piece.astype(self.dtype))

    def _too_large(self, number: float, place: int) -> CheckpointValueError:
        return CheckpointValueError(
            f"{self.dtype} cannot hold a number of this tensor",
            where=self.name,
            found=quote(number),
            hint="bfloat16 and float32 hold larger ones.",
            tensor=self.name,
            first_index=[int(i) for i in np.unravel_index(place, self.shape)],
        )


def check_tensor(name: Any, dtype: Any, shape: tuple[int, ...] = ()) -> None:
    """Raise InputError unless a file can hold such a tensor, and readers accept it."""
    if not isinstance(name, str) or name == "__metadata__" or not is_tensor_name(name):
        raise InputError(
            "not a possible name of a tensor", where="tensors", found=quote(name), allowed=f"text, {NAMES}"
        )
    if getattr(dtype, "name", None) not in DTYPES or len(shape) > _MAX_RANK:
        raise InputError(
            "a file cannot hold this tensor",
            where=name,
            found=f"{getattr(dtype, 'name', dtype)} {list(shape)}",
            allowed=f"{', '.join(sorted(DTYPES))}; at most {_MAX_RANK} dimensions",
        )


def header(tensors: Iterable[StoredTensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """The beginning of a file up to the numbers, which then follow in the order of `in_file_order`.

    Raises: InputError when there is so much of it that no reader accepts it.
    """
    tensors = list(tensors)
    metadata = {**(metadata or {}), **_panel_metadata(tensors)}
    entries: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    offset = 0
    for tensor in in_file_order(tensors):
        end = offset + tensor.nbytes
        entries[tensor.name] = {
            "dtype": DTYPES[tensor.dtype.name],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    # Panels are read in whole cache lines; every one of them is a multiple of such a line.
    text += b" " * (-(8 + len(text)) % (CACHE_LINE if PACKED_KEY in entries.get("__metadata__", {}) else 8))
    if len(entries) > MAX_TENSORS or len(text) > HEADER_BYTES:
        raise InputError(
            "more tensors or metadata than readers accept in one file",
            found=f"{len(entries)} tensors, a header of {len(text)} bytes",
            allowed=f"{MAX_TENSORS} tensors, a header of {HEADER_BYTES} bytes",
        )
    return len(text).to_bytes(8, "little") + text


def _panel_metadata(tensors: list[StoredTensor]) -> dict[str, str]:
    """What a file says of its panels: docs/spec/checkpoints.md."""
    shapes = {tensor.name: list(tensor.panels_of) for tensor in tensors if tensor.panels_of is not None}
    if not shapes:
        return {}
    text = json.dumps({"version": PACKED_VERSION, "shapes": shapes}, separators=(",", ":"))
    # Versions of transformers that look at "format" refuse such a file under any name.
    return {"format": PACKED_KEY, PACKED_KEY: text}


def in_file_order(tensors: Iterable[StoredTensor]) -> list[StoredTensor]:
    """As the package arranges them, so that every tensor is aligned to the size of its numbers; panels come first."""
    return sorted(
        tensors,
        key=lambda tensor: (
            tensor.panels_of is None,
            _ORDER.index(tensor.dtype.name),
            tensor.name.encode("utf-8"),
        ),
    )


def split_into_shards(
    tensors: Iterable[StoredTensor], max_shard_size: int | str
) -> dict[str, list[StoredTensor]]:
    """{file name: its tensors}, in order: one file, or several of at most `max_shard_size` bytes of numbers.

    As in transformers: a file is filled in the order of the tensors until the next one does not fit, and
    a tensor that is larger than a file may be is one of its own. Files with panels have names of their own, under which
    no other program looks for weights.
    Raises: InputError.
    """
    tensors, limit = list(tensors), size_in_bytes(max_shard_size)
    stem = "packed" if any(tensor.panels_of is not None for tensor in tensors) else "model"
    shards: list[list[StoredTensor]] = []
    current: list[StoredTensor] = []
    size = 0
    for tensor in tensors:
        if tensor.nbytes > limit:
            shards.append([tensor])
            continue
        if size + tensor.nbytes > limit:
            shards.append(current)
            current, size = [], 0
        current.append(tensor)
        size += tensor.nbytes
    if current:
        shards.append(current)
    if len(shards) > MAX_SHARDS:
        raise InputError(
            "max_shard_size is too small",
            where="max_shard_size",
            found=f"{quote(max_shard_size)}, which makes {len(shards)} files",
            allowed=f"at most {MAX_SHARDS} files",
        )
    if len(shards) == 1:
        return {f"{stem}.safetensors": shards[0]}
    return {
        f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors": shard
        for number, shard in enumerate(shards, 1)
    }


def size_in_bytes(size: int | str) -> int:
    """5000000000 for "5GB": units are powers of 1000, as in transformers.  Raises: InputError."""
    if type(size) is int and size > 0:
        return size
    match = _SIZE.fullmatch(size.strip()) if isinstance(size, str) else None
    count = int(float(match[1]) * _UNITS[match[2].upper()]) if match else 0
    if count < 1:
        raise InputError(
            "not a size of files",
            where="max_shard_size",
            found=quote(size),
            allowed='a number of bytes, or a number with a unit (KB, MB, GB, TB), such as "5GB"',
        )
    return count


def is_unicode(value: Any) -> bool:
    """Whether `value` is text that can be written as UTF-8."""
    try:
        return isinstance(value, str) and value.encode("utf-8") is not None
    except UnicodeEncodeError:  # half a character
        return False
