"""What a parent process keeps open of the federation: the store, the view, and (where it is one) the controller.

The store being away at the start is waited for; being replaced under us (an import, a restored backup) means opening
it again, with everything that was built on it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import trio

from metadata_service.failures import SettingsRefused
from metadata_service.member import Member, join
from metadata_service.seeding import seed
from metadata_service.store.contract import SchemaTooNew, SchemaTooOld, StoreError, StoreReplaced
from metadata_service.store.open import open_store
from metadata_service.store.opened import OpenedStore
from runtime import logging
from runtime.settings import Settings, SettingsError

log = logging.get(__name__)

RETRY = 1.0  # seconds between two attempts to open the store

Part = Callable[[Member, OpenedStore], Awaitable[None]]
"""Runs on an opened store until it is cancelled (the store was replaced, or the process ends)."""


class Core:
    """`member` and `store` are None until the store is open and the view is loaded, and while it is opened again."""

    def __init__(self, settings: Settings, instance: str, parts: Sequence[Part] = ()) -> None:
        self.member: Member | None = None
        self.store: OpenedStore | None = None
        self.why = "the store was not reached yet"
        self._settings = settings
        self._instance = instance
        self._parts = tuple(parts)
        self._reopened = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled; started when the first view is loaded.

        Raises:
            SettingsError: the store cannot be used by this release, or with these settings.
        """
        started = False
        while True:
            try:
                async with (
                    open_store(self._settings.store, self._settings.federation) as store,
                    trio.open_nursery() as nursery,
                ):
                    await seed(store, self._settings)
                    async with join(store, instance=self._instance, worker=0, role="controller") as member:
                        self.member, self.store, self.why = member, store, ""
                        self._reopened.set()
                        for part in self._parts:
                            nursery.start_soon(part, member, store)
                        if not started:
                            started = True
                            task_status.started()
                        await trio.sleep_forever()
            except* StoreReplaced:
                log.warning("the store was replaced; opening it again")
                self.why = "the store was replaced and is being opened again"
            except* (SchemaTooNew, SchemaTooOld) as group:
                raise SettingsError(f"store: {_text(group)}") from None
            except* SettingsRefused as group:
                raise SettingsError(_text(group)) from None
            except* StoreError as group:
                self.why = f"the store is away: {_text(group)}"
                log.warning("the store cannot be opened; trying again", error=_text(group))
            finally:
                self.member = self.store = None
                self._reopened = trio.Event()
            await trio.sleep(RETRY)

    async def reopened(self) -> tuple[Member, OpenedStore]:
        """What is open, as soon as something is."""
        while self.member is None or self.store is None:
            await self._reopened.wait()
        return self.member, self.store


def _text(group: BaseExceptionGroup[BaseException]) -> str:
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return str(found)
