"""Which units this process copies: claimed in the store under its lease, given back when others are to have them.

A unit is ours from the commit that created its key until the key is deleted, or the lease under which it was written
has ended. What we hold under a lease that may have run out is stopped before anything new is claimed.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

import trio

from metadata_service.member import Member
from metadata_service.models import (
    ASSIGNMENTS,
    COPIERS,
    AssignmentRecord,
    CopierRecord,
    MirrorRecord,
    assignment_key,
    copier_key,
    mirror_key,
)
from metadata_service.records import decode, encode
from metadata_service.store.clock import Backoff
from metadata_service.store.contract import (
    Condition,
    Delete,
    KeyValue,
    Operation,
    Put,
    Snapshot,
    StoreError,
    StoreRefused,
    StoreReplaced,
    Unchanged,
)
from metadata_service.view import View
from replicator.assignment import Copier, UnitKey, decide
from replicator.link import UNIT_SIZE
from replicator.worker import Mirror, Replicator
from runtime import logging

log = logging.get(__name__)

LOOK = 0.5  # seconds between two looks at the lease
SETTLE = 0.2  # seconds in which changes come together: workers that start at the same time know of each other
STOPPING = 10.0  # seconds a unit may take to stop before it is given back all the same (its successor fences it)
AT_ONCE = 32  # claims in one commit

COPYING = frozenset({"running", "finishing"})
_STRANGER = Copier("", -1)  # whoever it is, it is not one of those that share at present


class Wanted(NamedTuple):
    """A unit that somebody should copy."""

    mirror: Mirror
    partitions: tuple[int, ...]


class Seen(NamedTuple):
    """A claim as the store has it."""

    holder: Copier
    revision: int
    lease: int


def units_of(view: View, known: Callable[[MirrorRecord], int]) -> dict[UnitKey, Wanted]:
    """Every unit that somebody should copy. `known`: partitions a mirror was last known to have.

    A mirror whose source does not show the topic has one unit at least, so that somebody looks what is the matter.
    """
    out: dict[UnitKey, Wanted] = {}
    for record in view.mirrors.values():
        link = view.links.get((record.source, record.target))
        if record.state not in COPYING or (link is not None and link.state == "paused"):
            continue
        cluster = view.clusters.get(record.source)
        topic = cluster.snapshot.topics.get(record.topic) if cluster is not None else None
        count = max(len(topic.partitions) if topic is not None else 0, known(record), 1)
        mirror = Mirror(record.topic, record.source, record.target, record.mode, record.generation)
        for start in range(0, count, UNIT_SIZE):
            partitions = tuple(range(start, min(start + UNIT_SIZE, count)))
            key = UnitKey(record.target, record.topic, record.source, start // UNIT_SIZE)
            out[key] = Wanted(mirror, partitions)
    return out


def _finishing(view: View, unit: UnitKey) -> bool:
    record = view.mirrors.get((unit.target, unit.topic, unit.source))
    return record is not None and record.state == "finishing"


def unit_of(key: str) -> UnitKey:
    """Out of an assignment's key."""
    target, topic, source, number = key[len(ASSIGNMENTS) :].split("/")
    return UnitKey(target, topic, source, int(number))


