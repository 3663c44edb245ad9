"""What the store says, at hand: records below `view/` with their revisions, workers and what they report, mirrors too.

Below `view/` this process's own view is read, and over it what it has just written itself. All else is followed; what
workers say is besides read anew after each of our commits (`look`): nobody whose lease is older than the record may be
missed, and one who comes later has to know the record before it counts as fresh.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import msgspec
import trio

from metadata_service.member import Member
from metadata_service.models import (
    FINISHED,
    LEASES,
    OPERATIONS,
    REPORTS,
    WORKERS,
    FinishedRecord,
    HomeRecord,
    LeaseRecord,
    MirrorRecord,
    OperationRecord,
    ReportRecord,
    StubRecord,
    TopicRecord,
    WorkerRecord,
    mirror_key,
    process_name,
    stub_key,
    topic_key,
    worker_key,
)
from metadata_service.operations.facts import Known, Worker
from metadata_service.operations.records import HOLD_REPORTS, HoldReport, MigrationRecord, migration_key
from metadata_service.records import decode
from metadata_service.store.clock import Backoff
from metadata_service.store.contract import KeyValue, Range, Snapshot, Store, StoreRefused
from runtime import logging

log = logging.get(__name__)

Record = TypeVar("Record", bound=msgspec.Struct)
PROCESSES, COPYING = "workers/", "replicator/"


class Kept:
    """The keys under a prefix, followed, and besides as a range has shown them; the newer of the two counts."""

    def __init__(self, store: Store, prefix: str, changed: Callable[[Iterable[str]], None]) -> None:
        self.items: dict[str, KeyValue] = {}
        self.loaded = trio.Event()
        self._store = store
        self._prefix = prefix
        self._changed = changed
        self.revision = 0  # everything up to here is known

    async def run(self) -> None:
        """Until cancelled. Raises StoreReplaced."""
        backoff = Backoff(0.2, 10.0)
        while True:
            try:
                async with self._store.follow(self._prefix) as following:
                    async for item in following:
                        if isinstance(item, Snapshot):
                            self.take(Range(item.revision, item.items))
                        elif item.revision > self.revision:
                            self.revision = item.revision
                            for event in item.events:
                                if event.kind == "put":
                                    self.items[event.kv.key] = event.kv
                                else:
                                    self.items.pop(event.kv.key, None)
                            self._changed(event.kv.key for event in item.events)
                        self.loaded.set()
                        backoff.reset()
            except StoreRefused as error:
                log.error("the store refuses to be followed", prefix=self._prefix, error=str(error))
            await backoff.pause()

    def take(self, found: Range) -> None:
        """Everything as it was at `found.revision`."""
        if found.revision <= self.revision:
            return
        self.items = {one.key: one for one in found.items}
        self.revision = found.revision
        self._changed(self.items)

    async def look(self) -> None:
        """Read it anew. Raises StoreError."""
        self.take(await self._store.range(self._prefix))

    def under(self, prefix: str) -> list[KeyValue]:
        return [one for key, one in self.items.items() if key.startswith(prefix)]


class Ledger:
    """One per process; `run` it. `listen` to be told that something outside `view/` has changed."""

    def __init__(self, member: Member) -> None:
        self._member = member
        self._listeners: set[Callable[[Iterable[str]], None]] = set()
        self._written: dict[str, tuple[bytes | None, int]] = {}
        self.processes = Kept(member.store, PROCESSES, self._tell)
        self.copying = Kept(member.store, COPYING, self._tell)

    async def run(self) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.processes.run)
            nursery.start_soon(self.copying.run)

    async def loaded(self) -> None:
        await self.processes.loaded.wait()
        await self.copying.loaded.wait()

    def listen(self, call: Callable[[Iterable[str]], None]) -> None:
        self._listeners.add(call)

    def leave(self, call: Callable[[Iterable[str]], None]) -> None:
        self._listeners.discard(call)

    def _tell(self, keys: Iterable[str]) -> None:
        changed = list(keys)
        for call in list(self._listeners):
            call(changed)

    # -- below view/ ----------------------------------------------------------------------------------------------

    def wrote(self, values: Mapping[str, bytes | None], revision: int) -> None:
        """This process has just written these keys (None: deleted) at `revision`."""
        for key in [key for key, (_, at) in self._written.items() if at <= self._member.view.revision]:
            del self._written[key]
        self._written.update({key: (value, revision) for key, value in values.items()})

    def _own(self, key: str) -> tuple[bytes | None, int] | None:
        """What this process has written, and its view does not show yet."""
        found = self._written.get(key)
        return found if found is not None and found[1] > self._member.view.revision else None

    def _known(self, key: str, kind: type[Record], shown: Record | None) -> Known[Record] | None:
        own = self._own(key)
        if own is not None:
            return None if own[0] is None else Known(decode(kind, own[0]), own[1])
        return None if shown is None else Known(shown, self._member.following.changed_at(key))

    def migration(self, identifier: str) -> Known[MigrationRecord] | None:
        shown = self._member.view.migrations.get(identifier)
        return self._known(migration_key(identifier), MigrationRecord, shown)

    def operation(self, identifier: str) -> Known[OperationRecord] | None:
        shown = self._member.view.operations.get(identifier)
        return self._known(OPERATIONS + identifier, OperationRecord, shown)

    def topic(self, name: str) -> Known[TopicRecord] | None:
        served = self._member.view.topics.get(name)
        return self._known(topic_key(name), TopicRecord, None if served is None else served.record)

    def mirrors(self, name: str) -> dict[str, Known[MirrorRecord]]:
        """By key, all of a topic."""
        out = {}
        for one in self._member.view.mirrors_of(name):
            key = mirror_key(one.target, one.topic, one.source)
            found = self._known(key, MirrorRecord, one)
            if found is not None:
                out[key] = found
        return out

    def stubs(self, name: str) -> dict[str, Known[StubRecord]]:
        """By key, all of a topic."""
        view = self._member.view
        out = {}
        for cluster in view.clusters:
            key = stub_key(cluster, name)
            found = self._known(key, StubRecord, view.stubs.get((cluster, name)))
            if found is not None:
                out[key] = found
        return out

    def home(self, prefix: str, name: str) -> Known[HomeRecord] | None:
        return self._known(prefix + name, HomeRecord, self._member.view.transactions.get(name))

    # -- processes ------------------------------------------------------------------------------------------------

    def registered(self) -> frozenset[str]:
        return frozenset(process_name(decode(WorkerRecord, one.value)) for one in self.processes.under(WORKERS))

    def workers(self, identifier: str) -> tuple[Worker, ...]:
        """Registered proxy workers, with what they say about a migration."""
        out = []
        for one in self.processes.under(WORKERS):
            record = decode(WorkerRecord, one.value)
            if record.role != "proxy":
                continue
            where = (record.instance, record.role, record.worker)
            lease = self.processes.items.get(worker_key(LEASES, *where))
            said = self.processes.items.get(f"{worker_key(HOLD_REPORTS, *where)}/{identifier}")
            if lease is None:
                out.append(Worker(process_name(record), fresh=False))
                continue
            # What a process said that was here before, under the same name, went or will go with its own lease.
            report = decode(HoldReport, said.value) if said is not None and said.lease == lease.lease else None
            acknowledged = decode(LeaseRecord, lease.value).acknowledged
            out.append(Worker(process_name(record), True, acknowledged, report))
        return tuple(sorted(out, key=lambda one: one.name))

    # -- mirrors --------------------------------------------------------------------------------------------------

    def reports(self, mirror: MirrorRecord) -> list[ReportRecord]:
        end = "/" + mirror_key(mirror.target, mirror.topic, mirror.source).partition("/mirrors/")[2]
        return [decode(ReportRecord, one.value) for one in self.copying.under(REPORTS) if one.key.endswith(end)]

    def finished(self, mirror: MirrorRecord) -> list[FinishedRecord]:
        prefix = f"{FINISHED}{mirror.target}/{mirror.topic}/{mirror.source}/"
        return [decode(FinishedRecord, one.value) for one in self.copying.under(prefix)]
