"""Fixtures that every room uses."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

#: A test that takes `backend` runs once for each; one that needs a GPU is marked so.
BACKENDS = ["numpy", "numba"]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


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
