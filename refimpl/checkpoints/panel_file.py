"""Weight files whose large matrices lie in panels, the order in which compiled products read them.

Such a file is a safetensors file like any other. In place of `X.weight` [out, in] it holds `X.weight.panels`
[n, in, width], of int8 [n, in / 4, 32, 4] (see `refimpl.backends.panels`); of an NF4 matrix the words, int32
[n, in / 8, 64]. What belongs to a quantized matrix besides lies there as ever. The metadata under `PACKED_KEY` are
JSON: the version of the layout and, by the name of each tensor in panels, the shape [out, in] of the matrix.

`shown_whole` gives the tensors the names, shapes and dtypes that they have in an ordinary file, without touching a
number; `in_panels` is the way there. docs/spec/checkpoints.md describes the files for other readers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from refimpl.backends.panels import (
    PLACES,
    WIDTHS,
    PanelBytes,
    PanelMatrix,
    nf4_fits,
    panels_shape,
    to_panels,
    words_of,
)
from refimpl.checkpoints.safetensors_writer import PACKED_KEY, PACKED_VERSION, StoredTensor, check_tensor
from refimpl.checkpoints.weight_file import WeightFile
from refimpl.errors import CheckpointFormatError, CheckpointValueError, InputError, quote
from refimpl.quantized_files import QuantizedTensors

SUFFIX = ".panels"

#: No dimension of a matrix is larger, and products of two stay whole numbers that fit.
_MAX_DIM = 1 << 31

_DENSE = ("float32", "float16", "bfloat16")


# --- reading -------------------------------------------------------------------------------------


def shown_whole(weights: WeightFile, where: Path) -> WeightFile:
    """`weights`, or a `PanelFile` of them where matrices lie in panels.  Raises: as `PanelFile`."""
    packed = any(PACKED_KEY in part.metadata for part in weights.parts)
    packed = packed or any(name.endswith(f".weight{SUFFIX}") for name in weights)
    return PanelFile(weights, where) if packed else weights


class PanelFile(WeightFile):
    """The tensors of a file, or of the files of an index, with matrices in place of panels.

    `file[name]` is a `PanelMatrix` or `PanelBytes` over the panels where they lie, and an array for all others. Numbers
    are not looked at: whoever packed them did.

    Args:
        stored: the tensors as they lie in the files.
        where: the file or the index, for messages.

    Raises: CheckpointFormatError for a newer version of the layout, metadata that are missing or no JSON of the right
        form, and panels that cannot be those of the matrix that the metadata describe.
    """

    def __init__(self, stored: WeightFile, where: Path):
        self._stored, self._where = stored, where
        self.paths = stored.paths
        self._panels: dict[str, tuple[int, int]] = {}
        for part in stored.parts:
            self._read(part)
        self._names = {name.removesuffix(SUFFIX) if name in self._panels else name: name for name in stored}
        if len(self._names) != len(stored):
            both = next(name for name in self._panels if name.removesuffix(SUFFIX) in stored)
            raise self._error(f"{both}: the file holds the matrix in panels, and once more as it is")

    @property
    def packed(self) -> list[str]:
        """The names of the matrices that lie in panels."""
        return [name for name, stored in self._names.items() if stored in self._panels]

    @property
    def parts(self) -> list[WeightFile]:
        return self._stored.parts

    def __getitem__(self, name: str) -> Any:
        stored = self._names[name]
        array, shape = self._stored[stored], self._panels.get(stored)
        if shape is None:
            return array
        if array.dtype == np.int32:
            return PanelBytes(array, shape, self.shape(name))
        return PanelMatrix(array, shape, array.dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def dtype(self, name: str) -> np.dtype:
        stored = self._stored.dtype(self._names[name])
        return PanelBytes.dtype if self._is_words(name) else stored

    def shape(self, name: str) -> tuple[int, ...]:
        stored = self._names[name]
        shape = self._panels.get(stored)
        if shape is None:
            return self._stored.shape(stored)
        return (math.prod(shape) // 2, 1) if self._is_words(name) else shape

    @property
    def nbytes(self) -> int:
        return self._stored.nbytes

    @property
    def stored_bytes(self) -> int:
        return self._stored.stored_bytes

    def is_view(self, name: str) -> bool:
        return self._stored.is_view(self._names[name])

    def _is_words(self, name: str) -> bool:
        stored = self._names[name]
        return stored in self._panels and self._stored.dtype(stored) == np.int32

    # --- checks ------------------------------------------------------------------------------------

    def _read(self, part: WeightFile) -> None:
        shapes = self._shapes(part)
        for name in part:
            if name in shapes:
                self._panels[name] = self._checked(name, part, shapes.pop(name))
            elif name.endswith(f".weight{SUFFIX}"):
                raise self._error(
                    f"{name}: panels without the metadata that say of which matrix",
                    found=f"{PACKED_KEY} {quote(part.metadata[PACKED_KEY])}"
                    if PACKED_KEY in part.metadata
                    else f"no {PACKED_KEY} in the file",
                    hint="Pack the model again: refimpl convert MODEL FOLDER --packed.",
                )
        if shapes:
            raise self._error(f"{next(iter(shapes))}: the metadata say that it is there, and it is not")

    def _shapes(self, part: WeightFile) -> dict[str, Any]:
        """What the metadata of one file say: name of a tensor in panels -> shape of the matrix."""
        text = part.metadata.get(PACKED_KEY)
        if text is None:
            return {}
        try:
            said = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise self._error(
                f"metadata {PACKED_KEY}: not valid JSON ({error})", found=quote(text)
            ) from error
        version = said.get("version") if isinstance(said, dict) else None
        if type(version) is int and version > 0 and version != PACKED_VERSION:
            raise self._error(
                "the matrices lie in an order of another version of refimpl",
                found=f"version {version}",
                allowed=f"version {PACKED_VERSION}",
                hint="Use that version, or pack the model again with this one: refimpl convert MODEL FOLDER --packed.",
            )
        shapes = said.get("shapes") if version == PACKED_VERSION else None
        if type(version) is not int or not isinstance(shapes, dict):
            allowed = f'{{"version": {PACKED_VERSION}, "shapes": {{name: [out, in]}}}}'
            raise self._error(f"metadata {PACKED_KEY} are wrong", found=quote(text), allowed=allowed)
        return shapes

    def _checked(self, name: str, part: WeightFile, shape: Any) -> tuple[int, int]:
        dtype, stored = part.dtype(name).name, part.shape(name)
        whole = isinstance(shape, list) and all(type(size) is int and 0 < size < _MAX_DIM for size in shape)
        if not name.endswith(SUFFIX) or name == SUFFIX or not whole or len(shape) != 2:
            raise self._error(
                f"{name}: not the name and shape of a matrix in panels",
                found=quote(shape),
                allowed=f"a name that ends in {SUFFIX}, and [out, in]",
            )
        out, length = shape
        places = PLACES if dtype == "int32" else 1
        fits = dtype in WIDTHS and length % places == 0
        wanted = panels_shape(dtype, out, length // places) if fits else None
        if stored != wanted:
            raise self._error(
                f"{name}: these are not the panels of a matrix {shape}",
                found=f"{dtype} {list(stored)}",
                allowed=", ".join(WIDTHS) if wanted is None else f"{dtype} {list(wanted)}",
            )
        return out, length

    def _error(self, what: str, **answers: Any) -> CheckpointFormatError:
        return CheckpointFormatError(what, where=self._where, path=self._where, **answers)


# --- writing -------------------------------------------------------------------------------------


def in_panels(tensors: Iterable[StoredTensor]) -> list[StoredTensor]:
    """The tensors of a file, each matrix in panels for which there is such a form.

    Matrices are packed one by one, when they are asked for. NaN and infinity are looked for then, because nobody does
    when the file is used: CheckpointValueError.
    Raises: InputError when there is no such matrix.
    """
    tensors = list(tensors)
    by_name = {tensor.name: tensor for tensor in tensors}
    packed = [_packed(tensor, by_name) for tensor in tensors]
    if not any(tensor.panels_of for tensor in packed):
        dtypes = sorted({tensor.dtype.name for tensor in tensors})
        raise InputError(
            "no matrix of the model has a form in panels",
            found=", ".join(dtypes),
            allowed="matrices of float32, float16 or bfloat16, or quantized ones",
            hint="Round it: refimpl convert MODEL FOLDER --dtype float32 --packed.",
        )
    return packed


def _packed(tensor: StoredTensor, tensors: Mapping[str, StoredTensor]) -> StoredTensor:
    name, dtype = tensor.name, tensor.dtype
    module = name.removesuffix("weight")
    if not name.endswith(".weight"):
        return tensor
    state = f"{name}.quant_state.bitsandbytes__nf4"
    if state in tensors:
        said = QuantizedTensors({state: tensors[state].load()}).nf4_state(name)
        out, length = said["shape"]
        # Another writer may keep the bytes under another dtype, or lack some; they then stay as they are.
        complete = dtype == np.uint8 and 2 * tensor.nbytes == out * length
        if not complete or not nf4_fits((out, length), said["blocksize"]):
            return tensor
        return _stored(tensor, np.dtype(np.int32), (out, length), partial(_words, tensor, out))
    if len(tensor.shape) != 2 or not tensor.nbytes:
        return tensor
    shape = (tensor.shape[0], tensor.shape[1])
    if dtype == np.int8 and f"{module}SCB" in tensors:
        return _stored(tensor, dtype, shape, lambda: to_panels(_whole(tensor)))
    if dtype.name in _DENSE:
        return _stored(tensor, dtype, shape, lambda: to_panels(_finite(_whole(tensor), name)))
    return tensor


def _stored(
    tensor: StoredTensor, dtype: np.dtype, shape: tuple[int, int], load: Callable[[], np.ndarray]
) -> StoredTensor:
    out, length = shape
    stored = panels_shape(dtype.name, out, length // PLACES if dtype == np.int32 else length)
    name = tensor.name + SUFFIX
    check_tensor(name, dtype, stored)
    return StoredTensor(name, dtype, stored, load, panels_of=shape)


def _words(tensor: StoredTensor, out: int) -> np.ndarray:
    return to_panels(words_of(_whole(tensor).reshape(out, -1)))


def _whole(tensor: StoredTensor) -> np.ndarray:
    """The numbers of a tensor in the dtype of the file.  Raises: CheckpointValueError, as `StoredTensor.numbers`."""
    array, done = np.empty(math.prod(tensor.shape), tensor.dtype), 0
    for piece in tensor.numbers():
        array[done : done + piece.size] = piece
        done += piece.size
    return array.reshape(tensor.shape)


def _finite(array: np.ndarray, name: str) -> np.ndarray:
    finite = np.isfinite(array)
    if not finite.all():
        first = [int(i) for i in np.argwhere(~finite)[0]]
        raise CheckpointValueError(
            "this tensor holds NaN or infinity, and is not packed",
            where=name,
            found=f"{float(array[tuple(first)])!r} at {first}",
            tensor=name,
            count=int((~finite).sum()),
            first_index=first,
        )
    return array
