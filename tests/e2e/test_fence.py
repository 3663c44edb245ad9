"""What clients see of a hold, by a controller that is this test: records are written into the store by hand.

The roles run over etcd, so that there may be a proxy without a controller.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path

import msgspec
import pytest
import trio
from confluent_kafka import Consumer, KafkaError, Message, Producer, TopicPartition

from kafka_client import ClusterClient
from kafka_client.topics import LATEST, offsets
from metadata_service.migrating import asking, changing
from metadata_service.migrating.hands import Hands
from metadata_service.migrating.leaders import Leaders
from metadata_service.models import WORKERS, TopicRecord, WorkerRecord, topic_key
from metadata_service.operations.gates import CLOSED
from metadata_service.operations.records import (
    HOLD_REPORTS,
    HoldReport,
    MigrationRecord,
    Moving,
    Options,
    migration_key,
)
from metadata_service.records import decode, encode, read
from metadata_service.store.contract import Put, Store
from metadata_service.store.open import open_store
from runtime.settings import EtcdStore
from tests.e2e.reading import BOUND, create
from tests.fixtures.names import Names
from tests.history.checker import Acknowledged, Read, faults
from tests.integration.test_roles_over_etcd import role
from tools.local_cluster import Cluster
from tools.local_cluster.cluster import Setting
from tools.local_cluster.etcd import Etcd
from tools.local_cluster.ports import Ports

PARTITIONS = 2
PRODUCERS: Mapping[str, Mapping[str, Setting]] = {
    "idempotent": {"enable.idempotence": True},
    "plain": {"acks": 1, "max.in.flight": 5},
    "silent": {"acks": 0},
}
SAVED: dict[str, str | None] = dict.fromkeys(CLOSED)


async def until(condition: Callable[[], bool | Awaitable[bool]]) -> None:
    """Looks again and again; bounded by whoever calls it."""
    while True:
        found = condition()
        if found if isinstance(found, bool) else await found:
            return
        await trio.sleep(0.02)


class Hand:
    """The controller's part, by hand, for one topic of east's."""

    def __init__(self, config: dict[str, Setting], topic: str, store: Store, east: ClusterClient) -> None:
        self.config, self.topic, self.store, self.east = config, topic, store, east
        self.hands = Hands(lambda name: east)
        self.id = f"by-hand-{topic}"

    async def hold(self, **options: float) -> MigrationRecord:
        """Hold writes; the close is recorded with it."""
        known = await read(self.store, topic_key(self.topic), TopicRecord)
        assert known is not None
        moving = Moving(source_id=known.timeline[-1].topic_id, partitions=PARTITIONS)
        record = MigrationRecord(
            id=self.id,
            topics={self.topic: moving},
            source="east",
            target="west",
            options=Options(**options),  # type: ignore[arg-type]
            step="close",
            hold="held",
            attempt=1,
            closing=True,
            saved={self.topic: SAVED},
        )
        held = msgspec.structs.replace(known, hold=self.id)
        await self.store.commit(
            (), (Put(migration_key(self.id), encode(record)), Put(topic_key(self.topic), encode(held)))
        )
        return record

    async def let_go(self) -> None:
        """As the machine does after a lift: nothing is held any longer."""
        known = await read(self.store, topic_key(self.topic), TopicRecord)
        assert known is not None
        await self.store.commit((), (Put(topic_key(self.topic), encode(msgspec.structs.replace(known, hold=None))),))

    async def close(self) -> None:
        await changing.alter(self.hands, self.east, {self.topic: dict(CLOSED)})
        await self.probed("closed")

    async def probed(self, wanted: str) -> None:
        """All leaders take records, or refuse them."""
        everything = [(self.topic, index) for index in range(PARTITIONS)]

        async def answered() -> bool:
            return set((await asking.probe(Leaders(self.east), everything, frozenset())).values()) == {wanted}

        await until(answered)

    async def record(self) -> MigrationRecord:
        found = await read(self.store, migration_key(self.id), MigrationRecord)
        assert found is not None
        return found

    async def reported(self) -> HoldReport:
        """The worker's report, once nothing of it is on its way to the source."""
        async with self.store.follow(HOLD_REPORTS) as following:
            async for _ in following:
                found = [decode(HoldReport, one.value) for one in (await self.store.range(HOLD_REPORTS)).items]
                if found and found[0].drained:
                    return found[0]
        raise AssertionError

    async def worker(self) -> int:
        """The process id of the one proxy worker."""
        found = [decode(WorkerRecord, one.value) for one in (await self.store.range(WORKERS)).items]
        return next(one.pid for one in found if one.role == "proxy")

    async def ends(self) -> dict[int, int]:
        return await offsets(self.east, self.topic, range(PARTITIONS), LATEST)


