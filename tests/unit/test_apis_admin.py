"""Topics, positions, configs, security, brokers: split, joined, merged; nothing left out without a word."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from kafka_wire.codec import Message
from kafka_wire.errors import ERROR
from metadata_service.models import PlacementEpoch
from metadata_service.operations.records import MigrationRecord, Moving
from metadata_service.view import View
from offset_sync.table import Table
from tests.fixtures.calls import ADVERTISED, FakeCall, handle, served, stub, two_clusters, uuid, view_of


def by_name(results: list[Message], name: str = "name") -> dict[str, int]:
    return {one[name]: one["error_code"] for one in results}


# CreateTopics, DeleteTopics, CreatePartitions


def new(name: str, *replicas: list[int], **more: Any) -> Message:
    assignments = [{"partition_index": index, "broker_ids": ids} for index, ids in enumerate(replicas)]
    return {"name": name, "num_partitions": -1, "replication_factor": -1, "assignments": assignments, **more}


def created(request: Message) -> Message:
    return {"topics": [{"name": one["name"], "topic_id": uuid(800)} for one in request["topics"]]}


async def test_topics_are_created_where_the_placement_says_and_answered_in_order() -> None:
    call = FakeCall(two_clusters())
    call.federation.places = {"w": "west"}
    call.script("east", 19, created)
    call.script("west", 19, created)
    response = await handle(call, 19, 7, {"topics": [new("w"), new("orders"), new("e")]})
    assert list(by_name(response["topics"]).items()) == [("w", 0), ("orders", ERROR.TOPIC_ALREADY_EXISTS), ("e", 0)]
    assert {(cluster, one["topics"][0]["name"]) for cluster, _, one in call.asked} == {("west", "w"), ("east", "e")}
    assert {one for one in call.federation.told if one[0] == "created"} == {
        ("created", ("west", "w")),
        ("created", ("east", "e")),
    }
    assert response["topics"][0]["topic_id"] == uuid(900)  # the logical one


async def test_a_validation_records_nothing() -> None:
    call = FakeCall(two_clusters())
    call.script("east", 19, created)
    await handle(call, 19, 7, {"topics": [new("e")], "validate_only": True})
    assert not [one for one in call.federation.told if one[0] == "created"]
    assert call.asked[0][2]["validate_only"]


async def test_assignments_name_brokers_of_the_topics_cluster() -> None:
    call = FakeCall(two_clusters())
    call.federation.places = {"w": "west", "x": "west"}
    call.script("west", 19, created)
    response = await handle(call, 19, 7, {"topics": [new("w", [100003, 100001]), new("x", [1])]})
    assert call.asked[0][2]["topics"][0]["assignments"][0]["broker_ids"] == [3, 1]
    assert by_name(response["topics"]) == {"w": 0, "x": ERROR.INVALID_REPLICA_ASSIGNMENT}
    assert "100001" in response["topics"][1]["error_message"]


async def test_names_kept_for_the_federation_and_stubs_of_deleted_topics_are_refused() -> None:
    call = FakeCall(two_clusters(stubs=stub("ghost", "east", 70)))
    response = await handle(call, 19, 7, {"topics": [new("__kfed_x"), new("ghost")]})
    assert by_name(response["topics"]) == {
        "__kfed_x": ERROR.INVALID_TOPIC_EXCEPTION,
        "ghost": ERROR.TOPIC_ALREADY_EXISTS,
    }


async def test_a_cluster_away_is_named_in_its_topics_results() -> None:
    call = FakeCall(two_clusters())
    call.federation.places = {"w": "west"}
    call.unreachable = {"west"}
    call.script("east", 19, created)
    response = await handle(call, 19, 7, {"topics": [new("w"), new("e")]})
    assert by_name(response["topics"]) == {"w": ERROR.REQUEST_TIMED_OUT, "e": 0}
    assert "west" in response["topics"][0]["error_message"]


@pytest.mark.parametrize("version", [1, 5, 6])
async def test_topics_are_deleted_by_name_on_their_clusters(version: int) -> None:
    call = FakeCall(two_clusters())
    for cluster in ("east", "west"):
        call.script(cluster, 20, lambda request: {"responses": [{"name": one["name"]} for one in request["topics"]]})
    names = ["bills", "nobody", "orders"]
    response = await handle(
        call, 20, version, {"topic_names": names, "topics": [{"name": one} for one in names], "timeout_ms": 1000}
    )
    assert list(by_name(response["responses"]).items()) == [
        ("bills", 0),
        ("nobody", ERROR.UNKNOWN_TOPIC_OR_PARTITION),
        ("orders", 0),
    ]
    assert ("deleted", ["bills", "orders"]) in call.federation.told
    assert all(one["topic_names"] for _, _, one in call.asked)  # both shapes, whatever the broker speaks


async def test_topics_are_deleted_by_logical_id() -> None:
    call = FakeCall(two_clusters())
    moved = (PlacementEpoch(cluster="west", topic_id=uuid(12).hex()),)
    call.now = view_of([served("bills", "west", 102, 12, timeline=moved)])
    call.script("west", 20, {"responses": [{"name": "bills", "topic_id": uuid(12)}]})
    topics = [{"name": None, "topic_id": uuid(102)}, {"name": None, "topic_id": uuid(5)}]
    response = await handle(call, 20, 6, {"topics": topics, "timeout_ms": 1000})
    assert call.asked[0][2]["topics"] == [{"name": None, "topic_id": uuid(12)}]
    assert [(one["topic_id"], one["error_code"]) for one in response["responses"]] == [
        (uuid(102), 0),
        (uuid(5), ERROR.UNKNOWN_TOPIC_ID),
    ]


async def test_new_partitions_are_taken_over_once_made() -> None:
    call = FakeCall(two_clusters())
    call.script("west", 37, {"results": [{"name": "bills"}]})
    topics = [
        {"name": "bills", "count": 4, "assignments": [{"broker_ids": [100001]}]},
        {"name": "orders", "count": 4, "assignments": [{"broker_ids": [100001]}]},
        {"name": "nobody", "count": 4, "assignments": None},
    ]
    response = await handle(call, 37, 3, {"topics": topics, "timeout_ms": 1000})
    assert by_name(response["results"]) == {"bills": 0, "orders": 39, "nobody": 3}
    assert call.asked[0][2]["topics"][0]["assignments"] == [{"broker_ids": [1]}]
    assert ("partitions", ["bills"]) in call.federation.told


# Positions


def listing(*names: str, epoch: int = -1) -> Message:
    partitions = [{"partition_index": 0, "current_leader_epoch": epoch, "timestamp": -1}]
    return {"replica_id": -1, "topics": [{"name": name, "partitions": partitions} for name in names]}


def first_codes(response: Message, code: str = "error_code") -> dict[str, int]:
    return {one.get("name", one.get("topic")): one["partitions"][0][code] for one in response["topics"]}


def listed(request: Message) -> Message:
    part = {"partition_index": 0, "offset": 5, "leader_epoch": 7}
    return {"topics": [{"name": one["name"], "partitions": [part]} for one in request["topics"]]}


@pytest.mark.parametrize("version", range(1, 12))
async def test_positions_are_asked_only_where_the_view_places_the_topic(version: int) -> None:
    call = FakeCall(two_clusters())
    call.script("east", 2, listed)
    response = await handle(call, 2, version, listing("bills", "orders", "nobody"))
    assert list(first_codes(response).items()) == [("bills", 6), ("orders", 0), ("nobody", 3)]
    assert first_codes(response, "offset")["bills"] == -1
    assert [one["name"] for one in call.asked[0][2]["topics"]] == ["orders"]


async def test_nothing_is_asked_where_nothing_is_served() -> None:
    call = FakeCall(two_clusters())
    assert first_codes(await handle(call, 2, 5, listing("bills"))) == {"bills": 6}
    assert call.asked == []


async def test_a_follower_is_no_client() -> None:
    response = await handle(FakeCall(two_clusters()), 2, 5, listing("orders") | {"replica_id": 2})
    assert first_codes(response) == {"orders": ERROR.CLUSTER_AUTHORIZATION_FAILED}


def moved_view() -> View:
    timeline = (
        PlacementEpoch(cluster="west", topic_id=uuid(9).hex(), physical_epochs={0: ((0, 0), (3, 40))}),
        PlacementEpoch(cluster="east", topic_id=uuid(11).hex(), first={0: 100}),
    )
    return view_of([served("orders", "east", 101, 11, timeline=timeline)])


async def test_a_moved_topic_without_its_table_is_not_guessed() -> None:
    assert first_codes(await handle(FakeCall(moved_view()), 2, 5, listing("orders"))) == {"orders": 6}


class Plus100:
    """The cluster's offset 0 is logical offset 100."""

    def table(self, topic: object, partition: int) -> Table:
        made = Table()
        made.open(100, 0)
        return made

    async def arrived(self, wanted: object) -> None:
        """They are here."""


