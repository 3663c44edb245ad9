"""A partition that has moved, as clients see it: every record at its logical offset, nothing foreign, bytes kept."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from kafka_wire.batches import DELETE_HORIZON, TRANSACTIONAL, walk
from kafka_wire.records import Record, body_of, decode_records, encode_batch
from offset_sync import serving
from offset_sync.runs import Position
from offset_sync.table import Table
from offset_sync.timeline import logical_epoch

PLACEMENT = 3


@dataclass
class Log:
    """The serving cluster's log, batch by batch, and what its readers are to see."""

    table: Table = field(default_factory=Table)
    data: bytearray = field(default_factory=bytearray)
    physical: int = 0
    logical: int = 0
    seen: list[Record] = field(default_factory=list)
    epochs: list[int] = field(default_factory=list)

    def batch(
        self, gaps: list[int], *, foreign: bool, epoch: int, codec: int, attributes: int, compacted: set[int]
    ) -> None:
        """One physical batch of `len(gaps)` records; before each, so many logical offsets were compacted away at the
        source. Of `compacted` the target's own cleaner has taken the records since."""
        records = []
        for number, gap in enumerate(gaps):
            self.logical += 0 if foreign else gap
            body = body_of(str(self.physical).encode(), b"foreign" if foreign else str(self.logical).encode())
            record = Record(self.physical, 1000 + number, 0, body)
            if not foreign:
                if self.table.own is None:
                    self.table.append(self.logical, self.physical, 1)
                if number not in compacted:
                    self.seen.append(record._replace(offset=self.logical))
                self.logical += 1
            if number not in compacted:
                records.append(record)
            self.physical += 1
        if records:
            made = encode_batch(
                records,
                codec=codec,
                attributes=attributes,
                producer_id=7,
                producer_epoch=1,
                base_sequence=5,
                leader_epoch=epoch,
            )
            self.data += made

    def serve(self, skip: int) -> None:
        """From here on this cluster serves; `skip` control records of the mirror's lie in between."""
        self.physical += skip
        self.table.open(self.logical, self.physical)


BATCHES = st.lists(
    st.tuples(
        st.lists(st.integers(0, 2), min_size=1, max_size=5),
        st.booleans(),
        st.integers(0, 4),
        st.sampled_from([0, 1, 4]),
        st.sampled_from([0, TRANSACTIONAL, DELETE_HORIZON]),
        st.sets(st.integers(0, 4), max_size=2),
    ),
    max_size=6,
)


def log_of(mirrored: list[tuple[list[int], bool, int, int, int, set[int]]], own: list[list[int]], skip: int) -> Log:
    log = Log()
    for gaps, foreign, epoch, codec, attributes, compacted in mirrored:
        log.batch(gaps, foreign=foreign, epoch=epoch, codec=codec, attributes=attributes, compacted=compacted)
    log.serve(skip)
    for gaps in own:
        log.batch([0] * len(gaps), foreign=False, epoch=5, codec=0, attributes=0, compacted=set())
    return log


OWN = st.lists(st.lists(st.just(0), min_size=1, max_size=4), max_size=3)


@settings(deadline=None)
@given(BATCHES, OWN, st.integers(0, 2), st.data())
def test_every_record_is_seen_at_its_logical_offset(
    mirrored: list[tuple[list[int], bool, int, int, int, set[int]]],
    own: list[list[int]],
    skip: int,
    data: st.DataObject,
) -> None:
    log = log_of(mirrored, own, skip)
    cut = data.draw(st.integers(0, min(len(log.data), 80)))  # brokers cut the last batch
    raw = memoryview(bytearray(log.data[: len(log.data) - cut]))
    before = [bytes(raw[one.at : one.end]) for one in walk(raw)]
    complete = sum(one.records for one in walk(raw))
    told = serving.outgoing(raw, log.table, PLACEMENT)
    joined = b"".join(told.parts)
    assert len(joined) == told.size
    found = [record for one in walk(joined) for record in decode_records(joined, one)]
    whole = [one for one in log.seen if complete_before(log, raw, one)]
    assert [(one.offset, one.timestamp, one.body) for one in found] == [
        (one.offset, one.timestamp, one.body) for one in whole
    ]
    assert len(found) <= complete
    assert told.renumbered + told.encoded + told.foreign == len(before)
    # All but offsets and leader epochs of what is renumbered stays as the broker sent it.
    after = [joined[one.at : one.end] for one in walk(joined)]
    unchanged = {(one[8:12], one[16:]) for one in before}
    assert sum((one[8:12], one[16:]) in unchanged for one in after) >= told.renumbered
    assert all(one.leader_epoch >> 20 == PLACEMENT for one in walk(joined))
    assert {one.leader_epoch for one in walk(joined)} <= {logical_epoch(PLACEMENT, epoch) for epoch in range(6)}


