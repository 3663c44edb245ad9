"""From what a broker answered to what a mirror writes: fetched bytes are cut into batches, and some are left out.

Data batches pass as the bytes they are, and their CRCs with them: whether these are right is for the target to judge,
which looks at every one. Of all others it is looked at here. Left out are control batches, batches of aborted
transactions, batches without a record (compaction keeps their headers), and in exchange what a mirror wrote. Encoded
again are batches with holes, with LogAppendTime, cut into by the log start, and messages of magic 0 and 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from kafka_wire.batches import (
    CODEC,
    CONTROL,
    HEADER,
    HEADER_SIZE,
    LENGTH_FROM,
    LOG_APPEND_TIME,
    SEQUENCES,
    TRANSACTIONAL,
    Batch,
    intact,
    walk,
)
from kafka_wire.records import Record, decode_records, encode_batch

OLD_BATCH_BYTES = 256 << 10  # bodies of old messages that are put into one batch
CLIENT_MASK = (1 << 52) - 1  # what lies above was added on the way in, and is not the client's own id
_SPECIAL = CONTROL | TRANSACTIONAL | LOG_APPEND_TIME


class Corrupt(Exception):
    """The source's bytes do not have the CRC they carry; nothing is copied until that is looked at."""


class Strangers(Exception):
    """Producer ids nobody has looked up yet are in the way; nothing was cut."""

    def __init__(self, ids: set[int]) -> None:
        super().__init__(f"{len(ids)} producer ids")
        self.ids = ids


class Written(NamedTuple):
    """What an idempotent source producer put into a batch: its own id, epoch, first and last sequence."""

    producer_id: int
    epoch: int
    first: int
    last: int


class Piece(NamedTuple):
    """One batch to be written. Offsets are the source's, physical.

    `data` is the batch, to be stamped in place; `base` is the offset of the original batch, `next` the one behind it;
    `parts` are (offset, records) in the order of its `records`, None where they are all there from `base` on.
    """

    data: memoryview
    records: int
    base: int
    next: int
    parts: tuple[tuple[int, int], ...] | None
    leader_epoch: int
    max_timestamp: int
    written: Written | None

    @property
    def stretches(self) -> tuple[tuple[int, int], ...]:
        """(offset, records) in the order of its records."""
        return ((self.base, self.records),) if self.parts is None else self.parts


@dataclass(slots=True)
class Cut:
    """`position` is where to fetch next; nothing was in front of it that is not in `pieces` or left out.

    `leader_epoch` is that of the last batch in front of it, -1 where nothing was passed.
    """

    pieces: list[Piece]
    position: int
    left_out: int = 0  # batches
    leader_epoch: int = -1
    held: bool = False  # what follows goes past the limit


def producer_ids(batches: Iterable[Batch]) -> set[int]:
    """Their producer ids: those a registry should know about before the cut."""
    return {one.producer_id for one in batches}


