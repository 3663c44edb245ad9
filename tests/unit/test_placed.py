"""What a timeline says of copies, and what a move makes of a mirror's record."""

from __future__ import annotations

import msgspec
import pytest

from metadata_service.mirroring import back, finishing, has_finished, shipping
from metadata_service.models import FinishedRecord, MirrorRecord, PlacementEpoch
from offset_sync.journal import State
from offset_sync.table import Table
from offset_sync.varints import Damaged
from replicator.placed import Served, close, former_parts, former_table, serves, serving_table, unrecorded


def epoch(cluster: str, first: dict[int, int] | None = None, physical: dict[int, int] | None = None) -> PlacementEpoch:
    return PlacementEpoch(cluster=cluster, topic_id="0" * 32, first=first or {}, first_physical=physical or {})


THERE_AND_BACK = (
    epoch("east"),
    epoch("west", {0: 100}, {0: 105}),
    epoch("east", {0: 150}, {0: 152}),
    epoch("west", {0: 150, 1: 30}, {0: 160, 1: 31}),
    epoch("triple", {0: 170, 1: 30}, {0: 180, 1: 33}),
)


def test_former_parts() -> None:
    assert serves(THERE_AND_BACK, "triple") and not serves(THERE_AND_BACK, "west") and not serves((), "west")
    # The second time, nothing was written on east to partition 0; partition 1 came while the topic was there.
    assert former_parts(THERE_AND_BACK, "east", 0) == [Served(0, 0, 100), Served(150, 152, 150)]
    assert former_parts(THERE_AND_BACK, "east", 1) == [Served(0, 0, 30)]
    assert former_parts(THERE_AND_BACK, "west", 0) == [Served(100, 105, 150), Served(150, 160, 170)]
    assert former_parts(THERE_AND_BACK, "west", 1) == [Served(30, 31, 30)]
    assert former_parts(THERE_AND_BACK, "triple", 0) == []


def test_a_part_is_added_once() -> None:
    parts = former_parts(THERE_AND_BACK, "west", 0)
    assert unrecorded(parts, None) == parts
    assert unrecorded(parts, State(scanned=105)) == parts  # the mirror had ended just there
    assert unrecorded(parts, State(scanned=156)) == parts[1:]
    assert unrecorded(former_parts(THERE_AND_BACK, "east", 0), State(scanned=153)) == []  # the fence is behind it
    assert unrecorded(parts, State(scanned=180)) == []  # also where the copy was begun anew behind it


def test_tables() -> None:
    first = serving_table(None, THERE_AND_BACK[:1], 0)
    assert (first.logical(7), first.physical(7)) == (7, 7)
    set_free = Table()
    set_free.append(500, 0, 5)  # a mirror's copy that became the topic: what clients see is its own log
    assert serving_table(set_free, THERE_AND_BACK[:1], 0).logical(2) == 2

    def copied() -> Table:
        table = Table()
        table.append(0, 1, 100)
        return table

    west = serving_table(copied(), THERE_AND_BACK[:2], 0)
    assert [west.logical(one) for one in (1, 100, 103, 105, 155)] == [0, 99, 100, 100, 150]
    former = copied()
    close(former, former_parts(THERE_AND_BACK, "west", 0))
    assert [former.physical(one) for one in (99, 100, 149, 150, 169)] == [100, 105, 154, 160, 179]
    assert former.own is None
    assert former_table(former_parts(THERE_AND_BACK, "east", 0)).runs.end == (100, 100)
    behind = copied()
    behind.append(100, 101, 50)
    with pytest.raises(Damaged):
        serving_table(behind, THERE_AND_BACK[:2], 0)
    with pytest.raises(Damaged):
        close(behind, former_parts(THERE_AND_BACK, "west", 0))


def test_records_of_a_move() -> None:
    def ship(known: MirrorRecord | None, operation: str = "m", rebuild: bool = False) -> MirrorRecord | None:
        return shipping(known, "t", "a", "b", operation, rebuild=rebuild, revision=70, created=1.0)

    new = ship(None)
    assert new is not None and (new.generation, new.operation, new.state, new.lent) == (0, "m", "running", False)
    anew = ship(None, rebuild=True)
    assert anew is not None and anew.generation == 70 and ship(anew, rebuild=True) == anew
    standby = MirrorRecord(topic="t", source="a", target="b", mode="ship", created=0.0, rule=True, generation=90)
    lent = ship(standby)
    assert lent is not None and lent.lent and lent.operation == "m" and back(lent, "m") == standby
    again = ship(standby, rebuild=True)
    assert again is not None and again.generation == 91
    assert ship(new, "other") is None and ship(msgspec.structs.replace(new, state="removing")) is None
    assert back(new, "m") is None and back(new, "other") is new

    ends = {0: 5, 32: 7}
    ending = finishing(new, "m", ends)
    assert ending is not None and finishing(new, "other", ends) is None
    assert ship(ending) == new  # it goes on
    said = [FinishedRecord(operation="m", generation=0, ends={0: 5})]
    assert not has_finished(ending, said)
    assert not has_finished(ending, [*said, FinishedRecord(operation="m", generation=0, ends={32: 6})])
    assert not has_finished(ending, [*said, FinishedRecord(operation="x", generation=0, ends={32: 7})])
    assert not has_finished(ending, [*said, FinishedRecord(operation="m", generation=1, ends={32: 7})])
    assert has_finished(ending, [*said, FinishedRecord(operation="m", generation=0, ends={32: 7})])
    assert not has_finished(new, said)
