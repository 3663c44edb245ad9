"""The tables and producer guards of topics that have moved, kept by one worker.

A copy is one topic on one cluster. It is loaded when somebody asks for it, or when a migration is to make it the
serving one, and forgotten when nobody has asked for a while: 24 bytes a run in between. A cluster that is away, a
journal read anew, a copy begun anew change nothing of what is shown: a table is shown once it is complete up to where
its placement begins, and stays.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial

import trio

from kafka_client import ClientError, ClusterClient
from kafka_client.cluster import backoff
from kafka_wire.batches import Batch
from kafka_wire.codec import DecodeError
from metadata_service.models import PlacementEpoch
from metadata_service.operations.records import ENDED, MigrationRecord
from metadata_service.operations.switching import serving_table
from metadata_service.view import ServedTopic, View
from offset_sync.guard import Verdict
from offset_sync.kept import SHIP, Kept
from offset_sync.table import Table
from offset_sync.tables import Following
from offset_sync.varints import Damaged
from proxy.moving.contract import UNKNOWN
from proxy.moving.guarding import Guarding
from runtime import logging

log = logging.get(__name__)

ARRIVES = 3.0  # seconds a request waits for a table that is not here yet
IDLE = 600.0  # seconds after which a copy that nobody asks for is forgotten
SWEEP = 30.0
POLL = 5.0  # seconds between two looks at a journal while nothing moves: a serving copy's tables change no more
FAILURES = (ClientError, Damaged, DecodeError, OSError)

Place = tuple[str, str]
"""(cluster, topic)."""


class Copy:
    """One topic on one cluster, as its journal has it."""

    __slots__ = ("guards", "kept", "partitions", "shown", "topic_id", "used")

    def __init__(self, topic_id: bytes, partitions: int) -> None:
        self.topic_id = topic_id
        self.partitions = partitions
        self.kept: dict[int, Kept] = {}  # empty until it was read for the first time
        self.shown: dict[tuple[int, int], Table] = {}  # by (placement epoch, partition)
        self.guards: dict[int, Guarding] = {}
        self.used = time.monotonic()

    def fits(self, topic_id: bytes, partitions: int) -> bool:
        return self.topic_id == topic_id and self.partitions >= partitions

    def absorb(self) -> None:
        """Take over what the journal tells of producers; their stored form is kept no longer. Raises Damaged."""
        now = int(time.time() * 1000)
        for number, kept in self.kept.items():
            if kept.news:
                guarding = self.guards.get(number)
                if guarding is None:
                    guarding = self.guards[number] = Guarding()
                for producer_id in kept.news:
                    guarding.load(producer_id, kept.producers.pop(producer_id))
                kept.news.clear()
                guarding.settle()
            if (known := self.guards.get(number)) is not None and known.expire(now):
                del self.guards[number]


def shown(kept: Kept | None, placement: PlacementEpoch, partition: int) -> Table | None:
    """The table a placement is served by; None: what is here is not complete up to where it begins.

    Shares the runs of `kept`, which grow no more once the cluster serves. A partition that was added after the move
    has its own records alone.
    """
    made = Table()
    first, at = placement.first.get(partition, 0), placement.first_physical.get(partition, 0)
    if kept is None or kept.state is None:
        if first or at:
            return None
        return serving_table(made, placement, partition)
    if kept.lost or kept.covered < at:
        return None
    made.generation, made.runs, made.log_start = kept.table.generation, kept.table.runs, kept.table.log_start
    return serving_table(made, placement, partition)


class Side:
    """One cluster's copies, and the client they are read with."""

    def __init__(self, client: ClusterClient) -> None:
        self.client = client
        self.following = Following(client, guards=True)
        self.copies: dict[str, Copy] = {}
        self.wanted = trio.Event()
        self.loaded = trio.Event()  # replaced whenever something was
        self.scope = trio.CancelScope()

    def want(self, topic: str, topic_id: bytes, partitions: int) -> Copy:
        copy = self.copies.get(topic)
        if copy is None or not copy.fits(topic_id, partitions):
            if copy is not None:
                self.following.forget(one.stream for one in copy.kept.values())
            copy = self.copies[topic] = Copy(topic_id, partitions)
            self.wanted.set()
        return copy

    def forget(self, topic: str) -> None:
        copy = self.copies.pop(topic)
        self.following.forget(one.stream for one in copy.kept.values())

    async def run(self) -> None:
        """Until `scope` is cancelled."""
        with self.scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(self.following.run, POLL))
                nursery.start_soon(self._keep_guards)
                await self._load()

    async def _load(self) -> None:
        failures = 0
        while True:
            # Some may not be there yet (a migration has just begun), or the cluster is away.
            with trio.move_on_after(backoff(failures) if failures else float("inf")):
                await self.wanted.wait()
            self.wanted = trio.Event()
            missing = {name: copy for name, copy in self.copies.items() if not copy.kept}
            if not missing:
                failures = 0
                continue
            try:
                found = await self.following.follow_all({name: range(one.partitions) for name, one in missing.items()})
            except FAILURES as error:
                found = {}
                log.info("tables cannot be read", cluster=self.client.name, error=str(error))
            for name, copy in missing.items():
                kept = {number: one for (number, _), one in found.get(name, {}).items()}
                if kept and self._of(copy, kept):
                    copy.kept = kept
                    self._take(name, copy)
            self.progress()
            failures = failures + 1 if any(not copy.kept for copy in missing.values()) else 0

    def _of(self, copy: Copy, kept: Mapping[int, Kept]) -> bool:
        """Whether these are of the topic that was meant: one created anew is another."""
        found = kept[0].stream.topic_id
        return not copy.topic_id or found in (copy.topic_id, bytes(16))

    async def _keep_guards(self) -> None:
        """Guards as the journal has them, from each reading on."""
        while True:
            await self.following.changed()
            self.absorb()
            self.progress()

    def absorb(self) -> None:
        for name, copy in self.copies.items():
            self._take(name, copy)

    def _take(self, name: str, copy: Copy) -> None:
        try:
            copy.absorb()
        except Damaged as error:
            log.error("a producer guard cannot be read", cluster=self.client.name, topic=name, error=str(error))

    def progress(self) -> None:
        """Whoever waits for something here looks again."""
        self.loaded.set()
        self.loaded = trio.Event()


