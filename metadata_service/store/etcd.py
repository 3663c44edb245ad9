"""The etcd backend: the contract over etcd's v3 API.

A commit is one transaction: the guard's comparison, and nested in it the caller's conditions and branches. A range is
read in pages, all at the revision of the first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from metadata_service.store import etcd_wire as wire
from metadata_service.store.contract import (
    DEADLINE,
    PROGRESS_INTERVAL,
    Commit,
    Compacted,
    Condition,
    Delete,
    Exists,
    GuardFailed,
    KeyValue,
    Lease,
    LeaseExpired,
    Operation,
    Put,
    Range,
    StoreError,
    StoreUnavailable,
    Unchanged,
)
from metadata_service.store.etcd_channel import EtcdSettings, Links
from metadata_service.store.etcd_watch import EtcdWatch

if TYPE_CHECKING:
    from collections.abc import Sequence

PAGE = 2000
"""Keys read at once."""


def prefix_end(prefix: bytes) -> bytes:
    """The first key after all that start with `prefix` (UTF-8, so its last byte is below 0xff)."""
    return prefix[:-1] + bytes((prefix[-1] + 1,))


class EtcdBackend:
    def __init__(
        self, settings: EtcdSettings, *, deadline: float = DEADLINE, progress_interval: float = PROGRESS_INTERVAL
    ) -> None:
        """Nothing is connected before the first call. Raises ValueError where the settings make no sense."""
        if not settings.prefix:
            raise ValueError("etcd: a prefix keeps federations apart and cannot be empty")
        self.links = Links(settings, deadline)
        self.deadline = deadline
        self.progress_interval = progress_interval
        self._prefix = settings.prefix.encode()

    @property
    def description(self) -> str:
        return self.links.description

    async def read(self, guard: Unchanged | None, key: str) -> Range:
        page = await self._page(guard, wire.range_request(self.outer(key)), self._give_up())
        return Range(page.revision, tuple(map(self.inner, page.items)))

    async def range(self, guard: Unchanged | None, prefix: str) -> Range:
        give_up = self._give_up()
        while True:
            try:
                return await self._pages(guard, self.outer(prefix), give_up)
            except Compacted:
                # The revision being read was compacted between two pages: read a newer one.
                if trio.current_time() >= give_up:
                    raise StoreUnavailable(f"{self.description} was compacted faster than it was read") from None

    async def _pages(self, guard: Unchanged | None, prefix: bytes, give_up: float) -> Range:
        end = prefix_end(prefix)
        page = await self._page(guard, wire.range_request(prefix, end, limit=PAGE), give_up)
        revision = page.revision
        items = [self.inner(kv) for kv in page.items]
        while page.more:
            after = page.items[-1].key + b"\0"
            page = await self._page(None, wire.range_request(after, end, limit=PAGE, revision=revision), give_up)
            items += [self.inner(kv) for kv in page.items]
        return Range(revision, tuple(items))

    async def _page(self, guard: Unchanged | None, request: bytes, give_up: float) -> wire.RangeAnswer:
        if guard is None:
            return wire.read_range(await self.links.call(wire.KV_RANGE, request, give_up=give_up))
        guarded = wire.txn_request([self._compare(guard)], [wire.range_op(request)])
        answer = wire.read_txn(await self.links.call(wire.KV_TXN, guarded, give_up=give_up))
        if not answer.succeeded:
            raise GuardFailed("the guard does not hold")
        page = answer.answers[0]
        if not isinstance(page, wire.RangeAnswer):
            raise StoreError(f"{self.description} did not answer a range with a range")
        # Inside a transaction only the outer header tells the revision reliably.
        return wire.RangeAnswer(answer.revision, page.items, page.more, page.count)

    async def commit(
        self,
        guard: Unchanged | None,
        conditions: Sequence[Condition],
        operations: Sequence[Operation],
        otherwise: Sequence[Operation],
    ) -> Commit:
        request = wire.txn_request(
            [self._compare(step) for step in conditions],
            [self._operation(step) for step in operations],
            [self._operation(step) for step in otherwise],
        )
        if guard is not None:
            request = wire.txn_request([self._compare(guard)], [wire.txn_op(request)])
        answer = wire.read_txn(await self.links.call(wire.KV_TXN, request, give_up=self._give_up(), repeatable=False))
        if guard is None:
            return Commit(answer.succeeded, answer.revision)
        if not answer.succeeded:
            raise GuardFailed("the guard does not hold")
        inner = answer.answers[0]
        return Commit(isinstance(inner, wire.TxnAnswer) and inner.succeeded, answer.revision)

    async def grant(self, ttl: int) -> Lease:
        # Repeated, it may leave a lease behind that nobody knows; that one ends by itself.
        data = await self.links.call(wire.LEASE_GRANT, wire.grant_request(ttl), give_up=self._give_up())
        answer = wire.read_lease(data)
        if answer.error or not answer.lease:
            raise StoreError(f"{self.description} granted no lease: {answer.error}")
        return Lease(answer.lease, answer.ttl)

    async def keep_alive(self, lease: int) -> int:
        # A stream in etcd's API; with one request and one answer it is a unary call on the wire.
        data = await self.links.call(wire.LEASE_KEEP_ALIVE, wire.lease_request(lease), give_up=self._give_up())
        answer = wire.read_lease(data)
        if answer.ttl <= 0:
            raise LeaseExpired(f"lease {lease:x} is gone")
        return answer.ttl

    async def revoke(self, lease: int) -> None:
        try:
            await self.links.call(wire.LEASE_REVOKE, wire.lease_request(lease), give_up=self._give_up())
        except LeaseExpired:
            pass

    async def compact(self, revision: int) -> None:
        """Of the whole etcd cluster, which may serve others."""
        try:
            await self.links.call(wire.KV_COMPACT, wire.compact_request(revision), give_up=self._give_up())
        except Compacted:
            pass

    def watch(self, prefix: str, from_revision: int) -> EtcdWatch:
        outer = self.outer(prefix)
        return EtcdWatch(self, outer, prefix_end(outer), from_revision)

    async def aclose(self) -> None:
        self.links.close()

    def outer(self, key: str) -> bytes:
        return self._prefix + key.encode()

    def inner(self, kv: wire.EtcdKeyValue) -> KeyValue:
        key = kv.key[len(self._prefix) :].decode()
        return KeyValue(key, kv.value, kv.create_revision, kv.mod_revision, kv.version, kv.lease)

    def _give_up(self) -> float:
        return trio.current_time() + self.deadline

    def _compare(self, step: Condition) -> bytes:
        if isinstance(step, Exists):
            return wire.exists(self.outer(step.key))
        return wire.mod_revision_is(self.outer(step.key), step.mod_revision)

    def _operation(self, step: Operation) -> bytes:
        if isinstance(step, Put):
            return wire.put_op(self.outer(step.key), step.value, step.lease)
        if isinstance(step, Delete):
            return wire.delete_op(self.outer(step.key))
        outer = self.outer(step.prefix)
        return wire.delete_op(outer, prefix_end(outer))
