"""The inner loop of every matrix product: a tile of the result, held in registers.

A tile is a few rows of x times 16 or 32 outputs.  For each k one vector of weights is read (and widened to
float32, if it is kept in a narrower form) and multiplied by one number of each row; every output is a sum of
its own, from k = 0 upwards, in one register:

    for k in range(steps):
        for row in range(rows):
            sums[row] = fma(x[row, k], weights[k], sums[row])

That order is the same for any number of rows, so a token gets the same numbers alone, in a batch, and in the
middle of a long prompt.  The loop is written as LLVM code by the Python below, because only there the number of
registers can be chosen.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types

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
    widened,
)
from refimpl.backends.panels import PLACES, QUAD

#: The sums of a tile fill half of the registers: the rest is for what is multiplied.
ROWS, VECTORS = (8, 2) if cpu.has_wide_registers() else (6, 1)
OUTPUTS = LANES * VECTORS

#: How many bytes ahead weights are asked for, into the second cache and then into the first: they are read once,
#: faster than the processor notices the direction.  Codes are read more slowly.  Measured; a multiple of 4096 is bad,
#: since such lines push each other out of the first cache.
_AHEAD, _AHEAD_OF_CODES = (11264, 1536), (3072, 512)

_BYTE, _I32, _I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)


def _per_word(w_type: Any, code_type: Any) -> int:
    """How many numbers share an int32: four of 8 bits, or eight places of 4 bits in a table of 16."""
    if w_type.dtype != types.int32:
        return 1
    return QUAD if isinstance(code_type, types.NoneType) else PLACES


@intrinsic
def per_word(typing, w, code):
    """How many k of an output lie in one number of `w`."""
    number = _per_word(w, code)
    return types.int64(w, code), lambda *_: ir.Constant(_I64, number)


def _make_tile(rows: int, vectors: int = VECTORS) -> Any:
    @intrinsic
    def tile(
        typing, x, x_at, x_stride, w, w_at, width, steps, code, scale, scale_at, y, y_at, y_stride, first
    ):
        """y[row, output] (+)= (sum over k of x[row, k] * w[k, output]) * scale[output]

        x: float32, rows from `x_at` on, `x_stride` apart.
        w: `steps` rows of `width` outputs, from `w_at` on, of the dtypes that `widened` takes; or int32: words of
            four int8 numbers, or of eight 4-bit places in the table `code`, for as many k, the lowest bits first.
            The last word may hold fewer: x goes on for a whole one, and the weights are zero there.
        scale: float32, or None for 1.
        y: float32, as x; it is written to if `first`, else added to.
        """

        def generate(context, builder, signature, arguments):
            at = dict(zip(tile_arguments, signature.args, strict=True))
            given = dict(zip(tile_arguments, arguments, strict=True))

            def number(name):
                return context.cast(builder, given[name], at[name], types.intp)

            def place(name, offset, target):
                return pointer(context, builder, at[name], given[name], offset, target)

            def constant(value):
                return ir.Constant(ir.IntType(64), value)

            x_rows = [
                place(
                    "x",
                    builder.add(number("x_at"), builder.mul(number("x_stride"), constant(row))),
                    floats.llvm.element,
                )
                for row in range(rows)
            ]
            zero = ir.Constant(floats.llvm, [0.0] * LANES)
            sums = [[cgutils.alloca_once_value(builder, zero) for _ in range(vectors)] for _ in range(rows)]
            w_type, together = at["w"].dtype, _per_word(at["w"], at["code"])

            def multiply(k, weights):
                for row in range(rows):
                    factor = splat(builder, builder.load(builder.gep(x_rows[row], [k])))
                    for vector in range(vectors):
                        register = sums[row][vector]
                        builder.store(
                            fused(builder, factor, weights[vector], builder.load(register)), register
                        )

            def addresses(step):
                offset = builder.add(number("w_at"), builder.mul(step, number("width")))
                found = [
                    place("w", builder.add(offset, constant(LANES * vector)), _BYTE)
                    for vector in range(vectors)
                ]
                if rows < ROWS:
                    size = LANES * vectors * w_type.bitwidth // 8
                    far, near = _AHEAD_OF_CODES if together == PLACES else _AHEAD
                    for line in range(0, size, 64):
                        fetch_ahead(builder, builder.gep(found[0], [constant(far + line)]), into=2)
                        fetch_ahead(builder, builder.gep(found[0], [constant(near + line)]), into=1)
                return found

            if together > 1:
                numbers = (
                    partial(_lifted, builder)
                    if together == QUAD
                    else _numbers(context, builder, at["code"], given["code"])
                )
                last = constant(together - 1)
                groups = builder.sdiv(builder.add(number("steps"), last), constant(together))
                with cgutils.for_range(builder, groups) as loop:
                    words = [
                        builder.load(builder.bitcast(address, ints.llvm.as_pointer()), align=4)
                        for address in addresses(loop.index)
                    ]
                    for place_in_word in range(together):
                        weights = [numbers(word, ir.Constant(_I32, place_in_word)) for word in words]
                        k = builder.add(builder.mul(loop.index, constant(together)), constant(place_in_word))
                        multiply(k, weights)
            else:
                with cgutils.for_range(builder, number("steps")) as loop:
                    multiply(
                        loop.index, [widened(builder, address, w_type) for address in addresses(loop.index)]
                    )

            is_first = builder.icmp_unsigned(
                "!=", context.cast(builder, given["first"], at["first"], types.int8), ir.Constant(_BYTE, 0)
            )
            for vector in range(vectors):
                lanes = constant(LANES * vector)
                scaled = None
                if not isinstance(at["scale"], types.NoneType):
                    scaled = _unaligned(
                        builder, place("scale", builder.add(number("scale_at"), lanes), floats.llvm)
                    )
                    if together == QUAD:
                        scaled = builder.fmul(scaled, ir.Constant(floats.llvm, [2.0**-24] * LANES))
                for row in range(rows):
                    row_at = builder.add(number("y_at"), builder.mul(number("y_stride"), constant(row)))
                    address = place("y", builder.add(row_at, lanes), floats.llvm)
                    before = cgutils.alloca_once_value(builder, zero)
                    with builder.if_then(builder.not_(is_first)):
                        builder.store(_unaligned(builder, address), before)
                    here = builder.load(sums[row][vector])
                    before = builder.load(before)
                    result = (
                        builder.fadd(before, here) if scaled is None else fused(builder, here, scaled, before)
                    )
                    builder.store(result, address).align = 4
            return context.get_dummy_value()

        tile_arguments = (
            "x", "x_at", "x_stride", "w", "w_at", "width", "steps", "code", "scale", "scale_at", "y", "y_at",
            "y_stride", "first",
        )  # fmt: skip
        return types.void(
            x, x_at, x_stride, w, w_at, width, steps, code, scale, scale_at, y, y_at, y_stride, first
        ), generate

    return tile


def _unaligned(builder: Any, address: Any) -> Any:
    loaded = builder.load(address)
    loaded.align = 4
    return loaded


def _numbers(context: Any, builder: Any, code_type: Any, code: Any) -> Any:
    """A function from 16 words, and a place in them (llvm int32), to the 16 numbers there, in float32."""
    if isinstance(code_type, types.NoneType):
        bits = ir.Constant(_I32, 8)

        def number(words, place):
            above = builder.sub(ir.Constant(_I32, 24), builder.mul(place, bits))
            lifted = builder.shl(words, splat(builder, above))
            return builder.sitofp(builder.ashr(lifted, ir.Constant(ints.llvm, [24] * LANES)), floats.llvm)

        return number
    table = _table(context, builder, code_type, code)
    four = ir.Constant(_I32, 4)
    return lambda words, place: table(builder.lshr(words, splat(builder, builder.mul(place, four))))


def _lifted(builder: Any, words: Any, place: Any) -> Any:
    """The numbers of 8 bits at a place of 16 words, times 2**24: a byte put on top of a word is that, without a shift.

    The factor is exact, and so is taking it away from the sum.
    """
    each = ir.VectorType(_BYTE, 4 * LANES)
    nothing = 4 * LANES
    order = [4 * (i // 4) + place.constant if i % 4 == 3 else nothing for i in range(4 * LANES)]
    order = ir.Constant(ir.VectorType(_I32, 4 * LANES), order)
    top = builder.shuffle_vector(builder.bitcast(words, each), ir.Constant(each, [0] * 4 * LANES), order)
    return builder.sitofp(builder.bitcast(top, ints.llvm), floats.llvm)


def _table(context: Any, builder: Any, code_type: Any, code: Any) -> Any:
    """A function from 16 places (the lowest 4 bits of each number) to 16 numbers of a table of 16."""
    zero = ir.Constant(ir.IntType(64), 0)
    address = pointer(context, builder, code_type, code, zero, floats.llvm)
    if cpu.has_wide_registers():
        whole = _unaligned(builder, address)
        return lambda places: call(builder, "llvm.x86.avx512.permvar.sf.512", floats.llvm, whole, places)
    if cpu.is_x86() and "avx2" in cpu.features():
        return _table_of_halves(builder, address)
    return _table_in_memory(builder, address)


def _table_of_halves(builder: Any, address: Any) -> Any:
    """AVX2 looks up 8 places in a table of 8: once in each half of the table, bit 3 chooses."""
    eight = ir.VectorType(ir.FloatType(), 8)
    whole = _unaligned(builder, address)

    def cut(vector, first):
        order = ir.Constant(ir.VectorType(ir.IntType(32), 8), list(range(first, first + 8)))
        return builder.shuffle_vector(vector, vector, order)

    tables = [cut(whole, 0), cut(whole, 8)]

    def look_up(places):
        halves = []
        for first in (0, 8):
            some = cut(places, first)
            low, high = (call(builder, "llvm.x86.avx2.permps", eight, table, some) for table in tables)
            bit = builder.and_(some, ir.Constant(some.type, [8] * 8))
            is_high = builder.icmp_unsigned("!=", bit, ir.Constant(some.type, [0] * 8))
            halves.append(builder.select(is_high, high, low))
        order = ir.Constant(ints.llvm, list(range(LANES)))
        return builder.shuffle_vector(halves[0], halves[1], order)

    return look_up


def _table_in_memory(builder: Any, address: Any) -> Any:
    """Any processor: one number after the other."""
    table = builder.bitcast(address, ir.FloatType().as_pointer())

    def look_up(places):
        result = ir.Constant(floats.llvm, [0.0] * LANES)
        places = builder.and_(places, ir.Constant(ints.llvm, [15] * LANES))
        for lane in range(LANES):
            index = ir.Constant(ir.IntType(32), lane)
            found = builder.load(builder.gep(table, [builder.extract_element(places, index)]))
            result = builder.insert_element(result, found, index)
        return result

    return look_up


#: One for each number of rows: the largest first, the rest of the rows with the smaller ones.
tile_of_all = _make_tile(ROWS)
tile_of_4, tile_of_2, tile_of_1 = _make_tile(4), _make_tile(2), _make_tile(1)

#: One row and all outputs of a panel of 32 or 64: so many sums that none waits for the one before it.
row_of_32, row_of_64 = _make_tile(1, 2), _make_tile(1, 4)


@intrinsic
def weights(typing, w, w_at, width, k, code):
    """The 16 weights of row `k`, widened to float32, from `w_at` on; `w`, `width` and `code` as for a tile."""

    def generate(context, builder, signature, arguments):
        w_type = signature.args[0]
        w, w_at, width, k, code = arguments
        w_at, width, k = (
            context.cast(builder, number, given, types.intp)
            for number, given in zip((w_at, width, k), signature.args[1:4], strict=True)
        )
        together = ir.Constant(k.type, _per_word(w_type, signature.args[4]))
        row = builder.sdiv(k, together)
        address = pointer(context, builder, w_type, w, builder.add(w_at, builder.mul(row, width)), ints.llvm)
        if w_type.dtype != types.int32:
            return widened(builder, address, w_type.dtype)
        place = builder.trunc(builder.srem(k, together), _I32)
        return _numbers(context, builder, signature.args[4], code)(_unaligned(builder, address), place)

    return floats(w, w_at, width, k, code), generate
