"""Several weight files of one model, and the index that says which tensor is in which.

`model.safetensors.index.json` and `pytorch_model.bin.index.json` have the same form: `weight_map` from the names of
tensors to the names of files beside the index, and `metadata`.
"""

from __future__ import annotations

import math
import os
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from json import JSONDecodeError
from pathlib import Path
from typing import Any

import numpy as np

from refimpl.checkpoints.weight_file import (
    MAX_TENSORS,
    NAMES,
    RegularFile,
    WeightFile,
    is_tensor_name,
    resolve_inside,
)
from refimpl.errors import (
    CheckpointFormatError,
    CheckpointMismatchError,
    IncompleteCheckpointError,
    MissingFileError,
    ResourceLimitError,
    UnsafeCheckpointError,
    quote,
    shorten,
)
from refimpl.json_reader import MIB, parse_json_object

INDEX_BYTES = 64 * MIB
MAX_SHARDS = 10_000

# A tensor has a comma, and the whole index three braces; the rest is for what stands in metadata. Python takes up
# to two hundred bytes for what takes three here, so this is looked at first.
_MOST_MARKS = {b",": 3 * MAX_TENSORS, b"[": MAX_TENSORS, b"{": MAX_TENSORS}

# A name with anything else could lead out of the folder, on some system; these letters cannot on any.
_FILE_NAME = re.compile(r"[A-Za-z0-9._-]{1,255}")
_WINDOWS_DEVICE = re.compile(r"(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\..*)?", re.IGNORECASE)


@dataclass(frozen=True)
class ShardIndex:
    """What an index says. `weight_map`: name of a tensor -> name of a file beside the index."""

    path: Path
    weight_map: dict[str, str]
    metadata: dict[str, Any]

    @property
    def file_names(self) -> list[str]:
        """The files, each once, in the order in which the index first names them."""
        return list(dict.fromkeys(self.weight_map.values()))


def read_index(path: str | os.PathLike[str]) -> ShardIndex:
    """The content of an index; whether the files are there is not looked at.

    Raises: as `RegularFile`; IncompleteCheckpointError for a truncated index; UnsafeCheckpointError for a file name
        that is more than a name; ResourceLimitError for more than 64 MiB, 100,000 tensors or 10,000 files;
        CheckpointFormatError for anything else that is wrong.
    """
    path = Path(path)
    content = _content(path)
    if not content.rstrip().endswith(b"}") and content.lstrip()[:1] == b"{":
        raise _cut_short(path, len(content))
    for mark, most in _MOST_MARKS.items():
        _refuse_many(path, content.count(mark), most, mark.decode())
    try:
        said = parse_json_object(content, path, CheckpointFormatError)
    except CheckpointFormatError as error:
        # An inner } may be the last byte that is left.
        if isinstance(error.__cause__, JSONDecodeError) and error.__cause__.pos == len(error.__cause__.doc):
            raise _cut_short(path, len(content)) from error
        raise
    weight_map, metadata = said.get("weight_map"), said.get("metadata")
    if not isinstance(weight_map, dict) or not weight_map:
        raise _wrong(path, "/weight_map", weight_map, "an object: name of a tensor -> name of a file")
    if not isinstance(metadata, dict | None):
        raise _wrong(path, "/metadata", metadata, "an object")
    _refuse_many(path, len(weight_map), MAX_TENSORS, "tensors")
    for name, file_name in weight_map.items():
        if not is_tensor_name(name):
            raise _wrong(path, "a key of /weight_map", name, NAMES)
        if not isinstance(file_name, str):
            raise _wrong(path, f"/weight_map/{quote(name)}", file_name, "the name of a file")
    index = ShardIndex(path, weight_map, metadata or {})
    _refuse_many(path, len(index.file_names), MAX_SHARDS, "files")
    for file_name in index.file_names:
        _check_file_name(path, file_name)
    return index


def _content(path: Path) -> bytes:
    with RegularFile(path) as file:
        if file.size > INDEX_BYTES:
            raise ResourceLimitError(
                "the index is too large",
                where=path,
                found=f"{file.size} bytes",
                allowed=f"{INDEX_BYTES} bytes",
            )
        return file.head(file.size)


def _check_file_name(path: Path, name: str) -> None:
    plain = _FILE_NAME.fullmatch(name) and not name.endswith(".") and not _WINDOWS_DEVICE.fullmatch(name)
    if not plain:
        raise UnsafeCheckpointError(
            "the index names a file that is not simply one beside it",
            where=path,
            found=quote(name),
            allowed="1 to 255 letters, digits, '.', '_' and '-'",
        )


def _wrong(path: Path, pointer: str, found: Any, allowed: str) -> CheckpointFormatError:
    return CheckpointFormatError(
        f"{pointer} is wrong", where=path, found=quote(found), allowed=allowed, path=path
    )


def _cut_short(path: Path, size: int) -> IncompleteCheckpointError:
    return IncompleteCheckpointError(
        "the index ends before its JSON does",
        where=path,
        found=f"{size} bytes",
        hint="Download it again.",
        path=path,
        offset=size,
    )


