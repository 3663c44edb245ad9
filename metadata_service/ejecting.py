"""Topics that leave the federation: positions translated, and the operation carried out by the controller.

What is to be done says operations/ejecting.py; the plan is made by the admin API.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import msgspec
import trio

from kafka_client import ClientError, ClusterClient
from kafka_client.topics import EARLIEST, offsets
from metadata_service import carrying
from metadata_service.asking import Position, Positions, committed
from metadata_service.failures import DecisionFailed, Undecided
from metadata_service.home_runner import registered_proxies
from metadata_service.member import Member
from metadata_service.models import (
    GROUP_HOMES,
    OPERATIONS,
    EjectedRecord,
    HomeRecord,
    OperationRecord,
    TopicRecord,
    ejected_key,
    topic_key,
)
from metadata_service.operations.ejecting import ENDED, Advance, Facts, advance
from metadata_service.records import decode, encode, settle
from metadata_service.store.clock import Backoff
from metadata_service.store.contract import Delete, Operation, Put, StoreError, Unchanged
from metadata_service.view import View
from offset_sync.tables import SHIP, Following, held
from offset_sync.varints import Damaged
from runtime import logging

log = logging.get(__name__)

GROUPS_AT_ONCE = 8
EPOCH_BITS = 20  # a logical leader epoch is placement epoch << 20 | physical epoch
LOOK = 0.05


def moved(record: TopicRecord) -> bool:
    """Whether its logical offsets may differ from those of its cluster."""
    return record.epoch > 0 or any(record.timeline[-1].first.values())


@dataclass(frozen=True, slots=True)
class Translated:
    """Positions as the serving cluster counts them. `below`: partitions whose position lay in front of the log, which
    is where they begin now."""

    positions: Positions
    below: tuple[int, ...] = ()


class Physical:
    """Translates positions of one topic; keeps what it has read of the tables."""

    def __init__(self, client: ClusterClient, record: TopicRecord) -> None:
        self._client = client
        self._record = record
        self._following = Following(client)
        self._starts: dict[int, int] | None = None

    async def positions(self, found: Mapping[tuple[str, int], Position]) -> Translated:
        """Those in this topic. Raises Undecided."""
        mine = {key: one for key, one in found.items() if key[0] == self._record.name}
        if not moved(self._record):
            return Translated(mine)
        out: Positions = {}
        below: list[int] = []
        try:
            starts = await self._log_starts()
            for (topic, index), position in sorted(mine.items()):
                at = await self._offset(index, position.offset)
                if at < starts.get(index, 0):
                    at = starts[index]
                    below.append(index)
                out[topic, index] = Position(at, self._epoch(position.epoch), position.metadata)
        except ClientError as error:
            raise Undecided(self._client.name, str(error)) from error
        except Damaged as error:
            raise Undecided(
                self._client.name, f"the tables of {self._record.name!r} cannot be used: {error}"
            ) from error
        return Translated(out, tuple(below))

    async def _log_starts(self) -> dict[int, int]:
        if self._starts is None:
            every = list(range(self._record.partitions))
            self._starts = await offsets(self._client, self._record.name, every, EARLIEST)
        return self._starts

    async def _offset(self, index: int, logical: int) -> int:
        """Where the record at a logical offset lies, or the next one."""
        now = self._record.timeline[-1]
        first = now.first.get(index, 0)
        begins = now.first_physical.get(index, first)
        if logical >= first:
            return begins + logical - first
        log_of = await held(self._following, self._client, self._record.name, index, [SHIP])
        written = log_of.written.get(SHIP)
        found = written.table.record_of(logical) if written is not None else None
        return begins if found is None else found.physical

    def _epoch(self, logical: int) -> int:
        """A committed leader epoch; -1 (not known) where it is one of another cluster."""
        if logical < 0 or logical >> EPOCH_BITS != self._record.epoch:
            return -1
        return logical & ((1 << EPOCH_BITS) - 1)


@dataclass
class Reader:
    """A group with positions in the topic. `writes`: what its cluster lacks of them."""

    group: str
    home: str
    positions: Positions
    writes: Positions
    below: tuple[int, ...] = ()


async def readers(member: Member, record: TopicRecord, groups: Iterable[HomeRecord]) -> list[Reader]:
    """All groups with positions in the topic at their home, translated. Raises Undecided."""
    view = member.view
    serving = member.clients.active(record.cluster)
    physical = Physical(serving, record)
    out: list[Reader] = []
    failed: list[Undecided] = []
    slots = trio.CapacityLimiter(GROUPS_AT_ONCE)

    async def one(home: HomeRecord) -> None:
        try:
            async with slots:
                at = member.clients.active(home.cluster)
                found = await committed(at, home.name, _spoken(view, at.name), stable=True)
                mine = {key: each for key, each in found.items() if key[0] == record.name}
                if not mine:
                    return
                translated = await physical.positions(mine)
                same = at.name == serving.name
                writes = {key: each for key, each in translated.positions.items() if not same or mine.get(key) != each}
                out.append(Reader(home.name, at.name, mine, writes, translated.below))
        except Undecided as error:
            failed.append(error)

    async with trio.open_nursery() as nursery:
        for home in groups:
            if home.cluster in view.clusters and view.clusters[home.cluster].record.state == "active":
                nursery.start_soon(one, home)
    if failed:
        raise failed[0]
    return sorted(out, key=lambda each: each.group)


def _spoken(view: View, cluster: str) -> Mapping[int, tuple[int, int]]:
    return view.clusters[cluster].snapshot.versions


async def run_eject(member: Member, operation: OperationRecord, guard: Unchanged) -> None:
    """A controller.Runner: until the operation has ended. Raises StoreError, DecisionFailed: to be begun again."""
    await _Eject(member, operation, guard).run()


@dataclass
class _Done:
    written: bool = False
    trouble: str = ""
    result: dict[str, object] = field(default_factory=dict)
    backoff: Backoff = field(default_factory=lambda: Backoff(0.05, 1.0))


class _Eject:
    def __init__(self, member: Member, operation: OperationRecord, guard: Unchanged) -> None:
        self._member = member
        self._id = operation.id
        self._guard = guard
        self._topic = str(operation.plan["topic"])
        self._cluster = str(operation.plan["cluster"])
        self._logical = str(operation.plan["id"])
        self._by = operation.by
        self._step = ""
        self._since = 0.0
        self._done = _Done()

    async def run(self) -> None:
        store = self._member.store
        mark = ejected_key(self._cluster, self._topic)
        while True:
            stored = await store.get(OPERATIONS + self._id)
            if stored is None:
                return
            operation = decode(OperationRecord, stored.value)
            if operation.state != "running" or operation.step in ENDED:
                return
            if operation.step != self._step:
                self._step, self._since, self._done = operation.step, trio.current_time(), _Done()
            topic, marked = await store.get(topic_key(self._topic)), await store.get(mark)
            record = None if topic is None else decode(TopicRecord, topic.value)
            ejected = None if marked is None else decode(EjectedRecord, marked.value)
            ours = ejected is not None and ejected.operation == self._id
            behind: tuple[str, ...] = ()
            if self._step == "wait" and marked is not None:
                _, behind = await registered_proxies(store, marked.mod_revision)
            served = record is not None and record.id == self._logical and record.cluster == self._cluster
            free = served and record is not None and record.hold is None
            facts = Facts(free, ours, behind, self._done.written, "", self._done.trouble)
            next_ = advance(self._step, facts, trio.current_time() - self._since)
            if next_.does == "write":
                assert ejected is not None and ejected.record is not None
                await self._write(ejected.record)
            elif next_.does is not None:
                seen = (stored.mod_revision, topic.mod_revision if topic else 0, marked.mod_revision if marked else 0)
                await self._commit(operation, record, ejected, seen, next_)
                continue
            if self._done.trouble:
                await self._done.backoff.pause()
            elif next_.does is None:
                await trio.sleep(LOOK)

    async def _write(self, record: TopicRecord) -> None:
        """Positions of every group on the cluster that keeps the topic. May be done again: then it writes the same."""
        try:
            found = await readers(self._member, record, list(self._member.view.groups.values()))
            client = self._member.clients.active(self._cluster)
            for one in found:
                if one.writes:
                    await carrying.commit(client, one.group, one.writes, _spoken(self._member.view, client.name))
                if one.home != self._cluster:
                    await self._counts(one.group)
        except (DecisionFailed, Undecided) as error:
            self._done.trouble = str(error)
            return
        self._done.trouble, self._done.written = "", True
        self._done.result = {
            "groups": {one.group: len(one.positions) for one in found},
            "written": {one.group: len(one.writes) for one in found if one.writes},
            "below_log_start": {one.group: list(one.below) for one in found if one.below},
        }

    async def _counts(self, group: str) -> None:
        """The group is known on that cluster from now on, and rightly: it is no conflict."""

        def known(now: HomeRecord | None) -> HomeRecord | None:
            if now is None or self._cluster in (now.cluster, *now.carry):
                return now
            return msgspec.structs.replace(now, carry=tuple(sorted((*now.carry, self._cluster))))

        await settle(self._member.store, GROUP_HOMES + group, HomeRecord, known, conditions=(self._guard,))

    async def _commit(
        self,
        operation: OperationRecord,
        record: TopicRecord | None,
        ejected: EjectedRecord | None,
        seen: tuple[int, int, int],
        next_: Advance,
    ) -> None:
        """One commit; if what it was decided on has changed since, that is read again."""
        assert next_.step is not None
        state = {"done": "done", "failed": "failed"}.get(next_.step, "running")
        result = {**operation.result, **self._done.result, **({"reason": next_.reason} if next_.reason else {})}
        after = msgspec.structs.replace(operation, step=next_.step, state=state, result=result)
        topic, mark = topic_key(self._topic), ejected_key(self._cluster, self._topic)
        operations: list[Operation] = [Put(OPERATIONS + self._id, encode(after))]
        if next_.does == "leave":
            assert record is not None
            gone = EjectedRecord(
                topic=self._topic,
                cluster=self._cluster,
                topic_id=record.timeline[-1].topic_id,
                operation=self._id,
                at=operation.started,
                by=self._by,
                record=record,
            )
            operations += [Delete(topic), Put(mark, encode(gone))]
        elif next_.does == "restore" and ejected is not None and ejected.record is not None:
            operations.append(Delete(mark))
            if record is None:
                operations.append(Put(topic, encode(ejected.record)))
        elif next_.step == "done" and ejected is not None:
            operations.append(Put(mark, encode(msgspec.structs.replace(ejected, record=None))))
        conditions = (
            self._guard,
            Unchanged(OPERATIONS + self._id, seen[0]),
            Unchanged(topic, seen[1]),
            Unchanged(mark, seen[2]),
        )
        done = await self._member.store.commit(conditions, operations)
        if not done.succeeded:
            now = await self._member.store.get(self._guard.key)
            if now is None or now.mod_revision != self._guard.mod_revision:
                raise StoreError("this process is not the controller any longer")
            return
        log.info("eject", topic=self._topic, step=next_.step, reason=next_.reason or None)
        await self._member.following.reached(done.revision)
