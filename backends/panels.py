"""Matrices in panels: the order in which compiled products read them, and in which a file can keep them.

A panel is [in, width]: `width` rows of the matrix [out, in] side by side, so that what one step of a product needs lies
together.  What a matrix lacks to the next full panel is filled with zeros.  Nothing is rounded: unpacked, a matrix is
what it was, bit for bit.  The order is the same on every processor.

`PanelMatrix` and `PanelBytes` stand for the arrays that they were made of.  A backend that reads panels takes them
as they are (`Backend.weight`); for all others `np.asarray` is the array.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from refimpl.backends.quantized import Int8Matrix, NF4Matrix, QuantizedMatrix

#: Rows in a panel, by the dtype of what lies in it; int32 are words of eight NF4 places.
WIDTHS = {"float32": 32, "float16": 32, "bfloat16": 32, "int8": 64, "int32": 64}

#: Places of four bits in a word, the first in the lowest bits.
PLACES = 8


class PanelMatrix:
    """A matrix [out, in] in panels.

    It stands for the array that it was made of: `shape`, `dtype`, `matrix[ids]` (rows), `astype`, `np.asarray`.

    Attributes: `panels` [n, in, width], in `dtype` or another dtype of the same size.
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
        return self.panels[ids // width, :, ids % width].view(self.dtype)

    def unpacked(self) -> np.ndarray:
        """The matrix as it was.  -> [out, in]"""
        return from_panels(self.panels, self.shape[0]).view(self.dtype)

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
        return bytes_of(from_panels(self.panels, self.matrix_shape[0])).reshape(*shape)

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


def to_panels(matrix: np.ndarray) -> np.ndarray:
    """[out, in] -> panels [n, in, width] of the same numbers; `WIDTHS` has the width."""
    (out, length), width = matrix.shape, WIDTHS[matrix.dtype.name]
    panels = np.zeros((-(-out // width), length, width), matrix.dtype)
    for panel, first in zip(panels, range(0, out, width), strict=True):
        rows = matrix[first : first + width]
        panel[:, : len(rows)] = rows.T
    return panels


def from_panels(panels: np.ndarray, out: int) -> np.ndarray:
    """Panels [n, in, width] -> [out, in] of the same numbers."""
    _, length, width = panels.shape
    matrix = np.empty((out, length), panels.dtype)
    for panel, first in zip(panels, range(0, out, width), strict=True):
        rows = matrix[first : first + width]
        rows[:] = panel[:, : len(rows)].T
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
