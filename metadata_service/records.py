"""Records in the store: encoding, and the one way to change them (read, decide, compare and swap, again)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Generic, TypeVar

import msgspec

from metadata_service.failures import DecisionFailed
from metadata_service.store.clock import Backoff
from metadata_service.store.contract import MAX_OPERATIONS, Condition, Delete, Operation, Put, Store, Unchanged

Record = TypeVar("Record", bound=msgspec.Struct)
TRIES = 20


class Contended(DecisionFailed):
    """A record was changed by others between reading and writing, again and again."""


@dataclass(frozen=True, slots=True)
class Settled(Generic[Record]):
    """A record after `settle`: its value (None: it does not exist), and the revision at which the view shows it."""

    value: Record | None
    revision: int
    changed: bool


def encode(record: msgspec.Struct) -> bytes:
    return msgspec.json.encode(record)


@cache
def _decoder(kind: type[Any]) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind)


def decode(kind: type[Record], value: bytes) -> Record:
    """Raises msgspec.ValidationError (or DecodeError) where the bytes are no such record."""
    record: Record = _decoder(kind).decode(value)
    return record


async def read(store: Store, key: str, kind: type[Record]) -> Record | None:
    found = await store.get(key)
    return None if found is None else decode(kind, found.value)


async def read_all(store: Store, prefix: str, kind: type[Record]) -> dict[str, Record]:
    """Every record under a prefix, by the rest of its key."""
    found = await store.range(prefix)
    return {one.key[len(prefix) :]: decode(kind, one.value) for one in found.items}


async def settle(
    store: Store,
    key: str,
    kind: type[Record],
    decide: Callable[[Record | None], Record | None],
    *,
    conditions: Sequence[Condition] = (),
    lease: int = 0,
) -> Settled[Record]:
    """Change one record: `decide` gets what is stored and returns what shall be (None: nothing), as often as needed.

    Nothing is written where both are equal. `conditions` must hold besides.

    Raises:
        Contended: others were faster too often, or one of `conditions` does not hold.
        StoreUnavailable: with `outcome_unknown` it may have happened; asking again is safe where `decide` is a function
            of what is stored.
    """
    backoff = Backoff(0.005, 0.2)
    for _ in range(TRIES):
        found = await store.get(key)
        current = None if found is None else decode(kind, found.value)
        wanted = decide(current)
        if wanted == current:
            return Settled(current, found.mod_revision if found is not None else 0, False)
        seen = Unchanged(key, found.mod_revision if found is not None else 0)
        step: Operation = Delete(key) if wanted is None else Put(key, encode(wanted), lease)
        done = await store.commit((seen, *conditions), (step,))
        if done.succeeded:
            return Settled(wanted, done.revision, True)
        await backoff.pause()
    raise Contended(f"{key} is being changed by others, or may not be changed now")


async def put_new(
    store: Store, records: Sequence[tuple[str, msgspec.Struct]], *, conditions: Sequence[Condition] = ()
) -> int:
    """Create records that do not exist yet, in as few commits as fit; those that exist are left alone.

    `conditions` must hold for every commit. Returns the revision at which all exist; Contended if they do not hold.
    """
    revision = 0
    room = max(1, MAX_OPERATIONS - len(conditions))
    for start in range(0, len(records), room):
        part = records[start : start + room]
        done = await store.commit(
            (*conditions, *(Unchanged(key, 0) for key, _ in part)), [Put(key, encode(one)) for key, one in part]
        )
        revision = max(revision, done.revision)
        if done.succeeded:
            continue
        for key, one in part:
            settled = await settle(store, key, type(one), _unless_there(one), conditions=conditions)
            revision = max(revision, settled.revision)
    return revision


def _unless_there(wanted: Record) -> Callable[[Record | None], Record]:
    return lambda current: wanted if current is None else current
