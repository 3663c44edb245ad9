"""Moves of group homes, carried out by the controller: facts gathered, commands done, steps recorded.

What is to be done says operations/home_moving.py. The plan is made by the admin API, and stands in the operation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import msgspec
import trio

from kafka_client import ClusterClient
from metadata_service import home_copying, home_rights, models
from metadata_service.asking import FoundGroup, Positions, committed, list_groups
from metadata_service.carrying import missing
from metadata_service.failures import DecisionFailed, StubRefused, Undecided
from metadata_service.group_members import GroupState, describe_group, evict
from metadata_service.group_transactions import Open, open_transactions
from metadata_service.member import Member
from metadata_service.models import GROUP_HOMES, OPERATIONS, HomeRecord, LeaseRecord, OperationRecord, WorkerRecord
from metadata_service.operations.home_moving import ENDED, Advance, Command, Facts, advance
from metadata_service.records import decode, encode, read_all
from metadata_service.store.clock import Backoff
from metadata_service.store.contract import Put, Store, StoreError, Unchanged
from metadata_service.stubs import serves
from metadata_service.view import View
from runtime import logging

log = logging.get(__name__)

LOOK = 0.05  # seconds between two looks while something is waited for


async def run_home_move(member: Member, operation: OperationRecord, guard: Unchanged) -> None:
    """A controller.Runner: until the operation has ended. Raises StoreError, DecisionFailed: to be begun again."""
    await _Move(member, operation, guard).run()


@dataclass(frozen=True, slots=True)
class Contents:
    """What both sides have. `source`: positions that move; `stale`: topics with positions at the target that neither
    move nor count; `gone`: topics nobody knows any more, whose positions stay behind."""

    source: Positions
    stale: tuple[str, ...]
    gone: tuple[str, ...]


async def contents(view: View, group: str, source: ClusterClient, target: ClusterClient) -> Contents:
    """Reads both sides. Raises Undecided: no answer, or a commit is pending in an open transaction."""
    versions = {one.name: view.clusters[one.name].snapshot.versions for one in (source, target)}
    here = await committed(source, group, versions[source.name], stable=True)
    there = await committed(target, group, versions[target.name], stable=True)
    known = {key: one for key, one in here.items() if key[0] in view.topics}
    counts = missing(view, target.name, here, there)
    stale = {topic for topic, index in there if (topic, index) not in known and (topic, index) not in counts}
    gone = {topic for topic, _ in here if topic not in view.topics}
    return Contents(known, tuple(sorted(stale)), tuple(sorted(gone)))


def _odd(*found: FoundGroup | None) -> str:
    kinds = sorted(one.kind for one in found if one is not None and one.kind in ("share", "streams"))
    return f"it is a {kinds[0]} group" if kinds else ""


async def registered_proxies(store: Store, revision: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(registered proxies without a lease, those that have not acknowledged `revision`). Raises StoreError."""
    workers = await read_all(store, models.WORKERS, WorkerRecord)
    leases = await read_all(store, models.LEASES, LeaseRecord)
    proxies = sorted(key for key, one in workers.items() if one.role == "proxy")
    silent = tuple(key for key in proxies if key not in leases)
    behind = tuple(key for key in proxies if key not in leases or leases[key].acknowledged < revision)
    return silent, behind


def refusal_of(state: GroupState, there: GroupState, source: str, target: str) -> str:
    """Why a group cannot be moved as it is; `state` at its home, `there` where it is to go."""
    if state.mixed:
        return "it has members of the classic protocol in a KIP-848 group; wait until all speak one"
    if there.members:
        return f"it has members on {target} that do not come through the federation; stop them"
    return ""


def stale_refusal(found: Contents, group: str, target: str) -> str:
    if not found.stale:
        return ""
    names = ", ".join(found.stale[:3])
    return (
        f"{target} has positions of it from earlier ({names}) that would come back; delete them there: "
        f"kafka-consumer-groups --delete-offsets --group {group} --topic ..."
    )