@pytest.fixture
def _tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.apis.translation._tables", Plus100())


@pytest.mark.usefixtures("_tables")
@pytest.mark.parametrize(
    ("epoch", "code", "asked"), [(-1, 0, -1), (1 << 20 | 7, 0, 7), (7, 74, None), (2 << 20, 75, None)]
)
async def test_current_leader_epochs_are_those_of_the_placement(epoch: int, code: int, asked: int | None) -> None:
    call = FakeCall(moved_view())
    call.script("east", 2, listed)
    response = await handle(call, 2, 5, listing("orders", epoch=epoch))
    assert first_codes(response) == {"orders": code}
    if asked is None:
        assert call.asked == []
    else:
        assert call.asked[0][2]["topics"][0]["partitions"][0]["current_leader_epoch"] == asked
        assert response["topics"][0]["partitions"][0]["offset"] == 105
        assert response["topics"][0]["partitions"][0]["leader_epoch"] == 1 << 20 | 7


@pytest.mark.usefixtures("_tables")
@pytest.mark.parametrize(
    ("epoch", "answer"),
    [(0, (0, 40)), (2, (0, 40)), (3, (3, 100)), (9, (3, 100)), (2 << 20, (-1, -1)), (1 << 20 | 7, (1 << 20 | 7, 105))],
)
async def test_epochs_of_earlier_placements_are_answered_from_the_timeline(epoch: int, answer: tuple[int, int]) -> None:
    call = FakeCall(moved_view())
    part = {"partition": 0, "leader_epoch": 7, "end_offset": 5}
    call.script("east", 23, {"topics": [{"topic": "orders", "partitions": [part]}]})
    asked = {"partition": 0, "current_leader_epoch": -1, "leader_epoch": epoch}
    response = await handle(call, 23, 4, {"replica_id": -1, "topics": [{"topic": "orders", "partitions": [asked]}]})
    found = response["topics"][0]["partitions"][0]
    assert (found["leader_epoch"], found["end_offset"]) == answer
    if epoch >> 20 == 1:
        assert call.asked[0][2]["topics"][0]["partitions"][0]["leader_epoch"] == 7


