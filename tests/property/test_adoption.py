"""Which physical topics become logical topics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from metadata_service import models
from metadata_service.adoption import decide, kept_conflict, missing, topics_to_consider
from metadata_service.models import MirrorRecord, PlacementRecord, StubRecord, TopicRecord
from metadata_service.records import encode
from metadata_service.topics import copies
from metadata_service.view import PhysicalTopic, View
from metadata_service.view_builder import build
from runtime.settings import Placement, Rule
from tests.fixtures.records import cluster, physical, placement, snapshot, topic, topic_id

INDEXES = {"north": 0, "east": 1, "west": 2}
PLAIN = placement("west")
WEST = placement("north", Rule(topics="orders", cluster="west"))


def _decide(
    current: TopicRecord | None,
    found: Mapping[str, PhysicalTopic],
    rules: Placement = PLAIN,
    *,
    copies: frozenset[str] = frozenset(),
    version: int = 1,
) -> TopicRecord | None:
    return decide(current, found, copies, rules, version, INDEXES, now=1.0)


def _at(*clusters: str) -> dict[str, PhysicalTopic]:
    return {one: physical("orders", n + 1, n + 1) for n, one in enumerate(clusters)}


def test_a_topic_on_one_cluster_is_served_there_under_its_own_id() -> None:
    record = _decide(None, _at("west"))
    assert record is not None
    assert (record.cluster, record.id, record.partitions, record.adopted) == ("west", topic_id(1), 1, True)
    assert record.timeline[-1].topic_id == record.id
    assert record.conflict == ()


def test_a_conflict_is_served_from_the_lowest_index_and_the_default_decides_nothing() -> None:
    record = _decide(None, _at("west", "east"))
    assert record is not None
    assert (record.cluster, record.conflict) == ("east", ("west",))


def test_a_rule_that_names_one_of_them_decides() -> None:
    record = _decide(None, _at("west", "east", "north"), WEST)
    assert record is not None
    assert (record.cluster, record.conflict) == ("west", ("east", "north"))
    elsewhere = _decide(None, _at("east"), WEST)
    assert elsewhere is not None
    assert elsewhere.cluster == "east"  # rules never move what exists


def test_known_copies_are_no_conflict_and_are_not_adopted() -> None:
    record = _decide(None, _at("west", "east"), copies=frozenset({"east"}))
    assert record is not None
    assert (record.cluster, record.conflict) == ("west", ())
    assert _decide(None, _at("east"), copies=frozenset({"east"})) is None
    moved = topic("orders", "west", 1, before=("north",))
    assert _decide(moved, _at("west", "north")) == moved


def test_a_conflict_that_appears_later_does_not_take_over() -> None:
    record = _decide(None, {"west": physical("orders", 1)}, WEST)
    later = _decide(record, _at("west", "north"), WEST)
    assert later is not None
    assert (later.cluster, later.conflict) == ("west", ("north",))
    created = topic("orders", "north", 1)  # made through the endpoint, not adopted
    later = _decide(created, _at("north", "west"), WEST, version=9)
    assert later is not None
    assert (later.cluster, later.conflict) == ("north", ("west",))


def test_rules_changed_for_a_known_conflict_decide_it() -> None:
    before = _decide(None, _at("east", "west"))
    assert before is not None
    assert (before.cluster, before.judged) == ("east", 1)
    same = _decide(before, _at("east", "west"), WEST)  # the same version: it was judged by these rules
    assert same == before
    after = _decide(before, _at("east", "west"), WEST, version=2)
    assert after is not None
    assert (after.cluster, after.conflict, after.id) == ("west", ("east",), topic_id(2))
    moved = msgspec.structs.replace(before, timeline=(*before.timeline, *before.timeline))
    kept = _decide(moved, _at("east", "west"), WEST, version=2)
    assert kept is not None
    assert kept.cluster == "east"  # a timeline beats every rule


def test_a_recreated_topic_is_a_new_topic() -> None:
    before = topic("orders", "east", 7, 3)
    after = _decide(before, {"east": physical("orders", 8, 5)})
    assert after is not None
    assert (after.id, after.partitions, after.cluster) == (topic_id(8), 5, "east")
    moved = topic("orders", "east", 7, before=("west",))
    assert _decide(moved, {"east": physical("orders", 99)}) == moved  # for an operator to decide


def test_internal_topics_are_shown_once_and_ours_never() -> None:
    def internal(name: str, *clusters: str) -> TopicRecord | None:
        found = {one: physical(name, n + 1) for n, one in enumerate(clusters)}
        return decide(None, found, (), placement("east", Rule(topics=".*", cluster="west")), 1, INDEXES, now=1.0)

    record = internal("__consumer_offsets", "north", "east", "west")
    assert record is not None
    assert (record.cluster, record.conflict, record.standbys) == ("east", (), ())
    assert internal("__consumer_offsets", "west") is None
    assert internal("__kfed_tables", "east", "west") is None


@given(
    st.dictionaries(st.sampled_from(["north", "east", "west"]), st.integers(1, 4), min_size=1),
    st.dictionaries(st.sampled_from(["north", "east", "west"]), st.integers(1, 4)),
    st.sets(st.sampled_from(["north", "east", "west"])),
    st.sampled_from([PLAIN, WEST]),
    st.integers(1, 3),
)
def test_deciding_is_stable_and_never_moves(
    first: dict[str, int], second: dict[str, int], copies: set[str], rules: Placement, version: int
) -> None:
    found = [{one: physical("orders", n, 2) for one, n in some.items()} for some in (first, second)]
    frozen = frozenset(copies)
    record = _decide(None, found[0], PLAIN, copies=frozen)
    if record is None:
        assert set(first) <= copies
        return
    assert record.cluster in first.keys() - copies
    assert set(record.conflict) == first.keys() - copies - {record.cluster}
    assert _decide(record, found[0], PLAIN, copies=frozen) == record
    later = _decide(record, found[1], rules, copies=frozen, version=version)
    assert later is not None
    assert _decide(later, found[1], rules, copies=frozen, version=version) == later
    if later.cluster != record.cluster:  # only a rule newer than the conflict may do that
        assert rules is WEST
        assert version > record.judged
        assert "west" in record.conflict


def test_what_lies_on_clusters_that_could_not_be_asked_is_kept() -> None:
    record = topic("orders", "east", 1, conflict=("north", "west"))
    decided = topic("orders", "east", 1)
    assert kept_conflict(record, decided, {"east", "west"}).conflict == ("north",)
    assert kept_conflict(record, decided, {"east", "west", "north"}).conflict == ()


def _view(*topics: TopicRecord, **snapshots: object) -> View:
    records: dict[str, bytes | None] = {models.CLUSTERS + one: encode(cluster(one, n)) for one, n in INDEXES.items()}
    records[models.PLACEMENT] = encode(PlacementRecord(placement=placement("east")))
    records |= {models.topic_key(one.name): encode(one) for one in topics}
    stub = StubRecord(topic="stub", cluster="west", topic_id=topic_id(50), partitions=1)
    records[models.stub_key("west", "stub")] = encode(stub)
    return build(View(), records, snapshots, 1)  # type: ignore[arg-type]


def test_only_what_may_change_is_looked_at_again() -> None:
    view = _view(
        topic("known", "east", 1),
        topic("recreated", "east", 2),
        topic("clash", "east", 3),
        topic("cleared", "east", 4, conflict=("west",), judged=1),
        topic("silent", "east", 5, conflict=("north",), judged=1),
        east=snapshot(
            [
                physical("known", 1),
                physical("recreated", 22),
                physical("clash", 3),
                physical("cleared", 4),
                physical("silent", 5),
                physical("new", 6),
                physical("__consumer_offsets", 7),
                physical("__kfed_tables", 8),
            ]
        ),
        west=snapshot([physical("clash", 33), physical("stub", 50), physical("__transaction_state", 9)]),
        north=snapshot([physical("unseen", 10)], reachable=False),
    )
    assert topics_to_consider(view) == {"recreated", "clash", "cleared", "new", "__consumer_offsets"}


def _mirrored(view: View, name: str, source: str, target: str, *, exchange: bool = False) -> View:
    mode: Literal["ship", "exchange"] = "exchange" if exchange else "ship"
    record = MirrorRecord(topic=name, source=source, target=target, mode=mode, created=1.0)
    changes = {models.mirror_key(target, name, source): encode(record)}
    snapshots = {cluster: one.snapshot for cluster, one in view.clusters.items()}
    return build(view, changes, snapshots, view.revision + 1)


def test_a_mirrors_target_is_a_copy_until_the_mirror_is_removed() -> None:
    known = topic("known", "east", 1, judged=1)
    clash = topic("clash", "east", 2, conflict=("west",), judged=1)
    east = snapshot([physical("known", 1), physical("clash", 2)])
    west = snapshot([physical("known", 11), physical("clash", 12), physical("gone", 13)])
    plain = _view(known, clash, east=east, west=west)
    assert topics_to_consider(plain) == {"known", "gone"}
    view = plain
    for name in ("known", "clash", "gone"):
        view = _mirrored(view, name, "east", "west")
        assert copies(view, name) == {"west"}
    # A conflict that has become a copy is decided again; the copy of a topic that is gone does not take its place.
    assert topics_to_consider(view) == {"clash"}
    assert [one.target for one in view.mirrors_of("known")] == ["west"]


def test_of_an_exchange_one_is_the_topic_and_the_others_are_copies() -> None:
    west = snapshot([physical("both", 11)])
    unknown = _view(east=snapshot([physical("both", 1)]), west=west)
    for source, target in (("east", "west"), ("west", "east")):
        unknown = _mirrored(unknown, "both", source, target, exchange=True)
    assert topics_to_consider(unknown) == {"both"}
    assert copies(unknown, "both") == set()
    known = build(unknown, {models.topic_key("both"): encode(topic("both", "east", 1))}, {"west": west}, 9)
    assert copies(known, "both") == {"west"}
    assert topics_to_consider(known) == set()


def test_missing_is_concluded_from_answers_only() -> None:
    gone, away = topic("gone", "east", 1), topic("away", "north", 2)
    view = _view(gone, away, east=snapshot([]), north=snapshot([], reachable=False))
    assert missing(view) == [gone]
