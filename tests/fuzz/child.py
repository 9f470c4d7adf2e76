"""Feeding a reader in a process of its own, so that one that ends the process, or never returns, is seen.

`python -m tests.fuzz.child NAME FIRST COUNT FILE` is that process; it keeps the number of the input in the file.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from tests.fuzz.harness import SECONDS_EACH, Reader, Tally, run, where

MEMORY = 8 << 30  # bytes of address space
ROOT = Path(__file__).parents[2]


def run_in_child(reader: Reader, first: int, count: int, limit: float = 4 * SECONDS_EACH) -> Tally:
    """`run` in a new process.  Raises: AssertionError."""
    with tempfile.TemporaryDirectory() as folder:
        progress, said = Path(folder, "number"), Path(folder, "said")
        progress.write_text(f"{first:20}")
        command = [sys.executable, "-m", __name__, reader.name, str(first), str(count), str(progress)]
        with open(said, "wb") as output:
            child = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
        try:
            ended = _watch(child, progress, limit)
        finally:
            child.kill()
            child.wait()
        lines = said.read_text(errors="replace").splitlines()
        if ended == 0:
            accepted, refused = lines[-1].split()
            return Tally(int(accepted), int(refused))
        number = int(progress.read_text())
        what = f"nothing for {limit} s" if ended is None else f"exit code {ended}"
        raise AssertionError("\n".join([f"{what}: {where(reader, number)}", *lines[-40:]]))


def _watch(child: subprocess.Popen[bytes], progress: Path, limit: float) -> int | None:
    """The exit code of the child, or None when it has stayed with one input for longer than `limit` seconds."""
    last, since = "", time.monotonic()
    while True:
        with suppress(subprocess.TimeoutExpired):
            return child.wait(timeout=0.2)
        if (now := progress.read_text()) != last:
            last, since = now, time.monotonic()
        elif time.monotonic() - since > limit:
            return None


def _limit_memory() -> None:
    with suppress(ImportError, OSError, ValueError):  # not every system can
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def main(name: str, first: str, count: str, progress: str) -> None:
    from tests.fuzz.readers import READERS

    _limit_memory()
    handle = os.open(progress, os.O_WRONLY)
    tally = run(
        READERS[name], int(first), int(count), begins=lambda number: os.pwrite(handle, b"%20d" % number, 0)
    )
    print(tally.accepted, tally.refused)


if __name__ == "__main__":
    main(*sys.argv[1:])
