"""The copying of partitions as pure state: what may be sent when, what an answer means, what is left after a crash.

A `Unit` is a group of partitions that share one producer identity on the target and one partition of its journal.
Its life: an identity no one else holds (a new epoch, fenced on every partition), then `recover`, then `take` what was
fetched, write what `journal_batch` gives, tell `journal_stored`, write what `next_batch` gives, tell `acknowledged`.
After any error or lost connection the unit is thrown away and a new one recovered under a new epoch: nothing is ever
sent twice. Why that neither loses nor doubles:

- A batch is sent after its intent is stored, so every batch of ours that a scan finds has an intent.
- The fence is in every partition's log before the scan: what the scan does not find will never be appended.
- Sequences make the broker refuse a batch whose predecessor failed, as long as it has state for us. Where that may
  have expired (it goes by the newest record timestamp) one batch is in flight, so there is no successor.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from kafka_wire.batches import NO_PRODUCER, SEQUENCES, advance, stamp
from kafka_wire.records import values_batch
from offset_sync.guard import Entry, Guard, Noted
from offset_sync.table import Table
from offset_sync.varints import Damaged
from replicator.cut import Cut
from replicator.journal import (
    INTENT,
    LOST,
    SLOTS,
    Intent,
    Pair,
    State,
    Stored,
    Stream,
    Stretch,
    checkpoint_pairs,
    intent_pair,
    lost_pair,
)

WINDOW = 5  # batches of a partition in flight: what brokers remember of a producer
CHECKPOINT_AFTER = 64  # intents
JOURNAL_BYTES = 900 << 10  # of records to a batch: below the 1 MiB that brokers take by default
MAX_WAITING = 8 << 20  # bytes of a partition that are cut and not yet acknowledged


class Inconsistent(Exception):
    """Target and journal contradict each other: something that was acknowledged is gone, or was never ours."""


class Identity(NamedTuple):
    """A producer identity on the target; nobody else writes with it."""

    producer_id: int
    epoch: int


class Found(NamedTuple):
    """A batch header of the target's log, as a scan saw it."""

    offset: int
    producer_id: int
    epoch: int
    sequence: int
    records: int


@dataclass(slots=True)
class Shipment:
    """One stamped batch on its way; `number` is the intent it belongs to."""

    data: memoryview
    records: int
    number: int
    max_timestamp: int
    next: int  # the source offset behind it


@dataclass(slots=True)
class Recovered:
    """What a stream turned out to be."""

    state: State
    table: Table
    guard: Guard
    landed: int = 0  # records of open intents that were found on the target
    dropped: int = 0  # ... and not found: they are read from the source again
    pairs: list[Pair] = field(default_factory=list)  # to be stored with the first checkpoint


def recover(stored: Stored, tail: Iterable[Found], scanned: int, since: int = 0) -> Recovered:
    """The exact state of a stream, from its journal and a scan of the target from `stored.state.scanned` on.

    `scanned` is the offset behind the scan, past the fence; the target's log begins at `since`, which may be above the
    beginning of the scan. Batches of strangers in the tail are passed over.

    Raises:
        Inconsistent: the target holds batches of ours without an intent, or not in the order of their intents.
        Damaged: the journal cannot be read.
    """
    state = stored.state or State()
    table = stored.load_table()
    table.cut_from(state.scanned)  # chunks may be newer than the state where a checkpoint took several batches
    return judge(state, table, stored.load_guard(), stored.open_intents(), tail, scanned, since)


