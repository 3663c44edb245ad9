"""Steady producers of three libraries, of every kind, that write down what they were told.

Each runs until `told.stopping`, then waits for what is under way. Keys in turn, so that every partition gets records.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import trio
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError as AioKafkaError
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from tests.history.checker import Acknowledged
from tests.history.told import Told
from tools.java_client import JavaError, Jvm
from tools.java_client.clients import Sent
from tools.local_cluster.cluster import Setting

PATIENCE = 60.0  # seconds for what is under way at the end
KEYS = 50
PER_TRANSACTION, ABORT_EVERY = 10, 7
RETRY_PAUSE = 0.05


@dataclass(frozen=True)
class Producing:
    """A producer: its name in the history, and how it is configured, in the library's own words."""

    name: str
    topic: str
    settings: Mapping[str, Setting] = field(default_factory=dict)
    per_second: int = 50
    transactional_id: str = ""

    @property
    def silent(self) -> bool:
        """Nobody tells it what arrived."""
        return str(self.settings.get("acks", "all")) == "0"


def paced(told: Told, per_second: int) -> Callable[[], bool]:
    """Whether to go on; called once a record, it keeps the pace."""
    begin, sent = time.monotonic(), [0]

    def go_on() -> bool:
        sent[0] += 1
        ahead = begin + sent[0] / per_second - time.monotonic()
        return not (told.stopping.wait(ahead) if ahead > 0 else told.stopping.is_set())

    return go_on


def judged(error: KafkaError) -> str:
    return "fatal" if error.fatal() else "retriable" if error.retriable() else "error"


def librdkafka(told: Told, config: Mapping[str, Setting], kind: Producing) -> None:
    """Blocks; a thread of its own."""
    if kind.transactional_id:
        _librdkafka_transactions(told, config, kind)
        return
    producer = Producer({**_base(told, config, kind), **kind.settings})
    went: dict[int, float] = {}

    def delivered(error: KafkaError | None, message: Message) -> None:
        number = _number(message)
        if error is not None:
            # What was given up is lost for its application, however the library calls the reason.
            told.report(kind.name, "fatal" if error.fatal() else "error", f"record {number}: {error}")
            return
        place = Acknowledged(kind.name, number, kind.topic, message.partition() or 0, message.offset() or 0)
        if kind.silent:
            told.unanswered.append((went.pop(number), place._replace(offset=-1)))
        else:
            told.answered(place)

    go_on, number = paced(told, kind.per_second), 0
    while go_on():
        went[number] = time.time()
        told.sent[kind.name] = number + 1
        value = f"{kind.name}:{number}".encode()
        try:
            producer.produce(kind.topic, value, b"%d" % (number % KEYS), on_delivery=delivered)
            producer.poll(0)
        except KafkaException as error:
            told.report(kind.name, "fatal", _reason(producer, error))
            return
        if not kind.silent:
            went.pop(number)
        number += 1
    if left := producer.flush(PATIENCE):
        told.report(kind.name, "error", f"{left} records without an answer")


def _reason(producer: Producer, error: KafkaException) -> object:
    """Why a producer is done for: the error callback tells, once it is given the time."""
    try:
        producer.poll(0.5)
    except KafkaException as later:
        return later.args[0]
    return error.args[0]


def _base(told: Told, config: Mapping[str, Setting], kind: Producing) -> dict[str, object]:
    def report(error: KafkaError) -> None:
        # What is told here is for information; it goes on by itself unless it is fatal.
        told.report(kind.name, "fatal" if error.fatal() else "retriable", error)

    return {**config, "linger.ms": 5, "error_cb": report, "log_level": 0}


def _number(message: Message) -> int:
    return int((message.value() or b"").rpartition(b":")[2])


def _librdkafka_transactions(told: Told, config: Mapping[str, Setting], kind: Producing) -> None:
    own = {"transactional.id": kind.transactional_id, "transaction.timeout.ms": 30000}
    producer = Producer({**_base(told, config, kind), **own, **kind.settings})
    producer.init_transactions(PATIENCE)
    go_on, number, count = paced(told, kind.per_second), 0, 0
    going = True
    while going:
        places: list[Acknowledged] = []

        def delivered(error: KafkaError | None, message: Message, places: list[Acknowledged] = places) -> None:
            if error is None:
                partition, offset = message.partition() or 0, message.offset() or 0
                places.append(Acknowledged(kind.name, _number(message), kind.topic, partition, offset))

        count += 1
        mine: set[tuple[str, int]] = set()
        reason: KafkaError | None = None
        try:
            producer.begin_transaction()
            for _ in range(PER_TRANSACTION):
                if not (going := go_on()):
                    break
                mine.add((kind.name, number))
                told.sent[kind.name] = number + 1
                value = f"{kind.name}:{number}".encode()
                producer.produce(kind.topic, value, b"%d" % (number % KEYS), on_delivery=delivered)
                producer.poll(0)
                number += 1
            if count % ABORT_EVERY:
                _insist(lambda: producer.commit_transaction(PATIENCE))
                told.acknowledged += places
                told.gaps[kind.name].seen()
                continue
            producer.flush(PATIENCE)
        except KafkaException as error:
            reason = error.args[0]
            if reason.fatal():
                told.undecided |= mine
                told.report(kind.name, "fatal", reason)
                return
        try:
            _insist(lambda: producer.abort_transaction(PATIENCE))
        except KafkaException as error:
            told.undecided |= mine
            told.report(kind.name, "fatal", f"cannot abort: {error.args[0]}; before: {reason}")
            return
        told.aborted |= mine
        if reason is not None:
            told.report(kind.name, "abortable", reason)
            time.sleep(RETRY_PAUSE)