def _refuse_many(path: Path, count: int, limit: int, what: str) -> None:
    if count > limit:
        raise ResourceLimitError(f"too many {what}", where=path, found=count, allowed=f"at most {limit}")


class ShardedFiles(WeightFile):
    """The tensors of all files that an index names.

    Every file is opened at once, and once: its header is checked, and that it holds exactly the tensors that the
    index says it does, before a number is used. Other files in the folder are not opened.

    Args:
        index_path: the index.
        open_one: opens one file, `(path, mmap) -> WeightFile`.
        mmap: handed to `open_one`.

    Raises: as `read_index` and as `open_one`; IncompleteCheckpointError (attribute `missing`) with all files that
        are not there; CheckpointMismatchError with all tensors that a file lacks (`missing`) or should not
        have (`unexpected`), each with the name of the file.
    Warns: when the sizes do not add up to `metadata.total_size`, and of files that look like shards of the model
        but are not in the index.
    """

    def __init__(
        self,
        index_path: str | os.PathLike[str],
        open_one: Callable[[Path, bool], WeightFile],
        mmap: bool = True,
    ):
        self.index = read_index(index_path)
        folder = self.index.path.parent
        self._refuse_missing_files(folder)
        self._files = {name: open_one(folder / name, mmap) for name in self.index.file_names}
        self.paths = [path for file in self._files.values() for path in file.paths]
        self._refuse_disagreement()
        self._report_total_size()
        self._report_other_shards(folder)

    @property
    def parts(self) -> list[WeightFile]:
        return list(self._files.values())

    def __getitem__(self, name: str) -> np.ndarray:
        return self._file_of(name)[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.index.weight_map)

    def __len__(self) -> int:
        return len(self.index.weight_map)

    def __contains__(self, name: object) -> bool:
        return name in self.index.weight_map

    def dtype(self, name: str) -> np.dtype:
        return self._file_of(name).dtype(name)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._file_of(name).shape(name)

    @property
    def nbytes(self) -> int:
        return sum(file.nbytes for file in self._files.values())

    @property
    def stored_bytes(self) -> int:
        return sum(file.stored_bytes for file in self._files.values())

    def is_view(self, name: str) -> bool:
        return self._file_of(name).is_view(name)

    def _file_of(self, name: str) -> WeightFile:
        return self._files[self.index.weight_map[name]]

    def _refuse_missing_files(self, folder: Path) -> None:
        missing = []
        for name in self.index.file_names:
            try:
                resolve_inside(folder / name)
            except MissingFileError:
                missing.append(name)
        if missing:
            count = len(self.index.file_names)
            raise IncompleteCheckpointError(
                f"{len(missing)} of the {count} files of the index are not there: {shorten(missing)}",
                where=self.index.path,
                hint="Download them too.",
                path=self.index.path,
                missing=missing,
            )

    def _refuse_disagreement(self) -> None:
        promised: dict[str, set[str]] = {name: set() for name in self._files}
        for name, file_name in self.index.weight_map.items():
            promised[file_name].add(name)
        missing = [
            f"{name} in {file_name}"
            for name, file_name in self.index.weight_map.items()
            if name not in self._files[file_name]
        ]
        unexpected = [
            f"{name} in {file_name}"
            for file_name, file in self._files.items()
            for name in file
            if name not in promised[file_name]
        ]
        if missing or unexpected:
            raise CheckpointMismatchError(
                "the files do not hold the tensors that the index says",
                where=self.index.path,
                missing=missing,
                unexpected=unexpected,
            )

    def _report_total_size(self) -> None:
        """Nothing depends on it, and real checkpoints have wrong values; but it may be a sign of something else."""
        total = self.index.metadata.get("total_size")
        # Some tools have counted a truth value as the eighth of a byte, and so made a fraction of it.
        truth_values = sum(math.prod(self.shape(name)) for name in self if self.dtype(name).kind == "b")
        bits = (self.nbytes * 8, self.nbytes * 8 - 7 * truth_values)
        if total is None or (type(total) in (int, float) and total * 8 in bits):
            return
        warnings.warn(
            f"{self.index.path}: metadata.total_size is {quote(total)}, "
            f"but the files hold {self.nbytes} bytes of numbers",
            stacklevel=3,
        )

    def _report_other_shards(self, folder: Path) -> None:
        stem, _, ending = self.index.path.name.removesuffix(".index.json").rpartition(".")
        named = set(self.index.file_names)
        try:
            names = sorted(os.listdir(folder))
        except OSError:  # a folder can be used without being listed
            return
        other = [
            name
            for name in names
            if name.startswith(f"{stem}-")
            and name.endswith(f".{ending}")
            and "-of-" in name
            and name not in named
        ]
        if other:
            warnings.warn(
                f"{self.index.path}: {len(other)} more files look like parts of the model but are not in the index; "
                f"they are not used: {quote(other)}",
                stacklevel=3,
            )
