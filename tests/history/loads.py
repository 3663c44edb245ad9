"""Steady loads of three client libraries, each an idempotent producer and a group's consumer, for use beside faults.

async with librdkafka(config, topic, group) as load:
    ...                                  # faults
load.check()                             # everything acknowledged was read, nothing twice, in order
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager

import trio
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.errors import KafkaError as AioKafkaError
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic, OffsetSpec

from tests.history.history import History
from tools.java_client import Jvm
from tools.local_cluster.cluster import Setting

PER_SECOND = 200
FIRST = 30.0  # seconds until the first record has been read
CATCH_UP = 45.0  # seconds until everything acknowledged has been read, once the faults are over


class Load:
    """One library's clients at work. `alive` waits until records have gone all the way through from now on."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.history = History()
        self.stopping = threading.Event()  # no more is sent
        self.produced = threading.Event()  # everything that was sent has its answer
        self.done = threading.Event()  # no more is read

    async def alive(self, count: int = 30, timeout: float = 40.0) -> None:
        """Until `count` further records have been acknowledged and read."""
        acknowledged, read = len(self.history.acknowledged) + count, len(self.history.reads) + count
        deadline = trio.current_time() + timeout
        while len(self.history.acknowledged) < acknowledged or len(self.history.reads) < read:
            if trio.current_time() > deadline:
                missing = (acknowledged - len(self.history.acknowledged), read - len(self.history.reads))
                raise AssertionError(
                    f"{self.name}: {missing} of {count} not acknowledged / read after {timeout} s; "
                    f"failed {self.history.failed[-3:]}, errors {self.history.errors[-5:]}"
                )
            await trio.sleep(0.02)

    def check(self, *, failures: int = 0, again: bool = True) -> None:
        """Nothing lost, doubled, reordered or invented."""
        wrong = self.history.judge(failures=failures, again=again)
        assert not wrong, f"{self.name}: {len(wrong)} faults: {wrong[:5]}; errors {self.history.errors[-5:]}"

    async def caught_up(self) -> None:
        """After `stopping`: until everything that was sent has its answer, and what was acknowledged has been read."""
        deadline = trio.current_time() + CATCH_UP
        while not self.produced.is_set():
            assert trio.current_time() < deadline, f"{self.name}: sends without an answer; {self.history.errors[-5:]}"
            await trio.sleep(0.02)
        while missing := self.history.missing():
            if trio.current_time() > deadline:
                some = sorted(missing)[:5]
                raise AssertionError(
                    f"{self.name}: {len(missing)} never read: {some}; errors {self.history.errors[-5:]}"
                )
            await trio.sleep(0.05)


def create(config: Mapping[str, Setting], topic: str, partitions: int = 3, **topic_config: str) -> None:
    """A topic, through whatever `config` names, once all of its leaders answer: a moment earlier they refuse first
    writes, and a library that sends those again reorders them where its producer is not idempotent."""
    admin = AdminClient({**config, "log_level": 0})
    admin.create_topics([NewTopic(topic, num_partitions=partitions, config=topic_config)])[topic].result(30)
    led(admin, topic, partitions)


def led(admin: AdminClient, topic: str, partitions: int) -> None:
    """Until all leaders of the topic answer."""
    ends = OffsetSpec.latest()  # type: ignore[no-untyped-call]
    asked = {TopicPartition(topic, number): ends for number in range(partitions)}
    deadline = time.monotonic() + FIRST
    while True:
        try:
            for one in admin.list_offsets(asked, request_timeout=5).values():
                one.result(10)
            return
        except KafkaException:
            assert time.monotonic() < deadline, f"{topic} has no leaders"
            time.sleep(0.1)


