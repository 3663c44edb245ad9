"""The way from one source broker: one connection, one incremental fetch session over all partitions it leads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import trio

from kafka_client import CallTimeout, ClientError, ClusterClient
from kafka_client.cluster import backoff
from kafka_client.connection import Connection
from kafka_client.duplex import Duplex, Lent
from kafka_client.topics import FETCH, Fetched, Place
from kafka_wire.codec import DecodeError
from replicator.wire import FetchSession, Wanted

MAX_WAIT_MS = 250
SKIPPED_WAIT_MS = 10
PIECE_BYTES = 64 << 10  # the least that a limited link asks for at once
RESPONSE_BYTES = 4 << 20
WAITING_BYTES = 192 << 20  # of memory that holds what this broker's partitions have fetched and not written
ANSWER_SECONDS = 30.0


class Feed(Protocol):
    """One source partition, at `origin`."""

    origin: Place

    def wanted(self) -> Wanted | None:
        """What to fetch next; None while enough is waiting."""

    async def fetched(self, answer: Fetched) -> None:
        """What came; errors of the partition are its own to handle."""


class Limit:
    """A token bucket of bytes a second, with a second's worth of burst; None: no limit."""

    def __init__(self, rate: float | None) -> None:
        self.rate = rate
        self._free_at = 0.0

    def piece(self, most: int) -> int:
        """Bytes to ask for at once, so that what comes is spread over a second."""
        return most if self.rate is None else min(most, max(int(self.rate / 4), PIECE_BYTES))

    async def spend(self, size: int) -> None:
        if self.rate is None or not size:
            return
        now = trio.current_time()
        self._free_at = max(self._free_at, now - 1.0) + size / self.rate
        if self._free_at > now:
            await trio.sleep(self._free_at - now)


class Feeder:
    """One source broker. `run` it; add and remove feeds at any time."""

    def __init__(self, client: ClusterClient, broker: int, limit: Limit, lost: Callable[[int], None]) -> None:
        """`lost` is told when the broker cannot be reached: leaders may have moved."""
        self._client = client
        self._broker = broker
        self._limit = limit
        self._lost = lost
        self._feeds: dict[Place, Feed] = {}
        self._by_answer: dict[tuple[str | bytes, int], Feed] = {}
        self._changed = trio.Event()
        self._memory = Lent(WAITING_BYTES)
        self._asked: dict[Place, Feed] = {}  # for whom the newest request asks
        self._replaced = False
        self.requests = 0

    def add(self, feed: Feed) -> None:
        topic, partition = feed.origin
        # What was asked for its predecessor is not for it: neither an answer on its way, nor what the session thinks
        # that we know.
        self._replaced = self._replaced or feed.origin in self._asked
        self._feeds[feed.origin] = feed
        self._by_answer[topic.name, partition] = self._by_answer[topic.id, partition] = feed
        self.wake()

    def remove(self, feed: Feed) -> None:
        if self._feeds.get(feed.origin) is feed:
            topic, partition = feed.origin
            del self._feeds[feed.origin]
            self._by_answer.pop((topic.name, partition), None)
            self._by_answer.pop((topic.id, partition), None)

    def wake(self) -> None:
        """Something may be wanted again."""
        self._changed.set()

    async def run(self) -> None:
        """Never returns; the connection is opened again when it is lost."""
        failures = 0
        while True:
            while not self._feeds:
                self._changed = trio.Event()
                await self._changed.wait()
            try:
                async with self._client.dedicated(self._broker) as connection:
                    failures = 0
                    await self._fetch(connection)
            except (ClientError, DecodeError):
                pass
            failures += 1
            self._lost(self._broker)
            await trio.sleep(backoff(failures))

    async def _fetch(self, connection: Connection) -> None:
        session = FetchSession(connection.version(FETCH))
        duplex = Duplex(connection)
        while True:
            wanted: dict[Place, Wanted] = {}
            asked: dict[Place, Feed] = {}
            skipped = False
            for place, feed in self._feeds.items():
                one = feed.wanted()
                if one is None:
                    skipped = True
                else:
                    wanted[place], asked[place] = one, feed
            if not wanted or self._memory.full:
                self._changed = trio.Event()
                with trio.move_on_after(0.1):
                    await self._changed.wait()
                continue
            if duplex.due:
                await duplex.renew()
            if self._replaced:
                self._replaced = False
                session.begin_anew()
            self._asked = asked
            # Where a partition is left out for now, the others' silence must not hold it back.
            duplex.put(
                session.request(
                    wanted,
                    max_wait_ms=SKIPPED_WAIT_MS if skipped else MAX_WAIT_MS,
                    max_bytes=self._limit.piece(RESPONSE_BYTES),
                )
            )
            with trio.move_on_after(ANSWER_SECONDS) as patience:
                await duplex.drain()
                frame = await duplex.answer(self._memory.take)
            if patience.cancelled_caught:
                raise CallTimeout(f"broker {self._broker}: no answer to Fetch in {ANSWER_SECONDS:g} s", sent=True)
            error, answers = session.answer(frame)
            self.requests += 1
            if error:
                continue  # the session is gone: the next request begins another
            size = await self._give(answers, asked)
            del frame, answers  # the memory may be used again as soon as all of it is written
            await self._limit.spend(size)

    async def _give(self, answers: list[Fetched], asked: dict[Place, Feed]) -> int:
        size = 0
        for answer in answers:
            found = self._by_answer.get((answer.topic, answer.partition))
            if found is not None and asked.get(found.origin) is found:
                size += len(answer.records)
                await found.fetched(answer)
        return size
