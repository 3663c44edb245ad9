"""A connection given over to one writer and one reader that keep it busy, as copying does.

What is put is sent at once as far as the socket takes it, without a task switch; answers are read as many at a time as
there are, or into memory of the caller's, and whole megabytes wake the reader a few times, not once a segment.
"""

from __future__ import annotations

import socket
import struct
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import trio

from kafka_client.failures import BrokerUnavailable

if TYPE_CHECKING:
    from kafka_client.connection import Connection
    from kafka_wire.codec import Buffer

SCRATCH = 1 << 16
LARGE = 1 << 16  # answers above are read into memory of their own
WAKE = 1 << 21  # bytes of a large answer that are waited for at a time
_STEP = 1 << 20  # sizes of lent memory are multiples of it
_VECTORS = 512  # Linux takes 1024 at a time
_SIZE, _I32 = struct.Struct(">i"), struct.Struct(">i")


class Duplex:
    """`put` requests, `flush` or `drain` them, and take their answers in order; nobody else uses the connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stream = connection.stream
        self._raw = connection.raw  # None: TLS
        self._out: list[Buffer] = []
        self._size = 0  # bytes of it
        self._correlation = 0
        self._owed: deque[int] = deque()  # correlation ids of requests without an answer
        self._scratch = bytearray(SCRATCH)
        self._have = 0  # bytes of the scratch that are filled
        self._done = 0  # ... and were given away
        self._low = 1

    @property
    def unsent(self) -> bool:
        """Whether something that was put waits for the socket: `drain` it."""
        return bool(self._out)

    @property
    def due(self) -> bool:
        """Whether the login is to be renewed before the next request; only when nothing is in flight."""
        at = self._connection.reauthenticate_at
        return at is not None and trio.current_time() >= at

    async def renew(self) -> None:
        """Log in again. Raises AuthenticationFailed, BrokerUnavailable."""
        self._wake_at(1)
        await self._connection.reauthenticate()

    def put(self, head: bytearray, parts: Sequence[Buffer] = ()) -> None:
        """A request frame of `head` (its correlation id is filled in) and `parts`, which are not copied."""
        self._correlation = self._correlation + 1 & 0x7FFFFFFF
        _I32.pack_into(head, 4, self._correlation)
        size = len(head) + sum(map(len, parts))
        self._out.append(_SIZE.pack(size) + head)
        self._out += parts
        self._size += size + 4
        self._owed.append(self._correlation)

    def flush(self) -> bool:
        """Send what the socket takes now; True where that is all. Raises BrokerUnavailable."""
        out, raw = self._out, self._raw
        if raw is None:
            return not out
        while out:
            some = out[:_VECTORS]
            try:
                sent = raw.sendmsg(some)
            except BlockingIOError:
                return False
            except OSError as error:
                raise self._connection.lost(error) from error
            self._size -= sent
            if not self._size:
                out.clear()
                break
            at = 0
            for one in some:
                size = len(one)
                if sent < size:
                    out[at] = memoryview(one)[sent:]
                    break
                sent -= size
                at += 1
            del out[:at]
        return True

    async def drain(self) -> None:
        """Send everything. Raises BrokerUnavailable."""
        raw = self._raw
        try:
            while self._out:
                if raw is None:
                    data, self._out, self._size = b"".join(self._out), [], 0
                    await self._stream.send_all(data)
                elif not self.flush():
                    await trio.lowlevel.wait_writable(raw)
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError) as error:
            raise self._connection.lost(error) from error

    # -- answers --------------------------------------------------------------------------------------------------

    async def answers(self, low: int = 1) -> list[memoryview]:
        """At least one answer, and all that have come; they are gone with the next call. Raises BrokerUnavailable.

        Nothing wakes the reader before `low` bytes have come, which certainly will.
        """
        scratch = self._scratch
        rest = self._have - self._done
        if self._done:
            scratch[:rest] = scratch[self._done : self._have]
            self._have, self._done = rest, 0
        while True:
            out: list[memoryview] = []
            view = memoryview(scratch)
            at = 0
            while self._have - at >= 4:
                size = self._checked(_SIZE.unpack_from(scratch, at)[0])
                if self._have - at < size + 4:
                    if size + 4 > len(scratch):
                        scratch = self._scratch = scratch + bytes(size + 4 - len(scratch))
                    break
                out.append(self._judged(view[at + 4 : at + 4 + size]))
                at += size + 4
            if out:
                self._done = at
                return out
            self._wake_at(max(1, low - self._have))
            self._have += await self._receive(memoryview(scratch)[self._have :])

    async def answer(self, memory: Callable[[int], bytearray | None]) -> memoryview:
        """The one answer that is owed, to keep. A large one is read into what `memory` gives for its size, if anything.

        Raises BrokerUnavailable.
        """
        scratch = self._scratch
        have = 0
        self._wake_at(1)
        while have < 4:
            have += await self._receive(memoryview(scratch)[have:])
        size = self._checked(_SIZE.unpack_from(scratch)[0])
        body: bytearray | None = memory(size) if size > LARGE else None
        if body is None:
            body = bytearray(size)
        frame = memoryview(body)[:size]
        have -= 4
        if have > size:
            raise self._connection.failed("an answer nobody asked for")
        frame[:have] = memoryview(scratch)[4 : have + 4]
        while have < size:
            self._wake_at(min(size - have, WAKE))
            have += await self._receive(frame[have:])
        self._wake_at(1)
        return self._judged(frame)

    def _wake_at(self, low: int) -> None:
        if low != self._low and self._raw is not None:
            self._raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, low)
            self._low = low

    def _checked(self, size: int) -> int:
        if not 4 <= size <= self._connection.max_frame:
            raise self._connection.failed(f"a frame of {size} bytes")
        return size

    def _judged(self, frame: memoryview) -> memoryview:
        if not self._owed:
            raise self._connection.failed("an answer nobody asked for")
        wanted = self._owed.popleft()
        (found,) = _I32.unpack_from(frame)
        if found != wanted:
            raise self._connection.failed(f"an answer out of order: correlation {found}, not {wanted}")
        return frame

    async def _receive(self, room: memoryview) -> int:
        raw = self._raw
        try:
            if raw is None:
                data = await self._stream.receive_some(min(len(room), 1 << 18))
                count = len(data)
                room[:count] = data
            else:
                await trio.lowlevel.wait_readable(raw)
                try:
                    count = raw.recv_into(room)
                except BlockingIOError:
                    return 0
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError) as error:
            raise self._connection.lost(error) from error
        if not count:
            raise self._connection.failed("closed by the broker")
        return count


class Lent:
    """Large memory that is used again: it is free once nobody holds a view of it. `limit` bounds all of it, bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held: list[bytearray] = []  # the most recently used last

    @property
    def size(self) -> int:
        return sum(map(len, self._held))

    def take(self, size: int) -> bytearray | None:
        """At least so many bytes, with anything in them; None where too much is lent. It is kept in mind from now."""
        held = self._held
        for index in range(len(held) - 1, -1, -1):
            one = held[index]
            if size <= len(one) <= 4 * size + _STEP and _free(one):
                held.append(held.pop(index))
                return one
        room = -(-size // _STEP) * _STEP
        index = 0
        while index < len(held) and self.size + room > self._limit:
            if _free(held[index]):
                del held[index]
            else:
                index += 1
        if self.size + room > self._limit:
            return None
        one = bytearray(room + 1)
        one.pop()  # what `_free` appends has room
        held.append(one)
        return one

    @property
    def full(self) -> bool:
        """Whether nearly all of it is held by others."""
        return self.size > self._limit * 3 // 4 and not any(map(_free, self._held))


def _free(one: bytearray) -> bool:
    """Whether no view of it is left: its size cannot change while there is one."""
    try:
        one.append(0)
    except BufferError:
        return False
    one.pop()
    return True


__all__ = ["BrokerUnavailable", "Duplex", "Lent"]