@pytest.mark.usefixtures("_tables")
async def test_records_are_deleted_up_to_the_same_record() -> None:
    call = FakeCall(moved_view())
    part = {"partition_index": 0, "low_watermark": 20}
    call.script("east", 21, {"topics": [{"name": "orders", "partitions": [part]}]})
    asked = {"name": "orders", "partitions": [{"partition_index": 0, "offset": 120}]}
    response = await handle(call, 21, 2, {"topics": [asked], "timeout_ms": 100})
    assert call.asked[0][2]["topics"][0]["partitions"][0]["offset"] == 20
    assert response["topics"][0]["partitions"][0]["low_watermark"] == 120


async def test_producers_are_described_as_they_know_themselves() -> None:
    call = FakeCall(two_clusters())
    producers = [{"producer_id": 5 + (1 << 40) + (3 << 52)}, {"producer_id": 9}]
    partition = {"partition_index": 0, "active_producers": producers}
    call.script("east", 61, {"topics": [{"name": "orders", "partitions": [partition]}]})
    topics = [{"name": name, "partition_indexes": [0]} for name in ("orders", "bills")]
    response = await handle(call, 61, 0, {"topics": topics})
    first = response["topics"][0]["partitions"][0]
    assert [one["producer_id"] for one in first["active_producers"]] == [5 + (1 << 40), 9]
    assert response["topics"][1]["partitions"][0]["error_code"] == 6


