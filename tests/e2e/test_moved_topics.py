"""Topics that have moved, several times and also back: everything as clients left it, at the offsets they know."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from functools import partial
from typing import Any

import pytest
import trio
from aiokafka import AIOKafkaConsumer
from confluent_kafka import Consumer, Message, Producer, TopicPartition

from kafka_client import ClusterClient
from tests.e2e.reading import BOUND, create
from tests.fixtures.mirrors import log_of
from tests.fixtures.names import Names
from tests.history.checker import Acknowledged, Read, faults
from tests.integration.test_mirror_cases import batch, write
from tools.hand_move import move
from tools.java_client import Jvm
from tools.local_cluster import Cluster
from tools.local_federation import Federation

PARTITIONS = 2
COUNT = 80  # records of each producer in each placement


class Work:
    """What is written and read of one topic."""

    def __init__(self, federation: Federation, topic: str) -> None:
        self.federation, self.topic = federation, topic
        self.config = {**federation.librdkafka(), "log_level": 0}
        self.told: list[Acknowledged] = []
        self.reads: list[Read] = []
        self.times: dict[tuple[int, int], int] = {}  # (partition, timestamp in ms) -> its first offset
        self.aborted: list[tuple[str, int]] = []

    # -- writing

    def write(self, producer: Producer, name: str, first: int, count: int = COUNT) -> None:
        """Through a producer that is kept over moves."""
        failed: list[object] = []

        def delivered(number: int, error: object, message: Message) -> None:
            if error is not None:
                failed.append(error)
                return
            partition, offset = message.partition(), message.offset()
            assert partition is not None and offset is not None
            self.told.append(Acknowledged(name, number, self.topic, partition, offset))

        for number in range(first, first + count):
            producer.produce(
                self.topic,
                f"{name}:{number}",
                partition=number % PARTITIONS,
                on_delivery=partial(delivered, number),
            )
            producer.poll(0)
        assert producer.flush(BOUND) == 0 and not failed, failed[:3]

    def transactions(self, name: str) -> None:
        """One aborted, one committed, several batches each."""
        producer = Producer({**self.config, "transactional.id": name, "batch.num.messages": 10, "linger.ms": 1})
        producer.init_transactions(BOUND)
        for start, commit in ((0, False), (COUNT, True)):
            producer.begin_transaction()
            before = len(self.told)
            self.write(producer, name, start)
            if commit:
                producer.commit_transaction(BOUND)
            else:
                producer.abort_transaction(BOUND)
                self.aborted += [(one.producer, one.number) for one in self.told[before:]]
                del self.told[before:]

    # -- reading

    def got(self, reader: str, partition: int, offset: int, value: bytes) -> None:
        producer, _, number = value.decode().partition(":")
        self.reads.append(Read(reader, producer, int(number), self.topic, partition, offset))

    def take(self, reader: str, consumer: Consumer, wanted: Iterable[tuple[int, int]]) -> None:
        """Until every (partition, offset) of `wanted` has been read."""
        left = set(wanted)
        for _ in range(int(BOUND * 5)):
            if not left:
                return
            for message in consumer.consume(500, 0.2):
                assert message.error() is None, message.error()
                place = message.partition(), message.offset()
                assert place[0] is not None and place[1] is not None
                left.discard(place)
                self.got(reader, *place, message.value() or b"")  # type: ignore[arg-type]
        raise AssertionError(f"{reader}: {len(left)} not read: {sorted(left)[:5]}")

    def places(self) -> set[tuple[int, int]]:
        return {(one.partition, one.offset) for one in self.told}

    def consumer(self, group: str, **settings: Any) -> Consumer:
        named = {name.replace("_", "."): value for name, value in settings.items()}
        base = {"group.id": group, "enable.auto.commit": False, "auto.offset.reset": "error"}
        return Consumer({**self.config, **base, **named})

    def from_beginning(self, reader: str) -> None:
        consumer = self.consumer("unused", isolation_level="read_committed")
        consumer.assign([TopicPartition(self.topic, number, 0) for number in range(PARTITIONS)])
        self.take(reader, consumer, self.places())
        consumer.close()

    def resume(self, group: str, done: set[tuple[int, int]]) -> set[tuple[int, int]]:
        """Reads on from the group's commits, and commits; what has been read by then."""
        consumer = self.consumer(group, auto_offset_reset="error" if done else "earliest")
        consumer.subscribe([self.topic])
        self.take(group, consumer, self.places() - done)
        consumer.commit(asynchronous=False)
        consumer.close()
        return self.places()

    def from_offsets(self, partition: int, offset: int) -> None:
        """A reader that keeps offsets elsewhere, and one that looks a time up: both find the record they mean."""
        consumer = self.consumer("unused")
        consumer.assign([TopicPartition(self.topic, partition, offset)])
        (message,) = consumer.consume(1, BOUND)
        assert message.error() is None and message.offset() == offset, (message.error(), message.offset())
        kind, time = message.timestamp()
        assert kind
        (found,) = consumer.offsets_for_times([TopicPartition(self.topic, partition, time)], BOUND)
        assert found.error is None and found.offset <= offset
        consumer.assign([TopicPartition(self.topic, partition, found.offset)])
        (first,) = consumer.consume(1, BOUND)
        assert first.timestamp()[1] == time, "another record than the one looked up"
        low, high = consumer.get_watermark_offsets(TopicPartition(self.topic, partition), BOUND)
        assert low == 0 and high > max(one.offset for one in self.told if one.partition == partition)
        consumer.close()


