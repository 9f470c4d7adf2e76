"""Weights in panels as `products.py` reads them: packed by compiled code, or mapped from a file that holds them so.

The order is that of `backends/panels.py`, whose `to_panels` defines what `_pack` does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numba import njit

from refimpl.backends import to_dtype
from refimpl.backends.numba.products import BLOCK
from refimpl.backends.numba.regions import Pool, parallel
from refimpl.backends.panels import (
    PLACES,
    WHOLE_QUADS,
    WIDTHS,
    PanelBytes,
    PanelMatrix,
    bytes_of,
    from_panels,
    nf4_fits,
    words_of,
)
from refimpl.backends.quantized import Int8Matrix, NestedAbsmax, NF4Matrix, QuantizedMatrix
from refimpl.errors import CheckpointValueError

_WIDTH_OF_WORDS = WIDTHS["int32"]

#: The dtypes of panels: NumPy's own where a kernel reads them as numbers, whole numbers where it reads bits.
_PANEL_DTYPES = {"float32": np.float32, "float16": np.int16, "bfloat16": np.uint16}

#: Bits that are all set in infinity and NaN.
_EXPONENTS = {"float32": 0x7F800000, "float16": 0x7C00, "bfloat16": 0x7F80}


class PackedMatrix(PanelMatrix):
    """A matrix [out, in] of float32, float16 or bfloat16 in panels, which `products.py` can read.

    Attributes: `code`, `scale` and `block`: what it needs besides.
    """

    code: np.ndarray | None = None
    scale: np.ndarray | None = None
    block: int = BLOCK


class PackedQuantized(QuantizedMatrix):
    """A quantized matrix in panels."""

    panels: np.ndarray
    code: np.ndarray | None
    scale: np.ndarray
    block: int

    def unpacked(self) -> QuantizedMatrix:
        """The matrix as it was."""
        raise NotImplementedError

    def dense(self) -> np.ndarray:
        return self.unpacked().dense()

    def __getitem__(self, ids: Any) -> np.ndarray:
        return self.unpacked()[ids]

    def map_arrays(self, function: Callable[[Any], Any]) -> Any:
        return self.unpacked().map_arrays(function)


class PackedInt8(PackedQuantized):
    """An `Int8Matrix` in panels: int32 words of four numbers [n, in / 4, 32], scale float32 [n, 1, 32]."""

    dtype = "int8"
    code = None

    def __init__(self, matrix: Int8Matrix, pool: Pool):
        self.shape = matrix.shape
        if isinstance(matrix.CB, PanelMatrix):
            self.panels = _mapped(matrix.CB).view(np.int32)[..., 0]
        else:
            self.panels = _pack(_quads_of(matrix.CB), pool, WIDTHS["int8"])
        count, _, width = self.panels.shape
        self._units = matrix.SCB
        self.scale = np.zeros((count, 1, width), np.float32)
        self.scale.reshape(-1)[: self.shape[0]] = matrix.SCB * np.float32(1 / 127)
        self.block = BLOCK

    @property
    def nbytes(self) -> int:
        return self.panels.nbytes + self.scale.nbytes

    def unpacked(self) -> Int8Matrix:
        numbers = self.panels[..., None].view(np.int8)
        return Int8Matrix(CB=from_panels(numbers, *self.shape), SCB=self._units)


def _quads_of(numbers: np.ndarray) -> np.ndarray:
    """int8 [out, in] -> int32 [out, in / 4, rounded up to 16]: words of four, what is lacking zero"""
    missing = -numbers.shape[1] % WHOLE_QUADS
    numbers = np.pad(numbers, ((0, 0), (0, missing))) if missing else np.ascontiguousarray(numbers)
    return numbers.view(np.int32)


class PackedNF4(PackedQuantized):
    """An `NF4Matrix` in panels: int32 words of eight places [n, in / 8, 64], scale float32 [n, blocks, 64]."""

    dtype = "nf4"

    def __init__(self, matrix: NF4Matrix, pool: Pool):
        self.shape = out, width = matrix.shape
        self._rest = replace(matrix, packed=None)
        if isinstance(matrix.packed, PanelBytes):
            self.panels = _mapped(matrix.packed)
        else:
            self.panels = _pack(words_of(matrix.packed.reshape(out, width // 2)), pool)
        self.scale = _pack(matrix.scales.reshape(out, width // matrix.blocksize), pool, _WIDTH_OF_WORDS)
        self.code, self.block = matrix.quant_map, matrix.blocksize

    @property
    def nbytes(self) -> int:
        return self.panels.nbytes + self.scale.nbytes

    def unpacked(self) -> NF4Matrix:
        out, length = self.shape
        return replace(self._rest, packed=bytes_of(from_panels(self.panels, out, length // PLACES)))


def pack(matrix: np.ndarray | PanelMatrix | QuantizedMatrix, pool: Pool) -> Any:
    """`matrix` in panels, or itself where there is no such form of it.  Panels are taken as they are.

    Raises: CheckpointValueError for NaN or infinity.
    """
    if isinstance(matrix, Int8Matrix):
        return PackedInt8(matrix, pool)
    if isinstance(matrix, NF4Matrix):
        return PackedNF4(matrix, pool) if nf4_fits(matrix.shape, matrix.blocksize) else matrix
    if isinstance(matrix, QuantizedMatrix) or matrix.dtype.name not in _PANEL_DTYPES:
        return matrix
    if isinstance(matrix, PanelMatrix):
        return PackedMatrix(_mapped(matrix), matrix.shape, matrix.dtype)
    panels = _pack(matrix, pool)
    return PackedMatrix(panels.view(_PANEL_DTYPES[matrix.dtype.name]), matrix.shape, matrix.dtype)


def scale_bytes(matrix: QuantizedMatrix) -> int:
    """What `pack` allocates for a quantized matrix that lies in panels already: factors, and absmaxes for a while."""
    out, width = matrix.shape
    if not isinstance(matrix, NF4Matrix):
        return 4 * _full(out, WIDTHS["int8"])
    blocks = width // matrix.blocksize
    return 4 * blocks * (_full(out, _WIDTH_OF_WORDS) + out * isinstance(matrix.absmax, NestedAbsmax))


def _full(out: int, width: int) -> int:
    return -(-out // width) * width


class _Writeable:
    """An array that claims to be writeable.  For others kernels would be compiled once more; none writes to weights."""

    def __init__(self, array: np.ndarray):
        self._array = array  # so that the memory stays
        shown = array.__array_interface__
        self.__array_interface__ = {**shown, "data": (shown["data"][0], False)}


def _mapped(matrix: PanelMatrix | PanelBytes) -> np.ndarray:
    """The panels where they lie."""
    panels = matrix.panels
    name = matrix.dtype.name
    return np.asarray(_Writeable(panels.view(_PANEL_DTYPES.get(name, panels.dtype))))


def aligned_empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Memory that begins with a cache line, which vectors are read from faster.  -> [*shape], not set"""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + 64, np.uint8)
    first = -memory.__array_interface__["data"][0] % 64
    return memory[first : first + size].view(dtype).reshape(shape)


