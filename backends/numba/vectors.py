"""Vectors of 16 numbers as values of compiled Python: `a + b`, `fma(a, b, c)`, `load(array, i)`.

Numba compiles Python to LLVM, whose own type `<16 x float>` it does not show. Here that type gets a name in
Numba, and each function below is the one or two LLVM instructions that it says. LLVM cuts a vector into as
many registers as the processor needs (one of AVX-512, two of AVX2, four of NEON), so the same kernel runs
everywhere, and in the same order of operations: the numbers do not depend on the width.

Places in arrays are counted in elements from the start of the array's memory, whatever its shape. Nothing is
checked: who calls knows the bounds. A local variable of a vector type is a register.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np
from llvmlite import ir
from numba import extending
from numba.core import cgutils, types
from numba.core.datamodel import models
from numba.extending import overload, register_model

from refimpl.backends.numba import cpu

# Its annotations describe what is decorated, not what kernels call.
intrinsic: Any = extending.intrinsic

LANES = 16

_F32, _I32, _I16, _I8 = ir.FloatType(), ir.IntType(32), ir.IntType(16), ir.IntType(8)


class Vector(types.Type):
    """16 numbers; `llvm` is the type that LLVM knows."""

    def __init__(self, name: str, element: ir.Type):
        self.llvm = ir.VectorType(element, LANES)
        super().__init__(name=name)


floats = Vector("float32x16", _F32)
ints = Vector("int32x16", _I32)

#: What is widened to float32, as it lies in memory: float32, the bits of float16 and of bfloat16.
_ELEMENTS = {types.float32: _F32, types.int16: _I16, types.uint16: _I16}
_SHORTS = ir.VectorType(_I16, LANES)


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, numba_type: Vector):
        super().__init__(manager, numba_type, numba_type.llvm)


# --- writing LLVM --------------------------------------------------------------------------------


def pointer(context: Any, builder: Any, array_type: Any, array: Any, place: Any, target: ir.Type) -> Any:
    """The address of element `place` of `array`, as a pointer to `target`."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [place]), target.as_pointer())


def splat(builder: Any, number: Any) -> Any:
    """A vector whose 16 numbers are the same."""
    vector = ir.VectorType(number.type, LANES)
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), number, ir.Constant(_I32, 0))
    order = ir.Constant(ir.VectorType(_I32, LANES), [0] * LANES)
    return builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), order)


def call(builder: Any, name: str, result: ir.Type, *arguments: Any) -> Any:
    """Call LLVM's function `name` (such as "llvm.fma.v16f32")."""
    signature = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, signature, name), arguments)


def widened(builder: Any, address: Any, dtype: Any) -> Any:
    """16 numbers at `address` as float32, exactly.

    From float32, int16 (bits of float16) or uint16 (bits of bfloat16).
    """
    element = _ELEMENTS.get(dtype)
    if element is None:
        raise TypeError(f"{dtype} cannot be widened")
    return _widened(builder, _read(builder, address, element), dtype)


def _widened(builder: Any, bits: Any, dtype: Any) -> Any:
    """16 numbers as they lie in memory -> float32"""
    if dtype == types.float32:
        return bits
    if dtype == types.uint16:
        upper = builder.shl(builder.zext(bits, ints.llvm), _all(16))
        return builder.bitcast(upper, floats.llvm)
    if cpu.converts_half():
        return builder.fpext(builder.bitcast(bits, ir.VectorType(ir.HalfType(), LANES)), floats.llvm)
    return _half_by_arithmetic(builder, builder.zext(bits, ints.llvm))