@pytest.mark.parametrize("key", [78, 79])
@pytest.mark.parametrize("version", [1, 2])
async def test_share_requests_name_topics_by_logical_id(key: int, version: int) -> None:
    call = FakeCall(two_clusters())
    hint = {"node_id": 2, "host": "east-host-2.internal", "port": 19002}
    part = {"partition_index": 0, "error_code": 6, "current_leader": {"leader_id": 2, "leader_epoch": 8}}
    call.script("east", key, {"responses": [{"topic_id": uuid(11), "partitions": [part]}], "node_endpoints": [hint]})
    topics = [{"topic_id": uuid(one), "partitions": [{"partition_index": 0}]} for one in (101, 102, 999)]
    request = {"group_id": "s", "member_id": "m", "topics": topics}
    response = await handle(call, key, version, request)
    assert [one["topic_id"] for one in call.asked[0][2]["topics"]] == [uuid(11)]
    assert [(one["topic_id"], one["partitions"][0]["error_code"]) for one in response["responses"]] == [
        (uuid(101), 6),
        (uuid(102), 6),
        (uuid(999), ERROR.UNKNOWN_TOPIC_ID),
    ]
    assert response["node_endpoints"] == [{"node_id": 2, "host": ADVERTISED, "port": 9303, "rack": None}]


# Configs


def resource(kind: int, name: str, **more: Any) -> Message:
    return {"resource_type": kind, "resource_name": name, "configuration_keys": None, **more}


def described(*settings: tuple[str, str]) -> Any:
    def answer(request: Message) -> Message:
        configs = [{"name": name, "value": value} for name, value in settings]
        return {
            "results": [
                {"resource_type": one["resource_type"], "resource_name": one["resource_name"], "configs": configs}
                for one in request["resources"]
            ]
        }

    return answer


async def test_configs_come_from_who_has_them() -> None:
    call = FakeCall(two_clusters())
    call.federation.homes["g"] = "west"
    for cluster in ("east", "west"):
        call.script(cluster, 32, described(("a", cluster)))
    resources = [
        resource(2, "bills"),
        resource(4, "100003"),
        resource(4, ""),
        resource(32, "g"),
        resource(2, "nobody"),
        resource(4, "77"),
        resource(99, "x"),
    ]
    response = await handle(call, 32, 4, {"resources": resources})
    assert [(one["resource_name"], one["error_code"]) for one in response["results"]] == [
        ("bills", 0),
        ("100003", 0),
        ("", 0),
        ("g", 0),
        ("nobody", 3),
        ("77", 42),
        ("x", 42),
    ]
    assert [one["configs"][0]["value"] for one in response["results"][:4]] == ["west", "west", "east", "west"]
    assert 3 in call.brokers


async def test_a_brokers_settings_do_not_say_where_it_listens() -> None:
    call = FakeCall(two_clusters())
    call.script(
        "west",
        32,
        described(
            ("advertised.listeners", "PLAINTEXT://west-host-3.internal:19003"),
            ("node.id", "3"),
            ("controller.quorum.voters", "9@controller:9093"),
            ("other", "see west-host-3.internal"),
            ("log.dirs", "/var/lib/kafka"),
        ),
    )
    response = await handle(call, 32, 4, {"resources": [resource(4, "100003")]})
    shown = {one["name"]: (one["value"], one["is_sensitive"]) for one in response["results"][0]["configs"]}
    assert shown == {
        "advertised.listeners": (f"MAIN://{ADVERTISED}:9314", False),
        "node.id": ("100003", False),
        "controller.quorum.voters": (None, True),
        "other": (None, True),
        "log.dirs": ("/var/lib/kafka", False),
    }


