"""A mirror that is killed again and again under load, judged by every single record."""

from __future__ import annotations

import os
import random
import signal
from collections import Counter

import pytest
import trio

from kafka_client import ClusterClient
from kafka_client.topics import LATEST, offsets
from tests.fixtures.mirrors import Held, Load, create, log_of, mirror_process, stored_table
from tests.fixtures.names import Names
from tools.local_cluster import Cluster

PARTITIONS = 3


async def killed(
    source: Cluster, target: Cluster, topic: str, kills: int, broken: str = ""
) -> list[tuple[list[Held], list[Held]]]:
    """Load on the source while mirrors are killed; then what both sides hold, by partition."""
    for cluster in (source, target):
        await create(cluster, topic, PARTITIONS)
    seed = os.environ.get("KFED_TEST_SEED", topic)
    print(f"KFED_TEST_SEED={seed}: when mirrors are killed")
    chance = random.Random(seed)
    topics = {topic: PARTITIONS}
    load = Load(source, topic, PARTITIONS)
    running = load.running()
    await trio.to_thread.run_sync(running.__enter__)
    try:
        for number in range(kills):
            async with mirror_process(source, target, topics, broken=broken) as mirror:
                if number % 4 != 3:  # else: somewhere in the take-over
                    await mirror.until_copying()
                    await trio.sleep(chance.uniform(0.0, 0.6))
                else:
                    await trio.sleep(chance.uniform(0.5, 1.5))
    finally:
        await trio.to_thread.run_sync(running.__exit__, None, None, None)
    async with (
        ClusterClient(source.name, source.addresses()) as there,
        ClusterClient(target.name, target.addresses()) as here,
    ):
        ends = await offsets(there, topic, range(PARTITIONS), LATEST)
        async with mirror_process(source, target, topics, broken=broken) as mirror:
            with trio.fail_after(60):
                await mirror.until_caught_up({(topic, number): end for number, end in ends.items()})
                await trio.sleep(1.5)  # its checkpoint is written once a second
        out = []
        for number in range(PARTITIONS):
            out.append((await log_of(there, topic, number), await log_of(here, topic, number)))
            if not broken:
                table = await stored_table(here, topic, number)
                for one, other in zip(*out[-1], strict=True):
                    assert table.physical(one.offset) == other.offset
                    assert table.logical(other.offset) == one.offset
        return out


@pytest.mark.timeout(400)
async def test_kills_neither_lose_nor_double(east: Cluster, west: Cluster, names: Names) -> None:
    copies = await killed(east, west, names.topic("crash"), 20)
    assert sum(len(there) for there, _ in copies) > 1000
    assert {one.codec for there, _ in copies for one in there} == {0, 1, 2, 3, 4}
    for there, here in copies:
        assert [one.content for one in there] == [one.content for one in here]
        assert not any(dict(one.headers)["id"].startswith(b"aborted") for one in here)  # type: ignore[union-attr]


@pytest.mark.timeout(400)
async def test_a_mirror_that_does_not_look_what_arrived_is_caught(east: Cluster, west: Cluster, names: Names) -> None:
    for attempt in range(4):  # a kill does harm only where something was in flight
        copies = await killed(east, west, names.topic(f"broken-{attempt}"), 6, "scan")
        if any([one.content for one in there] != [one.content for one in here] for there, here in copies):
            return
    pytest.fail("nothing was lost or doubled: the test would not notice")


