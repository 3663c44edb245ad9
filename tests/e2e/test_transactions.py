"""Transactions with three libraries, on either cluster: commit, abort, what committed readers see, offsets in them."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer
from confluent_kafka import TopicPartition as Position

from tests.e2e.reading import BOUND, create, produce, read, take
from tests.fixtures.sides import Said, Side, Sides
from tools.java_client import JavaError, Jvm


def same(sides: Sides, work: object) -> None:
    assert callable(work)
    expected = work(sides.direct)
    for side in (sides.here, sides.there):
        assert work(side) == expected, side.name


def test_librdkafka_commits_and_aborts(sides: Sides) -> None:
    def work(side: Side) -> object:
        topic = side.topic("orders")
        create(side.librdkafka, topic, partitions=2)
        producer = Producer({**side.librdkafka, "transactional.id": side.transactional_id("t"), "log_level": 0})
        producer.init_transactions(BOUND)
        for number in range(6):
            producer.begin_transaction()
            for n in range(10):
                producer.produce(topic, b"%d-%d" % (number, n), partition=n % 2)
            if number % 3 == 2:
                producer.flush(BOUND)
                producer.abort_transaction(BOUND)
            else:
                producer.commit_transaction(BOUND)
        committed = read(side.librdkafka, topic, 40, partitions=2, isolation_level="read_committed")
        everything = read(side.librdkafka, topic, 60, partitions=2, isolation_level="read_uncommitted")
        assert len({one.value for one in committed}) == 40
        return sorted(committed), sorted(everything)

    same(sides, work)


def test_librdkafka_reads_and_writes_in_one_transaction(sides: Sides) -> None:
    """Consume, process, produce, twice over a restart: each record is processed exactly once."""

    def work(side: Side) -> object:
        source, sink, group = side.topic("in"), side.topic("out"), side.group("g")
        create(side.librdkafka, source, sink)
        settings = {"group.id": group, "auto.offset.reset": "earliest", "enable.auto.commit": False, "log_level": 0}
        transactional = {"transactional.id": side.transactional_id("t"), "log_level": 0}
        for start in (0, 20):
            produce(side.librdkafka, [{"topic": source, "value": b"%d" % n} for n in range(start, start + 20)])
            consumer = Consumer({**side.librdkafka, **settings})
            consumer.subscribe([source])
            producer = Producer({**side.librdkafka, **transactional})
            producer.init_transactions(BOUND)
            for end in ("abort", "commit"):
                producer.begin_transaction()
                if end == "commit":
                    consumer.seek(Position(source, 0, start))
                for one in take(consumer, 20):
                    producer.produce(sink, b"did " + (one.value or b""))
                here = consumer.position(consumer.assignment())
                producer.send_offsets_to_transaction(here, consumer.consumer_group_metadata(), BOUND)
                if end == "abort":
                    producer.flush(BOUND)
                    producer.abort_transaction(BOUND)
                else:
                    producer.commit_transaction(BOUND)
            consumer.close()
        done = read(side.librdkafka, sink, 40, isolation_level="read_committed")
        assert [one.value for one in done] == [b"did %d" % n for n in range(40)]
        return done

    same(sides, work)


def test_librdkafka_fences_the_former(sides: Sides) -> None:
    def work(side: Side) -> object:
        topic = side.topic("orders")
        create(side.librdkafka, topic)
        config = {**side.librdkafka, "transactional.id": side.transactional_id("t"), "log_level": 0}
        former, later = Producer(config), Producer(config)
        former.init_transactions(BOUND)
        former.begin_transaction()
        former.produce(topic, b"former")
        former.flush(BOUND)
        later.init_transactions(BOUND)
        with pytest.raises(KafkaException) as refused:
            former.commit_transaction(BOUND)
        later.begin_transaction()
        later.produce(topic, b"later")
        later.commit_transaction(BOUND)
        values = [one.value for one in read(side.librdkafka, topic, 1, isolation_level="read_committed")]
        error: KafkaError = refused.value.args[0]
        return error.code(), error.fatal(), values

    same(sides, work)


async def test_java_transactions(sides: Sides, jvm: Jvm) -> None:
    async def script(side: Side, say: Said) -> None:
        topic, group = side.topic("orders"), side.group("g")
        transactional = partial(jvm.producer, side.java, transactional_id=side.transactional_id("t"))
        async with (
            jvm.admin(side.java) as admin,
            transactional() as producer,
            jvm.consumer(side.java, group=group, read_committed=True) as consumer,
        ):
            await admin.create_topic(topic, 1)
            await consumer.subscribe(topic)
            await producer.init_transactions()
            for number, end in enumerate(("commit", "abort", "commit")):
                await producer.begin()
                await producer.send(topic, 3, first=10 * number)
                await (producer.commit() if end == "commit" else producer.abort())
            say("committed", [(each.offset, each.value) for each in await consumer.take(6)])
            await producer.begin()
            await producer.send(topic, 1, first=90)
            await producer.send_offsets([(topic, 0, 5)], consumer=consumer)
            await producer.commit()
            say("offsets", list((await consumer.committed((topic, 0))).values()))
            await producer.begin()
            await producer.send_offsets([(topic, 0, 2)], consumer=consumer)
            await producer.abort()
            say("offsets, aborted", list((await consumer.committed((topic, 0))).values()))
            await producer.begin()
            await producer.send(topic, 1, first=91)
            async with transactional() as later:
                await later.init_transactions()
                try:
                    await producer.commit()
                except JavaError as error:
                    say("fenced", error.kind)

    await sides.compare(script)


def test_aiokafka_transactions(sides: Sides) -> None:
    async def talk(side: Side) -> object:
        topic, group = side.topic("orders"), side.group("g")
        producer = AIOKafkaProducer(bootstrap_servers=side.bootstrap, transactional_id=side.transactional_id("t"))
        consumer = AIOKafkaConsumer(
            bootstrap_servers=side.bootstrap, isolation_level="read_committed", auto_offset_reset="earliest"
        )
        await producer.start()
        await consumer.start()
        try:
            for number in range(3):
                await producer.begin_transaction()
                for n in range(5):
                    await producer.send_and_wait(topic, b"%d-%d" % (number, n), partition=0)
                if number == 1:
                    await producer.abort_transaction()
                else:
                    await producer.send_offsets_to_transaction({TopicPartition(topic, 0): number + 1}, group)
                    await producer.commit_transaction()
            consumer.assign([TopicPartition(topic, 0)])
            found = [await asyncio.wait_for(consumer.getone(), BOUND) for _ in range(10)]
            return [(one.offset, one.value) for one in found]
        finally:
            await consumer.stop()
            await producer.stop()

    def work(side: Side) -> object:
        topic = side.topic("orders")
        create(side.librdkafka, topic)
        found = asyncio.run(talk(side))
        consumer = Consumer({**side.librdkafka, "group.id": side.group("g"), "log_level": 0})
        try:
            return found, [one.offset for one in consumer.committed([Position(topic, 0)], timeout=BOUND)]
        finally:
            consumer.close()

    same(sides, work)
