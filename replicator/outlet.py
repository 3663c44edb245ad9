"""The way to one target broker: one connection, Produce requests pipelined on it, at most one batch a partition each.

A lane is a partition with batches to give: data of one partition, or a unit's part of the journal. What a connection
had in flight when it was lost is not sent again by anybody: the lanes' units begin anew.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Protocol

import trio

from kafka_client import CallTimeout, ClientError, ClusterClient
from kafka_client.cluster import backoff
from kafka_client.connection import Connection
from kafka_client.duplex import Duplex
from kafka_client.topics import Place, Topic
from kafka_wire.codec import DecodeError
from replicator.wire import (
    ANSWER_BYTES,
    FIRST_BY_ID,
    FLEXIBLE,
    PRODUCE,
    Produced,
    landed,
    produce_answer,
    produce_request,
)

TURN_BYTES = 128 << 10  # of one partition, until it is the others' turn
REQUESTS_IN_FLIGHT = 32
WORTH = 32  # batches whose answers are waited for together
UNSENT_BYTES = 4 << 20  # what is put while the socket takes no more, and the most that a request has
PRODUCE_TIMEOUT_MS = 15_000
ANSWER_TICKS = 30  # seconds in which nothing is answered, counted, so that a pause of our own is not taken for one


class Lane(Protocol):
    """One partition's batches, in order."""

    place: Place
    urgent: bool  # others wait for what becomes of its batches; the same of all lanes of a topic

    def next(self, now: int, most: int, room: int) -> list[memoryview]:
        """The next batches that may be sent, `most` of them, till they take `room` bytes; they are then on their way.

        `now` is Unix ms.
        """

    def landed(self, bases: Sequence[int], log_start: int, now: int) -> None:
        """The oldest batches on their way were appended there, to a log that begins at `log_start`."""

    def answered(self, answer: Produced, now: int) -> None:
        """The oldest batch on its way was answered, perhaps not simply so."""

    def lost(self, reason: str) -> None:
        """Nobody knows what became of the batches on their way."""


Lanes = dict[Topic, dict[int, Lane]]  # by topic and partition
Batches = dict[Topic, list[tuple[int, memoryview]]]


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
        if duplex.unsent:
            return  # the writer is at it
        unsent = 0
        while self._ready and len(self._pending) < REQUESTS_IN_FLIGHT and unsent < UNSENT_BYTES:
            requests, size = self._gather(UNSENT_BYTES - unsent)
            if not requests:
                break
            if not self._allowed():
                self._drop("the lease has run out")
                for lane in {lane for _, lanes in requests for lane in _each(lanes)}:
                    lane.lost("the lease has run out")
                return
            for batches, lanes in requests:
                duplex.put(*produce_request(version, batches, PRODUCE_TIMEOUT_MS))
                self._pending.append(lanes)
            self.requests += len(requests)
            unsent += size
        if unsent:
            if not duplex.flush():
                self._wake.set()
            self._arrived.set()

    def _gather(self, room: int) -> tuple[list[tuple[Batches, Lanes]], int]:
        """Requests of all that lanes have, till they take `room` bytes, and these bytes.

        A lane's batches are in one request after the other. Two units may share a partition of the journal: no request
        has batches of both.
        """
        requests: list[tuple[Batches, Lanes]] = []
        last: Topic | None = None
        columns: list[tuple[list[tuple[int, memoryview]], dict[int, Lane]]] = []  # of each request: those of that topic
        taken = 0
        now = int(time.time() * 1000)
        most = REQUESTS_IN_FLIGHT - len(self._pending)
        ready = self._ready
        for lane in list(ready):
            if taken >= room:
                break
            topic, partition = lane.place
            if topic is not last:
                last, columns = (
                    topic,
                    [(some.setdefault(topic, []), mine.setdefault(topic, {})) for some, mine in requests],
                )
            at = 0
            while at < len(columns) and partition in columns[at][1]:
                at += 1
            if at >= most:
                continue
            found = lane.next(now, most - at, TURN_BYTES)
            del ready[lane]
            if not found:
                continue
            size = 0
            for data in found:
                if at == len(columns):
                    columns.append(([], {}))
                    requests.append(({topic: columns[at][0]}, {topic: columns[at][1]}))
                batches, mine = columns[at]
                mine[partition] = lane
                batches.append((partition, data))
                size += len(data)
                at += 1
            if at == most or size >= TURN_BYTES:
                ready[lane] = None  # behind the others
            taken += size
        for some, lanes in requests:
            for topic in [topic for topic, batches in some.items() if not batches]:
                del some[topic], lanes[topic]
        return requests, taken

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
                self._answers(version, frames, now)
            finally:
                self._answering = False
            self._send(duplex, version)

    def _certain(self, version: int) -> int:
        """Bytes to wait for: answers of WORTH batches, as every wake-up costs as much as some batches do.

        Less up to an urgent one, and all but the last one, so that the broker still has something to work on.
        """
        pending = self._pending
        count = len(pending) - 1
        if version < FLEXIBLE or not count:
            return 1
        batches = 0
        for lanes in islice(pending, count):
            batches += sum(map(len, lanes.values()))
            if batches >= WORTH or any(next(iter(some.values())).urgent for some in lanes.values()):
                break
        return max(batches * ANSWER_BYTES, 1)

    def _answers(self, version: int, frames: Iterable[memoryview], now: int) -> None:
        """The answers to the oldest requests. What went well is told to each lane at once."""
        by_id = version >= FIRST_BY_ID
        landings: dict[Lane, list[int]] = {}
        starts: dict[Lane, int] = {}

        def tell() -> None:
            for lane, bases in landings.items():
                lane.landed(bases, starts[lane], now)
            landings.clear()

        for frame in frames:
            lanes = self._pending.popleft()
            good = landed(version, frame)
            by_name = {topic.id if by_id else topic.name: some for topic, some in lanes.items()}
            if (
                good is None
                or len(lanes) != len(good)
                or any(len(by_name.get(name, ())) != len(some) for name, some in good)
            ):
                tell()
                self._answered(version, frame, lanes, now)
                continue
            for name, some in good:
                mine = by_name[name]
                for partition, base, start in some:
                    lane = mine[partition]
                    bases = landings.get(lane)
                    if bases is None:
                        landings[lane] = [base]
                    else:
                        bases.append(base)
                    starts[lane] = start
        tell()

    def _answered(self, version: int, frame: memoryview, lanes: Lanes, now: int) -> None:
        """One answer, of which not all is simply good."""
        by_id = version >= FIRST_BY_ID
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
