"""What a partition's copy turns out to be at a take-over: journal, scan and source together, or a reason to stop."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from offset_sync.table import Table
from offset_sync.varints import Damaged
from replicator.claim import scan
from replicator.core import Identity, Inconsistent, Partition, recover
from replicator.journal import Contents, Stored, Stream
from replicator.states import Condition, Status, Stop
from replicator.topics import TopicInfo

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
    """
    exclusive = assignment.mode == "ship"
    stream = Stream(target.topic.id, found.number, "" if exclusive else link.source.name)
    stored = contents.streams.get(stream, Stored())
    state = stored.state
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
