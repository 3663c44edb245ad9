"""`python -m tools.bench.verify [MB]`: what `kfed verify` costs, on two clusters of one broker. Prints Markdown.

A topic is mirrored, then audited by this process as the admin API does it. CPU is this process's own, by GB of the
topic: both sides are read, so twice that goes over the wire. The brokers' is not counted, and there is no cheaper way
to read.
"""

from __future__ import annotations

import os
import random
import statistics
import sys
import time
from collections.abc import Iterator

import trio

from kafka_client import ClusterClient
from kafka_client.topics import EARLIEST, LATEST, LogReader, describe, offsets
from kafka_wire.batches import walk
from kafka_wire.records import Record, body_of, encode_batch
from offset_sync.table import Table
from replicator.audit import Comparison, Reach, Rules
from replicator.auditor import READ_BYTES, Auditor
from replicator.findings import Report
from replicator.link import Link, units
from replicator.prepare import prepare
from replicator.wire import PRODUCE
from tools.local_cluster import ClusterSpec, running

ROUNDS = 3
RECORD = 1000  # bytes


def batches(size: int, total: int, codec: int) -> Iterator[bytearray]:
    """Batches of about so many bytes, of records that a codec can make half as large."""
    chance = random.Random(1)
    now = int(time.time() * 1000)
    many = max(size // RECORD * (2 if codec else 1), 1)
    made = []
    for _ in range(16):
        values = [chance.randbytes(RECORD // 2) + bytes(RECORD // 2) for _ in range(many)]
        records = [Record(n, now, 0, body_of(b"key", value)) for n, value in enumerate(values)]
        made.append(encode_batch(records, codec=codec))
    sent = 0
    while sent < total:
        one = bytearray(made[sent // size % len(made)])
        sent += len(one)
        yield one


async def fill(client: ClusterClient, topic: str, size: int, total: int, codec: int) -> None:
    info = (await describe(client, [topic]))[topic]
    for one in batches(size, total, codec):
        data = {"name": topic, "topic_id": info.topic.id, "partition_data": [{"index": 0, "records": one}]}
        message = {"acks": -1, "timeout_ms": 10_000, "topic_data": [data]}
        answer = await client.call(PRODUCE, message, broker=info.partitions[0].leader)
        assert not answer["responses"][0]["partition_responses"][0]["error_code"], answer


async def _appears(client: ClusterClient, topic: str) -> None:
    for _ in range(100):
        found = (await describe(client, [topic])).get(topic)
        if found is not None and found.partitions[0].leader >= 0:
            return
        await trio.sleep(0.1)
    raise TimeoutError(topic)


async def topic_of(source: ClusterClient, target: ClusterClient, topic: str, size: int, total: int, codec: int) -> None:
    """Filled and mirrored, and the mirror's checkpoint written."""
    new = {"name": topic, "num_partitions": 1, "replication_factor": -1}
    await source.call(19, {"topics": [new], "timeout_ms": 10_000})
    await _appears(source, topic)
    await fill(source, topic, size, total, codec)
    await prepare(source, target, topic, ship=True)
    link = Link(source, target)
    end = (await offsets(source, topic, [0], LATEST))[0]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.run)
        for unit in units(topic, [0]):
            await link.assign(unit)
        while True:
            await trio.sleep(1.0)  # a checkpoint comes every second
            if link.status[topic, 0].position >= end:
                auditor = Auditor(source, target, topic, "ship")
                await auditor.prepare()
                report = Report(3_600_000)
                await auditor.step(0, None, report, seconds=1e9)
                assert report.clean
                if report.total("source") == end:
                    break
        nursery.cancel_scope.cancel()


async def verified(source: ClusterClient, target: ClusterClient, topic: str) -> int:
    auditor = Auditor(source, target, topic, "ship")
    await auditor.prepare()
    report = Report(3_600_000)
    step = await auditor.step(0, None, report, seconds=1e9)
    assert report.clean and step.left is None
    return step.bytes // 2


async def read(source: ClusterClient, target: ClusterClient, topic: str) -> int:
    size = 0
    for client in (source, target):
        end = (await offsets(client, topic, [0], LATEST))[0]
        start = (await offsets(client, topic, [0], EARLIEST))[0]
        reader = LogReader(client, topic, 0, start, seconds=1e9, read_bytes=READ_BYTES)
        while reader.offset < end:
            size += len(await reader.next())
    return size // 2


async def compared(source: ClusterClient, target: ClusterClient, topic: str) -> tuple[float, int]:
    """CPU seconds and bytes of the comparison alone, from memory."""
    data = []
    for client in (source, target):
        reader = LogReader(client, topic, 0, 0, seconds=1e9)
        data.append(bytearray(await reader.next()))
    first, second = (list(walk(one)) for one in data)
    many = min(len([one for one in first if one.records]), len([one for one in second if not one.control]))
    table, own = Table(), Table()
    own.open(0, 0)
    pairs = list(zip(first, [one for one in second if not one.control], strict=False))[:many]
    for a, b in pairs:
        table.append(a.base_offset, b.base_offset, a.records)
    ends = pairs[-1][0].next_offset, pairs[-1][1].next_offset
    started = time.process_time()
    report = Report(3_600_000)
    made = Comparison(Reach(0, ends[0], 0, ends[1], ends[1], 0), own, table, Rules(), report)
    while (side := made.wants) is not None:
        made.feed(side, memoryview(data[side]))
        assert not made.unsettled
    spent = time.process_time() - started
    assert report.clean and report.total("identical") == ends[0]
    return spent, pairs[-1][0].end


async def main(total: int) -> None:
    print(f"{os.cpu_count()} cores; {total / 1e6:.0f} MB a topic; median of {ROUNDS}\n")
    print("| batches | verify, CPU s/GB | of it reading | of it comparing | GB/s |\n| --- | --- | --- | --- | --- |")
    with running(
        ClusterSpec("east", full_jit=True), ClusterSpec("west", full_jit=True, first_broker_id=11)
    ) as clusters:
        east, west = (ClusterClient(one.name, one.addresses()) for one in clusters.values())
        try:
            for size, codec in ((16 << 10, 0), (64 << 10, 0), (16 << 10, 4), (64 << 10, 4)):
                topic = f"bench-{size}-{codec}"
                await topic_of(east, west, topic, size, total, codec)
                cpu, reading, comparing, speed = [], [], [], []
                for _ in range(ROUNDS):
                    began, clock = time.process_time(), time.perf_counter()
                    done = await verified(east, west, topic)
                    cpu.append((time.process_time() - began) / done * 1e9)
                    speed.append(done / (time.perf_counter() - clock) / 1e9)
                    began = time.process_time()
                    done = await read(east, west, topic)
                    reading.append((time.process_time() - began) / done * 1e9)
                    spent, some = await compared(east, west, topic)
                    comparing.append(spent / some * 1e9)
                figures = (statistics.median(one) for one in (cpu, reading, comparing, speed))
                name = f"{size >> 10} KB{', zstd' if codec else ''}"
                print("| " + " | ".join([name, *(f"{one:.2f}" for one in figures)]) + " |", flush=True)
        finally:
            east.close()
            west.close()


if __name__ == "__main__":
    trio.run(main, int(float(sys.argv[1]) * 1e6) if len(sys.argv) > 1 else 500_000_000)