def _insist(call: Callable[[], None]) -> None:
    """Ending a transaction is asked again where the library says that this is what to do."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            call()
            return
        except KafkaException as error:
            reason: KafkaError = error.args[0]
            if not reason.retriable() or time.monotonic() > deadline:
                raise
            time.sleep(RETRY_PAUSE)


async def aiokafka(told: Told, bootstrap: str, kind: Producing) -> None:
    """In asyncio."""
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, **kind.settings)
    await producer.start()
    begin, number = time.monotonic(), 0
    waiting: set[asyncio.Task[None]] = set()

    async def one(number: int) -> None:
        went = time.time()
        try:
            answer = await producer.send(kind.topic, f"{kind.name}:{number}".encode(), key=b"%d" % (number % KEYS))
            stored = await answer
        except AioKafkaError as error:
            told.report(kind.name, "error", f"record {number}: {error!r}")
            return
        if stored is None:  # acks=0
            told.unanswered.append((went, Acknowledged(kind.name, number, kind.topic, -1, -1)))
        else:
            told.answered(Acknowledged(kind.name, number, kind.topic, stored.partition, stored.offset))

    while not told.stopping.is_set():
        told.sent[kind.name] = number + 1
        task = asyncio.ensure_future(one(number))
        waiting.add(task)
        task.add_done_callback(waiting.discard)
        number += 1
        await asyncio.sleep(max(0.0, begin + number / kind.per_second - time.monotonic()))
    if waiting:
        _, late = await asyncio.wait(waiting, timeout=PATIENCE)
        if late:
            told.report(kind.name, "error", f"{len(late)} records without an answer")
    await producer.stop()


async def java(told: Told, jvm: Jvm, config: Mapping[str, str], kind: Producing) -> None:
    """In trio; ends soon after `told.stopping`."""
    settings = {name: str(value) for name, value in kind.settings.items()}
    own = {"transactional_id": kind.transactional_id} if kind.transactional_id else {}
    places: dict[int, Acknowledged] = {}
    seen = 0

    async with jvm.producer({**config, "linger.ms": "5", **settings}, **own) as producer:

        def take(answers: list[Sent]) -> None:
            nonlocal seen
            now = time.time()
            for one in answers:
                told.sent[kind.name] = max(told.sent.get(kind.name, 0), one.number + 1)
                if one.error is not None:
                    if not kind.transactional_id:
                        told.report(kind.name, "error", f"record {one.number}: {one.error}")
                    continue
                place = Acknowledged(kind.name, one.number, kind.topic, one.partition, one.offset)
                if kind.silent:
                    # Answers are fetched every PAUSE; the record is a little older than that.
                    told.unanswered.append((now, place._replace(offset=-1)))
                elif kind.transactional_id:
                    places[one.number] = place
                else:
                    told.acknowledged.append(place)
            for ended in producer.ended[seen:]:
                seen += 1
                numbers = range(ended.first, ended.first + ended.count)
                mine = {(kind.name, number) for number in numbers}
                if ended.how == "committed":
                    told.acknowledged += [places[number] for number in numbers]
                elif ended.how == "aborted":
                    told.aborted.update(mine)
                    if ended.error is not None:
                        told.report(kind.name, "abortable", ended.error)
                else:
                    told.undecided.update(mine)
                    told.report(kind.name, "fatal", ended.error)

        if kind.transactional_id:
            await producer.init_transactions()
        await producer.start(
            kind.topic,
            per_second=kind.per_second,
            prefix=f"{kind.name}:",
            keys=KEYS,
            per_transaction=PER_TRANSACTION if kind.transactional_id else 0,
            abort_every=ABORT_EVERY if kind.transactional_id else 0,
        )
        while not told.stopping.is_set():
            take(await producer.take(1, 0.1))
            await trio.sleep(0.05)
        try:
            with trio.fail_after(PATIENCE):
                take(await producer.stop())
        except (JavaError, trio.TooSlowError) as error:
            told.report(kind.name, "error", f"records without an answer: {error!r}")
        told.gaps[kind.name].found += [(gap.end, gap.seconds) for gap in await producer.gaps()]
