"""Outputs that an engine has left in files, for engines that cannot be asked."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from refimpl.checkpoints.safetensors_file import SafetensorsFile
from refimpl.conformance.case_judge import judge, result_of
from refimpl.conformance.live_naming import LiveNames
from refimpl.conformance.protocol import DTYPES, PROTOCOL, Capabilities, inline, read_capabilities
from refimpl.conformance.requests import wanted_outputs
from refimpl.conformance.results import Result
from refimpl.conformance.suite import Case, Suite
from refimpl.errors import InputError, MissingFileError, RefimplError, quote, shorten
from refimpl.json_reader import read_json_object

ENGINE_FILE = "engine.json"
_MAX_JSON_BYTES = 64 << 20


class OfflineOutputs:
    """A folder of outputs.

    Of the case `a/b/c` it has one of: `a/b/c.safetensors`, whose tensors are named after the outputs; a folder `a/b/c`
    with `OUTPUT.npy` files; `a/b/c.json`, which is an answer as in the protocol (for tokenizers and refusals).
    `engine.json` is the answer to the handshake.  A case without any file is unsupported.

    Args:
        dtype: what was computed in, where there is no `engine.json`.

    Attributes: `engine`.

    Raises: MissingFileError where there is no such folder; InputError where none of its files is that of a case, where
        one is not, and where nothing says the dtype; EngineError for a wrong `engine.json`.
    """

    def __init__(self, suite: Suite, folder: Path, dtype: str | None = None):
        self._suite, self._folder = suite, folder
        if not folder.is_dir():
            raise MissingFileError("no such folder", where=quote(str(folder)))
        self.engine = self._engine(dtype)
        self._refuse_strays()

    def result(self, case: Case, names: LiveNames | None = None) -> Result:
        """What came of a case; `names`: what names a mistake."""
        try:
            answer = self._answer(case)
        except (RefimplError, OSError, ValueError, EOFError) as error:
            return result_of(case, "invalid", str(error)[:400])
        if answer is None:
            return result_of(case, "unsupported", "there is no file of it")
        return judge(self._suite, case, answer, self.engine, names=names)

    def _engine(self, dtype: str | None) -> Capabilities:
        path = self._folder / ENGINE_FILE
        if path.is_file():
            return read_capabilities({"protocol": PROTOCOL, **read_json_object(path, InputError)})
        if dtype is None:
            raise InputError(
                "nothing says in which precision these outputs were computed",
                where=quote(str(self._folder)),
                hint=f'Give --dtype float32, or write {ENGINE_FILE}: {{"name": ..., "version": ..., "dtype": ...}}.',
            )
        return read_capabilities({"protocol": PROTOCOL, "name": self._folder.name, "dtype": dtype})

    def _answer(self, case: Case) -> dict[str, Any] | None:
        base = self._folder / case["id"]
        answer_file, tensors = base.with_name(f"{base.name}.json"), base.with_name(f"{base.name}.safetensors")
        if answer_file.is_file():
            return read_json_object(answer_file, InputError, limit=_MAX_JSON_BYTES)
        if tensors.is_file():
            names = list(SafetensorsFile(tensors))
            return {"outputs": {name: {"file": str(tensors), "tensor": name} for name in names}}
        arrays = sorted(base.glob("*.npy"))
        if not arrays:
            return None
        return {"outputs": {path.stem: inline(_load(path)) for path in arrays}}

    def _refuse_strays(self) -> None:
        """A file that belongs to no case has a wrong name, and its case would pass for unsupported."""
        known = {ENGINE_FILE}
        for case in self._suite.cases:
            known |= {f"{case['id']}.json", f"{case['id']}.safetensors"}
            known |= {f"{case['id']}/{output}.npy" for output in wanted_outputs(self._suite, case)}
        there = {
            path.relative_to(self._folder).as_posix() for path in self._folder.rglob("*") if path.is_file()
        }
        strays = sorted(there - known)
        if strays:
            raise InputError(
                f"files that are named after no case: {shorten(strays)}",
                where=quote(str(self._folder)),
                allowed="ID.safetensors, ID.json, ID/OUTPUT.npy, " + ENGINE_FILE,
            )
        if not there - {ENGINE_FILE}:
            raise InputError("the folder has no outputs", where=quote(str(self._folder)))


def _load(path: Path) -> np.ndarray:
    """Raises: InputError for an array of another dtype than the protocol has; ValueError for no array."""
    array: np.ndarray = np.lib.format.read_array(io.BytesIO(path.read_bytes()), allow_pickle=False)
    if array.dtype.name not in DTYPES:
        raise InputError("unknown dtype", where=path.name, found=str(array.dtype), allowed=", ".join(DTYPES))
    return array
