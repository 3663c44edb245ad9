"""The two kinds of store server, real ones, under one set of handles."""

from __future__ import annotations

import contextlib
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from metadata_service.store.embedded import EmbeddedBackend
from metadata_service.store.embedded_server import default_socket
from metadata_service.store.etcd import EtcdBackend
from metadata_service.store.etcd_channel import EtcdSettings
from metadata_service.store.opened import SCHEMA, OpenedStore, open_backend
from tools.local_cluster.process import Daemon

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tools.local_cluster.etcd import Etcd

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 20.0


class Server(Protocol):
    """A server that can be hurt. `opened` gives a client of its own each time, all on the same store."""

    kind: str

    def start(self) -> None: ...

    def kill(self) -> None: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def backend(self, *, deadline: float = 5.0, progress_interval: float = 0.1) -> EmbeddedBackend | EtcdBackend: ...


class EmbeddedServer:
    kind = "embedded"

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.socket = default_socket(directory)
        argv = [sys.executable, "-W", "error", "-m", "metadata_service.store.embedded_server", str(directory)]
        self.daemon = Daemon(argv, log=directory.with_suffix(".log"), cwd=ROOT)

    def start(self) -> None:
        self.daemon.start()
        deadline = time.monotonic() + START_SECONDS
        while not self._listens():
            if not self.daemon.running or time.monotonic() > deadline:
                raise RuntimeError(f"the server did not start:\n{self.daemon.last_words()}")
            time.sleep(0.02)

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.socket)) == 0

    def kill(self) -> None:
        self.daemon.kill()

    def pause(self) -> None:
        self.daemon.pause()

    def resume(self) -> None:
        self.daemon.resume()

    def backend(self, *, deadline: float = 5.0, progress_interval: float = 0.1) -> EmbeddedBackend:
        return EmbeddedBackend(self.socket, deadline=deadline, progress_interval=progress_interval)


class EtcdServer:
    kind = "etcd"

    def __init__(self, etcd: Etcd, federation: str) -> None:
        self.etcd = etcd
        self.prefix = f"/kfed/{federation}/"

    def start(self) -> None:
        self.etcd.start()

    def kill(self) -> None:
        self.etcd.kill()

    def pause(self) -> None:
        self.etcd.pause()

    def resume(self) -> None:
        self.etcd.resume()

    def backend(self, *, deadline: float = 5.0, progress_interval: float = 0.1) -> EtcdBackend:
        settings = EtcdSettings(endpoints=(self.etcd.endpoint,), prefix=self.prefix)
        return EtcdBackend(settings, deadline=deadline, progress_interval=progress_interval)


@contextlib.asynccontextmanager
async def opened(
    server: Server, *, deadline: float = 5.0, progress_interval: float = 0.1, release: int = SCHEMA
) -> AsyncIterator[OpenedStore]:
    backend = server.backend(deadline=deadline, progress_interval=progress_interval)
    try:
        yield await open_backend(backend, release=release)
    finally:
        await backend.aclose()
