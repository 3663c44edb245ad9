"""Fetch and Produce of a topic that has moved to east: asked in its offsets and ids, answered in the clients'."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kafka_wire.batches import walk
from kafka_wire.codec import Message
from kafka_wire.errors import ERROR
from kafka_wire.records import Record, body_of, decode_records, encode_batch
from metadata_service.models import PlacementEpoch
from metadata_service.view import View
from offset_sync.table import Table
from proxy.apis import moved, translation
from proxy.apis.contract import CloseConnection
from tests.fixtures.calls import FakeCall, handle, served, uuid, view_of

PRODUCE, FETCH, LEADER_EPOCH = 0, 1, 23
EPOCH = 1 << 20


def moved_view() -> View:
    """`orders` came from west, where offsets 0 to 9 were given out; `plain` has always been here."""
    timeline = (
        PlacementEpoch(cluster="west", topic_id=uuid(9).hex()),
        PlacementEpoch(cluster="east", topic_id=uuid(11).hex(), first={0: 10}),
    )
    return view_of([served("orders", "east", 9, 11, timeline=timeline), served("plain", "east", 12, 12)])


class Tables:
    """Of partition 0 alone: logical 0 to 4 and 7 to 9 lie at 1 to 5 and 6 to 8; own from 10 on at 9."""

    def table(self, topic: object, partition: int) -> Table | None:
        if partition:
            return None
        made = Table()
        made.append(0, 1, 5)
        made.append(7, 6, 3)
        made.open(10, 9)
        return made

    async def arrived(self, wanted: object) -> None:
        pass


@pytest.fixture(autouse=True)
def _tables() -> Iterator[None]:
    translation.install(Tables())
    yield
    translation.install(None)


def batch(first: int, count: int) -> bytes:
    records = [Record(first + n, 5, 0, body_of(None, str(first + n).encode())) for n in range(count)]
    return bytes(encode_batch(records, leader_epoch=3))


def broker(request: Message) -> Message:
    """Physical offsets 1 to 11, in batches of three, from the one that holds what is asked for."""
    topics = []
    for topic in request["topics"]:
        parts = []
        for one in topic["partitions"]:
            data = b"".join(batch(n, 3) for n in (0, 3, 6, 9) if n + 3 > one["fetch_offset"])
            part = {
                "partition_index": one["partition"],
                "high_watermark": 12,
                "last_stable_offset": 11,
                "log_start_offset": 0,
                "aborted_transactions": [{"producer_id": 7, "first_offset": 10}],
                "records": data,
            }
            parts.append(part)
        topics.append({key: topic[key] for key in ("topic", "topic_id") if key in topic} | {"partitions": parts})
    return {"responses": topics}


def asking(version: int, offset: int, *names: tuple[str, int], partition: int = 0, epoch: int = -1) -> Message:
    part = {"partition": partition, "fetch_offset": offset, "partition_max_bytes": 1 << 20}
    part["current_leader_epoch"] = epoch
    field = "topic_id" if version >= 13 else "topic"
    topics = [{field: uuid(number) if version >= 13 else name, "partitions": [part]} for name, number in names]
    return {"max_wait_ms": 500, "min_bytes": 1, "topics": topics, "session_epoch": 0}


ORDERS, PLAIN = ("orders", 9), ("plain", 12)


@pytest.mark.parametrize("version", [4, 11, 12, 13, 17])
async def test_a_fetch_is_asked_and_answered_in_the_right_offsets(version: int) -> None:
    call = FakeCall(moved_view())
    call.script("east", FETCH, broker)
    response = await handle(call, FETCH, version, asking(version, 3, ORDERS))
    (asked,) = (request for _, _, request in call.asked)
    (there,) = asked["topics"]
    assert there["partitions"][0]["fetch_offset"] == 4
    assert asked["session_epoch"] == -1
    assert there.get("topic_id", uuid(11)) == uuid(11)
    (topic,) = response["responses"]
    assert topic.get("topic_id", uuid(9)) == uuid(9)
    (part,) = topic["partitions"]
    assert (part["error_code"], part["high_watermark"], part["last_stable_offset"]) == (0, 13, 12)
    assert part["aborted_transactions"] == [{"producer_id": 7, "first_offset": 11}]
    batches = list(walk(part["records"]))
    found = [(one.offset, one.body) for each in batches for one in decode_records(part["records"], each)]
    # Physical 3 to 11: 0 is the mirror's, 5 and 6 lie next to each other and are no neighbours to clients.
    logical = {3: 2, 4: 3, 5: 4, 6: 7, 7: 8, 8: 9, 9: 10, 10: 11, 11: 12}
    assert found == [(logical[n], body_of(None, str(n).encode())) for n in range(3, 12)]
    assert {one.leader_epoch for one in batches} == {EPOCH | 3}


@pytest.mark.parametrize(
    ("epoch", "code"), [(0, ERROR.FENCED_LEADER_EPOCH), (2 << 20, ERROR.UNKNOWN_LEADER_EPOCH), (EPOCH | 3, 0)]
)
async def test_leader_epochs_of_other_placements_are_not_asked_for(epoch: int, code: int) -> None:
    call = FakeCall(moved_view())
    call.script("east", FETCH, broker)
    response = await handle(call, FETCH, 12, asking(12, 3, ORDERS, PLAIN, epoch=epoch))
    answers = {one["topic"]: one["partitions"][0]["error_code"] for one in response["responses"]}
    assert answers == {"orders": code, "plain": 0}
    asked = {one["topic"]: one["partitions"][0] for one in call.asked[0][2]["topics"]}
    assert ("orders" in asked) == (code == 0)
    assert asked["plain"]["current_leader_epoch"] == epoch  # the broker's own to judge
    assert call.asked[0][2]["max_wait_ms"] == (0 if code else 500)


async def test_without_its_table_a_partition_is_refused_and_the_others_are_read() -> None:
    call = FakeCall(moved_view())
    call.script("east", FETCH, broker)
    response = await handle(call, FETCH, 12, asking(12, 3, ORDERS, PLAIN, partition=1))
    answers = {one["topic"]: one["partitions"][0]["error_code"] for one in response["responses"]}
    assert answers == {"orders": ERROR.NOT_LEADER_OR_FOLLOWER, "plain": 0}


async def test_an_open_session_starts_over() -> None:
    call = FakeCall(moved_view())
    response = await handle(call, FETCH, 12, asking(12, 3, ORDERS) | {"session_id": 5, "session_epoch": 2})
    assert response["error_code"] == ERROR.FETCH_SESSION_ID_NOT_FOUND
    assert call.asked == []


def writing(version: int, partition: int = 0, acks: int = -1) -> Message:
    field = "topic_id" if version >= 13 else "name"
    name = uuid(9) if version >= 13 else "orders"
    rows = [{"index": partition, "records": batch(0, 1)}]
    return {"acks": acks, "timeout_ms": 100, "topic_data": [{field: name, "partition_data": rows}]}


@pytest.mark.parametrize("version", [3, 8, 12, 13])
async def test_what_is_written_is_acknowledged_at_its_logical_offset(version: int) -> None:
    call = FakeCall(moved_view())
    field = "topic_id" if version >= 13 else "name"
    there = uuid(11) if version >= 13 else "orders"
    part = {"index": 0, "base_offset": 14, "log_start_offset": 4}
    call.script("east", PRODUCE, {"responses": [{field: there, "partition_responses": [part]}]})
    response = await handle(call, PRODUCE, version, writing(version))
    assert call.asked[0][2]["topic_data"][0][field] == there
    (topic,) = response["responses"]
    assert topic[field] == (uuid(9) if version >= 13 else "orders")
    (answer,) = topic["partition_responses"]
    assert (answer["error_code"], answer["base_offset"]) == (0, 15)
    if version >= 5:
        assert answer["log_start_offset"] == 3


async def test_nothing_is_written_where_its_offset_could_not_be_told() -> None:
    call = FakeCall(moved_view())
    response = await handle(call, PRODUCE, 9, writing(9, partition=1))
    assert response["responses"][0]["partition_responses"][0]["error_code"] == ERROR.NOT_LEADER_OR_FOLLOWER
    assert call.asked == []
    with pytest.raises(CloseConnection):
        await handle(call, PRODUCE, 9, writing(9, partition=1, acks=0))
    await handle(call, PRODUCE, 9, writing(9, acks=0))
    assert len(call.asked) == 1


async def test_an_epoch_of_an_earlier_placement_ends_where_the_next_one_begins() -> None:
    call = FakeCall(moved_view())
    part = {"partition": 0, "current_leader_epoch": EPOCH | 3, "leader_epoch": 2}
    response = await handle(call, LEADER_EPOCH, 4, {"topics": [{"topic": "orders", "partitions": [part]}]})
    (topic,) = response["topics"]
    assert topic["partitions"] == [{"partition": 0, "error_code": 0, "leader_epoch": 2, "end_offset": 10}]
    assert not call.asked, "the cluster that serves it knows nothing of that epoch"


def test_the_former_cluster_tells_nothing_behind_its_end() -> None:
    part = {"partition_index": 0, "high_watermark": 8, "last_stable_offset": 8, "records": batch(0, 3) + batch(3, 3)}
    other = {**part, "partition_index": 1}
    moved.end_at({"partitions": [part, other]}, {0: 3, 2: 1})
    assert (part["high_watermark"], part["last_stable_offset"], part["records"]) == (3, 3, batch(0, 3))
    assert (other["high_watermark"], other["records"]) == (8, batch(0, 3) + batch(3, 3))
