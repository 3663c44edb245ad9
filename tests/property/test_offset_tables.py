"""Tables, timelines and guards against naive models: plain lists of what lies where."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from offset_sync.guard import KEPT, Entry, Guard, Noted
from offset_sync.runs import CHUNK, Runs
from offset_sync.table import Table, translate
from offset_sync.timeline import Timeline, logical_epoch, split_epoch
from offset_sync.varints import Damaged, Reader, put, put_signed

_STEPS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(1, 4)), max_size=40)


def built(steps: list[tuple[int, int, int]]) -> tuple[Runs, list[tuple[int, int]]]:
    """Runs and the same as (logical, physical) pairs."""
    runs, pairs = Runs(), []
    logical = physical = 0
    for skip_logical, skip_physical, count in steps:
        logical, physical = logical + skip_logical, physical + skip_physical
        runs.append(logical, physical, count)
        pairs += [(logical + n, physical + n) for n in range(count)]
        logical, physical = logical + count, physical + count
    return runs, pairs


@settings(deadline=None)
@given(_STEPS, st.integers(0, 200), st.integers(0, 200))
def test_runs_against_a_list(steps: list[tuple[int, int, int]], first: int, second: int) -> None:
    runs, pairs = built(steps)
    last = (pairs[-1][0] + 2, pairs[-1][1] + 2) if pairs else (3, 3)
    for offset in range(max(last)):
        for side, lookup in ((0, runs.at_logical), (1, runs.at_physical)):
            expected = next((pair for pair in pairs if pair[side] >= offset), None)
            assert lookup(offset) == expected
    found = [(one.logical + n, one.physical + n) for one in runs.between(first, second) for n in range(one.length)]
    assert found == [pair for pair in pairs if first <= pair[1] <= second]
    assert [(a.logical + a.length, a.physical + a.length) for a in runs] != [b[:2] for b in list(runs)[1:]] or len(
        runs
    ) < 2
    assert runs.end == ((pairs[-1][0] + 1, pairs[-1][1] + 1) if pairs else None)


@settings(deadline=None)
@given(_STEPS, st.integers(0, 200), st.integers(0, 200))
def test_dropping_and_cutting(steps: list[tuple[int, int, int]], low: int, high: int) -> None:
    runs, pairs = built(steps)
    number = len(runs)
    dropped = runs.drop_below(low)
    assert runs.dropped == dropped and len(runs) == number - dropped
    kept = [pair for one in runs for pair in ((one.logical + n, one.physical + n) for n in range(one.length))]
    assert set(kept) >= {pair for pair in pairs if pair[0] >= low}
    assert all(one.logical + one.length > low for one in runs)
    runs.cut_from(high)
    left = [pair for one in runs for pair in ((one.logical + n, one.physical + n) for n in range(one.length))]
    assert left == [pair for pair in kept if pair[1] < high]


@pytest.mark.parametrize("bad", [(4, 5, 1), (5, 4, 1), (9, 9, 0), (-1, 9, 1)])
def test_runs_never_go_back(bad: tuple[int, int, int]) -> None:
    runs = Runs()
    runs.append(0, 0, 5)
    with pytest.raises(ValueError):
        runs.append(*bad)
    assert list(runs) == [(0, 0, 5)]


def stored(table: Table, into: dict[int, bytes]) -> None:
    for key, value in table.checkpoint().items():
        if value is None:
            into.pop(key, None)
        else:
            into[key] = value


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("aaaaadck"), st.integers(1, 300)), max_size=30))
def test_what_was_checkpointed_is_loaded(steps: list[tuple[str, int]]) -> None:
    """Also after any number of checkpoints, drops and cuts in between: only changed chunks are written."""
    table, kept = Table(), {}  # type: Table, dict[int, bytes]
    for what, amount in steps:
        end = table.runs.end or (0, 0)
        if what == "a":
            for n in range(amount):
                table.append(end[0] + 3 * n + 1, end[1] + 2 * n + 1, 1)
        elif what == "d":
            table.raise_log_start(table.log_start + amount)
        elif what == "c" and table.runs.start is not None:
            table.cut_from(max(end[1] - amount * 8, table.runs.start.physical))
        else:
            stored(table, kept)
    stored(table, kept)
    table.runs.drop_below(table.log_start)
    loaded = Table.load(kept.pop(-1, None), kept.items())
    assert loaded.runs == table.runs or (list(loaded.runs) == list(table.runs) == [])
    assert (loaded.log_start, loaded.own, loaded.generation) == (table.log_start, table.own, table.generation)
    if len(table.runs):
        assert set(kept) >= set(range(table.runs.first_chunk(), table.runs.chunk_of_last() + 1))
    assert all(value is None for value in loaded.checkpoint().values())
    assert loaded.checkpoint() == {}


def test_a_long_table_is_written_by_its_last_chunk() -> None:
    table, kept = Table(), {}  # type: Table, dict[int, bytes]
    for n in range(3 * CHUNK):
        table.append(3 * n, 2 * n, 1)
    stored(table, kept)
    assert sorted(kept) == [-1, 0, 1, 2]
    table.append(9 * CHUNK, 6 * CHUNK, 1)
    assert sorted(table.checkpoint()) == [3]
    table.append(9 * CHUNK + 5, 6 * CHUNK + 5, 1)
    assert sorted(table.checkpoint()) == [3]
    table.raise_log_start(6 * CHUNK)
    assert table.checkpoint().keys() == {0, 1, -1}
    assert table.checkpoint() == {}


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_damaged_records_are_told(data: bytes) -> None:
    for load in (Runs().load, lambda d: Table.load(d, ()), lambda d: Guard().load(1, d)):
        try:
            load(data)
        except Damaged:
            pass


@settings(deadline=None)
@given(st.lists(st.integers(-(1 << 63), (1 << 63) - 1)))
def test_varints(values: list[int]) -> None:
    out = bytearray()
    for one in values:
        put_signed(out, one)
        put(out, abs(one))
    reader = Reader(out)
    for one in values:
        assert (reader.signed(), reader.get()) == (one, abs(one))
    assert reader.done


# -- several moves -----------------------------------------------------------------------------------------------------


@dataclass
class Copy:
    """One cluster's log: position n holds a logical offset, None for anything that is no record."""

    log: list[int | None] = field(default_factory=list)
    table: Table = field(default_factory=Table)
    mirrored: int = 0  # position on the serving cluster up to which this one has copied


