"""Filling a source, watching a target's end, and records at a steady rate timed on both sides."""

from __future__ import annotations

import os
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from kafka_wire.codec import decode
from kafka_wire.frames import request_frame, response_body
from tools.bench.load import LoadFailed
from tools.bench.raw import exchange

RECORD = 1024  # bytes of a value
LIST_OFFSETS, LIST_VERSION = 2, 7
DESCRIBE_LOG_DIRS, LOG_DIRS_VERSION = 35, 4
_NUMBER = struct.Struct(">q")
_VALUES = 4096


@dataclass(frozen=True)
class Shape:
    """A source topic. `batch_kb` is what a batch takes on the wire, about; lz4 halves these values."""

    topic: str
    codec: str
    batch_kb: int
    partitions: int

    @property
    def records(self) -> int:
        """Of a batch."""
        return max(1, self.batch_kb * 1024 * (2 if self.codec != "none" else 1) // (RECORD + 12))


def create(bootstrap: str, *shapes: Shape, **configs: str) -> None:
    admin = AdminClient({"bootstrap.servers": bootstrap})
    topics = [NewTopic(one.topic, one.partitions, 1, config=dict(configs)) for one in shapes]
    for future in admin.create_topics(topics).values():
        future.result()
    time.sleep(0.5)  # leaders settle; not measured


def values() -> list[bytes]:
    """Half of each is noise: any codec halves them."""
    return [os.urandom(RECORD // 2) + b"." * (RECORD // 2) for _ in range(_VALUES)]


class Filler:
    """An idempotent producer whose batches have the shape's size."""

    def __init__(self, bootstrap: str, shape: Shape) -> None:
        self._shape = shape
        self._values = values()
        self._producer = Producer(
            {
                "bootstrap.servers": bootstrap,
                "enable.idempotence": True,
                "compression.type": shape.codec,
                "batch.num.messages": shape.records,
                "batch.size": 1 << 20,
                "linger.ms": 100 if shape.records > 1 else 0,
                "queue.buffering.max.messages": 2_000_000,
                "queue.buffering.max.kbytes": 1 << 20,
                "delivery.report.only.error": True,
            }
        )

    def fill(self, megabytes: float, partition: int | None = None) -> int:
        """Returns how many records were written; whole batches, to all partitions alike, or to one."""
        shape, producer, some = self._shape, self._producer, self._values
        each = shape.records
        places = range(shape.partitions) if partition is None else (partition,)
        rounds = max(1, round(megabytes * 1e6 / RECORD / each / len(places)))
        number = 0
        for _ in range(rounds):
            for place in places:
                for _ in range(each):
                    number += 1
                    while True:
                        try:
                            producer.produce(shape.topic, some[number % _VALUES], partition=place)
                            break
                        except BufferError:
                            producer.poll(0.01)
        if producer.flush(120):
            raise LoadFailed(f"{shape.topic}: records left unacknowledged")
        return number


class Log:
    """A topic's end and size as the one broker of a cluster says."""

    def __init__(self, ask: Callable[[bytes], bytes], topic: str, partitions: int) -> None:
        self._ask = ask
        self._topic = topic
        self._partitions = partitions

    def _call(self, key: int, version: int, message: dict[str, object]) -> dict[str, object]:
        frame = memoryview(bytearray(self._ask(request_frame(key, version, 1, "bench", message))))
        return decode("response", key, version, frame, response_body(key, version, frame))

    def ends(self) -> list[int]:
        """Of each partition; -1 where it is not there."""
        asked = [{"partition_index": n, "timestamp": -1} for n in range(self._partitions)]
        answer = self._call(
            LIST_OFFSETS, LIST_VERSION, {"replica_id": -1, "topics": [{"name": self._topic, "partitions": asked}]}
        )
        found = {one["partition_index"]: one for one in answer["topics"][0]["partitions"]}  # type: ignore[index]
        return [found[n]["offset"] if not found[n]["error_code"] else -1 for n in range(self._partitions)]

    def bytes(self) -> int:
        """What the log takes on disk: batches as they came."""
        asked = [{"topic": self._topic, "partitions": list(range(self._partitions))}]
        answer = self._call(DESCRIBE_LOG_DIRS, LOG_DIRS_VERSION, {"topics": asked})
        return sum(
            one["partition_size"]
            for result in answer["results"]  # type: ignore[attr-defined]
            for topic in result["topics"]
            for one in topic["partitions"]
        )


@contextmanager
def log_of(bootstrap: str, topic: str, partitions: int) -> Iterator[Log]:
    with exchange(bootstrap) as ask:
        yield Log(ask, topic, partitions)


def until(what: Callable[[], bool], words: str, seconds: float = 120.0, pause: float = 0.005) -> None:
    """Raises LoadFailed where it does not come about."""
    deadline = time.monotonic() + seconds
    while not what():
        if time.monotonic() > deadline:
            raise LoadFailed(f"{words}: not within {seconds:g} s")
        time.sleep(pause)


def reader(bootstrap: str, topic: str, partitions: Sequence[int]) -> Consumer:
    """At the end of each of the partitions, and answering at once."""
    client = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": "bench",
            "enable.auto.commit": False,
            "fetch.min.bytes": 1,
            "fetch.queue.backoff.ms": 1,
        }
    )
    places = [TopicPartition(topic, n) for n in partitions]
    for place in places:
        place.offset = client.get_watermark_offsets(place, timeout=10)[1]
    client.assign(places)
    return client


def paced(
    source: str,
    topic: str,
    target: str,
    copy: str,
    partitions: Sequence[int],
    rate: float,
    going: Callable[[float], bool],
) -> tuple[list[float], list[float]]:
    """Records at `rate` a second, in turn to `partitions`, while `going(seconds since the first)`.

    Returns for each record, in seconds: when a consumer at the source had it, and how much later one at the target.
    """
    producer = Producer({"bootstrap.servers": source, "linger.ms": 0, "acks": 1, "socket.nagle.disable": True})
    here, there = {}, {}  # type: dict[int, float], dict[int, float]
    sent: list[float] = []
    stop = threading.Event()

    def take(client: Consumer, into: dict[int, float]) -> None:
        while not stop.is_set():
            message = client.poll(0.1)
            if message is None or message.error():
                continue
            now = time.perf_counter()
            value = message.value()
            if value is not None and len(value) == RECORD:
                into[_NUMBER.unpack_from(value)[0]] = now

    clients = [(reader(source, topic, partitions), here), (reader(target, copy, partitions), there)]
    threads = [threading.Thread(target=take, args=each, daemon=True) for each in clients]
    for one in threads:
        one.start()
    for number in partitions:  # connections, leaders, and the mirror's first batch of each
        producer.produce(topic, _NUMBER.pack(-1) + bytes(RECORD - 8), partition=number)
    producer.flush(30)
    until(lambda: -1 in here and -1 in there, f"{copy}: nothing arrives")
    time.sleep(0.3)
    first = time.perf_counter() + 0.05
    while True:
        number = len(sent)
        due = first + number / rate
        if not going(due - first):
            break
        while (wait := due - time.perf_counter()) > 0:
            producer.poll(wait)
        value = _NUMBER.pack(number) + bytes(RECORD - 8)
        sent.append(time.perf_counter())
        producer.produce(topic, value, partition=partitions[number % len(partitions)])
        producer.poll(0)
    producer.flush(30)
    until(lambda: len(here) > len(sent) and len(there) > len(sent), f"{copy}: records are missing", 60)
    stop.set()
    for one in threads:
        one.join()
    for client, _ in clients:
        client.close()
    return (
        [here[n] - at for n, at in enumerate(sent)],
        [there[n] - here[n] for n in range(len(sent))],
    )


def value_at(bootstrap: str, topic: str, partition: int, offset: int) -> int:
    """The number in the record at this offset, or in the next one."""
    client = Consumer({"bootstrap.servers": bootstrap, "group.id": "bench", "enable.auto.commit": False})
    try:
        client.assign([TopicPartition(topic, partition, offset)])
        message = client.poll(20)
        if message is None or message.error():
            raise KafkaException(message.error() if message is not None else "nothing")
        value = message.value()
        assert value is not None
        return int(_NUMBER.unpack_from(value)[0])
    finally:
        client.close()


def number_records(bootstrap: str, topic: str, partition: int, first: int, count: int) -> None:
    """Records of 64 bytes that hold their number, from `first` on."""
    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 5, "queue.buffering.max.messages": 1_000_000})
    for number in range(first, first + count):
        producer.produce(topic, _NUMBER.pack(number) + bytes(56), partition=partition)
    if producer.flush(60):
        raise LoadFailed(f"{topic}: records left unacknowledged")


