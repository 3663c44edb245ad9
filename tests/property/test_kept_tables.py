"""Tables followed from a journal are the writer's own, whenever one begins to read, and whatever crashes meanwhile."""

from __future__ import annotations

import random
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kafka_wire.records import decode_records, fields_of
from offset_sync.guard import Entry, Guard, Noted
from offset_sync.journal import Pair, State, Stream, checkpoint_pairs
from offset_sync.kept import Keeper, Kept
from offset_sync.recovered import Found
from offset_sync.table import Table
from offset_sync.varints import Damaged
from tests.fixtures.mirror_model import JOURNAL, World

STREAM = Stream(bytes(15) + b"\1", 3)


def kept_from(log: list[Pair], stream: Stream = STREAM) -> Kept:
    """A reader that begins now."""
    keeper, made = Keeper(), Kept(stream, guards=True)
    keeper.add(made)
    keeper.feed(log)
    made.settle()
    return made


def compacted(log: list[Pair], upto: int) -> list[Pair]:
    """What a broker may have left of it: below `upto` the newest of each key, or not even that of deleted ones."""
    newest = {key: at for at, (key, _) in enumerate(log[:upto])}
    return [one for at, one in enumerate(log) if at >= upto or (newest[one[0]] == at and one[1] is not None)]


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 1 << 30))
def test_a_followed_table_is_the_writers(seed: int) -> None:
    chance = random.Random(seed)
    with patch("offset_sync.runs.CHUNK", 3), patch("offset_sync.table.CHUNK", 3):
        table, guard, log = Table(), Guard(), list[Pair]()
        keeper, follower = Keeper(), Kept(STREAM, guards=True)
        keeper.add(follower)
        follower.settle()
        logical = physical = 0
        for number in range(chance.randrange(1, 40)):
            for _ in range(chance.randrange(0, 6)):
                logical += chance.choice([0, 0, 1, 5])
                physical += chance.choice([0, 0, 1, 2])
                count = chance.randrange(1, 4)
                table.append(logical, physical, count)
                logical, physical = logical + count, physical + count
                guard.note(Noted(chance.randrange(4), number, Entry(0, logical, logical, logical)))
            what = chance.random()
            if what < 0.2:
                table.raise_log_start(chance.randrange(logical + 2))
                logical = max(logical, table.log_start)
            elif what < 0.25:
                table.renew()
            elif what < 0.35 and len(table.runs):
                table.cut_from(chance.randrange(physical + 1))
                physical = chance.choice([physical, table.runs.end.physical if table.runs.end else physical])
            elif what < 0.4:
                guard.expire(86_400_000 + chance.randrange(40))
            pairs = checkpoint_pairs(STREAM, State(number=number, scanned=physical), table, guard)
            log += pairs
            for at in range(0, len(pairs), 2):  # a checkpoint may take several batches
                keeper.feed(pairs[at : at + 2])
            for reader in (follower, kept_from(log), kept_from(compacted(log, chance.randrange(len(log) + 1)))):
                assert list(reader.table.runs) == list(table.runs)
                assert reader.table.log_start == table.log_start and reader.table.generation == table.generation
                assert reader.covered == physical
                loaded = Guard()
                for key, data in reader.producers.items():
                    loaded.load(key, data)
                assert {key: loaded.entries(key) for key in range(4)} == {key: guard.entries(key) for key in range(4)}
        # However much is deleted, few keys are left.
        live = dict(log)
        assert sum(value is not None for value in live.values()) <= len(table.runs) // 3 + 2 + 4 + 2


@settings(max_examples=120, deadline=None)
@given(st.integers(0, 1 << 30), st.lists(st.integers(0, 255), max_size=200))
def test_open_intents_are_judged_by_the_log(seed: int, script: list[int]) -> None:
    """At any moment, also between a crash and the next take-over: every record below the end that was asked first."""
    world = World(random.Random(seed))
    chance = random.Random(seed + 1)
    keeper = Keeper()
    kept = {number: Kept(world.stream(number)) for number in world.logs_of_data()}
    for one in kept.values():
        keeper.add(one)
        one.settle()
    read = 0
    for at in range(0, len(script), 5):
        ends = {number: world.logs[number].end for number in kept}
        for what in script[at : at + 5]:
            world.step(what)
        journal = world.logs[JOURNAL].entries
        for entry in journal[read:]:
            if entry.header is not None:
                keeper.feed(fields_of(one.body)[:2] for one in decode_records(entry.data, entry.header))
        read = len(journal)
        if chance.random() < 0.2:
            keeper.feed([(b"S", b"not of a stream"), (None, b"nor this")])
        for number, one in kept.items():
            entries = [entry for entry in world.logs[number].entries if entry.header is not None]
            tail = [
                Found(entry.offset, *entry.producer, entry.header.base_sequence, entry.header.records)
                for entry in entries
                if entry.header is not None and one.covered <= entry.offset < ends[number]
            ]
            judged = one.judged(tail, ends[number])
            for offset, value in world.logs[number].records():
                if offset < max(ends[number], one.covered) and value != b"foreign":
                    assert value is not None
                    assert judged.table.logical(offset) == int(value) and judged.table.physical(int(value)) == offset
            # Nothing is known that is not there, and the follower's own table is left as it was.
            assert judged.table.runs.end is None or judged.table.runs.end.physical <= world.logs[number].end
            assert one.table.runs.end is None or one.table.runs.end.physical <= one.covered


def test_what_was_missed_is_noticed() -> None:
    table, guard = Table(), Guard()
    with patch("offset_sync.runs.CHUNK", 2), patch("offset_sync.table.CHUNK", 2):
        reader = kept_from([])
        for number in range(6):
            table.append(number * 10, number * 10, 1)
            pairs = checkpoint_pairs(STREAM, State(number=number, scanned=number * 10 + 1), table, guard)
            if number in (2, 3):
                continue  # compacted away before it was read
            keeper = Keeper()
            keeper.add(reader)
            if number == 4:
                with pytest.raises(Damaged):
                    keeper.feed(pairs)
                break
            keeper.feed(pairs)
    assert len(reader.table.runs) == 2
