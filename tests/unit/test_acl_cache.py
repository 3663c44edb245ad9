"""How old a cluster's rules may be, and who waits for them while the cluster is away."""

from __future__ import annotations

from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock

from kafka_client import BrokerUnavailable
from kafka_wire.codec import Message
from kafka_wire.errors import ERROR
from proxy.identity.acl_cache import FRESH_FOR, READ_WITHIN, STALE_AFTER, AclCache, AuthorityUnknown


class Service:
    """A cluster without an authorizer; `away` makes it take all the time it is given, and then fail."""

    def __init__(self) -> None:
        self.away = False
        self.asked = 0

    async def call(self, key: int, message: Message, timeout: float = 10.0, **more: Any) -> Message:
        self.asked += 1
        if self.away:
            await trio.sleep(timeout)
            raise BrokerUnavailable("late: gone", sent=False)
        return {"error_code": ERROR.SECURITY_DISABLED}


async def test_nobody_waits_for_a_cluster_that_has_gone_away(autojump_clock: MockClock) -> None:
    service = Service()
    cache = AclCache(cast(Any, {"late": service}), {})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cache.run)
        assert (await cache.authority("late")).kind == "none"
        assert cache.before("late") is None
        service.away = True
        gone, longest, refused_at = trio.current_time(), 0.0, 0.0
        while trio.current_time() < gone + 3 * STALE_AFTER:
            began = trio.current_time()
            try:
                await cache.authority("late")
            except AuthorityUnknown:
                refused_at = refused_at or began
            longest = max(longest, trio.current_time() - began)
            await trio.sleep(0.1)
        assert longest == 0
        assert FRESH_FOR < refused_at - gone <= STALE_AFTER + 0.2  # nothing is decided by rules older than that
        before = cache.before("late")
        assert before is not None
        assert before.kind == "none"
        service.away = False
        with trio.fail_after(FRESH_FOR + READ_WITHIN):
            while True:
                try:
                    await cache.authority("late")
                    break
                except AuthorityUnknown:
                    await trio.sleep(0.1)
        assert cache.before("late") is None
        nursery.cancel_scope.cancel()


async def test_a_cluster_that_was_never_there_is_waited_for_once(autojump_clock: MockClock) -> None:
    service = Service()
    service.away = True
    cache = AclCache(cast(Any, {"late": service}), {})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cache.run)
        await trio.testing.wait_all_tasks_blocked()
        began = trio.current_time()
        for _ in range(5):
            with pytest.raises(AuthorityUnknown):
                await cache.authority("late")
        assert trio.current_time() - began <= READ_WITHIN
        assert cache.before("late") is None
        nursery.cancel_scope.cancel()
