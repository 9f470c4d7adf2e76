"""Reading the small text and JSON files of a tokenizer, none of which is trusted."""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path
from typing import Any

from refimpl.errors import (
    MissingFileError,
    RefimplError,
    ResourceLimitError,
    TextInputError,
    TokenizerFileError,
    quote,
)

MAX_VOCAB_BYTES = 64 << 20
MAX_JSON_BYTES = 128 << 20

_SURROGATE = re.compile("[\ud800-\udfff]")


def read_text(path: str | os.PathLike[str], limit: int) -> str:
    """The text of a UTF-8 file with its line ends as they are.

    Raises: MissingFileError, ResourceLimitError (more than `limit` bytes), TokenizerFileError (not a
        regular file, not UTF-8; attribute `offset`).
    """
    path = Path(path)
    try:
        # A named pipe would block for ever in a plain open().
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with open(handle, "rb") as file:
            data = _read_regular(file, path, limit)
    except FileNotFoundError as error:
        raise MissingFileError("there is no such file", where=path) from error
    except (OSError, ValueError) as error:
        if isinstance(error, RefimplError):
            raise
        raise TokenizerFileError(f"the file cannot be read ({error})", where=quote(str(path))) from error
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise TokenizerFileError(
            f"the file is not UTF-8: byte {error.start} cannot be decoded",
            where=path,
            found=f"0x{data[error.start]:02x}",
            offset=error.start,
        ) from error


def _read_regular(file: Any, path: Path, limit: int) -> bytes:
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
        raise TokenizerFileError("this is not a regular file", where=path)
    if status.st_size > limit:
        raise ResourceLimitError(
            "the file is too large", where=path, found=f"{status.st_size} bytes", allowed=f"{limit} bytes"
        )
    return file.read(limit)


def read_json_object(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The JSON object of a file; every name in an object is unique and every text valid Unicode.

    Raises: as `read_text`, and TokenizerFileError when the JSON is malformed or is no object.
    """
    text = read_text(path, MAX_JSON_BYTES)
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_reject_constant)
    except RecursionError as error:
        raise TokenizerFileError("the JSON is nested too deeply", where=path) from error
    except ValueError as error:
        raise TokenizerFileError(
            f"this is not the JSON it should be ({quote(str(error))})", where=path
        ) from error
    if not isinstance(value, dict):
        raise TokenizerFileError("the JSON is not an object", where=path, found=type(value).__name__)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"the name {quote(twice)} occurs twice")
    for text in [*result, *(value for value in result.values() if isinstance(value, str))]:
        if _SURROGATE.search(text):
            raise ValueError(f"a lone surrogate in {quote(text)}")
    return result


def _reject_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def check_unicode(text: str, surrogates: str) -> str:
    """`text` itself when it is valid Unicode; lone surrogates are an error or become U+FFFD.

    A high surrogate followed by its low one is the character that the two encode.
    Raises: TextInputError with the attribute `position` when `surrogates` is "strict".
    """
    found = None if text.isascii() else _SURROGATE.search(text)
    if found is None:
        return text
    if surrogates == "replace":
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    raise TextInputError(
        f"character {found.start()} is a surrogate (U+{ord(found[0]):04X}); text must be valid Unicode",
        hint='surrogates="replace" puts U+FFFD in its place.',
        position=found.start(),
    )
