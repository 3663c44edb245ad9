"""Topics that are changed while they move and afterwards: more partitions, other settings, deleted, mirrored."""

from __future__ import annotations

import trio
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    ResourceType,
)

from kafka_client import ClusterClient
from kafka_client.topics import describe
from replicator.prepare import configs
from tests.e2e.test_migrate_commands import Config, blocking, offsets, write
from tests.fixtures.kfed import Kfed
from tests.fixtures.mirrors import log_of
from tests.fixtures.names import Names
from tests.history.loads import create
from tools.java_client import Jvm
from tools.local_cluster import Cluster
from tools.local_federation import Federation

BOUND = 30.0


def grow(config: Config, topic: str, count: int) -> None:
    admin = AdminClient(config)
    admin.create_partitions([NewPartitions(topic, count)])[topic].result(BOUND)


def alter(config: Config, topic: str, name: str, value: str) -> None:
    entry = ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
    admin = AdminClient(config)
    admin.incremental_alter_configs([resource])[resource].result(BOUND)


def delete(config: Config, topic: str) -> None:
    admin = AdminClient(config)
    admin.delete_topics([topic])[topic].result(BOUND)


async def step(kfed: Kfed, operation: str) -> str:
    return str((await kfed("operations", operation, "--json")).json["step"])


async def reached(kfed: Kfed, operation: str, *steps: str) -> None:
    with trio.fail_after(BOUND):
        while await step(kfed, operation) not in steps:  # noqa: ASYNC110 - somebody else's state
            await trio.sleep(0.1)


async def paused(kfed: Kfed, topic: str) -> str:
    """A move that has copied everything, and holds nothing. Its operation."""
    begun = (await kfed("migrate", topic, "--to", "west", "--apply", "--json")).json["migrations"][0]["id"]
    await reached(kfed, begun, "ship", "caught_up")
    await kfed("operations", begun, "--pause")
    await reached(kfed, begun, "caught_up")
    return str(begun)


async def test_partitions_and_settings_that_come_during_a_move(
    federation: Federation, east: Cluster, west: Cluster, names: Names
) -> None:
    """Also partitions that the endpoint does not hear of: what was written into them is not lost, nor moved about."""
    kfed, topic, config = Kfed(federation), names.topic("changed"), federation.librdkafka()
    create(config, topic, 1)
    await blocking(write, config, topic, 5)
    operation = await paused(kfed, topic)
    await blocking(grow, config, topic, 2)
    await blocking(alter, config, topic, "retention.ms", "7200000")
    await blocking(grow, east.librdkafka(), topic, 3)
    async with ClusterClient("east", east.addresses()) as there, ClusterClient("west", west.addresses()) as here:
        last = await log_of(there, topic, 2)
        assert not last
        await blocking(into, east.librdkafka(), topic, 2, 4)
        await kfed("operations", operation, "--resume")
        await reached(kfed, operation, "redirect")
        shown = (await kfed("topics", topic, "--json")).json
        assert (shown["cluster"], shown["partitions"]) == ("west", 3)
        assert shown["timeline"][1]["first_offsets"] == {"0": 5, "1": 0, "2": 4}
        await blocking(into, config, topic, 2, 3)
        assert await blocking(offsets, config, topic, 7, 2) == list(range(7))
        # After the switch everything is done where it is now, and goes back with it.
        await blocking(alter, config, topic, "retention.ms", "7300000")
        await blocking(grow, config, topic, 4)
        await kfed("migrate", topic, "--rollback", "--apply", "--wait")
        assert (await configs(there, topic)).values["retention.ms"] == "7300000"
        assert [len((await describe(one, [topic]))[topic].partitions) for one in (there, here)] == [4, 4]
    await blocking(into, config, topic, 3, 2)
    assert await blocking(offsets, config, topic, 7, 2) == list(range(7))


async def test_a_former_copy_that_compacts(federation: Federation, names: Names) -> None:
    """It is gone on with, though what was written since has no keys."""
    kfed, topic, config = Kfed(federation), names.topic("policy"), federation.librdkafka()
    create(config, topic, 1, **{"cleanup.policy": "compact"})
    await kfed("migrate", topic, "--to", "west", "--apply", "--wait")
    await blocking(alter, config, topic, "cleanup.policy", "delete")
    await blocking(write, config, topic, 10)
    await kfed("migrate", topic, "--rollback", "--apply", "--wait")
    assert await blocking(offsets, config, topic, 10) == list(range(10))


def into(config: Config, topic: str, partition: int, count: int) -> None:
    write(config, topic, count, partition=partition)


