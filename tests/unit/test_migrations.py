"""Which topics are moved together, what is known of their writers, and what is seen of moves by operators."""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from admin import migrated
from admin.contract import Conflict
from admin.migration_facts import Clients, Writer, left_last
from admin.migration_plan import (
    ASSUMED_RATE,
    RECENT,
    Bypass,
    Found,
    Speed,
    Wish,
    applications,
    bypassing,
    chosen,
    final,
    grouped,
    kinds,
    made,
    speed,
    wish_of,
)
from admin.migrations import possible
from admin.mirror_plan import Wrong
from cli import arguments, moves
from metadata_service import models
from metadata_service.inventory import TAGGED
from metadata_service.models import (
    LeaseRecord,
    MirrorRecord,
    OperationRecord,
    PartitionReport,
    ReportRecord,
    WaitsRecord,
    WorkerRecord,
    process_name,
)
from metadata_service.operations.judging import Allowances, PlanFacts, Subject
from metadata_service.operations.kinds import Kind
from metadata_service.operations.migration import STEPS
from metadata_service.operations.records import BEFORE_SWITCH, MigrationRecord, Moving, migration_key
from metadata_service.records import encode
from metadata_service.status import Facts
from metadata_service.view import View
from metadata_service.view_builder import build
from tests.fixtures.records import cluster, snapshot, topic, topic_id


def found(name: str, *, source: str = "east", partitions: int = 1, ids: tuple[str, ...] = (), **more: Any) -> Found:
    subject = Subject(topic(name, source, 1, partitions), size=10, ids={one: frozenset({name}) for one in ids})
    return Found(subject, **{"target": "west", "size": 10, **more})


def names(groups: list[list[Found]]) -> list[list[str]]:
    return [[one.name for one in some] for some in groups]


def test_who_belongs_together_switches_together() -> None:
    some = [
        found("a", ids=("t",)),
        found("b"),
        found("c", ids=("t", "u")),
        found("d", application="app"),
        found("e", ids=("u",)),
        found("f", application="app"),
        found("g", source="north"),
        found("h", target="south"),
    ]
    assert sorted(names(grouped(some))) == [["a", "c", "e"], ["b"], ["d", "f"], ["g"], ["h"]]
    left = MigrationRecord(
        id="m1",
        topics={"b": Moving(source_id=""), "d": Moving(source_id="")},
        source="west",
        target="east",
        step="redirect",
    )
    assert ["b", "d", "f"] in [sorted(one) for one in names(grouped(some, [left]))]


def test_groups_have_bounded_sizes() -> None:
    some = names(grouped([found(f"t{n:03}") for n in range(40)]))
    assert [len(one) for one in some] == [16, 16, 8]
    large = grouped(
        [found("a", partitions=40), found("b", partitions=24), found("c", partitions=1), found("d", partitions=500)]
    )
    assert names(large) == [["a", "b"], ["c"], ["d"]]


def view(*records: Any, migrations: tuple[MigrationRecord, ...] = ()) -> View:
    stored: dict[str, bytes | None] = {
        models.CLUSTERS + "east": encode(cluster("east", 0)),
        models.CLUSTERS + "west": encode(cluster("west", 1)),
    }
    stored |= {models.topic_key(one.name): encode(one) for one in records}
    for number, one in enumerate(migrations):
        stored[migration_key(one.id)] = encode(one)
        shown = OperationRecord(
            id=one.id,
            kind="migrate",
            state="running",
            step=one.step,
            started=float(number),
            by="me",
            result={"pause_ms": 83.0},
        )
        stored[models.OPERATIONS + one.id] = encode(shown)
    return build(View(), stored, {"east": snapshot(), "west": snapshot()}, 1)


