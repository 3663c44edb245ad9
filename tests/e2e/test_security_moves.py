"""Topics and groups move between clusters with logins and ACLs: as whom clients are served, what the service needs."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import aiokafka
import pytest
import trio
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer

from proxy.identity.acl import Operation, Resource
from tests.e2e.security_clients import aiokafka_settings
from tests.fixtures.kfed import Kfed
from tests.fixtures.names import Names
from tests.fixtures.security import DENY, PREFIXED, SecuredFederation, acl, grant, make_topics
from tools.java_client import Jvm
from tools.local_cluster.cluster import Setting

EAST, WEST = "secured-east", "secured-west"
PAYLOAD = "a-payload-nobody-logs"
# What mirrors need besides what the fixture's service may do.
MIRRORS = (
    acl("kfed", Operation.WRITE, Resource.TRANSACTIONAL_ID, "kfed-mirror.", pattern=PREFIXED),
    acl("kfed", Operation.ALTER, Resource.CLUSTER, "kafka-cluster"),
)


@dataclass
class Writer:
    """Writes at a steady pace, in a thread. `places`: what was acknowledged."""

    topic: str
    places: list[tuple[int, int]] = field(default_factory=list)
    errors: list[int | str] = field(default_factory=list)
    stopping: threading.Event = field(default_factory=threading.Event)

    def librdkafka(self, config: dict[str, Setting]) -> None:
        def delivered(error: KafkaError | None, message: Any) -> None:
            if error is not None:
                self.errors.append(error.code())
            else:
                self.places.append((message.partition(), message.offset()))

        told = lambda error: self.errors.append(str(error))  # noqa: E731
        producer = Producer({**config, "linger.ms": 2, "error_cb": told, "log_level": 0})
        number = 0
        while not self.stopping.is_set():
            try:
                producer.produce(self.topic, PAYLOAD.encode(), partition=number % 2, on_delivery=delivered)
            except KafkaException as error:  # what it has been told of the topic before
                self.errors.append(error.args[0].code())
            producer.poll(0)
            number += 1
            time.sleep(0.01)
        producer.flush(10)

    def aiokafka(self, config: dict[str, Setting]) -> None:
        async def work() -> None:
            settings = aiokafka_settings(config)
            async with aiokafka.AIOKafkaProducer(**settings, enable_idempotence=True) as producer:
                number = 0
                while not self.stopping.is_set():
                    try:
                        told = await producer.send_and_wait(self.topic, PAYLOAD.encode(), partition=number % 2)
                        self.places.append((told.partition, told.offset))
                    except Exception as error:
                        self.errors.append(repr(error))
                    number += 1
                    await asyncio.sleep(0.02)

        asyncio.run(work())


@dataclass
class Reader:
    """Reads all of a topic, in a thread, as a member of a group or not."""

    topic: str
    seen: list[tuple[int, int]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    stopping: threading.Event = field(default_factory=threading.Event)

    def librdkafka(self, config: dict[str, Setting], group: str) -> None:
        told = lambda error: self.errors.append(str(error))  # noqa: E731
        settings = {"group.id": group, "auto.offset.reset": "earliest", "error_cb": told, "log_level": 0}
        consumer = Consumer({**config, **settings})
        consumer.subscribe([self.topic])
        while not self.stopping.is_set():
            message = consumer.poll(0.05)
            if message is not None and message.error():
                self.errors.append(str(message.error()))
            elif message is not None:
                self.seen.append((message.partition() or 0, message.offset() or 0))
        consumer.close()


@asynccontextmanager
async def working(*works: tuple[Any, partial[None]]) -> AsyncIterator[None]:
    """Each (whoever has a `stopping`, its work) in a thread."""
    threads = [threading.Thread(target=work, daemon=True) for _, work in works]
    for one in threads:
        one.start()
    try:
        yield
    finally:
        for one, _ in works:
            one.stopping.set()
        with trio.CancelScope(shield=True):
            for thread in threads:
                await trio.to_thread.run_sync(thread.join, 25)


async def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    """Looks again and again."""
    with trio.fail_after(seconds):
        while True:
            if condition():
                return
            await trio.sleep(0.05)


async def seen_by(secured: SecuredFederation, topic: str, *users: str) -> None:
    """Until every worker knows by the rules that they may see the topic."""

    async def look(user: str) -> None:
        async with secured.client(user) as client:
            while True:
                if not (await client.metadata([topic]))["topics"][0]["error_code"]:
                    return
                await trio.sleep(0.1)

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            for user in users * 6:
                nursery.start_soon(look, user)


async def test_clients_are_served_as_themselves_by_the_new_cluster(
    secured: SecuredFederation, names: Names, jvm: Jvm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By every kind of listener, while all of them write: nobody's rights get lost, and nobody gets any. The rules of
    the topic are on the source alone at first; those that name no other one are created with its copy."""
    kfed, topic = Kfed(secured.federation), names.topic("moves")
    secured.secrets.add(PAYLOAD)
    carol = secured.carol.principal
    rights = [
        acl(who, one, Resource.TOPIC, topic) for who in ("alice", carol) for one in (Operation.READ, Operation.WRITE)
    ]
    await grant(secured.east, *MIRRORS, *rights, acl("bob", Operation.WRITE, Resource.TOPIC, topic))
    await grant(secured.west, *MIRRORS, acl("bob", Operation.WRITE, Resource.TOPIC, topic, permission=DENY))
    await make_topics(secured.east, topic, partitions=2)
    await seen_by(secured, topic, "alice", "bob")
    writers = {name: Writer(topic) for name in ("rdkafka", "aiokafka", "carol", "bob")}
    reader = Reader(topic)
    resolve = socket.getaddrinfo

    def local(host: object, *rest: object, **more: object) -> object:
        known = isinstance(host, str) and host.endswith(".localhost")
        return resolve("127.0.0.1" if known else host, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", local)
    scram = secured.librdkafka("alice", "tls", mechanism="SCRAM-SHA-512")
    plain = secured.librdkafka("alice", "sni", mechanism="PLAIN")
    certificates = secured.librdkafka(listener="certificates", certificate=secured.carol)
    java = secured.java("alice")
    async with (
        jvm.producer(java, linger_ms="2") as producer,
        jvm.consumer(java) as consumer,
        working(
            (writers["rdkafka"], partial(writers["rdkafka"].librdkafka, scram)),
            (writers["aiokafka"], partial(writers["aiokafka"].aiokafka, plain)),
            (writers["carol"], partial(writers["carol"].librdkafka, certificates)),
            (writers["bob"], partial(writers["bob"].librdkafka, secured.librdkafka("bob", "tls"))),
            (reader, partial(reader.librdkafka, secured.librdkafka("alice", "tls"), names.group("shared"))),
        ),
    ):
        await consumer.assign((topic, 0), (topic, 1))
        await producer.start(topic, per_second=50, prefix=PAYLOAD)
        await until(
            lambda: all(len(one.places) > 20 or one.errors for one in writers.values()) and len(reader.seen) > 20
        )
        assert not any(one.errors for one in writers.values()), writers
        moved = (await kfed("migrate", topic, "--to", WEST, "--apply", "--wait", "--json")).json
        assert moved["operations"][0]["migration"]["served"]
        shown = (await kfed("topics", topic, "--json")).json
        cut: dict[int, int] = {int(number): one for number, one in shown["timeline"][1]["first_offsets"].items()}

        def beyond(one: Writer) -> bool:
            return sum(offset >= cut[index] for index, offset in one.places) > 50

        await until(lambda: all(one.errors if name == "bob" else beyond(one) for name, one in writers.items()))
        sent = await producer.stop()
        for one in writers.values():
            one.stopping.set()
        assert not [one.error for one in sent if one.error]
        expected = {place for one in writers.values() for place in one.places} | {
            (one.partition, one.offset) for one in sent
        }
        taken: set[tuple[int, int]] = set()
        with trio.fail_after(30):
            while not expected <= taken or not expected <= set(reader.seen):
                got = await consumer.read(1, 0.5)
                taken |= {(one.partition, one.offset) for one in got.records}
                assert not [one for one in got.events if one.kind == "error"], got.events
    assert not reader.errors
    assert {name: one.errors for name, one in writers.items() if one.errors and name != "bob"} == {}
    assert set(writers["bob"].errors) == {KafkaError.TOPIC_AUTHORIZATION_FAILED}
    assert all(offset < cut[index] for index, offset in writers["bob"].places), "the service's own rights were used"


async def test_no_move_takes_rights_away(secured: SecuredFederation, names: Names) -> None:
    """Rules of other names too are nobody's to create: the plan names them, and what the service itself lacks."""
    kfed, topic = Kfed(secured.federation), names.topic("orders")
    await grant(secured.east, *MIRRORS)
    await grant(secured.west, *MIRRORS)
    await make_topics(secured.east, topic)
    await until(lambda: topic in str(secured.federation.ask("/api/v1/topics")))
    ran = await kfed("migrate", topic, "--to", WEST, "--apply", "--json", check=False)
    assert ran.status == 1
    (problem,) = ran.json["problems"]
    assert "allow User:alice READ from * on topics orders-*" in problem and "--leave-acls" in problem
    assert "User:bob" not in problem
    denied = acl("kfed", Operation.ALTER_CONFIGS, Resource.TOPIC, topic, permission=DENY)
    await grant(secured.east, denied)
    ran = await kfed("migrate", topic, "--to", WEST, "--leave-acls", "--apply", "--json", check=False)
    (problem,) = ran.json["problems"]
    assert f"{EAST}: the service needs ALTER_CONFIGS on topic '{topic}'" in problem
