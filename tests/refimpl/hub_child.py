"""A process of its own that asks our Hub, because `huggingface_hub` reads its environment once, when it is imported.

`Child` starts it and calls functions in it; run as a program, this module is that process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

REPOSITORY = Path(__file__).resolve().parents[2]

#: The longest pause between two attempts of the library, in seconds.
PAUSE = 0.01


@dataclass
class Failure:
    """An exception that a call raised in the process."""

    names: list[str]  # of its class and those above
    text: str
    reason: str | None
    cause: str | None  # the class of what it was raised from

    def __bool__(self) -> bool:
        return False


class Child:
    """`with Child(url, home) as child` starts the process; `environment` is added to its own.

    An answer that is not there after `timeout` seconds counts as missing.
    """

    def __init__(self, url: str, home: Path, timeout: float = 10, **environment: str):
        self._timeout = timeout
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        given = {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
        given |= {
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
        }
        self._environment = {**kept, **given, **environment}

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.refimpl.hub_child", str(self._timeout)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=REPOSITORY,
            env=self._environment,
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=30)

    def kill(self) -> None:
        """End the process wherever it is."""
        self._process.kill()

    def ask(self, function: str, *arguments: Any, **options: Any) -> None:
        """Begin a call of `module:function`; `answer` waits for its end."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([function, arguments, options], default=str) + "\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        """What the call returned, paths as texts; a `Failure`, which is false, if it raised."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the process has ended"
        result = json.loads(line)
        return Failure(**result["failure"]) if "failure" in result else result["value"]

    def call(self, function: str, *arguments: Any, **options: Any) -> Any:
        self.ask(function, *arguments, **options)
        return self.answer()


def main() -> None:
    import importlib
    import time

    from huggingface_hub import constants, file_download

    sleep = time.sleep
    time.sleep = lambda seconds: sleep(min(seconds, PAUSE))
    # The environment takes whole seconds only, and the retries of the first request have a limit of their own.
    timeout = float(sys.argv[1])
    constants.HF_HUB_DOWNLOAD_TIMEOUT = constants.HF_HUB_ETAG_TIMEOUT = timeout  # type: ignore[assignment]
    file_download._ETAG_RETRY_TIMEOUT = timeout  # type: ignore[assignment]
    constants.DOWNLOAD_CHUNK_SIZE = 8192  # so that our small files arrive in several parts

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what anyone prints is no answer
    for line in sys.stdin:
        function, arguments, options = json.loads(line)
        module, _, name = function.partition(":")
        try:
            value = getattr(importlib.import_module(module), name)(*arguments, **options)
            result = {"value": value}
        except Exception as error:
            failure = {
                "names": [kind.__name__ for kind in type(error).__mro__],
                "text": str(error),
                "reason": getattr(error, "reason", None),
                "cause": None if error.__cause__ is None else type(error.__cause__).__name__,
            }
            result = {"failure": failure}
        answers.write(json.dumps(result, default=str) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
