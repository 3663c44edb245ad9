"""librdkafka over both clusters: KIP-848 with an expression, and transactions that meet a topic elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import trio
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient, NewTopic

from tests.fixtures.names import Names
from tools.local_federation import Federation

BOUND = 60.0  # seconds


def create(federation: Federation, *topics: str) -> None:
    admin = AdminClient(federation.librdkafka())  # its answers end with it
    for one in admin.create_topics([NewTopic(topic, 2) for topic in topics]).values():
        one.result(BOUND)


def send(federation: Federation, topic: str, count: int) -> None:
    producer = Producer(federation.librdkafka())
    for number in range(count):
        producer.produce(topic, str(number).encode(), partition=number % 2)
    assert producer.flush(BOUND) == 0


def take(consumer: Any, until: Callable[[list[str]], bool]) -> list[str]:
    """The topics of records read, until they are enough."""
    out: list[str] = []
    deadline = time.monotonic() + BOUND
    while not until(out) and time.monotonic() < deadline:
        message = consumer.poll(1.0)
        if message is not None and message.error() is None:
            out.append(message.topic())
    return out


async def test_an_expression_finds_topics_of_both_clusters_also_later_ones(
    federation: Federation, names: Names
) -> None:
    here, there, later = names.topic("x-1"), f"{names.topic('x-2')}-west", f"{names.topic('x-3')}-west"

    def run() -> None:
        create(federation, here, there)
        send(federation, here, 4)
        send(federation, there, 4)
        settings = {
            "group.id": names.group("g"),
            "group.protocol": "consumer",
            "auto.offset.reset": "earliest",
            "topic.metadata.refresh.interval.ms": 2000,
        }
        consumer = Consumer({**federation.librdkafka(), **settings})
        try:
            consumer.subscribe([f"^x-.*-{names.suffix}.*"])
            assert sorted(take(consumer, lambda seen: len(seen) >= 8)) == [here] * 4 + [there] * 4
            create(federation, later)
            send(federation, later, 4)
            assert take(consumer, lambda seen: len(seen) >= 4) == [later] * 4
            consumer.commit(asynchronous=False)
        finally:
            consumer.close()

    await trio.to_thread.run_sync(run)


@pytest.mark.parametrize("end", ["", "-west"])
async def test_a_transaction_stays_on_one_cluster_and_recovers(federation: Federation, names: Names, end: str) -> None:
    here, there = names.topic("a"), f"{names.topic('a')}-west"

    def run() -> None:
        create(federation, here, there)
        mine, other = (there, here) if end else (here, there)
        producer = Producer({**federation.librdkafka(), "transactional.id": f"{names.transactional_id('t')}{end}"})
        producer.init_transactions(BOUND)
        producer.begin_transaction()
        producer.produce(mine, b"1", partition=0)
        producer.commit_transaction(BOUND)
        producer.begin_transaction()
        producer.produce(other, b"lost", partition=0)
        with pytest.raises(KafkaException) as refused:
            producer.commit_transaction(BOUND)
        error: KafkaError = refused.value.args[0]
        assert error.txn_requires_abort(), error
        producer.abort_transaction(BOUND)
        producer.begin_transaction()
        producer.produce(mine, b"2", partition=0)
        producer.commit_transaction(BOUND)
        settings = {"group.id": names.group("g"), "auto.offset.reset": "earliest"}
        consumer = Consumer({**federation.librdkafka(), **settings})
        try:
            consumer.subscribe([here, there])
            assert take(consumer, lambda seen: len(seen) >= 2) == [mine, mine]
        finally:
            consumer.close()

    await trio.to_thread.run_sync(run)


async def test_the_first_topic_takes_the_transactional_id_home(federation: Federation, names: Names) -> None:
    there = f"{names.topic('a')}-west"

    def run() -> None:
        create(federation, there)
        producer = Producer({**federation.librdkafka(), "transactional.id": names.transactional_id("t")})
        producer.init_transactions(BOUND)
        for attempt in range(3):
            producer.begin_transaction()
            producer.produce(there, str(attempt).encode(), partition=0)
            try:
                producer.commit_transaction(BOUND)
            except KafkaException as refused:
                assert refused.args[0].txn_requires_abort(), refused
                producer.abort_transaction(BOUND)
            else:
                return
        raise AssertionError("it never came to its home")

    await trio.to_thread.run_sync(run)
