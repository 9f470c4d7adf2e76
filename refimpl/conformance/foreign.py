"""The numbers of another program: a trace, a safetensors file or a folder of `.npy` files, and a map of names.

The map is a JSON object: their name -> our name, or an object with `name` and what is to be done first, in the order
in which it is written:

    {"blk.{i}.attn_out": "gpt_neox.layers.{i}.attention.dense",
     "q": {"name": "gpt_neox.layers.0.attention.query", "reshape": [1, 6, 4, 8], "transpose": [0, 2, 1, 3]}}

`{i}` stands for a whole number, the same on both sides.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from refimpl.checkpoints.safetensors_file import SafetensorsFile
from refimpl.conformance import steps
from refimpl.conformance.trace_data import Trace
from refimpl.conformance.trace_file import is_trace, load_trace
from refimpl.errors import InputError, MissingFileError, RefimplError, quote
from refimpl.json_reader import read_json_object

_CHANGES = ("reshape", "transpose", "slice", "squeeze")
_MOST_FILES = 100_000


@dataclass
class Given:
    """Numbers that are to be compared with a trace.

    Attributes:
        arrays: by our names, as they were given.
        theirs: our name -> their name.
        wrong: our name -> why its numbers could not be read.
        unused: their names that mean none of our steps.
        parts: our names of which the rotated dimensions alone were given.
        trace: where the numbers are a trace of our own.
    """

    arrays: dict[str, np.ndarray]
    theirs: dict[str, str]
    wrong: dict[str, str]
    unused: list[str]
    trace: Trace | None = None
    parts: set[str] = field(default_factory=set)


def read_given(path: str, names: Iterable[str], map_path: str | None = None) -> Given:
    """What `path` holds of the steps `names`.

    Raises: MissingFileError; CheckpointFormatError for a damaged file; InputError for a map that does not fit, and
        where no name is a step.
    """
    source, trace = _open(path)
    names = dict.fromkeys(names)  # as they are kept: a trace also answers to other names
    theirs, wrong, arrays = {}, {}, {}
    used: set[str] = set()
    parts: set[str] = set()
    rules = None if map_path is None else _Map(map_path)
    for their, our, rule in _pairs(source, names, rules):
        used.add(their)
        if rule.get("part"):
            parts.add(our)
        theirs[our] = their
        try:
            arrays[our] = _float_array(source[their], rule)
        except (ValueError, OSError, RefimplError, IndexError, TypeError) as error:
            wrong[our] = str(error)
    if not theirs:
        raise InputError(
            "no name is a step of the trace",
            where=quote(path),
            found=", ".join(map(quote, list(source)[:5])) or "nothing",
            hint=_hint(next(iter(source), ""), names, rules is None),
        )
    return Given(arrays, theirs, wrong, [name for name in source if name not in used], trace, parts)


def _hint(name: str, names: Mapping[str, Any], without_map: bool) -> str:
    near = steps.nearest(name, names) if without_map else None
    return " ".join(
        filter(None, [near, "Give a map of their names to ours with --map." if without_map else None])
    )


def _open(path: str) -> tuple[Mapping[str, np.ndarray], Trace | None]:
    if os.path.isdir(path):
        return _Folder(Path(path)), None
    if not os.path.exists(path):
        raise MissingFileError("no such file or folder", where=quote(path))
    file = SafetensorsFile(path)
    if is_trace(file):
        trace = load_trace(path)
        return trace.arrays, trace
    return file, None


class _Folder(Mapping[str, np.ndarray]):
    """The `.npy` files in a folder and those below it; `a/b.npy` is `a.b`."""

    def __init__(self, folder: Path):
        files = sorted(folder.rglob("*.npy"))[:_MOST_FILES]
        self._files = {
            ".".join([*path.relative_to(folder).parts[:-1], path.name.removesuffix(".npy")]): path
            for path in files
        }

    def __getitem__(self, name: str) -> np.ndarray:
        return np.load(self._files[name], allow_pickle=False)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def _pairs(
    source: Mapping[str, Any], names: Mapping[str, Any], rules: _Map | None
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(their name, our name, what is to be done first), once for each of ours."""
    if rules is not None:
        yield from rules.pairs(source, names)
        return
    seen: set[str] = set()
    for their in source:
        our = steps.find(their, names)
        if our is None or our in seen:
            continue
        seen.add(our)
        yield their, our, {"part": steps.is_rotated_part(their) and our != their}


class _Map:
    """A map of names, read from a file and checked."""

    def __init__(self, path: str):
        self.path = path
        self.rules: dict[str, dict[str, Any]] = {}
        for their, value in read_json_object(path, InputError).items():
            rule = {"name": value} if isinstance(value, str) else value
            if not isinstance(rule, dict) or not isinstance(rule.get("name"), str):
                raise self._wrong("a name, or an object with a name, must stand here", their, value)
            unknown = [key for key in rule if key not in ("name", *_CHANGES)]
            if unknown:
                raise self._wrong(f"unknown: {quote(unknown[0])}", their, value)
            if their.count("{i}") > 1 or ("{i}" in rule["name"] and "{i}" not in their):
                raise self._wrong("{i} stands for one number, on both sides", their, value)
            self.rules[their] = rule

    def _wrong(self, what: str, their: str, value: Any) -> InputError:
        return InputError(
            what, where=f"{self.path}: {quote(their)}", found=quote(value),
            allowed=f"our name, or an object with name, {', '.join(_CHANGES)}",
        )  # fmt: skip

    def pairs(
        self, source: Mapping[str, Any], names: Mapping[str, Any]
    ) -> Iterator[tuple[str, str, dict[str, Any]]]:
        seen: set[str] = set()
        for their, rule in self.rules.items():
            pattern = re.compile(re.escape(their).replace(re.escape("{i}"), r"(\d+)"))
            matches = [match for name in source if (match := pattern.fullmatch(name))]
            if not matches:
                raise InputError(
                    "the map names something that is not there", where=self.path, found=quote(their),
                    hint=steps.nearest(their, source),
                )  # fmt: skip
            targets = [
                (match[0], rule["name"].replace("{i}", match[1] if match.groups() else ""))
                for match in matches
            ]
            known = [(name, our) for name, target in targets if (our := steps.find(target, names))]
            if not known:
                raise InputError(
                    "the map leads to a step that the trace does not have", where=f"{self.path}: {quote(their)}",
                    found=quote(targets[0][1]), hint=steps.nearest(targets[0][1], names),
                )  # fmt: skip
            for name, our in known:
                if our in seen:
                    raise InputError("the map gives one step two names", where=self.path, found=quote(our))
                seen.add(our)
                yield name, our, {**rule, "part": steps.is_rotated_part(rule["name"])}


def _float_array(array: np.ndarray, rule: Mapping[str, Any]) -> np.ndarray:
    """The array in a float dtype that NumPy knows, after what the map says.  Raises: ValueError in words."""
    array = np.asarray(array)
    if array.dtype.name == "bfloat16":
        array = array.astype(np.float32)
    if array.dtype.kind != "f":
        raise ValueError(f"not floats but {array.dtype}")
    for key, value in rule.items():
        if key == "reshape":
            array = array.reshape(value)
        elif key == "transpose":
            array = array.transpose(value)
        elif key == "squeeze":
            array = array.squeeze(tuple(value) if isinstance(value, list) else value)
        elif key == "slice":
            array = array[tuple(slice(*part) if part is not None else slice(None) for part in value)]
    return array
