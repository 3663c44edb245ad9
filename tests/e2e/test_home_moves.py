"""Homes of groups move while their members are at work: nothing committed is read again, and nobody hears an error."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any, Literal

import pytest
import trio
from confluent_kafka import ConsumerGroupTopicPartitions, KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient

from tests.fixtures import trails
from tests.fixtures.kfed import Kfed
from tests.fixtures.names import Names
from tests.fixtures.trails import Trail
from tests.history.loads import create
from tools.local_cluster import Cluster
from tools.local_cluster.cluster import Setting
from tools.local_federation import Federation

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


async def finished(kfed: Kfed, operation: str) -> dict[str, Any]:
    with trio.fail_after(30):
        while True:
            one = dict((await kfed("operations", operation, "--json")).json)
            if one["state"] != "running":
                return one
            await trio.sleep(0.1)


def works_of(kind: str, trail: Trail, federation: Federation, topic: str, group: str) -> list[Callable[[], None]]:
    if kind == "aiokafka":
        return [trails.aiokafka(trail, f"a{n}", federation.bootstrap(), topic, group) for n in range(2)]
    if kind == "simple":
        return [trails.simple(trail, "s", federation.librdkafka(), topic, group)]
    settings: dict[str, Setting] = {"group.protocol": "consumer"} if kind == "consumer" else {}
    config = federation.librdkafka()
    more: list[dict[str, Setting]] = [{}, {}]
    if kind == "static":
        more = [{"group.instance.id": "one"}, {"group.instance.id": "two"}]
    if kind == "cooperative":
        more = [{"partition.assignment.strategy": "cooperative-sticky"}] * 2
    return [trails.librdkafka(trail, f"m{n}", config, topic, group, **settings, **one) for n, one in enumerate(more)]


@pytest.mark.parametrize("kind", ["classic", "cooperative", "static", "consumer", "aiokafka", "simple"])
async def test_there_and_back_under_load(
    federation: Federation, east: Cluster, west: Cluster, names: Names, kind: str
) -> None:
    kfed, topic, group, trail = Kfed(federation), names.topic("e"), names.group("g"), Trail()
    config = federation.librdkafka()
    await off(lambda: create(config, topic, PARTITIONS))
    with producing(config, topic) as source:
        async with members(trail, *works_of(kind, trail, federation, topic, group)):
            await trail.grows(50)
            for target, left in ((west, east), (east, west)):
                begun = time.monotonic()
                moved = (await kfed("groups", group, "--move-home", target.name, "--apply", "--wait", "--json")).json
                print(kind, "to", target.name, f"{time.monotonic() - begun:.2f} s")
                await trail.grows(100)
                ended = await finished(kfed, moved["operation"])
                assert ended["state"] == "done" and not ended["result"], ended
                assert (await kfed("groups", group, "--json")).json["home"] == target.name
                assert not await off(partial(everything, left.librdkafka(), group))
            await off(source.stop)
            mine = {one for one in source.places if kind != "simple" or one[0] == 0}
            await trail.has(mine)
            await trail.commits_all(len(mine))
        found = await off(lambda: everything(east.librdkafka(), group))
        assert {index: offset for (_, index), offset in found.items()} == trail.committed
    print(kind, "read again:", trail.twice, "commits:", trail.commits, "refused:", trail.refused)
    trail.check()
