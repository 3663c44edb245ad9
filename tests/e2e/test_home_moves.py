"""Homes of groups move while their members are at work: nothing committed is read again, and nobody hears an error."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
import trio
from confluent_kafka import (
    Consumer,
    ConsumerGroupTopicPartitions,
    KafkaError,
    KafkaException,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient

from tests.fixtures import trails
from tests.fixtures.kfed import Kfed
from tests.fixtures.names import Names
from tests.fixtures.trails import Trail
from tests.history.loads import create
from tools.java_client import Jvm
from tools.local_cluster import Cluster
from tools.local_cluster.cluster import Setting
from tools.local_federation import Federation, run_federation

PARTITIONS = 3
PER_SECOND = 200

Protocol = Literal["classic", "consumer"]


class Source:
    """A producer at a steady pace. `places`: what was acknowledged."""

    def __init__(self, config: dict[str, Setting], topic: str) -> None:
        self.config, self.topic = config, topic
        self.places: set[tuple[int, int]] = set()
        self.stopping, self.flushed = threading.Event(), threading.Event()

    def run(self) -> None:
        producer = Producer({**self.config, "linger.ms": 5})

        def delivered(error: object, message: Any) -> None:
            assert error is None, error
            self.places.add((message.partition(), message.offset()))

        number = 0
        while not self.stopping.is_set():
            producer.produce(self.topic, str(number).encode(), partition=number % PARTITIONS, on_delivery=delivered)
            producer.poll(0)
            number += 1
            time.sleep(1 / PER_SECOND)
        if producer.flush(20) == 0:
            self.flushed.set()

    def stop(self) -> None:
        """Returns when everything has its answer."""
        self.stopping.set()
        assert self.flushed.wait(25)


@contextmanager
def producing(config: dict[str, Setting], topic: str) -> Iterator[Source]:
    source = Source(config, topic)
    thread = threading.Thread(target=source.run, daemon=True)
    thread.start()
    try:
        yield source
    finally:
        source.stopping.set()
        thread.join(25)


@asynccontextmanager
async def members(trail: Trail, *works: Callable[[], None]) -> AsyncIterator[None]:
    context = trails.threads(trail, *works)
    context.__enter__()
    try:
        yield
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(context.__exit__, None, None, None)


def everything(config: dict[str, Setting], group: str) -> dict[tuple[str, int], int]:
    """All positions of a group on what `config` names."""
    admin = AdminClient({**config, "log_level": 0})
    asked = admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group)])[group]
    try:
        return {(one.topic, one.partition): one.offset for one in asked.result(20).topic_partitions}
    except KafkaException as error:
        assert error.args[0].code() == KafkaError.GROUP_ID_NOT_FOUND
        return {}


async def off(call: Callable[[], Any]) -> Any:
    return await trio.to_thread.run_sync(call)


async def at_step(federation: Federation, operation: str, *steps: str) -> dict[str, Any]:
    """The operation, once it is at one of these steps."""
    one: dict[str, Any] = {}
    with trio.move_on_after(40):
        while True:
            one = await off(lambda: federation.ask(f"/api/v1/operations/{operation}"))
            if one["step"] in steps:
                return one
            await trio.sleep(0.05)
    raise AssertionError(f"not at {steps}: {one}")


def works_of(kind: str, trail: Trail, federation: Federation, topic: str, group: str) -> list[Callable[[], None]]:
    if kind == "aiokafka":
        return [trails.aiokafka(trail, f"a{n}", federation.bootstrap(), topic, group) for n in range(2)]
    if kind == "simple":
        return [trails.simple(trail, "s", federation.librdkafka(), topic, group)]
    settings: dict[str, Setting] = {"group.protocol": "consumer"} if kind == "consumer" else {}
    config = federation.librdkafka()
    more: list[dict[str, Setting]] = [{}, {}]
    if kind == "classic":
        more = [{"group.instance.id": "one"}, {}]
    if kind == "cooperative":
        more = [{"partition.assignment.strategy": "cooperative-sticky"}] * 2
    return [trails.librdkafka(trail, f"m{n}", config, topic, group, **settings, **one) for n, one in enumerate(more)]


@pytest.mark.parametrize("kind", ["classic", "cooperative", "consumer", "aiokafka", "simple"])
async def test_a_home_moves_under_load(
    federation: Federation, east: Cluster, west: Cluster, names: Names, kind: str
) -> None:
    kfed, topic, group, trail = Kfed(federation), names.topic("e"), names.group("g"), Trail()
    config = federation.librdkafka()
    await off(lambda: create(config, topic, PARTITIONS))
    if kind == "simple":  # nobody commits these again
        await off(partial(trails.commit_once, trail, config, group, topic, {1: 7, 2: 0}))
    with producing(config, topic) as source:
        async with members(trail, *works_of(kind, trail, federation, topic, group)):
            await trail.grows(50)
            for target, left in ((west, east), (east, west))[: 2 if kind in ("consumer", "classic") else 1]:
                begun = time.monotonic()
                moved = (await kfed("groups", group, "--move-home", target.name, "--apply", "--wait", "--json")).json
                print(kind, "to", target.name, f"{time.monotonic() - begun:.2f} s")
                await trail.grows(100)
                ended = await at_step(federation, moved["operation"], "done", "failed")
                assert ended["state"] == "done" and not ended["result"], ended
                assert (await kfed("groups", group, "--json")).json["home"] == target.name
                assert not await off(partial(everything, left.librdkafka(), group))
            await off(source.stop)
            mine = {one for one in source.places if kind != "simple" or one[0] == 0}
            await trail.has(mine)
            if kind not in (
                "cooperative",
                "simple",
            ):  # what is refused in a rebalance is committed with the next record
                await trail.commits_all(len(mine))
        found = await off(lambda: everything(config, group))
        assert {index: offset for (_, index), offset in found.items()} == trail.committed
    print(kind, "read again:", trail.twice, "commits:", trail.commits, "refused:", trail.refused)
    trail.check()


async def test_java_reads_nothing_twice_and_loses_nothing(
    federation: Federation, east: Cluster, jvm: Jvm, names: Names
) -> None:
    """Members that commit by themselves, also when their partitions are taken from them: one of each protocol."""
    kfed, topic = Kfed(federation), names.topic("e")
    groups: dict[Protocol, str] = {"classic": names.group("g"), "consumer": names.group("k")}
    config = federation.librdkafka()
    await off(lambda: create(config, topic, PARTITIONS))
    read: dict[Protocol, list[tuple[int, int]]] = {"classic": [], "consumer": []}
    wrong: list[object] = []

    with producing(config, topic) as source:
        async with AsyncExitStack() as stack:
            consumers = {
                (protocol, n): await stack.enter_async_context(
                    jvm.consumer(federation.java(), group=group, protocol=protocol, auto_commit=True)
                )
                for protocol, group in groups.items()
                for n in range(2)
            }

            async def gather(until: Callable[[], bool]) -> None:
                with trio.fail_after(40):
                    while not until():
                        for (protocol, _), consumer in consumers.items():
                            taken = await consumer.read(0, 0)
                            read[protocol] += [(one.partition, one.offset) for one in taken.records]
                            wrong.extend(one for one in taken.events if one.kind in ("error", "lost"))
                        await trio.sleep(0.05)

            def further(count: int) -> Callable[[], bool]:
                wanted = {protocol: len(records) + count for protocol, records in read.items()}
                return lambda: all(len(read[protocol]) >= wanted[protocol] for protocol in wanted)

            for consumer in consumers.values():
                await consumer.subscribe(topic)
            await gather(further(50))
            for group in groups.values():
                await kfed("groups", group, "--move-home", "west", "--apply", "--wait")
            await gather(further(100))
            await off(source.stop)
            await gather(lambda: all(source.places <= set(records) for records in read.values()))
    assert not wrong
    for protocol, records in read.items():
        assert len(records) == len(set(records)), protocol
        assert not await off(partial(everything, east.librdkafka(), groups[protocol]))


async def test_whoever_carries_on_finds_the_step_recorded(
    east: Cluster, west: Cluster, jvm: Jvm, names: Names, tmp_path: Path
) -> None:
    """A member that does not rejoin keeps the move waiting; meanwhile everything is killed, and started again."""
    topic, group = names.topic("e"), names.group("g")
    with run_federation([east, west], directory=tmp_path) as federation:
        kfed, config = Kfed(federation), federation.librdkafka()
        await off(lambda: create(config, topic, 1))
        async with jvm.consumer(federation.java(), group=group, max_poll_interval_ms="60000") as consumer:
            await consumer.subscribe(topic)
            producer = Producer({**config, "log_level": 0})
            for number in range(10):
                producer.produce(topic, str(number))
            assert await off(lambda: producer.flush(20)) == 0
            await consumer.take(10)
            await consumer.commit([(topic, 0, 7, "seven")])
            await consumer.hold()
            begun = (await kfed("groups", group, "--move-home", "west", "--apply", "--json")).json
            await at_step(federation, begun["operation"], "gather")
            await off(federation.kill)
            await off(federation.start)
            assert (await kfed("groups", group, "--json")).json["home"] == "east"
            await consumer.go_on()
            ended = await at_step(federation, begun["operation"], "done", "failed")
            assert ended["state"] == "done", ended
            assert await off(partial(everything, west.librdkafka(), group)) == {(topic, 0): 7}
            assert await consumer.take(3)


async def test_positions_in_topics_of_both_clusters_move_with_their_metadata(
    federation: Federation, east: Cluster, west: Cluster, names: Names
) -> None:
    kfed, config, group = Kfed(federation), federation.librdkafka(), names.group("g")
    here, there = names.topic("e"), names.topic("w") + "-west"
    places = [(here, 0, 4), (here, 1, 5), (there, 0, 6), (there, 1, 0)]

    def commit() -> None:
        for topic in (here, there):
            create(config, topic, 2)
        consumer = Consumer({**config, "group.id": group, "log_level": 0})
        offsets = [TopicPartition(*one, metadata=f"at {one[2]} ü", leader_epoch=one[1]) for one in places]
        consumer.commit(offsets=offsets, asynchronous=False)
        consumer.close()

    def seen(from_: dict[str, Setting]) -> list[tuple[str, int, int, str | None, int | None]]:
        consumer = Consumer({**from_, "group.id": group, "log_level": 0})
        found = consumer.committed([TopicPartition(topic, index) for topic, index, _ in places], timeout=20)
        consumer.close()
        return [(one.topic, one.partition, one.offset, one.metadata, one.leader_epoch) for one in found]

    await off(commit)
    before = await off(partial(seen, config))
    assert await off(partial(seen, east.librdkafka())) == before
    plan = (await kfed("groups", group, "--move-home", "west", "--json")).json
    assert {one["topic"]: one["stand_in"] for one in plan["topics"]} == {here: "create", there: "its own"}
    await kfed("groups", group, "--move-home", "west", "--apply", "--wait")
    assert await off(partial(seen, config)) == before
    assert await off(partial(seen, west.librdkafka())) == before


async def test_what_is_refused_says_the_way_out(federation: Federation, jvm: Jvm, names: Names) -> None:
    kfed, config = Kfed(federation), federation.java()
    topic, sink, shared, streamed, exact = names.topic("e"), names.topic("s"), *map(names.group, ("s", "t", "x"))
    for one in (topic, sink):
        await off(partial(create, federation.librdkafka(), one, 1))

    async def refused(group: str, why: str) -> None:
        ran = await kfed("groups", group, "--move-home", "west", check=False)
        with trio.move_on_after(30):
            while ran.err or "Dead" in ran.out:  # nobody knows it yet
                await trio.sleep(0.2)
                ran = await kfed("groups", group, "--move-home", "west", check=False)
        ran = await kfed("groups", group, "--move-home", "west", "--apply", check=False)
        assert ran.status == 1 and why in ran.out, ran

    async with jvm.share_consumer(config, group=shared) as consumer:
        await consumer.subscribe(topic)
        await consumer.take(1, 2.0, once=True)
        await refused(shared, "it is a share group")
    async with jvm.streams(config, application_id=streamed, protocol="streams") as streams:
        await streams.start(topic, sink=sink)
        await refused(streamed, "it is a streams group")
    async with jvm.producer(config, transactional_id=names.group("id")) as producer:
        await producer.init_transactions()
        await producer.begin()
        await producer.send_offsets([(topic, 0, 1)], group=exact)
        await refused(exact, f"transactions of {names.group('id')} commit positions")
        await producer.abort()
    ran = await kfed("groups", exact, "--move-home", "nowhere", check=False)
    assert ran.status == 1 and "there are: east, west" in ran.err
