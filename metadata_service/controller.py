"""The controller: one active process at a time does what needs doing once. Elected by a lease; everything it does
may be repeated, and every commit carries the condition that it still is the one.

    await run_controller(store, settings, instance="a")
"""

from __future__ import annotations

import os
import random
import socket
import time
from collections.abc import Awaitable, Callable, Mapping

import trio

from kafka_client import ClientError
from metadata_service.audit import audit
from metadata_service.ejecting import run_eject
from metadata_service.failures import DecisionFailed
from metadata_service.home_runner import run_home_move
from metadata_service.homekeeping import Homekeeping
from metadata_service.housekeeping import Housekeeping
from metadata_service.inventory import Inventory
from metadata_service.member import Member, join
from metadata_service.migrating.service import KIND, Migrating
from metadata_service.mirrorkeeping import Mirrorkeeping
from metadata_service.models import CONTROLLER, ControllerRecord, OperationRecord
from metadata_service.operations import ejecting, home_moving
from metadata_service.records import encode
from metadata_service.seeding import seed
from metadata_service.store.clock import Backoff, boottime
from metadata_service.store.contract import LeaseExpired, Put, Store, StoreError, StoreReplaced, Unchanged
from runtime import logging
from runtime.settings import Settings

log = logging.get(__name__)

TTL = 6  # seconds: with CAMPAIGN, a dead controller is replaced within 8
CAMPAIGN = 1.5  # seconds between two attempts to become the active one

Runner = Callable[[Member, OperationRecord, Unchanged], Awaitable[None]]
"""Carries an operation on from its recorded step until it rests; every commit carries the condition given."""

RUNNERS: dict[str, Runner] = {home_moving.KIND: run_home_move, ejecting.KIND: run_eject}


