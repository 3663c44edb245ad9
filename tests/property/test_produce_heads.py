"""Heads of Produce requests against the codec; requests that repeat, and their answers."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kafka_wire.codec import DecodeError, Message, encode
from kafka_wire.frames import request_frame, response_frame
from kafka_wire.produce_repeat import RepeatedProduce
from kafka_wire.produce_view import NeedMore, ProduceHead, produce_head

PRODUCE = 0
VERSIONS = st.integers(3, 13)
TOPIC_ID = bytes(range(16))


def named(version: int, name: str) -> dict[str, Any]:
    return {"topic_id": TOPIC_ID} if version >= 13 else {"name": name}


@st.composite
def requests(draw: st.DrawFn, version: int) -> Message:
    parts = st.lists(
        st.fixed_dictionaries({"index": st.integers(0, 300), "records": st.binary(max_size=30)}), max_size=3
    )
    names = st.sampled_from(["t", "orders", "ü" * 100])
    topics = draw(st.lists(st.tuples(names, parts), max_size=3))
    return {
        "transactional_id": draw(st.sampled_from([None, "", "txn", "i" * 200])),
        "acks": draw(st.sampled_from([-1, 0, 1])),
        "timeout_ms": 30000,
        "topic_data": [named(version, name) | {"partition_data": rows} for name, rows in topics],
    }


@settings(max_examples=100, deadline=None)
@given(st.data(), VERSIONS)
def test_a_head_is_what_the_codec_reads(data: st.DataObject, version: int) -> None:
    request = data.draw(requests(version))
    body = memoryview(encode("request", PRODUCE, version, request))
    topics = request["topic_data"]
    head = produce_head(body, 0, version, True)
    first = topics[0].get("name", TOPIC_ID) if topics else None
    single = len(topics) == 1 and len(topics[0]["partition_data"]) == 1
    assert head == ProduceHead(request["transactional_id"], request["acks"], first, single, head.partition_at)
    if single:
        index = int.from_bytes(body[head.partition_at : head.partition_at + 4], "big")
        assert index == topics[0]["partition_data"][0]["index"]


@settings(max_examples=60, deadline=None)
@given(st.data(), VERSIONS)
def test_a_beginning_needs_more_or_gives_the_same(data: st.DataObject, version: int) -> None:
    body = bytes(encode("request", PRODUCE, version, data.draw(requests(version))))
    head = produce_head(memoryview(body), 0, version, True)
    beginning = memoryview(body[: data.draw(st.integers(0, len(body)))])
    try:
        assert produce_head(beginning, 0, version, False) == head
    except NeedMore:
        with pytest.raises(DecodeError):
            produce_head(beginning, 0, version, True)


@settings(max_examples=100, deadline=None)
@given(VERSIONS, st.binary(max_size=60))
def test_garbage_is_told(version: int, garbage: bytes) -> None:
    try:
        produce_head(memoryview(garbage), 0, version, True)
    except DecodeError:
        pass


def frame(version: int, client: str | None, topic: str, index: int, records: bytes, correlation: int = 1) -> memoryview:
    rows = [{"index": index, "records": records}]
    request = {"acks": -1, "timeout_ms": 100, "topic_data": [named(version, topic) | {"partition_data": rows}]}
    return memoryview(bytearray(request_frame(PRODUCE, version, correlation, client, request)))


VIEW = 3


def repeated(version: int, topic: str = "orders", client: str | None = "c") -> RepeatedProduce:
    whole = frame(version, client, topic, 0, b"x" * 20)
    where = whole[4:]
    body = 10 + len(client or "") + (1 if version >= 9 else 0)
    head = produce_head(where, body, version, True)
    assert head.topic is not None
    last = RepeatedProduce(where, head.partition_at, version, head.topic)
    last.generation = VIEW
    return last


@settings(max_examples=60, deadline=None)
@given(VERSIONS, st.integers(0, 2**31 - 1), st.binary(max_size=300), st.integers(0, 2**31 - 1))
def test_the_next_request_of_a_topic_repeats(version: int, index: int, records: bytes, correlation: int) -> None:
    last = repeated(version)
    again = frame(version, "c", "orders", index, records, correlation)
    assert last.repeats(again, VIEW)
    assert not last.repeats(again, VIEW + 1)
    assert not last.repeats(again[:-1], VIEW)
    assert not last.repeats(memoryview(bytes(again) + b"\0"), VIEW)
    assert not last.repeats(memoryview(bytes(again[:4]) + b"\0\1" + bytes(again[6:])), VIEW)
    assert not last.repeats(frame(version, "d", "orders", index, records), VIEW)
    newer = memoryview(bytes(again[:6]) + (version + 1).to_bytes(2, "big") + bytes(again[8:]))
    assert not last.repeats(newer, VIEW)
    if version < 13:
        assert not last.repeats(frame(version, "c", "bills!", index, records), VIEW)


@pytest.mark.parametrize("version", range(3, 14))
def test_what_lies_in_front_of_the_partition_is_compared(version: int) -> None:
    """Any other acks, timeout, transactional id, or number of topics or partitions is another request."""
    last = repeated(version)
    one = named(version, "orders") | {"partition_data": [{"index": 0, "records": b""}]}
    two = named(version, "orders") | {"partition_data": [{"index": 0, "records": b""}, {"index": 1, "records": b""}]}
    same: Message = {"acks": -1, "timeout_ms": 100, "topic_data": [one]}
    changes: tuple[Message, ...] = (
        {"acks": 0},
        {"acks": 1},
        {"timeout_ms": 101},
        {"transactional_id": "t"},
        {"transactional_id": ""},
        {"topic_data": [two]},
        {"topic_data": [one, one]},
        {"topic_data": []},
    )
    for change in changes:
        other = memoryview(request_frame(PRODUCE, version, 1, "c", same | change))
        assert not last.repeats(other, VIEW)
    assert last.repeats(memoryview(request_frame(PRODUCE, version, 1, "c", same)), VIEW)


@settings(max_examples=100, deadline=None)
@given(st.data(), VERSIONS)
def test_only_an_answer_without_error_hint_or_message_is_fine(data: st.DataObject, version: int) -> None:
    last = repeated(version)
    part: Message = {
        "index": data.draw(st.integers(0, 300)),
        "error_code": data.draw(st.sampled_from([0, 0, 6, 10, 256, -1])),
        "base_offset": data.draw(st.integers(-1, 2**62)),
        "log_append_time_ms": -1,
        "log_start_offset": 3,
        "error_message": data.draw(st.sampled_from([None, "broker-1.internal:9092"])),
        "record_errors": data.draw(st.sampled_from([[], [{"batch_index": 0, "batch_index_error_message": None}]])),
        "current_leader": data.draw(
            st.sampled_from([{"leader_id": -1, "leader_epoch": -1}, {"leader_id": 4, "leader_epoch": 9}])
        ),
    }
    response: Message = {
        "responses": [named(version, "orders") | {"partition_responses": [part]}],
        "node_endpoints": data.draw(st.sampled_from([[], [{"node_id": 4, "host": "h", "port": 1}]])),
        "throttle_time_ms": 9,
    }
    answer = memoryview(bytearray(response_frame(PRODUCE, version, 77, response)))
    harmless = part["error_code"] == 0
    if version >= 8:
        harmless &= part["error_message"] is None and not part["record_errors"]
    if version >= 10:
        harmless &= part["current_leader"]["leader_id"] < 0 and not response["node_endpoints"]
    assert last.fine(answer, len(answer) - 4) == harmless
