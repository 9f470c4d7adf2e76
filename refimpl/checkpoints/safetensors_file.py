"""Safetensors files: 8 bytes of length, a header in JSON, and the numbers themselves.

Format: https://github.com/huggingface/safetensors. The header is read here rather than by the package of
that name: more strictly, and once. The package writes the files.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from refimpl.backends import to_dtype
from refimpl.checkpoints.weight_file import (
    MAX_NAME_BYTES,
    MAX_TENSORS,
    NAMES,
    RegularFile,
    WeightFile,
    is_tensor_name,
)
from refimpl.errors import (
    CheckpointFormatError,
    IncompleteCheckpointError,
    ResourceLimitError,
    quote,
)

WEIGHTS_NAME = "model.safetensors"

#: The header of a model of 20 billion parameters takes a hundredth of it.
HEADER_BYTES = 16 << 20
_FORMAT_HEADER_BYTES = 100_000_000  # the format's own limit

_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip

_KEYS = {"dtype", "shape", "data_offsets"}
_MAX_RANK = 8
_MAX_DIM = 1 << 40

# An entry of eight dimensions has 11, 2 and 1; the rest is for what stands in metadata. Python takes up to two
# hundred bytes for what takes three here, so this is looked at first.
_MOST_MARKS = {b",": 12 * MAX_TENSORS, b"[": 3 * MAX_TENSORS, b"{": 2 * MAX_TENSORS}


class SafetensorsFile(WeightFile):
    """The tensors of a safetensors file by name, as read-only arrays.

    Opening reads and checks the header; a tensor costs memory only when it is used. A tensor that does not lie at a
    multiple of its item size is copied on each access, any other is a view.

    Beyond what the format asks: nothing stands twice; the header begins with `{` and ends with `}` and spaces;
    entries are objects with exactly the keys dtype, shape and data_offsets; names are as `is_tensor_name` wants them;
    there are at most 8 dimensions, of at most 2**40 each, and 100,000 tensors. Types that NumPy lacks (floats of 8 bits
    and fewer) and complex numbers are refused.

    Args:
        path: the file.
        mmap: map the file (default), which must then stay as it is: whoever makes it shorter meanwhile ends the
            process. Or read it into memory of our own.
        max_header_bytes: refuse a longer header; the format's own limit, 100,000,000, holds in any case.

    Attributes: `metadata`, the file's own dict of texts.

    Raises: as `RegularFile`; IncompleteCheckpointError for a truncated file, CheckpointFormatError (with the
        `offset` in the file where it is known) for anything else that is not allowed, ResourceLimitError for a
        header or a number of tensors beyond the limits.
    """

    def __init__(self, path: str | os.PathLike[str], mmap: bool = True, max_header_bytes: int = HEADER_BYTES):
        self.path = Path(path)
        self.paths = [self.path]
        with RegularFile(self.path) as file:
            header = _Header(self.path, _header_bytes(file, max_header_bytes), file.size)
            self._data = file.content(mmap)
        self._entries, self._start, self.metadata = header.entries, header.end, header.metadata

    def __getitem__(self, name: str) -> np.ndarray:
        entry = self._entries[name]
        array = np.ndarray(entry.shape, entry.dtype, self._data, self._start + entry.begin)
        if not array.flags.aligned:
            array = array.copy()
            array.flags.writeable = False
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def dtype(self, name: str) -> np.dtype:
        return self._entries[name].dtype

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entries[name].shape

    @property
    def nbytes(self) -> int:
        return self._data.size - self._start

    @property
    def stored_bytes(self) -> int:
        return self.nbytes

    def is_view(self, name: str) -> bool:
        entry = self._entries[name]
        return (self._start + entry.begin) % entry.dtype.alignment == 0


class _Entry(NamedTuple):
    """Of one tensor; its bytes are counted from the end of the header."""

    dtype: np.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


def _header_bytes(file: RegularFile, limit: int) -> bytes:
    """The header of a file that is long enough to hold it, and no longer than allowed."""
    start = file.head(8)
    length = int.from_bytes(start, "little")
    if len(start) == 8 and length > _FORMAT_HEADER_BYTES:
        raise CheckpointFormatError(
            "not a safetensors file, which begins with the length of its header",
            where=file.path,
            found=quote(file.head(16)),
            allowed=f"a length of at most {_FORMAT_HEADER_BYTES}",
            path=file.path,
            offset=0,
        )
    if len(start) < 8:
        raise _cut_short(file.path, file.size, "8 bytes with the length of the header, and what follows")
    if file.size < 8 + length:
        raise _cut_short(file.path, file.size, f"{8 + length} bytes with the header, and the numbers")
    if length > limit:
        raise ResourceLimitError(
            "the header is too large",
            where=file.path,
            found=f"{length} bytes",
            allowed=f"{limit} bytes",
            hint="If the file is to be trusted, pass max_header_bytes.",
        )
    return file.head(8 + length)[8:]


def _cut_short(path: Path, size: int, announced: str) -> IncompleteCheckpointError:
    return IncompleteCheckpointError(
        "the file is cut short, probably by an interrupted download",
        where=path,
        found=f"{size} bytes",
        allowed=announced,
        hint="Download it again.",
        path=path,
        offset=size,
    )


class _Header:
    """The header of one file, with everything in it checked.

    Attributes: `entries` in the order of the file, `metadata`, `end` (where the numbers begin).
    """

    def __init__(self, path: Path, content: bytes, size: int):
        self.path, self.end, self._content = path, 8 + len(content), content
        header = self._parsed()
        self.metadata = self._checked_metadata(header.pop("__metadata__", {}))
        if len(header) > MAX_TENSORS:
            raise ResourceLimitError(
                "too many tensors", where=path, found=len(header), allowed=f"at most {MAX_TENSORS}"
            )
        self.entries = {name: self._checked_entry(name, entry) for name, entry in header.items()}
        self._check_layout(size)

    def _parsed(self) -> dict[str, Any]:
        content = self._content
        if content[:1] != b"{":
            raise self._refused("the header must begin with {", 8, found=quote(content[:16]))
        if content.rstrip(b" ")[-1:] != b"}":
            raise self._refused(
                "the header must end with }, and spaces after it", self.end, found=quote(content[-16:])
            )
        for mark, most in _MOST_MARKS.items():
            if content.count(mark) > most:
                raise ResourceLimitError(
                    f"the header has too many {mark.decode()}",
                    where=self.path,
                    found=content.count(mark),
                    allowed=f"at most {most}",
                )
        try:
            text = content.decode("utf-8")
            header = json.loads(text, object_pairs_hook=_object, parse_int=_integer)
        except UnicodeDecodeError as error:
            raise self._refused("the header is not UTF-8", 8 + error.start) from error
        except json.JSONDecodeError as error:
            place = 8 + len(text[: error.pos].encode("utf-8"))
            raise self._refused(f"the header is not valid JSON: {error.msg}", place) from error
        except (ValueError, RecursionError) as error:
            raise self._refused(f"the header is not valid JSON: {error}") from error
        return header

    def _checked_metadata(self, metadata: Any) -> dict[str, str]:
        if not isinstance(metadata, dict) or not all(
            _is_text(text) for pair in metadata.items() for text in pair
        ):
            raise self._refused(
                "__metadata__ must be an object of texts",
                self._place("__metadata__"),
                found=quote(metadata),
            )
        return metadata

    def _checked_entry(self, name: str, entry: Any) -> _Entry:
        if not is_tensor_name(name):
            raise self._wrong(name, "not a name that a tensor can have", name, NAMES)
        if not isinstance(entry, dict) or entry.keys() != _KEYS:
            raise self._wrong(
                name, "its entry has other keys", entry, "exactly dtype, shape and data_offsets"
            )
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in _DTYPES:
            raise self._wrong(name, "a dtype that weights do not have", dtype, ", ".join(_DTYPES))
        if not _are_whole(shape, _MAX_DIM) or len(shape) > _MAX_RANK:
            raise self._wrong(
                name,
                "a shape that no weight has",
                shape,
                f"at most {_MAX_RANK} whole numbers from 0 to 2**40",
            )
        if not _are_whole(offsets, sys.maxsize) or len(offsets) != 2 or offsets[0] > offsets[1]:
            raise self._wrong(name, "wrong data_offsets", offsets, "[begin, end], whole numbers in order")
        begin, end = offsets
        numpy_dtype = _numpy_dtype(dtype)
        needed = math.prod(shape) * numpy_dtype.itemsize
        if needed != end - begin:
            raise self._wrong(
                name, f"shape {quote(shape)} of {dtype} takes {needed} bytes", f"{end - begin} bytes", None
            )
        # Beside a 0 the other dimensions do not show in the bytes; NumPy multiplies them all the same.
        if math.prod(dim for dim in shape if dim) * numpy_dtype.itemsize > sys.maxsize:
            raise self._wrong(
                name, "a shape that no weight has", shape, f"{sys.maxsize} bytes, without the zeros"
            )
        return _Entry(numpy_dtype, tuple(shape), begin, end)

    def _check_layout(self, size: int) -> None:
        """The tensors must follow each other without a gap, from the end of the header to the end of the file."""
        position = 0
        for name, entry in sorted(self.entries.items(), key=lambda item: item[1][2:]):
            if entry.begin != position:
                what = (
                    f"overlap those of the tensor before, which ends at {position}"
                    if entry.begin < position
                    else f"leave a gap after the tensor before, which ends at {position}"
                )
                raise self._refused(
                    f"tensor {quote(name)}: its bytes {what}",
                    self._place(name),
                    found=f"[{entry.begin}, {entry.end})",
                    allowed=f"the next byte, {position}",
                    tensor=name,
                )
            position = entry.end
        needed = self.end + position
        if size < needed:
            share = f"{needed} bytes, as the header says (so {size / needed:.1%} of them are there)"
            raise _cut_short(self.path, size, share)
        if size > needed:
            raise self._refused(
                "bytes after the last tensor", needed, found=f"{size} bytes", allowed=f"{needed} bytes"
            )

    def _wrong(self, name: str, what: str, found: Any, allowed: str | None) -> CheckpointFormatError:
        shown = found if isinstance(found, str) and allowed is None else quote(found)
        return self._refused(
            f"tensor {quote(name)}: {what}", self._place(name), found=shown, allowed=allowed, tensor=name
        )

    def _refused(self, what: str, offset: int | None = None, **details: Any) -> CheckpointFormatError:
        at = "" if offset is None else f" (at byte {offset})"
        return CheckpointFormatError(what + at, where=self.path, path=self.path, offset=offset, **details)

    def _place(self, name: str) -> int | None:
        """Where in the file the key `name` stands, unless it is very long or written in an unusual way."""
        if len(name) > MAX_NAME_BYTES:  # a pattern of megabytes takes minutes, and hundreds of megabytes
            return None
        for ascii_only in (True, False):
            key = json.dumps(name, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
            if found := re.search(re.escape(key) + rb"\s*:", self._content):
                return 8 + found.start()
        return None


@cache
def _numpy_dtype(dtype: str) -> np.dtype:
    return to_dtype(_DTYPES[dtype])


def _are_whole(value: Any, most: int) -> bool:
    """Whether it is a list of whole numbers from 0 to `most`; `true` and 1.0 are none."""
    return isinstance(value, list) and all(type(part) is int and 0 <= part <= most for part in value)


def _is_text(value: Any) -> bool:
    """Whether it is a string that can be written as UTF-8: a lone surrogate cannot."""
    try:
        return isinstance(value, str) and value.encode("utf-8") is not None
    except UnicodeEncodeError:
        return False


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"the key {quote(name)} stands there twice")
            seen.add(name)
    return result


def _integer(text: str) -> int | float:
    # A whole number to Python, and none to the package, whose numbers have no sign.
    return -0.0 if text == "-0" else int(text)
