"""What lies on the stack of `torch_pickle.py`: texts, whole numbers, and the descriptions below. No class, no function.

And the two closed tables: what a pickle of weights may name, and the opcodes that it may not have.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from refimpl.errors import quote


class Call(Enum):
    """What a pickle of weights may call. The reader carries it out itself; no function stands behind a name."""

    ORDERED_DICT = "collections.OrderedDict"
    SIZE = "torch.Size"
    TENSOR = "torch._utils._rebuild_tensor_v2"
    TENSOR_OF_BYTES = "torch._utils._rebuild_tensor_v3"
    PARAMETER = "torch._utils._rebuild_parameter"


@dataclass(frozen=True, slots=True)
class StorageType:
    """`torch.HalfStorage` and its like. The dtype is None where each tensor brings its own."""

    dtype: str | None


@dataclass(frozen=True, slots=True)
class DType:
    """`torch.uint16` and its like, which stand in a file only for dtypes without a type of storage."""

    name: str


@dataclass(frozen=True, slots=True)
class Storage:
    """A record of numbers: its key (`data/KEY`), the dtype, and how many (bytes, where the dtype is None)."""

    key: str
    dtype: str | None
    size: int


@dataclass(frozen=True, slots=True)
class Tensor:
    """What a file says about a tensor; offset and strides count elements. Nothing of it is checked but its types."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(slots=True)
class Dict:
    """A dictionary in the making. Once it lies in another container it is `sealed`: so none can contain itself."""

    ordered: bool
    items: dict[str, Any] = field(default_factory=dict)
    depth: int = 1
    sealed: bool = False


@dataclass(frozen=True, slots=True)
class Tuple:
    items: tuple[Any, ...]
    depth: int


def describe(value: object) -> str:
    """A value for a message: never more of the file than 80 characters."""
    match value:
        case None | bool() | int() | str():
            return quote(value)
        case Dict():
            return f"a dictionary of {len(value.items)}"
        case Tuple():
            return f"a tuple of {len(value.items)}"
        case Call():
            return value.value
        case _:
            return f"a {type(value).__name__}"


def how_to_unwrap(name: str, value: object) -> str | None:
    """How to get at weights that lie one level deeper."""
    if type(value) is not Dict:
        return None
    key = quote(name)
    return (
        f"The file wraps a dictionary as {key}, as training programs do. If the weights are in it, save them alone: "
        f"torch.save(torch.load(path, weights_only=True)[{key}], new_path)"
    )


_STORAGES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool",
}  # fmt: skip

#: Everything that a pickle of weights may name, by module and name.
GLOBALS: dict[tuple[str, str], Call | StorageType | DType] = {
    ("collections", "OrderedDict"): Call.ORDERED_DICT,
    ("torch", "Size"): Call.SIZE,
    ("torch._utils", "_rebuild_tensor_v2"): Call.TENSOR,
    ("torch._utils", "_rebuild_tensor_v3"): Call.TENSOR_OF_BYTES,
    ("torch._utils", "_rebuild_parameter"): Call.PARAMETER,
    ("torch.storage", "UntypedStorage"): StorageType(None),
    **{("torch", name): StorageType(dtype) for name, dtype in _STORAGES.items()},
    **{("torch", name): DType(name) for name in ("uint16", "uint32", "uint64")},
}

#: Names that harmless files have too, and why they are refused all the same.
HINTS = {
    ("torch._utils", "_rebuild_parameter_with_state"): (
        "A parameter has attributes of its own, and one of them (data, real) can exchange its numbers. Save the "
        "weights without: torch.save(model.state_dict(), path)."
    ),
}

#: The opcodes of pickle that are refused wherever they stand, for messages.
REFUSED_OPCODES = {
    ord("0"): "POP", ord("1"): "POP_MARK", ord("2"): "DUP", ord("F"): "FLOAT", ord("I"): "INT", ord("L"): "LONG",
    ord("P"): "PERSID", ord("S"): "STRING", ord("T"): "BINSTRING", ord("U"): "SHORT_BINSTRING",
    ord("V"): "UNICODE", ord("a"): "APPEND", ord("d"): "DICT", ord("e"): "APPENDS", ord("g"): "GET",
    ord("i"): "INST", ord("l"): "LIST", ord("o"): "OBJ", ord("p"): "PUT", ord("]"): "EMPTY_LIST",
    ord("G"): "BINFLOAT", ord("B"): "BINBYTES", ord("C"): "SHORT_BINBYTES",
    0x80: "PROTO", 0x81: "NEWOBJ", 0x82: "EXT1", 0x83: "EXT2", 0x84: "EXT4", 0x8B: "LONG4",
    0x8D: "BINUNICODE8", 0x8E: "BINBYTES8", 0x8F: "EMPTY_SET", 0x90: "ADDITEMS", 0x91: "FROZENSET",
    0x92: "NEWOBJ_EX", 0x96: "BYTEARRAY8", 0x97: "NEXT_BUFFER", 0x98: "READONLY_BUFFER",
}  # fmt: skip
