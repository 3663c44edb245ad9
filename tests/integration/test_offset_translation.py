"""Every retained offset of every side, translated to every other side, against who the records are."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import permutations
from unittest.mock import patch

import pytest
import trio
from confluent_kafka import Producer

from admin.contract import NotFound, Unavailable, Wrong
from admin.offsets import Offsets
from kafka_client import ClusterClient
from kafka_client.topics import EARLIEST, LATEST, delete_records, describe, offsets
from kafka_wire.records import Record, body_of, encode_batch
from replicator.translation import Flow, NotYet, Translator, way
from replicator.worker import Mirror, Replicator
from tests.fixtures.mirrors import Held, create, log_of
from tests.fixtures.names import Names
from tests.integration.test_mirror_cases import NOW, at_least, batch, clients, until, write
from tools.local_cluster import Cluster

A, B, C = "east", "west", "triple"
SHIP = [Flow(A, B, "ship")]
ROW = [Flow(A, B, "ship"), Flow(B, C, "ship")]
TREE = [Flow(A, B, "ship"), Flow(A, C, "ship")]
TWO = [Flow(A, B, "exchange"), Flow(B, A, "exchange")]
THREE = [Flow(a, b, "exchange") for a, b in permutations((A, B, C), 2)]
STANDBY = [*TWO, Flow(B, C, "ship")]


@asynccontextmanager
async def mirrors(opened: list[ClusterClient], topic: str, flows: list[Flow]) -> AsyncIterator[Replicator]:
    replicator = Replicator({one.name: one for one in opened})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(replicator.run)
        for one in flows:
            progress = await replicator.add(Mirror(topic, one.source, one.target, one.mode))
            assert not progress.problems and not progress.error, progress
        yield replicator
        nursery.cancel_scope.cancel()


async def arrived(replicator: Replicator, opened: list[ClusterClient], topic: str, flows: list[Flow]) -> None:
    """Until nothing is to be copied any more, on any side."""
    for _ in range(len(flows) + 1):
        for one in flows:
            source = next(client for client in opened if client.name == one.source)
            end = (await offsets(source, topic, [0], LATEST))[0]
            link = replicator.links[one.source, one.target]
            await until(lambda link=link, end=end: link.status[topic, 0].position >= end, str(one))  # type: ignore[misc]


async def erase(client: ClusterClient, topic: str, before: int) -> None:
    leader = (await describe(client, [topic]))[topic].partitions[0].leader
    assert await delete_records(client, topic, leader, {0: before}) == {0: 0}


def transactions(cluster: Cluster, topic: str, name: str) -> None:
    """Committed and aborted ones, with their markers."""
    producer = Producer({**cluster.librdkafka(), "transactional.id": f"{topic}-{name}", "compression.type": "lz4"})
    producer.init_transactions(30)
    for number in range(6):
        producer.begin_transaction()
        for at in range(3):
            producer.produce(topic, f"{name}-{number}-{at}".encode(), b"k", 0)
        producer.flush(30)
        if number % 3 == 1:
            producer.abort_transaction(30)
        else:
            producer.commit_transaction(30)


async def plain(client: ClusterClient, topic: str, name: str, count: int = 5) -> None:
    for number in range(count):
        await write(client, topic, batch(*(f"{name}-{number}-{at}".encode() for at in range(3)), codec=number % 5))


def expected(log: list[Held], other: list[Held], offset: int) -> int | None:
    """Where the record at an offset, or the next one, lies on the other side."""
    coming = next((one for one in log if one.offset >= offset), None)
    if coming is None:
        return None
    (found,) = [one.offset for one in other if one.value == coming.value]
    return found


async def check(opened: list[ClusterClient], topic: str, flows: list[Flow], names: list[str]) -> int:
    """Each offset between each two clusters; returns how many there were."""
    tables = Offsets()
    by_name = {one.name: one for one in opened}
    logs = {name: await log_of(by_name[name], topic, 0) for name in names}
    count = 0
    for source, target in permutations(names, 2):
        start = (await offsets(by_name[source], topic, [0], EARLIEST))[0]
        end = (await offsets(by_name[source], topic, [0], LATEST))[0]

        async def ask(offset: int, pair: tuple[str, str] = (source, target)) -> dict[str, object]:
            return await tables.translated(by_name.get, [A, B, C], flows, topic, 0, offset, *pair)

        hops = way(flows, source, target)
        held: Translator | None = None
        for offset in range(start, end):
            wanted = expected(logs[source], logs[target], offset)
            exact = any(one.offset == offset for one in logs[source])
            got: tuple[object, object, object] | None = None
            if held is not None and offset % 10 and offset < end - 3:
                try:
                    found = held.translate(hops, offset)
                    got = found.offset, found.exact, found.end
                except NotYet:  # a hole, and the next checkpoint is on its way
                    pass
            if got is None:  # as a user asks; the others by what the clusters said at once
                document = await ask(offset)
                got = document["offset"], document["exact"], document["end"]
                said = await tables.logs(by_name.get, [A, B, C], flows, hops, topic, 0, source)
                held = Translator(said, tuple(flows))
            where = (source, target, offset, end - offset, got, wanted)
            assert got[2] if wanted is None else got == (wanted, exact, False), where
            count += 1
        last = await ask(end)
        assert last["end"] and last["offset"] <= (await offsets(by_name[target], topic, [0], LATEST))[0]  # type: ignore[operator]
        with pytest.raises(Wrong, match="ends at"):
            await ask(end + 1)
        if start:
            with pytest.raises(Wrong, match="begins at"):
                await ask(start - 1)
    return count


KINDS = {"ship": SHIP, "row": ROW, "tree": TREE, "two": TWO, "three": THREE, "standby": STANDBY}


@pytest.mark.parametrize("kind", KINDS)
async def test_every_offset(kind: str, east: Cluster, west: Cluster, triple: Cluster, names: Names) -> None:
    """Transactions, aborts, markers, plain batches, DeleteRecords into a batch; while it grows, and after restarts."""
    flows, topic = KINDS[kind], names.topic(f"exact-{kind}")
    used = sorted({name for one in flows for name in one[:2]})
    clusters = [one for one in (east, west, triple) if one.name in used]
    writers = [one for one in clusters if not any(f.target == one.name and f.mode == "ship" for f in flows)]
    for cluster in clusters:
        await create(cluster, topic, 1, min_insync_replicas="1")
    async with clients(*clusters) as opened:
        by_name = {one.name: one for one in opened}
        for one in writers:  # a record's start in front of everything
            await plain(by_name[one.name], topic, f"{one.name}-early", 2)
        await erase(by_name[A], topic, 1)
        for turn in range(2):
            async with mirrors(opened, topic, flows) as replicator:
                for one in writers:
                    await plain(by_name[one.name], topic, f"{one.name}-plain{turn}")
                    await trio.to_thread.run_sync(transactions, one, topic, f"{one.name}{turn}")
                await arrived(replicator, opened, topic, flows)
                # At once: of what was copied last there are only intents.
                assert await check(opened, topic, flows, used) > 50
                if turn:
                    await erase(by_name[A], topic, 5)
                    if kind in ("ship", "row", "tree"):
                        await until_deleted(by_name, topic, used)
                    else:
                        for name in used:
                            await erase(by_name[name], topic, 5)
            # Nobody mirrors any more; what was written down is enough.
            if not turn or kind in ("ship", "row", "tree"):
                assert await check(opened, topic, flows, used) > 50


async def until_deleted(by_name: dict[str, ClusterClient], topic: str, used: list[str]) -> None:
    count = len(await log_of(by_name[A], topic, 0))
    with trio.fail_after(30):
        for name in used:
            while True:
                if len(await log_of(by_name[name], topic, 0)) == count:
                    break
                await trio.sleep(0.1)


async def test_a_compacted_source_with_append_times(east: Cluster, west: Cluster, names: Names) -> None:
    topic = names.topic("exact-compacted")
    compact = {"cleanup_policy": "compact", "min_cleanable_dirty_ratio": "0.001", "segment_ms": "200"}
    await create(east, topic, 1, message_timestamp_type="LogAppendTime", **compact)
    async with clients(east, west) as opened:
        there = opened[0]
        for number in range(6):
            bodies = [body_of(b"%d" % (n % 3 or 10 * number + n), b"%d-%d" % (number, n)) for n in range(9)]
            records = [Record(n, NOW + n, 0, body) for n, body in enumerate(bodies)]
            await write(there, topic, encode_batch(records, codec=number % 5))
        deadline = trio.current_time() + 60
        while len([one for one in await log_of(there, topic, 0) if one.offset < 54]) == 54:
            assert trio.current_time() < deadline, "the broker does not compact"
            await trio.sleep(0.6)
            value = b"end-%d" % time.monotonic_ns()
            await write(there, topic, batch(value, key=value, time_ms=int(time.time() * 1000)))
        async with mirrors(opened, topic, SHIP) as replicator:
            await arrived(replicator, opened, topic, SHIP)
            # Both sides compact on; what is compared are the records that both have.
            tables = Offsets()
            by_name = {one.name: one for one in opened}
            source, target = await log_of(there, topic, 0), await log_of(opened[1], topic, 0)
            where = {one.value: one.offset for one in target}
            known = [one for one in source if one.value in where]
            assert len(known) > 15
            for one in known:
                for ends, at, wanted in (
                    ((A, B), one.offset, where[one.value]),
                    ((B, A), where[one.value], one.offset),
                ):
                    got = await tables.translated(by_name.get, [A, B], SHIP, topic, 0, at, *ends)
                    assert (got["offset"], got["exact"]) == (wanted, True)
            holes = sorted({*range(54)} - {one.offset for one in source})
            assert holes
            for hole in holes:
                got = await tables.translated(by_name.get, [A, B], SHIP, topic, 0, hole, A, B)
                assert got["exact"] is False


async def test_reasons(east: Cluster, west: Cluster, triple: Cluster, names: Names) -> None:
    topic = names.topic("reasons")
    for cluster in (east, west, triple):
        await create(cluster, topic, 1)
    async with clients(east, west, triple) as opened, AsyncExitStack() as stack:
        by_name = {one.name: one for one in opened}
        tables = Offsets()

        async def ask(offset: int, source: str, target: str, flows: list[Flow], partition: int = 0) -> object:
            found = await tables.translated(by_name.get, [A, B, C], flows, topic, partition, offset, source, target)
            return found["offset"]

        await write(by_name[A], topic, batch(b"1", b"2"))
        with pytest.raises(NotFound, match=r"kfed mirror create reasons.* --from east --to triple"):
            await ask(0, A, C, SHIP)
        with pytest.raises(NotFound, match="no partition 3, only 0 to 0"):
            await ask(0, A, B, SHIP, 3)
        with pytest.raises(Unavailable, match="nothing was mirrored from east to west yet"):
            await ask(0, A, B, SHIP)
        replicator = await stack.enter_async_context(mirrors(opened[:2], topic, SHIP))
        await arrived(replicator, opened, topic, SHIP)
        first = await ask(0, A, B, SHIP)
        replicator.remove(Mirror(topic, A, B))
        await write(by_name[A], topic, batch(b"3"))
        assert await ask(0, A, B, SHIP) == first
        with pytest.raises(Unavailable, match="not mirrored yet: west has east up to offset 2, east ends at 3"):
            await ask(2, A, B, SHIP)
        await erase(by_name[B], topic, int(str(first)) + 1)
        with pytest.raises(NotFound, match="no longer on west"):
            await ask(0, A, B, SHIP)
        assert await ask(1, A, B, SHIP) == int(str(first)) + 1


async def test_what_no_checkpoint_tells_is_found_in_the_log(east: Cluster, west: Cluster, names: Names) -> None:
    """A mirror that dies before it writes down what it copied: there are only intents."""
    with patch("replicator.session.CHECKPOINT_SECONDS", 3600.0):
        for flows in (SHIP, TWO):
            topic = names.topic(f"judged-{flows[0].mode}")
            for cluster in (east, west):
                await create(cluster, topic, 1)
            async with clients(east, west) as opened:
                async with mirrors(opened, topic, flows):
                    for one in opened[: len(flows)]:
                        await plain(one, topic, one.name)
                    for one in opened:
                        await at_least(one, topic, 0, 15 * len(flows))
                by_name = {one.name: one for one in opened}
                tables, logs = Offsets(), {one.name: await log_of(one, topic, 0) for one in opened}
                for source, target in ((A, B), (B, A)):
                    assert len(logs[source]) == 15 * len(flows)
                    for record in logs[source]:
                        ends = source, target
                        got = await tables.translated(by_name.get, [A, B], flows, topic, 0, record.offset, *ends)
                        wanted = expected(logs[source], logs[target], record.offset)
                        assert (got["offset"], got["exact"]) == (wanted, True)