def test_what_is_meant() -> None:
    known = view(topic("a", "east", 1), topic("b", "west", 2), topic("c", "west", 3, before=("east",)))
    everything = chosen(known, Wish((".*",), "west"))
    assert everything.targets == {"a": "west"} and not everything.problems and len(everything.left_out) == 2
    # One that is named is not left out silently.
    assert chosen(known, Wish(("b", "nobody"), "west")).targets == {"b": "west"}
    assert len(chosen(known, Wish(("b", "nobody"), "west")).problems) == 1
    back = chosen(known, Wish((".*",), rollback=True))
    assert back.targets == {"c": "east"} and not back.problems
    assert chosen(known, Wish(("a",), rollback=True)).problems
    assert chosen(known, Wish(("c",), "west", rollback=True)).problems
    for wrong in (Wish((), "west"), Wish(("a",)), Wish(("a",), "north")):
        with pytest.raises(Wrong):
            wrong.check(known)


@pytest.mark.parametrize(
    "body",
    [
        {"topics": "a"},
        {"topics": ["a"], "to": 1},
        {"topics": ["a"], "rollback": "yes"},
        {"topics": ["a"], "budget": 5},
        {"topics": ["a"], "budget": True},
        {"topics": ["a"], "max_lag": -1},
        {"topics": ["a"], "drain_wait": "long"},
    ],
)
def test_wrong_wishes(body: dict[str, object]) -> None:
    with pytest.raises(Wrong):
        wish_of(body)


def test_a_wish_has_its_options() -> None:
    wish = wish_of({"topics": ["a"], "to": "west", "budget": 2, "max_lag": 5, "close_out_bypass": True})
    assert (wish.options.budget, wish.options.max_lag, wish.options.redirect) == (2.0, 5, 600.0)
    assert wish.allow == Allowances(bypassing=True, fewer_replicas=True)


def test_the_final_configuration_is_what_is_in_force_at_the_source() -> None:
    source = {
        "retention.ms": "5",
        "compression.type": "producer",
        "max.message.bytes": "9",
        "segment.bytes": "7",
        "min.insync.replicas": "2",
        "only.here": "1",
        "leader.replication.throttled.replicas": "*",
        "flush.ms": None,
    }
    there = {**dict.fromkeys(source, "7"), "compression.type": "producer"}
    del there["only.here"]
    assert final(source, {"segment.bytes"}, there) == {
        "compression.type": "producer",  # a mirror's target has it wider meanwhile
        "max.message.bytes": "9",
        "min.insync.replicas": "2",
        "retention.ms": "5",
        "segment.bytes": "7",  # set there, so set here, although it is the same
    }


def test_kinds_and_applications() -> None:
    assert kinds({}, transactional=False, share=False, streams=False) == {Kind.PLAIN}
    both = {"cleanup.policy": "compact,delete", "remote.storage.enable": "true"}
    assert kinds(both, transactional=True, share=False, streams=False) == {
        Kind.COMPACTED,
        Kind.TIERED,
        Kind.TRANSACTIONAL,
    }
    topics = ["app-store-changelog", "app-two-store-changelog", "x-KSTREAM-AGG-1-repartition", "my-changelog", "orders"]
    assert applications(topics, {"app", "app-two", "orders"}) == {
        "app-store-changelog": "app",
        "app-two-store-changelog": "app-two",
        "x-KSTREAM-AGG-1-repartition": "x",
    }


def test_who_bypasses() -> None:
    writers = {1: Writer(5.0), 2: Writer(6.0, True), 3: Writer(7.0), TAGGED + 1: Writer(8.0)}
    assert Clients(writers={"a": writers}, own=frozenset({3})).direct("a") == {1: 5.0}
    now = 10_000.0
    some = [Bypass(1, now - 1), Bypass(2, now - RECENT - 1), Bypass(3, now - 30)]
    writing, gone = bypassing(some, 0.0, now)
    assert ([one.producer_id for one in writing], [one.producer_id for one in gone]) == ([1, 3], [2])
    # Who wrote before the topic was adopted, and not since, may have come through the endpoint.
    assert [one.producer_id for one in bypassing(some, now - 10, now)[0]] == [1]


def test_how_fast() -> None:
    assert speed(7.0, 9e9).rate == 7.0
    assert speed(0.0, 80e6).rate == 80e6
    assert speed(0.0, 10.0).rate == ASSUMED_RATE and "assumption" in speed(0.0, 10.0).because


