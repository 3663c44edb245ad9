"""The way to one target broker: one connection, Produce requests pipelined on it, at most one batch a partition each.

A lane is a partition with batches to give: data of one partition, or a unit's part of the journal. What a connection
had in flight when it was lost is not sent again by anybody: the lanes' units begin anew.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

import trio

from kafka_client import ClientError, ClusterClient
from kafka_client.cluster import backoff
from kafka_client.connection import Connection, Ticket
from kafka_wire.codec import DecodeError
from replicator.wire import PRODUCE, Place, Produced, produce_answer, produce_request

REQUEST_BYTES = 4 << 20
REQUESTS_IN_FLIGHT = 32
PRODUCE_TIMEOUT_MS = 15_000
ANSWER_SECONDS = 30.0


class Lane(Protocol):
    """One partition's batches, in order."""

    place: Place

    def next(self, now: int) -> memoryview | None:
        """The next batch that may be sent; it is then on its way. `now` is Unix ms."""

    def answered(self, answer: Produced, now: int) -> None:
        """The oldest batch on its way was answered."""

    def lost(self, reason: str) -> None:
        """Nobody knows what became of the batches on their way."""


class Outlet:
    """One target broker. `run` it; `offer` lanes whenever they may have something."""

    def __init__(self, client: ClusterClient, broker: int, allowed: Callable[[], bool]) -> None:
        """`allowed` is asked before every request: whether the lease that guards these partitions holds."""
        self._client = client
        self._broker = broker
        self._allowed = allowed
        self._ready: dict[Lane, None] = {}
        self._wake = trio.Event()
        self._pending: deque[tuple[Ticket, list[Lane]]] = deque()
        self._arrived = trio.Event()
        self.requests = 0

    def offer(self, lane: Lane) -> None:
        self._ready[lane] = None
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
                        nursery.start_soon(self._write, connection)
                        nursery.start_soon(self._read, connection)
            except* (ClientError, DecodeError) as group:
                reason = str(_first(group))
            failures += 1
            self._drop(reason)
            await trio.sleep(backoff(failures))

    def _drop(self, reason: str) -> None:
        lanes = {lane for _, some in self._pending for lane in some} | set(self._ready)
        self._pending.clear()
        self._ready.clear()
        for lane in lanes:
            lane.lost(reason)

    async def _write(self, connection: Connection) -> None:
        version = connection.version(PRODUCE)
        while True:
            batches, lanes = self._gather()
            if not batches:
                self._wake = trio.Event()
                await self._wake.wait()
                continue
            if not self._allowed():
                self._drop("the lease has run out")
                for lane in lanes:
                    lane.lost("the lease has run out")
                continue
            while len(self._pending) >= REQUESTS_IN_FLIGHT:
                self._wake = trio.Event()
                await self._wake.wait()
            head, parts = produce_request(version, batches, PRODUCE_TIMEOUT_MS)
            try:
                ticket = await connection.send(head, parts)
            except BaseException:
                for lane in lanes:
                    lane.lost("a request was not sent to its end")
                raise
            self.requests += 1
            self._pending.append((ticket, lanes))
            self._arrived.set()

    def _gather(self) -> tuple[list[tuple[Place, memoryview]], list[Lane]]:
        """One batch of every lane that has one; two units may share a partition of the journal, then in turn."""
        batches: list[tuple[Place, memoryview]] = []
        lanes: list[Lane] = []
        used: set[Place] = set()
        size = 0
        now = int(time.time() * 1000)
        for lane in list(self._ready):
            if size >= REQUEST_BYTES:
                break
            if lane.place in used:
                continue
            data = lane.next(now)
            del self._ready[lane]
            if data is None:
                continue
            self._ready[lane] = None  # behind the others
            used.add(lane.place)
            batches.append((lane.place, data))
            lanes.append(lane)
            size += len(data)
        return batches, lanes

    async def _read(self, connection: Connection) -> None:
        version = connection.version(PRODUCE)
        by_id = version >= 13
        while True:
            if not self._pending:
                self._arrived = trio.Event()
                await self._arrived.wait()
            ticket, lanes = self._pending[0]
            answers = produce_answer(version, await connection.receive(ticket, ANSWER_SECONDS))
            self._pending.popleft()
            now = int(time.time() * 1000)
            by_place = {(one.topic, one.partition): one for one in answers}
            for lane in lanes:
                topic, partition = lane.place
                answer = by_place.get((topic.id if by_id else topic.name, partition))
                if answer is None:
                    lane.lost("an answer without the partition")
                else:
                    lane.answered(answer, now)
            self._wake.set()


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    one: BaseException = group
    while isinstance(one, BaseExceptionGroup):
        one = one.exceptions[0]
    return one
