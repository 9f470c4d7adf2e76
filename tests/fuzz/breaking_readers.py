"""Readers that do what native code can do, for the test of `child.py`: all of them at input 5."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

from tests.fuzz.harness import Reader


def crash() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hang() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
    while True:
        pass


def end() -> None:
    os._exit(0)


def escape() -> None:
    raise KeyError("x")


def nothing() -> None:
    pass


def reader(act: Callable[[], None]) -> Reader:
    def read(folder: Path, number: int) -> None:
        if number == 5:
            act()

    valid = [{"some.txt": b"a"}]
    return Reader(act.__name__, valid, lambda draw, files: files, read, lambda *of_no_interest: None)


READERS = {act.__name__: reader(act) for act in (crash, hang, end, escape, nothing)}
