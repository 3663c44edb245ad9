"""Large requests and responses, both ways: the same bytes at both ends, whatever window they cross."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterable, Mapping

import pytest
import trio
from aiokafka import AIOKafkaConsumer
from confluent_kafka import Consumer, KafkaError, Message, Producer, TopicPartition

from tests.fixtures.names import Names
from tests.history.loads import create
from tools.java_client import Jvm
from tools.local_cluster import Cluster
from tools.local_cluster.cluster import Setting
from tools.local_federation import Federation

MIB = 1 << 20
LARGEST = 21 * MIB
ABORTED = int(os.environ.get("KFED_TEST_ABORTED", "60"))  # transactions; 6000 and more fill a unit above the scratch
READS_LARGE: Mapping[str, Setting] = {
    "fetch.max.bytes": 50 * MIB,
    "max.partition.fetch.bytes": 50 * MIB,
    "receive.message.max.bytes": 60 * MIB,
    "auto.offset.reset": "earliest",
    "enable.auto.commit": False,
}


def digest(value: bytes | None) -> str:
    return hashlib.sha256(value or b"").hexdigest()


def produce(config: Mapping[str, Setting], topic: str, values: Iterable[bytes], partitions: int = 1) -> None:
    wrong: list[KafkaError] = []

    def delivered(error: KafkaError | None, message: Message) -> None:
        if error is not None:
            wrong.append(error)

    producer = Producer({**config, "message.max.bytes": LARGEST, "queue.buffering.max.kbytes": 400_000})
    for number, value in enumerate(values):
        producer.produce(topic, value, partition=number % partitions, on_delivery=delivered)
        producer.poll(0)
    assert producer.flush(60) == 0
    assert not wrong


def consume(config: Mapping[str, Setting], topic: str, count: int, partitions: int, **more: Setting) -> list[str]:
    """Digests of the first `count` records, sorted."""
    consumer = Consumer({**config, **READS_LARGE, "group.id": f"{topic}-reader", **more})
    consumer.assign([TopicPartition(topic, number, 0) for number in range(partitions)])
    found: list[str] = []
    while len(found) < count:
        message = consumer.poll(30)
        assert message is not None, f"{len(found)} of {count}"
        assert message.error() is None, message.error()
        found.append(digest(message.value()))
    consumer.close()
    return sorted(found)


@pytest.mark.parametrize("compression", ["none", "zstd"])
async def test_batches_of_many_megabytes_arrive_as_they_were_sent(
    federation: Federation, east: Cluster, names: Names, compression: str
) -> None:
    topic = names.topic(f"large-{compression}")
    chance = random.Random(7)
    # Just below and above what is read at once, what is spliced, and what a pipe holds.
    sizes = [65400, 65536, 66000, 131000, 131200, MIB - 100, MIB + 100, 5 * MIB, 20 * MIB]
    values = [chance.randbytes(size // 2) + bytes(size - size // 2) for size in sizes]
    expected = sorted(digest(value) for value in values)

    def run() -> None:
        create(federation.librdkafka(), topic, 2, **{"max.message.bytes": str(LARGEST)})
        through = federation.librdkafka()
        produce({**through, "compression.type": compression}, topic, values, 2)
        assert consume(through, topic, len(values), 2) == expected
        assert consume(east.librdkafka(), topic, len(values), 2) == expected

    await trio.to_thread.run_sync(run)


async def test_records_cross_the_borders_of_windows(federation: Federation, names: Names) -> None:
    """Fetches of every size over records of every size; by a client that reads whole frames of 50 MB."""
    topic = names.topic("borders")
    chance = random.Random(11)
    values = [chance.randbytes(chance.choice([0, 1, 100, 1000, 8000, 30000, 65000, 120000])) for _ in range(600)]
    expected = sorted(digest(value) for value in values)

    def run() -> None:
        create(federation.librdkafka(), topic, 5)
        produce(federation.librdkafka(), topic, values, 5)
        for size in (1, 10_000, 66_000, 200_000):
            limits: dict[str, Setting] = {"fetch.max.bytes": max(size, 1000), "max.partition.fetch.bytes": size}
            found = consume({**federation.librdkafka(), "message.max.bytes": 1000}, topic, len(values), 5, **limits)
            assert found == expected
        assert consume(federation.librdkafka(), topic, len(values), 5) == expected

    await trio.to_thread.run_sync(run)


async def test_a_java_producer_fills_one_request_with_many_partitions(
    federation: Federation, jvm: Jvm, names: Names
) -> None:
    topic, config, partitions = names.topic("wide"), federation.java(), 40
    async with (
        jvm.admin(config) as admin,
        jvm.producer(config, linger_ms="200", batch_size="65536", max_request_size=str(4 * MIB)) as producer,
        jvm.consumer(config) as consumer,
    ):
        await admin.create_topic(topic, partitions)
        sent = await producer.send(topic, 400, keys=200, prefix="n", size=12_000)
        assert not [one for one in sent if one.error]
        await consumer.assign(*((topic, number) for number in range(partitions)))
        records = await consumer.take(400, 30)
        assert {(one.partition, one.offset) for one in records} == {(one.partition, one.offset) for one in sent}
        assert {len(one.value or "") for one in records} == {12_000}
        assert {(one.value or "").split(".")[0] for one in records} == {f"n{number}" for number in range(400)}


async def test_fetches_of_two_hundred_partitions(federation: Federation, jvm: Jvm, names: Names) -> None:
    topic, partitions = names.topic("partitions"), 200
    values = [bytes([number % 251]) * 3000 + str(number).encode() for number in range(1000)]
    expected = sorted(digest(value) for value in values)

    def run() -> None:
        create(federation.librdkafka(), topic, partitions)
        produce(federation.librdkafka(), topic, values, partitions)
        assert consume(federation.librdkafka(), topic, len(values), partitions) == expected

    await trio.to_thread.run_sync(run)
    async with jvm.consumer(federation.java(), fetch_min_bytes="1000000") as consumer:
        await consumer.assign(*((topic, number) for number in range(partitions)))
        records = await consumer.take(1000, 30)
        assert len({(one.partition, one.offset) for one in records}) == 1000

    def others() -> int:
        import asyncio

        async def read() -> int:
            consumer = AIOKafkaConsumer(
                topic, bootstrap_servers=federation.bootstrap(), auto_offset_reset="earliest", group_id=None
            )
            await consumer.start()
            found: list[str] = []
            while len(found) < 1000:
                for messages in (await consumer.getmany(timeout_ms=10_000)).values():
                    found += [digest(one.value) for one in messages]
            await consumer.stop()
            assert sorted(found) == expected
            return len(found)

        return asyncio.run(read())

    assert await trio.to_thread.run_sync(others) == 1000


async def test_a_reader_of_committed_records_passes_over_many_aborted_transactions(
    federation: Federation, names: Names
) -> None:
    topic = names.topic("aborted")

    def run() -> None:
        create(federation.librdkafka(), topic, 1)
        producers = [
            Producer({**federation.librdkafka(), "transactional.id": names.transactional_id(f"t{n}"), "linger.ms": 0})
            for n in range(4)
        ]
        for producer in producers:
            producer.init_transactions(30)
        for number in range(ABORTED):
            producer = producers[number % len(producers)]
            producer.begin_transaction()
            producer.produce(topic, b"aborted" * 10, partition=0)
            producer.flush(10)
            producer.abort_transaction(30)
        producers[0].begin_transaction()
        for _ in range(5):
            producers[0].produce(topic, b"committed", partition=0)
        producers[0].commit_transaction(30)
        committed = consume(federation.librdkafka(), topic, 5, 1, **{"isolation.level": "read_committed"})
        assert committed == [digest(b"committed")] * 5
        everything = consume(federation.librdkafka(), topic, 5 + ABORTED, 1, **{"isolation.level": "read_uncommitted"})
        assert everything.count(digest(b"aborted" * 10)) == ABORTED

    await trio.to_thread.run_sync(run)
