"""Mirrors over connections that are cut in the middle of requests and answers, on both sides."""

from __future__ import annotations

import random

import pytest
import trio

from kafka_client import ClusterClient
from kafka_client.topics import LATEST, offsets
from offset_sync.recovered import Recovered, recover
from replicator import recovery
from replicator.link import Link, units
from replicator.states import STOPPED
from tests.fixtures.cutting import CutClient, Wires
from tests.fixtures.mirrors import Held, Load, create, log_of
from tests.fixtures.names import Names
from tests.integration.test_mirror_cases import caught_up, until
from tools.local_cluster import Cluster

PARTITIONS = 3


async def over_bad_wires(east: Cluster, west: Cluster, topic: str, cuts: int) -> list[tuple[list[Held], list[Held]]]:
    """What both sides hold, by partition, after a mirror whose connections were cut so often on each side; nothing
    where the mirror has noticed by itself that something is wrong, and stopped."""
    print(f"seed {topic!r}")
    for cluster in (east, west):
        await create(cluster, topic, PARTITIONS)
    load = Load(east, topic, PARTITIONS).running()
    source, target = Wires(random.Random(topic)), Wires(random.Random(topic + "'"))
    async with trio.open_nursery() as nursery:
        await nursery.start(source.run)
        await nursery.start(target.run)
        there, here = CutClient(east, source), CutClient(west, target)
        link = Link(there, here)
        nursery.start_soon(link.run)
        await trio.to_thread.run_sync(load.__enter__)
        try:
            for unit in units(topic, range(PARTITIONS)):
                await link.assign(unit)

            def stopped() -> bool:
                return any(one.condition in STOPPED for one in link.status.values())

            await until(lambda: stopped() or min(source.cuts, target.cuts) >= cuts, "too few cuts", 90)
        finally:
            await trio.to_thread.run_sync(load.__exit__, None, None, None)
        if stopped():
            there.close()
            here.close()
            nursery.cancel_scope.cancel()
            return []
        source.cutting = target.cutting = False
        await caught_up(link, topic, PARTITIONS)
        print(f"cut {source.cuts} and {target.cuts} times, {link.counters.takeovers} take-overs")
        there.close()
        here.close()
        nursery.cancel_scope.cancel()
    async with ClusterClient("a", east.addresses()) as a, ClusterClient("b", west.addresses()) as b:
        ends = await offsets(a, topic, range(PARTITIONS), LATEST)
        return [(await log_of(a, topic, number), await log_of(b, topic, number)) for number in ends]


@pytest.mark.timeout(240)
async def test_cut_connections_neither_lose_nor_double(east: Cluster, west: Cluster, names: Names) -> None:
    copies = await over_bad_wires(east, west, names.topic("cut"), 12)
    assert len(copies) == PARTITIONS
    for there, here in copies:
        assert [one.content for one in there] == [one.content for one in here] and len(there) > 50


@pytest.mark.timeout(240)
async def test_a_mirror_that_trusts_its_last_checkpoint_is_caught(
    east: Cluster, west: Cluster, names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unseen(stored: object, tail: object, *more: object) -> Recovered:
        return recover(stored, [], *more)  # type: ignore[arg-type]

    monkeypatch.setattr(recovery, "recover", unseen)
    for attempt in range(4):  # a cut does harm only where a batch had landed and its answer had not
        copies = await over_bad_wires(east, west, names.topic(f"trusting-{attempt}"), 6)
        if not copies or any([one.content for one in there] != [one.content for one in here] for there, here in copies):
            return
    pytest.fail("nothing was lost or doubled: the test would not notice")
