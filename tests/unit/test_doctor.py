"""What the doctor finds, and the documents beside it."""

from __future__ import annotations

import dataclasses
import json
import shlex

import msgspec
import pytest

from cli import arguments
from metadata_service import doctor, models, status
from metadata_service.models import (
    AddressBook,
    AuditRecord,
    ControllerRecord,
    GroupUse,
    HealthRecord,
    HomeRecord,
    InventoryRecord,
    LeaseRecord,
    OperationRecord,
    PlacementRecord,
    StubRecord,
    WorkerRecord,
)
from metadata_service.records import encode
from metadata_service.seeding import Difference
from metadata_service.status import Facts
from metadata_service.view import ServedTopic, View
from metadata_service.view_builder import build
from runtime.settings import Rule
from tests.fixtures.records import cluster, physical, placement, snapshot, topic, topic_id

WORKER = WorkerRecord(instance="a", worker=0, role="proxy", pid=7, host="h", started=1.0, version="1")
RULES = placement("east", Rule(topics="drifted", cluster="west"))


def _facts() -> Facts:
    records: dict[str, bytes | None] = {
        models.CLUSTERS + "east": encode(cluster("east", 0)),
        models.CLUSTERS + "west": encode(cluster("west", 1)),
        models.CLUSTERS + "old": encode(cluster("old", 2, state="removed")),
        models.PLACEMENT: encode(PlacementRecord(placement=RULES)),
        models.ADDRESSES + "main": encode(AddressBook(ports={"east/1": 9301})),
        models.topic_key("clash"): encode(topic("clash", "east", 1, conflict=("west",))),
        models.topic_key("drifted"): encode(topic("drifted", "east", 2)),
        models.topic_key("left"): encode(topic("left", "old", 3)),
        models.topic_key("gone"): encode(topic("gone", "east", 4)),
        models.topic_key("replaced"): encode(topic("replaced", "east", 5, before=("west",))),
        models.stub_key("west", "clash"): encode(
            StubRecord(topic="clash", cluster="west", topic_id=topic_id(9), partitions=3, borrowed=True)
        ),
        models.GROUP_HOMES + "g": encode(HomeRecord(name="g", cluster="east", conflict=("west",))),
        models.OPERATIONS + "op": encode(
            OperationRecord(id="op", kind="migrate", state="paused", step="ship", started=1.0, by="me")
        ),
    }
    looks = {
        "east": snapshot([physical("clash", 1), physical("drifted", 2), physical("replaced", 55)]),
        "west": snapshot([], brokers=(11,), reachable=False),
    }
    return Facts(
        view=build(View(), records, looks, 5),
        age=0.1,
        store="here",
        health={
            "east": HealthRecord(state="up", since=1.0, brokers=(1,), unreachable={1: "no"}, too_large=(100_000,)),
            "west": HealthRecord(state="away", since=1.0, reason="refused by 127.0.0.1", brokers=(11,)),
        },
        audits={
            "east": AuditRecord(at=1.0, direct_groups={"h": ("10.0.0.9",)}, host_acls=("User:a on t from 10.0.0.9",))
        },
        workers={"a/proxy-0": WORKER, "a/proxy-1": msgspec.structs.replace(WORKER, worker=1)},
        leases={"a/proxy-0": LeaseRecord(acknowledged=3, connections=4)},
        inventory={
            "drifted": InventoryRecord(
                at=1.0,
                groups={"g": GroupUse(lag=5, partitions=1, state="Stable", kind="consumer")},
                producers=2,
                direct=1,
            )
        },
        controller=ControllerRecord(instance="a", pid=1, host="h", since=1.0),
    )


KINDS = [
    ("error", "cluster away", "west"),
    ("error", "broker id", "east/100000"),
    ("warning", "broker away", "east/1"),
    ("error", "removed cluster", "old"),
    ("error", "ports exhausted", "main"),
    ("warning", "topic conflict", "clash"),
    ("note", "topic missing", "gone"),
    ("error", "topic replaced", "replaced"),
    ("note", "borrowed stand-in", "clash"),
    ("error", "stand-in", "clash"),
    ("warning", "group conflict", "g"),
    ("note", "placement drift", "drifted"),
    ("warning", "bypassing", "h"),
    ("warning", "bypassing", "drifted"),
    ("warning", "acl host", "east"),
    ("warning", "process", "a/proxy-1"),
    ("warning", "operation", "op"),
    ("note", "configuration", "placement"),
]


def test_everything_that_is_wrong_is_found_and_nothing_else() -> None:
    found = doctor.findings(_facts(), [Difference("placement", "change", {}, {})])
    assert sorted((one.severity, one.kind, one.subject) for one in found) == sorted(KINDS)
    assert all(one.mend and one.what for one in found)
    assert [one.severity for one in found] == sorted(
        (one.severity for one in found), key=["error", "warning", "note"].index
    )


