"""Signals that end a command, for one that has processes to end and files to remove before."""

from __future__ import annotations

import signal
import threading
from types import FrameType


class StopOnSignal:
    """As a context: Ctrl-C, SIGTERM and SIGHUP set `event` instead of ending the program; whoever works looks at it.

    A signal that is ignored stays so (a program in the background: Ctrl-C is meant for others).  Outside of the main
    thread, where Python allows no handlers, nothing changes.
    """

    def __init__(self) -> None:
        self.event = threading.Event()
        self._number = int(signal.SIGINT)
        self._before: dict[int, object] = {}

    @property
    def exit_code(self) -> int:
        """128 + the number of the signal, as shells have it: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + self._number

    def __enter__(self) -> StopOnSignal:
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGINT", "SIGTERM", "SIGHUP"):
                number = getattr(signal, name, None)  # Windows has no SIGHUP
                before = None if number is None else signal.getsignal(number)
                if number is not None and before not in (signal.SIG_IGN, None):
                    self._before[number] = before
                    signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)  # type: ignore[arg-type]

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if not self.event.is_set():
            self._number = number
        self.event.set()
