"""Who reads and writes each topic, with a lag for each group: bounded work in rounds, kept under `inventory/`.

Groups come from each cluster's own list, positions from OffsetFetch on their home and where they still count, ends from
ListOffsets (the high watermark) on the serving cluster, writers from DescribeProducers on the leaders, which know
idempotent and transactional producers only. Lag is counted in offsets. A topic that has moved is left to those who can
translate: its lag is -1 here.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import msgspec
import trio

from kafka_client import ClientError, ClusterClient
from kafka_wire.codec import Message
from metadata_service.asking import FoundGroup, Positions, committed, list_groups, turn
from metadata_service.carrying import counting, missing
from metadata_service.failures import Undecided
from metadata_service.member import Member
from metadata_service.models import INVENTORY, GroupUse, InventoryRecord, is_internal
from metadata_service.records import Contended, encode, read_all
from metadata_service.store.contract import MAX_OPERATIONS, Delete, Operation, Put, Unchanged
from metadata_service.view import PhysicalTopic, View

LIST_OFFSETS, DESCRIBE_PRODUCERS = 2, 61
GROUPS_AT_ONCE = 200  # a round
TOPICS_AT_ONCE = 200  # a round, for their producers
WRITES_AT_ONCE = 500  # records a round
TIMEOUT = 5.0
TAGGED = 1 << 40  # the tag of the cluster with index 0


@dataclass
class _Reads:
    """One group's committed positions."""

    group: FoundGroup
    positions: Positions = field(default_factory=dict)


@dataclass
class Writers:
    """Producer ids with state on a topic's leaders, and the newest of their timestamps (Unix seconds).

    An idempotent producer that came through a proxy has a tagged id, at least TAGGED; one without that is neither
    tagged nor transactional has its id from a broker itself: it writes past the federation.
    """

    ids: set[int] = field(default_factory=set)
    last: float = 0.0
    direct: set[int] = field(default_factory=set)
    last_direct: float = 0.0

    def add(self, state: Message) -> None:
        """One entry of a DescribeProducers response."""
        at = state["last_timestamp"] / 1000
        self.ids.add(state["producer_id"])
        self.last = max(self.last, at)
        transactional = state["coordinator_epoch"] >= 0 or state["current_txn_start_offset"] >= 0
        if state["producer_id"] < TAGGED and not transactional:
            self.direct.add(state["producer_id"])
            self.last_direct = max(self.last_direct, at)


