"""The lanes of a session: a partition on its way from a feeder to an outlet, and the unit's part of the journal."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import trio

from kafka_client import ClientError
from kafka_client.rights import DENIED, lacking, on_topic
from kafka_client.topics import EARLIEST, LATEST, RETRIABLE, Fetched, Place, offsets
from kafka_wire.batches import first_size
from kafka_wire.codec import DecodeError
from kafka_wire.errors import ERROR, error_name
from offset_sync.recovered import Inconsistent
from replicator.core import Partition
from replicator.cut import Corrupt, Cut, Strangers, cut
from replicator.outlet import Outlet
from replicator.states import Condition, Status, Stop
from replicator.upstream import Upstream
from replicator.wire import Produced, Wanted

if TYPE_CHECKING:
    from replicator.feeder import Feeder
    from replicator.session import Session

FETCH_BYTES = 1 << 20
RETRY_SECONDS = 0.2  # after an error of the source's leader
DENIED_SECONDS = 2.0  # ... that says we may not read
UNSURE = 5  # refusals of a position that is inside the source's log
UPSTREAM_SECONDS = 0.1  # between two looks whether the source's table covers what was fetched
# What the target will say again, however often the batch is sent.
_FOR_GOOD = {ERROR.MESSAGE_TOO_LARGE, ERROR.INVALID_TIMESTAMP, ERROR.RECORD_LIST_TOO_LARGE, ERROR.INVALID_RECORD}


def _words(answer: Produced) -> str:
    return f"{error_name(answer.error)} ({answer.error}){': ' + answer.message if answer.message else ''}"


class Journal:
    """The unit's intents and checkpoints."""

    urgent = True

    def __init__(self, session: Session, place: Place, outlet: Outlet) -> None:
        self.session = session
        self.place = place
        self.outlet = outlet

    def offer(self) -> None:
        self.outlet.offer(self)

    def next(self, now: int, most: int, room: int) -> list[memoryview]:
        if self.session.over:
            return []
        unit = self.session.unit
        assert unit is not None
        out: list[memoryview] = []
        while len(out) < most and room > 0 and (one := unit.journal_batch(now)) is not None:
            out.append(one)
            room -= len(one)
        return out

    def answered(self, answer: Produced, now: int) -> None:
        if answer.error:
            self.session.fail(f"journal: {_words(answer)}")
        else:
            self.landed([answer.base_offset], answer.log_start, now)

    def landed(self, bases: Sequence[int], log_start: int, now: int) -> None:
        session = self.session
        if session.over:
            return
        assert session.unit is not None
        for _ in bases:
            for stream in session.unit.journal_stored():
                lane = session.lanes.get(stream.partition)
                if lane is not None:
                    lane.outlet.offer(lane)
        self.outlet.offer(self)
        if session.ending is not None:
            session.ending.look()

    def lost(self, reason: str) -> None:
        self.session.fail(reason)


