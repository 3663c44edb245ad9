"""Kafka's command line tools for topics, records, configuration and brokers, directly and through the endpoint."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from tests.e2e.tools import Shell
from tests.fixtures.sides import Said, Side, Sides, until
from tools.java_client import Jvm

ID = (r"TopicId: \S{22}", "TopicId: ID")


async def test_topics(sides: Sides, jvm: Jvm, tmp_path: Path) -> None:
    async def script(side: Side, said: Said) -> None:
        shell, topic = Shell(side, jvm, said, tmp_path), side.topic("orders")
        named = ("--topic", topic)
        await shell.say(
            "create", "kafka-topics", "--create", *named, "--partitions", "2", "--config", "retention.ms=99"
        )
        await shell.say("create again", "kafka-topics", "--create", *named)
        await shell.say("unless there", "kafka-topics", "--create", *named, "--if-not-exists")
        await shell.say("describe", "kafka-topics", "--describe", *named)
        await shell.say("overrides", "kafka-topics", "--describe", *named, "--topics-with-overrides")
        await shell.say("unknown", "kafka-topics", "--describe", "--topic", side("no-such"))
        await shell.say("unless missing", "kafka-topics", "--describe", "--topic", side("no-such"), "--if-exists")
        await shell.say("more", "kafka-topics", "--alter", *named, "--partitions", "3")
        await shell.say("fewer", "kafka-topics", "--alter", *named, "--partitions", "1")
        describe = partial(shell, "kafka-topics", "--describe", *named)
        await until(describe, lambda done: "PartitionCount: 3" in done.out)
        await shell.say("describe more", "kafka-topics", "--describe", *named)
        await shell.say("list", "kafka-topics", "--list", mine=True)
        await shell.say("troubled", "kafka-topics", "--describe", *named, "--unavailable-partitions")
        await shell.say(
            "assigned", "kafka-topics", "--create", "--topic", side("a"), "--replica-assignment", f"{side.node}"
        )
        badly = await shell("kafka-topics", "--create", "--topic", side("b"), "--replica-assignment", "77")
        said("assigned badly", {"code": badly.code, "why": "InvalidReplicaAssignmentException" in badly.err})
        await shell.say("delete", "kafka-topics", "--delete", *named)
        await shell.say("delete again", "kafka-topics", "--delete", "--topic", side("no-such"))

    await sides.compare(script, replaced=[ID])


async def test_configs(sides: Sides, jvm: Jvm, tmp_path: Path) -> None:
    async def script(side: Side, said: Said) -> None:
        shell, topic = Shell(side, jvm, said, tmp_path), side.topic("orders")
        await shell.create(topic)

        async def say(label: str, kind: str, name: str | None, *arguments: str) -> None:
            entity = ("--entity-default",) if name is None else ("--entity-name", name)
            await shell.say(label, "kafka-configs", *arguments, "--entity-type", kind, *entity)

        change, gone = "retention.ms=60000,cleanup.policy=[compact,delete]", "retention.ms,cleanup.policy"
        await say("set", "topics", topic, "--alter", "--add-config", change)
        shown = partial(shell, "kafka-configs", "--describe", "--entity-type", "topics", "--entity-name", topic)
        await until(shown, lambda done: "retention.ms=60000" in done.out)
        await say("described", "topics", topic, "--describe")
        await say("all", "topics", topic, "--describe", "--all")
        await say("wrong", "topics", topic, "--alter", "--add-config", "retention.ms=soon")
        await say("unknown setting", "topics", topic, "--alter", "--add-config", "no.such=1")
        await say("unknown topic", "topics", side("no-such"), "--describe")
        await say("away", "topics", topic, "--alter", "--delete-config", gone)
        await say("away again", "topics", topic, "--alter", "--delete-config", gone)
        await until(shown, lambda done: "retention.ms" not in done.out)
        await say("none", "topics", topic, "--describe")
        await say("broker", "brokers", str(side.node), "--describe")
        await say("no broker", "brokers", "77", "--describe")
        await say("loggers", "broker-loggers", str(side.node), "--alter", "--add-config", "kafka.log.LogManager=INFO")
        user, group, metrics = side.user("alice"), side.group("g"), side("m")
        await say("quota", "users", user, "--alter", "--add-config", "producer_byte_rate=1000")
        await say("quota", "users", user, "--describe")
        await say("no quota", "users", user, "--alter", "--delete-config", "producer_byte_rate")
        await say("client", "clients", side("app"), "--alter", "--add-config", "request_percentage=50")
        await say("client away", "clients", side("app"), "--alter", "--delete-config", "request_percentage")
        await say("scram", "users", user, "--alter", "--add-config", "SCRAM-SHA-256=[iterations=4096,password=secret]")
        await say("scram away", "users", user, "--alter", "--delete-config", "SCRAM-SHA-256")
        await say("group", "groups", group, "--alter", "--add-config", "share.record.lock.duration.ms=20000")
        await say("group", "groups", group, "--describe")
        await say("metrics", "client-metrics", metrics, "--alter", "--add-config", "interval.ms=1000")
        await say("metrics", "client-metrics", metrics, "--describe")
        tool = "kafka-client-metrics"
        await shell.say("described", tool, "--describe", "--name", metrics)
        await shell.say("changed", tool, "--alter", "--name", metrics, "--metrics", "org.apache.kafka.producer.")
        await shell.say("listed", tool, "--list", mine=True)
        await shell.say("gone", tool, "--delete", "--name", metrics)

    await sides.compare(script)


async def test_records(sides: Sides, jvm: Jvm, tmp_path: Path) -> None:
    async def script(side: Side, said: Said) -> None:
        shell, topic = Shell(side, jvm, said, tmp_path), side.topic("orders")
        named = ("--topic", topic)
        await shell.create(topic)
        keyed = ("--reader-property", "parse.key=true", "--reader-property", "parse.headers=true")
        typed = "a:1,b:2\tkey\tone\nc:3\tkey\ttwo\nd:4\tkey\tthree\n"
        await shell.say("produce", "kafka-console-producer", *named, *keyed, stdin=typed)
        await shell.say(
            "produce zstd", "kafka-console-producer", *named, "--compression-codec", "zstd", stdin="plain\n"
        )
        shown = [f"--formatter-property=print.{what}=true" for what in ("key", "headers", "value")]
        read = ("--from-beginning", "--max-messages", "4", "--timeout-ms", "15000")
        await shell.say("consume", "kafka-console-consumer", *named, *shown, *read, ordered=False)
        group = ("--group", side.group("g"))
        await shell.say("in a group", "kafka-console-consumer", *named, *read, *group, ordered=False)
        new = ("--consumer-property", "group.protocol=consumer", "--group", side.group("h"))
        await shell.say("in a new group", "kafka-console-consumer", *named, *read, *new, ordered=False)
        await shell.say("unknown", "kafka-console-consumer", "--topic", side("no-such"), "--timeout-ms", "1500")
        offsets = ("kafka-get-offsets", "--topic", topic)
        await shell.say("ends", *offsets)
        await shell.say("earliest", *offsets, "--time", "earliest")
        await shell.say("of one", "kafka-get-offsets", "--topic-partitions", f"{topic}:0", "--time", "-1")
        await shell.say("of none", "kafka-get-offsets", "--topic", side("no-such"))
        before = [{"topic": topic, "partition": 0, "offset": 2}]
        what = shell.file("delete.json", json.dumps({"version": 1, "partitions": before}))
        await shell.say("delete", "kafka-delete-records", "--offset-json-file", what)
        before[0]["partition"] = 9
        what = shell.file("delete-9.json", json.dumps({"version": 1, "partitions": before}))
        soon = shell.file("soon.properties", "default.api.timeout.ms=6000\nrequest.timeout.ms=5000\n")
        patience = ("--command-config", soon)
        await shell.say("delete unknown", "kafka-delete-records", "--offset-json-file", what, *patience)
        done = await shell("kafka-get-offsets", "--topic", topic, "--time", "earliest")
        said("deleted", sorted(int(line.split(":")[2]) for line in done.out.split()))
        done = await shell("kafka-log-dirs", "--describe", "--broker-list", str(side.node), "--topic-list", topic)
        (broker,) = json.loads(done.out.splitlines()[-1])["brokers"]
        (held,) = broker["logDirs"]
        held["partitions"].sort(key=lambda each: str(each["partition"]))
        said("log dirs", {"node": broker["broker"], "partitions": held["partitions"]})

    await sides.compare(script, replaced=[(r"TimeoutException: .*", "TimeoutException")])


async def test_replicas(sides: Sides, jvm: Jvm, tmp_path: Path) -> None:
    async def script(side: Side, said: Said) -> None:
        shell, topic = Shell(side, jvm, said, tmp_path), side.topic("orders")
        await shell.create(topic, 2)
        move = "kafka-reassign-partitions"
        topics = shell.file("topics.json", json.dumps({"version": 1, "topics": [{"topic": topic}]}))
        node = str(side.node)
        await shell.say("generate", move, "--generate", "--topics-to-move-json-file", topics, "--broker-list", node)

        soon = shell.file("soon.properties", "default.api.timeout.ms=6000\nrequest.timeout.ms=5000\n")
        patience = ("--command-config", soon)

        async def plan(label: str, name: str, replicas: list[int], partition: int = 0) -> None:
            moves = [{"topic": topic, "partition": partition, "replicas": replicas}]
            file = shell.file(f"{name}.json", json.dumps({"version": 1, "partitions": moves}))
            await shell.say(f"{label}, execute", move, "--execute", "--reassignment-json-file", file, *patience)
            await shell.say(f"{label}, verify", move, "--verify", "--reassignment-json-file", file, *patience)

        await plan("as it is", "same", [side.node])
        await plan("no such broker", "broker", [77])
        await plan("no such partition", "partition", [side.node], 9)
        await shell.say("list", move, "--list")
        elect = ("kafka-leader-election", "--election-type")
        await shell.say("elect", *elect, "preferred", "--topic", topic, "--partition", "0")
        await shell.say("elect unclean", *elect, "unclean", "--topic", topic, "--partition", "1")
        unknown = await shell(*elect, "preferred", "--topic", side("no-such"), "--partition", "0")
        said("elect unknown", {"code": unknown.code, "why": "UnknownTopicOrPartitionException" in unknown.out})

    replaced = [
        (r'"log_dirs":\[[^\]]*\]', '"log_dirs":[]'),
        # By design: there are more brokers.
        (r"throttles on brokers? [\w,]+", "throttles on brokers"),
        (r"(but replica set is|rather than)( \d+)?", r"\1"),
    ]
    await sides.compare(script, replaced=replaced)


async def test_the_cluster(sides: Sides, jvm: Jvm, tmp_path: Path) -> None:
    async def script(side: Side, said: Said) -> None:
        shell = Shell(side, jvm, said, tmp_path)
        await shell.say("id", "kafka-cluster", "cluster-id")
        endpoints = await shell("kafka-cluster", "list-endpoints")
        said("a broker", [line.split()[0] for line in endpoints.out.splitlines() if str(side.node) in line.split()[:1]])
        await shell.say("no broker", "kafka-cluster", "unregister", "--id", "77")
        await shell.say("features", "kafka-features", "describe")
        await shell.say("a feature as it is", "kafka-features", "upgrade", "--feature", "group.version=1", "--dry-run")
        await shell.say("no feature", "kafka-features", "upgrade", "--feature", "no.such=1", "--dry-run")
        status = await shell("kafka-metadata-quorum", "describe", "--status")
        said("quorum", sorted(line.split(":")[0] for line in status.check().out.splitlines()))
        replication = await shell("kafka-metadata-quorum", "describe", "--replication")
        said("replication", replication.check().out.splitlines()[0].split())
        await shell.say("ACLs", "kafka-acls", "--list")
        rule = ("--add", "--allow-principal", "User:alice", "--operation", "Read", "--topic", side.topic("orders"))
        await shell.say("an ACL", "kafka-acls", *rule)

    replaced = [ID, (r"Cluster ID: \S{22}", "Cluster ID: ID"), (r"Epoch: \d+", "Epoch: N")]
    await sides.compare(script, replaced=replaced)


async def test_delegation_tokens_are_off(sides: Sides, jvm: Jvm, tmp_path: Path) -> None:
    async def script(side: Side, said: Said) -> None:
        shell = Shell(side, jvm, said, tmp_path)
        nothing = shell.file("client.properties", "")
        done = await shell("kafka-delegation-tokens", "--describe", "--command-config", nothing)
        # By design another of the two reasons why there are none.
        said("describe", {"code": done.code, "why": "elegation" in done.err + done.out})

    await sides.compare(script)


async def test_api_versions(sides: Sides, jvm: Jvm, tmp_path: Path) -> None:
    found: dict[str, dict[str, str]] = {}

    async def script(side: Side, said: Said) -> None:
        done = (await Shell(side, jvm, said, tmp_path)("kafka-broker-api-versions")).check()
        brokers = [text for text in done.out.split("\n)") if f"(id: {side.node} " in text]
        assert len(brokers) == 1, done.out
        apis = dict(
            line.strip().rstrip(",").split(": ", 1) for line in brokers[0].splitlines() if line.startswith("\t")
        )
        found[side.name] = apis
        said("brokers", done.out.count("(id: ") - len(side.others))

    await sides.compare(script)
    assert found["here"] == found["there"]
    different = set(found["direct"].items() ^ found["here"].items())
    # By design: what brokers say to each other is not offered. (Telemetry a broker only offers where it has a plugin.)
    assert {name for name, _ in different} == {
        "AddPartitionsToTxn(24)",
        "InitializeShareGroupState(83)",
        "ReadShareGroupState(84)",
        "WriteShareGroupState(85)",
        "DeleteShareGroupState(86)",
        "ReadShareGroupStateSummary(87)",
    }, sorted(different)
