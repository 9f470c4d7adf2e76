"""Matrices kept in 8 or 4 bits a number, in the formats of bitsandbytes.

`Int8Matrix` is what LLM.int8() stores (arXiv:2208.07339): a whole number from -127 to 127 for each weight and
one float32 for each row.  `NF4Matrix` is what QLoRA stores (arXiv:2305.14314): one of 16 values for each
weight and one float32 for each block of 64, or 8 bits for that number too ("double quantization").

These are definitions: plain arrays and the arithmetic between them, without a namespace, so that they
run on the arrays of any backend.  A quantized matrix stands wherever a dense weight [out, in] does:
`astype` gives the dense matrix and `matrix[ids]` gives rows of it.  docs/spec/quantization.md has the
formulas, the order of the bytes and the figures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, ClassVar, Self

import numpy as np

from refimpl.backends.quantizing import (
    absmax_of,
    as_float32,
    check_matrix,
    divided_by_absmax,
    nearest,
    parts_for_nf4,
    rows_for_int8,
)
from refimpl.errors import InputError, quote

Array = Any

#: Numbers that share one absmax, along the matrix read row by row; the first is the default.
NF4_BLOCKSIZES = (64, 32, 128, 256, 512, 1024, 2048, 4096)

#: Absmaxes that share one absmax of their own.
NESTED_BLOCKSIZE = 256

#: The 16 values: quantiles of the normal distribution, scaled so that the outermost are -1 and 1.
NF4_CODE = np.array(
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
        -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
        0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ],
    dtype=np.float32,
)  # fmt: skip
NF4_CODE.flags.writeable = False

_ONE, _127 = np.float32(1), np.float32(127)
_ONE_127TH = np.float32(1 / 127)


# --- the matrices --------------------------------------------------------------------------------


class QuantizedMatrix:
    """A matrix [out, in] in a narrow form.  It never changes; its arrays are not written to.

    Attributes: `dtype` ("int8" or "nf4"), `shape` (out, in), `nbytes`.  `np.asarray(matrix)` is the dense one.
    """

    dtype: ClassVar[str]
    ndim: ClassVar[int] = 2
    shape: tuple[int, int]

    @property
    def nbytes(self) -> int:
        raise NotImplementedError

    def dense(self) -> Array:
        """The matrix in float32.  -> [out, in]"""
        raise NotImplementedError

    def __getitem__(self, ids: Array) -> Array:
        """One row for each id, in float32, as the embedding reads them.  [...] -> [..., in]"""
        raise NotImplementedError

    def map_arrays(self, function: Callable[[Array], Array]) -> Self:
        """The same matrix with `function` applied to every array: how it is moved to a backend."""
        raise NotImplementedError

    def astype(self, dtype: Any, copy: bool = False) -> Array:
        """The dense matrix in `dtype`: rounded to float32 once, then widened or rounded.  -> [out, in]

        `copy` is there for the sake of arrays: the result is always new.
        """
        return self.dense().astype(dtype, copy=False)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.astype(np.float32 if dtype is None else dtype)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {list(self.shape)}, {self.nbytes:,} bytes>"


@dataclass(frozen=True, eq=False, repr=False)
class Int8Matrix(QuantizedMatrix):
    """Rows of whole numbers, each row with its own unit.

    Attributes:
        CB: int8 [out, in], or on the way from a file a `PanelMatrix` (`refimpl.backends.panels`).
        SCB: float32 [out], the largest |weight| of each row; CB is 127 or -127 there.
    """

    CB: Array
    SCB: Array
    dtype: ClassVar[str] = "int8"

    @property
    def shape(self) -> tuple[int, int]:  # type: ignore[override]
        return self.CB.shape

    @property
    def nbytes(self) -> int:
        return self.CB.nbytes + self.SCB.nbytes

    def dense(self) -> Array:
        return self.CB * self.SCB[:, None] * _ONE_127TH

    def __getitem__(self, ids: Array) -> Array:
        return self.CB[ids] * self.SCB[ids][..., None] * _ONE_127TH

    def map_arrays(self, function: Callable[[Array], Array]) -> Self:
        return replace(self, CB=function(self.CB), SCB=function(self.SCB))


@dataclass(frozen=True, eq=False)
class NestedAbsmax:
    """The absmax of each block in 8 bits: a value of a table, times an absmax of 256 blocks, plus the mean.

    Attributes:
        absmax: uint8 [blocks], places in the table.
        nested_absmax: float32 [blocks / 256, rounded up].
        nested_quant_map: float32 [256], the table; `dynamic_code()` unless a file brought another.
        nested_offset: the mean of the absmaxes before they were rounded (a float32 number).
        nested_blocksize: 256.
    """

    absmax: Array
    nested_absmax: Array
    nested_quant_map: Array
    nested_offset: float
    nested_blocksize: int = NESTED_BLOCKSIZE

    @property
    def nbytes(self) -> int:
        return self.absmax.nbytes + self.nested_absmax.nbytes + self.nested_quant_map.nbytes

    def values(self) -> Array:
        """The absmax of each block.  -> float32 [blocks]"""
        units = self.nested_absmax.repeat(self.nested_blocksize)[: self.absmax.size]
        return self.nested_quant_map[self.absmax] * units + self.nested_offset

    def map_arrays(self, function: Callable[[Array], Array]) -> Self:
        return replace(
            self,
            absmax=function(self.absmax),
            nested_absmax=function(self.nested_absmax),
            nested_quant_map=function(self.nested_quant_map),
        )


@dataclass(frozen=True, eq=False, repr=False)
class NF4Matrix(QuantizedMatrix):
    """Two numbers in a byte, each one of 16 values, times the absmax of its block.

    Blocks run along the matrix read row by row; where `in` is no multiple of the block size, a block
    goes on in the next row.

    Attributes:
        packed: uint8 [out * in / 2, rounded up]; the first number of a byte is in its high four bits.  On the way
            from a file it can be `PanelBytes` (`refimpl.backends.panels`).
        absmax: float32 [blocks], or a `NestedAbsmax`.
        shape: (out, in).
        blocksize: how many numbers share an absmax.
        source_dtype: the dtype of the matrix that was quantized. Files name it; it changes no value.
        quant_map: float32 [16], the values.
    """

    packed: Array
    absmax: Array | NestedAbsmax
    shape: tuple[int, int]
    blocksize: int = NF4_BLOCKSIZES[0]
    source_dtype: str = "float32"
    quant_map: Array = field(default_factory=lambda: NF4_CODE)
    dtype: ClassVar[str] = "nf4"

    @property
    def nbytes(self) -> int:
        return self.packed.nbytes + self.absmax.nbytes + self.quant_map.nbytes

    @property
    def scales(self) -> Array:
        """The absmax of each block, whichever way it is kept.  -> float32 [blocks]"""
        return self.absmax.values() if isinstance(self.absmax, NestedAbsmax) else self.absmax

    def dense(self) -> Array:
        count = self.shape[0] * self.shape[1]
        values = self.quant_map[_unpacked(self.packed.reshape(-1))[:count]]
        values *= self.scales.repeat(self.blocksize)[:count]
        return values.reshape(self.shape)

    def __getitem__(self, ids: Array) -> Array:
        out, width = self.shape
        if width % self.blocksize:
            return self.dense()[ids]  # a block can hold the end of one row and the start of the next
        codes = _unpacked(self.packed.reshape(out, width // 2)[ids])
        units = self.scales.reshape(out, width // self.blocksize)[ids]
        return self.quant_map[codes] * units.repeat(self.blocksize, axis=-1)

    def map_arrays(self, function: Callable[[Array], Array]) -> Self:
        nested = isinstance(self.absmax, NestedAbsmax)
        return replace(
            self,
            packed=function(self.packed),
            absmax=self.absmax.map_arrays(function) if nested else function(self.absmax),
            quant_map=function(self.quant_map),
        )


def _unpacked(packed: Array) -> Array:
    """The two numbers of each byte, one after the other.  uint8 [..., n] -> uint8 [..., 2 n]"""
    codes = packed.repeat(2, axis=-1)
    codes[..., 0::2] >>= 4
    codes &= 15
    return codes


# --- from dense matrices -------------------------------------------------------------------------


def quantize_int8(array: np.ndarray, name: str | None = None) -> Int8Matrix:
    """Round each row to multiples of its absmax / 127, ties to even, as bitsandbytes' `Linear8bitLt` does.

    `array` is [out, in] in a float dtype. bitsandbytes rounds it to float16 first, and so does this.
    Not matched is what LLM.int8() does to the activations: it rounds them to 8 bits as well, except for
    columns with outliers. Here only the weights are narrow.

    Raises: CheckpointValueError for NaN, infinity or a number beyond float16 (`name` is the tensor that
        the error names); InputError when the array is no float matrix.
    """
    check_matrix(array, name)
    codes, absmax = np.empty(array.shape, np.int8), np.empty(array.shape[0], np.float32)
    for rows, values, largest in rows_for_int8(array, name):
        # The reciprocal is rounded before it is multiplied: 127 / absmax would differ in the last bit.
        units = np.divide(_ONE, largest, out=np.zeros_like(largest), where=largest > 0) * _127
        codes[rows] = np.rint(values.astype(np.float32) * units[:, None])
        absmax[rows] = largest
    return Int8Matrix(CB=_read_only(codes), SCB=_read_only(absmax))


def int8_absmax(array: np.ndarray, name: str | None = None) -> np.ndarray:
    """`quantize_int8(array).SCB` without the rest.  [out, in] -> float32 [out]

    Raises: as `quantize_int8`.
    """
    check_matrix(array, name)
    return _read_only(np.concatenate([absmax for _, _, absmax in rows_for_int8(array, name)]))


def quantize_nf4(
    array: np.ndarray,
    double_quant: bool = False,
    block: int = NF4_BLOCKSIZES[0],
    name: str | None = None,
) -> NF4Matrix:
    """Divide each block by its absmax and take the nearest of the 16 values; a tie goes to the lower one.

    `array` is [out, in] in a float dtype; the result depends on its float32 values only. With
    `double_quant` the absmaxes, less their mean, are kept in 8 bits.

    Raises: CheckpointValueError for NaN or infinity (`name` is the tensor that the error names);
        InputError when the array is no float matrix, or for another block size than bitsandbytes has.
    """
    check_matrix(array, name)
    _check_block(block)
    packed = np.empty(-(-array.size // 2), np.uint8)
    absmaxes = np.empty(-(-array.size // block), np.float32)
    for first, values, absmax in parts_for_nf4(array, block, name):
        scaled = divided_by_absmax(as_float32(values), absmax, block)
        if scaled.size % 2:
            scaled = np.append(scaled, np.float32(0))  # the other half of the last byte
        codes = nearest(scaled, NF4_CODE)
        packed[first // 2 :][: codes.size // 2] = codes[0::2] << 4 | codes[1::2]
        absmaxes[first // block :][: absmax.size] = absmax
    return NF4Matrix(
        packed=_read_only(packed),
        absmax=nest_absmax(absmaxes) if double_quant else _read_only(absmaxes),
        shape=array.shape,
        blocksize=block,
        source_dtype=nf4_source_dtype(array.dtype),
    )


def nf4_absmax(array: np.ndarray, block: int = NF4_BLOCKSIZES[0], name: str | None = None) -> np.ndarray:
    """`quantize_nf4(array, block=block).absmax` without the rest.  [out, in] -> float32 [blocks]

    Raises: as `quantize_nf4`.
    """
    check_matrix(array, name)
    _check_block(block)
    return _read_only(np.concatenate([absmax for _, _, absmax in parts_for_nf4(array, block, name)]))


def nf4_source_dtype(dtype: np.dtype) -> str:
    """The dtype that a file says the matrix had before: float32 for float64, which has no name there."""
    return "float32" if dtype == np.float64 else dtype.name


def int8_bytes(shape: tuple[int, ...]) -> int:
    """What `quantize_int8` makes of a matrix [out, in]: one byte for each number, four for each row."""
    return shape[0] * shape[1] + 4 * shape[0]


def nf4_bytes(shape: tuple[int, ...], *, double_quant: bool = False, block: int = 64) -> int:
    """What `quantize_nf4` makes of a matrix [out, in]: half a byte for each number, and the absmaxes."""
    numbers = shape[0] * shape[1]
    blocks = -(-numbers // block)
    absmaxes = blocks + 4 * -(-blocks // NESTED_BLOCKSIZE) + 4 * 256 if double_quant else 4 * blocks
    return -(-numbers // 2) + absmaxes + NF4_CODE.nbytes


def nest_absmax(absmax: np.ndarray, offset: float | None = None) -> NestedAbsmax:
    """Keep float32 absmaxes [blocks] in 8 bits each: double quantization.

    `offset` is subtracted first; None: their mean, added up in float64 and rounded to float32 once.
    (bitsandbytes adds in float32, in an order that depends on the processor: its mean can differ in the
    last bit.)
    """
    mean = np.float32(absmax.mean(dtype=np.float64) if offset is None else offset)
    centred = absmax - mean
    nested_absmax = absmax_of(centred, NESTED_BLOCKSIZE)
    scaled = divided_by_absmax(centred, nested_absmax, NESTED_BLOCKSIZE)
    return NestedAbsmax(
        absmax=_read_only(nearest(scaled, dynamic_code())),
        nested_absmax=_read_only(nested_absmax),
        nested_quant_map=dynamic_code(),
        nested_offset=float(mean),
    )


@cache
def dynamic_code() -> np.ndarray:
    """The 256 values that absmaxes take in double quantization, rising.  -> float32 [256]

    For each of seven powers of ten, 1, 2, 4 ... 64 numbers at equal distances between 0.1 and 1 times
    that power, with both signs; and 0 and 1 (arXiv:1511.04561).
    """
    values = [np.array([0, 1], dtype=np.float32)]
    for exponent in range(7):
        count = 2**exponent
        magnitudes = np.float32(10.0 ** (exponent - 6)) * _middles(count)
        values += [magnitudes, -magnitudes]
    return _read_only(np.sort(np.concatenate(values)))


def _middles(count: int) -> np.ndarray:
    """The middles of `count` equal parts of 0.1 .. 1, as float32 arithmetic finds them.

    The borders grow from either end towards the middle, each with one rounding (float64 holds the
    product and the sum exactly enough), because torch.linspace computes them so.
    """
    low, high = np.float32(0.1), _ONE
    step = np.float64((high - low) / np.float32(count))
    places = np.arange(count + 1)
    from_low, from_high = np.float64(low) + step * places, 1 - step * (count - places)
    borders = np.where(places < (count + 1) // 2, from_low, from_high).astype(np.float32)
    return (borders[:-1] + borders[1:]) / np.float32(2)


def _check_block(block: int) -> None:
    if type(block) is not int or block not in NF4_BLOCKSIZES:
        allowed = ", ".join(map(str, sorted(NF4_BLOCKSIZES)))
        raise InputError("not a block size of NF4", where="block", found=quote(block), allowed=allowed)


def _read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array
