"""What a parent process keeps open of the federation: the store, the view, and (where it is one) the controller.

The store being away at the start is waited for; being replaced under us (an import, a restored backup) means opening
it again, with everything that was built on it.
"""

from __future__ import annotations

import trio

from metadata_service.controller import Controller
from metadata_service.failures import SettingsRefused
from metadata_service.member import Member, join
from metadata_service.seeding import seed
from metadata_service.store.contract import SchemaTooNew, SchemaTooOld, StoreError, StoreReplaced
from metadata_service.store.open import open_store
from metadata_service.store.opened import OpenedStore
from runtime import logging
from runtime.process import first_cause
from runtime.settings import Settings, SettingsError

log = logging.get(__name__)

RETRY = 1.0  # seconds between two attempts to open the store


class Core:
    """`member` and `store` are None until the store is open and the view is loaded, and while it is opened again.

    With `controls` this process takes part in the election of the controller; without, it only looks.
    """

    def __init__(self, settings: Settings, instance: str, *, controls: bool) -> None:
        self.member: Member | None = None
        self.store: OpenedStore | None = None
        self.controller: Controller | None = None
        self.why = "the store was not reached yet"
        self._settings = settings
        self._instance = instance
        self._controls = controls
        self._changed = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled; started when the first view is loaded.

        Raises:
            SettingsError: the store cannot be used by this release, or with these settings.
        """
        started = False
        while True:
            try:
                async with open_store(self._settings.store, self._settings.federation) as store:
                    await seed(store, self._settings)
                    async with join(
                        store, instance=self._instance, worker=0, role="controller", registered=self._controls
                    ) as member:
                        self.member, self.store, self.why = member, store, ""
                        self._announce()
                        if not started:
                            started = True
                            task_status.started()
                        if self._controls:
                            self.controller = Controller(member, self._settings)
                            await self.controller.run()
                        await trio.sleep_forever()
            except* StoreReplaced:
                log.warning("the store was replaced; opening it again")
                self.why = "the store was replaced and is being opened again"
            except* (SchemaTooNew, SchemaTooOld) as group:
                raise SettingsError(f"store: {first_cause(group)}") from None
            except* SettingsRefused as group:
                raise SettingsError(str(first_cause(group))) from None
            except* StoreError as group:
                self.why = f"the store is away: {first_cause(group)}"
                log.warning("the store cannot be opened; trying again", error=str(first_cause(group)))
            finally:
                self.member = self.store = self.controller = None
                self._announce()
            await trio.sleep(RETRY)

    def _announce(self) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    async def reopened(self, *, other_than: OpenedStore) -> None:
        """Returns when a store is open that is not `other_than`."""
        while self.store is None or self.store is other_than:
            await self._changed.wait()
