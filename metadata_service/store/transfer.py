"""Export and import: a store as one JSON document.

An export is one range, so it is the store as it was at one revision. Keys bound to a lease are left out: they say who
is alive, and come back by themselves.

An import writes everything under a new generation, in as many commits as it takes, and then makes that generation the
current one in a single commit. Until then every reader sees the old state, afterwards the new one; an import that
breaks off leaves only keys that nobody reads, and the next import removes them. Two imports exclude each other by a
key bound to a lease, on which each of their commits depends. Processes that have the old state open get StoreReplaced
(see opened.py); what was current is deleted only after every one of them must have noticed.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
import trio

from metadata_service.store.contract import (
    MAX_COMMIT_BYTES,
    MAX_OPERATIONS,
    Backend,
    Condition,
    Delete,
    KeyValue,
    Operation,
    Put,
    StoreError,
    StoreNotEmpty,
    StoreReplaced,
    Unchanged,
    check_commit,
)
from metadata_service.store.opened import (
    CHECK_SECONDS,
    SCHEMA_KEY,
    OpenedStore,
    SchemaRecord,
    check_schema,
    new_generation,
)

FORMAT = "kfed-store"
IMPORTING_KEY = "importing"
LEASE_SECONDS = 60
SETTLE_SECONDS = CHECK_SECONDS + 1.0


class ExportedItem(msgspec.Struct, frozen=True, omit_defaults=True):
    """`text` where the value is UTF-8, else `base64`."""

    key: str
    text: str | None = None
    base64: str | None = None


class Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`revision` and `store` only say where it comes from; revisions start anew in the store it is imported into."""

    format: str
    schema: int
    store: str
    revision: int
    items: list[ExportedItem]


async def export(store: OpenedStore) -> dict[str, Any]:
    """The whole store as a JSON document. Raises what `range` raises."""
    found = await store.range("")
    items = [_exported(kv) for kv in found.items if not kv.lease]
    document = Document(FORMAT, store.schema, store.record.store, found.revision, items)
    built: dict[str, Any] = msgspec.to_builtins(document)
    return built


async def import_(
    store: OpenedStore, document: Mapping[str, Any], *, replace: bool = False, settle: float = SETTLE_SECONDS
) -> int:
    """Makes `document` the store's whole content, all or nothing; returns how many keys that were.

    Afterwards `store` is no longer of use: open it again. `settle` is how many seconds processes that have the old
    content open are given to notice. Raises StoreNotEmpty (without `replace`), SchemaTooNew, SchemaTooOld, ValueError
    (no export, or damaged), StoreReplaced (somebody else imported meanwhile), StoreUnavailable (repeat it).
    """
    puts = _puts(document, store.release)
    record = SchemaRecord(schema=document["schema"], generation=new_generation(), store=store.record.store)
    current = await store.range("")
    if current.items and not replace:
        raise StoreNotEmpty(f"{store.description} holds {len(current.items)} keys; they were not replaced")
    backend = store.backend
    lock = await _Lock.take(backend)
    try:
        under_new = [Put(f"{record.generation}/{put.key}", put.value) for put in puts]
        for chunk in _chunks(under_new):
            await lock.commit([], chunk)
        # Without `replace`, the old generation must be as empty as it was: nothing may have been written meanwhile.
        if not replace and (await store.range("")).items:
            raise StoreNotEmpty(f"{store.description} was written to during the import")
        await lock.commit([store.guard], [Put(SCHEMA_KEY, msgspec.json.encode(record))])
        await _remove_others(backend, lock, record.generation, settle)
    finally:
        await lock.release()
    return len(puts)


class _Lock:
    def __init__(self, backend: Backend, lease: int, held: Unchanged) -> None:
        self._backend = backend
        self._lease = lease
        self._held = held

    @classmethod
    async def take(cls, backend: Backend) -> _Lock:
        lease = await backend.grant(LEASE_SECONDS)
        put = Put(IMPORTING_KEY, b"", lease.id)
        done = await backend.commit(None, [Unchanged(IMPORTING_KEY, 0)], [put], [])
        if not done.succeeded:
            await backend.revoke(lease.id)
            raise StoreError("another import is under way, or broke off less than a minute ago")
        return cls(backend, lease.id, Unchanged(IMPORTING_KEY, done.revision))

    async def commit(self, conditions: list[Condition], operations: list[Operation]) -> None:
        await self._backend.keep_alive(self._lease)
        done = await self._backend.commit(None, [self._held, *conditions], operations, [])
        if not done.succeeded:
            raise StoreReplaced("the store was replaced, or this import took too long; nothing was imported")

    async def release(self) -> None:
        with trio.CancelScope(shield=True):
            try:
                await self._backend.revoke(self._lease)
            except StoreError:
                pass  # it ends by itself


async def _remove_others(backend: Backend, lock: _Lock, generation: str, settle: float) -> None:
    everything = await backend.range(None, "")
    keep = (SCHEMA_KEY, IMPORTING_KEY)
    others = [
        Delete(kv.key) for kv in everything.items if kv.key not in keep and not kv.key.startswith(f"{generation}/")
    ]
    if others:
        await trio.sleep(settle)
    for chunk in _chunks(others):
        await lock.commit([], chunk)


def _exported(kv: KeyValue) -> ExportedItem:
    try:
        return ExportedItem(kv.key, text=kv.value.decode())
    except UnicodeDecodeError:
        return ExportedItem(kv.key, base64=base64.b64encode(kv.value).decode())


def _puts(document: Mapping[str, Any], release: int) -> list[Put]:
    try:
        read = msgspec.convert(document, Document)
    except msgspec.ValidationError as error:
        raise ValueError(f"this is no export of a store: {error}") from error
    if read.format != FORMAT:
        raise ValueError(f"this is no export of a store: its format is {read.format!r}")
    check_schema(read.schema, release, "the document")
    puts = [Put(item.key, _value(item)) for item in read.items]
    if len({put.key for put in puts}) < len(puts):
        raise ValueError("this export is damaged: it holds a key twice")
    for put in puts:
        check_commit([], [put], [])
    return puts


def _value(item: ExportedItem) -> bytes:
    if item.text is not None:
        return item.text.encode()
    try:
        return base64.b64decode(item.base64 or "", validate=True)
    except ValueError as error:
        raise ValueError(f"this export is damaged: the value of {item.key!r} is not base64") from error


def _chunks(steps: Sequence[Put | Delete]) -> Iterator[list[Operation]]:
    """Within a commit's limits, each step alone being so; the keys' new prefix is part of the reserve."""
    chunk: list[Operation] = []
    size = 0
    for step in steps:
        length = len(step.key.encode()) + (len(step.value) if isinstance(step, Put) else 0)
        if chunk and (len(chunk) == MAX_OPERATIONS or size + length > MAX_COMMIT_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append(step)
        size += length
    if chunk:
        yield chunk