class Sharing:
    """`run` it beside the replicator, which does what it says."""

    def __init__(self, member: Member, replicator: Replicator) -> None:
        self._member = member
        self._replicator = replicator
        record = member.registration.record
        self.me = Copier(record.instance, record.worker)
        self.mine: dict[UnitKey, int] = {}  # with the revision of the claim
        self.lease = 0  # under which `mine` was claimed
        self._mirrors: dict[UnitKey, Mirror] = {}
        self._seen: dict[UnitKey, Seen] = {}
        self._workers: dict[str, Copier] = {}
        self._loaded: set[str] = set()
        self._changed = trio.Event()

    def allowed(self) -> bool:
        """Whether what we hold is certainly still ours."""
        registration = self._member.registration
        return self.lease != 0 and registration.lease == self.lease and registration.fresh

    async def run(self) -> None:
        """Until cancelled. Costs nothing while there are no mirrors. Raises StoreReplaced."""
        while True:
            view = self._member.view
            if not view.mirrors:
                await self._member.following.changed(view)
                continue
            for kept in (self._loaded, self._seen, self._workers):
                kept.clear()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._follow, ASSIGNMENTS, self._assignment)
                nursery.start_soon(self._follow, COPIERS, self._worker)
                await self._share()
                nursery.cancel_scope.cancel()

    # -- what the store says --------------------------------------------------------------------------------------

    async def _follow(self, prefix: str, apply: Callable[[str, KeyValue | None], None]) -> None:
        backoff = Backoff(0.2, 10.0)
        known: set[str] = set()
        while True:
            try:
                async with self._member.store.follow(prefix) as following:
                    async for item in following:
                        if isinstance(item, Snapshot):
                            for key in known - {one.key for one in item.items}:
                                apply(key, None)
                            known = {one.key for one in item.items}
                            for one in item.items:
                                apply(one.key, one)
                            self._loaded.add(prefix)
                        else:
                            for event in item.events:
                                present = event.kind == "put"
                                (known.add if present else known.discard)(event.kv.key)
                                apply(event.kv.key, event.kv if present else None)
                        backoff.reset()
                        self._changed.set()
            except StoreRefused as error:
                log.error("the store refuses to be followed", error=str(error))
            await backoff.pause()

    def _assignment(self, key: str, value: KeyValue | None) -> None:
        unit = unit_of(key)
        if value is None:
            self._seen.pop(unit, None)
        else:
            record = decode(AssignmentRecord, value.value)
            self._seen[unit] = Seen(Copier(record.instance, record.worker), value.mod_revision, value.lease)

    def _worker(self, key: str, value: KeyValue | None) -> None:
        if value is None:
            self._workers.pop(key, None)
        else:
            instance, _, number = key[len(COPIERS) :].partition("/")
            self._workers[key] = Copier(instance, int(number))

    def _held(self) -> dict[UnitKey, Copier]:
        """Who has what. Our own name on something we do not hold is a former life's, which ends with its lease."""
        out = {unit: _STRANGER if seen.holder == self.me else seen.holder for unit, seen in self._seen.items()}
        out.update(dict.fromkeys(self.mine, self.me))
        return out

    # -- sharing --------------------------------------------------------------------------------------------------

    async def _share(self) -> None:
        """Until there is no mirror, and nothing of ours, any more."""
        backoff = Backoff(0.2, 2.0)
        while True:
            view = self._member.view
            self._changed = trio.Event()
            try:
                await self._round(view)
                backoff.reset()
            except StoreReplaced:
                raise
            except StoreError as error:
                log.debug("units could not be claimed or given back", error=str(error))
                await backoff.pause()
            if not view.mirrors and not self.mine and self._member.view is view:
                await self._retire()
                return
            with trio.move_on_after(LOOK):
                await self._change(view)
                await trio.sleep(SETTLE)

    async def _change(self, view: View) -> None:
        """Until the view or what the store says of units is another."""
        async with trio.open_nursery() as nursery:

            async def first(wait: Callable[[], object]) -> None:
                await wait()  # type: ignore[misc]
                nursery.cancel_scope.cancel()

            nursery.start_soon(first, self._changed.wait)
            nursery.start_soon(first, lambda: self._member.following.changed(view))

    async def _round(self, view: View) -> None:
        registration = self._member.registration
        if not self.allowed():
            await self._drop()
        if self._loaded != {ASSIGNMENTS, COPIERS}:
            return
        if not self.allowed():
            if not registration.fresh or not registration.lease:
                return
            await self._introduce(registration.lease)
            return  # those who begin at the same time see each other first
        await self._recognise()
        units = units_of(view, self._known)
        self._mirrors |= {unit: one.mirror for unit, one in units.items()}
        workers = {*self._workers.values(), self.me}
        decision = decide(units.keys(), self._held(), workers, self.me)
        # Clients wait for a unit that is finishing: it stays where it is.
        give_back = [unit for unit in decision.give_back if unit not in units or not _finishing(view, unit)]
        if give_back:
            await self._give_back(give_back)
        for start in range(0, len(decision.claim), AT_ONCE):
            await self._claim(decision.claim[start : start + AT_ONCE], units)
        self._mirrors = {unit: mirror for unit, mirror in self._mirrors.items() if unit in units or unit in self.mine}
        here = {self._mirrors[unit] for unit in self.mine}
        for mirror in [*here, *self._replicator.mirrors.keys() - here]:
            self._own(mirror)
        for key, link in view.links.items():
            self._limit(key, link.rate)

    async def _recognise(self) -> None:
        """Claims of this lease whose answer was lost are ours. Raises StoreError."""
        for unit, seen in list(self._seen.items()):
            if seen.lease == self.lease and unit not in self.mine:
                found = await self._member.store.get(assignment_key(*unit))
                if found is not None and found.lease == self.lease:
                    self._mirrors.setdefault(unit, Mirror(unit.topic, unit.source, unit.target))
                    self.mine[unit] = found.mod_revision
                elif self._seen.get(unit) is seen:
                    del self._seen[unit]

    def _known(self, record: MirrorRecord) -> int:
        mirror = Mirror(record.topic, record.source, record.target, record.mode, record.generation)
        progress = self._replicator.mirrors.get(mirror)
        return progress.partitions if progress is not None else 0

    def _limit(self, link: tuple[str, str], rate: float) -> None:
        """Our part of a link's rate: that of the units on it which are ours."""
        on_it = [unit for unit in {*self._seen, *self.mine} if (unit.source, unit.target) == link]
        ours = sum(unit in self.mine for unit in on_it)
        self._replicator.limit(*link, rate * ours / len(on_it) if rate > 0 and ours else None)

    async def _introduce(self, lease: int) -> None:
        """Take part in sharing under this lease. Raises StoreError."""
        me, store = self.me, self._member.store
        # What a former life of this process still holds need not wait for its lease to end: its successor is here.
        for unit, seen in list(self._seen.items()):
            if seen.holder == me:
                key = assignment_key(*unit)
                await store.commit((Unchanged(key, seen.revision),), (Delete(key),))
        record = CopierRecord(pid=os.getpid(), host=socket.gethostname())
        await store.commit((), (Put(copier_key(*me), encode(record), lease),))
        self.lease = lease

    async def _retire(self) -> None:
        """There is nothing to share: nobody need look for us."""
        self.lease = 0
        try:
            await self._member.store.commit((), (Delete(copier_key(*self.me)),))
        except StoreError as error:
            log.debug("could not leave the workers that share", error=str(error))

    async def _drop(self) -> None:
        """Stop everything: the lease is gone, or may be."""
        if self.mine:
            log.warning("this process's lease may have ended; its units are stopped", units=len(self.mine))
            units = list(self.mine)
            self.mine.clear()
            await self._stop(units)
        self.lease = 0

    async def _stop(self, units: Collection[UnitKey]) -> None:
        """Returns when nothing of these, which are not in `mine` any more, is written; or after STOPPING."""
        ended = [event for mirror in {self._mirrors[one] for one in units} for event in self._own(mirror)]
        with trio.move_on_after(STOPPING):
            for event in ended:
                await event.wait()
            return
        log.error("units did not stop in time", units=len(units))

    def _own(self, mirror: Mirror) -> list[trio.Event]:
        return self._replicator.own(mirror, [unit.number for unit in self.mine if self._mirrors[unit] == mirror])

    async def _give_back(self, units: Sequence[UnitKey]) -> None:
        revisions = {unit: self.mine.pop(unit) for unit in units}
        await self._stop(units)
        for unit, revision in revisions.items():
            key = assignment_key(*unit)
            try:
                await self._member.store.commit((Unchanged(key, revision),), (Delete(key),))
            except StoreError:
                self.mine[unit] = revision  # it is still ours, and is given back later
                raise
            if (seen := self._seen.get(unit)) is not None and seen.revision == revision:
                del self._seen[unit]
            log.info("a unit was given back", topic=unit.topic, target=unit.target, unit=unit.number)

    async def _claim(self, units: Sequence[UnitKey], wanted: Mapping[UnitKey, Wanted]) -> None:
        """Raises StoreError; whether it has happened is then found out by `_recognise`."""
        # Not by an old view: a mirror that has ended must not be begun once more.
        following = self._member.following
        mirrors = {unit: mirror_key(unit.target, unit.topic, unit.source) for unit in units}
        revisions = {key: following.changed_at(key) for key in sorted(set(mirrors.values()))}
        units = [unit for unit in units if revisions[mirrors[unit]]]
        conditions: list[Condition] = [Unchanged(key, revision) for key, revision in revisions.items() if revision]
        puts: list[Operation] = []
        for unit in units:
            key, now = assignment_key(*unit), time.time()
            record = AssignmentRecord(
                instance=self.me.instance, worker=self.me.worker, partitions=wanted[unit].partitions, since=now
            )
            conditions.append(Unchanged(key, 0))
            puts.append(Put(key, encode(record), self.lease))
        done = await self._member.store.commit(conditions, puts)
        if not done.succeeded:
            if len(units) > 1:  # somebody else has one of them
                for unit in units:
                    await self._claim([unit], wanted)
            return
        self.mine.update(dict.fromkeys(units, done.revision))
        log.info("units were claimed", units=len(units), topics=sorted({one.topic for one in units})[:5])
