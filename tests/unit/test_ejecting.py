"""A topic leaves the federation, step by step."""

from __future__ import annotations

from dataclasses import replace

import pytest

from metadata_service.adoption import topics_to_consider
from metadata_service.models import EjectedRecord
from metadata_service.operations.ejecting import BUDGETS, Advance, Facts, advance
from tests.fixtures.calls import served, uuid, view_of


def test_it_leaves_waits_writes_and_is_done() -> None:
    assert advance("leave", Facts(True, False), 0.0) == Advance("leave", "wait")
    assert advance("wait", Facts(False, True, behind=("a",)), 0.0) == Advance()
    assert advance("wait", Facts(False, True), 0.0) == Advance("finish", "commits")
    assert advance("commits", Facts(False, True), 0.0) == Advance("write")
    assert advance("commits", Facts(False, True, written=True), 0.0) == Advance("finish", "done")


@pytest.mark.parametrize(
    ("step", "facts"), [("wait", Facts(False, True, behind=("a",))), ("commits", Facts(False, True))]
)
def test_what_takes_too_long_comes_back(step: str, facts: Facts) -> None:
    found = advance(step, facts, BUDGETS[step] + 1)
    assert (found.does, found.step) == ("restore", "failed") and found.reason


def test_who_finds_it_changed_leaves_it_alone() -> None:
    assert advance("leave", Facts(False, False), 0.0).step == "failed"
    for step in ("wait", "commits"):
        found = advance(step, Facts(True, False), 0.0)
        assert (found.does, found.step) == ("finish", "failed")


def test_the_very_topic_is_not_adopted_again() -> None:
    """Another one of its name is."""
    mark = EjectedRecord(topic="orders", cluster="east", topic_id=uuid(11).hex(), operation="o", at=0.0, by="me")
    for topic_id, wanted in ((11, set()), (77, {"orders"})):
        served_there = [served("orders", "east", topic_id, topic_id)]
        there = view_of([served("bills", "west", 102, 12), *served_there], ejected={("east", "orders"): mark})
        view = replace(there, topics={name: one for name, one in there.topics.items() if name != "orders"})
        assert topics_to_consider(view) == wanted
