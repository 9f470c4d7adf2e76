"""Ctrl-C while text is made."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupt:
    """The first Ctrl-C ends generation, but not between making a token and showing it; the second, the process.

    Attribute `happened`: whether there was one.

    Args:
        is_last: False: a second Ctrl-C has no effect, for a program that goes on afterwards.
    """

    def __init__(self, is_last: bool = True) -> None:
        self.happened = False
        self._is_last = is_last
        self._is_held = False

    def __enter__(self) -> Interrupt:
        self._before = signal.getsignal(signal.SIGINT)
        if self._before is not signal.SIG_IGN:  # started in the background: Ctrl-C is meant for others
            signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._is_last:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        elif self.happened:
            return
        self.happened = True
        if not self._is_held:
            raise KeyboardInterrupt

    def finish(self) -> None:
        """From now on the first Ctrl-C has no effect: what follows is quickly done, and must be done."""
        self._is_held = True

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let what is inside be finished first."""
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False
        if self.happened:
            raise KeyboardInterrupt
