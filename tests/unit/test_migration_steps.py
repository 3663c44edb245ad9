"""Single decisions of a migration that the model of the world does not reach: transactions, dead workers, its ends."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from metadata_service.models import PlacementEpoch, TopicRecord
from metadata_service.operations import migration
from metadata_service.operations.commands import AskTransactions, Decision, EndTransactions, Reopen, SetFinal
from metadata_service.operations.facts import Copy, Ends, Facts, Known, Worker
from metadata_service.operations.migration import advance
from metadata_service.operations.records import HoldReport, MigrationRecord, Moving, Options, face

OWN = {"max.message.bytes": "1000", "compression.type": "producer"}
OTHER = PlacementEpoch(cluster="east", topic_id="9" * 32)  # created anew
CLOSED = {"max.message.bytes": "78", "compression.type": "gzip"}


def record(**more: Any) -> MigrationRecord:
    base: dict[str, Any] = {
        "id": "m1",
        "topics": {"orders": Moving(source_id="e" * 32, target_id="f" * 32, partitions=1)},
        "source": "east",
        "target": "west",
        "attempt": 1,
    }
    return MigrationRecord(**{**base, **more})


def topic(**more: Any) -> TopicRecord:
    epoch = PlacementEpoch(cluster="east", topic_id="e" * 32)
    base: dict[str, Any] = {"name": "orders", "id": "e" * 32, "timeline": (epoch,), "partitions": 1}
    return TopicRecord(**{**base, **more})


def worker(name: str = "a", fresh: bool = True, acknowledged: int = 9, **more: Any) -> Worker:
    report = HoldReport(**{"attempt": 1, "revision": 9, "drained": True, "ready": True, **more})
    return Worker(name, fresh, acknowledged, report if fresh else None)


def facts(**more: Any) -> Facts:
    base: dict[str, Any] = {
        "me": "me",
        "revision": 9,
        "entered": 100.0,
        "held_since": 100.0,
        "workers": (worker(),),
        "registered": frozenset({"me", "a"}),
        "topics": {"orders": Known(topic(), 5)},
        "copies": {"orders": Copy(True, True, 0, {0: 7})},
        "settings": {"orders": OWN},
        "transactions": frozenset(),
    }
    return Facts(**{**base, **more})


def step(one: MigrationRecord, seen: Facts, now: float = 100.1) -> tuple[str, str, str]:
    """(step, hold, why it ends) after the decision; as they were where nothing is recorded."""
    commit = advance(one, seen, now).commit
    after = one if commit is None else commit.record
    return after.step, after.hold, after.ending


def test_transactions_are_drained() -> None:
    draining = record(step="drain", hold="draining", options=Options(drain_wait=60.0))
    ask = AskTransactions("east", ("orders",))
    assert advance(draining, facts(transactions=None), 100.1).commands == (ask,)
    assert advance(draining, facts(transactions=frozenset({"t"})), 159.0).commands == (ask,)
    assert step(draining, facts(transactions=frozenset({"t"})), 160.0) == ("lift", "lifted", "")
    assert step(draining, facts(), 100.1) == ("hold", "held", "")
    aborting = msgspec.structs.replace(draining, options=Options(drain_wait=60.0, abort_transactions=True))
    found = advance(aborting, facts(transactions=frozenset({"t"})), 161.0)
    assert found.commands == (EndTransactions("east", ("t",)), ask)
    assert step(aborting, facts(transactions=frozenset({"t"})), 220.0) == ("lift", "lifted", "")
    # One that came in between is seen when the log has settled, and nothing goes on with it.
    settling = record(step="settle", hold="held", closing=True, saved={"orders": OWN}, reopeners=("me",))
    ends = {("orders", 0): Ends(7, 7, 7, 7, 2)}
    assert step(settling, facts(ends=ends, transactions=frozenset({"t"}))) == ("settle", "held", "")
    assert step(settling, facts(ends=ends, transactions=None)) == ("settle", "held", "")
    assert step(settling, facts(ends=ends)) == ("finish", "held", "")
    for open_end in (Ends(8, 7, 7, 8, 2), Ends(7, 7, 6, 7, 2), Ends(7, 7, 7, 7, 1)):
        assert step(settling, facts(ends={("orders", 0): open_end})) == ("settle", "held", "")


def test_dead_workers_need_a_statement() -> None:
    resting = record(step="caught_up", attempt=0)
    dead = (worker(), worker("b", fresh=False, acknowledged=0))
    assert "without a lease: b" in advance(resting, facts(workers=dead), 101.1).waits
    forced = msgspec.structs.replace(resting, forced=("b",))
    assert step(forced, facts(workers=dead), 101.1) == ("drain", "draining", "")
    named = msgspec.structs.replace(resting, reopeners=("b",))
    seen = facts(registered=frozenset({"me", "a", "b"}))
    assert "nothing on its way: b" in advance(named, seen, 101.1).waits
    assert step(named, facts(), 101.1) == ("drain", "draining", "")  # its registration was removed
    assert "nothing on its way: b" in advance(resting, but(seen, others=frozenset({"b"})), 101.1).waits
    leaving = record(step="redirect", hold="announced", switched_at=9)
    assert "left east: b" in advance(leaving, facts(workers=dead), 200.0).waits
    assert step(msgspec.structs.replace(leaving, forced=("b",)), facts(workers=dead), 200.0)[0] == "retire"


def test_settings_that_need_not_be_there_at_once() -> None:
    """What clients wait for is the target's settings that change what they write, not those that would refuse more."""
    final = {"message.timestamp.type": "CreateTime", "message.timestamp.after.max.ms": "3600000"}
    moving = {"orders": msgspec.structs.replace(record().topics["orders"], final=final)}
    finishing = record(step="finish", hold="held", topics=moving, ends={"orders": {0: 5}}, reopeners=("me",))
    copied = facts(copies={"orders": Copy(True, True, 0, {0: 5}, finished=True)}, final_set=frozenset())
    found = [one for one in advance(finishing, copied, 100.1).commands if isinstance(one, SetFinal)]
    assert found == [SetFinal("orders", "west", {"message.timestamp.type": "CreateTime"})]
    leaving = record(step="redirect", hold="announced", topics=moving, switched_at=1)
    found = [one for one in advance(leaving, copied, 200.0).commands if isinstance(one, SetFinal)]
    assert found == [SetFinal("orders", "west", {"message.timestamp.after.max.ms": "3600000"})]
    assert step(leaving, but(copied, final_set=frozenset({"orders"})), 200.0)[0] == "retire"