@pytest.fixture
async def hand(east: Cluster, west: Cluster, own_etcd: Etcd, tmp_path: Path, names: Names) -> AsyncIterator[Hand]:
    """A proxy with one worker, and no controller any longer."""
    settings = {
        "federation": "demo",
        "store": {"kind": "etcd", "endpoints": [own_etcd.endpoint]},
        "clusters": {"east": {"bootstrap": east.addresses()}, "west": {"bootstrap": west.addresses()}},
        "placement": {"default": "east"},
    }
    topic = names.topic("orders")
    with Ports(16, consecutive=True) as ports:
        admin, other, port, first, *_, last = ports.numbers
        config: dict[str, Setting] = {"bootstrap.servers": f"127.0.0.1:{port}", "log_level": 0}
        proxy = role("proxy", "p", tmp_path / "p", settings, (other, port, first, last))
        controller = role("controller", "c", tmp_path / "c", settings, (admin, port, first, last))
        try:
            await trio.to_thread.run_sync(controller.__enter__)
            try:
                await trio.to_thread.run_sync(proxy.__enter__)
                await trio.to_thread.run_sync(partial(create, config, topic, partitions=PARTITIONS))
            finally:
                await trio.to_thread.run_sync(controller.__exit__, None, None, None)
            async with (
                open_store(EtcdStore(endpoints=(own_etcd.endpoint,)), "demo") as store,
                ClusterClient("east", east.addresses()) as client,
            ):
                yield Hand(config, topic, store, client)
        finally:
            await trio.to_thread.run_sync(proxy.__exit__, None, None, None)


class Load:
    """One producer in a thread: a record every two milliseconds, to each partition in turn."""

    def __init__(self, hand: Hand, name: str, settings: Mapping[str, Setting]) -> None:
        self.name, self.hand = name, hand
        self.sent = 0
        self.told: list[Acknowledged] = []
        self.failed: list[str] = []
        self.gap = (0.0, 0.0)  # the longest time without an answer: when it began, how long it was
        self._last = time.monotonic()
        self._producer = Producer({**hand.config, "linger.ms": 1, **settings})
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _delivered(self, number: int, error: KafkaError | None, message: Message) -> None:
        now = time.monotonic()
        self.gap = max(self.gap, (self._last, now - self._last), key=lambda one: one[1])
        self._last = now
        if error is not None:
            self.failed.append(str(error))
            return
        partition, offset = message.partition(), message.offset()
        assert partition is not None
        self.told.append(Acknowledged(self.name, number, self.hand.topic, partition, -1 if offset is None else offset))

    def _run(self) -> None:
        while not self._stop.wait(0.002):
            number = self.sent
            self.sent += 1
            self._producer.produce(
                self.hand.topic,
                f"{self.name}:{number}",
                partition=number % PARTITIONS,
                on_delivery=partial(self._delivered, number),
            )
            self._producer.poll(0)
        if self._producer.flush(BOUND):
            self.failed.append("not answered")

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(BOUND)


