"""ApiVersions, Metadata, DescribeCluster, DescribeTopicPartitions, FindCoordinator, as clients see them."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import cast

import pytest

from kafka_wire.codec import Message, decode, encode
from kafka_wire.errors import ERROR
from metadata_service.models import PlacementEpoch
from metadata_service.view import View
from proxy.apis.contract import Call, CloseConnection
from proxy.apis.metadata import encoded
from proxy.apis.metadata_encoding import MetadataCache, encoded_metadata
from proxy.apis.registry import HANDLERS
from tests.fixtures.calls import ADVERTISED, FakeCall, handle, physical, served, two_clusters, uuid, view_of

ALL: Message = {"topics": None}


def codes(response: Message) -> dict[str | None, int]:
    return {one["name"]: one["error_code"] for one in response["topics"]}


# ApiVersions


async def test_versions_are_the_intersection_and_internal_or_telemetry_apis_are_not_offered() -> None:
    view = two_clusters()
    west = view.clusters["west"]
    versions = {key: low_high for key, low_high in west.snapshot.versions.items() if key != 68} | {3: (0, 9)}
    old = replace(west, snapshot=replace(west.snapshot, versions=versions))
    view = replace(view, clusters={**view.clusters, "west": old})
    response = await handle(FakeCall(view), 18, 4, {"client_software_name": "a", "client_software_version": "1.0"})
    offered = {one["api_key"]: (one["min_version"], one["max_version"]) for one in response["api_keys"]}
    assert offered[3] == (0, 9)
    assert 68 not in offered
    assert not offered.keys() & {4, 5, 6, 7, 71, 72, 83, 84, 85, 86, 87}
    assert offered[24] == (0, 3)  # later ones are spoken between brokers
    assert offered[0] == (0, 13)  # 0 as the brokers say, for librdkafka
    assert offered[80][0] == 0  # refused, with a text that helps
    assert response["finalized_features_epoch"] == 4
    assert response["finalized_features"] == [{"name": "group.version", "max_version_level": 1, "min_version_level": 1}]


@pytest.mark.parametrize(("version", "lowest"), [(3, 1), (4, 0)])
async def test_supported_features_are_the_intersection_of_levels(version: int, lowest: int) -> None:
    view = two_clusters()
    features = {"east": {"group.version": (0, 1), "only.east": (1, 1)}, "west": {"group.version": (0, 3)}}
    clusters = {
        name: replace(one, snapshot=replace(one.snapshot, features=features[name]))
        for name, one in view.clusters.items()
    }
    call = FakeCall(replace(view, clusters=clusters))
    response = await handle(call, 18, version, {"client_software_name": "a", "client_software_version": "1"})
    assert response["supported_features"] == [{"name": "group.version", "min_version": lowest, "max_version": 1}]


async def test_a_version_nobody_reads_is_answered_35_with_the_list() -> None:
    response = await HANDLERS[18](cast(Call, FakeCall(two_clusters())), 99, {})
    again = decode("response", 18, 0, encode("response", 18, 0, response))
    assert again["error_code"] == ERROR.UNSUPPORTED_VERSION
    assert len(again["api_keys"]) > 40


async def test_an_invalid_software_name_is_refused() -> None:
    response = await handle(
        FakeCall(two_clusters()), 18, 3, {"client_software_name": "-", "client_software_version": "1"}
    )
    assert response["error_code"] == ERROR.INVALID_REQUEST


# Metadata


@pytest.mark.parametrize("version", range(14))
async def test_metadata_names_virtual_brokers_only(version: int) -> None:
    response = await handle(FakeCall(two_clusters()), 3, version, {"topics": [] if version == 0 else None})
    assert [(one["node_id"], one["host"], one["port"]) for one in response["brokers"]] == [
        (1, ADVERTISED, 9302),
        (2, ADVERTISED, 9303),
        (100001, ADVERTISED, 9312),
        (100003, ADVERTISED, 9314),
    ]
    bills = next(one for one in response["topics"] if one["name"] == "bills")
    assert {one["leader_id"] for one in bills["partitions"]} == {100001}
    assert bills["partitions"][0]["replica_nodes"] == [100001, 100002]
    assert response.get("cluster_id", "federation-id") == "federation-id"
    assert response.get("controller_id", 1) == 1
    if version >= 10:
        assert bills["topic_id"] == uuid(102)


async def test_topics_by_id_and_unknown_ones() -> None:
    call = FakeCall(two_clusters())
    # Java sends an empty name with an id: the id counts.
    request = {"topics": [{"topic_id": uuid(102), "name": ""}, {"topic_id": uuid(5), "name": None}]}
    response = await handle(call, 3, 12, request)
    assert [(one["name"], one["error_code"]) for one in response["topics"]] == [
        ("bills", 0),
        (None, ERROR.UNKNOWN_TOPIC_ID),
    ]
    response = await handle(call, 3, 9, {"topics": [{"name": "nobody"}, {"name": "or ders"}, {"name": "orders"}]})
    assert codes(response) == {
        "nobody": ERROR.UNKNOWN_TOPIC_OR_PARTITION,
        "or ders": ERROR.INVALID_TOPIC_EXCEPTION,
        "orders": 0,
    }
    assert ("find", ["nobody"]) in call.federation.told


async def test_a_name_found_on_a_cluster_at_first_mention_is_answered() -> None:
    call = FakeCall(two_clusters())
    call.federation.findable["late"] = served("late", "west", 103, 13)
    response = await handle(call, 3, 9, {"topics": [{"name": "late"}]})
    assert codes(response) == {"late": 0}


async def test_nothing_is_created_unless_the_federation_creates_topics() -> None:
    call = FakeCall(two_clusters())
    response = await handle(call, 3, 9, {"topics": [{"name": "new"}], "allow_auto_topic_creation": True})
    assert codes(response) == {"new": ERROR.UNKNOWN_TOPIC_OR_PARTITION}
    assert call.asked == []


async def test_auto_creation_goes_where_the_placement_says() -> None:
    call = FakeCall(two_clusters(), cluster="east")
    call.federation.auto_create_topics = True
    call.federation.places["new"] = "west"
    call.script("west", 19, {"topics": [{"name": "new", "error_code": 0}]})
    response = await handle(call, 3, 9, {"topics": [{"name": "new"}], "allow_auto_topic_creation": True})
    assert codes(response) == {"new": 0}
    assert [(cluster, key) for cluster, key, _ in call.asked] == [("west", 19)]
    refused = await handle(call, 3, 9, {"topics": [{"name": "other"}], "allow_auto_topic_creation": False})
    assert codes(refused) == {"other": ERROR.UNKNOWN_TOPIC_OR_PARTITION}


async def test_what_may_not_be_described_is_hidden_with_a_brokers_errors() -> None:
    call = FakeCall(two_clusters())
    call.hidden = {"bills", "nobody"}
    assert codes(await handle(call, 3, 9, ALL)) == {"orders": 0}
    named = await handle(call, 3, 9, {"topics": [{"name": "bills"}, {"name": "nobody"}]})
    assert set(codes(named).values()) == {ERROR.TOPIC_AUTHORIZATION_FAILED}
    by_id = await handle(call, 3, 12, {"topics": [{"topic_id": uuid(102), "name": None}]})
    assert by_id["topics"][0]["error_code"] == ERROR.UNKNOWN_TOPIC_ID


async def test_a_cluster_that_cannot_be_asked_makes_its_topics_retriable_not_forbidden() -> None:
    call = FakeCall(two_clusters())
    call.unreachable = {"west"}
    assert codes(await handle(call, 3, 9, {"topics": [{"name": "bills"}]})) == {"bills": ERROR.LEADER_NOT_AVAILABLE}


async def test_authorized_operations_are_told_when_asked_for() -> None:
    call = FakeCall(two_clusters())
    request = {
        "topics": None,
        "include_topic_authorized_operations": True,
        "include_cluster_authorized_operations": True,
    }
    response = await handle(call, 3, 9, request)
    assert {one["topic_authorized_operations"] for one in response["topics"]} == {3576}
    assert response["cluster_authorized_operations"] == 8096
    silent = await handle(call, 3, 9, ALL)
    assert {one["topic_authorized_operations"] for one in silent["topics"]} == {-2147483648}


async def test_partitions_without_a_reachable_leader_say_so() -> None:
    view = view_of([served("orders", "east", 101, 11, partitions=4)])
    east = view.clusters["east"]
    known = physical("orders", 11, 4, leader=9)  # 9: a broker without an address here
    topics = {"orders": known}
    view = replace(view, clusters={"east": replace(east, snapshot=replace(east.snapshot, topics=topics))})
    response = await handle(FakeCall(view), 3, 9, ALL)
    partitions = response["topics"][0]["partitions"]
    assert [(one["partition_index"], one["leader_id"], one["error_code"]) for one in partitions] == [
        (index, -1, ERROR.LEADER_NOT_AVAILABLE) for index in range(4)
    ]


async def test_new_partitions_are_shown_once_their_leaders_are_known() -> None:
    view = view_of([served("orders", "east", 101, 11, partitions=4)])
    east = view.clusters["east"]
    topics = {"orders": physical("orders", 11, 3)}
    behind = replace(view, clusters={"east": replace(east, snapshot=replace(east.snapshot, topics=topics))})
    unknown = replace(view, clusters={"east": replace(east, snapshot=replace(east.snapshot, topics={}))})
    assert len((await handle(FakeCall(behind), 3, 9, ALL))["topics"][0]["partitions"]) == 3
    # Not there at all: just made, or deleted on the cluster itself. Whoever names it hears more than who lists all.
    assert (await handle(FakeCall(unknown), 3, 9, ALL))["topics"] == []
    response = await handle(FakeCall(unknown), 3, 9, {"topics": [{"name": "orders"}]})
    assert len(response["topics"][0]["partitions"]) == 4
    away = replace(east, snapshot=replace(east.snapshot, topics={}, reachable=False))
    response = await handle(FakeCall(replace(view, clusters={"east": away})), 3, 9, ALL)
    assert len(response["topics"][0]["partitions"]) == 4


async def test_leader_epochs_carry_the_placement() -> None:
    moved = tuple(PlacementEpoch(cluster=name, topic_id=uuid(12).hex()) for name in ("east", "west"))
    view = view_of([served("bills", "west", 102, 12, timeline=moved)])
    response = await handle(FakeCall(view), 3, 9, ALL)
    assert response["topics"][0]["partitions"][0]["leader_epoch"] == 1 << 20 | 7


async def test_partitions_not_taken_over_yet_are_not_shown() -> None:
    view = two_clusters()
    east = view.clusters["east"]
    larger = {"orders": physical("orders", 11, 8)}
    clusters = {**view.clusters, "east": replace(east, snapshot=replace(east.snapshot, topics=larger))}
    response = await handle(FakeCall(replace(view, clusters=clusters)), 3, 9, {"topics": [{"name": "orders"}]})
    assert len(response["topics"][0]["partitions"]) == 3


async def test_an_empty_broker_list_is_never_answered() -> None:
    view = replace(two_clusters(), clusters={})
    for key, request in ((3, {"topics": []}), (60, {}), (18, {"client_software_name": "a"})):
        with pytest.raises(CloseConnection):
            await handle(FakeCall(view), key, 1 if key == 3 else 0, request)


# Metadata as bytes


@pytest.mark.parametrize("version", range(14))
@pytest.mark.parametrize("names", [None, ("bills",), ("orders", "bills"), ()])
async def test_cached_bytes_are_what_the_handler_would_answer(version: int, names: tuple[str, ...] | None) -> None:
    if version == 0 and names == ():
        return  # all topics, at that version
    request: Message = {"topics": None if names is None else [{"name": name} for name in names]}
    if version == 0:
        request["topics"] = [] if names is None else request["topics"]
    call = FakeCall(two_clusters())
    expected = await handle(call, 3, version, request)
    frame = encode("request", 3, version, {**request, "include_topic_authorized_operations": False})
    for _ in range(2):
        body = await encoded(cast(Call, call), version, frame, 0)
        assert body is not None
        assert decode("response", 3, version, body) == expected


async def test_the_handler_is_asked_for_what_the_cache_cannot_know() -> None:
    call = FakeCall(two_clusters())
    for request in (
        {"topics": [{"name": "nobody"}]},
        {"topics": [{"topic_id": uuid(102), "name": None}]},
        {"topics": None, "include_topic_authorized_operations": True},
    ):
        assert await encoded(cast(Call, call), 12, encode("request", 3, 12, request), 0) is None
    call.hidden = {"bills"}
    body = await encoded(cast(Call, call), 12, encode("request", 3, 12, ALL), 0)
    assert body is not None
    assert codes(decode("response", 3, 12, body)) == {"orders": 0}


def test_a_new_view_changes_the_answer_and_keeps_what_stayed() -> None:
    cache = MetadataCache()
    view = two_clusters()
    address = FakeCall(view).address
    first = cache.answer(view, "main", 9, None, address)
    assert first is cache.answer(view, "main", 9, None, address)
    larger = view_of([served("orders", "east", 101, 11, partitions=5)], generation=2)
    second = cache.answer(larger, "main", 9, None, address)
    assert second is not None
    assert [(one["name"], len(one["partitions"])) for one in decode("response", 3, 9, second)["topics"]] == [
        ("orders", 5)
    ]


def test_the_cache_is_bounded() -> None:
    cache = MetadataCache(limit=5_000)
    view = view_of([served(f"t{number}", "east", 1000 + number, 2000 + number) for number in range(50)])
    address = FakeCall(view).address
    for number in range(50):
        cache.answer(view, "main", 9, (f"t{number}",), address)
    assert sum(len(one) for one in cache._answers.values()) <= 5_000


def test_metadata_of_10000_partitions_comes_from_cache_in_less_than_5_ms() -> None:
    view = view_of([served(f"t{number}", "east", 1000 + number, 2000 + number, 10) for number in range(1000)])
    address = FakeCall(view).address
    encoded_metadata(view, "bench", 12, None, address)
    took = []
    for _ in range(20):
        began = time.perf_counter()
        encoded_metadata(view, "bench", 12, None, address)
        took.append(time.perf_counter() - began)
    assert min(took) < 0.005


# DescribeCluster, DescribeTopicPartitions


async def test_describe_cluster() -> None:
    response = await handle(FakeCall(two_clusters()), 60, 2, {})
    assert response["cluster_id"] == "federation-id"
    assert [one["broker_id"] for one in response["brokers"]] == [1, 2, 100001, 100003]
    assert {one["host"] for one in response["brokers"]} == {ADVERTISED}
    controllers = await handle(FakeCall(two_clusters()), 60, 1, {"endpoint_type": 2})
    assert controllers["error_code"] == ERROR.MISMATCHED_ENDPOINT_TYPE


async def page(view: View, cursor: Message | None, limit: int, names: list[str]) -> Message:
    request = {"topics": [{"name": name} for name in names], "response_partition_limit": limit, "cursor": cursor}
    return await handle(FakeCall(view), 75, 0, request)


async def test_topic_partitions_are_paged_without_gap_or_repetition() -> None:
    view = two_clusters()
    seen: list[tuple[str, int]] = []
    cursor: Message | None = None
    for _ in range(10):
        response = await page(view, cursor, 2, [])
        seen += [(t["name"], p["partition_index"]) for t in response["topics"] for p in t["partitions"]]
        assert sum(len(one["partitions"]) for one in response["topics"]) <= 2
        cursor = response["next_cursor"]
        if cursor is None:
            break
    assert seen == [(name, index) for name in ("bills", "orders") for index in range(3)]


async def test_topic_partitions_by_name_with_errors() -> None:
    response = await page(two_clusters(), None, 100, ["orders", "nobody"])
    assert codes(response) == {"orders": 0, "nobody": ERROR.UNKNOWN_TOPIC_OR_PARTITION}
    assert response["topics"][0]["topic_authorized_operations"] == 3576


# FindCoordinator


def coordinator(node: int, key: str = "g") -> Message:
    one = {"key": key, "node_id": node, "host": f"west-host-{node}.internal", "port": 19000 + node, "error_code": 0}
    return {**one, "coordinators": [one]}


@pytest.mark.parametrize("version", range(7))
@pytest.mark.parametrize("kind", [0, 1])
async def test_the_homes_coordinator_as_a_virtual_broker(version: int, kind: int) -> None:
    call = FakeCall(two_clusters())
    call.federation.homes["g"] = "west"
    call.script("west", 10, coordinator(3))
    response = await handle(call, 10, version, {"key": "g", "key_type": kind, "coordinator_keys": ["g"]})
    found = response["coordinators"][0] if version >= 4 else response
    assert call.asked[0][0] == "west"
    assert (found["node_id"], found["host"], found["port"]) == (100003, ADVERTISED, 9314)


async def test_groups_of_several_homes_in_one_request() -> None:
    call = FakeCall(two_clusters())
    call.federation.homes = {"a": "east", "b": "west"}
    call.script("east", 10, coordinator(1, "a"))
    call.unreachable = {"west"}
    response = await handle(call, 10, 4, {"key_type": 0, "coordinator_keys": ["b", "a"]})
    assert [(one["key"], one["node_id"], one["error_code"]) for one in response["coordinators"]] == [
        ("b", -1, ERROR.COORDINATOR_NOT_AVAILABLE),
        ("a", 1, 0),
    ]
    assert "west" in response["coordinators"][0]["error_message"]


async def test_a_coordinator_without_an_address_is_not_available() -> None:
    call = FakeCall(two_clusters())
    call.script("east", 10, coordinator(77))
    response = await handle(call, 10, 3, {"key": "g", "key_type": 0})
    assert (response["error_code"], response["host"]) == (ERROR.COORDINATOR_NOT_AVAILABLE, "")


async def test_a_brokers_refusal_is_passed_on_without_its_address() -> None:
    call = FakeCall(two_clusters())
    text = "broker 3 at west-host-3.internal:19003 refuses"
    call.federation.homes["g"] = "west"
    call.script("west", 10, {"coordinators": [{"key": "g", "error_code": 30, "error_message": text, "node_id": 3}]})
    found = (await handle(call, 10, 4, {"coordinator_keys": ["g"]}))["coordinators"][0]
    assert found["error_code"] == ERROR.GROUP_AUTHORIZATION_FAILED
    assert found["error_message"] == "broker 100003 at (a broker) refuses"
