"""Arrays from the host to the device: in pieces, through memory that the device can read by itself.

A weight of a mapped file is copied from the page cache into pinned buffers by a few threads, and from there by the
device, both at once.  The host never holds a copy of a whole matrix; a conversion happens on the device.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from threading import Lock
from typing import Any

import numpy as np

from refimpl.backends.cupy import elementwise
from refimpl.errors import CheckpointValueError, quote

Array = Any

#: Bytes of a piece. Arrays that are no larger go the plain way.
PIECE = 8 << 20

#: Buffers on the host, and how many of them are being filled at the same time; the device reads the others.
_BUFFERS, _FILLING = 8, 4


def upload(cupy: Any, array: np.ndarray, dtype: Any = None) -> Array:
    """A copy of `array` on the current device, in `dtype`.  [...] -> [...], contiguous"""
    dtype = array.dtype if dtype is None else np.dtype(dtype)
    source = np.ascontiguousarray(array).reshape(-1)
    if source.nbytes <= PIECE:
        return cupy.asarray(source).astype(dtype, copy=False).reshape(array.shape)
    target = cupy.empty(source.size, dtype)
    numbers = PIECE // source.itemsize
    landing = None if dtype == source.dtype else cupy.empty(numbers, source.dtype)
    stream = cupy.cuda.get_current_stream()
    ring = _Ring.of(cupy, cupy.cuda.runtime.getDevice())
    filling: deque[tuple[int, slice, Future[None]]] = deque()
    ring.lock.acquire()

    def send() -> None:
        slot, part, filled = filling.popleft()
        filled.result()
        count = part.stop - part.start
        piece = ring.buffers[slot][: count * source.itemsize].view(source.dtype)
        if landing is None:
            target[part].set(piece, stream=stream)
        else:
            landing[:count].set(piece, stream=stream)
            target[part] = landing[:count]
        ring.events[slot].record(stream)

    try:
        for index, start in enumerate(range(0, source.size, numbers)):
            if len(filling) == _FILLING:
                send()
            slot, part = index % _BUFFERS, slice(start, min(start + numbers, source.size))
            ring.events[slot].synchronize()  # the device has read what was in this buffer
            piece = source[part].view(np.uint8)  # as bytes: NumPy copies those without holding Python's lock
            filled = ring.threads.submit(np.copyto, ring.buffers[slot][: piece.size], piece)
            filling.append((slot, part, filled))
        while filling:
            send()
    finally:
        for _, _, filled in filling:  # after a failure nothing may go on writing into the buffers
            filled.exception()
        stream.synchronize()
        ring.lock.release()
    return target.reshape(array.shape)


class _Ring:
    """Pinned buffers, with an event for each that says when the device has read it, and threads that fill them."""

    def __init__(self, cupy: Any):
        memory = [cupy.cuda.alloc_pinned_memory(PIECE) for _ in range(_BUFFERS)]
        self.buffers = [np.frombuffer(one, np.uint8, PIECE) for one in memory]
        self.events = [cupy.cuda.Event(disable_timing=True) for _ in range(_BUFFERS)]
        self.lock = Lock()
        self.threads = ThreadPoolExecutor(_FILLING, "refimpl-upload")

    @staticmethod
    @cache
    def of(cupy: Any, index: int) -> _Ring:
        """That of the current device, whose number is `index`."""
        return _Ring(cupy)


def refuse_infinite(cupy: Any, array: Array, source: np.ndarray) -> None:
    """Raise CheckpointValueError for NaN or infinity in `array`, which was made of `source`.  It is waited for."""
    if array.dtype == np.float64:
        is_wrong = not bool(cupy.isfinite(array).all())
    else:
        is_wrong = elementwise.holds_nonfinite(array)
    if not is_wrong:
        return
    count, first = 0, None
    rows = max(1, PIECE // (8 * source.shape[-1]))
    for start in range(0, len(source), rows):
        with np.errstate(over="ignore"):
            wrong = ~np.isfinite(source[start : start + rows].astype(array.dtype))
        if first is None and wrong.any():
            row, column = np.argwhere(wrong)[0]
            first = [start + int(row), int(column)]
        count += int(wrong.sum())
    number = float("nan") if first is None else float(source[tuple(first)])
    fits = bool(np.isfinite(number))
    raise CheckpointValueError(
        f"{array.dtype} cannot hold a number of this tensor" if fits else "this tensor holds NaN or infinity",
        found=quote(number) if first is None else f"{number!r} at {first}",
        hint=f"Keep the weights in a dtype with the range of {source.dtype}." if fits else None,
        count=count,
        first_index=first,
    )
