"""Whole moves by the controller on real clusters: measured, killed at every step, given up, told of a late close."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest
import trio
from confluent_kafka import KafkaException, Producer

from metadata_service.migrating import changing, switches
from metadata_service.migrating.hands import Hands
from metadata_service.migrating.runner import Running
from metadata_service.models import FINISHED
from metadata_service.operations.gates import CLOSED
from metadata_service.operations.records import MigrationRecord, Options, migration_key
from metadata_service.records import decode, encode
from metadata_service.registration import Registration
from metadata_service.store.contract import Put, Unchanged
from metadata_service.store.opened import OpenedStore
from replicator.finishing import Finishing
from tests.fixtures.migrating import World, world_of
from tests.fixtures.mirrors import Load, create, log_of
from tests.fixtures.names import Names
from tests.store.servers import EmbeddedServer
from tools.local_cluster import Cluster

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedServer]:
    one = EmbeddedServer(tmp_path / "state")
    one.start()
    yield one
    one.kill()


@pytest.fixture
async def world(east: Cluster, west: Cluster, server: EmbeddedServer) -> AsyncIterator[World]:
    async with world_of(str(server.directory), east, west) as made:
        yield made


async def copied(world: World, topic: str, partitions: int) -> list[list[tuple[object, ...]]]:
    """What east holds."""
    async with world.client("east") as east:
        return [[one.content for one in await log_of(east, topic, number)] for number in range(partitions)]


async def test_a_whole_move(world: World, east: Cluster, names: Names) -> None:
    topic, count = names.topic("moved"), 64
    await create(east, topic, count)
    with Load(east, topic, count, rate=2000).running():
        await trio.sleep(0.5)
    async with world.controller(), world.replicator():
        before = await copied(world, topic, count)
        identifier = await world.begin("east", "west", topic)
        ended = await world.ended(identifier)
        assert (ended.step, ended.hold, ended.attempt) == ("done", "over", 1), ended.reason
        assert (ended.reopeners, ended.retirers, ended.emptied) == ((), (), True)
        view = await world.seen(lambda view: view.topics[topic].cluster == "west")
        record = view.topics[topic].record
        assert record.hold is None and record.epoch == 1 and not view.mirrors
        assert dict(record.timeline[1].first) == ended.cut[topic] == ended.ends[topic]
        assert all(marks[0][1] == 0 for marks in record.timeline[0].physical_epochs.values())
        stub = view.stubs["east", topic]
        assert not stub.borrowed and stub.topic_id == record.timeline[0].topic_id
        async with world.client("west") as west, world.client("east") as old:
            after = [[one.content for one in await log_of(west, topic, number)] for number in range(count)]
            assert before == after and sum(map(len, after)) > 100
            assert await log_of(old, topic, 0) == []  # retired
            for cluster in (west, old):  # for workers that do not hear the store
                note = (await log_of(cluster, switches.TOPIC, 0))[-1]
                said = msgspec.json.decode(note.value or b"", type=switches.SwitchNote)
                assert (note.key, said.cluster, said.epoch, said.cut) == (topic.encode(), "west", 1, ended.cut[topic])
        assert await world.closed("east", topic) and not await world.closed("west", topic)
        [told] = await world.history(identifier)
        assert told.result["state"] == "done" and told.by == "test"
        print("pause", told.result["pause_ms"], told.result["steps_ms"])
        async with world.store.follow(FINISHED) as following:  # nobody needs them any longer
            with trio.fail_after(20):
                while (await world.store.range(FINISHED)).items:
                    await following.__anext__()


async def test_a_leader_dies_while_writes_are_held(
    triple: Cluster, west: Cluster, server: EmbeddedServer, names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others lead its partitions from then on: they are closed as well, and asked."""
    topic = names.topic("leaderless")
    await create(triple, topic, 6, min_insync_replicas="1")  # the target has one broker
    with Load(triple, topic, 6).running():
        pass
    commit = Running._commit

    async def killing(self: Running, *arguments: object) -> None:
        if arguments[1].record.step == "close":  # type: ignore[attr-defined]
            triple.brokers[1].kill()
        await commit(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Running, "_commit", killing)
    async with world_of(str(server.directory), triple, west) as world, world.controller(), world.replicator():
        identifier = await world.begin("triple", "west", topic, options=Options(budget=30.0, redirect=0.0))
        switched = await world.until(identifier, lambda one: one.step == "failed" or one.switched_at > 0)
        assert (switched.step, switched.attempt) != ("failed", 1), switched.reason
        await trio.to_thread.run_sync(triple.mend)
        monkeypatch.setattr(Running, "_commit", commit)
        ended = await world.ended(identifier)
        assert ended.step == "done", ended.reason
        async with world.client("west") as client:
            for number in range(6):
                held = await log_of(client, topic, number)
                assert held and len(held) == len({one.headers for one in held})


