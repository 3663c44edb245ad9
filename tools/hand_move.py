"""Topics moved to another cluster by hand, with everything standing still: a mirror, then the records of a switch.

For tests and measurements of what comes after a move; `kfed migrate` does it under load.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import trio
from confluent_kafka.admin import AdminClient, NewTopic

from kafka_client import ClusterClient
from kafka_client.topics import LATEST, describe, offsets
from metadata_service.models import PlacementEpoch, StubRecord, TopicRecord, stub_key, topic_key
from metadata_service.operations.switching import timeline
from metadata_service.records import read, settle
from metadata_service.store.contract import Store
from metadata_service.store.open import open_store
from offset_sync.table import Table
from offset_sync.tables import SHIP, Following
from proxy.moving.tables import shown
from replicator.link import Link, units
from replicator.states import Condition
from runtime.settings import EmbeddedStore
from tools.local_cluster import Cluster
from tools.local_federation import Federation

PATIENCE = 120.0


@asynccontextmanager
async def store_of(federation: Federation) -> AsyncIterator[Store]:
    settings = EmbeddedStore(path=str(Path(federation.settings["store"]["path"])))
    async with open_store(settings, federation.settings["federation"]) as store:
        yield store


async def table_of(record: TopicRecord, client: ClusterClient, number: int) -> Table:
    """That of the cluster that serves it now."""
    if not record.epoch:
        made = Table()
        made.open(0, 0)
        return made
    kept = (await Following(client).follow(record.name, [number]))[number, SHIP]
    found = shown(kept, record.timeline[-1], number)
    assert found is not None, f"{record.name}-{number} has no table on {client.name}"
    return found


async def move(federation: Federation, source: Cluster, target: Cluster, topic: str) -> TopicRecord:
    """Nobody may write meanwhile. What the target held of the topic is begun anew. The new record, on all workers."""
    async with (
        store_of(federation) as store,
        ClusterClient(source.name, source.addresses()) as there,
        ClusterClient(target.name, target.addresses()) as here,
    ):
        record = await read(store, topic_key(topic), TopicRecord)
        assert record is not None and record.cluster == source.name
        numbers = range(record.partitions)
        if topic not in await describe(here, [topic]):
            await trio.to_thread.run_sync(_create, target, topic, record.partitions)
        tables = {number: await table_of(record, there, number) for number in numbers}
        ends = await offsets(there, topic, numbers, LATEST)
        await _copy(there, here, topic, tables, ends, record.epoch + 1)
        opened = await offsets(here, topic, numbers, LATEST)
        info = (await describe(here, [topic]))[topic]
        leaders: dict[int, tuple[tuple[int, int], ...]] = {
            number: ((one.leader_epoch, record.timeline[-1].first.get(number, 0)),)
            for number, one in (await describe(there, [topic]))[topic].partitions.items()
        }
        cut = {number: tables[number].logical(end) or 0 for number, end in ends.items()}

        def change(found: TopicRecord | None) -> TopicRecord:
            # The copy may have been taken for somebody else's topic meanwhile.
            assert found is not None and found.timeline == record.timeline
            moved = timeline(found, target.name, info.topic.id.hex(), cut, opened, leaders)
            return msgspec.structs.replace(moved, conflict=())

        now: PlacementEpoch = record.timeline[-1]
        stub = StubRecord(
            topic=topic,
            cluster=source.name,
            topic_id=now.topic_id,
            partitions=record.partitions,
            borrowed=True,
            stands_for=record.id,
        )
        await settle(store, stub_key(source.name, topic), StubRecord, lambda _: stub)
        written = await settle(store, topic_key(topic), TopicRecord, change)
        await _known(federation, written.revision)
        assert written.value is not None
        return written.value


def _create(cluster: Cluster, topic: str, partitions: int) -> None:
    admin = AdminClient(cluster.librdkafka())
    admin.create_topics([NewTopic(topic, partitions)])[topic].result(PATIENCE)


async def _copy(
    there: ClusterClient, here: ClusterClient, topic: str, tables: dict[int, Table], ends: dict[int, int], number: int
) -> None:
    link = Link(there, here, source_table=lambda _, partition: tables[partition])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.run)
        for unit in units(topic, list(ends), "ship", number):
            await link.assign(unit)
        deadline = trio.current_time() + PATIENCE
        while not all(
            (one := link.status.get((topic, partition))) is not None
            and one.position >= end
            and one.condition is Condition.CAUGHT_UP
            for partition, end in ends.items()
        ):
            assert trio.current_time() < deadline, link.status
            await trio.sleep(0.02)
        following = Following(here)
        kept = await following.follow(topic, ends)
        last = await offsets(here, topic, ends, LATEST)
        while not all(one.covered >= last[partition] for (partition, _), one in kept.items()):
            assert trio.current_time() < deadline, "no last checkpoint"
            await trio.sleep(0.05)
            await following.refresh()
        nursery.cancel_scope.cancel()


async def _known(federation: Federation, revision: int) -> None:
    with trio.fail_after(PATIENCE):
        while True:
            found = await trio.to_thread.run_sync(federation.ask, "/api/v1/proxies")
            if all((one["acknowledged"] or 0) >= revision for one in found["proxies"]):
                return
            await trio.sleep(0.05)


__all__ = ["move", "store_of", "table_of"]
