"""What is copied as it is, what is encoded again, what is left out."""

from __future__ import annotations

from typing import Any

import pytest

from kafka_wire.batches import CONTROL, LOG_APPEND_TIME, TRANSACTIONAL, intact, stamp, walk
from kafka_wire.records import Record, body_of, decode_records, encode_batch, fields_of
from offset_sync.guard import Entry, Guard, Noted
from offset_sync.journal import (
    PARTITIONS,
    REGISTRY,
    Contents,
    State,
    Stream,
    checkpoint_pairs,
    partition_of,
    producer_pair,
    tombstones,
)
from offset_sync.table import Table
from replicator.cut import Corrupt, Strangers, Written, cut, producer_ids
from tests.unit.test_batches import message


def batch(*offsets: int, time: int = 100, **fields: Any) -> bytes:
    return bytes(encode_batch([Record(n, time + n, 0, body_of(b"k", b"%d" % n)) for n in offsets], **fields))


def log(*batches: bytes) -> memoryview:
    return memoryview(bytearray(b"".join(batches)))


def values(data: memoryview) -> list[bytes | None]:
    return [fields_of(one.body)[1] for header in walk(data) for one in decode_records(data, header)]


def test_data_passes_as_it_is() -> None:
    first, second = batch(5, 6, 7, codec=3, producer_id=9, producer_epoch=1, base_sequence=4), batch(8)
    got = cut(log(first, second), 5)
    assert [bytes(one.data) for one in got.pieces] == [first, second]
    assert [(one.records, one.base, one.next, one.stretches) for one in got.pieces] == [
        (3, 5, 8, ((5, 3),)),
        (1, 8, 9, ((8, 1),)),
    ]
    assert got.pieces[0].written == Written(9, 1, 4, 6) and got.pieces[1].written is None
    assert (got.position, got.left_out) == (9, 0)
    assert cut(log(first, second)[:-1], 5).position == 8


def test_the_placement_in_a_producer_id_is_not_the_clients() -> None:
    mine = (3 << 40) + 17
    data = log(batch(0, producer_id=(2 << 52) + mine, producer_epoch=0, base_sequence=0))
    assert cut(data, 0).pieces[0].written == Written(mine, 0, 0, 0)


def test_holes_are_numbered_anew() -> None:
    got = cut(log(batch(5, 7, 8, 12, codec=4)), 5)
    (one,) = got.pieces
    (header,) = walk(one.data)
    assert (header.dense, header.records, header.codec, one.next) == (True, 4, 4, 13)
    assert one.stretches == ((5, 1), (7, 2), (12, 1))
    assert [r.timestamp for r in decode_records(one.data, header)] == [105, 107, 108, 112]


def test_a_position_inside_a_batch_cuts_it() -> None:
    data = log(batch(5, 6, 7, 8, producer_id=9, producer_epoch=0, base_sequence=30))
    (one,) = cut(data, 7).pieces
    assert (values(one.data), one.stretches, one.base) == ([b"7", b"8"], ((7, 2),), 5)
    assert one.written == Written(9, 0, 30, 33)
    assert cut(data, 9).pieces == []


def test_append_time_becomes_the_records_time() -> None:
    (one,) = cut(log(batch(5, 6, attributes=LOG_APPEND_TIME)), 5).pieces
    (header,) = walk(one.data)
    assert not header.log_append_time
    assert [r.timestamp for r in decode_records(one.data, header)] == [106, 106]


def test_aborted_transactions_control_records_and_empty_batches_are_left_out() -> None:
    def transactional(producer_id: int, *offsets: int, control: bool = False) -> bytes:
        flags = TRANSACTIONAL | (CONTROL if control else 0)
        return batch(*offsets, attributes=flags, producer_id=producer_id, producer_epoch=0, base_sequence=0)

    data = log(
        transactional(1, 0, 1),
        transactional(2, 2),
        batch(3),
        transactional(1, 4, control=True),
        transactional(1, 5),  # the same producer's next transaction, committed
        transactional(2, 6, control=True),
        transactional(1, 7, control=True),
    )
    got = cut(data, 0, [(1, 0)])
    assert [one.base for one in got.pieces] == [2, 3, 5]
    assert (got.position, got.left_out) == (8, 4)
    empty = bytearray(batch(8, 9)[:61])
    empty[8:12], empty[57:61] = (49).to_bytes(4, "big"), bytes(4)
    assert cut(log(bytes(empty)), 8).position == 10


