"""What clients see of a partition that has moved: the serving cluster's answers, in logical offsets and epochs.

Most batches are renumbered in place: base offset and leader epoch lie outside the CRC. Encoded again are batches whose
records do not lie next to each other in the logical log (what was compacted at the source has no place in a mirror's
batch), and messages of magic 0 and 1, whose offsets lie inside. What is in no run was written by somebody else into a
mirror's copy, and is never served.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field

from kafka_wire.batches import CODEC, HEADER_SIZE, LENGTH_FROM, NO_PRODUCER, Batch, first_size, walk
from kafka_wire.records import Record, decode_records, encode_batch
from offset_sync.table import Table
from offset_sync.timeline import logical_epoch

_I64, _I32 = struct.Struct(">q"), struct.Struct(">i")
_HEAD = struct.Struct(">qiibIhi")  # of a batch, up to its last offset delta


@dataclass(slots=True)
class Outgoing:
    """`parts` are sent one behind the other; `size` is their bytes. The rest counts batches."""

    parts: list[memoryview] = field(default_factory=list)
    size: int = 0
    renumbered: int = 0
    encoded: int = 0
    foreign: int = 0

    def _add(self, part: memoryview) -> None:
        self.parts.append(part)
        self.size += len(part)


def renumbered(records: memoryview, table: Table, placement: int) -> int:
    """The usual case of `outgoing`: renumber batches where they lie. Where the first one begins that cannot be.

    The size of all: there is none. An incomplete one at the end stays as it is, and counts as none.

    Raises:
        Exhausted: a leader epoch that cannot be expressed.
    """
    size, at = len(records), 0
    low = high = shift = 0
    known, epoch = -1, -1
    unpack, put_offset, put_epoch = _HEAD.unpack_from, _I64.pack_into, _I32.pack_into
    while at + HEADER_SIZE <= size:
        base, length, leader_epoch, magic, _, _, last = unpack(records, at)
        following = at + LENGTH_FROM + length
        if following > size:
            return size
        if magic != 2 or length < HEADER_SIZE - LENGTH_FROM or last < 0:
            return at
        if base < low or base + last >= high:
            found = table.stretch(base)
            if found is None or base + last >= found[1]:
                return at
            low, high, shift = found
        if leader_epoch != known:
            known, epoch = leader_epoch, logical_epoch(placement, leader_epoch)
        put_offset(records, at, base + shift)
        put_epoch(records, at + 12, epoch)
        at = following
    left = first_size(records, at)
    return size if left is None or at + left > size else at


def outgoing(records: memoryview, table: Table, placement: int) -> Outgoing:
    """The batches of a Fetch answer as clients may see them; `records` is changed in place, and `parts` refer to it.

    An incomplete batch at the end is left out: no client uses it. `placement` is the topic's placement epoch.

    Raises:
        DecodeError: the bytes are no batches.
        Exhausted: a leader epoch that cannot be expressed.
    """
    out = Outgoing()
    epochs: dict[int, int] = {}
    start = end = 0  # of batches next to each other that stay as they lie
    linear = table.linear
    for one in walk(records):
        at, base, length, leader_epoch, magic = one[:5]
        following = at + LENGTH_FROM + length
        logical = linear(base, one[7] + 1) if magic == 2 else None
        if logical is not None:
            epoch = epochs.get(leader_epoch)
            if epoch is None:
                epoch = epochs[leader_epoch] = logical_epoch(placement, leader_epoch)
            _I64.pack_into(records, at, logical)
            _I32.pack_into(records, at + 12, epoch)
            out.renumbered += 1
            if at != end:
                if end > start:
                    out._add(records[start:end])
                start = at
            end = following
            continue
        made = _encoded(records, one, table, placement)
        if made is None:
            out.foreign += 1
            continue
        if end > start:
            out._add(records[start:end])
        start = end = following
        out.encoded += 1
        out._add(memoryview(made))
    if end > start:
        out._add(records[start:end])
    return out


def _encoded(records: memoryview, batch: Batch, table: Table, placement: int) -> bytearray | None:
    """The batch with each record at its logical offset; None where none of them has one."""
    kept: list[Record] = []
    for record in decode_records(records, batch):
        logical = table.linear(record.offset, 1)
        if logical is not None:
            kept.append(record._replace(offset=logical))
    if not kept:
        return None
    if batch.magic < 2:
        return encode_batch(kept, codec=records[batch.at + 17] & CODEC, leader_epoch=logical_epoch(placement, 0))
    return encode_batch(
        kept,
        codec=batch.codec,
        attributes=batch.attributes,
        producer_id=batch.producer_id,
        producer_epoch=batch.producer_epoch,
        # Sequences follow offsets inside a batch, and here they do not: a reader has no use for them.
        base_sequence=-1 if batch.producer_id == NO_PRODUCER else batch.base_sequence,
        leader_epoch=logical_epoch(placement, batch.leader_epoch),
    )


def aborted(transactions: Iterable[tuple[int, int]], table: Table) -> list[tuple[int, int]]:
    """(producer id, first offset) of aborted transactions, in logical offsets."""
    out = []
    for producer_id, first in transactions:
        logical = table.logical(first)
        if logical is not None:
            out.append((producer_id, logical))
    return out


def position(table: Table, logical: int) -> int | None:
    """Where to fetch from at the serving cluster: the record at `logical`, or the next one. None: below the log start.

    An offset beyond the log's end stays beyond it, and the broker says so.
    """
    return None if logical < table.log_start else table.physical(logical)


def bound(table: Table, physical: int) -> int:
    """A high watermark, last stable offset or log end, as clients see it. Sentinels below 0 pass."""
    if physical < 0:
        return physical
    logical = table.logical(physical)
    return physical if logical is None else logical


def log_start(table: Table, physical: int) -> int:
    """Where the log begins, as clients see it: behind the last record that is gone, and it never falls. -1 passes."""
    if physical < 0:
        return physical
    own = table.own
    if own is not None and physical >= own.physical:
        return max(table.log_start, own.logical + physical - own.physical)
    return max(table.log_start, table.runs.behind(physical))
