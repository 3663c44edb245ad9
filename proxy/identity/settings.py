"""What the identity rules need of the clusters, always as the view has it now."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from kafka_client import ClusterClient
from metadata_service.clients import Clients
from metadata_service.view import View
from proxy.identity.acl_cache import ClusterIdentity


def _active(view: View) -> list[str]:
    return [name for name, one in view.clusters.items() if one.record.state == "active"]


class ServiceClients(Mapping[str, ClusterClient]):
    """The clients with the service's own credentials, by cluster."""

    def __init__(self, clients: Clients, view: Callable[[], View]) -> None:
        self._clients = clients
        self._view = view

    def __getitem__(self, cluster: str) -> ClusterClient:
        client = self._clients.get(cluster)
        if client is None:
            raise KeyError(cluster)
        return client

    def __iter__(self) -> Iterator[str]:
        return iter([name for name in _active(self._view()) if self._clients.get(name) is not None])

    def __len__(self) -> int:
        return sum(1 for _ in self)


class IdentitySettings(Mapping[str, ClusterIdentity]):
    """What the operator says about each cluster's authorizer."""

    def __init__(self, view: Callable[[], View]) -> None:
        self._view = view

    def __getitem__(self, cluster: str) -> ClusterIdentity:
        settings = self._view().clusters[cluster].record.settings
        return ClusterIdentity(settings.authorizer, frozenset(settings.super_users), settings.allow_everyone)

    def __iter__(self) -> Iterator[str]:
        return iter(_active(self._view()))

    def __len__(self) -> int:
        return len(_active(self._view()))
