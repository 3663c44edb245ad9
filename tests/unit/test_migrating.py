"""What carries migrations: leader epochs as clients see them, how far a copy is, answers that were lost."""

from __future__ import annotations

from typing import cast

import msgspec
import pytest
import trio
from trio.testing import MockClock

from kafka_client import BrokerUnavailable, ClusterClient
from kafka_wire.codec import Message
from metadata_service.migrating.asking import WRONG, first_logical, logical_end
from metadata_service.migrating.hands import Hands
from metadata_service.migrating.mirrors import copy_of
from metadata_service.models import FinishedRecord, MirrorRecord, PartitionReport, PlacementEpoch, ReportRecord

NEVER = PlacementEpoch(cluster="east", topic_id="")
BACK = PlacementEpoch(cluster="east", topic_id="", first={0: 1500}, first_physical={0: 1501})


def test_where_leader_epochs_begin_for_clients() -> None:
    assert logical_end(NEVER, 0, 70) == 70 and logical_end(BACK, 0, 1503) == 1502
    assert first_logical(NEVER, 0, [(7, 60), (4, 20), (0, 0)]) == [(0, 0), (4, 20), (7, 60)]
    assert first_logical(NEVER, 0, [(7, 60), (4, 20)]) == [(4, 0), (7, 60)]  # what is not remembered counts with it
    # Epochs of its time as a copy: only the one counts under which it began to serve.
    assert first_logical(BACK, 0, [(9, 1600), (5, 1400), (0, 0)]) == [(5, 1500), (9, 1599)]
    assert first_logical(BACK, 0, [(9, 1501), (5, 1400)]) == [(9, 1500)]


def test_a_probe_is_refused_by_a_closed_topic_for_its_size() -> None:
    assert 78 < len(WRONG) < 128


def report(at: float = 1.0, condition: str = "copying", **ends: tuple[int, int]) -> ReportRecord:
    parts = {
        int(name[1:]): PartitionReport(condition=condition, position=position, end=end)
        for name, (position, end) in ends.items()
    }
    return ReportRecord(at=at, partitions=parts, operation="op", generation=3)


def test_how_far_a_copy_is() -> None:
    mirror = MirrorRecord(
        topic="t", source="east", target="west", mode="ship", created=0.0, operation="op", generation=3
    )
    assert not copy_of(None, [], [], "op", 2).exists
    half = copy_of(mirror, [report(p0=(5, 7))], [], "op", 2)
    assert (half.exists, half.ready, half.lag) == (True, False, -1)
    old, new = report(1.0, p0=(5, 7)), report(2.0, p0=(7, 7), p1=(1, 4))
    assert (copy_of(mirror, [new, old], [], "op", 2).ready, copy_of(mirror, [new, old], [], "op", 2).lag) == (True, 3)
    assert "corrupt" in copy_of(mirror, [report(1.0, "corrupt", p0=(5, 7))], [], "op", 1).stopped
    earlier = msgspec.structs.replace(new, generation=2)
    assert not copy_of(mirror, [earlier], [], "op", 2).ready  # it speaks of a mirror that was there before
    assert not copy_of(mirror, [new], [], "another", 2).exists


def test_a_mirror_has_finished_when_all_its_units_say_so_of_this_very_end() -> None:
    mirror = MirrorRecord(
        topic="t", source="east", target="west", mode="ship", created=0.0, operation="op", generation=3,
        state="finishing", ends={0: 7, 1: 4},
    )  # fmt: skip

    def said(ends: dict[int, int], operation: str = "op", generation: int = 3) -> FinishedRecord:
        return FinishedRecord(operation=operation, generation=generation, ends=ends)

    both = [said({0: 7}), said({1: 4})]
    assert copy_of(mirror, [], both, "op", 2).finished
    assert dict(copy_of(mirror, [], both, "op", 2).positions) == mirror.ends
    for some in (
        both[:1],
        [both[0], said({1: 3})],
        [both[0], said({1: 4}, "before")],
        [both[0], said({1: 4}, "op", 2)],
    ):
        assert not copy_of(mirror, [], some, "op", 2).finished


class Broker:
    """A client of one broker that does as it is told."""

    name = "east"

    def __init__(self) -> None:
        self.failure: Exception | None = None

    async def call(self, key: int, message: Message, broker: int, timeout: float) -> Message:
        await trio.lowlevel.checkpoint()
        if self.failure is not None:
            raise self.failure
        return {}


async def test_a_lost_answer_is_pending_until_its_broker_has_answered_others_for_long(
    autojump_clock: MockClock,
) -> None:
    broker = Broker()
    client = cast(ClusterClient, broker)
    hands = Hands(lambda _: client, settled=0.0)

    async def change() -> None:
        await hands.call(client, 1, ["orders"], 44, {}, 10.0)

    await change()
    assert not hands.pending(["orders"])
    broker.failure = BrokerUnavailable("not sent", sent=False)
    with pytest.raises(BrokerUnavailable):
        await change()
    assert not hands.pending(["orders"])
    broker.failure = BrokerUnavailable("lost", sent=True)
    with pytest.raises(BrokerUnavailable):
        await change()
    assert hands.pending(["orders"]) and not hands.pending(["bills"])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hands.run)
        await trio.sleep(60)
        assert hands.pending(["orders"])  # the broker is away: it may wake up with it
        broker.failure = None
        await hands.changed.wait()
        assert not hands.pending(["orders"])
        nursery.cancel_scope.cancel()
