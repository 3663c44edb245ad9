"""The audit of mirrors on real brokers: clean while traffic flows, and every difference named at its offset."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import trio

from kafka_client import ClusterClient
from kafka_client.topics import LATEST, LogReader, delete_records, describe, offsets
from kafka_wire import batches
from kafka_wire.batches import walk
from kafka_wire.records import Record, body_of, encode_batch
from replicator import copying, core, cut
from replicator.auditor import Gap, Problem
from replicator.link import Link, units
from replicator.prepare import alter
from replicator.worker import Mirror
from tests.fixtures.audits import Audited, audited, audited_when
from tests.fixtures.mirrors import Load, create, log_of
from tests.fixtures.names import Names
from tests.integration.test_mirror_cases import NOW, batch, caught_up, clients, mirrored, write
from tests.integration.test_replicator import replicating, setting
from tools.local_cluster import Cluster


def plain(found: Audited) -> list[tuple[object, ...]]:
    """Findings without their times."""
    return [(one.kind, one.records, one.source, one.target, one.what) for one in found.findings]


@contextmanager
def tampering(module: object, name: str, by: object) -> Iterator[None]:
    """A mirror with a fault."""
    before = getattr(module, name)
    setattr(module, name, by)
    try:
        yield
    finally:
        setattr(module, name, before)


async def test_clean_while_traffic_flows(east: Cluster, west: Cluster, names: Names) -> None:
    """Every codec, aborted transactions, tombstones: in small steps, while the mirror copies; then all of it."""
    topic = names.topic("flowing")
    await create(east, topic, 2)
    async with replicating(east, west) as (replicator, (there, here)):
        load = Load(east, topic, 2)
        compared = []
        with load.running():
            await replicator.add(Mirror(topic, east.name, west.name))
            for seconds in (0.0, 5.0, 0.0):
                found = await audited_when(there, here, topic, 400, seconds=seconds, bucket_ms=1000, read_bytes=20_000)
                assert found.clean and not found.total("extra") and found.total("identical") == found.total("target")
                compared.append(found)
        assert compared[0].steps > len(compared[0].reports)
        held = [len(await log_of(there, topic, number)) for number in range(2)]
        found = await audited_when(there, here, topic, sum(held))
        assert found.clean and [one.total("identical") for one in found.reports.values()] == held
        late = await audited(there, here, topic, since=int(time.time() * 1000) + 60_000)
        assert late.clean and late.total("identical") == 0
        assert {one.why for one in late.gaps[0]} == {"older than the time asked for"}


async def test_what_was_tampered_with_is_named(east: Cluster, west: Cluster, names: Names) -> None:
    """One mirror with every fault, at known offsets."""
    topic = names.topic("tampered")
    for cluster in (east, west):
        await create(cluster, topic, 1)

    def stamp(data: memoryview, *identity: int) -> None:
        for one in re.finditer(b"honest-7", bytes(data)):
            data[one.start()] ^= 1
        batches.seal(data)  # a copy that looks right
        batches.stamp(data, *identity)

    def forgetful(*arguments: object) -> cut.Cut:
        made = cut.cut(*arguments)  # type: ignore[arg-type]
        made.pieces = [one for one in made.pieces if b"honest-4" not in bytes(one.data)]
        return made

    async with clients(east, west) as (there, here):
        with tampering(core, "stamp", stamp), tampering(copying, "cut", forgetful):
            async with mirrored(there, here, topic) as link:
                for number in range(12):  # source offsets 3 * number and on
                    await write(there, topic, batch(*(b"%d-honest-%d" % (n, number) for n in range(3))))
                await caught_up(link, topic)
                (imitated,) = await write(here, topic, batch(b"0-honest-2", b"1-honest-2", b"2-honest-2"))
                await write(there, topic, batch(b"last", codec=4))
                await caught_up(link, topic)
                (stranger,) = await write(here, topic, batch(b"stranger"))  # behind all that the mirror wrote
                found = await audited_when(there, here, topic, 37)
        held = {one.value: one.offset for one in await log_of(here, topic, 0)}
        copied = {one.value: one.offset for one in await log_of(here, topic, 0) if one.offset < imitated}
        changed = copied[b"0-ionest-7"]
        assert sorted(plain(found), key=str) == sorted(
            [
                ("missing", 3, (12, 14), None, ()),
                ("changed", 3, (21, 23), (changed, changed + 2), ("value",)),
                ("extra", 3, None, (imitated, imitated + 2), ()),
                ("extra", 1, None, (stranger, stranger), ()),
            ],
            key=str,
        )
        assert stranger == held[b"stranger"]
        assert found.total("identical") == 37 - 6 and found.total("target") == 34 + 4
        # What one side deleted is not compared, and said so.
        leader = (await describe(here, [topic]))[topic].partitions[0].leader
        await delete_records(here, topic, leader, {0: copied[b"1-honest-2"]})
        after = await audited(there, here, topic)
        assert plain(after) == plain(found) and after.total("identical") == found.total("identical") - 7
        assert after.gaps[0] == [
            Gap("source", 0, 7, "the target's log begins behind them"),
        ]


async def test_compaction_explains_what_is_missing(east: Cluster, west: Cluster, names: Names) -> None:
    """A source with holes, then a target that compacts by itself; and the same holes where nothing compacts."""
    topic = names.topic("compacted")
    compact = {"cleanup_policy": "compact", "min_cleanable_dirty_ratio": "0.001", "segment_ms": "200"}
    for cluster in (east, west):
        await create(cluster, topic, 1, **compact)

    async def compacted(client: ClusterClient, below: int, count: int) -> None:
        deadline = trio.current_time() + 60
        while len([one for one in await log_of(client, topic, 0) if one.offset < below]) >= count:
            assert trio.current_time() < deadline, "the broker does not compact"
            await trio.sleep(0.3)
            # Rolls the source's segment, and through the mirror the target's.
            await write(there, topic, batch(b"", key=b"end", time_ms=int(time.time() * 1000)))

    async with clients(east, west) as (there, here):
        for codec in range(3):
            records = [Record(n, NOW + n, 0, body_of(b"%d" % (n % 3 or 10 * codec + n), b"v" * 50)) for n in range(9)]
            await write(there, topic, encode_batch(records, codec=codec))
        await compacted(there, 27, 27)
        async with mirrored(there, here, topic) as link:
            await caught_up(link, topic)
            known = len([one for one in await log_of(there, topic, 0) if one.offset < 27])
            assert (await audited_when(there, here, topic, known)).clean
            more = [Record(n, NOW + n, 0, body_of(b"%d" % (n % 2), b"w" * 50)) for n in range(10)]
            await write(there, topic, encode_batch(more))
            (end,) = (await offsets(there, topic, [0], LATEST)).values()
            await caught_up(link, topic)
            table = next(iter(link.sessions.values())).lanes[0].partition.table
            copied = table.physical(end) or 0
            await compacted(here, copied, len([one for one in await log_of(here, topic, 0) if one.offset < copied]))
            await caught_up(link, topic)
            found = await audited_when(there, here, topic, known)
            assert found.clean and found.total("identical") >= known / 2
        # The same holes in a topic that does not compact are losses, each at its offset.
        for client in (there, here):
            await alter(client, topic, {"cleanup.policy": "delete", "retention.ms": "-1"})
            await setting(client, topic, "cleanup.policy", "delete")
        deadline = trio.current_time() + 20
        while True:
            before = await log_of(there, topic, 0), await log_of(here, topic, 0)
            found = await audited(there, here, topic)
            if before == (await log_of(there, topic, 0), await log_of(here, topic, 0)):
                break
            assert trio.current_time() < deadline, "a cleaner goes on and on"
        unmirrored = [gap.first for gap in found.gaps[0] if gap.why.startswith("not mirrored")]
        source = {one.offset for one in before[0] if one.offset < min(unmirrored, default=end + 1000)}
        target = {one.offset for one in before[1]}
        expected = {(at, table.physical(at)) for at in source if table.holds(at) and table.physical(at) not in target}
        named = {
            (one.source[0] + n, one.target[0] + n)
            for one in found.findings
            if one.kind == "missing" and one.source and one.target
            for n in range(one.records)
        }
        assert named == expected


async def test_append_time_and_transactions(east: Cluster, west: Cluster, names: Names) -> None:
    """Batches that the mirror encodes again, next to batches that it leaves out."""
    topic = names.topic("append")
    await create(east, topic, 1, message_timestamp_type="LogAppendTime")
    await create(west, topic, 1)
    async with clients(east, west) as (there, here):
        load = Load(east, topic, 1)
        async with mirrored(there, here, topic) as link:
            with load.running():
                assert (await audited_when(there, here, topic, 50)).clean
            await caught_up(link, topic)
            held = len(await log_of(there, topic, 0))
            found = await audited_when(there, here, topic, held)
            assert found.clean and found.total("identical") == held
            (at,) = await write(here, topic, batch(b"stranger", b"stranger"))
            found = await audited(there, here, topic)
            assert plain(found) == [("extra", 2, None, (at, at + 1), ())]


async def test_an_exchange_compares_what_came_from_its_source(east: Cluster, west: Cluster, names: Names) -> None:
    topic = names.topic("both")
    for cluster in (east, west):
        await create(cluster, topic, 1)
    async with clients(east, west) as (there, here):
        out, back = Link(there, here), Link(here, there)
        async with trio.open_nursery() as nursery:
            for link in (out, back):
                nursery.start_soon(link.run)
                for unit in units(topic, range(1), "exchange"):
                    await link.assign(unit)
            loads = Load(east, topic, 1), Load(west, topic, 1)
            with loads[0].running(), loads[1].running():
                for pair in ((there, here), (here, there)):
                    some = await audited_when(*pair, topic, 50, "exchange", seconds=0.0)
                    assert some.clean and some.total("extra") == some.total("missing") == 0
            for link in (out, back):
                await caught_up(link, topic)
            both = len(await log_of(there, topic, 0))
            assert both == len(await log_of(here, topic, 0))
            await write(here, topic, batch(b"of the target's own"))
            deadline = trio.current_time() + 20
            while True:  # what each direction brought is all there is
                ways = [await audited(*pair, topic, "exchange") for pair in ((there, here), (here, there))]
                assert all(way.clean for way in ways)
                if sum(way.total("identical") for way in ways) == both + 1:
                    break
                assert trio.current_time() < deadline
                await trio.sleep(0.2)
            mine = {one.unit.identity.producer_id for one in out.sessions.values() if one.unit is not None}
            nursery.cancel_scope.cancel()
        # A record that the mirror's own identity wrote, and no intent announced.
        position = (await offsets(here, topic, [0], LATEST))[0]
        reader = LogReader(here, topic, 0, 0, seconds=20)
        last = None
        while reader.offset < position:
            for one in walk(await reader.next()):
                if one.producer_id in mine and not one.control:
                    last = one
        assert last is not None
        sequence = last.last_sequence + 1
        twice = batch(
            b"twice", producer_id=last.producer_id, producer_epoch=last.producer_epoch, base_sequence=sequence
        )
        (at,) = await write(here, topic, twice)
        async with mirrored(there, here, topic, mode="exchange") as again:
            await write(there, topic, batch(b"behind it"))
            await caught_up(again, topic)
            deadline = trio.current_time() + 20
            while (found := await audited(there, here, topic, "exchange")).clean:
                assert trio.current_time() < deadline
                await trio.sleep(0.2)
        assert plain(found) == [("extra", 1, None, (at, at), ())]


async def test_what_cannot_be_compared_is_said(east: Cluster, west: Cluster, names: Names) -> None:
    topic = names.topic("nothing")
    await create(east, topic, 1)
    async with clients(east, west) as (there, here):
        with pytest.raises(Problem, match=f"west has no topic '{topic}'"):
            await audited(there, here, topic)
        await create(west, topic, 1)
        with pytest.raises(Problem, match="no mirror"):
            await audited(there, here, topic)
