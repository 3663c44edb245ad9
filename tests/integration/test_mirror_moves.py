"""Mirrors of topics that move: the end of shipping, former copies, sources that have served, standbys that re-root."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio

from metadata_service.member import Member, join
from metadata_service.models import ASSIGNMENTS, LEASES, LeaseRecord, topic_key, worker_key
from metadata_service.records import decode
from metadata_service.seeding import seed
from metadata_service.store.open import open_store
from offset_sync.guard import Entry
from runtime.settings import EmbeddedStore, parse
from tests.fixtures.names import Names
from tests.fixtures.scripted_moves import Moves, copier, until_gone
from tests.integration.test_mirror_cases import batch, clients, until, write
from tests.integration.test_mirror_spread import Worker
from tests.integration.test_mirror_tables import becomes
from tests.store.servers import EmbeddedServer
from tools.local_cluster import Cluster

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedServer]:
    one = EmbeddedServer(tmp_path / "state")
    one.start()
    yield one
    one.kill()


@asynccontextmanager
async def world(
    server: EmbeddedServer, topic: str, partitions: int, *clusters: Cluster
) -> AsyncIterator[tuple[Moves, Member]]:
    """A store that knows the clusters, and somebody who looks."""
    known = "\n".join(f"  {one.name}: {{bootstrap: {json.dumps(one.addresses())}}}" for one in clusters)
    settings = parse(
        f'federation: demo\nstore: {{kind: embedded, path: "{server.directory}"}}\n'
        f"clusters:\n{known}\nplacement: {{default: {clusters[0].name}}}\n"
    )
    async with (
        open_store(EmbeddedStore(path=str(server.directory)), "demo", progress_interval=0.1) as store,
        clients(*clusters) as opened,
    ):
        await seed(store, settings)
        async with join(store, instance="looker", worker=0, role="controller", registered=False) as member:
            await member.settled()
            yield (
                Moves(
                    store, {one.name: client for one, client in zip(clusters, opened, strict=True)}, topic, partitions
                ),
                member,
            )


async def test_there_and_back_and_on(
    east: Cluster, west: Cluster, triple: Cluster, server: EmbeddedServer, names: Names
) -> None:
    """East to west, back to what is left on east, on to triple, which was a standby all the time."""
    async with (
        world(server, names.topic("there"), 2, east, west, triple) as (moves, member),
        copier(moves.store),
    ):
        await moves.begin(east)
        for number in range(3):
            await moves.write(f"a{number}", f"a{number}+", partition=0)
        await moves.write("other", partition=1, producer=900_002)
        await moves.standby("triple", member)
        await moves.move("west", member)
        await moves.check()
        for number in range(3):
            await moves.write(f"b{number}", partition=0)
        await moves.move("east", member)
        await moves.check()
        assert len(moves.written[0]) == 9
        await moves.write("c", "c+", partition=0)
        await moves.write("c", partition=1, producer=900_003)
        await moves.check()
        assert (await moves.record()).timeline[-1].tag_producers
        await moves.until_caught_up("east", "triple")
        await moves.move("triple", member)
        await moves.check()
        await moves.write("d", partition=0)
        await moves.check()
        # The producer's last batches, with its own id, wherever they were written.
        (last,) = [offset for offset, value in moves.written[0].items() if value == b"c"]
        guard = await moves.guard("triple", 0)
        assert guard.entries(900_001) == (Entry(2, 0, 1, last),)
        assert 900_002 in await moves.guard("triple", 1) and 900_003 in await moves.guard("triple", 1)


async def test_it_ends_where_it_is_told(east: Cluster, west: Cluster, server: EmbeddedServer, names: Names) -> None:
    """Not before, not behind, not after it was told to go on; and then elsewhere."""
    async with (
        world(server, names.topic("ends"), 2, east, west) as (moves, member),
        copier(moves.store) as worker,
    ):
        await moves.begin(east)
        await moves.write("1", "2")
        operation = await moves.ship("west", member)
        await moves.until_caught_up("east", "west")
        ends = await moves.log_ends("east")
        further = {**ends, 0: ends[0] + 2}
        await moves.say_finish("east", "west", operation, further)
        (link,) = worker.replicator.links.values()
        await until(lambda: all(one.ending is not None for one in link.sessions.values()), "not told")
        assert not await moves.has_finished("east", "west")
        await moves.write("3", "4")
        await moves.write("not this one", partition=1)
        await becomes(lambda: moves.has_finished("east", "west"), bool)
        assert (await moves.log_ends("west"))[1] == ends[1] + 1, "the fence's record, and nothing else"
        (session,) = link.sessions.values()
        before = await moves.log_ends("west")
        session.fail("for the test")  # a lost connection, or whatever comes later: it leaves no control record
        await until(lambda: not link.sessions, "still there")
        await moves.write("5")
        await trio.sleep(0.5)
        assert await moves.log_ends("west") == before and not link.sessions
        # The hold was lifted: it goes on, what was said is taken back, and it ends elsewhere.
        await moves.change("east", "west", state="running", ends={})
        await moves.until_caught_up("east", "west")
        await becomes(moves.notes, lambda found: not found)
        await moves.say_finish("east", "west", operation, await moves.log_ends("east"))
        await becomes(lambda: moves.has_finished("east", "west"), bool)
        assert link.sessions  # and once more, this time with its session alive
        await moves.write("6", partition=1)
        await moves.change("east", "west", state="running", ends={})
        await moves.until_caught_up("east", "west")
        await moves.switch("west", await moves.finish("west", operation))
        await moves.check()


async def test_what_is_left_of_a_copy(east: Cluster, west: Cluster, server: EmbeddedServer, names: Names) -> None:
    """Foreign records behind its end are in no run; an emptied one is filled anew, and one that lacks records waits
    until somebody says so."""
    async with (
        world(server, names.topic("left"), 1, east, west) as (moves, member),
        copier(moves.store),
    ):
        await moves.begin(east)
        await moves.write("1", "2")
        await moves.write("3")
        first = await moves.move("west", member)
        await moves.write("4")
        await moves.reopen("east")
        await write(moves.clients["east"], moves.topic, batch(b"foreign"))
        second = await moves.move("east", member)
        await moves.check()
        assert second.foreign == 1
        await moves.write("5")
        # Somebody's record behind the copy's end: whoever waits for the table waits for all of that.
        operation = await moves.ship("west", member)
        await moves.until_caught_up("east", "west")
        await write(moves.clients["west"], moves.topic, batch(b"foreign"))
        finished = await moves.finish("west", operation)
        assert await moves.covered("west", 0) == (await moves.log_ends("west"))[0]
        await moves.switch("west", finished)
        await moves.check()
        await until_gone(moves.store, f"{ASSIGNMENTS}west/{moves.topic}/east/")
        await moves.move("east", member)
        # West lacks its first batch now, which east still has.
        await moves.reopen("west")
        table = await moves.stored("west", 0)
        start = table.physical(2)
        assert start is not None
        await moves.erase("west", {0: start})
        await moves.ship("west", member)
        await becomes(lambda: moves.reported("east", "west"), lambda found: found.get(0) == "incomplete")
        assert (await moves.log_ends("west"))[0] > start
        await moves.drop("east", "west")
        third = await moves.move("west", member, rebuild=True)
        await moves.check()
        await moves.write("6")
        # East is emptied, as a retired copy is.
        await moves.reopen("east")
        await moves.erase("east", third.ends)
        await moves.move("east", member)
        await moves.check()
        assert first.ends[0] < third.ends[0]
        await moves.write("7")
        await moves.move("west", member)  # and the rebuilt one is gone on with
        await moves.check()


async def test_a_topic_that_grows_while_it_is_shipped(
    east: Cluster, west: Cluster, server: EmbeddedServer, names: Names
) -> None:
    """There, and back to a copy that has fewer partitions; what never was on east has nothing of its own there."""
    async with world(server, names.topic("grows"), 1, east, west) as (moves, member), copier(moves.store):
        await moves.begin(east)
        await moves.write("1")
        operation = await moves.ship("west", member)
        await moves.until_caught_up("east", "west")
        await moves.grow(2)
        await moves.write("2", partition=1)
        await moves.until_caught_up("east", "west")
        await moves.switch("west", await moves.finish("west", operation))
        await moves.check()
        await moves.grow(34)  # and into another unit
        await moves.write("3", partition=33)
        await moves.write("4", partition=0)
        await moves.move("east", member)
        await moves.check()
        await moves.write("5", partition=33)
        await moves.check()


async def test_a_worker_that_dies_and_one_that_wakes_up(
    east: Cluster, west: Cluster, server: EmbeddedServer, names: Names, tmp_path: Path
) -> None:
    """While it finishes one worker is killed, its successor is paused: the third one finishes, and the second, awake
    again after the switch, appends nothing."""
    async with world(server, names.topic("dies"), 2, east, west) as (moves, member):
        await moves.begin(east)
        await moves.write("1", "2")
        settings = {
            "federation": "demo",
            "store": {"kind": "embedded", "path": str(server.directory)},
            "clusters": {one.name: {"bootstrap": one.addresses()} for one in (east, west)},
            "placement": {"default": "east"},
        }
        first, second = (Worker(SimpleNamespace(settings=settings), one, tmp_path / one) for one in ("a", "b"))  # type: ignore[arg-type]
        async with first.running():
            operation = await moves.ship("west", member)
            await moves.until_caught_up("east", "west")
            ends = await moves.log_ends("east")
            await moves.say_finish("east", "west", operation, {0: ends[0] + 1, 1: ends[1] + 1})
            await moves.write("3")
            await becomes(lambda: moves.copied("west"), lambda found: found[0] == 3)
            os.kill(first.child(), signal.SIGKILL)
            first.daemon.kill()
        async with second.running():
            await moves.until_held("east", "west", "b")
            await becomes(lambda: moves.reported("east", "west"), lambda found: len(found) == 2)
            os.kill(second.child(), signal.SIGSTOP)
            try:
                async with copier(moves.store):
                    await moves.until_held("east", "west", "test")
                    await moves.write("4", partition=1)
                    await becomes(lambda: moves.has_finished("east", "west"), bool)
                    finished = await moves.finish("west", operation)
                    await moves.switch("west", finished)
                    await until_gone(moves.store, f"{ASSIGNMENTS}west/{moves.topic}/")
            finally:
                os.kill(second.child(), signal.SIGCONT)
            opened = (await moves.record()).timeline[-1].first_physical
            await moves.write("5")
            await becomes(lambda: acknowledged(moves, "b"), lambda revision: revision > 0)
            await moves.write("6", partition=1)
            assert await moves.log_ends("west") == {0: opened[0] + 1, 1: opened[1] + 1}
            await moves.check()


async def acknowledged(moves: Moves, instance: str) -> int:
    """The revision of a worker that has a lease, and has seen the switch; 0 before."""
    found = await moves.store.get(worker_key(LEASES, instance, "replicator", 0))
    switched = await moves.store.get(topic_key(moves.topic))
    if found is None or switched is None:
        return 0
    revision = decode(LeaseRecord, found.value).acknowledged
    return revision if revision >= switched.mod_revision else 0
