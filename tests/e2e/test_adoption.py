"""Started over clusters that are in use: topics, groups, commits and transactional ids go on where they stood."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import trio
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from tests.fixtures.names import Names
from tests.history.loads import create
from tools.java_client import Jvm
from tools.local_cluster import Cluster
from tools.local_cluster.cluster import Setting
from tools.local_federation import Federation, run_federation

Config = dict[str, Setting]


def produce(config: Config, topic: str, first: int, count: int) -> None:
    producer = Producer(config)
    for number in range(first, first + count):
        producer.produce(topic, str(number), partition=0)
    assert producer.flush(20) == 0


def read(config: Config, group: str, topic: str, count: int) -> list[int]:
    """The next `count` records of the group, committed; the member leaves."""
    settings = {"group.id": group, "auto.offset.reset": "earliest", "enable.auto.commit": False}
    consumer = Consumer({**config, **settings})
    consumer.subscribe([topic])
    found: list[int] = []
    while len(found) < count:
        message = consumer.poll(20)
        assert message is not None, f"{found} of {count}"
        assert message.error() is None, message.error()
        found.append(int(message.value() or b""))
    consumer.commit(asynchronous=False)
    consumer.close()
    return found


def committed(config: Config, group: str, topic: str) -> int:
    consumer = Consumer({**config, "group.id": group})
    (answer,) = consumer.committed([TopicPartition(topic, 0)], timeout=20)
    consumer.close()
    return int(answer.offset)


@pytest.fixture
def lived_in(east: Cluster, west: Cluster, names: Names) -> Iterator[dict[str, str]]:
    """On each cluster a topic with 10 records and a group that has read 4; one name that both have."""
    for cluster in (east, west):
        config = cluster.librdkafka()
        topic = names.topic(f"orders-{cluster.name}")
        create(config, topic, 1)
        produce(config, topic, 0, 10)
        assert read(config, names.group(f"readers-{cluster.name}"), topic, 4) == [0, 1, 2, 3]
        both = names.topic("both")
        create(config, both, 1 if cluster is east else 2)
        produce(config, both, 0 if cluster is east else 100, 3)
    yield {cluster.name: names.topic(f"orders-{cluster.name}") for cluster in (east, west)}
    for cluster in (east, west):  # shared with tests that want no conflicts
        admin = AdminClient(cluster.librdkafka())
        admin.delete_topics([names.topic("both")])[names.topic("both")].result(20)


@pytest.fixture
def adopted(lived_in: dict[str, str], east: Cluster, west: Cluster) -> Iterator[Federation]:
    with run_federation([east, west]) as federation:
        yield federation


async def test_groups_go_on_at_their_commits_and_clients_switch_one_by_one(
    adopted: Federation, lived_in: dict[str, str], east: Cluster, west: Cluster, names: Names
) -> None:
    through = adopted.librdkafka()

    def run() -> None:
        for cluster in (east, west):
            direct, topic, group = cluster.librdkafka(), lived_in[cluster.name], names.group(f"readers-{cluster.name}")
            assert committed(through, group, topic) == 4
            assert read(through, group, topic, 3) == [4, 5, 6]
            assert committed(direct, group, topic) == 7  # a client that has not switched yet
            assert read(direct, group, topic, 2) == [7, 8]
            assert committed(through, group, topic) == 9
            produce(direct, topic, 10, 2)
            produce(through, topic, 12, 2)
            assert read(through, group, topic, 5) == [9, 10, 11, 12, 13]
            assert committed(direct, group, topic) == 14

    await trio.to_thread.run_sync(run)


async def test_members_through_the_endpoint_and_beside_it_share_one_group(
    adopted: Federation, west: Cluster, jvm: Jvm, names: Names
) -> None:
    """Both kinds of clients are members of one real group: each partition has one owner."""
    topic, group = names.topic("shared"), names.group("shared")
    await trio.to_thread.run_sync(create, west.librdkafka(), topic, 4)
    async with (
        jvm.consumer(west.java(), group=group) as beside,
        jvm.consumer(adopted.java(), group=group) as through,
        jvm.producer(adopted.java()) as producer,
    ):
        await beside.subscribe(topic)
        await beside.read(events=1)
        await beside.commit([(topic, 0, 0)])
        await through.subscribe(topic)
        deadline = trio.current_time() + 40
        while True:
            mine, theirs = await through.assignment(), await beside.assignment()
            if len(mine) == len(theirs) == 2:
                break
            assert trio.current_time() < deadline, (mine, theirs)
            await trio.sleep(0.1)
        assert not set(mine) & set(theirs)
        for partition in range(4):
            await producer.send(topic, 5, partition=partition)
        taken = [one.partition for one in await through.take(10)] + [one.partition for one in await beside.take(10)]
        assert sorted(taken) == sorted(list(range(4)) * 5)


async def test_a_topic_on_both_clusters_is_a_conflict_that_is_shown_and_never_merged(
    adopted: Federation, lived_in: dict[str, str], names: Names
) -> None:
    both = names.topic("both")

    def run() -> None:
        assert read(adopted.librdkafka(), names.group("both"), both, 3) == [0, 1, 2]
        metadata = AdminClient(adopted.librdkafka()).list_topics(both, timeout=10).topics[both]
        assert len(metadata.partitions) == 1
        assert {one.leader for one in metadata.partitions.values()} == {1}
        found: list[dict[str, Any]] = adopted.ask("/api/v1/doctor")["findings"]
        assert [one for one in found if one["subject"] == both and "conflict" in one["kind"]], found
        assert adopted.ask("/api/v1/status")["conflicts"] >= 1

    await trio.to_thread.run_sync(run)


async def test_a_transactional_id_goes_on_with_its_epochs(
    adopted: Federation, lived_in: dict[str, str], west: Cluster, names: Names
) -> None:
    """Whoever takes it over through the endpoint fences the one beside it, and the other way round."""
    topic, identifier = lived_in["west"], names.transactional_id("t")

    def run() -> None:
        def opened(config: Config) -> Producer:
            producer = Producer({**config, "transactional.id": identifier})
            producer.init_transactions(30)
            return producer

        def write(producer: Producer, value: str) -> None:
            producer.begin_transaction()
            producer.produce(topic, value, partition=0)
            producer.commit_transaction(30)

        first = opened(west.librdkafka())
        write(first, "100")
        second = opened(adopted.librdkafka())
        write(second, "101")
        with pytest.raises(Exception, match=r"(?i)fenc|epoch"):
            write(first, "102")
        third = opened(west.librdkafka())
        write(third, "103")
        with pytest.raises(Exception, match=r"(?i)fenc|epoch"):
            write(second, "104")
        settings = {"isolation.level": "read_committed"}
        found = read({**adopted.librdkafka(), **settings}, names.group("t"), topic, 13)
        assert found[10:] == [100, 101, 103]

    await trio.to_thread.run_sync(run)


async def test_with_a_new_store_stubs_are_stubs_again(east: Cluster, west: Cluster, names: Names) -> None:
    """A group on east reads a topic on west; then the store is lost. Its stub on east, the cluster that would win a
    conflict, is not taken for the topic, and the group goes on where it stood."""
    topic, group = names.topic("orders") + "-west", names.group("readers")

    def run() -> None:
        with run_federation([east, west]) as first:
            through = first.librdkafka()
            create(through, topic, 1)
            produce(through, topic, 0, 10)
            assert read(through, group, topic, 4) == [0, 1, 2, 3]
        assert topic in AdminClient(east.librdkafka()).list_topics(timeout=10).topics, "no stub: nothing is tested"
        with run_federation([east, west]) as second:
            through = second.librdkafka()
            shown = second.ask(f"/api/v1/topics/{topic}")
            assert (shown["cluster"], shown["conflict"]) == ("west", [])
            assert committed(through, group, topic) == 4
            produce(through, topic, 10, 2)
            assert read(through, group, topic, 8) == list(range(4, 12))
            admin = AdminClient(through)
            admin.delete_topics([topic])[topic].result(20)
        assert topic not in AdminClient(east.librdkafka()).list_topics(timeout=10).topics  # as known stubs are

    await trio.to_thread.run_sync(run)