def commit(bootstrap: str, group: str, topic: str, offsets: Mapping[int, int]) -> None:
    client = Consumer({"bootstrap.servers": bootstrap, "group.id": group, "enable.auto.commit": False})
    client.commit(offsets=[TopicPartition(topic, *one) for one in offsets.items()], asynchronous=False)
    client.close()


def checkpoints(bootstrap: str, alias: str, group: str, copy: str, partitions: int) -> dict[int, int]:
    """What MirrorMaker wrote down for a group: the target's offset for each partition of the copy."""
    found: dict[int, int] = {}
    client = Consumer({"bootstrap.servers": bootstrap, "group.id": "bench", "enable.auto.commit": False})
    client.assign([TopicPartition(f"{alias}.checkpoints.internal", 0, 0)])

    def text(data: bytes, at: int) -> tuple[str, int]:
        (size,) = struct.unpack_from(">h", data, at)
        return data[at + 2 : at + 2 + size].decode(), at + 2 + size

    def all_there() -> bool:
        message = client.poll(0.5)
        if message is not None and not message.error():
            key, value = message.key(), message.value()
            if isinstance(key, bytes) and value is not None:
                name, at = text(key, 0)
                topic, at = text(key, at)
                if (name, topic) == (group, copy):
                    # A version, the source's offset, the target's.
                    found[struct.unpack_from(">i", key, at)[0]] = struct.unpack_from(">hqq", value)[2]
        return len(found) == partitions

    try:
        until(all_there, f"MirrorMaker's checkpoints of {copy}: {found}", 90)
    finally:
        client.close()
    return found
