"""The audit over made-up logs: every difference is named at its offset, nothing else is, however batches are cut."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from kafka_wire.batches import CONTROL, LOG_APPEND_TIME, TRANSACTIONAL, place, seal, walk
from kafka_wire.records import Record, body_of, decode_records, encode_batch, fields_of, values_batch
from offset_sync.table import Table
from replicator.audit import Comparison, Reach, Rules, Side
from replicator.findings import Report, Span
from tests.unit.test_batches import message

FOREIGN_ID, MIRROR_ID, ABORTED_ID = 900, 500, 300
BUCKET = 100


@dataclass
class Log:
    """A log as a broker would hold it: batches in the order of their offsets."""

    records: list[Record] = field(default_factory=list)
    batches: list[bytearray] = field(default_factory=list)
    end: int = 0
    aborted: list[tuple[int, int, int]] = field(default_factory=list)  # producer id, first offset, marker

    def add(self, records: Sequence[Record], codec: int = 0, producer: int = -1, attributes: int = 0) -> None:
        made = encode_batch(
            records,
            codec=codec,
            attributes=attributes,
            producer_id=producer,
            producer_epoch=0 if producer >= 0 else -1,
            base_sequence=records[0].offset if producer >= 0 else -1,
            leader_epoch=3,
        )
        self.batches.append(made)
        self.end = records[-1].offset + 1

    def marker(self) -> None:
        batch = values_batch([(b"\0\0\0\0", b"\0\0\0\0\0\0")], 5)
        batch[22] |= CONTROL
        seal(batch)
        place(batch, self.end, 0)
        self.batches.append(batch)
        self.end += 1

    def fetch(self, position: int, size: int) -> memoryview:
        """At least one batch, from the one that holds `position` on."""
        out = bytearray()
        for batch in self.batches:
            (head,) = walk(batch)
            if head.next_offset > position:
                if out and len(out) + len(batch) > size:
                    break
                out += batch
        return memoryview(out)


def cut_up(log: Log, records: Sequence[Record], chance: random.Random, producer: int, codec: int | None = None) -> None:
    """Into batches, wherever it falls; a batch may have holes in it."""
    left = list(records)
    while left:
        some = [left.pop(0) for _ in range(min(chance.randrange(1, 7), len(left)))]
        log.add(some, chance.choice((0, 1, 3, 4)) if codec is None else codec, producer)


def findings(report: Report) -> set[tuple[str, Span | None, Span | None]]:
    """One a record."""
    out: set[tuple[str, Span | None, Span | None]] = set()
    for one in report.findings:
        for n in range(one.records):
            here, there = (None if span is None else (span[0] + n, span[0] + n) for span in (one.source, one.target))
            out.add((one.kind, here, there))
    return out


def run(
    source: Log,
    target: Log,
    table: Table,
    rules: Rules,
    chance: random.Random,
    *,
    scanned: int | None = None,
    floor: int = 0,
    starts: tuple[int, int] = (0, 0),
    interrupted: bool = False,
) -> Report:
    origin = Table()
    origin.open(0, 0)
    end = target.end if scanned is None else scanned
    reach = Reach(starts[0], source.end, starts[1], target.end, end, floor)
    report = Report(BUCKET, limit=10_000)
    made = Comparison(reach, origin, table, rules, report)
    while (side := made.wants) is not None:
        log = (source, target)[side]
        data = log.fetch(made.position(side), chance.randrange(1, 600))
        if len(data):
            aborted = [(one, first) for one, first, end in log.aborted if end >= made.position(side)]
            made.feed(side, data, aborted)
        else:
            made.close(side)
        if made.unsettled:
            made.settle()
        if interrupted and chance.random() < 0.5:
            made = Comparison(made.reach, origin, table, rules, report)
    return report


def flipped(record: Record) -> bytes:
    """Another body of the same size."""
    key, value, headers = fields_of(record.body)
    if value:
        return body_of(key, bytes([value[0] ^ 1]) + value[1:], headers)
    return body_of(bytes([key[0] ^ 1]) + key[1:], value, headers) if key else body_of(b"k", b"v")


def content(chance: random.Random) -> bytes:
    return body_of(chance.choice((None, b"k", b"key")), chance.choice((None, b"", b"v" * chance.randrange(40))))


@settings(deadline=None, max_examples=300)
@given(st.integers(0, 1 << 62), st.booleans())
def test_every_difference_is_named_at_its_offset(seed: int, tampered: bool) -> None:
    chance = random.Random(seed)
    source, target, table = Log(), Log(), Table()
    offset = at = 0
    expected: set[tuple[str, Span | None, Span | None]] = set()
    held: list[Record] = []  # by the target
    compared = 0

    def foreign() -> None:
        nonlocal at
        expected.add(("extra", None, (at, at)))
        held.append(Record(at, chance.randrange(500), 0, b"\x01\x08what\x00"))
        at += 1

    while offset < 60:
        kind = chance.random()
        if kind < 0.1:  # a hole: compaction
            offset += chance.randrange(1, 4)
            continue
        if kind < 0.2:
            at += 1  # a control record of the mirror's, or of nobody
        records = [Record(offset + n, chance.randrange(500), 0, content(chance)) for n in range(chance.randrange(1, 9))]
        if chance.random() < 0.15:
            source.add(records, producer=ABORTED_ID, attributes=TRANSACTIONAL)
            offset = source.end
            source.aborted.append((ABORTED_ID, records[0].offset, offset))
            marker = values_batch([(b"\0\0\0\0", b"\0\0\0\0\0\0")], 5, producer_id=ABORTED_ID, producer_epoch=0)
            marker[22] |= CONTROL | TRANSACTIONAL
            seal(marker)
            place(marker, offset, 0)
            source.batches.append(marker)
            source.end = offset = offset + 1
            # The same producer goes on; what it commits next counts.
            kept = Record(offset, 7, 0, content(chance))
            source.add([kept], producer=ABORTED_ID, attributes=TRANSACTIONAL)
            source.records.append(kept)
            held.append(kept._replace(offset=at))
            table.append(offset, at, 1)
            compared, offset, at = compared + 1, offset + 1, at + 1
            continue
        # Some are taken out of the middle before they are cut: batches with holes.
        records = [one for n, one in enumerate(records) if n == 0 or chance.random() < 0.85]
        source.records += records
        compared += len(records)
        for one in records:
            what = chance.random() if tampered else 1.0
            here = ((one.offset, one.offset), (at, at))
            if what < 0.05:
                expected.add(("missing", here[0], None))  # and in no run: it never came
                continue
            table.append(one.offset, at, 1)
            copy = one._replace(offset=at)
            if what < 0.10:
                expected.add(("missing", *here))
            elif what < 0.15:
                changed = chance.choice(
                    [
                        copy._replace(timestamp=copy.timestamp + 1),
                        copy._replace(body=body_of(b"other", b"!")),
                        copy._replace(body=copy.body[:-1] + b"\2\2h\1"),  # a header more
                        copy._replace(body=flipped(copy)),
                    ]
                )
                held.append(changed)
                expected.add(("changed", *here))
            else:
                held.append(copy)
            at += 1
            if tampered and chance.random() < 0.04:
                foreign()
            if tampered and chance.random() < 0.04:  # the same record again
                held.append(copy._replace(offset=at))
                expected.add(("extra", None, (at, at)))
                at += 1
        offset = records[-1].offset + 1
        cut_up(source, records, chance, chance.choice((-1, 77)))
    source.marker()
    cut_up(target, held, chance, MIRROR_ID)
    target.end = max(target.end, at)
    report = run(source, target, table, Rules(), chance, interrupted=chance.random() < 0.5)
    assert findings(report) == expected
    assert report.total("source") == compared
    assert report.total("target") == len(held)
    same = all(one.source_digest == one.target_digest for one in report.buckets.values())
    assert same == (not expected) and report.clean == (not expected)
    assert report.total("identical") == compared - sum(kind != "extra" for kind, *_ in expected)


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 1 << 62), st.integers(0, 40), st.integers(0, 40))
def test_logs_that_begin_in_different_places(seed: int, source_start: int, floor: int) -> None:
    """Below the floor nothing is compared, and batches that it cuts through are taken apart."""
    chance = random.Random(seed)
    source, target, table = Log(), Log(), Table()
    records = [Record(n, n, 0, content(chance)) for n in range(60)]
    cut_up(source, records, chance, -1)
    cut_up(target, [one._replace(offset=one.offset + 7) for one in records], chance, MIRROR_ID)
    table.append(0, 7, 60)
    floor = max(floor, source_start)
    source.end = chance.randrange(floor, 61)  # a position may lie inside a batch
    target.end = source.end + 7
    starts = (source_start, chance.randrange(0, floor + 8))
    report = run(source, target, table, Rules(), chance, floor=floor, starts=starts)
    assert report.clean and report.total("identical") == source.end - floor


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 1 << 62))
def test_exchange_and_compaction_leave_out_what_is_not_theirs(seed: int) -> None:
    """Both sides hold their own records and the other's; each direction compares what came from its source."""
    chance = random.Random(seed)
    source, target, table = Log(), Log(), Table()
    offset = at = 0
    expected = set()
    gone = 0
    for _ in range(30):
        many = chance.randrange(1, 6)
        if chance.random() < 0.4:
            source.add([Record(offset + n, 5, 0, b"\1\1\0") for n in range(many)], producer=FOREIGN_ID)
            offset += many
        if chance.random() < 0.4:
            target.add([Record(at + n, 5, 0, b"\1\1\0") for n in range(many)], producer=chance.choice((-1, FOREIGN_ID)))
            at += many
        records = [Record(offset + n, 5, 0, content(chance)) for n in range(many)]
        table.append(offset, at, many)
        # Compaction takes from each side what it likes.
        left, right = ([one for one in records if chance.random() < 0.8] for _ in Side)
        gone += len({one.offset for one in left} ^ {one.offset for one in right})
        cut_up(source, left, chance, -1)
        cut_up(target, [one._replace(offset=one.offset - offset + at) for one in right], chance, MIRROR_ID)
        offset, at = offset + many, at + many
        source.end, target.end = offset, at
        if chance.random() < 0.1:  # the mirror writes something twice
            target.add([Record(at, 5, 0, b"\1\1\0")], producer=MIRROR_ID)
            expected.add(("extra", None, (at, at)))
            at += 1
    rules = Rules(
        mirrored=frozenset({FOREIGN_ID}),
        loose=lambda batch: batch.producer_id == MIRROR_ID,
        source_compacts=True,
        target_compacts=True,
    )
    report = run(source, target, table, rules, chance, interrupted=True)
    assert findings(report) == expected
    assert report.total("compacted") == gone


