"""What keeps a mirror from starting, what its target is created with, which ships cannot be."""

from __future__ import annotations

import pytest

from metadata_service.mirroring import Cyclic, check_ships
from metadata_service.models import (
    AssignmentRecord,
    MirrorRecord,
    PartitionReport,
    ReportRecord,
    assignment_key,
    link_key,
    mirror_key,
)
from replicator.preflight import DAY_MS, creation, drift, problems, shipping_drift
from replicator.prepare import replicas_of

PLAIN = {
    "message.timestamp.type": "CreateTime",
    "max.message.bytes": "1048588",
    "compression.type": "producer",
    "message.timestamp.before.max.ms": "9223372036854775807",
    "message.timestamp.after.max.ms": "3600000",
    "cleanup.policy": "delete",
    "retention.ms": "604800000",
    "retention.bytes": "-1",
    "min.insync.replicas": "1",
}
NOW = 100 * DAY_MS


def settings(target: dict[str, str], source: dict[str, str] | None = None, **more: int) -> list[str]:
    return [one.setting for one in problems({**PLAIN, **(source or {})}, {**PLAIN, **target}, now=NOW, **more)]


@pytest.mark.parametrize(
    "bad",
    [
        {"message.timestamp.type": "LogAppendTime"},
        {"max.message.bytes": "1000"},
        {"compression.type": "gzip"},
        {"message.timestamp.after.max.ms": "1000"},
        {"message.timestamp.before.max.ms": "1000"},
        {"retention.ms": "1000"},
        {"retention.bytes": "1000"},
        {"cleanup.policy": "compact"},
    ],
    ids=str,
)
def test_what_would_change_or_drop_records(bad: dict[str, str]) -> None:
    assert settings(bad) == list(bad)
    text = str(problems(PLAIN, {**PLAIN, **bad}, now=NOW)[0])
    assert next(iter(bad)) in text and "needs" in text


def test_an_equal_target_is_fine_but_old_records_need_room() -> None:
    assert settings({}) == []
    tight = {"message.timestamp.before.max.ms": str(DAY_MS)}
    assert settings(tight, tight) == []
    assert settings(tight, tight, oldest=NOW - 2 * DAY_MS) == ["message.timestamp.before.max.ms"]
    assert settings({}, {"cleanup.policy": "compact"}) == ["cleanup.policy"]
    assert settings({}, {"retention.ms": "-1"}) == ["retention.ms"]
    assert settings({"retention.ms": "-1"}, {"retention.ms": "-1"}) == []


def test_as_many_replicas_in_sync_as_at_the_source() -> None:
    two = {"min.insync.replicas": "2"}
    assert settings({}, two, source_replicas=3, target_replicas=3) == ["min.insync.replicas"]
    assert settings({}, two, source_replicas=1, target_replicas=1) == []
    assert settings(two, two, source_replicas=3, target_replicas=3) == []


def test_a_target_is_created_with_what_was_set_and_room_for_everything() -> None:
    source = {**PLAIN, "retention.ms": "5", "max.message.bytes": "78", "compression.type": "gzip"}
    made = creation(source, {"retention.ms", "max.message.bytes", "compression.type"}, max_message=2_000_000)
    assert made["retention.ms"] == "5" and made["max.message.bytes"] == "2000000"
    assert (made["compression.type"], made["message.timestamp.type"]) == ("producer", "CreateTime")
    assert "retention.bytes" not in made
    assert problems({**source, "max.message.bytes": "2000000"}, {**PLAIN, **made}, oldest=0, now=NOW) == []
    assert drift(source, {**PLAIN, **made}) == {}
    assert drift({**source, "retention.ms": "6"}, {**PLAIN, **made}) == {"retention.ms": "6"}
    # What was set on one side and taken away, or comes from a cluster's defaults, is followed as well.
    assert drift(PLAIN, {**PLAIN, **made}) == {"retention.ms": PLAIN["retention.ms"]}


def test_a_created_copy_needs_as_many_replicas_in_sync() -> None:
    source = {**PLAIN, "min.insync.replicas": "2"}
    assert creation(source, set(), replicas=3)["min.insync.replicas"] == "2"
    assert "min.insync.replicas" not in creation(source, set(), replicas=1)  # it could never be met


def test_a_former_copy_takes_what_is_shipped() -> None:
    served = {**PLAIN, **creation(PLAIN, set()), "message.timestamp.type": "LogAppendTime", "compression.type": "zstd"}
    assert shipping_drift(served) == {"message.timestamp.type": "CreateTime", "compression.type": "producer"}


def test_ships_are_a_tree_from_the_serving_cluster() -> None:
    check_ships("a", set())
    check_ships("a", {("a", "b"), ("b", "c"), ("a", "d")})
    for bad in (
        {("b", "a")},
        {("a", "c"), ("b", "c"), ("a", "b")},
        {("b", "c"), ("c", "b")},
        {("b", "c")},
        {("a", "b"), ("c", "d"), ("d", "c")},
    ):
        with pytest.raises(Cyclic):
            check_ships("a", bad)


def test_records_and_keys() -> None:
    record = MirrorRecord(topic="t", source="a", target="b", mode="ship", created=1.0)
    assert record.state == "running" and record.generation == 0
    assert link_key("a", "b") == "view/links/a/b" and mirror_key("b", "t", "a") == "view/mirrors/b/t/a"
    assert assignment_key("b", "t", "a", 3) == "replicator/assignments/b/t/a/3"
    assert AssignmentRecord(instance="i", worker=0, partitions=(0, 1), since=1.0).partitions == (0, 1)
    report = ReportRecord(at=1.0, partitions={0: PartitionReport(condition="copying", position=1, end=2)})
    assert report.partitions[0].end == 2


@pytest.mark.parametrize(
    ("source", "usual", "brokers", "made"),
    [(3, 1, 3, 3), (3, 1, 2, 2), (3, 3, 1, 1), (1, 3, 3, 3), (2, -1, 3, 2), (1, -1, 3, 1), (0, 1, 0, 1)],
)
def test_a_target_has_as_many_replicas_as_its_source_where_it_has_the_brokers(
    source: int, usual: int, brokers: int, made: int
) -> None:
    assert replicas_of(source, usual, brokers) == made
