"""Record batches: what is encoded is decoded, whatever the codec; garbage is refused and never crashes."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from kafka_wire.batches import DELETE_HORIZON, TRANSACTIONAL, intact, split, stamp, walk, whole
from kafka_wire.codec import DecodeError
from kafka_wire.records import Record, body_of, decode_records, encode_batch, fields_of

_FIELD = st.none() | st.binary(max_size=50)
_HEADERS = st.lists(st.tuples(st.text(max_size=8), _FIELD), max_size=3)
_RECORD = st.tuples(st.integers(1, 5), st.integers(-1, 1 << 42), _FIELD, _FIELD, _HEADERS)


@st.composite
def record_lists(draw: st.DrawFn) -> list[Record]:
    offset = draw(st.integers(0, 1 << 50))
    out = []
    for step, time, key, value, headers in draw(st.lists(_RECORD, min_size=1, max_size=8)):
        offset += step
        out.append(Record(offset, time, 0, body_of(key, value, headers)))
        assert fields_of(out[-1].body) == (key, value, tuple(headers))
    return out


@settings(deadline=None)
@given(st.lists(st.tuples(record_lists(), st.integers(0, 4)), max_size=4), st.integers(0, 2000))
def test_round_trip(content: list[tuple[list[Record], int]], cut: int) -> None:
    log = bytearray(b"".join(encode_batch(records, codec=codec) for records, codec in content))
    found = list(walk(log))
    assert [decode_records(log, one) for one in found] == [records for records, _ in content]
    short = memoryview(log)[: max(0, len(log) - cut)]
    assert [len(part) for part in split(short)] == [one.size for one in found if one.end <= len(short)]
    assert len(whole(short)) == sum(len(part) for part in split(short))
    for part in split(memoryview(log)):
        assert intact(part)
        before = decode_records(part, next(walk(part)))
        stamp(part, 5, 6, 7)
        (after,) = walk(part)
        assert intact(part) and (after.producer_id, after.producer_epoch, after.base_sequence) == (5, 6, 7)
        moved = [one._replace(offset=one.offset - before[0].offset) for one in before]
        assert decode_records(part, after) == moved


@settings(deadline=None)
@given(
    st.binary(max_size=200), st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=6), record_lists()
)
def test_damage(garbage: bytes, changes: list[tuple[int, int]], records: list[Record]) -> None:
    made = encode_batch(records)
    for at, value in changes:
        made[at % len(made)] = value
    for data in (garbage, bytes(made)):
        try:
            for one in walk(data):
                decode_records(data, one)
        except DecodeError:
            pass


_IDENTITIES = st.tuples(st.integers(-1, (1 << 63) - 1), st.integers(-1, (1 << 15) - 1), st.integers(-1, (1 << 31) - 1))


@settings(deadline=None)
@given(
    st.integers(0, 3000) | st.integers((1 << 20) - 100, (1 << 20) + 100),
    _IDENTITIES,
    _IDENTITIES,
    st.sampled_from([0, TRANSACTIONAL, DELETE_HORIZON, TRANSACTIONAL | DELETE_HORIZON]),
    st.binary(max_size=100),
)
def test_a_stamp_keeps_a_crc_right_or_wrong(
    size: int, old: tuple[int, int, int], new: tuple[int, int, int], flags: int, data: bytes
) -> None:
    body = body_of(None, data + bytes(size), ())
    producer_id, epoch, sequence = old
    made = encode_batch(
        [Record(7, 5, 0, body)],
        attributes=flags,
        producer_id=producer_id,
        producer_epoch=epoch,
        base_sequence=sequence,
    )
    damaged = bytearray(made)
    damaged[-1] ^= 1
    stamp(made, *new)
    stamp(damaged, *new)
    (one,) = walk(made)
    assert (one.producer_id, one.producer_epoch, one.base_sequence, one.attributes) == (*new, 0)
    assert intact(memoryview(made)) and not intact(memoryview(damaged))