def _half_by_arithmetic(builder: Any, bits: Any) -> Any:
    """float16 to float32 where there is no instruction: exponent and fraction moved, then scaled by 2**112.

    The product is exact, and right for subnormal numbers too. Infinity and NaN do not come out as such; weights
    are checked for them when they are packed.
    """
    magnitude = builder.shl(builder.and_(bits, _all(0x7FFF)), _all(13))
    value = builder.fmul(
        builder.bitcast(magnitude, floats.llvm), ir.Constant(floats.llvm, [2.0**112] * LANES)
    )
    sign = builder.shl(builder.and_(bits, _all(0x8000)), _all(16))
    return builder.bitcast(builder.or_(builder.bitcast(value, ints.llvm), sign), floats.llvm)


def _read(builder: Any, address: Any, element: ir.Type) -> Any:
    loaded = builder.load(builder.bitcast(address, ir.VectorType(element, LANES).as_pointer()))
    loaded.align = 1  # what lies in a file, or in a view, is aligned to nothing
    return loaded


def _all(number: int) -> ir.Constant:
    return ir.Constant(ints.llvm, [number] * LANES)


# --- memory --------------------------------------------------------------------------------------


@intrinsic
def load(typing, array, place):
    """16 numbers of `array` from `place` on, as float32; of the dtypes that `widened` takes."""

    def generate(context, builder, signature, arguments):
        place = context.cast(builder, arguments[1], signature.args[1], types.intp)
        address = pointer(context, builder, signature.args[0], arguments[0], place, _I8)
        return widened(builder, address, signature.args[0].dtype)

    return floats(array, place), generate


@intrinsic
def load_ints(typing, array, place):
    """16 numbers of an int32 array."""

    def generate(context, builder, signature, arguments):
        place = context.cast(builder, arguments[1], signature.args[1], types.intp)
        return _read(builder, pointer(context, builder, signature.args[0], arguments[0], place, _I8), _I32)

    return ints(array, place), generate


@intrinsic
def load_first(typing, array, place, count):
    """As `load`, but only the first `count` numbers are read; the others are 0.  Not from int8."""

    def generate(context, builder, signature, arguments):
        place = context.cast(builder, arguments[1], signature.args[1], types.intp)
        count = context.cast(builder, arguments[2], signature.args[2], types.int32)
        dtype = signature.args[0].dtype
        read, name = (floats.llvm, "v16f32") if dtype == types.float32 else (_SHORTS, "v16i16")
        address = pointer(context, builder, signature.args[0], arguments[0], place, read)
        inside = builder.icmp_signed("<", _counting(), splat(builder, count))
        one, zero = ir.Constant(_I32, 1), ir.Constant(read, [0] * LANES)
        bits = call(builder, f"llvm.masked.load.{name}.p0", read, address, one, inside, zero)
        return _widened(builder, bits, dtype)

    return floats(array, place, count), generate


@intrinsic
def store(typing, array, place, vector):
    """Write 16 numbers to a float32 array."""

    def generate(context, builder, signature, arguments):
        place = context.cast(builder, arguments[1], signature.args[1], types.intp)
        address = pointer(context, builder, signature.args[0], arguments[0], place, floats.llvm)
        builder.store(arguments[2], address).align = 1
        return context.get_dummy_value()

    return types.void(array, place, floats), generate


@intrinsic
def store_first(typing, array, place, count, vector):
    """Write the first `count` of 16 numbers to a float32 array."""

    def generate(context, builder, signature, arguments):
        place = context.cast(builder, arguments[1], signature.args[1], types.intp)
        count = context.cast(builder, arguments[2], signature.args[2], types.int32)
        address = pointer(context, builder, signature.args[0], arguments[0], place, floats.llvm)
        inside = builder.icmp_signed("<", _counting(), splat(builder, count))
        call(
            builder, "llvm.masked.store.v16f32.p0", ir.VoidType(), arguments[3], address,
            ir.Constant(_I32, 1), inside,
        )  # fmt: skip
        return context.get_dummy_value()

    return types.void(array, place, count, floats), generate


def _counting() -> ir.Constant:
    return ir.Constant(ints.llvm, list(range(LANES)))