def plans(
    some: list[Found],
    running: tuple[MigrationRecord, ...] = (),
    room: int = 1 << 40,
    apps: dict[str, str] | None = None,
) -> Any:
    facts = {"west": PlanFacts((), "west", target_brokers=3, room=room)}
    speeds = {(one.source, one.target): Speed(10.0, "told") for one in some}
    return made(some, running, facts, speeds, Allowances(), apps or {})


def test_a_plan_says_what_belongs_to_it_and_is_not_named() -> None:
    (move,) = plans([found("in", application="app")], apps={"in": "app", "out": "app", "else": "other"})
    assert len(move.refusals()) == 1 and "name out too" in move.refusals()[0]
    assert not plans(
        [found("in", application="app"), found("out", application="app")], apps={"in": "app", "out": "app"}
    )[0].refusals()
    left = MigrationRecord(
        id="m1",
        topics={"a": Moving(source_id=""), "b": Moving(source_id="")},
        source="west",
        target="east",
        step="redirect",
    )
    (alone,) = plans([found("a")], (left,))
    assert "together with b" in alone.refusals()[0]
    (both,) = plans([found("a"), found("b")], (left,))
    assert not both.refusals() and both.takes_over() == {"m1"}
    record = both.record("m2", wish_of({"topics": ["a"]}).options)
    assert sorted(record.topics) == ["a", "b"] and record.target == "west"


def test_what_one_migration_takes_the_next_has_not() -> None:
    some = [
        replace(found(f"t{n}", partitions=60), subject=Subject(topic(f"t{n}", "east", 1, 60), size=100))
        for n in range(2)
    ]
    first, second = plans(some, room=210)
    assert not first.refusals() and "110 bytes free" in second.refusals()[0]
    document = first.document()
    assert (document["to_copy"], document["seconds"]) == (100, 10.0)


def test_the_newest_move_away_tells_of_a_former_copy() -> None:
    def away(identifier: str, source: str, at: int) -> MigrationRecord:
        topics = {"orders": Moving(source_id="")}
        return MigrationRecord(id=identifier, topics=topics, source=source, target="x", switched_at=at)

    record = topic("orders", "east", 1)
    some = [away("m1", "west", 5), away("m2", "west", 9), away("m3", "east", 12), away("m4", "west", 0)]
    last = left_last(record, "west", some)
    assert last is not None and last.id == "m2"
    assert left_last(record, "south", some) is None
    assert left_last(record, "west", some[3:]) is None  # it never switched


# -- while it runs ----------------------------------------------------------------------------------------------------

MOVE = MigrationRecord(
    id="m1", topics={"orders": Moving(source_id=topic_id(1), partitions=2)}, source="east", target="west", step="ship"
)
WORKER = WorkerRecord(instance="a", worker=0, role="proxy", pid=7, host="h", started=1.0, version="1")


def facts(record: MigrationRecord, **more: Any) -> Facts:
    shown = view(topic("orders", "east", 1, 2), migrations=(record,))
    mirror = MirrorRecord(topic="orders", source="east", target="west", mode="ship", created=1.0)
    shown = build(shown, {models.mirror_key("west", "orders", "east"): encode(mirror)}, {}, 2)
    parts = {n: PartitionReport(condition="copying", position=5, end=9, lag_bytes=100) for n in range(2)}
    reports = {"a/0/west/orders/east": ReportRecord(at=1.0, partitions=parts, rate=50.0)}
    return Facts(shown, **{"reports": reports, **more})


def test_progress() -> None:
    waits = {"m1": WaitsRecord(step="ship", text="copying")}
    now = migrated.progress(facts(MOVE, waits=waits), "m1")
    assert now is not None
    assert (now["lag"], now["lag_bytes"], now["rate"], now["seconds_left"]) == (8, 200, 50.0, 4.0)
    assert (now["waits"], now["served"], now["serving"], now["held_ms"]) == ("copying", False, "east", 83.0)
    assert "8 records behind (200 B), 50 B/s" in moves.told({"migration": now})
    later = msgspec.structs.replace(MOVE, step="redirect", hold="announced")
    now = migrated.progress(facts(later, waits=waits), "m1")
    assert now is not None
    assert (now["lag"], now["waits"], now["served"], now["serving"]) == (None, None, True, "west")
    assert migrated.progress(facts(MOVE), "m2") is None


