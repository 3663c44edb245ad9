"""Topic records made, changed and forgotten: what adoption decides, carried out. Used by workers and the controller."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import trio

from kafka_client import ClusterClient
from metadata_service import adoption, mirroring
from metadata_service.asking import leaders_ready, topics_by_name
from metadata_service.clients import Clients
from metadata_service.discovery import Discovery
from metadata_service.failures import StubRefused, Undecided
from metadata_service.following import Following
from metadata_service.models import TOMBSTONES, StubRecord, TopicRecord, stub_key, topic_key
from metadata_service.records import TRIES, Contended, decode, encode, settle
from metadata_service.store.clock import Backoff
from metadata_service.store.contract import Condition, Delete, Operation, Put, Store, StoreError, Unchanged
from metadata_service.stubs import closed_among, delete_stub, make_stub
from metadata_service.view import PhysicalTopic, View
from runtime import logging

log = logging.get(__name__)

BATCH = 24  # topics of one commit: each takes a condition or two and an operation
TOMBSTONE_TTL = 60  # seconds a slow broker may go on naming a deleted topic without its being adopted again
SHOWN = 10.0  # seconds to wait for a cluster's metadata to show a topic
AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class _Steps:
    """What changes a topic's record. `known`: the revision of a record that is as it should be, and not in the view."""

    conditions: Sequence[Condition] = ()
    operations: Sequence[Operation] = ()
    known: int = 0


