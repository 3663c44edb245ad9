"""The producer guard: the last five batches of each source producer, so that a retry after a move is recognised.

Brokers remember the same (epoch, first and last sequence, offset of five batches); this is their memory carried over
to another cluster. Entries live for `producer.id.expiration.ms` after a producer's last append by wall clock, and at
most `capacity` producers a partition are kept, the longest silent evicted first and counted.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from offset_sync.varints import Damaged, Reader, put

KEPT = 5
CAPACITY = 10_000
EXPIRATION_MS = 86_400_000
_SEQUENCES = 1 << 31


class Entry(NamedTuple):
    """One batch of a source producer. `logical` is the logical offset of its first record."""

    epoch: int
    first: int
    last: int
    logical: int


class Noted(NamedTuple):
    """An entry with its producer and the wall-clock time (Unix ms) it was appended at, as an intent carries it."""

    producer_id: int
    at: int
    entry: Entry


@dataclass(slots=True)
class _Producer:
    at: int
    entries: list[Entry] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a batch is. `duplicate`: answered with success at `offset`. `unknown`: the broker judges alone."""

    kind: Literal["unknown", "next", "duplicate", "gap", "fenced"]
    offset: int = -1


class Guard:
    """One partition's producers, the longest silent first."""

    __slots__ = ("_changed", "_producers", "capacity", "evicted", "expiration_ms")

    def __init__(self, capacity: int = CAPACITY, expiration_ms: int = EXPIRATION_MS) -> None:
        self.capacity = capacity
        self.expiration_ms = expiration_ms
        self.evicted = 0
        self._producers: OrderedDict[int, _Producer] = OrderedDict()
        self._changed: set[int] = set()

    def __len__(self) -> int:
        return len(self._producers)

    def __contains__(self, producer_id: int) -> bool:
        return producer_id in self._producers

    def entries(self, producer_id: int) -> tuple[Entry, ...]:
        """The kept batches, oldest first."""
        found = self._producers.get(producer_id)
        return tuple(found.entries) if found is not None else ()

    def note(self, noted: Noted) -> None:
        """A batch that was appended. A new epoch forgets the old one's batches, as brokers do.

        What lies no higher than the producer's newest is known already: a recovery may tell it again.
        """
        producer_id, at, entry = noted
        one = self._producers.get(producer_id)
        if one is None:
            one = self._producers[producer_id] = _Producer(at)
        elif one.entries and one.entries[-1].logical >= entry.logical:
            return
        elif one.entries and one.entries[-1].epoch != entry.epoch:
            one.entries.clear()
        one.entries.append(entry)
        del one.entries[:-KEPT]
        one.at = max(one.at, at)
        self._producers.move_to_end(producer_id)
        self._changed.add(producer_id)
        if len(self._producers) > self.capacity:
            gone, _ = self._producers.popitem(last=False)
            self._changed.add(gone)
            self.evicted += 1

    def judge(self, producer_id: int, epoch: int, first: int, last: int) -> Verdict:
        """A batch that a producer sends after the switch.

        It is only asked while the new leader has no state for that id. A higher epoch begins at sequence 0.
        """
        one = self._producers.get(producer_id)
        if one is None or not one.entries:
            return Verdict("unknown")
        newest = one.entries[-1]
        if epoch < newest.epoch:
            return Verdict("fenced")
        if epoch > newest.epoch:
            return Verdict("next" if first == 0 else "gap")
        for entry in one.entries:
            if (entry.first, entry.last) == (first, last):
                return Verdict("duplicate", entry.logical)
        if first == (newest.last + 1) % _SEQUENCES:
            return Verdict("next")
        return Verdict("gap")

    def expire(self, now: int) -> int:
        """Forget producers silent for longer than the expiration (`now`: Unix ms); returns how many.

        A clock that jumped back keeps them longer; nothing is forgotten early by an entry from the future.
        """
        gone = [key for key, one in self._producers.items() if now - one.at > self.expiration_ms]
        for key in gone:
            del self._producers[key]
            self._changed.add(key)
        return len(gone)

    def adopt(self, other: Guard, below: int | None = None) -> set[int]:
        """Take over what a source's guard knows, as far as it lies `below` a logical offset (None: all of it).

        A batch that has not arrived yet is none that a retry could duplicate. Returns the producers of which something
        is still to come.
        """
        left: set[int] = set()
        for key, one in other._producers.items():
            arrived = [entry for entry in one.entries if below is None or entry.logical < below]
            if len(arrived) < len(one.entries):
                left.add(key)
            mine = self._producers.get(key) or _Producer(one.at)
            if not arrived or (mine.entries and mine.entries[-1].logical >= arrived[-1].logical):
                continue
            first = arrived[0]
            older = [entry for entry in mine.entries if entry.logical < first.logical and entry.epoch == first.epoch]
            self._producers[key] = _Producer(max(mine.at, one.at), [*older, *arrived][-KEPT:])
            self._changed.add(key)
        self._producers = OrderedDict(sorted(self._producers.items(), key=lambda item: item[1].at))
        while len(self._producers) > self.capacity:
            gone, _ = self._producers.popitem(last=False)
            self._changed.add(gone)
            self.evicted += 1
        return left

    # -- stored form ----------------------------------------------------------------------------------------------

    def checkpoint(self) -> dict[int, bytes | None]:
        """Producers changed since the last checkpoint: id -> bytes, None for one to delete."""
        out: dict[int, bytes | None] = {}
        for key in sorted(self._changed):
            one = self._producers.get(key)
            out[key] = None if one is None else _encode(one)
        self._changed.clear()
        return out

    def drop(self, producer_ids: Iterable[int]) -> None:
        """Delete these from what is stored, whether they could be loaded or not."""
        for key in producer_ids:
            self._producers.pop(key, None)
            self._changed.add(key)

    def load(self, producer_id: int, data: bytes) -> None:
        """One stored producer. Damaged: the bytes are none."""
        reader = Reader(data)
        one = _Producer(reader.get())
        while not reader.done:
            one.entries.append(Entry(reader.get(), reader.get(), reader.get(), reader.get()))
        if not 0 < len(one.entries) <= KEPT:
            raise Damaged(f"{len(one.entries)} batches of producer {producer_id}")
        self._producers[producer_id] = one

    def settle(self) -> None:
        """Order by age after loading."""
        self._producers = OrderedDict(sorted(self._producers.items(), key=lambda item: item[1].at))
        self._changed.clear()


def _encode(one: _Producer) -> bytes:
    out = bytearray()
    put(out, one.at)
    for entry in one.entries:
        for value in entry:
            put(out, value)
    return bytes(out)
