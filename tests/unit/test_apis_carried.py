"""Positions that a group has on clusters other than its home: asked for, waited for, and deleted with the others.

Group `g` is at home on east; `orders` comes from east, `bills` from west.
"""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from kafka_wire.codec import Message
from kafka_wire.errors import ERROR
from metadata_service.models import HomeRecord
from tests.fixtures.calls import FakeCall, handle, stub, two_clusters, uuid

FETCH, FIND, DELETE_GROUPS, OFFSET_DELETE = 9, 10, 42, 47
IDS = {"orders": uuid(101), "bills": uuid(102)}
NONE = -1
COORDINATOR: Message = {"coordinators": [{"key": "g", "node_id": 3, "host": "h", "port": 1, "error_code": 0}]}


def partition(index: int, offset: int, error: int = 0, metadata: str = "") -> Message:
    return {
        "partition_index": index,
        "committed_offset": offset,
        "committed_leader_epoch": 4 if offset >= 0 else -1,
        "metadata": metadata,
        "error_code": error,
    }


def answer(topics: dict[str, list[Message]], error: int = 0) -> Message:
    """Of any version; topics are named both ways, west's by its own id."""
    physical = {"orders": uuid(11), "bills": uuid(12), "stub": uuid(55)}
    entries = [
        {"name": "bills" if name == "stub" else name, "topic_id": physical[name], "partitions": partitions}
        for name, partitions in topics.items()
    ]
    group = {"group_id": "g", "topics": entries, "error_code": error}
    return {"topics": entries, "error_code": error, "groups": [group]}


def calling(
    *, carry: Iterable[str] = ("west",), conflict: Iterable[str] = (), unasked: Iterable[str] = (), stubs: bool = True
) -> FakeCall:
    record = HomeRecord(name="g", cluster="east", carry=tuple(carry), conflict=tuple(conflict), unasked=tuple(unasked))
    call = FakeCall(two_clusters(groups={"g": record}, stubs=stub("bills", "east", 55) if stubs else {}))
    call.script("west", FIND, COORDINATOR)
    return call


def asking(version: int, *topics: str) -> Message:
    """For partitions 0 and 1 of these topics, or everything."""
    named = [{"name": one, "topic_id": IDS[one], "partition_indexes": [0, 1]} for one in topics] if topics else None
    return {"group_id": "g", "topics": named, "groups": [{"group_id": "g", "topics": named}]}


def told(version: int, response: Message) -> tuple[int, dict[tuple[str, int], tuple[int, int]]]:
    """(the group's error, by topic and partition: offset and error)."""
    group = response["groups"][0] if version >= 8 else response
    names = {value: key for key, value in IDS.items()}
    found = {
        (names[topic["topic_id"]] if version >= 10 else topic["name"], one["partition_index"]): (
            one["committed_offset"],
            one["error_code"],
        )
        for topic in group["topics"]
        for one in topic["partitions"]
    }
    return group.get("error_code", 0), found


@pytest.mark.parametrize("version", [1, 2, 5, 7, 8, 9, 10])
@pytest.mark.parametrize("stubs", [True, False])
async def test_the_home_wins_and_the_rest_comes_from_where_the_topic_is_from(version: int, stubs: bool) -> None:
    call = calling(stubs=stubs)
    at_home = {"orders": [partition(0, 7), partition(1, NONE)]}
    if stubs or version < 10:
        at_home["stub" if stubs else "bills"] = [partition(0, 8), partition(1, NONE)]
    call.script("east", FETCH, answer(at_home))
    there = {"bills": [partition(0, 3), partition(1, 5, metadata="m")], "orders": [partition(1, 99)]}
    call.script("west", FETCH, answer(there))
    response = await handle(call, FETCH, version, asking(version, "orders", "bills"))
    first = 8 if stubs or version < 10 else 3
    assert told(version, response) == (
        0,
        {("orders", 0): (7, 0), ("orders", 1): (NONE, 0), ("bills", 0): (first, 0), ("bills", 1): (5, 0)},
    )
    group = response["groups"][0] if version >= 8 else response
    bills = next(one for one in group["topics"] if one.get("name") == "bills" or one.get("topic_id") == IDS["bills"])
    assert bills["partitions"][1]["metadata"] == "m"
    assert bills["partitions"][1].get("committed_leader_epoch", 4) == 4
    if not stubs and version >= 10:
        # The home does not know the id: asked for it, it would refuse.
        (asked,) = [request for cluster, key, request in call.asked if (cluster, key) == ("east", FETCH)]
        assert [one["topic_id"] for one in asked["groups"][0]["topics"]] == [uuid(11)]
    assert call.brokers[-1] == 3


