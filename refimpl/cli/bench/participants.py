"""The live processes of a benchmark: ours and those of others, each with its own environment."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import refimpl
from refimpl.errors import RefimplError

_HERE = Path(__file__).parent

#: Scripts that measure other implementations; a checkout has them, the installed package does not.
PEERS = Path(refimpl.__file__).resolve().parents[1] / "golden" / "peers"

#: How long loading, with compiling whatever is not in a cache, may take [s].
START_LIMIT = 300.0

#: Each library asks another variable how many threads it may use.
_THREAD_VARIABLES = (
    *("RAYON_NUM_THREADS", "NUMBA_NUM_THREADS", "OMP_NUM_THREADS"),
    *("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"),  # to these libraries they say more than OMP's
)


class Participant:
    """A program that is measured, in a child process that is started when it is first asked.

    `adapter` is what `worker.py` loads; `options` go to its `prepare`.  Every request has to be answered
    within `limit` seconds, loading within `start_limit`.  After a failure the process is ended, and a new one
    is started for the next request.
    """

    def __init__(
        self,
        name: str,
        adapter: Path,
        model: str,
        threads: int,
        *,
        options: dict[str, Any] | None = None,
        python: str = sys.executable,
        limit: float = 60.0,
        start_limit: float = START_LIMIT,
    ):
        self.name, self.threads, self.limit, self._start_limit = name, threads, limit, start_limit
        self._command = [python, "-P", str(_HERE / "worker.py"), str(adapter)]
        self._request = {"do": "prepare", "model": model, "threads": threads, "options": options or {}}
        self._process: subprocess.Popen[bytes] | None = None
        self._answers: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._errors: IO[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The id of the process, while there is one."""
        process = self._process
        return None if process is None else process.pid

    def start(self) -> dict[str, Any]:
        """Starts the process. Returns: what the adapter says of itself, and how long it took.

        Raises: RefimplError when it cannot be measured.
        """
        self.close()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115, it lives as long as the process
        try:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env=os.environ | environment(self.threads),
            )
        except OSError as error:
            self.close()
            raise RefimplError(f"the process cannot be started ({error})", where=self.name) from error
        self._answers = queue.SimpleQueue()
        assert self._process.stdout is not None
        threading.Thread(
            target=_pass_on, args=(self._process.stdout, self._answers), daemon=True
        ).start()  # the only way to wait for a pipe no longer than so long on every system
        return self._exchange(self._request, self._start_limit)

    def ask(self, do: str, limit: float | None = None, **request: Any) -> dict[str, Any]:
        """The answer of the process (see `worker.py`).

        Raises: RefimplError: it failed, has no such thing, ended, or took longer than `limit`.
        """
        if self._process is None:
            self.start()
        return self._exchange({"do": do, **request}, self.limit if limit is None else limit)

    def _exchange(self, request: dict[str, Any], limit: float) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
            line = self._answers.get(timeout=limit)
            answer = json.loads(line) if line else {"error": f"the process ended{self._last_words()}"}
        except queue.Empty:
            answer = {"error": f"no answer within {limit:g} s"}
        except (OSError, ValueError):
            answer = {"error": f"the process does not answer{self._last_words()}"}
        reason = answer.get("unavailable", answer.get("error"))
        if reason is not None:
            self.close()
            raise RefimplError(str(reason), where=self.name)
        return answer

    def _last_words(self) -> str:
        assert self._errors is not None
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        return f": {lines[-1]}" if lines else ""

    def close(self) -> None:
        """Ends the process, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                assert pipe is not None
                with suppress(OSError):  # what it was still to be told goes nowhere
                    pipe.close()
            self._process = None
        if self._errors is not None:
            self._errors.close()
            self._errors = None


def _pass_on(pipe: IO[bytes], answers: queue.SimpleQueue[bytes]) -> None:
    """Lines of the pipe, and an empty one when it ends."""
    with suppress(ValueError):  # closed while this was reading
        for line in pipe:
            answers.put(line)
    answers.put(b"")


def environment(threads: int) -> dict[str, str]:
    """The variables that make every library use so many threads, and ask nothing of the network."""
    return {
        **dict.fromkeys(_THREAD_VARIABLES, str(threads)),
        "TOKENIZERS_PARALLELISM": "true" if threads > 1 else "false",
        "HF_HUB_OFFLINE": "1",
        "PYTHONUTF8": "1",
    }