@pytest.mark.parametrize("step", STEPS)
def test_what_may_be_asked_for(step: Any) -> None:
    record = msgspec.structs.replace(MOVE, step=step)
    possible(record, "pause")
    possible(record, "resume")
    if step in BEFORE_SWITCH:
        possible(record, "abort")
        with pytest.raises(Conflict):
            possible(msgspec.structs.replace(record, wanted="abort"), "resume")
    else:
        with pytest.raises(Conflict, match="kfed migrate orders --rollback --apply"):
            possible(record, "abort")


def test_nothing_may_be_asked_for_at_the_end() -> None:
    for step in ("done", "failed", "aborted"):
        with pytest.raises(Conflict, match="has ended"):
            possible(msgspec.structs.replace(MOVE, step=step), "resume")


def test_the_doctor_names_who_is_waited_for() -> None:
    name = "a/proxy-0"
    held = msgspec.structs.replace(MOVE, reopeners=(process_name(WORKER),))
    cases: list[tuple[MigrationRecord, dict[str, Any], set[tuple[str, str]]]] = [
        (MOVE, {}, set()),
        (MOVE, {"workers": {name: WORKER}, "leases": {name: LeaseRecord(acknowledged=1)}}, set()),
        (MOVE, {"workers": {name: WORKER}}, {("migration waits", name)}),
        (msgspec.structs.replace(MOVE, taken_over="m2"), {"workers": {name: WORKER}}, set()),
        (held, {"workers": {name: WORKER}}, {("migration waits", name)}),
        (msgspec.structs.replace(MOVE, step="done"), {"workers": {name: WORKER}}, set()),
        # A move that has ended leaves names too, and they hold the next one up.
        (msgspec.structs.replace(held, step="done"), {"workers": {name: WORKER}}, {("migration waits", name)}),
        (msgspec.structs.replace(held, step="done", forced=held.reopeners), {"workers": {name: WORKER}}, set()),
        (
            msgspec.structs.replace(held, step="done"),
            {"workers": {name: msgspec.structs.replace(WORKER, started=2.0)}},
            set(),
        ),
        (msgspec.structs.replace(MOVE, step="failed", reason="x"), {}, {("migration", "m1")}),
        (msgspec.structs.replace(MOVE, step="caught_up", attempt=1, reason="x"), {}, {("migration", "m1")}),
        (msgspec.structs.replace(MOVE, wanted="pause"), {}, {("migration", "m1")}),
    ]
    for record, more, expected in cases:
        some = migrated.findings(facts(record, **more))
        assert {(one.kind, one.subject) for one in some} == expected, record
        for one in some:
            for part in one.mend.split("; "):
                if part.startswith("kfed "):
                    arguments.parse(shlex.split(part)[1:])


def test_a_failure_is_forgotten_once_the_topic_has_moved() -> None:
    failed = msgspec.structs.replace(MOVE, step="failed")
    later = msgspec.structs.replace(MOVE, id="m2", step="done")
    assert not migrated.findings(Facts(view(topic("orders", "west", 1), migrations=(failed, later))))
    assert migrated.findings(Facts(view(topic("orders", "east", 1), migrations=(failed,))))
    for there in ((), (topic("orders", "east", 9),)):  # deleted, and another of that name
        assert not migrated.findings(Facts(view(*there, migrations=(failed,))))


def test_metrics() -> None:
    some = {(name, labels): value for name, labels, value in migrated.samples(facts(MOVE))}
    assert some["kfed_migrations", ("running",)] == 1.0 and some["kfed_migrations", ("done",)] == 0.0
    assert some["kfed_migration_step", ("m1", "east", "west", "ship")] == 1.0
    assert some["kfed_migration_lag_records", ("m1", "east", "west")] == 8.0
    assert some["kfed_migration_held_seconds", ("m1", "east", "west")] == 0.083
