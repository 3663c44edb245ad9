"""What stops a mirror, or makes it wait: each in its own condition, on brokers that really did it."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest
import trio

from kafka_client import ClusterClient
from kafka_client.topics import TopicInfo, describe
from kafka_wire.codec import Message
from replicator import copying, session
from replicator.claim import CREATE_TOPICS
from replicator.cut import Cut, cut
from replicator.prepare import CREATE_PARTITIONS, alter, configs
from replicator.states import Condition
from replicator.worker import Mirror, Replicator
from tests.fixtures.mirrors import create, log_of
from tests.fixtures.names import Names
from tests.integration.test_mirror_cases import (
    at_least,
    batch,
    caught_up,
    clients,
    condition,
    mirrored,
    same,
    until,
    write,
)
from tests.integration.test_replicator import replicating, setting
from tools.local_cluster import Cluster

DELETE_TOPICS = 20
T = TypeVar("T")


async def polled(ask: Callable[[], Awaitable[T]], fine: Callable[[T], bool], seconds: float = 30.0) -> T:
    """Asks again and again until the answer is fine."""
    with trio.fail_after(seconds):
        while True:
            answer = await ask()
            if fine(answer):
                return answer
            await trio.sleep(0.05)


async def delete(client: ClusterClient, topic: str) -> None:
    """Returns when no broker names it any more."""
    message = {"topics": [{"name": topic}], "topic_names": [topic], "timeout_ms": 9000}
    await client.call(DELETE_TOPICS, message)
    await polled(lambda: describe(client, [topic]), lambda found: topic not in found)


def shown(replicator: Replicator, mirror: Mirror, partition: int = 0) -> tuple[Condition, str]:
    for one, number, status in replicator.statuses():
        if one == mirror and number == partition:
            return status.condition, status.detail
    return Condition.STARTING, ""


async def test_a_refused_batch_stops_its_partition_alone(
    east: Cluster, west: Cluster, names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = names.topic("refused")
    await create(east, topic, 2, max_message_bytes="4000000")
    await create(west, topic, 2, max_message_bytes="100000")
    async with clients(east, west) as (there, here):
        await write(there, topic, batch(b"0"), batch(b"large" * 100_000), batch(b"1"), batch(b"2"))
        async with mirrored(there, here, topic, 2) as link:
            await condition(link, topic, Condition.REFUSED)
            assert "MESSAGE_TOO_LARGE" in link.status[topic, 0].detail
            await write(there, topic, batch(b"other"), partition=1)
            assert [one.value for one in await at_least(here, topic, 1, 1)] == [b"other"]
            status = link.status[topic, 0]
            await until(lambda: status.position == 1, f"what came before it did not arrive: {status}")
            assert (status.condition, status.restarts) == (Condition.REFUSED, 0)
            # Nobody asks again all the time; but once the target takes it, it is copied without anybody's doing.
            monkeypatch.setattr(session, "REFUSED_SECONDS", 0.5)
            status.retry_at = 0.0
            await until(lambda: status.restarts >= 1 and status.condition is Condition.REFUSED, "not tried again")
            await alter(here, topic, {"max.message.bytes": "4000000"})
            await caught_up(link, topic, 2)
        await same(there, here, topic)


async def test_a_batch_that_is_corrupt_at_the_source_is_on_no_target(
    east: Cluster, west: Cluster, names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = names.topic("corrupt")
    for cluster in (east, west):
        await create(cluster, topic, 2)

    def flipped(records: memoryview, *more: Any) -> Cut:
        at = bytes(records).find(b"flipped")
        if at >= 0:
            records[at] ^= 1  # as if the source's disk had done it
        return cut(records, *more)

    monkeypatch.setattr(copying, "cut", flipped)
    async with clients(east, west) as (there, here):
        await write(there, topic, batch(b"0"), batch(b"1"), batch(b"flipped"), batch(b"3"))
        async with mirrored(there, here, topic, 2) as link:
            await condition(link, topic, Condition.CORRUPT)
            status = link.status[topic, 0]
            assert status.detail == "the batch at offset 2 has a wrong CRC"
            await write(there, topic, batch(b"other"), partition=1)
            assert [one.value for one in await at_least(here, topic, 1, 1)] == [b"other"]
            await until(lambda: status.position == 2, f"what came before it did not arrive: {status}")
            assert [one.value for one in await log_of(here, topic, 0)] == [b"0", b"1"]
            assert (status.condition, status.restarts) == (Condition.CORRUPT, 0)


async def test_a_target_that_begins_to_change_records_holds_its_mirror(
    east: Cluster, west: Cluster, names: Names
) -> None:
    topic, other = names.topic("unfit"), names.topic("stamped")
    await create(east, topic, 1)
    async with replicating(east, west) as (replicator, (there, here)):
        mirror = Mirror(topic, "east", "west")
        await write(there, topic, batch(b"1"))
        progress = await replicator.add(mirror)
        await at_least(here, topic, 0, 1)

        async def drifted(values: dict[str, str | None], name: str, value: str) -> None:
            await alter(here, topic, values)
            await setting(here, topic, name, value)
            replicator.again()

        await drifted({"compression.type": "gzip"}, "compression.type", "gzip")
        await until(lambda: shown(replicator, mirror)[0] is Condition.UNFIT, "not held")
        assert "compression.type is gzip" in shown(replicator, mirror)[1]
        await write(there, topic, batch(b"2"))
        await trio.sleep(0.5)  # nothing comes
        assert len(await log_of(here, topic, 0)) == 1
        await drifted({"compression.type": "producer"}, "compression.type", "producer")
        await at_least(here, topic, 0, 2)
        await until(lambda: shown(replicator, mirror)[0] is Condition.CAUGHT_UP, "does not go on")
        # What a ship's target has to follow is put right by itself.
        await drifted({"retention.ms": "1000"}, "retention.ms", "1000")
        await until(lambda: progress.altered.get("retention.ms") == "604800000", "not put right")
        await setting(here, topic, "retention.ms", "604800000")
        # Partitions of its own: a key's records would be looked for elsewhere.
        grown = {"topics": [{"name": topic, "count": 3, "assignments": None}], "timeout_ms": 5000}
        assert (await here.call(CREATE_PARTITIONS, grown))["results"][0]["error_code"] == 0
        await polled(lambda: describe(here, [topic]), lambda found: len(found[topic].partitions) == 3)
        replicator.again()
        await until(lambda: "partitions is 3, needs 1" in shown(replicator, mirror)[1], "not seen")
        await same(there, here, topic)

    await create(east, other, 1)
    await create(west, other, 1)
    async with clients(east, west) as (there, here):
        async with mirrored(there, here, other) as link:
            await caught_up(link, other)
            await alter(here, other, {"message.timestamp.type": "LogAppendTime"})
            await setting(here, other, "message.timestamp.type", "LogAppendTime")
            await write(there, other, batch(b"1"))
            await condition(link, other, Condition.UNFIT)  # the broker's very answer shows it
            assert "LogAppendTime" in link.status[other, 0].detail and link.status[other, 0].records <= 1
            await write(there, other, batch(b"2"))
            await alter(here, other, {"message.timestamp.type": "CreateTime"})
            await setting(here, other, "message.timestamp.type", "CreateTime")
            link.release(other)
            await caught_up(link, other)
        assert [one.value for one in await log_of(here, other, 0)] == [b"1", b"2"]


async def test_a_deleted_target_is_made_and_filled_anew(east: Cluster, west: Cluster, names: Names) -> None:
    topic = names.topic("again")
    await create(east, topic, 2)
    async with replicating(east, west) as (replicator, (there, here)):
        mirror = Mirror(topic, "east", "west")
        for number in range(2):
            await write(there, topic, batch(b"1"), batch(b"2", b"3"), partition=number)
        progress = await replicator.add(mirror)
        await at_least(here, topic, 0, 3)
        first = progress.target_id
        await delete(here, topic)
        replicator.again()
        await write(there, topic, batch(b"4"))
        with trio.fail_after(60):
            while topic not in await describe(here, [topic]):
                await trio.sleep(0.1)
                replicator.again()
        assert [one.value for one in await at_least(here, topic, 0, 4)] == [b"1", b"2", b"3", b"4"]
        await at_least(here, topic, 1, 3)
        await until(lambda: progress.target_id not in (first, bytes(16)), "the new topic is not noted")
        # A source that is gone is a condition of its own, and nothing is deleted after it.
        await delete(there, topic)
        await until(lambda: shown(replicator, mirror)[0] is Condition.MISSING, "not missing")
        replicator.again()
        await until(lambda: progress.without_source < math.inf, "the source was not looked for")
        assert len(await log_of(here, topic, 0)) == 4
        # ... nor does it follow what another topic of that name is to be like.
        await create(east, topic, 2, retention_ms="1000")
        await until(lambda: shown(replicator, mirror)[0] is Condition.RECREATED, "not recreated")
        for _ in range(2):
            at = progress.looks
            replicator.again()
            await until(lambda at=at: progress.looks > at, "not looked at")  # type: ignore[misc]
        assert (await configs(here, topic)).values["retention.ms"] != "1000" and "retention.ms" not in progress.altered
    async with replicating(east, west) as (replicator, (_, here)):  # a worker that knows nothing of this
        progress = await replicator.add(mirror)
        await until(lambda: shown(replicator, mirror)[0] is Condition.RECREATED, "not recreated")
        assert (await configs(here, topic)).values["retention.ms"] != "1000"


async def on_brokers(cluster: Cluster, topic: str, brokers: list[int], **values: str) -> None:
    """One partition on exactly these brokers, the first of them its leader."""
    entries = [{"name": name.replace("_", "."), "value": value} for name, value in values.items()]
    new = {
        "name": topic,
        "num_partitions": -1,
        "replication_factor": -1,
        "assignments": [{"partition_index": 0, "broker_ids": brokers}],
        "configs": entries,
    }
    async with ClusterClient(cluster.name, cluster.addresses()) as client:
        answer = await client.call(CREATE_TOPICS, {"topics": [new], "timeout_ms": 10_000})
        assert answer["topics"][0]["error_code"] == 0, answer
        await led_by(client, topic, brokers[0])


async def led_by(client: ClusterClient, topic: str, leader: int) -> None:
    def fine(found: dict[str, TopicInfo]) -> bool:
        return topic in found and 0 in (info := found[topic].partitions) and info[0].leader == leader

    await polled(lambda: describe(client, [topic]), fine)


async def in_sync(client: ClusterClient, topics: list[str], brokers: set[int]) -> None:
    def fine(answer: Message) -> bool:
        return all(set(topic["partitions"][0]["isr_nodes"]) == brokers for topic in answer["topics"])

    await polled(lambda: client.metadata(topics), fine)


@pytest.mark.timeout(240)
async def test_what_an_unclean_election_loses_is_seen(triple: Cluster, west: Cluster, names: Names) -> None:
    """One topic of `triple` is a source, another one a target; both lose what only one replica had, at once."""
    source, target, again = names.topic("source"), names.topic("target"), names.topic("behind")
    first, second, _ = (broker.id for broker in triple.brokers)
    unclean = {"unclean_leader_election_enable": "true", "min_insync_replicas": "1"}
    for topic in (source, target, again):
        await on_brokers(triple, topic, [first, second], **unclean)
        await create(west, topic, 1)
    async with clients(west, triple) as (one, three):
        await write(three, source, batch(b"1"), batch(b"2"))
        await write(three, again, batch(b"1"))
        await write(one, target, batch(b"1"), batch(b"2"))
        async with (
            mirrored(three, one, source) as out,
            mirrored(three, one, again) as also,
            mirrored(one, three, target) as into,
        ):
            await caught_up(out, source)
            await caught_up(into, target)
            await trio.to_thread.run_sync(triple.broker(second).kill)
            await in_sync(three, [source, target, again], {first})
            # Only the first has these; they are acknowledged, since one replica in sync is enough.
            await write(three, source, *(batch(b"%d" % n) for n in range(3, 9)))
            await write(three, again, batch(b"2"))
            await write(one, target, *(batch(b"%d" % n) for n in range(3, 9)))
            for link, topic in ((out, source), (into, target), (also, again)):
                await caught_up(link, topic)
                assert link.status[topic, 0].condition in (Condition.CAUGHT_UP, Condition.COPYING)
            # What is lost before a checkpoint tells of it is simply copied once more.
            partition = next(iter(into.sessions.values())).lanes[0].partition
            await until(lambda: not partition._dirty and partition._checkpointed >= partition._done, "no checkpoint")
            await trio.to_thread.run_sync(triple.broker(first).kill)
            await trio.to_thread.run_sync(triple.broker(second).start)
            for topic in (source, target, again):
                await led_by(three, topic, second)
            # Others write where the lost records were: offsets alone would tell nothing.
            await write(three, source, *(batch(b"new") for _ in range(9)))
            await write(one, target, batch(b"9"))
            # Two of three brokers were killed: the coordinators come back first.
            await until(lambda: out.status[source, 0].condition is Condition.TRUNCATED, "not seen", 90.0)
            await until(lambda: into.status[target, 0].condition is Condition.TARGET_LOST, "not seen", 90.0)
            assert "epoch" in out.status[source, 0].detail or "ends at" in out.status[source, 0].detail
            await trio.to_thread.run_sync(triple.mend)
        assert b"new" not in [held.value for held in await log_of(one, source, 0)]
        assert len(await log_of(one, source, 0)) == 8  # nothing is taken back by itself
        # It stays so after restarts, whose own control records fill up the lost offsets one by one.
        for _ in range(8):
            async with mirrored(one, three, target) as into:
                await condition(into, target, Condition.TARGET_LOST)
        async with mirrored(three, one, source) as out:
            await condition(out, source, Condition.TRUNCATED)
