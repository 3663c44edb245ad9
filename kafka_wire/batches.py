"""Record batches (magic 2) by their headers: walked, judged and stamped in place; records are never looked at.

Offsets, sizes and positions are in bytes of the buffer, records are counted, times are Unix milliseconds. The base
offset and the leader epoch lie outside the CRC; everything from the attributes on is inside it (KIP-98). Messages of
magic 0 and 1 come out of a walk as batches with only `at`, `base_offset`, `length`, `leader_epoch` (meaningless) and
`magic` to be relied on; `kafka_wire.records` converts them.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from crc32c import crc32c

from kafka_wire.codec import Buffer, DecodeError

HEADER = struct.Struct(">qiibIhiqqqhii")
HEADER_SIZE = 61
LENGTH_FROM = 12  # the length counts what follows it
CRC_FROM = 21
MIN_OLD = 14  # the length of an empty message of magic 0
SEQUENCES = 1 << 31  # sequence numbers wrap to 0 here

CODEC, LOG_APPEND_TIME, TRANSACTIONAL, CONTROL, DELETE_HORIZON = 0x07, 0x08, 0x10, 0x20, 0x40
NO_PRODUCER = -1
_CLEARED = TRANSACTIONAL | DELETE_HORIZON

_FRAME = struct.Struct(">qiib")
_PLACE = struct.Struct(">qi")
_START = struct.Struct(">qiibI")  # up to where the CRC begins to count
_U32, _I32, _I64 = struct.Struct(">I"), struct.Struct(">i"), struct.Struct(">q")
_PRODUCER = struct.Struct(">qhi")
_COUNT_FROM = 57
_CARRIED = 1 << 20  # bytes of records up to which tables carry a CRC


class Batch(NamedTuple):
    """One batch header; `at` is where it begins in the buffer it was read from."""

    at: int
    base_offset: int
    length: int
    leader_epoch: int
    magic: int
    crc: int
    attributes: int
    last_offset_delta: int
    base_timestamp: int
    max_timestamp: int
    producer_id: int
    producer_epoch: int
    base_sequence: int
    records: int

    @property
    def size(self) -> int:
        return self.length + LENGTH_FROM

    @property
    def end(self) -> int:
        """The position in the buffer behind it."""
        return self.at + self.length + LENGTH_FROM

    @property
    def last_offset(self) -> int:
        return self.base_offset + self.last_offset_delta

    @property
    def next_offset(self) -> int:
        return self.base_offset + self.last_offset_delta + 1

    @property
    def codec(self) -> int:
        return self.attributes & CODEC

    @property
    def control(self) -> bool:
        return self.attributes & CONTROL != 0

    @property
    def transactional(self) -> bool:
        return self.attributes & TRANSACTIONAL != 0

    @property
    def log_append_time(self) -> bool:
        return self.attributes & LOG_APPEND_TIME != 0

    @property
    def dense(self) -> bool:
        """Whether every offset from the first to the last has a record: compaction leaves holes."""
        return self.records == self.last_offset_delta + 1

    @property
    def last_sequence(self) -> int:
        """The last record's sequence number, -1 where there is none. Holes do not change it."""
        return advance(self.base_sequence, self.last_offset_delta) if self.base_sequence >= 0 else -1


def advance(sequence: int, by: int) -> int:
    """A sequence number `by` records later; 2^31 - 1 is followed by 0 (DefaultRecordBatch.incrementSequence)."""
    return (sequence + by) % SEQUENCES


def walk(buffer: Buffer, start: int = 0) -> Iterator[Batch]:
    """The complete batches of a buffer in order; an incomplete one at the end, as brokers send it, is left out.

    Raises:
        DecodeError: a length or a magic that no batch has.
    """
    size = len(buffer)
    pos = start
    unpack, frame, made = HEADER.unpack_from, _FRAME.unpack_from, Batch._make
    while pos + 17 <= size:
        offset, length, epoch, magic = frame(buffer, pos)
        end = pos + LENGTH_FROM + length
        if magic == 2:
            if length < HEADER_SIZE - LENGTH_FROM:
                raise DecodeError(f"a batch at offset {offset} of length {length}")
            if end > size:
                return
            one = made((pos, *unpack(buffer, pos)))
            if one[7] < 0 or one[13] < 0:
                raise DecodeError(f"a batch at offset {offset} with {one.records} records to {one.last_offset_delta}")
            yield one
        else:
            if not 0 <= magic <= 1 or length < MIN_OLD:
                raise DecodeError(f"a batch at offset {offset} of magic {magic} and length {length}")
            if end > size:
                return
            yield Batch(pos, offset, length, epoch, magic, 0, 0, 0, -1, -1, NO_PRODUCER, -1, -1, 1)
        pos = end


