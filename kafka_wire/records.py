"""The records inside batches: decoded and encoded again where a header is not enough.

That is rare: holes inside a batch, LogAppendTime, a log start inside a batch, messages of magic 0 and 1. A record's
key, value and headers travel as one piece of bytes (`body`) that is copied as it is.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from kafka_wire.batches import (
    CODEC,
    HEADER,
    HEADER_SIZE,
    LENGTH_FROM,
    LOG_APPEND_TIME,
    NO_PRODUCER,
    Batch,
    seal,
    walk,
)
from kafka_wire.codec import Buffer, DecodeError
from kafka_wire.compression import NONE, compress, decompress

_OLD = (struct.Struct(">qiIbb"), struct.Struct(">qiIbbq"))  # offset, size, crc, magic, attributes, from v1 on a time
_I32 = struct.Struct(">i")
NO_TIMESTAMP = -1

Header = tuple[str, bytes | None]


class Record(NamedTuple):
    """One record. `body` begins at the key's length; `timestamp` is in ms, -1 for none (magic 0)."""

    offset: int
    timestamp: int
    attributes: int
    body: bytes


def read_varint(data: Buffer, pos: int) -> tuple[int, int]:
    """A zigzag varint of at most 10 bytes: (value, next position). IndexError at the end of the data."""
    value = shift = 0
    while shift < 70:
        byte = data[pos]
        pos += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value >> 1 ^ -(value & 1), pos
        shift += 7
    raise DecodeError("a varint of more than 10 bytes")


def write_varint(out: bytearray, value: int) -> None:
    """A zigzag varint, as `read_varint` reads it."""
    value = value << 1 ^ value >> 63
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)


def body_of(key: Buffer | None, value: Buffer | None, headers: Sequence[Header] = ()) -> bytes:
    """Key, value and headers as a record's `body`."""
    out = bytearray()
    for part in (key, value):
        write_varint(out, -1 if part is None else len(part))
        out += part or b""
    write_varint(out, len(headers))
    for name, content in headers:
        raw = name.encode()
        write_varint(out, len(raw))
        out += raw
        write_varint(out, -1 if content is None else len(content))
        out += content or b""
    return bytes(out)


def fields_of(body: bytes) -> tuple[bytes | None, bytes | None, tuple[Header, ...]]:
    """(key, value, headers) of a record's `body`. DecodeError where it is none."""
    try:
        key, pos = _part(body, 0)
        value, pos = _part(body, pos)
        count, pos = read_varint(body, pos)
        headers = []
        for _ in range(count):
            name, pos = _part(body, pos)
            content, pos = _part(body, pos)
            headers.append(((name or b"").decode(), content))
    except (IndexError, UnicodeDecodeError) as error:
        raise DecodeError(f"a record's fields: {error}") from None
    return key, value, tuple(headers)


def _part(data: bytes, pos: int) -> tuple[bytes | None, int]:
    size, pos = read_varint(data, pos)
    if size < 0:
        return None, pos
    if pos + size > len(data):
        raise IndexError("longer than the record")
    return data[pos : pos + size], pos + size


def decode_records(buffer: Buffer, batch: Batch) -> list[Record]:
    """The records of one batch that `walk` found in `buffer`, whatever its magic.

    With LogAppendTime every record has the batch's append time.

    Raises:
        DecodeError: the bytes are no records.
    """
    part = memoryview(buffer)[batch.at : batch.end]
    try:
        return _records(part, batch) if batch.magic == 2 else _messages(part)
    except (IndexError, struct.error) as error:
        raise DecodeError(f"records of the batch at offset {batch.base_offset}: {error}") from None