class Inventory:
    """`guard` holds as long as this process is the active controller."""

    def __init__(self, member: Member, guard: Unchanged) -> None:
        self._member = member
        self._guard = guard
        self._reads: dict[str, _Reads] = {}
        self._producers: dict[str, Writers] = {}
        self._next_group = ""
        self._next_topic = ""
        self._written: dict[str, InventoryRecord] | None = None

    async def round(self) -> None:
        """A part of the groups and of the topics, going on where the round before ended."""
        view = self._member.view
        if self._written is None:
            self._written = await read_all(self._member.store, INVENTORY, InventoryRecord)
        await self._read_groups(view)
        ends = await self._ends(view)
        await self._read_producers(view)
        await self._write(view, ends)

    # -- readers --------------------------------------------------------------------------------------------------

    async def _read_groups(self, view: View) -> None:
        listed: dict[str, tuple[str, FoundGroup]] = {}
        for client in self._reachable(view):
            try:
                for name, group in (await list_groups(client)).items():
                    home = view.groups.get(name)
                    if home is None or home.cluster == client.name:
                        listed[name] = (client.name, group)
            except Undecided:
                continue
        away = {name for name, one in view.clusters.items() if not one.snapshot.reachable}
        for name in [name for name in self._reads if name not in listed]:
            home = view.groups.get(name)
            if home is None or home.cluster not in away:
                del self._reads[name]
        part = turn(sorted(listed), self._next_group, GROUPS_AT_ONCE)
        self._next_group = part[-1] if part else ""
        slots = trio.CapacityLimiter(8)

        async def read(name: str) -> None:
            cluster, group = listed[name]
            client = self._member.clients.get(cluster)
            if client is None or group.kind == "share":
                return  # share groups have no committed offsets of this kind
            async with slots:
                try:
                    positions = await self._positions(view, client, name)
                except Undecided:
                    return
            self._reads[name] = _Reads(group, positions)

        async with trio.open_nursery() as nursery:
            for name in part:
                nursery.start_soon(read, name)

    async def _positions(self, view: View, home: ClusterClient, group: str) -> Positions:
        """As a client would be told them. Raises Undecided."""
        positions = await committed(home, group, view.clusters[home.name].snapshot.versions, stable=False)
        record = view.groups.get(group)
        for cluster in counting(view, record) if record is not None else ():
            client = self._member.clients.get(cluster)
            if client is not None and view.clusters[cluster].snapshot.reachable:
                there = await committed(client, group, view.clusters[cluster].snapshot.versions, stable=False)
                positions |= missing(view, cluster, positions, there)
        return positions

    async def _ends(self, view: View) -> dict[tuple[str, int], int]:
        """The high watermarks of the partitions that somebody reads."""
        wanted: dict[tuple[str, int], list[tuple[str, int]]] = {}
        for name, index in {key for reads in self._reads.values() for key in reads.positions}:
            topic = view.topics.get(name)
            physical = view.physical(topic) if topic is not None and not topic.special else None
            if topic is None or physical is None:
                continue
            leader = next((one.leader for one in physical.partitions if one.index == index), -1)
            if leader >= 0:
                wanted.setdefault((topic.cluster, leader), []).append((name, index))
        ends: dict[tuple[str, int], int] = {}

        async def ask(cluster: str, broker: int, partitions: list[tuple[str, int]]) -> None:
            client = self._member.clients.get(cluster)
            if client is not None and view.clusters[cluster].snapshot.reachable:
                for start in range(0, len(partitions), 1000):
                    ends.update(await _high_watermarks(client, broker, partitions[start : start + 1000]))

        async with trio.open_nursery() as nursery:
            for (cluster, broker), partitions in wanted.items():
                nursery.start_soon(ask, cluster, broker, partitions)
        return ends

    # -- writers --------------------------------------------------------------------------------------------------

    async def _read_producers(self, view: View) -> None:
        names = sorted(name for name in view.topics if not is_internal(name))
        part = turn(names, self._next_topic, TOPICS_AT_ONCE)
        self._next_topic = part[-1] if part else ""
        for name in [name for name in self._producers if name not in view.topics]:
            del self._producers[name]
        asked: dict[tuple[str, int], dict[str, list[int]]] = {}
        for name in part:
            topic = view.topics[name]
            physical = view.physical(topic)
            if physical is not None and view.clusters[topic.cluster].snapshot.reachable:
                for leader, index in _led(physical):
                    asked.setdefault((topic.cluster, leader), {}).setdefault(name, []).append(index)
        seen: dict[str, Writers] = {}
        for (cluster, broker), topics in asked.items():
            client = self._member.clients.get(cluster)
            if client is not None:
                await _producers(client, broker, topics, seen)
        self._producers.update(seen)

    # -- what is kept ---------------------------------------------------------------------------------------------

    def records(self, view: View, ends: Mapping[tuple[str, int], int]) -> dict[str, InventoryRecord]:
        """By topic, as of now."""
        uses: dict[str, dict[str, GroupUse]] = {}
        for group, reads in self._reads.items():
            for topic, positions in _by_topic(reads.positions):
                if topic in view.topics:
                    uses.setdefault(topic, {})[group] = GroupUse(
                        lag=lag(topic, positions, ends),
                        partitions=len(positions),
                        state=reads.group.state,
                        kind=reads.group.kind,
                    )
        names = {*uses, *(name for name, one in self._producers.items() if one.ids and name in view.topics)}
        nobody = Writers()
        return {
            name: InventoryRecord(
                at=time.time(),
                groups=dict(sorted(uses.get(name, {}).items())),
                producers=len((writers := self._producers.get(name, nobody)).ids),
                last_write=writers.last,
                direct=len(writers.direct),
                last_direct=writers.last_direct,
            )
            for name in sorted(names)
        }

    async def _write(self, view: View, ends: Mapping[tuple[str, int], int]) -> None:
        assert self._written is not None
        wanted = self.records(view, ends)
        changed = [name for name, one in wanted.items() if not _same(one, self._written.get(name))]
        gone = [name for name in self._written if name not in wanted]
        steps: list[tuple[str, Operation]] = [(name, Put(INVENTORY + name, encode(wanted[name]))) for name in changed]
        steps += [(name, Delete(INVENTORY + name)) for name in gone]
        for start in range(0, min(len(steps), WRITES_AT_ONCE), MAX_OPERATIONS):
            part = steps[start : start + MAX_OPERATIONS]
            done = await self._member.store.commit((self._guard,), [operation for _, operation in part])
            if not done.succeeded:
                raise Contended("not the active controller any longer")
            for name, _ in part:
                if name in wanted:
                    self._written[name] = wanted[name]
                else:
                    self._written.pop(name, None)

    def _reachable(self, view: View) -> list[ClusterClient]:
        clients = [self._member.clients.get(name) for name, one in view.clusters.items() if one.snapshot.reachable]
        return [one for one in clients if one is not None]


