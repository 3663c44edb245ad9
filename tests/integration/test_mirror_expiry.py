"""Mirrors and brokers that forget soon: producers, transactional ids, old segments; and messages of old formats."""

from __future__ import annotations

import struct
import time
import zlib
from collections.abc import Iterator

import pytest
import trio

from kafka_client import ClusterClient, Refused
from kafka_client.cluster import TRANSACTION
from kafka_client.topics import EARLIEST, LATEST, offsets
from kafka_wire.batches import SEQUENCES
from kafka_wire.compression import compress
from kafka_wire.errors import ERROR
from replicator.claim import read_registry
from replicator.link import Link
from replicator.prepare import alter
from tests.fixtures.mirrors import Held, create, log_of, stored_table
from tests.fixtures.names import Names
from tests.integration.test_mirror_cases import (
    NOW,
    at_least,
    batch,
    caught_up,
    clients,
    contents,
    mirrored,
    table_of,
    write,
)
from tests.integration.test_mirror_conditions import polled
from tests.integration.test_mirror_network import over_bad_wires
from tests.integration.test_mirror_records import headers_of
from tools.local_cluster import Cluster, ClusterSpec

DESCRIBE_PRODUCERS, DESCRIBE_TRANSACTIONS = 61, 65
FORGETFUL = {
    "producer.id.expiration.ms": "1500",
    "producer.id.expiration.check.interval.ms": "300",
    "transactional.id.expiration.ms": "6000",
    "transaction.remove.expired.transaction.cleanup.interval.ms": "500",
    "log.retention.check.interval.ms": "500",
    "log.initial.task.delay.ms": "500",
    "log.segment.delete.delay.ms": "100",
}


@pytest.fixture(scope="module")
def forgetful() -> Iterator[Cluster]:
    """One broker that forgets what it may within seconds."""
    with Cluster(ClusterSpec("forgetful", first_broker_id=41, overrides=FORGETFUL)) as cluster:
        yield cluster


async def producers_of(client: ClusterClient, topic: str) -> set[int]:
    """Whose state the leader of partition 0 has."""
    message = {"topics": [{"name": topic, "partition_indexes": [0]}]}
    answer = await client.call(DESCRIBE_PRODUCERS, message, broker=next(iter(client.brokers)))
    return {one["producer_id"] for one in answer["topics"][0]["partitions"][0]["active_producers"]}


async def known(client: ClusterClient, transactional_id: str) -> bool:
    """Whether the coordinator has ever heard of it, as far as it remembers."""
    message = {"transactional_ids": [transactional_id]}
    answer = await client.call_coordinator(TRANSACTION, transactional_id, DESCRIBE_TRANSACTIONS, message)
    code = answer["transaction_states"][0]["error_code"]
    if code not in (0, ERROR.TRANSACTIONAL_ID_NOT_FOUND):
        raise Refused(transactional_id, code)
    return not code


def identity_of(link: Link) -> tuple[int, int]:
    (session,) = link.sessions.values()
    assert session.unit is not None
    return session.unit.identity


async def test_forgotten_producers_and_ids(forgetful: Cluster, west: Cluster, names: Names) -> None:
    topic = names.topic("forgotten")
    for cluster in (west, forgetful):
        await create(cluster, topic, 1)
    async with clients(west, forgetful) as (there, here):
        old = NOW - 40 * 86_400_000
        await write(there, topic, *(batch(b"old-%d" % n, time_ms=old) for n in range(20)))
        await write(there, topic, batch(b"1", b"2"))
        async with mirrored(there, here, topic) as link:
            await caught_up(link, topic)
            first = identity_of(link)
            name = link.transactional_id(next(iter(link.sessions)))
            await polled(lambda: producers_of(here, topic), lambda found: not found)
            # The broker knows nothing of us: it takes whatever sequence comes, and they wrap.
            partition = next(iter(link.sessions.values())).lanes[0].partition
            partition._sequence = SEQUENCES - 4
            await write(there, topic, batch(b"3", b"4", b"5"), batch(b"6", b"7", b"8"), batch(b"9"))
            await caught_up(link, topic)
            wrapped = [one.base_sequence for one in await headers_of(here, topic) if not one.control][-3:]
            assert wrapped == [SEQUENCES - 4, SEQUENCES - 1, 2]
            # Its transactional id is kept alive, for longer than it would live by itself.
            until = time.monotonic() + 8
            while time.monotonic() < until:
                assert await known(here, name)
                await trio.sleep(0.25)
            assert link.status[topic, 0].restarts == 0
        async with mirrored(there, here, topic) as link:
            await caught_up(link, topic)
            assert identity_of(link) == (first[0], first[1] + 1)  # so that a fence means something
        await polled(lambda: known(here, name), lambda found: not found)
        await write(there, topic, batch(b"10"))
        async with mirrored(there, here, topic) as link:
            await caught_up(link, topic)
            second = identity_of(link)
            assert second[0] != first[0]
            assert {first[0], second[0]} <= (await read_registry(here)).keys()
            table = await stored_table(here, topic, 0) if link.status[topic, 0].records else table_of(link)
        source, target = await log_of(there, topic, 0), await log_of(here, topic, 0)
        assert contents(source) == contents(target) and len(target) == 30
        assert [table.physical(one.offset) for one in source[:-1]] == [one.offset for one in target[:-1]]


