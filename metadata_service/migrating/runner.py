"""One migration carried on: read, decide, commit or carry out, wait for what can change; by whoever is the controller.

Between hold and release nothing is polled: the store's events, the ends of requests and the machine's own time-outs
ring a bell, and each ring is one decision. A commit is one round trip to the store, after which its result is known
here without waiting for the view.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Mapping

import msgspec
import trio

from kafka_client import ClientError
from metadata_service.failures import DecisionFailed, Undecided
from metadata_service.member import Member
from metadata_service.migrating.carrying import Carrying
from metadata_service.migrating.gathering import Seen, Times, gather
from metadata_service.migrating.hands import Hands
from metadata_service.migrating.ledger import Ledger
from metadata_service.mirroring import finishing
from metadata_service.models import HISTORY, OPERATIONS, ChangeRecord, OperationRecord, mirror_key, process_name
from metadata_service.operations import gates
from metadata_service.operations.commands import (
    AskSettings,
    Change,
    Command,
    Commit,
    Decision,
    FinishMirror,
    WriteSwitch,
)
from metadata_service.operations.facts import Facts, Known
from metadata_service.operations.migration import advance, target_known
from metadata_service.operations.records import ENDED, MigrationRecord, Step, face, migration_key
from metadata_service.records import encode
from metadata_service.store.clock import Backoff, boottime
from metadata_service.store.contract import Condition, Delete, Operation, Put, StoreError, StoreReplaced, Unchanged
from runtime import logging

log = logging.get(__name__)

LOOK = 5.0  # seconds at most between two decisions, whatever happens
WORKERS_COUNT: frozenset[Step] = frozenset(
    {"ship", "caught_up", "drain", "hold", "switch", "release", "announce", "redirect", "retire"}
)
SEVERAL: frozenset[Step] = frozenset({"finish"})  # where one thing is asked while another is awaited
QUICK = 0.002, 0.05  # seconds, the first pause and the longest, until what did not help is tried again
AWAITED = 0.25, 0.5  # ... where an event tells that it did
HURRIED: frozenset[Step] = frozenset({"drain", "hold", "close", "settle", "finish", "switch", "lift"})
COPY_EVERY = 0.5  # seconds between two looks at copies that are being filled


class Deposed(Exception):
    """This process is not the active controller any longer."""


class Running:
    """`run` it. `steps` are (step, hold, seconds on CLOCK_BOOTTIME at which it was recorded), of this process."""

    def __init__(self, member: Member, ledger: Ledger, hands: Hands, identifier: str, guard: Unchanged) -> None:
        self.steps: list[tuple[str, str, float]] = []
        self._member = member
        self._ledger = ledger
        self._hands = hands
        self._id = identifier
        self._guard = guard
        self._bell = trio.Event()
        self._carrying = Carrying(member, ledger, hands, guard, self._ring)
        self._times = Times()
        self._seen = Seen(-1)
        self._held: float | None = None  # since when this process knows writes to be held
        self._busy: list[tuple[int, tuple[Command, ...]]] = []  # being carried out, with the record's revision
        self._last: tuple[Command, ...] | None = None  # what was carried out last, of the present record
        self._again = 0.0  # when the same may be carried out again
        self._pause = 0.0
        self._waits = ""

    @property
    def waits(self) -> tuple[str, str]:
        """(the step, what it waits for there), for people."""
        return self._times.step, self._waits

    @property
    def me(self) -> str:
        return process_name(self._member.registration.record)

    def _ring(self) -> None:
        bell, self._bell = self._bell, trio.Event()
        bell.set()

    def _stored(self, keys: Iterable[str]) -> None:
        changed = list(keys)
        self._times.reported(self._ledger, self._id, changed, boottime())
        self._ring()

    async def run(self) -> None:
        """Until it has ended, or this process is not the controller any longer. Raises StoreReplaced."""
        await self._ledger.loaded()
        self._ledger.listen(self._stored)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._views)
                nursery.start_soon(self._answers)
                await self._decide(nursery)
                nursery.cancel_scope.cancel()
        finally:
            self._ledger.leave(self._stored)

    async def _views(self) -> None:
        view = self._member.view
        while True:
            view = await self._member.following.changed(view)
            self._ring()

    async def _answers(self) -> None:
        while True:
            await self._hands.changed.wait()
            self._ring()

    async def _decide(self, nursery: trio.Nursery) -> None:
        backoff = Backoff(0.02, 1.0)
        while True:
            bell = self._bell
            known = self._ledger.migration(self._id)
            if known is None or known.value.step in ENDED:
                return
            try:
                if await self._once(known, nursery):
                    backoff.reset()
                    continue
            except StoreReplaced:
                raise
            except Deposed:
                return
            except StoreError as error:
                log.warning("the store does not answer a migration", operation=self._id, error=str(error))
                await backoff.pause()
                continue
            now = boottime()
            ahead = [one - now for one in (*self._times.deadlines(known.value), self._again) if one > now]
            with trio.move_on_after(min([LOOK, *ahead]) + 0.0005):
                await bell.wait()

    async def _once(self, known: Known[MigrationRecord], nursery: trio.Nursery) -> bool:
        """One decision. Whether the record may be another one now. Raises StoreError, Deposed."""
        record, now = known.value, boottime()
        if known.revision != self._seen.revision:
            # Who has closed the copies takes its name out then: that would else be a reason to close them again.
            closed = self._seen.closed_copies if record.step == "lift" else set()
            self._seen = Seen(known.revision, closed_copies=closed)
            self._last, self._pause = None, 0.0
            self._times.saw(record, now)
            self._foresee(known, nursery)
        if record.step in WORKERS_COUNT and self._ledger.processes.revision < known.revision:
            await self._ledger.processes.look()
        facts = self._facts(known)
        decision = target_known(record, self._seen.target_ids)
        if decision.commit is None:
            decision = advance(record, facts, now)
        if decision.commit is not None and decision.commit.kind == "hold" and (why := self._unprepared(facts)):
            decision = Decision(waits=why)
            self._carry(known, (), nursery, prepare=True)
        if decision.commit is not None:
            self._waits = ""
            await self._commit(known, decision.commit, facts)
            return True
        if decision.waits != self._waits:
            self._waits = decision.waits
            log.debug("a migration waits", operation=self._id, step=record.step, what=decision.waits)
        if decision.commands:
            self._carry(known, decision.commands, nursery)
        return False

    def _facts(self, known: Known[MigrationRecord]) -> Facts:
        pending = self._hands.pending(known.value.topics)
        return gather(self._ledger, self._member.view, self.me, known, self._seen, self._times, pending)

    def _unprepared(self, facts: Facts) -> str:
        """Why no hold begins yet, besides what the machine waits for. What this process itself may have on its way
        could overtake what it sends during the hold, on another connection."""
        if facts.pending:
            return "something of this process has no answer yet"
        return "" if self._carrying.prepared else self._carrying.lacks or "leaders and connections"

    # -- commands -------------------------------------------------------------------------------------------------

    def _carry(
        self, known: Known[MigrationRecord], commands: tuple[Command, ...], nursery: trio.Nursery, prepare: bool = False
    ) -> None:
        mine = [one for revision, one in self._busy if revision == known.revision]
        if mine and (commands in mine or known.value.step not in SEVERAL):
            return
        if commands == self._last and boottime() < self._again:
            return
        self._last = commands
        self._busy.append((known.revision, commands))
        nursery.start_soon(self._carried, known, commands, self._seen, prepare)

    async def _carried(
        self, known: Known[MigrationRecord], commands: tuple[Command, ...], seen: Seen, prepare: bool
    ) -> None:
        record = known.value
        try:
            if prepare:
                await self._carrying.prepare(record)
            await self._carrying.carry(known, commands, seen)
            if record.step in ("ship", "caught_up"):
                await self._carrying.target_ids(record, seen)
        except (ClientError, Undecided) as error:
            log.warning("a step has to be done again", operation=self._id, step=record.step, error=str(error))
        finally:
            self._busy.remove((known.revision, commands))
            first, longest = QUICK if record.step in HURRIED else (COPY_EVERY, 2 * COPY_EVERY)
            if any(isinstance(one, FinishMirror | WriteSwitch) for one in commands):
                first, longest = AWAITED
            self._pause = min(max(2 * self._pause, first), longest)
            self._again = boottime() + self._pause
            self._ring()

    def _foresee(self, known: Known[MigrationRecord], nursery: trio.Nursery) -> None:
        """Ask at once what this step will want to know, while it waits for something else."""
        record, seen = known.value, self._seen

        async def final(which: Callable[[Mapping[str, str]], dict[str, str]]) -> None:
            for name, one in record.topics.items():
                try:
                    await self._carrying.final(name, record.target, which(one.final), seen)
                except (ClientError, Undecided) as error:
                    log.debug("asked too early", operation=self._id, error=str(error))
            self._ring()

        if record.step == "drain":
            self._carrying.prepared = False  # leaders may be others by the next hold
        elif record.step == "hold":
            self._carry(known, (AskSettings(record.source, tuple(sorted(record.topics))),), nursery)
        elif record.step == "finish":
            nursery.start_soon(final, gates.before_release)
        elif record.step == "redirect":
            nursery.start_soon(final, gates.after_release)
        elif record.step == "switch":
            self._carry(known, (WriteSwitch((record.target, record.source)),), nursery)

    # -- commits --------------------------------------------------------------------------------------------------

    async def _commit(self, known: Known[MigrationRecord], commit: Commit, facts: Facts) -> None:
        """Raises Deposed, StoreError: the outcome is unknown; it is read again first."""
        key, record = migration_key(self._id), commit.record
        values: dict[str, bytes | None] = {key: encode(record)}
        conditions: list[Condition] = [self._guard, Unchanged(key, known.revision)]
        for change in (*commit.also, *self._ending(known.value, record, facts)):
            values[change.key] = None if change.record is None else encode(change.record)
            conditions.append(Unchanged(change.key, change.revision))
        operation = self._ledger.operation(self._id)
        if operation is not None:
            conditions.append(Unchanged(OPERATIONS + self._id, operation.revision))
            values[OPERATIONS + self._id] = encode(self._shown(operation.value, record))
        steps: list[Operation] = [Delete(k) if v is None else Put(k, v) for k, v in values.items()]
        if commit.kind == "end":
            steps.append(
                Put(f"{HISTORY}{time.time_ns():020d}-{secrets.token_hex(4)}", self._history(operation, record))
            )
        try:
            done = await self._member.store.commit(conditions, steps)
        except StoreError:
            await self._read_again(conditions)
            raise
        if not done.succeeded:
            await self._read_again(conditions)
            return
        self._ledger.wrote(values, done.revision)
        now = boottime()
        self.steps.append((record.step, record.hold, now))
        if record.hold == "held" and known.value.hold != "held":
            self._held = now
        elif record.hold not in ("held", "switched"):
            self._held = None
        if (known.value.step, known.value.hold) != (record.step, record.hold):
            log.info("a migration's step", operation=self._id, step=record.step, hold=record.hold, why=record.reason)

    @staticmethod
    def _ending(before: MigrationRecord, record: MigrationRecord, facts: Facts) -> list[Change]:
        """The mirrors are told where to end in the very commit that records it: FinishMirror, a round trip less."""
        if (before.step, record.step) != ("settle", "finish"):
            return []
        out = []
        for name in record.topics:
            key = mirror_key(record.target, name, record.source)
            known = facts.mirrors.get(key)
            wanted = None if known is None else finishing(known.value, record.id, record.ends[name])
            if known is not None and wanted is not None:
                out.append(Change(key, wanted, known.revision))
        return out

    def _shown(self, operation: OperationRecord, record: MigrationRecord) -> OperationRecord:
        """The operation's record for people. `pause_ms`: how long writes were held, where one process saw all of it."""
        state, step = face(record)
        result = dict(operation.result)
        result.update({"attempts": record.attempt, "reason": record.reason} if record.reason else {})
        if record.step == "release":
            result["records"] = sum(one for ends in record.ends.values() for one in ends.values())
            if self._held is not None:
                result["pause_ms"] = round((boottime() - self._held) * 1000, 1)
                result["steps_ms"] = self._durations(self._held)
        return msgspec.structs.replace(operation, state=state, step=step, result=result)

    def _durations(self, since: float) -> dict[str, float]:
        """Milliseconds each step took, from then until now."""
        mine = [one for one in self.steps if one[2] >= since]
        ends = [at for _, _, at in mine[1:]] + [boottime()]
        out: dict[str, float] = {}
        for (step, _, at), end in zip(mine, ends, strict=True):
            out[step] = round(out.get(step, 0.0) + (end - at) * 1000, 1)
        return out

    def _history(self, operation: Known[OperationRecord] | None, record: MigrationRecord) -> bytes:
        result = {} if operation is None else dict(self._shown(operation.value, record).result)
        result |= {"state": record.step, "source": record.source, "target": record.target}
        result |= {"topics": sorted(record.topics), "holds": record.attempt}
        if record.reason:
            result["reason"] = record.reason
        change = ChangeRecord(
            at=time.time(),
            by="controller" if operation is None else operation.value.by,
            what=f"migrate {self._id}",
            plan={} if operation is None else operation.value.plan,
            result=result,
        )
        return encode(change)

    async def _read_again(self, conditions: list[Condition]) -> None:
        """After a commit that failed, or may have: until this process's view shows what is stored. Raises Deposed,
        StoreError."""
        backoff = Backoff(0.01, 0.5)
        while True:
            try:
                newest = 0
                for one in conditions:
                    assert isinstance(one, Unchanged)
                    found = await self._member.store.get(one.key)
                    at = found.mod_revision if found is not None else 0
                    if one.key == self._guard.key:
                        if at != one.mod_revision:
                            raise Deposed
                    else:
                        newest = max(newest, at)
                await self._member.following.reached(newest)
                await self._ledger.processes.look()
                return
            except StoreReplaced:
                raise
            except (StoreError, DecisionFailed) as error:
                log.debug("a migration cannot be read again", operation=self._id, error=str(error))
                await backoff.pause()


__all__ = ["Deposed", "Running"]
