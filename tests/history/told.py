"""What many clients sent, were told and read, collected from their threads; and the figures about it.

Values are "producer:number". Every method is one append, or works on copies: safe to use from several threads.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict

from tests.history.checker import Acknowledged, Read, Reported

LEAST_GAP = 0.02


class Gaps:
    """When nothing happened for LEAST_GAP seconds or more: (Unix seconds of its end, seconds)."""

    def __init__(self) -> None:
        self.found: list[tuple[float, float]] = []
        self._last = 0.0

    def seen(self) -> None:
        now = time.time()
        if self._last and now - self._last >= LEAST_GAP:
            self.found.append((now, now - self._last))
        self._last = now

    def longest(self, begin: float, end: float) -> float:
        """Of those that overlap this time; 0.0 where there is none."""
        return longest(self.found, begin, end)


def longest(gaps: list[tuple[float, float]], begin: float, end: float) -> float:
    """Seconds of the longest gap that overlaps this time; 0.0 where there is none."""
    return max((seconds for at, seconds in gaps[:] if at >= begin and at - seconds <= end), default=0.0)


class Told:
    """`stopping`: no more is sent. `done`: no more is read."""

    def __init__(self) -> None:
        self.acknowledged: list[Acknowledged] = []
        self.unanswered: list[tuple[float, Acknowledged]] = []  # sent with acks=0, at this moment
        self.aborted: set[tuple[str, int]] = set()
        self.undecided: set[tuple[str, int]] = set()
        self.sent: dict[str, int] = {}  # by producer: how many
        self.reads: list[Read] = []
        self.reports: list[Reported] = []
        self.assignments: defaultdict[str, list[float]] = defaultdict(list)
        self.gaps: defaultdict[str, Gaps] = defaultdict(Gaps)
        self.stopping = threading.Event()
        self.done = threading.Event()
        self._have: defaultdict[str, set[tuple[str, int]]] = defaultdict(set)

    def answered(self, one: Acknowledged) -> None:
        self.acknowledged.append(one)
        self.gaps[one.producer].seen()

    def read(self, reader: str, topic: str, partition: int, offset: int, value: bytes) -> None:
        producer, _, rest = value.partition(b":")
        number = int(rest.partition(b".")[0])
        name = producer.decode()
        self.reads.append(Read(reader, name, number, topic, partition, offset))
        self._have[reader].add((name, number))
        self.gaps[reader].seen()

    def report(self, client: str, kind: str, text: object) -> None:
        assert kind in ("retriable", "error", "abortable", "fatal")
        self.reports.append(Reported(time.time(), client, kind, str(text)))  # type: ignore[arg-type]

    def assigned(self, reader: str) -> None:
        """Its assignment has changed."""
        self.assignments[reader].append(time.time())

    def missing(self, reader: str, wanted: set[tuple[str, int]]) -> set[tuple[str, int]]:
        """Of these (producer, number), what it has not read yet."""
        return wanted - self._have[reader]

    def count(self, reader: str) -> int:
        return len(self._have[reader])
