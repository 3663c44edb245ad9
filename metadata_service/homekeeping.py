"""The controller's duties about groups and transactional ids: homes for those that clusters already know, conflicts,
and forgetting those that are gone for long."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

import trio

from kafka_client import ClusterClient
from metadata_service import homes
from metadata_service.asking import list_groups, list_transactions
from metadata_service.carrying import Carrying
from metadata_service.failures import Undecided
from metadata_service.member import Member
from metadata_service.models import GROUP_HOMES, TRANSACTION_HOMES, HomeRecord
from metadata_service.records import decode, put_new, settle
from metadata_service.store.contract import Condition, Delete, Operation, Unchanged
from runtime import logging

log = logging.get(__name__)

FORGET_AFTER = 24 * 3600.0  # seconds a home is kept for a group its cluster does not know
FORGET_EARLY = 120.0  # ... where there are more than ABSENT_MAX of them: anybody who may use groups can name many
ABSENT_MAX = 10_000
CHANGES_AT_ONCE = 200  # conflicts written in one round
FORGOTTEN_AT_ONCE, FORGOTTEN_IN_ONE = 2_000, 32  # homes in a round, and in a commit

Found = TypeVar("Found")


class Homekeeping:
    """`guard` holds as long as this process is the active controller."""

    def __init__(self, member: Member, guard: Unchanged, *, forget_after: float = FORGET_AFTER) -> None:
        self._member = member
        self._guard = guard
        self._forget_after = forget_after
        self._absent_since: dict[str, float] = {}
        self._carrying = Carrying(member)

    async def round(self) -> None:
        """Looks at every reachable cluster once."""
        view = self._member.view
        if view.placement is None:
            return
        placement = view.placement
        indexes = {name: one.record.index for name, one in view.clusters.items()}
        groups = await self._ask(list_groups)
        silent = {name for name, one in view.clusters.items() if one.record.state == "active"} - groups.keys()
        new = {
            name: homes.decide_group(name, found, placement, indexes, silent)
            for name, found in homes.by_name(groups, view.groups).items()
        }
        await self._adopt(GROUP_HOMES, new)
        await self._review(GROUP_HOMES, view.groups, groups)
        await self._carrying.round(groups)
        transactions = await self._ask(list_transactions)
        ids = {
            name: homes.decide_transaction(name, found, placement, indexes)
            for name, found in homes.by_name(transactions, view.transactions).items()
        }
        await self._adopt(TRANSACTION_HOMES, ids)
        await self._review(TRANSACTION_HOMES, view.transactions, transactions)

    async def _adopt(self, prefix: str, new: Mapping[str, HomeRecord]) -> None:
        if not new:
            return
        await put_new(
            self._member.store,
            [(prefix + name, record) for name, record in sorted(new.items())],
            conditions=(self._guard,),
        )
        log.info("homes adopted", kind=prefix.split("/")[-2], count=len(new))
        for record in new.values():
            if record.conflict:
                log.warning("known to several clusters", name=record.name, home=record.cluster, others=record.conflict)

    async def _review(
        self, prefix: str, known: Mapping[str, HomeRecord], listed: Mapping[str, Mapping[str, Found]]
    ) -> None:
        turned = homes.by_name(listed)
        left = CHANGES_AT_ONCE
        known = {name: record for name, record in known.items() if record.move is None}
        for name, record in known.items():
            wanted = homes.review(record, turned.get(name, {}), listed)
            if wanted != record and left:
                left -= 1
                await self._change(prefix + name, record, wanted)
        now = trio.current_time()
        absent = {prefix + one for one in homes.gone(list(known.values()), listed)}
        for key in [key for key in self._absent_since if key.startswith(prefix) and key not in absent]:
            del self._absent_since[key]
        for key in sorted(absent):
            self._absent_since.setdefault(key, now)
        due = homes.forgettable(
            {key: now - self._absent_since[key] for key in absent}, self._forget_after, FORGET_EARLY, ABSENT_MAX
        )
        await self._forget(prefix, known, due)

    async def _forget(self, prefix: str, known: Mapping[str, HomeRecord], keys: list[str]) -> None:
        """Forgets homes, as many as fit at once; those that somebody has changed meanwhile are left alone."""
        for start in range(0, min(len(keys), FORGOTTEN_AT_ONCE), FORGOTTEN_IN_ONE):
            conditions: list[Condition] = [self._guard]
            operations: list[Operation] = []
            for key in keys[start : start + FORGOTTEN_IN_ONE]:
                stored = await self._member.store.get(key)
                if stored is not None and decode(HomeRecord, stored.value) == known[key.removeprefix(prefix)]:
                    conditions.append(Unchanged(key, stored.mod_revision))
                    operations.append(Delete(key))
            if operations:
                await self._member.store.commit(conditions, operations)

    async def _change(self, key: str, seen: HomeRecord, wanted: HomeRecord | None) -> None:
        """Replaces what was seen; leaves alone what somebody has changed meanwhile."""
        await settle(
            self._member.store,
            key,
            HomeRecord,
            lambda now: wanted if now == seen else now,
            conditions=(self._guard,),
        )

    async def _ask(self, ask: Callable[[ClusterClient], Awaitable[dict[str, Found]]]) -> dict[str, dict[str, Found]]:
        """By cluster; a cluster that does not answer is left out."""
        answers: dict[str, dict[str, Found]] = {}

        async def one(client: ClusterClient) -> None:
            try:
                answers[client.name] = await ask(client)
            except Undecided as error:
                log.warning("groups or transactions could not be listed", error=str(error))

        async with trio.open_nursery() as nursery:
            for name, cluster in self._member.view.clusters.items():
                client = self._member.clients.get(name)
                if client is not None and cluster.snapshot.reachable:
                    nursery.start_soon(one, client)
        return answers
