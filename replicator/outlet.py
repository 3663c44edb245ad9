"""The way to one target broker: one connection, Produce requests pipelined on it, at most one batch a partition each.

A lane is a partition with batches to give: data of one partition, or a unit's part of the journal. What a connection
had in flight when it was lost is not sent again by anybody: the lanes' units begin anew.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Protocol

import trio

from kafka_client import CallTimeout, ClientError, ClusterClient
from kafka_client.cluster import backoff
from kafka_client.connection import Connection
from kafka_client.duplex import Duplex
from kafka_client.topics import Place, Topic
from kafka_wire.codec import DecodeError
from replicator.wire import ANSWER_BYTES, FLEXIBLE, PRODUCE, Produced, landed, produce_answer, produce_request

REQUEST_BYTES = 4 << 20
REQUESTS_IN_FLIGHT = 32
UNSENT_BYTES = 4 << 20  # what is put while the socket takes no more
PRODUCE_TIMEOUT_MS = 15_000
ANSWER_TICKS = 30  # seconds in which nothing is answered, counted, so that a pause of our own is not taken for one


class Lane(Protocol):
    """One partition's batches, in order."""

    place: Place

    def next(self, now: int) -> memoryview | None:
        """The next batch that may be sent; it is then on its way. `now` is Unix ms."""

    def landed(self, base_offset: int, log_start: int, now: int) -> None:
        """The oldest batch on its way was appended there, to a log that begins at `log_start`."""

    def answered(self, answer: Produced, now: int) -> None:
        """The oldest batch on its way was answered, perhaps not simply so."""

    def lost(self, reason: str) -> None:
        """Nobody knows what became of the batches on their way."""


Lanes = dict[Topic, dict[int, Lane]]  # by topic and partition


def _each(lanes: Lanes) -> Iterator[Lane]:
    for some in lanes.values():
        yield from some.values()


