"""Records of every shape, codec and promise: what is acknowledged and read is what a plain cluster gives."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial

import pytest
import trio
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from confluent_kafka import KafkaError, KafkaException, Producer

from kafka_client import ClusterClient
from tests.e2e.reading import BOUND, Seen, create, produce, read
from tests.fixtures.sides import Side, Sides, until
from tools.java_client import Jvm

LIST_OFFSETS, CREATE_TOPICS, INIT_PRODUCER_ID = 2, 19, 22
CODECS = ("none", "gzip", "snappy", "lz4", "zstd")
SHAPES: list[dict[str, object]] = [
    {"key": b"k", "value": b"plain"},
    {"key": None, "value": b"no key"},
    {"key": b"k", "value": None},
    {"key": None, "value": b""},
    {"key": b"", "value": b"empty key", "headers": [("a", b"1"), ("a", b"2"), ("none", None), ("", b"")]},
    {"key": "ключ".encode(), "value": b"x" * 200_000},
]


def everywhere(sides: Sides, work: Callable[[Side], object]) -> None:
    """The same result on every side."""
    expected = work(sides.direct)
    for side in (sides.here, sides.there):
        assert work(side) == expected, side.name


def ends(acknowledged: list[Seen]) -> list[tuple[int, int]]:
    return [(one.partition, one.offset) for one in acknowledged]


@pytest.mark.parametrize("codec", CODECS)
def test_librdkafka_codecs_and_shapes(sides: Sides, codec: str) -> None:
    def work(side: Side) -> object:
        topic = side.topic("shapes")
        create(side.librdkafka, topic)
        records = [{"topic": topic, "partition": 0, **shape} for shape in SHAPES]
        acknowledged = produce(side.librdkafka, records, compression_type=codec, linger_ms=50)
        assert ends(acknowledged) == [(0, offset) for offset in range(len(SHAPES))]
        return read(side.librdkafka, topic, len(SHAPES))

    everywhere(sides, work)


@pytest.mark.parametrize(("acks", "idempotent"), [(0, False), (1, False), ("all", False), ("all", True)])
def test_librdkafka_acknowledgements(sides: Sides, acks: int | str, idempotent: bool) -> None:
    def work(side: Side) -> object:
        topic = side.topic("acks")
        create(side.librdkafka, topic, partitions=2)
        records = [{"topic": topic, "partition": n % 2, "value": str(n).encode()} for n in range(200)]
        acknowledged = produce(side.librdkafka, records, acks=acks, enable_idempotence=idempotent)
        found = read(side.librdkafka, topic, 200, partitions=2)
        if acks != 0:
            assert sorted((one.partition, one.offset, one.value) for one in acknowledged) == sorted(
                (one.partition, one.offset, one.value) for one in found
            )
        return sorted(found)

    everywhere(sides, work)


def test_large_records_and_their_limit(sides: Sides) -> None:
    def work(side: Side) -> object:
        topic = side.topic("large")
        create(side.librdkafka, topic, max_message_bytes="4000000")
        large = [{"topic": topic, "partition": 0, "value": bytes([n]) * 3_500_000} for n in range(3)]
        produce(side.librdkafka, large, message_max_bytes=8_000_000)
        found = read(side.librdkafka, topic, 3, fetch_message_max_bytes=4_000_000)
        with pytest.raises(AssertionError) as refused:
            produce(side.librdkafka, [{"topic": topic, "value": b"x" * 4_500_000}], message_max_bytes=8_000_000)
        assert "MSG_SIZE_TOO_LARGE" in str(refused.value)
        return found

    everywhere(sides, work)


def test_what_a_producer_is_refused(sides: Sides) -> None:
    def work(side: Side) -> object:
        topic = side.topic("strict")
        create(side.librdkafka, topic, cleanup_policy="compact")
        refused: list[object] = []
        tries: tuple[Mapping[str, object], ...] = (
            {"topic": topic, "value": b"no key in a compacted topic"},
            {"topic": topic, "key": b"k", "value": b"far away", "timestamp": 4_000_000_000_000},
            {"topic": side.topic("no-such"), "value": b"x"},
            {"topic": topic, "key": b"k", "value": b"x", "partition": 7},
        )
        for record in tries:
            codes: list[object] = []

            def delivered(error: KafkaError | None, _: object, codes: list[object] = codes) -> None:
                codes.append(error and error.code())

            settings = {"message.timeout.ms": 3000, "log_level": 0, "topic.metadata.propagation.max.ms": 1000}
            producer = Producer({**side.librdkafka, **settings})
            try:
                producer.produce(
                    **record,  # type: ignore[arg-type]
                    on_delivery=delivered,
                )
                assert producer.flush(BOUND) == 0
            except KafkaException as error:
                codes.append(error.args[0].code())
            refused.append(codes)
        assert refused[0] == [KafkaError.INVALID_RECORD], refused
        return refused

    everywhere(sides, work)


@pytest.mark.parametrize("codec", CODECS)
async def test_java_codecs_and_shapes(sides: Sides, jvm: Jvm, codec: str) -> None:
    async def work(side: Side) -> object:
        topic = side.topic("java")
        async with (
            jvm.admin(side.java) as admin,
            jvm.producer(side.java, compression_type=codec) as producer,
            jvm.consumer(side.java) as consumer,
        ):
            await admin.create_topic(topic, 2)
            sent = await producer.send(topic, 20, partition=0, keys=3, size=2000, timestamp=1_700_000_000_000)
            sent += await producer.send(topic, 2, partition=0, tombstone=True, key="gone")
            sent += await producer.send(topic, 2, partition=1, headers={"a": "1"})
            assert all(each.error is None for each in sent)
            await consumer.assign((topic, 0), (topic, 1))
            found = await consumer.take(24)
            told = [(each.partition, each.offset) for each in sent]
            assert told == sorted((each.partition, each.offset) for each in found)
            return sorted((each.partition, each.offset, str(each.key), str(each.value), each.headers) for each in found)

    expected = await work(sides.direct)
    for side in (sides.here, sides.there):
        assert await work(side) == expected, side.name


@pytest.mark.parametrize("acks", ["0", "1", "all"])
async def test_java_acknowledgements(sides: Sides, jvm: Jvm, acks: str) -> None:
    for side in (sides.here, sides.there):
        topic = side.topic("acks")
        async with (
            jvm.admin(side.java) as admin,
            jvm.producer(side.java, acks=acks, enable_idempotence=str(acks == "all").lower()) as producer,
            jvm.consumer(side.java) as consumer,
        ):
            await admin.create_topic(topic, 1)
            sent = await producer.send(topic, 100, partition=0)
            await consumer.assign((topic, 0))
            found = await consumer.take(100)
            assert [each.value for each in found] == [f"{number}" for number in range(100)]
            if acks != "0":
                assert [each.offset for each in sent] == [each.offset for each in found]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("idempotent", [False, True])
def test_aiokafka_codecs_and_shapes(sides: Sides, codec: str, idempotent: bool) -> None:
    async def talk(side: Side) -> list[Seen]:
        topic = side.topic("aio")
        producer = AIOKafkaProducer(
            bootstrap_servers=side.bootstrap,
            compression_type=None if codec == "none" else codec,
            enable_idempotence=idempotent,
            max_request_size=2_000_000,
        )
        consumer = AIOKafkaConsumer(bootstrap_servers=side.bootstrap, auto_offset_reset="earliest")
        await producer.start()
        await consumer.start()
        try:
            for shape in SHAPES:
                headers = [(name, value or b"") for name, value in shape.get("headers", ())]  # type: ignore[attr-defined]
                await producer.send_and_wait(topic, shape["value"], shape["key"], 0, headers=headers)
            consumer.assign([TopicPartition(topic, 0)])
            found = [await asyncio.wait_for(consumer.getone(), BOUND) for _ in SHAPES]
            return [Seen(one.partition, one.offset, one.key, one.value, tuple(one.headers)) for one in found]
        finally:
            await consumer.stop()
            await producer.stop()

    def work(side: Side) -> object:
        create(side.librdkafka, side.topic("aio"))
        return asyncio.run(talk(side))

    everywhere(sides, work)


async def test_new_topics_and_partitions_take_writes_at_once(sides: Sides, jvm: Jvm) -> None:
    """A first batch refused and a second one taken would leave an idempotent producer out of order for ever."""
    async with jvm.admin(sides.here.java) as admin:
        for number in range(12):
            for side in (sides.here, sides.there):
                topic = side.topic(f"new-{number}")
                async with jvm.producer(side.java, delivery_timeout_ms="15000") as producer:
                    await admin.done("create_topics", topics=[{"name": topic, "partitions": 1}])
                    sent = await producer.send(topic, 40, partition=0, size=2000)
                    assert [each.offset for each in sent] == list(range(40))
                    await admin.done("create_partitions", topics={topic: 2})
                with trio.fail_after(15):
                    while True:  # until clients are told of the new partition
                        async with jvm.producer(side.java) as fresh:
                            if len(await fresh.partitions_for(topic)) == 2:
                                sent = await fresh.send(topic, 40, partition=1, size=2000)
                                break
                assert [each.offset for each in sent] == list(range(40))


async def test_leaders_serve_as_soon_as_a_topic_is_made(sides: Sides) -> None:
    """A broker's own metadata is some milliseconds ahead of its logs; the endpoint says "created" only after both."""
    async with ClusterClient("endpoint", [sides.here.bootstrap]) as client:
        for number in range(15):
            for side in (sides.here, sides.there):
                name = side.topic(f"t-{number}")
                new = {"name": name, "num_partitions": 3, "replication_factor": 1, "assignments": [], "configs": []}
                made = await client.call(CREATE_TOPICS, {"topics": [new], "timeout_ms": 10_000, "validate_only": False})
                assert [one["error_code"] for one in made["topics"]] == [0]
                asked = [{"partition_index": n, "current_leader_epoch": -1, "timestamp": -1} for n in range(3)]
                request = {"replica_id": -1, "isolation_level": 0, "topics": [{"name": name, "partitions": asked}]}
                ends = await client.call(LIST_OFFSETS, request, broker=side.node)
                assert [one["error_code"] for one in ends["topics"][0]["partitions"]] == [0, 0, 0]


