"""Fixtures of the tests of our own tools."""

from __future__ import annotations

import pytest

from tests.cuda_on_cpu.stand_in import cuda_on_cpu


@pytest.fixture
def gpu():
    with cuda_on_cpu() as gpu:
        yield gpu


@pytest.fixture
def cp(gpu):
    import cupy

    return cupy
