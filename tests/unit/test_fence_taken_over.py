"""A move that begins while the one before still redirects: who writes at the old place is served on."""

from __future__ import annotations

import msgspec

from metadata_service.operations.fence import Answer, Fence, Forward, Limits, Write
from metadata_service.operations.records import MigrationRecord, Moving
from offset_sync.guard import Verdict

THERE = MigrationRecord(
    id="there", topics={"t": Moving(source_id="1")}, source="east", target="west", step="redirect", hold="announced"
)
BACK = MigrationRecord(id="back", topics={"t": Moving(source_id="2")}, source="west", target="east", step="ship")


def changed(record: MigrationRecord, **changes: object) -> MigrationRecord:
    return msgspec.structs.replace(record, **changes)


def write(number: int, cluster: str) -> Write:
    return Write(number, 1 + (cluster == "west"), cluster, "t", 0, 10)


def fence() -> Fence:
    """Knows the move there, and that it is over since the one back has begun; the end comes to be known last."""
    made = Fence(Limits(), lambda one, cluster: Verdict("unknown"))
    made.renewed(1000.0, 1)
    made.saw(9)
    made.learned(THERE, 2, 0.0)
    made.loaded("there", 0.0)
    made.learned(BACK, 3, 1.0)
    made.learned(changed(THERE, taken_over="back"), 3, 1.0)
    made.learned(changed(THERE, taken_over="back", step="done", hold="over"), 4, 1.0)
    return made


def test_a_producer_at_the_place_before_is_forwarded_held_and_served_there_again() -> None:
    one = fence()
    assert one.write(write(1, "east"), 1.0) == [Forward(write(1, "east"), "west")]
    one.learned(changed(BACK, step="drain", hold="draining", attempt=1), 5, 1.0)
    assert not one.report("back").drained, "it is on its way to the source"  # type: ignore[union-attr]
    one.answered(1, 0, 1.0)
    assert one.report("back").drained  # type: ignore[union-attr]
    one.learned(changed(BACK, step="hold", hold="held", attempt=1), 6, 1.0)
    assert one.write(write(2, "east"), 1.1) == [] == one.write(write(3, "west"), 1.1)
    one.loaded("back", 1.2)
    out = one.learned(changed(BACK, step="release", hold="released", attempt=1), 7, 1.2)
    assert [(each.write.id, each.cluster) for each in out if isinstance(each, Forward)] == [(3, "east")]
    assert [each.write.id for each in one.answered(3, 0, 1.3) if isinstance(each, Forward)] == [2]


def test_what_comes_directly_waits_for_what_is_forwarded() -> None:
    one = fence()
    one.write(write(1, "east"), 1.0)
    assert one.write(write(2, "west"), 1.0) == []
    assert [each.write.id for each in one.answered(1, 0, 1.1) if isinstance(each, Forward)] == [2]


def test_after_the_end_of_both_nobody_is_forwarded() -> None:
    one = fence()
    one.learned(changed(BACK, step="done", hold="over", attempt=1), 8, 2.0)
    assert not one.concerned("t")
    again = Fence(Limits(), lambda each, cluster: Verdict("unknown"))
    again.renewed(1000.0, 1)
    again.saw(9)
    again.learned(changed(THERE, step="retire", hold="over"), 2, 1.0)
    assert again.write(write(1, "east"), 1.0) == [Answer(write(1, "east"), 6)]


def test_what_would_begin_a_transaction_is_held_while_draining_wherever_it_comes() -> None:
    one = fence()
    one.learned(changed(BACK, step="drain", hold="draining", attempt=1), 5, 1.0)
    for number, cluster in ((1, "east"), (2, "west")):
        first = Write(number, 3, cluster, "t", number, 10, begins=True)
        assert one.write(first, 1.0) == []