def _records(part: memoryview, batch: Batch) -> list[Record]:
    data = decompress(batch.codec, part[HEADER_SIZE:])
    append_time = batch.max_timestamp if batch.log_append_time else None
    out: list[Record] = []
    pos = 0
    for _ in range(batch.records):
        size, pos = read_varint(data, pos)
        end = pos + size
        if size < 0 or end > len(data):
            raise DecodeError(f"a record of {size} bytes where {len(data) - pos} are left")
        attributes = data[pos]
        time_delta, pos = read_varint(data, pos + 1)
        offset_delta, pos = read_varint(data, pos)
        time = batch.base_timestamp + time_delta if append_time is None else append_time
        out.append(Record(batch.base_offset + offset_delta, time, attributes, data[pos:end]))
        pos = end
    return out


def encode_batch(
    records: Sequence[Record],
    *,
    codec: int = NONE,
    attributes: int = 0,
    producer_id: int = NO_PRODUCER,
    producer_epoch: int = -1,
    base_sequence: int = -1,
    dense: bool = False,
    leader_epoch: int = -1,
) -> bytearray:
    """A batch of magic 2 around records in the order of their offsets; `attributes` without the codec.

    With `dense` they are numbered 0, 1, 2 ... whatever their offsets are: a producer's batch has no holes.
    """
    if not records:
        raise ValueError("a batch without records")
    base_offset = 0 if dense else records[0].offset
    base_time = records[0].timestamp
    inner = bytearray()
    for number, one in enumerate(records):
        head = bytearray((one.attributes,))
        write_varint(head, one.timestamp - base_time)
        write_varint(head, number if dense else one.offset - base_offset)
        write_varint(inner, len(head) + len(one.body))
        inner += head
        inner += one.body
    packed = compress(codec, inner)
    out = bytearray(
        HEADER.pack(
            base_offset,
            HEADER_SIZE - LENGTH_FROM + len(packed),
            leader_epoch,
            2,
            0,
            attributes & ~CODEC | codec,
            len(records) - 1 if dense else records[-1].offset - base_offset,
            base_time,
            max(one.timestamp for one in records),
            producer_id,
            producer_epoch,
            base_sequence,
            len(records),
        )
    )
    out += packed
    seal(out)
    return out


def values_batch(
    pairs: Iterable[tuple[bytes, bytes | None]], timestamp: int, codec: int = NONE, **producer: int
) -> bytearray:
    """A batch of (key, value) records that all have one time; `producer` as for `encode_batch`."""
    records = [Record(n, timestamp, 0, body_of(key, value)) for n, (key, value) in enumerate(pairs)]
    return encode_batch(records, codec=codec, dense=True, **producer)


# -- magic 0 and 1 ------------------------------------------------------------------------------------------------


def _messages(part: memoryview) -> list[Record]:
    """One message, or those in a compressed wrapper: with magic 1 their offsets count from 0 (KIP-31, KIP-32)."""
    offset, time, attributes, magic, key, value = _message(part)
    codec = attributes & CODEC
    if codec == NONE:
        return [Record(offset, time, 0, body_of(key, value))]
    inner = memoryview(decompress(codec, value or b"", magic))
    found = [_message(inner[one.at : one.end]) for one in walk(inner)]
    if not found:
        return []
    shift = offset - found[-1][0] if magic == 1 else 0
    append_time = magic == 1 and attributes & LOG_APPEND_TIME
    return [Record(one[0] + shift, time if append_time else one[1], 0, body_of(one[4], one[5])) for one in found]


def _message(part: memoryview) -> tuple[int, int, int, int, bytes | None, bytes | None]:
    magic = part[16]
    head = _OLD[magic].unpack_from(part)
    offset, _, crc, _, attributes = head[:5]
    if zlib.crc32(part[16:]) != crc:
        raise DecodeError(f"the message at offset {offset} has a wrong CRC")
    pos = _OLD[magic].size
    parts: list[bytes | None] = []
    for _ in range(2):
        (size,) = _I32.unpack_from(part, pos)
        pos += 4
        if size > len(part) - pos:
            raise DecodeError(f"a field of {size} bytes where {len(part) - pos} are left")
        parts.append(None if size < 0 else bytes(part[pos : pos + size]))
        pos += max(size, 0)
    return offset, head[5] if magic else NO_TIMESTAMP, attributes, magic, parts[0], parts[1]
