"""Matrix products: a few rows by a kernel that runs as fast as weights can be read, many rows by cuBLAS.

Weights are arrays [out, in] in float32, float16 or bfloat16, or an `Int8Matrix` or `NF4Matrix` of arrays of the device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from refimpl.backends import to_dtype
from refimpl.backends.cupy.cublas import gemm_ex
from refimpl.backends.cupy.modules import capability, cupy, kernel, multiprocessors, type_name
from refimpl.backends.quantized import Int8Matrix, NestedAbsmax, NF4Matrix, QuantizedMatrix

Array = Any

#: Up to so many rows go through `matvec`.
FEW_ROWS = 8

#: Scratch for weights that are widened before cuBLAS reads them, in bytes.
SCRATCH = 256 * 2**20

# As in products.cu: warps of a block, bytes that a warp asks for at a time in each row, bytes of units beside them.
_WARPS, _CHUNK, _UNITS = 8, 512, 128

#: Outputs that a group of warps computes together.  More would read x less often, and leave fewer groups.
_OUTPUTS = 4

#: Chunks in the ring of a warp; one less than this is under way.  With these, and three blocks in a multiprocessor of
#: sm_80 or sm_90, up to 144 KB are: some three times what 4 TB/s need at a latency of 0.8 us.  Before sm_80 nothing is:
#: copies pass the registers, and there is less shared memory.
_STAGES, _STAGES_BEFORE_80 = 4, 2

#: So many warps in every multiprocessor are enough to keep memory busy; with fewer, rows are split between warps.
_ENOUGH_WARPS = 12

# Numbers of cuBLAS and of cudaDataType_t, which stay as they are from version to version.
_TRANSPOSED, _AS_IT_IS = 1, 0
_DEFAULT_ALGORITHM = -1
_COMPUTE_32F, _COMPUTE_32F_FAST_TF32 = 68, 77
_DATA_TYPES = {"float32": 0, "float16": 2, "bfloat16": 14}
_ZERO, _ONE = np.zeros(1, np.float32), np.ones(1, np.float32)


# --- what is kept on the device ----------------------------------------------------------------------


@dataclass(frozen=True, eq=False, repr=False)
class NF4OnDevice(NF4Matrix):
    """An NF4 matrix with nested absmaxes, and beside them what they stand for: the kernels read `units` alone.

    units: float32 [blocks]; one eighth of the bytes of `packed` at blocks of 64.
    """

    units: Array = None

    @property
    def nbytes(self) -> int:
        return super().nbytes + self.units.nbytes

    @property
    def scales(self) -> Array:
        return self.units

    def map_arrays(self, function: Callable[[Array], Array]) -> Any:
        """Without `units`: they are computed again where they are needed."""
        own = {each.name: getattr(self, each.name) for each in fields(NF4Matrix)}
        return NF4Matrix(**own).map_arrays(function)


def prepared(matrix: QuantizedMatrix) -> QuantizedMatrix:
    """`matrix`, whose arrays are on the device, in the form in which the kernels read it fastest.

    Nested absmaxes of NF4 are widened once; other matrices come back as they are.
    """
    if isinstance(matrix, NF4OnDevice) or not (
        isinstance(matrix, NF4Matrix) and isinstance(matrix.absmax, NestedAbsmax)
    ):
        return matrix
    own = {each.name: getattr(matrix, each.name) for each in fields(NF4Matrix)}
    return NF4OnDevice(**own, units=matrix.absmax.values())


def prepared_bytes(matrix: QuantizedMatrix) -> int:
    """What `prepared` allocates."""
    if not (isinstance(matrix, NF4Matrix) and isinstance(matrix.absmax, NestedAbsmax)):
        return 0
    return 0 if isinstance(matrix, NF4OnDevice) else 4 * matrix.absmax.absmax.size


def arguments_of(weight: Array) -> tuple[str, tuple[Any, ...]]:
    """What kernels are told of a weight: its form, and numbers, units, table, log2 of the block, out, in."""
    out, length = weight.shape
    size = np.int32(out), np.int32(length)
    if isinstance(weight, Int8Matrix):
        return "signed char", (_packed(weight.CB), weight.SCB, None, np.int32(0), *size)
    if isinstance(weight, NF4Matrix):
        shift = np.int32(weight.blocksize.bit_length() - 1)
        return "nf4", (_packed(weight.packed), weight.scales, weight.quant_map, shift, *size)
    if weight.dtype.name not in _DATA_TYPES:
        weight = weight.astype(np.float32)
    return type_name(weight.dtype), (_packed(weight), None, None, np.int32(0), *size)


def rows_begin_at_multiples(form: str, array: Array, length: int, numbers: int) -> bool:
    """Whether each row, of `length` numbers, begins at a multiple of the size of so many numbers."""
    size = numbers // 2 if form == "nf4" else numbers * array.itemsize
    return length % numbers == 0 and array.data.ptr % size == 0


def _packed(array: Array) -> Array:
    return array if array.flags.c_contiguous else cupy().ascontiguousarray(array)


# --- linear ------------------------------------------------------------------------------------------


def linear(x: Array, weight: Array, bias: Array | None = None, matmul_dtype: str | None = None) -> Array:
    """x @ weight.T (+ bias), sums in float32.  [..., in], [out, in], [out] -> float32 [..., out]

    x: float32, float16 or bfloat16; bias: float32. With more than `FEW_ROWS` rows and `matmul_dtype` "float16" or
    "bfloat16", x and the weights are rounded to it first; with "tf32" the tensor cores round both to 11 bits; None:
    nothing is rounded, whatever the form of the weight.
    """
    rows = x.size // x.shape[-1] if x.size else 0
    if rows == 0:
        return cupy().empty((*x.shape[:-1], weight.shape[0]), np.float32)
    product = matvec if rows <= FEW_ROWS else _many_rows
    y = product(x.reshape(rows, x.shape[-1]), weight, bias, matmul_dtype)
    return y.reshape(*x.shape[:-1], weight.shape[0])


def matvec(x: Array, weight: Array, bias: Array | None = None, matmul_dtype: str | None = None) -> Array:
    """x @ weight.T (+ bias) for 1 to `FEW_ROWS` rows.  [rows, in], [out, in], [out] -> float32 [rows, out]

    Weights are widened as they are read, and nothing is rounded (`matmul_dtype` is not looked at).
    """
    cp = cupy()
    x = cp.ascontiguousarray(x, dtype=np.float32)
    rows, length = x.shape
    form, matrix = arguments_of(weight)
    out = weight.shape[0]
    y = cp.empty((rows, out), np.float32)
    instance = 1 << (rows - 1).bit_length()
    piece = 32 if form == "nf4" else 16 // matrix[0].itemsize
    aligned = rows_begin_at_multiples(form, matrix[0], length, piece) and x.data.ptr % 16 == 0
    step = 32 * (piece if aligned else 1)
    splits = _splits(-(-out // _OUTPUTS), -(-length // step))
    grid = (-(-out // (_OUTPUTS * (_WARPS // splits))),)
    if aligned:
        stages = _STAGES if capability() >= 80 else _STAGES_BEFORE_80
        name = f"matvec<{form}, {instance}, {_OUTPUTS}, {stages}>"
        shared = _WARPS * stages * _OUTPUTS * (_CHUNK + (_UNITS if form == "nf4" else 0))
    else:
        name, shared = f"matvec_unaligned<{form}, {instance}, {_OUTPUTS}>", 0
    kernel("products", name).launch(
        grid, (_WARPS * 32,), *matrix, x, bias, y, np.int32(rows), np.int32(splits), shared=shared
    )
    return y


def _splits(groups: int, steps: int) -> int:
    """How many warps share the rows of a group: no more than there are steps along a row."""
    splits = 1
    enough = multiprocessors() * _ENOUGH_WARPS
    while splits < _WARPS and splits < steps and groups * splits < enough:
        splits *= 2
    return splits


def _many_rows(x: Array, weight: Array, bias: Array | None, matmul_dtype: str | None) -> Array:
    cp = cupy()
    dtype = to_dtype(matmul_dtype) if matmul_dtype in ("float16", "bfloat16") else np.dtype(np.float32)
    x = converted(x, dtype)
    y = cp.empty((x.shape[0], weight.shape[0]), np.float32)
    if bias is not None:
        y[...] = bias
    compute = _COMPUTE_32F_FAST_TF32 if matmul_dtype == "tf32" else _COMPUTE_32F
    out, length = weight.shape
    if not isinstance(weight, QuantizedMatrix) and weight.dtype == dtype:
        _gemm(x, _packed(weight), y, 0, compute, bias is not None)
        return y
    slab = max(1, min(out, SCRATCH // (length * dtype.itemsize)))
    scratch = cp.empty((slab, length), dtype)
    for first in range(0, out, slab):
        part = scratch[: min(slab, out - first)]
        widen_rows(weight, first, part)
        _gemm(x, part, y, first, compute, bias is not None)
    return y


def _gemm(x: Array, weight: Array, y: Array, first: int, compute: int, add: bool) -> None:
    """y[:, first : first + n] = x @ weight.T, added to what is there or not.  [rows, in], [n, in], float32 [rows, out]

    cuBLAS counts along columns: what is a row here is a column there.
    """
    kind = _DATA_TYPES[x.dtype.name]
    (rows, length), count = x.shape, weight.shape[0]
    gemm_ex(
        _TRANSPOSED,
        _AS_IT_IS,
        count,
        rows,
        length,
        _ONE.ctypes.data,
        weight.data.ptr,
        kind,
        length,
        x.data.ptr,
        kind,
        length,
        (_ONE if add else _ZERO).ctypes.data,
        y.data.ptr + first * y.itemsize,
        _DATA_TYPES["float32"],
        y.shape[1],
        compute,
        _DEFAULT_ALGORITHM,
    )


def instances(capability: int) -> list[tuple[str, str]]:
    """(file, expression) of every kernel that can be asked for on a device of this compute capability."""
    forms, types = ("float", "float16", "bfloat16", "signed char", "nf4"), ("float", "float16", "bfloat16")
    stages = _STAGES if capability >= 80 else _STAGES_BEFORE_80
    names = [f"matvec<{form}, {rows}, {_OUTPUTS}, {stages}>" for form in forms for rows in (1, 2, 4, 8)]
    names += [f"matvec_unaligned<{form}, {rows}, {_OUTPUTS}>" for form in forms for rows in (1, 2, 4, 8)]
    names += [
        f"widen_rows<{form}, {to}, {word}>" for form in forms for to in types for word in ("true", "false")
    ]
    return [("products", name) for name in names]


# --- conversions -------------------------------------------------------------------------------------


def widen_rows(weight: Array, first: int, to: Array) -> None:
    """Rows first .. first + n of a weight in any form, as they are in the dense matrix, rounded to the dtype of `to`.

    to: float32, float16 or bfloat16 [n, in], contiguous.
    """
    count, length = to.shape
    form, matrix = arguments_of(weight)
    quads = rows_begin_at_multiples(form, matrix[0], length, 4) and to.data.ptr % (4 * to.itemsize) == 0
    name = f"widen_rows<{form}, {type_name(to.dtype)}, {str(quads).lower()}>"
    blocks = -(-count * -(-length // 4) // 256)
    kernel("products", name).launch(
        (min(blocks, 32 * multiprocessors()),), (256,), *matrix, np.int32(first), np.int32(count), to
    )


def converted(x: Array, dtype: np.dtype) -> Array:
    """x in `dtype`, contiguous; itself where it is so.  float32, float16 or bfloat16 [rows, n] -> [rows, n]"""
    if x.dtype == dtype:
        return _packed(x)
    y = cupy().empty(x.shape, dtype)
    widen_rows(x, 0, y)
    return y
