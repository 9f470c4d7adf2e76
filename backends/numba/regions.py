"""Threads for compiled code: one kernel, called by all of them with a part of the work each.

    @njit(nogil=True)
    def _double(part, parts, x, y): ...              # computes one of `parts` equal parts

    @njit(nogil=True)
    def double(pool, x, y):                          # what Python calls
        parallel(pool, _double, (x, y))

Numba's own threads are not used: its default layer ends the process when two Python threads compute at once,
the others need a library of the system or do not survive a fork, and a region of the default layer costs 60
microseconds, of which a token needs hundreds. Here a region costs less than one.

`parallel` writes down where the kernel and its arguments are, and how many parts there are; whoever is awake
takes the next part until none is left: the caller, and workers that wait in compiled code without Python's
lock. So nothing depends on the workers. One that sleeps, or that another program keeps from running, takes no
part; after a fork there are none; and a second Python thread that computes at the same time finds the pool
taken and does all its parts alone. Every number is computed by one part in one order, so the results are the
same, bit for bit, in all these cases.
"""

from __future__ import annotations

import os
import threading
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit
from numba.core import cgutils, types

from refimpl.backends.numba import cpu
from refimpl.backends.numba.vectors import intrinsic

# Places of the numbers in the memory of a pool, each in a cache line of its own.
_TAKEN = 0  # 1 while a region runs
_LEFT = 8  # parts that nobody has taken yet; less than 1: none
_INSIDE = 16  # workers that may be computing a part
_KERNEL, _ARGUMENTS, _PARTS = 24, 25, 26
_SIZE = 32

_I64, _I32, _BYTES = ir.IntType(64), ir.IntType(32), ir.IntType(8).as_pointer()

# How often a worker looks for work before it sleeps: for about a millisecond, longer than what lies between two
# operations of a model or two tokens, and short enough that a program that does something else is not disturbed.
_LOOKS = 50_000

#: Parts for each thread: enough that one that was held up does not keep the others waiting for long.
_PARTS_PER_THREAD = 4


# --- in compiled code ----------------------------------------------------------------------------


def _address(context: Any, builder: Any, numba_type: Any, pool: Any, place: int) -> Any:
    data = context.make_array(numba_type)(context, builder, pool).data
    return builder.gep(data, [ir.Constant(_I64, place)])


@intrinsic(prefer_literal=True)
def _looked_at(typing, pool, place):
    """The number at a place, as whoever wrote it last left it."""
    place = place.literal_value

    def generate(context, builder, signature, arguments):
        address = _address(context, builder, signature.args[0], arguments[0], place)
        return builder.load_atomic(address, "seq_cst", 8)

    return types.int64(pool, types.literal(place)), generate


@intrinsic(prefer_literal=True)
def _add(typing, pool, place, number):
    """Add to the number at a place.  -> what it was before"""
    place = place.literal_value

    def generate(context, builder, signature, arguments):
        address = _address(context, builder, signature.args[0], arguments[0], place)
        number = context.cast(builder, arguments[2], signature.args[2], types.int64)
        return builder.atomic_rmw("add", address, number, "seq_cst")

    return types.int64(pool, types.literal(place), number), generate


@intrinsic
def _rest(typing):
    """Let the other thread of this core run: we are only waiting."""

    def generate(context, builder, signature, arguments):
        name = "llvm.x86.sse2.pause" if cpu.is_x86() else "llvm.aarch64.hint" if cpu.is_arm64() else None
        if name is not None:
            operands = [] if cpu.is_x86() else [ir.Constant(_I32, 1)]
            function_type = ir.FunctionType(ir.VoidType(), [operand.type for operand in operands])
            builder.call(cgutils.get_or_insert_function(builder.module, function_type, name), operands)
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def _compute(typing, pool, part):
    """Call the kernel of the region that is open, for one part."""

    def generate(context, builder, signature, arguments):
        pool, part = arguments
        entry = ir.FunctionType(ir.VoidType(), [_BYTES, _I64, _I64]).as_pointer()
        kernel, given, parts = (
            builder.load(_address(context, builder, signature.args[0], pool, place))
            for place in (_KERNEL, _ARGUMENTS, _PARTS)
        )
        builder.call(builder.inttoptr(kernel, entry), [builder.inttoptr(given, _BYTES), part, parts])
        return context.get_dummy_value()

    return types.void(pool, types.int64), generate


