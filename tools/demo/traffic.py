"""What the demo's clients do: produce to topics of both clusters, read them in one group, and keep account."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from dataclasses import dataclass, field

from confluent_kafka import Consumer, KafkaError, Message, Producer
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

    @property
    def lost(self) -> int:
        """Acknowledged records that nobody read at the offset that was acknowledged."""
        return sum(1 for place, value in self.acknowledged.items() if self.read.get(place) != value)

    @property
    def twice(self) -> int:
        """Records that the group read more than once."""
        return sum(count - 1 for count in self.times_read.values())


def create(bootstrap: str, topics: list[str]) -> None:
    """Create topics through the endpoint."""
    admin = AdminClient({"bootstrap.servers": bootstrap})
    for future in admin.create_topics([NewTopic(one, PARTITIONS, 1) for one in topics]).values():
        future.result(PATIENCE)


def produce(bootstrap: str, topics: list[str], each: int, account: Account) -> float:
    """`each` records to every topic with an idempotent producer; seconds it took."""
    client = Producer({"bootstrap.servers": bootstrap, "enable.idempotence": True, "linger.ms": 5})

    def done(error: KafkaError | None, message: Message) -> None:
        if error is not None:
            account.errors.append(str(error))
            return
        place = (str(message.topic()), int(message.partition() or 0), int(message.offset() or 0))
        account.acknowledged[place] = digest(bytes(message.value() or b""))

    start = time.monotonic()
    for number in range(each):
        for topic in topics:
            client.produce(topic, f"{topic} {number}", key=str(number), on_delivery=done)
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
            if message.error() is not None:
                account.errors.append(str(message.error()))
                continue
            place = (str(message.topic()), int(message.partition() or 0), int(message.offset() or 0))
            account.read[place] = digest(bytes(message.value() or b""))
            account.times_read[place] += 1
            left -= 1
    client.commit(asynchronous=False)
    client.close()
    if left > 0:
        account.errors.append(f"{left} records did not arrive within {PATIENCE:g} s")
    return time.monotonic() - start
