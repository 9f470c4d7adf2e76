"""The reader of an index of several weight files: no file is opened that is not simply beside it."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

from refimpl.checkpoints import SafetensorsFile
from refimpl.checkpoints.sharded import ShardedFiles
from tests.fuzz.changes import change_json
from tests.fuzz.harness import Files, Reader
from tests.fuzz.read_safetensors import entry, file_of

NAME = "model.safetensors.index.json"
ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
TENSORS = {"a.weight": ONE, "a.bias": ONE, "b.weight": TWO}
CONTENT = {"a.weight": bytes(range(24)), "a.bias": bytes(range(24, 30)), "b.weight": bytes(range(30, 38))}
SHARDS = {
    ONE: file_of(
        {"a.weight": entry("F32", [2, 3], 0, 24), "a.bias": entry("F16", [3], 24, 30)},
        CONTENT["a.weight"] + CONTENT["a.bias"],
    ),
    TWO: file_of({"b.weight": entry("F32", [2], 0, 8)}, CONTENT["b.weight"]),
}
INDEXES = [
    {"metadata": {"total_size": 38}, "weight_map": TENSORS},
    {"weight_map": TENSORS},
    {"metadata": {"total_size": 38.0, "format": "pt"}, "weight_map": TENSORS, "other": [1, {"a": "b"}]},
]

#: Names that lead out of a folder, or to no ordinary file, on some system or other.
ESCAPES = [
    *["..", ".", "", "../x", "../../etc/passwd", "..\\x", "a/../../x", "a/..", "./x", "x/", "/", "//x", "\\"],
    *["/etc/passwd", "/dev/zero", "/proc/self/environ", "~/x", "~root/x", "$HOME/x", "%USERPROFILE%\\x"],
    *["C:\\x", "C:x", "c:/x", "\\\\host\\share\\x", "//host/share/x", "\\\\?\\C:\\x", "\\\\.\\pipe\\x"],
    *[
        "file:///etc/passwd",
        "https://host/x",
        "hf://owner/name/x",
        "x\0",
        "\0",
        "x\0.safetensors",
        "x\n",
        "\x1b[2J",
    ],
    *["model.safetensors:stream", "x::$DATA", "con", "CON", "nul.safetensors", "Aux.bin", "com1", "LPT9.x"],
    *[
        "x.",
        "x ",
        " x",
        "x. .",
        "...",
        "....//x",
        "a\u2215b",
        "a\u2044b",
        "\uff0e\uff0e/x",
        "\u2024\u2024/x",
        "猫",
    ],
    *["%2e%2e/x", "..%2fx", "x|id", "x;id", "$(id)", "`id`", "*", "x?", "x" * 256, "\ud800", "x\u202ey"],
]
WORDS = [ONE, TWO, *TENSORS, *ESCAPES, "model-00003-of-00002.safetensors", NAME, ONE.upper(), TENSORS]


def escape(draw: random.Random, tree: Any) -> None:
    tree["weight_map"][draw.choice(list(TENSORS))] = draw.choice(ESCAPES)


def move(draw: random.Random, tree: Any) -> None:
    """A tensor to another file, or to another name."""
    name = draw.choice(list(TENSORS))
    if draw.random() < 0.5:
        tree["weight_map"][name] = draw.choice((ONE, TWO))
    else:
        tree["weight_map"][draw.choice(WORDS[:5])] = tree["weight_map"].pop(name)


def metadata(draw: random.Random, tree: Any) -> None:
    tree["metadata"] = draw.choice(
        (
            {},
            None,
            {"total_size": draw.choice((-1, 0, 38, 38.5, "38", True, None, 10**400, [1]))},
            {"a": {}},
            [],
        )
    )


def change(draw: random.Random, files: Files) -> Files:
    special = (escape, move, metadata, metadata)
    return {NAME: change_json(draw, files[NAME], WORDS, special)}


def read(folder: Path, number: int) -> ShardedFiles:
    def open_one(path: Path, mmap: bool) -> SafetensorsFile:
        assert path.parent == folder
        assert path.name in os.listdir(folder)
        return SafetensorsFile(path, mmap)

    return ShardedFiles(folder / NAME, open_one, mmap=number % 2 == 0)


def use(files: ShardedFiles, folder: Path, number: int) -> None:
    """What is accepted means the same as before; only a whole file may be left out."""
    named = files.index.file_names
    assert files.index.weight_map == {name: file for name, file in TENSORS.items() if file in named}
    assert {name: array.tobytes() for name, array in files.items()} == {
        name: CONTENT[name] for name in files.index.weight_map
    }
    assert files.paths == [folder / name for name in named]
    assert files.nbytes == sum(len(CONTENT[name]) for name in files)


READERS = [
    Reader(
        "safetensors.index.json",
        [{NAME: json.dumps(index).encode()} for index in INDEXES],
        change,
        read,
        use,
        SHARDS,
        use_every=1,
    )
]
