"""What bounds connections: the sweep's decision, the doors, the budget, the pipes, the limit on decoded elements."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import trio
import trio.testing

from kafka_wire.codec import MAX_ELEMENTS, DecodeError, decode, encode
from proxy.session.surroundings import Budget
from proxy.sweep import CROWDED_SLOWEST, CROWDED_TIMEOUT, SLOWEST, Waiting, overdue
from proxy.transport.listening import Doors
from proxy.transport.splice import FALLBACK_PIPE_SIZE, PIPE_SIZE, Pipes
from runtime.metrics import Metrics
from runtime.settings import Limits

NOW = 10_000.0
LIMITS = Limits()
CALM = Waiting(
    opened=NOW - 5,
    active=NOW - 1,
    asked=True,
    frame_waited=0.0,
    frame_size=0,
    crowding=False,
    client_writing_since=0.0,
    upstream_writing_since=0.0,
    busy=False,
)


@pytest.mark.parametrize(
    ("change", "limit", "reason"),
    [
        ({"asked": False}, ("opened", LIMITS.first_bytes_timeout), "no_request"),
        ({}, ("active", LIMITS.idle_timeout), "idle"),
        ({"busy": True}, ("client_writing_since", LIMITS.write_timeout), "client_does_not_read"),
        ({"busy": True}, ("upstream_writing_since", LIMITS.write_timeout), "broker_does_not_read"),
        ({"asked": False}, ("client_writing_since", LIMITS.write_timeout), "client_does_not_read"),
    ],
)
def test_a_wait_is_overdue_only_beyond_its_limit(change: dict[str, Any], limit: tuple[str, float], reason: str) -> None:
    field, seconds = limit
    last: dict[str, Any] = {field: NOW - seconds}
    later: dict[str, Any] = {field: NOW - seconds - 0.1}
    waiting = replace(CALM, opened=NOW - 1, **change)
    assert overdue(replace(waiting, **last), LIMITS, NOW) is None
    assert overdue(replace(waiting, **later), LIMITS, NOW) == reason


@pytest.mark.parametrize("busy", [False, True])
@pytest.mark.parametrize("size", [0, 100 << 20])
def test_a_frame_may_take_its_time_for_its_size(busy: bool, size: int) -> None:
    waiting = replace(CALM, busy=busy, frame_size=size, active=NOW - LIMITS.idle_timeout - 1)
    allowed = LIMITS.frame_timeout + size / SLOWEST
    assert overdue(replace(waiting, frame_waited=allowed), LIMITS, NOW) is None
    assert overdue(replace(waiting, frame_waited=allowed + 1), LIMITS, NOW) == "request_too_slow"
    crowded = replace(waiting, crowding=True)
    allowed = CROWDED_TIMEOUT + size / CROWDED_SLOWEST
    assert overdue(replace(crowded, frame_waited=allowed), LIMITS, NOW) is None
    assert overdue(replace(crowded, frame_waited=allowed + 1), LIMITS, NOW) == "request_too_slow"


def test_a_connection_with_requests_under_way_is_not_idle() -> None:
    assert overdue(replace(CALM, busy=True, active=0.0), LIMITS, NOW) is None


def test_doors_count_in_all_and_for_each_address() -> None:
    refused: list[str] = []
    doors = Doors(3, 2, refused.append)
    assert doors.enter("a")
    assert doors.enter("a")
    assert not doors.enter("a")
    assert doors.enter("b")
    assert not doors.enter("c")
    assert refused == ["too_many_connections_from_address", "too_many_connections"]
    doors.leave("a")
    assert doors.enter("c")
    assert doors.open == 3
    for address in "abc":
        doors.leave(address)
    assert doors.open == 0
    assert not doors._by_address  # addresses that left are forgotten


async def test_a_budget_is_given_first_come_first_served() -> None:
    metrics = Metrics()
    budget = Budget(100, metrics)
    order: list[str] = []

    async def take(name: str, size: int, until: trio.Event) -> None:
        async with budget.hold(size):
            order.append(name)
            await until.wait()

    ends = {name: trio.Event() for name in "abcd"}
    async with trio.open_nursery() as nursery:
        for name, size in (("a", 60), ("b", 50), ("c", 10), ("d", 1000)):
            nursery.start_soon(take, name, size, ends[name])
            await trio.testing.wait_all_tasks_blocked()
        assert order == ["a"]  # c would fit, but b is before it
        assert budget.crowded
        assert metrics.buffered_bytes == 60
        ends["a"].set()
        await trio.testing.wait_all_tasks_blocked()
        assert set(order) == {"a", "b", "c"}
        ends["b"].set()
        await trio.testing.wait_all_tasks_blocked()
        assert len(order) == 3  # more than there is waits for all of it
        ends["c"].set()
        ends["d"].set()
    assert order[3] == "d"
    assert metrics.buffered_bytes == 0
    assert not budget.crowded


async def test_whoever_gives_up_waiting_for_a_budget_takes_nothing_with_it() -> None:
    budget = Budget(100, Metrics())
    release, late = trio.Event(), trio.Event()

    async def first() -> None:
        async with budget.hold(100):
            await release.wait()

    async def gives_up(scope: trio.CancelScope) -> None:
        with scope:
            async with budget.hold(80):
                await trio.sleep_forever()

    async def last() -> None:
        async with budget.hold(100):
            late.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(first)
        await trio.testing.wait_all_tasks_blocked()
        waiting, granted = trio.CancelScope(), trio.CancelScope()
        nursery.start_soon(gives_up, waiting)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(gives_up, granted)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(last)
        await trio.testing.wait_all_tasks_blocked()
        waiting.cancel()
        await trio.testing.wait_all_tasks_blocked()
        release.set()
        await trio.lowlevel.checkpoint()
        granted.cancel()  # whether it has been granted by now or not
    assert late.is_set()


async def test_one_that_fits_goes_on_when_the_one_before_it_gives_up() -> None:
    budget = Budget(100, Metrics())
    got = trio.Event()

    async def small() -> None:
        async with budget.hold(10):
            got.set()

    async def large(scope: trio.CancelScope) -> None:
        with scope:
            async with budget.hold(80):
                raise AssertionError("there is no room")

    scope = trio.CancelScope()
    async with budget.hold(60), trio.open_nursery() as nursery:
        nursery.start_soon(large, scope)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(small)
        await trio.testing.wait_all_tasks_blocked()
        assert not got.is_set()
        scope.cancel()
        await got.wait()


def test_only_the_first_pipes_in_use_are_large() -> None:
    pipes = Pipes(keep=2, large=3)
    taken = [pipes.take() for _ in range(5)]
    assert [size for _, _, size in taken] == [PIPE_SIZE] * 3 + [FALLBACK_PIPE_SIZE] * 2
    for pipe in taken:
        pipes.give(pipe, True)
    assert len(pipes._free) == 2
    assert [pipes.take()[2] for _ in range(2)] == [PIPE_SIZE] * 2
    pipes.close()


def test_a_request_has_no_more_elements_than_can_be_paid_for() -> None:
    """Two bytes on the wire become an object of some hundred: what is decoded is bounded by number, not by size."""
    topics = [{"name": ""}] * MAX_ELEMENTS
    assert len(decode("request", 3, 9, encode("request", 3, 9, {"topics": topics}))["topics"]) == MAX_ELEMENTS
    with pytest.raises(DecodeError, match="elements"):
        decode("request", 3, 9, encode("request", 3, 9, {"topics": [*topics, {"name": ""}]}))
    inner = [{"name": "", "partitions": [{"partition_index": 0}] * 1000}] * (MAX_ELEMENTS // 1000)
    with pytest.raises(DecodeError, match="elements"):  # together with the outer list's
        decode("request", 2, 6, encode("request", 2, 6, {"topics": inner}))
    answer = {"brokers": [{"node_id": 1, "host": "", "port": 1}] * (MAX_ELEMENTS + 1)}
    assert len(decode("response", 3, 9, encode("response", 3, 9, answer))["brokers"]) == MAX_ELEMENTS + 1
