"""Weights in panels: the form in which `products.py` reads them, and the way there and back.

A panel is [k, outputs] of 32 outputs, or of 64 where numbers have 8 or 4 bits.  What a matrix lacks to the next
full panel is filled with zeros.  Nothing is rounded: unpacked, a matrix is what it was, bit for bit.
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
from refimpl.backends.numba.tiles import CODES_PER_WORD
from refimpl.backends.quantized import Int8Matrix, NF4Matrix, QuantizedMatrix
from refimpl.errors import CheckpointValueError

#: Outputs in a panel, by the bytes of a number in it.
_WIDTHS = {4: 32, 2: 32, 1: 64}
_WIDTH_OF_WORDS = 64

#: The dtypes of panels: NumPy's own where a kernel reads them as numbers, whole numbers where it reads bits.
_PANEL_DTYPES = {"float32": np.float32, "float16": np.int16, "bfloat16": np.uint16}

#: Bits that are all set in infinity and NaN.
_EXPONENTS = {"float32": 0x7F800000, "float16": 0x7C00, "bfloat16": 0x7F80}


class PackedMatrix:
    """A matrix [out, in] of float32, float16 or bfloat16 in panels.

    It stands for the array that it was made of: `shape`, `dtype`, `matrix[ids]` (rows), `astype`, `np.asarray`.

    Attributes: `panels` [n, in, 32], `code`, `scale` and `block`: what `products.py` needs.
    """

    ndim = 2
    code: np.ndarray | None = None
    scale: np.ndarray | None = None
    block: int = BLOCK

    def __init__(self, panels: np.ndarray, shape: tuple[int, int], dtype: np.dtype):
        self.panels, self.shape, self.dtype = panels, shape, dtype

    @property
    def nbytes(self) -> int:
        return self.panels.nbytes

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, ids: Any) -> np.ndarray:
        """One row for each id, [...] -> [..., in]; any other index is that of the array."""
        ids = np.asarray(ids) if not isinstance(ids, tuple | slice) else ids
        if not isinstance(ids, np.ndarray) or ids.dtype.kind not in "iu":
            return self.unpacked()[ids]
        width = self.panels.shape[2]
        ids = np.where(ids < 0, ids + self.shape[0], ids)
        return self.panels[ids // width, :, ids % width].view(self.dtype)

    def unpacked(self) -> np.ndarray:
        """The matrix as it was.  -> [out, in]"""
        return _unpack(self.panels, self.shape[0]).view(self.dtype)

    def astype(self, dtype: Any, copy: bool = False) -> np.ndarray:
        return self.unpacked().astype(dtype, copy=False)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.unpacked() if dtype is None else self.astype(dtype)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {list(self.shape)} {self.dtype}, {self.nbytes:,} bytes>"


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
    """An `Int8Matrix` in panels: panels int8 [n, in, 64], scale float32 [n, 1, 64]."""

    dtype = "int8"
    code = None

    def __init__(self, matrix: Int8Matrix, pool: Pool):
        self.shape = matrix.shape
        self.panels = _pack(matrix.CB, pool)
        count, _, width = self.panels.shape
        self._units = matrix.SCB
        self.scale = np.zeros((count, 1, width), np.float32)
        self.scale.reshape(-1)[: self.shape[0]] = matrix.SCB * np.float32(1 / 127)
        self.block = BLOCK

    @property
    def nbytes(self) -> int:
        return self.panels.nbytes + self.scale.nbytes

    def unpacked(self) -> Int8Matrix:
        return Int8Matrix(CB=_unpack(self.panels, self.shape[0]), SCB=self._units)


class PackedNF4(PackedQuantized):
    """An `NF4Matrix` in panels: int32 words of eight places [n, in / 8, 64], scale float32 [n, blocks, 64]."""

    dtype = "nf4"

    def __init__(self, matrix: NF4Matrix, pool: Pool):
        self.shape = out, width = matrix.shape
        self._rest = replace(matrix, packed=None)
        self.panels = _pack(_words(matrix.packed.reshape(out, width // 2)), pool, _WIDTH_OF_WORDS)
        self.scale = _pack(matrix.scales.reshape(out, width // matrix.blocksize), pool, _WIDTH_OF_WORDS)
        self.code, self.block = matrix.quant_map, matrix.blocksize

    @staticmethod
    def fits(matrix: NF4Matrix) -> bool:
        """Whether every row begins with a block of its own."""
        return matrix.shape[1] % matrix.blocksize == 0 and matrix.blocksize % CODES_PER_WORD == 0

    @property
    def nbytes(self) -> int:
        return self.panels.nbytes + self.scale.nbytes

    def unpacked(self) -> NF4Matrix:
        words = _unpack(self.panels, self.shape[0])
        return replace(self._rest, packed=_exchanged(words.view(np.uint8)).reshape(-1))


def pack(matrix: np.ndarray | QuantizedMatrix, pool: Pool) -> Any:
    """`matrix` in panels, or itself where there is no such form of it.

    Raises: CheckpointValueError for NaN or infinity.
    """
    if isinstance(matrix, Int8Matrix):
        return PackedInt8(matrix, pool)
    if isinstance(matrix, NF4Matrix):
        return PackedNF4(matrix, pool) if PackedNF4.fits(matrix) else matrix
    if isinstance(matrix, QuantizedMatrix) or matrix.dtype.name not in _PANEL_DTYPES:
        return matrix
    panels = _pack(matrix, pool)
    return PackedMatrix(panels.view(_PANEL_DTYPES[matrix.dtype.name]), matrix.shape, matrix.dtype)


def _words(packed: np.ndarray) -> np.ndarray:
    """Bytes of two places, the first in the high bits -> words of eight, the first in the lowest bits.

    uint8 [out, in / 2] -> int32 [out, in / 8]
    """
    return _exchanged(packed).view("<i4")


def _exchanged(packed: np.ndarray) -> np.ndarray:
    return packed << 4 | packed >> 4


def aligned_empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Memory that begins with a cache line, which vectors are read from faster.  -> [*shape], not set"""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + 64, np.uint8)
    first = -memory.__array_interface__["data"][0] % 64
    return memory[first : first + size].view(dtype).reshape(shape)


def _pack(matrix: np.ndarray, pool: Pool, width: int | None = None) -> np.ndarray:
    """[out, in] -> panels [n, in, width] of the same numbers.  Raises: CheckpointValueError for NaN or infinity."""
    dtype, (out, length) = matrix.dtype, matrix.shape
    width = width or _WIDTHS[dtype.itemsize]
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


def _unpack(panels: np.ndarray, out: int) -> np.ndarray:
    """Panels -> [out, in] of the same numbers."""
    count, length, width = panels.shape
    return np.ascontiguousarray(panels.transpose(0, 2, 1).reshape(count * width, length)[:out])