@pytest.mark.parametrize("version", [2, 7, 8, 9, 10])
async def test_everything_is_the_homes_and_what_only_the_others_have(version: int) -> None:
    call = calling()
    call.script("east", FETCH, answer({"orders": [partition(0, 7)], "stub": [partition(0, 8)]}))
    there = {"bills": [partition(0, 3), partition(1, 5)], "orders": [partition(2, 99)]}
    call.script("west", FETCH, answer(there))
    response = await handle(call, FETCH, version, asking(version))
    assert told(version, response) == (
        0,
        {("orders", 0): (7, 0), ("bills", 0): (8, 0), ("bills", 1): (5, 0)},
    )


async def test_nobody_else_is_asked_where_the_home_has_everything_or_nothing_is_carried() -> None:
    for call in (calling(), calling(carry=()), FakeCall(two_clusters())):
        found = {"stub": [partition(0, 8), partition(1, 8 if call.view.groups.get("g") else NONE)]}
        call.script("east", FETCH, answer(found))
        if call.view.groups.get("g") and not call.view.groups["g"].carry:
            call.script("east", FETCH, answer({"stub": [partition(0, NONE)]}))
        await handle(call, FETCH, 9, asking(9, "bills"))
        assert {cluster for cluster, _, _ in call.asked} == {"east"}


@pytest.mark.parametrize("version", [1, 2, 6, 7, 9, 10])
async def test_a_position_that_cannot_be_known_now_is_waited_for(version: int) -> None:
    call = calling()
    call.unreachable.add("west")
    call.script("east", FETCH, answer({"orders": [partition(0, 7)], "stub": [partition(0, 8), partition(1, NONE)]}))
    code, found = told(version, await handle(call, FETCH, version, asking(version, "orders", "bills")))
    if version >= 7:
        assert code == 0
        assert found["bills", 1][1] == ERROR.UNSTABLE_OFFSET_COMMIT
        assert (found["orders", 0], found["bills", 0]) == ((7, 0), (8, 0))
    else:  # older clients do not know that error
        assert ERROR.COORDINATOR_LOAD_IN_PROGRESS in (code, found.get(("bills", 1), (0, 0))[1])
    # Nothing that is asked of the home alone waits for another cluster.
    call.script("east", FETCH, answer({"orders": [partition(0, 7), partition(1, NONE)]}))
    assert told(version, await handle(call, FETCH, version, asking(version, "orders"))) == (
        0,
        {("orders", 0): (7, 0), ("orders", 1): (NONE, 0)},
    )


@pytest.mark.parametrize("version", [2, 7, 8, 10])
async def test_everything_cannot_be_told_while_a_part_is_not_known(version: int) -> None:
    call = calling()
    call.unreachable.add("west")
    call.script("east", FETCH, answer({"orders": [partition(0, 7)]}))
    response = await handle(call, FETCH, version, asking(version))
    assert told(version, response) == (ERROR.COORDINATOR_LOAD_IN_PROGRESS, {})


async def test_a_cluster_that_was_never_asked_holds_nobody_up_who_lists_everything() -> None:
    call = calling(carry=(), unasked=("west",))
    call.unreachable.add("west")
    call.script("east", FETCH, answer({"orders": [partition(0, 7)], "stub": [partition(0, NONE)]}))
    assert told(9, await handle(call, FETCH, 9, asking(9)))[0] == 0
    found = told(9, await handle(call, FETCH, 9, asking(9, "orders", "bills")))[1]
    assert found["bills", 0][1] == ERROR.UNSTABLE_OFFSET_COMMIT  # a consumer does not start there by accident
    call.unreachable.clear()
    call.script("west", FETCH, answer({"bills": [partition(0, 3)]}))
    found = told(9, await handle(call, FETCH, 9, asking(9, "orders", "bills")))[1]
    assert found["bills", 0] == (3, 0)


async def test_a_moving_coordinator_is_looked_up_again(autojump_clock: object) -> None:
    call = calling()
    call.script("east", FETCH, answer({"stub": [partition(0, NONE)]}))
    answers = [answer({}, ERROR.NOT_COORDINATOR), answer({"bills": [partition(0, 3)]})]
    call.script("west", FETCH, lambda _: answers.pop(0))
    assert told(9, await handle(call, FETCH, 9, asking(9, "bills")))[1] == {("bills", 0): (3, 0)}
    assert not answers


