"""A view built in steps is the view built from nothing."""

from __future__ import annotations

import time
from dataclasses import fields
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from metadata_service import models
from metadata_service.models import (
    AddressBook,
    FeaturesRecord,
    FederationRecord,
    HomeRecord,
    LinkRecord,
    MirrorRecord,
    OperationRecord,
    PlacementRecord,
    StubRecord,
)
from metadata_service.records import encode
from metadata_service.view import Snapshot, View
from metadata_service.view_builder import build
from tests.fixtures.records import cluster, physical, placement, snapshot, topic, topic_id

COUNTERS = {"generation", "served_generation"}
NAMES = st.sampled_from(["a", "b", "c"])
CLUSTERS = st.sampled_from(["east", "west"])


def _topic(name: str, on: str, version: int, moved: bool) -> tuple[str, bytes]:
    # Ids differ between names, as they do in life.
    record = topic(name, on, 1000 * ord(name) + 10 * version, before=("east",) if moved else ())
    return models.topic_key(name), encode(record)


PUTS = st.one_of(
    st.builds(_topic, NAMES, CLUSTERS, st.integers(0, 2), st.booleans()),
    st.builds(lambda n, c: (models.GROUP_HOMES + n, encode(HomeRecord(name=n, cluster=c))), NAMES, CLUSTERS),
    st.builds(lambda n, c: (models.TRANSACTION_HOMES + n, encode(HomeRecord(name=n, cluster=c))), NAMES, CLUSTERS),
    st.builds(
        lambda n, c, done: (
            models.stub_key(c, n),
            encode(StubRecord(topic=n, cluster=c, topic_id=topic_id(77) if done else "", partitions=1)),
        ),
        NAMES,
        CLUSTERS,
        st.booleans(),
    ),
    st.builds(lambda c, i: (models.CLUSTERS + c, encode(cluster(c, i))), CLUSTERS, st.integers(0, 3)),
    st.builds(lambda p: (models.ADDRESSES + "main", encode(AddressBook(ports={"east/1": p}))), st.integers(1, 9)),
    st.builds(lambda c: (models.PLACEMENT, encode(PlacementRecord(placement=placement(c), version=3))), CLUSTERS),
    st.builds(lambda e: (models.FEATURES, encode(FeaturesRecord(epoch=e))), st.integers(0, 3)),
    st.just((models.FEDERATION, encode(FederationRecord(name="f", cluster_id="id", created=1.0)))),
    st.builds(
        lambda s: (
            models.OPERATIONS + "1",
            encode(OperationRecord(id="1", kind="k", state="running", step=s, started=1.0, by="me")),
        ),
        NAMES,
    ),
    st.builds(
        lambda s, t, rate: (models.link_key(s, t), encode(LinkRecord(source=s, target=t, rate=rate))),
        CLUSTERS,
        CLUSTERS,
        st.floats(0, 9),
    ),
    st.builds(
        lambda n, s, t: (
            models.mirror_key(t, n, s),
            encode(MirrorRecord(topic=n, source=s, target=t, mode="ship", created=1.0)),
        ),
        NAMES,
        CLUSTERS,
        CLUSTERS,
    ),
    st.just((models.VIEW + "later/thing", b'{"a": 1}')),
    st.just((models.GROUP_HOMES + "broken", b"{")),
    st.just((models.TOPICS + "broken", b'{"name":"broken","id":"zz","timeline":[],"partitions":1}')),
)
SNAPSHOTS = st.builds(
    lambda names, up: snapshot([physical(one, 5) for one in sorted(names)], reachable=up),
    st.sets(NAMES),
    st.booleans(),
)
STEPS = st.lists(
    st.one_of(
        st.lists(PUTS, min_size=1, max_size=4).map(lambda puts: ("put", dict(puts))),
        st.integers(0, 100).map(lambda pick: ("delete", pick)),
        st.tuples(st.just("look"), st.tuples(CLUSTERS, SNAPSHOTS)),
    ),
    max_size=20,
)


def _parts(view: View) -> dict[str, Any]:
    return {one.name: getattr(view, one.name) for one in fields(view) if one.name not in COUNTERS}


