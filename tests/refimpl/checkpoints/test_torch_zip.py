"""The container of `torch.save`: everything that torch writes is read, and nothing else."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from refimpl.checkpoints import torch_zip
from refimpl.checkpoints.torch_file import TorchFile
from refimpl.checkpoints.torch_zip import read_archive
from refimpl.errors import (
    CheckpointFormatError,
    IncompleteCheckpointError,
    RefimplError,
    ResourceLimitError,
    UnsafeCheckpointError,
)
from tests.refimpl.checkpoints.torch_files import (
    Record,
    lied,
    padding,
    records_of,
    save,
    saved,
    small_file,
    write_archive,
)

HERE = Path("pytorch_model.bin")
PICKLE, STORAGES = saved({"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(2, np.float16)})
RECORDS = records_of(PICKLE, STORAGES)
FIRST_STORAGE = 4  # of RECORDS


def read(content: bytes) -> dict[str, bytes]:
    """The records and their contents, checksums compared."""
    data = np.frombuffer(content, np.uint8)
    records = read_archive(data, HERE)
    torch_zip.check_content(data, records, HERE, storages=True)
    return {name: content[record.begin : record.end] for name, record in records.items()}


def opened(tmp_path: Path, content: bytes) -> TorchFile:
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(content)
    return TorchFile(path, verify=True)


def refused(content: bytes) -> RefimplError:
    """The error with which a file is refused; it names the file and is one of the three classes."""
    with pytest.raises((CheckpointFormatError, UnsafeCheckpointError, ResourceLimitError)) as caught:
        read(content)
    assert str(HERE) in str(caught.value)
    assert str(caught.value).isprintable()
    return caught.value


def test_a_file_like_torch_s_is_read() -> None:
    content = write_archive(RECORDS)
    assert read(content) == {record.name.partition("/")[2]: record.content for record in RECORDS}


def test_our_writer_writes_what_zipfile_reads() -> None:
    """Else the attacks below would be refused for another reason than the one they are made for."""
    with zipfile.ZipFile(io.BytesIO(write_archive(RECORDS))) as archive:
        assert archive.testzip() is None
        assert [entry.filename for entry in archive.infolist()] == [record.name for record in RECORDS]


def test_storages_begin_at_a_multiple_of_64() -> None:
    records = read_archive(np.frombuffer(write_archive(RECORDS), np.uint8), HERE)
    assert all(record.begin % 64 == 0 for record in records.values())


@pytest.mark.parametrize("with_zip64", [True, False])
@pytest.mark.parametrize("prefix", ["archive", "pytorch_model", "my model.v2", "epoch:3", "重み", "data"])
def test_folders_of_any_name(prefix: str, with_zip64: bool) -> None:
    content = write_archive(records_of(PICKLE, STORAGES, prefix), with_zip64=with_zip64)
    assert read(content)["data.pkl"] == PICKLE


def test_records_that_older_versions_do_not_write() -> None:
    kept = [record for record in RECORDS if record.name.endswith(("data.pkl", "/0", "/1", "/version"))]
    assert list(read(write_archive(kept))) == ["data.pkl", "data/0", "data/1", "version"]


def test_other_writers_put_sizes_into_the_header() -> None:
    """zipfile, for one. Nothing is compressed, nothing lies between the records: it is the same to us."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for record in RECORDS:
            entry = zipfile.ZipInfo(record.name)
            entry.external_attr = 1  # or else zipfile sets one
            archive.writestr(entry, record.content)
            entry.external_attr = 0
    assert read(buffer.getvalue())["data/0"] == STORAGES["0"]


@pytest.mark.parametrize("extra", [b"", padding(0), padding(1), padding(65531)])
def test_padding_of_any_size_is_read(extra: bytes) -> None:
    assert read(write_archive(lied(RECORDS, FIRST_STORAGE, extra=extra)))["data/0"] == STORAGES["0"]


