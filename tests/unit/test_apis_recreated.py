"""A topic that was deleted, or replaced by another of its name, behind our back: looked up at first mention."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest

from kafka_wire.codec import Message, decode, encode
from kafka_wire.errors import ERROR
from metadata_service.failures import Undecided
from metadata_service.store.contract import StoreUnavailable
from metadata_service.view import PhysicalTopic, View
from proxy.apis import data
from proxy.apis.contract import Call
from proxy.apis.metadata import unseen
from tests.fixtures.calls import FakeCall, handle, physical, two_clusters


def view_with(bills: PhysicalTopic | None, *, reachable: bool = True) -> View:
    """What west says of `bills` now, where the federation knows one with the id 12."""
    view = two_clusters()
    west = view.clusters["west"]
    topics = {} if bills is None else {"bills": bills}
    changed = replace(west, snapshot=replace(west.snapshot, topics=topics, reachable=reachable))
    return replace(view, clusters={**view.clusters, "west": changed})


REQUESTS: dict[int, tuple[int, Message]] = {
    0: (9, {"acks": -1, "topic_data": [{"name": "bills", "partition_data": [{"index": 0, "records": None}]}]}),
    1: (12, {"topics": [{"topic": "bills", "partitions": [{"partition": 0}]}]}),
    2: (5, {"replica_id": -1, "topics": [{"name": "bills", "partitions": [{"partition_index": 0}]}]}),
    3: (9, {"topics": [{"name": "bills"}]}),
}


async def ask(call: FakeCall, key: int) -> None:
    version, request = REQUESTS[key]
    if key in data.HANDLERS:
        whole = decode("request", key, version, encode("request", key, version, request))
        await data.HANDLERS[key](cast(Call, call), version, whole)
    else:
        await handle(call, key, version, request)


@pytest.mark.parametrize("key", REQUESTS)
@pytest.mark.parametrize("now", [None, physical("bills", 99, 1)])
async def test_it_is_looked_up(key: int, now: PhysicalTopic | None) -> None:
    call = FakeCall(view_with(now))
    assert unseen(call.view, "bills")
    await ask(call, key)
    assert ("find", ["bills"]) in call.federation.told


@pytest.mark.parametrize("failure", [StoreUnavailable("away"), Undecided("west", "away")])
async def test_what_is_known_is_served_where_nothing_can_be_looked_up(failure: Exception) -> None:
    call = FakeCall(two_clusters())
    call.federation.lookup_failure = failure
    response = await handle(call, 3, 9, {"topics": [{"name": "orders"}, {"name": "new"}]})
    found = {one["name"]: (one["error_code"], len(one["partitions"])) for one in response["topics"]}
    assert found == {"orders": (0, 3), "new": (ERROR.LEADER_NOT_AVAILABLE, 0)}  # not: unknown


@pytest.mark.parametrize("key", REQUESTS)
async def test_what_is_as_it_was_is_not(key: int) -> None:
    for view in (two_clusters(), view_with(None, reachable=False)):
        call = FakeCall(view)
        assert not unseen(view, "bills")
        await ask(call, key)
        assert "find" not in [what for what, _ in call.federation.told]
