"""A topic leaves the federation: its groups go on where they stood, on the cluster itself; and it comes back."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import trio
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from kafka_client import ClusterClient
from kafka_client.topics import delete_records
from metadata_service.asking import Position
from metadata_service.ejecting import Physical
from metadata_service.models import PlacementEpoch, TopicRecord
from tests.fixtures.kfed import Kfed
from tests.fixtures.names import Names
from tests.history.loads import create
from tools.local_cluster import Cluster
from tools.local_cluster.cluster import Setting
from tools.local_federation import Federation

T = TypeVar("T")


async def off(call: Callable[[], T]) -> T:
    return await trio.to_thread.run_sync(call)


def commit(config: dict[str, Setting], group: str, topic: str, *offsets: int) -> None:
    consumer = Consumer({**config, "group.id": group, "log_level": 0})
    places = [TopicPartition(topic, index, offset, metadata=f"at {offset}") for index, offset in enumerate(offsets)]
    consumer.commit(offsets=places, asynchronous=False)
    consumer.close()


def committed(config: dict[str, Setting], group: str, topic: str) -> list[int]:
    consumer = Consumer({**config, "group.id": group, "log_level": 0})
    found = consumer.committed([TopicPartition(topic, index) for index in range(2)], timeout=10)
    consumer.close()
    return [one.offset for one in found]


def topics(config: dict[str, Setting]) -> set[str]:
    admin = AdminClient({**config, "log_level": 0})
    return set(admin.list_topics(timeout=10).topics)


def filled(config: dict[str, Setting], topic: str, partitions: int = 2) -> None:
    create(config, topic, partitions)
    producer = Producer({**config, "log_level": 0})
    for number in range(20):
        producer.produce(topic, str(number), partition=number % partitions)
    assert producer.flush(20) == 0


async def test_out_and_back(federation: Federation, east: Cluster, west: Cluster, names: Names) -> None:
    kfed, topic = Kfed(federation), names.topic("e")
    here, there = names.group("g"), names.group("h") + "-west"  # at home on east, and on west
    config = federation.librdkafka()
    await off(lambda: filled(config, topic))
    await off(lambda: commit(config, here, topic, 3, 4))
    await off(lambda: commit(config, there, topic, 5, 6))

    plan = (await kfed("eject", topic, "--json")).json
    written = {one["group"]: one["written"] for one in plan["groups"]}
    assert (plan["problems"], plan["applied"], written) == ([], False, {here: 0, there: 2})
    done = (await kfed("eject", topic, "--apply", "--wait", "--json")).json
    assert done["ended"]["step"] == "done", done

    direct = east.librdkafka()
    assert await off(lambda: committed(direct, here, topic)) == [3, 4]
    assert await off(lambda: committed(direct, there, topic)) == [5, 6]
    with trio.fail_after(40):  # its stand-in goes; and nobody has taken it for a new topic
        while True:
            if topic not in await off(lambda: topics(west.librdkafka())):
                break
            await trio.sleep(0.2)
    assert topic not in {one["name"] for one in (await kfed("topics", "--json")).json["topics"]}
    findings = (await kfed("doctor", "--json")).json["findings"]
    assert [one["kind"] for one in findings if one["subject"] == topic] == ["ejected"]
    assert not [one for one in findings if one["subject"] == there]

    await kfed("eject", topic, "--undo", "--apply")
    assert await off(lambda: committed(config, here, topic)) == [3, 4]
    assert await off(lambda: committed(config, there, topic)) == [5, 6]


async def test_who_is_at_work_is_not_taken_by_surprise(federation: Federation, names: Names) -> None:
    kfed, topic, group = Kfed(federation), names.topic("e"), names.group("g")
    config = federation.librdkafka()
    await off(lambda: filled(config, topic))
    consumer = Consumer({**config, "group.id": group, "auto.offset.reset": "earliest", "log_level": 0})
    consumer.subscribe([topic])
    try:
        assert await off(lambda: consumer.poll(20)) is not None
        ran = await kfed("eject", topic, "--apply", check=False)
        assert ran.status == 1 and f"group '{group}' is at work on it" in ran.out
    finally:
        await off(consumer.close)
    assert await off(lambda: committed(config, group, topic))


async def test_positions_of_a_topic_that_has_moved(west: Cluster, names: Names) -> None:
    """As its cluster counts them; what lies in front of the log begins with the log."""
    topic = names.topic("m")
    await off(lambda: filled(west.librdkafka(), topic, 1))
    record = TopicRecord(
        name=topic,
        id="0" * 31 + "1",
        timeline=(
            PlacementEpoch(cluster="east", topic_id="0" * 31 + "1"),
            PlacementEpoch(cluster="west", topic_id="0" * 31 + "2", first={0: 1000}, first_physical={0: 10}),
        ),
        partitions=1,
    )
    async with ClusterClient("west", west.addresses()) as client:
        await client.refresh()
        found = await Physical(client, record).positions({(topic, 0): Position(1007, (1 << 20) | 3, "here")})
        assert found.positions == {(topic, 0): Position(17, 3, "here")} and not found.below
        metadata = (await client.metadata([topic]))["topics"][0]["partitions"][0]
        await delete_records(client, topic, metadata["leader_id"], {0: 18})
        found = await Physical(client, record).positions({(topic, 0): Position(1007, 5, "here")})
        assert found.positions == {(topic, 0): Position(18, -1, "here")} and found.below == (0,)
