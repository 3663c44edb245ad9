"""Record batches against bytes made by hand, and against Java's rules."""

from __future__ import annotations

import struct
import zlib

import cramjam
import pytest
from crc32c import crc32c

from kafka_wire.batches import (
    CONTROL,
    DELETE_HORIZON,
    HEADER,
    LOG_APPEND_TIME,
    TRANSACTIONAL,
    advance,
    first_size,
    intact,
    place,
    split,
    stamp,
    walk,
    whole,
)
from kafka_wire.codec import DecodeError
from kafka_wire.compression import GZIP, LZ4, NAMES, NONE, SNAPPY, ZSTD, compress, decompress
from kafka_wire.records import NO_TIMESTAMP, Record, body_of, decode_records, encode_batch, fields_of

CODECS = (NONE, GZIP, SNAPPY, LZ4, ZSTD)
RECORDS = [
    Record(7, 1000, 0, body_of(b"k", b"v" * 300, [("h", b"x"), ("h", None)])),
    Record(8, 900, 0, body_of(None, b"")),
    Record(12, 2000, 0, body_of(b"k", None)),
]


def message(magic: int, offset: int, key: bytes | None, value: bytes | None, *, codec: int = 0, time: int = 5) -> bytes:
    """A message of the old format; attribute bit 3 marks LogAppendTime."""
    tail = struct.pack(">bb", magic, codec) + (struct.pack(">q", time) if magic else b"")
    for part in (key, value):
        tail += struct.pack(">i", -1 if part is None else len(part)) + (part or b"")
    return struct.pack(">qiI", offset, len(tail) + 4, zlib.crc32(tail)) + tail


@pytest.mark.parametrize("codec", CODECS, ids=NAMES)
def test_a_batch_and_its_records(codec: int) -> None:
    made = encode_batch(RECORDS, codec=codec, producer_id=5, producer_epoch=1, base_sequence=9, leader_epoch=3)
    (one,) = walk(made)
    assert (one.base_offset, one.last_offset, one.next_offset, one.records, one.dense) == (7, 12, 13, 3, False)
    assert (one.producer_id, one.producer_epoch, one.base_sequence, one.last_sequence) == (5, 1, 9, 14)
    assert (one.base_timestamp, one.max_timestamp, one.codec, one.leader_epoch) == (1000, 2000, codec, 3)
    assert one.size == one.end == len(made) and intact(memoryview(made))
    assert decode_records(made, one) == RECORDS
    assert fields_of(RECORDS[0].body) == (b"k", b"v" * 300, (("h", b"x"), ("h", None)))
    assert fields_of(RECORDS[2].body) == (b"k", None, ())


def test_a_stamp_changes_what_it_should() -> None:
    flags = TRANSACTIONAL | DELETE_HORIZON | LOG_APPEND_TIME
    made = encode_batch(RECORDS, attributes=flags, producer_id=1, producer_epoch=2, base_sequence=3, codec=LZ4)
    before = bytes(made)
    stamp(memoryview(made), 1 << 40, 9, 77)
    (one,) = walk(made)
    assert intact(memoryview(made))
    assert (one.base_offset, one.leader_epoch, one.attributes) == (0, -1, LOG_APPEND_TIME | LZ4)
    assert (one.producer_id, one.producer_epoch, one.base_sequence) == (1 << 40, 9, 77)
    assert before[23:43] == made[23:43] and before[57:] == made[57:]
    place(made, 500, 4)
    (one,) = walk(made)
    assert intact(memoryview(made)) and (one.base_offset, one.leader_epoch) == (500, 4)


def test_a_delete_horizon_stands_where_the_base_timestamp_was() -> None:
    made = encode_batch(RECORDS, attributes=DELETE_HORIZON)
    times = [one.timestamp for one in decode_records(made, next(walk(made)))]
    stamp(made, 1, 0, 0)
    assert [one.timestamp for one in decode_records(made, next(walk(made)))] == times


def test_append_time_is_every_records_time() -> None:
    made = encode_batch(RECORDS, attributes=LOG_APPEND_TIME)
    assert {one.timestamp for one in decode_records(made, next(walk(made)))} == {2000}


