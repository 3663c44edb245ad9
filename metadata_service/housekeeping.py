"""The controller's duties about clusters and topics. Each may be done at any time, any number of times."""

from __future__ import annotations

import time

import msgspec
import trio

from metadata_service import adoption
from metadata_service.addresses import allocate, numberable
from metadata_service.asking import topics_by_name
from metadata_service.failures import StubRefused, Undecided
from metadata_service.member import Member
from metadata_service.models import (
    ADDRESSES,
    FEATURES,
    HEALTH,
    HISTORY,
    AddressBook,
    FeaturesRecord,
    HealthRecord,
    TopicRecord,
    is_internal,
)
from metadata_service.records import Contended, read, settle
from metadata_service.store.contract import MAX_OPERATIONS, Delete, Unchanged
from metadata_service.stubs import make_stub, serves
from metadata_service.topics import Topics
from metadata_service.view import ClusterView, View
from runtime import logging
from runtime.settings import Settings, broker_ports

log = logging.get(__name__)

NAMES_AT_ONCE = 500
MISSING_FOR = 3.0  # seconds before the brokers are asked whether a topic is really gone
REFUSED_AGAIN = 60.0  # seconds until a stub that was refused is tried again
HISTORY_MAX = 10_000


class Housekeeping:
    """`guard` holds as long as this process is the active controller."""

    def __init__(self, member: Member, settings: Settings, guard: Unchanged) -> None:
        self._member = member
        self._settings = settings
        self._guard = guard
        self._topics = Topics(member.store, member.following, member.clients, member.discovery, (guard,))
        self._missing_since: dict[str, float] = {}
        self._refused: dict[tuple[str, str], float] = {}
        self._left_out: dict[str, tuple[str, ...]] = {}

    # -- topics ---------------------------------------------------------------------------------------------------

    async def topics(self) -> None:
        """Adopts what appeared, forgets what is gone, follows partition counts, finishes and drops stubs."""
        names = sorted(adoption.topics_to_consider(self._member.view))
        for start in range(0, len(names), NAMES_AT_ONCE):
            await self._topics.adopt(names[start : start + NAMES_AT_ONCE], wait=False)
        await self._forget_missing()
        await self._follow_counts()
        await self._stubs()

    async def _forget_missing(self) -> None:
        view = self._member.view
        now = trio.current_time()
        missing = {record.name: record for record in adoption.missing(view) if record.epoch == 0}
        self._missing_since = {name: self._missing_since.get(name, now) for name in missing}
        due: dict[str, list[TopicRecord]] = {}
        for name, since in self._missing_since.items():
            if now - since >= MISSING_FOR:
                due.setdefault(missing[name].cluster, []).append(missing[name])
        for cluster, records in due.items():
            gone = await self._gone(view, cluster, records)
            for record in gone:
                log.warning("a topic was deleted on its cluster", topic=record.name, cluster=cluster)
            await self._topics.deleted({record.name for record in gone})

    async def _gone(self, view: View, cluster: str, records: list[TopicRecord]) -> list[TopicRecord]:
        """Those that every broker of the cluster, asked now, does not know."""
        client = self._member.clients.get(cluster)
        if client is None:
            return []
        left = {record.name: record for record in records[:NAMES_AT_ONCE]}
        for broker in view.clusters[cluster].snapshot.brokers:
            try:
                for name in await topics_by_name(client, left, broker=broker):
                    del left[name]
            except Undecided:
                return []  # silence is no evidence
        return list(left.values())

    async def _follow_counts(self) -> None:
        view = self._member.view
        grown = {
            name
            for name, served in view.topics.items()
            if not is_internal(name) and adoption.physical_partitions(view, served.record) > served.record.partitions
        }
        if grown:
            await self._topics.expanded(grown, wait=False)

    async def _stubs(self) -> None:
        view = self._member.view
        leaving = {one.topic for one in view.ejected.values() if one.record is not None}
        for (cluster, name), stub in [*view.stubs.items()]:
            home = view.clusters.get(cluster)
            client = self._member.clients.get(cluster)
            if home is None or client is None or not home.snapshot.reachable:
                continue
            topic = view.topics.get(name)
            if topic is None:
                if name in leaving:
                    continue  # positions on it are still to be read
                await self._topics.drop_stubs(name)
                continue
            if topic.cluster == cluster:
                continue
            here = home.snapshot.topics.get(name)
            complete = here is not None and here.id.hex() == stub.topic_id
            if complete and serves(stub, topic.record):
                continue
            if self._refused.get((cluster, name), 0.0) > trio.current_time():
                continue
            try:
                await make_stub(self._member.store, client, stub, topic.record)
            except (StubRefused, Undecided) as error:
                self._refused[cluster, name] = trio.current_time() + REFUSED_AGAIN
                log.warning("a stub is not as it should be", error=str(error))
            self._member.discovery.refresh(cluster)

    # -- clusters -------------------------------------------------------------------------------------------------

    async def addresses(self) -> None:
        """A port for every broker seen, on every listener that has a port per broker."""
        view = self._member.view
        brokers = [
            (cluster.name, broker)
            for cluster in sorted(view.clusters.values(), key=lambda one: one.record.index)
            if cluster.record.state == "active"
            for broker in sorted(cluster.snapshot.brokers)
        ]
        for listener in self._settings.proxy.listeners:
            if listener.broker_ports is None:
                continue
            ports = broker_ports(self._settings, listener)
            left_out = allocate(view.addresses.get(listener.name, AddressBook()), ports, brokers)
            if left_out.left_out != self._left_out.get(listener.name, ()):
                self._left_out[listener.name] = left_out.left_out
                log.error("no ports left", listener=listener.name, brokers=left_out.left_out)
            if left_out.book != view.addresses.get(listener.name, AddressBook()):
                await settle(
                    self._member.store,
                    ADDRESSES + listener.name,
                    AddressBook,
                    lambda now, ports=ports: allocate(now or AddressBook(), ports, brokers).book,  # type: ignore[misc]
                    conditions=(self._guard,),
                )

    async def features(self) -> None:
        """The finalized features every active cluster has, at the lowest level, with an epoch that only grows.

        Only once every active cluster has been seen: a higher level than one of them has must never be told.
        """
        view = self._member.view
        active = [one for one in view.clusters.values() if one.record.state == "active"]
        if not active or any(not one.snapshot.cluster_id for one in active):
            return
        levels = lowest(active)
        if levels != view.features.levels or view.features.epoch == 0:
            await settle(
                self._member.store,
                FEATURES,
                FeaturesRecord,
                lambda now: next_features(now, levels),
                conditions=(self._guard,),
            )

    async def health(self) -> None:
        """Records every cluster's state, and since when."""
        for name, cluster in self._member.view.clusters.items():
            if cluster.record.state != "active":
                continue
            before = await read(self._member.store, HEALTH + name, HealthRecord)
            now = self._health_of(cluster, before)
            if now is not None and now != before:
                if before is None or now.state != before.state:
                    log.info("a cluster's state", cluster=name, state=now.state, reason=now.reason)
                await settle(
                    self._member.store,
                    HEALTH + name,
                    HealthRecord,
                    lambda _, now=now: now,  # type: ignore[misc]
                    conditions=(self._guard,),
                )

    def _health_of(self, cluster: ClusterView, before: HealthRecord | None) -> HealthRecord | None:
        snapshot = cluster.snapshot
        if not snapshot.reachable and not snapshot.reason:
            return None  # not looked at yet
        client = self._member.clients.get(cluster.name)
        unreachable = dict(client.health.unreachable) if client is not None else {}
        found = HealthRecord(
            state="up" if snapshot.reachable else "refused" if snapshot.reason.startswith("refused") else "away",
            since=time.time(),
            reason=snapshot.reason,
            brokers=tuple(sorted(snapshot.brokers)),
            unreachable={one: why for one, why in unreachable.items() if numberable(one)},
            too_large=snapshot.too_large,
        )
        if before is not None and before.state == found.state:
            return msgspec.structs.replace(found, since=before.since)
        return found

    async def history(self) -> None:
        """Keeps the newest HISTORY_MAX changes."""
        found = await self._member.store.range(HISTORY)
        old = [one.key for one in found.items[: max(0, len(found.items) - HISTORY_MAX)]]
        for start in range(0, len(old), MAX_OPERATIONS):
            part = [Delete(key) for key in old[start : start + MAX_OPERATIONS]]
            if not (await self._member.store.commit((self._guard,), part)).succeeded:
                raise Contended("not the active controller any longer")


def lowest(clusters: list[ClusterView]) -> dict[str, int]:
    """The finalized features all of them have, each at its lowest level."""
    shared = set.intersection(*(set(one.snapshot.finalized) for one in clusters))
    return {name: min(one.snapshot.finalized[name] for one in clusters) for name in sorted(shared)}


def next_features(now: FeaturesRecord | None, levels: dict[str, int]) -> FeaturesRecord:
    """The record with these levels; its epoch is higher where they differ (clients keep those of the highest)."""
    if now is None or now.epoch == 0:
        return FeaturesRecord(epoch=1, levels=levels)
    return now if now.levels == levels else FeaturesRecord(epoch=now.epoch + 1, levels=levels)