async def test_the_controller_is_killed_at_every_step(world: World, east: Cluster, names: Names) -> None:
    """Each commit, and each batch of commands, is the last that a controller does; the next one goes on."""
    topic = names.topic("killed")
    await create(east, topic, 2)
    with Load(east, topic, 2).running():
        pass
    before = await copied(world, topic, 2)
    commit = Running._commit
    stopped: set[str] = set()
    scopes: list[trio.CancelScope] = []

    async def fatal(self: Running, *arguments: object) -> None:
        record = arguments[1].record  # type: ignore[attr-defined]
        first = record.step not in stopped
        stopped.add(record.step)
        if first and len(stopped) % 2:  # before it, or with an outcome nobody hears of
            scopes[-1].cancel()
            await trio.sleep_forever()
        await commit(self, *arguments)  # type: ignore[arg-type]
        if first:
            scopes[-1].cancel()
            await trio.sleep_forever()

    async def nothing(*_: object) -> None:
        """A process that is killed says no goodbye."""

    async with world.controller("first"):
        await world.seen(lambda view: topic in view.topics)
    async with world.replicator():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Running, "_commit", fatal)
            patch.setattr(Registration, "_leave", nothing)
            patch.setattr(OpenedStore, "revoke", nothing)
            identifier = await world.begin("east", "west", topic, options=Options(budget=60.0, redirect=0.0))
            lives = 0
            while (await world.record(identifier)).step not in ("done", "aborted", "failed"):
                lives += 1
                with trio.CancelScope() as scope:
                    scopes.append(scope)
                    async with world.controller(ttl=1):
                        await world.ended(identifier)
        ended = await world.record(identifier)
    assert (ended.step, ended.attempt) == ("done", 1), ended.reason
    assert lives > 10 and stopped >= {"ship", "drain", "close", "finish", "switch", "release", "retire", "done"}
    async with world.client("west") as west:
        assert before == [[one.content for one in await log_of(west, topic, number)] for number in range(2)]


async def test_given_up(world: World, east: Cluster, names: Names, monkeypatch: pytest.MonkeyPatch) -> None:
    """Aborted while writes are held: the source takes records again, and the copy is left as a closed stand-in."""
    topic = names.topic("given-up")
    await create(east, topic, 2)
    with Load(east, topic, 2).running():
        pass

    async def never(*_: object) -> None:
        """The mirror does not come to its end."""

    monkeypatch.setattr(Finishing, "_write", never)
    async with world.controller(), world.replicator():
        identifier = await world.begin("east", "west", topic, options=Options(budget=60.0))
        await world.until(identifier, lambda one: one.step == "finish")
        assert await world.closed("east", topic)
        key = migration_key(identifier)
        found = await world.store.get(key)
        assert found is not None
        aborted = msgspec.structs.replace(decode(MigrationRecord, found.value), wanted="abort")
        done = await world.store.commit((Unchanged(key, found.mod_revision),), (Put(key, encode(aborted)),))
        assert done.succeeded
        ended = await world.ended(identifier)
    assert (ended.step, ended.hold, ended.closing, ended.reopeners) == ("aborted", "open", False, ())
    assert not await world.closed("east", topic) and await world.closed("west", topic)
    async with world.client("east") as client:  # a close that comes late is undone
        await changing.alter(Hands({"east": client}.get), client, {topic: dict(CLOSED)})
    assert await world.closed("east", topic)
    async with world.controller():
        with trio.fail_after(40):
            while await world.closed("east", topic):
                await world.member.following.changed_or(world.member.view, 0.2)
        named = await world.until(identifier, lambda one: not one.reopeners)
        assert named.step == "aborted"


async def test_open_transactions_are_waited_for_and_then_ended(world: World, east: Cluster, names: Names) -> None:
    topic = names.topic("open")
    await create(east, topic, 2)
    producer = Producer({**east.librdkafka(), "transactional.id": names.transactional_id("t")})

    def begin() -> None:
        producer.init_transactions(30)
        producer.begin_transaction()
        producer.produce(topic, b"never committed", partition=0)
        assert producer.flush(30) == 0

    await trio.to_thread.run_sync(begin)
    waits = Options(redirect=0.0, drain_wait=1.0, abort_transactions=True)
    async with world.controller(), world.replicator():
        began = trio.current_time()
        identifier = await world.begin("east", "west", topic, options=waits)
        ended = await world.ended(identifier)
        assert (ended.step, ended.attempt) == ("done", 1), ended.reason
        assert trio.current_time() - began > 1.0
    with pytest.raises(KafkaException):
        await trio.to_thread.run_sync(producer.commit_transaction, 30)
    async with world.client("west") as west:
        assert await log_of(west, topic, 0) == []