async def aiokafka_reads(work: Work, reader: str) -> None:
    consumer = AIOKafkaConsumer(
        work.topic,
        bootstrap_servers=work.federation.bootstrap(),
        auto_offset_reset="earliest",
        isolation_level="read_committed",
    )
    await consumer.start()
    try:
        left = work.places()
        async with asyncio.timeout(BOUND):
            while left:
                for messages in (await consumer.getmany(timeout_ms=200)).values():
                    for one in messages:
                        left.discard((one.partition, one.offset))
                        work.got(reader, one.partition, one.offset, one.value)
    finally:
        await consumer.stop()


async def java_reads(work: Work, jvm: Jvm, reader: str, names: Names) -> None:
    group = names.group(reader)
    async with jvm.consumer(work.federation.java(), group=group, read_committed=True) as consumer:
        await consumer.assign(*((work.topic, number) for number in range(PARTITIONS)))
        left = work.places()
        with trio.fail_after(BOUND):
            while left:
                taken = await consumer.read(1, 5)
                assert not [one for one in taken.events if one.kind == "error"], taken.events
                for one in taken.records:
                    left.discard((one.partition, one.offset))
                    work.got(reader, one.partition, one.offset, (one.value or "").encode())


async def test_everything_stays_where_it_was_over_moves_there_and_back(
    federation: Federation, east: Cluster, west: Cluster, jvm: Jvm, names: Names
) -> None:
    topic, group = names.topic("moved"), names.group("g")
    await trio.to_thread.run_sync(partial(create, federation.librdkafka(), topic, partitions=PARTITIONS))
    work = Work(federation, topic)
    run = trio.to_thread.run_sync
    kept = Producer({**work.config, "enable.idempotence": True, "linger.ms": 2, "batch.num.messages": 7})
    plain = Producer({**work.config, "acks": "1", "linger.ms": 1, "compression.type": "lz4"})
    done: set[tuple[int, int]] = set()
    route = [east, west, east]
    async with jvm.producer(federation.java(), linger_ms="2") as java:
        for turn, at in enumerate(route):
            if turn:
                await move(federation, route[turn - 1], at, topic)
            await run(work.write, kept, "kept", turn * COUNT)
            await run(work.write, plain, "plain", turn * COUNT)
            for number in range(PARTITIONS):
                sent = await java.send(topic, COUNT, first=turn * COUNT, partition=number, prefix=f"java{number}:")
                assert all(one.error is None for one in sent), sent
                work.told += [Acknowledged(f"java{number}", one.number, topic, number, one.offset) for one in sent]
            await run(work.transactions, names.group(f"t{turn}") + ("-west" if at is west else ""))
            readers = [f"{library}-{turn}" for library in ("c", "aio", "java")]
            await run(work.from_beginning, readers[0])
            await run(lambda reader=readers[1]: asyncio.run(aiokafka_reads(work, reader)))  # type: ignore[misc]
            await java_reads(work, jvm, readers[2], names)
            done = await run(work.resume, group, done)
            assert faults(work.told, work.reads, [*readers, group], aborted=work.aborted) == []
            for one in work.told[:: len(work.told) // 4]:
                await run(work.from_offsets, one.partition, one.offset)
            work.reads = [one for one in work.reads if one.reader == group]


async def test_a_retry_after_a_move_is_answered_with_its_first_offset(
    federation: Federation, east: Cluster, west: Cluster, names: Names
) -> None:
    topic = names.topic("retried")
    await trio.to_thread.run_sync(partial(create, federation.librdkafka(), topic))

    def of(producer: int, sequence: int) -> bytearray:
        return batch(b"1", b"2", producer_id=1 << 40 | producer, producer_epoch=0, base_sequence=sequence)

    async with (
        ClusterClient("endpoint", (federation.bootstrap(),)) as client,
        ClusterClient("west", west.addresses()) as there,
    ):
        first = await write(client, topic, of(900_001, 0), of(900_001, 2), of(900_002, 0))
        await move(federation, east, west, topic)
        assert await write(client, topic, of(900_001, 2), of(900_001, 0)) == [first[1], first[0]]
        with pytest.raises(AssertionError, match="45"):  # what comes before it is nowhere
            await write(client, topic, of(900_002, 8))
        assert await write(client, topic, of(900_001, 4), of(900_002, 2)) == [6, 8]
        assert await write(client, topic, of(900_001, 0), of(900_001, 4)) == [first[0], 6]
        assert len(await log_of(there, topic, 0)) == 10
