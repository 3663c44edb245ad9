"""A paced client in a process of its own, and the gaps in what it was told: `python -m tools.bench.move_load KIND ...`.

Prints `ready` once it works, and when its standard input ends one JSON document: gaps as [Unix seconds of the end,
seconds], and for producers records whose answer took long, in the same way. Acknowledgements and arrived records are
told apart by nothing but when they come; whether they are right is for the tests to say.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import threading
import time
from dataclasses import dataclass, field

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from confluent_kafka import Consumer, KafkaError, Message, Producer

LEAST = 0.01  # seconds: shorter ones are not kept
TURN = 0.002  # seconds between two looks at what is due
KINDS = ("librdkafka-produce", "librdkafka-consume", "aiokafka-produce", "aiokafka-consume")


@dataclass
class Seen:
    """What is told at the end."""

    gaps: list[tuple[float, float]] = field(default_factory=list)
    slow: list[tuple[float, float]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    count: int = 0
    _last: float = 0.0

    def arrived(self, went: float = 0.0) -> None:
        """`went`: when it was sent."""
        now = time.time()
        if self._last and now - self._last >= LEAST:
            self.gaps.append((now, now - self._last))
        if went and now - went >= LEAST:
            self.slow.append((now, now - went))
        self._last = now
        self.count += 1
        if self.count == 1:
            print("ready", flush=True)


def librdkafka_produce(seen: Seen, given: argparse.Namespace, stop: threading.Event) -> None:
    settings = {"enable.idempotence": True, "linger.ms": 5, "socket.nagle.disable": True, "log_level": 0}
    producer = Producer({"bootstrap.servers": given.bootstrap, **settings})
    value, begin, sent = os.urandom(given.size), time.time(), 0
    while not stop.is_set():
        due = int((time.time() - begin) * given.rate)
        while sent < due:
            went = time.time()

            def delivered(error: KafkaError | None, _message: Message, went: float = went) -> None:
                if error is None:
                    seen.arrived(went)
                else:
                    seen.errors.append(str(error))

            producer.produce(given.topic, value, b"%d" % sent, on_delivery=delivered)
            sent += 1
        producer.poll(TURN)
    seen.errors += [f"{left} without an answer" for left in [producer.flush(30)] if left]


def librdkafka_consume(seen: Seen, given: argparse.Namespace, stop: threading.Event) -> None:
    settings = {"group.id": given.group, "auto.offset.reset": "latest", "fetch.wait.max.ms": 100, "log_level": 0}
    consumer = Consumer({"bootstrap.servers": given.bootstrap, **settings})
    consumer.subscribe([given.topic])
    while not stop.is_set():
        messages = consumer.consume(1000, 0.01)
        seen.errors += [str(one.error()) for one in messages if one.error()]
        if messages:
            seen.arrived()
    consumer.close()


async def aiokafka_produce(seen: Seen, given: argparse.Namespace, stop: threading.Event) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=given.bootstrap, enable_idempotence=True)
    await producer.start()
    value, begin, sent = os.urandom(given.size), time.time(), 0
    waiting: set[asyncio.Task[None]] = set()

    async def one(key: bytes) -> None:
        went = time.time()
        try:
            await (await producer.send(given.topic, value, key=key))
            seen.arrived(went)
        except Exception as error:
            seen.errors.append(repr(error))

    while not stop.is_set():
        while sent < int((time.time() - begin) * given.rate):
            task = asyncio.ensure_future(one(b"%d" % sent))
            waiting.add(task)
            task.add_done_callback(waiting.discard)
            sent += 1
        await asyncio.sleep(TURN)
    if waiting:
        await asyncio.wait(waiting, timeout=30)
    await producer.stop()


async def aiokafka_consume(seen: Seen, given: argparse.Namespace, stop: threading.Event) -> None:
    consumer = AIOKafkaConsumer(
        given.topic, bootstrap_servers=given.bootstrap, group_id=given.group, fetch_max_wait_ms=100
    )
    await consumer.start()
    while not stop.is_set():
        if await consumer.getmany(timeout_ms=20):
            seen.arrived()
    await consumer.stop()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.bench.move_load", description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--bootstrap", required=True)
    parser.add_argument("--topic", required=True)
    parser.add_argument("--group", default="")
    parser.add_argument("--rate", type=float, default=200.0)
    parser.add_argument("--size", type=int, default=1024)
    given = parser.parse_args()
    stop, seen = threading.Event(), Seen()

    def until_the_end() -> None:
        sys.stdin.read()
        stop.set()

    threading.Thread(target=until_the_end, daemon=True).start()
    if given.kind == "librdkafka-produce":
        librdkafka_produce(seen, given, stop)
    elif given.kind == "librdkafka-consume":
        librdkafka_consume(seen, given, stop)
    elif given.kind == "aiokafka-produce":
        asyncio.run(aiokafka_produce(seen, given, stop))
    else:
        asyncio.run(aiokafka_consume(seen, given, stop))
    print(json.dumps({"gaps": seen.gaps, "slow": seen.slow, "errors": seen.errors[:20], "count": seen.count}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
