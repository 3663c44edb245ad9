"""A link: everything one process copies from one cluster to another.

A unit's life is a loop of sessions. A session claims, fences, reads the journal and scans (`claim`), then copies until
anything goes wrong: an error of the target, a lost connection, a lease that ran out. It is then thrown away as a whole,
and the next one finds out from the target's own log what had arrived. Errors of the source end no session: a partition
follows its leader, or stops with a state of its own.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import trio

from kafka_client import ClientError, ClusterClient, Refused
from kafka_client.cluster import backoff
from kafka_client.rights import DENIED
from kafka_client.topics import describe
from kafka_wire.codec import DecodeError
from offset_sync import journal
from offset_sync.journal import UNIT_SIZE
from offset_sync.table import Table
from offset_sync.varints import Damaged
from replicator.claim import (
    Fenced,
    read_registry,
)
from replicator.ending import End
from replicator.feeder import Feeder, Limit
from replicator.outlet import Outlet
from replicator.placed import Places, Unplaced
from replicator.session import Session
from replicator.states import STOPPED, Condition, Status
from replicator.upstream import SHIPS, Upstreams, own_table
from runtime import logging

log = logging.get(__name__)

LEADERS_SECONDS = 2.0
ALLOWED_SECONDS = 0.2  # between two looks whether a lease that had run out holds again
FENCES = 10  # take-overs in a row that fail within ten seconds, then they are made more rarely
RARE_SECONDS = 20.0

Mode = Literal["ship", "exchange"]


@dataclass(frozen=True, slots=True)
class Assignment:
    """A unit of work: partitions of one mirror that share a producer identity. `name` is unique on the target."""

    topic: str
    partitions: tuple[int, ...]
    mode: Mode = "ship"
    number: int = 0
    generation: int = 0  # a ship's copy that is of an older one is begun anew


@dataclass
class Counters:
    """Of one link, since the process began."""

    bytes: int = 0
    records: int = 0
    batches: int = 0
    takeovers: int = 0
    failures: dict[str, int] = field(default_factory=dict)


class Link:
    """Copies from `source` to `target`; both stay the caller's. `run` it and `assign` units to it."""

    def __init__(
        self,
        source: ClusterClient,
        target: ClusterClient,
        *,
        source_table: Callable[[str, int], Table] | None = None,
        allowed: Callable[[], bool] = lambda: True,
        rate: float | None = None,
        owner: str = "kfed",
        places: Places | None = None,
        ending: Callable[[str], End | None] = lambda _: None,
    ) -> None:
        """`source_table` gives the table of a source partition; without, the source's own journal tells.

        `rate` limits bytes a second, None does not. `ending` says where a topic's mirror is to end, if it is.
        """
        self.source = source
        self.target = target
        self.upstreams = Upstreams(source, source_table)
        self.allowed = allowed
        self.owner = owner
        self.places: Places = places or Unplaced()
        self.ending = ending
        self.counters = Counters()
        self.limit = Limit(rate)
        self.source_mirrors: dict[int, bytes] = {}  # producer ids that mirrors use on the source
        self.local_ids: set[int] = {-1}  # ... and such as were looked up and are nobody's
        self._outlets: dict[int, Outlet] = {}
        self._feeders: dict[int, Feeder] = {}
        self._nursery: trio.Nursery | None = None
        self._started = trio.Event()
        self._running: dict[Assignment, tuple[trio.CancelScope, trio.Event]] = {}
        self._scope = trio.CancelScope()
        self._leaders_changed = trio.Event()
        self.status: dict[tuple[str, int], Status] = {}
        self.held: dict[str, str] = {}  # topics whose targets would change or drop records, and why
        self.sessions: dict[Assignment, Session] = {}

    async def run(self) -> None:
        """Until cancelled, or closed."""
        with self._scope:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                self._started.set()
                nursery.start_soon(self._follow_leaders)
                nursery.start_soon(self.upstreams.run)

    def close(self) -> None:
        """End everything; for a link whose clusters are reached otherwise from now on."""
        self._scope.cancel()

    async def assign(self, assignment: Assignment) -> None:
        """Begin to copy these partitions; returns at once."""
        await self.started()
        self.begin(assignment)

    async def started(self) -> None:
        """Returns when it runs."""
        await self._started.wait()

    def begin(self, assignment: Assignment) -> None:
        """`assign`, once it runs."""
        assert self._nursery is not None
        for number in assignment.partitions:
            self.status.setdefault((assignment.topic, number), Status())
        scope, ended = self._running[assignment] = trio.CancelScope(), trio.Event()
        self._nursery.start_soon(self._unit, assignment, scope, ended)

    def revoke(self, assignment: Assignment) -> trio.Event:
        """Stop copying; what is in flight is left to the next owner's fence and scan. The event: it has stopped."""
        running = self._running.pop(assignment, None)
        if running is None:
            nothing = trio.Event()
            nothing.set()
            return nothing
        running[0].cancel()
        return running[1]

    def hold(self, topic: str, why: str) -> None:
        """Copy nothing of a topic until `release`."""
        if topic not in self.held:
            log.warning("a mirror waits: its target is unfit", topic=topic, target=self.target.name, why=why)
        self.held[topic] = why
        for session in list(self.sessions.values()):
            if session.assignment.topic == topic:
                session.fail(why)

    def release(self, topic: str) -> None:
        """The target is as it should be."""
        self.held.pop(topic, None)

    def soon(self, call: Callable[[], Awaitable[None]]) -> None:
        """Run it beside everything else."""
        assert self._nursery is not None
        self._nursery.start_soon(call)

    def end(self, topic: str) -> None:
        """`ending` says something else of this topic now."""
        for session in list(self.sessions.values()):
            if session.assignment.topic == topic:
                session.follow_end()

    def outlet(self, broker: int) -> Outlet:
        if broker not in self._outlets:
            self._outlets[broker] = Outlet(self.target, broker, self.allowed)
            assert self._nursery is not None
            self._nursery.start_soon(self._outlets[broker].run)
        return self._outlets[broker]

    def feeder(self, broker: int) -> Feeder:
        if broker not in self._feeders:
            self._feeders[broker] = Feeder(self.source, broker, self.limit, lambda _: self.leaders_moved())
            assert self._nursery is not None
            self._nursery.start_soon(self._feeders[broker].run)
        return self._feeders[broker]

    def leaders_moved(self) -> None:
        """Some partition of the source has another leader than we thought."""
        self._leaders_changed.set()

    async def knows(self, producer_ids: set[int], mode: Mode) -> None:
        """Look producer ids of the source up, where they were never seen. An id is registered before its first use."""
        unknown = {one for one in producer_ids if one not in self.source_mirrors and one not in self.local_ids}
        if unknown:
            self.source_mirrors.update(await read_registry(self.source, expected=mode == "exchange"))
            self.local_ids |= unknown - self.source_mirrors.keys()

    def ships_among(self, producer_ids: set[int]) -> set[int]:
        """Those that ships into the source write with."""
        return {one for one in producer_ids if SHIPS in self.source_mirrors.get(one, b"")}

    def mirrored(self, producer_id: int) -> bool:
        """Whether a batch on the source with this producer id was written by a mirror."""
        return producer_id in self.source_mirrors

    def transactional_id(self, assignment: Assignment) -> str:
        """The unit's name on the target, as `journal.unit_name` makes it."""
        scope = "" if assignment.mode == "ship" else self.source.name
        return journal.unit_name(scope, assignment.topic, assignment.number)

    # -- units ----------------------------------------------------------------------------------------------------

    async def _unit(self, assignment: Assignment, scope: trio.CancelScope, ended: trio.Event) -> None:
        try:
            with scope:
                await self._sessions(assignment)
        finally:
            ended.set()

    async def _sessions(self, assignment: Assignment) -> None:
        failures = fenced = 0
        while True:
            if not self.allowed():  # a take-over fences: it is for those who certainly hold the unit
                await trio.sleep(ALLOWED_SECONDS)
                continue
            if (why := self.held.get(assignment.topic)) is not None:
                self._show(assignment, Condition.UNFIT, why)
                await trio.sleep(ALLOWED_SECONDS)
                continue
            if (end := self.ending(assignment.topic)) is not None and assignment.number in end.finished:
                await end.left.wait()
                continue
            session = Session(self, assignment)
            started = trio.current_time()
            try:
                await session.run()
            except (ClientError, Fenced, Damaged, DecodeError) as error:
                reason = str(error)
                denied = isinstance(error, Refused) and error.code in DENIED
            else:
                reason, denied = session.reason, session.denied
            self.counters.failures[reason] = self.counters.failures.get(reason, 0) + 1
            for number in assignment.partitions:
                self.status[assignment.topic, number].restarts += 1
            self._show(assignment, Condition.DENIED if denied else Condition.STARTING, reason)
            lived = trio.current_time() - started > 10
            failures = 1 if lived else failures + 1
            # Each fence leaves a control record in every partition: those that lead to nothing become rare.
            fenced = 0 if lived or session.unit is None else fenced + 1
            await trio.sleep(backoff(failures) + (RARE_SECONDS if fenced > FENCES else 0.0))

    def _show(self, assignment: Assignment, condition: Condition, detail: str) -> None:
        """Of all its partitions but those that stand still for a reason of their own."""
        for number in assignment.partitions:
            status = self.status[assignment.topic, number]
            if status.condition not in STOPPED:
                status.condition, status.detail = condition, detail

    async def _follow_leaders(self) -> None:
        while True:
            with trio.move_on_after(LEADERS_SECONDS):
                await self._leaders_changed.wait()
                await trio.sleep(0.05)  # several partitions move together
            self._leaders_changed = trio.Event()
            topics = sorted({one.topic for one in self.sessions})
            if not topics:
                continue
            try:
                found = await describe(self.source, topics)
            except ClientError:
                continue
            for session in list(self.sessions.values()):
                session.place(found.get(session.assignment.topic))


def units(topic: str, partitions: Sequence[int], mode: Mode = "ship", generation: int = 0) -> list[Assignment]:
    """The units of a mirror, by partition number: a topic that grows keeps its first ones."""
    by_number: dict[int, list[int]] = {}
    for one in sorted(partitions):
        by_number.setdefault(one // UNIT_SIZE, []).append(one)
    return [Assignment(topic, tuple(some), mode, number, generation) for number, some in by_number.items()]


__all__ = ["UNIT_SIZE", "Assignment", "Counters", "Link", "Mode", "Session", "own_table", "units"]