def _same(one: InventoryRecord, other: InventoryRecord | None) -> bool:
    return other is not None and msgspec.structs.replace(one, at=other.at) == other


def _led(topic: PhysicalTopic) -> Iterator[tuple[int, int]]:
    return ((one.leader, one.index) for one in topic.partitions if one.leader >= 0)


def _by_topic(positions: Positions) -> Iterable[tuple[str, dict[int, int]]]:
    for topic, some in itertools.groupby(sorted(positions), key=lambda one: one[0]):
        yield topic, {index: positions[topic, index].offset for _, index in some}


def lag(topic: str, positions: Mapping[int, int], ends: Mapping[tuple[str, int], int]) -> int:
    """Offsets between a group's positions and the ends; -1 where an end is not known."""
    if any((topic, index) not in ends for index in positions):
        return -1
    return sum(max(0, ends[topic, index] - offset) for index, offset in positions.items())


async def _high_watermarks(
    client: ClusterClient, broker: int, partitions: Iterable[tuple[str, int]]
) -> dict[tuple[str, int], int]:
    topics = [
        {
            "name": name,
            "partitions": [{"partition_index": one, "current_leader_epoch": -1, "timestamp": -1} for _, one in some],
        }
        for name, some in itertools.groupby(sorted(partitions), key=lambda one: one[0])
    ]
    message: Message = {"replica_id": -1, "isolation_level": 0, "topics": topics, "timeout_ms": int(TIMEOUT * 1000)}
    try:
        answer = await client.call(LIST_OFFSETS, message, broker, timeout=TIMEOUT, retry=True)
    except ClientError:
        return {}
    return {
        (topic["name"], one["partition_index"]): one["offset"]
        for topic in answer["topics"]
        for one in topic["partitions"]
        if not one["error_code"]
    }


async def _producers(
    client: ClusterClient, broker: int, topics: Mapping[str, list[int]], seen: dict[str, Writers]
) -> None:
    """Adds what one broker knows to `seen`, by topic."""
    message = {"topics": [{"name": name, "partition_indexes": indexes} for name, indexes in topics.items()]}
    try:
        answer = await client.call(DESCRIBE_PRODUCERS, message, broker, timeout=TIMEOUT, retry=True)
    except ClientError:
        return
    for topic in answer["topics"]:
        writers = seen.setdefault(topic["name"], Writers())
        for one in topic["partitions"]:
            for producer in one["active_producers"]:
                writers.add(producer)
