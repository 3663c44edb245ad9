"""TLS to clients and to brokers: every combination, data small and large, host names, certificates replaced."""

from __future__ import annotations

import pytest
from confluent_kafka import Consumer, Producer

from tests.fixtures.names import Names
from tests.fixtures.security import ListenerName, SecuredFederation, make_topics
from tools.java_client import Jvm

SMALL, LARGE = b"s" * 100, b"L" * 700_000


async def ready(secured: SecuredFederation, names: Names) -> tuple[str, str]:
    """A topic on each cluster."""
    here, there = names.topic("shared"), names.topic("shared") + "-west"
    await make_topics(secured.east, here)
    await make_topics(secured.west, there)
    return here, there


@pytest.mark.parametrize("listener", ["plain", "tls"])
async def test_java_small_and_large(secured: SecuredFederation, names: Names, jvm: Jvm, listener: ListenerName) -> None:
    topics = await ready(secured, names)
    config = secured.java("alice", listener)
    async with jvm.producer(config, max_request_size="2000000") as producer:
        for topic in topics:
            sent = await producer.send(topic, 20, size=100) + await producer.send(topic, 3, size=700_000)
            assert [one.error for one in sent] == [None] * 23
    async with jvm.consumer(config, group=names.group("shared")) as consumer:
        await consumer.subscribe(*topics)
        taken = await consumer.take(46)
    assert sorted(record.topic for record in taken) == sorted([*topics] * 23)
    assert sorted(len(record.value or "") for record in taken) == [100] * 40 + [700_000] * 6
