"""The end of a move's mirror: copy to exactly where the source ends, write everything down, and stop for good.

This lies inside the pause of the clients, so nothing here waits for a clock: whoever brings something on (an
acknowledgement, an answer of the source, a stored journal batch) has the unit looked at.

Once a unit has finished, its session appends nothing to the target any more, and no new one begins, which would leave
control records there: not before the mirror is told to go on. Who takes the unit over all the same, because its
worker has died, leaves such records, perhaps behind the switch. They take offsets, as those of transactions do, and no
batch can follow them: what is below the ends is there, and the fence refuses what is older.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import trio

from kafka_client import ClientError
from kafka_client.topics import LATEST, LIST_OFFSETS, offsets
from offset_sync.varints import Damaged
from replicator.states import STOPPED

if TYPE_CHECKING:
    from replicator.session import Session


class End:
    """Where a mirror ends: `ends` are the source's physical offsets, of all partitions. `revision` is that of the
    mirror's record which says so; `told` is called with the number of each unit that has finished."""

    __slots__ = ("ends", "finished", "left", "revision", "told")

    def __init__(self, ends: Mapping[int, int], revision: int, told: Callable[[int], None]) -> None:
        self.ends = ends
        self.revision = revision
        self.told = told
        self.finished: set[int] = set()  # units
        self.left = trio.Event()  # set when it holds no longer: the mirror goes on, or ends elsewhere


class Ending:
    """A session on its way to an end. `look` whenever something has happened; it costs little."""

    def __init__(self, session: Session, end: End) -> None:
        self._session = session
        self._end = end
        self._asked = self._known = self._storing = False
        self.done = False
        unit = session.assignment.number
        size = session.unit_size
        self._mine = {number: at for number, at in end.ends.items() if number // size == unit}
        for number, lane in session.lanes.items():
            lane.stop_at = self._mine.get(number)

    def look(self) -> None:
        session, unit = self._session, self._session.unit
        if self.done or session.ending is not self or session.over or unit is None or session.journal is None:
            return
        if not self._storing:
            if not all(self._reached(number, at) for number, at in self._mine.items()):
                return
            if not self._asked:
                self._asked = True
                session.link.soon(self._ask)
            if not self._known:
                return
            self._storing = True
            for number in self._mine:
                partition = session.lanes[number].partition
                try:
                    session.upstreams[number].inherit(partition)
                except Damaged as error:
                    session.fail(f"the source's guard: {error}")
                    return
                unit.checkpoint(partition)
            session.journal.offer()
        if unit.idle:
            self.done = True
            session.rest()
            number = session.assignment.number
            self._end.finished.add(number)
            self._end.told(number)

    async def _ask(self) -> None:
        """Where the target's logs end: the last checkpoint accounts for everything below. Somebody else's records may
        lie there, and whoever reads the table waits until it covers the end."""
        session = self._session
        client, topic = session.link.target, session.assignment.topic
        by_leader: dict[int, list[int]] = {}
        for number in self._mine:
            by_leader.setdefault(session.leaders[number], []).append(number)
        found: dict[int, int] = {}

        async def ask(leader: int, numbers: list[int]) -> None:
            asked = [{"partition_index": number, "timestamp": LATEST} for number in numbers]
            message = {"replica_id": -1, "isolation_level": 0, "topics": [{"name": topic, "partitions": asked}]}
            try:
                answer = await client.call(LIST_OFFSETS, {**message, "timeout_ms": 5000}, broker=leader)
                for one in answer["topics"][0]["partitions"]:
                    if not one["error_code"]:
                        found[one["partition_index"]] = one["offset"]
            except ClientError:
                pass

        async with trio.open_nursery() as nursery:
            for leader, numbers in by_leader.items():
                nursery.start_soon(ask, leader, numbers)
        if missing := [number for number in self._mine if number not in found]:
            try:
                found |= await offsets(client, topic, missing, LATEST)  # leaders have moved
            except ClientError as error:
                session.fail(f"where the target ends: {error}")
                return
        if session.ending is not self:
            return  # it goes on, or ends elsewhere, since
        for number, end in found.items():
            session.lanes[number].partition.see(end)
        self._known = True
        self.look()

    def _reached(self, number: int, at: int) -> bool:
        lane = self._session.lanes.get(number)
        if lane is None or lane.dead or lane.status.condition in STOPPED:
            return False
        return lane.partition.idle and lane.partition.fetch_position == at

    def leave(self) -> None:
        """The mirror goes on."""
        for lane in self._session.lanes.values():
            lane.stop_at = None
