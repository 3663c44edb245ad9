"""One process's share of all mirrors: links between clusters, mirrors on them, their targets followed.

What is copied here is given from outside, unit by unit (`own`): who owns which is decided by leases in the store
(`sharing`). `statuses` and `samples` are what metrics and the admin API show.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import trio

from kafka_client import ClientError, ClusterClient
from kafka_client.cluster import backoff
from offset_sync.table import Table
from replicator.ending import End
from replicator.following import Followed, Following
from replicator.link import Assignment, Link, Mode, units
from replicator.placed import Places, Unplaced
from replicator.preflight import CHANGES_SILENTLY, Problem
from replicator.prepare import NoSource, prepare
from replicator.states import Condition, Status
from runtime import logging

log = logging.get(__name__)

FOLLOW_SECONDS = 5.0
RETRY_SECONDS = 3.0  # at most, until one that could not be looked at is tried again
MISSING_SECONDS = 8.0  # without its source's topic until a mirror says so: it may be just being created
FOLLOW_EACH = 0.05  # seconds a mirror at least: thousands of mirrors are looked at less often
FOLLOWED_AT_ONCE = 8
RULES_SECONDS = 30.0  # between two looks at a target's ACLs
RULES_LOOK_SECONDS = 1.0  # until those of a new mirror are looked at


@dataclass(frozen=True, slots=True)
class Mirror:
    """One topic from one cluster to another."""

    topic: str
    source: str
    target: str
    mode: Mode = "ship"
    generation: int = 0  # raised to have a ship's copy begun anew: its target is emptied


@dataclass(slots=True)
class Progress:
    """A mirror in this process. `problems` keep it from starting, or are what has come since."""

    mirror: Mirror
    owns: Callable[[int], bool]
    partitions: int = 0
    problems: tuple[Problem, ...] = ()
    error: str = ""
    failures: int = 0  # to look at both sides, since it last succeeded
    looks: int = 0  # at both sides
    without_source: float = math.inf  # since when (trio's clock) the source has no such topic
    target_id: bytes = bytes(16)  # zeros until it is known
    running: dict[int, Assignment] = field(default_factory=dict)
    altered: dict[str, str | None] = field(default_factory=dict)
    rules: Followed = field(default_factory=Followed)  # ACLs and quotas, by whoever has the first unit
    rules_at: float = -RULES_SECONDS  # trio time
    due: bool = True  # to be looked at as soon as may be
    following: trio.Lock = field(default_factory=trio.Lock)


SourceTables = Callable[[str, str, int], Table]


class Clusters(Protocol):
    """Clients by cluster. KeyError: there is no such cluster (any longer)."""

    def __getitem__(self, cluster: str, /) -> ClusterClient: ...


class Replicator:
    """`run` it; mirrors may be added and removed at any time."""

    def __init__(
        self,
        clusters: Clusters,
        *,
        tables: SourceTables | None = None,
        allowed: Callable[[], bool] = lambda: True,
        rates: Mapping[tuple[str, str], float] | None = None,
        owner: str = "kfed",
        follow_acls: bool = True,
        places: Places | None = None,
    ) -> None:
        """`allowed` says whether this process's lease holds; `tables` gives (cluster, topic, partition) tables of
        sources, where not their own journals are to tell."""
        self._clusters = clusters
        self._tables = tables
        self._allowed = allowed
        self._rates = dict(rates or {})
        self._owner = owner
        self._follow_acls = follow_acls
        self._places: Places = places or Unplaced()
        self._ends: dict[tuple[str, str, str], End] = {}  # by source, target, topic
        self._following = Following()
        self.links: dict[tuple[str, str], Link] = {}
        self.mirrors: dict[Mirror, Progress] = {}
        self._nursery: trio.Nursery | None = None
        self._started = trio.Event()
        self._wake = trio.Event()
        self._room = trio.CapacityLimiter(FOLLOWED_AT_ONCE)

    async def run(self) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            if self._follow_acls:
                nursery.start_soon(self._follow_rules)
            self._started.set()
            next_round = trio.current_time() + FOLLOW_SECONDS
            while True:
                self._wake = trio.Event()
                if trio.current_time() >= next_round:
                    next_round = trio.current_time() + max(FOLLOW_SECONDS, len(self.mirrors) * FOLLOW_EACH)
                    for progress in self.mirrors.values():
                        progress.due = True
                for progress in list(self.mirrors.values()):
                    if progress.due and not progress.following.locked():
                        nursery.start_soon(self._follow, progress)
                pause = max(next_round - trio.current_time(), 0.0) if self.mirrors else float("inf")
                with trio.move_on_after(pause):
                    await self._wake.wait()

    async def add(self, mirror: Mirror, owns: Callable[[int], bool] = lambda _: True) -> Progress:
        """Begin, or own other units from now on; `owns` says which. The target is made to fit first."""
        await self._started.wait()
        progress = self.mirrors.get(mirror)
        if progress is None:
            progress = self.mirrors[mirror] = Progress(mirror, owns)
        progress.owns = owns
        async with progress.following:
            await self._look(progress)
        return progress

    def remove(self, mirror: Mirror) -> None:
        """Copy no more; the target keeps what it has, and the journal where it stands."""
        self.own(mirror, ())

    def own(self, mirror: Mirror, numbers: Collection[int]) -> list[trio.Event]:
        """From now on exactly these units of a mirror; none: forget it. What begins, begins soon.

        The events are set when nothing of what ends is written any more, and nothing is done to a target's topic.
        """
        progress = self.mirrors.get(mirror)
        if progress is None:
            if numbers:
                self.mirrors[mirror] = Progress(mirror, frozenset(numbers).__contains__)
                self._wake.set()
            return []
        mine = frozenset(numbers)
        new = not all(map(progress.owns, mine))
        progress.owns = mine.__contains__
        ended = []
        for number, assignment in list(progress.running.items()):
            if number not in mine:
                del progress.running[number]
                link = self.links.get((mirror.source, mirror.target))
                if link is not None:
                    ended.append(link.revoke(assignment))
        if not mine:
            del self.mirrors[mirror]
            if progress.following.locked() and self._nursery is not None:
                ended.append(looked := trio.Event())
                self._nursery.start_soon(self._looked, progress, looked)
        elif new:
            progress.due = True
            self._wake.set()
        return ended

    def end(self, mirror: Mirror, end: End | None) -> None:
        """A ship ends there, as soon as it can; None: it goes on."""
        key = mirror.source, mirror.target, mirror.topic
        before = self._ends.pop(key, None)
        if end is not None:
            self._ends[key] = end
        if before is not None:
            before.left.set()
        if (link := self.links.get((mirror.source, mirror.target))) is not None:
            link.end(mirror.topic)

    def limit(self, source: str, target: str, rate: float | None) -> None:
        """Bytes a second that this process may copy on a link, None for no limit; from now on."""
        if rate is None:
            self._rates.pop((source, target), None)
        else:
            self._rates[source, target] = rate
        if (link := self.links.get((source, target))) is not None:
            link.limit.rate = rate

    def again(self) -> None:
        """Look at targets and ownership now."""
        for progress in self.mirrors.values():
            progress.due = True
        self._wake.set()

    def _link(self, mirror: Mirror) -> Link:
        """Raises KeyError: one of the clusters is not known."""
        key = mirror.source, mirror.target
        source, target = self._clusters[mirror.source], self._clusters[mirror.target]
        link = self.links.get(key)
        if link is not None and (link.source is not source or link.target is not target):
            # They are reached otherwise from now on.
            link.close()
            del self.links[key]
            for one, progress in self.mirrors.items():
                if (one.source, one.target) == key:
                    progress.running.clear()
            link = None
        if link is None:
            tables = self._tables
            table = partial(tables, mirror.source) if tables is not None else None
            link = self.links[key] = Link(
                source,
                target,
                source_table=table,
                allowed=self._allowed,
                rate=self._rates.get(key),
                owner=self._owner,
                places=self._places,
                ending=lambda topic: self._ends.get((*key, topic)),
            )
            assert self._nursery is not None
            self._nursery.start_soon(link.run)
        return link

    async def _follow(self, progress: Progress) -> None:
        async with progress.following, self._room:
            await self._look(progress)
        if progress.error:
            progress.failures += 1
            await trio.sleep(min(backoff(progress.failures), RETRY_SECONDS))
            progress.due = True
            self._wake.set()
        else:
            progress.failures = 0

    @staticmethod
    async def _looked(progress: Progress, looked: trio.Event) -> None:
        async with progress.following:
            looked.set()

    def _certain(self, progress: Progress) -> bool:
        """Whether the source is certainly the topic that was copied: one that was created anew has other settings, and
        with them the target might delete what is left of the old one."""
        link = self.links.get((progress.mirror.source, progress.mirror.target))
        if link is None:
            return False
        places = [(one.topic, number) for one in progress.running.values() for number in one.partitions]
        found = {link.status[place].condition for place in places if place in link.status}
        return bool(found & {Condition.COPYING, Condition.CAUGHT_UP}) and Condition.RECREATED not in found

    async def _look(self, progress: Progress) -> None:
        mirror = progress.mirror
        progress.due = False
        if progress.running and (mirror.source, mirror.target, mirror.topic) in self._ends:
            return  # the target is given the configuration it will serve with
        progress.looks += 1
        try:
            found = await prepare(
                self._clusters[mirror.source],
                self._clusters[mirror.target],
                mirror.topic,
                ship=mirror.mode == "ship",
                follow=self._certain(progress),
                max_message=self._places.limit(mirror.topic),
                moving=self._places.moving(mirror.topic),
            )
            link = self._link(mirror)
        except KeyError as error:
            progress.error = f"there is no cluster {error}"
            return
        except ClientError as error:
            progress.error = str(error)
            missing = isinstance(error, NoSource)
            progress.without_source = min(progress.without_source, trio.current_time()) if missing else math.inf
            return  # what runs goes on: a source that cannot be asked now has a state of its own
        progress.error, progress.without_source, progress.problems = "", math.inf, found.problems
        progress.altered.update(found.altered)
        progress.partitions, progress.target_id = found.partitions, found.target_id
        if found.problems and not progress.running:
            return
        silent = [str(one) for one in found.problems if one.setting in CHANGES_SILENTLY]
        if silent:
            link.hold(mirror.topic, "; ".join(silent))
        else:
            link.release(mirror.topic)
        await link.started()
        # From here on nothing waits: `own` may be called whenever something does.
        wanted = {
            one.number: one
            for one in units(mirror.topic, range(found.partitions), mirror.mode, mirror.generation)
            if self.mirrors.get(mirror) is progress and progress.owns(one.number)
        }
        for number, assignment in list(progress.running.items()):
            if wanted.get(number) != assignment:
                link.revoke(assignment)
                del progress.running[number]
        for number, assignment in wanted.items():
            if number not in progress.running:
                progress.running[number] = assignment
                link.begin(assignment)

    async def _follow_rules(self) -> None:
        """ACLs of ships' targets, at a slow pace."""
        while True:
            for mirror, progress in list(self.mirrors.items()):
                now = trio.current_time()
                if mirror.mode != "ship" or 0 not in progress.running or now - progress.rules_at < RULES_SECONDS:
                    continue
                progress.rules_at = now
                try:
                    source, target = self._clusters[mirror.source], self._clusters[mirror.target]
                except KeyError:
                    continue
                if not self._allowed():
                    continue
                progress.rules = await self._following.follow(source, target, mirror.topic)
                await trio.lowlevel.checkpoint()  # where nobody had to be asked
                for one in progress.rules.created:
                    log.info("an ACL was followed", topic=mirror.topic, target=mirror.target, acl=one)
            await trio.sleep(RULES_LOOK_SECONDS)

    @staticmethod
    def missing(progress: Progress) -> bool:
        """Whether the source has lost its topic, and this is not about to be mended."""
        return trio.current_time() - progress.without_source > MISSING_SECONDS

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
        """Metrics: (name, labels as runtime.metrics describes them, value)."""
        now = time.time()
        for mirror, progress in self.mirrors.items():
            if progress.rules_at > 0 and 0 in progress.running:
                where = (mirror.source, mirror.target, mirror.topic)
                yield "kfed_mirror_rule_differences", where, len(progress.rules.remarks)
        for mirror, number, status in self.statuses():
            labels = (mirror.source, mirror.target, mirror.topic, str(number))
            if status.lag >= 0:
                yield "kfed_mirror_lag_records", labels, status.lag
            if status.lag_bytes >= 0:
                yield "kfed_mirror_lag_bytes", labels, status.lag_bytes
            yield "kfed_mirror_lag_seconds", labels, status.lag_seconds(now)
            yield "kfed_mirror_records_total", labels, status.records_here
            yield "kfed_mirror_bytes_total", labels, status.bytes
            yield "kfed_mirror_foreign_total", labels, status.foreign
            yield "kfed_mirror_overtaken_total", labels, status.overtaken
            yield "kfed_mirror_guard_evicted_total", labels, status.evicted
            yield "kfed_mirror_restarts_total", labels, status.restarts
            yield "kfed_mirror_condition", (*labels, status.condition.value), 1
