"""The file and the store."""

from __future__ import annotations

import base64

from metadata_service.models import ClusterRecord, PlacementRecord
from metadata_service.seeding import differences, new_cluster_id
from runtime.settings import parse

TEXT = """
federation: demo
store: {kind: embedded, path: state}
clusters:
  east: {bootstrap: ["a:1"]}
  west: {bootstrap: ["b:1"], sasl: {mechanism: PLAIN, username: u, password: hush}}
placement: {default: east}
"""


def test_file_and_store_are_compared_key_by_key() -> None:
    wanted = parse(TEXT)
    other = parse(TEXT.replace("a:1", "a:2").replace("default: east", "default: west"))
    stored = {
        "east": ClusterRecord(name="east", index=0, settings=other.clusters["east"]),
        "north": ClusterRecord(name="north", index=1, settings=other.clusters["east"]),
        "south": ClusterRecord(name="south", index=2, settings=other.clusters["east"], state="removed"),
    }
    found = differences(wanted, stored, PlacementRecord(placement=other.placement))
    assert [(one.key, one.change) for one in found] == [
        ("clusters.east", "change"),
        ("clusters.west", "add"),
        ("clusters.north", "remove"),
        ("placement", "change"),
    ]
    assert "hush" not in repr(found)


def test_nothing_differs_from_itself() -> None:
    wanted = parse(TEXT)
    stored = {
        name: ClusterRecord(name=name, index=n, settings=one) for n, (name, one) in enumerate(wanted.clusters.items())
    }
    assert differences(wanted, stored, PlacementRecord(placement=wanted.placement)) == []


def test_the_logical_cluster_id_has_kafkas_form() -> None:
    made = {new_cluster_id() for _ in range(50)}
    assert len(made) == 50
    assert all(len(one) == 22 and len(base64.urlsafe_b64decode(one + "==")) == 16 for one in made)