def but(seen: Facts, **more: Any) -> Facts:
    return replace(seen, **more)


@pytest.mark.parametrize(
    ("seen", "ending"),
    [
        (facts(topics={"orders": Known(topic(partitions=2), 5)}), ""),
        (facts(topics={}), "failed"),
        (facts(topics={"orders": Known(topic(timeline=(OTHER,)), 5)}), "failed"),
        (facts(copies={"orders": Copy(True, True, 0, {}, stopped="truncated")}), "failed"),
    ],
)
def test_what_lifts_a_hold(seen: Facts, ending: str) -> None:
    for name in ("hold", "close", "settle", "finish"):
        held = record(step=name, hold="held", closing=name != "hold", saved={"orders": OWN})
        commit = advance(held, seen, 100.1).commit
        assert commit is not None and commit.kind == "lift"
        assert (commit.record.hold, commit.record.ending) == ("lifted", ending)
        assert commit.record.reopeners == (() if name == "hold" else ("me",))


def test_the_budget_and_its_end() -> None:
    held = record(step="settle", hold="held", closing=True, saved={"orders": OWN}, reopeners=("me",))
    assert step(held, facts(), 102.9) == ("settle", "held", "")
    lifted = advance(held, facts(), 103.0).commit
    assert lifted is not None and lifted.record.hold == "lifted"
    again = advance(lifted.record, facts(), 103.1)
    assert again.commands[0] == Reopen("orders", "east", OWN)
    shut = facts(probes={("orders", 0): "closed"})
    assert advance(lifted.record, shut, 103.1).commit is None
    done = facts(probes={("orders", 0): "open"})
    late = advance(lifted.record, but(done, pending=True), 103.1).commit  # writes do not wait for a lost answer
    assert late is not None and (late.record.hold, late.record.reopeners) == ("open", ("me",))
    opened = advance(lifted.record, done, 103.1).commit
    assert opened is not None
    assert (opened.record.hold, opened.record.reopeners, opened.record.closing) == ("open", (), False)
    resting = advance(opened.record, facts(), 103.2).commit
    assert resting is not None and resting.record.step == "caught_up"
    waiting = msgspec.structs.replace(resting.record, options=Options(retry_pause=5.0))
    assert "another attempt" in advance(waiting, facts(), 104.9).waits
    assert "on its way" in advance(waiting, but(facts(), pending=True), 105.0).waits
    assert step(waiting, facts(), 105.0) == ("drain", "draining", "")
    tired = msgspec.structs.replace(waiting, attempt=5)
    assert step(tired, facts(), 500.0) == ("lift", "open", "failed")


def test_a_closed_topics_settings_are_never_saved() -> None:
    held = record(step="hold", hold="held")
    shut = facts(settings={"orders": CLOSED})
    assert step(held, shut) == ("lift", "lifted", "failed")  # closed by somebody else: what it had is not known
    before = msgspec.structs.replace(held, saved={"orders": OWN})
    commit = advance(before, shut, 100.1).commit
    assert commit is not None and commit.record.step == "close" and commit.record.saved == {"orders": OWN}
    # At rest a closed source is one that a late close has come through to.
    late = advance(msgspec.structs.replace(before, step="caught_up", hold="open"), shut, 100.1).commit
    assert late is not None and (late.record.hold, late.record.reopeners) == ("lifted", ("me",))
    ended = record(step="aborted", saved={"orders": OWN})
    named = migration.stray(ended, shut).commit
    assert named is not None and named.record.reopeners == ("me",)
    assert [one.key for one in named.also] == ["view/topics/orders"]
    assert migration.stray(named.record, shut).commands == (Reopen("orders", "east", OWN),)
    assert migration.stray(ended, but(shut, earlier=("m2",))) == Decision()


def test_what_people_see() -> None:
    assert face(record(step="ship", wanted="pause")) == ("paused", "ship")
    assert face(record(step="finish", hold="held", wanted="pause")) == ("running", "finish")
    assert face(record(step="failed")) == ("failed", "failed")
    assert migration.abortable(record(step="finish")) and not migration.abortable(record(step="switch"))
    assert advance(record(step="done"), facts(), 100.0) == Decision()
    raced = migration.lift(record(step="switch", hold="switched"), "a", "its budget is over")
    assert raced == Decision()
