"""What clients were told and what they read, and whether the two fit (I1, I2, I4, I5).

Values are "producer:number". Safe to use from several threads: every method is one append or works on copies.
"""

from __future__ import annotations

import itertools
import time
from collections import defaultdict
from typing import NamedTuple


class Acked(NamedTuple):
    value: str
    partition: int
    offset: int
    at: float


class Read(NamedTuple):
    partition: int
    offset: int
    value: str
    reader: str
    at: float


class History:
    """`judge` gives what is wrong, in sentences; an empty list is a pass."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.acknowledged: list[Acked] = []
        self.failed: list[tuple[str, str]] = []
        self.reads: list[Read] = []
        self.errors: list[str] = []  # what a client library reported besides

    def acked(self, value: str, partition: int, offset: int) -> None:
        self.acknowledged.append(Acked(value, partition, offset, time.monotonic()))

    def read(self, partition: int, offset: int, value: str, reader: str = "reader") -> None:
        self.reads.append(Read(partition, offset, value, reader, time.monotonic()))

    def missing(self) -> set[str]:
        """Acknowledged, and not read yet."""
        return {one.value for one in self.acknowledged[:]} - {one.value for one in self.reads[:]}

    def longest_pause(self, since: float = 0.0) -> tuple[float, float]:
        """Seconds without any acknowledgement, and without any record read, at most (`since`: monotonic clock)."""
        found = []
        for moments in ([one.at for one in self.acknowledged], [one.at for one in self.reads]):
            moments = sorted(at for at in moments if at >= since)
            found.append(max((b - a for a, b in itertools.pairwise(moments)), default=0.0))
        return found[0], found[1]

    def judge(self, *, failures: int = 0, again: bool = True) -> list[str]:
        """`failures`: sends that may have failed. `again`: a reader may read a record twice (after its group moved)."""
        wrong = [f"{len(self.failed)} sends failed: {self.failed[:3]}"] if len(self.failed) > failures else []
        log: dict[tuple[int, int], str] = {}
        places: defaultdict[str, set[tuple[int, int]]] = defaultdict(set)
        for one in self.reads:
            place = (one.partition, one.offset)
            if log.setdefault(place, one.value) != one.value:
                wrong.append(f"two records at {place}: {log[place]} and {one.value}")
            places[one.value].add(place)
        for ack in self.acknowledged:
            place = (ack.partition, ack.offset)
            if ack.offset >= 0 and log.get(place) != ack.value:
                wrong.append(f"{ack.value} was acknowledged at {place}, where {log.get(place)} was read")
        wrong += [f"{value} stands at {sorted(at)}" for value, at in places.items() if len(at) > 1]
        wrong += self._order(log)
        if not again:
            wrong += self._again()
        unknown = set(places) - set(self.sent)
        if unknown:
            wrong.append(f"read, never sent: {sorted(unknown)[:3]}")
        return wrong

    def _again(self) -> list[str]:
        begin, wrong = (self.reads[0].at if self.reads else 0.0), []
        seen: dict[tuple[int, int], Read] = {}
        for one in self.reads:
            first = seen.setdefault((one.partition, one.offset), one)
            if first is not one:
                moments = f"{first.at - begin:.1f} s and {one.at - begin:.1f} s after the first"
                wrong.append(f"{one.value} was read twice, {moments}")
        return wrong

    @staticmethod
    def _order(log: dict[tuple[int, int], str]) -> list[str]:
        """Each producer's records stand in the order in which it sent them."""
        wrong = []
        last: dict[tuple[int, str], int] = {}
        for partition, offset in sorted(log):
            producer, _, number = log[partition, offset].rpartition(":")
            if last.get((partition, producer), -1) >= int(number):
                wrong.append(f"{producer}'s {number} stands behind its {last[partition, producer]}, in {partition}")
            last[partition, producer] = int(number)
        return wrong
