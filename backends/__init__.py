"""Arrays and the short list of operations that a backend may speed up.

`get_backend` is the only door: the rest of the house never imports a backend by name.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from refimpl.errors import BackendError, quote

if TYPE_CHECKING:
    from refimpl.backends.base import Backend

#: name -> (module, class, compute dtypes)
_BACKENDS = {
    "numpy": ("refimpl.backends.numpy", "NumPyBackend", ("float32", "float64")),
    "numba": ("refimpl.backends.numba", "NumbaBackend", ("float32", "float64")),
    "cupy": ("refimpl.backends.cupy", "CuPyBackend", ("float32", "float64")),
}

#: To what a backend can round the factors of matrix products, beside not at all.
_MATMUL_DTYPES = {"numba": ("bfloat16", "int8"), "cupy": ("float16", "bfloat16", "tf32")}

#: 16-bit types that are kept as weights and computed with in float32; a GPU multiplies in them.
_HALF_TYPES = ("float16", "bfloat16")


def get_backend(
    name: str | Backend = "auto",
    *,
    dtype: Any = None,
    device: str | None = None,
    threads: int | None = None,
    matmul_dtype: Any = None,
) -> Backend:
    """The backend of that name, computing in `dtype` (default float32).

    "auto" is the one that `device` asks for; without a device, "cupy" where a GPU and a CuPy for it are usable
    (and neither `threads` nor `matmul_dtype` means something on a processor alone), else "numba".

    `dtype` "float16" or "bfloat16" means float32 on a processor: the weights are then kept in 16 bits and widened
    inside the operation that reads them.  On a GPU it means `matmul_dtype` as well, unless that says something else.

    `matmul_dtype` "bfloat16" lets `linear` round its input and its weights to bfloat16 before it multiplies them,
    "float16" to float16, "tf32" to 10 bits of float32, "int8" its input where the weights are int8; sums stay in
    float32. Not every backend has each, and it rounds where it gains (docs/backends.md); None, or "float32": nothing
    is rounded.

    Raises: BackendError for an unknown or unavailable backend, device or dtype.
    """
    from refimpl.backends.base import Backend

    if isinstance(name, Backend):
        _refuse_contradiction(name, dtype, device, threads, matmul_dtype)
        return name
    if name == "auto":
        name = _automatic(device, threads, matmul_dtype)
    if not isinstance(name, str) or name not in _BACKENDS:
        raise BackendError("unknown backend", found=quote(name), allowed=", ".join(["auto", *_BACKENDS]))
    module, class_name, computes = _BACKENDS[name]
    wanted = _compute_dtype(dtype, computes)
    if wanted not in computes:
        raise BackendError(
            f"the {name} backend does not compute in this dtype",
            found=quote(wanted),
            allowed=", ".join(computes + _HALF_TYPES),
        )
    options: dict[str, Any] = {"device": device, "threads": threads}
    rounded = _matmul_dtype(matmul_dtype)
    if name == "cupy" and matmul_dtype is None and dtype is not None and dtype_name(dtype) in _HALF_TYPES:
        rounded = dtype_name(dtype)
    if rounded is not None:
        if rounded not in _MATMUL_DTYPES.get(name, ()):
            raise BackendError(
                f"the {name} backend does not round the factors of matrix products to this dtype",
                where="matmul_dtype",
                found=quote(rounded),
                allowed=", ".join(("float32", *_MATMUL_DTYPES.get(name, ()))),
            )
        options["matmul_dtype"] = rounded
    return getattr(import_module(module), class_name)(to_dtype(wanted), **options)


def _automatic(device: str | None, threads: int | None, matmul_dtype: Any) -> str:
    """The name of the backend that these arguments mean, and this machine can run."""
    if isinstance(device, str) and device.partition(":")[0] == "cuda":
        return "cupy"
    rounded = _matmul_dtype(matmul_dtype)
    of_a_processor = rounded is not None and rounded not in _MATMUL_DTYPES["cupy"]
    if device is not None or threads is not None or of_a_processor:
        return "numba"
    from refimpl.backends.cupy.device import usable

    return "cupy" if usable() else "numba"


def _matmul_dtype(given: Any) -> str | None:
    """None: nothing is rounded."""
    name = None if given is None else dtype_name(given)
    return None if name == "float32" else name


def _compute_dtype(dtype: Any, computes: tuple[str, ...]) -> str:
    wanted = "float32" if dtype is None else dtype_name(dtype)
    return "float32" if wanted in _HALF_TYPES and wanted not in computes else wanted


def _refuse_contradiction(
    backend: Backend, dtype: Any, device: str | None, threads: int | None, matmul_dtype: Any
) -> None:
    """A finished backend is what it is; asking for something else beside it is a mistake."""
    computes = _BACKENDS[backend.name][2] if backend.name in _BACKENDS else ()
    asked = {
        "dtype": (None if dtype is None else _compute_dtype(dtype, computes), backend.dtype.name),
        "device": (_full_name(device), backend.device),
        "threads": (threads, backend.threads),
        "matmul_dtype": (
            None if matmul_dtype is None else _matmul_dtype(matmul_dtype) or "float32",
            backend.matmul_dtype or "float32",
        ),
    }
    for name, (wanted, has) in asked.items():
        if wanted is not None and wanted != has:
            raise BackendError(
                f"the backend that was given has another {name}",
                found=quote(wanted),
                allowed=f"{has}, or the backend by its name",
            )


def _full_name(device: str | None) -> str | None:
    return "cuda:0" if device == "cuda" else device


def dtype_name(dtype: Any) -> str:
    """The name of a dtype given as a string, a NumPy scalar type or a dtype."""
    if isinstance(dtype, str):
        return dtype
    try:
        return np.dtype(dtype).name
    except TypeError as error:
        raise BackendError("not a dtype", found=quote(dtype), allowed='a name such as "float32"') from error


def float_dtype(dtype: Any) -> np.dtype | None:
    """The NumPy dtype that `dtype` names; None for None.  Raises: BackendError for one that is no float type."""
    name = None if dtype is None else dtype_name(dtype)
    if name not in (None, "float16", "bfloat16", "float32", "float64"):
        raise BackendError(
            "not a float type", found=quote(name), allowed="float16, bfloat16, float32, float64"
        )
    return None if name is None else to_dtype(name)


def to_dtype(name: str) -> np.dtype:
    """The NumPy dtype of that name; bfloat16 comes from ml_dtypes."""
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    try:
        return np.dtype(name)
    except TypeError as error:
        raise BackendError("not a dtype", found=quote(name), allowed='a name such as "float32"') from error
