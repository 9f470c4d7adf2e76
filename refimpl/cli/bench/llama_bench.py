"""llama.cpp as a peer: its own `llama-bench`, one repetition for each call, so that it can take turns with us."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from refimpl.cli.bench.model_sides import Test
from refimpl.errors import InputError, MissingFileError, RefimplError, quote

PROGRAM = "llama-bench"


def find(gguf: str | None) -> tuple[str, Path]:
    """The program and the file. Raises: InputError without a file, MissingFileError where one is not there."""
    if gguf is None:
        raise InputError("--vs llama.cpp needs a model in its own format", hint="Name one with --gguf FILE.")
    program = shutil.which(PROGRAM)
    if program is None:
        raise MissingFileError(
            f"{PROGRAM} is not on the PATH",
            where="--vs llama.cpp",
            hint="Build llama.cpp, and add its folder of programs to PATH.",
        )
    if not Path(gguf).is_file():
        raise MissingFileError("no such file", where=quote(gguf))
    return program, Path(gguf).absolute()


class LlamaBench:
    """A side of a comparison (see `model_sides.py`). Each run loads the model, which is not timed, and warms it up."""

    def __init__(self, program: str, gguf: Path, threads: int, limit: float):
        self.name = "llama.cpp"
        self.memory: int | None = None
        self._command = [program, "-m", str(gguf), "-r", "1", "-t", str(threads), "-o", "json"]
        self._gguf, self._threads, self._limit = gguf, threads, limit
        self._test: Test | None = None

    def start(self) -> dict[str, Any]:
        """What llama-bench says of itself and of the file. Raises: RefimplError."""
        said = self._ask(Test.decoding(1, 0))
        version = f"{said.get('build_commit', '?')} ({said.get('build_number', '?')})"
        return {
            "what": f"{said.get('model_type', 'unknown')}, {self._gguf.name}",
            "versions": {"llama.cpp": version},
            "threads": int(said.get("n_threads", self._threads)),
            "facts": {
                "backend": str(said.get("backends", "unknown")),
                "weight_dtype": str(said.get("model_type", "unknown")),
                "parameters": said.get("model_n_params"),
                "weight_bytes": said.get("model_size"),
            },
        }

    def prepare(self, test: Test) -> None:
        self._test = test

    def run(self) -> float:
        """The seconds of one repetition. Raises: RefimplError."""
        assert self._test is not None
        samples = self._ask(self._test).get("samples_ns")
        if not isinstance(samples, list) or len(samples) != 1 or not samples[0] > 0:
            raise RefimplError(
                f"{PROGRAM} gave no time for a repetition", where=self.name, found=quote(samples)
            )
        return samples[0] / 1e9

    def close(self) -> None:
        """Nothing: every run is a process of its own."""

    def _ask(self, test: Test) -> dict[str, Any]:
        prompt, made = (test.tokens, 0) if test.action == "prefill" else (0, test.tokens)
        asked = ["-p", str(prompt), "-n", str(made), *(["-d", str(test.depth)] if test.depth else [])]
        try:
            result = subprocess.run(
                [*self._command, *asked],
                capture_output=True,
                timeout=self._limit,
                stdin=subprocess.DEVNULL,
                env={**os.environ, "LC_ALL": "C"},
            )
        except subprocess.TimeoutExpired as error:
            raise RefimplError(f"no answer within {self._limit:g} s", where=self.name) from error
        except OSError as error:
            raise RefimplError(f"{PROGRAM} cannot be started ({error})", where=self.name) from error
        lines = result.stderr.decode("utf-8", "replace").strip().splitlines()
        if result.returncode:
            last = lines[-1] if lines else "it said nothing"
            raise RefimplError(f"{PROGRAM} ended with {result.returncode}: {last}", where=self.name)
        try:
            found = json.loads(result.stdout)
        except ValueError:
            found = None
        if not isinstance(found, list) or len(found) != 1 or not isinstance(found[0], dict):
            raise RefimplError(
                f"{PROGRAM} -o json gave no record of one test",
                where=self.name,
                found=quote(result.stdout[:60]),
            )
        return found[0]
