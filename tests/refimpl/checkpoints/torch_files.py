"""Files like those of `torch.save`, byte by byte, and with any lie in them: for tests, which have no torch.

The zip writer is one of our own because the lies are between fields that `zipfile` writes consistently.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np

# --- pickles -----------------------------------------------------------------------------------------


def text(value: str) -> bytes:
    raw = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(raw)) + raw


def number(value: int) -> bytes:
    """In the shortest opcode, as pickle does."""
    if 0 <= value < 1 << 8:
        return b"K" + bytes([value])
    if 0 <= value < 1 << 16:
        return b"M" + struct.pack("<H", value)
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def tuple_of(*parts: bytes) -> bytes:
    return b"(" + b"".join(parts) + b"t"


def numbers(values: Iterable[int]) -> bytes:
    return tuple_of(*map(number, values))


def global_name(module: str, name: str) -> bytes:
    return b"c" + module.encode() + b"\n" + name.encode() + b"\n"


def call(module: str, name: str, *arguments: bytes) -> bytes:
    return global_name(module, name) + tuple_of(*arguments) + b"R"


HOOKS = call("collections", "OrderedDict")
TRUE, FALSE, NONE = b"\x88", b"\x89", b"N"


def storage(kind: str, key: str, size: int, location: str = "cpu", module: str = "torch") -> bytes:
    return (
        tuple_of(text("storage"), global_name(module, kind), text(key), text(location), number(size)) + b"Q"
    )


def tensor(of: bytes, offset: int, shape: Iterable[int], strides: Iterable[int]) -> bytes:
    parts = (of, number(offset), numbers(shape), numbers(strides), FALSE, HOOKS)
    return call("torch._utils", "_rebuild_tensor_v2", *parts)


def dictionary(items: dict[str, bytes]) -> bytes:
    return b"}(" + b"".join(text(name) + value for name, value in items.items()) + b"u"


def pickle_of(body: bytes, protocol: int = 2) -> bytes:
    return b"\x80" + bytes([protocol]) + body + b"."


# --- archives ----------------------------------------------------------------------------------------

LOCAL = ("signature", "needed", "flags", "method", "time", "date", "crc", "packed", "size", "names", "extras")
CENTRAL = ("signature", "made", *LOCAL[1:], "comments", "disk", "internal", "external", "offset")
END = ("signature", "disk", "first_disk", "here", "count", "size", "offset", "comments")
END64 = ("signature", "length", "made", "needed", *END[1:7])
LOCATOR = ("signature", "disk", "offset", "disks")
FORMS = {LOCAL: "<4s5H3I2H", CENTRAL: "<4s6H3I5H2I", END: "<4s4H2IH", END64: "<4sQ2H2I4Q", LOCATOR: "<4sIQI"}

Lies = dict[str, int | bytes]


@dataclass
class Record:
    """One record; `local` and `central` replace fields of its headers, all other bytes stay as torch writes them."""

    name: str
    content: bytes
    local: Lies = field(default_factory=dict)
    central: Lies = field(default_factory=dict)
    raw_name: bytes | None = None  # in the local header
    central_name: bytes | None = None
    extra: bytes | None = None  # of the local header, instead of the padding
    central_extra: bytes = b""
    descriptor: bytes | None = None
    gap: bytes = b""  # in front of the record


def _packed(fields: tuple[str, ...], values: dict[str, int | bytes], lies: Lies) -> bytes:
    known = values | lies
    return struct.pack(FORMS[fields], *(known[name] for name in fields))


def padding(size: int) -> bytes:
    return b"FB" + struct.pack("<H", size) + b"Z" * size


def descriptor(crc: int, size: int) -> bytes:
    return b"PK\7\10" + struct.pack("<3I", crc, size, size)


def write_archive(
    records: list[Record],
    *,
    end: Lies | None = None,
    end64: Lies | None = None,
    locator: Lies | None = None,
    with_zip64: bool = True,
    before: bytes = b"",
    comment: bytes = b"",
    before_directory: bytes = b"",
    before_end: bytes = b"",
) -> bytes:
    """The bytes of an archive as torch writes it, but for the lies that are asked for."""
    file, directory = bytearray(before), bytearray()
    for record in records:
        file += record.gap
        name = record.name.encode()
        local_name = name if record.raw_name is None else record.raw_name
        central_name = name if record.central_name is None else record.central_name
        size, crc, offset = len(record.content), zlib.crc32(record.content), len(file)
        begin = offset + 30 + len(local_name) + 4
        extra = padding(-begin % 64) if record.extra is None else record.extra
        fields: dict[str, int | bytes] = {
            **dict.fromkeys(CENTRAL, 0),
            "flags": 0x0808 if size else 0x0800,
            "crc": crc, "packed": size, "size": size, "offset": offset,
        }  # fmt: skip
        # torch leaves these zero, and writes them into the descriptor.
        own = fields | {"signature": b"PK\3\4", "crc": 0, "packed": 0, "size": 0}
        own |= {"names": len(local_name), "extras": len(extra)}
        file += _packed(LOCAL, own, record.local) + local_name + extra + record.content
        if record.descriptor is not None:
            file += record.descriptor
        elif size:
            file += descriptor(crc, size)
        listed = fields | {"signature": b"PK\1\2", "names": len(central_name)}
        listed |= {"extras": len(record.central_extra)}
        directory += _packed(CENTRAL, listed, record.central) + central_name + record.central_extra
    file += before_directory
    offset, size = len(file), len(directory)
    ending: dict[str, int | bytes] = {
        **dict.fromkeys(END64, 0), "here": len(records), "count": len(records), "offset": offset, "size": size,
    }  # fmt: skip
    file += directory + before_end
    if with_zip64:
        place = len(file)
        wide = ending | {"signature": b"PK\6\6", "length": 44, "made": 0x031E, "needed": 0x2D}
        file += _packed(END64, wide, end64 or {})
        lead: dict[str, int | bytes] = {"signature": b"PK\6\7", "disk": 0, "offset": place, "disks": 1}
        file += _packed(LOCATOR, lead, locator or {})
    last = ending | {"signature": b"PK\5\6", "comments": len(comment)}
    file += _packed(END, last, end or {}) + comment
    return bytes(file)


def small_records(prefix: str) -> list[Record]:
    return [
        Record(f"{prefix}/version", b"3\n"),
        Record(f"{prefix}/.data/serialization_id", b"1077862729799854162514908413078762956576"),
    ]


def records_of(pickle: bytes, storages: dict[str, bytes], prefix: str = "archive") -> list[Record]:
    """The records of a file of torch 2.13."""
    return [
        Record(f"{prefix}/data.pkl", pickle),
        Record(f"{prefix}/.format_version", b"1"),
        Record(f"{prefix}/.storage_alignment", b"64"),
        Record(f"{prefix}/byteorder", b"little"),
        *(Record(f"{prefix}/data/{key}", content) for key, content in storages.items()),
        *small_records(prefix),
    ]


def torch_file(pickle: bytes, storages: dict[str, bytes], prefix: str = "archive") -> bytes:
    return write_archive(records_of(pickle, storages, prefix))


# --- whole files -------------------------------------------------------------------------------------

KINDS = {
    "float64": "DoubleStorage", "float32": "FloatStorage", "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage", "int64": "LongStorage", "int32": "IntStorage", "int16": "ShortStorage",
    "int8": "CharStorage", "uint8": "ByteStorage", "bool": "BoolStorage",
}  # fmt: skip


def contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides in elements, row by row."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def saved(tensors: dict[str, np.ndarray]) -> tuple[bytes, dict[str, bytes]]:
    """(data.pkl, storages) of a state dict in which every tensor has a storage of its own."""
    items = {
        name: tensor(
            storage(KINDS[array.dtype.name], str(key), array.size), 0, array.shape, contiguous(array.shape)
        )
        for key, (name, array) in enumerate(tensors.items())
    }
    storages = {str(key): array.tobytes() for key, array in enumerate(tensors.values())}
    return pickle_of(dictionary(items)), storages


def save(tensors: dict[str, np.ndarray]) -> bytes:
    return torch_file(*saved(tensors))


def small_file() -> bytes:
    """Two tensors in less than 1.5 kB."""
    return save({"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(2, np.float16)})


def lied(records: list[Record], place: int, **lies: object) -> list[Record]:
    """The records with one of them replaced by one with those attributes."""
    changed = list(records)
    changed[place] = replace(changed[place], **lies)  # type: ignore[arg-type]
    return changed
