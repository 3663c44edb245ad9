"""Metadata read incrementally is the metadata read whole."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kafka_wire.codec import DecodeError, encode
from metadata_service.cluster_metadata import HIGHEST, LOWEST, ClusterMetadata, read_metadata


def _topic(name: str, number: int, partitions: list[tuple[int, int]], error: int = 0) -> dict[str, Any]:
    return {
        "error_code": error,
        "name": name,
        "topic_id": number.to_bytes(16, "big"),
        "is_internal": name.startswith("__"),
        "partitions": [
            {
                "error_code": 0,
                "partition_index": n,
                "leader_id": leader,
                "leader_epoch": epoch,
                "replica_nodes": [1, 2, leader],
                "isr_nodes": [leader],
                "offline_replicas": [2],
                "_tags": [(9, b"later")] if n == 1 else [],
            }
            for n, (leader, epoch) in enumerate(partitions)
        ],
    }


def _body(topics: list[dict[str, Any]], version: int, *, controller: int = 1, brokers: int = 2) -> bytes:
    nodes = [
        {"node_id": n, "host": f"host-{n}", "port": 9000 + n, "rack": None if n % 2 else "r"} for n in range(brokers)
    ]
    message = {"brokers": nodes, "cluster_id": "abc", "controller_id": controller, "topics": topics}
    return bytes(encode("response", 3, version, message))


TOPICS = st.lists(
    st.builds(
        _topic,
        st.sampled_from(["a", "b", "long-name-of-a-topic", "__internal"]),
        st.integers(1, 3),
        st.lists(st.tuples(st.integers(1, 3), st.just(0)), max_size=4),
        st.sampled_from([0, 0, 0, 5]),
    ),
    max_size=5,
    unique_by=lambda one: str(one["name"]),
)


def _meaning(one: ClusterMetadata) -> tuple[Any, ...]:
    return (one.cluster_id, one.controller, one.brokers, one.topics, one.errors, one.error)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(TOPICS, st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=5),
    st.integers(LOWEST, HIGHEST),
)
def test_incremental_is_whole(rounds: list[tuple[list[dict[str, Any]], int, int]], version: int) -> None:
    before = None
    for topics, controller, brokers in rounds:
        body = _body(topics, version, controller=controller, brokers=brokers)
        before = read_metadata(body, version, before)
        assert _meaning(before) == _meaning(read_metadata(body, version))
        assert set(before.topics) == {one["name"] for one in topics if not one["error_code"]}
        assert before.errors == {one["name"]: one["error_code"] for one in topics if one["error_code"]}


@settings(max_examples=200, deadline=None)
@given(TOPICS, st.integers(LOWEST, HIGHEST), st.integers(0, 400), st.integers(0, 255))
def test_bad_bytes_are_refused_or_read_but_never_crash(
    topics: list[dict[str, Any]], version: int, at: int, value: int
) -> None:
    body = bytearray(_body(topics, version))
    body[at % len(body)] = value
    for data in (bytes(body), bytes(body[: at % len(body)])):
        try:
            read_metadata(data, version)
        except DecodeError:
            pass


def test_a_broker_that_lags_does_not_turn_leaders_back() -> None:
    new = read_metadata(_body([_topic("a", 1, [(2, 7), (1, 3)])], 13), 13)
    lagging = read_metadata(_body([_topic("a", 1, [(1, 6), (1, 4)])], 13), 13, new)
    assert [(p.leader, p.leader_epoch) for p in lagging.topics["a"].partitions] == [(2, 7), (1, 4)]
    recreated = read_metadata(_body([_topic("a", 2, [(1, 0)])], 13), 13, new)
    assert [(p.leader, p.leader_epoch) for p in recreated.topics["a"].partitions] == [(1, 0)]


def test_an_unknown_version_is_refused() -> None:
    with pytest.raises(DecodeError):
        read_metadata(b"", 8)


def test_what_is_unchanged_is_not_decoded() -> None:
    topics = [_topic(f"topic-{n}", n + 1, [(1, 0)] * 10) for n in range(1000)]
    first = read_metadata(_body(topics, 13), 13)
    assert first.decoded == 1000
    body = _body(topics, 13, controller=2)  # under KRaft a random broker is named each time
    started = time.process_time()
    same = read_metadata(body, 13, first)
    unchanged = time.process_time() - started
    assert same.topics is first.topics
    assert same.decoded == 0
    topics[500] = _topic("topic-500", 501, [(2, 1)] * 10)
    del topics[100]
    topics.insert(300, _topic("new", 5000, [(1, 0)]))
    started = time.process_time()
    changed = read_metadata(_body(topics, 13), 13, same)
    assert time.process_time() - started < 0.5
    assert changed.decoded == 2
    assert changed.topics["topic-7"] is first.topics["topic-7"]
    assert unchanged < 0.05
