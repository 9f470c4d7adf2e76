"""What is said between the runner and an engine: tensors as JSON, the handshake, and what an answer may be.

docs/conformance/protocol.md describes it for those who write an engine.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from refimpl.checkpoints.safetensors_file import SafetensorsFile
from refimpl.conformance.suite import Case
from refimpl.errors import EngineError, ProtocolError, RefimplError, quote

PROTOCOL = 1

#: dtype of a tensor in JSON -> NumPy's, little-endian.
DTYPES = {
    "float64": "<f8", "float32": "<f4", "float16": "<f2",
    "int64": "<i8", "int32": "<i4", "int16": "<i2", "int8": "|i1", "uint8": "|u1", "bool": "|b1",
}  # fmt: skip

#: What an engine may compute in: the suite has tolerances for these.
COMPUTED_IN = ("float32", "float64")

#: What a refusal may be about.
ERROR_KINDS = ("input", "config", "checkpoint", "tokenizer_file", "text")
#: The engine failed by itself: never what a case wants.
INTERNAL = "internal"

_CLASSES = ("levels", "operations", "features", "outputs")
_MAX_RANK = 8


@dataclass(frozen=True)
class Capabilities:
    """What an engine said of itself in the handshake.

    Attributes:
        dtype: what it computes in, `float32` or `float64`.
        has: levels, operations, features, outputs (glob patterns) that it has; a key that is missing means all.
        lacks: the same, of what it has not.
        tensors: how it wants to be given tensors, `file` or `inline`.
        encoding: of inline tensors, `base64` or `list`.
        details: what else it wants to be reported, name -> text.
    """

    name: str
    version: str
    dtype: str
    has: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    lacks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    tensors: str = "file"
    encoding: str = "base64"
    details: Mapping[str, str] = field(default_factory=dict)

    @property
    def identity(self) -> dict[str, Any]:
        """What a report says of the engine."""
        return {
            "name": self.name,
            "version": self.version,
            "dtype": self.dtype,
            "details": dict(self.details),
        }

    def why_not(self, case: Case) -> str | None:
        """What the engine does not have of what a case needs, or None."""
        needs = [("levels", case["level"]), ("operations", case["operation"])]
        needs += [("features", feature) for feature in case["features"]]
        for kind, name in needs:
            if _matches(name, self.lacks.get(kind, ())):
                return f"{kind[:-1]} {name}"
            # The features of texts say what a text is about, not what a tokenizer needs.
            if kind == "features" and case["level"] == "tokenizer":
                continue
            if kind in self.has and not _matches(name, self.has[kind]):
                return f"{kind[:-1]} {name}"
        return None

    def gives(self, output: str) -> bool:
        """Whether the engine has an output of that name."""
        lacking = _matches(output, self.lacks.get("outputs", ()))
        return not lacking and ("outputs" not in self.has or _matches(output, self.has["outputs"]))


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def read_capabilities(answer: Mapping[str, Any]) -> Capabilities:
    """The handshake's answer.  Raises: EngineError that says what is wrong with it."""
    if "protocol" not in answer:
        raise EngineError('"protocol" is missing in the handshake', allowed=f'"protocol": {PROTOCOL}')
    if answer["protocol"] != PROTOCOL:
        raise EngineError(
            "the engine speaks another version of the protocol",
            found=quote(answer["protocol"]),
            allowed=f'"protocol": {PROTOCOL}',
        )
    given: dict[str, str] = {}
    for key, allowed, default in (
        ("name", None, None),
        ("version", None, ""),
        ("dtype", COMPUTED_IN, None),
        ("tensors", ("file", "inline"), "file"),
        ("encoding", ("base64", "list"), "base64"),
    ):
        value = answer.get(key, default)
        if not isinstance(value, str) or (allowed is not None and value not in allowed):
            text = f'a text: "{value}", in quotes' if isinstance(value, int | float) else "a text"
            raise EngineError(
                f"the handshake has a wrong {key}"
                if key in answer
                else f'"{key}" is missing in the handshake',
                found=quote(value) if key in answer else None,
                allowed=", ".join(allowed or (text,)),
            )
        given[key] = value
    details = answer.get("details", {})
    if not isinstance(details, dict):
        raise EngineError("details must be an object of texts", found=quote(details))
    return Capabilities(
        name=given["name"],
        version=given["version"],
        dtype=given["dtype"],
        has=_classes(answer.get("has", {}), "has"),
        lacks=_classes(answer.get("lacks", {}), "lacks"),
        tensors=given["tensors"],
        encoding=given["encoding"],
        details={str(key): str(value) for key, value in details.items()},
    )


