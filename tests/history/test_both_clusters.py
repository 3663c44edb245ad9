"""Producers and readers of three libraries at work on both clusters at once; then the whole history is judged."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any

import trio
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from confluent_kafka import Consumer

from tests.e2e.reading import BOUND, create, produce
from tests.fixtures.sides import Sides
from tests.history.checker import Acknowledged, Read, faults
from tools.java_client import Jvm

COUNT = 200  # records of each producer to each topic
PARTITIONS = 3


class Work:
    """What all of them do: half before the readers restart, half after."""

    def __init__(self, sides: Sides, jvm: Jvm, topics: list[str]) -> None:
        self.sides, self.jvm, self.topics = sides, jvm, topics
        self.bootstrap, self.librdkafka, self.java = sides.here.bootstrap, sides.here.librdkafka, sides.here.java
        self.told: list[Acknowledged] = []
        self.reads: list[Read] = []

    def read(
        self, reader: str, topic: str | None, partition: int | None, offset: int | None, value: bytes | None
    ) -> None:
        assert topic is not None and partition is not None and offset is not None
        producer, _, number = (value or b"").decode().partition(":")
        self.reads.append(Read(reader, producer, int(number), topic, partition, offset))

    # -- producers; a partition by number keeps the order within it comparable

    def produce_librdkafka(self, first: int) -> None:
        records = [
            {"topic": topic, "partition": n % PARTITIONS, "value": b"c:%d" % n}
            for n in range(first, first + COUNT)
            for topic in self.topics
        ]
        for topic in self.topics:
            mine = [one for one in records if one["topic"] == topic]
            for seen in produce(self.librdkafka, mine, enable_idempotence=True, linger_ms=2):
                number = int((seen.value or b"").partition(b":")[2])
                self.told.append(Acknowledged("c", number, topic, seen.partition, seen.offset))

    async def produce_aiokafka(self, first: int) -> None:
        producer = AIOKafkaProducer(bootstrap_servers=self.bootstrap, enable_idempotence=True)
        await producer.start()
        try:
            waiting = [
                (topic, n, await producer.send(topic, b"a:%d" % n, partition=n % PARTITIONS))
                for n in range(first, first + COUNT)
                for topic in self.topics
            ]
            for topic, number, answer in waiting:
                stored = await asyncio.wait_for(answer, BOUND)
                self.told.append(Acknowledged("a", number, topic, stored.partition, stored.offset))
        finally:
            await producer.stop()

    async def produce_java(self, first: int) -> None:
        async with self.jvm.producer(self.java, linger_ms="2") as producer:
            for topic in self.topics:
                for partition in range(PARTITIONS):
                    # Its records carry the number they are given: one run of numbers for each partition.
                    start = first * PARTITIONS + partition * COUNT
                    sent = await producer.send(
                        topic, COUNT // PARTITIONS, first=start, partition=partition, prefix="j:"
                    )
                    assert all(one.error is None for one in sent)
                    self.told += [Acknowledged("j", one.number, topic, one.partition, one.offset) for one in sent]

    # -- readers, until they have what was acknowledged so far

    def missing(self, reader: str) -> int:
        return len(self.told) - sum(one.reader == reader for one in self.reads)

    def read_librdkafka(self, reader: str, skip: int = 0, strategy: str = "range") -> None:
        """`skip`: commits so many records too far, as a broken reader."""
        base = {"group.id": self.sides.here.group(reader), "auto.offset.reset": "earliest", "enable.auto.commit": False}
        consumer = Consumer({**self.librdkafka, **base, "partition.assignment.strategy": strategy, "log_level": 0})
        consumer.subscribe(self.topics)
        try:
            for _ in range(int(BOUND * 10)):
                if self.missing(reader) <= 0:
                    break
                for message in consumer.consume(500, 0.1):
                    assert message.error() is None, message.error()
                    place = (message.topic(), message.partition(), message.offset())
                    self.read(reader, *place, message.value())
            positions = consumer.position(consumer.assignment())
            for one in positions:
                one.offset += skip
            consumer.commit(offsets=[one for one in positions if one.offset >= 0], asynchronous=False)
        finally:
            consumer.close()

    async def read_java(self, reader: str) -> None:
        group = self.sides.there.group(reader)
        async with self.jvm.consumer(self.java, group=group, protocol="consumer") as consumer:
            await consumer.subscribe(*self.topics)
            with trio.fail_after(BOUND):
                while self.missing(reader) > 0:
                    for one in (await consumer.read(1, 0.2)).records:
                        self.read(reader, one.topic, one.partition, one.offset, (one.value or "").encode())
            await consumer.commit()

    async def read_aiokafka(self, reader: str) -> None:
        settings = {"bootstrap_servers": self.bootstrap, "group_id": self.sides.here.group(reader)}
        consumer = AIOKafkaConsumer(*self.topics, **settings, auto_offset_reset="earliest", enable_auto_commit=False)
        await consumer.start()
        try:
            for _ in range(int(BOUND * 10)):
                if self.missing(reader) <= 0:
                    break
                for messages in (await consumer.getmany(timeout_ms=100)).values():
                    for one in messages:
                        self.read(reader, one.topic, one.partition, one.offset, one.value)
            await consumer.commit()
        finally:
            await consumer.stop()


async def together(*works: Callable[[], Awaitable[None]]) -> None:
    async with trio.open_nursery() as nursery:
        for work in works:
            nursery.start_soon(work)


def threaded(work: Callable[..., None], *arguments: object) -> Callable[[], Awaitable[None]]:
    return partial(trio.to_thread.run_sync, partial(work, *arguments))


def in_asyncio(make: Callable[..., Coroutine[Any, Any, None]], *arguments: object) -> Callable[[], Awaitable[None]]:
    return threaded(lambda: asyncio.run(make(*arguments)))


async def test_everything_once_and_in_order(sides: Sides, jvm: Jvm) -> None:
    topics = [sides.here.topic("history"), sides.there.topic("history")]
    await trio.to_thread.run_sync(partial(create, sides.here.librdkafka, *topics, partitions=PARTITIONS))
    work = Work(sides, jvm, topics)
    readers = ["classic", "sticky", "java", "aio"]
    for start in (0, COUNT):
        await together(
            threaded(work.produce_librdkafka, start),
            in_asyncio(work.produce_aiokafka, start),
            partial(work.produce_java, start),
        )
        await together(
            threaded(work.read_librdkafka, "classic"),
            threaded(work.read_librdkafka, "sticky", 0, "cooperative-sticky"),
            partial(work.read_java, "java"),
            in_asyncio(work.read_aiokafka, "aio"),
        )
    assert len(work.told) == 2 * 2 * (2 * COUNT + COUNT // PARTITIONS * PARTITIONS)
    assert faults(work.told, work.reads, readers) == []


async def test_a_broken_reader_is_found(sides: Sides, jvm: Jvm) -> None:
    """The control: one that commits a record too far loses one for each partition, and the judge says so."""
    topics = [sides.here.topic("history"), sides.there.topic("history")]
    await trio.to_thread.run_sync(partial(create, sides.here.librdkafka, *topics, partitions=PARTITIONS))
    work = Work(sides, jvm, topics)

    def run() -> None:
        work.produce_librdkafka(0)
        work.read_librdkafka("broken", 1)
        work.produce_librdkafka(COUNT)
        consumed = len(work.told) - PARTITIONS * len(topics)
        work.told, told = work.told[:consumed], work.told  # it will never have more
        work.read_librdkafka("broken")
        work.told = told

    await trio.to_thread.run_sync(run)
    lost = [text for text in faults(work.told, work.reads, ["broken"]) if text.startswith("broken: lost")]
    assert len(lost) == PARTITIONS * len(topics), lost
