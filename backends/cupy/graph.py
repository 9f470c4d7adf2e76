"""A step that is recorded once and then launched as a whole: a CUDA graph.

A token of a small model is hundreds of kernels of a few microseconds each, and launching one from Python takes longer
than running it.  Recorded, they follow each other on the device without the host.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any, ClassVar

from refimpl.backends.cupy.device import told
from refimpl.backends.cupy.modules import cupy

Array = Any


class RecordedStep:
    """`step()`, which reads and writes arrays that stay where they are, and returns one.

    The first call computes it as it stands, then records it; later calls launch the record.  The result lies in the
    same memory each time, until the next call.  Where a step cannot be recorded (it asks the device for a number on
    the way, say) every call computes it as it stands, and a warning says so once.

    What the step allocates comes from a pool of its own and is given to nobody else while there is a record: that goes
    on writing there.  Both runs are on a stream of their own too, since the pool keeps its memory apart by streams, and
    the default one cannot be recorded.
    """

    def __init__(self, step: Callable[[], Array]):
        self._step = step
        self._place: _Place | None = None
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
        here = cp.cuda.get_current_stream()
        if self._place is None:
            self._place = _Place.taken(cp.cuda.runtime.getDevice())
        stream = self._place.stream
        here.synchronize()
        with cp.cuda.using_allocator(self._place.malloc), stream:
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

    def __del__(self) -> None:
        if self._place is not None and not sys.is_finalizing():
            self._graph = self._result = None
            self._place.give_back()


class _Place:
    """A stream and a pool of memory for one record on one device.

    A pool of CuPy that is dropped loses what it holds, down to the device's memory.  So none is: it gives its free
    memory back to the device, and it and its stream serve the next record.
    """

    _free: ClassVar[dict[int, list[_Place]]] = {}

    def __init__(self, device: int):
        cp = cupy()
        self._device = device
        self.stream, self.pool = cp.cuda.Stream(non_blocking=True), cp.cuda.MemoryPool()

    @classmethod
    def taken(cls, device: int) -> _Place:
        """One that nobody has; `device` is the current one."""
        try:
            return cls._free[device].pop()
        except (KeyError, IndexError):
            return cls(device)

    def malloc(self, size: int) -> Any:
        cp = cupy()
        try:
            return self.pool.malloc(size)
        except cp.cuda.memory.OutOfMemoryError:
            cp.get_default_memory_pool().free_all_blocks()  # what CuPy keeps for later is of use now
            return told(cp, self.pool.malloc)(size)

    def give_back(self) -> None:
        with cupy().cuda.Device(self._device):
            self.pool.free_all_blocks()  # which waits until the device has done with it
        self._free.setdefault(self._device, []).append(self)


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