class Moves(RuleBasedStateMachine):
    """A topic that is written, compacted, cut, mirrored and moved between three clusters, back and forth."""

    def __init__(self) -> None:
        super().__init__()
        self.copies = {name: Copy() for name in "ABC"}
        self.serving = "A"
        self.copies["A"].table.open(0, 0)
        self.next = 0
        self.records: list[int] = []  # logical offsets of all records ever written
        self.log_start = 0
        self.timeline = Timeline(())
        self.moves = 0

    @rule(count=st.integers(1, 4))
    def write(self, count: int) -> None:
        self.copies[self.serving].log += range(self.next, self.next + count)
        self.records += range(self.next, self.next + count)
        self.next += count

    @rule()
    def control(self) -> None:
        """A transaction marker takes an offset on both sides."""
        self.copies[self.serving].log.append(None)
        self.next += 1

    @rule(at=st.integers(0, 50))
    def compact(self, at: int) -> None:
        log = self.copies[self.serving].log
        if log and (logical := log[at % len(log)]) is not None:
            for copy in self.copies.values():
                copy.log = [None if one == logical else one for one in copy.log]
            self.records.remove(logical)

    @rule(by=st.integers(1, 5))
    def delete_records(self, by: int) -> None:
        self.log_start = min(self.log_start + by, self.next)
        for copy in self.copies.values():
            copy.table.raise_log_start(self.log_start)

    @rule(to=st.sampled_from("ABC"), batch=st.integers(1, 3), fence=st.booleans())
    def mirror(self, to: str, batch: int, fence: bool) -> None:
        if to == self.serving:
            return
        source, target = self.copies[self.serving], self.copies[to]
        if fence:
            target.log.append(None)
        at = max(target.mirrored, 0)
        while at < len(source.log):
            part = source.log[at : at + batch]
            stretches = [(at + n, 1) for n, one in enumerate(part) if one is not None and one >= self.log_start]
            runs = source.table.logical_runs(stretches)
            for logical, count in runs:
                target.table.append(logical, len(target.log), count)
                target.log += range(logical, logical + count)
            at += len(part)
        target.mirrored = len(source.log)

    @precondition(lambda self: self.moves < 6)
    @rule(to=st.sampled_from("ABC"), gap=st.sampled_from([0, 0, 3]))
    def move(self, to: str, gap: int) -> None:
        if to == self.serving:
            return
        self.mirror(to, 2, fence=False)
        self.copies[self.serving].table.close(self.next)
        self.next += gap
        target = self.copies[to]
        target.table.open(self.next, len(target.log))
        for name, copy in self.copies.items():
            # By logical position: the others go on behind what they have.
            end = copy.table.runs.end
            have = end.logical if end is not None else 0
            position = target.table.physical(have)
            assert position is not None
            copy.mirrored = position if name != to else 0
        self.serving = to
        self.moves += 1

    @invariant()
    def tables_tell_the_truth(self) -> None:
        kept = [one for one in self.records if one >= self.log_start]
        for name, copy in self.copies.items():
            where = {one: at for at, one in enumerate(copy.log) if one is not None}
            for logical in kept:
                if logical in where:
                    assert copy.table.physical(logical) == where[logical], (name, logical)
                    assert copy.table.logical(where[logical]) == logical
                    assert copy.table.holds(logical)
        serving = self.copies[self.serving]
        for logical in kept:  # the serving cluster holds the whole retained log
            at = serving.table.physical(logical)
            assert at is not None and serving.log[at] == logical

    @invariant()
    def positions_are_translated(self) -> None:
        kept = [one for one in self.records if one >= self.log_start]
        serving = self.copies[self.serving]
        for name, copy in self.copies.items():
            if name == self.serving or not len(copy.table.runs):
                continue
            held = {one: at for at, one in enumerate(copy.log) if one in kept}
            for at in range(len(serving.log) + 1):
                coming = next((one for one in serving.log[at:] if one in held), None)
                got = translate(serving.table, copy.table, at)
                assert got is not None
                here = next((one for one in copy.log[got:] if one in held), None)
                assert here == coming, (name, at, got)


