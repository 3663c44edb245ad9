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
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer

from kafka_wire.codec import Message
from kafka_wire.errors import ERROR
from kafka_wire.frames import parse_response
from metadata_service.home_copying import transaction_of
from proxy.identity.acl import Operation, Resource
from tests.e2e.raw import connected
from tests.e2e.security_clients import aiokafka_settings
from tests.e2e.test_security_sasl import log_in
from tests.fixtures.kfed import Kfed
from tests.fixtures.names import Names
from tests.fixtures.security import (
    DELETE_ACLS,
    DENY,
    PREFIXED,
    SecuredFederation,
    acl,
    client_of,
    grant,
    make_topics,
)
from tools.java_client import Jvm
from tools.local_cluster import Cluster
from tools.local_cluster.cluster import Setting

PRODUCE, SASL_HANDSHAKE, INIT_PRODUCER_ID = 0, 17, 22
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


async def revoke(cluster: Cluster, *acls: Message) -> None:
    """Take these very rules away."""
    filters = [
        {
            "resource_type_filter": one["resource_type"],
            "resource_name_filter": one["resource_name"],
            "pattern_type_filter": one["resource_pattern_type"],
            "principal_filter": one["principal"],
            "host_filter": one["host"],
            "operation": one["operation"],
            "permission_type": one["permission_type"],
        }
        for one in acls
    ]
    async with client_of(cluster) as admin:
        answer = await admin.call(DELETE_ACLS, {"filters": filters})
    assert not any(one["error_code"] for one in answer["filter_results"]), answer


async def test_no_move_takes_rights_away(secured: SecuredFederation, names: Names) -> None:
    """What is missing is said by the plan; and by the move, which holds nobody's writes before it is there. Here rights
    go while the mirror waits for one of its own."""
    kfed, topic = Kfed(secured.federation), names.topic("orders")
    await grant(secured.east, *MIRRORS)
    await grant(secured.west, *MIRRORS)
    await make_topics(secured.east, topic)
    await until(lambda: topic in str(secured.federation.ask("/api/v1/topics")))

    async def problem(*more: str) -> str:
        ran = await kfed("migrate", topic, "--to", WEST, *more, "--apply", "--json", check=False)
        assert ran.status == 1 and not ran.json["applied"], ran
        (text,) = ran.json["problems"]
        return str(text)

    said = await problem()
    assert "allow User:alice READ from * on topics orders-*" in said and "--leave-acls" in said
    assert "User:bob" not in said
    denied = acl("kfed", Operation.ALTER_CONFIGS, Resource.TOPIC, topic, permission=DENY)
    await grant(secured.east, denied)
    assert f"{EAST}: the service needs ALTER_CONFIGS on topic '{topic}'" in await problem("--leave-acls")
    await revoke(secured.east, denied)

    operations = (Operation.READ, Operation.WRITE, Operation.CREATE, Operation.DELETE, Operation.DESCRIBE_CONFIGS)
    everything = [acl("alice", one, Resource.TOPIC, topic) for one in operations]
    writes = f"kfed-mirror.ship.{topic}.0"
    stalled = acl("kfed", Operation.WRITE, Resource.TRANSACTIONAL_ID, writes, permission=DENY)
    await grant(secured.west, *everything, stalled)
    begun = (await kfed("migrate", topic, "--to", WEST, "--apply", "--json")).json["migrations"][0]["id"]

    def migration() -> Any:
        return secured.federation.ask(f"/api/v1/operations/{begun}")["migration"]

    def waits(*parts: str) -> Callable[[], bool]:
        return lambda: all(one in str(migration()["waits"]) for one in parts)

    await until(waits(f"the service needs WRITE on transactional id '{writes}'"))
    wider = acl("dave", Operation.READ, Resource.TOPIC, topic[:-1], pattern=PREFIXED)
    await grant(secured.east, denied, wider)
    await revoke(secured.west, stalled)
    await until(
        waits(f"the service needs ALTER_CONFIGS on topic '{topic}'", f"dave READ from * on topics {topic[:-1]}*")
    )
    await revoke(secured.east, denied)
    await revoke(secured.west, denied)  # it may have been followed
    await until(lambda: waits("dave READ")() and not waits("ALTER_CONFIGS")())
    assert migration()["attempt"] == 0 and migration()["step"] == "caught_up", migration()
    await grant(secured.west, wider)
    await until(lambda: bool(migration()["served"]))
    assert migration()["attempt"] == 1


