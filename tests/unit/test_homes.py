"""Homes of groups and transactional ids."""

from __future__ import annotations

from metadata_service.asking import FoundGroup, FoundTransaction
from metadata_service.homes import (
    by_name,
    decide_group,
    decide_transaction,
    fix_transaction,
    forgettable,
    gone,
    review,
)
from metadata_service.models import HomeRecord
from runtime.settings import Rule
from tests.fixtures.records import placement

INDEXES = {"east": 0, "west": 1}
RULES = placement("east", Rule(groups="g", transactional_ids="t", cluster="west"))
PLAIN = placement("east")
EMPTY, LIVE = FoundGroup("g", "Empty", "classic"), FoundGroup("g", "Stable", "consumer")


def test_a_group_nobody_knows_goes_by_the_rules() -> None:
    assert decide_group("g", {}, RULES, INDEXES) == HomeRecord(name="g", cluster="west")
    assert decide_group("g", {}, PLAIN, INDEXES) == HomeRecord(name="g", cluster="east")


def test_the_home_is_where_the_group_is_whatever_the_rules_say() -> None:
    assert decide_group("g", {"east": EMPTY}, RULES, INDEXES).cluster == "east"
    assert decide_group("g", {"west": LIVE}, PLAIN, INDEXES).cluster == "west"


def test_members_count_more_than_commits() -> None:
    home = decide_group("g", {"east": EMPTY, "west": LIVE}, PLAIN, INDEXES)
    assert (home.cluster, home.conflict, home.carry) == ("west", (), ("east",))


def test_between_equals_a_rule_decides_then_the_lowest_index() -> None:
    for found in ({"east": EMPTY, "west": EMPTY}, {"west": LIVE, "east": LIVE}):
        assert decide_group("g", found, RULES, INDEXES).cluster == "west"
        assert decide_group("g", found, PLAIN, INDEXES).cluster == "east"


def test_what_an_idle_group_has_elsewhere_counts_and_a_live_one_is_a_conflict() -> None:
    idle = decide_group("g", {"east": EMPTY, "west": EMPTY}, PLAIN, INDEXES)
    assert (idle.conflict, idle.carry) == ((), ("west",))
    three = decide_group("g", {"east": LIVE, "west": LIVE, "north": EMPTY}, PLAIN, INDEXES)
    assert (three.cluster, three.conflict, three.carry) == ("east", ("west",), ("north",))
    share = FoundGroup("g", "Empty", "share")
    other = decide_group("g", {"east": EMPTY, "west": share}, PLAIN, INDEXES)
    assert (other.conflict, other.carry) == (("west",), ())


def test_a_cluster_that_does_not_answer_counts_until_it_has_said_that_it_has_nothing() -> None:
    new = decide_group("g", {}, PLAIN, INDEXES, silent=("west",))
    assert (new.cluster, new.carry, new.unasked) == ("east", (), ("west",))
    assert review(new, {"east"}, {"east"}) == new
    known = review(new, {"east", "west"}, {"east", "west"})
    assert (known.carry, known.unasked, known.conflict) == (("west",), (), ())  # it has something, which counts
    assert review(new, {"east"}, {"east", "west"}) == HomeRecord(name="g", cluster="east")


def test_what_comes_later_is_a_conflict() -> None:
    record = HomeRecord(name="g", cluster="east", carry=("west",))
    assert review(record, {"east", "north", "west"}, {"east", "north", "west"}).conflict == ("north",)


def test_a_conflict_is_reviewed_and_the_home_stays() -> None:
    record = HomeRecord(name="g", cluster="east", conflict=("north", "west"))
    assert review(record, {"west"}, {"east", "west"}) == record  # north was not asked
    assert review(record, {"west"}, {"east", "west", "north"}).conflict == ("west",)
    assert review(record, (), {"east", "west", "north"}) == HomeRecord(name="g", cluster="east")


def test_what_a_transactional_id_has_left_behind_is_no_conflict() -> None:
    record = HomeRecord(name="t", cluster="west", left=("east",))
    both = {"east", "west"}
    assert review(record, {"east"}, both) == review(record, both, both) == review(record, {"west"}, {"west"}) == record
    assert review(record, {"east", "north", "west"}, {*both, "north"}).conflict == ("north",)
    forgotten = review(record, {"west"}, both)
    assert forgotten == HomeRecord(name="t", cluster="west")
    assert review(forgotten, both, both).conflict == ("east",)
    # Forgotten at its home, it would be taken for at home where it was before.
    assert gone([record], {"east": {"t"}, "west": set()}) == []
    assert gone([forgotten], {"east": set(), "west": set()}) == ["t"]


def test_a_transactional_id_is_fixed_by_its_first_topic_only() -> None:
    home = decide_transaction("t", {}, RULES, INDEXES)
    assert (home.cluster, home.written) == ("west", False)
    fixed = fix_transaction(home, "t", "east")
    assert (fixed.cluster, fixed.written) == ("east", True)
    assert fix_transaction(fixed, "t", "west") == fixed


def test_a_transactional_id_a_cluster_knows_is_fixed_there() -> None:
    known = {"east": FoundTransaction("t", "CompleteCommit", 1), "west": FoundTransaction("t", "Ongoing", 2)}
    home = decide_transaction("t", known, PLAIN, INDEXES)
    assert (home.cluster, home.written, home.conflict) == ("west", True, ("east",))


def test_names_are_gone_only_where_their_home_has_answered() -> None:
    records = [HomeRecord(name="a", cluster="east"), HomeRecord(name="b", cluster="west")]
    assert gone(records, {"east": {"b"}}) == ["a"]


def test_lists_are_turned_round() -> None:
    assert by_name({"east": {"g": EMPTY}, "west": {"g": LIVE, "known": LIVE}}, {"known"}) == {
        "g": {"east": EMPTY, "west": LIVE}
    }


def test_homes_of_names_nobody_knows_are_forgotten_in_time_and_sooner_where_there_are_many() -> None:
    absent = {"old": 90.0, "a": 50.0, "b": 40.0, "new": 1.0}
    assert forgettable(absent, 80.0, 10.0, 100) == ["old"]
    assert forgettable(absent, 80.0, 10.0, 2) == ["old", "a"]
    assert forgettable(absent, 80.0, 10.0, 0) == ["old", "a", "b"]
    assert forgettable({}, 80.0, 10.0, 0) == []
