"""One process's share of all mirrors: links between clusters, mirrors on them, their targets followed.

What is copied here is given from outside, unit by unit (`add`, `remove`): who owns which is decided by leases in the
store. `statuses` and `samples` are what metrics and the admin API show.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import trio

from kafka_client import ClientError, ClusterClient
from offset_sync.table import Table
from replicator.link import Assignment, Link, Mode, own_table, units
from replicator.preflight import Problem
from replicator.prepare import prepare
from replicator.states import Condition, Status

FOLLOW_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Mirror:
    """One topic from one cluster to another."""

    topic: str
    source: str
    target: str
    mode: Mode = "ship"


@dataclass(slots=True)
class Progress:
    """A mirror in this process. `problems` keep it from starting, or are what has come since."""

    mirror: Mirror
    owns: Callable[[int], bool]
    partitions: int = 0
    problems: tuple[Problem, ...] = ()
    error: str = ""
    running: dict[int, Assignment] = field(default_factory=dict)
    altered: dict[str, str | None] = field(default_factory=dict)


SourceTables = Callable[[str, str, int], Table]


def plain_tables(_: str, topic: str, partition: int) -> Table:
    """For topics that have never moved."""
    return own_table(topic, partition)


class Replicator:
    """`run` it; mirrors may be added and removed at any time."""

    def __init__(
        self,
        clusters: Mapping[str, ClusterClient],
        *,
        tables: SourceTables = plain_tables,
        allowed: Callable[[], bool] = lambda: True,
        rates: Mapping[tuple[str, str], float] | None = None,
        owner: str = "kfed",
    ) -> None:
        """`tables` gives (cluster, topic, partition) tables; `allowed` says whether this process's lease holds."""
        self._clusters = clusters
        self._tables = tables
        self._allowed = allowed
        self._rates = dict(rates or {})
        self._owner = owner
        self.links: dict[tuple[str, str], Link] = {}
        self.mirrors: dict[Mirror, Progress] = {}
        self._nursery: trio.Nursery | None = None
        self._started = trio.Event()
        self._wake = trio.Event()

    async def run(self) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._started.set()
            while True:
                self._wake = trio.Event()
                for progress in list(self.mirrors.values()):
                    await self._follow(progress)
                with trio.move_on_after(FOLLOW_SECONDS):
                    await self._wake.wait()

    async def add(self, mirror: Mirror, owns: Callable[[int], bool] = lambda _: True) -> Progress:
        """Begin, or own other units from now on; `owns` says which. The target is made to fit first."""
        await self._started.wait()
        progress = self.mirrors.get(mirror)
        if progress is None:
            progress = self.mirrors[mirror] = Progress(mirror, owns)
        progress.owns = owns
        await self._follow(progress)
        return progress

    def remove(self, mirror: Mirror) -> None:
        """Copy no more; the target keeps what it has, and the journal where it stands."""
        progress = self.mirrors.pop(mirror, None)
        if progress is not None:
            for assignment in progress.running.values():
                self._link(mirror).revoke(assignment)

    def again(self) -> None:
        """Look at targets and ownership now."""
        self._wake.set()

    def _link(self, mirror: Mirror) -> Link:
        key = mirror.source, mirror.target
        link = self.links.get(key)
        if link is None:
            source, target = self._clusters[mirror.source], self._clusters[mirror.target]

            def table(topic: str, partition: int) -> Table:
                return self._tables(mirror.source, topic, partition)

            link = self.links[key] = Link(
                source, target, source_table=table, allowed=self._allowed, rate=self._rates.get(key), owner=self._owner
            )
            assert self._nursery is not None
            self._nursery.start_soon(link.run)
        return link

    async def _follow(self, progress: Progress) -> None:
        mirror = progress.mirror
        try:
            found = await prepare(
                self._clusters[mirror.source],
                self._clusters[mirror.target],
                mirror.topic,
                ship=mirror.mode == "ship",
            )
        except ClientError as error:
            progress.error = str(error)
            return  # what runs goes on: a source that cannot be asked now has a state of its own
        progress.error, progress.problems = "", found.problems
        progress.altered.update(found.altered)
        progress.partitions = found.partitions
        if found.problems and not progress.running:
            return
        link = self._link(mirror)
        wanted = {
            one.number: one
            for one in units(mirror.topic, range(found.partitions), mirror.mode)
            if mirror in self.mirrors and progress.owns(one.number)
        }
        for number, assignment in list(progress.running.items()):
            if wanted.get(number) != assignment:
                link.revoke(assignment)
                del progress.running[number]
        for number, assignment in wanted.items():
            if number not in progress.running:
                progress.running[number] = assignment
                await link.assign(assignment)

    # -- what it shows --------------------------------------------------------------------------------------------

    def statuses(self) -> Iterator[tuple[Mirror, int, Status]]:
        """(mirror, partition, status) of everything that is copied here."""
        for progress in self.mirrors.values():
            link = self.links.get((progress.mirror.source, progress.mirror.target))
            for assignment in progress.running.values():
                for number in assignment.partitions:
                    if link is not None and (status := link.status.get((assignment.topic, number))) is not None:
                        yield progress.mirror, number, status

    def samples(self) -> Iterator[tuple[str, tuple[str, ...], float]]:
        """Metrics: (name, (source, target, topic, partition), value); counters end in `_total`."""
        now = time.time()
        for mirror, number, status in self.statuses():
            labels = (mirror.source, mirror.target, mirror.topic, str(number))
            yield "kfed_mirror_lag_records", labels, status.lag
            yield "kfed_mirror_lag_bytes", labels, status.lag_bytes
            yield "kfed_mirror_lag_seconds", labels, status.lag_seconds(now)
            yield "kfed_mirror_records_total", labels, status.records_here
            yield "kfed_mirror_bytes_total", labels, status.bytes
            yield "kfed_mirror_foreign_total", labels, status.foreign
            yield "kfed_mirror_overtaken_total", labels, status.overtaken
            yield "kfed_mirror_restarts_total", labels, status.restarts
            for condition in Condition:
                yield f"kfed_mirror_condition_{condition}", labels, float(status.condition is condition)
