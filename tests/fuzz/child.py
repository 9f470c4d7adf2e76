"""Feeding a reader in a process of its own, so that one that ends the process, or never returns, is seen.

`python -m tests.fuzz.child MODULE NAME FIRST COUNT FILE` is that process: it feeds the reader `MODULE.READERS[NAME]`
and keeps the number of the input in the file.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from tests.fuzz.harness import SECONDS_EACH, Reader, Tally, run, where

MEMORY = 8 << 30  # bytes of address space
_LOOK = 0.2  # seconds between two looks at the child
ROOT = Path(__file__).parents[2]


def run_in_child(
    reader: Reader,
    first: int,
    count: int,
    limit: float = 4 * SECONDS_EACH,
    module: str = "tests.fuzz.readers",
) -> Tally:
    """`run` in a new process; `limit` is for one input, in seconds.  Raises: AssertionError."""
    with tempfile.TemporaryDirectory() as folder:
        progress, said = Path(folder, "number"), Path(folder, "said")
        progress.write_text(f"{first:20}")
        command = [sys.executable, "-m", __name__, module, reader.name, str(first), str(count), str(progress)]
        with open(said, "wb") as output:
            child = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
        try:
            ended = _watch(child, progress, limit)
        finally:
            child.kill()
            child.wait()
        lines = said.read_text(errors="replace").splitlines()
        counts = re.fullmatch(r"(\d+) accepted, (\d+) refused", lines[-1] if lines else "")
        if ended == 0 and counts:
            return Tally(int(counts[1]), int(counts[2]))
        number = int(progress.read_text())
        what = {None: f"nothing for {limit} s", 0: "said nothing"}.get(ended, f"exit code {ended}")
        raise AssertionError("\n".join([f"{what}: {where(reader, number)}", *lines[-40:]]))


def _watch(child: subprocess.Popen[bytes], progress: Path, limit: float) -> int | None:
    """The exit code of the child, or None when it has stayed with one input for longer than `limit` seconds."""
    last, waited = "", 0.0
    while waited < limit:
        with suppress(subprocess.TimeoutExpired):
            return child.wait(timeout=_LOOK)
        now = progress.read_text()
        last, waited = now, waited + _LOOK if now == last else 0.0
    return None


def _limit_memory() -> None:
    with suppress(ImportError, OSError, ValueError):  # not every system can
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def main(module: str, name: str, first: str, count: str, progress: str) -> None:
    reader = import_module(module).READERS[name]
    _limit_memory()
    handle = os.open(progress, os.O_WRONLY)
    tally = run(reader, int(first), int(count), begins=lambda number: os.pwrite(handle, b"%20d" % number, 0))
    print(f"{tally.accepted} accepted, {tally.refused} refused")


if __name__ == "__main__":
    main(*sys.argv[1:])
