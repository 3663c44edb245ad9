"""The table, the page made of it, the roles, and refusals of the right shape."""

from __future__ import annotations

from typing import Any, cast

import pytest

from kafka_wire.api_table import Principal, Way, api_name, readable, table
from kafka_wire.codec import Message, decode, encode
from kafka_wire.errors import ERROR
from kafka_wire.roles import Role, rewrite, roles
from kafka_wire.schema import NEVER, Field, by_key, document
from proxy.apis.contract import Call, ClusterAway, Refused
from proxy.apis.refusals import away_code, refusal
from proxy.apis.registry import HANDLERS
from tests.fixtures.calls import FakeCall, two_clusters
from tools.api_table.__main__ import main

KEYS = sorted(by_key("request"))


def test_the_page_is_up_to_date() -> None:
    assert main(["--check"]) == 0, "run python -m tools.api_table"


def test_every_key_of_the_protocol_is_in_the_table() -> None:
    assert set(table()) == set(by_key("request")) | {int(key) for key in document()["internal"]}
    assert api_name(1) == "Fetch"
    assert api_name(4) == "LeaderAndIsr"
    assert api_name(999) == "Api999"
    assert readable(1, 12)
    assert not readable(1, 99)
    assert not readable(4, 0)
    assert not readable(999, 0)


def test_refused_apis_take_nothing_upstream() -> None:
    for api in table().values():
        if api.way is Way.REFUSED:
            assert api.principal is Principal.NONE
            assert api.offered == NEVER or api.key in (80, 81)


def sample(key: int, version: int) -> Message:
    """A request with one of everything."""

    def fill(fields: tuple[Field, ...]) -> Message:
        out: Message = {}
        for one in fields:
            value: Any = {
                "string": one.name,
                "bytes": b"b",
                "records": b"",
                "uuid": bytes(15) + b"\7",
                "bool": False,
            }.get(one.type, 5)
            if one.fields:
                value = fill(one.fields)
            out[one.name] = [value] if one.array else value
        return out

    return decode("request", key, version, encode("request", key, version, fill(by_key("request")[key].fields)))


def codes(value: Any) -> set[int]:
    out: set[int] = set()
    if isinstance(value, dict):
        for name, item in value.items():
            out |= {item} if name.endswith("error_code") else codes(item)
    elif isinstance(value, list):
        for item in value:
            out |= codes(item)
    return out


@pytest.mark.parametrize("key", KEYS)
def test_a_refusal_fits_every_version_and_shows_its_error_everywhere(key: int) -> None:
    known = by_key("response")[key]
    for version in range(known.versions.low, known.versions.high + 1):
        request = sample(key, version)
        answer = refusal(key, version, request, ERROR.INVALID_REQUEST, "because")
        again = decode("response", key, version, encode("response", key, version, answer))
        if key == 57 and version == 2:
            assert again["error_code"] == ERROR.INVALID_REQUEST
        silent = key == 35 and version < 3  # DescribeLogDirs had no place for an error of its own
        assert codes(again) == (set() if silent else {ERROR.INVALID_REQUEST}), f"version {version}"
        # Empty lists in an answer to a request that names things are items a client would miss.
        lists = {name for name, value in again.items() if value == [] and name not in _LISTED_ANYWAY.get(key, ())}
        assert lists == set(), f"version {version}"


# Lists that hold what was found, or data: nothing to echo.
_LISTED_ANYWAY: dict[int, set[str]] = {
    0: {"node_endpoints"}, 1: {"node_endpoints"}, 3: {"brokers"}, 11: {"members"}, 16: {"groups"}, 17: {"mechanisms"},
    18: {"api_keys", "supported_features", "finalized_features"}, 29: {"resources"}, 35: {"results"}, 41: {"tokens"},
    46: {"topics"}, 55: {"nodes"}, 60: {"brokers"}, 66: {"unknown_state_filters", "transaction_states"},
    71: {"accepted_compression_types", "requested_metrics"}, 74: {"config_resources"}, 78: {"node_endpoints"},
    79: {"node_endpoints"},
    88: {"partitions_by_user_endpoint", "status", "active_tasks", "standby_tasks", "warmup_tasks"},
}  # fmt: skip


@pytest.mark.parametrize("failure", [Refused(42, "no"), ClusterAway("west", "gone")])
async def test_what_a_handler_cannot_do_becomes_its_apis_error(failure: Exception) -> None:
    call = FakeCall(two_clusters())
    call.key, call.version = 12, 4
    call.script("east", 12, failure)
    response = await HANDLERS[12](cast(Call, call), 4, {"group_id": "g"})
    assert response["error_code"] == (42 if isinstance(failure, Refused) else ERROR.COORDINATOR_NOT_AVAILABLE)
    assert away_code(2) == ERROR.NOT_LEADER_OR_FOLLOWER
    assert away_code(19) == ERROR.REQUEST_TIMED_OUT


def test_roles_are_told_per_version() -> None:
    at = {one.path: one for one in roles("response", 1)}
    assert at["node_endpoints"].role is Role.ENDPOINT
    assert 15 not in at["node_endpoints"].versions
    assert at["responses.partitions.diverging_epoch.epoch"].role is Role.LEADER_EPOCH
    assert {one.role for one in roles("request", 45)} == {Role.NODE_ID, Role.TOPIC_NAME}


def test_rewriting_maps_in_place_and_leaves_nulls_and_unknown_tags_out() -> None:
    message: Message = {
        "topics": [{"name": "a", "partitions": [{"leader_id": 1, "replica_nodes": [1, 2], "isr_nodes": None}]}],
        "brokers": [
            {"node_id": 1, "host": "h", "port": 1, "_tags": [(9, b"x")]},
            {"node_id": 2, "host": "h", "port": 2},
        ],
        "controller_id": -1,
    }
    mapping: dict[Role, Any] = {
        Role.NODE_ID: lambda node: node + 100,
        Role.ENDPOINT: lambda node: (node + 100, "virtual", 9) if node == 1 else None,
    }
    assert rewrite("response", 3, 9, message, mapping) is message
    assert message["brokers"] == [{"node_id": 101, "host": "virtual", "port": 9}]
    partition = message["topics"][0]["partitions"][0]
    assert (partition["leader_id"], partition["replica_nodes"], partition["isr_nodes"]) == (101, [101, 102], None)
    assert message["controller_id"] == 99
