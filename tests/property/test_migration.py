"""Moves over a model of the world: the invariants hold whatever is interrupted, delayed or repeated; and without any
one part of the machine some interleaving breaks them, which the same model sees."""

from __future__ import annotations

import random
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metadata_service.operations import fence, gates
from metadata_service.operations.commands import Reopen
from metadata_service.operations.facts import Facts
from metadata_service.operations.migration import STEPS
from metadata_service.operations.records import MigrationRecord, parts
from tests.fixtures.migration_drive import (
    at_rest,
    finish,
    go,
    heal,
    pass_time,
    random_script,
    reached,
    settle_first,
    steps,
    wander,
)
from tests.fixtures.migration_model import World
from tests.fixtures.migration_parts import Producer, Violated, must
from tests.fixtures.migration_processes import Serving

SCRIPT = st.lists(st.integers(0, (1 << 20) - 1), max_size=60)
GONE_ON = ("settle", "finish", "switch", "release", "announce", "redirect", "retire", "done")


def begin(seed: int = 1, broken: tuple[str, ...] = ()) -> World:
    world = World(random.Random(seed), broken)
    settle_first(world, 2)
    world.migrate("east", "west")
    return world


def run(seed: int, script: list[int], broken: tuple[str, ...] = ()) -> World:
    world = begin(seed, broken)
    wander(world, script)
    if seed % 3 == 0:  # and back
        heal(world)
        go(world, lambda one: record(one).step in ("redirect", "done", "aborted"), count=150)
        world.move_back()
        wander(world, script[::-1])
    finish(world)
    return world


def record(world: World, which: int = -1) -> MigrationRecord:
    return list(world.migrations.values())[which][0]


def holding(world: World) -> bool:
    return record(world).hold == "held"


# -- whatever happens -------------------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 1 << 30), SCRIPT)
def test_i1_to_i5_whatever_happens(seed: int, script: list[int]) -> None:
    run(seed, script)


def test_i1_to_i5_through_many_faults() -> None:
    ended: set[str] = set()
    seen: set[str] = set()
    back = 0
    for seed in range(90):
        world = run(seed, random_script(seed, 70))
        ended |= {one.step for one, _ in world.migrations.values()}
        seen |= world.steps_seen
        back += len(world.migrations) - 1
    assert ended == {"done", "aborted"}
    assert set(STEPS) - {"plan"} <= seen and back >= 15


def crash(world: World) -> None:
    world.controllers[world.leader].alive = False
    world.elect()


def depose(world: World) -> None:
    """Another leads, and the former one sleeps with all that it has decided."""
    world.controllers[world.leader].paused = True
    world.elect()


def lose_store(world: World) -> None:
    world.away = True


def sleep_first(world: World) -> None:
    next(iter(world.workers.values())).paused = True


def kill_first(world: World) -> None:
    next(iter(world.workers.values())).alive = False
    world.new_worker()


@pytest.mark.parametrize("fault", [crash, depose, lose_store, sleep_first, kill_first])
def test_i1_to_i5_interrupted_after_every_step(fault: Callable[[World], None]) -> None:
    """The fault comes after the nth thing that a controller does; 15 seconds later what slept wakes up."""
    number, lifted = 0, 0
    while True:
        world = begin()
        left = number
        while left and not at_rest(world):
            for actor, one in steps(world):
                if actor.startswith("controller"):
                    left -= 1
                if not left:
                    break
                one()
            pass_time(world, 0.02)
        rested = at_rest(world)
        fault(world)
        go(world, lambda _: False, count=30, seconds=0.5)
        finish(world)
        lifted += record(world).attempt > 1
        if rested:
            break
        number += 1 if fault is crash else 3
    assert number > 60
    assert lifted or fault in (crash, depose)


def test_i1_to_i5_there_and_back() -> None:
    """A move back takes the former copy up where it is; once that was emptied, it is filled anew."""
    for before in ("redirect", "done"):
        world = begin()
        for producer in world.producers:
            producer.goal = 60
        assert go(world, reached(before))
        assert world.move_back()
        finish(world)
        timeline = world.topic[0].timeline
        assert [one.cluster for one in timeline] == ["east", "west", "east"]
        assert [one.tag_producers for one in timeline] == [False, False, True]
        assert record(world).step == record(world, 0).step == "done"
        assert record(world, 0).emptied == (before == "done")


