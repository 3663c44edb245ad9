"""What a worker keeps of moved topics: which tables are complete, and whose batches are known from elsewhere."""

from __future__ import annotations

import pytest

from kafka_wire.batches import Batch, walk
from kafka_wire.records import Record, body_of, encode_batch
from metadata_service.models import PlacementEpoch
from offset_sync.guard import Entry, Guard, Noted
from offset_sync.journal import GUARD, STATE, State, Stream, checkpoint_pairs
from offset_sync.kept import Keeper, Kept
from offset_sync.table import Table
from proxy.moving.guarding import Guarding
from proxy.moving.tables import Copy, shown

STREAM = Stream(bytes(16), 0)
PRODUCER = 3 << 40 | 7


def kept(scanned: int, *, lost: bool = False, noted: int = 0) -> Kept:
    """A copy of logical 0 to 9 at physical 1 to 10, complete below `scanned`; at `noted` (ms) a producer's batches."""
    table, guard = Table(), Guard()
    table.append(0, 1, 10)
    if noted:
        for first in (0, 5):
            guard.note(Noted(PRODUCER, noted, Entry(0, first, first + 4, first)))
    keeper = Keeper()
    made = Kept(STREAM, guards=True)
    keeper.add(made)
    keeper.feed(checkpoint_pairs(STREAM, State(scanned=scanned, position=10), table, guard))
    made.settle()
    if lost:
        made.lost = "for the test"
    return made


def placement(first: int, at: int, partition: int = 0) -> PlacementEpoch:
    return PlacementEpoch(cluster="east", topic_id="", first={partition: first}, first_physical={partition: at})


@pytest.mark.parametrize(
    ("have", "wanted", "there"),
    [
        (kept(11), placement(10, 11), True),
        (kept(10), placement(10, 11), False),  # the last checkpoint has not been read yet
        (kept(11, lost=True), placement(10, 11), False),
        (Kept(STREAM), placement(10, 11), False),  # its journal is gone: what is below cannot be told
        (Kept(STREAM), placement(0, 0), True),  # nothing was there to be copied
        (None, placement(10, 11, partition=1), True),  # a partition that was added after the move
    ],
)
def test_a_table_is_shown_when_it_is_complete(have: Kept | None, wanted: PlacementEpoch, there: bool) -> None:
    made = shown(have, wanted, 0)
    assert (made is not None) == there
    if made is not None and have is not None and have.state is not None:
        assert made.runs is have.table.runs, "24 bytes a run, once"
        assert (made.logical(1), made.logical(11), made.logical(40)) == (0, 10, 39)
        assert have.table.own is None, "what the journal tells of this copy stays as it is"


def batch(sequence: int, count: int = 5, producer: int = PRODUCER, epoch: int = 0, attributes: int = 0) -> Batch:
    records = [Record(n, 1, 0, body_of(None, b"x")) for n in range(count)]
    made = encode_batch(
        records, producer_id=producer, producer_epoch=epoch, base_sequence=sequence, attributes=attributes
    )
    return next(walk(made))


def guarding(noted: int = 1 << 60) -> Guarding:
    copy = Copy(bytes(16), 1)
    copy.kept = {0: kept(11, noted=noted)}
    copy.absorb()
    assert not copy.kept[0].producers, "kept in one form only"
    return copy.guards[0]


def test_what_was_written_elsewhere_is_known_whoever_adds_what_to_the_id() -> None:
    made = guarding()
    for added in (0, 5 << 52):
        verdict = made.judge(batch(5, producer=PRODUCER + added))
        assert (verdict.kind, verdict.offset) == ("duplicate", 5)
    assert made.judge(batch(0)).offset == 0
    assert made.judge(batch(5, producer=8)).kind == "unknown"
    # A transactional producer of an equal id is somebody else: those are not told apart by cluster.
    assert made.judge(batch(5, attributes=0x10)).kind == "unknown"


def test_a_gap_counts_until_the_leader_knows_the_producer_and_a_duplicate_always() -> None:
    made = guarding()
    assert made.judge(batch(20)).kind == "gap"
    assert made.judge(batch(10)).kind == "next"
    assert made.judge(batch(20)).kind == "unknown"
    assert made.judge(batch(5)).kind == "duplicate"


def test_who_was_silent_for_too_long_is_forgotten() -> None:
    copy = Copy(bytes(16), 1)
    copy.kept = {0: kept(11, noted=1)}
    copy.absorb()
    assert copy.guards == {}


def test_what_the_journal_adds_is_taken_over() -> None:
    copy = Copy(bytes(16), 1)
    one = copy.kept[0] = kept(11, noted=1 << 60)
    copy.absorb()
    guard = Guard()
    guard.note(Noted(PRODUCER, 1 << 60, Entry(0, 10, 14, 10)))
    ((number, data),) = guard.checkpoint().items()
    one.feed(GUARD, number, data)
    one.feed(STATE, 0, State(scanned=16, position=15).encode())
    copy.absorb()
    assert copy.guards[0].judge(batch(10)).kind == "duplicate"
