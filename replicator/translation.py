"""One record's offset on one cluster, from its offset on another. Pure: what the clusters hold comes in as `Held`.

Clusters between which a topic is shipped share logical offsets, so any two of them are one step apart, whatever lies
between. In an exchange each side holds a log of its own: a record is known by the cluster that wrote it and its offset
there. Records of X on Y are found by Y's table of X, those that Y wrote by X's table of Y, those of a third by both.
A position that holds no record means the next one behind it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from offset_sync.kept import SHIP, Held
from offset_sync.recovered import Recovered
from offset_sync.runs import Position
from offset_sync.table import Table


class Unmappable(Exception):
    """There is no such offset, and the message says why."""


class NotYet(Unmappable):
    """The record is not on that cluster yet."""


class Deleted(Unmappable):
    """The record is not on that cluster any more."""


class NoWay(Unmappable):
    """No mirror leads there."""


class Flow(NamedTuple):
    """A mirror of the topic."""

    source: str
    target: str
    mode: Literal["ship", "exchange"]


class Hop(NamedTuple):
    source: str
    target: str
    mode: Literal["ship", "exchange"]


class Translated(NamedTuple):
    """`exact`: of the very record at the offset that was asked; else of the next one, or (`end`) where the next one
    will lie at the earliest, since there is none yet."""

    offset: int
    exact: bool = True
    end: bool = False


def way(flows: Iterable[Flow], source: str, target: str) -> list[Hop]:
    """The shortest way from cluster to cluster. NoWay."""
    flows = list(flows)
    groups = _groups(flows)
    before: dict[str, Hop] = {}
    waiting = deque([source])
    while waiting:
        at = waiting.popleft()
        if at == target:
            break
        shipped = {one for one in groups.get(at, ()) if one != at}
        exchanged = {other for one in flows if one.mode == "exchange" and at in one[:2] for other in one[:2]} - {at}
        for other in sorted(shipped | exchanged):
            if other not in before and other != source:
                before[other] = Hop(at, other, "ship" if other in shipped else "exchange")
                waiting.append(other)
    if target != source and target not in before:
        raise NoWay(f"no mirror leads from {source} to {target}")
    out: list[Hop] = []
    while target != source:
        out.append(before[target])
        target = out[-1].source
    return out[::-1]


def _groups(flows: Iterable[Flow]) -> dict[str, set[str]]:
    """Cluster -> all clusters it shares logical offsets with, itself included."""
    groups: dict[str, set[str]] = {}
    for one in flows:
        if one.mode == "ship":
            joined = groups.get(one.source, {one.source}) | groups.get(one.target, {one.target})
            groups.update(dict.fromkeys(joined, joined))
    return groups


def plain() -> Table:
    """The table of a cluster whose log is the topic's own."""
    made = Table()
    made.open(0, 0)
    return made