class Controller:
    """Campaigns, and while elected does the duties. `operations`: further runners by kind of operation."""

    def __init__(
        self,
        member: Member,
        settings: Settings,
        *,
        ttl: int = TTL,
        pace: float = 1.0,
        operations: Mapping[str, Runner] | None = None,
    ) -> None:
        """`pace` stretches (above 1) or shortens every duty's interval."""
        self.active = trio.Event()
        self.leading = False
        self.inventory: Inventory | None = None
        self._member = member
        self._settings = settings
        self._ttl = ttl
        self._pace = pace
        self.migrating = Migrating(member)
        self._runners = RUNNERS | {KIND: self.migrating.operation} | dict(operations or {})
        self._running: set[str] = set()
        self._unknown: set[str] = set()

    async def run(self) -> None:
        """Until cancelled. Raises StoreReplaced, SettingsRefused."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.migrating.run)
            await self._stand()

    async def _stand(self) -> None:
        backoff = Backoff(0.2, CAMPAIGN)
        while True:
            try:
                await self._campaign()
                backoff.reset()
            except StoreReplaced:
                raise
            except StoreError as error:
                log.debug("the store is away", error=str(error))
                await backoff.pause()
                continue
            await trio.sleep(CAMPAIGN * random.uniform(0.5, 1.0))  # noqa: S311 - spreads load

    # -- election -------------------------------------------------------------------------------------------------

    async def _campaign(self) -> None:
        store = self._member.store
        if await store.get(CONTROLLER) is not None:
            return
        sent = boottime()
        lease = await store.grant(self._ttl)
        record = ControllerRecord(
            instance=self._member.registration.record.instance,
            pid=os.getpid(),
            host=socket.gethostname(),
            since=time.time(),
        )
        done = await store.commit((Unchanged(CONTROLLER, 0),), (Put(CONTROLLER, encode(record), lease.id),))
        if not done.succeeded:
            await store.revoke(lease.id)
            return
        log.info("this process is the active controller", revision=done.revision)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._renew, lease.id, sent + lease.ttl, nursery.cancel_scope)
                nursery.start_soon(self._lead, Unchanged(CONTROLLER, done.revision))
        finally:
            self.leading = False
            self.active = trio.Event()
            log.info("this process is not the active controller any longer")
            with trio.move_on_after(1.0, shield=True):
                try:
                    await store.revoke(lease.id)  # a clean end need not be waited for by the next
                except StoreError:
                    pass

    async def _renew(self, lease: int, fresh_until: float, scope: trio.CancelScope) -> None:
        """Renews the lease; stops the duties when it may have run out."""
        while True:
            await trio.sleep(self._ttl / 4)
            sent = boottime()
            try:
                with trio.move_on_after(max(fresh_until - sent, 0.0)):
                    fresh_until = sent + await self._member.store.keep_alive(lease)
            except LeaseExpired:
                break
            except StoreError as error:
                log.debug("the controller's lease could not be renewed", error=str(error))
            if boottime() >= fresh_until:
                break
        scope.cancel()

    # -- duties ---------------------------------------------------------------------------------------------------

    async def _lead(self, guard: Unchanged) -> None:
        member = self._member
        await seed(member.store, self._settings)
        await member.settled()
        house = Housekeeping(member, self._settings, guard)
        homes = Homekeeping(member, guard)
        mirrors = Mirrorkeeping(member, guard)
        self.inventory = Inventory(member, guard)
        self.leading = True
        self.active.set()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._every, 2.0, "topics", house.topics, True)
            nursery.start_soon(self._every, 5.0, "addresses", house.addresses, True)
            nursery.start_soon(self._every, 5.0, "features", house.features, True)
            nursery.start_soon(self._every, 2.0, "health", house.health, True)
            nursery.start_soon(self._every, 1.0, "mirrors", mirrors.round, False)
            nursery.start_soon(self._every, 600.0, "history", house.history, False)
            nursery.start_soon(self._every, 20.0, "homes", homes.round, False)
            nursery.start_soon(self._every, 60.0, "audit", lambda: audit(member, guard), False)
            nursery.start_soon(self._every, 15.0, "inventory", self.inventory.round, False)
            nursery.start_soon(self.migrating.lead, guard, self._pace)
            nursery.start_soon(self._every, 2.0, "operations", lambda: self._operations(nursery, guard), True)

    async def _every(self, seconds: float, what: str, duty: Callable[[], Awaitable[None]], eager: bool) -> None:
        """Does a duty again and again: after `seconds`, and where `eager` soon after the view has changed."""
        backoff = Backoff(0.2, 5.0)
        while True:
            known = self._member.view
            try:
                await duty()
                backoff.reset()
            except StoreReplaced:
                raise
            except (DecisionFailed, StoreError, ClientError) as error:
                log.warning("a duty of the controller has to be done again", duty=what, error=str(error))
                await backoff.pause()
                continue
            pause = seconds * self._pace * random.uniform(0.8, 1.0)  # noqa: S311 - spreads load
            if eager:
                await self._member.following.changed_or(known, pause)
                await trio.sleep(min(0.1, pause))  # many changes come together
            else:
                await trio.sleep(pause)

    async def _operations(self, nursery: trio.Nursery, guard: Unchanged) -> None:
        """Starts a runner for every running operation that has none; it goes on at the step that was recorded."""
        for identifier, operation in self._member.view.operations.items():
            if operation.state != "running" or identifier in self._running:
                continue
            runner = self._runners.get(operation.kind)
            if runner is None:
                if identifier not in self._unknown:
                    self._unknown.add(identifier)
                    log.error("an operation of a kind unknown here waits", operation=identifier, kind=operation.kind)
                continue
            self._running.add(identifier)
            nursery.start_soon(self._run_operation, runner, operation, guard)

    async def _run_operation(self, runner: Runner, operation: OperationRecord, guard: Unchanged) -> None:
        try:
            await runner(self._member, operation, guard)
        except StoreReplaced:
            raise
        except (DecisionFailed, StoreError, ClientError) as error:
            log.warning("an operation has to go on later", operation=operation.id, error=str(error))
        finally:
            self._running.discard(operation.id)


async def run_controller(
    store: Store,
    settings: Settings,
    *,
    instance: str,
    operations: Mapping[str, Runner] | None = None,
    ttl: int = TTL,
    pace: float = 1.0,
    started: Callable[[Controller], None] = lambda _: None,
) -> None:
    """Join as a controller and campaign until cancelled; `started` gets the controller once it has joined.

    Raises:
        StoreReplaced: open the store again. SettingsRefused: the store is another federation's.
    """
    await seed(store, settings)
    async with join(store, instance=instance, worker=0, role="controller") as member:
        controller = Controller(member, settings, ttl=ttl, pace=pace, operations=operations)
        started(controller)
        await controller.run()
