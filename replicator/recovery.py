"""What a partition's copy turns out to be at a take-over: journal, scan and source together, or a reason to stop."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from kafka_client import Refused
from kafka_client.topics import TopicInfo, delete_records
from offset_sync.journal import Contents, Stored, Stream
from offset_sync.recovered import Inconsistent, Recovered, recover, renewed
from offset_sync.table import Table
from offset_sync.varints import Damaged
from replicator.claim import scan
from replicator.core import Identity, Partition
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
) -> Partition:
    """Recover one partition, ready to copy; `source` is the source's table.

    Raises:
        Stop: it must not be copied.
        Refused: as `_begin_anew`.
    """
    exclusive = assignment.mode == "ship"
    stream = Stream(target.topic.id, found.number, "" if exclusive else link.source.name)
    stored = contents.streams.get(stream, Stored())
    state = stored.state
    if exclusive and assignment.generation > generation_of(stored):
        made = await _begin_anew(link, assignment, identity, stream, stored, target, found)
        return _ready(link, made, source, source_info, found, status, stream, identity, exclusive=True)
    if stored.lost:
        raise Stop(Condition.TARGET_LOST, stored.lost)
    start = found.target_start if exclusive else found.target_end
    if state is not None:
        if found.target_end < state.scanned:
            raise Stop(Condition.TARGET_LOST, f"it ends at {found.target_end}, {state.scanned} was acknowledged")
        if exclusive or open_intents(stored):
            start = max(state.scanned, found.target_start)
        moved = state.source not in ("", link.source.name)
        if not moved and state.source_id not in (bytes(16), source_info.topic.id):
            raise Stop(Condition.RECREATED, f"{assignment.topic!r} had another topic id")
    tail = await scan(link.target, target, found.number, start, identity)
    if state is None and exclusive and tail.batches:
        raise Stop(Condition.OCCUPIED, f"records from {tail.batches[0].offset} on are not ours")
    try:
        made = recover(stored, tail.batches, tail.end, found.target_start)
    except (Inconsistent, Damaged) as error:
        raise Stop(Condition.TARGET_LOST, str(error)) from None
    if exclusive:
        status.foreign += sum(one.records for one in tail.batches) - made.landed
    return _ready(link, made, source, source_info, found, status, stream, identity, exclusive=exclusive)


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
) -> Recovered:
    """Empty the target and forget its table: an operator has decided so by raising the mirror's generation.

    Interrupted, it is done again: the new generation is in the journal only with the first checkpoint.

    Raises:
        Refused: its leader does not delete the records.
    """
    end = (await scan(link.target, target, found.number, found.target_end, identity)).end
    leader = target.partitions[found.number].leader
    code = (await delete_records(link.target, assignment.topic, leader, {found.number: end}))[found.number]
    if code:
        raise Refused(f"{link.target.name}: emptying {assignment.topic}-{found.number}", code)
    return renewed(stream, stored, assignment.generation, end)


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
) -> Partition:
    position, epoch = made.state.position, made.state.leader_epoch
    if made.state.source not in ("", link.source.name):
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
