"""When a federation's migrations take which step, as its store tells it: for tests and measurements beside it.

async with trio.open_nursery() as nursery:
    steps = Steps(federation)
    nursery.start_soon(steps.run)
    await steps.reached("hold", after=time.time())
"""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import NamedTuple

import trio

from metadata_service.operations.records import ENDED, MIGRATIONS, MigrationRecord
from metadata_service.records import decode
from metadata_service.store.contract import Snapshot, StoreError
from metadata_service.store.open import open_store
from runtime.settings import EmbeddedStore
from tools.local_federation import Federation

RETRY = 0.2
SERVED = frozenset({"redirect", "retire", "done"})
"""Clients are served by the target."""


class Seen(NamedTuple):
    """A record as it was seen at a moment (Unix seconds)."""

    at: float
    record: MigrationRecord


class Steps:
    """Run it in the background; goes on over restarts of the store."""

    def __init__(self, federation: Federation) -> None:
        self._federation = federation
        self.seen: list[Seen] = []
        self.now: dict[str, MigrationRecord] = {}
        self._changed = trio.Event()

    async def run(self) -> None:
        """Until cancelled."""
        settings = self._federation.settings
        place = EmbeddedStore(path=settings["store"]["path"])
        while True:
            try:
                async with open_store(place, settings["federation"]) as store, store.follow(MIGRATIONS) as following:
                    async for item in following:
                        if isinstance(item, Snapshot):
                            self.now = {}
                            for kv in item.items:
                                self._take(decode(MigrationRecord, kv.value))
                        else:
                            for event in item.events:
                                if event.kind == "put":
                                    self._take(decode(MigrationRecord, event.kv.value))
                                else:
                                    self.now.pop(event.kv.key.removeprefix(MIGRATIONS), None)
                        self._changed.set()
                        self._changed = trio.Event()
            except (StoreError, OSError):
                await trio.sleep(RETRY)

    def _take(self, record: MigrationRecord) -> None:
        if self.now.get(record.id) != record:
            self.now[record.id] = record
            self.seen.append(Seen(time.time(), record))

    async def changed(self, seconds: float) -> None:
        """Until something is different, at most so long."""
        with trio.move_on_after(seconds):
            await self._changed.wait()

    async def reached(self, step: str, topics: Collection[str], after: float, seconds: float) -> MigrationRecord | None:
        """The record once a migration of one of these topics took this step after a moment; None: not in time."""
        deadline = trio.current_time() + seconds
        while True:
            for at, record in reversed(self.seen):
                if at < after:
                    break
                if record.step == step and set(topics) & record.topics.keys():
                    return record
            left = deadline - trio.current_time()
            if left <= 0:
                return None
            await self.changed(left)

    def under_way(self, topics: Collection[str]) -> list[MigrationRecord]:
        """Migrations of these topics that have neither ended nor come to where clients are served by the target."""
        return [
            record
            for record in self.now.values()
            if record.step not in ENDED | SERVED and set(topics) & record.topics.keys()
        ]

    def of(self, topics: Collection[str], since: float) -> list[Seen]:
        """What was seen of these topics' migrations since a moment."""
        return [one for one in self.seen if one.at >= since and set(topics) & one.record.topics.keys()]
