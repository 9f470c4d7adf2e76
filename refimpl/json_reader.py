"""Reading the JSON files of a model: config.json, generation_config.json, tokenizer files.

Stricter than the json module: a size limit before anything is read, UTF-8 only, no duplicate keys,
no NaN or Infinity, and one error class for everything that can be wrong.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NoReturn

from refimpl.errors import MissingFileError, RefimplError, ResourceLimitError, quote

MIB = 1 << 20


class _Refused(Exception):
    pass


def read_json_object(path: Path, error_class: type[RefimplError], limit: int = MIB) -> dict[str, Any]:
    """The JSON object in a file of at most `limit` bytes.

    Raises: `error_class` when the file is not what it should be, ResourceLimitError when it is too
        large, MissingFileError when it is not there.
    """
    try:
        size = path.stat().st_size
        if size > limit:
            raise ResourceLimitError(
                "the file is larger than such a file can be",
                where=path,
                found=f"{size} bytes",
                allowed=f"{limit} bytes",
            )
        text = path.read_bytes().decode("utf-8")
        value = json.loads(
            text, object_pairs_hook=_without_duplicates, parse_constant=_refuse_constant, parse_float=_finite
        )
    except FileNotFoundError as error:
        raise MissingFileError("no such file", where=path) from error
    except OSError as error:
        raise error_class(f"the file cannot be read: {error.strerror}", where=path) from error
    except UnicodeDecodeError as error:
        raise error_class(f"not UTF-8 at byte {error.start}", where=path) from error
    except (_Refused, ValueError, RecursionError) as error:
        raise error_class(f"not valid JSON: {error}", where=path) from error
    if not isinstance(value, dict):
        raise error_class("the file must hold one JSON object", where=path, found=quote(value))
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in pairs:
        if name in result:
            raise _Refused(f"the key {quote(name)} stands there twice")
        result[name] = value
    return result


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise _Refused(f"{quote(text)} is larger than any number that a computer holds")
    return number


def _refuse_constant(name: str) -> NoReturn:
    raise _Refused(f"{name} is not a JSON value")