class Topics:
    """Changes topic records. `guards` are conditions of every commit (a controller's: that it still is the one)."""

    def __init__(
        self,
        store: Store,
        following: Following,
        clients: Clients,
        discovery: Discovery,
        guards: tuple[Condition, ...] = (),
    ) -> None:
        self._store = store
        self._following = following
        self._clients = clients
        self._discovery = discovery
        self._guards = guards

    # -- adoption -------------------------------------------------------------------------------------------------

    async def adopt(self, names: Iterable[str], *, wait: bool = True) -> set[str]:
        """Look names up on all reachable clusters and decide their records. Returns those that are served now.

        With `wait`, returns when the view shows them with their partitions.
        Raises Undecided (no cluster answers) and StoreError.
        """
        found, answered = await self._look(names)
        await self._recognise_stubs(found, answered)
        before = {name: topic.id for name, topic in self._following.view.topics.items() if name in found}
        revision = await self.judge(found, set(names), answered, adopted=True)
        if revision:
            await self._following.reached(revision)
        view = self._following.view
        for name, former in before.items():
            if name in view.topics and view.topics[name].id != former:
                await self.drop_stubs(name)  # they stood for another topic; positions committed there are void
        here = {name for name in names if name in view.topics and view.topics[name].cluster in found.get(name, {})}
        if wait and here:
            await self._shown(here)
        return here

    async def _recognise_stubs(self, found: dict[str, dict[str, PhysicalTopic]], answered: Collection[str]) -> None:
        """Stubs of a store that was lost are known by being closed: they are recorded again, and are nobody's topic.

        A name that is closed wherever it was found is left out of `found` as long as a cluster is silent that may have
        the topic itself; once all have answered it is a topic like any other. Raises Undecided, StoreError.
        """
        view = self._following.view
        unknown = {name for name in found if name not in view.topics}
        silent = {one for one, cluster in view.clusters.items() if cluster.record.state == "active"} - set(answered)
        ours = {name: copies(view, name) for name in unknown}
        doubtful = {name for name in unknown if silent or len(found[name].keys() - ours[name]) > 1}
        closed: dict[str, set[str]] = {}
        for cluster in {one for name in doubtful for one in found[name].keys() - ours[name]}:
            client = self._clients.get(cluster)
            if client is not None:
                here = {name for name in doubtful if cluster in found[name]}
                for name in await closed_among(client, here):
                    closed.setdefault(name, set()).add(cluster)
        revision = 0
        for name, clusters in closed.items():
            if clusters >= found[name].keys() - ours[name]:
                if silent:
                    del found[name]
                continue
            for cluster in clusters - ours[name]:
                topic = found[name][cluster]
                stub = StubRecord(
                    topic=name, cluster=cluster, topic_id=topic.id.hex(), partitions=len(topic.partitions)
                )
                log.info("a stub was found that the store does not know", topic=name, cluster=cluster)
                key = stub_key(cluster, name)
                done = await settle(self._store, key, StubRecord, _unless_known(stub), conditions=self._guards)
                revision = max(revision, done.revision)
        if revision:
            await self._following.reached(revision)

    async def judge(
        self,
        found: Mapping[str, Mapping[str, PhysicalTopic]],
        names: Collection[str],
        answered: Collection[str],
        *,
        adopted: bool,
    ) -> int:
        """Decide and write the records of `names`, found so on the clusters that `answered`. Returns the revision."""
        revision = 0
        ordered = sorted(names)
        for start in range(0, len(ordered), BATCH):
            part = ordered[start : start + BATCH]
            revision = max(revision, await self._judge_some(part, found, answered, adopted))
        return revision

    async def _judge_some(
        self,
        names: list[str],
        found: Mapping[str, Mapping[str, PhysicalTopic]],
        answered: Collection[str],
        adopted: bool,
    ) -> int:
        backoff = Backoff(0.005, 0.2)
        for attempt in range(TRIES):
            view = self._following.view
            conditions: list[Condition] = [*self._guards]
            operations: list[Operation] = []
            ahead = 0
            for name in names:
                fresh = not attempt and name not in view.topics
                steps = await self._steps(name, found.get(name, {}), answered, adopted, view, fresh)
                conditions += steps.conditions
                operations += steps.operations
                ahead = max(ahead, steps.known)
            if not operations:
                return ahead
            done = await self._store.commit(conditions, operations)
            if done.succeeded:
                return done.revision
            if len(names) > 1 and attempt:
                # Somebody is at one of them: one by one, so that the others do not wait for it.
                return max([await self._judge_some([name], found, answered, adopted) for name in names])
            await backoff.pause()
        raise Contended(f"the record of topic {names[0]!r} is being changed by others, or may not be changed now")

    async def _steps(
        self,
        name: str,
        found: Mapping[str, PhysicalTopic],
        answered: Collection[str],
        adopted: bool,
        view: View,
        fresh: bool,
    ) -> _Steps:
        """What changes one topic's record as decided. `fresh`: taken for unknown, which the commit will confirm."""
        key = topic_key(name)
        stored = None if fresh else await self._store.get(key)
        current = None if stored is None else decode(TopicRecord, stored.value)
        if view.placement is None:
            raise Undecided("-", "no placement is known yet")
        indexes = {cluster: one.record.index for cluster, one in view.clusters.items()}
        decided = adoption.decide(
            current,
            found,
            copies(view, name),
            view.placement,
            view.placement_version,
            indexes,
            now=time.time(),
            adopted=adopted,
        )
        if decided is not None and current is not None and decided.cluster == current.cluster:
            decided = adoption.kept_conflict(current, decided, answered)
        if decided == current:
            # Another has decided it just now: a worker that was cut off from the store until now must see that first.
            return _Steps(known=stored.mod_revision if stored is not None and name not in view.topics else 0)
        seen = Unchanged(key, stored.mod_revision if stored is not None else 0)
        if decided is None:
            return _Steps([seen], [Delete(key)])
        if decided.conflict and (current is None or decided.conflict != current.conflict):
            log.warning("a name on several clusters", topic=name, served=decided.cluster, hidden=decided.conflict)
        conditions: list[Condition] = [seen]
        if current is None or decided.id != current.id:
            tombstone = TOMBSTONES + decided.timeline[-1].topic_id
            if not fresh and await self._store.get(tombstone) is not None:
                return _Steps()  # just deleted; the broker that was asked has not heard of it yet
            conditions.append(Unchanged(tombstone, 0))
        return _Steps(conditions, [Put(key, encode(decided))])

    async def _look(self, names: Iterable[str]) -> tuple[dict[str, dict[str, PhysicalTopic]], set[str]]:
        """name -> cluster -> topic, and the clusters that answered. Raises Undecided where none does."""
        wanted = set(names)
        found: dict[str, dict[str, PhysicalTopic]] = {}
        answered: set[str] = set()
        failed: list[Undecided] = []

        async def ask(client: ClusterClient) -> None:
            try:
                topics = await topics_by_name(client, wanted)
            except Undecided as error:
                failed.append(error)
                return
            answered.add(client.name)
            for name, topic in topics.items():
                if self._following.view.is_ejected(client.name, topic):
                    continue
                found.setdefault(name, {})[client.name] = topic

        async with trio.open_nursery() as nursery:
            for name, cluster in self._following.view.clusters.items():
                client = self._clients.get(name)
                if client is not None and cluster.snapshot.reachable:
                    nursery.start_soon(ask, client)
        if failed and not answered:
            raise failed[0]
        return found, answered

    async def _shown(self, names: Collection[str], partitions: Mapping[str, int] | None = None) -> None:
        """Wait until the view shows these served topics with their partitions (Undecided: not within SHOWN)."""
        view = self._following.view
        for cluster in {view.topics[name].cluster for name in names if name in view.topics}:
            self._discovery.refresh(cluster)
        counts = partitions or {}

        def complete(view: View) -> bool:
            for name in names:
                topic = view.topics.get(name)
                physical = view.physical(topic) if topic is not None else None
                if topic is not None and (physical is None or len(physical.partitions) < counts.get(name, 1)):
                    return False
            return True

        with trio.move_on_after(SHOWN):
            while not complete(self._following.view):
                for cluster in {view.topics[name].cluster for name in names if name in view.topics}:
                    self._discovery.refresh(cluster)  # the broker asked last may have been behind
                known = self._following.view
                await self._following.changed_or(known, 0.25)
            return
        raise Undecided("-", f"the metadata of {len(names)} new topics is not complete yet")

    # -- changes made through the endpoint ------------------------------------------------------------------------

    async def created(self, cluster: str, names: set[str]) -> None:
        """Record topics that were just created on `cluster`, and wait until they are served with all partitions."""
        client = self._clients.active(cluster)
        backoff = Backoff(0.02, 0.25)
        found: dict[str, PhysicalTopic] = {}
        with trio.move_on_after(SHOWN):
            while names - found.keys():
                found |= await topics_by_name(client, names - found.keys())
                if names - found.keys():
                    await backoff.pause()
        if missing := names - found.keys():
            raise Undecided(cluster, f"does not know the new topic {min(missing)!r} yet")
        await leaders_ready(client, found.values())
        placed = {name: {cluster: topic} for name, topic in found.items()}
        revision = await self.judge(placed, names, {cluster}, adopted=False)
        if revision:
            await self._following.reached(revision)
        await self._shown(names, {name: len(topic.partitions) for name, topic in found.items()})

    async def deleted(self, names: set[str]) -> None:
        """Forget topics that are gone, with their stubs, and wait until the view does not have them."""
        view = self._following.view
        known = {name: view.topics[name].record for name in names if name in view.topics}
        revision = 0
        for part in _parts(sorted(known), BATCH):
            revision = max(revision, await self._forget([known[name] for name in part]))
        if revision:
            await self._following.reached(revision)
        for name in names:
            await self.drop_stubs(name)
        for cluster in {one.cluster for one in known.values()}:
            self._discovery.refresh(cluster)

    async def _forget(self, records: list[TopicRecord]) -> int:
        lease = await self._store.grant(TOMBSTONE_TTL)
        revision = 0
        for record in records:
            key = topic_key(record.name)
            backoff = Backoff(0.005, 0.2)
            while True:
                stored = await self._store.get(key)
                now = None if stored is None else decode(TopicRecord, stored.value)
                if stored is None or now is None or now.id != record.id:
                    break  # forgotten by another, or there is a new topic of this name already
                left, seen = await self._left_behind(now)
                done = await self._store.commit(
                    (*self._guards, Unchanged(key, stored.mod_revision), *seen),
                    (Delete(key), *left, *(Put(TOMBSTONES + one.topic_id, b"{}", lease.id) for one in now.timeline)),
                )
                if done.succeeded:
                    revision = done.revision
                    break
                await self._guarded()
                await backoff.pause()
        return revision

    async def _left_behind(self, record: TopicRecord) -> tuple[list[Operation], list[Condition]]:
        """Where the topic was served before: what is there is its copy, and is nobody else's once it is gone."""
        operations: list[Operation] = []
        conditions: list[Condition] = []
        for cluster in sorted({one.cluster for one in record.timeline} - {record.cluster}):
            key = stub_key(cluster, record.name)
            found = await self._store.get(key)
            stub = None if found is None else decode(StubRecord, found.value)
            ours = {one.topic_id for one in record.timeline if one.cluster == cluster}
            if found is None or stub is None or not stub.borrowed or stub.topic_id not in ours:
                continue
            operations.append(Put(key, encode(msgspec.structs.replace(stub, borrowed=False))))
            conditions.append(Unchanged(key, found.mod_revision))
        return operations, conditions

    async def _guarded(self) -> None:
        """Raises Contended where one of our guards does not hold any longer."""
        if self._guards and not (await self._store.commit(self._guards, ())).succeeded:
            raise Contended("not the active controller any longer")

    async def drop_stubs(self, name: str) -> None:
        """Delete the stubs of a topic that is gone. What cannot be done now is left to the controller."""
        view = self._following.view
        for (cluster, topic), record in [*view.stubs.items()]:
            client = self._clients.get(cluster)
            if topic != name or client is None:
                continue
            try:
                await delete_stub(client, record)
            except Undecided as error:
                log.warning("a stub could not be deleted yet", error=str(error))
                continue
            done = await settle(
                self._store, stub_key(cluster, topic), type(record), lambda now: None, conditions=self._guards
            )
            if done.changed:
                await self._following.reached(done.revision)

    # -- partitions -----------------------------------------------------------------------------------------------

    async def expand_stubs(self, counts: Mapping[str, int]) -> None:
        """Expand the stubs of these topics to these counts. Raises StubRefused, Undecided, StoreError."""
        view = self._following.view
        wanted = [
            (cluster, topic, record)
            for (cluster, topic), record in view.stubs.items()
            if topic in counts and topic in view.topics
        ]
        failed: list[StubRefused | Undecided | StoreError] = []
        slots = trio.CapacityLimiter(AT_ONCE)

        async def expand(cluster: str, topic: str) -> None:
            try:
                client = self._clients.active(cluster)
                async with slots:
                    stub = view.stubs.get((cluster, topic))
                    revision = await make_stub(self._store, client, stub, view.topics[topic].record, counts[topic])
                    await self._following.reached(revision)
            except (StubRefused, Undecided, StoreError) as error:
                failed.append(error)

        async with trio.open_nursery() as nursery:
            for cluster, topic, record in wanted:
                if record.partitions < counts[topic] or not record.topic_id:
                    nursery.start_soon(expand, cluster, topic)
        if failed:
            raise failed[0]

    async def expanded(self, names: set[str], *, wait: bool = True) -> None:
        """Record partition counts as the topics' clusters now have them, stubs first."""
        counts: dict[str, int] = {}
        view = self._following.view
        for cluster in {view.topics[name].cluster for name in names if name in view.topics}:
            client = self._clients.get(cluster)
            if client is None:
                continue
            here = {name for name in names if name in view.topics and view.topics[name].cluster == cluster}
            grown: list[PhysicalTopic] = []
            for name, topic in (await topics_by_name(client, here)).items():
                record = view.topics[name].record
                if not adoption.recreated(record, topic) and len(topic.partitions) > record.partitions:
                    counts[name] = len(topic.partitions)
                    grown.append(topic)
            await leaders_ready(client, grown)
        try:
            await self.expand_stubs(counts)
        finally:
            # Clients see the partitions in any case; a stub that lags is expanded by the controller.
            for name, count in counts.items():
                await self._raise_count(name, count)
        if wait and counts:
            await self._shown(counts.keys(), counts)

    async def _raise_count(self, name: str, count: int) -> None:
        def raised(now: TopicRecord | None) -> TopicRecord | None:
            if now is None or now.partitions >= count:
                return now
            return msgspec.structs.replace(now, partitions=count)

        done = await settle(self._store, topic_key(name), TopicRecord, raised, conditions=self._guards)
        if done.revision:
            await self._following.reached(done.revision)


def copies(view: View, name: str) -> set[str]:
    """Clusters whose topic of this name is known to be ours: stubs (a borrowed topic is not), mirrors' targets."""
    stubs = {
        cluster
        for cluster in view.clusters
        if (stub := view.stubs.get((cluster, name))) is not None and not stub.borrowed
    }
    served = view.topics.get(name)
    return stubs | mirroring.copies(view.mirrors_of(name), served.cluster if served is not None else None)


def _unless_known(stub: StubRecord) -> Callable[[StubRecord | None], StubRecord]:
    return lambda now: now or stub


def _parts(items: list[str], size: int) -> Iterable[list[str]]:
    return (items[start : start + size] for start in range(0, len(items), size))