class MovedTables:
    """A worker's. Implements `proxy.apis.translation.Tables` and `proxy.moving.contract.Guards`."""

    def __init__(self, client: Callable[[str], ClusterClient | None], view: Callable[[], View]) -> None:
        self._client = client
        self._view = view
        self._sides: dict[str, Side] = {}
        self._nursery: trio.Nursery | None = None
        self._hurried: dict[str, int] = {}  # by cluster: how many wait for a switch

    @property
    def partitions(self) -> int:
        """Whose tables are kept at present."""
        return sum(len(copy.kept) for side in self._sides.values() for copy in side.copies.values())

    # -- tables ---------------------------------------------------------------------------------------------------

    def table(self, topic: ServedTopic, partition: int) -> Table | None:
        """That of the cluster that serves the topic; None: not here yet, and being fetched from now on.

        Where `topic` is what it was before a switch, that of the former cluster, open at its end.
        """
        side = self._side(topic.cluster)
        if side is None:
            return None
        placement = topic.record.timeline[-1]
        copy = side.want(topic.name, topic.physical_id, len(placement.first) or topic.record.partitions)
        key = (topic.record.epoch, partition)
        made = copy.shown.get(key)
        kept = copy.kept.get(partition)
        if made is not None and (kept is None or kept.state is None or made.runs is kept.table.runs):
            copy.used = time.monotonic()
            return made
        if not copy.kept:
            return None
        copy.used = time.monotonic()
        try:
            made = shown(kept, placement, partition)
        except ValueError as error:
            log.error("a table does not fit its placement", topic=topic.name, partition=partition, error=str(error))
            return None
        if made is not None:
            copy.shown = {one: table for one, table in copy.shown.items() if one[0] == key[0]}
            copy.shown[key] = made
        return made

    async def arrived(self, wanted: Iterable[tuple[ServedTopic, Iterable[int]]], seconds: float = ARRIVES) -> None:
        """Wait, at most so many seconds, until the tables of these partitions are here."""
        missing = [(topic, list(partitions)) for topic, partitions in wanted if topic.record.epoch > 0]
        with trio.move_on_after(seconds):
            for topic, partitions in missing:
                while any(self.table(topic, one) is None for one in partitions):
                    side = self._side(topic.cluster)
                    if side is None:
                        await trio.sleep(0.1)
                        continue
                    loaded = side.loaded
                    if side.copies[topic.name].kept:  # read, and behind: its last checkpoint is newer
                        try:
                            await side.following.refresh()
                        except FAILURES:
                            pass
                        with trio.move_on_after(0.1):
                            await loaded.wait()
                    else:
                        await loaded.wait()

    def _side(self, cluster: str) -> Side | None:
        side = self._sides.get(cluster)
        client = self._client(cluster)
        if side is not None and side.client is client:
            return side
        if side is not None:
            side.scope.cancel()
            del self._sides[cluster]
        if client is None or self._nursery is None:
            return None
        side = self._sides[cluster] = Side(client)
        self._nursery.start_soon(side.run)
        if self._hurried.get(cluster):
            side.following.hurry(True)
        return side

    # -- guards ---------------------------------------------------------------------------------------------------

    def judge(self, cluster: str, topic: str, partition: int, batch: Batch) -> Verdict:
        """See `Guards.judge`."""
        side = self._sides.get(cluster)
        if side is None or (copy := side.copies.get(topic)) is None:
            return UNKNOWN
        guarding = copy.guards.get(partition)
        if guarding is None:
            return UNKNOWN
        verdict = guarding.judge(batch)
        if verdict.kind in ("gap", "fenced"):
            self._look(side, topic, partition, guarding)
        return verdict

    def _look(self, side: Side, topic: str, partition: int, guarding: Guarding) -> None:
        """Ask the leader whom it knows: another worker may have sent what came before."""
        served = self._view().topics.get(topic)
        if self._nursery is not None and served is not None and guarding.begin_look():
            self._nursery.start_soon(guarding.look, side.client, served, partition)

    def guarded(self, cluster: str, topic: str, partition: int) -> bool:
        """Whether any producer is known of what was written elsewhere."""
        side = self._sides.get(cluster)
        copy = side.copies.get(topic) if side is not None else None
        return copy is not None and partition in copy.guards

    async def ready(self, migration: MigrationRecord) -> None:
        """See `Guards.ready`."""
        self._hurry(migration.target, 1)
        try:
            while True:
                now = self._view().migrations.get(migration.id, migration)
                side = self._side(now.target)
                if side is None:
                    await trio.sleep(0.1)
                    continue
                loaded = side.loaded
                self._want(side, now)
                if now.ends and _complete(side, now):
                    side.absorb()
                    return
                with trio.move_on_after(0.2):  # the record, too, may change
                    await loaded.wait()
        finally:
            self._hurry(migration.target, -1)

    def _hurry(self, cluster: str, by: int) -> None:
        count = self._hurried[cluster] = self._hurried.get(cluster, 0) + by
        if (side := self._sides.get(cluster)) is not None:
            side.following.hurry(count > 0)

    @staticmethod
    def _want(side: Side, migration: MigrationRecord) -> None:
        for name, one in migration.topics.items():
            if one.target_id:
                side.want(name, bytes.fromhex(one.target_id), one.partitions).used = time.monotonic()

    # -- life -----------------------------------------------------------------------------------------------------

    async def run(
        self,
        changed: Callable[[View, float], Awaitable[None]],
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Until cancelled. `changed(view, seconds)` waits for another view, at most so long."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            swept = time.monotonic()
            while True:
                view = self._view()
                for migration in view.migrations.values():
                    if migration.step not in ENDED and (side := self._side(migration.target)) is not None:
                        self._want(side, migration)
                if time.monotonic() - swept > SWEEP:
                    swept = time.monotonic()
                    self._sweep(swept)
                await changed(view, SWEEP)
                for cluster, side in self._sides.items():
                    if self._hurried.get(cluster):
                        side.progress()
                if not any(self._hurried.values()):
                    await trio.sleep(0.02)

    def _sweep(self, now: float) -> None:
        for cluster, side in list(self._sides.items()):
            for name, copy in list(side.copies.items()):
                if now - copy.used > IDLE:
                    side.forget(name)
            if self._client(cluster) is not side.client:
                side.scope.cancel()
                del self._sides[cluster]


def _complete(side: Side, migration: MigrationRecord) -> bool:
    """Whether everything up to the settled ends is in the tables that are here."""
    for name, one in migration.topics.items():
        copy = side.copies.get(name)
        if copy is None or len(copy.kept) < one.partitions:
            return False
        for number in range(one.partitions):
            kept = copy.kept[number]
            if kept.state is None or kept.lost:
                return False
            if kept.covered < migration.opened.get(name, {}).get(number, 0):
                return False
            end = migration.ends.get(name, {}).get(number, 1 << 62)
            if not migration.opened and (kept.state.source != migration.source or kept.state.position < end):
                return False
    return True


__all__ = ["SHIP", "MovedTables", "shown"]