@dataclass(frozen=True)
class Translator:
    """`held` has the clusters of the way; further ones help to tell what was left out from what is still to come."""

    held: Mapping[str, Held]
    flows: tuple[Flow, ...]

    def translate(self, hops: Iterable[Hop], offset: int) -> Translated:
        """Raises Unmappable."""
        now = Translated(offset)
        for hop in hops:
            step = (self._ship if hop.mode == "ship" else self._exchange)(hop.source, hop.target, now.offset)
            now = Translated(step.offset, now.exact and step.exact, step.end)
        return now

    # -- ships ----------------------------------------------------------------------------------------------------

    def _table(self, cluster: str) -> Table:
        """Logical to physical offsets of a cluster of ships. NotYet: its mirror has written nothing."""
        found = self.held[cluster].written.get(SHIP)
        if found is not None:
            return found.table
        for one in self.flows:
            if one.target == cluster and one.mode == "ship":
                raise NotYet(f"nothing was mirrored from {one.source} to {cluster} yet")
        return plain()

    def _ship(self, source: str, target: str, offset: int) -> Translated:
        theirs, ours = self._table(source), self._table(target)
        here, there = self.held[source], self.held[target]
        record = theirs.record_at(offset)
        end = _end(theirs, here)
        logical = record.logical if record is not None else end
        if logical < ours.log_start and ours.own is None:
            raise Deleted(f"the record is no longer on {target}, whose log begins at {there.start}")
        found = ours.record_of(logical)
        if found is not None and (ours.own is None or found.physical < there.end):
            self._still_there(target, found.physical)
            exact = record is not None and record.physical == offset and found.logical == logical
            return Translated(found.physical, exact, record is None)
        if found is not None:  # the serving cluster ends here
            return Translated(min(found.physical, there.end), False, True)
        # In own parts we do not know which offsets are records.
        needed = end if record is None or theirs.own is not None else logical + 1
        if self._reach(target, set()) < needed:
            raise NotYet(self._behind(target))
        return Translated(_behind_last(ours, there), False, True)

    def _reach(self, cluster: str, seen: set[str]) -> int:
        """The logical offset below which everything is on a cluster, or was left out."""
        found = self.held[cluster].written.get(SHIP)
        if found is None or found.table.own is not None:
            return _end(self._table(cluster), self.held[cluster])
        source, position = found.state.source, found.state.position
        known = found.table.runs.end.logical if found.table.runs.end is not None else found.table.log_start
        if source not in self.held or source in seen:
            return known
        record = self._table(source).record_at(position)
        if self._table(source).own is not None and record is not None:
            return max(known, record.logical)
        return max(known, record.logical if record is not None else self._reach(source, seen | {cluster}))

    def _behind(self, cluster: str, scope: str = SHIP) -> str:
        found = self.held[cluster].written.get(scope)
        if found is None:
            return f"nothing was mirrored from {scope or 'its source'} to {cluster} yet"
        source = found.state.source or scope
        behind = f", {source} ends at {self.held[source].end}" if source in self.held else ""
        return f"not mirrored yet: {cluster} has {source} up to offset {max(found.state.position, 0)}{behind}"

    # -- exchanges ------------------------------------------------------------------------------------------------

    def _exchange(self, source: str, target: str, offset: int) -> Translated:
        here, there = self.held[source], self.held[target]
        arrived = there.written.get(source)  # what `source` wrote itself, on `target`
        own = arrived.table.runs.at_logical(offset) if arrived is not None else None
        foreign = [
            (found.physical, origin, found.logical)
            for origin, written in here.written.items()
            if origin != SHIP and (found := written.table.runs.at_physical(offset)) is not None
        ]
        first = min(foreign, default=None)
        if first is None or (own is not None and own.logical < first[0]):
            if own is None:
                return self._nothing_behind(source, target, offset)
            self._not_below(arrived, source, target, offset)
            self._still_there(target, own.physical)
            return Translated(own.physical, own.logical == offset)
        at, origin, logical = first
        if at > offset:
            self._not_below(arrived, source, target, offset)
            if own is None and (arrived is None or arrived.state.position < at):
                raise NotYet(self._behind(target, source))  # the next record may be one of the source's own
        if origin == target:
            self._still_there(target, logical)
            return Translated(logical, at == offset)
        third = there.written.get(origin)
        found = third.table.runs.at_logical(logical) if third is not None else None
        self._not_below(third, origin, target, logical)
        if found is None and third is not None and third.state.position > logical:
            raise Deleted(f"{target} never got the record: it was deleted on {origin} before")
        if found is None:
            raise NotYet(self._behind(target, origin))
        self._still_there(target, found.physical)
        return Translated(found.physical, at == offset and found.logical == logical)

    def _nothing_behind(self, source: str, target: str, offset: int) -> Translated:
        """No record lies at the offset or behind it on `source`, as far as `target` knows."""
        here, there = self.held[source], self.held[target]
        arrived = there.written.get(source)
        if offset < here.end and (arrived is None or arrived.state.position < here.end):
            raise NotYet(self._behind(target, source))
        back = here.written.get(target)
        read = back.state.position if back is not None and back.state.position >= 0 else there.end
        return Translated(max(min(read, there.end), there.start), False, True)

    @staticmethod
    def _not_below(found: Recovered | None, source: str, target: str, offset: int) -> None:
        if found is not None and offset < found.table.log_start:
            raise Deleted(f"records of {source} below offset {found.table.log_start} are no longer on {target}")

    def _still_there(self, cluster: str, offset: int) -> None:
        start = self.held[cluster].start
        if offset < start:
            raise Deleted(f"the record is no longer on {cluster}: it was at {offset}, the log begins at {start}")


def _end(table: Table, held: Held) -> int:
    """The logical offset behind everything a cluster holds."""
    if table.own is not None:
        return table.own.logical + max(held.end - table.own.physical, 0)
    end = table.runs.end
    return max(end.logical if end is not None else 0, table.log_start)


def _behind_last(table: Table, held: Held) -> int:
    end: Position | None = table.runs.end
    at = end.physical if end is not None else held.written[SHIP].state.scanned
    return max(min(at, held.end), held.start)


__all__ = ["Deleted", "Flow", "Hop", "NoWay", "NotYet", "Translated", "Translator", "Unmappable", "way"]
