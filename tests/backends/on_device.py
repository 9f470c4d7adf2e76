"""Where the kernels of the cupy backend run in tests: on the processor everywhere, and on a GPU where there is one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from tests.conftest import usable_backend
from tests.cuda_on_cpu.stand_in import cuda_on_cpu

#: For a fixture of the scope of a module that gives `kernels(request.param)`.
PLACES = ["on the CPU", pytest.param("on a GPU", marks=pytest.mark.gpu)]


@contextmanager
def kernels(place: str, **settings: Any) -> Iterator[SimpleNamespace]:
    """`cupy` and the modules that launch kernels, of that place, and `gpu`: what is pretended (None on a GPU)."""
    if place == "on a GPU":
        usable_backend("cupy")
        yield _modules(None)
    else:
        with cuda_on_cpu(**settings) as gpu:
            yield _modules(gpu)


def _modules(gpu: Any) -> SimpleNamespace:
    import cupy

    from refimpl.backends.cupy import attention, elementwise, modules, products

    return SimpleNamespace(
        cupy=cupy, attention=attention, elementwise=elementwise, modules=modules, products=products, gpu=gpu
    )
