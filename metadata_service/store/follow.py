"""Following a prefix for ever, built once on range and watch for every backend."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from metadata_service.store.clock import Backoff, boottime
from metadata_service.store.contract import Change, Compacted, Range, Snapshot, Store, StoreUnavailable, Watch

if TYPE_CHECKING:
    from collections.abc import Callable


class Follower:
    """The Following of every store."""

    def __init__(self, store: Store, prefix: str, *, clock: Callable[[], float] = boottime) -> None:
        self._store = store
        self._prefix = prefix
        self._clock = clock
        self._watch: Watch | None = None
        self._backoff = Backoff()
        self._asked_at: float | None = None
        self._revision = 0
        self._last_contact: float | None = None
        self.snapshots = 0
        """How often everything was read anew."""

    @property
    def revision(self) -> int:
        return self._watch.revision if self._watch is not None else self._revision

    @property
    def fresh_at(self) -> float | None:
        if self._watch is not None and self._watch.fresh_at is not None:
            return self._watch.fresh_at
        return self._asked_at

    @property
    def connected(self) -> bool:
        return self._watch is not None and self._watch.connected

    @property
    def last_contact(self) -> float | None:
        if self._watch is not None and self._watch.last_contact is not None:
            return self._watch.last_contact
        return self._last_contact

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Snapshot | Change:
        while True:
            if self._watch is None:
                if (found := await self._read()) is None:
                    continue
                self._watch = self._store.watch(self._prefix, found.revision + 1)
                self._revision = found.revision
                self.snapshots += 1
                return Snapshot(found.revision, found.items)
            try:
                change = await self._watch.__anext__()
            except Compacted:
                await self._end_watch()
                # Where history is lost again and again, do not read everything again and again at full speed.
                await self._backoff.pause()
                continue
            self._backoff.reset()
            return change

    async def _read(self) -> Range | None:
        asked_at = self._clock()
        try:
            found = await self._store.range(self._prefix)
        except StoreUnavailable:
            await self._backoff.pause()
            return None
        self._asked_at = asked_at
        self._last_contact = self._clock()
        return found

    async def _end_watch(self) -> None:
        if self._watch is None:
            return
        watch, self._watch = self._watch, None
        self._revision = watch.revision
        self._asked_at = watch.fresh_at or self._asked_at
        self._last_contact = watch.last_contact or self._last_contact
        await watch.__aexit__(None, None, None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._end_watch()
