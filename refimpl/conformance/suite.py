"""The suite of cases: a folder (or a zip of one) with a manifest, opened, checked and read.

The suite is data of its own: `golden/` of the repository, or what `refimpl conform export` made of it.  It is not
part of the installed package.  `golden/README.md` says what the fields of a case mean.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import tempfile
import zipfile
import zlib
from functools import lru_cache
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, Self

import numpy as np

import refimpl
from refimpl.checkpoints.safetensors_file import SafetensorsFile
from refimpl.errors import MissingFileError, SuiteError, quote, shorten
from refimpl.json_reader import read_json_object

MANIFEST = "manifest.json"

#: The version of the manifest's form that is understood here; the first number of a suite's version follows it.
FORMAT_VERSION = 1

#: Every file in these folders of a suite has to be listed in its manifest.
LISTED_FOLDERS = ("models", "vectors", "tokenizer")

LEVELS = ("op", "layer", "model", "tokenizer", "generation")

#: In the order in which an engine is written: a mistake shows first where it was made.
OPERATIONS = (
    "activation", "layer_norm", "linear", "softmax", "rotary_tables", "rotary", "attention", "load", "layers", "model",
    "cached_model", "generate", "tuple_cache", "tokenizer", "quantize", "process_scores",
)  # fmt: skip

_MAX_MANIFEST_BYTES = 64 << 20
_MAX_ZIP_FILES = 20_000
_MAX_ZIP_BYTES = 1 << 30
_CASE_KEYS = {"id", "level", "operation", "features", "required", "inputs", "expect"}

Case = dict[str, Any]


class Suite:
    """The cases of a suite and their tensors.

    Args:
        path: a folder with `manifest.json`, or a folder or zip archive that has it in `golden/` or one folder further
            down; None for `golden/` of the source checkout that this package runs from.

    Attributes: `folder`, where the manifest lies (a zip is unpacked into a folder that `close` removes); `manifest`;
        `cases`, in the order of the manifest; `sha256` of the manifest; `name`, `version`; `present`, the paths of
        the manifest whose files are there.

    Raises: MissingFileError where there is no suite; SuiteError where it is of a newer major version, where a file
        differs from its sha256, is missing or is not listed, and where the manifest is not one.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None):
        self._unpacked: tempfile.TemporaryDirectory[str] | None = None
        start = default_folder() if path is None else Path(path)
        try:
            if start.is_file():
                _refuse_part(start)
                self._unpacked = tempfile.TemporaryDirectory(prefix="refimpl-suite-")
                start = unpack(start, Path(self._unpacked.name))
            self.folder = find_manifest(start).resolve()
            self._read_manifest()
            self.present = self._check_files()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Removes what was unpacked."""
        if self._unpacked is not None:
            self._unpacked.cleanup()
            self._unpacked = None

    @property
    def identity(self) -> dict[str, Any]:
        """What tells this suite from another: name, version, form and the sha256 of its manifest."""
        return {
            "name": self.name,
            "version": self.version,
            "format_version": self.manifest["format_version"],
            "sha256": self.sha256,
        }

    def tensors(self, path: str) -> dict[str, np.ndarray]:
        """All tensors of a vector file, by the file's path in the manifest."""
        return _load_tensors(str(self.folder / path))

    def line(self, case: Case) -> dict[str, Any]:
        """The line of a tokenizer case: its text, its ids and what else it says."""
        line: dict[str, Any] = _load_lines(str(self.folder / case["inputs"]["file"]))[
            case["inputs"]["line"] - 1
        ]
        return line

    def case(self, name: str) -> Case:
        """The case of that id."""
        return self._by_id[name]

    def lacks_files(self, case: Case) -> str | None:
        """The folder that a case needs and that did not come with the suite, or None."""
        model = case.get("model")
        return model if model is not None and f"{model}/config.json" not in self.present else None

    def _read_manifest(self) -> None:
        path = self.folder / MANIFEST
        self.manifest = read_json_object(path, SuiteError, limit=_MAX_MANIFEST_BYTES)
        self.sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        about = self.manifest.get("suite")
        about = about if isinstance(about, dict) else {}
        version = about.get("version")
        found = self.manifest.get("format_version")
        if (
            not isinstance(version, str)
            or not re.fullmatch(r"\d+\.\d+\.\d+", version)
            or type(found) is not int
        ):
            raise SuiteError(
                "not the manifest of a suite",
                where=path,
                found=f"format_version {quote(found)}, suite {quote(about)}",
                allowed=f'"format_version": {FORMAT_VERSION}, "suite": {{"name": ..., "version": "1.2.3"}}',
            )
        if found > FORMAT_VERSION or int(version.split(".")[0]) > FORMAT_VERSION:
            raise SuiteError(
                "the suite is of a newer major version than this program",
                where=path,
                found=f"suite {version}, format_version {found}",
                allowed=f"suite {FORMAT_VERSION}.x, format_version {FORMAT_VERSION}",
                hint="Install a newer refimpl, or take an older suite.",
            )
        self.name, self.version = str(about.get("name", "")), version
        self.cases = self._checked_cases(path)
        self._by_id = {case["id"]: case for case in self.cases}
        if len(self._by_id) != len(self.cases):
            raise SuiteError("an id stands for two cases", where=path)

    def _checked_cases(self, path: Path) -> list[Case]:
        cases = self.manifest.get("cases")
        if not isinstance(cases, list) or not cases:
            raise SuiteError("the suite has no cases", where=path)
        for case in cases:
            if not isinstance(case, dict) or not case.keys() >= _CASE_KEYS:
                raise SuiteError("not a case", where=path, found=quote(case), allowed=", ".join(_CASE_KEYS))
        return cases

    def _check_files(self) -> set[str]:
        """Hold every file against its sha256.  Returns: the paths that are there.

        Those outside of the suite (`../`) may be missing: it can be used without the repository around it.
        """
        listed = {entry["path"]: entry for entry in self.manifest.get("files", ())}
        there = {
            path.relative_to(self.folder).as_posix()
            for name in LISTED_FOLDERS
            for path in (self.folder / name).rglob("*")
            if path.is_file()
        }
        outside = {path for path in listed if path.startswith("../") and (self.folder / path).is_file()}
        missing = sorted(path for path in listed if path not in there and not path.startswith("../"))
        if missing:
            raise SuiteError(f"files are missing: {shorten(missing)}", where=self.folder)
        orphans = sorted(there - listed.keys())
        if orphans:
            raise SuiteError(
                f"files that the manifest does not list: {shorten(orphans)}",
                where=self.folder,
                hint="Remove them, or make the manifest again: python golden/make/make_manifest.py",
            )
        changed = sorted(p for p in there | outside if not self._is_as_listed(listed[p]))
        if changed:
            raise SuiteError(
                f"files that are not those of the manifest (other sha256): {shorten(changed)}",
                where=self.folder,
                hint="Get the suite again; what is measured with changed files says nothing.",
            )
        return there | outside

    def _is_as_listed(self, entry: dict[str, Any]) -> bool:
        with open(self.folder / entry["path"], "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == entry["sha256"]


@lru_cache(maxsize=64)
def _load_tensors(path: str) -> dict[str, np.ndarray]:
    file = SafetensorsFile(path, mmap=False)
    return {name: file[name] for name in file}


@lru_cache(maxsize=16)
def _load_lines(path: str) -> list[dict[str, Any]]:
    text = Path(path).read_text(encoding="utf-8")
    return [json.loads(line) if line else {} for line in text.split("\n")]


def default_folder() -> Path:
    """`golden/` beside this package, as in a source checkout.  Raises: MissingFileError."""
    folder = Path(refimpl.__file__).resolve().parents[1] / "golden"
    if not (folder / MANIFEST).is_file():
        raise MissingFileError(
            "the suite is not part of the installed package",
            where=folder,
            hint="Name one with --suite: the folder golden/ of a source checkout, or the archive that "
            "`refimpl conform export DIR` makes there.",
        )
    return folder


def find_manifest(folder: Path) -> Path:
    """The folder with the manifest: `folder`, its `golden`, or one of those in a folder further down.

    Raises: MissingFileError, SuiteError where two would do.
    """
    if not folder.is_dir():
        raise MissingFileError("no such suite", where=folder, allowed="a folder, or a zip archive of one")
    for place in (folder, folder / "golden"):
        if (place / MANIFEST).is_file():
            return place
    below = [
        path.parent for pattern in (f"*/{MANIFEST}", f"*/golden/{MANIFEST}") for path in folder.glob(pattern)
    ]
    if len(below) > 1:
        raise SuiteError(
            "several suites lie here", where=folder, found=shorten([str(path) for path in below])
        )
    if not below:
        raise MissingFileError(
            f"there is no {MANIFEST}",
            where=folder,
            hint="A suite is the folder golden/ of a source checkout, or the archive that "
            "`refimpl conform export DIR` makes there.",
        )
    return below[0]


def _refuse_part(path: Path) -> None:
    """Raises: SuiteError where a file of a suite is named instead of its folder."""
    if path.suffix == ".json":
        raise SuiteError(
            "this is a file of a suite", where=path, hint=f"Name its folder: --suite {path.absolute().parent}"
        )


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack a zip archive into `folder`, which it returns.

    Nothing is written outside of `folder`: names that lead elsewhere, links, and archives beyond all measure are
    refused.
    Raises: SuiteError.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            entries = opened.infolist()
            if len(entries) > _MAX_ZIP_FILES or sum(entry.file_size for entry in entries) > _MAX_ZIP_BYTES:
                raise SuiteError("the archive is too large for a suite", where=archive)
            for entry in entries:
                _refuse_name(entry, archive)
            for entry in entries:
                if not entry.is_dir():
                    _unpack_file(opened, entry, folder)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise SuiteError(f"not a zip archive that can be read ({error})", where=archive) from error
    except OSError as error:
        raise SuiteError(f"the archive cannot be unpacked ({error})", where=archive) from error
    return folder


def _refuse_name(entry: zipfile.ZipInfo, archive: Path) -> None:
    path = PurePosixPath(entry.filename)
    odd = path.is_absolute() or ".." in path.parts or "\\" in entry.filename or ":" in entry.filename
    if odd or stat.S_ISLNK(entry.external_attr >> 16):
        raise SuiteError("an entry leads out of the archive", where=archive, found=quote(entry.filename))


def _unpack_file(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, folder: Path) -> None:
    target = folder / entry.filename
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(archive.read(entry))
