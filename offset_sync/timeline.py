"""A partition's timeline: which cluster served which logical offsets, and the leader epochs clients see.

A placement epoch begins at a first logical offset and ends where the next one begins; it never ends lower, or
consumers would rewind. Logical leader epochs are `placement_epoch << 20 | physical_epoch` and only grow. Values here
never change: every change makes a new timeline.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from kafka_wire.errors import ERROR

EPOCH_BITS = 20
MAX_PHYSICAL_EPOCH = (1 << EPOCH_BITS) - 1
MAX_PLACEMENT_EPOCH = 2046  # 2047 << 20 would leave no room above it in a signed 32-bit integer
NO_EPOCH = -1


class Exhausted(ValueError):
    """No further epoch can be expressed."""


def logical_epoch(placement: int, physical: int) -> int:
    """The leader epoch clients see; -1 and other sentinels pass untouched. Exhausted: out of range."""
    if physical < 0:
        return physical
    if physical > MAX_PHYSICAL_EPOCH or not 0 <= placement <= MAX_PLACEMENT_EPOCH:
        raise Exhausted(f"leader epoch {physical} of placement epoch {placement}")
    return placement << EPOCH_BITS | physical


def split_epoch(logical: int) -> tuple[int, int]:
    """(placement epoch, physical epoch) of a logical leader epoch that is no sentinel."""
    return logical >> EPOCH_BITS, logical & MAX_PHYSICAL_EPOCH


@dataclass(frozen=True, slots=True)
class Placement:
    """One placement epoch: `cluster` serves from logical offset `first` on, which lies at `first_physical` there.

    `leaders` are (physical leader epoch, its first logical offset), both growing.
    """

    cluster: str
    first: int = 0
    first_physical: int = 0
    leaders: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Timeline:
    """The placements of one partition, oldest first; at least one."""

    placements: tuple[Placement, ...]

    @property
    def epoch(self) -> int:
        return len(self.placements) - 1

    @property
    def current(self) -> Placement:
        return self.placements[-1]

    def switched(self, cluster: str, first: int, first_physical: int) -> Timeline:
        """The timeline after a move: from logical offset `first` on, at `first_physical`, `cluster` serves.

        Raises:
            ValueError: it begins below something that was given out already.
            Exhausted: there were too many moves.
        """
        now = self.current
        started = now.leaders[-1][1] if now.leaders else now.first
        if first < started:
            raise ValueError(f"a placement epoch at {first}, below {started}")
        if self.epoch >= MAX_PLACEMENT_EPOCH:
            raise Exhausted("no further move of this topic can be expressed")
        return Timeline((*self.placements, Placement(cluster, first, first_physical)))

    def led(self, physical: int, first: int) -> Timeline:
        """The timeline once the serving cluster has a new leader epoch, from logical offset `first` on; idempotent."""
        now = self.current
        logical_epoch(self.epoch, physical)
        if now.leaders and physical <= now.leaders[-1][0]:
            return self
        first = max(first, now.leaders[-1][1] if now.leaders else now.first)
        return Timeline((*self.placements[:-1], replace(now, leaders=(*now.leaders, (physical, first)))))

    def unmap_current(self, logical: int, placement: int | None = None) -> tuple[int, int]:
        """A request's *current* leader epoch, for the serving cluster: (physical epoch, error code 0, 74 or 75).

        An epoch of an older placement is fenced, one of a newer placement is unknown here yet.
        """
        if logical < 0:
            return logical, 0
        mine = self.epoch if placement is None else placement
        theirs, physical = split_epoch(logical)
        if theirs < mine:
            return NO_EPOCH, ERROR.FENCED_LEADER_EPOCH
        if theirs > mine:
            return NO_EPOCH, ERROR.UNKNOWN_LEADER_EPOCH
        return physical, 0

    def epoch_end(self, requested: int) -> tuple[int, int | None]:
        """OffsetForLeaderEpoch: (the largest logical epoch not above the requested one, its end offset).

        The end is the first logical offset of the next epoch; None: it is the last epoch, the log's end is asked for.
        (-1, -1) below all known epochs.
        """
        if requested < 0:
            return NO_EPOCH, NO_EPOCH
        found: tuple[int, int | None] = (NO_EPOCH, NO_EPOCH)
        marks = self._marks()
        for index, (epoch, _) in enumerate(marks):
            if epoch > requested:
                break
            found = epoch, marks[index + 1][1] if index + 1 < len(marks) else None
        return found

    def placement_at(self, logical: int) -> int:
        """The placement epoch that served a logical offset."""
        found = 0
        for index, one in enumerate(self.placements):
            if one.first <= logical:
                found = index
        return found

    def _marks(self) -> list[tuple[int, int]]:
        """(logical leader epoch, first logical offset) in order; a placement without a known leader counts as its 0."""
        out = []
        for number, one in enumerate(self.placements):
            leaders = one.leaders or ((0, one.first),)
            out += [(number << EPOCH_BITS | physical, first) for physical, first in leaders]
        return out
