"""Narrow numbers in words of 32 bits, which the processor multiplies several at a time.

A word holds two numbers of bfloat16 or four of int8, for as many k that follow each other.  Where float32 has one
multiplication for one k, an instruction for words has two or four, and the sum is wide again: float32 for bfloat16,
int32 for int8.  Here is how numbers are rounded into words, and the loop that multiplies words without AMX:

    for k in range(words):
        for row in range(rows):
            sums[row] += x[row, k] * w[k]           # 2 or 4 products for each of 16 or 32 outputs

Both factors lie in pieces of 16 words, because that is what the tiles of `amx.py` hold:

    x       [rows / 16, words / 16, 16 rows, 16 words]; fewer rows than 16 are a piece of their own
    w       [words, 32 outputs]

What a matrix lacks to a whole piece is filled with zeros, which change no sum.
"""

from __future__ import annotations

from itertools import product
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types

from refimpl.backends import panels
from refimpl.backends.numba import cpu
from refimpl.backends.numba.vectors import (
    LANES,
    call,
    fetch_ahead,
    floats,
    fused,
    intrinsic,
    ints,
    pointer,
    splat,
)

#: Words in a row of a piece, and rows in a piece of x.
PIECE = 16

#: Outputs that are computed together: two vectors.
OUTPUTS = 2 * LANES

#: How many numbers a word holds.
PAIR, QUAD = 2, panels.QUAD

# Rows and vectors whose sums stay in registers; they divide a piece.
_ROWS, _VECTORS = (8, 2) if cpu.has_wide_registers() else (4, 1)

#: How many bytes ahead weights are asked for that come from memory, into the second cache.  Measured.
AHEAD = 3072

_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_32_SHORTS = ir.VectorType(_I16, 32)


def _all(number: int) -> ir.Constant:
    return ir.Constant(ints.llvm, [number] * LANES)


# --- rounding to bfloat16 --------------------------------------------------------------------------


def _rounded(builder: Any, first: Any, second: Any) -> Any:
    """32 numbers in bfloat16, those of `first` before those of `second`.  Ties go to even; NaN stays NaN."""
    if "avx512bf16" in cpu.features():
        return call(builder, "llvm.x86.avx512bf16.cvtne2ps2bf16.512", _32_SHORTS, second, first)
    halves = [_upper_half(builder, vector) for vector in (first, second)]
    return builder.shuffle_vector(*halves, _order(range(32)))


def _upper_half(builder: Any, vector: Any) -> Any:
    """16 float32 -> 16 bfloat16: half a unit is added to the bits, less one bit where that would be even already."""
    bits = builder.bitcast(vector, ints.llvm)
    is_odd = builder.and_(builder.lshr(bits, _all(16)), _all(1))
    raised = builder.add(bits, builder.add(is_odd, _all(0x7FFF)))
    quiet = builder.or_(bits, _all(0x400000))
    is_nan = builder.fcmp_unordered("uno", vector, vector)
    chosen = builder.select(is_nan, quiet, raised)
    return builder.trunc(builder.lshr(chosen, _all(16)), ir.VectorType(_I16, LANES))


def _order(places: Any) -> ir.Constant:
    places = list(places)
    return ir.Constant(ir.VectorType(_I32, len(places)), places)


def _store(context: Any, builder: Any, array_type: Any, array: Any, place: Any, value: Any) -> None:
    builder.store(value, pointer(context, builder, array_type, array, place, value.type)).align = 1


@intrinsic
def store_row(typing, words, place, first, second):
    """Write 32 numbers that follow each other, rounded to bfloat16, as 16 words."""

    def generate(context, builder, signature, arguments):
        place = context.cast(builder, arguments[1], signature.args[1], types.intp)
        value = _rounded(builder, arguments[2], arguments[3])
        _store(context, builder, signature.args[0], arguments[0], place, value)
        return context.get_dummy_value()

    return types.void(words, place, floats, floats), generate


