"""The embedded store's state: pure, no I/O. It carries out commits and says what they changed.

Invariant: `items`, `keys` and the leases' keys describe the same set; revisions are given out without gaps, one for
each commit that changed something; `history` holds exactly the changes of revisions compacted+1 .. revision.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from metadata_service.store.contract import (
    Change,
    Commit,
    Condition,
    Delete,
    Event,
    Exists,
    GuardFailed,
    KeyValue,
    LeaseExpired,
    Operation,
    Put,
    Unchanged,
)

FIRST_REVISION = 1
"""Of an empty store, as in etcd."""


class LeaseState:
    """A lease; `ends_at` is on whatever clock the caller counts."""

    __slots__ = ("ends_at", "id", "keys", "ttl")

    def __init__(self, id: int, ttl: int, ends_at: float) -> None:  # noqa: A002
        self.id = id
        self.ttl = ttl
        self.ends_at = ends_at
        self.keys: set[str] = set()


class Recorded(msgspec.Struct, frozen=True):
    """A change in the history, with its size."""

    change: Change
    size: int


class State:
    def __init__(
        self,
        *,
        revision: int = FIRST_REVISION,
        compacted: int = 0,
        items: Iterable[KeyValue] = (),
        leases: Iterable[tuple[int, int]] = (),
        history: Iterable[Change] = (),
        now: float = 0.0,
    ) -> None:
        """`leases` are (id, ttl): each runs its full TTL from `now`."""
        self.revision = revision
        self.compacted = compacted
        self.items = {kv.key: kv for kv in items}
        self.keys = sorted(self.items)
        self.leases = {lease: LeaseState(lease, ttl, now + ttl) for lease, ttl in leases}
        for kv in self.items.values():
            if kv.lease:
                self.leases[kv.lease].keys.add(kv.key)
        self.history = {change.revision: Recorded(change, _size(change)) for change in history}
        self.history_bytes = sum(recorded.size for recorded in self.history.values())

    # Reading

    def under(self, prefix: str) -> Iterator[KeyValue]:
        first = bisect.bisect_left(self.keys, prefix)
        for position in range(first, len(self.keys)):
            key = self.keys[position]
            if not key.startswith(prefix):
                return
            yield self.items[key]

    def holds(self, condition: Condition) -> bool:
        kv = self.items.get(condition.key)
        if isinstance(condition, Exists):
            return kv is not None
        return (0 if kv is None else kv.mod_revision) == condition.mod_revision

    def check(self, guard: Unchanged | None) -> None:
        if guard is not None and not self.holds(guard):
            raise GuardFailed("the guard does not hold")

    def change(self, revision: int) -> Change:
        """The change of a revision above `compacted`."""
        return self.history[revision].change

    # Writing

    def commit(
        self,
        guard: Unchanged | None,
        conditions: Sequence[Condition],
        operations: Sequence[Operation],
        otherwise: Sequence[Operation],
    ) -> Commit:
        """Raises GuardFailed or LeaseExpired, and then has changed nothing."""
        self.check(guard)
        succeeded = all(self.holds(condition) for condition in conditions)
        branch = operations if succeeded else otherwise
        for step in branch:
            if isinstance(step, Put) and step.lease and step.lease not in self.leases:
                raise LeaseExpired(f"lease {step.lease:x} is gone")
        self._carry_out(branch)
        return Commit(succeeded, self.revision)

    def grant(self, lease: int, ttl: int, now: float) -> None:
        self.leases[lease] = LeaseState(lease, ttl, now + ttl)

    def keep_alive(self, lease: int, now: float) -> int:
        state = self.leases.get(lease)
        if state is None:
            raise LeaseExpired(f"lease {lease:x} is gone")
        state.ends_at = now + state.ttl
        return state.ttl

    def renew_all(self, now: float) -> None:
        for lease in self.leases.values():
            lease.ends_at = now + lease.ttl

    def ended(self, now: float) -> list[int]:
        return [lease.id for lease in self.leases.values() if lease.ends_at <= now]

    def revoke(self, lease: int) -> bool:
        """Deletes the lease's keys in one revision and the lease; False where there is none."""
        state = self.leases.get(lease)
        if state is None:
            return False
        self._carry_out([Delete(key) for key in sorted(state.keys)])
        del self.leases[lease]
        return True

    def compact(self, revision: int) -> None:
        """Forgets the changes up to `revision`."""
        for gone in range(self.compacted + 1, revision + 1):
            if (recorded := self.history.pop(gone, None)) is not None:
                self.history_bytes -= recorded.size
        self.compacted = max(self.compacted, revision)

    def trim(self, revisions: int, size: int) -> None:
        """Forgets the oldest changes beyond a number and beyond a size in bytes."""
        while self.history and (len(self.history) > revisions or self.history_bytes > size):
            self.compact(self.compacted + 1)

    def _carry_out(self, operations: Sequence[Operation]) -> None:
        revision = self.revision + 1
        events: list[Event] = []
        for step in operations:
            if isinstance(step, Put):
                events.append(self._put(step, revision))
            elif isinstance(step, Delete):
                if step.key in self.items:
                    events.append(self._delete(step.key, revision))
            else:
                events += [self._delete(kv.key, revision) for kv in list(self.under(step.prefix))]
        if not events:
            return
        self.revision = revision
        change = Change(revision, tuple(events))
        recorded = Recorded(change, _size(change))
        self.history[revision] = recorded
        self.history_bytes += recorded.size

    def _put(self, step: Put, revision: int) -> Event:
        previous = self.items.get(step.key)
        if previous is None:
            bisect.insort(self.keys, step.key)
            kv = KeyValue(step.key, step.value, revision, revision, 1, step.lease)
        else:
            self._unbind(previous)
            kv = KeyValue(step.key, step.value, previous.create_revision, revision, previous.version + 1, step.lease)
        self.items[step.key] = kv
        if step.lease:
            self.leases[step.lease].keys.add(step.key)
        return Event("put", kv, previous)

    def _delete(self, key: str, revision: int) -> Event:
        previous = self.items.pop(key)
        del self.keys[bisect.bisect_left(self.keys, key)]
        self._unbind(previous)
        return Event("delete", KeyValue(key, b"", 0, revision, 0), previous)

    def _unbind(self, kv: KeyValue) -> None:
        if kv.lease:
            self.leases[kv.lease].keys.discard(kv.key)


def size_of(event: Event) -> int:
    """About the bytes an event takes, encoded."""
    previous = 0 if event.previous is None else len(event.previous.value)
    return 2 * len(event.kv.key) + len(event.kv.value) + previous + 64


def _size(change: Change) -> int:
    return sum(map(size_of, change.events)) + 32
