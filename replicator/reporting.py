"""What this process says of the mirrors it copies: a report for each in the store, and the targets' topic ids."""

from __future__ import annotations

import time
from collections.abc import Mapping

import msgspec
import trio

from metadata_service.failures import DecisionFailed
from metadata_service.member import Member
from metadata_service.models import MirrorRecord, PartitionReport, ReportRecord, mirror_key, report_key
from metadata_service.records import encode, settle
from metadata_service.store.contract import Delete, Operation, Put, StoreError, StoreReplaced
from replicator.sharing import Sharing
from replicator.states import Condition, Status
from replicator.worker import Mirror, Progress, Replicator
from runtime import logging

log = logging.get(__name__)

EVERY = 2.0  # seconds
SOON = 0.3  # seconds, for mirrors of an operation, which waits until they are near enough
COMMIT_BYTES = 512 << 10
COMMIT_KEYS = 64
REPORTED = 3000  # partitions in a report: it has to fit into one commit
DETAIL = 200  # characters
_NO_ID = bytes(16)


def partition_report(status: Status, now: float) -> PartitionReport:
    """`now`: Unix seconds."""
    return PartitionReport(
        condition=status.condition.value,
        position=status.position,
        end=status.end,
        lag_bytes=status.lag_bytes,
        lag_seconds=round(status.lag_seconds(now), 1),
        detail=status.detail[:DETAIL],
        foreign=status.foreign,
        overtaken=status.overtaken,
    )


def report(
    progress: Progress,
    statuses: Mapping[int, Status],
    rate: float,
    now: float,
    missing: bool = False,
    operation: str | None = None,
) -> ReportRecord:
    """What is said of a mirror. `rate`: bytes a second; `now`: Unix seconds; `missing`: its source has no topic."""
    numbers = sorted(statuses)
    if len(numbers) > REPORTED:  # those that matter: what has stopped, and what is furthest behind
        well = frozenset({Condition.COPYING, Condition.CAUGHT_UP})
        numbers.sort(key=lambda one: (statuses[one].condition in well, -statuses[one].lag))
        numbers = sorted(numbers[:REPORTED])
    partitions = {number: partition_report(statuses[number], now) for number in numbers}
    if not partitions and missing:
        gone = PartitionReport(condition=Condition.MISSING.value, position=-1, end=-1, detail=progress.error)
        partitions = {0: gone}
    return ReportRecord(
        at=now,
        operation=operation,
        generation=progress.mirror.generation,
        partitions=partitions,
        rate=round(rate, 1),
        problems=tuple(str(one) for one in progress.problems),
        error=progress.error,
        remarks=progress.rules.remarks,
    )


class Reporting:
    """`run` it beside the others."""

    def __init__(self, member: Member, replicator: Replicator, sharing: Sharing) -> None:
        self._member = member
        self._replicator = replicator
        self._sharing = sharing
        self._written: dict[Mirror, ReportRecord] = {}
        self._lease = 0
        self._bytes: dict[Mirror, tuple[float, int]] = {}

    async def run(self) -> None:
        """Until cancelled."""
        all_at = trio.current_time() + EVERY
        while True:
            await trio.sleep(SOON)
            every = trio.current_time() >= all_at
            if every:
                all_at = trio.current_time() + EVERY
            if not self._written and not self._replicator.mirrors:
                continue
            try:
                if every or any(self._operation(one) is not None for one in self._replicator.mirrors):
                    await self._write(every)
                    await self._note_targets(every)
            except StoreReplaced:
                raise
            except (StoreError, DecisionFailed) as error:
                log.debug("mirrors could not be reported", error=str(error))

    def _operation(self, mirror: Mirror) -> str | None:
        """Of its record, if that is still of this copy."""
        record = self._member.view.mirrors.get((mirror.target, mirror.topic, mirror.source))
        return record.operation if record is not None and record.generation == mirror.generation else None

    def _reports(self, every: bool) -> dict[Mirror, ReportRecord]:
        statuses: dict[Mirror, dict[int, Status]] = {}
        for mirror, number, status in self._replicator.statuses():
            statuses.setdefault(mirror, {})[number] = status
        now, moment = time.time(), trio.current_time()
        out: dict[Mirror, ReportRecord] = {}
        sums: dict[Mirror, tuple[float, int]] = {}
        for mirror, progress in self._replicator.mirrors.items():
            operation = self._operation(mirror)
            if not every and operation is None:
                continue
            mine = statuses.get(mirror, {})
            copied = sum(one.bytes for one in mine.values())
            since, before = self._bytes.get(mirror, (moment, copied))
            sums[mirror] = moment, copied
            rate = max(copied - before, 0) / (moment - since) if moment > since else 0.0
            out[mirror] = report(progress, mine, rate, now, self._replicator.missing(progress), operation)
        self._bytes = sums if every else self._bytes | sums
        return out

    async def _write(self, every: bool) -> None:
        lease = self._sharing.lease
        if not self._sharing.allowed():
            return
        if lease != self._lease:
            self._written.clear()  # what was written went with the lease
            self._lease = lease
        found = self._reports(every)
        # By key: what a mirror is begun anew as has the same one.
        made: dict[str, tuple[Mirror, ReportRecord | None, Operation]] = {}
        me = self._sharing.me
        present = found.keys() if every else self._replicator.mirrors.keys()
        keys = {report_key(*me, one.target, one.topic, one.source) for one in present}
        for mirror in self._written.keys() - present:
            key = report_key(*me, mirror.target, mirror.topic, mirror.source)
            if key in keys:
                del self._written[mirror]
            else:
                made[key] = (mirror, None, Delete(key))
        for mirror, one in found.items():
            known = self._written.get(mirror)
            if known is None or msgspec.structs.replace(known, at=one.at) != one:
                key = report_key(*me, mirror.target, mirror.topic, mirror.source)
                made[key] = (mirror, one, Put(key, encode(one), lease))
        steps = list(made.values())
        while steps:
            part: list[tuple[Mirror, ReportRecord | None, Operation]] = []
            size = 0
            while steps and len(part) < COMMIT_KEYS:
                step = steps[0][2]
                size += len(step.value) if isinstance(step, Put) else 0
                if part and size > COMMIT_BYTES:
                    break
                part.append(steps.pop(0))
            await self._member.store.commit((), [step for _, _, step in part])
            for mirror, written, _ in part:
                if written is None:
                    self._written.pop(mirror, None)
                else:
                    self._written[mirror] = written

    async def _note_targets(self, every: bool) -> None:
        """The ids of targets' topics, by whoever has a mirror's first unit."""
        for mirror, progress in list(self._replicator.mirrors.items()):
            record = self._member.view.mirrors.get((mirror.target, mirror.topic, mirror.source))
            if record is None or progress.target_id == _NO_ID or not progress.owns(0):
                continue
            if not every and record.operation is None:
                continue
            identifier = progress.target_id.hex()
            if record.target_id == identifier:
                continue
            if record.target_id:
                log.warning("a mirror's target is another topic now", topic=mirror.topic, target=mirror.target)

            def noted(now: MirrorRecord | None, identifier: str = identifier) -> MirrorRecord | None:
                return None if now is None else msgspec.structs.replace(now, target_id=identifier)

            await settle(
                self._member.store, mirror_key(mirror.target, mirror.topic, mirror.source), MirrorRecord, noted
            )
