"""From what a broker answered to what a mirror writes: fetched bytes are cut into batches, and some are left out.

Data batches pass as the bytes they are. Left out are control batches, batches of aborted transactions, batches without
a record (compaction keeps their headers), and in exchange what a mirror wrote. Encoded again are batches with holes,
with LogAppendTime, cut into by the log start, and messages of magic 0 and 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from kafka_wire.batches import CODEC, CONTROL, LENGTH_FROM, LOG_APPEND_TIME, TRANSACTIONAL, Batch, advance, intact, walk
from kafka_wire.records import Record, decode_records, encode_batch

OLD_BATCH_BYTES = 256 << 10  # bodies of old messages that are put into one batch
CLIENT_MASK = (1 << 52) - 1  # what lies above was added on the way in, and is not the client's own id


class Corrupt(Exception):
    """The source's bytes do not have the CRC they carry; nothing is copied until that is looked at."""


class Written(NamedTuple):
    """What an idempotent source producer put into a batch: its own id, epoch, first and last sequence."""

    producer_id: int
    epoch: int
    first: int
    last: int


class Piece(NamedTuple):
    """One batch to be written. Offsets are the source's, physical.

    `data` is the batch, to be stamped in place; `stretches` are (offset, records) in the order of its `records`;
    `base` is the offset of the original batch, `next` the one behind it.
    """

    data: memoryview
    records: int
    base: int
    next: int
    stretches: tuple[tuple[int, int], ...]
    leader_epoch: int
    max_timestamp: int
    written: Written | None


@dataclass(slots=True)
class Cut:
    """`position` is where to fetch next; nothing was in front of it that is not in `pieces` or left out.

    `leader_epoch` is that of the last batch in front of it, -1 where nothing was passed.
    """

    pieces: list[Piece]
    position: int
    left_out: int = 0  # batches
    leader_epoch: int = -1


def producer_ids(batches: Iterable[Batch]) -> set[int]:
    """Their producer ids: those a registry should know about before the cut."""
    return {one.producer_id for one in batches}


def cut(
    records: memoryview,
    position: int,
    aborted: Iterable[tuple[int, int]] = (),
    foreign: Callable[[int], bool] | None = None,
    batches: Iterable[Batch] | None = None,
) -> Cut:
    """Cut what a Fetch from `position` on returned; `records` is written to later and must stay untouched till then.

    `aborted` are (producer id, first offset) as the broker named them; batches whose producer id is `foreign` are
    left out. `batches` are those of `records`, where they were walked already.

    Raises:
        Corrupt: a CRC is wrong.
        DecodeError: the bytes are no batches.
    """
    out = Cut([], position)
    pending = sorted(aborted, key=lambda one: one[1], reverse=True)
    open_aborts: set[int] = set()
    old: list[Record] = []
    old_codec = 0

    def flush() -> None:
        if old:
            out.pieces.append(_encoded(old, old_codec, old[0].offset, old[-1].offset + 1, -1, None))
            old.clear()

    for one in walk(records) if batches is None else batches:
        if one.magic < 2:
            found = [record for record in decode_records(records, one) if record.offset >= out.position]
            if not found:
                continue
            codec = records[one.at + 17] & CODEC
            if old and (codec != old_codec or sum(len(record.body) for record in old) > OLD_BATCH_BYTES):
                flush()
            old += found
            old_codec = codec
            out.position = found[-1].offset + 1
            continue
        if old:
            flush()
        # Plain tuple arithmetic from here on: this runs once a batch.
        at, base, length, leader_epoch, _, _, attributes, delta, _, newest, producer_id, epoch, sequence, count = one
        following = base + delta + 1
        if following <= out.position:
            continue  # a fetch begins with the batch that holds its offset
        out.leader_epoch = leader_epoch
        while pending and pending[-1][1] < following:
            open_aborts.add(pending.pop()[0])
        if attributes & CONTROL:
            open_aborts.discard(producer_id)
        if (
            attributes & CONTROL
            or not count
            or (attributes & TRANSACTIONAL and producer_id in open_aborts)
            or (foreign is not None and foreign(producer_id))
        ):
            out.left_out += 1
            out.position = following
            continue
        data = records[at : at + LENGTH_FROM + length]
        if not intact(data):
            raise Corrupt(f"the batch at offset {base} has a wrong CRC")
        written = None
        if producer_id >= 0 and sequence >= 0:
            written = Written(producer_id & CLIENT_MASK, epoch, sequence, advance(sequence, delta))
        if base >= out.position and count == delta + 1 and not attributes & LOG_APPEND_TIME:
            out.pieces.append(Piece(data, count, base, following, ((base, count),), leader_epoch, newest, written))
        else:
            kept = [record for record in decode_records(records, one) if record.offset >= out.position]
            if kept:
                out.pieces.append(_encoded(kept, attributes & CODEC, base, following, leader_epoch, written))
            else:
                out.left_out += 1
        out.position = following
    flush()
    return out


def _encoded(
    records: Sequence[Record], codec: int, base: int, following: int, leader_epoch: int, written: Written | None
) -> Piece:
    made = encode_batch(records, codec=codec, dense=True)
    stretches: list[tuple[int, int]] = []
    for record in records:
        if stretches and sum(stretches[-1]) == record.offset:
            stretches[-1] = (stretches[-1][0], stretches[-1][1] + 1)
        else:
            stretches.append((record.offset, 1))
    newest = max(record.timestamp for record in records)
    return Piece(memoryview(made), len(records), base, following, tuple(stretches), leader_epoch, newest, written)
