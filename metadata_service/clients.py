"""Clients of the clusters, with the service's own credentials, one a cluster; they follow the cluster records."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType

from kafka_client import ClusterClient, Sasl, Secret, SecretFile, SecretValue, Security, Tls
from metadata_service.failures import Undecided
from metadata_service.models import ClusterRecord
from runtime.settings import Cluster
from runtime.settings import Sasl as SaslSettings


def _secret(value: str | None, path: str | None) -> Secret | None:
    if path is not None:
        return SecretFile(path)
    return None if value is None else SecretValue(value)


def _sasl(given: SaslSettings) -> Sasl:
    return Sasl(
        given.mechanism,
        given.username,
        _secret(given.password, given.password_file),
        _secret(None, given.token_file),
    )


def security_of(settings: Cluster) -> Security:
    """TLS and SASL of a cluster's settings, as the client takes them."""
    tls = settings.tls
    return Security(
        None if tls is None else Tls(tls.ca, tls.cert, tls.key, tls.verify_hostname),
        None if settings.sasl is None else _sasl(settings.sasl),
    )


class Clients:
    """A client per active cluster. `client_id` shows in the brokers' logs and quotas."""

    def __init__(self, client_id: str) -> None:
        self._client_id = client_id
        self._clients: dict[str, ClusterClient] = {}
        self._settings: dict[str, Cluster] = {}

    def follow(self, records: Mapping[str, ClusterRecord]) -> None:
        """Open and close clients so that they fit the records; a changed setting makes a new client."""
        active = {name: one.settings for name, one in records.items() if one.state == "active"}
        for name in [name for name in self._clients if self._settings[name] != active.get(name)]:
            self._clients.pop(name).close()
            del self._settings[name]
        for name, settings in active.items():
            if name not in self._clients:
                self._clients[name] = ClusterClient(name, settings.bootstrap, security_of(settings), self._client_id)
                self._settings[name] = settings

    def get(self, cluster: str) -> ClusterClient | None:
        return self._clients.get(cluster)

    def active(self, cluster: str) -> ClusterClient:
        """The client of a cluster that must be asked. Raises Undecided: it is not an active one."""
        client = self._clients.get(cluster)
        if client is None:
            raise Undecided(cluster, "not an active cluster")
        return client

    def close(self) -> None:
        for one in self._clients.values():
            one.close()
        self._clients.clear()

    def __enter__(self) -> Clients:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
