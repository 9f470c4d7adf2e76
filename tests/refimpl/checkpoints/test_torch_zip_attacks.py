"""Archives that were made to be read differently by whoever checks them and whoever loads them: all are refused.

Each is the archive of `test_torch_zip.py`, which is read, with one lie.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable

import pytest

from refimpl.errors import CheckpointFormatError, RefimplError, UnsafeCheckpointError
from tests.refimpl.checkpoints.test_torch_zip import FIRST_STORAGE, PICKLE, RECORDS, STORAGES, read, refused
from tests.refimpl.checkpoints.torch_files import (
    CENTRAL,
    END,
    END64,
    LOCAL,
    LOCATOR,
    Record,
    descriptor,
    lied,
    padding,
    write_archive,
)

# --- lies about one field at a time --------------------------------------------------------------------

#: What readers of archives may ignore, and we do too: no byte of a weight depends on it.
IGNORED = {"made"}
#: Fields in which both headers can say the same other thing, and it means nothing.
IGNORED_IN_BOTH = {"needed", "time", "date"}


def other_values(field: str, now: int) -> list[int | bytes]:
    if field == "signature":
        return [b"PK\0\0", b"\0\0\0\0", b"PK\7\10"]
    return [now + 1, now ^ 0x8000, 0xFFFF, now ^ 1]


@pytest.mark.parametrize("place", range(len(RECORDS)), ids=lambda place: RECORDS[place].name)
@pytest.mark.parametrize("field", LOCAL)
def test_a_field_of_a_header_that_the_directory_contradicts(field: str, place: int) -> None:
    record = RECORDS[place]
    flags = 0x0808 if record.content else 0x0800
    now = {"flags": flags, "names": len(record.name), "extras": 30}.get(field, 0)
    for value in other_values(field, now):
        refused(write_archive(lied(RECORDS, place, local={field: value})))


@pytest.mark.parametrize("place", range(len(RECORDS)), ids=lambda place: RECORDS[place].name)
@pytest.mark.parametrize("field", CENTRAL)
def test_a_field_of_the_directory_that_the_header_contradicts(field: str, place: int) -> None:
    record = RECORDS[place]
    size = len(record.content)
    now = {"flags": 0x0808, "names": len(record.name), "size": size, "packed": size}.get(field, 0)
    for value in other_values(field, now):
        content = write_archive(lied(RECORDS, place, central={field: value}))
        if field in IGNORED:
            assert read(content) == read(write_archive(RECORDS))
        else:
            refused(content)


@pytest.mark.parametrize("place", [0, FIRST_STORAGE])
@pytest.mark.parametrize("field", sorted(set(LOCAL) & set(CENTRAL) - {"signature", "names", "extras"}))
def test_a_field_that_both_headers_have_wrong(field: str, place: int) -> None:
    """All flags but two, every method but one, every size and checksum but the right ones."""
    for value in (1, 8, 0x20, 0x41, 0x0809, 0x0848, 0x2808, 99, 0xFFFF):
        content = write_archive(lied(RECORDS, place, local={field: value}, central={field: value}))
        if field in IGNORED_IN_BOTH and (field, value > 45) != ("needed", True):
            assert read(content) == read(write_archive(RECORDS))
        elif (field, value) not in {("flags", 8)}:  # a name in ASCII need not say that it is UTF-8
            refused(content)


@pytest.mark.parametrize("with_zip64", [True, False])
@pytest.mark.parametrize("field", END)
def test_a_field_of_the_end(field: str, with_zip64: bool) -> None:
    for value in (b"PK\0\0",) if field == "signature" else (1, 2, 7, 9, 0x7FFF, 0xFFFE, 0xFFFF):
        refused(write_archive(RECORDS, end={field: value}, with_zip64=with_zip64))


@pytest.mark.parametrize("field", END64)
def test_a_field_of_the_zip64_end(field: str) -> None:
    for value in (b"PK\0\0",) if field == "signature" else (1, 2, 7, 9, 45, 0xFFFF):
        content = write_archive(RECORDS, end64={field: value})
        if field in ("made", "needed"):
            assert read(content)["data.pkl"] == PICKLE
        else:
            refused(content)


@pytest.mark.parametrize("field", LOCATOR)
def test_a_field_of_the_zip64_locator(field: str) -> None:
    for value in (b"PK\0\0",) if field == "signature" else (2, 7, 0xFFFF):
        refused(write_archive(RECORDS, locator={field: value}))


def test_zip64_numbers_at_the_ends_of_64_bits() -> None:
    for field in ("here", "count", "size", "offset", "length"):
        for value in (2**63 - 1, 2**63, 2**64 - 1):
            refused(write_archive(RECORDS, end64={field: value}))
            refused(
                write_archive(RECORDS, end64={field: value}, end={field: 0xFFFF} if field != "length" else {})
            )
    refused(write_archive(RECORDS, locator={"offset": 2**64 - 1}))


@pytest.mark.parametrize("size", [12, 15, 17, 20, 24])
def test_a_descriptor_of_another_size(size: int) -> None:
    content = RECORDS[0].content
    right = descriptor(zlib.crc32(content), len(content))
    refused(write_archive(lied(RECORDS, 0, descriptor=(right + right)[:size])))


@pytest.mark.parametrize("byte", range(16))
def test_every_byte_of_a_descriptor(byte: int) -> None:
    content = RECORDS[FIRST_STORAGE].content
    wrong = bytearray(descriptor(zlib.crc32(content), len(content)))
    wrong[byte] ^= 1
    error = refused(write_archive(lied(RECORDS, FIRST_STORAGE, descriptor=bytes(wrong))))
    assert isinstance(error, UnsafeCheckpointError)


@pytest.mark.parametrize(
    "extra",
    [
        b"\0", b"FB", padding(30)[:-1], padding(30) + b"Z", padding(30) + padding(2), b"FB\x04\0ZZZY",
        b"FB\x04\0\0\0\0\0", b"ZZ\x04\0ZZZZ", struct.pack("<2H2Q", 1, 16, 24, 24),
        struct.pack("<2HQ", 1, 8, 0) + padding(8),
        struct.pack("<2HBI", 0x7075, 9, 1, 0) + b"evil",  # the Unicode path of Info-ZIP: another name for the record
        struct.pack("<2H", 0x9901, 7) + b"\2\0AE\3\0\0",  # AES
    ],
)  # fmt: skip
def test_bytes_beside_the_header(extra: bytes) -> None:
    error = refused(write_archive(lied(RECORDS, FIRST_STORAGE, extra=extra)))
    assert isinstance(error, UnsafeCheckpointError)


@pytest.mark.parametrize(
    "extra",
    [
        padding(8),
        struct.pack("<2HQ", 1, 8, 24),
        struct.pack("<2H2Q", 1, 16, 24, 24),
        struct.pack("<2H", 1, 0),
        b"\0",
    ],
)
def test_extra_bytes_in_the_directory(extra: bytes) -> None:
    refused(write_archive(lied(RECORDS, FIRST_STORAGE, central_extra=extra)))


@pytest.mark.parametrize(
    "wide", [("size", "packed"), ("offset",), ("size",), ("packed",), ("size", "packed", "offset")]
)
def test_a_small_number_that_is_written_as_a_large_one(wide: tuple[str, ...]) -> None:
    """Readers differ in whether they believe the short or the long number."""
    numbers = {"size": 24, "packed": 24, "offset": 0}
    extra = struct.pack(f"<2H{len(wide)}Q", 1, 8 * len(wide), *(numbers[name] for name in wide))
    central = dict.fromkeys(wide, 0xFFFFFFFF)
    refused(write_archive(lied(RECORDS, FIRST_STORAGE, central=central, central_extra=extra)))
    huge = struct.pack(f"<2H{len(wide)}Q", 1, 8 * len(wide), *(2**64 - 1 for _ in wide))
    refused(write_archive(lied(RECORDS, FIRST_STORAGE, central=central, central_extra=huge)))


# --- the whole archive ---------------------------------------------------------------------------------


def bomb() -> bytes:
    """60 kB that would be 64 MB."""
    content = bytes(1 << 26)
    squeezed = zlib.compress(content, 9)[2:-4]
    lies = {
        "flags": 0x0800,
        "method": 8,
        "packed": len(squeezed),
        "size": 1 << 26,
        "crc": zlib.crc32(content),
    }
    return write_archive([*RECORDS, Record("archive/data/9", squeezed, lies, lies, descriptor=b"")])


def overlapped() -> bytes:
    """Fifield's bomb: a hundred names in the directory for the same bytes."""
    host = lied(RECORDS, FIRST_STORAGE, content=bytes(4096))
    place = write_archive(host).index(b"PK\3\4", 100 + sum(len(r.content) for r in RECORDS[:2]))
    quoted = [Record(f"archive/data/1{n:02}", b"", central={"offset": place}) for n in range(100)]
    return write_archive([*host, *quoted])


