"""Small shared parts of the client tests: topics made, records produced and read with librdkafka."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from confluent_kafka import OFFSET_BEGINNING, Consumer, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic, OffsetSpec

from tools.local_cluster.cluster import Setting

BOUND = 60.0  # seconds


class Seen(NamedTuple):
    """A record as a consumer sees it, without what depends on the moment."""

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]


def seen(message: Message) -> Seen:
    """The offset is -1 where none was told (acks=0)."""
    partition, offset = message.partition(), message.offset()
    pairs: Iterable[Any] = message.headers() or ()
    return Seen(
        -1 if partition is None else partition,
        -1 if offset is None else offset,
        message.key(),
        message.value(),
        tuple((name, value) for name, value in pairs),
    )


def create(config: Mapping[str, Setting], *topics: str, partitions: int = 1, **settings: str) -> None:
    """Topics that take writes, through whatever `config` names; settings with underscores for dots."""
    named = {name.replace("_", "."): value for name, value in settings.items()}
    admin = AdminClient({**config, "log_level": 0})
    for made in admin.create_topics([NewTopic(topic, partitions, config=named) for topic in topics]).values():
        made.result(BOUND)
    # A broker's metadata is ahead of its logs; acks=0 into a log that is not open yet is lost without a word.
    wanted = {TopicPartition(topic, n): OffsetSpec.latest() for topic in topics for n in range(partitions)}  # type: ignore[no-untyped-call]
    deadline = time.monotonic() + BOUND
    while wanted:
        assert time.monotonic() < deadline, wanted
        wanted = {one: wanted[one] for one, end in admin.list_offsets(wanted).items() if end.exception(BOUND)}


def produce(config: Mapping[str, Setting], records: Iterable[Mapping[str, object]], **settings: Setting) -> list[Seen]:
    """Sends records (arguments of Producer.produce) and gives each as it was acknowledged; raises what failed."""
    named = {name.replace("_", "."): value for name, value in settings.items()}
    producer, acknowledged, failed = Producer({**config, "log_level": 0, **named}), [], []

    def delivered(error: object, message: Message) -> None:
        if error is not None:
            failed.append(error)
        else:
            acknowledged.append(seen(message))

    for record in records:
        producer.produce(**record, on_delivery=delivered)  # type: ignore[arg-type]
        producer.poll(0)
    left = producer.flush(BOUND)
    assert not left and not failed, (left, failed[:3])
    return acknowledged


def read(
    config: Mapping[str, Setting], topic: str, count: int, *, partitions: int = 1, **settings: Setting
) -> list[Seen]:
    """The first `count` records of a topic, without a group; in order within each partition."""
    named = {name.replace("_", "."): value for name, value in settings.items()}
    consumer = Consumer({**config, "group.id": "unused", "enable.auto.commit": False, "log_level": 0, **named})
    try:
        consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in range(partitions)])
        return take(consumer, count)
    finally:
        consumer.close()


def take(consumer: Consumer, count: int) -> list[Seen]:
    """The next `count` records, or AssertionError."""
    deadline = time.monotonic() + BOUND
    found: list[Seen] = []
    while len(found) < count:
        assert time.monotonic() < deadline, f"{len(found)} of {count} records: {found[-3:]}"
        message = consumer.poll(0.5)
        if message is None:
            continue
        error = message.error()
        assert error is None or error.retriable(), error
        if error is None:
            found.append(seen(message))
    return found