def everything(hand: Hand, count: int) -> list[Read]:
    consumer = Consumer({**hand.config, "group.id": "unused", "auto.offset.reset": "earliest"})
    out: list[Read] = []
    try:
        consumer.assign([TopicPartition(hand.topic, index, 0) for index in range(PARTITIONS)])
        deadline = time.monotonic() + BOUND
        while len(out) < count and time.monotonic() < deadline:
            for message in consumer.consume(500, 0.2):
                value, partition, offset = message.value(), message.partition(), message.offset()
                assert isinstance(value, bytes) and partition is not None and offset is not None, message.error()
                name, _, number = value.decode().partition(":")
                out.append(Read("reader", name, int(number), hand.topic, partition, offset))
    finally:
        consumer.close()
    return out


async def test_a_hold_that_nobody_ends_is_lifted_by_the_worker(hand: Hand) -> None:
    """No controller is left: writes go on in their order, nothing is lost or told an error, and the source is open."""
    loads = [Load(hand, name, settings) for name, settings in PRODUCERS.items()]

    async def more(count: int) -> None:
        told = {one.name: len(one.told) for one in loads}
        await until(lambda: all(len(one.told) >= told[one.name] + count for one in loads))

    async def still_held() -> bool:
        return (await hand.record()).hold == "held"

    try:
        with trio.fail_after(BOUND):
            await more(200)
            await hand.hold(budget=1.0)
            await hand.reported()
            await hand.close()
            before = await hand.ends()
            while await still_held():
                now = await hand.ends()
                assert now == before or not await still_held(), "a write came through a hold"

            async def opened() -> bool:
                return (await hand.record()).hold == "open"

            await until(opened)
            record = await hand.record()
            assert (record.step, record.closing, record.reopeners) == ("lift", False, ())
            await hand.probed("open")
            assert (await asking.settings(hand.east, [hand.topic]))[hand.topic] == {}
            await more(200)
            await hand.let_go()
            await more(100)
    finally:
        for load in loads:
            await trio.to_thread.run_sync(load.stop)
    assert [one.failed for one in loads] == [[], [], []]
    # Longer than the budget, and not as long as what a worker holds at most.
    assert all(1.0 < one.gap[1] < 4.0 for one in loads if one.name != "silent"), [one.gap for one in loads]
    acknowledged = [one for load in loads for one in load.told]
    found = await trio.to_thread.run_sync(everything, hand, sum(one.sent for one in loads))
    assert faults(acknowledged, found, ["reader"], sent={one.name: one.sent for one in loads}) == []


async def test_a_worker_that_slept_gets_nothing_acknowledged_by_the_closed_source(hand: Hand) -> None:
    """Stopped before the hold, and woken up behind the close: what it then passes on, or holds, is refused."""
    producer = Producer({**hand.config, "acks": 1, "retries": 0, "linger.ms": 0, "message.timeout.ms": 20_000})
    told: list[KafkaError | None] = []

    def send() -> None:
        producer.produce(hand.topic, "x" * 100, partition=0, on_delivery=lambda error, _: told.append(error))

    def settle(count: int) -> None:
        deadline = time.monotonic() + BOUND
        while len(told) < count and time.monotonic() < deadline:
            producer.poll(0.1)

    send()
    await trio.to_thread.run_sync(settle, 1)
    assert told == [None]
    pid = await hand.worker()
    os.kill(pid, signal.SIGSTOP)
    try:
        with trio.fail_after(BOUND):
            await hand.hold(budget=30.0)
            await hand.close()
            before = await hand.ends()
            send()
            await trio.to_thread.run_sync(partial(producer.poll, 0.3))  # into the sleeper's socket
    finally:
        os.kill(pid, signal.SIGCONT)
    await trio.to_thread.run_sync(settle, 2)
    error = told[1]
    assert error is not None and error.code() != KafkaError.MSG_SIZE_TOO_LARGE
    assert await hand.ends() == before
