"""Where the time of a token goes: the wall time of each operation of a backend."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from refimpl.backends.base import OPERATIONS, Backend


@dataclass
class OperationTime:
    """How often the model has called an operation, and how long that took in all."""

    calls: int = 0
    seconds: float = 0.0


@contextmanager
def timed_operations(backend: Backend) -> Iterator[dict[str, OperationTime]]:
    """While inside: the time of each operation that model code calls, by its name.

    An operation that another one calls (softmax in attention) counts as a part of that.  On a device that
    works by itself every operation is waited for, which takes time of its own.
    """
    plain = type(backend)
    times = {name: OperationTime() for name in OPERATIONS}
    running: list[str] = []
    methods = {name: _timed(name, getattr(plain, name), times[name], running) for name in OPERATIONS}
    # The parts of a model hold this very object, so it is its class that changes.
    backend.__class__ = type(plain.__name__, (plain,), methods)
    try:
        yield times
    finally:
        backend.__class__ = plain


def _timed(
    name: str, method: Callable[..., Any], spent: OperationTime, running: list[str]
) -> Callable[..., Any]:
    def call(self: Backend, *args: Any, **kwargs: Any) -> Any:
        if running:
            return method(self, *args, **kwargs)
        running.append(name)
        began = time.perf_counter()
        try:
            result = method(self, *args, **kwargs)
            self.synchronize()
            return result
        finally:
            spent.seconds += time.perf_counter() - began
            spent.calls += 1
            running.pop()

    return call
