"""The reader of safetensors files, beside the package of that name, which must accept whatever it accepts."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, deserialize

from refimpl.checkpoints import SafetensorsFile
from refimpl.errors import RefimplError
from tests.fuzz.changes import change_bytes, change_tree, written
from tests.fuzz.harness import Files, Reader

NAME = "model.safetensors"

#: Words of the errors for what is refused here though the package accepts it; there are no others.
STRICTER = (
    "must begin with {",
    "must end with }",
    "stands there twice",
    "__metadata__ must be an object of texts",
    "not a name that a tensor can have",
    "its entry has other keys",
    "a dtype that weights do not have",
    "a shape that no weight has",
)


def file_of(header: Any, numbers: bytes = b"") -> bytes:
    """A file with this header, which is JSON in bytes or becomes it."""
    text = header if isinstance(header, bytes) else json.dumps(header, ensure_ascii=False).encode()
    return struct.pack("<Q", len(text)) + text + numbers


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


NUMBERS = bytes(range(1, 97))
HEADERS = [
    {
        "__metadata__": {"format": "pt"},
        "embed_in.weight": entry("F32", [4, 3], 0, 48),
        "layers.0.bias": entry("F16", [6], 48, 60),
        "layers.1.bias": entry("BF16", [2, 3, 1], 60, 72),
        "empty": entry("F64", [0, 7], 72, 72),
        "layers.0.codes": entry("U8", [24], 72, 96),
    },
    {
        "猫.weight": entry("F64", [2, 2], 64, 96),
        "scalar": entry("I64", [], 0, 8),
        "bias": entry("BOOL", [4], 8, 12),
        "a": entry("I32", [3], 12, 24),
        "b": entry("I8", [5, 8], 24, 64),
    },
    {},
]
WORDS = [
    *["F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL"],
    *["F8_E4M3", "F8_E5M2", "F4", "C64", "f32", "dtype", "shape", "data_offsets", "__metadata__", "format"],
    *[[2, 3], [3, 2], [0], [1] * 8, [1] * 9, [0, 2**40], [0, 2**40 + 1], [2**63 - 1, 0], [-0], [1.0], [True]],
    *[[0, 48], [48, 60], [60, 48], [72, 72], [0, 96], [0, 0], [0, 2**64 - 1], entry("F32", [4], 0, 16)],
]
SAME_SIZE = [
    ("F64", "I64", "U64"),
    ("F32", "I32", "U32"),
    ("F16", "BF16", "I16", "U16"),
    ("I8", "U8", "BOOL"),
]


def _some(draw: random.Random, tree: Any) -> dict[str, Any]:
    return tree[draw.choice([name for name in tree if name != "__metadata__"])]


def other_dtype(draw: random.Random, tree: Any) -> None:
    """One of the same size, so that the file stays whole."""
    some = _some(draw, tree)
    some["dtype"] = draw.choice(next(group for group in SAME_SIZE if some["dtype"] in group))


def other_shape(draw: random.Random, tree: Any) -> None:
    """One with as many elements, mostly."""
    shape = _some(draw, tree)["shape"]
    draw.shuffle(shape)
    if draw.random() < 0.5:
        shape.insert(
            draw.randrange(len(shape) + 1), draw.choice([1, 1, 1, 0, 2, 2**40, 2**40 + 1, 2**64 - 1])
        )


def exchange(draw: random.Random, tree: Any) -> None:
    """The places of two tensors."""
    one, other = _some(draw, tree), _some(draw, tree)
    one["data_offsets"], other["data_offsets"] = other["data_offsets"], one["data_offsets"]


def shift(draw: random.Random, tree: Any) -> None:
    """Makes an overlap, or a gap."""
    offsets = _some(draw, tree)["data_offsets"]
    offsets[draw.randrange(2)] += draw.choice([-8, -4, -2, -1, 1, 2, 4, 8])


def rename(draw: random.Random, tree: Any) -> None:
    name = draw.choice(list(tree))
    tree[draw.choice(["a", "weight", "名", "x" * 512, "x" * 513, "", "a\0", "\x85", "../a", "é"])] = tree.pop(
        name
    )


def metadata(draw: random.Random, tree: Any) -> None:
    tree["__metadata__"] = draw.choice(
        [None, {}, {"a": "b\n"}, {"a": 1}, {"": ""}, [], "a", {"a": {"b": "c"}}]
    )


SPECIAL = [other_dtype, other_dtype, other_shape, other_shape, exchange, shift, rename, metadata]


def change(draw: random.Random, files: Files) -> Files:
    """Changes of the entries of the header, of the length, of the numbers, or of any bytes."""
    content = files[NAME]
    if draw.random() < 0.15:
        return {NAME: change_bytes(draw, content)}
    length = int.from_bytes(content[:8], "little")
    tree, numbers = json.loads(content[8 : 8 + length]), content[8 + length :]
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        if not tree:
            break
        try:
            if draw.random() < 0.5:
                draw.choice(SPECIAL)(draw, tree)
            else:
                change_tree(draw, tree, WORDS)
        except (KeyError, IndexError, TypeError, AttributeError, StopIteration, ValueError):
            pass  # an earlier change has taken its place away
    text = written(draw, tree) + draw.choice((b"", b"", b" ", b"   ", b"\n", b"\0"))
    if draw.random() < 0.05:
        text = draw.choice((b" ", b"\n", b"\xef\xbb\xbf", b"[")) + text
    if draw.random() < 0.1:
        numbers = draw.choice((numbers[:-1], numbers + b"\0", numbers * 2, b""))
    if draw.random() < 0.1:
        length = draw.choice(
            (0, 1, len(text) - 1, len(text) + 1, 16 << 20, 10**8, 10**8 + 1, 2**63, 2**64 - 1)
        )
        return {NAME: struct.pack("<Q", max(length, 0)) + text + numbers}
    return {NAME: file_of(text, numbers)}


def of_the_package(content: bytes) -> dict[str, tuple[str, list[int], bytes]] | None:
    """What the package reads, as name -> (dtype, shape, bytes), or None when it refuses the file."""
    try:
        return {
            name: (part["dtype"], part["shape"], bytes(part["data"])) for name, part in deserialize(content)
        }
    except SafetensorError:
        return None


def read(folder: Path, number: int) -> SafetensorsFile:
    try:
        return SafetensorsFile(folder / NAME, mmap=number % 2 == 0)
    except RefimplError as error:
        stricter = any(rule in error.what for rule in STRICTER)
        if not stricter and of_the_package((folder / NAME).read_bytes()) is not None:
            raise AssertionError(f"the package accepts what is refused here: {error}") from error
        raise


_TAGS = {"float": "F", "bfloat": "BF", "int": "I", "uint": "U"}


def tag(dtype: str) -> str:
    """The name that the format has for a NumPy dtype."""
    return (
        "BOOL"
        if dtype == "bool"
        else _TAGS[dtype.rstrip("0123456789")] + dtype.lstrip("abcdefghijklmnopqrstuvwxyz")
    )


def use(file: SafetensorsFile, folder: Path, number: int) -> None:
    ours = {name: (tag(array.dtype.name), list(array.shape), array.tobytes()) for name, array in file.items()}
    assert ours == of_the_package((folder / NAME).read_bytes())
    for name, array in file.items():
        assert not array.flags.writeable
        assert array.flags.aligned
        assert (file.shape(name), file.dtype(name)) == (array.shape, array.dtype)
    assert file.nbytes == sum(array.nbytes for array in file.values())


READERS = [
    Reader(
        "safetensors",
        [{NAME: file_of(header, NUMBERS if header else b"")} for header in HEADERS],
        change,
        read,
        use,
        use_every=1,
    )
]
