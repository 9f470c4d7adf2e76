"""The zip container that `torch.save` writes (torch 1.6 and later), read without believing it.

An archive is a row of records and a directory that repeats what their headers say:

    header  name  extra  numbers  descriptor      for each record, from byte 0 on, without a gap
    header  name  extra                           for each record again, in the same order: the directory
    [zip64 end, zip64 locator]  end               the last bytes of the file

torch never compresses, and pads `extra` so that the numbers begin at a multiple of 64. Programs that read zip
files differ in which of the two headers they believe, and whoever checks a file must see what whoever loads it sees.
So both must agree here, every byte of the file belongs to exactly one part, and there are no other records than those
that torch writes. Nothing is extracted: a record is a place in the file.

Source: PKWARE's APPNOTE.TXT 6.3 and files of torch 1.6 to 2.15. Threats: docs/spec/checkpoints.md.
"""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from refimpl.errors import (
    CheckpointFormatError,
    IncompleteCheckpointError,
    RefimplError,
    ResourceLimitError,
    UnsafeCheckpointError,
    quote,
)

MAX_RECORDS = 200_000
MAX_DIRECTORY = 64 << 20  # bytes
MAX_PICKLE = 64 << 20  # bytes of data.pkl; that of a model of 20 billion weights has 200,000
MAX_NAME = 512  # bytes

_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR = struct.Struct("<4sIQI")

_HAS_DESCRIPTOR, _UTF8 = 0x0008, 0x0800
_STORED = 0
_VERSION_OF_ZIP64 = 45  # the newest that stored records can need; torch writes 0
_MAX16, _MAX32 = 0xFFFF, 0xFFFFFFFF
_ZIP64, _PADDING = 0x0001, 0x4246  # kinds of `extra`; torch's own is the letters FB

_STORAGE_NAME = re.compile(r"data/[0-9]{1,20}")
#: The small records, and what may stand in them. Some versions of torch do not write all of them.
_SMALL = {
    "version": re.compile(rb"3\n"),
    "byteorder": re.compile(rb"little"),
    ".format_version": re.compile(rb"[12]"),
    ".storage_alignment": re.compile(rb"[0-9]{1,6}"),
    ".data/serialization_id": re.compile(rb"[0-9]{1,64}"),
}
_REQUIRED = ("data.pkl", "version")


@dataclass(frozen=True, slots=True)
class Record:
    """Where the content of a record lies in the file, and the checksum that the archive has for it."""

    begin: int
    end: int
    crc: int


def read_archive(data: np.ndarray, path: Path) -> dict[str, Record]:
    """The records of an archive by their names without the common folder: `data.pkl`, `data/0`, ...

    Args:
        data: uint8 [size], the file.
        path: for messages.

    Raises: IncompleteCheckpointError where the end of the file is missing; UnsafeCheckpointError for what torch
        never writes and what hides things (compression, encryption, other records, bytes that belong to no
        record, headers that contradict each other, the formats before torch 1.6, TorchScript);
        CheckpointFormatError for other damage; ResourceLimitError.
    """
    return _Archive(data, path).read()


def check_content(data: np.ndarray, records: dict[str, Record], path: Path, storages: bool) -> None:
    """Compares contents with their checksums: those of the small records and, if asked for, those of the storages.

    A file that was written without checksums (`torch.serialization.set_crc32_options(False)`) has zero everywhere.

    Raises: CheckpointFormatError.
    """
    without = all(record.crc == 0 for record in records.values())
    if without and storages:
        raise CheckpointFormatError(
            "the file was written without checksums, so nothing can be verified", where=path, path=path
        )
    for name, record in records.items():
        if without or (_STORAGE_NAME.fullmatch(name) and not storages):
            continue
        found = zlib.crc32(data[record.begin : record.end].data)
        if found != record.crc:
            raise CheckpointFormatError(
                f"{quote(name)}: the content does not fit its checksum; the file is damaged",
                where=path,
                found=f"{found:08x}",
                allowed=f"{record.crc:08x}",
                hint="Download it again.",
                path=path,
                offset=record.begin,
            )


