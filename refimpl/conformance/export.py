"""The suite as one archive, for those who do not have the repository."""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from pathlib import Path

from refimpl.conformance.suite import Suite
from refimpl.errors import InputError, MissingFileError
from refimpl.files import make_folder, write_atomically

#: The earliest date that a zip archive can say: the same files give the same bytes, whenever they were made.
_DATE = (1980, 1, 1, 0, 0, 0)

#: What the pages of the suite link to, beside the suite itself.
_PAGES = ("docs/spec", "docs/conformance", "docs/tokenizer.md", "docs/generation.md", "LICENSE", "NOTICE")


def export(suite: Suite, folder: str | os.PathLike[str], trained_model: bool = False) -> Path:
    """Write `refimpl-suite-VERSION.zip` into `folder`, which is made unless it is there.

    The archive has the layout of the repository: `golden/`, `docs/` with the specification that the cases point to,
    the licence; with `trained_model` also the model of the cases with the feature `trained`.  The same suite gives the
    same bytes.

    Returns: the path of the archive; beside it lies `.sha256`, as the program sha256sum writes it.
    Raises: SaveError; InputError where `folder` is a file; MissingFileError where the model was asked for and is not
        there.
    """
    target = Path(folder)
    if target.is_file():
        raise InputError("the folder to export to is a file", where=str(target))
    make_folder(target)
    name = f"refimpl-suite-{suite.version}"
    data = _archive(_files(suite, trained_model), name)
    path = write_atomically(target / f"{name}.zip", data)
    write_atomically(target / f"{name}.zip.sha256", f"{hashlib.sha256(data).hexdigest()}  {path.name}\n")
    return path


def _files(suite: Suite, trained_model: bool) -> dict[str, Path]:
    """Name in the archive -> file."""
    root = suite.folder.parent
    inside = {entry["path"] for entry in suite.manifest["files"] if not entry["path"].startswith("../")}
    inside |= {"manifest.json", "manifest.schema.json", "README.md"}
    inside |= {
        path.relative_to(suite.folder).as_posix()
        for path in (suite.folder / "examples").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    files = {f"golden/{name}": suite.folder / name for name in inside if (suite.folder / name).is_file()}
    for name in _PAGES:
        place = root / name
        pages = [place] if place.is_file() else [path for path in place.rglob("*") if path.is_file()]
        files |= {
            path.relative_to(root).as_posix(): path for path in pages if "__pycache__" not in path.parts
        }
    if trained_model:
        outside = [entry["path"] for entry in suite.manifest["files"] if entry["path"].startswith("../")]
        absent = [name for name in outside if name not in suite.present]
        if absent:
            raise MissingFileError("the trained model is not there", where=str(suite.folder / absent[0]))
        files |= {name.removeprefix("../"): (suite.folder / name).resolve() for name in outside}
    return files


def _archive(files: dict[str, Path], name: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path in sorted(files):
            entry = zipfile.ZipInfo(f"{name}/{path}", _DATE)
            entry.compress_type, entry.create_system = zipfile.ZIP_DEFLATED, 3
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, files[path].read_bytes(), compresslevel=9)
    return buffer.getvalue()
