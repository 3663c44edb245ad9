"""What is seen of mirrors, and what the doctor says of them."""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import Any, cast

import pytest

from admin import mirrored
from cli import arguments, tables
from metadata_service import models, status
from metadata_service.mirrorkeeping import missing_standbys
from metadata_service.models import AssignmentRecord, LinkRecord, MirrorRecord, PartitionReport, ReportRecord
from metadata_service.records import encode
from metadata_service.status import Facts
from metadata_service.view import View
from metadata_service.view_builder import build
from replicator.sharing import units_of
from replicator.states import STOPPED, Condition
from tests.fixtures.records import cluster, physical, snapshot, topic

KEY = "west/orders/east"


def part(condition: str, position: int = 5, end: int = 5, **more: object) -> PartitionReport:
    return PartitionReport(condition=condition, position=position, end=end, **more)  # type: ignore[arg-type]


def facts(
    *parts: PartitionReport, held: bool = True, link: str = "running", partitions: int = 2, **more: object
) -> Facts:
    """orders from east to west, copied by worker 0 of a, as `parts` say."""
    mirror = MirrorRecord(
        topic="orders",
        source="east",
        target="west",
        mode="ship",
        created=100.0,
        target_id="ab",
        **more,  # type: ignore[arg-type]
    )
    records: dict[str, bytes | None] = {
        models.CLUSTERS + "east": encode(cluster("east", 0)),
        models.CLUSTERS + "west": encode(cluster("west", 1)),
        models.topic_key("orders"): encode(topic("orders", "east", 1, partitions)),
        models.mirror_key("west", "orders", "east"): encode(mirror),
        models.link_key("east", "west"): encode(LinkRecord(source="east", target="west", state=link)),  # type: ignore[arg-type]
    }
    looks = {"east": snapshot([physical("orders", 1, partitions)]), "west": snapshot()}
    report = ReportRecord(at=1.0, partitions=dict(enumerate(parts)), rate=1500.0)
    return Facts(
        build(View(), records, looks, 1),
        assignments={f"{KEY}/0": AssignmentRecord(instance="a", worker=0, partitions=(0, 1), since=1.0)}
        if held
        else {},
        reports={f"a/0/{KEY}": report} if parts else {},
    )


def line(given: Facts) -> dict[str, Any]:
    [found] = cast(list[dict[str, Any]], mirrored.document(given)["mirrors"])
    return found


def test_a_mirror_with_its_lag() -> None:
    given = facts(part("copying", 5, 25, lag_bytes=2000, lag_seconds=1.5), part("caught_up", lag_bytes=0))
    found = line(given)
    assert found["lag"] == {"records": 20, "bytes": 2000, "seconds": 1.5}
    assert (found["condition"], found["workers"], found["units"]) == ("copying", ["a/0"], {"0": "a/0"})
    assert found["waiting"] is None and [one["partition"] for one in found["partitions"]] == [0, 1]
    told = status.status(given)["mirrors"]
    assert told == {"count": 1, "lag": 20, "lag_seconds": 1.5}
    assert mirrored.findings(given, 1000.0) == []
    assert mirrored.document(given, "other") == {"mirrors": []}


@pytest.mark.parametrize(
    ("given", "condition", "waiting"),
    [
        (facts(held=False), "unassigned", "no replicator worker"),
        (facts(part("caught_up")), "caught_up", "starting"),  # one of two partitions
        (facts(part("starting"), part("copying")), "starting", "starting"),
        (facts(part("copying"), part("corrupt", detail="batch at 7")), "corrupt", "stopped: partition 1 is corrupt"),
        (facts(part("copying"), link="paused"), "paused", None),
        (facts(part("copying"), state="removing"), "removing", None),
    ],
)
def test_one_word_for_a_mirror(given: Facts, condition: str, waiting: str | None) -> None:
    found = line(given)
    assert found["condition"] == condition
    assert (waiting in found["waiting"]) if waiting else found["waiting"] is None


