"""Mirrors on real brokers: what is copied, what is left out, what is followed, and what stops them."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest
import trio
from confluent_kafka import Consumer, Producer, TopicPartition

from kafka_client import ClusterClient
from kafka_client.topics import LATEST, LogReader, delete_records, describe, offsets
from kafka_wire.batches import DELETE_HORIZON, walk
from kafka_wire.records import Record, body_of, encode_batch
from offset_sync.table import Table
from replicator.link import Link, Mode, units
from replicator.states import Condition
from replicator.wire import PRODUCE
from tests.fixtures.mirrors import CODECS, Held, create, log_of
from tests.fixtures.names import Names
from tools.local_cluster import Cluster

NOW = int(time.time() * 1000)


@asynccontextmanager
async def clients(*clusters: Cluster) -> AsyncIterator[list[ClusterClient]]:
    opened = [ClusterClient(one.name, one.addresses()) for one in clusters]
    try:
        yield opened
    finally:
        for one in opened:
            one.close()


@asynccontextmanager
async def mirrored(
    source: ClusterClient,
    target: ClusterClient,
    topic: str,
    partitions: int = 1,
    mode: Mode = "ship",
    table: Callable[[str, int], Table] | None = None,
) -> AsyncIterator[Link]:
    link = Link(source, target, source_table=table)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.run)
        for unit in units(topic, range(partitions), mode):
            await link.assign(unit)
        yield link
        nursery.cancel_scope.cancel()


async def until(condition: Callable[[], bool], what: str, seconds: float = 40.0) -> None:
    deadline = trio.current_time() + seconds
    while not condition():
        assert trio.current_time() < deadline, what
        await trio.sleep(0.02)


async def caught_up(link: Link, topic: str, partitions: int = 1) -> None:
    ends = await offsets(link.source, topic, range(partitions), LATEST)
    await until(
        lambda: all(link.status[topic, n].position >= end for n, end in ends.items()), f"not caught up: {link.status}"
    )
    for session in link.sessions.values():
        for lane in session.lanes.values():
            await until(lambda lane=lane: lane.partition.idle, "not idle")  # type: ignore[misc]


async def condition(link: Link, topic: str, wanted: Condition, partition: int = 0) -> None:
    await until(lambda: link.status[topic, partition].condition is wanted, f"{wanted}: {link.status}")


def table_of(link: Link, partition: int = 0) -> Table:
    return next(iter(link.sessions.values())).lanes[partition].partition.table


async def write(client: ClusterClient, topic: str, *batches: bytes | bytearray, partition: int = 0) -> list[int]:
    """Raw batches, one request each; their offsets."""
    out: list[int] = []
    deadline = trio.current_time() + 10
    while len(out) < len(batches):
        info = (await describe(client, [topic])).get(topic)
        code = 3
        if info is not None and partition in info.partitions and info.partitions[partition].leader >= 0:
            place = {"index": partition, "records": batches[len(out)]}
            data = {"name": topic, "topic_id": info.topic.id, "partition_data": [place]}
            message = {"acks": -1, "timeout_ms": 5000, "topic_data": [data]}
            answer = await client.call(PRODUCE, message, broker=info.partitions[partition].leader)
            one = answer["responses"][0]["partition_responses"][0]
            code = one["error_code"]
            if not code:
                out.append(one["base_offset"])
                continue
        assert code in (3, 5, 6, 100) and trio.current_time() < deadline, code  # a topic that has just been made
        await trio.sleep(0.05)
    return out


def batch(*values: bytes, key: bytes | None = b"k", codec: int = 0, time_ms: int = NOW, **more: int) -> bytearray:
    records = [Record(n, time_ms + n, 0, body_of(key, value)) for n, value in enumerate(values)]
    return encode_batch(records, codec=codec, **more)  # type: ignore[arg-type]


def contents(log: Sequence[Held]) -> list[tuple[object, ...]]:
    return [one.content for one in log]


async def same(a: ClusterClient, b: ClusterClient, topic: str, seconds: float = 20.0) -> None:
    """Until both hold the same records."""
    deadline = trio.current_time() + seconds
    while True:
        if contents(await log_of(a, topic, 0)) == contents(await log_of(b, topic, 0)):
            return
        assert trio.current_time() < deadline
        await trio.sleep(0.1)


async def at_least(client: ClusterClient, topic: str, partition: int, count: int, seconds: float = 40.0) -> list[Held]:
    deadline = trio.current_time() + seconds
    while True:
        held = await log_of(client, topic, partition)
        if len(held) >= count:
            return held
        assert trio.current_time() < deadline, f"{len(held)} of {count}"
        await trio.sleep(0.1)


async def test_every_codec_is_read_by_a_client(east: Cluster, west: Cluster, names: Names) -> None:
    topic = names.topic("codecs")
    for cluster in (east, west):
        await create(cluster, topic, 1)
    for codec in CODECS:
        producer = Producer({**east.librdkafka(), "compression.type": codec})
        for number in range(50):
            producer.produce(topic, f"{codec}-{number}".encode() * 20, None, headers=[("n", b"%d" % number)])
        await trio.to_thread.run_sync(producer.flush)
    async with clients(east, west) as (there, here):
        # What the mirror encodes again must be readable too: holes, in every codec.
        for number in range(len(CODECS)):
            await write(there, topic, batch(b"a" * 500, b"b" * 500, b"c" * 500, codec=number))
        await delete_records(there, topic, (await describe(there, [topic]))[topic].partitions[0].leader, {0: 1})
        async with mirrored(there, here, topic) as link:
            await caught_up(link, topic)
        assert contents(await log_of(there, topic, 0)) == contents(await log_of(here, topic, 0))

    def consumed(cluster: Cluster, start: int) -> list[tuple[object, ...]]:
        consumer = Consumer(
            {**cluster.librdkafka(), "group.id": topic, "check.crcs": True, "enable.auto.commit": False}
        )
        consumer.assign([TopicPartition(topic, 0, start)])
        out: list[tuple[object, ...]] = []
        while len(out) < 5 * 53 - 1:
            for one in consumer.consume(100, 5.0):
                assert one.error() is None
                out.append((one.key(), one.value(), one.headers(), one.timestamp()))
        consumer.close()
        return out

    assert await trio.to_thread.run_sync(consumed, east, 1) == await trio.to_thread.run_sync(consumed, west, 0)


async def test_append_time_holes_and_batches_larger_than_a_fetch(east: Cluster, west: Cluster, names: Names) -> None:
    topic = names.topic("odd")
    await create(east, topic, 1, message_timestamp_type="LogAppendTime", max_message_bytes="8000000")
    await create(west, topic, 1, max_message_bytes="8000000")
    async with clients(east, west) as (there, here):
        big = [b"%d" % n * 300_000 for n in range(10)]
        await write(there, topic, batch(b"1", b"2", codec=3), batch(*big), batch(b"3"))
        async with mirrored(there, here, topic) as link:
            await caught_up(link, topic)
        source, target = await log_of(there, topic, 0), await log_of(here, topic, 0)
        assert contents(source) == contents(target) and len(source) == 13
        assert all(one.timestamp >= NOW for one in target)


async def test_deleted_records_are_followed(east: Cluster, west: Cluster, names: Names) -> None:
    topic = names.topic("deleted")
    for cluster in (east, west):
        await create(cluster, topic, 1)
    async with clients(east, west) as (there, here):
        await write(there, topic, *(batch(b"a", b"b", b"c", b"d") for _ in range(10)))
        leader = (await describe(there, [topic]))[topic].partitions[0].leader
        await delete_records(there, topic, leader, {0: 6})  # in the middle of a batch
        async with mirrored(there, here, topic) as link:
            await caught_up(link, topic)
            table = table_of(link)
            assert [one.offset for one in await log_of(here, topic, 0)] == [table.physical(n) for n in range(6, 40)]
            assert table.log_start == 6
            await delete_records(there, topic, leader, {0: 21})
            await write(there, topic, batch(b"e"))
            await caught_up(link, topic)
            await same(there, here, topic)
            assert (table.log_start, table.physical(0), table.physical(21)) == (
                21,
                table.physical(21),
                table.physical(21),
            )
        # Down for longer than retention: what is gone is counted, the rest is copied.
        await write(there, topic, batch(b"f", b"g"))
        await delete_records(there, topic, leader, {0: 42})
        async with mirrored(there, here, topic) as link:
            await caught_up(link, topic)
            assert link.status[topic, 0].overtaken == 1
            assert (await log_of(here, topic, 0))[-1].value == b"g"


async def test_a_topic_created_anew_stops_its_mirror(east: Cluster, west: Cluster, names: Names) -> None:
    topic = names.topic("anew")
    for cluster in (east, west):
        await create(cluster, topic, 1)
    async with clients(east, west) as (there, here):
        await write(there, topic, batch(b"old"))
        async with mirrored(there, here, topic) as link:
            await caught_up(link, topic)
            await there.call(20, {"topics": [{"name": topic}], "topic_names": [topic], "timeout_ms": 5000})
            await condition(link, topic, Condition.MISSING)
            await create(east, topic, 1)
            await condition(link, topic, Condition.RECREATED)
        await write(there, topic, batch(b"new"))
        async with mirrored(there, here, topic) as link:
            await condition(link, topic, Condition.RECREATED)
        assert [one.value for one in await log_of(here, topic, 0)] == [b"old"]


async def test_a_source_that_comes_later_is_copied_then(east: Cluster, west: Cluster, names: Names) -> None:
    topic = names.topic("late")
    await create(west, topic, 2)
    async with clients(east, west) as (there, here), mirrored(there, here, topic, 2) as link:
        await condition(link, topic, Condition.MISSING, 1)
        await create(east, topic, 1)
        await write(there, topic, batch(b"1"))
        assert [one.value for one in await at_least(here, topic, 0, 1)] == [b"1"]
        assert link.status[topic, 1].condition is Condition.MISSING
        grown = {"topics": [{"name": topic, "count": 2, "assignments": None}], "timeout_ms": 5000}
        assert (await there.call(37, grown))["results"][0]["error_code"] == 0
        await at_least(there, topic, 1, 0)
        await write(there, topic, batch(b"2"), partition=1)
        assert [one.value for one in await at_least(here, topic, 1, 1)] == [b"2"]


async def test_foreign_writes_are_seen_and_never_served(east: Cluster, west: Cluster, names: Names) -> None:
    topic, used = names.topic("foreign"), names.topic("used")
    for cluster in (east, west):
        await create(cluster, topic, 1)
        await create(cluster, used, 1)
    async with clients(east, west) as (there, here):
        await write(here, used, batch(b"mine"))
        async with mirrored(there, here, used) as link:
            await condition(link, used, Condition.OCCUPIED)
        await write(there, topic, batch(b"1", b"2"))
        async with mirrored(there, here, topic) as link:
            await caught_up(link, topic)
            (at,) = await write(here, topic, batch(b"stranger", b"stranger"))
            await write(there, topic, batch(b"3"))
            await caught_up(link, topic)
            link.sessions[next(iter(link.sessions))].lanes[0].show()
            assert link.status[topic, 0].foreign == 2
            table = table_of(link)
            assert not table.serves(at, at + 1) and table.physical(2) == at + 2
        (at,) = await write(here, topic, batch(b"stranger"))
        async with mirrored(there, here, topic) as link:
            await caught_up(link, topic)
            assert link.status[topic, 0].foreign >= 1  # found by the scan


async def test_ships_in_a_row_lose_nothing(east: Cluster, west: Cluster, triple: Cluster, names: Names) -> None:
    """A -> B, B -> C, C -> A: what arrived by a mirror is shipped on, and each table maps to the same logical log."""
    topic = names.topic("chain")
    for cluster in (east, west, triple):
        await create(cluster, topic, 1)
    async with clients(east, west, triple) as (one, two, three):
        await write(one, topic, batch(b"1", b"2"), batch(b"3"))
        async with mirrored(one, two, topic) as first:
            await caught_up(first, topic)
            table = table_of(first)
        table.open(3, table.runs.end.physical if table.runs.end is not None else 0)
        await write(two, topic, batch(b"4"))
        async with mirrored(two, three, topic, table=lambda *_: table) as second:
            await caught_up(second, topic)
            last = table_of(second)
        got = await log_of(three, topic, 0)
        assert [held.value for held in got] == [b"1", b"2", b"3", b"4"]
        assert [last.physical(n) for n in range(4)] == [held.offset for held in got]
        # And back to where it began, into a copy that is begun anew there.
        await one.call(20, {"topics": [{"name": topic}], "topic_names": [topic], "timeout_ms": 5000})
        with trio.fail_after(20):
            while True:
                if topic not in await describe(one, [topic]):
                    break
                await trio.sleep(0.05)
        await create(east, topic, 1)
        last.open(4, last.runs.end.physical if last.runs.end is not None else 0)
        await write(three, topic, batch(b"5"))
        async with mirrored(three, one, topic, table=lambda *_: last) as third:
            await caught_up(third, topic)
            back = table_of(third)
        home = await log_of(one, topic, 0)
        assert contents(home) == contents(await log_of(three, topic, 0)) and home[-1].value == b"5" and len(home) == 5
        assert [back.physical(n) for n in range(5)] == [held.offset for held in home]


@pytest.mark.parametrize("members", [2, 3])
async def test_exchange_ends_with_the_union(
    east: Cluster, west: Cluster, triple: Cluster, names: Names, members: int
) -> None:
    """Full mesh, written on all sides at once, in transactions too: each record once everywhere, no loop."""
    topic = names.topic("union")
    clusters = [east, west, triple][:members]
    for cluster in clusters:
        await create(cluster, topic, 2)
    async with clients(*clusters) as opened, trio.open_nursery() as nursery:
        links = {}
        for a in opened:
            for b in opened:
                if a is not b:
                    links[a.name, b.name] = link = Link(a, b)
                    nursery.start_soon(link.run)
                    for unit in units(topic, range(2), "exchange"):
                        await link.assign(unit)
        expected: list[set[bytes]] = [set(), set()]

        async def produce(client: ClusterClient) -> None:
            for number in range(30):
                for partition in range(2):
                    value = f"{client.name}-{partition}-{number}".encode()
                    expected[partition].add(value)
                    await write(client, topic, batch(value), partition=partition)

        def transactions(cluster: Cluster) -> None:
            producer = Producer({**cluster.librdkafka(), "transactional.id": f"{topic}-{cluster.name}"})
            producer.init_transactions(60)
            for number in range(6):
                producer.begin_transaction()
                kept = number % 3 != 1
                for partition in range(2):
                    value = f"{'kept' if kept else 'dropped'}-{cluster.name}-{number}".encode()
                    producer.produce(topic, value, partition=partition)
                    if kept:
                        expected[partition].add(value)
                if kept:
                    producer.commit_transaction(60)
                else:
                    producer.flush(60)
                    producer.abort_transaction(60)

        async with trio.open_nursery() as writing:
            for client in opened:
                writing.start_soon(produce, client)
            for cluster in clusters:
                writing.start_soon(trio.to_thread.run_sync, transactions, cluster)
        for partition in range(2):
            for client in opened:
                held = await at_least(client, topic, partition, len(expected[partition]))
                assert len(held) == len(expected[partition]), client.name
                assert {one.value for one in held} == expected[partition]
                for origin in opened:  # each origin's order is kept
                    mine = [
                        one.value for one in held if one.value and one.value.startswith(origin.name.encode() + b"-")
                    ]
                    assert mine == [f"{origin.name}-{partition}-{n}".encode() for n in range(30)]
        await trio.sleep(1.0)
        for client in opened:
            assert len(await log_of(client, topic, 0)) == len(expected[0])
        nursery.cancel_scope.cancel()


@pytest.mark.timeout(240)
async def test_leaders_move_and_brokers_restart(triple: Cluster, west: Cluster, names: Names) -> None:
    """Into and out of a cluster of three whose brokers are killed one after the other."""
    topic, back = names.topic("moving"), names.topic("back")
    for cluster in (triple, west):
        for name in (topic, back):
            await create(cluster, name, 3)
    producer = Producer({**west.librdkafka(), "enable.idempotence": True})
    other = Producer({**triple.librdkafka(), "enable.idempotence": True, "message.timeout.ms": 120000})
    async with clients(west, triple) as (one, three):
        async with mirrored(one, three, topic, 3) as out, mirrored(three, one, back, 3) as home:
            for broker in triple.brokers:
                for number in range(300):
                    producer.produce(topic, f"{broker.id}-{number}".encode(), partition=number % 3)
                    other.produce(back, f"{broker.id}-{number}".encode(), partition=number % 3)
                    if number == 150:
                        await trio.to_thread.run_sync(broker.kill)
                await trio.to_thread.run_sync(producer.flush, 60)
                await trio.to_thread.run_sync(other.flush, 60)
                await trio.to_thread.run_sync(triple.mend)
            assert len(producer) == len(other) == 0
            await caught_up(out, topic, 3)
            await caught_up(home, back, 3)
        for name in (topic, back):
            total = 0
            for number in range(3):
                here, there = await log_of(one, name, number), await log_of(three, name, number)
                assert contents(here) == contents(there)
                total += len(here)
            assert total == 900


async def cleaned(client: ClusterClient, topic: str) -> bool:
    """Whether the broker has left out records, and marked what holds tombstones."""
    part = await LogReader(client, topic, 0, 0, seconds=20).next()
    batches = list(walk(part))
    return any(not one.dense for one in batches) and any(one.attributes & DELETE_HORIZON for one in batches)


async def test_compacted_history_is_copied_with_its_holes(east: Cluster, west: Cluster, names: Names) -> None:
    topic = names.topic("compacted")
    compact = {"cleanup_policy": "compact", "min_cleanable_dirty_ratio": "0.001", "segment_ms": "200"}
    await create(east, topic, 1, **compact)
    await create(west, topic, 1)
    async with clients(east, west) as (there, here):
        for number in range(len(CODECS)):
            # Every third key is its own, and deleted at 6: cleaning marks batches that keep tombstones (0x40), and then
            # their timestamps count from elsewhere.
            values = [None if n == 6 else b"v" * 50 for n in range(9)]
            keys = [b"%d" % (n % 3 or 10 * number + n) for n in range(9)]
            records = [Record(n, NOW + n, 0, body_of(keys[n], values[n])) for n in range(9)]
            await write(there, topic, encode_batch(records, codec=number))
        deadline = trio.current_time() + 60
        while not await cleaned(there, topic):
            assert trio.current_time() < deadline, "the broker does not compact"
            await trio.sleep(0.6)
            await write(there, topic, batch(b"", key=b"end", time_ms=int(time.time() * 1000)))  # rolls the segment
        async with mirrored(there, here, topic) as link:
            await caught_up(link, topic)
            source, target = await log_of(there, topic, 0), await log_of(here, topic, 0)
            table = table_of(link)
            known = [one for one in source if table.holds(one.offset)]
            assert contents(known) == contents(target)
            assert [table.physical(one.offset) for one in known] == [one.offset for one in target]
            assert {one.codec for one in target} == set(range(len(CODECS)))
            assert len([one for one in source if one.offset < 45]) < 45
            assert sum(one.value is None for one in target) == len(CODECS)
            part = await LogReader(here, topic, 0, 0, seconds=20).next()
            assert not any(one.attributes & DELETE_HORIZON for one in walk(part))
