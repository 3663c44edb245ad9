"""The Java test client does what other tests rely on, shown on plain clusters."""

from __future__ import annotations

from typing import Literal

import pytest
import trio

from tests.fixtures.names import Names
from tools.java_client import Jvm
from tools.kafka.console import MAIN_CLASSES
from tools.local_cluster import Cluster

Protocol = Literal["classic", "consumer"]


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
async def test_both_group_protocols(east: Cluster, jvm: Jvm, names: Names, protocol: Protocol) -> None:
    topic, config = names.topic("orders"), east.java()
    async with jvm.admin(config) as admin, jvm.producer(config) as producer:
        await admin.create_topic(topic, 3)
        sent = await producer.send(topic, 30, keys=10, prefix="n", size=20)
        assert all(each.error is None for each in sent)
        async with jvm.consumer(config, group=names.group("g"), protocol=protocol) as consumer:
            await consumer.subscribe(topic)
            taken = await consumer.read(30)
            assert {(r.partition, r.offset) for r in taken.records} == {(s.partition, s.offset) for s in sent}
            assert {(r.value or "").split(".")[0] for r in taken.records} == {f"n{number}" for number in range(30)}
            assert all(len(r.value or "") == 20 for r in taken.records)
            assert any(event.kind == "assigned" for event in taken.events)
            await consumer.commit()
            committed = await consumer.committed((topic, 0), (topic, 1), (topic, 2))
            assert sum(committed.values()) == 30
        described = await admin.call("describe_consumer_groups", groups=[names.group("g")])
        assert described[names.group("g")]["type"] == protocol.capitalize()


async def test_transactions(east: Cluster, jvm: Jvm, names: Names) -> None:
    topic, config = names.topic("orders"), east.java()
    async with (
        jvm.admin(config) as admin,
        jvm.producer(config, transactional_id=names.transactional_id("t")) as producer,
        jvm.consumer(config, group=names.group("g"), read_committed=True) as consumer,
    ):
        await admin.create_topic(topic, 1)
        await consumer.subscribe(topic)
        await producer.init_transactions()
        await producer.begin()
        await producer.send(topic, 3, prefix="aborted-")
        await producer.abort()
        await producer.begin()
        await producer.send(topic, 3, prefix="kept-")
        await consumer.read(events=1)
        await producer.send_offsets([(topic, 0, 2)], consumer=consumer)
        await producer.commit()
        assert [record.value for record in await consumer.take(3)] == ["kept-0", "kept-1", "kept-2"]
        assert (await consumer.committed((topic, 0))) == {(topic, 0): 2}
        transactions = await admin.call("list_transactions")
        assert names.transactional_id("t") in {each["transactional_id"] for each in transactions}


async def test_a_steady_load(east: Cluster, jvm: Jvm, names: Names) -> None:
    topic, config = names.topic("load"), east.java()
    async with (
        jvm.admin(config) as admin,
        jvm.producer(config) as producer,
        jvm.consumer(config) as consumer,
    ):
        await admin.create_topic(topic, 1)
        await consumer.assign((topic, 0))
        await producer.start(topic, per_second=500, partition=0)
        read = await consumer.take(100)
        sent = await producer.stop()
        read += await consumer.take(len(sent) - len(read))
        assert [record.offset for record in read] == sorted(each.offset for each in sent)


async def test_a_load_of_transactions(east: Cluster, jvm: Jvm, names: Names) -> None:
    topic, config = names.topic("load"), east.java()
    async with (
        jvm.admin(config) as admin,
        jvm.producer(config, transactional_id=names.transactional_id("t")) as producer,
        jvm.consumer(config, read_committed=True) as consumer,
    ):
        await admin.create_topic(topic, 1)
        await consumer.assign((topic, 0))
        await producer.init_transactions()
        await producer.start(topic, per_second=500, per_transaction=10, abort_every=3, partition=0)
        read = await consumer.take(60)
        sent = {one.number: one for one in await producer.stop() if one.error is None}
        committed = [
            n for one in producer.ended if one.how == "committed" for n in range(one.first, one.first + one.count)
        ]
        assert {one.how for one in producer.ended} == {"committed", "aborted"}
        assert not [one.error for one in producer.ended if one.error]
        read += await consumer.take(len(committed) - len(read))
        assert [record.offset for record in read] == [sent[number].offset for number in committed]
        await producer.gaps()
        await trio.sleep(0.05)  # the gap itself
        await producer.begin()
        await producer.send(topic)
        await producer.commit()
        assert max(gap.seconds for gap in await producer.gaps()) >= 0.05


