"""The contract of the store: what every caller may rely on, whichever backend serves it.

etcd's semantics. The store has one revision, which every commit that changes something raises by one. Keys are text and
sorted by code point (which is the byte order of UTF-8). The only way to write is `commit`: conditions, and operations
that happen together if all conditions hold, or not at all. Reads are linearizable: they see every commit acknowledged
before they were sent.

Every call ends within the store's deadline (5 s unless the store was opened with another), with an answer or with
StoreUnavailable. Times are seconds of CLOCK_BOOTTIME (`clock.boottime`), which also runs while the machine sleeps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol, Self

import msgspec

DEADLINE = 5.0
"""Seconds after which a call gives up."""

PROGRESS_INTERVAL = 1.0
"""Seconds between two questions of a watch whether it is still current."""

MAX_OPERATIONS = 96
"""Conditions, or operations of one branch, in one commit (etcd's default is 128; the rest is for our own guards)."""

MAX_COMMIT_BYTES = 1 << 20
"""Keys and values of one commit together (etcd's default for a request is 1.5 MiB)."""

MAX_KEY_BYTES = 1024


class KeyValue(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A key as of some revision. `version` counts writes since its creation; `lease` is 0 where it has none."""

    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int = 0


class Range(msgspec.Struct, frozen=True, array_like=True):
    """All keys asked for, sorted, as they were together at `revision`."""

    revision: int
    items: tuple[KeyValue, ...]


class Unchanged(msgspec.Struct, frozen=True, array_like=True, tag="unchanged", gc=False):
    """Holds where the key was last written at `mod_revision`; 0: where it does not exist."""

    key: str
    mod_revision: int


class Exists(msgspec.Struct, frozen=True, array_like=True, tag="exists", gc=False):
    key: str


class Put(msgspec.Struct, frozen=True, array_like=True, tag="put", gc=False):
    """Writes a key and binds it to `lease`, or to none (0), whatever it was bound to before."""

    key: str
    value: bytes
    lease: int = 0


class Delete(msgspec.Struct, frozen=True, array_like=True, tag="delete", gc=False):
    """Deletes a key; nothing happens where it does not exist."""

    key: str


class DeletePrefix(msgspec.Struct, frozen=True, array_like=True, tag="delete_prefix", gc=False):
    prefix: str


Condition = Unchanged | Exists
Operation = Put | Delete | DeletePrefix


class Commit(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """`succeeded`: the conditions held. `revision`: of the store afterwards, and of the keys written, if any were."""

    succeeded: bool
    revision: int


class Event(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One key's change. For a delete `kv` has only the key, the revision of the delete as `mod_revision`, and no value.

    `previous` is the key before, or None where it did not exist or its history is compacted.
    """

    kind: Literal["put", "delete"]
    kv: KeyValue
    previous: KeyValue | None = None


class Change(msgspec.Struct, frozen=True, array_like=True):
    """All events of one revision, in the order of the operations that made them."""

    revision: int
    events: tuple[Event, ...]


class Snapshot(msgspec.Struct, frozen=True, array_like=True):
    """Everything under the prefix at `revision`; replaces whatever the reader knew."""

    revision: int
    items: tuple[KeyValue, ...]


class Progress(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Nothing under the prefix is missing up to `revision`, which was current at or after `asked_at` (boottime)."""

    revision: int
    asked_at: float


class Lease(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """`ttl` in seconds is what the store granted; it may be more than was asked for (etcd: at least 2)."""

    id: int
    ttl: int


class StoreError(Exception):
    """Everything a store raises but ValueError, which is for calls that break the contract's limits."""


class StoreUnavailable(StoreError):
    """No answer within the deadline. `outcome_unknown`: the commit may have happened, or may still happen soon."""

    def __init__(self, message: str, *, outcome_unknown: bool = False) -> None:
        super().__init__(message + ("; it may have been carried out" if outcome_unknown else ""))
        self.outcome_unknown = outcome_unknown


class StoreRefused(StoreError):
    """The store does not let us: wrong credentials, missing permission. Repeating will not help."""


class Compacted(StoreError):
    """The history asked for is gone; read everything again. `revision`: the last one that is gone, 0 if not known."""

    def __init__(self, revision: int) -> None:
        super().__init__(f"the history up to revision {revision or '?'} is compacted")
        self.revision = revision


class LeaseExpired(StoreError):
    """The lease ran out, was revoked, or never was; nothing of the commit that named it happened."""


class SchemaTooNew(StoreError):
    """The store was written by a newer release, which this one would damage."""


class SchemaTooOld(StoreError):
    """The store is older than the one version this release can still work with."""


class StoreReplaced(StoreError):
    """The store is not the one that was opened: imported over, restored from a backup, or upgraded. Open it again."""


class StoreInUse(StoreError):
    """Another process serves this embedded store."""


class StoreNotEmpty(StoreError):
    """An import found a store that is already in use, and was not told to replace it."""


class Watch(Protocol):
    """Changes under a prefix, in order, none left out; goes on by itself after lost connections.

    Use it as `async with store.watch(...) as watch: async for change in watch: ...`. Iterating raises Compacted where
    history is missing (also when the reader was too slow), StoreReplaced and StoreRefused; never StoreUnavailable.
    Being cancelled while waiting loses nothing. Ages are only kept up to date while somebody iterates.
    """

    @property
    def revision(self) -> int:
        """Every change up to here has been handed out."""

    @property
    def fresh_at(self) -> float | None:
        """When the state at `revision` is known to have been the store's newest (boottime); None: not yet known."""

    @property
    def connected(self) -> bool: ...

    @property
    def last_contact(self) -> float | None:
        """When the store was last heard from (boottime)."""

    def __aiter__(self) -> Self: ...

    async def __anext__(self) -> Change: ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *error: object) -> None: ...


class Following(Protocol):
    """A prefix followed for ever: first a Snapshot, then Changes, and again a Snapshot where history was missing.

    `async with store.follow(prefix) as following: async for item in following: ...`. Iterating raises StoreReplaced and
    StoreRefused; never Compacted or StoreUnavailable. Nothing is queued in this process: a reader that stops reading
    makes the store hold back, and in the end gets a Snapshot.
    """

    @property
    def revision(self) -> int:
        """The view is complete up to here, once the reader has applied the last item; 0 before the first Snapshot."""

    @property
    def fresh_at(self) -> float | None:
        """When the view at `revision` is known to have been the newest (boottime): now minus this is the view's age."""

    @property
    def connected(self) -> bool: ...

    @property
    def last_contact(self) -> float | None:
        """When the store was last heard from (boottime)."""

    def __aiter__(self) -> Self: ...

    async def __anext__(self) -> Snapshot | Change: ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *error: object) -> None: ...


class Store(Protocol):
    """What the rest of the project uses. All calls may raise StoreUnavailable and StoreRefused."""

    @property
    def description(self) -> str:
        """Where it is, for people; without credentials."""

    @property
    def schema(self) -> int:
        """The schema version of what is stored."""

    async def get(self, key: str) -> KeyValue | None: ...

    async def range(self, prefix: str) -> Range:
        """All keys that start with `prefix`; "" is everything."""

    async def commit(
        self, conditions: Sequence[Condition], operations: Sequence[Operation], otherwise: Sequence[Operation] = ()
    ) -> Commit:
        """Carries out `operations` if all conditions hold, else `otherwise`; atomically.

        Raises LeaseExpired (a Put names a lease that is gone), StoreReplaced, SchemaTooNew, StoreUnavailable with
        `outcome_unknown`, and ValueError: above the limits, or a branch that writes a key twice. A cancelled call
        leaves the outcome unknown.
        """

    def watch(self, prefix: str, from_revision: int) -> Watch:
        """Changes from `from_revision` on, that one included."""

    def follow(self, prefix: str) -> Following: ...

    async def grant(self, ttl: int) -> Lease:
        """A lease of at least `ttl` seconds, and at least 1. Keys bound to it are deleted together when it ends."""

    async def keep_alive(self, lease: int) -> int:
        """The lease's full TTL starts anew; returns it in seconds. Count from before the call. LeaseExpired: gone."""

    async def revoke(self, lease: int) -> None:
        """Ends a lease and deletes its keys; nothing happens where it is gone."""

    async def compact(self, revision: int) -> None:
        """Forgets the history up to `revision`. ValueError: it lies in the future."""


class BackendWatch(Protocol):
    """A backend's part of a watch: reconnects by itself, and says from time to time that it is current."""

    @property
    def connected(self) -> bool: ...

    @property
    def last_contact(self) -> float | None: ...

    async def receive(self) -> Change | Progress:
        """Cancelling loses nothing. Raises Compacted, StoreReplaced, StoreRefused."""

    async def aclose(self) -> None: ...


class GuardFailed(StoreError):
    """The guard of a call did not hold; nothing was read or written."""


class Backend(Protocol):
    """What a backend must provide; `opened.OpenedStore` makes a Store of it.

    A call with a guard is carried out only where the guard holds, in the same step; else it raises GuardFailed.
    """

    @property
    def description(self) -> str: ...

    async def read(self, guard: Unchanged | None, key: str) -> Range:
        """The key alone: one item or none."""

    async def range(self, guard: Unchanged | None, prefix: str) -> Range: ...

    async def commit(
        self,
        guard: Unchanged | None,
        conditions: Sequence[Condition],
        operations: Sequence[Operation],
        otherwise: Sequence[Operation],
    ) -> Commit: ...

    def watch(self, prefix: str, from_revision: int) -> BackendWatch: ...

    async def grant(self, ttl: int) -> Lease: ...

    async def keep_alive(self, lease: int) -> int: ...

    async def revoke(self, lease: int) -> None: ...

    async def compact(self, revision: int) -> None: ...

    async def aclose(self) -> None: ...


def check_commit(
    conditions: Sequence[Condition], operations: Sequence[Operation], otherwise: Sequence[Operation]
) -> None:
    """Refuses (ValueError) what either backend would refuse, so that both refuse the same."""
    if max(len(conditions), len(operations), len(otherwise)) > MAX_OPERATIONS:
        raise ValueError(f"a commit may have {MAX_OPERATIONS} conditions and operations a branch at most")
    size = 0
    for step in (*conditions, *operations, *otherwise):
        if not isinstance(step, DeletePrefix):
            check_key(step.key)
            size += len(step.key.encode())
        if isinstance(step, Put):
            size += len(step.value)
    if size > MAX_COMMIT_BYTES:
        raise ValueError(f"a commit of {size} bytes; at most {MAX_COMMIT_BYTES} fit")
    for branch in (operations, otherwise):
        _check_overlaps(branch)


def check_key(key: str) -> None:
    if not 0 < len(key.encode()) <= MAX_KEY_BYTES:
        raise ValueError(f"a key has 1 to {MAX_KEY_BYTES} bytes: {key[:80]!r}")


def _check_overlaps(branch: Sequence[Operation]) -> None:
    puts = [step.key for step in branch if isinstance(step, Put)]
    written = set(puts)
    if len(written) < len(puts):
        raise ValueError("a commit puts a key twice")
    deleted = {step.key for step in branch if isinstance(step, Delete)}
    if both := written & deleted:
        raise ValueError(f"a commit puts and deletes {both.pop()!r}")
    for step in branch:
        if isinstance(step, DeletePrefix) and any(key.startswith(step.prefix) for key in puts):
            raise ValueError(f"a commit puts a key under {step.prefix!r}, which it deletes")