def test_nobody_is_refused_while_all_is_well() -> None:
    """Views lag and everything comes in any order; clients see a pause, and no error."""
    for seed in range(25):
        world = begin(seed)
        chance = random.Random(seed)
        for _ in range(2000):
            for actor, one in steps(world):
                slow = 0.25 if "view" in actor or "tables" in actor else 0.7
                if chance.random() < slow:
                    one()
            pass_time(world, 0.004)
            if at_rest(world):
                break
        assert record(world).attempt == 1
        assert [one.errors for one in world.producers] == [0, 0, 0]
        finish(world)


def test_an_abort_leaves_everything_as_it_was() -> None:
    for step in ("caught_up", "drain", "hold", "close", "settle", "finish"):
        world = begin()
        assert go(world, reached(step))
        (identifier,) = world.migrations
        world.revision += 1
        asked = msgspec.structs.replace(record(world), wanted="abort")
        world.migrations[identifier] = (asked, world.revision)
        finish(world)
        assert record(world).step == "aborted"
        assert len(world.topic[0].timeline) == 1 and not world.mirrors and not world.stubs
        assert not any(world.clusters["west"].takes)


def test_a_pause_never_leaves_writes_held() -> None:
    for step in ("ship", "drain", "hold", "close", "settle", "finish", "redirect"):
        world = begin()
        assert go(world, reached(step))
        (identifier,) = world.migrations
        world.revision += 1
        world.migrations[identifier] = (msgspec.structs.replace(record(world), wanted="pause"), world.revision)
        go(world, lambda _: False, count=200)
        assert record(world).step == ("redirect" if step == "redirect" else "caught_up")
        assert record(world).hold in ("open", "announced")
        assert all(len(one.acked) == one.goal for one in world.producers)
        finish(world)
        assert record(world).step == "done"


# -- and each part is needed ------------------------------------------------------------------------------------------


def stuck(broken: tuple[str, ...]) -> tuple[World, str]:
    """A write waits in a queue of the source's, from before the hold on; and whose wire that is."""
    world = begin(1, broken)
    for one in world.producers:
        one.goal = 60
    name = world.producers[0].worker
    wire = f"wire ('{name}', 'east')"

    def waits(world: World) -> bool:
        return any(one.kind == "write" for one in world.wires.get((name, "east"), ()))

    assert go(world, lambda one: waits(one) and record(one).step in ("ship", "caught_up", "drain"), wire)
    assert go(world, holding, wire)
    return world, name


def deliver_all(world: World, name: str) -> None:
    while world.wires[(name, "east")]:
        world.deliver((name, "east"))


def stuck_write(broken: tuple[str, ...] = ()) -> World:
    """A write waits in a broker's queue until the topic is served elsewhere."""
    world, name = stuck(broken)
    go(world, lambda one: record(one).hold in ("released", "lifted"), f"wire ('{name}', 'east')")
    deliver_all(world, name)
    finish(world)
    return world


def slow_leader(broken: tuple[str, ...] = ()) -> World:
    """The same, and a leader takes long to hear that it is closed."""
    world, name = stuck(broken)
    still = (f"wire ('{name}', 'east')", "leader east")
    go(world, lambda one: record(one).hold in ("released", "lifted"), *still)
    deliver_all(world, name)
    finish(world)
    return world


def slow_follower(broken: tuple[str, ...] = ()) -> World:
    """What was acknowledged lies above the high watermark when the source is closed."""
    world = begin(1, broken)
    world.producers[0].goal = 60
    assert go(world, lambda one: len(one.clusters["east"].logs[0]) > one.clusters["east"].high[0] + 3, "follower")
    go(world, lambda one: record(one).hold in ("released", "lifted"), "follower")
    finish(world)
    return world


def slow_view(broken: tuple[str, ...] = ()) -> World:
    """A worker with a lease learns nothing for a while; its clients must not notice."""
    world = begin(1, broken)
    one = world.producers[0]
    one.goal = 60
    name = one.worker
    assert go(world, reached("caught_up"))
    go(world, lambda _: record(world).step in GONE_ON[4:], f"{name} view", count=100)
    must(one.errors == 0, "P", "a write was refused while every lease was fresh")
    finish(world)
    return world


