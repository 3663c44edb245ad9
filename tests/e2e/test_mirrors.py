"""Mirrors as operators make them: created, watched and removed by commands, on a running federation."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable

import trio
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions

from kafka_client import ClusterClient
from kafka_client.topics import LATEST, describe, offsets
from replicator.prepare import alter
from tests.fixtures.kfed import Kfed
from tests.fixtures.mirrors import Load, create, log_of
from tests.fixtures.names import Names
from tests.history.loads import create as create_through
from tools.local_cluster import Cluster
from tools.local_federation import Federation, run_federation

BETWEEN = ("--from", "east", "--to", "west")


def client(cluster: Cluster) -> ClusterClient:
    return ClusterClient(cluster.name, cluster.addresses())


def write(config: dict[str, str | int | float | bool], topic: str, values: list[bytes], partition: int = 0) -> None:
    producer = Producer({**config, "linger.ms": 0})
    for one in values:
        producer.produce(topic, one, partition=partition)
    assert producer.flush(30) == 0


async def values(at: ClusterClient, topic: str, partition: int = 0) -> list[bytes | None]:
    return [one.value for one in await log_of(at, topic, partition)]


async def lacks(at: ClusterClient, topic: str) -> bool:
    return topic not in await describe(at, [topic])


async def without(kfed: Kfed, topic: str) -> bool:
    return not await kfed.mirrors(topic)


async def until(condition: Callable[[], Awaitable[bool]], what: str, seconds: float = 20.0) -> None:
    deadline = trio.current_time() + seconds
    while True:
        if await condition():
            return
        assert trio.current_time() < deadline, what
        await trio.sleep(0.1)


async def copied(kfed: Kfed, topic: str, there: ClusterClient, here: ClusterClient, partitions: int) -> int:
    """Both sides hold the same, record by record; returns how many."""
    ends = await offsets(there, topic, range(partitions), LATEST, committed=True)
    await kfed.caught_up({(topic, here.name, number): end for number, end in ends.items()})
    count = 0
    for number in range(partitions):
        one, other = await log_of(there, topic, number), await log_of(here, topic, number)
        assert [held.content for held in one] == [held.content for held in other]
        count += len(one)
    return count


async def test_created_under_load_watched_and_removed(
    federation: Federation, east: Cluster, west: Cluster, names: Names
) -> None:
    kfed, topic = Kfed(federation), names.topic("orders")
    create_through(federation.librdkafka(), topic, 3, **{"retention.ms": "7200000"})
    load = Load(federation, topic, 3).running()  # type: ignore[arg-type]
    await trio.to_thread.run_sync(load.__enter__)
    try:
        plan = (await kfed("mirror", "create", topic, *BETWEEN, "--json")).json
        [line] = plan["mirrors"]
        assert (line["target_topic"], line["partitions"], plan["applied"], plan["problems"]) == ("create", 3, False, [])
        assert line["configuration"]["retention.ms"] == "7200000"
        assert await kfed.mirrors(topic) == []
        done = await kfed("mirror", "create", topic, *BETWEEN, "--apply", "--rate", "50000000")
        assert "is created" in done.out and "50.0 MB/s" in done.out and done.out.endswith("Done.\n")
        # It has begun when the command returns.
        [line] = await kfed.mirrors(topic)
        assert {part["condition"] for part in line["partitions"]} <= {"copying", "caught_up"}
        assert len(line["partitions"]) == 3 and len(line["workers"]) == 1 and line["made_by"] == "operator"
        again = (await kfed("mirror", "create", topic, *BETWEEN, "--apply", "--json")).json
        assert again["applied"] and again["mirrors"][0]["target_topic"] == "exists"
    finally:
        await trio.to_thread.run_sync(load.__exit__, None, None, None)
    async with client(east) as there, client(west) as here:
        assert await copied(kfed, topic, there, here, 3) > 20
        text = (await kfed("mirrors")).out
        assert re.search(rf"{topic} +east -> west +ship +(copying|caught_up) +\d+", text)
        assert "retention.ms" not in (await kfed("doctor")).out
        assert re.search(r"mirrors +\d+, at most \d+ records behind", (await kfed("status")).out)
        metrics = federation.ask("/metrics")
        assert re.search(rf'kfed_mirror_condition{{condition="[a-z_]+",.*topic="{topic}".*}} 1.0', metrics)
        assert re.search(rf'kfed_mirror_lag_records{{.*topic="{topic}".*}} \d', metrics)

        plan = await kfed("mirror", "remove", topic, *BETWEEN)
        assert "shows it as a conflict" in plan.out.replace("show it", "shows it") and "--apply" in plan.out
        await kfed("mirror", "remove", topic, *BETWEEN, "--apply")
        assert await kfed.mirrors(topic) == []

        async def conflict() -> bool:
            found = await kfed("topics", "--json")
            return any(one["name"] == topic and one["conflict"] == ["west"] for one in found.json["topics"])

        await until(conflict, "no conflict")
        # Made again, it goes on where it stopped; nothing is there twice.
        await trio.to_thread.run_sync(write, federation.librdkafka(), topic, [b"after"], 1)
        plan = (await kfed("mirror", "create", topic, *BETWEEN, "--apply", "--json")).json
        assert plan["mirrors"][0]["notes"] == ["goes on where an earlier mirror has stopped"]
        await copied(kfed, topic, there, here, 3)
        await kfed("mirror", "remove", topic, *BETWEEN, "--delete-copy", "--apply")
        assert topic in await describe(there, [topic])
        await until(lambda: lacks(here, topic), "the copy is still there")
    history = [one["what"] for one in federation.ask("/api/v1/history?limit=20")["history"]]
    assert f"mirror create {topic} east -> west" in history and f"mirror remove {topic} east -> west" in history


async def test_patterns_and_refusals(federation: Federation, east: Cluster, west: Cluster, names: Names) -> None:
    kfed = Kfed(federation)
    plain, other, unfit, full = (names.topic(word) for word in ("p-plain", "p-other", "unfit", "full"))
    for topic in (plain, other, unfit, full):
        create_through(federation.librdkafka(), topic, 1)
    await trio.to_thread.run_sync(write, federation.librdkafka(), plain, [b"1"])
    await create(west, unfit, 1, message_timestamp_type="LogAppendTime")
    await create(west, full, 1)
    await trio.to_thread.run_sync(write, west.librdkafka(), full, [b"somebody's"])

    async def refused(*arguments: str) -> str:
        ran = await kfed("mirror", "create", *arguments, "--apply", check=False)
        assert ran.status in (1, 2) and "Traceback" not in ran.err
        assert "Done." not in ran.out
        return ran.out + ran.err

    text = await refused(unfit, *BETWEEN)
    assert "message.timestamp.type" in text and "--add-config message.timestamp.type=CreateTime" in text
    assert "occupied" in (text := await refused(full, *BETWEEN)) and f"--topic {full} --delete" in text
    # One that cannot be keeps all from being made.
    assert "occupied" in await refused(plain, full, *BETWEEN)
    assert "no topic of this name" in await refused(names.topic("none"), *BETWEEN)
    assert "no cluster 'south'" in await refused(plain, "--from", "east", "--to", "south")
    assert "no regular expression" in await refused("(", *BETWEEN)
    assert await kfed.mirrors(plain, other, unfit, full) == []

    pattern = f"p-.*-{names.suffix}"
    await kfed("mirror", "create", pattern, *BETWEEN, "--apply")
    assert [one["topic"] for one in await kfed.mirrors(plain, other, unfit)] == [other, plain]
    assert "serves the topic" in await refused(plain, "--from", "west", "--to", "east")
    assert "exists as ship" in await refused(plain, *BETWEEN, "--both-ways")
    async with client(west) as here:
        await kfed.caught_up({(plain, "west", 0): 1})
        assert await values(here, plain) == [b"1"]

        async def finding(mended: bool) -> bool:
            """Whether the doctor names the setting."""
            found = (await kfed("doctor", "--json")).json["findings"]
            about = [one["what"] for one in found if one["subject"] == f"{plain} east -> west"]
            return mended is not any("message.timestamp.type" in one for one in about)

        # Somebody changes the copy's configuration behind the mirror's back, and back.
        for wanted in ("LogAppendTime", "CreateTime"):
            await alter(here, plain, {"message.timestamp.type": wanted})
            await until(lambda wanted=wanted: finding(wanted == "CreateTime"), wanted, 30)  # type: ignore[misc]
    ran = await kfed("mirror", "remove", names.topic("none"), *BETWEEN, "--apply", check=False)
    assert ran.status == 1 and "no mirror of it" in ran.out
    await kfed("mirror", "remove", pattern, *BETWEEN, "--delete-copy", "--apply")
    assert await kfed.mirrors(plain, other) == []


async def test_a_groups_stand_in_becomes_a_target(
    federation: Federation, east: Cluster, west: Cluster, names: Names
) -> None:
    kfed, topic, group = Kfed(federation), names.topic("read"), names.group("g") + "-west"
    create_through(federation.librdkafka(), topic, 2)

    def commit() -> None:
        consumer = Consumer({**federation.librdkafka(), "group.id": group})
        consumer.commit(offsets=[TopicPartition(topic, 0, 0)], asynchronous=False)
        consumer.close()

    await trio.to_thread.run_sync(commit)
    await trio.to_thread.run_sync(write, federation.librdkafka(), topic, [b"1", b"2"], 1)
    plan = (await kfed("mirror", "create", topic, *BETWEEN, "--apply", "--json")).json
    assert plan["mirrors"][0]["target_topic"] == "reopen"
    async with client(east) as there, client(west) as here:
        assert await copied(kfed, topic, there, here, 2) == 2
        # A topic that grows takes its copy along, though groups have positions there.
        admin = AdminClient(federation.librdkafka())
        admin.create_partitions([NewPartitions(topic, 4)])[topic].result(30)
        await trio.to_thread.run_sync(write, federation.librdkafka(), topic, [b"3"], 3)
        assert await copied(kfed, topic, there, here, 4) == 3
    ran = await kfed("mirror", "remove", topic, *BETWEEN, "--delete-copy", "--apply", check=False)
    assert ran.status == 1 and "leave --delete-copy out" in ran.out
    await kfed("mirror", "remove", topic, *BETWEEN, "--apply")
    await trio.to_thread.run_sync(commit)


async def test_both_ways(federation: Federation, east: Cluster, west: Cluster, names: Names) -> None:
    kfed, topic = Kfed(federation), names.topic("both")
    create_through(federation.librdkafka(), topic, 1)
    await kfed("mirror", "create", topic, *BETWEEN, "--both-ways", "--apply")
    lines = await kfed.mirrors(topic)
    assert {(one["source"], one["target"], one["mode"]) for one in lines} == {
        ("east", "west", "exchange"),
        ("west", "east", "exchange"),
    }
    await trio.to_thread.run_sync(write, east.librdkafka(), topic, [b"from-east"])
    await trio.to_thread.run_sync(write, west.librdkafka(), topic, [b"from-west"])
    async with client(east) as there, client(west) as here:
        union = {b"from-east", b"from-west"}

        async def joined() -> bool:
            return all([set(await values(one, topic)) == union for one in (there, here)])

        await until(joined, "no union")
        assert [len(await values(one, topic)) for one in (there, here)] == [2, 2]
    await kfed("mirror", "remove", topic, *BETWEEN, "--both-ways", "--apply")
    assert await kfed.mirrors(topic) == []


async def test_standbys_follow_the_rules(east: Cluster, west: Cluster, names: Names) -> None:
    mine = rf".*-{names.suffix}"
    kept, gone, missing = names.topic("kept"), names.topic("gone"), names.topic("missing")
    rule = {"topics": mine, "cluster": "east"}
    async with client(east) as there, client(west) as here:
        with run_federation(
            [east, west], proxy={"workers": 1}, placement={"rules": [{**rule, "standbys": ["west"]}]}
        ) as federation:
            kfed = Kfed(federation)
            for topic in (kept, gone, missing):
                create_through(federation.librdkafka(), topic, 1)
                await trio.to_thread.run_sync(write, federation.librdkafka(), topic, [topic.encode()])
            await kfed.caught_up({(topic, "west", 0): 1 for topic in (kept, gone, missing)})
            assert {one["made_by"] for one in await kfed.mirrors(kept, gone, missing)} == {"rule"}
            ran = await kfed("mirror", "remove", kept, *BETWEEN, "--apply", check=False)
            assert ran.status == 1 and "standbys" in ran.out

            for config, topic in ((federation.librdkafka(), gone), (east.librdkafka(), missing)):
                admin = AdminClient(config)
                admin.delete_topics([topic])[topic].result(30)

            async def is_missing() -> bool:
                return [one["condition"] for one in await kfed.mirrors(missing)] == ["missing"]

            await until(lambda: lacks(here, gone), "the copy of a deleted topic stays", 30)
            await until(lambda: without(kfed, gone), "its mirror stays")
            await until(is_missing, "not missing", 30)
            assert await values(here, missing) == [missing.encode()]
            findings = (await kfed("doctor", "--json")).json["findings"]
            [found] = [one for one in findings if one["kind"] == "mirror stopped" and missing in one["subject"]]
            assert "kfed mirror remove" in found["mend"]

            federation.write(placement={"rules": [rule]})
            await kfed("config", "apply", "--apply", "-c", str(federation.configuration))
            await until(lambda: without(kfed, kept), "a mirror that the rules do not want")
            assert await values(here, kept) == [kept.encode()]
            history = [(one["by"], one["what"]) for one in federation.ask("/api/v1/history")["history"]]
            assert {("placement rules", "standbys begun"), ("placement rules", "standbys ended")} <= {*history}
            await kfed("mirror", "remove", missing, *BETWEEN, "--delete-copy", "--apply")
            assert missing not in await describe(there, [missing])


async def test_paused_resumed_and_begun_anew(
    federation: Federation, east: Cluster, west: Cluster, names: Names
) -> None:
    kfed, topic = Kfed(federation), names.topic("rests")
    create_through(federation.librdkafka(), topic, 1)
    await kfed("mirror", "create", topic, *BETWEEN, "--apply")

    async def in_state(wanted: str) -> bool:
        return [one["condition"] for one in await kfed.mirrors(topic)] == [wanted]

    async with client(east) as there, client(west) as here:
        write(east.librdkafka(), topic, [b"1", b"2"])
        assert await copied(kfed, topic, there, here, 1) == 2
        plan = await kfed("mirror", "pause", topic, *BETWEEN)
        assert "running becomes paused" in plan.out and await kfed.mirrors(topic) and not await in_state("paused")
        await kfed("mirror", "pause", topic, *BETWEEN, "--apply")
        await until(lambda: in_state("paused"), "not paused")
        await until(lambda: given_back(kfed, topic), "still copied")
        write(east.librdkafka(), topic, [b"3"])
        assert await values(here, topic) == [b"1", b"2"]
        await kfed("mirror", "resume", topic, *BETWEEN, "--apply")
        assert await copied(kfed, topic, there, here, 1) == 3
        await kfed("mirror", "pause", *BETWEEN, "--apply")  # the link
        await until(lambda: in_state("paused"), "not paused")
        await kfed("mirror", "resume", *BETWEEN, "--apply")
        await until(lambda: in_state("caught_up"), "not resumed")

        before = await log_of(here, topic, 0)
        plan = await kfed("mirror", "rebuild", topic, *BETWEEN)
        assert re.search(rf"{topic} .*becomes begun anew +3\b", plan.out), plan.out
        assert await log_of(here, topic, 0) == before
        await kfed("mirror", "rebuild", topic, *BETWEEN, "--apply")

        async def begun_anew() -> bool:
            return [one.offset > before[-1].offset for one in await log_of(here, topic, 0)] == [True] * 3

        await until(begun_anew, "not begun anew")
        assert await copied(kfed, topic, there, here, 1) == 3
        gone = await kfed("mirror", "rebuild", "no-such-topic", *BETWEEN, "--apply", check=False)
        assert gone.status == 1 and "no mirror of it" in gone.out
    await kfed("mirror", "remove", topic, *BETWEEN, "--delete-copy", "--apply")


async def given_back(kfed: Kfed, topic: str) -> bool:
    return not any(one["workers"] for one in await kfed.mirrors(topic))
