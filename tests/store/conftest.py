"""One etcd for all tests of the store, a prefix for each; an embedded server for each."""

from __future__ import annotations

import os
import uuid
from typing import TYPE_CHECKING

import pytest

from tests.store.servers import EmbeddedServer, EtcdServer, Server, opened
from tools.local_cluster import etcd as local_etcd

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from metadata_service.store.opened import OpenedStore


@pytest.fixture(scope="session")
def etcd_binary() -> Iterator[None]:
    """KFED_TEST_ETCD names another etcd binary than the packaged one."""
    with pytest.MonkeyPatch.context() as patch:
        if (path := os.environ.get("KFED_TEST_ETCD")) is not None:
            packaged = local_etcd.program
            patch.setattr(local_etcd, "program", lambda name: path if name == "etcd" else packaged(name))
        yield


@pytest.fixture(scope="session")
def shared_etcd(etcd_binary: None) -> Iterator[local_etcd.Etcd]:
    with local_etcd.Etcd() as etcd:
        yield etcd


@pytest.fixture
def etcd_server(shared_etcd: local_etcd.Etcd) -> Iterator[EtcdServer]:
    shared_etcd.mend()
    yield EtcdServer(shared_etcd, f"test-{uuid.uuid4().hex[:8]}")
    shared_etcd.mend()


@pytest.fixture
def embedded_server(tmp_path: Path) -> Iterator[EmbeddedServer]:
    server = EmbeddedServer(tmp_path / "state")
    server.start()
    yield server
    server.kill()


@pytest.fixture(params=["embedded", "etcd"])
def server(request: pytest.FixtureRequest) -> Server:
    """A running server with an empty store, of each kind in turn."""
    server: Server = request.getfixturevalue(f"{request.param}_server")
    return server


@pytest.fixture
async def store(server: Server) -> AsyncIterator[OpenedStore]:
    async with opened(server) as store:
        yield store
