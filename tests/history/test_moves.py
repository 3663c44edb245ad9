"""Topics go back and forth between two clusters while every kind of client uses them; the whole history is judged.

KFED_TEST_SEED repeats a run: which topics move, when, and which process is killed or stopped at which step.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager

import pytest
import trio
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from tests.fixtures.names import Names
from tests.history.checker import Acknowledged, misbehaved, rebalanced
from tests.history.fleet import PARTITIONS, Fleet, few, whole
from tests.history.loads import create
from tests.history.moving import KINDS, STEPS, Faults, Mover
from tools.java_client import Jvm
from tools.local_cluster import Cluster
from tools.local_federation import Federation, run_federation
from tools.move_steps import Steps

MOVES, FAULTS = 5, 4
LONG_MOVES, LONG_FAULTS = 24, 24
CLUSTERS = ("east", "west")
ALIVE = 60.0  # seconds until everybody works again


@pytest.fixture(scope="module")
def _endpoint(_east: Cluster, _west: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    with run_federation([_east, _west], directory=tmp_path_factory.mktemp("moves")) as federation:
        yield federation


@pytest.fixture
def endpoint(_endpoint: Federation, east: Cluster, west: Cluster) -> Federation:
    """`kfed run` with two workers, of this module alone."""
    if not _endpoint.daemon.running:
        _endpoint.start()
    return _endpoint


def chosen(names: Names) -> random.Random:
    seed = os.environ.get("KFED_TEST_SEED", names.suffix)
    print(f"KFED_TEST_SEED={seed}: which topics move, when, and what is killed")
    return random.Random(seed)


@asynccontextmanager
async def moving(fleet: Fleet, endpoint: Federation, jvm: Jvm) -> AsyncIterator[Mover]:
    """Everybody at work, and somebody who can move topics."""
    for topic in fleet.topics:
        await trio.to_thread.run_sync(create, endpoint.librdkafka(), topic, PARTITIONS)
    steps = Steps(endpoint)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(steps.run)
        async with fleet.working(endpoint, jvm):
            yield Mover(endpoint, steps)
        nursery.cancel_scope.cancel()


def some(chance: random.Random, place: Mapping[str, str], mover: Mover) -> list[str]:
    """One topic, or all that are on one cluster, which then move together. What has moved together and is not done
    with its old copies goes on together."""
    together = [[one for one in place if place[one] == cluster] for cluster in CLUSTERS]
    wanted = [one for one in [*([one] for one in place), *together] if one]
    return list(chance.choice([one for one in wanted if mover.free(one)]))


def other(cluster: str) -> str:
    return CLUSTERS[1 - CLUSTERS.index(cluster)]


async def moved_quietly(fleet: Fleet, endpoint: Federation, jvm: Jvm, chance: random.Random, count: int) -> None:
    """`count` moves while nothing is broken, and the verdict: nobody noticed."""
    place = dict.fromkeys(fleet.topics, CLUSTERS[0])
    async with moving(fleet, endpoint, jvm) as mover:
        began = time.time()
        for _ in range(count):
            topics = some(chance, place, mover)
            target = other(place[topics[0]])
            move = await mover.move(topics, target)
            assert move.good, move
            for topic in topics:
                assert await mover.where(topic) == target
                place[topic] = target
            await fleet.alive(ALIVE)
            await trio.sleep(chance.uniform(0.0, 0.5))
        ended = time.time()
    pauses = {name: gaps.longest(began, ended) for name, gaps in fleet.told.gaps.items()}
    print(f"soak: {count} moves: {fleet.summary()}; longest pause of a client {max(pauses.values()):.2f} s")
    print({name: round(pause, 3) for name, pause in pauses.items()})
    seated = {name: fleet.told.assignments[name] for name in fleet.seated}
    assert fleet.judge() == []
    assert misbehaved(fleet.told.reports, moves=count, killed=False) == []
    assert rebalanced(seated, began, ended) == []


async def moved_under_faults(fleet: Fleet, endpoint: Federation, jvm: Jvm, chance: random.Random, count: int) -> None:
    """As many moves as faults, each with one in its middle; nothing may be lost, doubled or reordered."""
    faults, good = Faults(endpoint, chance), 0
    kinds = chance.sample(KINDS, len(KINDS))
    async with moving(fleet, endpoint, jvm) as mover:
        for number in range(count):
            place = {topic: await mover.where(topic) for topic in fleet.topics}
            topics = some(chance, place, mover)
            target = other(place[topics[0]])
            kind = kinds[number % len(kinds)]
            step = chance.choice(STEPS)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_fault, faults, mover, kind, step, topics)
                move = await mover.move(topics, target)
            await mover.at_rest(topics)
            good += await mover.where(topics[0]) == target
            print(f"{kind} at {step}, to {target}: {'done' if move.good else move.said}")
            await fleet.alive(ALIVE)
    print(f"soak: {count} moves with a fault each ({good} got through): {fleet.summary()}; {', '.join(faults.done)}")
    assert fleet.judge(faults.windows) == []
    assert misbehaved(fleet.told.reports, moves=count, killed=True) == []
    assert good * 2 > count, "most moves should get through"


async def _fault(faults: Faults, mover: Mover, kind: str, step: str, topics: Sequence[str]) -> None:
    await mover.steps.reached(step, topics, time.time(), 20.0)
    await faults.one(kind)


@pytest.mark.timeout(180)
async def test_moves_that_nobody_notices(endpoint: Federation, jvm: Jvm, names: Names) -> None:
    await moved_quietly(whole(names), endpoint, jvm, chosen(names), MOVES)


@pytest.mark.timeout(300)
async def test_moves_while_processes_die_and_sleep(endpoint: Federation, jvm: Jvm, names: Names) -> None:
    await moved_under_faults(whole(names, killed=True), endpoint, jvm, chosen(names), FAULTS)


@pytest.mark.soak
async def test_many_moves_that_nobody_notices(endpoint: Federation, jvm: Jvm, names: Names) -> None:
    await moved_quietly(whole(names), endpoint, jvm, chosen(names), LONG_MOVES)


@pytest.mark.soak
async def test_many_moves_while_processes_die_and_sleep(endpoint: Federation, jvm: Jvm, names: Names) -> None:
    await moved_under_faults(whole(names, killed=True), endpoint, jvm, chosen(names), LONG_FAULTS)


# -- the judge sees what is wrong


def reopen(cluster: Cluster, topic: str) -> None:
    """Takes away, on the cluster itself, what closes a topic."""
    admin = AdminClient({**cluster.librdkafka(), "log_level": 0})
    away = [
        ConfigEntry(name, None, incremental_operation=AlterConfigOpType.DELETE)
        for name in ("max.message.bytes", "compression.type")
    ]
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=away)
    for made in admin.incremental_alter_configs([resource]).values():
        made.result(20)


def write_directly(cluster: Cluster, topic: str, name: str, count: int) -> list[Acknowledged]:
    """Past the federation, at the cluster itself; tries until the reopened topic takes it."""
    told: list[Acknowledged] = []
    deadline = time.monotonic() + 20
    while not told:
        assert time.monotonic() < deadline, "the cluster does not take it"
        producer = Producer({**cluster.librdkafka(), "log_level": 0})

        def delivered(error: object, message: object) -> None:
            if error is None:
                place = (message.partition(), message.offset())  # type: ignore[attr-defined]
                told.append(Acknowledged(name, int(message.value().partition(b":")[2]), topic, *place))  # type: ignore[attr-defined]

        for number in range(count):
            producer.produce(topic, f"{name}:{number}".encode(), b"%d" % number, on_delivery=delivered)
        producer.flush(20)
    return told


async def test_a_write_past_the_fence_is_found(endpoint: Federation, east: Cluster, jvm: Jvm, names: Names) -> None:
    """The control: the old cluster's topic is opened by hand once it is closed, and takes a record."""
    fleet = few(names)
    (topic,) = fleet.topics
    async with moving(fleet, endpoint, jvm) as mover:
        before = await trio.to_thread.run_sync(write_directly, east, topic, "before", 20)
        fleet.told.acknowledged += before
        fleet.told.sent |= {"before": 20, "behind": 20}
        assert (await mover.move([topic], "west")).good
        await trio.to_thread.run_sync(reopen, east, topic)
        behind = await trio.to_thread.run_sync(write_directly, east, topic, "behind", 20)
    assert fleet.judge() == [], "what was written before the fence is there"
    fleet.told.acknowledged += behind
    found = fleet.judge()
    assert any(text.startswith("acknowledged for two records") for text in found)
    assert any(text.startswith("c-classic: ") for text in found), "nobody reads both at one place"
