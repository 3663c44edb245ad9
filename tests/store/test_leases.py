"""Leases: they expire, are renewed, take their keys along, and outlive the server."""

from __future__ import annotations

import pytest
import trio

from metadata_service.store.contract import Delete, LeaseExpired, Put, Store
from tests.store.servers import Server, opened


async def wait_gone(store: Store, key: str, written: int, limit: float) -> None:
    """Until a key that was last written at a revision is deleted."""
    with trio.fail_after(limit):
        async with store.watch(key, written + 1) as watch:
            assert [event.kind for event in (await anext(watch)).events] == ["delete"]


async def test_keys_vanish_together_when_their_lease_expires(store: Store) -> None:
    lease = await store.grant(2)
    granted_at = trio.current_time()
    assert lease.ttl >= 2
    done = await store.commit([], [Put("b", b"1", lease.id), Put("a", b"2", lease.id), Put("kept", b"", lease.id)])
    kv = await store.get("a")
    assert kv is not None
    assert kv.lease == lease.id
    # Writing a key without the lease frees it; deleting one forgets it.
    await store.commit([], [Put("kept", b"")])
    await store.commit([], [Put("c", b"", lease.id)])
    done = await store.commit([], [Delete("c")])
    async with store.watch("", done.revision + 1) as watch:
        with trio.fail_after(lease.ttl + 8):
            change = await anext(watch)
    assert trio.current_time() - granted_at >= lease.ttl - 0.1
    assert [(event.kind, event.kv.key) for event in change.events] == [("delete", "a"), ("delete", "b")]
    assert [kv.key for kv in (await store.range("")).items] == ["kept"]
    with pytest.raises(LeaseExpired):
        await store.keep_alive(lease.id)


async def test_a_lease_that_is_renewed_lives_on(store: Store) -> None:
    lease = await store.grant(2)
    done = await store.commit([], [Put("a", b"", lease.id)])
    end = trio.current_time() + 2 * lease.ttl + 1
    while trio.current_time() < end:
        assert await store.keep_alive(lease.id) == lease.ttl
        assert await store.get("a") is not None
        await trio.sleep(0.2)
    renewed_at = trio.current_time()
    await wait_gone(store, "a", done.revision, lease.ttl + 8)
    assert trio.current_time() - renewed_at >= lease.ttl - 0.5


async def test_revoking_deletes_the_keys_at_once(store: Store) -> None:
    lease, other = await store.grant(600), await store.grant(600)
    assert lease.id != other.id
    await store.commit([], [Put("a", b"", lease.id), Put("b", b"", lease.id), Put("c", b"", other.id)])
    # A key belongs to the lease it was last written with.
    await store.commit([], [Put("b", b"", other.id)])
    await store.revoke(lease.id)
    assert [kv.key for kv in (await store.range("")).items] == ["b", "c"]
    with pytest.raises(LeaseExpired):
        await store.keep_alive(lease.id)
    with pytest.raises(LeaseExpired):
        await store.commit([], [Put("a", b"", lease.id)])


async def test_a_lease_needs_a_second_at_least(store: Store) -> None:
    with pytest.raises(ValueError):
        await store.grant(0)


async def test_after_a_restart_a_lease_runs_its_full_time_anew(server: Server) -> None:
    async with opened(server) as store:
        lease = await store.grant(5)
        done = await store.commit([], [Put("a", b"", lease.id)])
        # Let most of it pass.
        await trio.sleep(3.5)
        await trio.to_thread.run_sync(server.kill)
        await trio.to_thread.run_sync(server.start)
        started_at = trio.current_time()
        assert await store.get("a") is not None
        await wait_gone(store, "a", done.revision, lease.ttl + 10)
        assert trio.current_time() - started_at >= lease.ttl - 1.0
        with pytest.raises(LeaseExpired):
            await store.keep_alive(lease.id)


async def test_a_lease_and_its_keys_survive_a_restart_and_can_be_renewed(server: Server) -> None:
    async with opened(server) as store:
        lease = await store.grant(30)
        await store.commit([], [Put("a", b"", lease.id)])
        await trio.to_thread.run_sync(server.kill)
        await trio.to_thread.run_sync(server.start)
        assert await store.keep_alive(lease.id) == lease.ttl
        await store.commit([], [Put("b", b"", lease.id)])
        await store.revoke(lease.id)
        assert (await store.range("")).items == ()
