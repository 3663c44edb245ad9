"""The copying of partitions as pure state: what may be sent when, what an answer means, what is left after a crash.

A `Unit` is a group of partitions that share one producer identity on the target and one partition of its journal.
Its life: an identity no one else holds (a new epoch, fenced on every partition), then `recover`, then `take` what was
fetched, write what `journal_batch` gives, tell `journal_stored`, write what `next_batches` gives, tell `acknowledged`.
After any error or lost connection the unit is thrown away and a new one recovered under a new epoch: nothing is ever
sent twice. Why that neither loses nor doubles:

- A batch is sent after its intent is stored, so every batch of ours that a scan finds has an intent.
- The fence is in every partition's log before the scan: what the scan does not find will never be appended.
- Sequences make the broker refuse a batch whose predecessor failed, as long as it has state for us. Where that may
  have expired (it goes by the newest record timestamp) one batch is in flight, so there is no successor.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import NamedTuple

from kafka_wire.batches import SEQUENCES, intact, stamp
from offset_sync.guard import Entry, Guard, Noted
from offset_sync.journal import (
    SLOTS,
    Intent,
    Pair,
    State,
    Stream,
    Stretch,
    checkpoint_pairs,
)
from offset_sync.recovered import Inconsistent, Recovered
from offset_sync.table import Table
from replicator.cut import Cut, Piece

WINDOW = 5  # batches of a partition in flight: what brokers remember of a producer
CHECKPOINT_AFTER = 64  # intents
MAX_WAITING = 4 << 20  # bytes of a partition that are cut and not yet acknowledged


class Identity(NamedTuple):
    """A producer identity on the target; nobody else writes with it."""

    producer_id: int
    epoch: int


class Partition:
    """One partition of a mirror. `source` is the table of the cluster it reads from, `table` that of its target."""

    __slots__ = (
        "_acked",
        "_acked_epoch",
        "_acked_fresh",
        "_checkpointed",
        "_checkpointing",
        "_dirty",
        "_done",
        "_exclusive",
        "_first",
        "_guard",
        "_guards",
        "_in_flight",
        "_into",
        "_landed_from",
        "_number",
        "_oldest",
        "_pending",
        "_recovered",
        "_scanned",
        "_sequence",
        "_stored",
        "_table",
        "_waiting",
        "_waiting_bytes",
        "batches",
        "bytes",
        "copied",
        "fetch_epoch",
        "fetch_position",
        "foreign",
        "identity",
        "records",
        "source",
        "source_foreign",
        "stream",
    )

    def __init__(
        self, stream: Stream, identity: Identity, recovered: Recovered, source: Table, *, exclusive: bool = True
    ) -> None:
        """`exclusive`: nobody else may write to the target partition (ship), so a gap in its offsets is foreign."""
        state = recovered.state
        self.stream = stream
        self.identity = identity
        self.source = source
        self._table = recovered.table
        self._guard = recovered.guard
        self.fetch_position = state.position
        self.fetch_epoch = state.leader_epoch  # of the last batch in front of it
        self.foreign = 0  # target offsets that others took
        self.source_foreign = 0  # records of the source that lie outside its table
        self.records = state.records  # copied in all
        self.copied = self.bytes = self.batches = 0  # records, their bytes and batches, since the unit began
        self._recovered = replace(state, producer_id=identity.producer_id, producer_epoch=identity.epoch)
        self._done = state.number  # intents below it are on the target
        self._acked, self._acked_epoch = state.position, state.leader_epoch
        self._scanned = state.scanned
        self._number = state.number  # of the next intent
        self._stored = state.number - 1  # the newest intent that is stored
        self._sequence = 0
        self._waiting: deque[tuple[int, Piece]] = deque()  # each with the number of its intent
        self._in_flight: deque[tuple[int, Piece]] = deque()
        self._oldest = 0  # no batch in flight has an older newest record
        self._waiting_bytes = 0
        self._pending: deque[Stretch] = deque()  # announced and not landed
        self._into = 0  # records of the first that have landed
        self._landed_from = state.scanned  # from here to `_scanned` nothing is in table and guard yet
        self._guards: deque[Noted] = deque()  # announced and not landed
        self._checkpointed = state.number  # the number the newest stored checkpoint counts from
        self._checkpointing = state.number  # ... and the newest one on its way
        self._exclusive = exclusive
        self._first = recovered.pairs
        self._acked_fresh = True  # the fence was written now
        self._dirty = True

    # -- what is going on -----------------------------------------------------------------------------------------

    @property
    def position(self) -> int:
        """The source offset up to which everything is on the target (or left out)."""
        return self._acked if self._busy else self.fetch_position

    @property
    def table(self) -> Table:
        """What is on the target, up to the last acknowledged batch."""
        if self._landed_from != self._scanned:
            self._settle()
        return self._table

    @property
    def guard(self) -> Guard:
        """The producers, likewise."""
        if self._landed_from != self._scanned:
            self._settle()
        return self._guard

    @property
    def waiting_bytes(self) -> int:
        """Bytes that were taken and are not acknowledged yet."""
        return self._waiting_bytes

    @property
    def _busy(self) -> bool:
        return bool(self._waiting or self._in_flight)

    @property
    def idle(self) -> bool:
        """Everything taken is acknowledged."""
        return not self._busy

    @property
    def full(self) -> bool:
        """Whether to fetch no more for now: too much is waiting, or too many intents are out."""
        return self._waiting_bytes >= MAX_WAITING or self._number - self._checkpointed >= SLOTS

    @property
    def state(self) -> State:
        """What a checkpoint would store now."""
        self._settle()
        busy = self._busy
        return replace(
            self._recovered,
            number=self._done,
            position=self._acked if busy else self.fetch_position,
            scanned=self._scanned,
            leader_epoch=self._acked_epoch if busy else self.fetch_epoch,
            records=self.records,
        )

    # -- from the source ------------------------------------------------------------------------------------------

    def take(self, made: Cut, now: int, mirrored: Callable[[int], bool]) -> Intent | None:
        """Stamp what was cut, and say what must be stored before it is sent. `now` is Unix ms.

        `mirrored` tells producer ids of mirrors: they have no place in the guard. Batches outside every run of the
        source's table are foreign there, served to nobody and left out.

        Raises:
            ValueError: part of a batch is in no run.
        """
        number = self._number
        stretches: list[Stretch] = []
        guards: list[Noted] = []
        waiting, table = self._waiting, self.source
        own = table.own
        own_from, shift = (own.physical, own.logical - own.physical) if own is not None else (1 << 63, 0)
        producer_id, producer_epoch = self.identity
        sequence = self._sequence
        new = tuple.__new__  # without a constructor's own work: this runs once a batch
        last_id, noting = -1, False
        size = 0
        # The stretch being made: its first sequence, source offset and logical offset, its records and leader epoch.
        first = source_at = logical_at = records = epoch = following = 0
        for piece in made.pieces:
            data, count, base, behind, holes, leader_epoch, _, written = piece
            logical: int | None
            if holes is None and base >= own_from:
                logical = base + shift
            else:
                at, length = (base, count) if holes is None else holes[0]
                logical = table.linear(at, length)
                if logical is None and not table.serves(at, behind - 1 if holes is None else sum(holes[-1]) - 1):
                    self.source_foreign += count
                    continue
            stamp(data, producer_id, producer_epoch, sequence)
            if logical is not None and holes is None:
                if (
                    records
                    and source_at + records == base
                    and epoch == leader_epoch
                    and logical_at + records == logical
                ):
                    records += count
                else:
                    if records:
                        stretches.append(Stretch(first, records, source_at, following, epoch, logical_at))
                    first, records, source_at, logical_at, epoch = sequence, count, base, logical, leader_epoch
                sequence = (sequence + count) % SEQUENCES
            else:
                for source, length in piece.stretches:
                    logical = table.linear(source, length)
                    parts = [(logical, length)] if logical is not None else table.logical_runs([(source, length)])
                    for logical, part in parts:
                        if (
                            records
                            and source_at + records == source
                            and logical_at + records == logical
                            and epoch == leader_epoch
                        ):
                            records += part
                        else:
                            if records:
                                stretches.append(Stretch(first, records, source_at, following, epoch, logical_at))
                            first, records, source_at, logical_at = sequence, part, source, logical
                            epoch = leader_epoch
                        source += part
                        following = source
                        sequence = (sequence + part) % SEQUENCES
            following = behind
            if written is not None:
                if written[0] != last_id:
                    last_id = written[0]
                    noting = not mirrored(last_id)
                if noting:
                    start = base + shift if base >= own_from else table.logical(base)
                    assert start is not None
                    guards.append(new(Noted, (last_id, now, new(Entry, (*written[1:], start)))))
            waiting.append((number, piece))
            size += len(data)
        if records:
            stretches.append(Stretch(first, records, source_at, following, epoch, logical_at))
        self._sequence = sequence
        self._waiting_bytes += size
        self._dirty = self._dirty or made.position != self.fetch_position
        self.fetch_position = made.position
        if made.leader_epoch >= 0:
            self.fetch_epoch = made.leader_epoch
        if not stretches:
            return None
        self._number += 1
        intent = Intent(number, *self.identity, now, tuple(stretches), tuple(guards))
        self._pending.extend(stretches)
        self._guards.extend(guards)
        return intent

    def skip_to(self, position: int) -> None:
        """Nothing below this source offset exists any more."""
        if position > self.fetch_position:
            self.fetch_position, self.fetch_epoch = position, -1
            self._dirty = True

    def stored(self, number: int) -> None:
        """Intents up to this number are stored."""
        self._stored = max(self._stored, number)

    # -- to the target --------------------------------------------------------------------------------------------

    def next_batches(self, now: int, most: int = 1, room: int = 1) -> list[Piece]:
        """The next batches that may be sent, `most` of them, till they take `room` bytes; they count as in flight."""
        out: list[Piece] = []
        waiting, flight, stored = self._waiting, self._in_flight, self._stored
        most = min(most, WINDOW - len(flight))
        edge = now - self._guard.expiration_ms // 2
        oldest = self._oldest
        while most > 0 and room > 0 and waiting:
            one = waiting[0]
            number, piece = one
            if number > stored:
                break
            newest = piece[6]
            if flight:
                if oldest < edge or not self._acked_fresh:
                    break
                if newest < oldest:
                    oldest = newest
            else:
                oldest = newest
            waiting.popleft()
            flight.append(one)
            out.append(piece)
            room -= len(piece[0])
            most -= 1
        self._oldest = oldest
        return out

    def acknowledged(self, bases: Iterable[int], now: int) -> None:
        """The oldest batches in flight were appended at these offsets of the target.

        Raises:
            Inconsistent: the target lost data; those in front of it are accounted for.
        """
        flight = self._in_flight
        at = self._scanned
        number = newest = following = -1
        records = size = batches = 0
        try:
            for base in bases:
                if base != at:
                    self._gap(at, base)
                number, piece = flight.popleft()
                data, count, _, following, _, _, newest, _ = piece
                at = base + count
                records += count
                size += len(data)
                batches += 1
        finally:
            if batches:
                self._scanned = at
                ahead = flight or self._waiting
                self._done = number if ahead and ahead[0][0] == number else number + 1
                self._acked = following
                self._acked_fresh = newest >= now - self._guard.expiration_ms // 2
                self._waiting_bytes -= size
                self.records += records
                self.copied += records
                self.bytes += size
                self.batches += batches
                self._dirty = True

    def corrupt(self) -> int | None:
        """The source offset of the oldest batch in flight, if its CRC is wrong, as it came from the source."""
        if not self._in_flight:
            return None
        piece = self._in_flight[0][1]
        return None if intact(piece.data) else piece.base

    def _gap(self, at: int, base: int) -> None:
        """The next batch was appended at `base`, behind what ended at `at`."""
        self._scanned = at
        self._settle()
        if self._exclusive:
            if base < at:
                raise Inconsistent(f"appended at {base}, below {at}: the target lost data")
            self.foreign += base - at
        self._landed_from = base

    def see(self, end: int) -> None:
        """The target's log ends here, and nothing of ours is on its way: what lies in between is not ours."""
        if end > self._scanned and not self._busy:
            self._gap(self._scanned, end)
            self._scanned = end
            self._dirty = True

    def _settle(self) -> None:
        """Bring table and guard up to the last acknowledged batch; batches that follow each other at once."""
        at = self._landed_from
        left = self._scanned - at
        if not left:
            return
        logical = epoch = -1
        pending = self._pending
        while left:
            stretch = pending[0]
            count = min(stretch.records - self._into, left)
            self._table.append(stretch.logical + self._into, at, count)
            logical, epoch = stretch.logical + self._into + count, stretch.leader_epoch
            left, at = left - count, at + count
            self._into += count
            if self._into == stretch.records:
                pending.popleft()
                self._into = 0
        guards = self._guards
        while guards and guards[0].entry.logical < logical:
            self._guard.note(guards.popleft())
        self._acked_epoch = epoch
        self._landed_from = at

    def checkpoint_due(self) -> bool:
        """Whether enough intents have been acknowledged for the next checkpoint, or their keys are running out."""
        return self._done - self._checkpointing >= CHECKPOINT_AFTER

    def checkpoint(self) -> tuple[int, list[Pair]]:
        """(the intent it counts from, the records of a checkpoint); no records where nothing has changed."""
        if not self._dirty:
            return self._done, []
        self._dirty = False
        self._checkpointing = self._done
        first, self._first = self._first, []
        return self._done, [*first, *checkpoint_pairs(self.stream, self.state, self._table, self._guard)]

    def checkpointed(self, number: int) -> None:
        """A checkpoint that counts from this intent is stored."""
        self._checkpointed = max(self._checkpointed, number)

    def trim(self, log_start: int) -> None:
        """The target's log begins here: its table need not tell what was in front."""
        if self.table.trim(log_start):
            self._dirty = True

    def touch(self) -> None:
        """Table or source were changed from outside: the next checkpoint has something to write."""
        self._dirty = True
