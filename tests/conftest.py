"""Fixtures that every room uses."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import pytest

#: A test that takes `backend` runs once for each; one that needs a GPU is marked so.
BACKENDS = ["numpy", "numba", pytest.param("cupy", marks=pytest.mark.gpu)]

#: What the caller says of the GPUs; tests that are not marked `gpu` see none, so that "auto" means the processor.
_NO_GPU = "needs a GPU"
_VISIBLE = os.environ.get("CUDA_VISIBLE_DEVICES")


def pytest_configure(config: pytest.Config) -> None:
    """REFIMPL_CUDA_ON_CPU=1 runs the kernels of the cupy backend on the processor (tests/cuda_on_cpu), slowly."""
    if os.environ.get("REFIMPL_CUDA_ON_CPU") == "1":
        from tests.cuda_on_cpu.stand_in import cuda_on_cpu

        installed = ExitStack()
        installed.enter_context(cuda_on_cpu())
        config.add_cleanup(installed.close)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    if item.get_closest_marker("gpu") is None:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif _VISIBLE is None:
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    else:
        os.environ["CUDA_VISIBLE_DEVICES"] = _VISIBLE
    return (yield)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return usable_backend(request.param)


def usable_backend(name: str) -> str:
    """`name`; the test is skipped where that backend cannot run."""
    if name == "cupy" and (reason := _why_no_gpu()) is not None:
        pytest.skip(f"{_NO_GPU}: {reason}")
    return name


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """All that were skipped for want of a GPU are one line of the summary, with their number."""
    report: Any = yield
    if report.skipped and isinstance(report.longrepr, tuple) and _NO_GPU in report.longrepr[2]:
        report.longrepr = (__file__, usable_backend.__code__.co_firstlineno, report.longrepr[2])
    return report


@cache
def _why_no_gpu() -> str | None:
    """Why the cupy backend cannot run here; None where it can."""
    from refimpl.backends import get_backend
    from refimpl.errors import BackendError

    try:
        get_backend("cupy")
    except BackendError as error:
        return error.what
    return None


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The large test data: vocabularies and texts that are not part of the repository."""
    folder = os.environ.get("REFIMPL_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("needs the large test data; set REFIMPL_DATA to its folder")
    return Path(folder)


@pytest.fixture(scope="session")
def embedded_model() -> Path:
    """The folder of the model that ships inside the package."""
    from refimpl import embedded_model_path

    return embedded_model_path()