@pytest.mark.timeout(400)
async def test_an_exchange_whose_mirrors_are_killed_ends_with_the_union(
    east: Cluster, west: Cluster, names: Names
) -> None:
    topic, kills = names.topic("exchange"), 6
    both = [east, west]
    for cluster in both:
        await create(cluster, topic, PARTITIONS)
    chance = random.Random(os.environ.get("KFED_TEST_SEED", topic))
    loads = [Load(one, topic, PARTITIONS, name=f"{one.name}-").running() for one in both]
    for load in loads:
        await trio.to_thread.run_sync(load.__enter__)

    async def killed_again(source: Cluster, target: Cluster) -> None:
        for _ in range(kills):
            async with mirror_process(source, target, {topic: PARTITIONS}, exchange=True) as mirror:
                await mirror.until_copying()
                await trio.sleep(chance.uniform(0.0, 0.6))

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(killed_again, east, west)
            nursery.start_soon(killed_again, west, east)
    finally:
        for load in loads:
            await trio.to_thread.run_sync(load.__exit__, None, None, None)
    async with ClusterClient("east", east.addresses()) as one, ClusterClient("west", west.addresses()) as two:

        async def ends(client: ClusterClient) -> dict[tuple[str, int], int]:
            found = await offsets(client, topic, range(PARTITIONS), LATEST)
            return {(topic, number): end for number, end in found.items()}

        exchange = {"exchange": True}
        async with (
            mirror_process(east, west, {topic: PARTITIONS}, **exchange) as there,
            mirror_process(west, east, {topic: PARTITIONS}, **exchange) as back,
        ):
            with trio.fail_after(90):
                await there.until_copying()
                await back.until_copying()
                # What each still has to copy was written by the load: it ended before they began.
                await there.until_caught_up(await ends(one))
                await back.until_caught_up(await ends(two))
        for number in range(PARTITIONS):
            logs = [await log_of(client, topic, number) for client in (one, two)]
            for log in logs:
                ids = [dict(held.headers)["id"] for held in log]
                assert len(ids) == len(set(ids)) > 50 and not any(b"aborted" in (found or b"") for found in ids)
            assert sorted(map(str, (held.content for held in logs[0]))) == sorted(
                map(str, (held.content for held in logs[1]))
            )
            for origin in (b"east-", b"west-"):  # each keeps its order
                first, second = [
                    [held.content for held in log if (dict(held.headers)["id"] or b"").startswith(origin)]
                    for log in logs
                ]
                assert first == second and first


@pytest.mark.soak
async def test_two_hundred_kills(east: Cluster, west: Cluster, names: Names) -> None:
    kills = 200
    copies = await killed(east, west, names.topic("soak"), kills)
    written = Counter(str(one.content) for there, _ in copies for one in there)
    arrived = Counter(str(one.content) for _, here in copies for one in here)
    lost, twice = (written - arrived).total(), (arrived - written).total()
    print(f"soak: mirror killed {kills} times: {written.total()} records, lost {lost}, twice {twice}")
    for there, here in copies:
        assert [one.content for one in there] == [one.content for one in here]


@pytest.mark.timeout(300)
async def test_a_second_mirror_and_a_paused_one_that_wakes_up(east: Cluster, west: Cluster, names: Names) -> None:
    """Two processes that both think the topic is theirs; one of them sleeps while the other copies."""
    topic = names.topic("twice")
    topics = {topic: PARTITIONS}
    for cluster in (east, west):
        await create(cluster, topic, PARTITIONS)
    running = Load(east, topic, PARTITIONS).running()
    await trio.to_thread.run_sync(running.__enter__)
    try:
        async with mirror_process(east, west, topics) as first:
            await first.until_copying()
            for pause in (0.0, 0.5, 2.0):
                first.process.send_signal(signal.SIGSTOP)
                async with mirror_process(east, west, topics) as second:
                    await second.until_copying()
                    await trio.sleep(pause)
                    first.process.send_signal(signal.SIGCONT)  # with batches cut, stamped and half sent
                    await trio.sleep(1.5)
    finally:
        await trio.to_thread.run_sync(running.__exit__, None, None, None)
    async with ClusterClient("east", east.addresses()) as there, ClusterClient("west", west.addresses()) as here:
        ends = await offsets(there, topic, range(PARTITIONS), LATEST)
        async with mirror_process(east, west, topics) as last:
            with trio.fail_after(60):
                await last.until_caught_up({(topic, number): end for number, end in ends.items()})
                await trio.sleep(1.5)
        for number in range(PARTITIONS):
            source, target = await log_of(there, topic, number), await log_of(here, topic, number)
            assert [one.content for one in source] == [one.content for one in target] and len(source) > 50
            table = await stored_table(here, topic, number)
            assert [table.physical(one.offset) for one in source] == [one.offset for one in target]
