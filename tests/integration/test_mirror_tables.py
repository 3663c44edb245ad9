"""Tables and guards of running mirrors: in rows of mirrors, and over a long time on topics that forget."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeVar
from unittest.mock import patch

import pytest
import trio

from kafka_client import ClusterClient
from kafka_client.topics import delete_records, describe
from kafka_wire.records import Record, body_of, encode_batch
from offset_sync.guard import Entry
from offset_sync.journal import Stream
from offset_sync.recovered import Inconsistent
from offset_sync.table import Table
from offset_sync.tables import SHIP, Following, held
from replicator.claim import read_registry
from replicator.link import Link, units
from replicator.states import Condition
from replicator.upstream import producer_expiration
from tests.fixtures.mirrors import Load, create, log_of, stored
from tests.fixtures.names import Names
from tests.integration.test_mirror_cases import (
    NOW,
    at_least,
    batch,
    caught_up,
    clients,
    condition,
    mirrored,
    until,
    write,
)
from tools.local_cluster import Cluster

Found = TypeVar("Found")


async def erase(client: ClusterClient, topic: str, before: int) -> None:
    leader = (await describe(client, [topic]))[topic].partitions[0].leader
    assert await delete_records(client, topic, leader, {0: before}) == {0: 0}


async def becomes(ask: Callable[[], Awaitable[Found]], right: Callable[[Found], bool], seconds: float = 30.0) -> Found:
    deadline = trio.current_time() + seconds
    while True:
        found = await ask()
        if right(found):
            return found
        assert trio.current_time() < deadline, found
        await trio.sleep(0.1)


async def table_on(client: ClusterClient, topic: str, scope: str = SHIP) -> Table:
    return (await held(Following(client), client, topic, 0, [scope])).written[scope].table


async def test_a_row_of_mirrors_under_load(east: Cluster, west: Cluster, triple: Cluster, names: Names) -> None:
    """A to B to C at the same time: C's table leads to A's offsets, and B's unfinished batches are waited for."""
    topic = names.topic("row")
    for cluster in (east, west, triple):
        await create(cluster, topic, 1)
    async with clients(east, west, triple) as (a, b, c):
        with Load(east, topic, 1).running():
            async with mirrored(a, b, topic) as first, mirrored(b, c, topic) as second:
                await until(lambda: bool(second.sessions), "no session")
                await until(lambda: second.counters.records > 500, "nothing arrives")
                first.counters.records = 0
                # The one in the middle begins anew, with a control record and a new identity.
                for session in list(first.sessions.values()):
                    session.fail("for the test")
                await until(lambda: first.counters.records > 300, "nothing arrives")
                counted = second.counters.records
                await until(lambda: second.counters.records > counted + 500, "nothing arrives any more")
        async with mirrored(a, b, topic) as first, mirrored(b, c, topic) as second:
            await caught_up(first, topic)
            sent = await log_of(a, topic, 0)
            await at_least(c, topic, 0, len(sent))
            arrived = await log_of(c, topic, 0)
            assert [one.content for one in sent] == [one.content for one in arrived]
            lane = next(iter(second.sessions.values())).lanes[0]
            assert lane.status.foreign == 0 and lane.partition.source_foreign == 0
        table = await table_on(c, topic)
        assert [table.physical(one.offset) for one in sent] == [one.offset for one in arrived]
        assert [table.logical(one.offset) for one in arrived] == [one.offset for one in sent]


