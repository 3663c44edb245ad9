"""What the embedded server and its clients say to each other over the Unix socket.

A frame is a length (4 bytes, big-endian) and a msgpack message of that length. A connection answers one request after
the other, in order. Long answers come in parts, the last of which has `more` false. After WatchFrom, the server sends
Changed and Behind as they come and answers each Ask with Current, in order with the changes.
"""

from __future__ import annotations

import struct
from typing import Generic, TypeVar

import msgspec
import trio

from metadata_service.store.contract import Condition, Event, KeyValue, Operation, Unchanged

MAX_REQUEST = 4 << 20
"""Bytes of a frame to the server."""

MAX_REPLY = 16 << 20
"""Bytes of a frame from the server; a part ends after PART bytes, so only its last item can make it longer."""

PART = 1 << 20


class Read(msgspec.Struct, frozen=True, array_like=True, tag=True):
    guard: Unchanged | None
    key: str


class ReadPrefix(msgspec.Struct, frozen=True, array_like=True, tag=True):
    guard: Unchanged | None
    prefix: str


class Write(msgspec.Struct, frozen=True, array_like=True, tag=True):
    guard: Unchanged | None
    conditions: tuple[Condition, ...]
    operations: tuple[Operation, ...]
    otherwise: tuple[Operation, ...]


class Grant(msgspec.Struct, frozen=True, array_like=True, tag=True):
    ttl: int


class KeepAlive(msgspec.Struct, frozen=True, array_like=True, tag=True):
    lease: int


class Revoke(msgspec.Struct, frozen=True, array_like=True, tag=True):
    lease: int


class Compact(msgspec.Struct, frozen=True, array_like=True, tag=True):
    revision: int


class WatchFrom(msgspec.Struct, frozen=True, array_like=True, tag=True):
    prefix: str
    from_revision: int


class Ask(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """On a watch: say Current once everything up to now was sent. `asked_at` comes back with the answer."""

    asked_at: float


Request = Read | ReadPrefix | Write | Grant | KeepAlive | Revoke | Compact | WatchFrom | Ask


class Items(msgspec.Struct, frozen=True, array_like=True, tag=True):
    revision: int
    items: tuple[KeyValue, ...]
    more: bool


class Written(msgspec.Struct, frozen=True, array_like=True, tag=True):
    succeeded: bool
    revision: int


class Granted(msgspec.Struct, frozen=True, array_like=True, tag=True):
    lease: int
    ttl: int


class Done(msgspec.Struct, frozen=True, array_like=True, tag=True):
    pass


class GuardDidNotHold(msgspec.Struct, frozen=True, array_like=True, tag=True):
    pass


class NoSuchLease(msgspec.Struct, frozen=True, array_like=True, tag=True):
    lease: int


class Invalid(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The request breaks the contract's limits."""

    message: str


class Failed(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The server could not carry it out, and did not, unless `outcome_unknown`."""

    message: str
    outcome_unknown: bool


class Changed(msgspec.Struct, frozen=True, array_like=True, tag=True):
    revision: int
    events: tuple[Event, ...]
    more: bool


class Current(msgspec.Struct, frozen=True, array_like=True, tag=True):
    revision: int
    asked_at: float


class Behind(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """On a watch: the history up to `revision` is gone; nothing follows."""

    revision: int


Reply = Items | Written | Granted | Done | GuardDidNotHold | NoSuchLease | Invalid | Failed | Changed | Current | Behind

_LENGTH = struct.Struct(">I")
_encoder = msgspec.msgpack.Encoder()
request_decoder: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
reply_decoder: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)

Decoded = TypeVar("Decoded")


class BadFrame(Exception):
    """The other side does not speak this protocol, or sends more than it may."""


def encode_frame(message: Request | Reply) -> bytes:
    body = _encoder.encode(message)
    return _LENGTH.pack(len(body)) + body


class FrameReader(Generic[Decoded]):
    """Whole messages out of a stream. Cancelling `receive` loses nothing."""

    def __init__(self, stream: trio.abc.ReceiveStream, decoder: msgspec.msgpack.Decoder[Decoded], limit: int) -> None:
        self._stream = stream
        self._decoder = decoder
        self._limit = limit
        self._buffer = bytearray()

    async def receive(self) -> Decoded | None:
        """The next message; None at the end of the stream. Raises BadFrame, trio.BrokenResourceError."""
        while True:
            if (message := self._take()) is not None:
                return message
            data = await self._stream.receive_some(65536)
            if not data:
                return None
            self._buffer += data

    def _take(self) -> Decoded | None:
        if len(self._buffer) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._buffer)
        if length > self._limit:
            raise BadFrame(f"a frame of {length} bytes; at most {self._limit} are allowed")
        end = _LENGTH.size + length
        if len(self._buffer) < end:
            return None
        body = bytes(memoryview(self._buffer)[_LENGTH.size : end])
        del self._buffer[:end]
        try:
            return self._decoder.decode(body)
        except msgspec.MsgspecError as error:
            raise BadFrame(str(error)) from error