@njit(nogil=True, cache=True)
def _take_parts(pool):
    parts = _looked_at(pool, _PARTS)
    threads = parts // _PARTS_PER_THREAD
    while True:
        taken = parts - _add(pool, _LEFT, -1)
        if taken >= parts:
            return
        # As long as all are equally fast, each goes on where it ended: what was fetched ahead is what comes next.
        _compute(pool, taken % threads * _PARTS_PER_THREAD + taken // threads)


@njit(nogil=True, cache=True)
def _work(pool, looks):
    """What a worker does until it has found nothing to do for a while."""
    idle = 0
    while idle < looks:
        if _looked_at(pool, _LEFT) > 0:
            # First say that we are inside, then take: the caller sees us before it sees that nothing is left.
            _add(pool, _INSIDE, 1)
            _take_parts(pool)
            _add(pool, _INSIDE, -1)
            idle = 0
        else:
            _rest()
            idle += 1


@njit(nogil=True, cache=True)
def _finish(pool):
    """The caller's share of a region, and waiting for the others."""
    _take_parts(pool)
    while _looked_at(pool, _INSIDE) > 0:
        _rest()


@intrinsic
def parallel(typing, pool, kernel, arguments):
    """Call `kernel(part, parts, *arguments)` for every part; return when all are computed."""
    given_types = getattr(arguments, "types", None)  # a tuple has them
    if not isinstance(kernel, types.Dispatcher) or given_types is None:
        return None
    called = kernel.get_call_type(typing, (types.int64, types.int64, *given_types), {})

    def generate(context, builder, signature, given):
        pool_type, kernel_type, tuple_type = signature.args
        pool, _, values = given
        memory = cgutils.alloca_once_value(builder, values)
        entry = _entry(context, builder, kernel_type.dispatcher, called, tuple_type, memory.type)
        taken = _address(context, builder, pool_type, pool, _TAKEN)
        one, zero = ir.Constant(_I64, 1), ir.Constant(_I64, 0)
        parts = builder.load(_address(context, builder, pool_type, pool, _PARTS))
        was = builder.extract_value(builder.cmpxchg(taken, zero, one, "seq_cst", "seq_cst"), 1)
        is_ours = builder.and_(was, builder.icmp_signed(">", parts, one))
        with builder.if_else(is_ours) as (together, alone):
            with together:
                for place, value in ((_KERNEL, entry), (_ARGUMENTS, memory)):
                    builder.store(
                        builder.ptrtoint(value, _I64), _address(context, builder, pool_type, pool, place)
                    )
                left = _address(context, builder, pool_type, pool, _LEFT)
                builder.store_atomic(parts, left, "seq_cst", 8)
                _call(context, builder, _finish, types.void(pool_type), [pool])
            with alone:
                builder.call(entry, [builder.bitcast(memory, _BYTES), zero, one])
        with builder.if_then(was):
            builder.store_atomic(zero, taken, "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(pool, kernel, arguments), generate


def _entry(
    context: Any, builder: Any, kernel: Any, called: Any, tuple_type: Any, memory_type: ir.Type
) -> ir.Function:
    """A function with one and the same signature for every kernel: it unpacks the arguments and calls."""
    module = builder.module
    name = module.get_unique_name("region")
    entry = ir.Function(module, ir.FunctionType(ir.VoidType(), [_BYTES, _I64, _I64]), name)
    entry.linkage = "internal"
    inner = ir.IRBuilder(entry.append_basic_block("entry"))
    values = inner.load(inner.bitcast(entry.args[0], memory_type))
    unpacked = [inner.extract_value(values, i) for i in range(len(tuple_type))]
    _call(context, inner, kernel, called, [entry.args[1], entry.args[2], *unpacked])
    inner.ret_void()
    return entry


def _call(context: Any, builder: Any, dispatcher: Any, signature: Any, arguments: list[Any]) -> None:
    """Call a compiled function whose errors, which a kernel has none of, are not looked at."""
    dispatcher.compile(signature.args)
    compiled = dispatcher.overloads[signature.args]
    context.active_code_library.add_linking_library(compiled.library)
    context.call_internal_no_propagate(builder, compiled.fndesc, signature, arguments)


# --- in Python -----------------------------------------------------------------------------------


class Pool:
    """`threads` threads that compute together, the caller's own among them.

    `pool.memory` is what a compiled function takes; `pool.ready()` is called before it.
    """

    def __init__(self, threads: int):
        self.threads = threads
        self._forget_workers()

    def _forget_workers(self) -> None:
        """Start anew: also in a child process, where the workers of the parent do not exist."""
        memory = np.zeros(_SIZE + 8, np.int64)
        first = -memory.ctypes.data % 64 // 8
        self.memory = memory[first : first + _SIZE]
        self.memory[_PARTS] = 1 if self.threads == 1 else _PARTS_PER_THREAD * self.threads
        self._awake = threading.Condition()
        self._asleep = 0
        self._started = self.threads == 1

    def ready(self) -> np.ndarray:
        """Wake the workers that sleep.  -> the memory of the pool, for the compiled function"""
        if self._asleep or not self._started:
            self._rouse()
        return self.memory

    def _rouse(self) -> None:
        with self._awake:
            if not self._started:
                self._started = True
                for index in range(1, self.threads):
                    name = f"refimpl-{index}"
                    threading.Thread(target=self._serve, args=(self.memory,), name=name, daemon=True).start()
            self._asleep = 0
            self._awake.notify_all()

    def _serve(self, memory: np.ndarray) -> None:
        """A worker: compiled code while there is something to do, sleep while there is not."""
        while memory is self.memory:
            _work(memory, _LOOKS)
            with self._awake:
                self._asleep += 1
                self._awake.wait()


_pools: dict[int, Pool] = {}
_making = threading.Lock()


def pool_of(threads: int | None) -> Pool:
    """The pool with so many threads; None: as many as `default_threads` says."""
    count = default_threads() if threads is None else threads
    with _making:
        if count not in _pools:
            _pools[count] = Pool(count)
        return _pools[count]


def default_threads() -> int:
    """OMP_NUM_THREADS or NUMBA_NUM_THREADS if one is set, else the processors that this process may use."""
    for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
        number = os.environ.get(name, "").partition(",")[0].strip()
        if number.isdigit() and int(number) > 0:
            return int(number)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _after_fork() -> None:
    global _making
    _making = threading.Lock()
    for pool in _pools.values():
        pool._forget_workers()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