def judge(
    state: State,
    table: Table,
    guard: Guard,
    intents: Sequence[Intent],
    tail: Iterable[Found],
    scanned: int,
    since: int = 0,
) -> Recovered:
    """`recover` of what was loaded already: adds to table and guard what landed of the open intents.

    Raises:
        Inconsistent: as `recover`.
    """
    position, leader_epoch = state.position, state.leader_epoch
    queue: deque[tuple[Intent, Stretch]] = deque()
    for intent in intents:
        for stretch in intent.stretches:  # what the state contains of an intent was in front of the scan
            if stretch.source + stretch.records > position:
                queue.append((intent, _rest(stretch, max(0, position - stretch.source))))
    total = sum(one.records for _, one in queue)
    landed = 0
    deleted = since > state.scanned  # what landed first may be gone already
    ours = {(intent.producer_id, intent.producer_epoch) for intent in intents}
    ours.add((state.producer_id, state.producer_epoch))
    for one in tail:
        if one.producer_id == NO_PRODUCER or (one.producer_id, one.epoch) not in ours:
            continue
        left, at, sequence = one.records, one.offset, one.sequence
        while left:
            if deleted:
                _skip(queue, one)
                deleted = False
            if not queue:
                raise Inconsistent(f"the target has a batch of ours at {one.offset} that no intent announced")
            intent, stretch = queue.popleft()
            identity = (intent.producer_id, intent.producer_epoch)
            if identity != (one.producer_id, one.epoch) or stretch.sequence != sequence:
                raise Inconsistent(f"the target has sequence {sequence} at {one.offset}, announced {stretch.sequence}")
            count = min(stretch.records, left)
            table.append(stretch.logical, at, count)
            position = stretch.next if count == stretch.records else stretch.source + count
            leader_epoch = stretch.leader_epoch
            if count < stretch.records:
                queue.appendleft((intent, _rest(stretch, count)))
            landed, left, at, sequence = landed + count, left - count, at + count, advance(sequence, count)
    end = table.runs.end
    for intent in intents:
        for noted in intent.guards:
            if end is not None and noted.entry.logical < end.logical:
                guard.note(noted)
    after = replace(
        state,
        number=intents[-1].number + 1 if intents else state.number,
        position=position,
        scanned=max(scanned, state.scanned),
        leader_epoch=leader_epoch,
        records=state.records + landed,
    )
    return Recovered(after, table, guard, landed, total - landed)


def renewed(stream: Stream, stored: Stored, generation: int, end: int) -> Recovered:
    """A copy that is begun anew behind `end`, the target's, whatever the journal holds of the one before."""
    table, guard = Table(), Guard()
    try:
        table = stored.load_table()
    except Damaged:
        pass
    table.renew(generation, stored.chunks)
    guard.drop(stored.guards)
    state = stored.state or State()
    state = State(number=state.number + SLOTS, scanned=end)  # above every intent that may have been written
    pairs: list[Pair] = [(stream.key(INTENT, slot), None) for slot in stored.intents]
    if stored.lost:
        pairs.append((stream.key(LOST), None))
    return Recovered(state, table, guard, pairs=pairs)


def _skip(queue: deque[tuple[Intent, Stretch]], first: Found) -> None:
    """Forget what landed in front of the first batch that is still there."""
    while queue:
        intent, stretch = queue.popleft()
        ahead = (first.sequence - stretch.sequence) % SEQUENCES
        if (intent.producer_id, intent.producer_epoch) == (first.producer_id, first.epoch) and ahead < stretch.records:
            queue.appendleft((intent, _rest(stretch, ahead)))
            return


