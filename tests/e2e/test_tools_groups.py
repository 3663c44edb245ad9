"""Kafka's command line tools for groups and transactions, and its own loads, directly and through the endpoint."""

from __future__ import annotations

import json
from pathlib import Path

from tests.e2e.tools import Shell
from tests.fixtures.sides import Said, Side, Sides, until
from tools.java_client import Jvm


async def test_consumer_groups(sides: Sides, jvm: Jvm, tmp_path: Path) -> None:
    async def script(side: Side, said: Said) -> None:
        shell, topic, group = Shell(side, jvm, said, tmp_path), side.topic("orders"), side.group("g")
        await shell.create(topic, 2)
        tool, named = "kafka-consumer-groups", ("--group", group)
        async with (
            jvm.producer(side.java) as producer,
            jvm.consumer(side.java, group=group, client_id="reader") as consumer,
        ):
            await producer.send(topic, 5, partition=0)
            await consumer.subscribe(topic)
            await consumer.take(5)
            await consumer.commit([[topic, 0, 3], [topic, 1, 0]])
            await shell.say("described", tool, "--describe", *named, ordered=False)
            await shell.say("members", tool, "--describe", *named, "--members", "--verbose")
            await shell.say("state", tool, "--describe", *named, "--state")
            await shell.say(
                "reset, alive", tool, "--reset-offsets", *named, "--to-earliest", "--topic", topic, "--execute"
            )
            await shell.say("delete, alive", tool, "--delete", *named)
        await shell.say("empty", tool, "--describe", *named, ordered=False)
        reset = (tool, "--reset-offsets", *named, "--topic")
        await shell.say("plan", *reset, topic, "--to-earliest", "--dry-run", ordered=False)
        await shell.say("reset", *reset, f"{topic}:0", "--shift-by", "-1", "--execute", ordered=False)
        await shell.say("to latest", *reset, topic, "--to-latest", "--execute", ordered=False)
        await shell.say("to offset", *reset, topic, "--to-offset", "99", "--execute", ordered=False)
        await shell.say(
            "by time", *reset, topic, "--to-datetime", "2020-01-01T00:00:00.000", "--execute", ordered=False
        )
        await shell.say("unknown topic", *reset, side("no-such"), "--to-earliest", "--execute")
        await shell.say("forget", tool, "--delete-offsets", *named, "--topic", f"{topic}:1")
        await shell.say("described", tool, "--describe", *named)
        await shell.say("offsets", tool, "--describe", *named, "--offsets", "--verbose")
        await shell.say("validated", tool, "--validate-regex", "orders.*")
        await shell.say("nobody", tool, "--describe", "--group", side("nobody"))
        await shell.say("list", tool, "--list", mine=True)
        await shell.say("list states", tool, "--list", "--state", mine=True)
        await shell.say("groups", "kafka-groups", "--list", mine=True)
        await shell.say("consumer groups", "kafka-groups", "--list", "--consumer", mine=True)
        await shell.say("delete", tool, "--delete", *named)
        await shell.say("delete nobody", tool, "--delete", "--group", side("nobody"))

    await sides.compare(script)


async def test_share_groups(sides: Sides, jvm: Jvm, tmp_path: Path) -> None:
    async def script(side: Side, said: Said) -> None:
        shell, topic, group = Shell(side, jvm, said, tmp_path), side.topic("jobs"), side.group("share")
        named = ("--group", group)
        await shell.create(topic)
        start = ("--entity-type", "groups", "--entity-name", group, "--add-config", "share.auto.offset.reset=earliest")
        (await shell("kafka-configs", "--alter", *start)).check()
        await shell("kafka-console-producer", "--topic", topic, stdin="one\ntwo\nthree\n")
        read = ("--max-messages", "3", "--timeout-ms", "20000")
        await shell.say("consume", "kafka-console-share-consumer", "--topic", topic, *named, *read)
        tool = "kafka-share-groups"
        await until(lambda: shell(tool, "--describe", *named), lambda done: topic in done.out)
        await shell.say("described", tool, "--describe", *named)
        await shell.say("members", tool, "--describe", *named, "--members")
        await shell.say("state", tool, "--describe", *named, "--state")
        await shell.say("list", tool, "--list", mine=True)
        await shell.say("reset", tool, "--reset-offsets", *named, "--topic", topic, "--to-earliest", "--execute")
        await shell.say("forget", tool, "--delete-offsets", *named, "--topic", topic)
        await shell.say("nobody", tool, "--describe", "--group", side("nobody"))
        await shell.say("delete", tool, "--delete", *named)

    await sides.compare(script)


