"""What both sides of a mirror hold, compared record by record, mostly without looking at a record. Pure.

Two logs are fed in as they are fetched. A batch becomes an item: its logical offsets, which both sides' tables tell,
and a mark of everything that a mirror leaves as it is. The items of both sides are merged by logical offset, so a
record that is missing in the middle is missing and everything behind it is not. Where both marks are the same the
batches are identical; else they are taken apart, down to records, as far as they overlap.

What a mirror leaves out is left out here: control batches, aborted transactions, batches without records or outside
every run of the source's table, and in an exchange what mirrors wrote. Memory is bounded by what was fed last.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from crc32c import crc32c

from kafka_wire.batches import (
    CONTROL,
    CRC_FROM,
    DELETE_HORIZON,
    HEADER,
    HEADER_SIZE,
    LENGTH_FROM,
    LOG_APPEND_TIME,
    TRANSACTIONAL,
    Batch,
    walk,
)
from kafka_wire.codec import DecodeError
from kafka_wire.records import Record, decode_records, fields_of
from offset_sync.table import Table
from replicator.findings import DIGEST, OTHER, Bucket, Finding, Kind, Report

_KEPT = ~(TRANSACTIONAL | DELETE_HORIZON)
_NOWHERE = -1
MAX_BROKEN = 1 << 20  # records that a header with a wrong CRC is believed to have
_WRONG_CRC = ("wrong CRC on the source", "wrong CRC on the target")


class Side(IntEnum):
    SOURCE = 0
    TARGET = 1


class Reach(NamedTuple):
    """What is still to be compared: physical offsets from `source` to `source_end` and from `target` to `target_end`.

    Target offsets from `scanned` on are in no table yet. Records below the logical offset `floor` are not compared.
    """

    source: int
    source_end: int
    target: int
    target_end: int
    scanned: int
    floor: int


@dataclass(frozen=True, slots=True)
class Rules:
    """What is left out, and what compaction explains.

    `mirrored`: producer ids whose batches on the source are left out (exchange). `loose`: whether a batch of the target
    that lies in no run should not be there. `source_compacts`, `target_compacts`: a record of the other side that is
    not there may have been compacted away.
    """

    mirrored: frozenset[int] = frozenset()
    loose: Callable[[Batch], bool] = lambda _: True
    source_compacts: bool = False
    target_compacts: bool = False


class Item(NamedTuple):
    """Records that are adjacent in logical offsets and on their side.

    `mark` is equal where they are identical; without one the batch has to be taken apart first. Without `data` it is
    one record. A logical offset of -1: in no run.
    """

    logical: int
    records: int
    offset: int
    time: int
    mark: tuple[object, ...] | None
    data: memoryview | None = None
    at: int = 0  # where in `data`


class _Half:
    """One side: where it is fed from next, and what was fed and is not compared yet."""

    __slots__ = ("end", "high", "items", "low", "position", "run", "table")

    def __init__(self, table: Table, position: int, end: int) -> None:
        self.table = table
        self.position = position
        self.end = end
        self.items: deque[Item] = deque()
        # The run that was found last: physical offsets from `low` to `high`, and what to add for the logical one.
        self.low = self.high = self.run = 0

    @property
    def at(self) -> int:
        """The first offset that is not compared yet."""
        return self.items[0].offset if self.items else self.position

    def linear(self, offset: int, count: int) -> int | None:
        """`Table.linear`, remembering the run: neighbours mostly lie in the same one."""
        if self.low <= offset and offset + count <= self.high:
            return offset + self.run
        logical = self.table.linear(offset, count)
        if logical is not None:
            # One run holds these; how far it goes is asked with growing steps.
            length = count
            while length < 1 << 40 and self.table.linear(offset, length * 64) == logical:
                length *= 64
            self.low, self.high, self.run = offset, offset + length, logical - offset
        return logical


class Comparison:
    """Feed the side that `wants` names until it is None, and `settle`. `reach` says at any time what is left."""

    def __init__(self, reach: Reach, source: Table, target: Table, rules: Rules, report: Report) -> None:
        self.report = report
        self.unsettled = False
        self._rules = rules
        self._reach = reach
        self._floor = reach.floor
        self._source = _Half(source, reach.source, reach.source_end)
        self._target = _Half(target, reach.target, reach.target_end)
        self._halves = (self._source, self._target)

    @property
    def wants(self) -> Side | None:
        """The side that has to be fed next, from `position` on; only where it is settled."""
        for side in Side:
            half = self._halves[side]
            if not half.items and half.position < half.end:
                return side
        return None

    def position(self, side: Side) -> int:
        """Where to fetch this side next."""
        return self._halves[side].position

    @property
    def reach(self) -> Reach:
        """What is not compared yet; nothing where both begin at their ends."""
        return self._reach._replace(source=self._source.at, target=self._target.at, floor=self._floor)

    def feed(self, side: Side, data: memoryview, aborted: Iterable[tuple[int, int]] = ()) -> None:
        """What a fetch from `position` on returned; `aborted` are (producer id, first offset) as the broker named them.

        Takes milliseconds: where batches have to be taken apart, it is `unsettled`, and wants nothing before `settle`.

        Raises:
            DecodeError: the bytes are no batches.
        """
        half = self._halves[side]
        items, start, end, floor = half.items, half.position, half.end, self._floor
        mirrored = self._rules.mirrored if side is Side.SOURCE else ()
        pending = sorted(aborted, key=lambda one: one[1], reverse=True)
        open_aborts: set[int] = set()
        linear, crc, unpack = half.linear, crc32c, HEADER.unpack_from
        position, tail, size = start, 0, len(data)
        while tail < size:
            # Plain tuple arithmetic: this runs once a batch, and only what is odd becomes a `Batch`.
            at = tail
            if at + HEADER_SIZE > size or data[at + 16] != 2:
                old = next(walk(data, at), None)
                if old is None:
                    break
                tail = old.end
                if old.next_offset > start:  # its own offset may be that of the last message in it
                    items.append(Item(_NOWHERE, 0, position, old.max_timestamp, None, data, at))
                    position = old.next_offset
                continue
            base, length, _, _, stored, attributes, delta, oldest, newest, producer_id, _, _, count = unpack(data, at)
            if length < HEADER_SIZE - LENGTH_FROM or delta < 0 or count < 0:
                raise DecodeError(f"a batch at offset {base} of length {length} with {count} records to {delta}")
            tail = at + LENGTH_FROM + length
            if tail > size:
                break
            following = base + delta + 1
            if following <= start:
                continue
            before, position = position, following
            if base >= end:
                break
            while pending and pending[-1][1] < following:
                open_aborts.add(pending.pop()[0])
            if attributes & CONTROL:
                open_aborts.discard(producer_id)
                continue
            if not count or (attributes & TRANSACTIONAL and producer_id in open_aborts) or producer_id in mirrored:
                continue
            logical = linear(base, count)
            if logical is None and not half.table.serves(base, following - 1):
                if side is Side.SOURCE or not self._rules.loose(_batch(data, at)):
                    continue
                logical = _NOWHERE
            if (
                logical is not None
                and (logical >= floor or logical < 0)
                and base >= start
                and following <= end
                and count == delta + 1
                and not attributes & LOG_APPEND_TIME
                and crc(data[at + CRC_FROM : tail]) == stored
            ):
                mark = (length, attributes & _KEPT, oldest, newest, delta, crc(data[at + HEADER_SIZE : tail]))
                items.append(Item(logical, count, base, newest, mark, data, at))
            else:
                items.append(Item(_NOWHERE, 0, before, newest, None, data, at))
        half.position = min(max(position, start), max(end, start))
        self._merge(thorough=False)

    def close(self, side: Side) -> None:
        """This side holds nothing more in front of its end."""
        half = self._halves[side]
        half.position = half.end
        self._merge(thorough=False)

    def settle(self) -> None:
        """Compare the rest of what was fed, record by record. DecodeError: some bytes are no records."""
        self._merge(thorough=True)

    # -- merging --------------------------------------------------------------------------------------------------

    def _merge(self, *, thorough: bool) -> None:
        source, target = self._source, self._target
        left, right = source.items, target.items
        report = self.report
        bucket_ms = report.bucket_ms
        held: int | None = None
        found: Bucket | None = None
        while True:
            if left and right:
                a, b = left[0], right[0]
                mark = a.mark
                if mark is not None and mark == b.mark and a.logical == b.logical:
                    left.popleft()
                    right.popleft()
                    time = a.time
                    start = time - time % bucket_ms if time >= 0 else OTHER
                    if start != held or found is None:
                        held, found = start, report.bucket(time)
                    found.identical += a.records
                    digest = _digest(a)
                    found.source_digest = found.source_digest + digest & DIGEST
                    found.target_digest = found.target_digest + digest & DIGEST
                    continue
            elif left:
                if target.position < target.end:
                    break
            elif right:
                if source.position < source.end:
                    break
            else:
                break
            if not thorough:
                self.unsettled = True
                return
            self._differ()
        self.unsettled = False

    def _differ(self) -> None:
        """One step where the heads are not the same, or one side has ended."""
        left, right = self._source.items, self._target.items
        for half in self._halves:
            if half.items and half.items[0].mark is None:
                self._take_apart(half)
                return
        if right and right[0].logical < 0:
            self._alone("extra", right.popleft())
            return
        if not right or (left and left[0].logical + left[0].records <= right[0].logical):
            self._alone("missing", left.popleft())
            return
        if not left or right[0].logical + right[0].records <= left[0].logical:
            self._alone("extra", right.popleft())
            return
        whole = [half for half in self._halves if half.items[0].data is not None]
        for half in whole:
            self._take_apart(half)
        if not whole:
            self._changed(left.popleft(), right.popleft())

    def _take_apart(self, half: _Half) -> None:
        """Replace the first item by its records: those that are to be compared."""
        one = half.items.popleft()
        assert one.data is not None
        batch = _batch(one.data, one.at)
        records, broken = _records(one.data, batch)
        side = Side.SOURCE if half is self._source else Side.TARGET
        start = self._reach[0] if side is Side.SOURCE else self._reach[2]
        loose = side is Side.TARGET and self._rules.loose(batch)
        made: list[Item] = []
        for record in records:
            if not max(start, one.offset) <= record.offset < half.end:
                continue
            logical = half.linear(record.offset, 1)
            if logical is None:
                if not loose:
                    continue
                logical = _NOWHERE
            elif logical < self._floor:
                continue
            mark: tuple[object, ...] = (record.timestamp, record.attributes, record.body)
            if broken:
                mark = (_WRONG_CRC[side], record.offset)  # like nothing else
            made.append(Item(logical, 1, record.offset, record.timestamp, mark))
        half.items.extendleft(reversed(made))

    # -- findings -------------------------------------------------------------------------------------------------

    def _alone(self, kind: Kind, one: Item) -> None:
        """Records that only one side holds."""
        missing = kind == "missing"
        other = self._target.table if missing else self._source.table
        expected: int | None = None
        if one.logical >= 0:
            if one.records > 1 and not _together(other, one.logical, one.records):
                for n in range(one.records):
                    self._alone(kind, one._replace(logical=one.logical + n, records=1, offset=one.offset + n))
                return
            # The table tells what lay there once; where its cluster serves, it cannot tell what never did.
            expected = other.physical(one.logical) if other.holds(one.logical) else None
        bucket = self.report.bucket(one.time)
        if expected is not None and (self._rules.target_compacts if missing else self._rules.source_compacts):
            bucket.compacted += one.records
            return
        here = (one.offset, one.offset + one.records - 1)
        there = (expected, expected + one.records - 1) if expected is not None else None
        if missing:
            bucket.missing += one.records
            bucket.source_digest = bucket.source_digest + _digest(one) & DIGEST
            self.report.add(Finding("missing", one.records, here, there, one.time))
        else:
            bucket.extra += one.records
            bucket.target_digest = bucket.target_digest + _digest(one) & DIGEST
            self.report.add(Finding("extra", one.records, there, here, one.time))

    def _changed(self, a: Item, b: Item) -> None:
        """One record that both sides hold, and not the same."""
        bucket = self.report.bucket(a.time)
        bucket.changed += 1
        bucket.source_digest = bucket.source_digest + _digest(a) & DIGEST
        bucket.target_digest = bucket.target_digest + _digest(b) & DIGEST
        at = (a.offset, a.offset), (b.offset, b.offset)
        self.report.add(Finding("changed", 1, *at, max(a.time, b.time), _what(a, b)))


def _batch(data: memoryview, at: int) -> Batch:
    return next(walk(data, at))


def _records(data: memoryview, batch: Batch) -> tuple[list[Record], bool]:
    """A batch's records; where its CRC is wrong, only their offsets count."""
    if batch.magic < 2:
        return decode_records(data, batch), False
    intact = crc32c(data[batch.at + CRC_FROM : batch.end]) == batch.crc
    if intact:
        return decode_records(data, batch), False
    try:
        return decode_records(data, batch), True
    except (DecodeError, ValueError):
        count = min(batch.records, batch.last_offset_delta + 1, MAX_BROKEN)
        return [Record(batch.base_offset + n, batch.max_timestamp, 0, b"") for n in range(count)], True