TestMoves = Moves.TestCase
TestMoves.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)


def test_the_picture_of_the_design() -> None:
    """orders-0: east 0-999, west 1000-1499, east again from 1500; each mirror began with one control record."""
    east, west = Table(), Table()
    east.open(0, 0)
    west.append(0, 1, 1000)
    east.close(1000)
    west.open(1000, 1001)
    east.append(1000, 1001, 500)
    west.close(1500)
    east.open(1500, 1501)
    for logical, on_east, on_west in ((0, 0, 1), (999, 999, 1000), (1000, 1001, 1001), (1499, 1500, 1500)):
        assert (east.physical(logical), west.physical(logical)) == (on_east, on_west)
        assert translate(east, west, on_east) == on_west and translate(west, east, on_west) == on_east
    assert east.physical(1500) == 1501 and west.physical(1500) == 1501
    assert east.logical(1000) == 1000  # the control record: the next record's
    assert [one for one in (0, 1, 1001) if not west.serves(one, one)] == [0]
    with pytest.raises(ValueError, match="serves"):
        east.append(2000, 2000, 1)
    with pytest.raises(ValueError, match="in no run"):
        west.logical_runs([(0, 2)])


# -- timelines ---------------------------------------------------------------------------------------------------------


def timeline() -> Timeline:
    from offset_sync.timeline import Placement

    line = Timeline((Placement("east"),)).led(0, 0).led(3, 500)
    line = line.switched("west", 1000, 1001).led(7, 1000)
    return line.switched("east", 1500, 1501)


def test_leader_epochs_only_grow_and_are_answered_of_any_placement() -> None:
    line = timeline()
    one, two = logical_epoch(0, 3), logical_epoch(1, 7)
    assert split_epoch(two) == (1, 7) and one < two < logical_epoch(2, 0)
    assert line.epoch_end(0) == (0, 500)
    assert line.epoch_end(2) == (0, 500)
    assert line.epoch_end(one) == (one, 1000)
    assert line.epoch_end(logical_epoch(1, 0)) == (one, 1000)
    assert line.epoch_end(two) == (two, 1500)
    assert line.epoch_end(logical_epoch(2, 9)) == (2 << 20, None)
    assert line.epoch_end(-1) == (-1, -1)
    assert [line.placement_at(at) for at in (0, 999, 1000, 1499, 1500)] == [0, 0, 1, 1, 2]