def moving(topic: str, **more: Any) -> dict[str, MigrationRecord]:
    """A move of a topic from west to east."""
    record = MigrationRecord(
        id="op", topics={topic: Moving(source_id=uuid(12).hex())}, source="west", target="east", **more
    )
    return {"op": record}


async def test_what_closes_a_topic_is_not_shown() -> None:
    own = {"max.message.bytes": None, "compression.type": "lz4"}
    move = moving("bills", step="close", hold="held", saved={"bills": own})
    call = FakeCall(view_of([served("bills", "west", 102, 12, hold="op")], migrations=move))
    plain = described(("max.message.bytes", "78"), ("compression.type", "gzip"), ("x", "y"))

    def answer(request: Message) -> Message:
        assert request["include_synonyms"]
        told: Message = plain(request)
        told["results"][0]["configs"][0]["synonyms"] = [
            {"name": "max.message.bytes", "value": "78", "source": 1},
            {"name": "message.max.bytes", "value": "1048588", "source": 5},
        ]
        return told

    call.script("west", 32, answer)
    response = await handle(call, 32, 4, {"resources": [resource(2, "bills")]})
    shown = {one["name"]: one["value"] for one in response["results"][0]["configs"]}
    assert shown == {"max.message.bytes": "1048588", "compression.type": "lz4", "x": "y"}
    assert not any(one["synonyms"] for one in response["results"][0]["configs"])  # nobody asked for them
    assert [one["config_source"] for one in response["results"][0]["configs"][:2]] == [5, 1]


async def test_settings_of_a_topic_that_is_being_moved() -> None:
    call = FakeCall(view_of([served("bills", "west", 102, 12)], migrations=moving("bills", step="ship")))
    call.script("west", 44, {"responses": [{"resource_type": 2, "resource_name": "bills"}]})

    async def alter(key: int, name: str) -> tuple[int, str | None]:
        setting = {"name": name, "config_operation": 0, "value": "1000"}
        asked = {"resources": [{"resource_type": 2, "resource_name": "bills", "configs": [setting]}]}
        answer = (await handle(call, key, 1, asked))["responses"][0]
        return answer["error_code"], answer["error_message"]

    code, text = await alter(44, "max.message.bytes")
    assert code == ERROR.POLICY_VIOLATION and "operation op" in (text or "") and not call.asked
    assert (await alter(33, "retention.ms"))[0] == ERROR.POLICY_VIOLATION
    assert (await alter(44, "retention.ms"))[0] == 0
    assert call.federation.told[-1] == ("settings", ["op", "bills", "retention.ms=1000"])
    call.now = view_of([served("bills", "west", 102, 12)], migrations=moving("bills", step="close", hold="held"))
    assert (await alter(44, "retention.ms"))[0] == ERROR.REQUEST_TIMED_OUT


async def test_a_topic_is_expanded_where_it_is_after_its_switch() -> None:
    def expand(cluster: str, **more: Any) -> View:
        return view_of([served("bills", cluster, 102, 12)], migrations=moving("bills", **more))

    call = FakeCall(expand("west", step="close", hold="held"))
    call.federation.next_view = expand("east", step="announce", hold="announced")
    call.script("east", 37, {"results": [{"name": "bills"}]})
    request = {"topics": [{"name": "bills", "count": 6, "assignments": None}], "validate_only": False}
    response = await handle(call, 37, 3, {**request, "timeout_ms": 1000})
    assert response["results"][0]["error_code"] == 0 and [one[0] for one in call.asked] == ["east"]


async def test_throttled_replicas_name_virtual_brokers() -> None:
    call = FakeCall(two_clusters())
    call.script("west", 32, described(("leader.replication.throttled.replicas", "0:1,1:3")))
    response = await handle(call, 32, 4, {"resources": [resource(2, "bills")]})
    assert response["results"][0]["configs"][0]["value"] == "0:100001,1:100003"
    call.script("west", 44, {"responses": [{"resource_type": 2, "resource_name": "bills"}]})
    setting = {"name": "leader.replication.throttled.replicas", "config_operation": 0, "value": "0:100003"}
    await handle(call, 44, 1, {"resources": [{"resource_type": 2, "resource_name": "bills", "configs": [setting]}]})
    assert call.asked[-1][2]["resources"][0]["configs"][0]["value"] == "0:3"


