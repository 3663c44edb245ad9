"""What remains to be done about migrations that have ended, or that another process carries on.

Confirming is every process's own duty, elected or not: its name stays in a record until it says that nothing of it is
on its way. The rest is the controller's: closes that came late, names of processes whose registration is gone, what
mirrors said of their ends, and the records of migrations long past (the history keeps what came of them).
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import trio

from metadata_service.member import Member
from metadata_service.migrating.carrying import Carrying
from metadata_service.migrating.gathering import Seen, Times, gather
from metadata_service.migrating.hands import Hands
from metadata_service.migrating.ledger import Ledger
from metadata_service.models import FINISHED, OPERATIONS, FinishedRecord, mirror_key, process_name
from metadata_service.operations.commands import Commit, Reopen
from metadata_service.operations.facts import Facts, Known
from metadata_service.operations.migration import confirmed, stray
from metadata_service.operations.records import ENDED, MigrationRecord, migration_key
from metadata_service.records import decode, encode
from metadata_service.store.clock import Backoff, boottime
from metadata_service.store.contract import Condition, Delete, Operation, Put, StoreError, StoreReplaced, Unchanged
from metadata_service.view import View
from runtime import logging

log = logging.get(__name__)

KEPT = 3600.0  # seconds the record of an ended migration stays, as counted by whoever is the controller
STRAY_EVERY = 30.0  # seconds between two looks whether a topic was closed late
LOOK = 30.0  # seconds at most between two looks whether there is something to confirm


async def confirming(member: Member, hands: Hands, running: Mapping[str, object]) -> None:
    """Takes this process's name out of records whose migration it does not carry on itself; until cancelled.

    Raises StoreReplaced.
    """
    backoff = Backoff(0.05, 5.0)
    while True:
        view, changed = member.view, hands.changed
        me = process_name(member.registration.record)
        try:
            for identifier, record in view.migrations.items():
                ours = identifier in running and record.step not in ENDED
                if ours or record.hold == "lifted" or hands.pending(record.topics):
                    continue
                decision = confirmed(record, me)
                if decision.commit is not None:
                    key = migration_key(identifier)
                    seen = Unchanged(key, member.following.changed_at(key))
                    await member.store.commit((seen,), (Put(key, encode(decision.commit.record)),))
            backoff.reset()
        except StoreReplaced:
            raise
        except StoreError as error:
            log.debug("a migration could not be confirmed", error=str(error))
            await backoff.pause()
            continue
        await _either(member, view, changed)


async def _either(member: Member, view: View, answered: trio.Event) -> None:
    """Until the view is another one, or something is answered; a while at most."""

    async def wait(scope: trio.CancelScope) -> None:
        await answered.wait()
        scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait, nursery.cancel_scope)
        await member.following.changed_or(view, LOOK)
        nursery.cancel_scope.cancel()


class Tidying:
    """The controller's part. `guard` holds as long as this process is the controller."""

    def __init__(self, member: Member, ledger: Ledger, hands: Hands, guard: Unchanged) -> None:
        self._member = member
        self._ledger = ledger
        self._hands = hands
        self._guard = guard
        self._ended: dict[str, float] = {}  # since when each is known to have ended
        self._looked: dict[str, float] = {}  # when each was last looked at for a late close

    async def round(self) -> None:
        """Everything once. Raises DecisionFailed, StoreError, ClientError."""
        view, now = self._member.view, boottime()
        ended = {name: one for name, one in view.migrations.items() if one.step in ENDED}
        self._ended = {name: self._ended.get(name, now) for name in ended}
        self._looked = {name: at for name, at in self._looked.items() if name in ended}
        if not view.migrations:
            return
        await self._ledger.loaded()
        for identifier, record in ended.items():
            await self._names(identifier, record)
            due = now - self._looked.get(identifier, 0.0) >= STRAY_EVERY
            if due and record.saved and record.step != "done" and _newest(view, identifier):
                self._looked[identifier] = now
                await self._stray(identifier)
            if now - self._ended[identifier] >= KEPT and not record.reopeners and not record.retirers:
                await self._forget(identifier)
        await self._finished(view)

    async def _names(self, identifier: str, record: MigrationRecord) -> None:
        """Processes that are not registered any longer have nothing on their way, or an operator has said so."""
        registered = self._ledger.registered()
        reopeners = tuple(one for one in record.reopeners if one in registered)
        retirers = tuple(one for one in record.retirers if one in registered)
        if (reopeners, retirers) == (record.reopeners, record.retirers):
            return
        key = migration_key(identifier)
        left = msgspec.structs.replace(record, reopeners=reopeners, retirers=retirers)
        seen = Unchanged(key, self._member.following.changed_at(key))
        await self._member.store.commit((self._guard, seen), (Put(key, encode(left)),))

    async def _stray(self, identifier: str) -> None:
        """A close that came after its migration was given up."""
        seen = Seen(-1)
        carrying = Carrying(self._member, self._ledger, self._hands, self._guard, lambda: None)
        for _ in range(4):  # asked, named, reopened
            known = self._ledger.migration(identifier)
            if known is None:
                return
            if known.revision != seen.revision:
                seen = Seen(known.revision, settings=seen.settings)
            facts = self._facts(known, seen)
            decision = stray(known.value, facts)
            if decision.commit is not None:
                if not await self._commit(known, decision.commit):
                    return
            elif decision.commands:
                if any(isinstance(one, Reopen) for one in decision.commands):
                    log.warning("a topic was closed after its migration had ended", operation=identifier)
                await carrying.carry(known, decision.commands, seen)
                if any(isinstance(one, Reopen) for one in decision.commands):
                    return
            else:
                return

    def _facts(self, known: Known[MigrationRecord], seen: Seen) -> Facts:
        pending = self._hands.pending(known.value.topics)
        me = process_name(self._member.registration.record)
        return gather(self._ledger, self._member.view, me, known, seen, Times(), pending)

    async def _commit(self, known: Known[MigrationRecord], commit: Commit) -> bool:
        key = migration_key(commit.record.id)
        conditions: list[Condition] = [self._guard, Unchanged(key, known.revision)]
        values: dict[str, bytes | None] = {key: encode(commit.record)}
        for change in commit.also:
            conditions.append(Unchanged(change.key, change.revision))
            values[change.key] = None if change.record is None else encode(change.record)
        steps: list[Operation] = [Delete(k) if v is None else Put(k, v) for k, v in values.items()]
        done = await self._member.store.commit(conditions, steps)
        if done.succeeded:
            self._ledger.wrote(values, done.revision)
        return done.succeeded

    async def _forget(self, identifier: str) -> None:
        key = migration_key(identifier)
        seen = Unchanged(key, self._member.following.changed_at(key))
        await self._member.store.commit((self._guard, seen), (Delete(key), Delete(OPERATIONS + identifier)))
        log.info("the record of a migration that has ended is dropped; the history has it", operation=identifier)

    async def _finished(self, view: View) -> None:
        """What mirrors said of their ends means nothing once the mirror is gone, or runs again."""
        for one in self._ledger.copying.under(FINISHED):
            target, _, rest = one.key[len(FINISHED) :].partition("/")
            topic, source, _ = rest.split("/", 2)
            mirror, key = view.mirrors.get((target, topic, source)), mirror_key(target, topic, source)
            said = decode(FinishedRecord, one.value)
            if mirror is None or (mirror.operation, mirror.generation) != (said.operation, said.generation):
                seen = Unchanged(key, self._member.following.changed_at(key)), Unchanged(one.key, one.mod_revision)
                await self._member.store.commit((self._guard, *seen), (Delete(one.key),))


def _newest(view: View, identifier: str) -> bool:
    """Whether no migration of the same topics was recorded after this one, as far as the view can tell."""
    mine = view.migrations[identifier]
    started = view.operations[identifier].started if identifier in view.operations else 0.0
    return not any(
        set(one.topics) & set(mine.topics)
        and (view.operations[name].started if name in view.operations else 0.0) > started
        for name, one in view.migrations.items()
        if name != identifier
    )
