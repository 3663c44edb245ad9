"""Migrations in a controller process: what runs always, what runs while it is elected, and one runner a migration."""

from __future__ import annotations

import trio

from kafka_client import ClientError
from metadata_service.failures import DecisionFailed
from metadata_service.member import Member
from metadata_service.migrating.hands import Hands
from metadata_service.migrating.ledger import Ledger
from metadata_service.migrating.runner import Running
from metadata_service.migrating.telling import Telling
from metadata_service.migrating.tidying import Tidying, confirming
from metadata_service.models import OperationRecord
from metadata_service.store.clock import Backoff
from metadata_service.store.contract import StoreError, StoreReplaced, Unchanged
from runtime import logging

log = logging.get(__name__)

KIND = "migrate"
ROUND = 5.0  # seconds between two rounds of tidying


class Migrating:
    """One per process. `run` it beside the election, `lead` it while elected; `operation` is a controller's runner."""

    def __init__(self, member: Member) -> None:
        self.running: dict[str, Running] = {}
        self.hands = Hands(member.clients.get)
        self._member = member
        self._ledger: Ledger | None = None
        self._leading = trio.Event()

    async def run(self) -> None:
        """Until cancelled. Raises StoreReplaced."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.hands.run)
            nursery.start_soon(confirming, self._member, self.hands, self.running)

    async def lead(self, guard: Unchanged, pace: float = 1.0) -> None:
        """Until cancelled: what migrations need of the store is followed as long as there are any, and they are tidied
        up. Raises StoreReplaced."""
        try:
            while True:
                view = self._member.view
                if not view.migrations:
                    await self._member.following.changed(view)
                    continue
                ledger = Ledger(self._member)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(ledger.run)
                    nursery.start_soon(Telling(self._member.store, self.running, guard).run)
                    self._ledger = ledger
                    self._leading.set()
                    await self._tidy(Tidying(self._member, ledger, self.hands, guard), pace)
                    nursery.cancel_scope.cancel()
                self._leading = trio.Event()
        finally:
            self._leading = trio.Event()

    async def _tidy(self, tidying: Tidying, pace: float) -> None:
        """Until there are no migrations, and none runs here."""
        backoff = Backoff(0.5, 10.0)
        while self._member.view.migrations or self.running:
            try:
                await tidying.round()
                backoff.reset()
            except StoreReplaced:
                raise
            except (DecisionFailed, StoreError, ClientError) as error:
                log.warning("migrations have to be tidied up again", error=str(error))
                await backoff.pause()
            await trio.sleep(ROUND * pace)

    async def operation(self, member: Member, operation: OperationRecord, guard: Unchanged) -> None:
        """Carries a migration on until it has ended, or this process is deposed."""
        await self._leading.wait()
        assert self._ledger is not None
        running = Running(member, self._ledger, self.hands, operation.id, guard)
        self.running[operation.id] = running
        try:
            await running.run()
        except* StoreReplaced:
            raise
        except* (DecisionFailed, StoreError, ClientError) as group:
            log.warning("a migration has to go on later", operation=operation.id, error=str(group.exceptions[0]))
        finally:
            del self.running[operation.id]