def test_what_mirrors_wrote_is_left_out_in_exchange() -> None:
    data = log(batch(0, producer_id=7), batch(1, producer_id=8), batch(2))
    assert producer_ids(walk(data)) == {7, 8, -1}
    got = cut(data, 0, foreign={7}.__contains__)
    assert ([one.base for one in got.pieces], got.position, got.left_out) == ([1, 2], 3, 1)


def test_nothing_is_cut_before_its_producer_is_known() -> None:
    data = log(batch(0), batch(1, producer_id=7), batch(2, producer_id=8))
    before = bytes(data)
    with pytest.raises(Strangers) as strangers:
        cut(data, 0, known={-1, 7}.__contains__)
    assert strangers.value.ids == {-1, 7, 8} and bytes(data) == before
    assert len(cut(data, 0, known={-1, 7, 8}.__contains__).pieces) == 3


@pytest.mark.parametrize("limit", range(4, 10))
def test_a_batch_that_goes_past_the_limit_waits(limit: int) -> None:
    data = log(batch(5, 6), batch(7, attributes=TRANSACTIONAL, producer_id=1), batch(8))
    got = cut(data, 5, limit=limit)
    assert got.position == {4: 5, 5: 5, 6: 5, 7: 7, 8: 8, 9: 9}[limit]
    assert [one.next for one in got.pieces] == [end for end in (7, 8, 9) if end <= limit]
    assert got.held == (limit < 9)


def test_old_messages_become_batches() -> None:
    data = log(message(1, 3, b"k", b"3"), message(1, 5, None, b"5"), batch(6))
    first, second = cut(data, 0).pieces
    (header,) = walk(first.data)
    assert (header.magic, header.records, first.stretches, first.next) == (2, 2, ((3, 1), (5, 1)), 6)
    assert values(first.data) == [b"3", b"5"] and second.base == 6


def test_corruption_is_not_laundered() -> None:
    """What is passed on keeps a wrong CRC; of what is encoded again it is looked at."""
    data = log(batch(0), batch(1))
    data[-1] ^= 1
    first, second = cut(data, 0).pieces
    for one in (first, second):
        stamp(one.data, 5, 6, 7)
    assert intact(first.data) and not intact(second.data)
    for damaged in (log(batch(0, attributes=LOG_APPEND_TIME)), log(batch(0, attributes=TRANSACTIONAL))):
        damaged[-1] ^= 1
        with pytest.raises(Corrupt):
            cut(damaged, 0)


def test_the_journal_is_what_was_written_last() -> None:
    stream, other = Stream(bytes(range(16)), 3), Stream(bytes(range(16)), 3, "east")
    table, guard, contents = Table(), Guard(), Contents()
    table.append(5, 9, 2)
    guard.note(Noted(4, 1, Entry(0, 0, 1, 5)))
    state = State(7, 100, 11, 2, bytes(range(16)), 5, 6, 2)
    contents.feed(checkpoint_pairs(stream, state, table, guard))
    contents.feed([producer_pair(77, "a mirror"), (b"?", b""), (None, b"")])
    stored = contents.streams[stream]
    assert stored.state == state and other not in contents.streams
    assert list(stored.load_table().runs) == [(5, 9, 2)]
    assert stored.load_guard().entries(4) == (Entry(0, 0, 1, 5),)
    assert contents.producers == {77: b"a mirror"}
    table.append(9, 20, 1)
    contents.feed(checkpoint_pairs(stream, state, table, guard))
    assert list(contents.streams[stream].load_table().runs) == [(5, 9, 2), (9, 20, 1)]
    contents.feed(tombstones(stream, contents.streams[stream]))
    assert contents.streams[stream].state is None and not contents.streams[stream].chunks
    assert all(REGISTRY < partition_of(f"unit-{n}") < PARTITIONS for n in range(100))
