"""A process's presence in the store: its registration, its lease, and the newest revision its view has applied.

The lease is *fresh* until its TTL after the moment the last successful renewal was sent, by CLOCK_BOOTTIME: a process
that was paused, or whose machine slept, knows that it is not. The registration outlives the lease.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import trio

from metadata_service.following import Following
from metadata_service.models import LEASES, WORKERS, LeaseRecord, WorkerRecord, worker_key
from metadata_service.records import encode
from metadata_service.store.clock import Backoff, boottime
from metadata_service.store.contract import Delete, LeaseExpired, Put, Store, StoreError, StoreRefused
from runtime import logging

log = logging.get(__name__)

TTL = 10  # seconds
SETTLE = 0.1  # seconds between two acknowledgements
COUNTS_EVERY = 10.0  # seconds after which the number of connections is written without a new revision
LEAVE = 2.0  # seconds a clean end may take to say goodbye


class Registration:
    """`run` keeps it up. `connections` gives the number shown to operators; `in_use` the oldest view revision that
    requests still run under, None where there is none: a revision is acknowledged when nothing older is used."""

    def __init__(
        self,
        store: Store,
        following: Following,
        record: WorkerRecord,
        *,
        ttl: int = TTL,
        connections: Callable[[], int] = lambda: 0,
        in_use: Callable[[], int | None] = lambda: None,
        clock: Callable[[], float] = boottime,
    ) -> None:
        self.record = record
        self.connections = connections
        self.in_use = in_use
        self.fresh_until = 0.0  # CLOCK_BOOTTIME seconds
        self.acknowledged = 0
        self.lease = 0
        self.granted = 0  # the store's revision at which the present lease was made known
        self._on_renewal: list[Callable[[], None]] = []
        self._store = store
        self._following = following
        self._ttl = ttl
        self._clock = clock
        self._registered = worker_key(WORKERS, record.instance, record.role, record.worker)
        self._leased = worker_key(LEASES, record.instance, record.role, record.worker)
        self._granted = trio.Event()

    @property
    def fresh(self) -> bool:
        """Whether the store certainly still counts this process as alive."""
        return self._clock() < self.fresh_until

    def on_renewal(self, call: Callable[[], None]) -> None:
        """`call` is called whenever `fresh_until`, `granted` and `lease` have changed."""
        self._on_renewal.append(call)

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Registers, renews and acknowledges until cancelled; then leaves. `started` once registered."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._keep)
                nursery.start_soon(self._acknowledge)
                await self._granted.wait()
                task_status.started()
        finally:
            await self._leave()

    async def reached_from(self, addresses: tuple[str, ...]) -> None:
        """Records the addresses from which this process reaches the clusters. Raises StoreError."""
        self.record = msgspec.structs.replace(self.record, addresses=addresses)
        if self.lease:
            await self._store.commit((), (Put(self._registered, encode(self.record)),))

    async def _keep(self) -> None:
        backoff = Backoff(0.1, 1.0)
        while True:
            try:
                if self.lease == 0:
                    await self._register()
                else:
                    sent = self._clock()
                    self.fresh_until = sent + await self._store.keep_alive(self.lease)
                    self._renewed()
            except LeaseExpired:
                log.warning("this process's lease ended; a new one is asked for", key=self._leased)
                self.lease = 0
                continue
            except StoreRefused as error:
                log.error("the store refuses the registration", error=str(error))
                await trio.sleep(self._ttl / 3)
                continue
            except StoreError as error:
                log.debug("the lease could not be renewed", error=str(error))
                await backoff.pause()
                continue
            backoff.reset()
            await trio.sleep(self._ttl / 3)

    async def _register(self) -> None:
        sent = self._clock()
        lease = await self._store.grant(self._ttl)
        revision = self._appliable()
        done = await self._store.commit(
            (),
            (
                Put(self._registered, encode(self.record)),
                Put(self._leased, encode(LeaseRecord(acknowledged=revision, connections=self.connections())), lease.id),
            ),
        )
        self.acknowledged = revision
        self.fresh_until, self.lease, self.granted = sent + lease.ttl, lease.id, done.revision
        self._granted.set()
        self._renewed()

    def _renewed(self) -> None:
        for call in self._on_renewal:
            call()

    def _appliable(self) -> int:
        oldest = self.in_use()
        current = self._following.view.revision
        return current if oldest is None else min(oldest, current)

    async def _acknowledge(self) -> None:
        backoff = Backoff(0.1, 1.0)
        await self._granted.wait()
        shown = -1
        while True:
            view = self._following.view
            revision, connections = self._appliable(), self.connections()
            if self.lease and (revision > self.acknowledged or connections != shown):
                try:
                    record = LeaseRecord(acknowledged=revision, connections=connections)
                    done = await self._store.commit((), (Put(self._leased, encode(record), self.lease),))
                except StoreError as error:
                    log.debug("a revision could not be acknowledged", revision=revision, error=str(error))
                    await backoff.pause()
                    continue
                self.acknowledged, shown = revision, connections
                self._following.store_revision = max(self._following.store_revision, done.revision)
                backoff.reset()
            await trio.sleep(SETTLE)
            # A revision that is still in use comes free without a new view: look again soon.
            wait = SETTLE if self.acknowledged < self._following.view.revision else COUNTS_EVERY
            with trio.move_on_after(wait):
                await self._following.changed(view)

    async def _leave(self) -> None:
        with trio.move_on_after(LEAVE, shield=True):
            try:
                if self.lease:
                    await self._store.revoke(self.lease)
                await self._store.commit((), (Delete(self._registered),))
            except (StoreError, ValueError) as error:
                log.debug("could not leave cleanly", error=str(error))
