"""Offsets and leader epochs of topics that have moved: between what clients see and what a cluster stores.

A topic that never moved (placement epoch 0) passes as it is. For others, logical leader epochs are
`placement_epoch << 20 | physical_epoch`, and offsets go through the partition's table, which whoever keeps the tables
installs here. Without it nothing is guessed: such a topic is refused with NOT_LEADER_OR_FOLLOWER.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from kafka_wire.batches import Batch
from kafka_wire.errors import ERROR
from metadata_service.view import ServedTopic
from offset_sync import serving
from offset_sync.guard import Verdict
from offset_sync.table import Table
from proxy.apis.contract import Refused
from proxy.apis.metadata_encoding import EPOCH_BITS, logical_epoch
from proxy.moving.contract import Guards, NoGuards

_PHYSICAL = (1 << EPOCH_BITS) - 1


class Offsets(Protocol):
    """Translates offsets of one topic on the cluster that serves it. Negative offsets are sentinels and pass."""

    def to_log_start(self, topic: ServedTopic, partition: int, offset: int) -> int:
        """Where the log begins, as clients see it; it never falls. Raises Refused."""

    def to_deletable(self, topic: ServedTopic, partition: int, offset: int) -> int:
        """Up to where to delete; below the beginning of the log there is nothing. Raises Refused."""

    def to_physical(self, topic: ServedTopic, partition: int, offset: int) -> int:
        """The position to ask the cluster for. Raises Refused."""

    def to_logical(self, topic: ServedTopic, partition: int, offset: int) -> int:
        """The position as clients see it. Raises Refused."""


class Tables(Protocol):
    """The tables of the partitions that were asked for, kept up to date."""

    def table(self, topic: ServedTopic, partition: int) -> Table | None:
        """That of the cluster that serves the topic, complete up to where it began to serve; None: not here yet."""

    async def arrived(self, wanted: Iterable[tuple[ServedTopic, Iterable[int]]]) -> None:
        """Wait, for a bounded time, until the tables of these partitions are here."""


class _Identity:
    def to_physical(self, topic: ServedTopic, partition: int, offset: int) -> int:
        return offset

    def to_logical(self, topic: ServedTopic, partition: int, offset: int) -> int:
        return offset

    to_log_start = to_logical
    to_deletable = to_physical


class _ByTable:
    def to_physical(self, topic: ServedTopic, partition: int, offset: int) -> int:
        if offset < 0:
            return offset
        found = serving.position(table_of(topic, partition), offset)
        if found is None:
            raise Refused(ERROR.OFFSET_OUT_OF_RANGE, "below the beginning of the log")
        return found

    def to_logical(self, topic: ServedTopic, partition: int, offset: int) -> int:
        return serving.bound(table_of(topic, partition), offset)

    def to_log_start(self, topic: ServedTopic, partition: int, offset: int) -> int:
        return serving.log_start(table_of(topic, partition), offset)

    def to_deletable(self, topic: ServedTopic, partition: int, offset: int) -> int:
        table = table_of(topic, partition)
        return self.to_physical(topic, partition, max(offset, table.log_start) if offset >= 0 else offset)


_IDENTITY = _Identity()
_BY_TABLE = _ByTable()
_tables: Tables | None = None
_guards: Guards = NoGuards()


def install(tables: Tables | None, guards: Guards | None = None) -> None:
    """Use these tables for topics that have moved (None: refuse such topics), and these producer guards."""
    global _tables, _guards
    _tables = tables
    _guards = guards or NoGuards()


def guarded(topic: ServedTopic, partition: int) -> bool:
    """Whether batches of this partition have to be judged."""
    return _guards.guarded(topic.cluster, topic.name, partition)


def judged(topic: ServedTopic, partition: int, batch: Batch) -> Verdict:
    """A producer's batch, by what was written on the cluster that served the topic before."""
    return _guards.judge(topic.cluster, topic.name, partition, batch)


async def arrived(wanted: Iterable[tuple[ServedTopic, Iterable[int]]]) -> None:
    """Before tables are asked for: a worker that has just begun reads them first, and nobody is refused meanwhile."""
    if _tables is not None:
        await _tables.arrived(wanted)


def here(topic: ServedTopic, partition: int) -> Table | None:
    """The table of a topic that has moved, where it is here."""
    return _tables.table(topic, partition) if _tables is not None else None


def table_of(topic: ServedTopic, partition: int) -> Table:
    """The table of a topic that has moved. Raises Refused where it is not here."""
    found = _tables.table(topic, partition) if _tables is not None else None
    if found is None:
        raise Refused(ERROR.NOT_LEADER_OR_FOLLOWER, "this topic has moved and its table is not here yet")
    return found


def offsets_of(topic: ServedTopic) -> Offsets:
    """Raises Refused where the topic has moved and there are no tables."""
    if topic.record.epoch == 0:
        return _IDENTITY
    if _tables is None:
        raise Refused(ERROR.NOT_LEADER_OR_FOLLOWER, "this topic has moved and its table is not here yet")
    return _BY_TABLE


def current_epoch(topic: ServedTopic, epoch: int) -> tuple[int, int]:
    """(error, physical epoch) of the current leader epoch a client names.

    FENCED_LEADER_EPOCH for an earlier placement's, UNKNOWN_LEADER_EPOCH for a later one's: its metadata is behind, or
    ahead of ours. -1 (not named) passes.
    """
    if epoch < 0:
        return 0, epoch
    placement = epoch >> EPOCH_BITS
    if placement != topic.record.epoch:
        behind = placement < topic.record.epoch
        return (ERROR.FENCED_LEADER_EPOCH if behind else ERROR.UNKNOWN_LEADER_EPOCH), -1
    return 0, epoch & _PHYSICAL


def to_logical_epoch(topic: ServedTopic, epoch: int) -> int:
    return logical_epoch(topic.record.epoch, epoch)


def epoch_end(topic: ServedTopic, partition: int, epoch: int) -> tuple[int, int] | None:
    """(logical epoch, end) that OffsetForLeaderEpoch answers for an epoch of an earlier placement, by the timeline.

    As a broker does: the largest epoch up to the one asked for, and the first offset of what follows it. None where
    the epoch is of the current placement, whose leader knows; (-1, -1) where it is of no placement.
    """
    placement = epoch >> EPOCH_BITS
    if placement >= topic.record.epoch:
        return None if placement == topic.record.epoch else (-1, -1)
    following = topic.record.timeline[placement + 1].first.get(partition)
    if following is None:
        return -1, -1
    found, end = epoch & _PHYSICAL, following
    known = topic.record.timeline[placement].physical_epochs.get(partition, ())
    earlier = [one for one in known if one[0] <= found]
    if earlier:
        found = earlier[-1][0]
        end = min((first for number, first in known if number > found), default=following)
    return logical_epoch(placement, found), end