def slow_view_of_the_switch(broken: tuple[str, ...] = ()) -> World:
    """A consumer reads behind the cut through one worker, and goes on through another that knows of no switch."""
    world = begin(1, broken)
    for one in world.producers:
        one.goal = 60
    assert go(world, lambda one: record(one).hold == "switched", count=200)
    readers = list(world.readers)
    behind = world.workers["worker-1"]
    world.readers = []
    go(
        world,
        lambda one: all(one.clusters["west"].high[n] > record(one).cut["orders"][n] + 3 for n in (0, 1)),
        "worker-1 view",
        count=60,
    )
    other = world.workers["worker-2"]
    for reader in readers:
        for _ in range(20):
            other.fetch(reader, "west")
            go(world, lambda _: False, "worker-1 view", count=1)
        behind.fetch(reader, behind.named())
        go(world, lambda _: False, "worker-1 view", count=2)
    world.readers = readers
    finish(world)
    return world


def cut_off_reader(broken: tuple[str, ...] = ()) -> World:
    """The same through a worker that has lost the store, and with it its lease."""
    world = begin(1, broken)
    for one in world.producers:
        one.goal = 60
    assert go(world, lambda one: record(one).hold == "switched", count=200)
    behind = world.workers["worker-1"]
    readers, world.readers = list(world.readers), []
    pass_time(world, 11.0)
    world.workers["worker-2"].renew()
    world.leases.pop("worker-1")
    quiet = ("worker-1",)
    assert go(
        world, lambda one: all(one.clusters["west"].high[n] > record(one).cut["orders"][n] + 3 for n in (0, 1)), *quiet
    )
    for reader in readers:
        for _ in range(20):
            world.workers["worker-2"].fetch(reader, "west")
            go(world, lambda _: False, *quiet, count=1)
        behind.fetch(reader, "east")
    for _ in range(4):
        world.deliver(("worker-1", "east"))
        behind.receive()
    world.readers = readers
    finish(world)
    return world


def sleeper_before_a_move_back(broken: tuple[str, ...] = ()) -> World:
    """A worker's write waits in a queue over a whole move, until the source is open again, as a copy."""
    world, name = stuck(broken)
    still = (f"wire ('{name}', 'east')", name)
    assert go(world, lambda one: record(one).hold == "switched", still[0])
    world.leases.pop(name)
    go(world, reached("redirect"), *still)
    assert world.move_back()
    go(world, lambda one: all(one.clusters["east"].takes), *still, count=100)
    deliver_all(world, name)
    finish(world)
    return world


def late_reopener(broken: tuple[str, ...] = ()) -> World:
    """A worker lifts, and falls asleep before it reopens. It wakes up when the next hold has settled."""
    world, name = stuck(broken)
    wire = f"wire ('{name}', 'east')"
    assert go(world, reached("settle"), wire)
    first = world.workers["worker-1"]
    pass_time(world, 3.5)
    for one in world.workers.values():
        one.renew()
    first.learn()
    first.tick()
    assert record(world).hold == "lifted" and record(world).reopeners[-1] == "worker-1"
    first.think()
    sleeping = list(first.todo)
    assert any(isinstance(each[2], Reopen) for each in sleeping)
    first.todo.clear()
    first.think = lambda: None  # type: ignore[method-assign]
    first.pending = lambda: True  # type: ignore[method-assign]
    go(world, lambda one: record(one).attempt == 2 and record(one).step == "finish", wire, count=400)
    del first.think, first.pending
    first.todo.extend(sleeping)
    wires = (wire, "wire ('worker-2', 'east')", "wire ('worker-1', 'east')")
    while first.todo:
        first.act()
    own = world.wires[("worker-1", "east")]
    late = [request for request in own if request.kind == "change"]
    for request in late:  # it comes on a connection of its own
        own.remove(request)
        world._change(world.clusters["east"], request.body)
    go(world, lambda one: record(one).hold in ("released", "lifted"), *wires, count=60)
    deliver_all(world, name)
    finish(world)
    return world


