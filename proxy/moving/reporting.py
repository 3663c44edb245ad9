"""What a worker says in the store of each migration: at once, and only what is true of all that it does."""

from __future__ import annotations

import time
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field

import msgspec
import trio

from metadata_service.models import worker_key
from metadata_service.operations.fence import Fence
from metadata_service.operations.records import ENDED, HOLD_REPORTS, HoldReport, MigrationRecord
from metadata_service.records import encode
from metadata_service.registration import Registration
from metadata_service.store.clock import Backoff
from metadata_service.store.contract import Delete, LeaseExpired, Put, Store, StoreError
from runtime import logging

log = logging.get(__name__)

COUNTED = 1.0  # seconds between two reports that differ in nothing but how much was forwarded


@dataclass(slots=True)
class Known:
    """What is kept of one migration besides the fence's own. `waits`: requests, connections, and numbers of the fence's
    own writes, whose answers show that nothing passed on before the hold is on its way to the source any longer."""

    attempt: int = -1
    waits: set[object] = field(default_factory=set)
    counted: int = 0  # forwarded writes not reported yet
    reported: HoldReport | None = None
    reported_at: float = 0.0
    loading: trio.CancelScope | None = None
    lifting: bool = False
    switched: float = 0.0  # monotonic; when the switch was learned


class Reporting:
    """`run` it; `poke` it whenever something may have changed. `judged`: the oldest view a request is judged by."""

    def __init__(
        self,
        store: Store,
        registration: Registration,
        fence: Fence,
        known: MutableMapping[str, Known],
        record: Callable[[str], MigrationRecord | None],
        judged: Callable[[], int | None],
    ) -> None:
        self._store = store
        self._registration = registration
        self._fence = fence
        self._known = known
        self._record = record
        self._judged = judged
        self._poked = trio.Event()

    def poke(self) -> None:
        self._poked.set()

    async def run(self, forget: Callable[[str], None]) -> None:
        """Until cancelled. `forget` is called with migrations that have ended and hold nothing any longer."""
        backoff = Backoff(0.02, 1.0)
        lease = 0
        while True:
            await self._poked.wait()
            self._poked = trio.Event()
            if lease != self._registration.lease:
                lease = self._registration.lease  # reports went with the former one
                for known in self._known.values():
                    known.reported = None
            if not lease:
                continue
            due = {one: report for one in list(self._known) if (report := self._due(one)) is not None}
            puts: list[Put | Delete] = [Put(self._key(one), encode(report), lease) for one, report in due.items()]
            ended = [one for one in self._known if one not in due and self._ended(one)]
            puts += [Delete(self._key(one)) for one in ended if self._known[one].reported is not None]
            for one in ended:
                forget(one)
            if not puts:
                continue
            try:
                await self._store.commit((), puts)
                backoff.reset()
            except LeaseExpired:
                lease = 0
                continue
            except StoreError as error:
                log.debug("a report could not be written", error=str(error))
                self.poke()
                await backoff.pause()
                continue
            for one, report in due.items():
                if (found := self._known.get(one)) is not None:
                    found.reported, found.reported_at = report, time.monotonic()
                    found.counted = max(0, found.counted - report.forwarded)

    def _ended(self, identifier: str) -> bool:
        record = self._record(identifier)
        return (record is None or record.step in ENDED) and self._fence.report(identifier) is None

    def _key(self, identifier: str) -> str:
        record = self._registration.record
        return f"{worker_key(HOLD_REPORTS, record.instance, record.role, record.worker)}/{identifier}"

    def _due(self, identifier: str) -> HoldReport | None:
        """What is to be said now; None: nothing new, or something is still judged by what was true before."""
        known, made = self._known[identifier], self._fence.report(identifier)
        if made is None:
            return None
        known.counted += made.forwarded
        record = self._record(identifier)
        if record is None or (record.hold == "open" and not record.attempt):
            return None
        oldest = self._judged()
        if oldest is not None and oldest < made.revision:
            return None
        before = known.reported
        unanswered = made.unanswered
        if before is not None and before.revision == made.revision and not before.unanswered:
            unanswered = 0  # there was a moment; what is forwarded later is another matter
        known.waits -= {one for one in known.waits if isinstance(one, int) and not self._fence.flying(one)}
        passed = not known.waits
        report = msgspec.structs.replace(
            made, drained=made.drained and passed, passed=passed, unanswered=unanswered, forwarded=known.counted
        )
        if before is not None:
            same = msgspec.structs.replace(report, forwarded=before.forwarded, unanswered=before.unanswered) == before
            quiet = bool(report.unanswered) == bool(before.unanswered)
            if same and quiet and (not known.counted or time.monotonic() - known.reported_at < COUNTED):
                return None
        return report