def test_incomplete_ends_are_left_out() -> None:
    one, two = encode_batch(RECORDS), encode_batch([Record(13, 5, 0, body_of(b"z", b"z"))])
    both = bytes(one + two)
    for size in range(len(both)):
        part = memoryview(both)[:size]
        assert len(list(walk(part))) == len(split(part)) == (1 if size >= len(one) else 0)
        assert len(whole(part)) == (len(one) if size >= len(one) else 0)
    assert [bytes(part) for part in split(memoryview(both))] == [one, two]
    assert first_size(both[:16]) == len(one) and first_size(both[:11]) is None


@pytest.mark.parametrize("damage", [(8, -5), (8, 3), (16, 3 << 24), (23, -1), (57, -1)])
def test_what_is_no_batch(damage: tuple[int, int]) -> None:
    made = encode_batch(RECORDS)
    struct.pack_into(">i", made, *damage)
    with pytest.raises(DecodeError):
        list(walk(made))


def test_sequences_wrap() -> None:
    assert advance((1 << 31) - 1, 1) == 0
    assert advance((1 << 31) - 3, 5) == 2


def test_dense_numbers_from_zero() -> None:
    made = encode_batch(RECORDS, dense=True)
    (one,) = walk(made)
    assert one.dense and one.base_offset == 0
    assert [(r.offset, r.body) for r in decode_records(made, one)] == [(n, r.body) for n, r in enumerate(RECORDS)]


def test_snappy_raw_and_framed_lz4_without_linked_blocks_gzip_in_members() -> None:
    data = bytes(range(256)) * 1000
    assert decompress(SNAPPY, bytes(cramjam.snappy.compress_raw(data))) == data
    assert compress(SNAPPY, data).startswith(b"\x82SNAPPY\0\0\0\0\x01\0\0\0\x01")
    assert compress(LZ4, data)[4] & 0x20  # independent blocks
    assert decompress(GZIP, compress(GZIP, data) * 2) == data * 2
    for codec in CODECS[1:]:
        with pytest.raises(DecodeError):
            decompress(codec, b"\x82SNAPPY\0\0\0\0\x01\0\0\0\x01\0\0\0\x09x")
    with pytest.raises(DecodeError):
        decompress(5, b"")
    with pytest.raises(ValueError, match="no such codec"):
        compress(5, b"")


@pytest.mark.parametrize("magic", [0, 1])
def test_old_messages(magic: int) -> None:
    log = message(magic, 3, b"k", b"v") + message(magic, 5, None, None, time=6)
    found = [one for batch in walk(log) for one in decode_records(log, batch)]
    times = [5, 6] if magic else [NO_TIMESTAMP, NO_TIMESTAMP]
    assert [(one.offset, one.timestamp) for one in found] == list(zip([3, 5], times, strict=True))
    assert [fields_of(one.body) for one in found] == [(b"k", b"v", ()), (None, None, ())]
    damaged = bytearray(log)
    damaged[-1] ^= 1
    with pytest.raises(DecodeError, match="CRC"):
        [decode_records(damaged, batch) for batch in walk(damaged)]


@pytest.mark.parametrize("codec", [GZIP, SNAPPY, LZ4], ids=["gzip", "snappy", "lz4"])
def test_old_wrappers(codec: int) -> None:
    first, second = message(1, 0, b"a", b"1", time=10), message(1, 2, b"b", b"2", time=11)
    wrapper = message(1, 42, None, compress(codec, first + second), codec=codec, time=99)
    (batch,) = walk(wrapper)
    assert [(one.offset, one.timestamp) for one in decode_records(wrapper, batch)] == [(40, 10), (42, 11)]
    appended = message(1, 42, None, compress(codec, first + second), codec=codec | 8, time=99)
    assert [one.timestamp for one in decode_records(appended, next(walk(appended)))] == [99, 99]

    inner = compress(codec, message(0, 40, b"a", b"1") + message(0, 42, b"b", b"2"))
    if codec == LZ4:  # as clients before KIP-57 wrote it
        wrong = bytearray(inner)
        wrong[6] ^= 0xFF
        inner = bytes(wrong)
    wrapper = message(0, 42, None, inner, codec=codec)
    assert [one.offset for one in decode_records(wrapper, next(walk(wrapper)))] == [40, 42]


def test_a_control_batch_is_told_by_its_header() -> None:
    made = encode_batch([Record(4, 1, 0, body_of(b"\0\0\0\0", b"\0" * 6))], attributes=CONTROL | TRANSACTIONAL)
    (one,) = walk(made)
    assert one.control and one.transactional
    assert HEADER.unpack_from(made)[4] == crc32c(made[21:])
