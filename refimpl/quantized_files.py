"""Quantized matrices in weight files, as bitsandbytes writes them.

A matrix is then several tensors with names of their own.  `QuantizedTensors` shows a file as if each
such group were one tensor; `stored_tensors` is the way back, byte for byte.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from refimpl.backends.panels import PanelBytes
from refimpl.backends.quantized import (
    NF4_BLOCKSIZES,
    NF4_CODE,
    Int8Matrix,
    NestedAbsmax,
    NF4Matrix,
    QuantizedMatrix,
)
from refimpl.errors import CheckpointFormatError, CheckpointValueError, quote

_STATE = ".quant_state.bitsandbytes__"
_NF4_PARTS = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", f"{_STATE}nf4")
_INT8_PARTS = ("SCB", "weight_format")  # in place of "weight"
_SOURCE_DTYPES = ("float16", "bfloat16", "float32")

# Far more than the settings of one matrix take.
_STATE_LIMIT = 1 << 16


class QuantizedTensors(Mapping[str, Any]):
    """The tensors of a file, the parts of each quantized matrix joined to one `QuantizedMatrix`.

    Nothing is copied: a mapped file stays mapped. What is not quantized is passed on as it is.

    Args:
        tensors: the tensors by name.
        where: the file, for messages.

    Raises (when a matrix is asked for): CheckpointFormatError for parts that are missing or do not fit
        together, and for FP4; CheckpointValueError for an absmax that is NaN or infinite.
    """

    def __init__(self, tensors: Mapping[str, np.ndarray], where: object = None):
        self._tensors, self._where = tensors, where
        self._forms: dict[str, str] = {}
        parts: set[str] = set()
        for name in tensors:
            weight, _, form = name.rpartition(_STATE)
            if weight:
                self._forms[weight] = form
                parts |= {weight + part for part in (*_NF4_PARTS, _STATE + form)}
            elif name.endswith(".SCB"):
                module = name.removesuffix("SCB")
                self._forms[f"{module}weight"] = "int8"
                parts |= {module + part for part in _INT8_PARTS}
        self._names = [name for name in tensors if name not in parts]
        # A group without its weight: shown under the name that is missing, so that loading says so.
        self._names += [name for name in self._forms if name not in tensors]

    def __getitem__(self, name: str) -> Any:
        form = self._forms.get(name)
        if form is None:
            return self._tensors[name]
        return self._int8(name) if form == "int8" else self._nf4(name, form)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    @property
    def quantized(self) -> list[str]:
        """The names of the matrices that the file holds quantized."""
        return list(self._forms)

    @property
    def nbytes(self) -> int:
        return getattr(self._tensors, "nbytes", 0)

    # --- int8 ----------------------------------------------------------------------------------

    def _int8(self, name: str) -> Int8Matrix:
        module = name.removesuffix("weight")
        codes, absmax = self._part(name), self._part(f"{module}SCB")
        layout = self._tensors.get(f"{module}weight_format")
        if layout is not None and np.any(layout):
            raise self._error(
                f"{module}weight_format",
                "int8 weights in the order of a GPU's matrix units",
                found=quote(layout.tolist()),
                allowed="0: row by row",
                hint="Save the model again with bitsandbytes 0.45 or later, which writes rows.",
            )
        self._expect(name, codes, np.dtype(np.int8), 2)
        self._expect(f"{module}SCB", absmax, np.dtype(np.float32), 1, codes.shape[:1])
        self._refuse_infinite(f"{module}SCB", absmax)
        return Int8Matrix(codes, absmax)

    # --- NF4 -----------------------------------------------------------------------------------

    def _nf4(self, name: str, form: str) -> NF4Matrix:
        if form != "nf4":
            raise self._error(name, "this 4-bit form is not available", found=quote(form), allowed="nf4")
        state = self.nf4_state(name)
        shape = tuple(state["shape"])
        count = math.prod(shape)
        stored = self._part(name)
        if isinstance(stored, PanelBytes):
            packed: Any = stored.flat()
            self._expect_matrix(name, stored.matrix_shape, shape)
        else:  # another bnb_4bit_quant_storage is another name for the same bytes
            packed = np.ascontiguousarray(stored).reshape(-1).view(np.uint8)
        self._expect(name, packed, np.dtype(np.uint8), 1, (-(-count // 2),))
        table = self._part(f"{name}.quant_map")
        self._expect(f"{name}.quant_map", table, np.dtype(np.float32), 1, (16,))
        if not np.allclose(table, NF4_CODE, rtol=0, atol=1e-6):
            raise self._error(f"{name}.quant_map", "not the 16 values of NF4", found=quote(table.tolist()))
        blocks = -(-count // state["blocksize"])
        return NF4Matrix(
            packed=packed,
            absmax=self._absmax(name, blocks, state),
            shape=shape,
            blocksize=state["blocksize"],
            source_dtype=state["dtype"],
        )

    def _absmax(self, name: str, blocks: int, state: dict[str, Any]) -> np.ndarray | NestedAbsmax:
        absmax = self._part(f"{name}.absmax")
        if f"{name}.nested_absmax" not in self._tensors:
            self._expect(f"{name}.absmax", absmax, np.dtype(np.float32), 1, (blocks,))
            self._refuse_infinite(f"{name}.absmax", absmax)
            return absmax
        self._expect(f"{name}.absmax", absmax, np.dtype(np.uint8), 1, (blocks,))
        size = self._number(name, state, "nested_blocksize", whole=True)
        nested, table = self._part(f"{name}.nested_absmax"), self._part(f"{name}.nested_quant_map")
        self._expect(f"{name}.nested_absmax", nested, np.dtype(np.float32), 1, (-(-blocks // size),))
        self._expect(f"{name}.nested_quant_map", table, np.dtype(np.float32), 1, (256,))
        self._refuse_infinite(f"{name}.nested_absmax", nested)
        self._refuse_infinite(f"{name}.nested_quant_map", table)
        offset = self._number(name, state, "nested_offset")
        return NestedAbsmax(absmax, nested, table, float(np.float32(offset)), size)

    def nf4_state(self, name: str) -> dict[str, Any]:
        """The settings that lie beside an NF4 matrix: JSON in a tensor of bytes.  Raises: CheckpointFormatError."""
        key = f"{name}{_STATE}nf4"
        data = self._part(key)
        self._expect(key, data, np.dtype(np.uint8), 1)
        try:
            state = json.loads(bytes(data[:_STATE_LIMIT]))
        except (ValueError, RecursionError) as error:
            raise self._error(key, f"not valid JSON: {error}") from error
        if not isinstance(state, dict):
            raise self._error(key, "the tensor must hold one JSON object", found=quote(state))
        whole = [type(size) is int and 0 < size < 1 << 32 for size in _as_list(state.get("shape"))]
        for what, right, allowed in (
            ("quant_type", state.get("quant_type") == "nf4", "nf4"),
            ("blocksize", _is_in(state.get("blocksize"), NF4_BLOCKSIZES), quote(sorted(NF4_BLOCKSIZES))),
            ("dtype", _is_in(state.get("dtype"), _SOURCE_DTYPES), ", ".join(_SOURCE_DTYPES)),
            ("shape", len(whole) == 2 and all(whole), "[out, in]"),
        ):
            if not right:
                raise self._error(key, f"{what} is wrong", found=quote(state.get(what)), allowed=allowed)
        return state

    # --- checks --------------------------------------------------------------------------------

    def _number(self, name: str, state: dict[str, Any], what: str, whole: bool = False) -> Any:
        value: Any = state.get(what)
        right = type(value) is int if whole else type(value) in (int, float)
        if not right or not abs(value) < 1e30 or (whole and value < 1):
            allowed = "a whole number from 1" if whole else "a finite number"
            raise self._error(f"{name}{_STATE}nf4", f"{what} is wrong", found=quote(value), allowed=allowed)
        return value

    def _part(self, name: str) -> np.ndarray:
        if name not in self._tensors:
            raise self._error(name, "a part of a quantized matrix is missing")
        return self._tensors[name]

    def _expect(
        self, name: str, array: np.ndarray, dtype: np.dtype, ndim: int, shape: tuple[int, ...] | None = None
    ) -> None:
        if array.dtype != dtype or array.ndim != ndim or (shape is not None and array.shape != shape):
            size = f" {list(shape)}" if shape is not None else f" of {ndim} dimensions"
            raise self._error(
                name,
                "this part of a quantized matrix does not fit the rest",
                found=f"{array.dtype.name} {list(array.shape)}",
                allowed=dtype.name + size,
            )

    def _expect_matrix(self, name: str, panels_of: tuple[int, int], shape: tuple[int, ...]) -> None:
        if panels_of != shape:
            found, allowed = str(list(panels_of)), f"{list(shape)}, as the state beside it says"
            raise self._error(name, "panels of a matrix of another shape", found=found, allowed=allowed)

    def _refuse_infinite(self, name: str, array: np.ndarray) -> None:
        wrong = ~np.isfinite(array)
        if wrong.any():
            first = [int(i) for i in np.argwhere(wrong)[0]]
            raise CheckpointValueError(
                f"{name} holds NaN or infinity",
                where=self._where,
                found=f"{float(array[tuple(first)])!r} at {first}",
                tensor=name,
                count=int(wrong.sum()),
                first_index=first,
            )

    def _error(self, name: str, what: str, **answers: Any) -> CheckpointFormatError:
        return CheckpointFormatError(f"{name}: {what}", where=self._where, path=self._where, **answers)


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _is_in(value: Any, allowed: tuple[Any, ...]) -> bool:
    return type(value) is type(allowed[0]) and value in allowed


def stored_tensors(name: str, matrix: QuantizedMatrix) -> dict[str, np.ndarray]:
    """The tensors under which a file holds the quantized matrix `name` (which ends in "weight").

    The arrays of the matrix lie on the host. Names, dtypes, shapes and bytes are those that bitsandbytes 0.50 writes.
    """
    if isinstance(matrix, Int8Matrix):
        module = name.removesuffix("weight")
        return {
            name: matrix.CB,
            f"{module}SCB": matrix.SCB,
            f"{module}weight_format": np.array(0, dtype=np.uint8),
        }
    if not isinstance(matrix, NF4Matrix):
        raise CheckpointFormatError("no file format for this matrix", where=name, found=type(matrix).__name__)
    settings: dict[str, Any] = {
        "quant_type": "nf4",
        "blocksize": matrix.blocksize,
        "dtype": matrix.source_dtype,
        "shape": list(matrix.shape),
    }
    tensors = {name: matrix.packed.reshape(-1, 1)}
    if isinstance(matrix.absmax, NestedAbsmax):
        nested = matrix.absmax
        tensors[f"{name}.absmax"] = nested.absmax
        tensors[f"{name}.nested_absmax"] = nested.nested_absmax
        tensors[f"{name}.nested_quant_map"] = nested.nested_quant_map
        settings["nested_blocksize"] = nested.nested_blocksize
        settings["nested_dtype"] = "float32"
        settings["nested_offset"] = nested.nested_offset
    else:
        tensors[f"{name}.absmax"] = matrix.absmax
    tensors[f"{name}.quant_map"] = matrix.quant_map
    tensors[f"{name}{_STATE}nf4"] = np.frombuffer(json.dumps(settings).encode(), dtype=np.uint8)
    return tensors