def test_every_bit_of_a_file() -> None:
    """Of 1.5 kB, each bit turned: the file is refused, or it means the same."""
    content = small_file()
    right = read(content)
    accepted = 0
    for place in range(8 * len(content)):
        changed = bytearray(content)
        changed[place // 8] ^= 1 << place % 8
        try:
            found = read(bytes(changed))
        except (CheckpointFormatError, UnsafeCheckpointError, ResourceLimitError):
            continue
        assert found == right, f"bit {place}"
        accepted += 1
    # Who made the archive: of each record, and twice in the end of zip64.
    assert accepted == 8 * (2 * len(RECORDS) + 4)


def test_every_prefix_of_a_file_is_incomplete(tmp_path: Path) -> None:
    content = small_file()
    path = tmp_path / "pytorch_model.bin"
    for size in range(len(content)):
        path.write_bytes(content[:size])
        with pytest.raises(IncompleteCheckpointError) as caught:
            TorchFile(path)
        assert caught.value.path == path


def test_a_cut_file_says_how_much_there_is() -> None:
    content = small_file()
    with pytest.raises(IncompleteCheckpointError, match=f"{len(content) - 300} bytes"):
        read(content[:-300])


# --- checksums -----------------------------------------------------------------------------------------


def test_checksums_of_storages_are_compared_if_asked_for(tmp_path: Path) -> None:
    content = bytearray(small_file())
    content[content.index(np.float32(5).tobytes())] ^= 1
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(content)
    assert len(TorchFile(path)) == 2
    with pytest.raises(CheckpointFormatError, match=r"data/0.*checksum") as caught:
        TorchFile(path, verify=True)
    assert caught.value.path == path


def test_the_checksum_of_the_pickle_is_always_compared(tmp_path: Path) -> None:
    content = small_file()
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(content.replace(b"X\1\0\0\0w", b"X\1\0\0\0v"))
    with pytest.raises(CheckpointFormatError, match=r"data\.pkl.*checksum"):
        TorchFile(path)


def without_checksums() -> bytes:
    return write_archive(
        [
            Record(
                r.name,
                r.content,
                central={"crc": 0},
                descriptor=b"PK\7\10" + struct.pack("<3I", 0, *[len(r.content)] * 2),
            )
            for r in RECORDS
        ]
    )


def test_a_file_may_be_written_without_checksums(tmp_path: Path) -> None:
    """torch.serialization.set_crc32_options(False). But then nothing can be verified."""
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(without_checksums())
    assert TorchFile(path)["w"][1, 2] == 5
    with pytest.raises(CheckpointFormatError, match="without checksums"):
        TorchFile(path, verify=True)


# --- more than 4 GB, without writing them ----------------------------------------------------------------


class Sparse:
    """As much of an array of bytes as the reader of archives uses, for a file whose numbers are all zero."""

    def __init__(self, head: bytes, zeros: int, tail: bytes):
        self.head, self.zeros, self.tail = head, zeros, tail

    def __len__(self) -> int:
        return len(self.head) + self.zeros + len(self.tail)

    def __getitem__(self, part: slice) -> np.ndarray:
        behind = len(self.head) + self.zeros
        if part.stop <= len(self.head):
            content = self.head[part]
        elif part.start >= behind:
            content = self.tail[part.start - behind : part.stop - behind]
        else:
            content = bytes(part.stop - part.start)
        return np.frombuffer(content, np.uint8)


def wide_file(size: int, packed: int, crc: int = 7) -> Sparse:
    """One storage of `size` bytes, and one behind it: the bytes that torch 1.6 and 2.13 write for that."""

    def local(name: bytes, extra: bytes, flags: int = 0x0808) -> bytes:
        return (
            struct.pack("<4s5H3I2H", b"PK\3\4", 0, flags, 0, 0, 0, 0, 0, 0, len(name), len(extra))
            + name
            + extra
        )

    def line(name: bytes, crc: int, size: int, offset: int, wide: list[int]) -> bytes:
        extra = struct.pack(f"<2H{len(wide)}Q", 1, 8 * len(wide), *wide) if wide else b""
        short = min(size, 0xFFFFFFFF)
        numbers = (0, 0, 0x0808, 0, 0, 0, crc, short, short, len(name), len(extra), 0, 0, 0, 0)
        return struct.pack("<4s6H3I5H2I", b"PK\1\2", *numbers, min(offset, 0xFFFFFFFF)) + name + extra

    first = local(b"m/data.pkl", padding(20)) + PICKLE
    first += b"PK\7\10" + struct.pack("<3I", zlib.crc32(PICKLE), *[len(PICKLE)] * 2)
    head = first + local(b"m/data/0", struct.pack("<2H2Q", 1, 16, size, packed) + padding(9))
    place = len(head) + size + 24
    version = local(b"m/version", struct.pack("<2HQ", 1, 8, place) + padding(0)) + b"3\n"
    version += b"PK\7\10" + struct.pack("<I2Q", zlib.crc32(b"3\n"), 2, 2)
    tail = b"PK\7\10" + struct.pack("<I2Q", crc, size, size) + version
    begin = len(head) + size + len(tail)
    directory = line(b"m/data.pkl", zlib.crc32(PICKLE), len(PICKLE), 0, [])
    directory += line(b"m/data/0", crc, size, len(first), [size, size])
    directory += line(b"m/version", zlib.crc32(b"3\n"), 2, place, [place])
    end64 = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 0x031E, 0x2D, 0, 0, 3, 3, len(directory), begin)
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, begin + len(directory), 1)
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 3, 3, len(directory), min(begin, 0xFFFFFFFF), 0)
    return Sparse(head, size, tail + directory + end64 + locator + end)


