"""The most memory that a child process has held, seen from outside, so that its own time is not touched."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

from refimpl.cli.bench.participants import Participant
from refimpl.cli.bench.worker import anonymous_memory

# Shorter peaks may go unseen; looking more often would cost a small machine time.
_INTERVAL = 0.02


class MemoryWatch:
    """Looks at the process of a participant while inside `with`.

    Attribute `peak`: the most anonymous memory in bytes (mapped files do not count: the system can drop their
    pages at any time); None where the system does not tell.
    """

    def __init__(self, participant: Participant):
        self.peak: int | None = None
        self._participant = participant
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()

    def _look(self) -> None:
        while True:
            pid = self._participant.pid
            now = None if pid is None else anonymous_memory(pid)
            if now is not None:
                self.peak = max(now, self.peak or 0)
            if self._end.wait(_INTERVAL):
                return
