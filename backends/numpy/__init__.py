"""The NumPy backend: the definitions of `refimpl.backends.base`, computed as they stand."""

from __future__ import annotations

import numpy as np

from refimpl.backends.base import Backend
from refimpl.errors import BackendError


class NumPyBackend(Backend):
    """Plain NumPy, in float32 or float64.  Matrix products go to NumPy's BLAS and its threads."""

    name = "numpy"
    xp = np

    def __init__(self, dtype: np.dtype, device: str | None = None, threads: int | None = None):
        if device not in (None, "cpu"):
            raise BackendError("the numpy backend has one device", found=device, allowed="cpu")
        if threads is not None:
            raise BackendError(
                "the threads of NumPy's matrix products are set before Python starts",
                found=f"threads={threads}",
                hint="Set OPENBLAS_NUM_THREADS (or MKL_NUM_THREADS) in the environment instead.",
            )
        super().__init__(dtype)
