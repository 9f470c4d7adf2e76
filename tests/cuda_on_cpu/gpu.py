"""The pretended GPUs: what tests set about them, what they count, and the streams that work is put into.

Work is done at once, except while a stream captures: then it is only recorded, as CUDA does, and the memory that it
would write keeps what it has until the graph is launched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

_ERRORS = {
    1: "cudaErrorInvalidValue: invalid argument",
    2: "cudaErrorMemoryAllocation: out of memory",
    35: "cudaErrorInsufficientDriver: CUDA driver version is insufficient for CUDA runtime version",
    100: "cudaErrorNoDevice: no CUDA-capable device is detected",
    101: "cudaErrorInvalidDevice: invalid device ordinal",
    700: "cudaErrorIllegalAddress: an illegal memory access was encountered",
    900: "cudaErrorStreamCaptureUnsupported: operation not permitted when stream is capturing",
    901: "cudaErrorStreamCaptureInvalidated: operation failed due to a previous error during capture",
    906: "cudaErrorStreamCaptureImplicit: operation would make the legacy stream depend on a capturing blocking stream",
}


class CUDARuntimeError(RuntimeError):
    def __init__(self, status: int, more: str = ""):
        self.status = status
        super().__init__(_ERRORS.get(status, f"cudaError {status}") + (f" ({more})" if more else ""))


class CUDADriverError(RuntimeError):
    def __init__(self, status: int):
        self.status = status
        super().__init__({1: "CUDA_ERROR_INVALID_VALUE: invalid argument"}.get(status, f"CUresult {status}"))


@dataclass
class Gpu:
    """What a test may set, and what it may look at. One for each time that the stand-in is installed."""

    devices: int = 1
    memory: int = 64 << 30  #: bytes of each device
    compute_capability: str = "90"
    multiprocessors: int = 132
    driver_version: int = 13000
    runtime_version: int = 13000
    nvrtc_version: tuple[int, int] = (13, 0)
    #: A seed that shuffles blocks, warps and lanes of every launch; None: as they are numbered.
    order: int | None = None

    synchronizations: int = 0  #: how often the host waited for the device
    uploads: int = 0  #: copies from the host to the device
    launches: list[str] = field(default_factory=list)  #: the kernels that were launched or recorded, by name
    replays: int = 0  #: launches of graphs
    products: list[dict[str, Any]] = field(default_factory=list)  #: what gemmEx was called with
    math_modes: list[int] = field(default_factory=list)  #: what setMathMode was called with

    current_device: int = 0
    current_streams: dict[int, Stream] = field(default_factory=dict)
    null_streams: dict[int, Stream] = field(default_factory=dict)
    capturing: list[Stream] = field(default_factory=list)
    allocated: dict[int, int] = field(default_factory=dict)  #: bytes of each device that pools hold

    @property
    def most_shared_memory(self) -> int:
        """Bytes that a block may have."""
        kilobytes = {"70": 96, "72": 96, "75": 64, "80": 163, "86": 99, "89": 99}
        return kilobytes.get(self.compute_capability, 227) * 1024


#: Replaced by a new one when the stand-in is installed.
_gpus: list[Gpu] = [Gpu()]


def gpu() -> Gpu:
    return _gpus[-1]


@contextmanager
def new_gpu(**settings: Any) -> Iterator[Gpu]:
    _gpus.append(Gpu(**settings))
    try:
        yield _gpus[-1]
    finally:
        _gpus.pop()


# --- devices -----------------------------------------------------------------------------------------


def check_device(index: int) -> None:
    if gpu().devices == 0:
        raise CUDARuntimeError(100)
    if not 0 <= index < gpu().devices:
        raise CUDARuntimeError(101)


class Device:
    def __init__(self, device: Any = None):
        self.id = gpu().current_device if device is None else int(device)
        self._before: list[int] = []

    def __int__(self) -> int:
        return self.id

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"<CUDA Device {self.id}>"

    def __enter__(self) -> Device:
        self._before.append(gpu().current_device)
        self.use()
        return self

    def __exit__(self, *error: Any) -> None:
        gpu().current_device = self._before.pop()

    def use(self) -> None:
        check_device(self.id)
        gpu().current_device = self.id

    def synchronize(self) -> None:
        forbid_while_capturing(any_stream=True)
        gpu().synchronizations += 1

    @property
    def compute_capability(self) -> str:
        check_device(self.id)
        return gpu().compute_capability

    @property
    def mem_info(self) -> tuple[int, int]:
        check_device(self.id)
        return gpu().memory - gpu().allocated.get(self.id, 0), gpu().memory

    @property
    def attributes(self) -> dict[str, int]:
        check_device(self.id)
        capability = int(gpu().compute_capability)
        return {
            "MultiProcessorCount": gpu().multiprocessors,
            "WarpSize": 32,
            "MaxThreadsPerBlock": 1024,
            "MaxSharedMemoryPerBlock": 48 * 1024,
            "MaxSharedMemoryPerBlockOptin": gpu().most_shared_memory,
            "ComputeCapabilityMajor": capability // 10,
            "ComputeCapabilityMinor": capability % 10,
        }

    @property
    def cublas_handle(self) -> int:
        check_device(self.id)
        return 1000 + self.id


# --- streams and graphs ------------------------------------------------------------------------------

Work = Callable[[], None]


class Stream:
    """A new stream of the current device; `null=True`: the one that waits for all others."""

    null: Stream  # set in `stand_in.py`, for each installation anew

    def __init__(
        self,
        null: bool = False,
        non_blocking: bool = False,
        ptds: bool = False,
        priority: int | None = None,
    ):
        self.device_id = gpu().current_device
        self.is_null = null
        self.is_non_blocking = non_blocking
        self.ptr = 0 if null else id(self)
        self.captured: list[Work] | None = None
        self.invalid = False
        self._before: list[Stream] = []

    def __enter__(self) -> Stream:
        self._before.append(current_stream())
        return self.use()

    def __exit__(self, *error: Any) -> None:
        gpu().current_streams[self.device_id] = self._before.pop()

    def use(self) -> Stream:
        gpu().current_streams[self.device_id] = self
        return self

    def synchronize(self) -> None:
        if self.captured is not None:
            self.invalid = True
            raise CUDARuntimeError(900)
        gpu().synchronizations += 1

    def is_capturing(self) -> bool:
        return self.captured is not None

    def begin_capture(self, mode: int | None = None) -> None:
        if self.is_null:
            raise RuntimeError("cannot capture on the default (legacy) stream")
        if self.captured is not None:
            raise CUDARuntimeError(1)
        self.captured, self.invalid = [], False
        gpu().capturing.append(self)

    def end_capture(self) -> Graph:
        work = self.captured
        if work is None:
            raise RuntimeError("cannot call end_capture without begin_capture")
        self.captured = None
        gpu().capturing.remove(self)
        if self.invalid:
            raise CUDARuntimeError(901)
        return Graph(work)


class Graph:
    """What a stream captured. It holds addresses: whether their memory is still meant for it is the caller's affair."""

    def __init__(self, work: list[Work]):
        self._work = work

    def launch(self, stream: Stream | None = None) -> None:
        stream = stream or current_stream()
        if stream.captured is not None:
            stream.invalid = True
            raise CUDARuntimeError(900)
        gpu().replays += 1
        for step in self._work:
            step()

    def upload(self, stream: Stream | None = None) -> None:
        """Nothing is left to prepare."""


