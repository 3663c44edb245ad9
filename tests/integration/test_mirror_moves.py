"""Mirrors of topics that move: the end of shipping, former copies, sources that have served, standbys that re-root."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from metadata_service.member import Member, join
from metadata_service.seeding import seed
from metadata_service.store.open import open_store
from offset_sync.guard import Entry
from runtime.settings import EmbeddedStore, parse
from tests.fixtures.names import Names
from tests.fixtures.scripted_moves import Moves, copier
from tests.integration.test_mirror_cases import clients
from tests.store.servers import EmbeddedServer
from tools.local_cluster import Cluster

pytestmark = pytest.mark.timeout(120)


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
