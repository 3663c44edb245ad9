"""A group with commits on two clusters goes on where it stood for the topics of both, after it came to the endpoint."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import pytest
import trio
from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from tests.fixtures.names import Names
from tests.fixtures.sides import until
from tests.history.loads import create
from tools.java_client import Jvm, Record
from tools.local_cluster import Cluster
from tools.local_cluster.cluster import Setting
from tools.local_federation import Federation, program, run_federation

pytestmark = pytest.mark.timeout(120)

T = TypeVar("T")
Config = dict[str, Setting]
Protocol = Literal["classic", "consumer"]
PARTITIONS = 2
UNSET = -1001


@dataclass
class World:
    """On each cluster a topic of two partitions with ten records in each; one group, no commits yet."""

    east: Cluster
    west: Cluster
    group: str
    e: str
    w: str
    federation: Federation | None = None

    @property
    def through(self) -> Federation:
        assert self.federation is not None
        return self.federation

    def commit(self, cluster: Cluster, *offsets: tuple[str, int, int]) -> None:
        """As a client that is connected to the cluster itself."""
        consumer = Consumer({**cluster.librdkafka(), "group.id": self.group})
        consumer.commit(
            offsets=[TopicPartition(topic, index, offset, metadata=f"at {offset}") for topic, index, offset in offsets],
            asynchronous=False,
        )
        consumer.close()

    def committed(self, config: Config, topic: str) -> list[int]:
        consumer = Consumer({**config, "group.id": self.group})
        found = consumer.committed([TopicPartition(topic, index) for index in range(PARTITIONS)], timeout=10)
        consumer.close()
        return [one.offset for one in found]

    def everything(self, config: Config) -> dict[tuple[str, int], tuple[int, str]]:
        """All positions of the group, as an administrator sees them."""
        admin = AdminClient(config)
        asked = admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(self.group)])
        found = asked[self.group].result(20).topic_partitions
        return {(one.topic, one.partition): (one.offset, one.metadata or "") for one in found if one.offset >= 0}

    def shown(self) -> dict[str, Any]:
        found: dict[str, Any] = self.through.ask(f"/api/v1/groups/{self.group}")
        return found

    def kfed(self, *arguments: str) -> tuple[int, str]:
        argv = [program(), *arguments, "-c", str(self.through.configuration)]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
        return done.returncode, done.stdout + done.stderr


@pytest.fixture
def world(east: Cluster, west: Cluster, names: Names) -> Iterator[World]:
    made = World(east, west, names.group("g"), names.topic("e"), names.topic("w"))
    for cluster, topic in ((east, made.e), (west, made.w)):
        create(cluster.librdkafka(), topic, PARTITIONS)
        producer = Producer(cluster.librdkafka())
        for index in range(PARTITIONS):
            for number in range(10):
                producer.produce(topic, str(number), partition=index)
        assert producer.flush(20) == 0
    yield made
    for cluster in (east, west):  # shared with tests that start over them and want no conflicts
        admin = AdminClient(cluster.librdkafka())
        for done in admin.delete_topics([made.e, made.w]).values():
            done.exception(20)


async def off(call: Callable[[], T]) -> T:
    return await trio.to_thread.run_sync(call)


@contextmanager
def adopted(world: World) -> Iterator[Federation]:
    """The federation over what is there by now."""
    with run_federation([world.east, world.west]) as world.federation:
        yield world.federation


def values(records: list[Record]) -> dict[tuple[str, int], list[int]]:
    found: dict[tuple[str, int], list[int]] = {}
    for one in records:
        found.setdefault((one.topic, one.partition), []).append(int(one.value or ""))
    return found


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
async def test_a_group_that_is_idle_on_both(world: World, jvm: Jvm, protocol: Protocol) -> None:
    await off(lambda: world.commit(world.east, (world.e, 0, 4), (world.e, 1, 5)))
    await off(lambda: world.commit(world.west, (world.w, 0, 6), (world.w, 1, 7)))
    with adopted(world) as federation:
        through = federation.librdkafka()
        assert await off(lambda: world.committed(through, world.e)) == [4, 5]
        assert await off(lambda: world.committed(through, world.w)) == [6, 7]
        # Who has not switched yet goes on, and that counts at once.
        await off(lambda: world.commit(world.west, (world.w, 0, 8)))
        assert await off(lambda: world.everything(through)) == {
            (world.e, 0): (4, "at 4"), (world.e, 1): (5, "at 5"), (world.w, 0): (8, "at 8"), (world.w, 1): (7, "at 7"),
        }  # fmt: skip
        shown = await off(world.shown)
        assert (shown["home"], shown["carry"], shown["conflict"]) == ("east", ["west"], [])
        async with jvm.consumer(federation.java(), group=world.group, protocol=protocol) as consumer:
            await consumer.subscribe(world.e, world.w)
            found = values(await consumer.take(6 + 5 + 2 + 3))
            assert found == {
                (world.e, 0): [4, 5, 6, 7, 8, 9], (world.e, 1): [5, 6, 7, 8, 9],
                (world.w, 0): [8, 9], (world.w, 1): [7, 8, 9],
            }  # fmt: skip
            await consumer.commit([(world.e, 0, 10), (world.e, 1, 10), (world.w, 0, 10)])
        # What was committed through the endpoint lies at the home and wins, also against a later stray commit.
        await off(lambda: world.commit(world.west, (world.w, 0, 3)))
        assert await off(lambda: world.committed(through, world.w)) == [10, 7]
        assert await off(lambda: world.committed(world.west.librdkafka(), world.w)) == [3, 7]

        # The rest of a topic that is in use is copied, as it is, once the group is idle at its home.
        async def at_home() -> dict[tuple[str, int], tuple[int, str]]:
            return await off(lambda: world.everything(world.east.librdkafka()))

        copied = await until(at_home, lambda found: (world.w, 1) in found, 50)
        assert copied[world.w, 1] == (7, "at 7")
        assert copied[world.w, 0] == (10, "")


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
async def test_a_group_that_is_live_at_its_home(world: World, jvm: Jvm, protocol: Protocol) -> None:
    await off(lambda: world.commit(world.west, (world.w, 0, 6), (world.w, 1, 7)))
    # A client that stays connected directly.
    async with jvm.consumer(world.east.java(), group=world.group, protocol=protocol) as beside:
        await beside.subscribe(world.e)
        await beside.take(20)
        await beside.commit()
        with adopted(world) as federation:
            async with jvm.consumer(federation.java(), group=world.group, protocol=protocol) as consumer:
                await consumer.subscribe(world.w)
                assert values(await consumer.take(7)) == {(world.w, 0): [6, 7, 8, 9], (world.w, 1): [7, 8, 9]}
                await consumer.commit([(world.w, 1, 9)])
            through = federation.librdkafka()
            assert await off(lambda: world.committed(through, world.w)) == [6, 9]
            assert (await off(world.shown))["home"] == "east"


async def test_a_group_that_is_live_on_both_waits_for_a_decision(world: World, jvm: Jvm) -> None:
    await off(lambda: world.commit(world.east, (world.e, 0, 4), (world.e, 1, 4)))
    await off(lambda: world.commit(world.west, (world.w, 0, 6), (world.w, 1, 7)))
    decide = ("groups", world.group, "--home", "east", "--apply")
    async with jvm.consumer(world.east.java(), group=world.group) as one:
        await one.subscribe(world.e)
        await one.read(events=1)
        async with jvm.consumer(world.west.java(), group=world.group) as other:
            await other.subscribe(world.w)
            await other.read(events=1)
            with adopted(world) as federation:
                through = federation.librdkafka()

                async def shown() -> dict[str, Any]:
                    found = await off(lambda: federation.ask("/api/v1/groups"))
                    return {group["name"]: group for group in found["groups"]}

                known = await until(shown, lambda found: world.group in found)
                assert known[world.group]["conflict"] == ["west"]
                found = (await off(lambda: federation.ask("/api/v1/doctor")))["findings"]
                (finding,) = [
                    each for each in found if each["kind"] == "group conflict" if each["subject"] == world.group
                ]
                assert finding["mend"] == f"kfed groups {world.group} --home east --apply"
                status, text = await off(lambda: world.kfed(*decide))
                assert status == 1
                assert "has members on west" in text
                # Neither merged nor passed over.
                with pytest.raises(KafkaException):
                    await off(lambda: world.committed(through, world.w))
                assert await off(lambda: world.committed(through, world.e)) == [4, 4]
                async with jvm.consumer(federation.java(), group=world.group) as consumer:
                    await consumer.subscribe(world.w)
                    await consumer.read(events=1)
                    await other.unsubscribe()
                    status, text = await off(lambda: world.kfed(*decide[:-1]))
                    assert "Nothing was changed" in text
                    assert (await off(world.shown))["conflict"] == ["west"]
                    status, text = await off(lambda: world.kfed(*decide))
                    assert (status, "Done." in text) == (0, True), text
                    assert (await off(world.shown))["carry"] == ["west"]
                    taken = values(await consumer.take(7))
                    assert taken == {(world.w, 0): [6, 7, 8, 9], (world.w, 1): [7, 8, 9]}
                history = (await off(lambda: federation.ask("/api/v1/history")))["history"]
                assert [each["what"] for each in history if each["what"] == "group home"] == ["group home"]


async def test_what_is_deleted_does_not_come_back(world: World, jvm: Jvm) -> None:
    await off(lambda: world.commit(world.east, (world.e, 0, 4)))
    await off(lambda: world.commit(world.west, (world.w, 0, 6), (world.w, 1, 7)))
    with adopted(world) as federation:
        through = federation.librdkafka()
        assert await off(lambda: world.committed(through, world.w)) == [6, 7]
        async with jvm.admin(federation.java()) as admin:
            gone = [[world.w, 0]]
            assert "error" not in str(
                await admin.call("delete_consumer_group_offsets", group=world.group, partitions=gone)
            )
            assert await off(lambda: world.committed(through, world.w)) == [UNSET, 7]
            assert "error" not in str(await admin.call("delete_consumer_groups", groups=[world.group]))
        assert await off(lambda: world.committed(through, world.w)) == [UNSET, UNSET]
        assert await off(lambda: world.committed(world.west.librdkafka(), world.w)) == [UNSET, UNSET]
