"""The embedded backend: a client of the embedded server.

A call takes a connection of its own out of a small pool, asks, and puts it back; so a call that is cancelled or late
costs a connection and confuses no other. Reads are repeated over lost connections until the deadline; a write only
where it was not sent.
"""

from __future__ import annotations

import select
from typing import TYPE_CHECKING

import trio

from metadata_service.store.clock import Backoff, boottime
from metadata_service.store.contract import (
    DEADLINE,
    PROGRESS_INTERVAL,
    Change,
    Commit,
    Compacted,
    Condition,
    Event,
    GuardFailed,
    KeyValue,
    Lease,
    LeaseExpired,
    Operation,
    Progress,
    Range,
    StoreError,
    StoreRefused,
    StoreUnavailable,
    Unchanged,
)
from metadata_service.store.embedded_wire import (
    MAX_REPLY,
    Ask,
    BadFrame,
    Behind,
    Changed,
    Compact,
    Current,
    Failed,
    FrameReader,
    Grant,
    Granted,
    GuardDidNotHold,
    Invalid,
    Items,
    KeepAlive,
    NoSuchLease,
    Read,
    ReadPrefix,
    Reply,
    Request,
    Revoke,
    WatchFrom,
    Write,
    Written,
    encode_frame,
    reply_decoder,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

CONNECTIONS = 32
"""Calls at the same time; further ones wait their turn, within their deadline."""


class _Lost(Exception):
    """The connection ended before the answer was complete."""


class _Connection:
    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.reader = FrameReader(stream, reply_decoder, MAX_REPLY)

    @classmethod
    async def open(cls, path: Path) -> _Connection:
        """Raises OSError."""
        return cls(await trio.open_unix_socket(str(path)))

    @property
    def stale(self) -> bool:
        """The server has closed it (or sent what nobody asked for) while it was idle."""
        poll = select.poll()
        poll.register(self.stream.socket.fileno(), select.POLLIN)
        return bool(poll.poll(0))

    async def send(self, request: Request) -> None:
        try:
            await self.stream.send_all(encode_frame(request))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise _Lost("the connection was lost") from error

    async def receive(self) -> Reply:
        try:
            reply = await self.reader.receive()
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise _Lost("the connection was lost") from error
        except BadFrame as error:
            raise _Lost(f"the server's answer is not readable: {error}") from error
        if reply is None:
            raise _Lost("the server closed the connection")
        return reply

    async def ask(self, request: Request) -> Reply:
        """The answer, its parts put together."""
        await self.send(request)
        items: list[KeyValue] = []
        while isinstance(reply := await self.receive(), Items):
            items += reply.items
            if not reply.more:
                return Items(reply.revision, tuple(items), more=False)
        return reply

    async def aclose(self) -> None:
        await trio.aclose_forcefully(self.stream)


class EmbeddedBackend:
    def __init__(self, path: Path, *, deadline: float = DEADLINE, progress_interval: float = PROGRESS_INTERVAL) -> None:
        """`path` is the server's socket; nothing is connected before the first call."""
        self.path = path
        self.deadline = deadline
        self.progress_interval = progress_interval
        self._idle: list[_Connection] = []
        self._turns = trio.CapacityLimiter(CONNECTIONS)

    @property
    def description(self) -> str:
        return f"the embedded store at {self.path}"

    async def read(self, guard: Unchanged | None, key: str) -> Range:
        return self._range(await self._call(Read(guard, key)))

    async def range(self, guard: Unchanged | None, prefix: str) -> Range:
        return self._range(await self._call(ReadPrefix(guard, prefix)))

    async def commit(
        self,
        guard: Unchanged | None,
        conditions: Sequence[Condition],
        operations: Sequence[Operation],
        otherwise: Sequence[Operation],
    ) -> Commit:
        reply = await self._call(Write(guard, tuple(conditions), tuple(operations), tuple(otherwise)), repeatable=False)
        if not isinstance(reply, Written):
            raise self._unexpected(reply)
        return Commit(reply.succeeded, reply.revision)

    async def grant(self, ttl: int) -> Lease:
        # Repeated, it may leave a lease behind that nobody knows; that one ends by itself.
        reply = await self._call(Grant(ttl))
        if not isinstance(reply, Granted):
            raise self._unexpected(reply)
        return Lease(reply.lease, reply.ttl)

    async def keep_alive(self, lease: int) -> int:
        reply = await self._call(KeepAlive(lease))
        if not isinstance(reply, Granted):
            raise self._unexpected(reply)
        return reply.ttl

    async def revoke(self, lease: int) -> None:
        await self._call(Revoke(lease))

    async def compact(self, revision: int) -> None:
        await self._call(Compact(revision))

    def watch(self, prefix: str, from_revision: int) -> EmbeddedWatch:
        return EmbeddedWatch(self, prefix, from_revision)

    async def aclose(self) -> None:
        with trio.CancelScope(shield=True):  # all of them, also where this is cancelled; it does not wait
            while self._idle:
                await self._idle.pop().aclose()

    def _range(self, reply: Reply) -> Range:
        if not isinstance(reply, Items):
            raise self._unexpected(reply)
        return Range(reply.revision, reply.items)

    def _unexpected(self, reply: Reply) -> StoreError:
        return StoreError(f"{self.description} answered {type(reply).__name__}: another release?")

    async def _call(self, request: Request, *, repeatable: bool = True) -> Reply:
        trouble = "no answer"
        sent = False
        backoff = Backoff()
        with trio.move_on_after(self.deadline):
            async with self._turns:
                while not (sent and not repeatable):
                    try:
                        connection = await self._connect()
                        sent = True
                        return self._checked(await self._ask(connection, request))
                    except PermissionError as error:
                        raise StoreRefused(f"{self.description}: {error.strerror}") from error
                    except (OSError, _Lost) as error:
                        trouble = str(error)
                    await backoff.pause()
        raise StoreUnavailable(
            f"{self.description} did not answer within {self.deadline:g} s: {trouble}",
            outcome_unknown=sent and not repeatable,
        )

    async def _ask(self, connection: _Connection, request: Request) -> Reply:
        try:
            reply = await connection.ask(request)
        except BaseException:
            await connection.aclose()
            raise
        self._idle.append(connection)
        return reply

    async def _connect(self) -> _Connection:
        while self._idle:
            connection = self._idle.pop()
            if not connection.stale:
                return connection
            await connection.aclose()
        return await _Connection.open(self.path)

    def _checked(self, reply: Reply) -> Reply:
        match reply:
            case GuardDidNotHold():
                raise GuardFailed("the guard does not hold")
            case NoSuchLease(lease):
                raise LeaseExpired(f"lease {lease:x} is gone" if lease else "the lease is gone")
            case Invalid(message):
                raise ValueError(message)
            case Failed(message, outcome_unknown):
                raise StoreUnavailable(f"{self.description}: {message}", outcome_unknown=outcome_unknown)
            case _:
                return reply


class EmbeddedWatch:
    """Has a connection of its own; connects again, from where it was, whenever that is lost or silent."""

    def __init__(self, backend: EmbeddedBackend, prefix: str, from_revision: int) -> None:
        self._backend = backend
        self._prefix = prefix
        self._next = from_revision
        self._connection: _Connection | None = None
        self._backoff = Backoff()
        self._part: list[Event] = []
        self._asked_at: float | None = None
        self._ask_again_at = 0.0
        self.last_contact: float | None = None

    @property
    def connected(self) -> bool:
        return self._connection is not None

    async def receive(self) -> Change | Progress:
        while True:
            try:
                if self._connection is None:
                    await self._connect()
                elif self._asked_at is None and boottime() >= self._ask_again_at:
                    await self._ask(self._connection)
                elif (item := await self._receive(self._connection)) is not None:
                    return item
            except (OSError, _Lost):
                await self.aclose()
                await self._backoff.pause()

    async def _connect(self) -> None:
        with trio.move_on_after(self._backend.deadline):
            connection = await _Connection.open(self._backend.path)
            try:
                await connection.send(WatchFrom(self._prefix, self._next))
            except BaseException:
                await connection.aclose()
                raise
            self._connection = connection
            self._part = []
            self._asked_at, self._ask_again_at = None, boottime()

    async def _ask(self, connection: _Connection) -> None:
        # If this is cancelled, half a question may have been sent: only a new connection is sure to be in step.
        now = boottime()
        self._connection = None
        try:
            with trio.fail_after(self._backend.deadline):
                await connection.send(Ask(now))
        except trio.TooSlowError:
            await connection.aclose()
            return
        except BaseException:
            await connection.aclose()
            raise
        self._connection = connection
        self._asked_at = now

    async def _receive(self, connection: _Connection) -> Change | Progress | None:
        """None: it is time to ask again, or only a part has come."""
        if self._asked_at is None:
            limit = self._ask_again_at
        else:
            limit = max(self._asked_at, self.last_contact or 0.0) + self._backend.deadline
        with trio.move_on_after(max(0.0, limit - boottime())) as waiting:
            reply = await connection.receive()
        if waiting.cancelled_caught:
            if self._asked_at is not None:
                raise _Lost("no answer to a question")
            return None
        self.last_contact = boottime()
        self._backoff.reset()
        match reply:
            case Changed(revision, events, more):
                self._part += events
                if more:
                    return None
                change = Change(revision, tuple(self._part))
                self._part = []
                self._next = revision + 1
                return change
            case Current(revision, asked_at):
                self._asked_at = None
                self._ask_again_at = asked_at + self._backend.progress_interval
                self._next = max(self._next, revision + 1)
                return Progress(revision, asked_at)
            case Behind(revision):
                raise Compacted(revision)
            case _:
                raise _Lost(f"{type(reply).__name__} on a watch")

    async def aclose(self) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            await connection.aclose()