@intrinsic
def store_pairs(typing, words, place, first, second):
    """Write 16 words, rounded to bfloat16: word i holds number i of `first` (one k) and of `second` (the next)."""

    def generate(context, builder, signature, arguments):
        place = context.cast(builder, arguments[1], signature.args[1], types.intp)
        value = _rounded(builder, arguments[2], arguments[3])
        value = builder.shuffle_vector(value, value, _order(i // 2 + 16 * (i % 2) for i in range(32)))
        _store(context, builder, signature.args[0], arguments[0], place, value)
        return context.get_dummy_value()

    return types.void(words, place, floats, floats), generate


# --- whole numbers ---------------------------------------------------------------------------------


@intrinsic
def store_bytes(typing, words, place, vector):
    """Write 16 whole numbers from -127 to 127 as four words."""

    def generate(context, builder, signature, arguments):
        place = context.cast(builder, arguments[1], signature.args[1], types.intp)
        value = builder.trunc(builder.fptosi(arguments[2], ints.llvm), ir.VectorType(_I8, LANES))
        _store(context, builder, signature.args[0], arguments[0], place, value)
        return context.get_dummy_value()

    return types.void(words, place, floats), generate


@intrinsic
def load_whole(typing, array, place):
    """16 numbers of an int32 array, as float32."""

    def generate(context, builder, signature, arguments):
        place = context.cast(builder, arguments[1], signature.args[1], types.intp)
        read = builder.load(pointer(context, builder, signature.args[0], arguments[0], place, ints.llvm))
        read.align = 4
        return builder.sitofp(read, floats.llvm)

    return floats(array, place), generate


# --- products --------------------------------------------------------------------------------------


class _Pairs:
    """Sums of products of bfloat16, in float32.

    AVX512_BF16 adds the products one after the other, the second of a pair first, and takes numbers below 1.2e-38
    for 0.  Without it the order is that of AMX: products of even k and those of odd k are added up apart in each piece,
    then both together to the sum, so that the bits are the same.
    """

    vector = floats.llvm

    def __init__(self, builder: Any):
        self._builder = builder
        self._at_once = "avx512bf16" in cpu.features()
        self.rows = _ROWS if self._at_once else _ROWS // 2
        self.registers = 1 if self._at_once else 3  # the sum; those of even k and of odd k

    def initial(self, before: Any) -> Any:
        return before

    def weights(self, words: Any) -> Any:
        return words if self._at_once else self._widened(words)

    def inputs(self, word: Any) -> Any:
        return self.weights(splat(self._builder, word))

    def add(self, registers: list[Any], x: Any, w: Any) -> None:
        builder = self._builder
        if self._at_once:
            name = "llvm.x86.avx512bf16.dpbf16ps.512"
            here = call(builder, name, floats.llvm, builder.load(registers[0]), x, w)
            builder.store(here, registers[0])
            return
        for register, one, other in zip(registers[1:], x, w, strict=True):
            builder.store(fused(builder, one, other, builder.load(register)), register)

    def end_piece(self, registers: list[Any]) -> None:
        if self._at_once:
            return
        builder = self._builder
        sums, even, odd = (builder.load(register) for register in registers)
        builder.store(builder.fadd(sums, builder.fadd(even, odd)), registers[0])
        for register in registers[1:]:
            builder.store(ir.Constant(floats.llvm, None), register)

    def finished(self, registers: list[Any], extra: Any) -> Any:
        return self._builder.load(registers[0])

    def extra(self, sums: Any, w: Any) -> Any:
        return sums

    def _widened(self, words: Any) -> tuple[Any, Any]:
        builder = self._builder
        low, high = builder.shl(words, _all(16)), builder.and_(words, _all(-0x10000))
        return builder.bitcast(low, floats.llvm), builder.bitcast(high, floats.llvm)


class _Quads:
    """Sums of products of int8, exact.

    VNNI multiplies numbers without a sign by numbers with one: 128 is added to each x, and 128 times the sum of the
    weights (`extra`) subtracted in the end.  Without VNNI the numbers are multiplied in float32, which is exact as
    well as long as no sum is above 2**24.
    """

    rows, registers = _ROWS, 1

    def __init__(self, builder: Any):
        self._builder = builder
        features = cpu.features()
        self._vnni = 512 if "avx512vnni" in features else 256 if "avxvnni" in features else 0
        self.vector = ints.llvm if self._vnni else floats.llvm

    def initial(self, before: Any) -> Any:
        return before if self._vnni else self._builder.sitofp(before, floats.llvm)

    def weights(self, words: Any) -> Any:
        return words if self._vnni else self._widened(words)

    def inputs(self, word: Any) -> Any:
        if self._vnni:
            return splat(self._builder, self._builder.xor(word, ir.Constant(_I32, -0x7F7F7F80)))
        return self._widened(splat(self._builder, word))

    def add(self, registers: list[Any], x: Any, w: Any) -> None:
        sums = self._builder.load(registers[0])
        if self._vnni:
            sums = self._dot(sums, x, w)
        else:
            for one, other in zip(x, w, strict=True):
                sums = fused(self._builder, one, other, sums)
        self._builder.store(sums, registers[0])

    def end_piece(self, registers: list[Any]) -> None:
        pass

    def extra(self, sums: Any, w: Any) -> Any:
        return self._dot(sums, _all(-0x7F7F7F80), w) if self._vnni else sums

    def finished(self, registers: list[Any], extra: Any) -> Any:
        sums = self._builder.load(registers[0])
        return self._builder.sub(sums, extra) if self._vnni else self._builder.fptosi(sums, ints.llvm)

    def _dot(self, sums: Any, unsigned: Any, signed: Any) -> Any:
        if self._vnni == 512:
            return call(self._builder, "llvm.x86.avx512.vpdpbusd.512", ints.llvm, sums, unsigned, signed)
        name, eight = "llvm.x86.avx512.vpdpbusd.256", ir.VectorType(_I32, 8)
        halves = []
        for first in (0, 8):
            order = _order(range(first, first + 8))
            given = [self._builder.shuffle_vector(one, one, order) for one in (sums, unsigned, signed)]
            halves.append(call(self._builder, name, eight, *given))
        return self._builder.shuffle_vector(*halves, _order(range(16)))

    def _widened(self, words: Any) -> list[Any]:
        builder = self._builder
        lifted = [builder.shl(words, _all(24 - 8 * i)) for i in range(QUAD)]
        return [builder.sitofp(builder.ashr(bits, _all(24)), floats.llvm) for bits in lifted]


def _make_multiply(rows_at_once: int = 0, from_memory: bool = False) -> Any:
    @intrinsic
    def multiply_piece(typing, x, x_at, rows, pieces, w, w_at, y, y_at, y_stride, first):
        """y[row, output] (+)= sum over k of x[row, k] * w[k, output], for up to 16 rows and 32 outputs.

        x: int32, words of `rows` rows: `pieces` pieces from `x_at` on.
        w: int32 [16 * pieces, 32], from `w_at` on.
        y: float32 for pairs, int32 for quads; rows of 32 from `y_at` on, `y_stride` apart. It is written to if `first`,
            else added to. Up to seven rows after `rows` are computed as well, from whatever lies there.
        """

        def generate(context, builder, signature, arguments):
            at = dict(zip(piece_arguments, signature.args, strict=True))
            given = dict(zip(piece_arguments, arguments, strict=True))

            def number(name):
                return context.cast(builder, given[name], at[name], types.intp)

            def constant(value):
                return ir.Constant(_I64, value)

            def plus(a, b):
                return builder.add(a, constant(b) if isinstance(b, int) else b)

            def read(name, offset, target):
                loaded = builder.load(pointer(context, builder, at[name], given[name], offset, target))
                loaded.align = 4
                return loaded

            of = _Quads(builder) if at["y"].dtype == types.int32 else _Pairs(builder)
            result_type = ints.llvm if at["y"].dtype == types.int32 else floats.llvm
            nothing = ir.Constant(of.vector, None)
            is_first = builder.icmp_unsigned(
                "!=", context.cast(builder, given["first"], at["first"], types.int8), ir.Constant(_I8, 0)
            )
            vectors, at_once = range(_VECTORS), rows_at_once or of.rows

            def registers(count):
                return [cgutils.alloca_once_value(builder, nothing) for _ in range(count)]

            def fetch(place):
                address = pointer(context, builder, at["w"], given["w"], place, _I8)
                for line in range(0, 4 * LANES * _VECTORS, 64):
                    fetch_ahead(builder, builder.gep(address, [constant(AHEAD + line)]), into=2)

            def begin(row, lane):
                """-> the places of the results in y; the registers of each, with what was there before"""
                places, sums = {}, {}
                for i, vector in product(range(at_once), vectors):
                    row_at = plus(number("y_at"), builder.mul(number("y_stride"), plus(row, i)))
                    places[i, vector] = plus(row_at, lane + LANES * vector)
                    sums[i, vector] = registers(of.registers)
                    for register in sums[i, vector]:
                        builder.store(nothing, register)
                    with builder.if_then(builder.not_(is_first)):
                        before = of.initial(read("y", places[i, vector], result_type))
                        builder.store(before, sums[i, vector][0])
                return places, sums

            def multiply(row, lane):
                """`at_once` rows from `row` on, `_VECTORS` vectors from the one that begins with output `lane` on."""
                places, sums = begin(row, lane)
                extras = registers(_VECTORS)
                for register in extras:
                    builder.store(nothing, register)
                with cgutils.for_range(builder, number("pieces")) as piece:
                    x_rows = plus(builder.mul(piece.index, number("rows")), row)
                    x_at = plus(number("x_at"), builder.mul(x_rows, constant(PIECE)))
                    with cgutils.for_range(builder, constant(PIECE)) as word:
                        k = plus(builder.mul(piece.index, constant(PIECE)), word.index)
                        w_at = plus(plus(number("w_at"), builder.mul(k, constant(OUTPUTS))), lane)
                        if from_memory:
                            fetch(w_at)
                        weights = [of.weights(read("w", plus(w_at, LANES * i), ints.llvm)) for i in vectors]
                        for register, w in zip(extras, weights, strict=True):
                            builder.store(of.extra(builder.load(register), w), register)
                        for i in range(at_once):
                            inputs = of.inputs(read("x", plus(plus(x_at, word.index), i * PIECE), _I32))
                            for vector in vectors:
                                of.add(sums[i, vector], inputs, weights[vector])
                    for found in sums.values():
                        of.end_piece(found)
                for (i, vector), place in places.items():
                    result = of.finished(sums[i, vector], builder.load(extras[vector]))
                    address = pointer(context, builder, at["y"], given["y"], place, result_type)
                    builder.store(result, address).align = 4

            parts = builder.sdiv(plus(number("rows"), at_once - 1), constant(at_once))
            with cgutils.for_range(builder, parts) as part:
                for lane in range(0, OUTPUTS, LANES * _VECTORS):
                    multiply(builder.mul(part.index, constant(at_once)), lane)
            return context.get_dummy_value()

        piece_arguments = ("x", "x_at", "rows", "pieces", "w", "w_at", "y", "y_at", "y_stride", "first")
        return types.void(x, x_at, rows, pieces, w, w_at, y, y_at, y_stride, first), generate

    return multiply_piece


multiply_piece = _make_multiply()

#: As `multiply_piece`, three rows at a time, where the weights are read from memory for these rows alone.
multiply_as_read = _make_multiply(3, from_memory=True)