def _rest(one: Stretch, done: int) -> Stretch:
    return Stretch(
        advance(one.sequence, done),
        one.records - done,
        one.source + done,
        one.next,
        one.leader_epoch,
        one.logical + done,
    )


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
        "_expected",
        "_first",
        "_guards",
        "_in_flight",
        "_into",
        "_number",
        "_pending",
        "_recovered",
        "_scanned",
        "_sequence",
        "_stored",
        "_waiting",
        "_waiting_bytes",
        "fetch_epoch",
        "fetch_position",
        "foreign",
        "guard",
        "identity",
        "records",
        "source",
        "source_foreign",
        "stream",
        "table",
    )

    def __init__(
        self, stream: Stream, identity: Identity, recovered: Recovered, source: Table, *, exclusive: bool = True
    ) -> None:
        """`exclusive`: nobody else may write to the target partition (ship), so a gap in its offsets is foreign."""
        state = recovered.state
        self.stream = stream
        self.identity = identity
        self.source = source
        self.table = recovered.table
        self.guard = recovered.guard
        self.fetch_position = state.position
        self.fetch_epoch = state.leader_epoch  # of the last batch in front of it
        self.foreign = 0  # target offsets that others took
        self.source_foreign = 0  # records of the source that lie outside its table
        self.records = state.records  # copied in all
        self._recovered = replace(state, producer_id=identity.producer_id, producer_epoch=identity.epoch)
        self._done = state.number  # intents below it are on the target
        self._acked, self._acked_epoch = state.position, state.leader_epoch
        self._scanned = state.scanned
        self._number = state.number  # of the next intent
        self._stored = state.number - 1  # the newest intent that is stored
        self._sequence = 0
        self._waiting: deque[Shipment] = deque()
        self._in_flight: deque[Shipment] = deque()
        self._waiting_bytes = 0
        self._pending: deque[Stretch] = deque()  # announced and not landed
        self._into = 0  # records of the first that have landed
        self._guards: deque[Noted] = deque()  # announced and not landed
        self._checkpointed = state.number  # the number the newest stored checkpoint counts from
        self._checkpointing = state.number  # ... and the newest one on its way
        self._expected = state.scanned if exclusive else -1
        self._first = recovered.pairs
        self._acked_fresh = True  # the fence was written now
        self._dirty = True

    # -- what is going on -----------------------------------------------------------------------------------------

    @property
    def position(self) -> int:
        """The source offset up to which everything is on the target (or left out)."""
        return self._acked if self._busy else self.fetch_position

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
        linear, waiting = self.source.linear, self._waiting
        producer_id, producer_epoch = self.identity
        sequence = self._sequence
        size = 0
        # The stretch being made: its first sequence, source offset and logical offset, its records and leader epoch.
        first = source_at = logical_at = records = epoch = following = 0
        for piece in made.pieces:
            data = piece.data
            at, length = piece.stretches[0]
            if linear(at, length) is None and not self.source.serves(at, sum(piece.stretches[-1]) - 1):
                self.source_foreign += piece.records
                continue
            stamp(data, producer_id, producer_epoch, sequence)
            for source, count in piece.stretches:
                logical = linear(source, count)
                parts = [(logical, count)] if logical is not None else self.source.logical_runs([(source, count)])
                for logical, part in parts:
                    if (
                        records
                        and source_at + records == source
                        and logical_at + records == logical
                        and epoch == piece.leader_epoch
                    ):
                        records += part
                    else:
                        if records:
                            stretches.append(Stretch(first, records, source_at, following, epoch, logical_at))
                        first, records, source_at, logical_at = sequence, part, source, logical
                        epoch = piece.leader_epoch
                    source += part
                    following = source
                    sequence = (sequence + part) % SEQUENCES
            following = piece.next
            written = piece.written
            if written is not None and not mirrored(written[0]):
                base = self.source.logical(piece.base)
                assert base is not None
                guards.append(Noted(written[0], now, Entry(written[1], written[2], written[3], base)))
            waiting.append(Shipment(data, piece.records, number, piece.max_timestamp, piece.next))
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

    def next_batch(self, now: int) -> Shipment | None:
        """The next batch that may be sent, if any; it then counts as in flight."""
        if not self._waiting or self._waiting[0].number > self._stored or len(self._in_flight) >= WINDOW:
            return None
        if self._in_flight:
            oldest = now - self.guard.expiration_ms // 2
            if not self._acked_fresh or any(one.max_timestamp < oldest for one in self._in_flight):
                return None
        one = self._waiting.popleft()
        self._in_flight.append(one)
        return one

    def acknowledged(self, base_offset: int, now: int) -> Shipment:
        """The oldest batch in flight was appended at `base_offset` of the target. Raises Inconsistent."""
        one = self._in_flight.popleft()
        self._waiting_bytes -= len(one.data)
        if self._expected >= 0:
            if base_offset < self._expected:
                raise Inconsistent(f"appended at {base_offset}, below {self._expected}: the target lost data")
            self.foreign += base_offset - self._expected
            self._expected = base_offset + one.records
        left, at = one.records, base_offset
        logical = epoch = -1
        pending = self._pending
        while left:
            stretch = pending[0]
            count = stretch.records - self._into
            if count > left:
                count = left
            self.table.append(stretch.logical + self._into, at, count)
            logical, epoch = stretch.logical + self._into + count, stretch.leader_epoch
            left, at = left - count, at + count
            self._into += count
            if self._into == stretch.records:
                pending.popleft()
                self._into = 0
        following = self._waiting[0] if not self._in_flight and self._waiting else None
        if self._in_flight:
            following = self._in_flight[0]
        finished = one.number if following is None or following.number != one.number else one.number - 1
        while self._guards and self._guards[0].entry.logical < logical:
            self.guard.note(self._guards.popleft())
        self._done = finished + 1
        self._acked, self._acked_epoch = one.next, epoch
        self._scanned = at
        self.records += one.records
        self._acked_fresh = one.max_timestamp >= now - self.guard.expiration_ms // 2
        self._dirty = True
        return one

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
        return self._done, [*first, *checkpoint_pairs(self.stream, self.state, self.table, self.guard)]

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


