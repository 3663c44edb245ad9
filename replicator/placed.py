"""What a topic's timeline says of one cluster's copy: the parts that were written there directly, and by whom it may be
written now. Pure.

A mirror's journal knows what mirrors wrote. What clients wrote while a cluster served the topic stands in the timeline
alone: the part of each placement begins at (`first`, `first_physical`) and ends where the next placement begins. So a
serving source's table is the journal's and its open part; a former copy that is gone on with gets its closed part into
its own table, once, before anything is written behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple, Protocol

from metadata_service.models import PlacementEpoch
from offset_sync.journal import State
from offset_sync.table import Table
from offset_sync.varints import Damaged

Timeline = Sequence[PlacementEpoch]


class Served(NamedTuple):
    """Logical offsets `logical` to `end` - 1 lie at `physical` and on, records of clients and what belongs to them."""

    logical: int
    physical: int
    end: int

    @property
    def physical_end(self) -> int:
        return self.physical + self.end - self.logical


class Places(Protocol):
    """What the federation says of topics, as this process's view has it."""

    def timeline(self, topic: str) -> Timeline:
        """The topic's placements; empty where the federation does not know the topic."""

    def moving(self, topic: str) -> bool:
        """Whether a migration that has not ended names the topic: then nobody else closes, opens or limits it."""

    def limit(self, topic: str) -> int | None:
        """The topic's own max.message.bytes, where its source is closed; None: not known."""

    def fresh(self) -> bool:
        """Whether the view is certainly of just now."""


class Unplaced:
    """Where there is no federation: topics have never moved."""

    def timeline(self, topic: str) -> Timeline:
        return ()

    def moving(self, topic: str) -> bool:
        return False

    def limit(self, topic: str) -> int | None:
        return None

    def fresh(self) -> bool:
        return True


def serves(timeline: Timeline, cluster: str) -> bool:
    return bool(timeline) and timeline[-1].cluster == cluster


def former_parts(timeline: Timeline, cluster: str, partition: int) -> list[Served]:
    """The closed parts of a cluster that has served, oldest first; perhaps with nothing in them."""
    return [
        Served(one.first.get(partition, 0), one.first_physical.get(partition, 0), following.first[partition])
        for one, following in pairwise(timeline)
        if one.cluster == cluster and partition in following.first  # it existed at that switch
    ]


def unrecorded(parts: Sequence[Served], state: State | None) -> list[Served]:
    """Those that the cluster's stored table does not contain: a mirror that has written behind one has added it."""
    return [one for one in parts if state is None or one.physical >= state.scanned]


def serving_table(stored: Table | None, timeline: Timeline, partition: int) -> Table:
    """The table of the cluster that serves, as it will stay until it serves no more. `stored` is changed.

    Without a stored table, or in the first placement, the log is the topic's own.

    Raises:
        Damaged: timeline and table contradict each other.
    """
    now = timeline[-1]
    table = stored if stored is not None and len(timeline) > 1 else Table()
    try:
        table.open(now.first.get(partition, 0), now.first_physical.get(partition, 0))
    except ValueError as error:
        raise Damaged(str(error)) from None
    return table


def former_table(parts: Sequence[Served]) -> Table:
    """The table of a cluster that has served, and that no mirror has written to."""
    table = Table()
    close(table, parts)
    return table


def close(table: Table, parts: Sequence[Served]) -> None:
    """Add closed parts behind what the table has. Damaged: they do not lie behind it."""
    try:
        for one in parts:
            if one.end > one.logical:
                table.append(one.logical, one.physical, one.end - one.logical)
    except ValueError as error:
        raise Damaged(str(error)) from None