def complete_before(log: Log, raw: memoryview, record: Record) -> bool:
    """Whether the record's batch is complete in what was fetched: its key names its physical offset."""
    key = int(record.body[1 : 1 + (record.body[0] >> 1)])
    whole = bytes(log.data[: len(raw)])
    return any(key in {int(one.offset) for one in decode_records(whole, batch)} for batch in walk(whole))


@settings(deadline=None)
@given(BATCHES, OWN, st.integers(0, 2), st.integers(0, 30))
def test_positions_go_both_ways(
    mirrored: list[tuple[list[int], bool, int, int, int, set[int]]], own: list[list[int]], skip: int, start: int
) -> None:
    """Whoever asks for a logical offset gets to the first record at or behind it, and the ends are each other's."""
    log = log_of(mirrored, own, skip)
    table = log.table
    physical_of = {one.offset: int(one.body[1 : 1 + (one.body[0] >> 1)]) for one in log.seen}
    for logical in range(log.logical + 3):
        there = serving.position(table, logical)
        assert there is not None
        following = [place for offset, place in physical_of.items() if offset >= logical]
        assert not following or there <= min(following)
        earlier = [place for offset, place in physical_of.items() if offset < logical]
        assert not earlier or there > max(earlier)
    assert serving.bound(table, log.physical) == log.logical
    assert serving.bound(table, -1) == -1
    for physical in range(log.physical + 1):  # whatever the broker has deleted: no record that is left lies below
        gone = serving.log_start(table, physical)
        assert all(gone <= offset for offset, place in physical_of.items() if place >= physical)
        assert all(gone > offset for offset, place in physical_of.items() if place < physical)
    start = min(start, log.logical)
    table.raise_log_start(start)
    assert serving.log_start(table, 0) == start
    assert serving.position(table, start - 1) is None
    assert serving.log_start(table, -1) == -1


def test_aborted_transactions_are_named_by_logical_offsets() -> None:
    table = Table()
    table.append(0, 1, 5)
    table.own = Position(5, 9)
    assert serving.aborted([(7, 9), (8, 12)], table) == [(7, 5), (8, 8)]


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(0, 1), min_size=1, max_size=4),
            st.booleans(),
            st.integers(0, 3),
            st.just(0),
            st.just(0),
            st.just(set()),
        ),
        max_size=8,
    ),
    st.lists(st.lists(st.just(0), min_size=1, max_size=4), max_size=4),
    st.integers(0, 40),
)
def test_what_is_renumbered_where_it_lies_is_what_would_be_sent(
    mirrored: list[tuple[list[int], bool, int, int, int, set[int]]], own: list[list[int]], short: int
) -> None:
    log = log_of(mirrored, own, 3)
    raw = memoryview(bytearray(log.data))[: max(0, len(log.data) - short)]
    whole = serving.outgoing(memoryview(bytearray(raw)), log.table, PLACEMENT)
    done = serving.renumbered(raw, log.table, PLACEMENT)
    rest = serving.outgoing(raw[done:], log.table, PLACEMENT)
    sent = b"".join([raw[:done], *rest.parts])
    complete = b"".join(whole.parts)
    assert sent[: len(complete)] == complete
    assert list(walk(sent)) == list(walk(complete))  # behind it, at most an incomplete one
    assert done == len(raw) or rest.encoded or rest.foreign
