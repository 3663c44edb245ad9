"""The copying core over a model of a broker, interrupted everywhere; broken on purpose, it is caught."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kafka_wire.batches import SEQUENCES, walk
from kafka_wire.records import Record, body_of, encode_batch
from offset_sync.guard import Guard
from offset_sync.journal import Contents, Intent, State, Stored, Stream, Stretch, intent_pair
from offset_sync.recovered import Found, Inconsistent, Recovered, recover
from offset_sync.table import Table
from offset_sync.varints import Damaged
from replicator.core import Identity, Partition
from replicator.cut import cut
from tests.fixtures.mirror_model import World

SCRIPT = st.lists(st.integers(0, 255), max_size=250)


def run(seed: int, script: list[int], broken: tuple[str, ...] = ()) -> World:
    world = World(random.Random(seed), broken)
    for what in script:
        world.step(what)
    world.finish()
    world.check()
    return world


@settings(max_examples=250, deadline=None)
@given(st.integers(0, 1 << 30), SCRIPT)
def test_nothing_is_lost_doubled_or_reordered(seed: int, script: list[int]) -> None:
    run(seed, script)


def test_many_crashes() -> None:
    crashes = 0
    for seed in range(60):
        chance = random.Random(seed)
        crashes += run(seed, [chance.randrange(256) for _ in range(400)]).crashes
    assert crashes > 300


@pytest.mark.parametrize("fault", ["fence", "scan", "window", "intent"])
def test_broken_on_purpose(fault: str) -> None:
    """Each part is needed: without it some interleaving loses or doubles, and the check above sees it."""
    caught = 0
    for seed in range(400):
        chance = random.Random(seed)
        try:
            run(seed, [chance.randrange(256) for _ in range(250)], (fault,))
        except (AssertionError, Inconsistent, ValueError):
            caught += 1
            break
    assert caught, f"nothing goes wrong without {fault}"


# -- one partition --------------------------------------------------------------------------------------------------


STREAM = Stream(bytes(16), 0)
ME = Identity(7, 3)


def partition(state: State | None = None) -> Partition:
    source = Table()
    source.open(0, 0)
    return Partition(STREAM, ME, Recovered(state or State(position=0), Table(), Guard()), source)


def pieces(*counts: int, start: int = 0, time: int = 1000) -> memoryview:
    out = bytearray()
    for count in counts:
        out += encode_batch([Record(start + n, time, 0, body_of(None, b"x")) for n in range(count)])
        start += count
    return memoryview(out)


def test_a_sequence_wraps() -> None:
    one = partition()
    one._sequence = SEQUENCES - 3
    data = pieces(5, 2)
    made = cut(data, 0)
    intent = one.take(made, 1000, lambda _: False)
    assert intent is not None
    assert [batch.base_sequence for batch in walk(data)] == [SEQUENCES - 3, 2]
    assert intent.stretches == (Stretch(SEQUENCES - 3, 7, 0, 7, -1, 0),)
    stored = Stored(intents={0: intent.encode()})
    got = recover(stored, [Found(10, *ME, SEQUENCES - 3, 5), Found(15, *ME, 2, 2)], 18)
    assert (got.landed, got.dropped, got.state.position, got.state.number) == (7, 0, 7, 1)
    assert list(got.table.runs) == [(0, 10, 7)]


def test_five_in_flight_and_one_where_state_may_be_gone() -> None:
    now = 10 * 86_400_000
    one = partition()
    made = cut(pieces(*[1] * 8, time=now), 0)
    one.take(made, now, lambda _: False)
    assert not one.next_batches(now)  # the intent is not stored yet
    one.stored(0)
    assert [len(one.next_batches(now, most, 1 << 20)) for most in (2, 9, 1)] == [2, 3, 0]
    one.acknowledged([0, 1], now)
    assert [len(one.next_batches(now)) for _ in range(3)] == [1, 1, 0]
    old = partition()
    made = cut(pieces(*[1] * 8, time=now - 86_400_000), 0)
    old.take(made, now, lambda _: False)
    old.stored(0)
    for at in range(8):
        assert len(old.next_batches(now, 9, 1 << 20)) == 1 and not old.next_batches(now)
        old.acknowledged([at], now)
    assert old.idle and old.position == 8


def test_foreign_writes_are_counted_and_lost_data_is_told() -> None:
    one = partition(State(position=0, scanned=1))
    made = cut(pieces(1, 1, 1), 0)
    one.take(made, 1000, lambda _: False)
    one.stored(0)
    one.next_batches(1000)
    one.acknowledged([1], 1000)
    assert one.foreign == 0
    one.next_batches(1000)
    one.acknowledged([5], 1000)
    assert one.foreign == 3
    assert not one.table.serves(2, 4) and one.table.serves(5, 5)
    one.next_batches(1000)
    with pytest.raises(Inconsistent, match="lost data"):
        one.acknowledged([3], 1000)


def test_a_target_with_batches_nobody_announced() -> None:
    intent = Intent(0, *ME, 5, (Stretch(0, 3, 0, 3, 0, 0),), ())
    stored = Stored(intents={0: intent.encode()})
    for tail in ([Found(0, *ME, 3, 1)], [Found(0, *ME, 0, 3), Found(3, *ME, 3, 1)], [Found(0, *ME, 1, 2)]):
        with pytest.raises(Inconsistent):
            recover(stored, tail, 9)
    strangers = [Found(0, 8, 3, 0, 3), Found(3, 7, 2, 0, 3), Found(6, -1, -1, -1, 5)]
    assert recover(stored, strangers, 11).landed == 0


def test_what_landed_and_was_deleted_before_the_take_over() -> None:
    intents = [
        Intent(0, *ME, 5, (Stretch(0, 3, 0, 3, 0, 0), Stretch(3, 2, 7, 9, 0, 7)), ()),
        Intent(1, *ME, 5, (Stretch(5, 4, 9, 13, 0, 9),), ()),
    ]
    stored = Stored(intents={one.number: one.encode() for one in intents})
    first, second, last = Found(26, *ME, 4, 1), Found(28, *ME, 5, 2), Found(30, *ME, 7, 2)
    for tail, logical, position in (([last], [11], 13), ([second, last], [9, 11], 13), ([first], [8], 9)):
        with pytest.raises(Inconsistent):
            recover(stored, tail, 40)
        got = recover(stored, tail, 40, since=20)
        assert [got.table.logical(one.offset) for one in tail] == logical and got.state.position == position
    with pytest.raises(Inconsistent):
        recover(stored, [Found(30, *ME, 9, 2)], 40, since=20)


def test_a_journal_with_a_missing_intent_is_damaged() -> None:
    contents = Contents()
    for number in (0, 2):
        contents.feed([intent_pair(STREAM, Intent(number, *ME, 5, (Stretch(0, 1, number, number + 1, 0, 0),), ()))])
    with pytest.raises(Damaged):
        contents.streams[STREAM].open_intents()


def test_records_a_source_does_not_know_are_not_copied() -> None:
    one = partition()
    one.source = Table()
    one.source.append(0, 5, 3)
    one.source.append(3, 10, 2)
    data = pieces(3, 2, 2, start=5)  # the second lies outside every run
    made = cut(data, 5)
    intent = one.take(made, 1000, lambda _: False)
    assert intent is not None
    assert intent.stretches == (Stretch(0, 3, 5, 8, -1, 0), Stretch(3, 2, 10, 12, -1, 3))
    assert (one.source_foreign, one.fetch_position) == (2, 12)
    split = partition()
    split.source = one.source
    with pytest.raises(ValueError, match="in no run"):
        split.take(cut(pieces(4, start=5), 5), 1000, lambda _: False)


@given(st.integers(0, 9), st.lists(st.tuples(*[st.integers(0, (1 << 31) - 1)] * 6), max_size=5))
def test_intents_are_read_as_they_were_written(number: int, stretches: list[tuple[int, ...]]) -> None:
    intent = Intent(number, 1 << 40, 32767, 1 << 41, tuple(Stretch(*one) for one in stretches), ())
    assert Intent.decode(intent.encode()) == intent
    with pytest.raises(Damaged):
        Intent.decode(intent.encode()[:-1] if stretches else b"")