class Outlet:
    """One target broker. `run` it; `offer` lanes whenever they may have something."""

    def __init__(self, client: ClusterClient, broker: int, allowed: Callable[[], bool]) -> None:
        """`allowed` is asked before every request: whether the lease that guards these partitions holds."""
        self._client = client
        self._broker = broker
        self._allowed = allowed
        self._ready: dict[Lane, None] = {}
        self._wake = trio.Event()
        self._pending: deque[Lanes] = deque()  # of each request in flight
        self._arrived = trio.Event()
        self._answering = False
        self.requests = 0

    def offer(self, lane: Lane) -> None:
        self._ready[lane] = None
        if not self._answering:  # then it is looked at as soon as all answers are
            self._wake.set()

    def withdraw(self, lane: Lane) -> None:
        self._ready.pop(lane, None)

    async def run(self) -> None:
        """Never returns; the connection is opened again when it is lost."""
        failures = 0
        reason = ""
        while True:
            try:
                async with self._client.dedicated(self._broker) as connection:
                    failures = 0
                    async with trio.open_nursery() as nursery:
                        duplex = Duplex(connection)
                        nursery.start_soon(self._write, connection, duplex)
                        nursery.start_soon(self._read, connection, duplex)
                        nursery.start_soon(self._watch)
            except* (ClientError, DecodeError) as group:
                reason = str(_first(group))
            failures += 1
            self._drop(reason)
            self._pending.clear()
            await trio.sleep(backoff(failures))

    def _drop(self, reason: str) -> None:
        lanes = {lane for some in self._pending for lane in _each(some)} | set(self._ready)
        self._pending = deque({} for _ in self._pending)  # where the connection lives on, answers come yet
        self._ready.clear()
        for lane in lanes:
            lane.lost(reason)

    async def _watch(self) -> None:
        """A broker that answers nothing for long is lost."""
        ticks, last = 0, -1
        while True:
            await trio.sleep(1.0)
            at = self.requests - len(self._pending)
            ticks = ticks + 1 if self._pending and at == last else 0
            last = at
            if ticks >= ANSWER_TICKS:
                raise CallTimeout(f"broker {self._broker}: no answer to Produce in {ANSWER_TICKS} s", sent=True)

    async def _write(self, connection: Connection, duplex: Duplex) -> None:
        """What is offered while no answers come, and what the socket did not take at once."""
        version = connection.version(PRODUCE)
        while True:
            self._send(duplex, version)
            await duplex.drain()
            await self._wake.wait()
            self._wake = trio.Event()

    def _send(self, duplex: Duplex, version: int) -> None:
        """All there is, as far as it may be in flight."""
        if duplex.due:
            self._arrived.set()  # logs in again once nothing is in flight
            return
        unsent = 0
        while self._ready and len(self._pending) < REQUESTS_IN_FLIGHT and unsent < UNSENT_BYTES:
            if duplex.unsent and not unsent:
                break  # the writer is at it
            batches, lanes, size = self._gather()
            if not batches:
                break
            if not self._allowed():
                self._drop("the lease has run out")
                for lane in _each(lanes):
                    lane.lost("the lease has run out")
                return
            duplex.put(*produce_request(version, batches, PRODUCE_TIMEOUT_MS))
            unsent += size
            self.requests += 1
            self._pending.append(lanes)
        if unsent:
            if not duplex.flush():
                self._wake.set()
            self._arrived.set()

    def _gather(self) -> tuple[dict[Topic, list[tuple[int, memoryview]]], Lanes, int]:
        """One batch of every lane that has one; two units may share a partition of the journal, then in turn."""
        found: dict[Topic, list[tuple[int, memoryview]]] = {}
        lanes: Lanes = {}
        batches: list[tuple[int, memoryview]] = []
        mine: dict[int, Lane] = {}
        last: Topic | None = None
        size = 0
        now = int(time.time() * 1000)
        ready = self._ready
        for lane in list(ready):
            if size >= REQUEST_BYTES:
                break
            topic, partition = lane.place
            if topic is not last:
                last, batches, mine = topic, found.setdefault(topic, []), lanes.setdefault(topic, {})
            if partition in mine:
                continue
            data = lane.next(now)
            del ready[lane]
            if data is None:
                continue
            ready[lane] = None  # behind the others
            mine[partition] = lane
            batches.append((partition, data))
            size += len(data)
        if not all(found.values()):
            found = {topic: some for topic, some in found.items() if some}
            lanes = {topic: some for topic, some in lanes.items() if some}
        return found, lanes, size

    async def _read(self, connection: Connection, duplex: Duplex) -> None:
        version = connection.version(PRODUCE)
        while True:
            if duplex.due and not self._pending:
                await duplex.renew()
                self._send(duplex, version)
            if not self._pending:
                self._arrived = trio.Event()
                await self._arrived.wait()
                continue
            frames = await duplex.answers(self._certain(version))
            now = int(time.time() * 1000)
            self._answering = True
            try:
                for frame in frames:
                    self._answered(version, frame, self._pending.popleft(), now)
            finally:
                self._answering = False
            self._send(duplex, version)

    def _certain(self, version: int) -> int:
        """Bytes to wait for: half of the answers that are due, as long as the broker has others to work on."""
        pending = self._pending
        count = len(pending) // 2
        if version < FLEXIBLE or not count:
            return 1
        return sum(ANSWER_BYTES * len(some) for n in range(count) for some in pending[n].values())

    def _answered(self, version: int, frame: memoryview, lanes: Lanes, now: int) -> None:
        by_id = version >= 13
        good = landed(version, frame)
        if good is not None and len(lanes) == len(good):
            by_name = {topic.id if by_id else topic.name: some for topic, some in lanes.items()}
            if all(len(by_name.get(name, ())) == len(some) for name, some in good):
                for name, some in good:
                    mine = by_name[name]
                    for partition, base, start in some:
                        mine[partition].landed(base, start, now)
                return
        by_place = {(one.topic, one.partition): one for one in produce_answer(version, frame)}
        for topic, mine in lanes.items():
            for partition, lane in mine.items():
                answer = by_place.get((topic.id if by_id else topic.name, partition))
                if answer is None:
                    lane.lost("an answer without the partition")
                else:
                    lane.answered(answer, now)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    one: BaseException = group
    while isinstance(one, BaseExceptionGroup):
        one = one.exceptions[0]
    return one
