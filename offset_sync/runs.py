"""Runs: stretches where logical and physical offsets advance together, in three arrays of 64-bit integers.

Logical and physical order are the same, so both are sorted and a lookup is one bisect: 24 bytes a run, no object.
Runs are numbered from the first one ever appended; what was dropped at the front keeps its numbers, so that a chunk
of runs keeps its key in the topic that stores it.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate, chain
from operator import add, or_
from typing import NamedTuple

from offset_sync.varints import Damaged, put, values

CHUNK = 512  # runs to a stored record: about 3 to 8 KB


class Run(NamedTuple):
    """Records `logical` to `logical + length - 1` lie at `physical` and on."""

    logical: int
    physical: int
    length: int


class Position(NamedTuple):
    """One record's place, or the place behind the last one."""

    logical: int
    physical: int


class Runs:
    """Sorted runs of one partition on one cluster. Offsets are absolute; nothing here ever moves backwards."""

    __slots__ = ("_count", "_logical", "_physical", "dropped")

    def __init__(self) -> None:
        self._logical, self._physical, self._count = array("q"), array("q"), array("q")
        self.dropped = 0  # runs no longer kept in front of the first

    def __len__(self) -> int:
        return len(self._logical)

    def __iter__(self) -> Iterator[Run]:
        return map(Run, self._logical, self._physical, self._count)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Runs) and self.dropped == other.dropped and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    @property
    def start(self) -> Position | None:
        return Position(self._logical[0], self._physical[0]) if self._logical else None

    @property
    def end(self) -> Position | None:
        """Behind the last record; None where there are no runs."""
        if not self._logical:
            return None
        count = self._count[-1]
        return Position(self._logical[-1] + count, self._physical[-1] + count)

    def append(self, logical: int, physical: int, count: int) -> None:
        """Add a run behind all others, merged with the last where both go on without a gap.

        Raises:
            ValueError: it is empty, or does not lie behind all others on both sides.
        """
        if count < 1 or logical < 0 or physical < 0:
            raise ValueError(f"no run: {logical}, {physical}, {count}")
        if self._logical:
            last = self._count[-1]
            logical_end, physical_end = self._logical[-1] + last, self._physical[-1] + last
            if logical < logical_end or physical < physical_end:
                raise ValueError(f"run {logical} at {physical} is not behind {logical_end} at {physical_end}")
            if logical == logical_end and physical == physical_end:
                self._count[-1] += count
                return
        self._logical.append(logical)
        self._physical.append(physical)
        self._count.append(count)

    def at_logical(self, logical: int) -> Position | None:
        """The record at this logical offset, or in a hole the next one; None behind the last."""
        return self._find(self._logical, logical)

    def at_physical(self, physical: int) -> Position | None:
        """The record at this physical offset, or in a hole the next one; None behind the last."""
        return self._find(self._physical, physical)

    def _find(self, side: array[int], offset: int) -> Position | None:
        index = bisect_right(side, offset) - 1
        into = 0
        if index >= 0:
            into = offset - side[index]
            if into >= self._count[index]:
                index, into = index + 1, 0
        else:
            index = 0
        if index >= len(side):
            return None
        return Position(self._logical[index] + into, self._physical[index] + into)

    def behind(self, physical: int) -> int:
        """The logical offset behind the last record that lies below a physical one; 0 where there is none."""
        index = bisect_right(self._physical, physical - 1) - 1
        if index < 0:
            return 0
        return self._logical[index] + min(physical - self._physical[index], self._count[index])

    def linear(self, physical: int, count: int) -> int | None:
        """The logical offset at `physical` where one run holds all of the `count` records from there on."""
        index = bisect_right(self._physical, physical) - 1
        if index < 0 or physical + count > self._physical[index] + self._count[index]:
            return None
        return self._logical[index] + physical - self._physical[index]

    def stretch(self, physical: int) -> tuple[int, int, int] | None:
        """(first, behind the last, what to add for the logical offset) of the run that holds a physical offset."""
        index = bisect_right(self._physical, physical) - 1
        if index < 0 or physical >= self._physical[index] + self._count[index]:
            return None
        first = self._physical[index]
        return first, first + self._count[index], self._logical[index] - first

    def between(self, first: int, last: int) -> Iterator[Run]:
        """The parts of runs that lie at physical offsets `first` to `last`, inclusive."""
        index = max(bisect_right(self._physical, first) - 1, 0)
        while index < len(self._physical) and self._physical[index] <= last:
            physical = self._physical[index]
            low = max(physical, first)
            count = min(physical + self._count[index] - 1, last) - low + 1
            if count > 0:
                yield Run(self._logical[index] + low - physical, low, count)
            index += 1

    def drop_below(self, logical: int) -> int:
        """Forget whole runs below a logical offset; returns how many."""
        n = bisect_right(self._logical, logical)
        if n and self._logical[n - 1] + self._count[n - 1] > logical:
            n -= 1
        for side in (self._logical, self._physical, self._count):
            del side[:n]
        self.dropped += n
        return n

    def cut_from(self, physical: int) -> None:
        """Forget everything from a physical offset on: the log was cut there."""
        index = bisect_right(self._physical, physical - 1)
        if index and self._physical[index - 1] + self._count[index - 1] > physical:
            self._count[index - 1] = physical - self._physical[index - 1]
        for side in (self._logical, self._physical, self._count):
            del side[index:]

    # -- stored form ----------------------------------------------------------------------------------------------

    def chunk_of_last(self) -> int:
        """The number of the chunk the last run is in; the next run is in this one or the one behind it."""
        return max(self.dropped + len(self) - 1, 0) // CHUNK

    def first_chunk(self) -> int:
        return self.dropped // CHUNK

    def encode(self, chunk: int) -> bytes:
        """The runs of one chunk: the number of the first, then gaps and counts as varints."""
        low = max(chunk * CHUNK - self.dropped, 0)
        high = min((chunk + 1) * CHUNK - self.dropped, len(self))
        out = bytearray()
        put(out, low + self.dropped)
        logical = physical = 0
        for index in range(low, high):
            put(out, self._logical[index] - logical)
            put(out, self._physical[index] - physical)
            put(out, self._count[index])
            logical = self._logical[index] + self._count[index]
            physical = self._physical[index] + self._count[index]
        return bytes(out)

    def load(self, data: bytes) -> None:
        """Append an encoded chunk; chunks are loaded in order.

        Raises:
            Damaged: it is no chunk, or not the next one.
        """
        first, parts = _decoded(data)
        if not len(self):
            self.dropped = first
        elif first != self.dropped + len(self):
            raise Damaged(f"a chunk from run {first} on, where {self.dropped + len(self)} is next")
        self._extend(parts)

    def reload(self, data: bytes) -> None:
        """A newer version of a chunk, and all that is known from there on: what was behind it is forgotten.

        Raises:
            Damaged: it is no chunk, or runs in front of it are missing here.
        """
        first, parts = _decoded(data)
        at = first - self.dropped
        if at > len(self) and len(self):
            raise Damaged(f"a chunk from run {first} on, where {self.dropped + len(self)} is next")
        if at <= 0 or first % CHUNK or not len(self):
            self.dropped, at = first, 0  # a chunk that begins in its middle is the first one its writer has
            self.keep(0)
        self.keep(at)
        self._extend(parts)

    def copy(self) -> Runs:
        """The same runs, to be changed alone."""
        made = Runs()
        made.dropped = self.dropped
        made._logical, made._physical, made._count = self._logical[:], self._physical[:], self._count[:]
        return made

    def keep(self, count: int) -> None:
        """Forget all but the first `count` runs."""
        for side in (self._logical, self._physical, self._count):
            del side[count:]

    def _extend(self, parts: tuple[array[int], array[int], array[int]]) -> None:
        logical, physical, count = parts
        if not logical:
            return
        end = self.end
        if end is not None and (logical[0] < end.logical or physical[0] < end.physical):
            raise Damaged(f"run {logical[0]} at {physical[0]} is not behind {end.logical} at {end.physical}")
        if end == (logical[0], physical[0]):
            raise Damaged("runs that should have been one")
        self._logical.extend(logical)
        self._physical.extend(physical)
        self._count.extend(count)


def _decoded(data: bytes) -> tuple[int, tuple[array[int], array[int], array[int]]]:
    """(the number of the first run, logical offsets, physical offsets, counts) of a chunk. Damaged."""
    numbers = values(data)
    if len(numbers) % 3 != 1:
        raise Damaged(f"{len(numbers)} numbers are no chunk")
    gaps, shifts, counts = numbers[1::3], numbers[2::3], numbers[3::3]
    if 0 in counts:
        raise Damaged("an empty run")
    if 0 in map(or_, gaps[1:], shifts[1:]):
        raise Damaged("runs that should have been one")
    try:
        # Each begins a gap behind the end of the one before.
        return numbers[0], (
            array("q", accumulate(map(add, gaps, chain((0,), counts)))),
            array("q", accumulate(map(add, shifts, chain((0,), counts)))),
            array("q", counts),
        )
    except OverflowError as error:
        raise Damaged(str(error)) from None