@pytest.mark.parametrize("code", [ERROR.GROUP_AUTHORIZATION_FAILED, ERROR.GROUP_ID_NOT_FOUND])
async def test_who_may_not_see_the_group_there_has_no_position_there(code: int) -> None:
    call = calling()
    call.script("east", FETCH, answer({"stub": [partition(0, NONE)]}))
    call.script("west", FETCH, answer({}, code))
    assert told(9, await handle(call, FETCH, 9, asking(9, "bills"))) == (0, {("bills", 0): (NONE, 0)})


async def test_a_groups_own_error_is_the_answer() -> None:
    call = calling()
    call.script("east", FETCH, answer({}, ERROR.STALE_MEMBER_EPOCH))
    assert told(9, await handle(call, FETCH, 9, asking(9, "bills"))) == (ERROR.STALE_MEMBER_EPOCH, {})
    assert {cluster for cluster, _, _ in call.asked} == {"east"}


async def test_positions_in_conflict_are_neither_merged_nor_passed_over() -> None:
    call = calling(carry=(), conflict=("west",))
    call.script("east", FETCH, answer({"orders": [partition(0, 7)], "stub": [partition(0, NONE), partition(1, NONE)]}))
    call.script("west", FETCH, answer({"bills": [partition(0, 3), partition(1, NONE)]}))
    code, found = told(9, await handle(call, FETCH, 9, asking(9, "orders", "bills")))
    assert code == 0
    assert found == {
        ("orders", 0): (7, 0),
        ("bills", 0): (NONE, ERROR.UNSTABLE_OFFSET_COMMIT),
        ("bills", 1): (NONE, 0),
    }


@pytest.mark.parametrize(
    ("home", "there", "wanted"),
    [
        (0, 0, 0),
        (0, ERROR.GROUP_ID_NOT_FOUND, 0),
        (ERROR.GROUP_ID_NOT_FOUND, 0, 0),
        (ERROR.GROUP_ID_NOT_FOUND, ERROR.GROUP_ID_NOT_FOUND, ERROR.GROUP_ID_NOT_FOUND),
        (0, ERROR.NON_EMPTY_GROUP, ERROR.NON_EMPTY_GROUP),
        (ERROR.NON_EMPTY_GROUP, 0, ERROR.NON_EMPTY_GROUP),
        (0, None, ERROR.COORDINATOR_NOT_AVAILABLE),
    ],
)
async def test_a_group_is_deleted_wherever_it_counts(home: int, there: int | None, wanted: int) -> None:
    call = calling()
    call.script("east", DELETE_GROUPS, {"results": [{"group_id": "g", "error_code": home}]})
    if there is None:
        call.unreachable.add("west")
    else:
        call.script("west", DELETE_GROUPS, {"results": [{"group_id": "g", "error_code": there}]})
    response = await handle(call, DELETE_GROUPS, 2, {"groups_names": ["g"]})
    assert response["results"][0]["error_code"] == wanted
    assert (("groups deleted", ["g"]) in call.federation.told) is (wanted == 0)
    if home == ERROR.NON_EMPTY_GROUP:
        assert {cluster for cluster, _, _ in call.asked} == {"east"}  # nothing is lost before the home agrees


@pytest.mark.parametrize("there", [0, ERROR.GROUP_SUBSCRIBED_TO_TOPIC, None])
@pytest.mark.parametrize("home", [0, ERROR.GROUP_ID_NOT_FOUND])
async def test_positions_are_deleted_wherever_they_count(home: int, there: int | None) -> None:
    call = calling()
    topics = [{"name": one, "partitions": [{"partition_index": 0}]} for one in ("orders", "bills")]

    def deleted(code: int, *names: str) -> Message:
        part = {"partition_index": 0, "error_code": code}
        return {"error_code": 0, "topics": [{"name": one, "partitions": [part]} for one in names]}

    whole = {"error_code": home, "topics": []} if home else deleted(0, "orders", "bills")
    call.script("east", OFFSET_DELETE, whole)
    if there is None:
        call.unreachable.add("west")
    else:
        call.script("west", OFFSET_DELETE, deleted(there, "bills"))
    response = await handle(call, OFFSET_DELETE, 0, {"group_id": "g", "topics": topics})
    found = {one["name"]: one["partitions"][0]["error_code"] for one in response["topics"]}
    assert response["error_code"] == 0
    assert found == {"orders": 0, "bills": ERROR.COORDINATOR_NOT_AVAILABLE if there is None else there}
    if there is not None:
        assert [r["topics"] for c, k, r in call.asked if (c, k) == ("west", OFFSET_DELETE)] == [topics[1:]]