@settings(max_examples=300, deadline=None)
@given(STEPS)
def test_built_in_steps_or_from_nothing(steps: list[Any]) -> None:
    view, records, snapshots = View(), dict[str, bytes](), dict[str, Snapshot]()
    revision = 0
    for kind, what in steps:
        before = view
        changes: dict[str, bytes | None] = {}
        if kind == "put":
            changes = dict(what)
            records |= what
            revision += 1
        elif kind == "delete":
            if not records:
                continue
            key = sorted(records)[what % len(records)]
            del records[key]
            changes = {key: None}
            revision += 1
        else:
            snapshots[what[0]] = what[1]
        view = build(before, changes, snapshots, revision)
        assert view is before or view.generation == before.generation + 1
        for name, topic_before in before.topics.items():
            now = view.topics.get(name)
            if now is None or (now.cluster, now.physical_id) != (topic_before.cluster, topic_before.physical_id):
                cluster_name = topic_before.cluster
                assert view.served_generation[cluster_name] > before.served_generation.get(cluster_name, 0)
    assert _parts(view) == _parts(build(View(), records, snapshots, revision))
    for served in view.topics.values():
        assert view.topics_by_id[served.id] is served
    assert len(view.topics_by_id) == len(view.topics)


def test_nothing_changed_is_the_same_view() -> None:
    looks = {"east": snapshot([physical("a", 1)])}
    view = build(View(), {models.CLUSTERS + "east": encode(cluster("east", 0))}, looks, 1)
    assert build(view, {}, looks, 1) is view


def test_one_change_among_ten_thousand_topics_is_cheap() -> None:
    records: dict[str, bytes | None] = {
        models.topic_key(f"t{n}"): encode(topic(f"t{n}", "east", 100 * n)) for n in range(10_000)
    }
    records[models.CLUSTERS + "east"] = encode(cluster("east", 0))
    looks = {"east": snapshot([physical(f"t{n}", 100 * n) for n in range(10_000)])}
    view = build(View(), records, looks, 1)
    best = 1.0
    for n in range(5):
        started = time.process_time()
        view = build(view, {models.topic_key("t7"): encode(topic("t7", "west", 700 + n))}, looks, 2 + n)
        best = min(best, time.process_time() - started)
    assert view.topics["t7"].cluster == "west"
    assert best < 0.02


def test_special_is_what_needs_a_closer_look() -> None:
    plain, held = topic("a", "east", 1), topic("a", "east", 1, hold="op")
    moved = topic("a", "west", 1, before=("east",))
    for record, special in ((plain, False), (held, True), (moved, True)):
        view = build(View(), {models.topic_key("a"): encode(record)}, {}, 1)
        assert view.topics["a"].special is special


def test_topic_ids_are_mapped_both_ways() -> None:
    stub = StubRecord(topic="a", cluster="east", topic_id=topic_id(9), partitions=1)
    half = StubRecord(topic="a", cluster="north", topic_id="", partitions=1)
    records: dict[str, bytes | None] = {
        models.topic_key("a"): encode(topic("a", "west", 1, before=("east",))),
        models.stub_key("east", "a"): encode(stub),
        models.stub_key("north", "a"): encode(half),
    }
    view = build(View(), records, {}, 1)
    logical, there, here = (bytes.fromhex(topic_id(n)) for n in (1, 2, 9))
    assert view.to_physical_id("west", logical) == there
    assert view.to_physical_id("east", logical) == here
    assert view.to_physical_id("north", logical) == logical
    assert view.to_logical_id("west", there) == logical
    assert view.to_logical_id("east", here) == logical
    assert view.to_logical_id("west", here) == here


def test_a_topic_recreated_behind_our_back_is_not_served_as_the_old_one() -> None:
    records: dict[str, bytes | None] = {
        models.CLUSTERS + "east": encode(cluster("east", 0)),
        models.topic_key("a"): encode(topic("a", "east", 1)),
    }
    view = build(View(), records, {"east": snapshot([physical("a", 2)])}, 1)
    assert view.physical(view.topics["a"]) is None
    view = build(view, {}, {"east": snapshot([physical("a", 1)])}, 1)
    assert view.physical(view.topics["a"]) is not None
