"""What members hear while their group's home is moved."""

from __future__ import annotations

from typing import Any, Literal

from kafka_wire.codec import Message
from kafka_wire.errors import ERROR
from metadata_service.models import HomeMove, HomeRecord
from tests.fixtures.calls import FakeCall, handle, two_clusters, uuid

COMMIT, FIND, JOIN, HEARTBEAT, LEAVE, CONSUMER = 8, 10, 11, 12, 13, 68


def record(state: Literal["gathering", "closed", "moved"], cluster: str = "east") -> HomeRecord:
    return HomeRecord(name="g", cluster=cluster, move=HomeMove(operation="o", source="east", to="west", state=state))


def call_in(state: Literal["gathering", "closed", "moved"], cluster: str = "east") -> FakeCall:
    return FakeCall(two_clusters(groups={"g": record(state, cluster)}), cluster="east")


def keys(call: FakeCall) -> list[int]:
    return [key for _, key, _ in call.asked]


def joining(member: str = "") -> Message:
    return {"group_id": "g", "member_id": member, "protocol_type": "consumer", "protocols": []}


def beat(epoch: int, owned: list[Message] | None = None) -> dict[str, Any]:
    return {"group_id": "g", "member_id": "m", "member_epoch": epoch, "topic_partitions": owned}


async def test_a_classic_member_rejoins_and_is_made_to_leave() -> None:
    call = call_in("gathering")
    call.script("east", HEARTBEAT, {"error_code": 0})
    call.script("east", LEAVE, {"error_code": 0, "members": []})
    said = await handle(call, HEARTBEAT, 4, {"group_id": "g", "generation_id": 3, "member_id": "m"})
    assert said["error_code"] == ERROR.REBALANCE_IN_PROGRESS
    said = await handle(call, JOIN, 9, joining("m"))
    assert said["error_code"] == ERROR.NOT_COORDINATOR
    assert keys(call) == [HEARTBEAT, LEAVE]
    assert call.asked[1][2]["members"][0]["member_id"] == "m"


async def test_a_heartbeat_that_fails_says_why() -> None:
    call = call_in("gathering")
    call.script("east", HEARTBEAT, {"error_code": ERROR.UNKNOWN_MEMBER_ID})
    said = await handle(call, HEARTBEAT, 4, {"group_id": "g", "generation_id": 3, "member_id": "m"})
    assert said["error_code"] == ERROR.UNKNOWN_MEMBER_ID


async def test_a_new_member_waits_for_the_new_home() -> None:
    call = call_in("gathering")
    for key, request in ((JOIN, joining()), (CONSUMER, beat(0, []))):
        said = await handle(call, key, 1, request)
        assert said["error_code"] in (ERROR.NOT_COORDINATOR, ERROR.COORDINATOR_NOT_AVAILABLE)
    assert keys(call) == [] and ("home watched", "g") in call.federation.told


async def test_a_kip_848_member_gives_up_what_it_has_and_leaves() -> None:
    call = call_in("gathering")
    given = {"topic_partitions": [{"topic_id": uuid(11), "partitions": [0]}]}
    call.script("east", CONSUMER, {"error_code": 0, "member_id": "m", "member_epoch": 5, "assignment": given})
    said = await handle(call, CONSUMER, 1, beat(5))  # it is to say what it has
    assert said["error_code"] == ERROR.COORDINATOR_NOT_AVAILABLE
    said = await handle(call, CONSUMER, 1, beat(5, [{"topic_id": uuid(101), "partitions": [0, 1]}]))
    assert said["assignment"] == {"topic_partitions": []}
    assert call.asked[-1][2]["topic_partitions"][0]["topic_id"] == uuid(11)
    said = await handle(call, CONSUMER, 1, beat(5))  # it is still committing
    assert said["assignment"] == {"topic_partitions": []} and call.asked[-1][2]["member_epoch"] == 5
    said = await handle(call, CONSUMER, 1, beat(5, []))
    assert said["error_code"] == ERROR.UNKNOWN_MEMBER_ID and call.asked[-1][2]["member_epoch"] == -1


async def test_once_closed_nothing_is_passed_on() -> None:
    call = call_in("closed")
    topics = [{"name": "orders", "partitions": [{"partition_index": 0, "committed_offset": 1}]}]
    commit = {"group_id": "g", "generation_id_or_member_epoch": -1, "member_id": "", "topics": topics}
    for key, request in ((JOIN, joining("m")), (COMMIT, commit), (LEAVE, {"group_id": "g", "members": []})):
        said = await handle(call, key, 5, request)
        code = said["topics"][0]["partitions"][0]["error_code"] if key == COMMIT else said["error_code"]
        assert code == ERROR.NOT_COORDINATOR
    found = await handle(call, FIND, 4, {"key_type": 0, "coordinator_keys": ["g"]})
    assert found["coordinators"][0]["error_code"] == ERROR.COORDINATOR_NOT_AVAILABLE
    assert keys(call) == []


async def test_who_waits_hears_of_the_new_home() -> None:
    call = call_in("closed")
    call.federation.next_home = record("moved", "west")
    call.script("west", FIND, {"coordinators": [{"key": "g", "node_id": 3, "host": "x", "port": 1, "error_code": 0}]})
    found = await handle(call, FIND, 4, {"key_type": 0, "coordinator_keys": ["g"]})
    assert found["coordinators"][0]["node_id"] == 100_003


async def test_a_join_that_took_long_is_looked_at_again() -> None:
    """It rested at a home that is one no longer; nobody had to wait for it."""
    call = FakeCall(two_clusters(groups={"g": HomeRecord(name="g", cluster="east")}), cluster="east")

    def meanwhile(request: Message) -> Message:
        assert call.unbound
        call.now = two_clusters(groups={"g": record("closed")})
        return {"error_code": 0, "generation_id": 1, "leader": "m", "member_id": "m", "members": []}

    call.script("east", JOIN, meanwhile)
    said = await handle(call, JOIN, 9, joining("m"))
    assert said["error_code"] == ERROR.NOT_COORDINATOR


async def test_a_group_unknown_to_its_new_home_is_no_end_for_its_members() -> None:
    call = call_in("moved")
    call.script("east", CONSUMER, {"error_code": ERROR.GROUP_ID_NOT_FOUND, "member_id": None, "assignment": None})
    said = await handle(call, CONSUMER, 1, beat(5))
    if said["error_code"] != ERROR.UNKNOWN_MEMBER_ID:  # this worker did not know the member: it is told to say all
        said = await handle(call, CONSUMER, 1, beat(5))
    assert said["error_code"] == ERROR.UNKNOWN_MEMBER_ID