@pytest.mark.parametrize("key", [33, 44])
async def test_cluster_wide_settings_go_to_all_and_the_worst_is_told(key: int) -> None:
    call = FakeCall(two_clusters())
    call.script("east", key, {"responses": [{"resource_type": 4, "resource_name": ""}]})
    call.script("west", key, {"responses": [{"resource_type": 4, "resource_name": "", "error_code": 40}]})
    response = await handle(call, key, 1, {"resources": [{"resource_type": 4, "resource_name": "", "configs": []}]})
    assert response["responses"][0]["error_code"] == ERROR.INVALID_CONFIG
    assert {cluster for cluster, _, _ in call.asked} == {"east", "west"}


async def test_config_resources_are_merged() -> None:
    call = FakeCall(two_clusters())
    both = [{"resource_type": 2, "resource_name": one} for one in ("orders", "bills")]
    both += [{"resource_type": 4, "resource_name": "1"}, {"resource_type": 16, "resource_name": "metrics"}]
    for cluster in ("east", "west"):
        call.script(cluster, 74, {"config_resources": both})
    response = await handle(call, 74, 1, {})
    assert sorted((one["resource_type"], one["resource_name"]) for one in response["config_resources"]) == [
        (2, "bills"),
        (2, "orders"),
        (4, "1"),
        (4, "100001"),
        (16, "metrics"),
    ]


# Security


def acls(*names: str) -> Message:
    acl = {"principal": "User:a", "host": "*", "operation": 3, "permission_type": 3}
    return {"resources": [{"resource_type": 2, "resource_name": one, "acls": [acl]} for one in names]}


FILTER: Message = {"resource_type_filter": 1, "operation": 1, "permission_type": 1}


async def test_acls_are_merged_without_doubles() -> None:
    call = FakeCall(two_clusters())
    call.script("east", 29, acls("a", "b"))
    call.script("west", 29, acls("b", "c"))
    response = await handle(call, 29, 3, FILTER)
    assert [(one["resource_name"], len(one["acls"])) for one in response["resources"]] == [("a", 1), ("b", 1), ("c", 1)]


async def test_an_incomplete_list_of_acls_is_an_error_that_names_the_cluster() -> None:
    call = FakeCall(two_clusters())
    call.script("east", 29, acls("a"))
    call.unreachable = {"west"}
    response = await handle(call, 29, 3, FILTER)
    assert response["error_code"] == ERROR.REQUEST_TIMED_OUT
    assert "west" in response["error_message"]


async def test_a_cluster_without_an_authorizer_counts_only_where_all_are() -> None:
    call = FakeCall(two_clusters())
    off = {"error_code": ERROR.SECURITY_DISABLED, "error_message": "no authorizer"}
    call.script("east", 29, acls("a"))
    call.script("west", 29, off)
    assert (await handle(call, 29, 3, FILTER))["error_code"] == 0
    call.script("east", 29, off)
    assert (await handle(call, 29, 3, FILTER))["error_code"] == ERROR.SECURITY_DISABLED
    call.script("east", 30, {"results": [{"error_code": 0}]})
    call.script("west", 30, {"results": [off]})
    creation = {"resource_type": 2, "resource_name": "a", "principal": "User:a", "host": "*"}
    assert (await handle(call, 30, 3, {"creations": [creation]}))["results"][0]["error_code"] == 0