def without_stub(view: View, cluster: str, topics: Sequence[str]) -> list[str]:
    """Those that live elsewhere and have nothing with all their partitions on `cluster`."""
    return [
        name
        for name in topics
        if (topic := view.topics.get(name)) is not None
        and topic.cluster != cluster
        and not models.is_internal(name)
        and not serves(view.stubs.get((cluster, name)), topic.record)
    ]


@dataclass
class _Done:
    """What this process has done in the present step."""

    copied: bool = False
    undone: bool = False
    cleaned: bool = False
    trouble: str = ""
    looked: bool = False
    refusal: str = ""
    topics: tuple[str, ...] = ()
    open: Open | None = None  # transactions that were open when the copy began
    backoff: Backoff = field(default_factory=lambda: Backoff(0.05, 1.0))


class _Move:
    def __init__(self, member: Member, operation: OperationRecord, guard: Unchanged) -> None:
        self._member = member
        self._id = operation.id
        self._guard = guard
        self._group = str(operation.plan["group"])
        self._source = str(operation.plan["from"])
        self._to = str(operation.plan["to"])
        self._known_there = bool(operation.plan.get("known_there"))
        self._step = ""
        self._since = 0.0
        self._done = _Done()
        self._state = GroupState()

    async def run(self) -> None:
        while True:
            stored = await self._member.store.get(OPERATIONS + self._id)
            found = await self._member.store.get(GROUP_HOMES + self._group)
            if stored is None:
                return
            operation = decode(OperationRecord, stored.value)
            if operation.state != "running" or operation.step in ENDED:
                return
            if operation.step != self._step:
                self._step, self._since, self._done = operation.step, trio.current_time(), _Done()
            record = None if found is None else decode(HomeRecord, found.value)
            revisions = (stored.mod_revision, 0 if found is None else found.mod_revision)
            facts = await self._facts(record, revisions[1])
            waited = trio.current_time() - self._since
            next_ = advance(self._id, self._source, self._to, self._step, facts, waited)
            if next_.step is not None:
                await self._commit(operation, record, revisions, next_)
                continue
            for command in next_.commands:
                await self._carry_out(command)
            if not next_.commands or self._done.trouble:
                await self._pause()

    async def _pause(self) -> None:
        if self._done.trouble:
            await self._done.backoff.pause()
        else:
            await trio.sleep(LOOK)

    # -- facts ----------------------------------------------------------------------------------------------------

    async def _facts(self, record: HomeRecord | None, revision: int) -> Facts:
        done = self._done
        facts = Facts(record, None, done.refusal, copied=done.copied, undone=done.undone, cleaned=done.cleaned)
        try:
            if self._step == "prepare":
                facts = await self._prepared(facts)
            if self._step in ("prepare", "gather", "close"):
                self._state = await describe_group(self._member.clients.active(self._source), self._group)
                members = tuple(str(one) for one in self._state.members)
                refusal = facts.refusal or refusal_of(self._state, GroupState(), self._source, self._to)
                facts = replace(facts, members=members, refusal=refusal)
            if self._step == "close" and not done.looked:
                # It may have come into being only now, as one of a kind that cannot be described with the others.
                done.refusal = _odd((await list_groups(self._member.clients.active(self._source))).get(self._group))
                done.looked = True
                facts = replace(facts, refusal=facts.refusal or done.refusal)
            if self._step in ("prepare", "close"):
                silent, behind = await registered_proxies(self._member.store, revision)
                facts = replace(facts, silent=silent, behind=behind)
        except (DecisionFailed, Undecided) as error:
            done.trouble = str(error)
        return replace(facts, trouble=done.trouble)

    async def _prepared(self, facts: Facts) -> Facts:
        """Both sides are read once; what is missing at the target is looked at again and again."""
        view = self._member.view
        if not self._done.looked:
            source, target = self._member.clients.active(self._source), self._member.clients.active(self._to)
            found = await contents(view, self._group, source, target)
            there = await describe_group(target, self._group)
            kinds = {(await list_groups(source)).get(self._group), (await list_groups(target)).get(self._group)}
            refusal = refusal_of(GroupState(), there, self._source, self._to) or stale_refusal(
                found, self._group, self._to
            )
            refusal = _odd(*kinds) or refusal
            state = await describe_group(source, self._group)
            named = {topic for topic, _ in found.source} | {one for each in state.members for one in each.topics}
            for missing in (
                await home_rights.own(source, self._group),
                await home_rights.own(target, self._group),
                await home_rights.to_copy(target, self._group),
                await home_rights.of_members(source, target, self._group, named),
            ):
                refusal = refusal or missing
            self._done.looked, self._done.refusal, self._done.topics = True, refusal, tuple(sorted(named))
        ready = not without_stub(view, self._to, self._done.topics)
        return replace(facts, refusal=self._done.refusal, stubs=ready)

    # -- commands -------------------------------------------------------------------------------------------------

    async def _carry_out(self, command: Command) -> None:
        done = self._done
        try:
            if command == "stubs":
                await self._member.federation.ensure_stubs(self._to, done.topics)
            elif command == "evict":
                await evict(self._member.clients.active(self._source), self._group, self._state)
            elif command == "copy":
                await self._copy()
            elif command == "undo":
                await self._undo()
            elif command == "clean":
                source = self._member.clients.active(self._source)
                await evict(source, self._group, await describe_group(source, self._group))
                await home_copying.delete_group(source, self._group)
                done.cleaned = True
        except StubRefused as error:
            done.refusal = str(error)
        except (DecisionFailed, Undecided) as error:
            done.trouble = str(error)
            log.debug("a step of a home's move failed", group=self._group, step=self._step, error=str(error))
        else:
            done.trouble = ""

    async def _copy(self) -> None:
        source, target = self._member.clients.active(self._source), self._member.clients.active(self._to)
        now = await open_transactions(source, self._group)
        if self._done.open is None:
            self._done.open = now
        if left := sorted(name for name, which in self._done.open.items() if now.get(name) == which):
            # What began later cannot commit for this group any more: only these are waited for.
            raise Undecided(source.name, f"transactions that may commit for it are open: {', '.join(left[:3])}")
        found = await contents(self._member.view, self._group, source, target)
        if found.stale:
            self._done.refusal = stale_refusal(found, self._group, self._to)
            return
        await self._member.federation.ensure_stubs(self._to, sorted({topic for topic, _ in found.source}))
        spoken = self._member.view.clusters[self._to].snapshot.versions
        await home_copying.write_positions(target, self._group, found.source, spoken)
        self._done.copied = True

    async def _undo(self) -> None:
        target = self._member.clients.active(self._to)
        await home_copying.fence(target, self._group)
        if not self._known_there:
            await home_copying.delete_group(target, self._group)
        self._done.undone = True

    # -- recording ------------------------------------------------------------------------------------------------

    async def _commit(
        self, operation: OperationRecord, record: HomeRecord | None, revisions: tuple[int, int], next_: Advance
    ) -> None:
        """The group's record and the operation's in one commit; if either has changed since, they are read again."""
        assert next_.step is not None
        state = {"done": "done", "failed": "failed"}.get(next_.step, "running")
        result = {**operation.result, **({"reason": next_.reason} if next_.reason else {})}
        after = msgspec.structs.replace(operation, step=next_.step, state=state, result=result)
        conditions = [
            self._guard,
            Unchanged(OPERATIONS + self._id, revisions[0]),
            Unchanged(GROUP_HOMES + self._group, revisions[1]),
        ]
        writes = [Put(OPERATIONS + self._id, encode(after))]
        if next_.record is not None and next_.record != record:
            writes.append(Put(GROUP_HOMES + self._group, encode(next_.record)))
        done = await self._member.store.commit(conditions, writes)
        if not done.succeeded:
            held = await self._member.store.get(self._guard.key)
            if held is None or held.mod_revision != self._guard.mod_revision:
                raise StoreError("this process is not the controller any longer")
            return
        log.info("home move", group=self._group, step=next_.step, reason=next_.reason or None)
        await self._member.following.reached(done.revision)
