"""The same small piece of work by each client library: write, and read back."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
import time
from collections.abc import Sequence
from typing import Any

import aiokafka
import trio
from aiokafka.abc import AbstractTokenProvider
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from tools.local_cluster.cluster import Setting

SECONDS = 20.0


def unsecured_token(user: str, seconds: float = 300) -> str:
    """A JWT without a signature, as a cluster for tests takes it."""

    def part(value: dict[str, Any]) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    now = time.time()
    return f"{part({'alg': 'none'})}.{part({'sub': user, 'iat': now - 5, 'exp': now + seconds})}."


class _Token(AbstractTokenProvider):  # type: ignore[misc]
    def __init__(self, token: str) -> None:
        self._token = token

    async def token(self) -> str:
        return self._token


def aiokafka_settings(config: dict[str, Setting]) -> dict[str, Any]:
    """librdkafka's settings as aiokafka takes them."""
    made: dict[str, Any] = {
        "bootstrap_servers": config["bootstrap.servers"],
        "security_protocol": config["security.protocol"],
    }
    if "ssl.ca.location" in config:
        context = ssl.create_default_context(cafile=str(config["ssl.ca.location"]))
        if "ssl.certificate.location" in config:
            context.load_cert_chain(str(config["ssl.certificate.location"]), str(config["ssl.key.location"]))
        made["ssl_context"] = context
    if (mechanism := config.get("sasl.mechanism")) == "OAUTHBEARER":
        user = str(config["sasl.oauthbearer.config"]).removeprefix("principal=")
        made |= {"sasl_mechanism": mechanism, "sasl_oauth_token_provider": _Token(unsecured_token(user))}
    elif mechanism is not None:
        made |= {
            "sasl_mechanism": mechanism,
            "sasl_plain_username": config["sasl.username"],
            "sasl_plain_password": config["sasl.password"],
        }
    return made


def librdkafka_write(config: dict[str, Setting], topic: str, values: Sequence[bytes]) -> None:
    """Raises KafkaException, with the first error a record or the client got."""
    errors: list[KafkaError] = []

    def delivered(error: KafkaError | None, _: object) -> None:
        if error is not None:
            errors.append(error)

    producer = Producer(
        {**config, "message.timeout.ms": 8000, "message.max.bytes": 2_000_000, "error_cb": errors.append}
    )
    for value in values:
        producer.produce(topic, value, partition=0, on_delivery=delivered)
    deadline = time.monotonic() + SECONDS
    while len(producer) and not errors and time.monotonic() < deadline:
        producer.poll(0.1)
    if errors:
        producer.purge()
        raise KafkaException(errors[0])
    assert not len(producer)


def librdkafka_read(config: dict[str, Setting], topic: str, count: int) -> list[bytes]:
    consumer = Consumer(
        {**config, "group.id": "shared-readers", "enable.auto.commit": False, "auto.offset.reset": "earliest"}
    )
    consumer.assign([TopicPartition(topic, 0, 0)])
    found: list[bytes] = []
    deadline = time.monotonic() + SECONDS
    try:
        while len(found) < count and time.monotonic() < deadline:
            message = consumer.poll(0.2)
            if message is None:
                continue
            if message.error():
                raise KafkaException(message.error())
            found.append(message.value() or b"")
    finally:
        consumer.close()
    return found


async def librdkafka_round(config: dict[str, Setting], topic: str, values: Sequence[bytes]) -> None:
    """Writes what a new topic shall hold, and reads it."""
    await trio.to_thread.run_sync(librdkafka_write, config, topic, values)
    assert await trio.to_thread.run_sync(librdkafka_read, config, topic, len(values)) == list(values)


async def aiokafka_round(config: dict[str, Setting], topic: str, values: Sequence[bytes]) -> None:
    settings = aiokafka_settings(config)

    async def work() -> list[bytes]:
        async with asyncio.timeout(SECONDS):
            async with aiokafka.AIOKafkaProducer(**settings, max_request_size=2_000_000) as producer:
                for value in values:
                    await producer.send_and_wait(topic, value, partition=0)
            consumer = aiokafka.AIOKafkaConsumer(**settings)
            consumer.assign([aiokafka.TopicPartition(topic, 0)])
            async with consumer:
                await consumer.seek_to_beginning()
                return [(await consumer.getone()).value for _ in values]

    assert await trio.to_thread.run_sync(asyncio.run, work()) == list(values)