def fetch_ahead(builder: Any, address: Any, into: int = 1) -> None:
    """Ask for the 64 bytes at `address` before they are needed, into the first or the second cache.

    The address may lie outside of everything.
    """
    call(
        builder, "llvm.prefetch.p0", ir.VoidType(), builder.bitcast(address, _I8.as_pointer()),
        ir.Constant(_I32, 0), ir.Constant(_I32, 4 - into), ir.Constant(_I32, 1),
    )  # fmt: skip


@intrinsic
def prefetch(typing, array, place):
    """Ask for the 64 bytes at `place` before they are needed; it may lie outside of the array."""

    def generate(context, builder, signature, arguments):
        place = context.cast(builder, arguments[1], signature.args[1], types.intp)
        fetch_ahead(builder, pointer(context, builder, signature.args[0], arguments[0], place, _I8))
        return context.get_dummy_value()

    return types.void(array, place), generate


# --- arithmetic ----------------------------------------------------------------------------------


@intrinsic
def broadcast(typing, number):
    """A vector of 16 equal numbers."""
    return floats(types.float32), lambda context, builder, signature, arguments: splat(builder, arguments[0])


@intrinsic
def fma(typing, a, b, c):
    """a * b + c, rounded once."""
    return floats(floats, floats, floats), lambda context, builder, signature, arguments: fused(
        builder, *arguments
    )


def fused(builder: Any, a: Any, b: Any, c: Any) -> Any:
    # Without the instruction, a library would be called for each number; rounding twice is a thousand times faster.
    name = "fma" if "fma" in cpu.features() or cpu.is_arm64() else "fmuladd"
    return call(builder, f"llvm.{name}.v16f32", floats.llvm, a, b, c)


@intrinsic
def _add(typing, a, b):
    return floats(floats, floats), lambda context, builder, signature, arguments: builder.fadd(*arguments)


@intrinsic
def _subtract(typing, a, b):
    return floats(floats, floats), lambda context, builder, signature, arguments: builder.fsub(*arguments)


@intrinsic
def _multiply(typing, a, b):
    return floats(floats, floats), lambda context, builder, signature, arguments: builder.fmul(*arguments)


@intrinsic
def _divide(typing, a, b):
    return floats(floats, floats), lambda context, builder, signature, arguments: builder.fdiv(*arguments)


def _define_operator(symbol: Any, function: Any) -> None:
    @overload(symbol, inline="always")
    def of_vectors(a, b):
        if a is floats and b is floats:
            return lambda a, b: function(a, b)
        return None


for _symbol, _function in (
    (operator.add, _add),
    (operator.sub, _subtract),
    (operator.mul, _multiply),
    (operator.truediv, _divide),
):
    _define_operator(_symbol, _function)


@intrinsic
def larger(typing, a, b):
    """The larger number of each pair."""

    def generate(context, builder, signature, arguments):
        return builder.select(builder.fcmp_ordered(">", *arguments), *arguments)

    return floats(floats, floats), generate


@intrinsic
def magnitude(typing, x):
    """|x|"""

    def generate(context, builder, signature, arguments):
        bits = builder.and_(builder.bitcast(arguments[0], ints.llvm), _all(0x7FFFFFFF))
        return builder.bitcast(bits, floats.llvm)

    return floats(floats), generate


@intrinsic
def nearest(typing, x):
    """The nearest whole numbers, of two equally near the even one."""

    def generate(context, builder, signature, arguments):
        return call(builder, "llvm.rint.v16f32", floats.llvm, *arguments)

    return floats(floats), generate


@intrinsic
def where_negative(typing, x, then, otherwise):
    """`then` where x < 0, `otherwise` elsewhere (also where x is NaN)."""

    def generate(context, builder, signature, arguments):
        x, then, otherwise = arguments
        zero = ir.Constant(floats.llvm, [0.0] * LANES)
        return builder.select(builder.fcmp_ordered("<", x, zero), then, otherwise)

    return floats(floats, floats, floats), generate