def test_current_epochs_of_other_placements() -> None:
    line = timeline()
    assert line.unmap_current(logical_epoch(2, 4)) == (4, 0)
    assert line.unmap_current(logical_epoch(1, 7)) == (-1, 74)
    assert line.unmap_current(logical_epoch(3, 0)) == (-1, 75)
    assert line.unmap_current(-1) == (-1, 0)
    assert line.unmap_current(logical_epoch(1, 7), placement=1) == (7, 0)


def test_what_a_timeline_refuses() -> None:
    line = timeline()
    with pytest.raises(ValueError, match="below"):
        line.switched("west", 1499, 2000)
    assert line.led(5, 1600).led(5, 1700) == line.led(5, 1600)
    with pytest.raises(ValueError):
        logical_epoch(2047, 0)
    with pytest.raises(ValueError):
        logical_epoch(0, 1 << 20)
    assert logical_epoch(2046, (1 << 20) - 1) < 1 << 31
    assert logical_epoch(5, -1) == -1
    while line.epoch < 2046:
        line = line.switched("west", 2000, 2000)
    with pytest.raises(ValueError):
        line.switched("east", 3000, 3000)


# -- the guard ---------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 2), st.integers(1, 5)), max_size=60))
def test_the_guard_is_a_brokers_memory(appends: list[tuple[int, int, int]]) -> None:
    guard, stored_form = Guard(), {}  # type: Guard, dict[int, bytes]
    model: dict[int, list[Entry]] = {}
    for logical, (producer, epoch, count) in enumerate(appends):
        mine = model.setdefault(producer, [])
        epoch = max(epoch, mine[-1].epoch if mine else 0)
        if mine and mine[-1].epoch != epoch:
            mine.clear()
        first = mine[-1].last + 1 if mine else 0
        entry = Entry(epoch, first, first + count - 1, logical * 10)
        mine.append(entry)
        guard.note(Noted(producer, logical, entry))
        if logical % 7 == 0:
            stored_form.update({k: v for k, v in guard.checkpoint().items() if v is not None})
    stored_form.update({k: v for k, v in guard.checkpoint().items() if v is not None})
    loaded = Guard()
    for key, value in stored_form.items():
        loaded.load(key, value)
    loaded.settle()
    for judge in (guard, loaded):
        for producer, entries in model.items():
            assert judge.entries(producer) == tuple(entries[-KEPT:])
            newest = entries[-1]
            for number, entry in enumerate(reversed(entries)):
                verdict = judge.judge(producer, *entry[:3])
                assert (verdict.kind, verdict.offset) == (
                    ("duplicate", entry.logical) if number < KEPT else ("gap", -1)
                )
            assert judge.judge(producer, newest.epoch, newest.last + 1, newest.last + 3).kind == "next"
            assert judge.judge(producer, newest.epoch, newest.last + 2, newest.last + 3).kind == "gap"
            assert judge.judge(producer, newest.epoch + 1, 0, 3).kind == "next"
            assert judge.judge(producer, newest.epoch + 1, 1, 3).kind == "gap"
            if newest.epoch:
                assert judge.judge(producer, newest.epoch - 1, 0, 0).kind == "fenced"
        assert judge.judge(99, 0, 0, 0).kind == "unknown"


def test_the_guard_forgets_by_wall_clock_and_by_number() -> None:
    guard = Guard(capacity=2, expiration_ms=100)
    for producer, at in ((1, 0), (2, 50), (3, 60)):
        guard.note(Noted(producer, at, Entry(0, 0, 0, at)))
    assert 1 not in guard and guard.evicted == 1
    assert guard.expire(150) == 0 and guard.expire(151) == 1 and guard.expire(-500) == 0
    assert (2 in guard, 3 in guard) == (False, True)
    assert {key: value is None for key, value in guard.checkpoint().items()} == {1: True, 2: True, 3: False}
    other = Guard(capacity=2)
    other.note(Noted(3, 500, Entry(9, 9, 9, 9)))
    other.note(Noted(4, 10, Entry(0, 0, 0, 7)))
    guard.adopt(other)
    assert guard.entries(3) == (Entry(0, 0, 0, 60),) and guard.entries(4) == (Entry(0, 0, 0, 7),)


def test_the_guard_wraps_with_the_sequence() -> None:
    guard = Guard()
    guard.note(Noted(1, 0, Entry(0, (1 << 31) - 2, 1, 5)))
    assert guard.judge(1, 0, 2, 2).kind == "next"
