"""The reader of `pytorch_model.bin`: bytes, fields of the archive, opcodes of the pickle, and sizes of storages."""

from __future__ import annotations

import io
import math
import pickletools
import random
import zipfile
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from refimpl.checkpoints.torch_file import TorchFile
from refimpl.errors import CheckpointFormatError
from tests.fuzz.changes import TEXTS, change_bytes
from tests.fuzz.harness import Files, Reader
from tests.refimpl.checkpoints.torch_files import (
    CENTRAL,
    END,
    END64,
    FALSE,
    HOOKS,
    LOCAL,
    LOCATOR,
    NONE,
    TRUE,
    Record,
    call,
    descriptor,
    dictionary,
    global_name,
    lied,
    number,
    numbers,
    padding,
    pickle_of,
    records_of,
    saved,
    storage,
    tensor,
    text,
    tuple_of,
    write_archive,
)

NAME = "pytorch_model.bin"
Parts = tuple[bytes, dict[str, bytes]]  # data.pkl, and the storages


def shared() -> Parts:
    """Tied, turned, cut, repeated and empty tensors, parameters and metadata."""
    of, half = storage("FloatStorage", "0", 12), storage("HalfStorage", "1", 3, "cuda:0")
    raw = storage("UntypedStorage", "2", 8, module="torch.storage")
    dtype = global_name("torch", "uint16")
    bare = call(
        "torch._utils",
        "_rebuild_tensor_v3",
        raw,
        number(0),
        numbers((4,)),
        numbers((1,)),
        FALSE,
        HOOKS,
        dtype,
    )
    entries = {
        "w": tensor(of, 0, (3, 4), (4, 1)) + b"\x94",
        "tied": b"h\0",
        "turned": tensor(of, 0, (4, 3), (1, 4)),
        "cut": tensor(of, 5, (2, 2), (4, 2)),
        "repeated": tensor(of, 3, (5,), (0,)),
        "empty": tensor(of, 12, (0, 7), (7, 1)),
        "scalar": tensor(half, 1, (), ()),
        "p": call("torch._utils", "_rebuild_parameter", tensor(half, 0, (3,), (1,)), TRUE, HOOKS),
        "bare": bare,
    }
    metadata = dictionary({"_metadata": dictionary({"": dictionary({"version": number(1)})})})
    body = call("collections", "OrderedDict") + dictionary(entries)[1:] + metadata + b"b"
    storages = {"0": np.arange(12, dtype=np.float32).tobytes(), "1": bytes(6), "2": bytes(range(8))}
    return pickle_of(body, 4), storages


VALID: list[Parts] = [
    saved(
        {
            "w": np.arange(6, dtype=np.float32).reshape(2, 3),
            "mask": np.array([True, False]),
            "b": np.array(2.5),
        }
    ),
    saved({f"layers.{n}.weight": np.full((2, n), n, np.float16) for n in range(4)}),
    shared(),
]


@cache  # only the valid ones are taken apart
def tokens(pickle: bytes) -> list[bytes]:
    """The opcodes with their arguments."""
    starts = [place for _, _, place in pickletools.genops(pickle)]
    return [pickle[begin:end] for begin, end in zip(starts, [*starts[1:], len(pickle)], strict=True)]


NUMBERS = [
    *(
        0,
        1,
        2,
        3,
        4,
        5,
        6,
        7,
        8,
        11,
        12,
        13,
        24,
        255,
        256,
        65535,
        65536,
        2**31 - 1,
        2**31,
        2**32,
        2**40,
        2**62,
    ),
    *(2**63 - 1, -1, -2, -(2**31), -(2**63)),
]
HOSTILE = [
    *(bytes([code]) for code in range(256)),
    *(bytes([code, index]) for code in b"hqK\x82\x8c\x8a" for index in (0, 1, 3, 8, 9, 255)),
    *(global_name("os", "system"), global_name("builtins", "eval"), b"\x93"),
    *(b"(S'id'\nios\nsystem\n", b"\x81", b"o", b"\x95" + bytes(8)),
    *(global_name("torch", name) for name in ("FloatStorage", "HalfStorage", "uint16", "load", "Size", "")),
    *(global_name("torch._utils", f"_rebuild_{name}") for name in ("tensor_v2", "tensor_v3", "parameter", "qtensor")),
    *(NONE, TRUE, FALSE, HOOKS, b"}", b")", tuple_of(), numbers((1, 2)), b"r\xff\xff\xff\xff", b"X\xff\xff\xff\xff"),
    *(text(value) for value in ("storage", "cpu", "0", "1", "9", "w", "_metadata", "state_dict", "../0", "x" * 600)),
]  # fmt: skip
ALL_TOKENS = sorted({token for pickle, _ in VALID for token in tokens(pickle)})


def change_pickle(draw: random.Random, pickle: bytes) -> bytes:
    """One to three opcodes dropped, doubled, exchanged, or replaced by others or by other arguments."""
    if draw.random() < 0.1:
        return change_bytes(draw, pickle)
    parts = list(tokens(pickle))
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        place, other = draw.randrange(len(parts)), draw.randrange(len(parts))
        kind = draw.randrange(10)
        if kind < 4:
            parts[place] = other_argument(draw, parts[place])
        elif kind == 4:
            parts[place], parts[other] = parts[other], parts[place]
        elif kind == 5:
            parts.insert(place, parts[other])
        elif kind == 6 and len(parts) > 1:
            del parts[place]
        elif kind == 7:
            begin, end = sorted((place, other))
            parts[place:place] = parts[begin : min(end, begin + 30)]
        else:
            parts[place] = draw.choice(ALL_TOKENS if kind == 8 else HOSTILE)
    return b"".join(parts)


