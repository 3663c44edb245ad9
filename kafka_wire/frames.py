"""Frames and request/response headers: a 4-byte big-endian size, a header, a body.

Request header: key int16, version int16, correlation id int32, client id (nullable string, two-byte length at
every version), then tagged fields where the body's version is flexible. Response header: correlation id, then
tagged fields where flexible, except ApiVersions, whose responses always have the old header (KIP-511).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from kafka_wire.codec import Buffer, DecodeError, Message, decode, encode, is_flexible, read_uvarint

SIZE = struct.Struct(">i")
_HEAD = struct.Struct(">hhih")
API_VERSIONS = 18
MIN_REQUEST = 8  # key, version, correlation id; header v0 (ControlledShutdown v0) is no longer spoken


@dataclass(frozen=True, slots=True)
class RequestHeader:
    """A request's header; `body` is the offset of the body within the frame (size prefix not counted)."""

    key: int
    version: int
    correlation: int
    client_id: str | None
    body: int


def peek_request(frame: Buffer) -> tuple[int, int, int]:
    """(key, version, correlation id) of a frame's first 8 bytes, or DecodeError."""
    if len(frame) < MIN_REQUEST:
        raise DecodeError("a request of fewer than 8 bytes")
    key, version, correlation = struct.unpack_from(">hhi", frame)
    return key, version, correlation


def skip_tags(view: memoryview, pos: int) -> int:
    """The position after a block of tagged fields."""
    count, pos = read_uvarint(view, pos)
    for _ in range(count):
        _, pos = read_uvarint(view, pos)
        size, pos = read_uvarint(view, pos)
        pos += size
    if pos > len(view):
        raise DecodeError("tagged fields longer than the frame")
    return pos


def parse_request(frame: Buffer, flexible: bool) -> RequestHeader:
    """The header of a request whose version's flexibility is known.

    Raises:
        DecodeError: too short, or a client id that is no string.
    """
    view = memoryview(frame)
    try:
        key, version, correlation, n = _HEAD.unpack_from(view)
        pos = _HEAD.size + max(n, 0)
        if n < -1 or pos > len(view):
            raise DecodeError("a client id longer than the frame")
        client_id = None if n < 0 else str(view[_HEAD.size : pos], "utf-8")
        if flexible:
            pos = skip_tags(view, pos)
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise DecodeError(f"request header: {error}") from None
    return RequestHeader(key, version, correlation, client_id, pos)


def request_frame(key: int, version: int, correlation: int, client_id: str | None, message: Message) -> bytes:
    """A whole request frame with its size prefix."""
    body = encode("request", key, version, message)
    name = b"" if client_id is None else client_id.encode()
    head = _HEAD.pack(key, version, correlation, -1 if client_id is None else len(name)) + name
    if is_flexible(key, version):
        head += b"\0"
    return SIZE.pack(len(head) + len(body)) + head + body


def response_header_size(key: int, version: int) -> int:
    """Bytes of a response header without tagged fields: 4, or 5 where it is flexible."""
    return 5 if key != API_VERSIONS and is_flexible(key, version) else 4


def response_frame(key: int, version: int, correlation: int, message: Message) -> bytes:
    """A whole response frame with its size prefix."""
    return response_from_body(key, version, correlation, encode("response", key, version, message))


def response_from_body(key: int, version: int, correlation: int, body: Buffer) -> bytes:
    """A whole response frame around an encoded body."""
    head = SIZE.pack(correlation) + (b"\0" if response_header_size(key, version) == 5 else b"")
    return SIZE.pack(len(head) + len(body)) + head + body


def response_body(key: int, version: int, frame: Buffer) -> int:
    """The offset of the body within a response frame (size prefix not counted)."""
    if response_header_size(key, version) == 4:
        return 4
    return skip_tags(memoryview(frame), 4)


def parse_response(key: int, version: int, frame: Buffer) -> tuple[int, Message]:
    """(correlation id, message) of a whole response frame without its size prefix."""
    if len(frame) < 4:
        raise DecodeError("a response of fewer than 4 bytes")
    return SIZE.unpack_from(frame)[0], decode("response", key, version, frame, response_body(key, version, frame))
