"""What migrations wait for, written where people can read it: outside the view, since nobody acts by it."""

from __future__ import annotations

from collections.abc import Mapping

import trio

from metadata_service.migrating.runner import Running
from metadata_service.models import WAITS, WaitsRecord
from metadata_service.records import encode
from metadata_service.store.clock import Backoff
from metadata_service.store.contract import Delete, Operation, Put, Store, StoreError, StoreReplaced, Unchanged
from runtime import logging

log = logging.get(__name__)

EVERY = 1.0  # seconds; what is waited for in a hold changes faster, and need not be told
AT_ONCE = 50


class Telling:
    """While this process leads. `guard`: that it still does."""

    def __init__(self, store: Store, running: Mapping[str, Running], guard: Unchanged) -> None:
        self._store = store
        self._running = running
        self._guard = guard
        self._told: dict[str, tuple[str, str]] = {}

    async def run(self) -> None:
        """Until cancelled. Raises StoreReplaced."""
        backoff = Backoff(1.0, 10.0)
        known = False
        while True:
            try:
                if not known:  # of the controller before
                    found = await self._store.range(WAITS)
                    self._told = {one.key[len(WAITS) :]: ("", "") for one in found.items}
                    known = True
                await self._tell()
                backoff.reset()
            except StoreReplaced:
                raise
            except StoreError as error:
                log.debug("what migrations wait for could not be told", error=str(error))
                await backoff.pause()
                continue
            await trio.sleep(EVERY)

    async def _tell(self) -> None:
        wanted = {name: one.waits for name, one in self._running.items() if one.waits[1]}
        changed = [name for name in {*wanted, *self._told} if wanted.get(name) != self._told.get(name)]
        for start in range(0, len(changed), AT_ONCE):
            part = changed[start : start + AT_ONCE]
            steps: list[Operation] = [
                Put(WAITS + name, encode(WaitsRecord(step=wanted[name][0], text=wanted[name][1])))
                if name in wanted
                else Delete(WAITS + name)
                for name in part
            ]
            if not (await self._store.commit((self._guard,), steps)).succeeded:
                return
            for name in part:
                if name in wanted:
                    self._told[name] = wanted[name]
                else:
                    self._told.pop(name, None)
