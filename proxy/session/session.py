"""The state of one client connection, shared by its two directions.

`requests.read_requests` reads from the client and passes requests on or has them handled; `responses.
write_responses` reads from the broker and passes answers back. Between them stands the queue of slots, one for each
request that still owes an answer, in request order: Kafka answers a connection's requests in order, so an answer made
here waits for those of the requests before it.
"""

from __future__ import annotations

import time
from collections import deque
from enum import Enum
from typing import Protocol

import trio

from kafka_wire.codec import Message
from kafka_wire.frames import parse_response, request_frame
from kafka_wire.produce_repeat import RepeatedProduce
from metadata_service.view import ServedTopic, View
from proxy.apis.contract import CloseConnection, ClusterAway
from proxy.session.surroundings import Surroundings
from proxy.sweep import Waiting
from proxy.transport.channel import Channel, ChannelClosed, Inbox
from runtime import logging

log = logging.get(__name__)

MAX_IN_FLIGHT = 256  # requests of one connection without an answer; then nothing more is read from it
LAST = 12.0  # seconds in which writes that are held when the client goes are still executed
MAX_MADE = 1 << 20  # bytes of answers made here that wait for their turn; likewise


class Kind(Enum):
    """What becomes of a slot's answer."""

    PASS = "pass"  # noqa: S105  # the broker's answer, byte for byte
    TOKEN = "token"  # noqa: S105  # a raw SASL token (handshake v0): no header to check
    PRODUCE = "produce"
    FETCH = "fetch"
    LOCAL = "local"  # made here, ready
    INNER = "inner"  # asked by a handler; never reaches the client
    LATER = "later"  # to be made here: becomes LOCAL
    DROPPED = "dropped"  # the client has its answer already; the broker's is read and thrown away


class Slot:
    """A request that owes an answer."""

    __slots__ = (
        "answer",
        "cluster",
        "correlation",
        "done",
        "epoch",
        "key",
        "kind",
        "moved",
        "repeated",
        "started",
        "version",
    )

    def __init__(self, kind: Kind, key: int, version: int, correlation: int, cluster: str) -> None:
        self.kind = kind
        self.key = key
        self.version = version
        self.correlation = correlation
        self.cluster = cluster
        self.started = time.monotonic()
        self.answer: bytes | bytearray | None = None  # LOCAL: a whole frame; INNER: a frame without its size
        self.done: trio.Event | None = None
        self.repeated: RepeatedProduce | None = None
        self.moved: ServedTopic | View | None = None  # translated: the topic of a PRODUCE, the view of a FETCH
        self.epoch = -1  # FETCH: of its fetch session, -1 without one


class Fenced(Protocol):
    """A session's writes to topics that are being moved (`proxy.moving`)."""

    @property
    def pending(self) -> bool:
        """Whether a write is held, or on its way to another broker than the client's."""

    def admits(self, window: memoryview) -> bool:
        """Whether the frame that begins here may be read now; else `settled` is to be awaited first."""

    async def settled(self) -> None:
        """Returns when nothing is held, and all that goes out on the client's own broker connection has gone out."""

    async def finished(self) -> None:
        """Returns when nothing is `pending`."""

    def closed(self) -> None:
        """The session has ended."""