def late_closer(broken: tuple[str, ...] = ()) -> World:
    """A controller falls asleep before it closes; it wakes up after a move, and a move back."""
    world = begin(1, broken)
    for one in world.producers:
        one.goal = 90
    first = world.controllers[world.leader]
    assert go(world, reached("close"))
    while not first.todo:
        first.think()
    first.paused = True
    world.elect()
    assert go(world, reached("redirect")) and world.move_back()
    go(world, reached("redirect", 1), count=150)
    finish(world)
    return world


def lost_acknowledgement(broken: tuple[str, ...] = ()) -> World:
    """A record is in the source's log, its acknowledgement is lost, and it is sent again after the switch."""
    world = begin(1, broken)
    one = world.producers[0]
    one.goal = 60
    assert go(world, lambda w: holding(w) and bool(one.flying), f"wire ('{one.worker}', 'east')")
    return _lose(world, one)


def overtaken(broken: tuple[str, ...] = ()) -> World:
    """The same, while a later record of that producer was read and held: it is forwarded although its client has gone,
    and gets there before the one that is sent again."""
    world = begin(1, broken)
    one = world.producers[0]
    one.goal = 60
    name = one.worker
    wire = f"wire ('{name}', 'east')"
    assert go(world, lambda _: not one.flying and not one.again, "producer 0", "controller")
    one.send()
    assert go(world, lambda w: holding(w) and name in told(w), wire, "producer 0")
    one.send()
    assert len(one.flying) == 2
    deliver_all(world, name)
    one.drop()
    while one.worker == name:
        one.drop()
    go(
        world,
        lambda w: (0, 7) in w.clusters["west"].producers,
        "producer 0",
    )
    finish(world)
    return world


def told(world: World) -> list[str]:
    """Workers that hold."""
    return [
        name for name, one in world.workers.items() if any(known.hold == "held" for known, _ in one.records.values())
    ]


def _lose(world: World, one: Producer) -> World:
    worker: Serving = world.workers[one.worker]
    key = (worker.name, "east")
    while world.wires.get(key):
        world.deliver(key)
    one.drop()
    finish(world)
    return world


# -- what is left out, and what then goes wrong -----------------------------------------------------------------------


def none(record: MigrationRecord, facts: Facts, revision: int = 0) -> list[str]:
    return []


def unasked(record: MigrationRecord, facts: Facts) -> list[tuple[str, int]]:
    """The close was answered; no leader was asked."""
    return [one for one in parts(record) if one not in facts.probes]


def unchanged(code: int, fresh: bool, same: bool) -> int:
    return code


Break = Callable[[pytest.MonkeyPatch], None]


def without(module: object, name: str, instead: Callable[..., object]) -> Break:
    return lambda patch: patch.setattr(module, name, instead)


def no_hold(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(gates, "unheld", none)
    patch.setattr(gates, "undrained", none)


def nothing(patch: pytest.MonkeyPatch) -> None:
    pass


CASES: dict[str, tuple[Callable[..., World], Break, tuple[str, ...], str]] = {
    "close": (stuck_write, nothing, ("close",), "I3"),
    "probe": (slow_leader, without(gates, "unclosed", unasked), (), "I3"),
    "settle": (slow_follower, nothing, ("settle",), "I1"),
    "acknowledged holds": (slow_view, no_hold, (), "P"),
    "ready workers before release": (slow_view_of_the_switch, without(gates, "unready", none), (), "I2"),
    "the rule for readers": (cut_off_reader, without(fence, "fetch_error", unchanged), (), "I2"),
    "registered workers": (sleeper_before_a_move_back, without(gates, "unacknowledged", none), (), "I3"),
    "reopeners": (late_reopener, without(gates, "hands", none), (), "I3"),
    "closers": (late_closer, without(gates, "hands", none), (), "progress"),
    "guard": (lost_acknowledgement, nothing, ("guard",), "I5"),
    "guard where the leader knows more": (overtaken, nothing, ("late guard",), "progress"),
}


@pytest.mark.parametrize("part", CASES)
def test_each_part_is_needed(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A story that ends well; and the same one without the part, which breaks just that invariant."""
    story, without_it, broken, invariant = CASES[part]
    story()
    without_it(monkeypatch)
    with pytest.raises(Violated, match=f"^{invariant}:"):
        story(broken)