class Data:
    """One partition: fed by its source's leader, written to its target's."""

    urgent = False

    def __init__(
        self,
        session: Session,
        partition: Partition,
        place: Place,
        origin: Place,
        upstream: Upstream,
        outlet: Outlet,
        status: Status,
    ) -> None:
        self.session = session
        self.partition = partition
        self.place = place
        self.origin = origin
        self.upstream = upstream
        self.outlet = outlet
        self.status = status
        self.feeder: Feeder | None = None
        self.deletable = 0  # the target may delete below this offset
        self.deleted = 0
        self.stop_at: int | None = None  # the source offset at which it ends, once that is known
        self.dead = False  # nothing of it is written in this session any more
        self._unsure = 0
        self._fetch_bytes = FETCH_BYTES
        self._log_start = -1
        self._target_start = -1
        self._paused = False
        self._retry_at = 0.0
        self._foreign = 0
        self._shown = (0, 0, 0)  # records, bytes and batches that the figures have
        self._evicted = 0

    # -- as a lane of the target ----------------------------------------------------------------------------------

    def next(self, now: int, most: int, room: int) -> list[memoryview]:
        if self.session.over or self.dead:
            return []
        return [one[0] for one in self.partition.next_batches(now, most, room)]

    def answered(self, answer: Produced, now: int) -> None:
        session = self.session
        if session.over or self.dead:
            return
        if answer.error:
            corrupt = self.partition.corrupt() if answer.error == ERROR.CORRUPT_MESSAGE else None
            if corrupt is not None:
                self._die(Stop(Condition.CORRUPT, f"the batch at offset {corrupt} has a wrong CRC"))
                return
            if answer.error in _FOR_GOOD:
                # Its successors are refused too, by their sequences. The unit's other partitions go on.
                self._die(Stop(Condition.REFUSED, _words(answer)))
                return
            right = lacking(answer.error, on_topic("WRITE", self.place[0].name))
            words = f"partition {self.partition.stream.partition}: {_words(answer)}{right}"
            session.fail(words, denied=answer.error in DENIED)
            return
        if answer.append_time >= 0:
            why = f"it replaces timestamps (LogAppendTime), first at offset {answer.base_offset}"
            session.link.hold(self.place[0].name, why)
            return
        self.landed([answer.base_offset], answer.log_start, now)

    def landed(self, bases: Sequence[int], log_start: int, now: int) -> None:
        session = self.session
        if session.over or self.dead:
            return
        partition = self.partition
        try:
            partition.acknowledged(bases, now)
        except Inconsistent as error:
            self._die(Stop(Condition.TARGET_LOST, str(error)))
            return
        if log_start > self._target_start:
            self._target_start = log_start
            partition.trim(log_start)
        if partition.idle:
            self.show()
        else:
            self.outlet.offer(self)
        if partition.checkpoint_due():
            assert session.unit is not None and session.journal is not None
            session.unit.checkpoint(partition)
            session.journal.offer()
        if self._paused and not partition.full and self.feeder is not None:
            self.feeder.wake()

    def _die(self, stop: Stop) -> None:
        self.dead = True
        self.session.halt(self, stop)

    def lost(self, reason: str) -> None:
        self.session.fail(reason)

    # -- as a feed of the source ----------------------------------------------------------------------------------

    def wanted(self) -> Wanted | None:
        self._paused = self.partition.full
        if self._paused or (self._retry_at and self._retry_at > trio.current_time()):
            return None
        return Wanted(self.partition.fetch_position, self.partition.fetch_epoch, self._fetch_bytes)

    async def fetched(self, answer: Fetched) -> None:
        if self.session.over:
            return
        try:
            if answer.error:
                await self._error(answer.error)
                return
            self._unsure = 0
            if self.status.condition is Condition.DENIED:
                self.status.condition, self.status.detail = Condition.COPYING, ""
            if answer.diverging is not None:
                epoch, end = answer.diverging
                raise Stop(
                    Condition.TRUNCATED,
                    f"its leader epoch {epoch} ends at {end}, copied up to {self.partition.fetch_position}",
                )
            if answer.log_start > self._log_start:
                self._follow_log_start(answer.log_start)
            await self._records(answer)
        except Stop as stop:
            self.session.halt(self, stop)

    async def _records(self, answer: Fetched) -> None:
        session, partition, status = self.session, self.partition, self.status
        link = session.link
        status.end = answer.stable if answer.stable >= 0 else answer.high_watermark
        made: Cut | None = None
        if len(answer.records):
            exchange = session.assignment.mode == "exchange"
            try:
                limit = self._limit
                foreign = link.mirrored if exchange else None
                known: Callable[[int], bool] | None = link.local_ids.__contains__
                while made is None:
                    try:
                        made = cut(answer.records, partition.fetch_position, answer.aborted, foreign, known, limit)
                    except Strangers as strangers:
                        ids = strangers.ids
                        await link.knows(ids, session.assignment.mode)
                        ships = link.ships_among(ids)
                        if ships and await link.upstreams.changed(self.upstream, *self._where, ships):
                            session.fail("the source has become a mirror's target")
                        if session.over:
                            return
                        known, limit = None, self._limit
                if made.held:
                    # The rest waits until the source's own mirror has written down what it is.
                    self._retry_at = trio.current_time() + UPSTREAM_SECONDS
            except (Corrupt, DecodeError) as error:
                raise Stop(Condition.CORRUPT, str(error)) from None
            except ClientError:
                return  # the registry cannot be read: the same is fetched again
            if made.held and made.position == partition.fetch_position:
                pass
            elif made.position == partition.fetch_position:
                # Not one whole batch: it is larger than what was asked for.
                self._fetch_bytes = max(first_size(answer.records) or 0, self._fetch_bytes * 2)
            else:
                self._fetch_bytes = FETCH_BYTES
                status.left_out += made.left_out
                assert session.unit is not None and session.journal is not None
                try:
                    session.unit.take(partition, made, int(time.time() * 1000), link.mirrored)
                except ValueError as error:
                    raise Stop(Condition.CORRUPT, str(error)) from None
                if made.pieces:
                    session.journal.offer()
        self._behind()

    def _behind(self) -> None:
        self.show()
        status = self.status
        if status.position < status.end and not status.behind_since:
            status.behind_since = time.time()
            status.condition = Condition.COPYING

    @property
    def _limit(self) -> int | None:
        """The source offset from which on nothing may be taken (yet)."""
        covered, stop_at = self.upstream.limit, self.stop_at
        return covered if stop_at is None else stop_at if covered is None else min(covered, stop_at)

    @property
    def _where(self) -> tuple[str, int]:
        return self.origin[0].name, self.origin[1]

    def show(self) -> None:
        """Bring the figures up to date; not done for every batch."""
        status, partition, counters = self.status, self.partition, self.session.link.counters
        records, size, batches = self._shown
        if partition.batches != batches:
            self._shown = partition.copied, partition.bytes, partition.batches
            status.records_here += partition.copied - records
            status.bytes += partition.bytes - size
            status.last_copied = time.time()
            counters.records += partition.copied - records
            counters.bytes += partition.bytes - size
            counters.batches += partition.batches - batches
        status.position = partition.position
        status.records = partition.records
        status.foreign += partition.foreign - self._foreign
        self._foreign = partition.foreign
        status.evicted += partition.guard.evicted - self._evicted
        self._evicted = partition.guard.evicted
        if status.position >= status.end >= 0:
            self._caught_up()
        if self.session.ending is not None:
            self.session.ending.look()

    def _caught_up(self) -> None:
        self.status.behind_since = 0.0
        if self.status.condition is Condition.COPYING:
            self.status.condition = Condition.CAUGHT_UP

    def _follow_log_start(self, log_start: int) -> None:
        """DeleteRecords and retention of the source: erasure must reach a standby."""
        covered = self.upstream.limit
        if covered is not None and log_start > covered:
            return  # the source, a copy itself, is being begun anew: its table does not tell yet what was deleted
        if not self.session.link.places.fresh():
            return  # a source that has ceased to serve is emptied: that is no erasure, and we would not know yet
        self._log_start = log_start
        if self.session.assignment.mode != "ship":
            return
        partition = self.partition
        logical = partition.source.logical(log_start)
        if logical is not None and partition.table.raise_log_start(logical):
            partition.touch()
        end = partition.table.runs.end
        physical = partition.table.physical(partition.table.log_start)
        if physical is not None and end is not None:
            self.deletable = max(self.deletable, min(physical, end.physical))
        elif partition.table.log_start:  # everything that came was deleted at the source
            self.deletable = max(self.deletable, partition.state.scanned)

    async def _error(self, code: int) -> None:
        link, name, number = self.session.link, self.origin[0].name, self.origin[1]
        self._retry_at = trio.current_time() + RETRY_SECONDS
        if code == ERROR.OFFSET_OUT_OF_RANGE:
            try:
                start = (await offsets(link.source, name, [number], EARLIEST))[number]
                end = (await offsets(link.source, name, [number], LATEST))[number]
            except ClientError:
                return
            position = self.partition.fetch_position
            if position > end:
                raise Stop(Condition.TRUNCATED, f"it ends at {end}, copied up to {position}")
            # In between: its leader does not know the epoch that we copied under; for good, if it says so again.
            self._unsure = self._unsure + 1 if position >= start else 0
            if self._unsure >= UNSURE:
                epoch = self.partition.fetch_epoch
                why = f"its leader does not know leader epoch {epoch}, copied up to {position}"
                raise Stop(Condition.TRUNCATED, why)
            if position < start:
                self.status.overtaken += start - position
                self._follow_log_start(start)
                self.partition.skip_to(start)
        elif code in RETRIABLE or code in (ERROR.UNKNOWN_TOPIC_ID, ERROR.INCONSISTENT_TOPIC_ID):
            link.leaders_moved()  # metadata tells whether it moved, is gone, or was created anew
        elif code in DENIED:
            self._retry_at = trio.current_time() + DENIED_SECONDS
            right = lacking(code, on_topic("READ", name))
            self.status.condition = Condition.DENIED
            self.status.detail = f"{link.source.name}: {error_name(code)} ({code}){right}"
        else:
            raise Stop(Condition.MISSING, f"{error_name(code)} ({code})")
