"""Where new names go."""

from __future__ import annotations

import pytest

from metadata_service.models import HomeRecord
from metadata_service.placement import drift, place_home, place_topic, standbys_at
from runtime.settings import Rule
from tests.fixtures.records import placement, topic

RULES = placement(
    "east",
    Rule(topics="orders.*|.*-two", cluster="west", standbys=("east", "west")),
    Rule(topics=".*", groups="billing", cluster="north"),
    Rule(transactional_ids="pay-.*", cluster="west"),
    standbys=("west", "east"),
)


@pytest.mark.parametrize(
    ("name", "cluster", "explicit"),
    [
        ("orders", "west", True),
        ("orders-eu", "west", True),
        ("my-orders", "north", True),  # the whole name must match
        ("a-two", "west", True),
        ("a-two-b", "north", True),
        ("__consumer_offsets", "east", False),
        ("__kfed_tables", "east", False),
    ],
)
def test_the_first_rule_that_matches_the_whole_name_decides(name: str, cluster: str, explicit: bool) -> None:
    place = place_topic(RULES, name)
    assert (place.cluster, place.explicit) == (cluster, explicit)


def test_a_cluster_is_no_standby_of_itself() -> None:
    assert place_topic(RULES, "orders").standbys == ("east",)
    assert place_topic(placement("east", standbys=("east", "west")), "x").standbys == ("west",)


def test_standbys_of_a_topic_that_lives_elsewhere_than_the_rules_say() -> None:
    assert standbys_at(RULES, "orders", "east") == ("west",)
    # The standbys at the top are for what falls to the default, and lives there.
    assert standbys_at(placement("east", standbys=("west",)), "x", "north") == ()


def test_a_rule_places_only_what_it_has_a_pattern_for() -> None:
    assert place_home(RULES, "groups", "billing") == ("north", True)
    assert place_home(RULES, "groups", "orders") == ("east", False)
    assert place_home(RULES, "transactional_ids", "pay-1") == ("west", True)
    assert place_home(RULES, "transactional_ids", "billing") == ("east", False)


def test_drift_names_what_explicit_rules_would_place_elsewhere() -> None:
    rules = placement("east", Rule(topics="a", groups="g", transactional_ids="t", cluster="west"))
    found = drift(
        rules,
        [topic("a", "east", 1), topic("b", "west", 2), topic("__consumer_offsets", "west", 3)],
        [HomeRecord(name="g", cluster="east"), HomeRecord(name="h", cluster="west")],
        [HomeRecord(name="t", cluster="east", written=False)],  # not fixed: nothing to drift
    )
    assert [(one.kind, one.name, one.what, one.wanted) for one in found] == [
        ("topic", "a", "east", "west"),
        ("group", "g", "east", "west"),
    ]