class Session:
    """One client connection. `broker` is -1 on a bootstrap address: any broker of `cluster` will do."""

    def __init__(self, around: Surroundings, client: Channel, listener: str, cluster: str, broker: int) -> None:
        self.around = around
        self.client = client
        self.inbox = Inbox(client, around.scratch)
        self.listener = listener
        self.cluster = cluster
        self.broker = broker
        self.upstream: Channel | None = None
        self.upstream_inbox: Inbox | None = None
        self.slots: deque[Slot] = deque()
        self.opened = time.monotonic()
        self.active = self.opened  # when the last request came or the last answer went
        self.frame_since = self.opened  # when the request that is being read began; 0.0 between requests
        self.frame_size = 0
        self.holding = False  # the request that is being read has a part of the worker's budget
        self.made_bytes = 0  # of answers made here that wait for their turn
        self.fetch_generation = -1
        self.fetches_moved = False  # its fetch sessions may hold partitions of topics that have moved
        self.last_produce: RepeatedProduce | None = None
        self.client_id: str | None = None
        self.known_principal: str | None = None
        self.mapped_principal: str | None = None  # from a client certificate
        self.login_ends = 0.0  # when the broker takes the login for over (KIP-368; monotonic seconds), 0.0: never
        self.raw_tokens = 0  # frames to come that are raw SASL tokens
        self.ended: str | None = None  # why it was ended from here
        self.asked = False  # a whole request has come
        self.handling: int | None = None  # the revision of the view that a handler is working with
        self.handling_key = -1  # ... and its API
        self.upstream_broker = -1
        self.silent = False  # something was passed on that gets no answer (acks=0)
        self.logging_in = False  # between a SASL handshake and the first request behind it
        self.passing: Slot | None = None  # whose answer has begun to arrive, where that takes a wait
        self.fenced: Fenced | None = None  # its writes to topics that are being moved
        self._flushing = False
        self._nursery: trio.Nursery | None = None
        self._room: trio.Event | None = None
        self._asking = trio.Lock()
        self._correlation = 0
        self._swept = self._swept_frame = self._frame_waited = 0.0

    async def run(self) -> None:
        """Until either side ends. Never raises but Cancelled."""
        from proxy.session.requests import read_requests

        connections = self.around.metrics.listener(self.listener)
        connections.accepted += 1
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                try:
                    await read_requests(self)
                finally:
                    # What has been read is executed, also where its client is gone (acks=0).
                    if self.fenced is not None and self.fenced.pending:
                        with trio.move_on_after(LAST, shield=True):
                            await self.fenced.finished()
                await self._linger()
                nursery.cancel_scope.cancel()
        except* (ChannelClosed, CloseConnection, ClusterAway) as group:
            if self.ended is None:
                log.debug("connection ended", peer=self.client.peer, cluster=self.cluster, why=str(group.exceptions[0]))
        except* Exception:
            self.around.refused("internal_error")
            log.exception("connection failed", peer=self.client.peer, cluster=self.cluster)
        finally:
            connections.closed += 1
            self.around.metrics.in_flight -= sum(1 for slot in self.slots if owed(slot))
            for slot in self.slots:
                if slot.done is not None:
                    slot.done.set()
            self.slots.clear()
            if self.fenced is not None:
                self.fenced.closed()
            self.client.close()
            if self.upstream is not None:
                self.upstream.close()

    async def _linger(self) -> None:
        """The client sends no more: what it has sent is still executed (acks=0), and answers it still reads go out."""
        if self.upstream is None and not self.slots:
            return
        if self.upstream is not None:
            self.upstream.finish()
        with trio.move_on_after(5):
            while self.slots:
                await self._next_pop()

    def end(self, reason: str) -> None:
        """Close from here (a bound was passed, the worker stops); counted under `reason`."""
        if self.ended is None:
            self.ended = reason
            self.around.refused(reason)
            log.info("connection closed", peer=self.client.peer, cluster=self.cluster, reason=reason)
        self.client.close()
        if self.upstream is not None:
            self.upstream.close()

    def refuse(self, reason: str, **facts: object) -> CloseConnection:
        """To be raised: the client broke the protocol, or asked what is never forwarded."""
        if self.ended is None:
            self.ended = reason
            self.around.refused(reason)
            log.warning("connection refused", peer=self.client.peer, cluster=self.cluster, reason=reason, **facts)
        return CloseConnection(reason)

    @property
    def busy(self) -> bool:
        """Whether a request is being read or handled, or owes an answer."""
        return (
            bool(self.slots)
            or self.handling is not None
            or bool(self.frame_since and self.asked)
            or (self.fenced is not None and self.fenced.pending)
        )

    def waiting(self, now: float) -> Waiting:
        """For the sweep, which calls it about once a second.

        What a frame takes is sampled here instead of measured where it is read: only the time in which its client
        was waited for counts, and the way of the bytes costs nothing.
        """
        if not self.frame_since or self.frame_since != self._swept_frame:
            self._swept_frame = self.frame_since
            self._frame_waited = 0.0
        elif self.asked and self.client.reading_since:
            self._frame_waited += now - max(self._swept, self._swept_frame)
        self._swept = now
        return Waiting(
            opened=self.opened,
            active=self.active,
            asked=self.asked,
            frame_waited=self._frame_waited,
            frame_size=self.inbox.arrived if self.holding else self.frame_size,
            crowding=self.holding and self.around.budget.crowded,
            client_writing_since=self.client.writing_since,
            upstream_writing_since=self.upstream.writing_since if self.upstream is not None else 0.0,
            busy=bool(self.slots) or self.handling is not None,
        )

    # The upstream connection.

    async def open_upstream(self) -> Channel:
        """This connection's broker connection, opened at first need. Raises ClusterAway."""
        if self.upstream is None:
            from proxy.session.responses import write_responses

            try:
                channel, broker = await self.around.connect(self.cluster, self.broker, self.mapped_principal)
            except ClusterAway:
                self.around.refused("broker_away")
                raise
            self.upstream = channel
            self.upstream_broker = broker
            self.upstream_inbox = Inbox(channel, self.around.scratch)
            assert self._nursery is not None
            self._nursery.start_soon(write_responses, self)
        return self.upstream

    async def log_in_again(self) -> None:
        """Renew the login of a certificate's principal. Raises CloseConnection."""
        upstream = self.upstream
        assert upstream is not None and self.mapped_principal is not None and self.around.log_in_again is not None
        try:
            upstream.login_due = await self.around.log_in_again(
                self.inner, self.cluster, self.upstream_broker, self.mapped_principal
            )
        except ClusterAway as away:
            raise CloseConnection(str(away)) from None

    async def room(self) -> None:
        """Wait while too many requests owe an answer."""
        while len(self.slots) >= MAX_IN_FLIGHT:
            await self._next_pop()

    async def _next_pop(self) -> None:
        if self._room is None:
            self._room = trio.Event()
        await self._room.wait()

    def push(self, slot: Slot) -> None:
        self.slots.append(slot)
        if slot.kind is not Kind.INNER:
            self.around.metrics.in_flight += 1

    def first_owed(self) -> Slot | None:
        """Whose answer is the next that the client gets."""
        for slot in self.slots:
            if owed(slot):
                return slot
        return None

    async def its_turn(self, slot: Slot) -> None:
        """Returns when `slot` is the next whose answer the client gets, and nothing else is being sent to it."""
        while self._flushing or self.first_owed() is not slot:
            await self._next_pop()

    def made(self, slot: Slot, frame: bytes) -> None:
        """The answer of a slot that was to be made later; it goes out in its turn."""
        slot.kind, slot.answer = Kind.LOCAL, frame
        self.made_bytes += len(frame)
        self.flush_soon()

    def flush_soon(self) -> None:
        first = self.first_owed()
        if first is not None and first.kind is Kind.LOCAL and not self._flushing and self._nursery is not None:
            self._nursery.start_soon(self.flush)

    async def flush(self) -> None:
        """Send what was made here and has its turn. One task at a time does it."""
        if self._flushing:
            return
        self._flushing = True
        try:
            while (slot := self.first_owed()) is not None and slot.kind is Kind.LOCAL:
                assert slot.answer is not None
                await self.client.send(slot.answer)
                self.slots.remove(slot)
                self.made_bytes -= len(slot.answer)
                self.answered(slot, len(slot.answer))
        finally:
            self._flushing = False
        self.popped()

    def cut(self, slot: Slot, frame: bytes) -> bool:
        """Answer a request that its broker keeps waiting; what the broker says later is thrown away. False: it has
        begun to answer."""
        if slot is self.passing or slot not in self.slots:
            return False
        made = Slot(Kind.LOCAL, slot.key, slot.version, slot.correlation, slot.cluster)
        made.started = slot.started
        made.answer = frame
        self.made_bytes += len(frame)
        self.slots.insert(self.slots.index(slot), made)
        slot.kind = Kind.DROPPED
        self.flush_soon()
        return True

    def drop(self, slot: Slot) -> bool:
        """Wait no longer for the answer to a question of ours: `done` is set without one. False: it has begun."""
        if slot is self.passing or slot.kind is not Kind.INNER or slot.done is None or slot.answer is not None:
            return False
        slot.kind = Kind.DROPPED
        slot.done.set()
        return True

    def popped(self) -> None:
        """A slot was answered: there is room again."""
        if self._room is not None:
            self._room.set()
            self._room = None

    # Answers made here.

    async def answer(self, slot: Slot, frame: bytes) -> None:
        """Send a whole response frame in its turn."""
        # A client that asks and does not read is not read from either.
        while self.slots and (len(self.slots) >= MAX_IN_FLIGHT or 0 < self.made_bytes > MAX_MADE - len(frame)):
            await self._next_pop()
        if self.slots and self.first_owed() is not None:
            slot.kind = Kind.LOCAL
            slot.answer = frame
            self.made_bytes += len(frame)
            self.push(slot)
            return
        self.around.metrics.in_flight += 1
        try:
            await self.client.send(frame)
        except BaseException:
            self.around.metrics.in_flight -= 1
            raise
        self.answered(slot, len(frame))

    def answered(self, slot: Slot, size: int) -> None:
        now = time.monotonic()
        self.active = now
        self.around.metrics.in_flight -= 1
        counters = self.around.api(slot.key, slot.cluster)
        counters.response_bytes += size
        counters.observe(now - slot.started)

    # Questions of our own on this connection.

    async def inner(self, key: int, version: int, message: Message) -> Message:
        """Ask this connection's broker on the client's own connection: the broker judges it as the client.

        Raises:
            CloseConnection: the broker is gone.
        """
        slot = await self.ask(key, version, message)
        assert slot.done is not None
        await slot.done.wait()
        assert slot.answer is not None
        return parse_response(key, version, slot.answer)[1]

    async def ask(self, key: int, version: int, message: Message, *, crowded: bool = False) -> Slot:
        """The same without waiting for the answer: once `done` is set it is the slot's `answer`, None where it was
        `drop`ped, or the session has ended. `crowded`: also while too many requests owe an answer, which wait for
        this one."""
        async with self._asking:
            upstream = await self.open_upstream()
            if not crowded:
                await self.room()
            self._correlation = self._correlation % 0x7FFFFFFF + 1
            slot = Slot(Kind.INNER, key, version, self._correlation, self.cluster)
            slot.done = trio.Event()
            self.push(slot)
            await upstream.send(request_frame(key, version, slot.correlation, self.client_id, message))
        return slot

    async def inner_unanswered(self, key: int, version: int, message: Message) -> None:
        """The same for a request that gets no answer (Produce with acks=0)."""
        async with self._asking:
            upstream = await self.open_upstream()
            self.silent = True
            self._correlation = self._correlation % 0x7FFFFFFF + 1
            await upstream.send(request_frame(key, version, self._correlation, self.client_id, message))

    @property
    def nursery(self) -> trio.Nursery:
        """What runs in it ends with the session."""
        assert self._nursery is not None
        return self._nursery


def owed(slot: Slot) -> bool:
    """Whether the client waits for this answer."""
    return slot.kind is not Kind.INNER and slot.kind is not Kind.DROPPED