def inside() -> bytes:
    """A record that lies within the numbers of another one."""
    hidden = write_archive([Record("archive/data/7", b"x" * 8)])
    body = hidden[: hidden.index(b"PK\1\2")]
    host = [*RECORDS[:-1], Record("archive/data/5", body), RECORDS[-1]]
    place = write_archive(host).index(body)
    return write_archive([*host, Record("archive/data/7", b"x" * 8, central={"offset": place})])


def wrong_checksum() -> bytes:
    lie = {"central": {"crc": 1}, "descriptor": descriptor(1, len(PICKLE))}
    return write_archive(lied(RECORDS, 0, **lie))


def both(place: int, **fields: int) -> bytes:
    """The same lie in the header and in the directory."""
    return write_archive(lied(RECORDS, place, local=fields, central=fields))


def more(name: str, content: bytes = b"") -> bytes:
    return write_archive([*RECORDS, Record(name, content)])


WHOLE = write_archive(RECORDS)
ALSO_WHOLE = write_archive(RECORDS, with_zip64=False)
UNSAFE, DAMAGED = UnsafeCheckpointError, CheckpointFormatError

#: How the file is made, the error, and words in it.
ATTACKS: dict[str, tuple[Callable[[], bytes], type[RefimplError], str]] = {
    "deflate bomb": (bomb, UNSAFE, "compressed"),
    "overlapping records (Fifield)": (overlapped, UNSAFE, "overlap"),
    "record inside a record": (inside, UNSAFE, "overlap"),
    "bytes in front": (lambda: b"#!/bin/sh\n" + WHOLE, UNSAFE, "locator"),
    "bytes in front, without zip64": (lambda: b"#!/bin/sh\n" + ALSO_WHOLE, UNSAFE, "does not end where"),
    "bytes in front, offsets corrected": (lambda: write_archive(RECORDS, before=b"MZ"), UNSAFE, "belong to neither"),
    "bytes between records": (lambda: write_archive(lied(RECORDS, 3, gap=b"\0")), UNSAFE, "belong to neither"),
    "bytes before the directory": (lambda: write_archive(RECORDS, before_directory=b"\0"), UNSAFE, "without a gap"),
    "bytes behind the directory": (lambda: write_archive(RECORDS, before_end=b"\0"), UNSAFE, "does not end where"),
    "bytes behind the end": (lambda: WHOLE + b"\0", UNSAFE, "behind the end"),
    "an archive behind the archive": (lambda: ALSO_WHOLE + ALSO_WHOLE, UNSAFE, "does not end where"),
    "comment": (lambda: write_archive(RECORDS, comment=b"hello"), UNSAFE, "behind the end"),
    "comment that is an end": (lambda: write_archive(RECORDS, comment=ALSO_WHOLE[-22:]), UNSAFE, "does not end where"),
    "comment that is an archive": (lambda: write_archive(RECORDS, comment=ALSO_WHOLE), UNSAFE, "does not end where"),
    "encrypted": (lambda: both(0, flags=0x0809), UNSAFE, "encrypted"),
    "headers encrypted": (lambda: both(0, flags=0x2808), UNSAFE, "encrypted"),
    "compressed": (lambda: both(0, method=8), UNSAFE, "compressed"),
    "several disks": (lambda: write_archive(RECORDS, end={"disk": 1}), UNSAFE, "several"),
    "numbers that are a folder": (
        lambda: write_archive(lied(RECORDS, 4, central={"external": 16})), UNSAFE, "attributes",
    ),
    "numbers that are a link": (
        lambda: write_archive(lied(RECORDS, 4, central={"external": 0o120777 << 16})), UNSAFE, "attributes",
    ),
    "record on another disk": (lambda: write_archive(lied(RECORDS, 2, central={"disk": 1})), UNSAFE, "another file"),
    "a pickle twice": (lambda: more("archive/data.pkl", PICKLE), UNSAFE, "twice"),
    "a storage twice": (lambda: more("archive/data/0", STORAGES["0"]), UNSAFE, "twice"),
    "a second pickle elsewhere": (lambda: more("other/data.pkl", PICKLE), UNSAFE, "outside"),
    "another name in the header": (lambda: write_archive(lied(RECORDS, 0, raw_name=b"x" * 16)), UNSAFE, "contradict"),
    "another name in the directory": (
        lambda: write_archive(lied(RECORDS, 4, central_name=b"archive/data/8")), UNSAFE, "contradict",
    ),
    "no pickle": (lambda: write_archive(RECORDS[1:]), DAMAGED, "data.pkl"),
    "no version": (lambda: write_archive(RECORDS[:6]), DAMAGED, "version"),
    "no records": (lambda: write_archive([]), DAMAGED, "data.pkl"),
    "name in capitals": (lambda: more("archive/DATA/0"), UNSAFE, "weights do not have"),
    "folder in capitals": (lambda: more("Archive/data/2"), UNSAFE, "outside"),
    "parent": (lambda: more("../data/2"), UNSAFE, "outside"),
    "parent inside": (lambda: more("archive/../data/2"), UNSAFE, "weights do not have"),
    "parent of storages": (lambda: more("archive/data/../../x"), UNSAFE, "weights do not have"),
    "absolute": (lambda: more("/etc/passwd"), UNSAFE, "outside"),
    "drive": (lambda: more("C:\\data\\2"), UNSAFE, "never gives"),
    "backslash": (lambda: more("archive\\data\\2"), UNSAFE, "never gives"),
    "NUL": (lambda: more("archive/data/2\0"), UNSAFE, "never gives"),
    "line end": (lambda: more("archive/data/2\n"), UNSAFE, "never gives"),
    "digits of another script": (lambda: more("archive/data/\u0662"), UNSAFE, "weights do not have"),
    "turned direction": (lambda: more("archive/\u202edata/2"), UNSAFE, "never gives"),
    "empty name": (lambda: more(""), UNSAFE, "outside"),
    "a folder": (lambda: more("archive/"), UNSAFE, "weights do not have"),
    "a long name": (lambda: more("archive/data/" + "1" * 600), UNSAFE, "never gives"),
    "no UTF-8": (lambda: write_archive(lied(RECORDS, 5, raw_name=b"\xff", central_name=b"\xff")), UNSAFE, "no text"),
    "not even ASCII": (
        lambda: write_archive([Record("重/data.pkl", b"x", {"flags": 8}, {"flags": 8})]), UNSAFE, "no text",
    ),
    "the folder of a parent": (lambda: write_archive([Record("../data.pkl", PICKLE)]), UNSAFE, "outside"),
    "TorchScript": (lambda: more("archive/constants.pkl", b"\x80\2)."), UNSAFE, "TorchScript"),
    "code of TorchScript": (lambda: more("archive/code/__torch__.py"), UNSAFE, "weights do not have"),
    "other byte order": (lambda: write_archive(lied(RECORDS, 3, content=b"big")), DAMAGED, "byteorder"),
    "other version": (lambda: write_archive(lied(RECORDS, 6, content=b"4\n")), DAMAGED, "version"),
    "endless version": (lambda: write_archive(lied(RECORDS, 6, content=b"3\n" * 999)), DAMAGED, "version"),
    # Published, for scanners that read archives otherwise than torch does.
    "CVE-2025-1889: a pickle of another name beside": (
        lambda: more("archive/config.p", b"cposix\nsystem\n."), UNSAFE, "config.p",
    ),
    "CVE-2025-1944: another name in the header": (
        lambda: WHOLE.replace(b"archive/data.pkl", b"archive/datap.kl", 1), UNSAFE, "contradict",
    ),
    "CVE-2025-1945: flags that stop the scanner": (lambda: both(0, flags=0x0829), UNSAFE, "encrypted"),
    "CVE-2025-10156: a wrong checksum stops the scanner": (wrong_checksum, DAMAGED, "checksum"),
}  # fmt: skip


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_refused(name: str) -> None:
    make, kind, words = ATTACKS[name]
    error = refused(make())
    assert isinstance(error, kind)
    assert words in str(error)


@pytest.mark.parametrize("bit", range(16))
def test_flags_of_picklescan_s_crashes(bit: int) -> None:
    """CVE-2025-1945: one flag, in one header or in both; torch.load ignores them all."""
    flags = 0x0808 ^ 1 << bit
    for lies in ({"local": {"flags": flags}}, {"central": {"flags": flags}}):
        refused(write_archive(lied(RECORDS, 0, **lies)))
    both = write_archive(lied(RECORDS, 0, local={"flags": flags}, central={"flags": flags}))
    if bit == 11:
        assert read(both)["data.pkl"] == PICKLE
    else:
        refused(both)
