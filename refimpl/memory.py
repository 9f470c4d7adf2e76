"""How much memory there is, and refusing what does not fit before any of it is asked for."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from refimpl.errors import InputError, ResourceLimitError, quote

#: The part of the free memory that one model may take: the rest is for activations, the cache and everyone else.
#: Of a device of its own it may take more: nobody swaps when that is full, and few others are there.
_SHARE, _DEVICE_SHARE = 0.8, 0.9

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def available_memory() -> int | None:
    """Bytes that a program can still get without swapping; None where the system does not tell.

    On Linux what /proc/meminfo calls MemAvailable, or what the control group of a container leaves.
    """
    found = [free for free in (_free_of_system(), _free_of_group()) if free is not None]
    return min(found) if found else None


def _free_of_system() -> int | None:
    try:
        match = re.search(r"^MemAvailable:\s+(\d+) kB", _MEMINFO.read_text(), re.MULTILINE)
    except (OSError, UnicodeDecodeError):
        return None
    return None if match is None else 1024 * int(match[1])


def _free_of_group() -> int | None:
    try:
        limit, used = ((_CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        statistics = (_CGROUP / "memory.stat").read_text()
    except (OSError, UnicodeDecodeError):
        return None
    if not limit.isdigit() or not used.isdigit():
        return None
    # Cached files count as used, and are given up when memory is needed.
    match = re.search(r"^inactive_file (\d+)$", statistics, re.MULTILINE)
    return max(0, int(limit) - int(used) + (int(match[1]) if match else 0))


def memory_limit(max_memory: Any = None) -> int | None:
    """The bytes that may be allocated: `max_memory` (a number, or text such as "10GB"), else 80 % of what is free.

    Raises: InputError for anything else.
    """
    if max_memory is None:
        free = available_memory()
        return None if free is None else int(_SHARE * free)
    number: float | None = None
    if isinstance(max_memory, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?i?B)?\s*", max_memory, re.IGNORECASE)
        unit = "" if match is None or match[2] is None else match[2].upper().removeprefix("B") or ""
        number = None if match is None or unit not in _UNITS else float(match[1]) * _UNITS[unit]
    elif isinstance(max_memory, int | float) and not isinstance(max_memory, bool):
        number = float(max_memory)
    if number is None or not math.isfinite(number) or number < 0:
        raise InputError(
            "not an amount of memory",
            where="max_memory",
            found=quote(max_memory),
            allowed='bytes, or text such as "10GB" or "8GiB"',
        )
    return int(number)


def refuse_too_large(
    needed: int, what: object, max_memory: Any = None, device: str = "cpu", free: int | None = None
) -> None:
    """Raise ResourceLimitError unless `needed` bytes may be allocated.  Nothing has been by then.

    device, free: where, and how many bytes that has left, if it is not the memory of the host.
    """
    if free is not None:
        allowed = (
            int(_DEVICE_SHARE * free) if max_memory is None else min(free, memory_limit(max_memory) or 0)
        )
        if needed > allowed:
            raise ResourceLimitError(
                f"the weights would take {readable(needed)} of the memory of {device}",
                where=what,
                found=f"{readable(free)} free ({needed:,} of {free:,} bytes)",
                allowed=f"{int(100 * _DEVICE_SHARE)} % of what is free, or what max_memory says",
                hint='Nothing was allocated. Fewer bits take less: dtype="bfloat16", weight_dtype="int8" or "nf4".',
                requested=needed,
                limit=allowed,
                free=free,
            )
        return
    limit = memory_limit(max_memory)
    if limit is not None and needed > limit:
        raise ResourceLimitError(
            f"the weights would take {readable(needed)} of memory",
            where=what,
            found=f"{readable(limit)} at most",
            allowed=f"{int(100 * _SHARE)} % of what is free, or what max_memory says",
            hint="Nothing was allocated. Weights that stay as they are in a mapped file take none: leave out "
            "dtype and weight_dtype, and mmap=False.",
            requested=needed,
            limit=limit,
        )


def readable(size: float) -> str:
    """Bytes for people: "5.4 GB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