async def test_a_group_keeps_its_members_rights(secured: SecuredFederation, names: Names) -> None:
    """What is missing is said while the old home serves; members go on as themselves at the new one."""
    kfed, topic, group = Kfed(secured.federation), names.topic("shared"), names.group("team")
    read = [acl("alice", Operation.READ, Resource.GROUP, group)]
    service = [acl("kfed", one, Resource.GROUP, group) for one in (Operation.READ, Operation.DELETE)]
    copy = acl("kfed", Operation.WRITE, Resource.TRANSACTIONAL_ID, transaction_of(group), permission=DENY)
    await grant(secured.east, *MIRRORS, *read)
    await grant(secured.west, *MIRRORS, copy)
    await make_topics(secured.east, topic, partitions=2)
    await seen_by(secured, topic, "alice")
    move = ("groups", group, "--move-home", WEST)
    writer, reader = Writer(topic), Reader(topic)
    config = secured.librdkafka("alice", "tls")
    async with working(
        (writer, partial(writer.librdkafka, config)),
        (reader, partial(reader.librdkafka, config, group)),
    ):
        await until(lambda: len(reader.seen) > 20)
        reader.errors.clear()  # workers learn of the rules of a new group within seconds
        await until(lambda: group in str(secured.federation.ask("/api/v1/groups")))
        ran = await kfed(*move, "--apply", "--json", check=False)
        assert ran.json is not None, ran
        problems = "\n".join(ran.json["problems"])
        for cluster in (EAST, WEST):
            assert f"{cluster}: the service needs READ, DELETE on group '{group}'" in problems
        assert f"allow User:alice READ from * on group {group}" in problems
        await grant(secured.east, *service)
        await grant(secured.west, *service, *read)
        begun = (await kfed(*move, "--apply", "--json")).json["operation"]
        await until(lambda: secured.federation.ask(f"/api/v1/operations/{begun}")["state"] == "failed")
        reason = secured.federation.ask(f"/api/v1/operations/{begun}")["result"]["reason"]
        assert f"{WEST}: the service needs WRITE on transactional id '{transaction_of(group)}'" in reason
        await revoke(secured.west, copy)
        await kfed(*move, "--apply", "--wait")
        before = len(reader.seen)
        await until(lambda: len(reader.seen) > before + 50)
        writer.stopping.set()
        await until(lambda: set(writer.places) <= set(reader.seen))
    assert not writer.errors and not reader.errors, (writer.errors, reader.errors)
    assert (await kfed("groups", group, "--json")).json["home"] == WEST


async def test_a_new_login_ends_the_hold_of_what_came_before_it(secured: SecuredFederation, names: Names) -> None:
    """What is held would else go on under a login that the broker may have refused meanwhile. Here the first write of a
    transaction is held, for as long as another one is open."""
    kfed, topic, other = Kfed(secured.federation), names.topic("shared"), names.group("shared")
    await grant(secured.east, *MIRRORS)
    await grant(secured.west, *MIRRORS)
    await make_topics(secured.east, topic)
    await seen_by(secured, topic, "alice")
    opened = Producer({**secured.librdkafka("alice", "tls"), "transactional.id": f"{other}-open", "log_level": 0})

    def begin() -> None:
        opened.init_transactions(20)
        opened.begin_transaction()
        opened.produce(topic, PAYLOAD.encode())
        assert opened.flush(20) == 0

    await trio.to_thread.run_sync(begin)
    handshake = {"mechanism": "PLAIN"}
    async with connected(int(secured.east.addresses()[0].rpartition(":")[2])) as raw:
        await log_in(raw)
        expected = (await raw.ask(SASL_HANDSHAKE, 1, handshake))["error_code"]
    async with connected(secured.ports["plain"]) as raw:
        await log_in(raw)
        asked = {
            "transactional_id": other,
            "transaction_timeout_ms": 20_000,
            "producer_id": -1,
            "producer_epoch": -1,
        }
        made = await raw.ask(INIT_PRODUCER_ID, 4, asked)
        assert not made["error_code"], made
        begun = (await kfed("migrate", topic, "--to", WEST, "--apply", "--json")).json["migrations"][0]["id"]

        def progress() -> Any:
            return secured.federation.ask(f"/api/v1/operations/{begun}")["migration"]

        await until(lambda: "open transactions" in str(progress()["waits"]))
        builder = DefaultRecordBatchBuilder(2, 0, 1, made["producer_id"], made["producer_epoch"], 0, 1 << 16)
        builder.append(0, 1_700_000_000_000, None, PAYLOAD.encode(), [])
        data = {"name": topic, "partition_data": [{"index": 0, "records": memoryview(bytes(builder.build()))}]}
        message = {"transactional_id": other, "acks": -1, "timeout_ms": 5000, "topic_data": [data]}
        await raw.send(PRODUCE, 12, message)
        with trio.move_on_after(0.5) as held:
            await raw.answer()
        assert held.cancelled_caught and progress()["step"] == "drain"
        await raw.send(SASL_HANDSHAKE, 1, handshake)
        with trio.fail_after(3):  # after 5 seconds it would be answered in any case
            (answer,) = parse_response(PRODUCE, 12, await raw.answer())[1]["responses"]
        assert answer["partition_responses"][0]["error_code"] == ERROR.NOT_LEADER_OR_FOLLOWER
        assert parse_response(SASL_HANDSHAKE, 1, await raw.answer())[1]["error_code"] == expected
    await trio.to_thread.run_sync(opened.commit_transaction, 20)
    await until(lambda: bool(progress()["served"]))