async def test_a_row_inherits_the_guard(east: Cluster, west: Cluster, triple: Cluster, names: Names) -> None:
    topic = names.topic("guarded")
    for cluster in (east, west, triple):
        await create(cluster, topic, 1)

    def of_producer(number: int, sequence: int) -> bytearray:
        records = [Record(n, NOW, 0, body_of(b"k", b"%d" % sequence)) for n in range(2)]
        return encode_batch(records, producer_id=number, producer_epoch=0, base_sequence=sequence)

    async with clients(east, west, triple) as (a, b, c):
        assert await producer_expiration(b, 7) == 86_400_000
        await write(a, topic, of_producer(900_001, 0), of_producer(900_002, 0), of_producer(900_001, 2))
        async with mirrored(a, b, topic) as first:
            await caught_up(first, topic)
            async with mirrored(b, c, topic) as second:  # what was there before it began
                await until(lambda: bool(second.sessions), "no session")
                guard = next(iter(second.sessions.values())).lanes[0].partition.guard
                wanted = (Entry(0, 0, 1, 0), Entry(0, 2, 3, 4))
                await until(lambda: guard.entries(900_001) == wanted, "not inherited")
                assert guard.entries(900_002) == (Entry(0, 0, 1, 2),)
                await write(a, topic, of_producer(900_002, 2))  # and what comes while both run
                await until(lambda: guard.entries(900_002)[-1:] == (Entry(0, 2, 3, 6),), "not followed")
        # A mirror's own producer is nobody that a client's retry could come from.
        assert not set(await read_registry(b)) & {900_001, 900_002}
        async with mirrored(b, c, topic) as second:  # it was stored there, too
            await until(lambda: bool(second.sessions), "no session")
            guard = next(iter(second.sessions.values())).lanes[0].partition.guard
            assert guard.entries(900_001) == wanted


async def test_a_source_that_becomes_a_target(east: Cluster, west: Cluster, triple: Cluster, names: Names) -> None:
    """B to C begins before A to B: what then comes to B has A's offsets on C, not those it has on B."""
    topic = names.topic("turned")
    for cluster in (east, west, triple):
        await create(cluster, topic, 1)
    async with clients(east, west, triple) as (a, b, c):
        await write(a, topic, batch(b"gone", b"gone", b"gone"), batch(b"1"))
        await erase(a, topic, 3)
        async with mirrored(b, c, topic) as second:
            await until(lambda: bool(second.sessions), "no session")
            async with mirrored(a, b, topic) as first:
                await caught_up(first, topic)
                (arrived,) = await at_least(c, topic, 0, 1)
                await write(a, topic, batch(b"2"))
                await at_least(c, topic, 0, 2)
                assert any("target" in reason for reason in second.counters.failures)
        table = await table_on(c, topic)
        assert (arrived.value, table.logical(arrived.offset)) == (b"1", 3)


async def test_everything_deleted_at_the_source_is_deleted_at_the_target(
    east: Cluster, west: Cluster, names: Names
) -> None:
    topic = names.topic("erased")
    for cluster in (east, west):
        await create(cluster, topic, 1)
    async with clients(east, west) as (there, here):
        await write(there, topic, batch(b"1", b"2"), batch(b"3"))
        async with mirrored(there, here, topic) as link:
            await caught_up(link, topic)
            await erase(there, topic, 3)
            await becomes(lambda: log_of(here, topic, 0), lambda held: not held)
            await write(there, topic, batch(b"4"))
            (one,) = await at_least(here, topic, 0, 1)
        found = await held(Following(here), here, topic, 0, [SHIP])
        assert found.written[SHIP].table.physical(3) == one.offset