@dataclass(frozen=True, slots=True)
class _Entry:
    """One line of the directory."""

    name: str
    raw_name: bytes
    fixed: tuple[int, ...]  # version needed, flags, method, time, date
    crc: int
    size: int
    offset: int

    @property
    def has_descriptor(self) -> bool:
        return bool(self.fixed[1] & _HAS_DESCRIPTOR)

    @property
    def wide(self) -> bool:
        """Whether sizes or offset need 64 bits, as in the records of more than 4 GB and all behind them."""
        return max(self.size, self.offset) >= _MAX32

    def zip64(self, packed: int) -> bytes:
        """What stands beside the header of the record itself, where something needs 64 bits."""
        numbers = [self.size, packed] * (self.size >= _MAX32) + [self.offset] * (self.offset >= _MAX32)
        return struct.pack(f"<2H{len(numbers)}Q", _ZIP64, 8 * len(numbers), *numbers) if numbers else b""


class _Archive:
    def __init__(self, data: np.ndarray, path: Path):
        self.data, self.path, self.size = data, path, len(data)

    def read(self) -> dict[str, Record]:
        directory, end, count = self._find_directory()
        content = self._bytes(directory, end - directory)
        if b"/constants.pkl" in content:
            raise UnsafeCheckpointError(
                "this is a TorchScript archive: a program, not weights",
                where=self.path,
                hint="Save the weights alone: torch.save(module.state_dict(), path).",
            )
        records: dict[str, Record] = {}
        prefix, place, cursor = "", 0, 0
        for _ in range(count):
            entry, cursor = self._central(content, cursor, directory)
            folder, _, name = entry.name.partition("/")
            self._check_name(entry, folder, name, prefix or folder)
            if name in records:
                raise self._unsafe(f"the record {quote(entry.name)} is there twice", entry.offset)
            if entry.offset != place:
                raise self._unsafe(
                    f"{quote(entry.name)}: between two records lie bytes that belong to neither, or they overlap",
                    entry.offset,
                    found=f"a record at byte {entry.offset}",
                    allowed=f"one at byte {place}",
                )
            prefix = folder
            records[name], place = self._local(entry, directory)
        if cursor != len(content) or place != directory:
            raise self._unsafe("records and directory do not fill the file without a gap", place)
        self._check_small(records)
        return records

    def _find_directory(self) -> tuple[int, int, int]:
        """Where the directory begins and ends, and how many records it lists."""
        end = self.size - _END.size
        if end < 0 or self._bytes(end, 4) != b"PK\5\6":
            raise self._no_end()
        _, disk, first_disk, here, count, size, begin, comment = _END.unpack(self._bytes(end, _END.size))
        if comment:
            raise self._no_end()
        disks: tuple[int, ...] = (disk, first_disk)
        locator = end - _LOCATOR.size
        if locator >= 0 and self._bytes(locator, 4) == b"PK\6\7":
            wide = locator - _END64.size
            _, at_disk, at, total = _LOCATOR.unpack(self._bytes(locator, _LOCATOR.size))
            if at != wide or wide < 0 or self._bytes(wide, 4) != b"PK\6\6":
                raise self._unsafe("the zip64 locator does not lead to the zip64 end before it", locator)
            short, disks = (here, count, size, begin), (*disks, at_disk, total - 1)
            _, length, _, _, *more, here, count, size, begin = _END64.unpack(self._bytes(wide, _END64.size))
            limits = (_MAX16, _MAX16, _MAX32, _MAX32)
            cut = tuple(min(n, most) for n, most in zip((here, count, size, begin), limits, strict=True))
            if length != _END64.size - 12 or cut != short:
                raise self._unsafe("the end and the zip64 end of the archive contradict each other", wide)
            disks, end = (*disks, *more), wide
        if any(disks) or here != count:
            raise self._unsafe("this is one part of an archive of several", end)
        if begin + size != end:
            raise self._unsafe(
                "the directory does not end where the end of the archive begins",
                end,
                found=f"bytes {begin} to {begin + size}",
                allowed=f"up to byte {end}",
            )
        for what, number, limit in (
            ("records", count, MAX_RECORDS),
            ("bytes of directory", size, MAX_DIRECTORY),
        ):
            if number > limit:
                raise ResourceLimitError(
                    f"the archive has too many {what}", where=self.path, found=str(number), allowed=f"{limit}"
                )
        return begin, end, count

    def _central(self, content: bytes, cursor: int, directory: int) -> tuple[_Entry, int]:
        """One line of the directory, and where the next one begins."""
        after = cursor + _CENTRAL.size
        if after > len(content) or content[cursor : cursor + 4] != b"PK\1\2":
            raise self._damaged("the directory has fewer lines than records", directory + cursor)
        (
            _,
            _,
            *fixed,
            crc,
            packed,
            size,
            name_length,
            extra_length,
            comment,
            disk,
            internal,
            external,
            offset,
        ) = _CENTRAL.unpack_from(content, cursor)
        needed, flags, method, _, _ = fixed
        raw_name = content[after : after + name_length]
        extra = content[after + name_length : after + name_length + extra_length]
        after += name_length + extra_length
        if after > len(content):
            raise self._damaged("a line of the directory is longer than the directory", directory + cursor)
        name = self._decode(raw_name, flags, directory + cursor)
        if flags & ~(_HAS_DESCRIPTOR | _UTF8):
            what = "is encrypted" if flags & 0x2041 else f"has flags that torch never sets (0x{flags:04x})"
            raise self._unsafe(f"{quote(name)} {what}", directory + cursor)
        if method != _STORED:
            raise self._unsafe(
                f"{quote(name)} is compressed, and torch never compresses weights",
                directory + cursor,
                found=f"method {method}",
                allowed="method 0",
            )
        # A record with the attribute of a folder is read as empty by torch, and its numbers stay what they were.
        if comment or disk or internal or external or needed > _VERSION_OF_ZIP64:
            raise self._unsafe(
                f"{quote(name)} has a comment or attributes, lies in another file, or needs what torch never uses",
                directory + cursor,
            )
        packed, size, offset = self._widen(extra, (packed, size, offset), directory + cursor)
        if packed != size:
            raise self._unsafe(
                f"{quote(name)}: stored and real size differ, but nothing is compressed",
                directory + cursor,
                found=f"{packed} and {size} bytes",
            )
        return _Entry(name, raw_name, tuple(fixed), crc, size, offset), after

    def _widen(self, extra: bytes, short: tuple[int, int, int], at: int) -> tuple[int, ...]:
        """Sizes and offset of a line of the directory, with those that need 64 bits taken from `extra`."""
        packed, size, offset = short
        wide = [number for number in (size, packed, offset) if number == _MAX32]  # the order of the format
        if not wide and not extra:
            return short
        if (
            not wide
            or len(extra) != 4 + 8 * len(wide)
            or struct.unpack_from("<2H", extra) != (_ZIP64, len(extra) - 4)
        ):
            raise self._unsafe("the directory has extra bytes that torch never writes", at)
        numbers = struct.unpack_from(f"<{len(wide)}Q", extra, 4)
        if any(number < _MAX32 for number in numbers):
            raise self._unsafe("a small number is written as if it needed 64 bits", at)
        rest = iter(numbers)
        size, packed, offset = (
            next(rest) if number == _MAX32 else number for number in (size, packed, offset)
        )
        return packed, size, offset

    def _local(self, entry: _Entry, directory: int) -> tuple[Record, int]:
        """The record behind a line of the directory, which says the same, and where the next one begins."""
        name, place = quote(entry.name), entry.offset
        begin = place + _LOCAL.size + len(entry.raw_name)
        if begin > directory:
            raise self._damaged(f"{name}: the record lies behind the records", place)
        signature, *rest = _LOCAL.unpack(self._bytes(place, _LOCAL.size))
        *fixed, crc, packed, size, name_length, extra_length = rest
        if signature != b"PK\3\4":
            raise self._unsafe(f"{name}: no record begins where the directory says", place)
        sizes = {(entry.crc, min(entry.size, _MAX32), min(entry.size, _MAX32))}
        if entry.has_descriptor:
            sizes.add((0, 0, 0))  # they stand in the descriptor
        raw_name = self._bytes(place + _LOCAL.size, len(entry.raw_name))
        if (
            tuple(fixed) != entry.fixed
            or (crc, packed, size) not in sizes
            or name_length != len(entry.raw_name)
            or raw_name != entry.raw_name
        ):
            raise self._unsafe(
                f"{name}: the header of the record and the directory contradict each other", place
            )
        if begin + extra_length + entry.size > directory:
            raise self._damaged(f"{name}: the record is longer than the room for it", place)
        self._check_extra(entry, self._bytes(begin, extra_length))
        begin += extra_length
        end = begin + entry.size
        after = end
        if entry.has_descriptor:
            form = "<4sI2Q" if entry.wide else "<4s3I"
            descriptor = struct.pack(form, b"PK\7\10", entry.crc, entry.size, entry.size)
            after += len(descriptor)
            if after > directory or self._bytes(end, len(descriptor)) != descriptor:
                raise self._unsafe(f"{name}: the descriptor and the directory contradict each other", end)
        return Record(begin, end, entry.crc), after

    def _check_extra(self, entry: _Entry, extra: bytes) -> None:
        """Only what torch needs may stand beside the header: numbers of 64 bits, and padding by the letter Z."""
        # torch does not know the packed size yet when it writes the header, and leaves it zero.
        forms = (
            (entry.zip64(entry.size), entry.zip64(0)) if entry.has_descriptor else (entry.zip64(entry.size),)
        )
        zip64 = next((form for form in forms if extra.startswith(form)), None)
        padding = extra[len(zip64 or b"") :]
        known = not padding or (
            len(padding) >= 4
            and struct.unpack_from("<2H", padding) == (_PADDING, len(padding) - 4)
            and padding.count(b"Z", 4) == len(padding) - 4
        )
        if zip64 is None or not known:
            raise self._unsafe(
                f"{quote(entry.name)}: beside the header lie bytes that torch never writes", entry.offset
            )

    def _decode(self, raw_name: bytes, flags: int, at: int) -> str:
        try:
            name = raw_name.decode("utf-8" if flags & _UTF8 else "ascii")
        except UnicodeDecodeError as error:
            raise self._unsafe(f"the name of a record is no text: {quote(raw_name)}", at) from error
        if len(raw_name) > MAX_NAME or not name.isprintable() or "\\" in name:
            raise self._unsafe(f"a record has a name that torch never gives: {quote(name)}", at)
        return name

    def _check_name(self, entry: _Entry, folder: str, name: str, prefix: str) -> None:
        """Records lie in one folder, named after the file, and are those that torch writes."""
        if folder in ("", ".", "..") or folder != prefix:
            raise self._unsafe(
                f"the record {quote(entry.name)} lies outside the folder of the archive",
                entry.offset,
                allowed=quote(prefix + "/") if prefix not in ("", ".", "..") else "a folder with a name",
            )
        if name != "data.pkl" and name not in _SMALL and not _STORAGE_NAME.fullmatch(name):
            raise self._unsafe(
                f"a record that weights do not have: {quote(entry.name)}",
                entry.offset,
                allowed="data.pkl, data/0, data/1, ... " + ", ".join(_SMALL),
            )

    def _check_small(self, records: dict[str, Record]) -> None:
        for name in _REQUIRED:
            if name not in records:
                raise self._damaged(f"the archive has no record {quote(name)}", 0)
        pickle = records["data.pkl"]
        if pickle.end - pickle.begin > MAX_PICKLE:
            raise ResourceLimitError(
                "data.pkl is too large",
                where=self.path,
                found=f"{pickle.end - pickle.begin} bytes",
                allowed=f"{MAX_PICKLE}",
            )
        for name, allowed in _SMALL.items():
            record = records.get(name)
            if record is None:
                continue
            content = self._bytes(record.begin, min(record.end - record.begin, 80))
            if not allowed.fullmatch(content):
                raise self._damaged(
                    f"the record {quote(name)} says something that is not known here",
                    record.begin,
                    found=quote(content),
                    allowed=quote(allowed.pattern),
                )

    def _bytes(self, begin: int, size: int) -> bytes:
        return self.data[begin : begin + size].tobytes()

    def _no_end(self) -> RefimplError:
        tail = self._bytes(max(self.size - _END.size - _MAX16, 0), _END.size + _MAX16)
        found = tail.rfind(b"PK\5\6")
        if found < 0 or len(tail) - found < _END.size:
            return self._cut()
        return self._unsafe(
            "behind the end of the archive lies something else", self.size - len(tail) + found
        )

    def _cut(self) -> IncompleteCheckpointError:
        return IncompleteCheckpointError(
            "the end of the archive is missing: the file is cut short, probably by an interrupted download",
            where=self.path,
            found=f"{self.size} bytes",
            hint="Download it again.",
            path=self.path,
            offset=self.size,
        )

    def _unsafe(self, what: str, offset: int, **details: Any) -> UnsafeCheckpointError:
        return UnsafeCheckpointError(f"byte {offset}: {what}", where=self.path, offset=offset, **details)

    def _damaged(self, what: str, offset: int, **details: Any) -> CheckpointFormatError:
        return CheckpointFormatError(
            f"byte {offset}: {what}", where=self.path, path=self.path, offset=offset, **details
        )
