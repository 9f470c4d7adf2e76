"""Fixtures of the backends."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cuda_on_cpu.stand_in import cuda_on_cpu


@pytest.fixture(scope="module")
def _pretended_gpu() -> Iterator[Any]:
    with cuda_on_cpu() as gpu:
        yield gpu


@pytest.fixture
def pretended_gpu(_pretended_gpu: Any) -> Iterator[Any]:
    """A GPU whose kernels run on the processor (see tests/cuda_on_cpu), as its defaults have it when a test begins."""
    gc.collect()  # what earlier tests left is not to be given back in the middle of this one
    before = (_pretended_gpu.devices, _pretended_gpu.memory, _pretended_gpu.order)
    yield _pretended_gpu
    _pretended_gpu.devices, _pretended_gpu.memory, _pretended_gpu.order = before
    _pretended_gpu.current_device = 0