@dataclass(slots=True)
class _Entry:
    """Journal records that must lie in one batch, and what is known once they are stored."""

    pairs: list[Pair]
    size: int
    stream: Stream
    intent: int = -1
    checkpoint: int = -1


class Unit:
    """Partitions that share an identity, and their part of the journal. Journal batches are stored in order."""

    def __init__(self, name: str, identity: Identity) -> None:
        self.name = name
        self.identity = identity
        self.partitions: dict[Stream, Partition] = {}
        self._queue: deque[_Entry] = deque()
        self._in_flight: deque[list[_Entry]] = deque()
        self._sequence = 0

    def add(self, partition: Partition) -> None:
        """Its first checkpoint ends the intents of its predecessor, and is stored before any intent of its own."""
        self.partitions[partition.stream] = partition
        self.checkpoint(partition)

    def take(self, partition: Partition, made: Cut, now: int, mirrored: Callable[[int], bool]) -> None:
        """`Partition.take`, with the intent on its way to the journal."""
        intent = partition.take(made, now, mirrored)
        if intent is not None:
            pair = intent_pair(partition.stream, intent)
            self._queue.append(_Entry([pair], _size(pair), partition.stream, intent=intent.number))

    def checkpoint(self, partition: Partition) -> None:
        """Write down where a partition stands, if anything has changed."""
        number, pairs = partition.checkpoint()
        if not pairs:
            return
        # The state comes last: where one batch is too small, what came before it is ahead of the state and harmless.
        part: list[Pair] = []
        size = 0
        for pair in pairs:
            if part and size + _size(pair) > JOURNAL_BYTES:
                self._queue.append(_Entry(part, size, partition.stream))
                part, size = [], 0
            part.append(pair)
            size += _size(pair)
        self._queue.append(_Entry(part, size, partition.stream, checkpoint=number))

    def lose(self, stream: Stream, detail: str) -> None:
        """Write down that the target lost data of a partition, for all who come after."""
        pair = lost_pair(stream, detail)
        self._queue.append(_Entry([pair], _size(pair), stream))

    def journal_batch(self, now: int) -> memoryview | None:
        """The next batch for the journal, stamped; None where there is nothing or enough in flight. `now`: Unix ms."""
        if not self._queue or len(self._in_flight) >= WINDOW:
            return None
        entries = [self._queue.popleft()]
        size = entries[0].size
        while self._queue and size + self._queue[0].size <= JOURNAL_BYTES:
            entries.append(self._queue.popleft())
            size += entries[-1].size
        pairs = [pair for entry in entries for pair in entry.pairs]
        batch = values_batch(
            pairs,
            now,
            producer_id=self.identity.producer_id,
            producer_epoch=self.identity.epoch,
            base_sequence=self._sequence,
        )
        self._sequence = advance(self._sequence, len(pairs))
        self._in_flight.append(entries)
        return memoryview(batch)

    def journal_stored(self) -> list[Stream]:
        """The oldest journal batch in flight is stored. Returns the streams that may have more to send."""
        touched = []
        for entry in self._in_flight.popleft():
            partition = self.partitions.get(entry.stream)
            if partition is None:
                continue
            if entry.intent >= 0:
                partition.stored(entry.intent)
                touched.append(entry.stream)
            if entry.checkpoint >= 0:
                partition.checkpointed(entry.checkpoint)
        return touched

    @property
    def idle(self) -> bool:
        """Nothing to write, nothing in flight."""
        return not self._queue and not self._in_flight and all(one.idle for one in self.partitions.values())


def _size(pair: Pair) -> int:
    return len(pair[0]) + len(pair[1] or b"") + 24
