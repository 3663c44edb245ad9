"""What refuses a move, what it adapts, what the switch writes, and what a worker does at the edges of a hold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest

from kafka_wire.errors import ERROR
from metadata_service.models import (
    HomeRecord,
    MirrorRecord,
    PlacementEpoch,
    StubRecord,
    TopicRecord,
    mirror_key,
    stub_key,
)
from metadata_service.operations import fence
from metadata_service.operations.facts import Ends, Facts, Known
from metadata_service.operations.fence import Answer, CutFetches, Fence, Forward, Lift, Limits, Pass, Read, Write
from metadata_service.operations.judging import Allowances, PlanFacts, Standing, Subject, judge, planned
from metadata_service.operations.kinds import ALLOWED, Allowed, Kind
from metadata_service.operations.migration import STEPS
from metadata_service.operations.records import Hold, MigrationRecord, Moving, Options, face
from metadata_service.operations.switching import Impossible, former_table, serving_table, switch
from offset_sync.guard import Verdict
from offset_sync.table import Table
from offset_sync.timeline import MAX_PLACEMENT_EPOCH, Exhausted

EAST, WEST = "e" * 32, "f" * 32


def topic(*clusters: str, **more: Any) -> TopicRecord:
    timeline = tuple(PlacementEpoch(cluster=one, topic_id=EAST if one == "east" else WEST) for one in clusters)
    return TopicRecord(**{"name": "orders", "id": EAST, "timeline": timeline, "partitions": 2, **more})


def ship(source: str, target: str, mode: Literal["ship", "exchange"] = "ship", **more: Any) -> MirrorRecord:
    return MirrorRecord(topic="orders", source=source, target=target, mode=mode, created=0.0, **more)


def plan(one: Subject, **more: Any) -> PlanFacts:
    return PlanFacts(subjects=(one,), target="west", target_brokers=3, room=1 << 40, **more)


def codes(facts: PlanFacts) -> set[str]:
    return {one.code for one in judge(facts).refusals}


FIT = Subject(topic("east"))
STUB = StubRecord(topic="orders", cluster="west", topic_id=WEST, partitions=2)


def test_a_plain_topic_moves() -> None:
    found = judge(plan(FIT))
    assert not found.refusals and not found.warnings and not found.adaptations


@pytest.mark.parametrize(
    ("one", "code"),
    [
        (replace(FIT, record=topic("west")), "there"),
        (replace(FIT, record=topic("east", name="__kfed_mirror")), "internal"),
        (replace(FIT, record=topic(*["east", "west"] * 1023, "east")), "epochs"),
        (replace(FIT, record=topic("east", conflict=("west",))), "conflict"),
        (replace(FIT, standing=Standing(WEST)), "conflict"),
        (replace(FIT, stub=msgspec.structs.replace(STUB, borrowed=True)), "borrowed"),
        (replace(FIT, mirrors=(ship("east", "west", mode="exchange"),)), "exchange"),
        (replace(FIT, mirrors=(ship("north", "west"),)), "mirror"),
        (replace(FIT, record=topic("east", hold="m9")), "operation"),
        (replace(FIT, kinds=frozenset({Kind.SHARE})), "share"),
        (replace(FIT, wanted_config={"min.insync.replicas": "2"}), "min.insync.replicas"),
    ],
)
def test_refused(one: Subject, code: str) -> None:
    assert codes(plan(one)) == {code}


@pytest.mark.parametrize(
    ("one", "code", "allow"),
    [
        (replace(FIT, wanted_config={"retention.ms": "1000"}), "retention.ms", Allowances(less_retention=True)),
        (replace(FIT, wanted_config={"retention.bytes": "1"}), "retention.bytes", Allowances(less_retention=True)),
        (
            replace(FIT, wanted_config={"max.message.bytes": "9"}),
            "max.message.bytes",
            Allowances(smaller_messages=True),
        ),
        (replace(FIT, replicas=5), "replicas", Allowances(fewer_replicas=True)),
        (replace(FIT, bypassing=2), "bypassing", Allowances(bypassing=True)),
        (replace(FIT, ids={"t": frozenset({"orders", "x"})}), "transactional id", Allowances(leave_ids=True)),
    ],
)
def test_refused_unless_accepted(one: Subject, code: str, allow: Allowances) -> None:
    assert codes(plan(one)) == {code}
    accepted = judge(plan(one, allow=allow))
    assert not accepted.refusals and code in {each.code for each in accepted.warnings}


def test_a_group_is_judged_together() -> None:
    both = (FIT, replace(FIT, record=topic("north", name="bills")))
    assert {one.code for one in judge(PlanFacts(both, "west", room=0)).refusals} == {"sources"}
    many = tuple(replace(FIT, record=topic("east", name=f"t{n}"), size=10) for n in range(40))
    assert {one.code for one in judge(PlanFacts(many, "west", room=399)).refusals} == {"size", "disk"}
    assert {one.code for one in judge(PlanFacts((FIT,), "west", target_known=False)).refusals} == {"target"}
    together = replace(FIT, ids={"t": frozenset({"orders", "bills"})})
    bills = replace(FIT, record=topic("east", name="bills"))
    assert not judge(PlanFacts((together, bills), "west", room=1)).refusals


def test_another_operation() -> None:
    running = MigrationRecord(id="m1", topics={"orders": Moving(source_id=WEST)}, source="west", target="east")
    back = replace(FIT, record=topic("west", "east", hold="m1"))
    for step in STEPS:
        found = judge(plan(back, running=(msgspec.structs.replace(running, step=step),)))
        assert {one.code for one in found.refusals} == (set() if step == "redirect" else {"operation"}), step
        assert ("takes over" in {one.code for one in found.adaptations}) == (step == "redirect")


@pytest.mark.parametrize(
    ("standing", "code"),
    [
        (Standing(WEST, clean_end=True, log_start={0: 5, 1: 7}), "reuse"),
        (Standing(WEST, clean_end=True, log_start={0: 6, 1: 7}), "rebuild"),
        (Standing(WEST, clean_end=True, log_start={0: 5}), "rebuild"),
        (Standing(WEST, clean_end=False, log_start={0: 5, 1: 7}), "rebuild"),
        (Standing(WEST, emptied=True, clean_end=True, log_start={0: 5, 1: 7}), "rebuild"),
    ],
)
def test_a_former_copy(standing: Standing, code: str) -> None:
    back = Subject(topic("west", "east"), standing=standing, log_start={0: 5, 1: 7}, waits_for=17, stub=STUB)
    facts = plan(back)
    found = judge(facts)
    assert not found.refusals
    assert {one.code for one in found.adaptations} == {code, "tag producers"}
    made = planned("m2", facts, found, Options(), {"orders": {"retention.ms": "5"}})
    one = made.topics["orders"]
    assert (one.reuse, one.rebuild, one.waits_for) == (code == "reuse", code == "rebuild", 17)
    assert (one.source_id, one.target_id, one.final) == (EAST, WEST, {"retention.ms": "5"})
    # Who copies from it would be emptied with it.
    assert codes(plan(replace(back, mirrors=(ship("west", "north"),)))) == ({"mirror"} if code == "rebuild" else set())
    assert face(made) == ("running", "plan")
    with pytest.raises(ValueError, match="already"):
        refused = plan(replace(FIT, record=topic("west")))
        planned("m3", refused, judge(refused), Options(), {})


def test_every_kind_is_told_for_everything() -> None:
    for kind in Kind:
        assert set(ALLOWED[kind]) == {"move", "failover", "exchange"}
        assert all((one.allowed is Allowed.WORKS) == (not one.limit) for one in ALLOWED[kind].values())


def test_the_document_tells_every_step_and_kind() -> None:
    text = (Path(__file__).parents[2] / "docs" / "design" / "moving.md").read_text()
    for step in STEPS:
        assert f"| {step} |" in text, step
    for kind in Kind:
        for one in ALLOWED[kind].values():
            assert one.limit in text, one.limit


# -- the switch -------------------------------------------------------------------------------------------------------


MOVING = MigrationRecord(
    id="m1",
    topics={"orders": Moving(source_id=EAST, target_id=WEST, partitions=2)},
    source="east",
    target="west",
    step="finish",
    hold="held",
    attempt=1,
    reopeners=("me", "other"),
    ends={"orders": {0: 100, 1: 7}},
    cut={"orders": {0: 100, 1: 7}},
    options=Options(transactional_ids=("t",)),
)


def facts(**more: Any) -> Facts:
    ends = {("orders", n): Ends(end, end, end, end, 2, ((3, 0), (5, end - 1))) for n, end in ((0, 100), (1, 7))}
    base = {
        "me": "me",
        "revision": 9,
        "entered": 0.0,
        "held_since": 0.0,
        "ends": ends,
        "topics": {"orders": Known(topic("east", hold="m1", standbys=("west", "north")), 5)},
    }
    return Facts(**{**base, **more})


def test_the_switch_is_one_commit() -> None:
    mirrors = {
        mirror_key(one.target, "orders", one.source): Known(one, 6)
        for one in (ship("east", "west"), ship("east", "north", generation=4), ship("north", "south"))
    }
    stubs = {stub_key("west", "orders"): Known(STUB, 7)}
    homes = {"view/homes/transactions/t": Known(HomeRecord(name="t", cluster="east"), 8)}
    opened = {"orders": {0: 90, 1: 9}}
    commit = switch(MOVING, facts(mirrors=mirrors, stubs=stubs, homes=homes), opened)
    assert (commit.record.step, commit.record.hold, commit.record.reopeners) == ("switch", "switched", ("other",))
    written = {one.key: one for one in commit.also}
    moved = written["view/topics/orders"].record
    assert isinstance(moved, TopicRecord)
    assert moved.cluster == "west" and moved.standbys == ("north",) and moved.id == EAST
    assert moved.timeline[0].physical_epochs == {0: ((3, 0), (5, 99)), 1: ((3, 0), (5, 6))}
    new = moved.timeline[1]
    assert (new.first, new.first_physical, new.tag_producers) == ({0: 100, 1: 7}, {0: 90, 1: 9}, False)
    assert written[mirror_key("west", "orders", "east")].record is None
    assert written[mirror_key("north", "orders", "east")].record is None
    assert written[mirror_key("north", "orders", "west")].record == ship("west", "north", generation=4)
    assert written[stub_key("west", "orders")].record is None
    left = written[stub_key("east", "orders")].record
    assert isinstance(left, StubRecord) and left.topic_id == EAST and left.borrowed
    assert written["view/homes/transactions/t"].record == HomeRecord(name="t", cluster="west", left=("east",))
    assert {one.revision for one in commit.also} == {0, 5, 6, 7, 8}
    assert mirror_key("south", "orders", "north") not in written


def test_what_the_switch_refuses() -> None:
    opened = {"orders": {0: 90, 1: 9}}
    for other in (topic("east"), topic("west", hold="m1")):
        with pytest.raises(Impossible):
            switch(MOVING, facts(topics={"orders": Known(other, 5)}), opened)
    often = topic(*["west", "east"] * 1023, "east", hold="m1")
    assert often.epoch == MAX_PLACEMENT_EPOCH
    with pytest.raises(Exhausted):
        switch(MOVING, facts(topics={"orders": Known(often, 5)}), opened)
    home = {"t": Known(HomeRecord(name="t", cluster="north"), 8)}
    with pytest.raises(Impossible):
        switch(MOVING, facts(homes=home), opened)
    back = switch(MOVING, facts(topics={"orders": Known(topic("west", "east", hold="m1"), 5)}), opened)
    (moved,) = [one.record for one in back.also if isinstance(one.record, TopicRecord)]
    assert moved.timeline[-1].tag_producers


def test_tables_come_from_the_timeline() -> None:
    epoch = PlacementEpoch(cluster="west", topic_id=WEST, first={0: 100}, first_physical={0: 90})
    copy = Table()
    copy.append(0, 1, 80)
    table = serving_table(copy, epoch, 0)
    assert (table.logical(90), table.logical(95), table.physical(103)) == (100, 105, 93)
    assert serving_table(table, epoch, 0) is table
    following = PlacementEpoch(cluster="east", topic_id=EAST, first={0: 110})
    former = former_table(table, following, 0)
    assert former.own is None and former.serves(99, 99) and not former.serves(100, 100)


# -- a worker's fence -------------------------------------------------------------------------------------------------


def at(hold: Hold, step: str = "hold", **more: Any) -> MigrationRecord:
    return msgspec.structs.replace(MOVING, **{"hold": hold, "step": step, "closing": True, **more})


def worker(hold: Hold, limits: Limits | None = None, verdict: Verdict | None = None, **more: Any) -> Fence:
    made = Fence(limits or Limits(), lambda one, cluster: verdict or Verdict("unknown"))
    made.saw(9)
    made.renewed(100.0, 9)
    made.learned(at(hold, **more), 9, 0.0)
    return made


def write(number: int = 1, cluster: str = "east", **more: Any) -> Write:
    return Write(
        **{"id": number, "session": 1, "cluster": cluster, "topic": "orders", "partition": 0, "size": 10, **more}
    )


def refused(one: Write) -> list[object]:
    return [Answer(one, ERROR.NOT_LEADER_OR_FOLLOWER)]


def test_i6_what_is_not_known_is_refused() -> None:
    for hold in fence.TABLE:
        assert worker(hold).write(write(cluster="north"), 1.0) == refused(write(cluster="north"))
    for hold in ("held", "lifted", "switched"):
        assert worker(hold).write(write(), 101.0) == refused(write())  # its lease ran out
    behind = worker("held")
    behind.renewed(200.0, 12)  # a new lease, and a view from before it
    assert behind.write(write(), 1.0) == refused(write())
    assert worker("released").write(write(), 1.0) == []  # no tables yet: it waits for them
    assert worker("open").write(write(leased=True), 101.0) == refused(write(leased=True))


def test_held_writes_go_where_the_hold_ends() -> None:
    ways: list[tuple[Hold, str]] = [("released", "west"), ("open", "east")]
    for hold, cluster in ways:
        one = worker("held")
        assert one.write(write(1), 1.0) == one.write(write(2), 1.0) == []
        assert one.report("m1") is not None
        one.loaded("m1", 1.0)
        assert one.learned(at(hold, "release"), 10, 2.0) == [Forward(write(1), cluster), Forward(write(2), cluster)]
        report = one.report("m1")
        assert (
            report is not None
            and report.drained == (cluster == "west")
            and report.unanswered == (cluster == "west") * 2
        )
        assert one.answered(1, 0, 3.0, 105) == [Pass(write(1))]
        assert one.answered(2, 0, 3.0, 106) == [Pass(write(2))]
        assert (one.report("m1") or report).unanswered == 0


def test_the_limits_of_a_hold() -> None:
    one = worker("held", Limits(requests=2, bytes=25, seconds=5.0))
    assert one.write(write(1), 1.0) == []
    assert one.write(write(2, size=20), 1.0) == refused(write(2, size=20))
    assert one.write(write(3, session=2), 4.0) == []
    assert one.write(write(4, size=1), 4.0) == refused(write(4, size=1))
    assert one.tick(2.9) == []
    assert one.tick(3.0) == [Lift("m1", 9)]
    assert one.tick(6.0) == [*refused(write(1)), Lift("m1", 9)]
    assert one.reauthenticating(2) == refused(write(3, session=2))
    assert one.tick(101.0) == []  # without a lease it cannot lift


def test_what_is_never_acknowledged() -> None:
    one = worker("open")
    for number in range(1, 7):
        assert one.write(write(number, limit=1000, leased=number == 4), 1.0)
    assert one.answered(1, ERROR.MESSAGE_TOO_LARGE, 1.0) == refused(write(1, limit=1000))
    assert one.answered(2, 0, 1.0, 50) == [Pass(write(2, limit=1000))]
    assert one.answered(4, 0, 101.0, 51) == refused(write(4, limit=1000, leased=True))
    one.learned(at("switched", "switch"), 10, 2.0)
    assert one.answered(3, 0, 2.0, 99) == [Pass(write(3, limit=1000))]
    assert one.answered(5, 0, 2.0, 100) == refused(write(5, limit=1000))  # behind the end of its epoch
    big = write(7, cluster="west", size=2000, limit=1000)
    one.loaded("m1", 2.0)
    one.learned(at("released", "release"), 11, 3.0)
    assert one.write(big, 3.0) == [Forward(big, "west")]
    assert one.answered(7, ERROR.MESSAGE_TOO_LARGE, 3.0) == [Pass(big)]
    assert one.lost(6, 3.0) == refused(write(6, limit=1000))


def test_the_guard() -> None:
    cases: list[tuple[Any, list[Any]]] = [
        ("duplicate", [Answer(write(), 0, 77)]),
        ("fenced", [Answer(write(), ERROR.INVALID_PRODUCER_EPOCH)]),
        ("next", [Forward(write(), "west")]),
        ("gap", []),
    ]
    for kind, expected in cases:
        one = worker("released", verdict=Verdict(kind, 77))
        one.loaded("m1", 1.0)
        assert one.write(write(), 1.0) == expected
        if kind == "gap":
            assert one.tick(1.9) == []
            assert one.tick(2.1) == [Answer(write(), ERROR.OUT_OF_ORDER_SEQUENCE_NUMBER)]


def test_direct_writes_wait_for_forwarded_ones() -> None:
    one = worker("released")
    one.loaded("m1", 1.0)
    assert one.write(write(1), 1.0) == [Forward(write(1), "west")]
    direct = write(2, cluster="west", session=2)
    assert one.write(direct, 1.0) == []
    assert one.answered(1, 0, 1.5, 90) == [Pass(write(1)), Forward(direct, "west")]


def test_transactions_are_held_first() -> None:
    one = worker("draining", step="drain")
    assert one.write(write(1, begins=True), 1.0) == []
    assert one.write(write(2, session=2), 1.0) == [Forward(write(2, session=2), "east")]
    assert one.learned(at("lifted", "lift", closing=False), 10, 2.0) == [Forward(write(1, begins=True), "east")]


def test_reads() -> None:
    def told(hold: Hold, cluster: str, offset: int) -> Read:
        return fence.read(at(hold), cluster, "orders", 0, offset, True)

    hold: Hold
    for hold in ("open", "draining", "held", "lifted"):
        assert told(hold, "east", 500) is Read.SERVE and told(hold, "west", 5) is Read.MOVED
    for hold in ("switched", "released"):
        assert told(hold, "east", 100) is told(hold, "east", 5) is Read.OLD
        assert told(hold, "east", 101) is Read.MOVED
    assert told("announced", "east", 100) is Read.MOVED and told("announced", "east", 99) is Read.OLD
    assert told("over", "east", 5) is told("switched", "west", 5) is Read.MOVED
    assert told("released", "west", 5) is Read.SERVE
    assert fence.read(at("released"), "west", "orders", 0, 5, False) is Read.MOVED
    assert worker("released").learned(at("announced", "announce"), 10, 1.0) == [CutFetches(("orders",), "east")]
    assert fence.fetch_error(1, True, True) == 1
    assert fence.fetch_error(1, False, True) == fence.fetch_error(1, True, False) == 6
