"""Offsets from cluster to cluster, over a model of logs: the very record's, or the next one's, or a reason."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offset_sync.guard import Guard
from offset_sync.journal import State
from offset_sync.kept import SHIP, Held
from offset_sync.recovered import Recovered
from offset_sync.table import Table
from replicator.translation import Deleted, Flow, Hop, NotYet, NoWay, Translator, Unmappable, way

Identity = tuple[str, int]


@dataclass
class Mirror:
    """Copies from `source` to `target`, a few entries at a time."""

    flow: Flow
    table: Table = field(default_factory=Table)
    position: int = 0
    scanned: int = 0


class World:
    """Logs as lists: who a record is (its first cluster and its offset there), or None where no record is."""

    def __init__(self, flows: list[Flow], chance: random.Random, *, deletes: bool = True) -> None:
        self.chance = chance
        self.deletes = deletes
        self.overtaken = False  # something was deleted before it was copied: some records are not everywhere
        self.logs: dict[str, list[Identity | None]] = {name: [] for flow in flows for name in flow[:2]}
        self.starts = dict.fromkeys(self.logs, 0)
        self.mirrors = [Mirror(flow) for flow in flows]
        self.targets = {one.flow.target for one in self.mirrors if one.flow.mode == "ship"}

    def step(self) -> None:
        chance = self.chance
        what = chance.random()
        name = chance.choice(sorted(self.logs))
        log = self.logs[name]
        if what < 0.45 and name not in self.targets:
            for _ in range(chance.randrange(1, 4)):
                log.append((name, len(log)) if chance.random() < 0.8 else None)
        elif what < 0.5:
            log.append(None)
        elif what < 0.55 and log and self.deletes:
            self.starts[name] = max(self.starts[name], chance.randrange(len(log) + 1))
            for mirror in self.mirrors:
                if mirror.flow.target == name and chance.random() < 0.7:
                    mirror.table.trim(self.starts[name])
        else:
            self.copy(chance.choice(self.mirrors), chance.randrange(1, 6))

    def copy(self, mirror: Mirror, count: int) -> None:
        flow, source, target = mirror.flow, self.logs[mirror.flow.source], self.logs[mirror.flow.target]
        self.overtaken = self.overtaken or mirror.position < self.starts[flow.source]
        mirror.position = max(mirror.position, self.starts[flow.source])
        for at in range(mirror.position, min(mirror.position + count, len(source))):
            one = source[at]
            mirror.position = at + 1
            if one is None or (flow.mode == "exchange" and one[0] != flow.source):
                continue
            # A ship's logical offsets are those of the first cluster of its row.
            logical = at if flow.mode == "exchange" else self.logical(flow.source, at)
            mirror.table.append(logical, len(target), 1)
            target.append(one)
            mirror.scanned = len(target)

    def logical(self, cluster: str, at: int) -> int:
        for one in self.mirrors:
            if one.flow.target == cluster and one.flow.mode == "ship":
                found = one.table.runs.at_physical(at)
                assert found is not None and found.physical == at
                return found.logical
        return at

    def translator(self) -> Translator:
        held = {
            name: Held(
                self.starts[name],
                len(log),
                {
                    SHIP if one.flow.mode == "ship" else one.flow.source: Recovered(
                        State(position=one.position, scanned=one.scanned, source=one.flow.source), one.table, Guard()
                    )
                    for one in self.mirrors
                    if one.flow.target == name
                },
            )
            for name, log in self.logs.items()
        }
        return Translator(held, tuple(one.flow for one in self.mirrors))

    def check(self) -> int:
        """Every offset from everywhere to everywhere; returns how many were the very record's."""
        translator = self.translator()
        self.overtaken = self.overtaken or any(one.position < self.starts[one.flow.source] for one in self.mirrors)
        flows = [one.flow for one in self.mirrors]
        exact = 0
        for source, log in self.logs.items():
            for target, other in self.logs.items():
                hops = way(flows, source, target)
                where = {one: at for at, one in enumerate(other) if one is not None}
                for offset in range(self.starts[source], len(log) + 1):
                    coming = next(((at, one) for at, one in enumerate(log) if at >= offset and one is not None), None)
                    expected = where.get(coming[1]) if coming is not None else None
                    there = expected is not None and expected >= self.starts[target]
                    place = (source, target, offset, coming, expected, self.starts[target])
                    try:
                        got = translator.translate(hops, offset)
                    except Deleted:
                        assert not there or (coming is not None and coming[0] != offset) or len(hops) > 1, place
                    except NotYet:
                        assert not (coming is not None and coming[0] == offset and there) or len(hops) > 1, place
                        assert not self.all_copied(), place
                    else:
                        if got.end:  # nothing is skipped that is not on `source`, and nothing behind is known
                            lost = (expected is None and self.overtaken) or (expected is not None and not there)
                            assert coming is None or lost, (place, got)
                        else:
                            if got.exact and source != target:
                                assert coming is not None and coming[0] == offset, (place, got)
                            if source != target and coming is not None and (expected is not None or not self.overtaken):
                                assert got.offset == expected, (place, got)
                            exact += got.exact
        return exact

    def all_copied(self) -> bool:
        return all(one.position == len(self.logs[one.flow.source]) for one in self.mirrors)

    def settle(self) -> None:
        for _ in range(3):
            for one in self.mirrors:
                self.copy(one, 1 << 30)


def ship(source: str, target: str) -> Flow:
    return Flow(source, target, "ship")


def mesh(*names: str) -> list[Flow]:
    return [Flow(a, b, "exchange") for a in names for b in names if a != b]


SHAPES = {
    "ship": [ship("a", "b")],
    "row": [ship("a", "b"), ship("b", "c"), ship("c", "d")],
    "tree": [ship("a", "b"), ship("a", "c"), ship("b", "d")],
    "two": mesh("a", "b"),
    "three": mesh("a", "b", "c"),
}


@pytest.mark.parametrize("shape", SHAPES)
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1 << 30))
def test_every_offset_from_everywhere_to_everywhere(shape: str, seed: int) -> None:
    world = World(SHAPES[shape], random.Random(seed))
    for _ in range(world.chance.randrange(1, 40)):
        world.step()
        world.check()
    world.settle()
    world.check()


@pytest.mark.parametrize("shape", SHAPES)
def test_what_all_have_is_found_exactly(shape: str) -> None:
    world = World(SHAPES[shape], random.Random(5), deletes=False)
    for _ in range(60):
        world.step()
    world.settle()
    assert world.check() > 50


def test_ways_and_reasons() -> None:
    flows = [*mesh("a", "b"), ship("a", "c"), ship("b", "d"), ship("x", "y")]
    assert way(flows, "c", "d") == [Hop("c", "a", "ship"), Hop("a", "b", "exchange"), Hop("b", "d", "ship")]
    assert way(flows, "a", "a") == []
    with pytest.raises(NoWay, match="from a to y"):
        way(flows, "a", "y")
    empty = Translator({"x": Held(0, 5, {}), "y": Held(0, 0, {})}, (ship("x", "y"),))
    with pytest.raises(NotYet, match="nothing was mirrored"):
        empty.translate([Hop("x", "y", "ship")], 3)
    assert issubclass(NoWay, Unmappable)
