"""The loads: producing, consuming, paced latency, idle connections, with librdkafka against one address."""

from __future__ import annotations

import os
import socket
import struct
import time
from pathlib import Path

from confluent_kafka import Consumer, KafkaError, Message, Producer, TopicPartition

TICK = os.sysconf("SC_CLK_TCK")
PARTITIONS = 4
BIG, SMALL = 1024, 100  # bytes a record
PATIENCE = 120.0  # seconds until a load that does not end is an error


class LoadFailed(Exception):
    """Records were not acknowledged, or not read, in time."""


def cpu(pid: int) -> float:
    """User and system time of a process with all its threads, in seconds; NaN for pid 0."""
    if not pid:
        return float("nan")
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def resident(pid: int) -> float:
    """Resident memory in KiB; NaN for pid 0."""
    if not pid:
        return float("nan")
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return float(next(line for line in lines if line.startswith("VmRSS")).split()[1])


def producer(bootstrap: str, linger: int) -> Producer:
    return Producer(
        {
            "bootstrap.servers": bootstrap,
            "acks": 1,
            "linger.ms": linger,
            "compression.type": "none",
            "socket.nagle.disable": True,
            "queue.buffering.max.messages": 200000,
            "queue.buffering.max.kbytes": 262144,
            "delivery.report.only.error": linger > 0,
        }
    )


def produce(bootstrap: str, topic: str, size: int, count: int) -> float:
    """Seconds until `count` records are acknowledged, counted from when the connections are up."""
    client, value = producer(bootstrap, 5), os.urandom(size)
    for partition in range(PARTITIONS):
        client.produce(topic, value, partition=partition)
    if client.flush(30):
        raise LoadFailed(f"{bootstrap}: cannot produce")
    start = time.perf_counter()
    for _ in range(count):
        while True:
            try:
                client.produce(topic, value)
                break
            except BufferError:
                client.poll(0.01)
    if client.flush(PATIENCE):
        raise LoadFailed(f"{bootstrap}: records left unacknowledged")
    return time.perf_counter() - start


def consume(bootstrap: str, topic: str, count: int) -> float:
    """Seconds to read what `produce` left there, counted from the first record."""
    client = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": "bench",
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            # Without these two a fast path fills librdkafka's queue and then sits out its backoff of 1 s.
            "queued.min.messages": 10000000,
            "fetch.queue.backoff.ms": 1,
        }
    )
    client.assign([TopicPartition(topic, partition, 0) for partition in range(PARTITIONS)])
    deadline, left = time.monotonic() + PATIENCE, count + PARTITIONS
    while not client.consume(1, 1):
        if time.monotonic() > deadline:
            raise LoadFailed(f"{bootstrap}: cannot consume")
    start = time.perf_counter()
    left -= 1
    while left > 0:
        left -= sum(1 for one in client.consume(min(left, 10000), 0.5) if not one.error())
        if time.monotonic() > deadline:
            raise LoadFailed(f"{bootstrap}: {left} records not consumed")
    took = time.perf_counter() - start
    client.close()
    return took


def latency(bootstrap: str, topic: str, rate: float, seconds: float) -> list[float]:
    """Sorted seconds until acknowledgement, each from the moment the record was due."""
    client, value, lags, count = producer(bootstrap, 0), os.urandom(BIG), [], int(rate * seconds)
    for partition in range(PARTITIONS):
        client.produce(topic, value, partition=partition)
    client.flush(30)
    first = time.perf_counter() + 0.05
    for number in range(count):
        due = first + number / rate
        while (wait := due - time.perf_counter()) > 0:
            client.poll(wait)

        def done(error: KafkaError | None, _message: Message, due: float = due) -> None:
            lags.append(time.perf_counter() - due if error is None else float("inf"))

        client.produce(topic, value, on_delivery=done)
    client.flush(30)
    return sorted(lags)


def _ask(sock: socket.socket, key: int, version: int, body: bytes = b"") -> None:
    head = struct.pack(">hhih", key, version, 7, 5) + b"bench" + body
    sock.sendall(struct.pack(">i", len(head)) + head)
    (size,) = struct.unpack(">i", sock.recv(4, socket.MSG_WAITALL))
    sock.recv(size, socket.MSG_WAITALL)


def idle_connections(bootstrap: str, pid: int, count: int, batches: int = 3) -> list[float]:
    """KiB of resident memory a connection, for each batch: connections that made two requests and stay open."""
    host, _, port = bootstrap.rpartition(":")
    held: list[socket.socket] = []
    growth: list[float] = []
    for _ in range(batches):
        before = resident(pid)
        for _ in range(count):
            sock = socket.create_connection((host, int(port)), 10)
            _ask(sock, 18, 0)
            _ask(sock, 3, 1, struct.pack(">i", 0))
            held.append(sock)
        time.sleep(3)
        for sock in held[-count:]:
            _ask(sock, 3, 1, struct.pack(">i", 0))
        time.sleep(2)
        growth.append((resident(pid) - before) / count)
    for sock in held:
        sock.close()
    time.sleep(2)
    return growth
