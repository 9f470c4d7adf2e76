"""Memory of the pretended GPUs: pools that give blocks again, poison in what is new or freed, guards around it.

A graph holds addresses and no memory, so that one whose temporary arrays were given to others goes wrong here too.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tests.cuda_on_cpu.gpu import CUDARuntimeError, Device, Stream, capturing, check_device, gpu, submit

_UNIT = 512  # what a pool gives is a multiple of this
_GUARD = 512  # bytes before and after, which nobody may write


class OutOfMemoryError(MemoryError):
    def __init__(self, size: int, total: int, limit: int = 0):
        super().__init__(f"Out of memory allocating {size:,} bytes (allocated so far: {total:,} bytes).")


class Block:
    """Memory of one device as the driver gives it."""

    def __init__(self, size: int, device_id: int):
        check_device(device_id)
        rest = gpu().memory - gpu().allocated.get(device_id, 0)
        if size > rest:
            raise OutOfMemoryError(size, gpu().allocated.get(device_id, 0))
        gpu().allocated[device_id] = gpu().allocated.get(device_id, 0) + size
        self.size, self.device_id, self.owner = size, device_id, gpu()
        raw = np.empty(size + 2 * _GUARD + _UNIT, np.uint8)
        start = -raw.ctypes.data % _UNIT + _GUARD
        self.all = raw[start - _GUARD : start + size + _GUARD]
        self.bytes = raw[start : start + size]
        self.all.fill(0xFF)

    def give_back(self) -> None:
        self.owner.allocated[self.device_id] -= self.size


class Memory:
    """A block while somebody uses it; back to its pool when nobody does any more."""

    def __init__(self, block: Block, size: int, pool: MemoryPool):
        self.block, self.size, self.device_id = block, size, block.device_id
        self.ptr = block.bytes.ctypes.data
        weakref.finalize(self, _freed, pool, block, size).atexit = False
        _poison(block)
        _live[self.ptr] = weakref.ref(self)

    @property
    def device(self) -> Device:
        return Device(self.device_id)

    def check_guards(self) -> None:
        """Raise where something was written beside the memory that was asked for."""
        beside = (self.block.all[:_GUARD], self.block.all[_GUARD + self.size :])
        if not all((part == 0xFF).all() for part in beside):
            raise CUDARuntimeError(
                700, f"something was written outside of {self.size} bytes at {self.ptr:#x}"
            )


_live: dict[int, weakref.ref[Memory]] = {}


def memory_at(address: int, size: int) -> Memory:
    """The memory that holds these bytes.  Raises where there is none: an illegal address."""
    for start, reference in _live.copy().items():  # collecting garbage meanwhile would change it
        memory = reference()
        if memory is not None and start <= address and address + size <= start + memory.size:
            return memory
    raise CUDARuntimeError(700, f"{size} bytes at {address:#x} are no memory of a device")


def _poison(block: Block) -> None:
    whole = block.all
    whole.fill(0xFF)
    if gpu().capturing and capturing():
        # What a graph finds there when it comes by is what others left.
        submit(lambda: whole.fill(0xFF))


def _freed(pool: MemoryPool, block: Block, size: int) -> None:
    _live.pop(block.bytes.ctypes.data, None)
    if not gpu().capturing:
        block.all.fill(0xFF)
    pool.free.setdefault(block.device_id, {}).setdefault(block.size, []).append(block)
    pool.used -= block.size


class MemoryPointer:
    def __init__(self, mem: Memory, offset: int):
        self.mem, self.offset = mem, offset
        self.ptr = mem.ptr + offset
        self.device_id = mem.device_id

    @property
    def device(self) -> Device:
        return Device(self.device_id)

    def __add__(self, offset: int) -> MemoryPointer:
        return MemoryPointer(self.mem, self.offset + int(offset))

    __radd__ = __add__

    def __int__(self) -> int:
        return self.ptr


class MemoryPool:
    """Gives blocks again that were freed; each pool has its own."""

    def __init__(self, allocator: Any = None):
        self.free: dict[int, dict[int, list[Block]]] = {}  # device -> size -> blocks
        self.used = 0
        self._limit = 0

    def malloc(self, size: int) -> MemoryPointer:
        device_id, whole = gpu().current_device, max(-(-size // _UNIT), 1) * _UNIT
        # As CuPy does, a larger free block is taken where it fits; it stays whole here.
        free = self.free.get(device_id, {})
        fitting = min(
            (have for have, blocks in free.items() if blocks and whole <= have < 2 * whole), default=0
        )
        if fitting:
            block = free[fitting].pop()
        else:
            if self._limit and self.total_bytes() + whole > self._limit:
                raise OutOfMemoryError(size, self.total_bytes(), self._limit)
            try:
                block = Block(whole, device_id)
            except OutOfMemoryError:
                self.free_all_blocks()
                block = Block(whole, device_id)
        self.used += block.size
        return MemoryPointer(Memory(block, size, self), 0)

    def free_all_blocks(self, stream: Stream | None = None) -> None:
        for sizes in self.free.values():
            for blocks in sizes.values():
                for block in blocks:
                    block.give_back()
        self.free.clear()

    def free_bytes(self) -> int:
        return sum(size * len(blocks) for sizes in self.free.values() for size, blocks in sizes.items())

    def used_bytes(self) -> int:
        return self.used

    def total_bytes(self) -> int:
        return self.used_bytes() + self.free_bytes()

    def n_free_blocks(self) -> int:
        return sum(len(blocks) for sizes in self.free.values() for blocks in sizes.values())

    def set_limit(self, size: int | None = None, fraction: float | None = None) -> None:
        self._limit = int(size if size is not None else gpu().memory * (fraction or 0))

    def get_limit(self) -> int:
        return self._limit


Allocator = Callable[[int], MemoryPointer]


@dataclass
class Allocators:
    pool: MemoryPool = field(default_factory=MemoryPool)
    current: Allocator | None = None
    nested: list[Allocator] = field(default_factory=list)


def allocators() -> Allocators:
    """Those of this installation."""
    return gpu().__dict__.setdefault("allocators", Allocators())


def get_default_memory_pool() -> MemoryPool:
    return allocators().pool


def get_allocator() -> Allocator:
    a = allocators()
    return a.nested[-1] if a.nested else a.current or a.pool.malloc


def set_allocator(allocator: Allocator | None = None) -> None:
    if allocators().nested:
        raise ValueError("Can't change the global allocator inside `using_allocator` context manager")
    allocators().current = allocator or MemoryPool().malloc


@contextmanager
def using_allocator(allocator: Allocator | None = None) -> Iterator[None]:
    allocators().nested.append(allocator or MemoryPool().malloc)
    try:
        yield
    finally:
        allocators().nested.pop()


def alloc(size: int) -> MemoryPointer:
    return get_allocator()(size)


# --- memory of the host that copies need not wait for ------------------------------------------------


class PinnedMemoryPointer(bytearray):
    """As CuPy's it has the buffer protocol: `np.frombuffer(pointer, dtype, count)`."""

    def size(self) -> int:
        return len(self)


def alloc_pinned_memory(size: int) -> PinnedMemoryPointer:
    return PinnedMemoryPointer(b"\xff" * size)
