"""The ways a session's writes take while their topics move: its own broker connection, and connections to leaders of
other clusters, opened for it and as its principal.

A lane sends what it is given in that order, without waiting for answers, and gives the answers out in order. One lane
a session and broker keeps a partition's writes in order, as the client's own connection would.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from kafka_wire.codec import DecodeError, Message
from kafka_wire.frames import parse_response, request_frame
from proxy.apis.contract import ClusterAway
from proxy.transport.channel import Channel, ChannelClosed, Inbox
from runtime import logging

if TYPE_CHECKING:
    from proxy.session.session import Session, Slot

log = logging.get(__name__)

PRODUCE, API_VERSIONS = 0, 18
MAX_ANSWER = 1 << 20  # bytes of an answer to a Produce
ANSWER = 30.0  # seconds for a broker's answer
IDLE = 60.0  # seconds after which an unused connection is closed


@dataclass(eq=False, slots=True)
class Batch:
    """One Produce request to one broker. `answered` gets its response, None where it has none (acks=0); `lost` is
    called instead where the connection is gone or could not be had."""

    version: int
    message: Message
    answered: Callable[[Message | None], None]
    lost: Callable[[], None]

    @property
    def silent(self) -> bool:
        return not self.message["acks"]


class Lane:
    """`put` batches. Its tasks run in the session's nursery."""

    def __init__(self) -> None:
        self.out: deque[Batch] = deque()  # bounded by what the fence holds, and by a session's requests in flight
        self.busy = False  # something taken from `out` has not been sent whole yet
        self.sent_all: Callable[[], None] = lambda: None
        self._wake = trio.Event()

    def put(self, batch: Batch) -> None:
        self.out.append(batch)
        self._wake.set()

    @property
    def unsent(self) -> bool:
        return self.busy or bool(self.out)

    async def _next(self) -> Batch:
        while not self.out:
            self.busy = False
            self.sent_all()
            self._wake = trio.Event()
            await self._wake.wait()
        self.busy = True
        return self.out.popleft()


class OwnLane(Lane):
    """The client's own broker connection: behind all that it was sent before."""

    def __init__(self, session: Session) -> None:
        super().__init__()
        self._session = session
        self._asked: deque[tuple[Batch, Slot]] = deque()

    async def run(self) -> None:
        """Until the session ends."""
        session = self._session
        while True:
            batch = await self._next()
            slot = None
            try:
                if batch.silent:
                    await session.inner_unanswered(PRODUCE, batch.version, batch.message)
                    # Brokers work a connection off in order: what answers behind it says that it has been done.
                    slot = await session.ask(API_VERSIONS, 0, {}, crowded=True)
                else:
                    slot = await session.ask(PRODUCE, batch.version, batch.message, crowded=True)
            finally:
                if slot is None:
                    batch.lost()
            session.nursery.start_soon(self._wait, batch, slot)

    async def _wait(self, batch: Batch, slot: Slot) -> None:
        assert slot.done is not None
        told = False
        try:
            await slot.done.wait()
            if slot.answer is not None:
                told = True
                batch.answered(None if batch.silent else parse_response(PRODUCE, batch.version, slot.answer)[1])
        finally:
            if not told:
                batch.lost()


class FarLane(Lane):
    """A connection to a leader of another cluster. Lost once, it is not used again: `ended`."""

    def __init__(self, session: Session, cluster: str, broker: int, principal: str | None) -> None:
        super().__init__()
        self.cluster = cluster
        self.broker = broker
        self.ended = False
        self._session = session
        self._principal = principal
        self._sent: deque[tuple[int, Batch]] = deque()
        self._correlation = 0

    async def run(self) -> None:
        """Until the connection ends, or the session does. Never raises but Cancelled."""
        channel: Channel | None = None
        try:
            channel, _ = await self._session.around.connect(self.cluster, self.broker, self._principal)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write, channel)
                await self._read(channel)
        except* (ClusterAway, ChannelClosed, DecodeError) as group:
            # One that could not be had is tried again with each write: a line each would tell nothing new.
            told = log.debug if channel is None else log.info
            told("forwarding was interrupted", cluster=self.cluster, broker=self.broker, why=str(group.exceptions[0]))
            self._session.around.federation.refresh(self.cluster)
        finally:
            self.ended = True
            if channel is not None:
                channel.close()
            left = [batch for _, batch in self._sent] + list(self.out)
            self._sent.clear()
            self.out.clear()
            self.busy = False
            for batch in left:
                batch.lost()
            self.sent_all()

    async def _write(self, channel: Channel) -> None:
        while True:
            batch = await self._next()
            self._correlation += 1
            frame = request_frame(PRODUCE, batch.version, self._correlation, self._session.client_id, batch.message)
            self._sent.append((self._correlation, batch))
            if batch.silent:  # see OwnLane
                frame += request_frame(API_VERSIONS, 0, self._correlation, self._session.client_id, {})
            await channel.send(frame)

    async def _read(self, channel: Channel) -> None:
        inbox = Inbox(channel, memoryview(bytearray(4096)))
        while True:
            prefix = bytearray(4)
            with trio.move_on_after(ANSWER) as patience:
                await inbox.whole(memoryview(prefix))
                size = int.from_bytes(prefix, "big", signed=True)
                if not 4 <= size <= MAX_ANSWER:
                    raise ChannelClosed(f"an answer of {size} bytes to a Produce")
                frame = bytearray(size)
                await inbox.whole(memoryview(frame))
                if not self._sent:
                    raise ChannelClosed("an answer to no request")
                correlation, batch = self._sent[0]
                if batch.silent:
                    response = None
                else:
                    given, response = parse_response(PRODUCE, batch.version, frame)
                    if given != correlation:
                        raise ChannelClosed("an answer out of order")
                self._sent.popleft()
                batch.answered(response)
                continue
            if patience.cancelled_caught and self._sent:
                raise ChannelClosed(f"no answer within {ANSWER:g} s")
            if patience.cancelled_caught and not self.unsent:
                return  # unused: closed