@pytest.mark.parametrize("size", [2**32 - 1, 2**32, 5 * 2**30, 2**40])
def test_a_storage_of_more_than_4_gb(size: int) -> None:
    for packed in (0, size):
        records = read_archive(wide_file(size, packed), HERE)  # type: ignore[arg-type]
        assert records["data/0"].end - records["data/0"].begin == size
        assert records["version"].begin > size


def test_lies_in_numbers_of_64_bits() -> None:
    size = 5 * 2**30
    with pytest.raises(UnsafeCheckpointError, match="beside the header"):
        read_archive(wide_file(size, 1), HERE)  # type: ignore[arg-type]
    file = wide_file(size, 0)
    for old, new in ((size, size + 1), (size, size - 1), (size, 2**64 - 1), (size, 0)):
        tail = file.tail.replace(struct.pack("<Q", old), struct.pack("<Q", new), 1)
        with pytest.raises((UnsafeCheckpointError, CheckpointFormatError)):
            read_archive(Sparse(file.head, file.zeros, tail), HERE)  # type: ignore[arg-type]


# --- limits --------------------------------------------------------------------------------------------


def test_limits_are_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    content = write_archive(RECORDS)
    for name, limit in (
        ("MAX_RECORDS", len(RECORDS)),
        ("MAX_PICKLE", len(PICKLE)),
        ("MAX_DIRECTORY", sum(46 + len(record.name) for record in RECORDS)),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(torch_zip, name, limit)
            read(content)
            patch.setattr(torch_zip, name, limit - 1)
            with pytest.raises(ResourceLimitError, match=str(limit)):
                read(content)


def test_many_records_are_read_in_bounded_time() -> None:
    storages = {str(n): b"" for n in range(20_000)}
    assert len(read(write_archive(records_of(PICKLE, storages)))) == 20_006


def test_what_lies_under_the_name_of_another_format(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    for content, words in (
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19." + bytes(99), "before version 1.6"),
        (b"\x80\x04" + bytes(99), "before version 1.6"),
        (b"sys_info".ljust(257, b"\0") + b"ustar\x0000" + bytes(300), "tar"),
    ):
        path.write_bytes(content)
        with pytest.raises(UnsafeCheckpointError, match=words) as caught:
            TorchFile(path)
        assert "torch.save(torch.load(path, weights_only=True)" in str(caught.value)
    for content in (
        b"\x89HDF\r\n\x1a\n" + bytes(99),
        b"\x80",
        b"\x1f\x8b" + bytes(99),
        b"PQ",
        save({})[:2] + b"\5\6",
    ):
        path.write_bytes(content)
        with pytest.raises(CheckpointFormatError, match=r"no file of torch\.save"):
            TorchFile(path)