@pytest.mark.parametrize("word", sorted(STOPPED))
def test_every_stop_is_found_with_a_way_out(word: Condition) -> None:
    given = facts(part("copying"), part(word, detail="why"), part(word, detail="why"), partitions=3)
    [found] = mirrored.findings(given, 1000.0)
    assert (found.severity, found.subject) == ("error", "orders east -> west")
    assert f"partitions 1, 2 are {word}: why" in found.what
    for piece in found.mend.split("; "):
        if piece.startswith("kfed "):
            arguments.parse(shlex.split(piece)[1:])


def test_what_else_is_found() -> None:
    given = facts(part("copying", foreign=3), part("copying", overtaken=9))
    kinds = {one.kind: one for one in mirrored.findings(given, 1000.0)}
    assert "3 records" in kinds["foreign writes"].what and "9 offsets" in kinds["overtaken"].what
    assert "nobody copies" in mirrored.findings(facts(held=False), 1000.0)[0].what
    assert mirrored.findings(facts(held=False), 101.0) == []  # it was only just made
    report = ReportRecord(at=1.0, partitions={0: part("caught_up")}, problems=("retention.ms is 1, needs 2: why",))
    drifted = replace(facts(part("caught_up")), reports={f"a/0/{KEY}": report})
    assert "on west retention.ms is 1" in mirrored.findings(drifted, 1000.0)[0].what
    removing = mirrored.findings(facts(state="removing"), 1000.0)
    assert [one.severity for one in removing] == ["note"]


def test_tables_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    given = facts(part("copying", 5, 25, lag_bytes=2_000_000), part("caught_up"))
    tables.show("mirrors", mirrored.document(given), one=False)
    out = capsys.readouterr().out
    assert "east -> west" in out and "2.0 MB" in out and "1.5 KB/s" in out and "a/0" in out
    tables.show("mirrors", mirrored.document(given, "orders"), one=True)
    assert "PARTITION" in capsys.readouterr().out


# -- standbys and units, from the same records ------------------------------------------------------------------------


def test_standbys_that_are_missing() -> None:
    seen = facts(part("copying")).view
    record = topic("orders", "east", 1, standbys=("west",))
    assert missing_standbys(seen, record) == []  # it has one
    other = topic("clicks", "east", 2, standbys=("west", "nowhere"))
    assert missing_standbys(seen, other) == ["west"]
    assert missing_standbys(seen, topic("clicks", "east", 2, standbys=("west",), conflict=("west",))) == []
    strangers = build(seen, {}, {"west": snapshot([physical("clicks", 9)])}, 2)
    assert missing_standbys(strangers, other) == []


def test_units_are_wanted_of_what_runs() -> None:
    def count(given: Facts, known: int = 0) -> int:
        return len(units_of(given.view, lambda _: known))

    assert count(facts(partitions=70)) == 3
    assert count(facts(partitions=2), known=33) == 2  # the source does not show them all at the moment
    assert count(facts(link="paused")) == count(facts(state="removing")) == count(facts(state="paused")) == 0
    wanted = list(units_of(facts(partitions=33).view, lambda _: 0).values())
    assert [one.partitions for one in wanted] == [tuple(range(32)), (32,)]


def test_a_plan_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    mirrors: list[dict[str, Any]] = [
        {
            "topic": f"t{number}",
            "source": "east",
            "target": "west",
            "mode": "ship",
            "partitions": 3,
            "target_topic": "reopen",
            "expand_to": None,
            "configuration": {"retention.ms": "5"},
            "notes": [],
        }
        for number in range(5)
    ]
    links = [{"source": "east", "target": "west", "rate": {"from": 0.0, "to": 5_000_000.0}}]
    plan: dict[str, Any] = {"mirrors": mirrors, "links": links, "problems": [], "applied": False}
    tables.mirror_plan(plan)
    out = capsys.readouterr().out
    assert "a closed stand-in, is opened" in out and "no limit becomes 5.0 MB/s" in out
    assert "t0 on west, t1 on west, t2 on west and 2 more" in out and out.count("retention.ms") == 1
    assert out.endswith("do it with --apply.\n")
    tables.mirror_plan({**plan, "applied": True, "waiting": {"t0 east -> west": "it is starting"}})
    assert "- t0 east -> west: it is starting" in capsys.readouterr().out
    tables.mirror_plan({**plan, "problems": ["no"]})
    assert "Nothing is done" in capsys.readouterr().out
