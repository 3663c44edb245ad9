"""The table of one partition on one cluster: logical offsets to physical ones and back, and where the log begins.

A table holds the runs a mirror wrote and, where the cluster serves the partition, the *own* part: from there on both
sides advance together without end. Logical offsets are those of the federation, so a table is complete in itself:
whatever moves lie behind, a request reads one table. `generation` counts how often the copy was begun anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from offset_sync.runs import CHUNK, Position, Run, Runs
from offset_sync.varints import Damaged, Reader, put, put_signed

VERSION = 1
FAILOVER_GAP = 1 << 40  # a failover's epoch begins at least this far above all that was ever published


class Table:
    """`own` is (logical, physical) where the own part begins, None on a cluster that does not serve."""

    __slots__ = ("_dirty_from", "_gone", "_state_dirty", "_top", "generation", "log_start", "own", "runs")

    def __init__(self, generation: int = 0) -> None:
        self.runs = Runs()
        self.own: Position | None = None
        self.log_start = 0  # logical; it never falls
        self.generation = generation
        self._dirty_from = 0  # the first chunk that was changed since the last checkpoint
        self._gone = 0  # chunks below this number need tombstones no more
        self._top = -1  # the highest chunk that is stored
        self._state_dirty = True

    # -- what lies where ------------------------------------------------------------------------------------------

    def physical(self, logical: int) -> int | None:
        """Where the record at a logical offset lies, or the next one behind a hole or below the log start.

        Behind the last mirrored record: where the next one will lie at the earliest. None: nothing was ever here.
        """
        found = self._at_logical(max(logical, self.log_start))
        if found is not None:
            return found.physical
        end = self.runs.end
        return end.physical if end is not None else None

    def logical(self, physical: int) -> int | None:
        """The logical offset of the record at a physical offset, or of the next one behind a hole.

        Behind the last mirrored record: the next one's, at the earliest. None: nothing was ever here.
        """
        if self.own is not None and physical >= self.own.physical:
            return max(self.own.logical + physical - self.own.physical, self.log_start)
        found = self.runs.at_physical(physical)
        if found is not None:
            return max(found.logical, self.log_start)
        if self.own is not None:
            return max(self.own.logical, self.log_start)
        end = self.runs.end
        return max(end.logical, self.log_start) if end is not None else None

    def holds(self, logical: int) -> bool:
        """Whether a record with exactly this logical offset may lie here (own parts have holes we do not know)."""
        found = self._at_logical(logical)
        return logical >= self.log_start and found is not None and found.logical == logical

    def _at_logical(self, logical: int) -> Position | None:
        own = self.own
        if own is not None and logical >= own.logical:
            return Position(logical, own.physical + logical - own.logical)
        return self.runs.at_logical(logical) or own

    def record_at(self, physical: int) -> Position | None:
        """The first record that lies at a physical offset or behind it; None where there is none yet.

        Own parts have holes we do not know: a position in one passes for a record.
        """
        own = self.own
        if own is not None and physical >= own.physical:
            return Position(own.logical + physical - own.physical, physical)
        return self.runs.at_physical(physical) or own

    def record_of(self, logical: int) -> Position | None:
        """The same by logical offset."""
        return self._at_logical(logical)

    def serves(self, first: int, last: int) -> bool:
        """Whether any record at physical offsets `first` to `last` may be shown: others are foreign."""
        if self.own is not None and last >= self.own.physical:
            return True
        return next(self.runs.between(first, last), None) is not None

    def between(self, first: int, last: int) -> Iterator[Run]:
        """What lies at physical offsets `first` to `last`, inclusive, as runs; log start not applied."""
        yield from self.runs.between(first, last)
        own = self.own
        if own is not None and last >= own.physical:
            low = max(first, own.physical)
            yield Run(own.logical + low - own.physical, low, last - low + 1)

    def linear(self, physical: int, count: int) -> int | None:
        """The logical offset of the first of `count` records that advance together with it, or None: ask in pieces."""
        own = self.own
        if own is not None and physical >= own[1]:
            return own[0] + physical - own[1]
        return self.runs.linear(physical, count)

    def stretch(self, physical: int) -> tuple[int, int, int] | None:
        """(first, behind the last, what to add for the logical offset) of the records around a physical offset that
        advance together; None where there is none."""
        own = self.own
        if own is not None and physical >= own[1]:
            return own[1], 1 << 63, own[0] - own[1]
        return self.runs.stretch(physical)

    def logical_runs(self, stretches: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
        """(logical, count) of records at (physical, count) stretches here, in order, adjacent ones merged.

        What a mirror that reads from this cluster writes down: its own table then maps to logical offsets directly.

        Raises:
            ValueError: a stretch holds a record that this table does not know (foreign).
        """
        out: list[tuple[int, int]] = []
        for physical, count in stretches:
            covered = 0
            for run in self.between(physical, physical + count - 1):
                covered += run.length
                if out and out[-1][0] + out[-1][1] == run.logical:
                    out[-1] = (out[-1][0], out[-1][1] + run.length)
                else:
                    out.append((run.logical, run.length))
            if covered != count:
                raise ValueError(f"{count - covered} of {count} records from {physical} on are in no run")
        return out

    # -- changes --------------------------------------------------------------------------------------------------

    def append(self, logical: int, physical: int, count: int) -> None:
        """A run the mirror wrote. ValueError: not behind all others, or on a cluster that serves."""
        if self.own is not None:
            raise ValueError("this cluster serves the partition: nothing is mirrored into it")
        self.runs.append(logical, physical, count)
        chunk = self.runs.chunk_of_last()
        if chunk < self._dirty_from:
            self._dirty_from = chunk

    def open(self, logical: int, physical: int) -> None:
        """From here on this cluster serves. ValueError: not behind everything mirrored."""
        end = self.runs.end
        if self.own is not None or (end is not None and (logical < end.logical or physical < end.physical)):
            raise ValueError(f"cannot serve from {logical} at {physical} on: mirrored up to {end}")
        self.own = Position(logical, physical)
        self._state_dirty = True

    def close(self, logical: int) -> None:
        """This cluster serves no more; `logical` is the first offset it did not serve."""
        if self.own is None or logical < self.own.logical:
            raise ValueError(f"does not serve {logical}")
        own, self.own = self.own, None
        self._state_dirty = True
        if logical > own.logical:
            self.append(*own, logical - own.logical)

    def raise_log_start(self, logical: int) -> bool:
        """Retention or DeleteRecords: the log begins here. Never lowers it; returns whether it rose."""
        if logical <= self.log_start:
            return False
        self.log_start = logical
        self.runs.drop_below(logical)
        self._state_dirty = True
        return True

    def trim(self, physical: int) -> bool:
        """This cluster's log begins at a physical offset: retention of its own. Returns whether anything was forgotten.

        The log start becomes the logical offset behind the last record that was deleted.
        """
        return self.own is None and self.raise_log_start(self.runs.behind(physical))

    def cut_from(self, physical: int) -> None:
        """The log lost everything from a physical offset on."""
        self.runs.cut_from(physical)
        self.runs.drop_below(self.log_start)
        self._dirty_from = min(self._dirty_from, self.runs.chunk_of_last())
        self._state_dirty = True

    def renew(self, generation: int | None = None, stored: Iterable[int] = ()) -> None:
        """Forget all runs: the copy is begun anew behind the present end. The log start stays.

        `stored` are numbers of stored chunks, where they could not be loaded.
        """
        self.runs = Runs()
        self.own = None
        self.generation = self.generation + 1 if generation is None else generation
        self._top = max(self._top, *stored, -1)
        self._dirty_from = self._gone = 0
        self._state_dirty = True

    # -- stored form ----------------------------------------------------------------------------------------------

    def checkpoint(self) -> dict[int, bytes | None]:
        """What changed since the last checkpoint: chunk number -> its bytes, None for one to delete; -1 is the state.

        Chunks are numbered anew in each generation; what an older one had above is among those to delete.
        """
        out: dict[int, bytes | None] = {}
        first, last = self.runs.first_chunk(), self.runs.chunk_of_last()
        out.update(dict.fromkeys(range(self._gone, first)))
        if not len(self.runs):
            last = first - 1
        out.update((chunk, self.runs.encode(chunk)) for chunk in range(max(self._dirty_from, first), last + 1))
        out.update(dict.fromkeys(range(last + 1, self._top + 1)))
        self._dirty_from, self._gone, self._top = last + 1, first, last
        if self._state_dirty:
            out[-1] = self._state()
            self._state_dirty = False
        return out

    def _state(self) -> bytes:
        out = bytearray((VERSION,))
        put(out, self.generation)
        put(out, self.log_start)
        own = self.own or Position(-1, -1)
        put_signed(out, own.logical)
        put_signed(out, own.physical)
        return bytes(out)

    @classmethod
    def load(cls, state: bytes | None, chunks: Iterable[tuple[int, bytes]]) -> Table:
        """From stored records. Damaged: they are not a table's."""
        made = cls()
        if state is not None:
            reader = Reader(state)
            if reader.get() != VERSION:
                raise Damaged("a table of a version not known here")
            made.generation = reader.get()
            made.log_start = reader.get()
            own = Position(reader.signed(), reader.signed())
            made.own = own if own.logical >= 0 else None
        numbers = []
        for number, data in sorted(chunks):
            made.runs.load(data)
            numbers.append(number)
        made._gone = numbers[0] if numbers else 0
        made._top = numbers[-1] if numbers else -1
        made.runs.drop_below(made.log_start)
        made._dirty_from = made._top + 1
        made._state_dirty = state is None
        return made

    def follow(self, state: bytes | None, chunks: Mapping[int, bytes | None]) -> None:
        """Apply a newer checkpoint of this table, written elsewhere: its state, and chunks (None: deleted).

        Raises:
            Damaged: this is no later version of what is here; it has to be loaded again.
        """
        if state is not None:
            newer = Table.load(state, ())
            if newer.generation != self.generation:
                self.runs = Runs()
            self.generation, self.log_start, self.own = newer.generation, newer.log_start, newer.own
        runs = self.runs
        runs.drop_below(self.log_start)
        for number in sorted(chunks):
            data = chunks[number]
            if data is not None:
                runs.reload(data)
            elif (number + 1) * CHUNK > runs.dropped:  # what lay in front of the log start is gone already
                runs.keep(min(max(number * CHUNK - runs.dropped, 0), len(runs)))
        runs.drop_below(self.log_start)

    def size(self) -> int:
        """Bytes the runs take in memory."""
        return 24 * len(self.runs)


def translate(source: Table, target: Table, physical: int) -> int | None:
    """The physical offset on `target` of the record at `physical` on `source`; past a hole, of the next record.

    Both ways, whoever wrote the record first. None where one side has never held anything.
    """
    logical = source.logical(physical)
    return None if logical is None else target.physical(logical)


__all__ = ["CHUNK", "FAILOVER_GAP", "Table", "translate"]
