"""A process that takes part: its view, its clients of the clusters, its registration, and the decisions it may make.

async with join(store, instance="a", worker=0, role="proxy") as member:
    member.following.view            # the newest view
    await member.federation.group_home("g")
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal

import trio

from metadata_service.clients import Clients
from metadata_service.discovery import INTERVAL, Discovery
from metadata_service.federation import WorkerFederation
from metadata_service.following import Following
from metadata_service.identity import identify
from metadata_service.models import ClusterRecord, WorkerRecord
from metadata_service.registration import TTL, Registration
from metadata_service.store.clock import Backoff
from metadata_service.store.contract import Store, StoreError
from metadata_service.view import View
from runtime.version import VERSION


@dataclass(frozen=True)
class Member:
    """What a process has after it has joined; all of it runs until the context ends."""

    store: Store
    clients: Clients
    following: Following
    discovery: Discovery
    federation: WorkerFederation
    registration: Registration

    @property
    def view(self) -> View:
        return self.following.view

    async def settled(self, timeout: float = 10.0) -> View:
        """The view once every active cluster was looked at, or has failed to answer, for the first time; the view as
        it is after `timeout` seconds (a cluster that hangs must not keep a worker from serving the others)."""
        with trio.move_on_after(timeout):
            await self.following.wait_for(_looked_at, timeout)
        return self.following.view


def _looked_at(view: View) -> bool:
    """Every active cluster has a snapshot, or a reason for having none."""
    active = [one for one in view.clusters.values() if one.record.state == "active"]
    return bool(active) and all(one.snapshot.reachable or one.snapshot.reason for one in active)


async def _note_addresses(following: Following, registration: Registration) -> None:
    """Keeps the registration's addresses: brokers tell by them who comes through a proxy."""
    known: dict[str, str] = {}
    backoff = Backoff(1.0, 60.0)
    while True:
        view = following.view
        for cluster in view.clusters.values():
            for broker in cluster.snapshot.brokers.values():
                if broker.host not in known and (address := await _towards(broker.host, broker.port)) is not None:
                    known[broker.host] = address
        addresses = tuple(sorted(set(known.values())))
        try:
            if addresses != registration.record.addresses:
                await registration.reached_from(addresses)
            backoff.reset()
        except StoreError:
            await backoff.pause()
            continue
        await following.changed_or(view, 60.0)
        await trio.sleep(1.0)


async def _towards(host: str, port: int) -> str | None:
    """The local address of connections to `host` (nothing is sent), None where there is no way to it."""
    try:
        with trio.move_on_after(2.0):
            family, kind, _, _, address = (await trio.socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM))[0]
            with trio.socket.socket(family, kind) as probe:
                await probe.connect(address)
                return str(probe.getsockname()[0])
    except OSError:
        pass
    return None


@asynccontextmanager
async def join(
    store: Store,
    *,
    instance: str,
    worker: int,
    role: Literal["proxy", "controller", "replicator"],
    interval: float = INTERVAL,
    ttl: int = TTL,
    connections: Callable[[], int] = lambda: 0,
    in_use: Callable[[], int | None] = lambda: None,
    auto_create_topics: bool = False,
    registered: bool = True,
) -> AsyncIterator[Member]:
    """Follow, discover and register; ready when the view is loaded and the process is registered.

    `interval`: seconds between two looks at a cluster; `ttl`: of the lease, seconds; `connections`, `in_use`: see
    Registration. Not `registered`: it sees everything, and nobody need wait for what it has acknowledged. Waits for
    the store as long as it is away.
    """
    following = Following(store)

    async def known(record: ClusterRecord, kafka_id: str) -> None:
        await identify(store, record, kafka_id)

    record = WorkerRecord(
        instance=instance,
        worker=worker,
        role=role,
        pid=os.getpid(),
        host=socket.gethostname(),
        started=time.time(),
        version=VERSION,
    )
    name = f"kfed-{role}-{instance}-{worker}" if registered else f"kfed-admin-{instance}"
    with Clients(name) as clients:
        discovery = Discovery(clients, following.snapshot_changed, known, interval=interval)
        registration = Registration(store, following, record, ttl=ttl, connections=connections, in_use=in_use)
        async with trio.open_nursery() as nursery:
            await nursery.start(following.run)
            await nursery.start(discovery.run)
            following.on_clusters(discovery.follow)
            following.on_behind(discovery.refresh)
            if registered:
                await nursery.start(registration.run)
                nursery.start_soon(_note_addresses, following, registration)
            federation = WorkerFederation(store, following, clients, discovery, auto_create_topics=auto_create_topics)
            yield Member(store, clients, following, discovery, federation, registration)
            nursery.cancel_scope.cancel()
