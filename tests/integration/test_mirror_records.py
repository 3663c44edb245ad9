"""What a mirror copies of sources that are not plain: transactions, very many partitions; and how fast."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import trio
from confluent_kafka import Producer

from kafka_client import ClusterClient
from kafka_client.topics import EARLIEST, LATEST, LogReader, offsets
from kafka_wire.batches import Batch, walk
from replicator.link import Link, units
from replicator.states import Condition
from tests.fixtures.mirrors import create, log_of
from tests.fixtures.names import Names
from tests.integration.test_mirror_cases import (
    at_least,
    batch,
    caught_up,
    clients,
    contents,
    mirrored,
    same,
    until,
    write,
)
from tools.local_cluster import Cluster

DELETE_TOPICS = 20


async def headers_of(client: ClusterClient, topic: str, partition: int = 0) -> list[Batch]:
    """Every batch header of a log, control batches included."""
    start = (await offsets(client, topic, [partition], EARLIEST))[partition]
    end = (await offsets(client, topic, [partition], LATEST))[partition]
    out: list[Batch] = []
    if start == end:
        return out
    reader = LogReader(client, topic, partition, start, seconds=30)
    while reader.offset < end:
        out += walk(await reader.next())
    return out


async def test_transactions_arrive_when_they_are_committed(east: Cluster, west: Cluster, names: Names) -> None:
    topic = names.topic("transactions")
    for cluster in (east, west):
        await create(cluster, topic, 1)

    def producer(name: str) -> Producer:
        made = Producer({**east.librdkafka(), "transactional.id": names.transactional_id(name)})
        made.init_transactions(30)
        return made

    one, two = [await trio.to_thread.run_sync(producer, name) for name in ("one", "two")]

    def transaction(by: Producer, *values: bytes) -> None:
        by.begin_transaction()
        for value in values:
            by.produce(topic, value)
        by.flush(30)

    async with clients(east, west) as (there, here):
        await write(there, topic, batch(b"0", key=None))
        async with mirrored(there, here, topic) as link:
            await trio.to_thread.run_sync(transaction, one, b"1", b"2")
            await trio.to_thread.run_sync(one.commit_transaction, 30)
            await trio.to_thread.run_sync(transaction, one, b"never")
            await trio.to_thread.run_sync(transaction, two, b"3")
            await write(there, topic, batch(b"4"))
            await trio.to_thread.run_sync(one.abort_transaction, 30)
            stable = 5  # "0", "1" and "2", a marker, "never"; from "3" on it is open, the abort's marker included
            # The open transaction holds back what comes behind it, and the mirror counts as having caught up.
            await until(lambda: link.status[topic, 0].position == stable, f"not at {stable}: {link.status}")
            await until(lambda: link.status[topic, 0].condition is Condition.CAUGHT_UP, str(link.status))
            assert [held.value for held in await log_of(here, topic, 0)] == [b"0", b"1", b"2"]
            assert link.status[topic, 0].end == stable == (await offsets(there, topic, [0], LATEST, committed=True))[0]
            assert (await offsets(there, topic, [0], LATEST))[0] > stable
            await trio.to_thread.run_sync(two.commit_transaction, 30)
            await caught_up(link, topic)
            assert link.status[topic, 0].left_out >= 4  # an aborted batch, three markers
        assert [held.value for held in await log_of(here, topic, 0)] == [b"0", b"1", b"2", b"3", b"4"]
        assert contents(await log_of(here, topic, 0)) == contents(await log_of(there, topic, 0))
        # For whoever reads uncommitted records too: what is there is plain, but for the mirror's own fence.
        copied = [found for found in await headers_of(here, topic) if not found.control]
        assert sum(found.records for found in copied) == 5 and not any(found.transactional for found in copied)
        assert any(found.transactional for found in await headers_of(there, topic) if not found.control)


def resident() -> int:
    """Bytes of this process."""
    text = Path("/proc/self/status").read_text()
    return int(text.split("VmRSS:")[1].split()[0]) * 1024


@pytest.mark.timeout(300)
async def test_a_thousand_partitions(east: Cluster, west: Cluster, names: Names) -> None:
    """Most of them empty; bounded in time and memory, and all of it goes on after a restart of the mirror."""
    topic, count = names.topic("many"), 1000
    async with clients(east, west) as (there, here):
        try:
            for cluster in (east, west):
                await create(cluster, topic, count)
            producer = Producer(east.librdkafka())
            for number in range(0, count, 5):
                producer.produce(topic, b"%d" % number, partition=number)
            await trio.to_thread.run_sync(producer.flush, 60)
            before, started, cpu = resident(), time.monotonic(), time.process_time()
            for number in (3, 998):  # of the two rounds: what comes while it runs
                async with mirrored(there, here, topic, count) as link:
                    await until(
                        lambda link=link: (
                            len(link.sessions) == len(units(topic, range(count)))  # type: ignore[misc]
                            and all(one.condition is Condition.CAUGHT_UP for one in link.status.values())
                        ),
                        "not caught up",
                        90.0,
                    )
                    await write(there, topic, batch(b"late"), partition=number)
                    assert [one.value for one in await at_least(here, topic, number, 1)] == [b"late"]
            took, cpu = time.monotonic() - started, time.process_time() - cpu
            print(f"two take-overs of {count} partitions: {took:.1f} s, {cpu:.1f} s of CPU")
            assert took < 90 and resident() - before < 150 << 20
            ends = await offsets(there, topic, range(count), LATEST)
            arrived = 0
            for number in range(0, count, 125):
                assert contents(await log_of(here, topic, number)) == contents(await log_of(there, topic, number))
                arrived += len(await log_of(here, topic, number))
            assert sum(ends.values()) == count // 5 + 2 and arrived == 8
        finally:
            for client in (there, here):
                gone = {"topics": [{"name": topic, "topic_id": bytes(16)}], "topic_names": [topic], "timeout_ms": 9000}
                await client.call(DELETE_TOPICS, gone, version=5)


async def test_a_limit_of_bytes_a_second_holds(east: Cluster, west: Cluster, names: Names) -> None:
    topic, rate, seconds = names.topic("limited"), 1_000_000, 3.0
    for cluster in (east, west):
        await create(cluster, topic, 2)
    size = 50_000
    async with clients(east, west) as (there, here):
        for number in range(2):
            await write(there, topic, *(batch(b"%d" % n * size) for n in range(120)), partition=number)
        link = Link(there, here, rate=rate)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.run)
            for unit in units(topic, range(2)):
                await link.assign(unit)
            # The bucket's second of burst is over once so much has come; from there on it is the rate that counts.
            await until(lambda: link.counters.bytes > 2 * rate, "nothing comes")
            measured = 0.0
            for _ in range(3):  # on a busy machine it may fall behind, but never get ahead
                began, before = trio.current_time(), link.counters.bytes
                await trio.sleep(seconds)
                measured = (link.counters.bytes - before) / (trio.current_time() - began)
                assert measured < 1.2 * rate, measured
                if measured > 0.8 * rate:
                    break
            assert measured > 0.8 * rate, measured
            link.limit.rate = None
            await caught_up(link, topic, 2)
            nursery.cancel_scope.cancel()
        await same(there, here, topic)
