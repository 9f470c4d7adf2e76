"""Reading the small text and JSON files of a model and its tokenizer, none of which is trusted.

Stricter than the json module: a regular file, a size limit before anything is read, UTF-8 only, no
duplicate keys, no lone surrogates, no NaN or Infinity, and one error class for everything that can be wrong.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from pathlib import Path
from typing import IO, Any, NoReturn

from refimpl.errors import MissingFileError, RefimplError, ResourceLimitError, quote

MIB = 1 << 20

_SURROGATE = re.compile("[\ud800-\udfff]")


def read_text(path: str | os.PathLike[str], error_class: type[RefimplError], limit: int) -> str:
    """The text of a UTF-8 file of at most `limit` bytes, with its line ends as they are.

    Raises: as `read_bytes`, and `error_class` when the file is not UTF-8 (attribute `offset`).
    """
    return _decoded(read_bytes(path, error_class, limit), path, error_class)


def _decoded(data: bytes, path: str | os.PathLike[str], error_class: type[RefimplError]) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise error_class(
            f"the file is not UTF-8: byte {error.start} cannot be decoded",
            where=Path(path),
            found=f"0x{data[error.start]:02x}",
            offset=error.start,
        ) from error


def read_bytes(path: str | os.PathLike[str], error_class: type[RefimplError], limit: int) -> bytes:
    """The content of a file of at most `limit` bytes.

    Raises: MissingFileError; ResourceLimitError when it is too large; `error_class` when it is not a
        regular file or cannot be read.
    """
    path = Path(path)
    try:
        # A named pipe would block for ever in a plain open().
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with open(handle, "rb") as file:
            return _read_regular(file, path, error_class, limit)
    except RefimplError:
        raise
    except FileNotFoundError as error:
        raise MissingFileError("there is no such file", where=path) from error
    except (OSError, ValueError) as error:
        raise error_class(f"the file cannot be read ({error})", where=quote(str(path))) from error


def _read_regular(file: IO[bytes], path: Path, error_class: type[RefimplError], limit: int) -> bytes:
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
        raise error_class("this is not a regular file", where=path)
    if status.st_size > limit:
        raise ResourceLimitError(
            "the file is too large", where=path, found=f"{status.st_size} bytes", allowed=f"{limit} bytes"
        )
    return file.read(status.st_size + 1)  # not `limit`: so much memory would be asked for


def read_json_object(
    path: str | os.PathLike[str], error_class: type[RefimplError], limit: int = MIB
) -> dict[str, Any]:
    """The JSON object in a file of at most `limit` bytes.

    Raises: as `read_text`, and `error_class` when the JSON is malformed or is no object.
    """
    return parse_json_object(read_bytes(path, error_class, limit), path, error_class)


def parse_json_object(
    data: bytes, path: str | os.PathLike[str], error_class: type[RefimplError]
) -> dict[str, Any]:
    """The JSON object that `data` is, the content of the file `path`.  Raises: `error_class`, as `read_json_object`."""
    text = _decoded(data, path, error_class)
    # Text that was UTF-8 can hold a surrogate only as an escape; looking for one takes time in large files.
    hook = _checked if "\\ud" in text or "\\uD" in text else _object
    try:
        value = json.loads(text, object_pairs_hook=hook, parse_constant=_refuse_constant, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise error_class(f"not valid JSON: {error}", where=path) from error
    if not isinstance(value, dict):
        raise error_class("the file must hold one JSON object", where=path, found=quote(value))
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {quote(twice)} stands there twice")
    return result


def _checked(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    for pair in pairs:
        _refuse_surrogates(pair)
    return _object(pairs)


def _refuse_surrogates(value: Any) -> None:
    if isinstance(value, str) and _SURROGATE.search(value):
        raise ValueError(f"a lone surrogate in {quote(value)}")
    if isinstance(value, list | tuple):
        for part in value:
            _refuse_surrogates(part)


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{quote(text)} is larger than any number that a computer holds")
    return number


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")