async def test_acls_are_created_and_deleted_everywhere() -> None:
    call = FakeCall(two_clusters())
    call.script("east", 30, {"results": [{"error_code": 0}, {"error_code": 0}]})
    call.script("west", 30, {"results": [{"error_code": 0}, {"error_code": 42, "error_message": "no"}]})
    creation = {"resource_type": 2, "resource_name": "a", "principal": "User:a", "host": "*"}
    response = await handle(call, 30, 3, {"creations": [creation, creation]})
    assert [(one["error_code"], one["error_message"]) for one in response["results"]] == [(0, ""), (42, "west: no")]
    acl = {"resource_type": 2, "resource_name": "a", "principal": "User:a", "host": "*"}
    for cluster in ("east", "west"):
        call.script(cluster, 31, {"filter_results": [{"matching_acls": [acl]}]})
    response = await handle(call, 31, 3, {"filters": [FILTER]})
    assert len(response["filter_results"][0]["matching_acls"]) == 1


async def test_quotas_are_merged_and_altered_everywhere() -> None:
    call = FakeCall(two_clusters())
    entity = [{"entity_type": "user", "entity_name": "a"}]
    for cluster, key, value in (("east", "producer_byte_rate", 1.0), ("west", "consumer_byte_rate", 2.0)):
        call.script(cluster, 48, {"entries": [{"entity": entity, "values": [{"key": key, "value": value}]}]})
    response = await handle(call, 48, 1, {})
    assert {one["key"] for one in response["entries"][0]["values"]} == {"producer_byte_rate", "consumer_byte_rate"}
    call.script("east", 49, {"entries": [{"entity": entity}]})
    call.script("west", 49, {"entries": [{"entity": entity, "error_code": 42, "error_message": "no"}]})
    response = await handle(call, 49, 1, {"entries": [{"entity": entity, "ops": []}]})
    assert response["entries"][0]["error_message"] == "west: no"


async def test_scram_users_are_unknown_only_where_all_say_so() -> None:
    call = FakeCall(two_clusters())
    info = {"mechanism": 1, "iterations": 4096}
    call.script("east", 50, {"results": [{"user": "a", "error_code": 91}, {"user": "b", "error_code": 91}]})
    call.script("west", 50, {"results": [{"user": "a", "credential_infos": [info]}, {"user": "b", "error_code": 91}]})
    response = await handle(call, 50, 0, {"users": [{"name": "a"}, {"name": "b"}]})
    assert by_name(response["results"], "user") == {"a": 0, "b": 91}
    call.script("east", 51, {"results": [{"user": "a"}]})
    call.unreachable = {"west"}
    response = await handle(call, 51, 0, {"deletions": [{"name": "a", "mechanism": 1}], "upsertions": []})
    assert by_name(response["results"], "user") == {"a": ERROR.REQUEST_TIMED_OUT}


@pytest.mark.parametrize("key", [38, 39, 40, 41])
async def test_tokens_need_a_federation_of_one(key: int) -> None:
    view = two_clusters()
    response = await handle(FakeCall(view), key, 2, {"renewers": [], "hmac": b""})
    assert response["error_code"] == ERROR.DELEGATION_TOKEN_AUTH_DISABLED
    call = FakeCall(replace(view, clusters={"east": view.clusters["east"]}))
    call.script("east", key, {"error_code": 0})
    assert (await handle(call, key, 2, {"renewers": [], "hmac": b""}))["error_code"] == 0


# Brokers


async def test_log_dirs_show_served_topics_only() -> None:
    call = FakeCall(two_clusters(stubs=stub("bills", "east", 55)))
    topics: list[Message] = [{"name": one, "partitions": []} for one in ("orders", "bills", "secret")]
    call.script("east", 35, {"results": [{"log_dir": "/d", "topics": topics}]})
    response = await handle(call, 35, 4, {"topics": None})
    assert [one["name"] for one in response["results"][0]["topics"]] == ["orders"]


async def test_replicas_move_only_where_the_topic_is() -> None:
    call = FakeCall(two_clusters())
    call.script("east", 34, {"results": [{"topic_name": "orders", "partitions": [{"partition_index": 0}]}]})
    topics = [{"name": one, "partitions": [0]} for one in ("orders", "bills")]
    response = await handle(call, 34, 2, {"dirs": [{"path": "/d", "topics": topics}]})
    found = {one["topic_name"]: one["partitions"][0]["error_code"] for one in response["results"]}
    assert found == {"orders": 0, "bills": ERROR.REPLICA_NOT_AVAILABLE}