async def test_a_deleted_topic_leaves_nothing_behind(
    federation: Federation, east: Cluster, west: Cluster, names: Names
) -> None:
    """Neither former copies, nor those of a move that it ends; one of its name afterwards is a new one."""
    kfed, config = Kfed(federation), federation.librdkafka()
    moved, moving = names.topic("moved"), names.topic("moving")
    for topic in (moved, moving):
        create(config, topic, 1)
        await blocking(write, config, topic, 5)
    done = (await kfed("migrate", moved, "--to", "west", "--apply", "--wait", "--json")).json["operations"][0]["id"]
    begun = await paused(kfed, moving)
    async with ClusterClient("east", east.addresses()) as there, ClusterClient("west", west.addresses()) as here:
        assert moved in await describe(there, [moved]) and moving in await describe(here, [moving])
        for topic, operation, end in ((moved, done, "done"), (moving, begun, "failed")):
            await blocking(delete, config, topic)
            assert await step(kfed, operation) == end
            assert not await describe(there, [topic]) and not await describe(here, [topic])
            create(config, topic, 1)
            await blocking(write, config, topic, 2)
            assert await blocking(offsets, config, topic, 2) == [0, 1]
            shown = (await kfed("topics", topic, "--json")).json
            assert (shown["cluster"], shown["epoch"], shown["hold"]) == ("east", 0, None)
    assert not [one for one in (await kfed("doctor", "--json")).json["findings"] if names.suffix in one["what"]]
    await kfed("migrate", moved, "--to", "west", "--apply", "--wait")
    await blocking(write, config, moved, 2)
    assert await blocking(offsets, config, moved, 4) == [0, 1, 2, 3]


async def test_a_copy_of_a_moved_topic(federation: Federation, names: Names) -> None:
    """Verified and translated also where clients wrote, not a mirror."""
    kfed, topic, config = Kfed(federation), names.topic("mirrored"), federation.librdkafka()
    create(config, topic, 1)
    await blocking(write, config, topic, 20)
    done = await kfed("migrate", topic, "--to", "west", "--redirect", "0", "--apply", "--wait", "--json")
    await blocking(write, config, topic, 6)
    await reached(kfed, done.json["operations"][0]["id"], "done")
    text = (await kfed("offsets", "translate", topic, "0", "5", "--from", "east", "--to", "west", check=False)).err
    assert "--from west --to east" in text, "the other way round nothing can be mirrored"
    await kfed("mirror", "create", topic, "--from", "west", "--to", "east", "--apply")
    with trio.fail_after(BOUND):
        while True:
            verified = await kfed("verify", topic, check=False)
            if verified.status == 0 and " 26 " in verified.out:
                break
            await trio.sleep(0.2)

    async def translated(offset: int, source: str, target: str) -> int:
        ran = await kfed("offsets", "translate", topic, "0", str(offset), "--from", source, "--to", target)
        return int(ran.out.split()[0])

    for physical in (3, 20, 23, 26):
        copied = await translated(physical, "west", "east")
        assert await translated(copied, "east", "west") == physical
    await kfed("mirror", "remove", topic, "--from", "west", "--to", "east", "--apply")


async def test_what_its_kind_allows(federation: Federation, jvm: Jvm, names: Names) -> None:
    """A share group's position stays with its cluster; internal topics of an application move together."""
    kfed, topic, group, config = Kfed(federation), names.topic("jobs"), names.group("share"), federation.librdkafka()
    create(config, topic, 1)
    async with jvm.admin(federation.java()) as admin, jvm.share_consumer(federation.java(), group=group) as consumer:
        await admin.done("alter_configs", changes=[["group", group, "share.auto.offset.reset", "earliest"]])
        await blocking(write, config, topic, 3)
        await consumer.subscribe(topic)
        taken = 0
        with trio.fail_after(BOUND):
            while taken < 3:
                taken += len(await consumer.take(1, 1.0, once=True))
        refused = await kfed("migrate", topic, "--to", "west", "--apply", "--json", check=False)
    (line,) = refused.json["migrations"][0]["topics"]
    assert refused.status == 1 and line["kinds"] == ["share"] and not refused.json["applied"]
    assert "acquired records" in refused.json["problems"][0] and any(group in one for one in line["notes"])

    made = [
        names.topic("app") + f"-KSTREAM-AGGREGATE-STATE-STORE-0000000003-{kind}"
        for kind in ("changelog", "repartition")
    ]
    for one in made:
        create(config, one, 1)
    (problem,) = (await kfed("migrate", made[0], "--to", "west", "--json", check=False)).json["problems"]
    assert made[1] in problem
    done = (await kfed("migrate", *made, "--to", "west", "--apply", "--wait", "--json")).json
    (move,) = done["migrations"]
    assert [one["topic"] for one in move["topics"]] == made and {one["kinds"][0] for one in move["topics"]} == {
        "streams"
    }
