"""What a machine can do: reading, copying and multiplying as fast as it goes, beside which a model is seen."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from refimpl.cli.bench.participants import Participant
from refimpl.memory import memory_limit

PROCESSOR = Path(__file__).with_name("our_machine.py")
GPU = Path(__file__).with_name("our_gpu.py")

#: What a processor is measured with: bytes to read, size of the matrices, and how often.
LIMITS_SCALE = {"bytes": 1 << 30, "size": 2048, "repeat": 5}

#: What a GPU is: of every pass, `times` are done in a row before the host looks at the clock.
GPU_LIMITS_SCALE = {"bytes": 1 << 30, "size": 8192, "repeat": 5, "times": 10}

# float64 takes some GPUs that long [s].
_LONGEST = 600.0


@dataclass
class Limits:
    """What one device can do: every rate that was measured, before and after the models.

    `bytes` are those that were read, or copied.  Of a processor there is nothing to copy or upload; `threads` are
    those that it used, or (of a GPU) those of the host.  `gemm_dtype`: of the factors; sums are in float32 at least.
    """

    threads: int
    device: str = "cpu"
    gemm_dtype: str = "float32"
    name: str | None = None
    bytes: int = 0
    read_bytes_per_s: list[float] = field(default_factory=list)
    copy_bytes_per_s: list[float] = field(default_factory=list)
    gemm_flop_per_s: list[float] = field(default_factory=list)
    pinned_bytes_per_s: list[float] = field(default_factory=list)
    pageable_bytes_per_s: list[float] = field(default_factory=list)

    @property
    def best_read(self) -> float | None:
        return max(self.read_bytes_per_s, default=None)

    @property
    def best_copy(self) -> float | None:
        """Bytes read and bytes written, both counted."""
        return max(self.copy_bytes_per_s, default=None)

    @property
    def best_gemm(self) -> float | None:
        return max(self.gemm_flop_per_s, default=None)

    @property
    def best_pinned(self) -> float | None:
        """From memory of the host that the device reads by itself."""
        return max(self.pinned_bytes_per_s, default=None)

    @property
    def best_pageable(self) -> float | None:
        """From any other memory of the host."""
        return max(self.pageable_bytes_per_s, default=None)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {
            "best_read_bytes_per_s": self.best_read,
            "best_copy_bytes_per_s": self.best_copy,
            "best_gemm_flop_per_s": self.best_gemm,
            "best_pinned_bytes_per_s": self.best_pinned,
            "best_pageable_bytes_per_s": self.best_pageable,
        }

    def measure(self) -> None:
        """Adds what the device can do now, found out by a process of its own. Raises: RefimplError."""
        options: dict[str, Any]
        if self.device == "cpu":
            room = memory_limit()
            self.bytes = LIMITS_SCALE["bytes"] if room is None else min(LIMITS_SCALE["bytes"], room // 2)
            script, options = PROCESSOR, LIMITS_SCALE | {"bytes": self.bytes}
        else:
            script, options = GPU, {"device": self.device, "gemm_dtype": self.gemm_dtype, **GPU_LIMITS_SCALE}
        slow = Participant("machine", script, "", self.threads, options=options, limit=_LONGEST)
        with closing(slow) as participant:
            said = participant.start()

            def rates(operation: str) -> list[float]:
                return participant.ask("call", operation=operation, item=None)["result"]

            self.read_bytes_per_s += rates("read")
            self.gemm_flop_per_s += rates("gemm")
            if self.device != "cpu":
                self.name, self.bytes = said["what"], said["facts"]["bytes"]
                self.copy_bytes_per_s += rates("copy")
                self.pinned_bytes_per_s += rates("pinned")
                self.pageable_bytes_per_s += rates("pageable")