def test_old_messages_append_time_and_a_flipped_bit() -> None:
    source, target, table = Log(), Log(), Table()
    source.batches.append(bytearray(message(1, 0, b"k", b"old")))
    source.end = 1
    source.add([Record(1, 40, 0, b"\1\1\0"), Record(2, 44, 0, b"\1\1\0")], attributes=LOG_APPEND_TIME)
    source.add([Record(3 + n, 50, 0, body_of(b"k", b"%d" % n)) for n in range(4)])
    (old,) = list(walk(source.batches[0]))
    (first,) = decode_records(source.batches[0], old)
    target.add([first])
    target.add([Record(1, 44, 0, b"\1\1\0"), Record(2, 44, 0, b"\1\1\0")])
    target.add([Record(3 + n, 50, 0, body_of(b"k", b"%d" % n)) for n in range(4)])
    table.append(0, 0, 7)
    chance = random.Random(1)
    assert run(source, target, table, Rules(), chance).clean
    target.batches[2][-3] ^= 1  # on the disk: the CRC tells
    report = run(source, target, table, Rules(), chance)
    (found,) = report.findings
    assert (found.kind, found.source, found.what) == ("changed", (3, 6), ("wrong CRC on the target",))
    target.batches[2][-3] ^= 1
    source.batches[2][45] ^= 1  # in the header, which readers check as well
    (found,) = run(source, target, table, Rules(), chance).findings
    assert (found.kind, found.target, found.what) == ("changed", (3, 6), ("wrong CRC on the source",))