def cut(
    records: memoryview,
    position: int,
    aborted: Iterable[tuple[int, int]] = (),
    foreign: Callable[[int], bool] | None = None,
    known: Callable[[int], bool] | None = None,
    limit: int | None = None,
) -> Cut:
    """Cut what a Fetch from `position` on returned; `records` is written to later and must stay untouched till then.

    `aborted` are (producer id, first offset) as the broker named them; batches whose producer id is `foreign` are
    left out. All producer ids must be `known`. Nothing is cut from a batch on that goes past `limit`.

    Raises:
        Corrupt: the CRC of a batch that is not simply passed on is wrong.
        DecodeError: the bytes are no batches.
        Strangers: with the producer ids of all batches, where one is not known.
    """
    out = Cut([], position)
    rest = _Rest(out, aborted)
    pieces, unpack, new = out.pieces, HEADER.unpack_from, tuple.__new__
    size = len(records)
    last_id, last_foreign = -2, False
    at = 0
    while True:
        if at + HEADER_SIZE <= size and records[at + 16] == 2:
            # Plain arithmetic: this runs once a batch.
            base, length, leader_epoch, _, _, attributes, delta, _, newest, producer_id, epoch, sequence, count = (
                unpack(records, at)
            )
            if producer_id != last_id:
                if known is not None and not known(producer_id):
                    raise Strangers(producer_ids(walk(records)))
                last_id, last_foreign = producer_id, foreign is not None and foreign(producer_id)
            end = at + LENGTH_FROM + length
            if (
                base >= position
                and end <= size
                and not attributes & _SPECIAL
                and count == delta + 1
                and count > 0
                and length > HEADER_SIZE - LENGTH_FROM
                and not last_foreign
                and not rest.old
                and (limit is None or base + count <= limit)
            ):
                written = None
                if producer_id >= 0 and sequence >= 0:
                    last = (sequence + delta) % SEQUENCES
                    written = new(Written, (producer_id & CLIENT_MASK, epoch, sequence, last))
                position = base + count
                piece = (records[at:end], count, base, position, None, leader_epoch, newest, written)
                pieces.append(new(Piece, piece))
                out.leader_epoch = leader_epoch
                at = end
                continue
        one = next(walk(records, at), None)
        if one is None:
            break
        if limit is not None and one.next_offset > limit:
            out.held = True
            break
        out.position = position
        rest.take(records, one, last_foreign)
        position = out.position
        at = one.end
    out.position = position
    rest.flush()
    return out


class _Rest:
    """What is not simply passed on: old messages (`old`, for a batch of their own), and what is judged or cut."""

    def __init__(self, out: Cut, aborted: Iterable[tuple[int, int]]) -> None:
        self._out = out
        self._pending = sorted(aborted, key=lambda one: one[1], reverse=True)
        self._open: set[int] = set()  # producers inside an aborted transaction
        self.old: list[Record] = []
        self._codec = 0

    def flush(self) -> None:
        old = self.old
        if old:
            self._out.pieces.append(_encoded(old, self._codec, old[0].offset, old[-1].offset + 1, -1, None))
            self.old = []

    def _message(self, records: memoryview, one: Batch) -> None:
        out = self._out
        found = [record for record in decode_records(records, one) if record.offset >= out.position]
        if not found:
            return
        codec = records[one.at + 17] & CODEC
        if self.old and (codec != self._codec or sum(len(record.body) for record in self.old) > OLD_BATCH_BYTES):
            self.flush()
        self.old += found
        self._codec = codec
        out.position = found[-1].offset + 1

    def take(self, records: memoryview, one: Batch, foreign: bool) -> None:
        """Judge one batch; `foreign` says whether its producer is."""
        if one.magic < 2:
            self._message(records, one)
            return
        self.flush()
        out = self._out
        following = one.next_offset
        if following <= out.position:
            return  # a fetch begins with the batch that holds its offset
        out.leader_epoch = one.leader_epoch
        while self._pending and self._pending[-1][1] < following:
            self._open.add(self._pending.pop()[0])
        if one.control:
            self._open.discard(one.producer_id)
        if one.control or not one.records or (one.transactional and one.producer_id in self._open) or foreign:
            out.left_out += 1
            out.position = following
            return
        data = records[one.at : one.end]
        if not intact(data):
            raise Corrupt(f"the batch at offset {one.base_offset} has a wrong CRC")
        written = None
        if one.producer_id >= 0 and one.base_sequence >= 0:
            written = Written(one.producer_id & CLIENT_MASK, one.producer_epoch, one.base_sequence, one.last_sequence)
        if one.base_offset >= out.position and one.dense and not one.log_append_time:
            out.pieces.append(
                Piece(data, one.records, one.base_offset, following, None, one.leader_epoch, one.max_timestamp, written)
            )
        else:
            kept = [record for record in decode_records(records, one) if record.offset >= out.position]
            if kept:
                out.pieces.append(
                    _encoded(kept, one.attributes & CODEC, one.base_offset, following, one.leader_epoch, written)
                )
            else:
                out.left_out += 1
        out.position = following


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
