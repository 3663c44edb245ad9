"""What the demo's clients do: produce to topics of both clusters, read them in one group, and keep account.

`Live` goes on doing both until it is told to end.
"""

from __future__ import annotations

import hashlib
import itertools
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from confluent_kafka import Consumer, KafkaError, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

PATIENCE = 60.0  # seconds until something that does not happen is an error
PARTITIONS = 3

Place = tuple[str, int, int]  # topic, partition, offset


def digest(value: bytes) -> bytes:
    return hashlib.blake2b(value, digest_size=12).digest()


@dataclass
class Account:
    """Every acknowledged record, and every record that was read, by place."""

    acknowledged: dict[Place, bytes] = field(default_factory=dict)
    read: dict[Place, bytes] = field(default_factory=dict)
    times_read: Counter[Place] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)

    def answered(self, error: KafkaError | None, message: Message) -> None:
        """A delivery report."""
        if error is not None:
            self.errors.append(str(error))
            return
        self.acknowledged[_place(message)] = digest(bytes(message.value() or b""))

    def arrived(self, message: Message) -> bool:
        """What a consumer got; whether it is a record."""
        if message.error() is not None:
            self.errors.append(str(message.error()))
            return False
        self.read[_place(message)] = digest(bytes(message.value() or b""))
        self.times_read[_place(message)] += 1
        return True

    @property
    def lost(self) -> int:
        """Acknowledged records that nobody read at the offset that was acknowledged."""
        return sum(1 for place, value in dict(self.acknowledged).items() if self.read.get(place) != value)

    @property
    def twice(self) -> int:
        """Records that the group read more than once."""
        return sum(count - 1 for count in self.times_read.values())


def _place(message: Message) -> Place:
    return str(message.topic()), int(message.partition() or 0), int(message.offset() or 0)


def create(bootstrap: str, topics: list[str]) -> None:
    """Create topics through the endpoint."""
    admin = AdminClient({"bootstrap.servers": bootstrap})
    for future in admin.create_topics([NewTopic(one, PARTITIONS, 1) for one in topics]).values():
        future.result(PATIENCE)


def produce(bootstrap: str, topics: list[str], each: int, account: Account) -> float:
    """`each` records to every topic with an idempotent producer; seconds it took."""
    client = Producer({"bootstrap.servers": bootstrap, "enable.idempotence": True, "linger.ms": 5})
    start = time.monotonic()
    for number in range(each):
        for topic in topics:
            client.produce(topic, f"{topic} {number}", key=str(number), on_delivery=account.answered)
        client.poll(0)
    if client.flush(PATIENCE):
        account.errors.append("records were left unacknowledged")
    return time.monotonic() - start


def consume(bootstrap: str, group: str, topics: list[str], count: int, account: Account) -> float:
    """Read `count` records as a member of `group`, commit, leave; seconds it took."""
    client = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": group,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
        }
    )
    client.subscribe(topics)
    start = time.monotonic()
    left = count
    while left > 0 and time.monotonic() - start < PATIENCE:
        for message in client.consume(min(left, 500), 0.5):
            left -= account.arrived(message)
    client.commit(asynchronous=False)
    client.close()
    if left > 0:
        account.errors.append(f"{left} records did not arrive within {PATIENCE:g} s")
    return time.monotonic() - start


class Live:
    """An idempotent producer and a group's member at work on one topic, as long as the `with` block lasts; afterwards
    what was acknowledged has been read, or PATIENCE seconds are over."""

    def __init__(self, bootstrap: str, topic: str, group: str, per_second: int) -> None:
        self.account = Account()
        self.rebalances = 0
        self._bootstrap, self._topic, self._group, self._per_second = bootstrap, topic, group, per_second
        self._answers: list[float] = []
        self._arrivals: list[float] = []
        self._sent, self._read = threading.Event(), threading.Event()
        self._threads = [threading.Thread(target=each, daemon=True) for each in (self._produce, self._consume)]

    def __enter__(self) -> Self:
        for each in self._threads:
            each.start()
        deadline = time.monotonic() + PATIENCE
        while not self._arrivals and time.monotonic() < deadline:
            time.sleep(0.05)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._sent.set()
        self._threads[0].join(PATIENCE)
        deadline = time.monotonic() + PATIENCE
        while self.account.lost and time.monotonic() < deadline:
            time.sleep(0.1)
        self._read.set()
        self._threads[1].join(PATIENCE)

    def pauses(self, since: float) -> tuple[float, float]:
        """Seconds without an acknowledgement, and without a record, at most, since a moment (monotonic clock)."""
        found = []
        for moments in (self._answers[:], self._arrivals[:]):
            late = [at for at in moments if at >= since]
            found.append(max((b - a for a, b in itertools.pairwise(late)), default=0.0))
        return found[0], found[1]

    def _produce(self) -> None:
        settings = {"enable.idempotence": True, "linger.ms": 5, "log_level": 0}
        client = Producer({"bootstrap.servers": self._bootstrap, **settings})

        def done(error: KafkaError | None, message: Message) -> None:
            self._answers.append(time.monotonic())
            self.account.answered(error, message)

        begin, sent = time.monotonic(), 0
        while not self._sent.is_set():
            while sent < (time.monotonic() - begin) * self._per_second:
                client.produce(self._topic, f"live {sent}", key=str(sent), on_delivery=done)
                sent += 1
            client.poll(0.005)
        if client.flush(PATIENCE):
            self.account.errors.append("records were left unacknowledged")

    def _consume(self) -> None:
        def changed(_client: Consumer, _partitions: list[TopicPartition]) -> None:
            self.rebalances += 1

        settings = {"group.id": self._group, "auto.offset.reset": "earliest", "fetch.wait.max.ms": 100, "log_level": 0}
        client = Consumer({"bootstrap.servers": self._bootstrap, **settings})
        client.subscribe([self._topic], on_assign=changed, on_revoke=changed)
        while not self._read.is_set():
            for message in client.consume(500, 0.02):
                self._arrivals.append(time.monotonic())
                self.account.arrived(message)
        seen, self.rebalances = self.rebalances, 0
        client.close()
        self.rebalances = seen - 1  # the first assignment is none
