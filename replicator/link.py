"""A link: everything one process copies from one cluster to another.

A unit's life is a loop of sessions. A session claims, fences, reads the journal and scans (`claim`), then copies until
anything goes wrong: an error of the target, a lost connection, a lease that ran out. It is then thrown away as a whole,
and the next one finds out from the target's own log what had arrived. Errors of the source end no session: a partition
follows its leader, or stops with a state of its own.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import trio

from kafka_client import BrokerUnavailable, ClientError, ClusterClient, Refused
from kafka_client.cluster import backoff
from kafka_client.rights import DENIED, lacking, on_topic
from kafka_client.topics import EARLIEST, Topic, TopicInfo, delete_records, describe, offsets
from kafka_wire.codec import DecodeError
from kafka_wire.errors import ERROR
from offset_sync import journal
from offset_sync.guard import EXPIRATION_MS
from offset_sync.journal import UNIT_SIZE
from offset_sync.table import Table
from offset_sync.varints import Damaged
from replicator.claim import (
    Fenced,
    claim_identity,
    ends,
    ensure_journal,
    fence,
    id_expiration,
    read_journal,
    read_registry,
    register,
)
from replicator.copying import Data, Journal
from replicator.core import Identity
from replicator.feeder import Feeder, Limit
from replicator.outlet import Outlet
from replicator.recovery import Found, found_partition
from replicator.states import STOPPED, Condition, Status, Stop
from replicator.unit import Unit
from replicator.upstream import SHIPS, Upstream, Upstreams, own_table, producer_expiration
from runtime import logging

log = logging.get(__name__)

CHECKPOINT_SECONDS = 1.0
LEADERS_SECONDS = 2.0
MISSING_SECONDS = 5.0  # without the topic in the metadata until it counts as gone
ALLOWED_SECONDS = 0.2  # between two looks whether a lease that had run out holds again
KNOWN_EVERY = 8  # a transactional id is used so often in the time after which it would expire
FENCES = 10  # take-overs in a row that fail within ten seconds, then they are made more rarely
RARE_SECONDS = 20.0
REFUSED_SECONDS = 60.0  # until a batch that the target refused is tried again
SCANS_AT_ONCE = 8

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
    ) -> None:
        """`source_table` gives the table of a source partition; without, the source's own journal tells.

        `rate` limits bytes a second, None does not.
        """
        self.source = source
        self.target = target
        self.upstreams = Upstreams(source, source_table)
        self.allowed = allowed
        self.owner = owner
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


class Session:
    """One unit from one take-over to the first failure."""

    def __init__(self, link: Link, assignment: Assignment) -> None:
        self.link = link
        self.assignment = assignment
        self.reason = ""
        self.unit: Unit | None = None
        self.journal: Journal | None = None
        self.lanes: dict[int, Data] = {}
        self.upstreams: dict[int, Upstream] = {}
        self.ended = trio.Event()
        self.over = False  # the same, for the hot path
        self.denied = False  # it ended because the service lacks a right
        self.source_topic: Topic | None = None
        self._placed: dict[int, tuple[int, Feeder]] = {}
        self._missing_since = math.inf  # when the source's metadata last ceased to have the topic

    def fail(self, reason: str, *, denied: bool = False) -> None:
        """End the session; what is in flight is nobody's business any more."""
        if not self.over:
            self.reason, self.denied = reason, denied
            self.over = True
            self.ended.set()

    async def run(self) -> None:
        link, assignment = self.link, self.assignment
        try:
            await self._take_over()
            link.sessions[assignment] = self
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._housekeeping)
                nursery.start_soon(self._stay_known)
                await self.ended.wait()
                nursery.cancel_scope.cancel()
        finally:
            self.over = True
            self.ended.set()
            link.sessions.pop(assignment, None)
            for one in self.lanes.values():
                one.show()  # what was counted since the last time
            link.upstreams.forget(self.upstreams.values())
            for number, (_, feeder) in self._placed.items():
                feeder.remove(self.lanes[number])
            for lane in (self.journal, *self.lanes.values()):
                if lane is not None:
                    lane.outlet.withdraw(lane)

    # -- beginning ------------------------------------------------------------------------------------------------

    async def _take_over(self) -> None:
        link, assignment = self.link, self.assignment
        target, topic = link.target, assignment.topic
        source_info = (await describe(link.source, [topic])).get(topic)
        journal_info = await ensure_journal(target)
        if assignment.mode == "exchange":
            await ensure_journal(link.source)  # without a registry everything would look as if it were its own
        if source_info is not None:
            there = [one for one in assignment.partitions if one in source_info.partitions]
            self.upstreams = await link.upstreams.of(topic, there, ship=assignment.mode == "ship")
        transactional_id = link.transactional_id(assignment)
        identity = await claim_identity(target, transactional_id)
        await register(target, identity, f"{link.owner} {transactional_id}")
        link.counters.takeovers += 1
        starts, stops = await ends(target, topic, assignment.partitions)
        part = journal.partition_of(transactional_id)
        await fence(target, transactional_id, identity, {topic: assignment.partitions, journal.TOPIC: [part]})
        contents = await read_journal(target, part, identity)
        target_info = (await describe(target, [topic])).get(topic)
        if target_info is None or not set(assignment.partitions) <= target_info.partitions.keys():
            raise Refused(f"{target.name}: topic {topic!r}", ERROR.UNKNOWN_TOPIC_OR_PARTITION)
        if source_info is None:
            for number in assignment.partitions:
                self._stop(number, Stop(Condition.MISSING, f"{link.source.name} has no topic {topic!r}"))
            self.unit = Unit(transactional_id, identity)
            return
        self.source_topic = source_info.topic
        source_starts = await offsets(
            link.source, topic, [one for one in assignment.partitions if one in source_info.partitions], EARLIEST
        )
        self.unit = Unit(transactional_id, identity)
        leader = journal_info.partitions[part].leader
        self.journal = Journal(self, (journal_info.topic, part), link.outlet(leader))
        await self._recover(identity, contents, target_info, source_info, starts, stops, source_starts)
        self.place(source_info)
        self.journal.offer()

    async def _recover(
        self,
        identity: Identity,
        contents: journal.Contents,
        target_info: TopicInfo,
        source_info: TopicInfo,
        starts: Mapping[int, int],
        stops: Mapping[int, int],
        source_starts: Mapping[int, int],
    ) -> None:
        room = trio.CapacityLimiter(SCANS_AT_ONCE)
        expiration_ms = await producer_expiration(self.link.target, EXPIRATION_MS)
        assert self.unit is not None
        unit = self.unit

        async def one(number: int) -> None:
            status = self.link.status[self.assignment.topic, number]
            if status.condition is Condition.REFUSED and trio.current_time() < status.retry_at:
                return
            if number not in source_starts:
                self._stop(number, Stop(Condition.MISSING, f"{self.link.source.name} has no such partition"))
                return
            upstream = self.upstreams[number]
            found = Found(number, starts[number], stops[number], source_starts[number])
            try:
                async with room:
                    partition = await found_partition(
                        self.link,
                        self.assignment,
                        identity,
                        contents,
                        target_info,
                        source_info,
                        upstream.table,
                        found,
                        status,
                    )
            except Stop as stop:
                self._stop(number, stop)
                if stop.condition is Condition.TARGET_LOST:
                    scope = "" if self.assignment.mode == "ship" else self.link.source.name
                    unit.lose(journal.Stream(target_info.topic.id, number, scope), stop.detail)
                return
            partition.guard.expiration_ms = expiration_ms
            upstream.inherit(partition)
            unit.add(partition)
            place = (target_info.topic, number)
            leader = target_info.partitions[number].leader
            self.lanes[number] = Data(
                self, partition, place, (source_info.topic, number), upstream, self.link.outlet(leader), status
            )
            status.condition, status.detail = Condition.COPYING, ""

        failures: list[Exception] = []  # one of them is enough to begin anew; a group would be nobody's to handle

        async def tried(number: int) -> None:
            try:
                await one(number)
            except (ClientError, Damaged, DecodeError) as error:
                failures.append(error)
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for number in self.assignment.partitions:
                nursery.start_soon(tried, number)
        if failures:
            raise failures[0]

    def _stop(self, number: int, stop: Stop) -> None:
        status = self.link.status[self.assignment.topic, number]
        status.condition, status.detail = stop.condition, stop.detail

    def halt(self, lane: Data, stop: Stop) -> None:
        """A partition copies no further; what was taken is still written."""
        number = lane.partition.stream.partition
        self._stop(number, stop)
        if stop.condition is Condition.REFUSED:
            lane.status.retry_at = trio.current_time() + REFUSED_SECONDS
        elif stop.condition is Condition.TARGET_LOST and self.unit is not None and self.journal is not None:
            self.unit.lose(lane.partition.stream, stop.detail)
            self.journal.offer()
        placed = self._placed.pop(number, None)
        if placed is not None:
            placed[1].remove(lane)

    # -- while it runs --------------------------------------------------------------------------------------------

    def place(self, info: TopicInfo | None) -> None:
        """Give each partition to its present leader's feeder; None: no broker knows the topic."""
        if self.over:
            return
        known = info.partitions if info is not None else {}
        if any(self._absent(number) for number in self.assignment.partitions if number in known):
            self.fail("the source has what it had not")
        if self.source_topic is None:
            return
        now = trio.current_time()
        self._missing_since = min(self._missing_since, now) if info is None else math.inf
        for number, lane in self.lanes.items():
            status = self.link.status[self.assignment.topic, number]
            if status.condition in STOPPED and status.condition is not Condition.MISSING:
                continue
            if info is None or number not in info.partitions:
                # A broker that has just started knows nothing for a moment.
                if now - self._missing_since > MISSING_SECONDS and status.condition is not Condition.MISSING:
                    self.halt(lane, Stop(Condition.MISSING, f"{self.link.source.name} has no such topic any more"))
                continue
            if info.topic.id != self.source_topic.id:
                self.halt(lane, Stop(Condition.RECREATED, f"{info.topic.name!r} has another topic id now"))
                continue
            leader = info.partitions[number].leader
            placed = self._placed.get(number)
            if leader < 0 or (placed is not None and placed[0] == leader):
                continue
            if placed is not None:
                placed[1].remove(lane)
            if status.condition is Condition.MISSING:
                status.condition, status.detail = Condition.COPYING, ""
            feeder = self.link.feeder(leader)
            self._placed[number] = leader, feeder
            lane.feeder = feeder
            feeder.add(lane)

    def _absent(self, number: int) -> bool:
        """Whether the source had no such partition when this session began."""
        status = self.link.status[self.assignment.topic, number]
        return number not in self.lanes and status.condition is Condition.MISSING

    async def _stay_known(self) -> None:
        """An empty transaction now and then, over the unit's part of the journal alone.

        A transactional id that nobody uses expires; whoever took over afterwards would get another producer id, whose
        fence means nothing to what this one has sent. It also shows that somebody else has taken over while all is
        idle.
        """
        assert self.unit is not None
        target, identity, name = self.link.target, self.unit.identity, self.unit.name
        pause = await id_expiration(target) / KNOWN_EVERY
        while True:
            await trio.sleep(pause)
            try:
                await fence(target, name, identity, {journal.TOPIC: [journal.partition_of(name)]})
            except Fenced as error:
                self.fail(str(error))
                return
            except ClientError:
                pass  # there is time for some more

    async def _housekeeping(self) -> None:
        """Checkpoints, and the source's log start carried to the target."""
        assert self.unit is not None
        while True:
            await trio.sleep(CHECKPOINT_SECONDS)
            now = int(time.time() * 1000)
            for lane in self.lanes.values():
                lane.show()
            for partition in self.unit.partitions.values():
                try:
                    self.upstreams[partition.stream.partition].inherit(partition)
                except Damaged as error:
                    self.fail(f"the source's guard: {error}")
                    return
                if partition.guard.expire(now):
                    partition.touch()
                self.unit.checkpoint(partition)
            if self.journal is not None:
                self.journal.offer()
            if self.assignment.mode == "ship":
                await self._delete_records()
            statuses = [self.link.status[self.assignment.topic, number] for number in self.assignment.partitions]
            if any(one.condition is Condition.REFUSED and one.retry_at < trio.current_time() for one in statuses):
                self.fail("what was refused is tried again")

    async def _delete_records(self) -> None:
        wanted = {number: lane.deletable for number, lane in self.lanes.items() if lane.deletable > lane.deleted}
        if not wanted:
            return
        try:
            info = (await describe(self.link.target, [self.assignment.topic])).get(self.assignment.topic)
            by_leader: dict[int, dict[int, int]] = {}
            for number, offset in wanted.items():
                if info is not None and number in info.partitions and info.partitions[number].leader >= 0:
                    by_leader.setdefault(info.partitions[number].leader, {})[number] = offset
            for leader, before in by_leader.items():
                codes = await delete_records(self.link.target, self.assignment.topic, leader, before)
                for number, code in codes.items():
                    lane, right = self.lanes[number], lacking(code, on_topic("DELETE", self.assignment.topic))
                    if not code:
                        lane.deleted = before[number]
                    elif right:  # what was erased at the source is still here: it is not kept quiet
                        lane.status.detail = f"{self.link.target.name}: records up to {before[number]} stay{right}"
        except (BrokerUnavailable, Refused):
            pass  # tried again with the next checkpoint


def units(topic: str, partitions: Sequence[int], mode: Mode = "ship", generation: int = 0) -> list[Assignment]:
    """The units of a mirror, by partition number: a topic that grows keeps its first ones."""
    by_number: dict[int, list[int]] = {}
    for one in sorted(partitions):
        by_number.setdefault(one // UNIT_SIZE, []).append(one)
    return [Assignment(topic, tuple(some), mode, number, generation) for number, some in by_number.items()]


__all__ = ["UNIT_SIZE", "Assignment", "Counters", "Link", "Mode", "Session", "own_table", "units"]
