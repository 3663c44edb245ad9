"""A process's view: follows the store below `view/`, joins the clusters' snapshots, and publishes views atomically.

The store going away changes nothing for a published view; `age` says how old the knowledge is that it is the newest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import trio

from metadata_service import models
from metadata_service.failures import ViewBehind
from metadata_service.models import ClusterRecord
from metadata_service.store.clock import Backoff, boottime
from metadata_service.store.contract import Change, Store, StoreRefused
from metadata_service.store.contract import Following as StoreFollowing
from metadata_service.store.contract import Snapshot as StoreSnapshot
from metadata_service.view import Snapshot, View
from metadata_service.view_builder import build
from runtime import logging

log = logging.get(__name__)

WAIT = 5.0  # seconds a decision waits until this process's view shows it


class Following:
    """The newest view of this process is `view`; it is replaced, never changed."""

    def __init__(self, store: Store, *, clock: Callable[[], float] = boottime) -> None:
        self.view = View()
        self.loaded = False  # the store was read at least once
        self.store_revision = 0  # the highest one heard of from anywhere
        self._store = store
        self._clock = clock
        self._records: dict[str, bytes] = {}
        self._changed_at: dict[str, int] = {}
        self._snapshots: dict[str, Snapshot] = {}
        self._source: StoreFollowing | None = None
        self._published = trio.Event()
        self._on_clusters: list[Callable[[Mapping[str, ClusterRecord]], None]] = []
        self._on_behind: list[Callable[[str], None]] = []
        self._on_view: list[Callable[[View], None]] = []

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Follows until cancelled; `started` once the first view is published.

        Raises:
            StoreReplaced: the store was imported over or restored; the process must open it again.
        """
        backoff = Backoff(0.2, 10.0)
        while True:
            try:
                async with self._store.follow(models.VIEW) as self._source:
                    async for item in self._source:
                        self._apply(item)
                        if not self.loaded:
                            self.loaded = True
                            task_status.started()
                        backoff.reset()
            except StoreRefused as error:
                log.error("the store refuses to be followed", error=str(error))
            await backoff.pause()

    def on_clusters(self, call: Callable[[Mapping[str, ClusterRecord]], None]) -> None:
        """`call` gets the cluster records now and whenever they change."""
        self._on_clusters.append(call)
        call(self._cluster_records())

    def on_behind(self, call: Callable[[str], None]) -> None:
        """`call` gets the name of a cluster whose snapshot lacks what a new record says of its topics."""
        self._on_behind.append(call)

    def on_view(self, call: Callable[[View], None]) -> None:
        """`call` gets the view now, and every further one in the same step in which it is published."""
        self._on_view.append(call)
        call(self.view)

    def complete(self) -> int:
        """The store revision up to which nothing is missing in the view."""
        return max(self.view.revision, self._source.revision if self._source is not None else 0)

    def snapshot_changed(self, cluster: str, snapshot: Snapshot) -> None:
        """Takes over a cluster's new snapshot."""
        self._snapshots[cluster] = snapshot
        self._publish(build(self.view, {}, self._snapshots, self.view.revision))

    # -- waiting and ages -----------------------------------------------------------------------------------------

    async def wait_for(self, predicate: Callable[[View], bool], timeout: float = WAIT) -> View:
        """The first view for which `predicate` holds, the present one included.

        Raises:
            ViewBehind: none within `timeout` seconds.
        """
        with trio.move_on_after(timeout):
            while not predicate(self.view):
                await self._published.wait()
            return self.view
        if predicate(self.view):
            return self.view
        raise ViewBehind(f"the view does not show it after {timeout:g} s (revision {self.view.revision})")

    async def reached(self, revision: int, timeout: float = WAIT) -> View:
        """A view that includes store revision `revision`, of a commit that changed something below `view/`."""
        self.store_revision = max(self.store_revision, revision)
        return await self.wait_for(lambda view: view.revision >= revision, timeout)

    async def changed(self, known: View) -> View:
        """The newest view, as soon as it is another one than `known`."""
        while self.view is known:
            await self._published.wait()
        return self.view

    async def changed_or(self, known: View, timeout: float) -> None:
        """Returns when the view is another one than `known`, or after `timeout` seconds."""
        with trio.move_on_after(timeout):
            await self.changed(known)

    def changed_at(self, key: str) -> int:
        """The store revision at which a key below `view/` was last written, by the present view; 0: not there."""
        return self._changed_at.get(key, 0)

    def age(self) -> float | None:
        """Seconds since the view was last known to be the store's newest state; None before it was loaded."""
        fresh_at = self._source.fresh_at if self._source is not None else None
        return None if fresh_at is None else max(0.0, self._clock() - fresh_at)

    def lag(self) -> int:
        """Store revisions that this process has heard of and its view does not include yet."""
        seen = self._source.revision if self._source is not None else self.view.revision
        return max(0, self.store_revision - max(seen, self.view.revision))

    @property
    def connected(self) -> bool:
        """Whether the store can be followed at this moment."""
        return self._source is not None and self._source.connected

    # -- inside ---------------------------------------------------------------------------------------------------

    def _apply(self, item: StoreSnapshot | Change) -> None:
        changes: dict[str, bytes | None] = {}
        if isinstance(item, StoreSnapshot):
            found = {one.key: one.value for one in item.items}
            changes = {key: value for key, value in found.items() if self._records.get(key) != value}
            changes |= {key: None for key in self._records if key not in found}
            self._records = found
            self._changed_at = {one.key: one.mod_revision for one in item.items}
        else:
            for event in item.events:
                if event.kind == "put":
                    changes[event.kv.key] = self._records[event.kv.key] = event.kv.value
                    self._changed_at[event.kv.key] = event.kv.mod_revision
                else:
                    changes[event.kv.key] = None
                    self._records.pop(event.kv.key, None)
                    self._changed_at.pop(event.kv.key, None)
        self.store_revision = max(self.store_revision, item.revision)
        self._publish(build(self.view, changes, self._snapshots, item.revision))
        if any(key.startswith(models.CLUSTERS) for key in changes):
            for call in self._on_clusters:
                call(self._cluster_records())
        names = [key[len(models.TOPICS) :] for key in changes if key.startswith(models.TOPICS)]
        for cluster in {self.view.topics[name].cluster for name in names if self._behind(name)}:
            for tell in self._on_behind:
                tell(cluster)

    def _behind(self, name: str) -> bool:
        """Another process has just made the topic, or partitions of it: they have no leader here before a new look."""
        topic = self.view.topics.get(name)
        if topic is None:
            return False
        physical = self.view.physical(topic)
        return physical is None or len(physical.partitions) < topic.record.partitions

    def _cluster_records(self) -> dict[str, ClusterRecord]:
        return {name: one.record for name, one in self.view.clusters.items()}

    def _publish(self, view: View) -> None:
        if view is not self.view:
            self.view = view
            for call in self._on_view:
                call(view)
            published, self._published = self._published, trio.Event()
            published.set()