def test_every_command_is_one_of_this_release() -> None:
    facts = _facts()
    odd = HomeRecord(name="-- it's; odd", cluster="east", conflict=("west",))
    view = dataclasses.replace(facts.view, groups={**facts.view.groups, odd.name: odd})
    moved = topic("lost", "east", 7, before=("west",))
    served = ServedTopic("lost", bytes(16), "east", bytes(16), False, moved)
    view = dataclasses.replace(view, topics={**view.topics, "lost": served})
    found = doctor.findings(dataclasses.replace(facts, view=view), [Difference("placement", "change", {}, {})])
    found += doctor.findings(Facts(view=View()))
    commands = [part for one in found for part in one.mend.split("; ") if part.startswith("kfed ")]
    odd_ones = [one.mend for one in found if one.subject == odd.name]
    commands = [one for one in commands if "odd" not in one and "it'" not in one] + odd_ones
    assert len(commands) >= 6
    for command in commands:
        options = arguments.parse(shlex.split(command)[1:])  # exits where it is wrong
        if "--home" in command:
            assert options.home == "east"
            assert options.name in ("g", odd.name)
    # Nor in passing, between other words.
    assert sum(one.mend.count("kfed ") for one in found) == len(commands)


def test_a_federation_that_is_well_has_no_findings() -> None:
    records: dict[str, bytes | None] = {
        models.CLUSTERS + "east": encode(cluster("east", 0)),
        models.PLACEMENT: encode(PlacementRecord(placement=placement("east"))),
        models.ADDRESSES + "main": encode(AddressBook(ports={"east/1": 9301})),
        models.topic_key("t"): encode(topic("t", "east", 1)),
    }
    facts = Facts(
        view=build(View(), records, {"east": snapshot([physical("t", 1)])}, 1),
        age=0.0,
        health={"east": HealthRecord(state="up", since=1.0, brokers=(1,))},
        controller=ControllerRecord(instance="a", pid=1, host="h", since=1.0),
    )
    assert doctor.findings(facts) == []


def test_the_store_and_the_controller_being_away_is_found() -> None:
    found = doctor.findings(Facts(view=View()))
    assert {one.kind for one in found} == {"store", "controller"}


def test_many_findings_of_a_kind_are_counted() -> None:
    records: dict[str, bytes | None] = {
        models.GROUP_HOMES + f"g{n:04}": encode(HomeRecord(name=f"g{n:04}", cluster="east", conflict=("west",)))
        for n in range(500)
    }
    records[models.CLUSTERS + "east"] = encode(cluster("east", 0))
    found = doctor.findings(Facts(view=build(View(), records, {}, 1)))
    groups = [one for one in found if one.kind == "group conflict"]
    assert len(groups) == doctor.SHOWN + 1
    assert any("300 more" in one.what for one in groups)


def test_documents_are_json_and_say_what_is_known() -> None:
    facts = _facts()
    findings = [one.document() for one in doctor.findings(facts)]
    made = {
        "status": status.status(facts, findings),
        "clusters": status.clusters(facts),
        "topics": status.topics(facts),
        "topic": status.topic(facts, "drifted"),
        "groups": status.groups(facts),
        "group": status.group(facts, "g"),
        "proxies": status.proxies(facts),
        "operations": status.operations(facts),
        "operation": status.operation(facts, "op"),
    }
    made = json.loads(json.dumps(made))
    assert made["proxies"]["proxies"][0] | {"host": "h"} == {
        "instance": "a", "worker": 0, "pid": 7, "host": "h", "version": "1", "started": 1.0,
        "alive": True, "acknowledged": 3, "behind": 2, "connections": 4,
    }  # fmt: skip
    assert made["proxies"]["proxies"][1]["alive"] is False
    assert made["status"]["proxies"] == 1
    assert made["status"]["findings"]["error"] == sum(one["severity"] == "error" for one in findings)
    assert [one["state"] for one in made["clusters"]["clusters"]] == ["up", "away", "removed"]
    assert made["clusters"]["clusters"][1]["brokers"][0]["node"] == 100_011
    assert made["topic"]["groups_lag"]["g"]["lag"] == 5
    assert made["groups"]["groups"][0]["lag"] == 5
    assert made["topic"]["partition_details"][0]["leader"] == 1


@pytest.mark.parametrize("what", [status.topic, status.group, status.operation])
def test_unknown_names_have_no_document(what: object) -> None:
    assert callable(what)
    assert what(_facts(), "nobody") is None
