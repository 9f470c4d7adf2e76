"""A Hub on this machine, and processes that ask it."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.refimpl.hub_child import Child
from tests.refimpl.hub_server import HubServer


@pytest.fixture(scope="session")
def _running_hub() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


@pytest.fixture
def hub_server(_running_hub: HubServer) -> HubServer:
    """A Hub without repositories, faults and memories."""
    _running_hub.forget()
    _running_hub.repositories.clear()
    return _running_hub


@pytest.fixture(scope="session")
def hub_child(_running_hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Child]:
    """A process whose Hub is `hub_server`; its cache is shared by all tests that name no other."""
    with Child(_running_hub.url, tmp_path_factory.mktemp("hub_home")) as child:
        yield child


@pytest.fixture(scope="session")
def offline_child(_running_hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Child]:
    """A process that is told by its environment not to ask."""
    with Child(_running_hub.url, tmp_path_factory.mktemp("hub_home"), HF_HUB_OFFLINE="1") as child:
        yield child


@pytest.fixture(scope="session")
def lonely_child(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Child]:
    """A process whose Hub cannot be reached: a port that is bound, and on which nobody listens."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with Child(url, tmp_path_factory.mktemp("hub_home")) as child:
            yield child
