"""What a partition's copy turns out to be at a take-over: journal, scan and source together, or a reason to stop.

A former copy, on a cluster that has served the topic, is gone on with behind what it had when it ceased to: what lies
there was written by nobody who was acknowledged, and is in no run. It must be whole, though: one that lacks records
which the source still has is begun anew where nothing is left of it, and stops otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from kafka_client import Refused
from kafka_client.topics import TopicInfo, delete_records
from offset_sync.journal import Contents, Stored, Stream
from offset_sync.recovered import Inconsistent, Recovered, recover, renewed
from offset_sync.table import Table
from offset_sync.varints import Damaged
from replicator.claim import Tail, scan
from replicator.core import Identity, Partition
from replicator.placed import Served, Timeline, close, former_parts, unrecorded
from replicator.states import Condition, Status, Stop

if TYPE_CHECKING:
    from replicator.link import Assignment, Link


def open_intents(stored: Stored) -> bool:
    """Whether anything may have landed that the state does not contain. Stop: the journal cannot be read."""
    try:
        return bool(stored.open_intents())
    except Damaged as error:
        raise Stop(Condition.TARGET_LOST, str(error)) from None


class Found(NamedTuple):
    """Where the logs of one partition begin and end, as asked before the fence."""

    number: int
    target_start: int
    target_end: int
    source_start: int


async def found_partition(
    link: Link,
    assignment: Assignment,
    identity: Identity,
    contents: Contents,
    target: TopicInfo,
    source_info: TopicInfo,
    source: Table,
    found: Found,
    status: Status,
    timeline: Timeline = (),
) -> Partition:
    """Recover one partition, ready to copy; `source` is the source's table, `timeline` the topic's.

    Raises:
        Stop: it must not be copied.
        Refused: as `_begin_anew`.
    """
    exclusive = assignment.mode == "ship"
    stream = Stream(target.topic.id, found.number, "" if exclusive else link.source.name)
    stored = contents.streams.get(stream, Stored())
    state = stored.state
    if exclusive and assignment.generation > generation_of(stored):
        made = await _begin_anew(link, assignment, identity, stream, stored, target, found, assignment.generation)
        return _ready(link, made, source, source_info, found, status, stream, identity, exclusive=True)
    if stored.lost:
        raise Stop(Condition.TARGET_LOST, stored.lost)
    former = unrecorded(former_parts(timeline, link.target.name, found.number), state) if exclusive else []
    start = found.target_start if exclusive else found.target_end
    if state is not None:
        if found.target_end < state.scanned:
            raise Stop(Condition.TARGET_LOST, f"it ends at {found.target_end}, {state.scanned} was acknowledged")
        if exclusive or open_intents(stored):
            start = max(state.scanned, found.target_start)
        moved = former or state.source not in ("", link.source.name)
        if not moved and state.source_id not in (bytes(16), source_info.topic.id):
            raise Stop(Condition.RECREATED, f"{assignment.topic!r} had another topic id")
    if former:
        if found.target_end < former[-1].physical_end:
            why = f"it ends at {found.target_end}, and had {former[-1].physical_end} when it ceased to serve"
            raise Stop(Condition.TARGET_LOST, why)
        if state is None or not open_intents(stored):
            start = max(former[-1].physical_end, found.target_start)
    tail = await scan(link.target, target, found.number, start, identity)
    if state is None and exclusive and tail.batches and not former:
        raise Stop(Condition.OCCUPIED, f"records from {tail.batches[0].offset} on are not ours")
    try:
        made = _recovered(stored, tail, former, found)
    except (Inconsistent, Damaged) as error:
        raise Stop(Condition.TARGET_LOST, str(error)) from None
    if former:
        behind = [one for one in tail.batches if one.offset >= former[-1].physical_end]
        made.table.trim(found.target_start)
        start_here, start_there = made.table.log_start, source.logical(found.source_start) or 0
        if start_here > start_there and found.target_start >= former[-1].physical_end and not behind:
            generation = generation_of(stored) + 1
            made = await _begin_anew(link, assignment, identity, stream, stored, target, found, generation)
            return _ready(link, made, source, source_info, found, status, stream, identity, exclusive=True)
        if start_here > start_there:
            why = f"the former copy begins at logical offset {start_here}, the topic at {start_there}"
            raise Stop(Condition.INCOMPLETE, why)
        status.foreign += sum(one.records for one in behind)
    elif exclusive:
        status.foreign += sum(one.records for one in tail.batches) - made.landed
    return _ready(
        link,
        made,
        source,
        source_info,
        found,
        status,
        stream,
        identity,
        exclusive=exclusive,
        elsewhere=bool(former),
    )


def _recovered(stored: Stored, tail: Tail, former: Sequence[Served], found: Found) -> Recovered:
    """Journal and tail, and what clients wrote in between. Raises as `recover`."""
    if not former:
        return recover(stored, tail.batches, tail.end, found.target_start)
    first, last = former[0], former[-1]
    mine = [one for one in tail.batches if one.offset < first.physical]
    made = recover(stored, mine, first.physical, found.target_start)
    close(made.table, former)
    made.state = replace(made.state, scanned=max(tail.end, last.physical_end))
    return made


def generation_of(stored: Stored) -> int:
    """How often the copy was begun anew already."""
    if stored.table is None:
        return 0
    try:
        return Table.load(stored.table, ()).generation
    except Damaged:
        return 0


async def _begin_anew(
    link: Link,
    assignment: Assignment,
    identity: Identity,
    stream: Stream,
    stored: Stored,
    target: TopicInfo,
    found: Found,
    generation: int,
) -> Recovered:
    """Empty the target and forget its table: somebody has decided so by raising the mirror's generation, or nothing is
    left of it.

    Interrupted, it is done again: the new generation is in the journal only with the first checkpoint.

    Raises:
        Refused: its leader does not delete the records.
    """
    end = (await scan(link.target, target, found.number, found.target_end, identity)).end
    leader = target.partitions[found.number].leader
    code = (await delete_records(link.target, assignment.topic, leader, {found.number: end}))[found.number]
    if code:
        raise Refused(f"{link.target.name}: emptying {assignment.topic}-{found.number}", code)
    return renewed(stream, stored, generation, end)


def _ready(
    link: Link,
    made: Recovered,
    source: Table,
    source_info: TopicInfo,
    found: Found,
    status: Status,
    stream: Stream,
    identity: Identity,
    *,
    exclusive: bool,
    elsewhere: bool = False,
) -> Partition:
    """`elsewhere`: what the state says of its source is of no use any longer."""
    position, epoch = made.state.position, made.state.leader_epoch
    if elsewhere or made.state.source not in ("", link.source.name):
        # Another source, the same logical log: go on behind the last record that is here.
        end = made.table.runs.end
        here = max(made.table.log_start, end.logical if end is not None else 0)  # all of it may have been deleted
        position = source.physical(here) or 0 if here else -1
        epoch = -1
    first = max(source.physical(source.log_start) or 0, found.source_start)
    if position < first:
        if position >= 0:
            status.overtaken += first - position
        position, epoch = first, -1
    if exclusive:
        made.table.raise_log_start(source.logical(found.source_start) or 0)
    made.table.trim(found.target_start)
    made.state = replace(
        made.state, position=position, leader_epoch=epoch, source_id=source_info.topic.id, source=link.source.name
    )
    status.position, status.records = position, made.state.records
    return Partition(stream, identity, made, source, exclusive=exclusive)
