"""What is decided here tells and does no more than the clusters would."""

from __future__ import annotations

from typing import cast

import pytest

from kafka_wire.codec import Message
from kafka_wire.errors import ERROR
from metadata_service.failures import StubRefused, Undecided
from proxy.apis.contract import Call
from proxy.apis.discretion import discreet
from proxy.apis.registry import HANDLERS
from tests.fixtures.calls import FakeCall, handle, two_clusters

LIST_OFFSETS, OFFSET_COMMIT, FIND_COORDINATOR, ADD_PARTITIONS, SCRAM_USERS = 2, 8, 10, 24, 50
DENIED = int(ERROR.TOPIC_AUTHORIZATION_FAILED)


async def answered(call: FakeCall, key: int, version: int, request: Message) -> Message:
    call.key, call.version = key, version
    return await discreet(key, HANDLERS[key])(cast(Call, call), version, request)


def positions(*topics: str) -> Message:
    part = {"partition_index": 0, "timestamp": -1, "current_leader_epoch": -1}
    return {"replica_id": -1, "isolation_level": 0, "topics": [{"name": one, "partitions": [part]} for one in topics]}


def commit(*topics: str) -> Message:
    part = {"partition_index": 0, "committed_offset": 5, "committed_leader_epoch": -1, "committed_metadata": ""}
    return {
        "group_id": "g",
        "generation_id_or_member_epoch": -1,
        "member_id": "",
        "group_instance_id": None,
        "topics": [{"name": one, "partitions": [part]} for one in topics],
    }


def codes(response: Message) -> dict[str, int]:
    return {one["name"]: one["partitions"][0]["error_code"] for one in response["topics"]}


async def test_whether_a_topic_exists_is_told_to_whom_may_know() -> None:
    call = FakeCall(two_clusters())
    request = positions("bills", "absent")
    assert codes(await answered(call, LIST_OFFSETS, 7, request)) == {
        "bills": ERROR.NOT_LEADER_OR_FOLLOWER,
        "absent": ERROR.UNKNOWN_TOPIC_OR_PARTITION,
    }
    call.hidden = {"bills", "absent"}
    assert codes(await answered(call, LIST_OFFSETS, 7, request)) == {"bills": DENIED, "absent": DENIED}


async def test_positions_on_a_topic_of_another_cluster_are_judged_by_that() -> None:
    call = FakeCall(two_clusters())
    call.hidden = {"bills"}
    stored = {"name": "orders", "partitions": [{"partition_index": 0, "error_code": 0}]}
    call.script("east", OFFSET_COMMIT, {"topics": [stored]})
    response = await answered(call, OFFSET_COMMIT, 8, commit("bills", "orders"))
    assert list(codes(response).items()) == [("bills", DENIED), ("orders", 0)]
    assert [one["name"] for one in call.asked[-1][2]["topics"]] == ["orders"]
    assert not [one for one in call.federation.told if one[0] == "stubs"]


async def test_a_transaction_s_home_is_decided_by_whom_may_write() -> None:
    call = FakeCall(two_clusters())
    call.hidden = {"bills"}
    request: Message = {
        "v3_and_below_transactional_id": "t",
        "v3_and_below_producer_id": 1,
        "v3_and_below_producer_epoch": 0,
        "v3_and_below_topics": [{"name": "bills", "partitions": [0]}, {"name": "orders", "partitions": [0]}],
    }
    response = await answered(call, ADD_PARTITIONS, 3, request)
    found = {
        one["name"]: one["results_by_partition"][0]["partition_error_code"]
        for one in response["results_by_topic_v3_and_below"]
    }
    assert found == {"bills": DENIED, "orders": ERROR.OPERATION_NOT_ATTEMPTED}
    call.hidden = {"t"}
    response = await answered(call, ADD_PARTITIONS, 3, request)
    assert str(int(ERROR.TRANSACTIONAL_ID_AUTHORIZATION_FAILED)) in str(response)
    assert not [one for one in call.federation.told if one[0] == "writes"]


async def test_nothing_is_recorded_for_whom_every_cluster_refuses() -> None:
    call = FakeCall(two_clusters())
    call.hidden = {"g"}
    call.federation.failure = AssertionError("decided")
    answer = {"node_id": -1, "host": "", "port": -1, "error_code": int(ERROR.GROUP_AUTHORIZATION_FAILED)}
    call.script("east", FIND_COORDINATOR, {"coordinators": [{"key": "g", "error_message": None, **answer}]})
    response = await handle(call, FIND_COORDINATOR, 4, {"key_type": 0, "coordinator_keys": ["g"]})
    assert response["coordinators"][0]["error_code"] == ERROR.GROUP_AUTHORIZATION_FAILED


async def test_all_scram_users_are_not_asked_for_by_whom_may_not() -> None:
    call = FakeCall(two_clusters())
    call.hidden = {"kafka-cluster"}
    response = await answered(call, SCRAM_USERS, 0, {"users": None})
    assert (response["error_code"], call.asked) == (ERROR.CLUSTER_AUTHORIZATION_FAILED, [])


async def test_while_rules_cannot_be_read_groups_go_on() -> None:
    call = FakeCall(two_clusters())
    call.unreachable = {"west"}
    stored = {"name": "bills", "partitions": [{"partition_index": 0, "error_code": 0}]}
    call.script("east", OFFSET_COMMIT, {"topics": [stored]})
    assert codes(await answered(call, OFFSET_COMMIT, 8, commit("bills"))) == {"bills": 0}


@pytest.mark.parametrize("missing", ["home", "stub"])
async def test_reasons_name_no_broker(missing: str) -> None:
    address = "10.20.30.40:9092"
    call = FakeCall(two_clusters())
    if missing == "home":
        call.federation.failure = Undecided("east", f"{address}: no answer from east-host-1.internal")
        response = await handle(call, FIND_COORDINATOR, 4, {"key_type": 0, "coordinator_keys": ["g"]})
    else:
        call.federation.stub_failure = StubRefused("east", "bills", f"NOT_CONTROLLER: ask {address}", 41)
        request = commit("bills")
        response = await handle(call, OFFSET_COMMIT, 8, request)
    assert "10.20.30.40" not in str(response)
    assert "east-host-1" not in str(response)


@pytest.mark.parametrize("hidden", [True, False])
async def test_a_streams_group_is_not_described_to_who_may_not_see_a_source_topic_elsewhere(hidden: bool) -> None:
    call = FakeCall(two_clusters())
    topology = {"epoch": 1, "subtopologies": [{"subtopology_id": "0", "source_topics": ["bills"]}]}
    group = {"error_code": 0, "group_id": "s", "group_state": "Stable", "topology": topology, "members": []}
    call.script("east", 89, {"groups": [group]})
    call.hidden = {"bills"} if hidden else set()
    (found,) = (await answered(call, 89, 0, {"group_ids": ["s"], "include_authorized_operations": False}))["groups"]
    assert found["error_code"] == (ERROR.TOPIC_AUTHORIZATION_FAILED if hidden else 0)
    assert (found["topology"] is None) is hidden