@intrinsic
def exp(typing, x):
    """e**x for x <= 0, with an error of at most 2 units in the last place; 0 below -87.

    x = n ln 2 + r with |r| <= ln 2 / 2; e**r is the sum of the first eight r**k / k!, of which the next is 5e-9
    of the whole; 2**n is put together from its bits.
    """

    def generate(context, builder, signature, arguments):
        def constant(number):
            return ir.Constant(floats.llvm, [number] * LANES)

        x, lowest = arguments[0], constant(-87.0)
        bounded = builder.select(builder.fcmp_ordered(">", x, lowest), x, lowest)  # a number, even for NaN
        n = call(
            builder, "llvm.rint.v16f32", floats.llvm, builder.fmul(bounded, constant(1.4426950216293335))
        )
        # ln 2 in two parts, of which the first times n is exact.
        is_nothing = builder.fcmp_ordered("<", x, lowest)
        r = fused(builder, n, constant(-0.693359375), builder.select(is_nothing, lowest, x))
        r = fused(builder, n, constant(2.1219444170128554e-4), r)
        value = constant(_EXP[0])
        for coefficient in _EXP[1:]:
            value = fused(builder, value, r, constant(coefficient))
        exponent = builder.shl(builder.add(builder.fptosi(n, ints.llvm), _all(127)), _all(23))
        value = builder.fmul(value, builder.bitcast(exponent, floats.llvm))
        return builder.select(is_nothing, constant(0.0), value)

    return floats(floats), generate


# 1 / k!, the highest power first. LLVM wants numbers that float32 holds exactly.
_EXP = [float(np.float32(1 / math.factorial(k))) for k in range(7, -1, -1)]


@intrinsic
def total(typing, vector):
    """The sum of the 16 numbers: number i and i + 8 first, then i and i + 4, i + 2, i + 1."""

    def generate(context, builder, signature, arguments):
        vector = arguments[0]
        for distance in (8, 4, 2, 1):
            vector = builder.fadd(vector, _exchanged(builder, vector, distance))
        return builder.extract_element(vector, ir.Constant(_I32, 0))

    return types.float32(floats), generate


@intrinsic
def totals(typing, a, b, c, d):
    """The sums of four vectors, each the same bits as `total`; together they take half as many instructions."""

    def generate(context, builder, signature, arguments):
        def halves(one, other, width):
            """The first half of each group of `width` numbers, of both vectors, plus the second half."""
            places = [i for i in range(2 * LANES) if i % width < width // 2]
            first, second = (
                builder.shuffle_vector(one, other, ir.Constant(ints.llvm, [i + move for i in places]))
                for move in (0, width // 2)
            )
            return builder.fadd(first, second)

        a, b, c, d = arguments
        vector = halves(halves(a, b, 16), halves(c, d, 16), 8)  # groups of 4: of a, b, c, d
        for distance in (2, 1):
            vector = builder.fadd(vector, _exchanged(builder, vector, distance))
        sums = [builder.extract_element(vector, ir.Constant(_I32, 4 * i)) for i in range(4)]
        return context.make_tuple(builder, signature.return_type, sums)

    return types.UniTuple(types.float32, 4)(floats, floats, floats, floats), generate


@intrinsic
def largest(typing, vector):
    """The largest of the 16 numbers."""

    def generate(context, builder, signature, arguments):
        vector = arguments[0]
        for distance in (8, 4, 2, 1):
            other = _exchanged(builder, vector, distance)
            vector = builder.select(builder.fcmp_ordered(">", vector, other), vector, other)
        return builder.extract_element(vector, ir.Constant(_I32, 0))

    return types.float32(floats), generate


def _exchanged(builder: Any, vector: Any, distance: int) -> Any:
    order = ir.Constant(ints.llvm, [lane ^ distance for lane in range(LANES)])
    return builder.shuffle_vector(vector, vector, order)
