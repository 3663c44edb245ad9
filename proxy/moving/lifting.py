"""A hold that nobody ends is ended by a worker: the one that lifts also opens the source again, and says when it has.

It is recorded among the reopeners first, and taken out once nothing of it is without an answer; until then no other
hold of these topics begins.
"""

from __future__ import annotations

import trio

from kafka_client import ClientError
from metadata_service.member import Member
from metadata_service.migrating import asking, changing
from metadata_service.migrating.hands import Hands
from metadata_service.migrating.leaders import Leaders
from metadata_service.models import process_name
from metadata_service.operations import migration as machine
from metadata_service.operations.commands import Decision, Probe, Reopen
from metadata_service.operations.facts import Facts, Part
from metadata_service.operations.facts import Probe as Answer
from metadata_service.operations.records import ENDED, MigrationRecord, migration_key
from metadata_service.records import encode
from metadata_service.store.clock import Backoff
from metadata_service.store.contract import Put, StoreError, Unchanged
from runtime import logging

log = logging.get(__name__)


class Lifter:
    """Of one worker. `run` it."""

    def __init__(self, member: Member) -> None:
        self._member = member
        self._hands = Hands(member.clients.get)
        self.me = process_name(member.registration.record)

    async def run(self) -> None:
        """Goes on with what this process has begun, until cancelled."""
        following = self._member.following
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._hands.run)
            backoff = Backoff(0.02, 1.0)
            while True:
                view = following.view
                mine = [one for one in view.migrations.values() if self.me in one.reopeners]
                for record in mine:
                    try:
                        await self._go_on(record)
                        backoff.reset()
                    except (StoreError, ClientError) as error:
                        log.warning("a topic is not open again yet", operation=record.id, error=str(error))
                        await backoff.pause()
                await following.changed_or(view, 0.2 if mine else 60.0)

    async def lift(self, record: MigrationRecord, revision: int) -> None:
        """End the hold by compare-and-swap; who comes too late changes nothing. Never raises but Cancelled."""
        following = self._member.following
        if following.view.migrations.get(record.id) is not record:
            return
        reason = f"no end of it came within {record.options.budget:g} s"
        try:
            if await self._commit(record, machine.lift(record, self.me, reason)):
                log.warning(
                    "writes were held for too long and go on", operation=record.id, topics=sorted(record.topics)
                )
                now = following.view.migrations.get(record.id)
                if now is not None and now.hold == "lifted" and not now.closing:
                    await self._commit(now, machine.reopened(now, self._facts(now, {})))
        except StoreError as error:
            log.warning("a hold could not be ended", operation=record.id, error=str(error))

    async def _go_on(self, record: MigrationRecord) -> None:
        if record.hold != "lifted":
            if not self._hands.pending(record.topics) and (record.step in ENDED or record.hold != "open"):
                await self._commit(record, machine.confirmed(record, self.me))
            return
        decision = machine.reopened(record, self._facts(record, {}))
        probes: dict[Part, Answer] = {}
        for command in decision.commands:
            client = self._member.clients.get(record.source)
            if client is None:
                return
            if isinstance(command, Reopen):
                await changing.alter(self._hands, client, {command.topic: command.saved})
            elif isinstance(command, Probe):
                small = frozenset(
                    name for name in record.topics if _limit(record.saved.get(name, {})) < len(asking.WRONG)
                )
                probes.update(await asking.probe(Leaders(client), command.parts, small))
        if decision.commands:
            decision = machine.reopened(record, self._facts(record, probes))
        if decision.commit is not None:
            await self._commit(record, decision)

    def _facts(self, record: MigrationRecord, probes: dict[Part, Answer]) -> Facts:
        return Facts(
            me=self.me,
            revision=0,
            entered=0.0,
            held_since=0.0,
            probes=probes,
            pending=self._hands.pending(record.topics),
        )

    async def _commit(self, record: MigrationRecord, decision: Decision) -> bool:
        """Write the record, where it is as it was read; then wait until this process's view shows it."""
        if decision.commit is None:
            return False
        key, following = migration_key(record.id), self._member.following
        if following.view.migrations.get(record.id) is not record:
            return False
        condition = Unchanged(key, following.changed_at(key))
        done = await self._member.store.commit((condition,), (Put(key, encode(decision.commit.record)),))
        if done.succeeded:
            with trio.move_on_after(2.0):
                while following.view.revision < done.revision:
                    await following.changed(following.view)
        return done.succeeded


def _limit(saved: dict[str, str | None]) -> int:
    return int(saved.get("max.message.bytes") or 1 << 30)
