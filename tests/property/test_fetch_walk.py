"""The walk over Fetch responses, against the codec, for every version and for bytes that arrive in any pieces."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kafka_wire.codec import DecodeError, Message, decode, encode
from kafka_wire.fetch_view import NEUTRAL_TAG, STALE_LEADER, FetchWalk
from tests.fixtures.wire import SIZES

FETCH = 1
SHIFT = 300_000
VERSIONS = st.integers(4, 18)
_I32 = st.sampled_from([-1, 0, 1, 5, 2**20])
_I64 = st.sampled_from([-1, 0, 17, 2**40])


@st.composite
def responses(draw: st.DrawFn, version: int) -> Message:
    partition: dict[str, st.SearchStrategy[Any]] = {
        "partition_index": _I32,
        "error_code": st.sampled_from([0, 0, 0, 1, 3, 6, 74, 75, 76, 100, 103]),
        "high_watermark": _I64,
        "last_stable_offset": _I64,
        "aborted_transactions": st.none()
        | st.lists(st.fixed_dictionaries({"producer_id": _I64, "first_offset": _I64}), max_size=5)
        | st.just([{"producer_id": 7, "first_offset": 9}] * 300),
        "records": st.none() | st.binary(max_size=50) | st.sampled_from([b"", bytes(500)]),
    }
    if version >= 5:
        partition["log_start_offset"] = _I64
    if version >= 11:
        partition["preferred_read_replica"] = _I32
    if version >= 12:
        partition["current_leader"] = st.sampled_from(
            [{"leader_id": -1, "leader_epoch": -1}, {"leader_id": 4, "leader_epoch": 9}]
        )
        partition["diverging_epoch"] = st.sampled_from([{"epoch": -1, "end_offset": -1}, {"epoch": 3, "end_offset": 8}])
        partition["_tags"] = st.sampled_from([[], [(90, b"later")]])
    topic: dict[str, st.SearchStrategy[Any]] = {"partitions": st.lists(st.fixed_dictionaries(partition), max_size=4)}
    if version >= 13:
        topic["topic_id"] = st.binary(min_size=16, max_size=16)
    else:
        topic["topic"] = st.sampled_from(["", "t", "a" * 249])
    if version >= 12:
        topic["_tags"] = st.sampled_from([[], [(91, b"later")]])
    whole: dict[str, st.SearchStrategy[Any]] = {
        "throttle_time_ms": _I32,
        "responses": st.lists(st.fixed_dictionaries(topic), max_size=3),
    }
    if version >= 7:
        whole |= {"error_code": st.sampled_from([0, 71]), "session_id": _I32}
    if version >= 16:
        whole["node_endpoints"] = st.lists(
            st.fixed_dictionaries({"node_id": _I32, "host": st.sampled_from(["h", "host.internal"]), "port": _I32}),
            max_size=2,
        )
    return draw(st.fixed_dictionaries(whole))


def expected(version: int, response: Message) -> Message:
    """With virtual node ids, and without the endpoints."""
    made: Message = decode("response", FETCH, version, encode("response", FETCH, version, response))
    for topic in made["responses"]:
        for part in topic["partitions"]:
            for where, field in ((part, "preferred_read_replica"), (part.get("current_leader"), "leader_id")):
                if where and where.get(field, -1) >= 0:
                    where[field] += SHIFT
    return made


def walked(body: bytes, walk: FetchWalk, sizes: list[int]) -> bytes:
    """What a caller passes on that sees the body in windows of those sizes."""
    out = bytearray()
    unseen, rest, number = memoryview(body), b"", 0
    while not walk.done:
        size = sizes[number % len(sizes)]
        number += 1
        if not unseen and number > len(body) + 10:
            raise DecodeError("it ends early")
        data = memoryview(bytearray(rest + bytes(unseen[:size])))
        unseen, pos = unseen[size:], 0
        while True:
            pos, records = walk.advance(data, pos)
            if not records:
                break
            pos += records
            if pos > len(data):
                break
        if pos > len(data):
            more = pos - len(data)
            out += bytes(data) + bytes(unseen[:more])
            unseen, rest = unseen[more:], b""
            if not unseen:
                walk.advance(memoryview(bytearray()), 0)
        else:
            out += data[:pos]
            rest = bytes(data[pos:])
    assert not rest
    assert not unseen
    return bytes(out)


@settings(max_examples=150, deadline=None)
@given(st.data(), VERSIONS, SIZES)
def test_a_walk_patches_node_ids_and_nothing_else(data: st.DataObject, version: int, sizes: list[int]) -> None:
    response = data.draw(responses(version))
    walk = FetchWalk(version, SHIFT)
    body = walked(bytes(encode("response", FETCH, version, response)), walk, sizes)
    assert decode("response", FETCH, version, body) == expected(version, response)
    parts = [part for topic in response["responses"] for part in topic["partitions"]]
    assert walk.stale == any(part["error_code"] in STALE_LEADER for part in parts)
    named = any(part.get("current_leader", {}).get("leader_id", -1) >= 0 for part in parts)
    assert walk.hints == (named or bool(response.get("node_endpoints")))


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(16, 18), SIZES)
def test_in_pieces_endpoints_become_a_tag_nobody_knows(data: st.DataObject, version: int, sizes: list[int]) -> None:
    response = data.draw(responses(version).filter(lambda made: made["node_endpoints"]))
    walk = FetchWalk(version, SHIFT)
    walk.neutralise = True
    body = walked(bytes(encode("response", FETCH, version, response)), walk, sizes)
    assert b"host.internal" not in body
    made = decode("response", FETCH, version, body)
    (tag,) = made.pop("_tags")
    assert tag[0] == NEUTRAL_TAG
    assert not any(tag[1])
    assert made == expected(version, response) | {"node_endpoints": []}


@settings(max_examples=100, deadline=None)
@given(st.data(), VERSIONS, st.binary(max_size=80))
def test_garbage_ends_the_walk(data: st.DataObject, version: int, garbage: bytes) -> None:
    body = bytes(encode("response", FETCH, version, data.draw(responses(version))))
    at = data.draw(st.integers(0, len(body)))
    broken = memoryview(bytearray(body[:at] + garbage))
    walk = FetchWalk(version, SHIFT)
    pos = 0
    try:
        while not walk.done and pos <= len(broken):
            pos, records = walk.advance(broken, pos)
            if not records:
                break
            pos += records
    except DecodeError:
        pass


@pytest.mark.parametrize("version", [4, 11, 12, 18])
def test_a_list_of_thousands_of_aborted_transactions_is_one_unit(version: int) -> None:
    aborted = [{"producer_id": number, "first_offset": number} for number in range(6000)]
    topic = {"topic": "t"} if version < 13 else {"topic_id": bytes(16)}
    part = {"partition_index": 0, "error_code": 0, "aborted_transactions": aborted, "records": b"r" * 10}
    response = {"responses": [topic | {"partitions": [part]}]}
    body = memoryview(encode("response", FETCH, version, response))
    walk = FetchWalk(version, SHIFT)
    begin, _ = walk.advance(memoryview(bytearray(body[:65536])), 0)
    assert begin < 64
    assert not walk.done
    assert walk.advance(memoryview(bytearray(body[begin:])), 0)[1] == 10
