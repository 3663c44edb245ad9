"""The decisions a worker makes for its clients: each one compare-and-swap, agreed among all processes.

Every method waits, bounded, until this process's view shows the result. Besides StoreError (the store is away:
nothing new is decided) a decision can fail with the exceptions of metadata_service.failures.
"""

from __future__ import annotations

import json
import secrets
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Generic, TypeVar

import msgspec
import trio

from kafka_client import ClusterClient
from metadata_service import homes
from metadata_service.asking import (
    FoundGroup,
    FoundTransaction,
    Rounds,
    list_groups,
    list_transactions,
    names_by_id,
)
from metadata_service.clients import Clients
from metadata_service.discovery import Discovery
from metadata_service.failures import StubRefused, Undecided, ViewBehind
from metadata_service.following import Following
from metadata_service.models import (
    GROUP_HOMES,
    HISTORY,
    TRANSACTION_HOMES,
    ChangeRecord,
    HomeRecord,
    MirrorRecord,
    is_internal,
    mirror_key,
)
from metadata_service.operations.records import BEFORE_SWITCH, ENDED, MigrationRecord, migration_key
from metadata_service.placement import place_topic
from metadata_service.records import encode, settle
from metadata_service.store.contract import Put, Store, StoreError
from metadata_service.stubs import make_stub, serves
from metadata_service.topics import Topics
from metadata_service.view import View
from runtime.settings import Placement

RECENT = 1.0  # seconds an unknown name, or a home that is not recorded, is answered from memory
RECENT_MAX = 10_000
LOOK_MAX = 2_000  # names of one round; the others are asked for again by their clients
STUBS_AT_ONCE = 8
MOVES_END = 5.0  # seconds the deletion of a topic waits for moves of it to end

Listed = TypeVar("Listed")
Known = TypeVar("Known")


Recorded = Callable[[str], Awaitable[bool]]


def _removed(now: MirrorRecord | None) -> MirrorRecord | None:
    return now and msgspec.structs.replace(now, state="removing", delete_copy=True)


async def _always(home: str) -> bool:
    return True


