"""The reader of JSON that all others use."""

from __future__ import annotations

import json
import random
from pathlib import Path

from refimpl.errors import TokenizerFileError
from refimpl.json_reader import read_json_object
from tests.fuzz.changes import change_json
from tests.fuzz.harness import Files, Reader

VALID = [
    {"a": 1, "b": [1.5, -2e3, None, True, 'x\u0000\n\\"é😀'], "c": {"d": {"e": []}, "": {}}},
    {"vocab": {"<|endoftext|>": 0, "a": 1, "日本": 2}, "merges": ["a b", ["a", "b"]], "version": "1.0"},
]


def change(draw: random.Random, files: Files) -> Files:
    return {name: change_json(draw, content) for name, content in files.items()}


def read(folder: Path, number: int) -> object:
    return read_json_object(folder / "some.json", TokenizerFileError)


def use(value: object, folder: Path, number: int) -> None:
    """What is not JSON of the standard must not come through."""
    json.dumps(value, allow_nan=False, ensure_ascii=False).encode("utf-8")


READERS = [
    Reader(
        "json",
        [{"some.json": json.dumps(v, ensure_ascii=i % 2 == 0).encode()} for i, v in enumerate(VALID)],
        change,
        read,
        use,
        use_every=1,
    )
]