async def test_producer_ids_of_both_clusters_are_different(sides: Sides) -> None:
    """Each cluster counts them from 0; a broker takes a second producer of the same id for the first one again."""
    given: dict[int, list[int]] = {}
    request = {"transactional_id": None, "transaction_timeout_ms": 0, "producer_id": -1, "producer_epoch": -1}
    async with ClusterClient("endpoint", [sides.here.bootstrap]) as client:
        for node in (sides.here.node, sides.there.node):
            call = partial(client.call, INIT_PRODUCER_ID, request, broker=node)
            # The first one waits for the controller to give the broker some.
            answers = [await until(call, lambda answer: answer["error_code"] == 0) for _ in range(5)]
            given[node] = [one["producer_id"] for one in answers]
    origins = [{one >> 40 for one in mine} for mine in given.values()]
    assert all(len(origin) == 1 for origin in origins), given
    assert origins[0] != origins[1], given


async def test_idempotent_producers_of_both_clusters_do_not_collide(sides: Sides) -> None:
    """Brokers of different clusters give the same producer ids, and would take one's records for another's."""
    here, there = sides.here.topic("pids"), sides.there.topic("pids")
    config = sides.here.librdkafka
    await trio.to_thread.run_sync(lambda: create(config, here, there))
    total: list[Seen] = []

    def produce_to_both(number: int) -> None:
        records = [{"topic": topic, "value": f"{number}:{n}".encode()} for n in range(50) for topic in (here, there)]
        total.extend(produce(config, records, enable_idempotence=True, linger_ms=1))

    async with trio.open_nursery() as nursery:
        for number in range(6):
            nursery.start_soon(trio.to_thread.run_sync, produce_to_both, number)
    assert len(total) == 600
    for topic in (here, there):
        found = await trio.to_thread.run_sync(read, config, topic, 300)
        values = [one.value for one in found]
        assert len(set(values)) == 300
        for number in range(6):
            assert [one for one in values if one and one.startswith(f"{number}:".encode())] == [
                f"{number}:{n}".encode() for n in range(50)
            ]


def test_a_producer_writes_both_clusters(sides: Sides) -> None:
    topics = [sides.here.topic("a"), sides.there.topic("a")]
    config = sides.here.librdkafka
    create(config, *topics, partitions=3)
    records = [{"topic": topics[n % 2], "key": str(n % 7).encode(), "value": str(n).encode()} for n in range(400)]
    produce(config, records, enable_idempotence=True)
    for index, topic in enumerate(topics):
        found = read(config, topic, 200, partitions=3)
        assert sorted(int(one.value or b"") for one in found) == list(range(index, 400, 2))
