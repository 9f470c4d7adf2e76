"""A step that is recorded once and then launched as a whole: a CUDA graph.

A token of a small model is hundreds of kernels of a few microseconds each, and launching one from Python takes longer
than running it.  Recorded, they follow each other on the device without the host.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from refimpl.backends.cupy.modules import cupy

Array = Any


class RecordedStep:
    """`step()`, which reads and writes arrays that stay where they are, and returns one.

    The first call computes it as it stands, then records it; later calls launch the record.  The result lies in the
    same memory each time, until the next call.  Where a step cannot be recorded (it asks the device for a number on
    the way, say) every call computes it as it stands, and a warning says so once.

    What the step allocates comes from a pool of its own and is never given to anyone else: the record goes on writing
    there.  Both runs are on a stream of their own too, since the pool keeps its memory apart by streams, and the
    default one cannot be recorded.
    """

    def __init__(self, step: Callable[[], Array]):
        self._step = step
        self._pool: Any = None
        self._graph: Any = None
        self._result: Array = None
        self._is_refused = False

    def __call__(self) -> Array:
        if self._graph is not None:
            self._graph.launch(cupy().cuda.get_current_stream())
            return self._result
        return self._step() if self._is_refused else self._computed_and_recorded()

    def _computed_and_recorded(self) -> Array:
        cp = cupy()
        here, stream = cp.cuda.get_current_stream(), cp.cuda.Stream(non_blocking=True)
        self._pool = cp.cuda.MemoryPool()
        here.synchronize()
        with cp.cuda.using_allocator(self._pool.malloc), stream:
            computed = self._step()
            stream.synchronize()
            try:
                self._result, self._graph = _recorded(stream, self._step)
            except Exception as error:
                self._is_refused = True
                warnings.warn(
                    f"this step cannot be recorded as a CUDA graph, and is launched kernel by kernel: {error}",
                    stacklevel=3,
                )
        return computed


def _recorded(stream: Any, step: Callable[[], Array]) -> tuple[Array, Any]:
    """What `step` returns, and the graph of what it launches on `stream`; nothing of it is computed."""
    stream.begin_capture()
    try:
        result = step()
    except BaseException:
        _abandon(stream)
        raise
    return result, stream.end_capture()


def _abandon(stream: Any) -> None:
    """End a recording that has failed; that it has, the stream says by an error of its own."""
    try:
        stream.end_capture()
    except Exception:
        return