class _Recent(Generic[Known]):
    """What was found out a moment ago; the oldest is forgotten first."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str | bytes, tuple[float, Known]] = OrderedDict()

    def get(self, name: str | bytes) -> Known | None:
        until, known = self._kept.get(name, (0.0, None))
        return known if until > trio.current_time() else None

    def put(self, name: str | bytes, known: Known) -> None:
        self._kept.pop(name, None)
        self._kept[name] = (trio.current_time() + RECENT, known)
        while len(self._kept) > RECENT_MAX:
            self._kept.popitem(last=False)

    def drop(self, names: Iterable[str | bytes]) -> None:
        for one in names:
            self._kept.pop(one, None)


class _Misses(_Recent[bool]):
    """Names looked up in vain."""

    def fresh(self, name: str | bytes) -> bool:
        return bool(self.get(name))

    def add(self, names: Iterable[str | bytes]) -> None:
        for one in names:
            self.put(one, True)


class WorkerFederation:
    """`proxy.apis.contract.Federation` for one process."""

    def __init__(
        self,
        store: Store,
        following: Following,
        clients: Clients,
        discovery: Discovery,
        *,
        auto_create_topics: bool = False,
    ) -> None:
        self.auto_create_topics = auto_create_topics  # whether topics that clients merely mention are created
        self._store = store
        self._following = following
        self._clients = clients
        self._discovery = discovery
        self._topics = Topics(store, following, clients, discovery)
        self._misses = _Misses()
        self._unrecorded: _Recent[str] = _Recent()
        self._wanted: set[str] = set()
        self._find = Rounds(self._find_wanted)
        self._groups: dict[str, Rounds[dict[str, FoundGroup]]] = {}
        self._transactions: dict[str, Rounds[dict[str, FoundTransaction]]] = {}
        self._stub_locks: dict[tuple[str, str], trio.Lock] = {}
        self._stub_slots = trio.CapacityLimiter(STUBS_AT_ONCE)

    # -- topics ---------------------------------------------------------------------------------------------------

    async def find_topics(self, names: Iterable[str]) -> None:
        """Look names the view does not serve up on all reachable clusters, and adopt what is found.

        A name that was looked up in vain within the last second is not looked up again.
        """
        view = self._following.view
        unknown = {
            name
            for name in names
            if not ((known := view.topics.get(name)) is not None and view.physical(known) is not None)
            and not (is_internal(name) and name not in view.topics)
            and not self._misses.fresh(name)
        }
        room = LOOK_MAX - len(self._wanted)
        await self._look_up(set(sorted(unknown)[: max(room, 0)]))

    async def _look_up(self, names: set[str]) -> None:
        if names:
            self._wanted |= names
            await self._find()

    async def _find_wanted(self) -> None:
        wanted, self._wanted = self._wanted, set()
        if wanted:
            adopted = await self._topics.adopt(wanted)
            self._misses.add(wanted - adopted)

    async def find_topic_ids(self, ids: Iterable[bytes]) -> None:
        """Look topic ids the view does not know up on all reachable clusters; adopt their topics."""
        view = self._following.view
        unknown = [one for one in ids if one not in view.topics_by_id and not self._misses.fresh(one)]
        if not unknown:
            return
        self._misses.add(unknown)
        names: set[str] = set()
        for client in self._reachable():
            try:
                names.update((await names_by_id(client, unknown)).values())
            except Undecided:
                continue
        if names:
            # Also names the view knows: under another id they are other topics.
            await self._look_up(names)
            if any(one in self._following.view.topics_by_id for one in unknown):
                self._misses.drop(unknown)

    def place_topic(self, name: str) -> str:
        """The cluster a new topic of this name goes to, by the rules.

        Raises:
            Undecided: the store was never read.
        """
        placement = self._following.view.placement
        if placement is None:
            raise Undecided("-", "no placement is known yet")
        return place_topic(placement, name).cluster

    async def topics_created(self, cluster: str, names: Iterable[str]) -> None:
        """Record topics just created on `cluster`; returns when the view serves them with all partitions."""
        wanted = set(names)
        self._misses.drop(wanted)
        await self._topics.created(cluster, wanted)

    async def topics_deleted(self, names: Iterable[str]) -> None:
        """Forget topics just deleted on their cluster, and delete their stubs: commits on a deleted topic are void,
        and Kafka purges them with it. Copies that a rule or a move has made of them go as well, former ones too. Moves
        of them end, which is waited for a while: a topic of that name that is created next is not theirs."""
        gone = set(names)
        await self._remove_standbys(gone)
        await self._topics.deleted(gone)
        await self._remove_standbys(gone)  # such as were made meanwhile

        def over(view: View) -> bool:
            return not any(one.step not in ENDED and gone & set(one.topics) for one in view.migrations.values())

        try:
            await self._following.wait_for(over, MOVES_END)
        except ViewBehind:
            pass  # the controller is away: it ends them when it is back

    async def _remove_standbys(self, topics: Iterable[str]) -> None:
        for name in topics:
            for mirror in self._following.view.mirrors_of(name):
                made = mirror.rule or (mirror.operation is not None and not mirror.lent)
                if made and not (mirror.state == "removing" and mirror.delete_copy):
                    key = mirror_key(mirror.target, name, mirror.source)
                    await settle(self._store, key, MirrorRecord, _removed)

    async def partitions_created(self, names: Iterable[str]) -> None:
        """Take over new partition counts of topics; their stubs are expanded first."""
        await self._topics.expanded(set(names))

    async def settings_changed(self, operation: str, topic: str, values: Mapping[str, str | None]) -> None:
        """A topic that is being moved has other settings now (None: its cluster's default): it gets them on the other
        cluster as well, once that serves it."""

        def along(now: MigrationRecord | None) -> MigrationRecord | None:
            if now is None or topic not in now.topics or now.step not in BEFORE_SWITCH:
                return now
            one = now.topics[topic]
            final = {name: value for name, value in one.final.items() if name not in values}
            final |= {name: value for name, value in values.items() if value is not None}
            changed = msgspec.structs.replace(one, final=final)
            return msgspec.structs.replace(now, topics={**now.topics, topic: changed})

        await settle(self._store, migration_key(operation), MigrationRecord, along)

    async def view_changed(self, known: View, timeout: float) -> None:
        """Returns when the newest view is another one than `known`, or after `timeout` seconds."""
        await self._following.changed_or(known, timeout)

    async def expand_stubs(self, counts: Mapping[str, int]) -> None:
        """To be awaited before topics are expanded to these counts: a group's coordinator must know a partition
        before anybody can write to it. Raises StubRefused, Undecided."""
        await self._topics.expand_stubs(counts)

    # -- groups and transactional ids -----------------------------------------------------------------------------

    async def group_home(self, group: str, recorded: Recorded = _always) -> str:
        """The home of a group: as recorded, else where the group is, else by the rules.

        It is recorded at first use: `recorded(home)` tells whether this is one. What is not recorded is decided again
        the next time, but not within a second.
        """
        known = self._following.view.groups.get(group)
        if known is not None:
            return known.cluster
        if (home := await self._recently(GROUP_HOMES + group, recorded)) is not None:
            return home
        found = await self._ask(self._groups, list_groups)
        view = self._following.view
        here = {cluster: groups[group] for cluster, groups in found.items() if group in groups}
        active = {name for name, one in view.clusters.items() if one.record.state == "active"}
        wanted = homes.decide_group(group, here, self._placement(), _indexes(view), active - found.keys())
        self._must_be_reachable(wanted.cluster)
        return await self._first_use(GROUP_HOMES + group, wanted, recorded)

    async def transaction_home(self, transactional_id: str, recorded: Recorded = _always) -> str:
        """The home of a transactional id, as for a group; one that no cluster knows is not yet fixed."""
        known = self._following.view.transactions.get(transactional_id)
        if known is not None:
            return known.cluster
        if (home := await self._recently(TRANSACTION_HOMES + transactional_id, recorded)) is not None:
            return home
        found = await self._ask(self._transactions, list_transactions)
        view = self._following.view
        here = {cluster: ids[transactional_id] for cluster, ids in found.items() if transactional_id in ids}
        wanted = homes.decide_transaction(transactional_id, here, self._placement(), _indexes(view))
        self._must_be_reachable(wanted.cluster)
        return await self._first_use(TRANSACTION_HOMES + transactional_id, wanted, recorded)

    async def transaction_writes(self, transactional_id: str, cluster: str) -> str:
        """The id names a topic of `cluster`: its home is fixed there if it was not fixed. Returns the home."""
        known = self._following.view.transactions.get(transactional_id)
        if known is None:
            await self.transaction_home(transactional_id)
        elif known.written:
            return known.cluster
        record = await self._record(
            TRANSACTION_HOMES + transactional_id, lambda now: homes.fix_transaction(now, transactional_id, cluster)
        )
        return record.cluster

    async def tie_transaction_to_group(self, transactional_id: str, group: str) -> str:
        """One home for both, where the id is not fixed elsewhere, or the group has neither members nor commits yet.

        Returns the id's home; where it differs from the group's, the two cannot be tied.
        """
        group_home = await self.group_home(group)
        home = await self.transaction_writes(transactional_id, group_home)
        if home != group_home and not await self._group_exists(group_home, group):
            record = self._following.view.groups.get(group)
            if record is not None and record.move is not None:
                return home
            moved = homes.elsewhere(record or HomeRecord(name=group, cluster=home), home)
            await self._record(GROUP_HOMES + group, lambda now: moved if now == record or now is None else now)
        return home

    async def groups_deleted(self, groups: Iterable[str]) -> None:
        """Forget the homes of deleted groups."""
        for group in set(groups) & set(self._following.view.groups):
            settled = await settle(self._store, GROUP_HOMES + group, HomeRecord, lambda now: None)
            if settled.changed:
                await self._following.reached(settled.revision)

    async def home_changed(self, group: str, known: HomeRecord, timeout: float) -> None:
        """Returns when the view has another record of the group than `known`, or after `timeout` seconds."""
        with trio.move_on_after(timeout):
            while (view := self._following.view).groups.get(group) == known:
                await self._following.changed(view)

    # -- stubs ----------------------------------------------------------------------------------------------------

    async def ensure_stubs(self, cluster: str, topics: Iterable[str]) -> None:
        """Each topic that lives elsewhere gets a closed stub with its partition count on `cluster`, known to all
        its brokers. Topics the view does not serve, and internal ones, are left out.

        Raises:
            StubRefused, Undecided: for one topic at least; the others have theirs.
        """
        view = self._following.view
        missing = [name for name in dict.fromkeys(topics) if not _has_stub(view, cluster, name)]
        if not missing:
            return
        client = self._clients.active(cluster)
        failed: list[StubRefused | Undecided | StoreError] = []

        async def make(name: str) -> None:
            async with self._stub_slots:
                try:
                    await self._ensure_stub(client, name)
                except (StubRefused, Undecided, StoreError) as error:
                    failed.append(error)

        async with trio.open_nursery() as nursery:
            for name in missing:
                nursery.start_soon(make, name)
        self._discovery.refresh(cluster)
        if failed:
            raise failed[0]

    async def _ensure_stub(self, client: ClusterClient, name: str) -> None:
        key = (client.name, name)
        async with self._stub_locks.setdefault(key, trio.Lock()):
            view = self._following.view
            if _has_stub(view, client.name, name):
                return
            record = view.topics[name].record
            await self._following.reached(await make_stub(self._store, client, view.stubs.get(key), record))
        self._stub_locks.pop(key, None)

    # -- the rest -------------------------------------------------------------------------------------------------

    def refresh(self, cluster: str) -> None:
        """Read the cluster's metadata again as soon as may be."""
        self._discovery.refresh(cluster)

    async def record_change(self, by: str, what: str, plan: Mapping[str, object], result: Mapping[str, object]) -> None:
        """Append to the history."""
        await record_change(self._store, by, what, plan, result)

    # -- inside ---------------------------------------------------------------------------------------------------

    def _placement(self) -> Placement:
        placement = self._following.view.placement
        if placement is None:
            raise Undecided("-", "no placement is known yet")
        return placement

    def _reachable(self) -> list[ClusterClient]:
        view = self._following.view
        clients = [self._clients.get(name) for name, one in view.clusters.items() if one.snapshot.reachable]
        return [one for one in clients if one is not None]

    def _must_be_reachable(self, cluster: str) -> None:
        snapshot = self._discovery.snapshot(cluster)
        if not snapshot.reachable:
            raise Undecided(cluster, snapshot.reason or "not reached yet")

    async def _ask(
        self, rounds: dict[str, Rounds[Listed]], ask: Callable[[ClusterClient], Awaitable[Listed]]
    ) -> dict[str, Listed]:
        """The answers of every reachable cluster; one that fails now counts as away, unless all do."""
        answers: dict[str, Listed] = {}
        failed: list[Undecided] = []

        async def one(client: ClusterClient) -> None:
            if client.name not in rounds:
                rounds[client.name] = Rounds(lambda: self._ask_named(client.name, ask))
            try:
                answers[client.name] = await rounds[client.name]()
            except Undecided as error:
                failed.append(error)

        async with trio.open_nursery() as nursery:
            for client in self._reachable():
                nursery.start_soon(one, client)
        if failed:
            # It answered a moment ago: it may hold what is asked for, and will either answer or count as away soon.
            self._discovery.refresh(failed[0].cluster)
            raise failed[0]
        return answers

    async def _ask_named(self, cluster: str, ask: Callable[[ClusterClient], Awaitable[Listed]]) -> Listed:
        return await ask(self._clients.active(cluster))

    async def _group_exists(self, cluster: str, group: str) -> bool:
        client = self._clients.get(cluster)
        if client is None:
            return True
        return group in await list_groups(client)

    async def _recently(self, key: str, recorded: Recorded) -> str | None:
        """A home that was decided a moment ago and is not to be recorded now either."""
        home = self._unrecorded.get(key)
        return None if home is None or await recorded(home) else home

    async def _first_use(self, key: str, wanted: HomeRecord, recorded: Recorded) -> str:
        if not await recorded(wanted.cluster):
            self._unrecorded.put(key, wanted.cluster)
            return wanted.cluster
        return (await self._record(key, lambda now: now or wanted)).cluster

    async def _record(self, key: str, decide: Callable[[HomeRecord | None], HomeRecord]) -> HomeRecord:
        settled = await settle(self._store, key, HomeRecord, decide)
        assert settled.value is not None
        await self._following.reached(settled.revision)
        return settled.value


def _indexes(view: View) -> dict[str, int]:
    return {name: one.record.index for name, one in view.clusters.items()}


def _has_stub(view: View, cluster: str, name: str) -> bool:
    """Whether nothing is to be done for this topic on this home, by the view alone."""
    topic = view.topics.get(name)
    if topic is None or topic.cluster == cluster or is_internal(name):
        return True
    return serves(view.stubs.get((cluster, name)), topic.record)


async def record_change(
    store: Store, by: str, what: str, plan: Mapping[str, object], result: Mapping[str, object]
) -> None:
    """Append to the history; keys sort by time. `plan` and `result` must be JSON values."""
    record = ChangeRecord(
        at=time.time(), by=by, what=what, plan=json.loads(json.dumps(plan)), result=json.loads(json.dumps(result))
    )
    key = f"{HISTORY}{time.time_ns():020d}-{secrets.token_hex(4)}"
    await store.commit((), (Put(key, encode(record)),))
