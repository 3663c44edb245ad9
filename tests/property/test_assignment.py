"""The spread of units over workers: nothing twice, nothing left, even, and with few moves."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from replicator.assignment import Copier, UnitKey, decide, spread

UNITS = st.integers(0, 12).flatmap(
    lambda n: st.just([UnitKey("west", f"t{one // 3}", "east", one % 3) for one in range(n)])
)
ALL = [Copier("a", 0), Copier("a", 1), Copier("b", 0), Copier("c", 7)]
WORKERS = st.sets(st.sampled_from(ALL), min_size=1)
Held = dict[UnitKey, Copier]


@st.composite
def states(draw: st.DrawFn) -> tuple[list[UnitKey], Held, set[Copier]]:
    """Units, who holds some of them (also workers that are dead, also units nobody wants), and who lives."""
    units = draw(UNITS)
    old = [*units, UnitKey("west", "former", "east", 0)]
    held = {unit: draw(st.sampled_from(ALL)) for unit in old if draw(st.booleans())}
    return units, held, draw(WORKERS)


class Store:
    """Keys that are created where they do not exist and deleted by their owner, as the store does it."""

    def __init__(self, held: Held) -> None:
        self.held = dict(held)
        self.claims = 0

    def act(self, units: list[UnitKey], seen: Held, workers: set[Copier], me: Copier) -> None:
        """One worker's step, out of what it has `seen`, which may be old."""
        decision = decide(units, seen, workers, me)
        for unit in decision.give_back:
            if self.held.get(unit) == me:
                del self.held[unit]
        for unit in decision.claim:
            if unit not in self.held:
                self.held[unit] = me
                self.claims += 1


def settled(store: Store, units: list[UnitKey], workers: set[Copier]) -> int:
    """Rounds until nobody does anything."""
    for number in range(10):
        before = dict(store.held)
        for me in sorted(workers):
            store.act(units, store.held, workers, me)
        if store.held == before:
            return number
    raise AssertionError("it does not settle")


def even(units: list[UnitKey], held: Held, workers: set[Copier]) -> bool:
    counts = [sum(one == worker for one in held.values()) for worker in workers]
    return held.keys() == set(units) and set(held.values()) <= workers and max(counts) - min(counts) <= 1


@given(states())
def test_it_settles_with_every_unit_at_one_worker_evenly(state: tuple[list[UnitKey], Held, set[Copier]]) -> None:
    units, held, workers = state
    store = Store({unit: worker for unit, worker in held.items() if worker in workers})  # leases of the dead end
    assert settled(store, units, workers) <= 3
    assert even(units, store.held, workers)


@given(states(), st.lists(st.tuples(st.sampled_from(ALL), st.booleans()), max_size=12))
def test_old_knowledge_never_makes_two_owners_nor_takes_from_others(
    state: tuple[list[UnitKey], Held, set[Copier]], steps: list[tuple[Copier, bool]]
) -> None:
    units, held, workers = state
    store = Store(held)
    seen = {worker: dict(held) for worker in ALL}
    for me, looks in steps:
        if looks:
            seen[me] = dict(store.held)
        before = dict(store.held)
        store.act(units, seen[me], workers, me)
        others = {unit: one for unit, one in before.items() if one != me}
        assert {unit: store.held.get(unit) for unit in others} == others


@given(states(), st.sampled_from(ALL))
def test_who_joins_or_leaves_moves_no_more_than_must_be(
    state: tuple[list[UnitKey], Held, set[Copier]], other: Copier
) -> None:
    units, held, workers = state
    store = Store({unit: worker for unit, worker in held.items() if worker in workers})
    settled(store, units, workers)
    before = dict(store.held)
    after = workers - {other} if other in workers and len(workers) > 1 else workers | {other}
    free = {unit for unit, worker in before.items() if worker not in after}
    store.held = {unit: worker for unit, worker in before.items() if unit not in free}
    store.claims = 0
    settled(store, units, after)
    assert even(units, store.held, after)
    joined = after - workers
    moved = {unit for unit, worker in before.items() if store.held[unit] != worker}
    # Who joins gets the smaller share, and nothing else moves; what moves otherwise is what the one who left had.
    assert len(moved) == store.claims == (len(units) // len(after) if joined else len(free))


def test_no_worker_no_spread() -> None:
    assert spread([UnitKey("w", "t", "e", 0)], {}, []) == {}
    assert decide([], {}, [Copier("a", 0)], Copier("a", 0)).claim == ()


def test_units_of_a_large_topic_come_to_all() -> None:
    units = [UnitKey("west", topic, "east", number) for topic in ("a", "b") for number in range(4)]
    made = spread(units, {}, ALL)
    assert all({made[one] for one in units if one.topic == topic} == set(ALL) for topic in ("a", "b"))


def test_who_is_not_among_the_workers_takes_nothing_and_gives_everything_back() -> None:
    unit, me = UnitKey("west", "t", "east", 0), Copier("a", 0)
    assert decide([unit], {unit: me}, [Copier("b", 0)], me).give_back == (unit,)
    assert decide([unit], {unit: Copier("b", 0)}, [me], me).claim == ()  # until the key is gone
