"""The log of a run: one line of JSON for each result, written as it comes, so that a run can be taken up again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import IO, Any

from refimpl.conformance.results import Result
from refimpl.errors import InputError, SaveError, quote
from refimpl.files import write_atomically

_KIND = "refimpl conform log"


class ResultLog:
    """The log file `path`; the first line says of which suite and engine it is.

    Used as a context; what was written is in the file after every line.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._file: IO[str] | None = None

    def __enter__(self) -> ResultLog:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def begin(self, suite: dict[str, Any], engine: dict[str, Any]) -> dict[str, Result]:
        """Open the log for a run of this engine over this suite.

        What did not pass is taken out of it, to be asked again: an engine may have been repaired and kept its version,
        and a slow machine may be idle now.

        Returns: the cases that it holds as passed, by id.
        Raises: InputError when it is the log of another run, or no log; SaveError when it cannot be written.
        """
        head = {"log": _KIND, "suite": suite, "engine": engine}
        try:
            lines = self._lines()
            if lines and lines[0] != head:
                raise InputError(
                    "the file is no log, or that of another engine or suite",
                    where=str(self.path),
                    found=quote(lines[0]),
                    hint="Name another file with --resume, or remove this one.",
                )
            done = {line["id"]: line for line in lines[1:] if line.get("status") == "pass"}
            write_atomically(self.path, "".join(_as_line(entry) for entry in (head, *done.values())))
            self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115
        except OSError as error:
            if isinstance(error, SaveError):
                raise
            raise SaveError(f"the log cannot be written ({error.strerror})", where=str(self.path)) from error
        return {name: Result.from_json(line) for name, line in done.items()}

    def write(self, result: Result) -> None:
        """Add a result."""
        assert self._file is not None
        self._file.write(_as_line(result.to_json()))
        self._file.flush()

    def _lines(self) -> list[dict[str, Any]]:
        """The whole lines of the file; one that was cut off when the run ended is left out."""
        if not self.path.exists():
            return []
        lines: list[dict[str, Any]] = []
        for number, text in enumerate(self.path.read_text(encoding="utf-8", errors="replace").split("\n")):
            try:
                line = json.loads(text)
            except ValueError:
                if number == 0 and text:
                    raise InputError("the file is no log of a run", where=str(self.path)) from None
                continue
            if not isinstance(line, dict) or (number and "id" not in line):
                raise InputError("the file is no log of a run", where=str(self.path), found=quote(text))
            lines.append(line)
        return lines


def _as_line(entry: dict[str, Any]) -> str:
    return json.dumps(entry, ensure_ascii=True) + "\n"
