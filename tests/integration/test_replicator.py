"""A whole replicator: targets made to fit and followed, several mirrors, units given and taken away."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from kafka_client import ClusterClient
from kafka_client.topics import describe
from replicator.prepare import CREATE_PARTITIONS, alter, configs
from replicator.states import Condition
from replicator.worker import Mirror, Replicator
from tests.fixtures.mirrors import create, log_of
from tests.fixtures.names import Names
from tests.integration.test_mirror_cases import at_least, batch, until, write
from tools.local_cluster import Cluster


@asynccontextmanager
async def replicating(*clusters: Cluster) -> AsyncIterator[tuple[Replicator, list[ClusterClient]]]:
    opened = [ClusterClient(one.name, one.addresses()) for one in clusters]
    replicator = Replicator({one.name: one for one in opened})
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(replicator.run)
            yield replicator, opened
            nursery.cancel_scope.cancel()
    finally:
        for one in opened:
            one.close()


async def setting(client: ClusterClient, topic: str, name: str, value: str) -> None:
    """Until the broker shows the value: a change is in its metadata a moment after it was accepted."""
    deadline = trio.current_time() + 10
    while True:
        if (await configs(client, topic)).values[name] == value:
            return
        assert trio.current_time() < deadline
        await trio.sleep(0.05)


async def test_a_target_is_made_grows_and_follows(east: Cluster, west: Cluster, names: Names) -> None:
    topic = names.topic("grown")
    await create(east, topic, 2, retention_ms="3600000", max_message_bytes="2000000")
    async with replicating(east, west) as (replicator, (there, here)):
        await write(there, topic, batch(b"1"))
        mirror = Mirror(topic, "east", "west")
        progress = await replicator.add(mirror)
        assert (progress.problems, progress.error, progress.partitions) == ((), "", 2)
        made = await configs(here, topic)
        assert made.values["retention.ms"] == "3600000" and made.values["max.message.bytes"] == "2000000"
        assert made.values["message.timestamp.after.max.ms"] == str((1 << 63) - 1)
        assert [one.value for one in await at_least(here, topic, 0, 1)] == [b"1"]

        grown = {"topics": [{"name": topic, "count": 40, "assignments": None}], "timeout_ms": 5000}
        assert (await there.call(CREATE_PARTITIONS, grown))["results"][0]["error_code"] == 0
        await alter(there, topic, {"retention.ms": "7200000"})
        replicator.again()
        await until(lambda: progress.partitions == 40 and len(progress.running) == 2, "not grown")
        await write(there, topic, batch(b"39"), partition=39)
        assert [one.value for one in await at_least(here, topic, 39, 1)] == [b"39"]
        assert len((await describe(here, [topic]))[topic].partitions) == 40
        await until(lambda: progress.altered == {"retention.ms": "7200000"}, "not followed")
        await setting(here, topic, "retention.ms", "7200000")

        def names_of() -> set[str]:
            samples = replicator.samples()
            return {labels[-1] for name, labels, _ in samples if name.endswith("condition") and labels[3] == "39"}

        await until(lambda: names_of() == {Condition.CAUGHT_UP}, "no samples")
        replicator.remove(mirror)
        await write(there, topic, batch(b"after"))
        await replicator.add(mirror, owns=lambda number: number == 1)
        await until(lambda: set(progress.running) <= {0, 1}, "units")
        await write(there, topic, batch(b"40"), partition=39)
        await at_least(here, topic, 39, 2)
        assert [one.value for one in await log_of(here, topic, 0)] == [b"1"]  # nobody owns its unit
        await replicator.add(mirror)
        assert [one.value for one in await at_least(here, topic, 0, 2)] == [b"1", b"after"]


async def test_a_target_that_would_change_records_is_refused(east: Cluster, west: Cluster, names: Names) -> None:
    topic = names.topic("unfit")
    await create(east, topic, 1)
    await create(west, topic, 2, message_timestamp_type="LogAppendTime")
    async with replicating(east, west) as (replicator, (there, here)):
        await write(there, topic, batch(b"1"))
        progress = await replicator.add(Mirror(topic, "east", "west"))
        assert {one.setting for one in progress.problems} >= {"message.timestamp.type", "partitions"}
        assert not progress.running
        missing = await replicator.add(Mirror(names.topic("missing"), "east", "west"))
        assert "UNKNOWN_TOPIC_OR_PARTITION" in missing.error
        assert await log_of(here, topic, 0) == []
