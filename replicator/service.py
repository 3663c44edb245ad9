"""A replicator worker: a process that takes its share of all mirrors' units, and copies."""

from __future__ import annotations

import gc
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import trio

from kafka_client import ClusterClient
from metadata_service.clients import Clients
from metadata_service.member import Member, join
from metadata_service.store.clock import Backoff
from metadata_service.store.contract import StoreUnavailable
from metadata_service.store.open import open_store
from metadata_service.store.opened import OpenedStore
from replicator.finishing import Finishing
from replicator.places import ViewPlaces
from replicator.reporting import Reporting
from replicator.sharing import Sharing
from replicator.worker import Replicator
from runtime import endpoint, logging, process
from runtime.metrics import CONTENT_TYPE, Metrics, labels_of
from runtime.settings import Settings

log = logging.get(__name__)
COLLECT_AFTER = (20_000, 20, 50)  # gc's thresholds: batches on their way are many objects, none of them in cycles

TTL = 6  # seconds: units of a process that was killed go on elsewhere in less than ten


class _Clusters:
    """The member's clients, which change with the clusters' settings."""

    def __init__(self, clients: Clients) -> None:
        self._clients = clients

    def __getitem__(self, cluster: str) -> ClusterClient:
        client = self._clients.get(cluster)
        if client is None:
            raise KeyError(cluster)
        return client


class Service:
    """`run` it: one worker process."""

    def __init__(self, settings: Settings, instance: str, number: int) -> None:
        self.settings = settings
        self.instance = instance
        self.number = number
        self.metrics = Metrics(**labels_of(instance, f"replicator-{number}"))
        self.ready = False
        self.draining = False

    @asynccontextmanager
    async def _joined(self) -> AsyncIterator[Member]:
        """A member of the federation; waits, with pauses, as long as the store is away."""
        backoff = Backoff(0.2, 5.0)
        async with AsyncExitStack() as stack:
            store: OpenedStore | None = None
            while store is None:
                try:
                    store = await stack.enter_async_context(open_store(self.settings.store, self.settings.federation))
                except StoreUnavailable as error:
                    log.warning("waiting for the store", error=str(error))
                    await backoff.pause()
            member = await stack.enter_async_context(
                join(store, instance=self.instance, worker=self.number, role="replicator", ttl=TTL)
            )
            yield member

    async def run(self, endpoint_path: str | None = None) -> None:
        """Until SIGTERM. Units are then free at once: the registration takes its lease, and their claims, with it.

        Raises:
            StoreReplaced: the store is to be opened again.
        """
        async with trio.open_nursery() as nursery:
            stop = await nursery.start(process.watch_signals)
            # What copies ends before the lease that guards it does.
            async with self._joined() as self.member, trio.open_nursery() as parts:
                await self._serve(parts, stop, endpoint_path)
                parts.cancel_scope.cancel()
            nursery.cancel_scope.cancel()

    async def _serve(self, nursery: trio.Nursery, stop: trio.Event, endpoint_path: str | None) -> None:
        member = self.member
        following = member.following
        # `allowed` is asked by links, which begin when there is something to copy.
        self.replicator = Replicator(
            _Clusters(member.clients),
            allowed=lambda: self.sharing.allowed(),
            owner=f"{self.instance}/{self.number}",
            follow_acls=self.settings.replicator.follow_acls,
            places=ViewPlaces(member),
        )
        self.sharing = Sharing(member, self.replicator)
        reporting = Reporting(member, self.replicator, self.sharing)
        for gauge, value in (
            ("kfed_view_revision", lambda: float(member.view.revision)),
            ("kfed_view_age_seconds", following.age),
            ("kfed_store_lag_seconds", following.age),
            ("kfed_store_connected", lambda: float(following.connected)),
            ("kfed_replicator_units", lambda: float(len(self.sharing.mine))),
        ):
            self.metrics.gauge(gauge, value)
        self.metrics.sources.append(self.replicator.samples)
        if endpoint_path is not None:
            paths = {
                "/metrics": lambda: (CONTENT_TYPE.partition("; charset")[0], self.metrics.render()),
                "/status": endpoint.json_of(self.status),
            }
            await nursery.start(partial(endpoint.serve, endpoint_path, paths))
        nursery.start_soon(self.replicator.run)
        nursery.start_soon(self.sharing.run)
        nursery.start_soon(Finishing(member, self.replicator, self.sharing).run)
        nursery.start_soon(reporting.run)
        gc.collect()
        gc.freeze()
        gc.set_threshold(*COLLECT_AFTER)
        self.ready = True
        process.say_ready()
        log.info("ready", pid=os.getpid(), worker=self.number)
        await stop.wait()
        self.draining = True

    def status(self) -> dict[str, object]:
        """For the parent's status pages."""
        return {
            "pid": os.getpid(),
            "ready": self.ready,
            "draining": self.draining,
            "revision": self.member.view.revision,
            "acknowledged": self.member.registration.acknowledged,
            "view_age": self.member.following.age(),
            "mirrors": len(self.replicator.mirrors),
            "units": len(self.sharing.mine),
        }