async def test_elections_of_all_topics_are_asked_of_all_clusters() -> None:
    call = FakeCall(two_clusters())
    results: list[Message] = [{"topic": one, "partition_result": []} for one in ("orders", "bills", "hidden")]
    for cluster in ("east", "west"):
        call.script(cluster, 43, {"replica_election_results": results})
    response = await handle(call, 43, 2, {"topic_partitions": None})
    assert [one["topic"] for one in response["replica_election_results"]] == ["orders", "bills"]
    response = await handle(call, 43, 2, {"topic_partitions": [{"topic": "nobody", "partitions": [1]}]})
    assert response["replica_election_results"][0]["partition_result"][0]["error_code"] == 3


async def test_reassignments_name_virtual_brokers_of_one_cluster() -> None:
    call = FakeCall(two_clusters())
    call.script("west", 45, {"responses": [{"name": "bills", "partitions": [{"partition_index": 0}]}]})
    partitions = [
        {"partition_index": 0, "replicas": [100003]},
        {"partition_index": 1, "replicas": [1]},
    ]
    response = await handle(call, 45, 1, {"topics": [{"name": "bills", "partitions": partitions}]})
    assert call.asked[0][2]["topics"][0]["partitions"] == [{"partition_index": 0, "replicas": [3]}]
    found = {one["partition_index"]: one["error_code"] for one in response["responses"][0]["partitions"]}
    assert found == {0: 0, 1: ERROR.INVALID_REPLICA_ASSIGNMENT}
    ongoing = {"partition_index": 0, "replicas": [1, 3], "adding_replicas": [3], "removing_replicas": [1]}
    call.script("east", 46, {"topics": []})
    call.script("west", 46, {"topics": [{"name": "bills", "partitions": [ongoing]}]})
    response = await handle(call, 46, 0, {"topics": None})
    assert response["topics"][0]["partitions"][0]["adding_replicas"] == [100003]


async def test_features_change_everywhere_or_nowhere() -> None:
    call = FakeCall(two_clusters())
    call.script("east", 57, {"error_code": 0})
    call.script("west", 57, {"error_code": 95, "error_message": "cannot"})
    update = {"feature_updates": [{"feature": "group.version", "max_version_level": 1}]}
    response = await handle(call, 57, 2, update)
    assert (response["error_code"], response["error_message"]) == (95, "west: cannot")
    assert all(one["validate_only"] for _, _, one in call.asked)
    call.script("west", 57, {"error_code": 0})
    assert (await handle(call, 57, 1, update))["results"] == [
        {"feature": "group.version", "error_code": 0, "error_message": None}
    ]


async def test_the_quorum_is_the_default_clusters_without_addresses() -> None:
    call = FakeCall(replace(two_clusters(), placement=None))
    voter = {"replica_id": 9}
    partition = {"leader_id": 9, "current_voters": [voter], "observers": []}
    node = {"node_id": 9, "listeners": [{"name": "CONTROLLER", "host": "secret", "port": 9093}]}
    call.script("east", 55, {"topics": [{"topic_name": "t", "partitions": [partition]}], "nodes": [node]})
    response = await handle(call, 55, 2, {"topics": []})
    assert response["nodes"] == [{"node_id": 9, "listeners": []}]


async def test_a_broker_is_unregistered_on_its_cluster() -> None:
    call = FakeCall(two_clusters())
    call.script("west", 64, {"error_code": 0})
    await handle(call, 64, 0, {"broker_id": 100003})
    assert call.asked == [("west", 64, {"broker_id": 3})]
    response = await handle(call, 64, 0, {"broker_id": 900001})
    assert response["error_code"] == ERROR.BROKER_ID_NOT_REGISTERED


async def test_what_is_refused_says_what_to_do() -> None:
    response = await handle(FakeCall(two_clusters()), 81, 0, {"cluster_id": None, "voter_id": 1})
    assert response["error_code"] == ERROR.INVALID_REQUEST
    assert "cluster itself" in response["error_message"]