def other_argument(draw: random.Random, token: bytes) -> bytes:
    if token[:1] in b"KMJ\x8a":
        return number(draw.choice(NUMBERS))
    if token[:1] in b"X\x8c":
        return text(draw.choice([*TEXTS, "0", "1", "2", "w", "tied", "storage", "_metadata"]))
    if token[:1] in b"\x88\x89N)}":
        return draw.choice((TRUE, FALSE, NONE, b")", b"}"))
    if token[:1] == b"c":
        return draw.choice([part for part in [*ALL_TOKENS, *HOSTILE] if part[:1] == b"c"])
    return draw.choice(HOSTILE)


FIELDS: list[int | bytes] = [0, 1, 2, 3, 8, 9, 14, 16, 24, 0x20, 0x41, 0x800, 0x808, 0x7FFF, 0xFFFE, 0xFFFF]
CONTENTS = [b"", b"3\n", b"4\n", b"big", b"little", b"1", b"64", b"\0", b"PK\3\4", b"x" * 100]
NAMES = [
    "archive/data.pkl",
    "archive/data/0",
    "archive/data/9",
    "archive/version",
    "archive/constants.pkl",
    "x/data.pkl",
]


def change_records(draw: random.Random, records: list[Record]) -> tuple[list[Record], dict[str, Any]]:
    """One lie in the archive: in a field of a header, in a name, in what lies around the records."""
    place = draw.randrange(len(records))
    record, kind = records[place], draw.randrange(12)
    if kind < 4:
        lies = {draw.choice((LOCAL if kind < 2 else CENTRAL)[1:]): draw.choice(FIELDS)}
        return lied(records, place, **({"local": lies} if kind < 2 else {"central": lies})), {}
    if kind == 4:
        field = draw.choice(("flags", "method", "time", "date", "needed"))
        both: dict[str, int | bytes] = {field: draw.choice(FIELDS)}
        return lied(records, place, local=both, central=both), {}
    if kind == 5:
        return lied(records, place, name=draw.choice([*NAMES, *TEXTS])), {}
    if kind == 6:
        changed = draw.choice(CONTENTS) if draw.random() < 0.5 else change_bytes(draw, record.content)
        return lied(records, place, content=changed), {}
    if kind == 7:
        extra = draw.choice(
            (b"", b"\0", padding(draw.randrange(100)), padding(3) + b"\0", b"\1\0\x08\0" + bytes(8))
        )
        return lied(records, place, **{draw.choice(("extra", "central_extra")): extra}), {}
    if kind == 8:
        crc = draw.choice((0, zlib.crc32(record.content)))
        size = max(len(record.content) + draw.choice((-1, 0, 1)), 0)
        return lied(records, place, central={"crc": crc}, descriptor=descriptor(crc, size)), {}
    if kind == 9:
        order = list(records)
        draw.shuffle(order)
        return order[: draw.choice((len(order), len(order), place))] + order[:1] * (draw.random() < 0.2), {}
    if kind == 10:
        parts = {
            "before": b"\0",
            "comment": b"x",
            "before_end": b"\0",
            "before_directory": b"\0",
            "with_zip64": False,
        }
        name = draw.choice(list(parts))
        return records, {name: parts[name]}
    name, fields = draw.choice((("end", END), ("end64", END64), ("locator", LOCATOR)))
    return records, {name: {draw.choice(fields[1:]): draw.choice(FIELDS)}}


def change(draw: random.Random, files: Files) -> Files:
    if draw.random() < 0.1:
        return {NAME: change_bytes(draw, files[NAME])}
    pickle, storages = draw.choice(VALID)
    prefix, more = "archive", {}
    if draw.random() < 0.7:
        pickle = change_pickle(draw, pickle)
    if draw.random() < 0.1:
        key = draw.choice(list(storages))
        size = max(len(storages[key]) + draw.choice((-4, -1, 1, 4, 64)), 0)
        storages = storages | {draw.choice((key, "9")): bytes(size)}
    records = records_of(pickle, storages, prefix)
    if draw.random() < 0.25:
        records, more = change_records(draw, records)
    try:
        return {NAME: write_archive(records, **more)}
    except UnicodeEncodeError:  # a lone surrogate as the name of a record
        return {NAME: write_archive(records_of(pickle, storages, "\ufffd"))}


def read(folder: Path, number: int) -> TorchFile:
    return TorchFile(folder / NAME, mmap=number % 3 != 0, verify=number % 5 == 0)


def use(file: Any, folder: Path, number: int) -> None:
    """Every tensor, in bounds and no larger than was counted, and the same records as zipfile finds."""
    total = 0
    for name in file:
        try:
            array = file[name]
        except CheckpointFormatError:  # truth values that are none
            total += math.prod(file.shape(name))
            continue
        assert (array.shape, array.dtype) == (file.shape(name), file.dtype(name))
        assert not array.flags.writeable
        assert array.flags.aligned
        assert array.nbytes == math.prod(array.shape) * array.dtype.itemsize
        assert array.nbytes <= (4 << 20)
        array.tobytes()
        total += array.nbytes
    assert file.nbytes <= total
    content = (folder / NAME).read_bytes()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert {entry.filename.partition("/")[2] for entry in archive.infolist()} == set(file._records)
        for entry in archive.infolist():
            record = file._records[entry.filename.partition("/")[2]]
            assert (entry.file_size, entry.CRC) == (record.end - record.begin, record.crc)
            if zlib.crc32(content[record.begin : record.end]) == entry.CRC:
                assert archive.read(entry) == content[record.begin : record.end]


READERS = [
    Reader(
        NAME,
        [{NAME: write_archive(records_of(*parts))} for parts in VALID],
        change,
        read,
        use,
    )
]