def _pack(matrix: np.ndarray, pool: Pool, width: int | None = None) -> np.ndarray:
    """[out, in] -> panels [n, in, width] of the same numbers.  Raises: CheckpointValueError for NaN or infinity."""
    dtype, (out, length) = matrix.dtype, matrix.shape
    width = width or WIDTHS[dtype.name]
    bits = np.dtype(f"u{dtype.itemsize}")
    panels = aligned_empty((-(-out // width), length, width), bits)
    wrong = np.zeros(len(panels), np.bool_)
    exponent = bits.type(_EXPONENTS.get(dtype.name, 0))
    _make_panels(pool.ready(), np.ascontiguousarray(matrix).view(bits), exponent, panels, wrong)
    if wrong.any():
        _refuse_infinite(matrix, int(np.argmax(wrong)) * width)
    return panels.view(to_dtype(dtype.name))


def _refuse_infinite(matrix: np.ndarray, row: int) -> None:
    finite = np.isfinite(matrix)
    first = [int(i) for i in np.argwhere(~finite[row:])[0]]
    first[0] += row
    raise CheckpointValueError(
        "a matrix holds NaN or infinity",
        found=f"{float(matrix[tuple(first)])!r} at {first}",
        count=int((~finite).sum()),
        first_index=first,
    )


# So many k of all outputs of a panel are read together: they stay in the cache.
_STRIP = 128


@njit(nogil=True, cache=True, error_model="numpy")
def _pack_panels(part, parts, matrix, exponent, panels, wrong):
    count, length, width = panels.shape
    for panel in range(count * part // parts, count * (part + 1) // parts):
        rows = min(width, matrix.shape[0] - panel * width)
        source, into = matrix[panel * width : panel * width + rows], panels[panel]
        if rows < width:
            into[:] = 0
        for begin in range(0, length, _STRIP):
            for k in range(begin, min(length, begin + _STRIP)):
                for row in range(rows):
                    into[k, row] = source[row, k]
        wrong[panel] = exponent != 0 and _holds(into.reshape(-1), exponent)


@njit(nogil=True, cache=True, error_model="numpy")
def _holds(bits, exponent):
    """Whether all bits of `exponent` are set in some number."""
    largest = np.bitwise_and(bits[0], exponent)
    for i in range(1, bits.size):
        largest = np.maximum(largest, np.bitwise_and(bits[i], exponent))
    return largest == exponent


@njit(nogil=True, cache=True)
def _make_panels(pool, matrix, exponent, panels, wrong):
    parallel(pool, _pack_panels, (matrix, exponent, panels, wrong))
