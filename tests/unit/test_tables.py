"""Documents as tables: every one the admin API makes can be shown, narrow or wide, and nothing steers the terminal."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Mapping
from typing import Any

import pytest

from cli import output, tables
from metadata_service import doctor, models, seeding, status
from metadata_service.models import (
    AddressBook,
    ControllerRecord,
    GroupUse,
    HealthRecord,
    HomeRecord,
    InventoryRecord,
    LeaseRecord,
    OperationRecord,
    PlacementRecord,
    WorkerRecord,
)
from metadata_service.records import encode
from metadata_service.status import Facts
from metadata_service.view import View
from metadata_service.view_builder import build
from tests.fixtures.records import cluster, physical, placement, snapshot, topic

WORKER = WorkerRecord(instance="a", worker=0, role="proxy", pid=7, host="h", started=1.0, version="1")
CONTROLLER = ControllerRecord(instance="a", pid=7, host="h", since=1.0)
OPERATION = OperationRecord(
    id="op", kind="migrate", state="running", step="ship", started=1.0, by="me", plan={"a": [1]}
)


def facts() -> Facts:
    records: dict[str, bytes | None] = {
        models.CLUSTERS + "east": encode(cluster("east", 0)),
        models.CLUSTERS + "west": encode(cluster("west", 1)),
        models.PLACEMENT: encode(PlacementRecord(placement=placement("east"))),
        models.ADDRESSES + "main": encode(AddressBook(ports={"east/1": 9301})),
        models.topic_key("orders"): encode(topic("orders", "east", 1, conflict=("west",))),
        models.GROUP_HOMES + "g\x1b[31m": encode(HomeRecord(name="g\x1b[31m", cluster="east")),
        models.OPERATIONS + "op": encode(OPERATION),
    }
    use = InventoryRecord(at=1.0, groups={"g\x1b[31m": GroupUse(lag=-1, partitions=3)}, producers=2)
    return Facts(
        view=build(View(), records, {"east": snapshot([physical("orders", 1)])}, 5),
        age=0.1,
        store="here",
        health={"east": HealthRecord(state="up", since=1.0, brokers=(1,))},
        workers={"a/proxy-0": WORKER},
        leases={"a/proxy-0": LeaseRecord(acknowledged=3, connections=4)},
        inventory={"orders": use},
        controller=CONTROLLER,
    )


def documents() -> list[tuple[str, bool, Mapping[str, Any] | None]]:
    """Command, whether it is of one thing, and the document."""
    some, none = facts(), Facts(View())
    made: list[tuple[str, bool, Mapping[str, Any] | None]] = []
    for one in (some, none):
        made += [
            ("status", False, status.status(one, [finding.document() for finding in doctor.findings(one)])),
            ("clusters", False, status.clusters(one)),
            ("topics", False, status.topics(one)),
            ("groups", False, status.groups(one)),
            ("proxies", False, status.proxies(one)),
            ("operations", False, status.operations(one)),
            ("doctor", False, doctor.document(doctor.findings(one))),
            ("history", False, {"history": []}),
        ]
    return [
        *made,
        ("topics", True, status.topic(some, "orders")),
        ("groups", True, status.group(some, "g\x1b[31m")),
        ("operations", True, status.operation(some, "op")),
        ("history", False, {"history": [{"at": 1.0, "by": "ada", "what": "config apply", "result": {"a": 1}}]}),
    ]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("columns", [None, 40, 200])
@pytest.mark.parametrize("number", range(len(documents())))
def test_every_document_can_be_shown(number: int, columns: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    command, one, document = documents()[number]
    assert document is not None
    stream = io.StringIO() if columns is None else Terminal()
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setenv("COLUMNS", str(columns or 80))
    monkeypatch.setenv("TERM", "xterm")
    tables.show(command, json.loads(json.dumps(document)), one=one)
    shown = stream.getvalue()
    assert shown.strip()
    assert "\x1b[31m" not in shown
    if columns is not None:
        # Names and values below each other are not a table, and may be longer.
        lines = [re.sub(r"\x1b\[\d+m", "", line) for line in shown.splitlines()]
        assert max(len(line) for line in lines) <= max(columns, 60)


def test_plain_tables_align_and_leave_out_what_is_empty(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"name": "a", "lag": 5, "none": None}, {"name": "long name", "lag": 12345, "none": []}]
    output.table((("name", "name"), ("lag", "lag"), ("nothing", "none")), rows)
    assert capsys.readouterr().out == "NAME         LAG\na              5\nlong name  12345\n"


def test_a_plan_shows_what_differs(capsys: pytest.CaptureFixture[str]) -> None:
    before = {"default": "east", "rules": [{"cluster": "west", "topics": "a.*", "groups": None}]}
    after = {"default": "west", "rules": [{"cluster": "west", "topics": "b.*", "groups": None}, {"cluster": "east"}]}
    differences = [
        seeding.Difference("placement", "change", before, after),
        seeding.Difference("clusters.north", "add", None, {"bootstrap": ["n:1"], "tls": None}),
    ]
    tables.changes(status.config_diff(differences, 1))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1:] == [
        ["placement.default", "change", "east", "west"],
        ["placement.rules[0].topics", "change", "a.*", "b.*"],
        ["placement.rules[1]", "change", "-", "cluster=east"],
        ["clusters.north", "add", "-", "bootstrap=n:1"],
    ]
