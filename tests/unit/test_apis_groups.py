"""Groups and transactions: homes, stubs, topic ids both ways, and the rules for transactions across clusters."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kafka_wire.codec import Message, encode_named
from kafka_wire.errors import ERROR
from metadata_service.failures import StubRefused, Undecided
from metadata_service.store.contract import StoreUnavailable
from offset_sync.journal import unit_name
from proxy.apis import subscriptions
from proxy.apis.transactions import tag, untag, without_placement
from tests.fixtures.calls import FakeCall, handle, home, served, stub, two_clusters, uuid

OK: Message = {"error_code": 0}


def subscription(*topics: str, version: int = 1) -> bytes:
    return version.to_bytes(2, "big") + encode_named("ConsumerProtocolSubscription", version, {"topics": list(topics)})


def join(*topics: str) -> Message:
    protocol = {"name": "range", "metadata": bytes(subscription(*topics))}
    return {"group_id": "g", "member_id": "", "protocol_type": "consumer", "protocols": [protocol]}


@pytest.fixture(autouse=True)
def _nobody_known() -> None:
    subscriptions._members.clear()


@pytest.mark.parametrize(
    ("key", "request_"),
    [
        (11, join("orders")),
        (12, {"group_id": "g"}),
        (13, {"group_id": "g"}),
        (14, {"group_id": "g"}),
        (8, {"group_id": "g", "topics": [{"name": "orders", "partitions": [{"partition_index": 0}]}]}),
        (47, {"group_id": "g"}),
        (68, {"group_id": "g", "member_id": "m", "member_epoch": 3}),
        (76, {"group_id": "g"}),
        (88, {"group_id": "g"}),
    ],
)
async def test_another_clusters_connection_is_not_the_coordinator(key: int, request_: Message) -> None:
    call = FakeCall(two_clusters(), cluster="west")
    version = {8: 9, 11: 9, 76: 1}.get(key, 0)
    response = await handle(call, key, version, request_)
    found = response.get("error_code")
    if key == 8:
        found = response["topics"][0]["partitions"][0]["error_code"]
    assert found == ERROR.NOT_COORDINATOR
    assert call.asked == []


@pytest.mark.parametrize("failure", [StoreUnavailable("away"), Undecided("west", "gone")])
async def test_a_home_that_cannot_be_decided_is_retriable(failure: Exception) -> None:
    call = FakeCall(two_clusters())
    call.federation.failure = failure
    response = await handle(call, 12, 4, {"group_id": "g"})
    assert response["error_code"] == ERROR.COORDINATOR_NOT_AVAILABLE


async def test_a_member_joins_after_topics_elsewhere_have_their_stubs() -> None:
    call = FakeCall(two_clusters())
    call.script("east", 11, {"error_code": 0, "leader": "", "member_id": "m", "members": []})
    await handle(call, 11, 9, join("orders", "bills"))
    assert ("stubs", ("east", ["bills"])) in call.federation.told
    await handle(call, 11, 9, join("bills"))
    assert len([one for one in call.federation.told if one[0] == "stubs"]) == 1  # it is there now


@pytest.mark.parametrize("partitions", [2, 3])
async def test_a_stub_with_too_few_partitions_is_expanded_first(partitions: int) -> None:
    call = FakeCall(two_clusters(stubs=stub("bills", "east", 55, partitions)))
    call.script("east", 11, {"error_code": 0, "leader": "", "member_id": "m", "members": []})
    await handle(call, 11, 9, join("bills"))
    assert (("stubs", ("east", ["bills"])) in call.federation.told) is (partitions < 3)


async def test_a_stub_that_cannot_be_had_is_told_in_words() -> None:
    call = FakeCall(two_clusters())
    call.federation.stub_failure = StubRefused("east", "bills", "another topic of that name is there")
    response = await handle(call, 11, 9, join("bills"))
    assert response["error_code"] == ERROR.INVALID_REQUEST


async def test_unreadable_metadata_is_the_coordinators_to_judge() -> None:
    call = FakeCall(two_clusters())
    call.script("east", 11, {"error_code": ERROR.INCONSISTENT_GROUP_PROTOCOL, "leader": "", "member_id": ""})
    request = join() | {"protocols": [{"name": "a", "metadata": b"\0\1\xff\xff\xff"}, {"name": "b", "metadata": b""}]}
    assert (await handle(call, 11, 9, request))["error_code"] == ERROR.INCONSISTENT_GROUP_PROTOCOL


async def test_commits_by_topic_id_use_the_homes_own_ids_and_answer_with_logical_ones() -> None:
    call = FakeCall(two_clusters(stubs=stub("bills", "east", 55)))

    def commit(request: Message) -> Message:
        return {
            "topics": [{"topic_id": t["topic_id"], "partitions": [{"partition_index": 0}]} for t in request["topics"]]
        }

    call.script("east", 8, commit)
    topics = [{"topic_id": uuid(n), "partitions": [{"partition_index": 0}]} for n in (102, 999, 101)]
    response = await handle(call, 8, 10, {"group_id": "g", "topics": topics})
    assert [one["topic_id"] for one in call.asked[0][2]["topics"]] == [uuid(55), uuid(11)]
    assert [(one["topic_id"], one["partitions"][0]["error_code"]) for one in response["topics"]] == [
        (uuid(102), 0),
        (uuid(999), ERROR.UNKNOWN_TOPIC_ID),
        (uuid(101), 0),
    ]


async def test_a_commit_for_a_topic_nobody_has_never_reaches_a_hidden_one() -> None:
    call = FakeCall(two_clusters())
    topics = [{"name": "nobody", "partitions": [{"partition_index": 4}]}]
    response = await handle(call, 8, 5, {"group_id": "g", "topics": topics})
    assert response["topics"][0]["partitions"] == [
        {"partition_index": 4, "error_code": ERROR.UNKNOWN_TOPIC_OR_PARTITION}
    ]
    assert call.asked == []


async def test_positions_of_several_groups_come_from_their_homes_only() -> None:
    call = FakeCall(two_clusters(groups={"there": home("there", "west")}))
    call.script("east", 9, {"groups": [{"group_id": "here", "topics": [], "error_code": 0}]})
    request = {"groups": [{"group_id": "there", "topics": None}, {"group_id": "here", "topics": None}]}
    response = await handle(call, 9, 9, request)
    assert [(one["group_id"], one["error_code"]) for one in response["groups"]] == [
        ("there", ERROR.NOT_COORDINATOR),
        ("here", 0),
    ]


@pytest.mark.parametrize(
    ("key", "names", "results", "name"),
    [
        (15, "groups", "groups", "group_id"),
        (42, "groups_names", "results", "group_id"),
        (69, "group_ids", "groups", "group_id"),
        (89, "group_ids", "groups", "group_id"),
        (65, "transactional_ids", "transaction_states", "transactional_id"),
    ],
)
async def test_lists_of_names_are_split_by_home_in_the_requests_order(
    key: int, names: str, results: str, name: str
) -> None:
    homes = {"there": home("there", "west")}
    call = FakeCall(two_clusters(groups=homes, transactions=homes))
    call.script("east", key, lambda request: {results: [{name: one, "error_code": 0} for one in request[names]]})
    response = await handle(call, key, 0, {names: ["a", "there", "b"]})
    assert [(one[name], one["error_code"]) for one in response[results]] == [
        ("a", 0),
        ("there", ERROR.NOT_COORDINATOR),
        ("b", 0),
    ]
    if key == 42:
        assert ("groups deleted", ["a", "b"]) in call.federation.told


async def test_groups_are_listed_once_from_their_home() -> None:
    call = FakeCall(two_clusters(groups={"there": home("there", "west"), "here": home("here", "east")}))
    listed = [{"group_id": one, "protocol_type": "consumer"} for one in ("here", "there", "new")]
    call.script("east", 16, {"error_code": 0, "groups": listed})
    response = await handle(call, 16, 5, {})
    assert [one["group_id"] for one in response["groups"]] == ["here", "new"]


# KIP-848


def beat(epoch: int = 0, member: str = "m", **more: object) -> Message:
    return {"group_id": "g", "member_id": member, "member_epoch": epoch, **more}


async def test_assignments_name_logical_ids() -> None:
    call = FakeCall(two_clusters())
    assignment = {"topic_partitions": [{"topic_id": uuid(500), "partitions": [0]}]}
    call.script("east", 68, {"error_code": 0, "member_epoch": 1, "assignment": assignment})
    request = beat(subscribed_topic_names=["bills"], topic_partitions=[{"topic_id": uuid(102), "partitions": [0]}])
    response = await handle(call, 68, 1, request)
    assert call.asked[0][2]["topic_partitions"][0]["topic_id"] == uuid(500)
    assert response["assignment"]["topic_partitions"][0]["topic_id"] == uuid(102)


def told(call: FakeCall) -> list[str] | None:
    """The names the coordinator was told last."""
    names: list[str] | None = call.asked[-1][2]["subscribed_topic_names"]
    return names


async def test_an_expression_becomes_the_list_of_names_and_follows_changes() -> None:
    call = FakeCall(two_clusters())
    call.script("east", 68, {"error_code": 0, "member_epoch": 1})
    await handle(call, 68, 1, beat(subscribed_topic_regex="b.*|orde"))
    asked = call.asked[-1][2]
    assert (asked["subscribed_topic_names"], asked["subscribed_topic_regex"]) == (["bills"], "")
    assert ("stubs", ("east", ["bills"])) in call.federation.told
    await handle(call, 68, 1, beat(1))
    assert told(call) is None  # nothing has changed
    call.federation._add(served("bounties", "west", 104, 14))
    await handle(call, 68, 1, beat(1))
    assert told(call) == ["bills", "bounties"]
    await handle(call, 68, 1, beat(1))
    assert told(call) is None


async def test_what_the_coordinator_refused_is_told_again() -> None:
    call = FakeCall(two_clusters())
    call.script("east", 68, {"error_code": ERROR.COORDINATOR_LOAD_IN_PROGRESS})
    await handle(call, 68, 1, beat(subscribed_topic_regex="b.*"))
    call.script("east", 68, OK)
    await handle(call, 68, 1, beat(1))
    assert call.asked[-1][2]["subscribed_topic_names"] == ["bills"]


async def test_hidden_topics_do_not_match() -> None:
    call = FakeCall(two_clusters())
    call.hidden = {"bills"}
    call.script("east", 68, OK)
    await handle(call, 68, 1, beat(subscribed_topic_regex=".*"))
    assert call.asked[-1][2]["subscribed_topic_names"] == ["orders"]


async def test_a_member_of_another_worker_repeats_its_subscription_once() -> None:
    call = FakeCall(two_clusters())
    call.script("east", 68, OK)
    assert (await handle(call, 68, 1, beat(5)))["error_code"] == ERROR.COORDINATOR_NOT_AVAILABLE
    assert (await handle(call, 68, 1, beat(5)))["error_code"] == 0  # one that does not is let through
    assert (await handle(call, 68, 1, beat(5, "n", subscribed_topic_names=["orders"])))["error_code"] == 0


@pytest.mark.parametrize("pattern", ["(", "a{1001}", "(?=x)", "x" * 3000])
async def test_an_invalid_expression_is_refused_as_a_broker_does(pattern: str) -> None:
    response = await handle(FakeCall(two_clusters()), 68, 1, beat(subscribed_topic_regex=pattern))
    assert response["error_code"] == ERROR.INVALID_REGULAR_EXPRESSION
    assert response["error_message"]


async def test_with_one_cluster_the_broker_resolves_expressions() -> None:
    view = two_clusters()
    call = FakeCall(replace(view, clusters={"east": view.clusters["east"]}))
    call.script("east", 68, OK)
    await handle(call, 68, 1, beat(subscribed_topic_regex="b.*"))
    assert call.asked[-1][2]["subscribed_topic_regex"] == "b.*"


async def test_a_share_group_over_clusters_is_refused_with_advice() -> None:
    call = FakeCall(two_clusters())
    response = await handle(call, 76, 1, {"group_id": "g", "subscribed_topic_names": ["bills"]})
    assert response["error_code"] == ERROR.INVALID_REQUEST
    assert "rule" in response["error_message"]


async def test_a_streams_groups_sources_get_stubs_also_when_they_come_later() -> None:
    call = FakeCall(two_clusters())
    call.script("east", 88, OK)
    topology = {"epoch": 0, "subtopologies": [{"subtopology_id": "0", "source_topics": ["bills", "later"]}]}
    await handle(call, 88, 0, {"group_id": "s", "topology": topology})
    assert ("stubs", ("east", ["bills"])) in call.federation.told
    call.federation._add(served("later", "west", 105, 15))
    await handle(call, 88, 0, {"group_id": "s"})
    assert ("stubs", ("east", ["later"])) in call.federation.told


# Transactions


async def test_producer_ids_carry_the_cluster_and_transactional_ones_do_not() -> None:
    call = FakeCall(two_clusters(), cluster="west")
    call.script("west", 22, {"error_code": 0, "producer_id": 7, "producer_epoch": 0})
    response = await handle(call, 22, 4, {"transactional_id": None, "producer_id": -1})
    assert response["producer_id"] == 7 + (2 << 40)
    await handle(call, 22, 4, {"transactional_id": None, "producer_id": response["producer_id"]})
    assert call.asked[-1][2]["producer_id"] == 7
    call.federation.homes["t"] = "west"
    response = await handle(call, 22, 4, {"transactional_id": "t", "producer_id": -1})
    assert response["producer_id"] == 7
    call.script("west", 22, {"error_code": 15, "producer_id": -1})
    assert (await handle(call, 22, 4, {"transactional_id": None}))["producer_id"] == -1


def test_tags_come_off() -> None:
    view = two_clusters()
    assert untag(tag(view, "west", 5)) == 5
    assert tag(view, "west", -1) == untag(-1) == without_placement(-1) == -1
    assert without_placement(tag(view, "east", 5) + (3 << 52)) == tag(view, "east", 5)


def add(*topics: str, transactional_id: str = "t") -> Message:
    return {
        "v3_and_below_transactional_id": transactional_id,
        "v3_and_below_topics": [{"name": name, "partitions": [0, 1]} for name in topics],
    }


def added(request: Message) -> Message:
    return {
        "results_by_topic_v3_and_below": [
            {
                "name": topic["name"],
                "results_by_partition": [{"partition_index": one} for one in topic["partitions"]],
            }
            for topic in request["v3_and_below_topics"]
        ]
    }


def codes(response: Message) -> dict[str, set[int]]:
    return {
        one["name"]: {part["partition_error_code"] for part in one["results_by_partition"]}
        for one in response["results_by_topic_v3_and_below"]
    }


@pytest.mark.parametrize(("version", "code"), [(3, ERROR.TRANSACTION_ABORTABLE), (2, ERROR.TOPIC_AUTHORIZATION_FAILED)])
async def test_topics_elsewhere_are_refused_and_the_others_go_on(version: int, code: int) -> None:
    call = FakeCall(two_clusters(transactions={"t": home("t", "east")}))
    call.script("east", 24, added)
    response = await handle(call, 24, version, add("bills", "orders"))
    assert codes(response) == {"bills": {code}, "orders": {0}}
    assert [one["name"] for one in call.asked[0][2]["v3_and_below_topics"]] == ["orders"]


@pytest.mark.parametrize(("broker", "told"), [(48, 0), (90, 90)])
async def test_an_abort_of_what_was_refused_here_succeeds(broker: int, told: int) -> None:
    call = FakeCall(two_clusters(transactions={"t": home("t", "east")}))
    call.script("east", 26, {"error_code": broker})
    await handle(call, 24, 3, add("bills"))
    assert call.asked == []
    assert (await handle(call, 26, 3, {"transactional_id": "t", "committed": False}))["error_code"] == told


async def test_an_abort_after_something_was_added_or_a_commit_is_never_made_up() -> None:
    call = FakeCall(two_clusters(transactions={"t": home("t", "east")}))
    call.script("east", 24, added)
    call.script("east", 26, {"error_code": 48})
    await handle(call, 24, 3, add("bills"))
    await handle(call, 24, 3, add("orders"))
    assert (await handle(call, 26, 3, {"transactional_id": "t", "committed": False}))["error_code"] == 48
    await handle(call, 24, 3, add("bills"))
    assert (await handle(call, 26, 3, {"transactional_id": "t", "committed": True}))["error_code"] == 48
    assert (await handle(call, 26, 3, {"transactional_id": "t", "committed": False}))["error_code"] == 48


async def test_the_first_topic_decides_the_home() -> None:
    call = FakeCall(two_clusters(transactions={"t": home("t", "east", written=False)}))
    response = await handle(call, 24, 3, add("bills"))
    assert ("writes", ("t", "west")) in call.federation.told
    assert codes(response) == {"bills": {ERROR.INVALID_PRODUCER_ID_MAPPING}}
    stays = FakeCall(two_clusters(transactions={"t": home("t", "east", written=False)}))
    stays.script("east", 24, added)
    assert codes(await handle(stays, 24, 3, add("orders"))) == {"orders": {0}}


async def test_an_unknown_topic_stops_the_whole_request_as_a_broker_does() -> None:
    call = FakeCall(two_clusters())
    response = await handle(call, 24, 3, add("nobody", "orders"))
    assert codes(response) == {
        "nobody": {ERROR.UNKNOWN_TOPIC_OR_PARTITION},
        "orders": {ERROR.OPERATION_NOT_ATTEMPTED},
    }


async def test_versions_between_brokers_are_refused() -> None:
    transactions = [{"transactional_id": "t", "topics": [{"name": "orders", "partitions": [0]}]}]
    response = await handle(FakeCall(two_clusters()), 24, 4, {"transactions": transactions})
    assert response["error_code"] == ERROR.CLUSTER_AUTHORIZATION_FAILED


@pytest.mark.parametrize(("version", "code"), [(4, ERROR.TRANSACTION_ABORTABLE), (3, ERROR.GROUP_AUTHORIZATION_FAILED)])
async def test_offsets_of_a_group_at_home_elsewhere_cannot_join_the_transaction(version: int, code: int) -> None:
    call = FakeCall(two_clusters(transactions={"t": home("t", "east")}, groups={"g": home("g", "west")}))
    call.federation.homes["t"] = "east"
    response = await handle(call, 25, version, {"transactional_id": "t", "group_id": "g"})
    assert response["error_code"] == code


async def test_offsets_tie_an_unwritten_id_to_the_groups_home() -> None:
    call = FakeCall(two_clusters(transactions={"t": home("t", "east", written=False)}))
    call.federation.homes["g"] = "west"
    response = await handle(call, 25, 3, {"transactional_id": "t", "group_id": "g"})
    assert response["error_code"] == ERROR.INVALID_PRODUCER_ID_MAPPING


async def test_transactional_commits_need_stubs_too() -> None:
    call = FakeCall(two_clusters())
    call.script("east", 28, {"topics": [{"name": "bills", "partitions": [{"partition_index": 0}]}]})
    topics = [{"name": name, "partitions": [{"partition_index": 0}]} for name in ("bills", "nobody")]
    response = await handle(call, 28, 3, {"transactional_id": "t", "group_id": "g", "topics": topics})
    assert ("stubs", ("east", ["bills"])) in call.federation.told
    assert [one["partitions"][0]["error_code"] for one in response["topics"]] == [0, 3]


async def test_transactions_are_listed_once_from_their_home() -> None:
    call = FakeCall(two_clusters(transactions={"there": home("there", "west")}))
    ours = unit_name("", "orders", 0)
    ids = ("there", "a", ours)
    states = [{"transactional_id": one, "producer_id": 1, "transaction_state": "Ongoing"} for one in ids]
    call.script("east", 66, {"transaction_states": states})
    response = await handle(call, 66, 1, {})
    assert [one["transactional_id"] for one in response["transaction_states"]] == ["a"]
    found = await handle(call, 10, 4, {"key_type": 1, "coordinator_keys": [ours]})
    assert found["coordinators"][0]["error_code"] == ERROR.TRANSACTIONAL_ID_AUTHORIZATION_FAILED
    begun = await handle(call, 22, 4, {"transactional_id": ours, "transaction_timeout_ms": 1000})
    assert begun["error_code"] == ERROR.TRANSACTIONAL_ID_AUTHORIZATION_FAILED


USES: list[tuple[int, int, Message]] = [
    (11, 9, join("orders")),
    (68, 1, {"group_id": "g", "member_id": "m", "member_epoch": 0}),
    (8, 9, {"group_id": "g", "topics": []}),
    (28, 3, {"group_id": "g", "transactional_id": "t", "topics": []}),
    (76, 1, {"group_id": "g", "member_id": "m", "member_epoch": 0}),
    (88, 0, {"group_id": "g", "member_id": "m", "member_epoch": 0}),
    (22, 4, {"transactional_id": "t"}),
]
ASKS: list[tuple[int, int, Message]] = [
    (10, 4, {"key_type": 0, "coordinator_keys": ["g", "h"]}),
    (10, 4, {"key_type": 1, "coordinator_keys": ["t"]}),
    (9, 9, {"groups": [{"group_id": "g", "topics": None}]}),
    (15, 5, {"groups": ["g"]}),
    (42, 2, {"groups_names": ["g"]}),
    (47, 0, {"group_id": "g"}),
    (65, 0, {"transactional_ids": ["t"]}),
    (69, 0, {"group_ids": ["g"]}),
]


def _answering(key: int) -> FakeCall:
    call = FakeCall(two_clusters())
    call.script("east", key, {})
    return call


def _recorded(call: FakeCall) -> list[object]:
    return [name for what, name in call.federation.told if what.endswith("at home")]


@pytest.mark.parametrize(("key", "version", "request_"), USES)
async def test_a_home_is_recorded_for_who_may_use_it(key: int, version: int, request_: Message) -> None:
    call = _answering(key)
    await handle(call, key, version, request_)
    assert _recorded(call) == [("t" if key == 22 else "g", "east")]
    refused = _answering(key)
    refused.hidden = {"g", "t"}
    await handle(refused, key, version, request_)
    assert _recorded(refused) == []
    assert refused.asked  # its broker says no


@pytest.mark.parametrize(("key", "version", "request_"), ASKS)
async def test_who_only_asks_leaves_no_home_behind(key: int, version: int, request_: Message) -> None:
    call = _answering(key)
    await handle(call, key, version, request_)
    assert _recorded(call) == []
