"""A weight before and while its values arrive: where it belongs, its shape, and the form in which it is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from refimpl.backends.base import Backend
from refimpl.backends.quantized import QuantizedMatrix
from refimpl.errors import CheckpointValueError, quote

Array = Any


@dataclass(frozen=True)
class Parameter:
    """What is known of a weight before its values are: where it belongs and its shape."""

    key: str
    owner: Any
    name: str
    shape: tuple[int, ...]
    #: The initial value of every element; None: random numbers.
    initial: float | None

    @property
    def is_matrix(self) -> bool:
        """Large matrices are kept in the weight dtype (or quantized), everything else in the compute dtype."""
        return len(self.shape) == 2

    def assign(self, array: np.ndarray | QuantizedMatrix, weight_dtype: np.dtype | None) -> None:
        """Keep `array` as the weight.  Raises: CheckpointValueError for a number that the dtype cannot hold."""
        setattr(self.owner, self.name, self.packed(array, weight_dtype, self.owner.backend))

    def packed(
        self, array: np.ndarray | QuantizedMatrix, weight_dtype: np.dtype | None, backend: Backend
    ) -> Array:
        """`array` in the form in which `backend` keeps this weight.  Raises: CheckpointValueError, as `assign`."""
        if self.is_matrix:
            # A device casts and checks what it gets: the host is spared a copy of the matrix.
            as_it_is = isinstance(array, QuantizedMatrix) or backend.device != "cpu"
            kept = array if as_it_is else self._cast(array, weight_dtype or array.dtype)
            try:
                return backend.weight(kept, weight_dtype)
            except CheckpointValueError as error:  # the backend does not know whose numbers these are
                error.where = self.key
                error.tensor = self.key  # type: ignore[attr-defined]
                raise
        # Copied, so that a small vector does not keep a whole file in memory.
        return backend.asarray(np.array(self._cast(array, backend.dtype)))

    def _cast(self, array: Any, dtype: Any) -> np.ndarray:
        """`array` in `dtype`; the same array where that is its dtype (a mapped file is then not read)."""
        if array.dtype == dtype and self.is_matrix:
            return array
        with np.errstate(over="ignore"):
            cast = array.astype(dtype, copy=False)
        wrong = ~np.isfinite(cast)
        if wrong.any():
            first = np.argwhere(wrong)[0]
            number = float(array[tuple(first)])
            fits = np.isfinite(number)
            raise CheckpointValueError(
                f"{dtype} cannot hold a number of this tensor"
                if fits
                else "this tensor holds NaN or infinity",
                where=self.key,
                found=quote(number),
                hint=f"Keep the weights in a dtype with the range of {array.dtype}." if fits else None,
                tensor=self.key,
                count=int(wrong.sum()),
                first_index=[int(i) for i in first],
            )
        return cast
