"""What a mirror's journal and its target's log tell together: exactly what has arrived. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from kafka_wire.batches import NO_PRODUCER, SEQUENCES, advance
from offset_sync.guard import Guard
from offset_sync.journal import INTENT, LOST, SLOTS, Intent, Pair, State, Stored, Stream, Stretch
from offset_sync.table import Table
from offset_sync.varints import Damaged


class Inconsistent(Exception):
    """Target and journal contradict each other: something that was acknowledged is gone, or was never ours."""


class Found(NamedTuple):
    """A batch header of the target's log, as a scan saw it."""

    offset: int
    producer_id: int
    epoch: int
    sequence: int
    records: int


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