def _classes(value: Any, side: str) -> dict[str, tuple[str, ...]]:
    fits = isinstance(value, dict) and all(
        key in _CLASSES and isinstance(names, list) and all(isinstance(name, str) for name in names)
        for key, names in value.items()
    )
    if not fits:
        raise EngineError(
            f"the handshake has a wrong {side!r}",
            found=quote(value),
            allowed=f"an object with lists of names under {', '.join(_CLASSES)}",
        )
    return {key: tuple(names) for key, names in value.items()}


# ---- tensors


def inline(array: np.ndarray, encoding: str = "base64") -> dict[str, Any]:
    """A tensor as JSON; `list` is one flat list, row by row."""
    name = array.dtype.name
    entry: dict[str, Any] = {"dtype": name, "shape": list(array.shape)}
    if encoding == "list":
        return {**entry, "data": array.reshape(-1).tolist()}
    data = np.ascontiguousarray(array).astype(DTYPES[name], copy=False).tobytes()
    return {**entry, "data": base64.b64encode(data).decode("ascii")}


def read_tensor(value: Any, scratch: Path | None = None) -> np.ndarray:
    """The array of a tensor in JSON: inline, or in a safetensors file.

    scratch: the folder that a named file has to lie in; None: anywhere.
    Raises: ProtocolError that says what is wrong.
    """
    if not isinstance(value, dict):
        raise ProtocolError(
            "not a tensor", found=quote(value), allowed='{"dtype", "shape", "data"} or {"file", "tensor"}'
        )
    return _from_file(value, scratch) if "file" in value else _from_json(value)


def _from_file(value: dict[str, Any], scratch: Path | None) -> np.ndarray:
    path, name = value.get("file"), value.get("tensor")
    if not isinstance(path, str) or not isinstance(name, str):
        raise ProtocolError('"file" and "tensor" must be texts', found=quote(value))
    if scratch is not None and not Path(path).resolve().is_relative_to(scratch.resolve()):
        raise ProtocolError("the file does not lie in the folder for results", found=quote(path))
    try:
        file = SafetensorsFile(path, mmap=False)
    except (RefimplError, OSError) as error:
        raise ProtocolError(f"the file cannot be read: {error}", found=quote(path)) from error
    if name not in file:
        raise ProtocolError(
            "the file has no such tensor", found=quote(name), allowed=", ".join(list(file)[:10])
        )
    return np.array(file[name])


def _from_json(value: dict[str, Any]) -> np.ndarray:
    for key in ("dtype", "shape", "data"):
        if key not in value:
            raise ProtocolError(f'"{key}" is missing', allowed='{"dtype": ..., "shape": [...], "data": ...}')
    dtype, shape, data = (value[key] for key in ("dtype", "shape", "data"))
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ProtocolError("unknown dtype", found=quote(dtype), allowed=", ".join(DTYPES))
    if (
        not isinstance(shape, list)
        or len(shape) > _MAX_RANK
        or not all(type(size) is int and 0 <= size < 1 << 40 for size in shape)
    ):
        raise ProtocolError("not a shape", found=quote(shape))
    count = math.prod(shape)
    if isinstance(data, str):
        try:
            numbers = np.frombuffer(base64.b64decode(data, validate=True), DTYPES[dtype])
        except (binascii.Error, ValueError) as error:
            raise ProtocolError(f"the data is not base64 of whole numbers of {dtype}: {error}") from error
    elif isinstance(data, list):
        numbers = _flat(data, dtype)
    else:
        raise ProtocolError("no data", found=quote(data), allowed="base64, or a list of numbers")
    if numbers.size != count:
        raise ProtocolError(f"{numbers.size} numbers for the shape {shape}, which has {count}")
    return numbers.reshape(shape)


def _flat(data: list[Any], dtype: str) -> np.ndarray:
    """The numbers of a list, flat or nested; every one must be a number that the dtype has."""
    try:
        numbers = np.array(data) if data else np.zeros(0, DTYPES[dtype])
    except (ValueError, OverflowError) as error:
        raise ProtocolError(f"not a list of numbers: {error}") from error
    kind = DTYPES[dtype][1]
    if numbers.dtype.kind not in {"f": "fiu", "i": "iu", "u": "iu", "b": "b"}[kind] and numbers.size:
        raise ProtocolError(f"not a list of {dtype}", found=quote(data))
    with np.errstate(all="ignore"):  # infinities of a smaller dtype are judged as such
        made = numbers.astype(DTYPES[dtype])
    if kind in "iu" and not np.array_equal(made, numbers):
        raise ProtocolError(f"numbers that {dtype} does not hold", found=quote(data))
    return made.reshape(-1)
