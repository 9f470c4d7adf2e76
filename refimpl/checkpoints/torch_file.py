"""`pytorch_model.bin`: what `torch.save(model.state_dict(), path)` writes, opened without torch and without pickle.

The file is a zip archive (`torch_zip.py`) of one record for each storage, a row of numbers, and of a pickle
(`torch_pickle.py`) that says which part of which storage is which tensor. Tensors may share a storage and may have any
strides. They are views of the mapped file, so opening a file costs what its pickle costs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from refimpl.backends import to_dtype
from refimpl.checkpoints.torch_pickle import read_state_dict
from refimpl.checkpoints.torch_values import Storage, Tensor
from refimpl.checkpoints.torch_zip import Record, check_content, read_archive
from refimpl.checkpoints.weight_file import MAX_TENSORS, WeightFile, open_bytes
from refimpl.errors import (
    CheckpointFormatError,
    IncompleteCheckpointError,
    ResourceLimitError,
    UnsafeCheckpointError,
    quote,
    shorten,
)

_ARCHIVE = b"PK\3\4"  # how a zip archive begins

MAX_RANK = 8
MAX_DIMENSION = 1 << 40
#: All tensors together may be as many times larger than the numbers of the file: views of one storage overlap.
MAX_OVERLAP = 2
_SMALL = 1 << 20  # bytes that are never too much: a row that is repeated by a stride of zero


@dataclass(frozen=True, slots=True)
class _Layout:
    """A tensor that is known to lie inside of its storage: everything that `np.ndarray` needs."""

    dtype: np.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # bytes
    begin: int  # byte of the file
    end: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class TorchFile(WeightFile):
    """The tensors of a file of `torch.save` by name, as read-only arrays.

    No program in the file is run: the names that its pickle may hold are a closed table, and nothing is called.
    Storages may be shared (tied weights), and tensors may have any strides: `file[name]` is a view of the mapped file.
    It is a copy where the numbers of an old file are not aligned. bool tensors are looked through when they are
    fetched, for bytes other than 0 and 1.

    Args:
        path: the file.
        mmap: map the file (default), or read it into memory of our own, which then no longer depends on
            the file staying as it is.
        verify: compare all numbers with their checksums (CRC-32), which reads the whole file once. Without it, the
            checksums of the pickle and of the small records are compared, and the places and sizes of everything.

    Raises: MissingFileError; IncompleteCheckpointError for a truncated file or a placeholder;
        UnsafeCheckpointError for what weights never need and what could do harm (see docs/spec/checkpoints.md),
        for files of torch before 1.6 and for TorchScript; CheckpointFormatError for other damage, and for files that
        hold other things than tensors by name; ResourceLimitError.
    """

    def __init__(self, path: Path, mmap: bool = True, verify: bool = False):
        self.path = Path(path)
        self.paths = [self.path]
        self._data = open_bytes(self.path, mmap)
        refuse_other_formats(self.path, self._data[:512].tobytes())
        self._records = read_archive(self._data, self.path)
        check_content(self._data, self._records, self.path, storages=verify)
        pickle = self._records["data.pkl"]
        tensors = read_state_dict(self._data[pickle.begin : pickle.end].tobytes(), self.path)
        if len(tensors) > MAX_TENSORS:
            raise ResourceLimitError(
                "too many tensors", where=self.path, found=f"{len(tensors)}", allowed=f"{MAX_TENSORS}"
            )
        storages = {tensor.storage.key: tensor.storage for tensor in tensors.values()}
        places = {key: self._place(storage) for key, storage in storages.items()}
        unused = [name for name in self._records if name.startswith("data/") and name[5:] not in places]
        if unused:
            raise UnsafeCheckpointError(
                f"the archive has numbers that no tensor uses: {shorten(unused)}", where=self.path
            )
        self._layouts = {
            name: self._layout(name, tensor, places[tensor.storage.key]) for name, tensor in tensors.items()
        }
        self._nbytes, self._stored_bytes = self._count_bytes(tensors, places)

    def __getitem__(self, name: str) -> np.ndarray:
        layout = self._layouts[name]
        array: np.ndarray
        if layout.begin == layout.end:
            array = np.empty(layout.shape, layout.dtype)
        else:
            numbers = self._data[layout.begin : layout.end]
            array = np.ndarray(layout.shape, layout.dtype, numbers, 0, layout.strides)
            if layout.dtype == bool and (numbers > 1).any():
                raise CheckpointFormatError(
                    f"tensor {quote(name)} is of truth values, but has bytes other than 0 and 1",
                    where=self.path,
                    path=self.path,
                    offset=layout.begin,
                )
        if not array.flags.aligned:
            array = array.copy()
        array.flags.writeable = False
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._layouts)

    def __len__(self) -> int:
        return len(self._layouts)

    def __contains__(self, name: object) -> bool:
        return name in self._layouts

    def dtype(self, name: str) -> np.dtype:
        return self._layouts[name].dtype

    def shape(self, name: str) -> tuple[int, ...]:
        return self._layouts[name].shape

    @property
    def nbytes(self) -> int:
        return self._nbytes

    @property
    def stored_bytes(self) -> int:
        return self._stored_bytes

    def is_view(self, name: str) -> bool:
        layout = self._layouts[name]  # strides are multiples of the item size
        return layout.begin % layout.dtype.alignment == 0

    def _place(self, storage: Storage) -> Record:
        """The record of a storage, which has exactly as many bytes as the pickle says."""
        record = self._records.get(f"data/{storage.key}")
        if record is None:
            raise CheckpointFormatError(
                f"the archive has no record data/{storage.key}, which its pickle names",
                where=self.path,
                path=self.path,
            )
        size = storage.size * (to_dtype(storage.dtype).itemsize if storage.dtype else 1)
        if size != record.end - record.begin:
            raise UnsafeCheckpointError(
                f"data/{storage.key}: the record does not have the size that its pickle says",
                where=self.path,
                found=f"{record.end - record.begin} bytes",
                allowed=f"{size} bytes",
                offset=record.begin,
            )
        return record

    def _layout(self, name: str, tensor: Tensor, record: Record) -> _Layout:
        """Where a tensor lies. All of it is computed in whole numbers of Python, which do not overflow."""
        dtype = to_dtype(tensor.dtype)
        width, shape = dtype.itemsize, tensor.shape
        if (
            len(shape) > MAX_RANK
            or min((tensor.offset, *shape, *tensor.strides)) < 0
            or max(shape, default=0) > MAX_DIMENSION
            or math.prod(size or 1 for size in shape) * width > 1 << 62
        ):
            raise self._outside(name, tensor, "a shape that no weight has")
        steps = tuple(
            # Where there is one place to go to, the stride says nothing, and may be any number.
            stride if size > 1 else math.prod(shape[axis + 1 :])
            for axis, (size, stride) in enumerate(zip(shape, tensor.strides, strict=True))
        )
        if 0 in shape:
            return _Layout(dtype, shape, (0,) * len(shape), record.begin, record.begin)
        last = tensor.offset + sum((size - 1) * step for size, step in zip(shape, steps, strict=True))
        begin, end = record.begin + tensor.offset * width, record.begin + (last + 1) * width
        if end > record.end:
            raise self._outside(name, tensor, f"data/{tensor.storage.key} ends before the tensor does")
        return _Layout(dtype, shape, tuple(step * width for step in steps), begin, end)

    def _outside(self, name: str, tensor: Tensor, what: str) -> UnsafeCheckpointError:
        parts = f"shape {list(tensor.shape)}, offset {tensor.offset}, strides {list(tensor.strides)}"
        return UnsafeCheckpointError(
            f"tensor {quote(name)}: {what}",
            where=self.path,
            found=parts if len(parts) <= 300 else parts[:299] + "…",
            allowed=f"at most {tensor.storage.size} numbers in {MAX_RANK} dimensions",
        )

    def _count_bytes(self, tensors: dict[str, Tensor], places: dict[str, Record]) -> tuple[int, int]:
        """Bytes of all tensors, what they share once, and of all storages.

        Refuses views that would be huge if they were copied.
        """
        of_storage: dict[str, dict[_Layout, int]] = {key: {} for key in places}
        for name, tensor in tensors.items():
            layout = self._layouts[name]
            of_storage[tensor.storage.key][layout] = layout.nbytes
        stored = {key: record.end - record.begin for key, record in places.items()}
        wanted = {key: sum(layouts.values()) for key, layouts in of_storage.items()}
        if sum(wanted.values()) > MAX_OVERLAP * sum(stored.values()) + _SMALL:
            raise ResourceLimitError(
                "the tensors are much larger than the numbers they are made of",
                where=self.path,
                found=f"{sum(wanted.values())} bytes",
                allowed=f"{MAX_OVERLAP} times the {sum(stored.values())} bytes of the storages",
            )
        return sum(min(wanted[key], stored[key]) for key in places), sum(stored.values())


def refuse_other_formats(path: Path, head: bytes) -> None:
    """Names what else lies under the name of a file of `torch.save`, by its first 512 bytes.

    Raises: UnsafeCheckpointError for the formats of torch before 1.6, which are pickles through and through; there is
        no reader for them here. IncompleteCheckpointError for fewer bytes than tell. CheckpointFormatError.
    """
    if head.startswith(_ARCHIVE):
        return
    legacy = None
    if head[257:262] == b"ustar":
        legacy = "a tar archive, as torch wrote at first"
    elif len(head) > 1 and head[0] == 0x80 and head[1] <= 5:
        legacy = "a pickle without an archive around it, as torch wrote before version 1.6"
    if legacy:
        raise UnsafeCheckpointError(
            f"this is {legacy}: reading it can run programs, and nothing here can read it. Nothing was executed",
            where=path,
            hint="If you trust it, convert it where torch is installed: "
            "torch.save(torch.load(path, weights_only=True), new_path); or better, save it as safetensors.",
        )
    if _ARCHIVE.startswith(head):
        raise IncompleteCheckpointError(
            "the file is cut short",
            where=path,
            found=f"{len(head)} bytes",
            hint="Download it again.",
            path=path,
        )
    raise CheckpointFormatError(
        "this is no file of torch.save",
        where=path,
        found=quote(head[:8]),
        allowed=f"{quote(_ARCHIVE)} at the beginning",
        hint="A file of another format needs the name of its format, such as model.safetensors.",
        path=path,
        offset=0,
    )