@contextmanager
def working(load: Load, *works: Callable[[], None]) -> Iterator[Load]:
    """Threads for a load's producer and consumer, ended in that order."""

    def run(work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            load.history.errors.append(f"{work.__name__} ended: {error!r}")
        if work is works[0]:
            load.produced.set()

    threads = [threading.Thread(target=run, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    try:
        yield load
    finally:
        load.stopping.set()
        threads[0].join(CATCH_UP)
        load.done.set()
        for thread in threads:
            thread.join(15)


@asynccontextmanager
async def _threads(load: Load, *works: Callable[[], None]) -> AsyncIterator[Load]:
    stack = ExitStack()
    stack.enter_context(working(load, *works))
    try:
        await load.alive(1, FIRST)
        yield load
        load.stopping.set()
        await load.caught_up()
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(stack.close)


def _paced(load: Load, per_second: int) -> Callable[[], bool]:
    """Whether to go on; called once a record, it keeps the pace."""
    begin, sent = time.monotonic(), [0]

    def go_on() -> bool:
        sent[0] += 1
        ahead = begin + sent[0] / per_second - time.monotonic()
        return not (load.stopping.wait(ahead) if ahead > 0 else load.stopping.is_set())

    return go_on


Works = tuple[Load, Callable[[], None], Callable[[], None]]


def librdkafka_works(
    config: Mapping[str, Setting], topic: str, group: str, *, per_second: int = PER_SECOND, size: int = 0
) -> Works:
    """The parts of `librdkafka`, for `working`."""
    load = Load("librdkafka")
    history = load.history

    def report(error: KafkaError) -> None:
        history.errors.append(str(error))

    def produce() -> None:
        producer = Producer({**config, "enable.idempotence": True, "linger.ms": 5, "error_cb": report, "log_level": 0})
        go_on, number = _paced(load, per_second), 0
        filler = "." * size

        def delivered(error: KafkaError | None, message: Message) -> None:
            value = (message.value() or b"").decode().partition(" ")[0]
            if error is not None:
                history.failed.append((value, str(error)))
            else:
                history.acked(value, message.partition() or 0, message.offset() or 0)

        while go_on():
            value = f"c:{number}"
            history.sent.append(value)
            producer.produce(topic, f"{value} {filler}".encode(), str(number % 50).encode(), on_delivery=delivered)
            producer.poll(0)
            number += 1
        producer.flush(CATCH_UP)

    def consume() -> None:
        settings = {"group.id": group, "auto.offset.reset": "earliest", "error_cb": report, "log_level": 0}
        consumer = Consumer({**config, **settings})
        consumer.subscribe([topic])
        while not load.done.is_set():
            message = consumer.poll(0.1)
            if message is None:
                continue
            if (error := message.error()) is not None:
                history.errors.append(str(error))
                continue
            value = (message.value() or b"").decode().partition(" ")[0]
            history.read(message.partition() or 0, message.offset() or 0, value)
        consumer.close()

    return load, produce, consume


@asynccontextmanager
async def librdkafka(
    config: Mapping[str, Setting], topic: str, group: str, *, per_second: int = PER_SECOND, size: int = 0
) -> AsyncIterator[Load]:
    """confluent-kafka, an idempotent producer."""
    works = librdkafka_works(config, topic, group, per_second=per_second, size=size)
    async with _threads(*works) as load:
        yield load


@asynccontextmanager
async def aiokafka(bootstrap: str, topic: str, group: str, *, per_second: int = PER_SECOND) -> AsyncIterator[Load]:
    """aiokafka, an idempotent producer; both clients in one event loop of their own thread."""
    load = Load("aiokafka")
    history = load.history

    async def produce() -> None:
        producer = AIOKafkaProducer(bootstrap_servers=bootstrap, enable_idempotence=True, request_timeout_ms=30000)
        await producer.start()
        begin, number, waiting = time.monotonic(), 0, set()

        async def one(value: str, key: int) -> None:
            try:
                stored = await (await producer.send(topic, value.encode(), key=str(key).encode()))
                history.acked(value, stored.partition, stored.offset)
            except AioKafkaError as error:
                history.failed.append((value, repr(error)))

        while not load.stopping.is_set():
            value = f"a:{number}"
            history.sent.append(value)
            task = asyncio.ensure_future(one(value, number % 50))
            waiting.add(task)
            task.add_done_callback(waiting.discard)
            number += 1
            await asyncio.sleep(max(0.0, begin + number / per_second - time.monotonic()))
        if waiting:
            await asyncio.wait(waiting, timeout=CATCH_UP)
        await producer.stop()

    async def consume() -> None:
        consumer = AIOKafkaConsumer(
            topic, bootstrap_servers=bootstrap, group_id=group, auto_offset_reset="earliest", session_timeout_ms=10000
        )
        await consumer.start()
        while not load.done.is_set():
            try:
                taken = await consumer.getmany(timeout_ms=100)
            except AioKafkaError as error:
                history.errors.append(repr(error))
                continue
            for messages in taken.values():
                for message in messages:
                    history.read(message.partition, message.offset, (message.value or b"").decode())
        await consumer.stop()

    def produces() -> None:
        asyncio.run(produce())

    def consumes() -> None:
        asyncio.run(consume())

    async with _threads(load, produces, consumes):
        yield load


@asynccontextmanager
async def java(
    jvm: Jvm, config: Mapping[str, str], topic: str, group: str, *, per_second: int = PER_SECOND
) -> AsyncIterator[Load]:
    """Kafka's own clients, an idempotent producer."""
    load = Load("java")
    history = load.history

    async with jvm.producer(dict(config)) as producer, jvm.consumer(dict(config), group=group) as consumer:
        all_taken = trio.Event()

        async def acknowledgements() -> None:
            while not load.stopping.is_set():
                take(await producer.take(1, 0.2))
            all_taken.set()

        def take(answers: list) -> None:  # type: ignore[type-arg]
            for one in answers:
                value = f"j:{one.number}"
                history.sent.append(value)
                if one.error is not None:
                    history.failed.append((value, str(one.error)))
                else:
                    history.acked(value, one.partition, one.offset)

        async def records() -> None:
            while not load.done.is_set():
                for one in (await consumer.read(1, 0.2)).records:
                    history.read(one.partition, one.offset, (one.value or "").partition(".")[0])

        await consumer.subscribe(topic)
        await producer.start(topic, per_second=per_second, prefix="j:", keys=50)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(acknowledgements)
            nursery.start_soon(records)
            await load.alive(1, FIRST)
            yield load
            load.stopping.set()
            await all_taken.wait()
            take(await producer.stop())
            load.produced.set()
            await load.caught_up()
            load.done.set()
