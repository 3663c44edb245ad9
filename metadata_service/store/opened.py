"""A store that is open: a backend, the schema it was opened under, and the generation its keys live in.

The key `schema` names the schema version and the current *generation*; all other keys live under `<generation>/`. An
import writes a new generation beside the current one and then exchanges the name in one commit, so nobody ever reads
a half-imported store, however large it is. Every read and commit carries the guard that `schema` is as it was when
the store was opened: after an import, a restore or an upgrade, processes that still have the old one open read and
write nothing, and their watches end with StoreReplaced (checked at most CHECK_SECONDS before a change is handed out).
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Self, TypeVar

import msgspec
import trio

from metadata_service.store.clock import Backoff, boottime
from metadata_service.store.contract import (
    Backend,
    Change,
    Commit,
    Condition,
    Delete,
    DeletePrefix,
    Event,
    Exists,
    GuardFailed,
    KeyValue,
    Lease,
    Operation,
    Progress,
    Put,
    Range,
    SchemaTooNew,
    SchemaTooOld,
    StoreReplaced,
    StoreUnavailable,
    Unchanged,
    check_commit,
    check_key,
)
from metadata_service.store.follow import Follower

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

Answer = TypeVar("Answer", Range, Commit)

SCHEMA = 1
"""The version this release writes. It works with the one before, too, and leaves that as it is."""

SCHEMA_KEY = "schema"

CHECK_SECONDS = 5.0
"""How old the knowledge that the store is still the opened one may be when a change is handed out."""


class SchemaRecord(msgspec.Struct, frozen=True):
    """The value of the key `schema`, as JSON. Every future version must keep these three fields."""

    schema: int
    generation: str
    store: str
    """Drawn once for a store, kept by exports: tells stores apart."""


def new_generation() -> str:
    return secrets.token_hex(4)


def decode_schema(value: bytes) -> SchemaRecord:
    try:
        return msgspec.json.decode(value, type=SchemaRecord)
    except msgspec.MsgspecError as error:
        raise StoreReplaced(f"the store's key {SCHEMA_KEY!r} is not readable: {error}") from error


def check_schema(schema: int, release: int, what: str) -> None:
    """Raises SchemaTooNew or SchemaTooOld where a release of schema `release` must keep its hands off."""
    if schema > release:
        raise SchemaTooNew(f"{what} has schema version {schema}; this release knows {release} at most, use a newer one")
    if schema < release - 1:
        raise SchemaTooOld(
            f"{what} has schema version {schema}, this release knows {release - 1} and {release}: "
            "use the release between, which still reads it, first"
        )


async def open_backend(backend: Backend, *, release: int = SCHEMA) -> OpenedStore:
    """Checks the schema of what `backend` holds, and makes it a store where it is empty.

    Raises SchemaTooNew, SchemaTooOld, StoreUnavailable, StoreRefused.
    """
    while True:
        asked_at = boottime()
        found = await backend.read(None, SCHEMA_KEY)
        if found.items:
            kv = found.items[0]
            record = decode_schema(kv.value)
            check_schema(record.schema, release, backend.description)
            return OpenedStore(
                backend, record, Unchanged(SCHEMA_KEY, kv.mod_revision), found.revision, asked_at, release
            )
        record = SchemaRecord(schema=release, generation=new_generation(), store=secrets.token_hex(8))
        # Losing the race, or not knowing whether it was won: the next turn reads what is there.
        try:
            await backend.commit(None, [Unchanged(SCHEMA_KEY, 0)], [Put(SCHEMA_KEY, msgspec.json.encode(record))], [])
        except StoreUnavailable as error:
            if not error.outcome_unknown:
                raise


class OpenedStore:
    """The Store that callers get, over either backend."""

    def __init__(
        self, backend: Backend, record: SchemaRecord, guard: Unchanged, revision: int, checked_at: float, release: int
    ) -> None:
        self.backend = backend
        self.record = record
        self.guard = guard
        self.prefix = record.generation + "/"
        self.checked_at = checked_at
        """When the store was last known to be the opened one (boottime)."""
        self.release = release
        self._highest = revision

    @property
    def description(self) -> str:
        return self.backend.description

    @property
    def schema(self) -> int:
        return self.record.schema

    async def get(self, key: str) -> KeyValue | None:
        check_key(key)
        found = await self._guarded(lambda: self.backend.read(self.guard, self.prefix + key))
        return self.inner(found.items[0]) if found.items else None

    async def range(self, prefix: str) -> Range:
        found = await self._guarded(lambda: self.backend.range(self.guard, self.prefix + prefix))
        return Range(found.revision, tuple(map(self.inner, found.items)))

    async def commit(
        self, conditions: Sequence[Condition], operations: Sequence[Operation], otherwise: Sequence[Operation] = ()
    ) -> Commit:
        check_commit(conditions, operations, otherwise)
        return await self._guarded(
            lambda: self.backend.commit(
                self.guard,
                [self._outer_condition(step) for step in conditions],
                [self._outer(step) for step in operations],
                [self._outer(step) for step in otherwise],
            )
        )

    async def _guarded(self, call: Callable[[], Awaitable[Answer]]) -> Answer:
        asked_at, before = boottime(), self._highest
        try:
            answer = await call()
        except GuardFailed:
            await self.check()
            # The guard failed, and yet the key is as it was: the store went back to an older state and returned.
            raise StoreReplaced(f"{self.description} was replaced while this process had it open") from None
        self.note(answer.revision, before)
        self.checked_at = max(self.checked_at, asked_at)
        return answer

    def watch(self, prefix: str, from_revision: int) -> OpenedWatch:
        return OpenedWatch(self, prefix, from_revision)

    def follow(self, prefix: str) -> Follower:
        return Follower(self, prefix)

    async def grant(self, ttl: int) -> Lease:
        if ttl < 1:
            raise ValueError(f"a lease runs for 1 second or more, not {ttl}")
        return await self.backend.grant(ttl)

    async def keep_alive(self, lease: int) -> int:
        return await self.backend.keep_alive(lease)

    async def revoke(self, lease: int) -> None:
        await self.backend.revoke(lease)

    async def compact(self, revision: int) -> None:
        await self.backend.compact(revision)

    async def check(self) -> None:
        """Raises StoreReplaced, or SchemaTooNew, where the store is no longer the one that was opened."""
        asked_at, before = boottime(), self._highest
        found = await self.backend.read(None, SCHEMA_KEY)
        self.note(found.revision, before)
        for kv in found.items:
            record = decode_schema(kv.value)
            if kv.mod_revision == self.guard.mod_revision and record == self.record:
                self.checked_at = max(self.checked_at, asked_at)
                return
            check_schema(record.schema, self.release, self.description)
        raise StoreReplaced(f"{self.description} was replaced while this process had it open")

    def note(self, revision: int, before: int) -> None:
        """A linearizable answer is never older than what was known before it was asked for."""
        if revision < before:
            raise StoreReplaced(
                f"{self.description} went back from revision {before} to {revision}: restored from an old backup?"
            )
        self._highest = max(self._highest, revision)

    def inner(self, kv: KeyValue) -> KeyValue:
        return KeyValue(kv.key[len(self.prefix) :], kv.value, kv.create_revision, kv.mod_revision, kv.version, kv.lease)

    def _outer_condition(self, step: Condition) -> Condition:
        if isinstance(step, Exists):
            return Exists(self.prefix + step.key)
        return Unchanged(self.prefix + step.key, step.mod_revision)

    def _outer(self, step: Operation) -> Operation:
        if isinstance(step, Put):
            return Put(self.prefix + step.key, step.value, step.lease)
        if isinstance(step, Delete):
            return Delete(self.prefix + step.key)
        return DeletePrefix(self.prefix + step.prefix)


class OpenedWatch:
    """A backend's watch, in the names of the opened generation."""

    def __init__(self, store: OpenedStore, prefix: str, from_revision: int) -> None:
        if from_revision < 1:
            raise ValueError("a watch starts at revision 1 or later")
        self._store = store
        self._watch = store.backend.watch(store.prefix + prefix, from_revision)
        self.revision = from_revision - 1
        self.fresh_at: float | None = None
        # Received, and not to be handed out before the store was checked.
        self._held: Change | Progress | None = None

    @property
    def connected(self) -> bool:
        return self._watch.connected

    @property
    def last_contact(self) -> float | None:
        return self._watch.last_contact

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Change:
        while True:
            if self._held is None:
                self._held = await self._watch.receive()
            await self._check()
            item, self._held = self._held, None
            if isinstance(item, Progress):
                self._store.note(item.revision, self.revision)
                self.revision = item.revision
                self.fresh_at = item.asked_at
                continue
            self.revision = max(self.revision, item.revision)
            return Change(item.revision, tuple(map(self._inner, item.events)))

    async def _check(self) -> None:
        backoff = Backoff()
        while boottime() - self._store.checked_at > CHECK_SECONDS:
            try:
                await self._store.check()
            except StoreUnavailable:
                await backoff.pause()

    def _inner(self, event: Event) -> Event:
        previous = None if event.previous is None else self._store.inner(event.previous)
        return Event(event.kind, self._store.inner(event.kv), previous)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        with trio.CancelScope(shield=True):
            await self._watch.aclose()
