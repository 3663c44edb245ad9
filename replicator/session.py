"""One unit from one take-over to the first failure: claims, recovers, copies, and writes down where it stands."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

import trio

from kafka_client import BrokerUnavailable, ClientError, Refused
from kafka_client.rights import lacking, on_topic
from kafka_client.topics import EARLIEST, Topic, TopicInfo, delete_records, describe, offsets
from kafka_wire.codec import DecodeError
from kafka_wire.errors import ERROR
from offset_sync import journal
from offset_sync.guard import EXPIRATION_MS
from offset_sync.journal import UNIT_SIZE
from offset_sync.varints import Damaged
from replicator.claim import (
    Fenced,
    claim_identity,
    ends,
    ensure_journal,
    fence,
    id_expiration,
    read_journal,
    register,
)
from replicator.copying import Data, Journal
from replicator.core import Identity
from replicator.ending import Ending
from replicator.feeder import Feeder
from replicator.placed import serves
from replicator.recovery import Found, found_partition
from replicator.states import STOPPED, Condition, Stop
from replicator.unit import Unit
from replicator.upstream import Upstream, producer_expiration

if TYPE_CHECKING:
    from replicator.link import Assignment, Link

CHECKPOINT_SECONDS = 1.0
MISSING_SECONDS = 5.0  # without the topic in the metadata until it counts as gone
KNOWN_EVERY = 8  # a transactional id is used so often in the time after which it would expire
REFUSED_SECONDS = 60.0  # until a batch that the target refused is tried again
SCANS_AT_ONCE = 8


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
        self.ending: Ending | None = None
        self.leaders: dict[int, int] = {}  # the target's, as they were at the take-over
        self.unit_size = UNIT_SIZE
        self.timeline = link.places.timeline(assignment.topic) if assignment.mode == "ship" else ()
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
            self.follow_end()
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
        if serves(self.timeline, target.name):
            raise Refused(f"{target.name} serves {topic!r}: nothing is mirrored into it", ERROR.POLICY_VIOLATION)
        source_info = (await describe(link.source, [topic])).get(topic)
        journal_info = await ensure_journal(target)
        if assignment.mode == "exchange":
            await ensure_journal(link.source)  # without a registry everything would look as if it were its own
        if source_info is not None:
            there = [one for one in assignment.partitions if one in source_info.partitions]
            self.upstreams = await link.upstreams.of(
                topic, there, ship=assignment.mode == "ship", timeline=self.timeline
            )
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
                        self.timeline,
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
            leader = self.leaders[number] = target_info.partitions[number].leader
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
        if self.over or (self.ending is not None and self.ending.done):
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
            if self.ending is not None:
                self.ending.look()  # it writes the last checkpoint
                continue
            if len(self.link.places.timeline(self.assignment.topic)) != len(self.timeline) and self.timeline:
                self.fail("the topic has moved")
                return
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

    def follow_end(self) -> None:
        """Where the mirror ends, or that it goes on: as the link says now."""
        end = self.link.ending(self.assignment.topic)
        rested = False
        if self.ending is not None:
            rested = self.ending.done
            self.ending.leave()
            self.ending = None
        if end is not None:
            self.ending = Ending(self, end)
            self.ending.look()
        if rested and (self.ending is None or not self.ending.done):
            self.link.leaders_moved()  # feeders are given their partitions again
        for lane in self.lanes.values():
            if lane.feeder is not None:
                lane.feeder.wake()

    def rest(self) -> None:
        """Fetch nothing any more, until `place`."""
        for number, (_, feeder) in self._placed.items():
            feeder.remove(self.lanes[number])
        self._placed.clear()

    async def _delete_records(self) -> None:
        # By what is so now: a source that has ceased to serve is emptied, and that is no erasure to be followed.
        if not self.link.allowed() or not self.link.places.fresh():
            return
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
