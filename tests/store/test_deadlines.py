"""A server that is away or stands still: every call ends in time, and says whether it may have happened."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
import trio

from metadata_service.store.contract import Put, StoreUnavailable, Unchanged
from metadata_service.store.opened import open_backend
from tests.store.servers import Server, opened

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from metadata_service.store.opened import OpenedStore

DEADLINE = 1.0

CALLS: dict[str, Callable[[OpenedStore, int], Awaitable[object]]] = {
    "get": lambda store, lease: store.get("a"),
    "range": lambda store, lease: store.range(""),
    "commit": lambda store, lease: store.commit([], [Put("b", b"")]),
    "grant": lambda store, lease: store.grant(10),
    "keep_alive": lambda store, lease: store.keep_alive(lease),
    "revoke": lambda store, lease: store.revoke(lease),
    "compact": lambda store, lease: store.compact(1),
}


async def refusals(store: OpenedStore, lease: int) -> dict[str, StoreUnavailable]:
    """What every call raises, all at the same time; each within the deadline."""
    raised: dict[str, StoreUnavailable] = {}

    async def refused(name: str) -> None:
        started = time.monotonic()
        with pytest.raises(StoreUnavailable) as caught:
            await CALLS[name](store, lease)
        assert time.monotonic() - started < DEADLINE + 4.0
        raised[name] = caught.value

    async with trio.open_nursery() as nursery:
        for name in CALLS:
            nursery.start_soon(refused, name)
    return raised


async def test_calls_to_a_server_that_stands_still_end_in_time(server: Server) -> None:
    async with opened(server, deadline=DEADLINE) as store:
        lease = await store.grant(60)
        await store.commit([], [Put("a", b"1")])
        server.pause()
        raised = await refusals(store, lease.id)
        # It got the commit, and may carry it out when it goes on.
        assert {name for name, error in raised.items() if error.outcome_unknown} == {"commit"}
        server.resume()
        # It works again soon; etcd may have to elect itself first.
        with trio.fail_after(20):
            while True:
                try:
                    found = await store.range("")
                    assert {kv.key for kv in found.items} <= {"a", "b", "c"}
                    await store.commit([], [Put("c", b"")])
                except StoreUnavailable:
                    continue
                break


async def test_calls_to_a_server_that_is_gone_end_in_time(server: Server) -> None:
    async with opened(server, deadline=DEADLINE) as store:
        lease = await store.grant(60)
        await trio.to_thread.run_sync(server.kill)
        await refusals(store, lease.id)
        # By now the loss of the connection is known, and a commit is not sent at all.
        raised = await refusals(store, lease.id)
        assert not any(error.outcome_unknown for error in raised.values())
        backend = server.backend(deadline=DEADLINE)
        with pytest.raises(StoreUnavailable):
            await open_backend(backend)
        await backend.aclose()
        await trio.to_thread.run_sync(server.start)
        assert (await store.commit([Unchanged("b", 0)], [Put("b", b"")])).succeeded


async def test_calls_wait_for_a_server_that_comes_back_in_time(server: Server) -> None:
    async with opened(server, deadline=20.0) as store:
        await store.commit([], [Put("a", b"1")])
        await trio.to_thread.run_sync(server.kill)
        found: list[bytes] = []

        async def read() -> None:
            kv = await store.get("a")
            assert kv is not None
            found.append(kv.value)

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(read)
            await trio.to_thread.run_sync(server.start)
        assert found == [b"1"] * 5


async def test_a_cancelled_call_disturbs_no_other(server: Server) -> None:
    async with opened(server) as store:
        for number in range(100):
            with trio.move_on_after(number / 20_000):
                await store.commit([], [Put("a", b"%d" % number), Put("b", b"%d" % number)])
            found = await store.range("")
            # Carried out or not, even while we ask; never half.
            assert [kv.key for kv in found.items] in ([], ["a", "b"])
            assert len({(kv.value, kv.mod_revision) for kv in found.items}) <= 1
            assert (await store.range("c")).items == ()
