"""Readers of three libraries, of every kind, that write down what they get, until `told.done`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener
from aiokafka.errors import KafkaError as AioKafkaError
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from tests.history.producers import judged
from tests.history.told import Told
from tools.java_client import Jvm
from tools.local_cluster.cluster import Setting

BEGINNING = -2


@dataclass(frozen=True)
class Reading:
    """A reader: its name in the history, its topic, and how it is configured, in the library's own words.

    `group`: None for `assign()`, with positions kept outside. `sitting`: seconds after which it commits (or keeps its
    positions), closes and begins again as a new client; 0: never.
    """

    name: str
    topic: str
    group: str | None
    settings: Mapping[str, Setting] = field(default_factory=dict)
    sitting: float = 0.0
    partitions: int = 3


def librdkafka(told: Told, config: Mapping[str, Setting], kind: Reading) -> None:
    """Blocks; a thread of its own."""
    kept: dict[int, int] = {}
    while not told.done.is_set():
        _sitting(told, config, kind, kept)


def _sitting(told: Told, config: Mapping[str, Setting], kind: Reading, kept: dict[int, int]) -> None:
    def report(error: KafkaError) -> None:
        told.report(kind.name, "fatal" if error.fatal() else "retriable", error)

    def changed(_consumer: Consumer, _partitions: list[TopicPartition]) -> None:
        told.assigned(kind.name)

    own = {
        "group.id": kind.group or "unused",
        "auto.offset.reset": "earliest" if kind.group else "error",
        "enable.auto.commit": kind.group is not None and not kind.sitting,
        "fetch.wait.max.ms": 100,
        "error_cb": report,
        "log_level": 0,
    }
    consumer = Consumer({**config, **own, **kind.settings})
    if kind.group:
        consumer.subscribe([kind.topic], on_assign=changed, on_revoke=changed, on_lost=changed)
    else:
        wanted = [TopicPartition(kind.topic, n, kept.get(n, BEGINNING)) for n in range(kind.partitions)]
        consumer.assign(wanted)
    begin = time.monotonic()
    try:
        while not told.done.is_set() and not (kind.sitting and time.monotonic() > begin + kind.sitting):
            for message in consumer.consume(200, 0.05):
                if (error := message.error()) is not None:
                    told.report(kind.name, judged(error), error)
                    continue
                partition, offset = message.partition() or 0, message.offset() or 0
                told.read(kind.name, kind.topic, partition, offset, message.value() or b"")
                kept[partition] = offset + 1
        if kind.group and kind.sitting and kept:
            _commit(told, consumer, kind, kept)
    finally:
        consumer.close()


def _commit(told: Told, consumer: Consumer, kind: Reading, kept: Mapping[int, int]) -> None:
    positions = [TopicPartition(kind.topic, partition, offset) for partition, offset in kept.items()]
    try:
        consumer.commit(offsets=positions, asynchronous=False)
    except KafkaException as error:
        told.report(kind.name, judged(error.args[0]), f"commit: {error.args[0]}")


async def aiokafka(told: Told, bootstrap: str, kind: Reading) -> None:
    """In asyncio. Without a group it is not offered."""

    class Listener(ConsumerRebalanceListener):  # type: ignore[misc]
        def on_partitions_revoked(self, revoked: object) -> None:
            told.assigned(kind.name)

        def on_partitions_assigned(self, assigned: object) -> None:
            told.assigned(kind.name)

    consumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap,
        group_id=kind.group,
        auto_offset_reset="earliest",
        session_timeout_ms=20000,
        fetch_max_wait_ms=100,
        **kind.settings,
    )
    consumer.subscribe([kind.topic], listener=Listener())
    await consumer.start()
    while not told.done.is_set():
        try:
            taken = await consumer.getmany(timeout_ms=50)
        except AioKafkaError as error:
            told.report(kind.name, "retriable" if error.retriable else "error", repr(error))
            continue
        for messages in taken.values():
            for one in messages:
                told.read(kind.name, one.topic, one.partition, one.offset, one.value or b"")
    await asyncio.wait_for(consumer.stop(), 30)


async def java(told: Told, jvm: Jvm, config: Mapping[str, str], kind: Reading) -> None:
    """In trio. Settings are the arguments of `jvm.consumer`."""
    given: dict[str, Any] = dict(kind.settings)
    opened = jvm.consumer(
        config,
        group=kind.group,
        auto_commit=kind.group is not None,
        fetch_max_wait_ms="100",
        **given,
    )
    async with opened as consumer:
        if kind.group:
            await consumer.subscribe(kind.topic)
        else:
            await consumer.assign(*((kind.topic, number) for number in range(kind.partitions)))
        while not told.done.is_set():
            taken = await consumer.read(1, 0.1)
            for event in taken.events:
                if event.error is None:
                    told.assigned(kind.name)
                else:
                    told.report(kind.name, "retriable" if event.error.retriable else "error", event.error)
            for one in taken.records:
                told.read(kind.name, one.topic, one.partition, one.offset, (one.value or "").encode())
        told.gaps[kind.name].found = [(gap.end, gap.seconds) for gap in await consumer.gaps()]
