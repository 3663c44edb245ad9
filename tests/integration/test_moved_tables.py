"""A worker's tables on real brokers: fetched for a move, known at once, forgotten, and read again."""

from __future__ import annotations

from functools import partial

import trio

from kafka_client.topics import LATEST, describe, offsets
from metadata_service.models import PlacementEpoch, TopicRecord
from metadata_service.operations.records import MigrationRecord, Moving
from metadata_service.view import View
from metadata_service.view_builder import served
from proxy.moving import tables
from proxy.moving.tables import MovedTables
from tests.fixtures.mirrors import create
from tests.fixtures.names import Names
from tests.integration.test_mirror_cases import batch, clients, mirrored, write
from tools.local_cluster import Cluster

ID = "20" * 16


async def test_a_target_is_ready_when_its_last_checkpoint_is_there(east: Cluster, west: Cluster, names: Names) -> None:
    topic = names.topic("target")
    for cluster in (east, west):
        await create(cluster, topic, 2)
    async with clients(east, west) as (there, here), trio.open_nursery() as nursery:
        now = View()
        changed = trio.Event()

        async def another(view: View, seconds: float) -> None:
            with trio.move_on_after(seconds):
                await changed.wait()

        made = MovedTables({"east": there, "west": here}.get, lambda: now)
        await nursery.start(partial(made.run, another))
        made_of = {n: (await describe(one, [topic]))[topic].topic.id.hex() for n, one in (("e", there), ("w", here))}
        moving = Moving(source_id=made_of["e"], target_id=made_of["w"], partitions=2)
        record = MigrationRecord(id="m", topics={topic: moving}, source="east", target="west", hold="held")
        now = View(migrations={"m": record})
        ready = trio.Event()

        async def wait() -> None:
            await made.ready(record)
            ready.set()

        nursery.start_soon(wait)
        async with mirrored(there, here, topic, 2):
            for number in range(2):
                await write(there, topic, batch(b"1", b"2"), batch(b"3"), partition=number)
            with trio.move_on_after(1.0):
                await ready.wait()
            assert not ready.is_set(), "nobody has said where the source ends"
            ends = await offsets(there, topic, range(2), LATEST)
            record = MigrationRecord(
                id="m", topics={topic: moving}, source="east", target="west", hold="held", ends={topic: ends}
            )
            now = View(migrations={"m": record})
            with trio.fail_after(10):
                await ready.wait()
            opened = await offsets(here, topic, range(2), LATEST)
            # What comes next is waited for at the broker: the poll, if it were that, is far away.
            record = MigrationRecord(
                id="m",
                topics={topic: moving},
                source="east",
                target="west",
                hold="switched",
                ends={topic: ends},
                opened={topic: {0: opened[0] + 1, 1: opened[1]}},
            )
            now = View(migrations={"m": record})
            again = trio.Event()

            async def wait_again() -> None:
                await made.ready(record)
                again.set()

            nursery.start_soon(wait_again)
            with trio.move_on_after(0.5):
                await again.wait()
            assert not again.is_set()
            await write(there, topic, batch(b"4"))
            with trio.fail_after(tables.POLL - 1.0):
                await again.wait()
        opened = await offsets(here, topic, range(2), LATEST)
        timeline = (
            PlacementEpoch(cluster="east", topic_id=made_of["e"]),
            PlacementEpoch(cluster="west", topic_id=made_of["w"], first={0: 4, 1: 3}, first_physical=opened),
        )
        switched = served(TopicRecord(name=topic, id=ID, timeline=timeline, partitions=2))
        shown = made.table(switched, 0)
        assert shown is not None and shown.logical(opened[0]) == 4 and shown.physical(0) == opened[0] - 4
        for side in made._sides.values():
            if topic in side.copies:
                side.forget(topic)
        assert made.partitions == 0
        with trio.fail_after(10):
            await made.arrived([(switched, range(2))])
        assert made.partitions == 2
        again_shown = made.table(switched, 1)
        assert again_shown is not None and again_shown.logical(opened[1]) == 3
        nursery.cancel_scope.cancel()
