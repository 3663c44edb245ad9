"""Mirrors that are to end: what the store says goes to the units at once, and what they say goes to the store at once.

A FinishedRecord is written on two conditions: the mirror's record is the very one by which the unit has finished, and
the unit is ours. So a worker that was away, and one that finished for an attempt which was given up, says nothing.
Nothing here waits for a clock while all goes well: clients wait for it.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import trio

from metadata_service.member import Member
from metadata_service.models import FinishedRecord, MirrorRecord, assignment_key, finished_key, mirror_key
from metadata_service.records import encode
from metadata_service.store.clock import Backoff
from metadata_service.store.contract import Delete, Put, StoreError, StoreReplaced, Unchanged
from replicator.assignment import UnitKey
from replicator.ending import End
from replicator.link import UNIT_SIZE
from replicator.sharing import Sharing
from replicator.worker import Mirror, Replicator
from runtime import logging

log = logging.get(__name__)

Key = tuple[str, str, str]


class _Done(NamedTuple):
    """A unit that has finished, by which record."""

    unit: UnitKey
    record: MirrorRecord
    revision: int


class Finishing:
    """`run` it beside the others."""

    def __init__(self, member: Member, replicator: Replicator, sharing: Sharing) -> None:
        self._member = member
        self._replicator = replicator
        self._sharing = sharing
        self._ending: dict[Key, tuple[Mirror, End]] = {}
        self._written: dict[UnitKey, int] = {}  # with the revision of the mirror's record
        self._nursery: trio.Nursery | None = None

    async def run(self) -> None:
        """Until cancelled. Raises StoreReplaced."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            while True:
                view = self._member.view
                self._follow()
                await self._member.following.changed(view)

    def _follow(self) -> None:
        view, following = self._member.view, self._member.following
        for key in [one for one in self._ending if one not in view.mirrors]:
            # It is gone: its units have finished, or are given back, and whoever dropped it drops what they wrote.
            self._written = {unit: at for unit, at in self._written.items() if _key(unit) != key}
            mirror, _ = self._ending.pop(key)
            self._replicator.end(mirror, None)
        for key, record in view.mirrors.items():
            if record.state != "finishing" and key not in self._ending:
                continue
            revision = following.changed_at(mirror_key(record.target, record.topic, record.source))
            known = self._ending.get(key)
            if record.state == "finishing":
                if known is not None and known[1].revision == revision:
                    continue
                mirror = Mirror(record.topic, record.source, record.target, record.mode, record.generation)
                end = End(record.ends, revision, partial(self._told, record, revision))
                self._ending[key] = mirror, end
                self._replicator.end(mirror, end)
            else:
                assert known is not None
                del self._ending[key]
                self._replicator.end(known[0], None)
                self._forget(key)

    # -- what goes to the store -----------------------------------------------------------------------------------

    def _told(self, record: MirrorRecord, revision: int, number: int) -> None:
        assert self._nursery is not None
        unit = UnitKey(record.target, record.topic, record.source, number)
        self._nursery.start_soon(self._write, _Done(unit, record, revision))

    def _current(self, done: _Done) -> bool:
        known = self._ending.get(_key(done.unit))
        return known is not None and known[1].revision == done.revision

    async def _write(self, done: _Done) -> None:
        """Until it is stored, or means nothing any longer."""
        unit, record = done.unit, done.record
        mine = {number: at for number, at in record.ends.items() if number // UNIT_SIZE == unit.number}
        said = FinishedRecord(operation=record.operation or "", generation=record.generation, ends=mine)
        backoff = Backoff(0.05, 1.0)
        while self._current(done):
            claim = self._sharing.mine.get(unit)
            if claim is not None and self._sharing.allowed():
                conditions = (
                    Unchanged(mirror_key(unit.target, unit.topic, unit.source), done.revision),
                    Unchanged(assignment_key(*unit), claim),
                )
                try:
                    found = await self._member.store.commit(conditions, (Put(finished_key(*unit), encode(said)),))
                    if found.succeeded:
                        self._written[unit] = done.revision
                        log.info("a unit has finished", topic=unit.topic, target=unit.target, unit=unit.number)
                        return
                except StoreReplaced:
                    raise
                except StoreError as error:
                    log.debug("a finished unit could not be noted", error=str(error))
            await backoff.pause()

    def _forget(self, key: Key) -> None:
        """What was said of an earlier record of this mirror."""
        assert self._nursery is not None
        for unit, revision in list(self._written.items()):
            known = self._ending.get(key)
            if _key(unit) == key and (known is None or known[1].revision != revision):
                del self._written[unit]
                now = self._member.following.changed_at(mirror_key(unit.target, unit.topic, unit.source))
                self._nursery.start_soon(self._delete, unit, now)

    async def _delete(self, unit: UnitKey, revision: int) -> None:
        """Tried once, as long as the mirror's record is of this revision: it means nothing, and may stay."""
        claim = self._sharing.mine.get(unit)
        if claim is None:
            return
        conditions = (
            Unchanged(mirror_key(unit.target, unit.topic, unit.source), revision),
            Unchanged(assignment_key(*unit), claim),
        )
        try:
            await self._member.store.commit(conditions, (Delete(finished_key(*unit)),))
        except StoreReplaced:
            raise
        except StoreError as error:
            log.debug("a note of a finished unit stays", error=str(error))


def _key(unit: UnitKey) -> Key:
    return unit.target, unit.topic, unit.source