def first_size(buffer: Buffer, start: int = 0) -> int | None:
    """Bytes the batch at `start` takes, also where it is incomplete; None where even its length is not there."""
    if start + LENGTH_FROM > len(buffer):
        return None
    return int(_PLACE.unpack_from(buffer, start)[1]) + LENGTH_FROM


def whole(buffer: memoryview) -> memoryview:
    """The buffer without an incomplete batch at its end."""
    return tail(buffer)[0]


def tail(buffer: memoryview) -> tuple[memoryview, Batch | None]:
    """The buffer without an incomplete batch at its end, and the last one's header, without looking at the others'.

    Raises:
        DecodeError: a length that no batch has, or a last header that is none.
    """
    size = len(buffer)
    pos = last = 0
    unpack = _PLACE.unpack_from
    while pos + LENGTH_FROM <= size:
        length = unpack(buffer, pos)[1]
        if length < MIN_OLD:
            raise DecodeError(f"a batch of length {length}")
        if pos + LENGTH_FROM + length > size:
            break
        last = pos
        pos += LENGTH_FROM + length
    part = buffer[:pos]
    return part, next(walk(part, last), None)


def split(buffer: memoryview) -> list[memoryview]:
    """Every complete batch as a view of its own."""
    return [buffer[one.at : one.end] for one in walk(buffer)]


def checksum(batch: memoryview) -> int:
    """The CRC-32C that the header of this one batch should hold."""
    return crc32c(batch[CRC_FROM:])


def intact(batch: memoryview) -> bool:
    """Whether the CRC of this one batch is right."""
    return bool(_U32.unpack_from(batch, 17)[0] == crc32c(batch[CRC_FROM:]))


def seal(batch: memoryview | bytearray) -> None:
    """Recompute the CRC of this one batch."""
    _U32.pack_into(batch, 17, crc32c(memoryview(batch)[CRC_FROM:]))


def place(batch: memoryview | bytearray, base_offset: int, leader_epoch: int) -> None:
    """Change what lies outside the CRC."""
    _I64.pack_into(batch, 0, base_offset)
    _I32.pack_into(batch, 12, leader_epoch)


@lru_cache(1 << 11)
def _carried(behind: int) -> array[int]:
    """What a difference between two CRCs becomes over so many equal bytes, by its four bytes: 256 values each."""
    some = bytes(behind)
    nothing = crc32c(some, 0)
    out = array("I")
    for byte in range(4):
        bits = [crc32c(some, 1 << 8 * byte + bit) ^ nothing for bit in range(8)]
        out.append(0)
        for value in range(1, 256):
            low = value & -value
            out.append(out[256 * byte + value - low] ^ bits[low.bit_length() - 1])
    return out


def stamp(batch: memoryview | bytearray, producer_id: int, producer_epoch: int, base_sequence: int) -> None:
    """Make this one data batch a mirror's own: base offset 0, no leader epoch, plain and not transactional.

    The delete horizon's bit goes too: with it the base timestamp is the horizon, and deltas count from there, so
    that timestamps stay what they are. The CRC is not made anew: it is linear, so what the changed header changes in it
    is computed, without a look at the records. One that was wrong stays wrong, for whoever reads it to see.
    """
    size = len(batch)
    head = memoryview(batch)[CRC_FROM:HEADER_SIZE]
    (crc,) = _U32.unpack_from(batch, 17)
    change = crc32c(head)
    attributes = batch[22]  # the low byte of them
    if attributes & _CLEARED:
        batch[22] = attributes & ~_CLEARED
    _PRODUCER.pack_into(batch, 43, producer_id, producer_epoch, base_sequence)
    change ^= crc32c(head)
    behind = size - HEADER_SIZE
    if behind >= _CARRIED:
        some = bytes(behind)
        change = crc32c(some, change) ^ crc32c(some, 0)
    else:  # in two steps, so that there are few tables
        for step in (behind & 1023, behind & ~1023):
            by = _carried(step)
            change = (
                by[change & 255]
                ^ by[256 + (change >> 8 & 255)]
                ^ by[512 + (change >> 16 & 255)]
                ^ by[768 + (change >> 24)]
            )
    _START.pack_into(batch, 0, 0, size - LENGTH_FROM, -1, 2, crc ^ change)