def _together(table: Table, logical: int, count: int) -> bool:
    """Whether all of these lie in one run of the table, or none in any."""
    physical = table.physical(logical)
    if physical is None:
        return True
    if table.holds(logical):
        return table.linear(physical, count) == logical
    following = table.logical(physical)
    return following is None or not logical < following < logical + count


def _digest(one: Item) -> int:
    """Of a batch its CRC, of a record one of its body, each with the time; both sides' are made in the same way."""
    assert one.mark is not None
    last = one.mark[-1]
    body = last if isinstance(last, int) else crc32c(last) if isinstance(last, bytes) else 0
    return body * 0x9E3779B1 + one.time


def _what(a: Item, b: Item) -> tuple[str, ...]:
    assert a.mark is not None and b.mark is not None
    broken = tuple(str(one.mark[0]) for one in (a, b) if one.mark is not None and one.mark[0] in _WRONG_CRC)
    if broken:
        return broken
    out = ["timestamp"] if a.mark[0] != b.mark[0] else []
    out += ["attributes"] if a.mark[1] != b.mark[1] else []
    ours, theirs = a.mark[2], b.mark[2]
    if ours != theirs:
        assert isinstance(ours, bytes) and isinstance(theirs, bytes)
        try:
            parts = zip(("key", "value", "headers"), fields_of(ours), fields_of(theirs), strict=True)
            out += [name for name, one, other in parts if one != other] or ["encoding"]
        except DecodeError:
            out.append("encoding")
    return tuple(out)