async def test_streams_groups(sides: Sides, jvm: Jvm, tmp_path: Path) -> None:
    async def script(side: Side, said: Said) -> None:
        shell, source, sink, app = Shell(side, jvm, said, tmp_path), side("words"), side("counts"), side("app")
        for topic in (source, sink):
            await shell.create(topic)
        await shell("kafka-console-producer", "--topic", source, stdin="one\n")
        tool, named = "kafka-streams-groups", ("--group", app)
        async with (
            jvm.streams(side.java, application_id=app) as streams,
            jvm.consumer(side.java) as consumer,
        ):
            await streams.start(source, sink=sink)
            await consumer.assign((sink, 0))
            await consumer.take(1, 60)
            await shell.say("state", tool, "--describe", *named, "--state")
        await shell.say("described", tool, "--describe", *named, ordered=False)
        await shell.say("list", tool, "--list", mine=True)
        await shell.say("reset", tool, "--reset-offsets", *named, "--input-topic", source, "--to-earliest", "--dry-run")
        await shell.say("delete", tool, "--delete", *named)
        again = ("--application-id", app, "--input-topics", source)
        await shell.say("application", "kafka-streams-application-reset", *again)

    await sides.compare(script, replaced=[(r"Epoch \d+|\b\d+ Stable", "N")])


async def test_transactions(sides: Sides, jvm: Jvm, tmp_path: Path) -> None:
    async def script(side: Side, said: Said) -> None:
        shell, topic, mine = Shell(side, jvm, said, tmp_path), side.topic("orders"), side.transactional_id("t")
        await shell.create(topic, 2)
        tool = "kafka-transactions"
        async with jvm.producer(side.java, transactional_id=mine) as producer:
            await producer.init_transactions()
            await producer.begin()
            await producer.send(topic, 2, partition=0)
            await shell.say("list", tool, "list", mine=True)
            await shell.say("describe", tool, "describe", "--transactional-id", mine)
            await shell.say("producers", tool, "describe-producers", "--topic", topic, "--partition", "0")
            await shell.say("hanging", tool, "find-hanging", "--topic", topic, "--partition", "0")
            await shell.say("abort", tool, "abort", "--topic", topic, "--partition", "0", "--start-offset", "0")
            await shell.say("aborted", tool, "describe-producers", "--topic", topic, "--partition", "0")
        await shell.say("terminate", tool, "force-terminate", "--transactional-id", mine)
        await shell.say("nobody", tool, "describe", "--transactional-id", side("nobody"))

    replaced = [
        (r"\b\d{13}\b.*", "TIMES"),
        (r"(t|PRODUCER) (BROKER|\d+) \d+ ", r"\1 BROKER PRODUCER "),
        (r"(MEMBER|t) \d+ ", r"\1 PRODUCER "),
        (r"^(\S+ / out) = \d+ ", r"\1 "),
    ]
    await sides.compare(script, replaced=replaced)


async def test_loads(sides: Sides, jvm: Jvm, tmp_path: Path) -> None:
    async def script(side: Side, said: Said) -> None:
        shell, topic = Shell(side, jvm, said, tmp_path), side.topic("load")
        await shell.create(topic, 2)
        many = ("--topic", topic, "--num-records", "2000", "--record-size", "100", "--throughput", "-1")
        perf = await shell("kafka-producer-perf-test", *many)
        said("producer", {"code": perf.code, "sent": perf.out.split(",")[0]})
        read = ("--topic", topic, "--timeout", "20000")
        perf = await shell("kafka-consumer-perf-test", *read, "--num-records", "2000")
        said("consumer", {"code": perf.code, "read": perf.out.splitlines()[-1].split(", ")[4], "err": perf.err[:500]})
        few = ("--topic", topic, "--max-messages", "50", "--throughput", "-1")
        proof = await shell("kafka-verifiable-producer", *few)
        events = [json.loads(line) for line in proof.out.splitlines()]
        said("verifiable producer", sorted(each["name"] for each in events))
        group = ("--group-id", side.group("v"), "--max-messages", "2050", "--reset-policy", "earliest")
        proof = await shell("kafka-verifiable-consumer", "--topic", topic, *group)
        events = [json.loads(line) for line in proof.out.splitlines()]
        said("verifiable consumer", sum(each["count"] for each in events if each["name"] == "records_consumed"))
        late = ("--topic", topic, "--num-records", "20", "--producer-acks", "all", "--record-size", "10")
        latency = await shell("kafka-e2e-latency", *late)
        said("latency", {"code": latency.code, "told": "Avg latency" in latency.out, "err": latency.err[:300]})

    await sides.compare(script)