async def test_static_members_cooperate(east: Cluster, jvm: Jvm, names: Names) -> None:
    topic, config, group = names.topic("orders"), east.java(), names.group("g")
    async with (
        jvm.admin(config) as admin,
        jvm.consumer(config, group=group, cooperative=True, instance_id="one") as one,
        jvm.consumer(config, group=group, cooperative=True, instance_id="two") as two,
    ):
        await admin.create_topic(topic, 2)
        await one.subscribe(pattern=names.pattern)
        assert (await one.read(events=1)).events[0].kind == "assigned"
        await two.subscribe(topic)
        with trio.fail_after(20):
            while len(await two.assignment()) != 1 or len(await one.assignment()) != 1:
                await one.read(timeout=0.1, events=1)
        members = (await admin.call("describe_consumer_groups", groups=[group]))[group]["members"]
        assert {member["instance"] for member in members} == {"one", "two"}


@pytest.mark.parametrize("explicit", [False, True])
async def test_share_groups(east: Cluster, jvm: Jvm, names: Names, explicit: bool) -> None:
    topic, config, group = names.topic("jobs"), east.java(), names.group("g")
    async with jvm.admin(config) as admin, jvm.producer(config) as producer:
        await admin.create_topic(topic, 1)
        await admin.call("alter_configs", changes=[["group", group, "share.auto.offset.reset", "earliest"]])
        await producer.send(topic, 5)
        async with jvm.share_consumer(config, group=group, explicit=explicit) as consumer:
            await consumer.subscribe(topic)
            first = await consumer.take(5, once=explicit)
            assert first[0].delivery_count == 1
            if explicit:
                await consumer.acknowledge(first, "release")
                assert await consumer.commit() == []
                again = await consumer.take(once=True)
                assert again[0].delivery_count == 2
                await consumer.acknowledge(again)
                assert await consumer.commit() == []
        assert (await admin.call("describe_share_groups", groups=[group]))[group]["state"] == "Empty"


@pytest.mark.parametrize("protocol", ["classic", "streams"])
async def test_streams(east: Cluster, jvm: Jvm, names: Names, protocol: Literal["classic", "streams"]) -> None:
    source, sink, config = names.topic("words"), names.topic("counts"), east.java()
    async with (
        jvm.admin(config) as admin,
        jvm.producer(config) as producer,
        jvm.consumer(config) as consumer,
        jvm.streams(config, application_id=names("app"), protocol=protocol) as app,
    ):
        await admin.create_topic(source, 1)
        await admin.create_topic(sink, 1)
        await producer.send(source, 1)
        await producer.send(source, 1)
        await app.start(source, sink=sink, count=True)
        await consumer.assign((sink, 0))
        assert [(record.key, record.value) for record in await consumer.take(2, 40)] == [("0", "1"), ("0", "2")]
        assert (await app.state())["state"] == "RUNNING"
        groups = {each["group"]: each["type"] for each in await admin.call("list_groups")}
        assert groups[names("app")] == protocol.capitalize()


async def test_delegation_tokens_and_permissions(secured_east: Cluster, jvm: Jvm, names: Names) -> None:
    topic, admins = names.topic("secret"), secured_east.java()
    async with jvm.admin(admins) as admin, jvm.admin(secured_east.java("SASL_SSL", user="alice")) as alice:
        await admin.create_topic(topic, 1)
        assert topic not in await alice.call("list_topics")
        row = ["User:alice", "allow", "describe", "topic", topic, "literal", "*"]
        await admin.done("create_acls", acls=[row])
        with trio.fail_after(10):
            while topic not in await alice.call("list_topics"):
                pass
        assert row in await admin.call("describe_acls")
        token = await alice.call("create_token")
        assert token["owner"] == "User:alice"


async def test_every_command_line_tool_starts_and_leaves_the_jvm_alone(jvm: Jvm) -> None:
    for tool in MAIN_CLASSES:
        helped = await jvm.tool(tool, "--help")
        assert helped.code in (0, 1), tool
        assert helped.out + helped.err, tool


async def test_command_line_tools(east: Cluster, jvm: Jvm, names: Names) -> None:
    topic, bootstrap = names.topic("typed"), ("--bootstrap-server", east.bootstrap())
    made = await jvm.tool("kafka-topics", *bootstrap, "--create", "--topic", topic, "--partitions", "2")
    assert made.check().out == f"Created topic {topic}.\n"
    again = await jvm.tool("kafka-topics", *bootstrap, "--create", "--topic", topic)
    assert again.code == 1 and "already exists" in again.out + again.err
    typed = await jvm.tool("kafka-console-producer", *bootstrap, "--topic", topic, stdin="a\nb\nc\n")
    typed.check()
    from_start = ("--topic", topic, "--from-beginning", "--max-messages", "3", "--timeout-ms", "20000")
    both: list[str] = []

    async def consume() -> None:
        both.append((await jvm.tool("kafka-console-consumer", *bootstrap, *from_start)).check().out)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(consume)
        nursery.start_soon(consume)
    assert [sorted(out.split()) for out in both] == [["a", "b", "c"]] * 2
    offsets = await jvm.tool("kafka-get-offsets", *bootstrap, "--topic", topic)
    assert offsets.check().out.splitlines()[0].startswith(f"{topic}:0:")
    usage = await jvm.tool("kafka-configs", "--describe")
    assert usage.code == 1