@pytest.mark.timeout(240)
async def test_cut_connections_to_a_broker_that_has_forgotten_us(
    forgetful: Cluster, west: Cluster, names: Names
) -> None:
    """Half of the load's records are older than what the broker remembers of their producer."""
    for there, here in await over_bad_wires(west, forgetful, names.topic("cut"), 8):
        assert contents(there) == contents(here) and len(there) > 50


async def test_retention_is_followed_and_what_it_overtook_is_counted(
    forgetful: Cluster, west: Cluster, names: Names
) -> None:
    topic = names.topic("retained")
    await create(forgetful, topic, 1, segment_bytes="1048576", retention_ms="-1", retention_bytes="-1")
    await create(west, topic, 1)
    async with clients(forgetful, west) as (there, here):
        values = [b"%d" % n * 100_000 for n in range(8)]
        await write(there, topic, *(batch(value) for value in values))
        async with mirrored(there, here, topic) as link:
            await caught_up(link, topic)
            await write(there, topic, *(batch(b"x" * 300_000) for _ in range(4)))  # closes the first segment
            await caught_up(link, topic)
            await alter(there, topic, {"retention.bytes": "1000000"})

            async def start(client: ClusterClient) -> int:
                return (await offsets(client, topic, [0], EARLIEST))[0]

            begins = await polled(lambda: start(there), lambda at: at > 0)
            wanted = table_of(link).physical(begins)
            await polled(lambda: start(here), lambda at: at == wanted)
            await caught_up(link, topic)
        await write(there, topic, *(batch(b"y" * 400_000) for _ in range(8)))
        end = (await offsets(there, topic, [0], LATEST))[0] - 8
        begins = await polled(lambda: start(there), lambda at: at > end)
        async with mirrored(there, here, topic) as link:
            await caught_up(link, topic)
            assert link.status[topic, 0].overtaken == begins - end
        assert (await log_of(here, topic, 0))[-1].value == b"y" * 400_000


# -- messages of magic 0 and 1, as brokers before 0.11 wrote them -------------------------------------------------


def message(offset: int, magic: int, key: bytes | None, value: bytes | None, attributes: int = 0) -> bytes:
    body = bytes((magic, attributes)) + (struct.pack(">q", NOW + offset) if magic else b"")
    for part in (key, value):
        body += struct.pack(">i", -1) if part is None else struct.pack(">i", len(part)) + part
    return struct.pack(">qiI", offset, len(body) + 4, zlib.crc32(body)) + body


def old_segment() -> bytes:
    """Plain and compressed messages of both formats, a tombstone, offsets 0 to 9."""
    inner0 = b"".join(message(n, 0, b"k%d" % n, b"v%d" % n) for n in (3, 4))
    inner1 = b"".join(message(n, 1, b"k%d" % (7 + n), b"v%d" % (7 + n)) for n in (0, 1, 2))
    return b"".join(
        [
            message(0, 0, b"k0", b"v0"),
            message(1, 0, None, b"v1"),
            message(2, 0, b"k2", None),
            message(4, 0, None, bytes(compress(1, inner0)), 1),
            message(5, 1, b"k5", b"v5"),
            message(6, 1, b"k6", None),
            message(9, 1, None, bytes(compress(1, inner1)), 1),
        ]
    )


async def test_messages_of_old_formats_are_converted(forgetful: Cluster, west: Cluster, names: Names) -> None:
    """A broker of today serves such segments as they are, to every version of Fetch; the mirror converts them."""
    topic = names.topic("ancient")
    await create(forgetful, topic, 1)
    await create(west, topic, 1)
    broker = forgetful.brokers[0]
    await trio.to_thread.run_sync(broker.kill)
    directory = broker.data / f"{topic}-0"
    for one in directory.iterdir():
        if one.name != "partition.metadata":
            one.unlink()
    (directory / f"{0:020}.log").write_bytes(old_segment())
    (directory / f"{0:020}.index").write_bytes(b"")
    (directory / f"{0:020}.timeindex").write_bytes(b"")
    await trio.to_thread.run_sync(forgetful.mend)
    async with clients(forgetful, west) as (there, here):
        await at_least(there, topic, 0, 10)
        assert {one.magic for one in await headers_of(there, topic)} == {0, 1}
        await write(there, topic, batch(b"today"))
        async with mirrored(there, here, topic) as link:
            await caught_up(link, topic)
            table = table_of(link)
            got: list[Held] = await log_of(here, topic, 0)
            expected: list[tuple[bytes | None, bytes | None]] = [(b"k%d" % n, b"v%d" % n) for n in range(10)]
            expected[1], expected[2], expected[6] = (None, b"v1"), (b"k2", None), (b"k6", None)
            assert [(one.key, one.value) for one in got] == [*expected, (b"k", b"today")]
            # Magic 0 has no timestamps.
            assert [one.timestamp for one in got[:10]] == [-1] * 5 + [NOW + n for n in (5, 6, 0, 1, 2)]
            assert [table.physical(n) for n in range(11)] == [one.offset for one in got]
            assert {one.magic for one in await headers_of(here, topic)} == {2}