async def test_a_long_running_mirror_keeps_few_keys(east: Cluster, west: Cluster, names: Names) -> None:
    """Many runs come and go: in a ship by the source's DeleteRecords, in an exchange by the target's own."""
    ship, exchange = names.topic("forgetful"), names.topic("both")
    for cluster in (east, west):
        await create(cluster, ship, 1)
        await create(cluster, exchange, 1)
    with patch("offset_sync.runs.CHUNK", 4), patch("offset_sync.table.CHUNK", 4):
        async with clients(east, west) as (there, here):
            places = ((ship, SHIP, there), (exchange, "east", here))
            async with mirrored(there, here, ship) as a, mirrored(there, here, exchange, mode="exchange") as b:
                for turn in range(6):
                    for number in range(8):  # somebody else's records in between: each batch is a run
                        for topic, link in ((ship, a), (exchange, b)):
                            await write(there, topic, batch(b"%d-%d" % (turn, number)))
                            await caught_up(link, topic)
                            await write(here, topic, batch(b"foreign"))
                    for topic, _, client in places:
                        await erase(client, topic, (await log_of(client, topic, 0))[-3].offset)
                    for topic, link in ((ship, a), (exchange, b)):
                        await write(there, topic, batch(b"%d" % turn))
                        await caught_up(link, topic)
                await until(lambda: a.status[ship, 0].condition is Condition.CAUGHT_UP, "not caught up")
                for topic, scope, _ in places:
                    info = (await describe(here, [topic]))[topic]
                    stream = Stream(info.topic.id, 0, scope)
                    # What was deleted last is in the next checkpoint.
                    found = (await becomes(partial(stored, here, stream), lambda one: len(one.chunks) <= 3)).chunks
                    assert min(found) >= 5, found
            for topic, scope, _ in places:
                table = await table_on(here, topic, scope)
                kept = {one.value: one.offset for one in await log_of(here, topic, 0) if one.value != b"foreign"}
                source = {one.value: one.offset for one in await log_of(there, topic, 0)}
                both = kept.keys() & source.keys()
                assert len(both) >= 2
                assert [table.physical(source[one]) for one in both] == [kept[one] for one in both]
                assert [table.logical(kept[one]) for one in both] == [source[one] for one in both]


async def test_a_copy_begun_anew(east: Cluster, west: Cluster, names: Names) -> None:
    """An occupied target, and one that lost data, are emptied when somebody says so, and only then; once."""
    topic = names.topic("anew")
    for cluster in (east, west):
        await create(cluster, topic, 1)

    @asynccontextmanager
    async def copying(there: ClusterClient, here: ClusterClient, generation: int) -> AsyncIterator[Link]:
        link = Link(there, here)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.run)
            for unit in units(topic, range(1), "ship", generation):
                await link.assign(unit)
            yield link
            nursery.cancel_scope.cancel()

    async with clients(east, west) as (there, here):
        with patch("offset_sync.runs.CHUNK", 2), patch("offset_sync.table.CHUNK", 2):
            await write(there, topic, batch(b"1", b"2"), batch(b"3"))
            await write(here, topic, batch(b"somebody's"))
            async with copying(there, here, 0) as link:
                await condition(link, topic, Condition.OCCUPIED)
            async with copying(there, here, 1) as link:
                await caught_up(link, topic)
                for number in range(6):  # foreign records in between make runs
                    await write(here, topic, batch(b"foreign"))
                    await write(there, topic, batch(b"%d" % (number + 4)))
                    await caught_up(link, topic)
            assert [one.value for one in await log_of(here, topic, 0)][:3] == [b"1", b"2", b"3"]
            before = await log_of(here, topic, 0)
            info = (await describe(here, [topic]))[topic]
            stream = Stream(info.topic.id, 0)
            async with copying(there, here, 1) as link:  # the same generation is not begun anew twice
                await caught_up(link, topic)
                link.sessions[next(iter(link.sessions))].unit.lose(stream, "for the test")  # type: ignore[union-attr]
                assert (await log_of(here, topic, 0))[: len(before)] == before
                await becomes(partial(stored, here, stream), lambda one: bool(one.lost))
            async with copying(there, here, 1) as link:
                await condition(link, topic, Condition.TARGET_LOST)
            with pytest.raises(Inconsistent, match="for the test"):
                await table_on(here, topic)
            follower = Following(here)
            (kept,) = (await follower.follow(topic, [0])).values()
            assert len(kept.table.runs) > 4
            async with copying(there, here, 2) as link:
                await caught_up(link, topic)
                found = await becomes(partial(stored, here, stream), lambda one: len(one.chunks) == 1)
                assert not found.lost
                await follower.refresh()
            sent, held_here = await log_of(there, topic, 0), await log_of(here, topic, 0)
            assert [one.content for one in sent] == [one.content for one in held_here]
            for table in (await table_on(here, topic), kept.table):
                assert [table.physical(one.offset) for one in sent] == [one.offset for one in held_here]
