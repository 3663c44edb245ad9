"""Moves as operators make them: planned, refused with the way out, begun, waited for, taken back, given up."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from confluent_kafka import Consumer, Producer, TopicPartition

from kafka_client import ClusterClient
from replicator.prepare import configs
from tests.fixtures.kfed import Kfed
from tests.fixtures.mirrors import create as create_on
from tests.fixtures.names import Names
from tests.history.loads import create
from tools.local_cluster import Cluster
from tools.local_federation import Federation

DELETE_TOPICS, DESCRIBE_PRODUCERS = 20, 61
Config = dict[str, str | int | float | bool]


def write(config: Config, topic: str, count: int, partition: int = 0, **more: Any) -> None:
    """Everything acknowledged."""
    failed: list[object] = []
    producer = Producer({**config, **more})
    if "transactional.id" in more:
        producer.init_transactions(20)
        producer.begin_transaction()
    for number in range(count):
        producer.produce(
            topic,
            str(number).encode(),
            partition=partition,
            on_delivery=lambda error, _: failed.append(error) if error else None,
        )
    if "transactional.id" in more:
        producer.commit_transaction(20)
    assert producer.flush(20) == 0 and not failed


def offsets(config: Config, topic: str, count: int, partition: int = 0) -> list[int]:
    consumer = Consumer({**config, "group.id": "reads", "auto.offset.reset": "earliest", "enable.auto.commit": False})
    consumer.assign([TopicPartition(topic, partition, 0)])
    found = [one.offset() or 0 for one in consumer.consume(count, 20) if not one.error()]
    consumer.close()
    return found


async def blocking(call: Any, *arguments: Any) -> Any:
    return await trio.to_thread.run_sync(call, *arguments)


@pytest.fixture
def kfed(federation: Federation) -> Kfed:
    return Kfed(federation)


async def test_moved_back_and_given_up(
    federation: Federation, kfed: Kfed, east: Cluster, west: Cluster, names: Names
) -> None:
    topic, config = names.topic("moved"), federation.librdkafka()
    create(config, topic, 2, **{"retention.ms": "7200000", "max.message.bytes": "2000000"})
    await blocking(write, config, topic, 100)
    plan = (await kfed("migrate", topic, "--to", "west", "--json")).json
    (move,) = plan["migrations"]
    (line,) = move["topics"]
    assert not plan["applied"] and not plan["problems"] and move["id"] is None
    assert (line["target_topic"], line["partitions"], line["kinds"], line["producers"]) == ("create", 2, ["plain"], 0)
    assert line["configuration"]["retention.ms"] == "7200000" and move["to_copy"] > 0 and move["disk"]["free"] > 0
    assert (await kfed("topics", topic, "--json")).json["cluster"] == "east"

    done = (await kfed("migrate", topic, "--to", "west", "--apply", "--wait", "--json")).json
    (operation,) = done["operations"]
    first = operation["id"]
    assert done["applied"] and operation["migration"]["served"] and 0 < operation["migration"]["held_ms"] < 3000
    shown = (await kfed("topics", topic, "--json")).json
    assert shown["cluster"] == "west" and [one["cluster"] for one in shown["timeline"]] == ["east", "west"]
    assert shown["timeline"][1]["first_offsets"] == {"0": 100, "1": 0}
    await blocking(write, config, topic, 10)
    async with ClusterClient("west", west.addresses()) as here:
        values = (await configs(here, topic)).values
    assert (values["retention.ms"], values["max.message.bytes"]) == ("7200000", "2000000")
    assert (values["compression.type"], values["message.timestamp.after.max.ms"]) == ("producer", "3600000")

    refused = await kfed("migrate", topic, "--to", "west", "--apply", check=False)
    assert refused.status == 1 and "it is on west already" in refused.out
    refused = await kfed("operations", first, "--abort", check=False)
    assert refused.status == 1 and f"kfed migrate {topic} --rollback --apply" in refused.err

    # Its old copy is there still, and is gone on with: what was left to do of the first move is the second one's.
    plan = (await kfed("migrate", topic, "--rollback", "--json")).json
    (move,) = plan["migrations"]
    assert (move["source"], move["target"], move["takes_over"]) == ("west", "east", [first])
    assert move["topics"][0]["target_topic"] == "reuse"
    back = await kfed("migrate", topic, "--rollback", "--apply", "--wait")
    assert f"{topic}: served by east; writes were held for " in back.out
    await blocking(write, config, topic, 10)
    assert await blocking(offsets, config, topic, 120) == list(range(120))

    # Given up before it switches: it stays where it is, and the next one goes on with what was copied.
    begun = (await kfed("migrate", topic, "--to", "west", "--apply", "--json")).json["migrations"][0]["id"]
    given_up = await kfed("operations", begun, "--abort", "--wait", "--json", check=False)
    if given_up.status == 0:  # it may have switched by now
        assert given_up.json["state"] == "aborted"
        assert (await kfed("topics", topic, "--json")).json["cluster"] == "east"
        assert (await kfed("migrate", topic, "--to", "west", "--apply", "--wait", "--json")).json["applied"]
    assert await blocking(offsets, config, topic, 120) == list(range(120))
    history = (await kfed("history", "--json")).json["history"]
    assert any(one["what"] == f"migrate {topic} --to west" for one in history)


async def test_refused_with_the_way_out(
    federation: Federation, kfed: Kfed, east: Cluster, west: Cluster, names: Names
) -> None:
    config = federation.librdkafka()
    past, other, one, two = (names.topic(text) for text in ("past", "other", "one", "two"))
    for topic in (past, other, one, two):
        create(config, topic, 1)
    identifier = names.topic("pays")
    direct = {**config, **east.librdkafka()}

    def both() -> None:
        producer = Producer({**config, "transactional.id": identifier})
        producer.init_transactions(20)
        producer.begin_transaction()
        producer.produce(one, b"1")
        producer.produce(two, b"1")
        producer.commit_transaction(20)

    await blocking(both)
    await blocking(lambda: write(direct, past, 1, **{"enable.idempotence": True}))
    async with ClusterClient("east", east.addresses()) as there:
        described = await there.call(
            DESCRIBE_PRODUCERS,
            {"topics": [{"name": past, "partition_indexes": [0]}]},
            broker=next(iter(await there.refresh())),
        )
    (producer,) = described["topics"][0]["partitions"][0]["active_producers"]

    async def problems(*arguments: str) -> list[str]:
        ran = await kfed("migrate", *arguments, "--apply", "--json", check=False)
        assert ran.status == 1 and not ran.json["applied"], ran
        found: list[str] = ran.json["problems"]
        return found

    (text,) = await problems(past, "--to", "west")
    assert f"producer id {producer['producer_id']}" in text and "--close-out-bypass" in text
    allowed = (await kfed("migrate", past, "--to", "west", "--close-out-bypass", "--json")).json
    assert not allowed["problems"] and allowed["migrations"][0]["warnings"]
    (text,) = await problems(one, "--to", "west")
    assert identifier in text and two in text
    together = (await kfed("migrate", one, two, "--to", "west", "--json")).json
    (move,) = together["migrations"]
    assert not together["problems"] and move["transactional_ids"] == [identifier]
    assert move["topics"][0]["kinds"] == ["transactional"]
    assert "serves no topic of this name" in (await problems(names.topic("none"), "--to", "west"))[0]
    assert "never moved" in (await problems(other, "--rollback"))[0]
    assert "internal topics are never moved" in (await problems("__consumer_offsets", "--to", "west"))[0]
    # A topic of somebody else: adoption calls it a conflict.
    await create_on(west, other, 1)
    assert "rename or delete that one first" in " ".join(await problems(other, "--to", "west"))
    async with ClusterClient("west", west.addresses()) as here:
        await here.call(DELETE_TOPICS, {"topics": [{"name": other}], "topic_names": [other], "timeout_ms": 9000})
    for arguments in ((past, "--to", "south"), (past, "--to", "west", "--budget", "9")):
        ran = await kfed("migrate", *arguments, check=False)
        assert ran.status in (1, 2) and ran.err, ran
    assert (await kfed("migrate", past, check=False)).status == 2
    ran = await kfed("operations", "nothing", "--abort", check=False)
    assert ran.status == 1 and "no migration" in ran.err
    ran = await kfed("proxies", "--dead", "nobody/proxy-9", check=False)
    assert ran.status == 1 and "no process" in ran.err
    alive = (await kfed("proxies", "--json")).json["proxies"][0]
    ran = await kfed("proxies", "--dead", f"{alive['instance']}/proxy-{alive['worker']}", "--apply", check=False)
    assert ran.status == 1 and "is alive" in ran.err


async def test_a_standby_becomes_the_topic(federation: Federation, kfed: Kfed, names: Names) -> None:
    topic, config = names.topic("standby"), federation.librdkafka()
    create(config, topic, 1)
    await blocking(write, config, topic, 20)
    between = ("--from", "east", "--to", "west", "--apply")
    await kfed("mirror", "create", topic, *between)
    plan = (await kfed("migrate", topic, "--to", "west", "--json")).json
    assert plan["migrations"][0]["topics"][0]["target_topic"] == "standby"
    await kfed("migrate", topic, "--to", "west", "--apply", "--wait")
    await blocking(write, config, topic, 20)
    assert await blocking(offsets, config, topic, 40) == list(range(40))
    assert not await kfed.mirrors(topic)
