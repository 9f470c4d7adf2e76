"""AMX: the unit of a processor that multiplies tiles of 16 rows by 16 words.

A tile is a register of 16 rows of 64 bytes.  One instruction multiplies a tile of x [16 rows, 16 words] by a tile of
weights [16 words, 16 outputs] and adds the product to a tile of sums [16 rows, 16 outputs]: 8,192 products of bfloat16,
or 16,384 of int8 (`words.py` says what a word holds).  There are eight such registers: two tiles of rows and two of
outputs are read, and four of sums belong to them.

A tile of sums adds, for each of its numbers, the products of even k and those of odd k from the first to the last,
then both sums to what was there, each step in float32 rounded to nearest.  Numbers below 1.2e-38 count as 0.
(Intel's Architecture Instruction Set Extensions Programming Reference, chapter AMX.)

The system gives the unit to a process that asks for it, once: `cpu.has_tiles`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit
from numba.core import cgutils, types

from refimpl.backends.numba.vectors import LANES, call, fetch_ahead, intrinsic, pointer
from refimpl.backends.numba.words import AHEAD, OUTPUTS, PIECE

_I8, _I64, _NOTHING = ir.IntType(8), ir.IntType(64), ir.VoidType()

#: Which registers hold what.
_SUMS, _ROWS, _OUTPUTS = ((0, 1), (2, 3)), (4, 5), (6, 7)


def shapes() -> np.ndarray:
    """What the unit is told before the first tile: that all eight have 16 rows of 64 bytes.  -> uint8 [64]"""
    told = np.zeros(64, np.uint8)
    told[0] = 1  # the palette: the only one there is
    told[16:32].view(np.uint16)[:] = 4 * PIECE
    told[48:56] = PIECE
    return told


@njit(nogil=True, cache=True)
def shapes_of_rows(shapes, rows):
    """As `shapes`, where a piece of x has so many rows.  -> uint8 [64]"""
    told = shapes.copy()
    for sums in _SUMS[0] + _SUMS[1] + _ROWS:
        told[48 + sums] = rows
    return told


@intrinsic
def begin(typing, told, before):
    """Set the tiles of this thread to the shapes `told`, uint8 [64]; what they were goes to `before`, uint8 [64]."""

    def generate(context, builder, signature, arguments):
        start = ir.Constant(_I64, 0)
        told, before = (
            pointer(context, builder, signature.args[i], arguments[i], start, _I8) for i in (0, 1)
        )
        call(builder, "llvm.x86.sttilecfg", _NOTHING, before)
        call(builder, "llvm.x86.ldtilecfg", _NOTHING, told)
        return context.get_dummy_value()

    return types.void(told, before), generate


@intrinsic
def end(typing, before):
    """Leave the tiles of this thread to whoever had set them before; unused, they cost the system nothing."""

    def generate(context, builder, signature, arguments):
        start = ir.Constant(_I64, 0)
        address = pointer(context, builder, signature.args[0], arguments[0], start, _I8)
        call(builder, "llvm.x86.ldtilecfg", _NOTHING, address)
        return context.get_dummy_value()

    return types.void(before), generate


def _make_multiply(row_tiles: int, from_memory: bool = False) -> Any:
    @intrinsic
    def multiply_tiles(typing, x, x_at, x_stride, rows, pieces, w, w_at, y, y_at, y_stride, first):
        """As `words.multiply_piece`, for one or two pieces of `rows` rows, which lie `x_stride` words apart."""

        def generate(context, builder, signature, arguments):
            at = dict(zip(tile_arguments, signature.args, strict=True))
            given = dict(zip(tile_arguments, arguments, strict=True))

            def number(name):
                return context.cast(builder, given[name], at[name], types.intp)

            def place(name, offset):
                return pointer(context, builder, at[name], given[name], offset, _I8)

            def constant(value):
                return ir.Constant(_I64, value)

            def unit(name, *operands):
                """An instruction of the unit; registers are told by their numbers."""
                numbers = [ir.Constant(_I8, one) if isinstance(one, int) else one for one in operands]
                call(builder, f"llvm.x86.{name}", _NOTHING, *numbers)

            sums = [
                (
                    _SUMS[row][half],
                    place("y", builder.add(
                        builder.add(number("y_at"), builder.mul(number("y_stride"), constant(PIECE * row))),
                        constant(LANES * half),
                    )),
                )
                for row in range(row_tiles)
                for half in (0, 1)
            ]  # fmt: skip
            y_bytes = builder.mul(number("y_stride"), constant(4))
            is_first = builder.icmp_unsigned(
                "!=", context.cast(builder, given["first"], at["first"], types.int8), ir.Constant(_I8, 0)
            )
            with builder.if_else(is_first) as (then, otherwise):
                with then:
                    for register, _ in sums:
                        unit("tilezero", register)
                with otherwise:
                    for register, address in sums:
                        unit("tileloadd64", register, address, y_bytes)
            multiply = "tdpbssd" if at["y"].dtype == types.int32 else "tdpbf16ps"
            row_bytes = constant(4 * PIECE)
            size = builder.mul(number("rows"), constant(PIECE))
            w_bytes = 4 * OUTPUTS
            with cgutils.for_range(builder, number("pieces")) as loop:
                piece = builder.mul(loop.index, size)
                w_at = builder.add(number("w_at"), builder.mul(loop.index, constant(PIECE * OUTPUTS)))
                for half in (0, 1):
                    address = place("w", builder.add(w_at, constant(LANES * half)))
                    unit("tileloadd64", _OUTPUTS[half], address, constant(w_bytes))
                if from_memory:
                    for line in range(0, PIECE * w_bytes, 64):
                        address = builder.gep(place("w", w_at), [constant(AHEAD + line)])
                        fetch_ahead(builder, address, into=2)
                for row in range(row_tiles):
                    x_at = builder.add(number("x_at"), builder.mul(number("x_stride"), constant(row)))
                    unit("tileloadd64", _ROWS[row], place("x", builder.add(x_at, piece)), row_bytes)
                    for half in (0, 1):
                        unit(multiply, _SUMS[row][half], _ROWS[row], _OUTPUTS[half])
            for register, address in sums:
                unit("tilestored64", register, address, y_bytes)
            return context.get_dummy_value()

        tile_arguments = (
            "x", "x_at", "x_stride", "rows", "pieces", "w", "w_at", "y", "y_at", "y_stride", "first",
        )  # fmt: skip
        return types.void(x, x_at, x_stride, rows, pieces, w, w_at, y, y_at, y_stride, first), generate

    return multiply_tiles


multiply_16_rows, multiply_32_rows = _make_multiply(1), _make_multiply(2)

#: As `multiply_16_rows`, where the weights are read for these rows alone.
multiply_as_read = _make_multiply(1, from_memory=True)
