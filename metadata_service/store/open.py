"""Opens the store that the settings name."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from metadata_service.store.contract import DEADLINE, PROGRESS_INTERVAL, Backend
from metadata_service.store.embedded import EmbeddedBackend
from metadata_service.store.embedded_server import default_socket
from metadata_service.store.opened import OpenedStore, open_backend
from runtime.settings import EmbeddedStore, EtcdStore, SettingsError, TlsClient

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


@contextlib.asynccontextmanager
async def open_store(
    settings: EmbeddedStore | EtcdStore,
    federation: str,
    *,
    deadline: float = DEADLINE,
    progress_interval: float = PROGRESS_INTERVAL,
) -> AsyncIterator[OpenedStore]:
    """The federation's store; an empty one gets the current schema. Times in seconds.

    The embedded store's server must be running (embedded_server.serve). Raises SchemaTooNew, SchemaTooOld,
    StoreUnavailable, StoreRefused, and SettingsError where the settings make no sense.
    """
    backend = _backend(settings, federation, deadline, progress_interval)
    try:
        yield await open_backend(backend)
    finally:
        await backend.aclose()


def _backend(
    settings: EmbeddedStore | EtcdStore, federation: str, deadline: float, progress_interval: float
) -> Backend:
    if isinstance(settings, EmbeddedStore):
        return EmbeddedBackend(
            default_socket(Path(settings.path)), deadline=deadline, progress_interval=progress_interval
        )
    # gRPC costs every process that loads it some 20 MB.
    from metadata_service.store.etcd import EtcdBackend
    from metadata_service.store.etcd_channel import EtcdSettings

    tls = settings.tls or TlsClient()
    if not tls.verify_hostname:
        raise SettingsError("store.tls.verify_hostname: etcd's certificate is always verified")
    try:
        return EtcdBackend(
            EtcdSettings(
                endpoints=settings.endpoints,
                prefix=f"/kfed/{federation}/",
                ca=_path(tls.ca),
                cert=_path(tls.cert),
                key=_path(tls.key),
                username=settings.username,
                password=_password(settings),
            ),
            deadline=deadline,
            progress_interval=progress_interval,
        )
    except ValueError as error:
        raise SettingsError(f"store: {error}") from error


def _path(name: str | None) -> Path | None:
    return None if name is None else Path(name)


def _password(settings: EtcdStore) -> Callable[[], str] | None:
    if settings.password_file is not None:
        file = Path(settings.password_file)
        return lambda: file.read_text().rstrip("\r\n")
    if settings.password is not None:
        password = settings.password
        return lambda: password
    return None