def null_stream(device_id: int) -> Stream:
    streams = gpu().null_streams
    if device_id not in streams:
        streams[device_id] = Stream(null=True)
    return streams[device_id]


def current_stream(device_id: int = -1) -> Stream:
    device_id = gpu().current_device if device_id < 0 else device_id
    return gpu().current_streams.get(device_id) or null_stream(device_id)


def capturing() -> bool:
    """Whether what is asked for now will only be recorded."""
    stream = current_stream()
    if stream.is_null and any(not other.is_non_blocking for other in gpu().capturing):
        for other in gpu().capturing:
            other.invalid = True
        raise CUDARuntimeError(906)
    return stream.captured is not None


def submit(step: Work) -> None:
    """Do it, or record it."""
    if capturing():
        stream = current_stream()
        assert stream.captured is not None
        stream.captured.append(step)
    else:
        step()


def forbid_while_capturing(any_stream: bool = False) -> None:
    """Raise where CUDA would: for what needs the device to be done with its work."""
    streams = list(gpu().capturing) if any_stream else [s for s in [current_stream()] if capturing()]
    for stream in streams:
        stream.invalid = True
    if streams:
        raise CUDARuntimeError(900)


def refuse_while_capturing() -> None:
    """Raise where CuPy does, though cuBLAS would not; the recording goes on."""
    if capturing():
        raise NotImplementedError("calling cuBLAS API during stream capture is currently unsupported")


def wait() -> None:
    """The host waits for the current stream."""
    forbid_while_capturing()
    gpu().synchronizations += 1


class Event:
    def __init__(self, block: bool = False, disable_timing: bool = False, interprocess: bool = False):
        self._recorded = False

    def record(self, stream: Stream | None = None) -> None:
        self._recorded = True

    def synchronize(self) -> None:
        forbid_while_capturing()
        gpu().synchronizations += self._recorded
