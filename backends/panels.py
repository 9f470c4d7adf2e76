"""Matrices in panels: the order in which compiled products read them, and in which a file can keep them.

A panel is [in, width]: `width` rows of the matrix [out, in] side by side, so that what one step of a product needs lies
together.  Of int8 numbers a step takes four of a row at once, which fill a word: their panel is [in / 4, width, 4].
What a matrix lacks to the next full panel, and int8 to a multiple of 64 numbers in a row, is filled with zeros.
Nothing is rounded: unpacked, a matrix is what it was, bit for bit.  The order is the same on every processor.

`PanelMatrix` and `PanelBytes` stand for the arrays that they were made of.  A backend that reads panels takes them
as they are (`Backend.weight`); for all others `np.asarray` is the array.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from refimpl.backends.quantized import Int8Matrix, NF4Matrix, QuantizedMatrix

#: Rows in a panel, by the dtype of what lies in it; int32 are words of eight NF4 places.
WIDTHS = {"float32": 32, "float16": 32, "bfloat16": 32, "int8": 32, "int32": 64}

#: Places of four bits in a word, the first in the lowest bits.
PLACES = 8

#: Numbers of int8 in a word, and in what the matrix unit of a processor takes of a row at once.
QUAD, WHOLE_QUADS = 4, 64


class PanelMatrix:
    """A matrix [out, in] in panels.

    It stands for the array that it was made of: `shape`, `dtype`, `matrix[ids]` (rows), `astype`, `np.asarray`.

    Attributes: `panels` [n, in, width], in `dtype` or another dtype of the same size; int8 [n, in / 4, width, 4].
    """

    ndim = 2

    def __init__(self, panels: np.ndarray, shape: tuple[int, int], dtype: np.dtype):
        self.panels, self.shape, self.dtype = panels, shape, dtype

    @property
    def nbytes(self) -> int:
        return self.panels.nbytes

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, ids: Any) -> np.ndarray:
        """One row for each id, [...] -> [..., in]; any other index is that of the array."""
        ids = np.asarray(ids) if not isinstance(ids, tuple | slice) else ids
        if not isinstance(ids, np.ndarray) or ids.dtype.kind not in "iu":
            return self.unpacked()[ids]
        width = self.panels.shape[2]
        ids = np.where(ids < 0, ids + self.shape[0], ids)
        rows = self.panels[ids // width, :, ids % width].view(self.dtype)
        return rows.reshape(*ids.shape, -1)[..., : self.shape[1]]

    def unpacked(self) -> np.ndarray:
        """The matrix as it was.  -> [out, in]"""
        return from_panels(self.panels, *self.shape).view(self.dtype)

    def astype(self, dtype: Any, copy: bool = False) -> np.ndarray:
        return self.unpacked().astype(dtype, copy=False)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.unpacked() if dtype is None else self.astype(dtype)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {list(self.shape)} {self.dtype}, {self.nbytes:,} bytes>"


class PanelBytes:
    """The bytes of an NF4 matrix [out, in], two places in each, whose words of eight lie in panels.

    Attributes: `panels` int32 [n, in / 8, 64]; `matrix_shape` (out, in); `shape`, that of the uint8 array for which it
        stands: (out * in / 2, 1) in files, (out * in / 2,) in an `NF4Matrix`.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, panels: np.ndarray, matrix_shape: tuple[int, int], shape: tuple[int, ...]):
        self.panels, self.matrix_shape, self.shape = panels, matrix_shape, shape

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        return self.panels.nbytes

    def flat(self) -> PanelBytes:
        """The same bytes in one dimension."""
        return PanelBytes(self.panels, self.matrix_shape, (math.prod(self.shape),))

    def reshape(self, *shape: int) -> np.ndarray:
        out, length = self.matrix_shape
        return bytes_of(from_panels(self.panels, out, length // PLACES)).reshape(*shape)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = self.reshape(*self.shape)
        return array if dtype is None else array.astype(dtype, copy=False)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {list(self.matrix_shape)}, {self.nbytes:,} bytes>"


def lies_in_panels(matrix: Any) -> bool:
    """Whether the numbers of a matrix, quantized or not, lie in panels."""
    if isinstance(matrix, QuantizedMatrix):
        matrix = getattr(matrix, "CB", getattr(matrix, "packed", None))
    return isinstance(matrix, PanelMatrix | PanelBytes)


def out_of_panels(array: Any) -> Any:
    """The array that panels stand for; any other array is itself."""
    return np.asarray(array) if isinstance(array, PanelMatrix | PanelBytes) else array


def unpacked_bytes(matrix: np.ndarray | PanelMatrix | QuantizedMatrix) -> int:
    """What the array of a matrix takes whose numbers lie in panels; 0 for any other."""
    if not lies_in_panels(matrix):
        return 0
    if isinstance(matrix, Int8Matrix):
        return math.prod(matrix.shape)
    if isinstance(matrix, NF4Matrix):
        return math.prod(matrix.shape) // 2
    return math.prod(matrix.shape) * np.dtype(matrix.dtype).itemsize


def nf4_fits(shape: tuple[int, int], blocksize: int) -> bool:
    """Whether an NF4 matrix has a form in panels: every row begins with a block of its own."""
    return shape[1] % blocksize == 0 and blocksize % PLACES == 0


# --- there and back ------------------------------------------------------------------------------


def panels_shape(dtype: str, out: int, length: int) -> tuple[int, ...]:
    """The shape of the panels of a matrix [out, length]."""
    width = WIDTHS[dtype]
    if dtype == "int8":
        return -(-out // width), -(-length // WHOLE_QUADS) * WHOLE_QUADS // QUAD, width, QUAD
    return -(-out // width), length, width


def to_panels(matrix: np.ndarray) -> np.ndarray:
    """[out, in] -> panels [n, in, width] of the same numbers, int8 [n, in / 4, 32, 4]; `panels_shape` says it."""
    out, length = matrix.shape
    panels = np.zeros(panels_shape(matrix.dtype.name, out, length), matrix.dtype)
    width = panels.shape[2]
    for panel, first in zip(panels, range(0, out, width), strict=True):
        rows = matrix[first : first + width]
        if panels.ndim == 4:
            rows = np.pad(rows, ((0, 0), (0, -length % WHOLE_QUADS))).reshape(len(rows), -1, QUAD)
        panel[:, : len(rows)] = np.swapaxes(rows, 0, 1)
    return panels


def from_panels(panels: np.ndarray, out: int, length: int) -> np.ndarray:
    """Panels -> [out, length] of the same numbers."""
    matrix = np.empty((out, length), panels.dtype)
    width = panels.shape[2]
    for panel, first in zip(panels, range(0, out, width), strict=True):
        rows = matrix[first : first + width]
        rows[:] = np.swapaxes(panel[:, : len(rows)], 0, 1).reshape(len(rows), -1)[:, :length]
    return matrix


def words_of(packed: np.ndarray) -> np.ndarray:
    """Bytes of two places, the first in the high bits -> words of eight, the first in the lowest bits.

    uint8 [out, in / 2] -> int32 [out, in / 8]
    """
    return _exchanged(packed).view("<i4")


def bytes_of(words: np.ndarray) -> np.ndarray:
    """The way back.  int32 [out, in / 8] -> uint8 [out * in / 2]"""
    return _exchanged(words.view(np.uint8)).reshape(-1)


def _exchanged(packed: np.ndarray) -> np.ndarray:
    return packed << 4 | packed >> 4
