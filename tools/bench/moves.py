"""`make bench-move`: the pause that producers and consumers see while a topic moves, and where the time goes.

A topic of 64 partitions gets 5 MB/s and moves back and forth between two clusters: by itself at first; then together
with a small one, which clients of the other libraries use. A pause is the longest time without an acknowledgement (or
a record) that overlaps the time from when writes begin to be held until half a second after the target is announced.
Each move is followed by a time of the same length in which nothing moves: what the machine itself does. Prints
Markdown.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import trio
from confluent_kafka.admin import AdminClient, NewTopic

from tools.bench.__main__ import machine
from tools.java_client import Consumer, Jvm, Producer
from tools.local_cluster import ClusterSpec, running
from tools.local_federation import Federation, program, run_federation
from tools.move_steps import Seen, Steps

BIG, SMALL = "bench-moves", "bench-moves-small"
PARTITIONS, FEW = 64, 8
RECORD = 1024
RATE = 5e6 / RECORD  # records a second
SMALL_RATE = 200
MARGIN = 0.5  # seconds after the announcement that count as well
REST = 3.0  # seconds between moves
MOVE = 120.0  # seconds until a move that does not end is an error
TARGETS = ("west", "east")  # a move each
P50, WORST = 0.100, 0.400  # what is asked

Window = tuple[float, float]
Gaps = list[tuple[float, float]]


def longest(gaps: Gaps, window: Window) -> float:
    begin, end = window
    return max((seconds for at, seconds in gaps if at >= begin and at - seconds <= end), default=0.0)


@dataclass
class Found:
    """Gaps by client, and what each move's record went through."""

    gaps: dict[str, Gaps] = field(default_factory=dict)
    errors: dict[str, list[str]] = field(default_factory=dict)
    windows: list[Window] = field(default_factory=list)
    quiet: list[Window] = field(default_factory=list)
    steps: list[list[Seen]] = field(default_factory=list)
    commands: list[float] = field(default_factory=list)


@asynccontextmanager
async def load(
    found: Found, federation: Federation, name: str, kind: str, topic: str, rate: float
) -> AsyncIterator[None]:
    """A client in a process of its own; what it saw is in `found` afterwards."""
    argv = [sys.executable, "-m", "tools.bench.move_load", kind, "--bootstrap", federation.bootstrap()]
    argv += ["--topic", topic, "--rate", str(rate), "--size", str(RECORD), "--group", f"bench-{kind}"]
    process = await trio.lowlevel.open_process(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdin is not None
    try:
        yield
        await process.stdin.aclose()
        text = b""
        with trio.fail_after(60):
            async for data in process.stdout:
                text += data
        said = json.loads(text.splitlines()[-1])
        found.gaps[name] = [(at, seconds) for at, seconds in said["gaps"]]
        if said["slow"]:
            found.gaps[f"{name}, slowest record"] = [(at, seconds) for at, seconds in said["slow"]]
        found.errors[name] = said["errors"]
    finally:
        process.kill()
        await process.wait()


@asynccontextmanager
async def java(found: Found, federation: Federation, jvm: Jvm) -> AsyncIterator[None]:
    """Java's producer and consumer, in one JVM."""
    async with (
        jvm.consumer(federation.java(), group="bench-java", start="latest", fetch_max_wait_ms="100") as consumer,
        jvm.producer(federation.java(), linger_ms="5", enable_idempotence="true") as producer,
    ):
        await consumer.subscribe(SMALL)
        await producer.start(SMALL, per_second=SMALL_RATE, size=RECORD, keys=50)
        errors: list[str] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_taking, producer, consumer, errors)
            yield
            nursery.cancel_scope.cancel()
        await producer.stop()
        found.gaps["Java producer"] = [(one.end, one.seconds) for one in await producer.gaps()]
        found.gaps["Java consumer"] = [(one.end, one.seconds) for one in await consumer.gaps()]
        found.errors["Java"] = errors


async def _taking(producer: Producer, consumer: Consumer, errors: list[str]) -> None:
    """What has arrived must be fetched, so that it does not pile up."""
    while True:
        errors += [str(one.error) for one in await producer.take() if one.error]
        taken = await consumer.read(1, 0.1)
        errors += [str(event.error) for event in taken.events if event.error]
        await trio.sleep(0.1)


async def move(federation: Federation, steps: Steps, topics: Sequence[str], target: str, found: Found) -> None:
    began = time.time()
    argv = [program(), "migrate", *topics, "--to", target, "--apply", "--wait", "--admin", federation.admin]
    with trio.fail_after(MOVE):
        ran = await trio.run_process(argv, capture_stdout=True, capture_stderr=True, check=False)
    if ran.returncode:
        raise SystemExit(f"{' '.join(argv)}: {ran.stdout.decode()}{ran.stderr.decode()}")
    found.commands.append(time.time() - began)
    await trio.sleep(REST)  # what clients still have to notice
    seen = steps.of([BIG], began)
    moving = next(one.record.id for one in seen if one.record.hold == "held")
    seen = [one for one in seen if one.record.id == moving]  # without the move before, which it takes over
    held = [one.at for one in seen if one.record.hold == "held"]
    announced = [one.at for one in seen if one.record.hold == "announced"]
    window = (held[0], announced[0] + MARGIN)
    found.windows.append(window)
    found.steps.append(seen)
    begin = time.time()
    await trio.sleep(window[1] - window[0])
    found.quiet.append((begin, time.time()))


async def measure(federation: Federation, jvm: Jvm | None, moves: int, rate: float, target: str) -> Found:
    """One librdkafka producer and consumer; with `jvm` also the other libraries', on a topic that moves as well. The
    first move is to `target`."""
    found, steps = Found(), Steps(federation)
    topics = (BIG,) if jvm is None else (BIG, SMALL)
    loads: Sequence[tuple[str, str, str, float]] = (
        ("librdkafka producer", "librdkafka-produce", BIG, rate),
        ("librdkafka consumer", "librdkafka-consume", BIG, 0.0),
        ("aiokafka producer", "aiokafka-produce", SMALL, SMALL_RATE),
        ("aiokafka consumer", "aiokafka-consume", SMALL, 0.0),
    )
    targets = itertools.cycle(TARGETS if target == TARGETS[0] else TARGETS[::-1])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(steps.run)
        async with AsyncExitStack() as stack:
            for one in loads:
                if one[2] in topics:
                    await stack.enter_async_context(load(found, federation, *one))
            if jvm is not None:
                await stack.enter_async_context(java(found, federation, jvm))
            await trio.sleep(2 * REST)  # clients are warm
            for number in range(moves + 1):
                await move(federation, steps, topics, next(targets), found)
                print(f"move {number} of {moves}: {found.commands[-1]:.1f} s", file=sys.stderr)
        nursery.cancel_scope.cancel()
    # The first one goes onto a cluster that has never had the topic, with nothing warm: it is told apart.
    return found


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(
        ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
        + ["| " + " | ".join(row) + " |" for row in rows]
    )


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.0f}"


def pauses(found: Found) -> str:
    rows = []
    for name, gaps in found.gaps.items():
        mine = [longest(gaps, window) for window in found.windows]
        quiet = [longest(gaps, window) for window in found.quiet[1:]]
        figures = [statistics.median(mine[1:]), max(mine[1:]), mine[0], statistics.median(quiet), max(quiet)]
        rows.append([name, *map(milliseconds, figures)])
    head = ["longest pause, ms", "p50", "worst", "the first move", "nothing moves: p50", "worst"]
    return table(head, rows)


def durations(seen: Sequence[Seen]) -> dict[str, float]:
    """Seconds from when each step was recorded until the next one was, of the last hold."""
    begun: dict[str, float] = {}
    for one in seen:
        if one.record.step == "hold":
            begun = {}
        begun.setdefault(one.record.step, one.at)
    order = sorted(begun.items(), key=lambda item: item[1])
    return {step: after - at for (step, at), (_, after) in itertools.pairwise(order)}


def steps_table(found: Found) -> str:
    each = [durations(seen) for seen in found.steps[1:]]
    names = dict.fromkeys(step for one in each for step in one)
    rows = []
    for step in names:
        some = [one[step] for one in each if step in one]
        rows.append([step, milliseconds(statistics.median(some)), milliseconds(max(some))])
    whole = [_held(seen) for seen in found.steps[1:]]
    rows.append(["writes held, altogether", milliseconds(statistics.median(whole)), milliseconds(max(whole))])
    return table(["step, ms until the next one", "p50", "worst"], rows)


def _held(seen: Sequence[Seen]) -> float:
    """Seconds from the last hold's record to the release's."""
    held = next(one.at for one in seen if one.record.hold == "held")
    return next(one.at for one in seen if one.record.hold in ("released", "announced") and one.at > held) - held


def report(found: Found, moves: int) -> str:
    mine = [longest(found.gaps["librdkafka producer"], window) for window in found.windows[1:]]
    holds = sum(one.record.attempt for one in (seen[-1] for seen in found.steps[1:]))
    took = found.commands[1:]
    told = f"A command with `--wait` took {statistics.median(took):.1f} s, at most {max(took):.1f} s."
    parts = [
        pauses(found),
        steps_table(found),
        f"{moves} moves, {holds} holds. {told} Errors: {_errors(found.errors)}.",
        table(
            ["librdkafka producer, ms", "asked", "measured"],
            [
                ["p50", f"< {milliseconds(P50)}", milliseconds(statistics.median(mine))],
                ["worst", f"< {milliseconds(WORST)}", milliseconds(max(mine))],
            ],
        ),
    ]
    return "\n\n".join(parts)


def _errors(errors: Mapping[str, Sequence[str]]) -> str:
    return "; ".join(f"{name}: {some[0]} ({len(some)})" for name, some in errors.items() if some) or "none"


def create(federation: Federation) -> None:
    admin = AdminClient({"bootstrap.servers": federation.bootstrap()})
    topics = [NewTopic(BIG, PARTITIONS, 1), NewTopic(SMALL, FEW, 1)]
    for future in admin.create_topics(topics).values():
        future.result(60)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.bench.moves", description=__doc__)
    parser.add_argument("--moves", type=int, default=20)
    parser.add_argument("--megabytes", type=float, default=RATE * RECORD / 1e6, help="a second")
    given = parser.parse_args()
    spec = [
        ClusterSpec(
            name, first_broker_id=number, full_jit=True, heap="1g", overrides={"log.segment.bytes": str(1 << 28)}
        )
        for name, number in (("east", 1), ("west", 11))
    ]
    rate = given.megabytes * 1e6 / RECORD
    with running(*spec) as clusters, run_federation(clusters) as federation:
        create(federation)
        alone = trio.run(measure, federation, None, given.moves, rate, TARGETS[0])
        print(f"Machine: {machine()}.\nCommand: `make bench-move` (`python -m tools.bench.moves`).\n")
        print(f"{PARTITIONS} partitions, {given.megabytes:g} MB/s; two proxy workers; all of it on one machine.\n")
        print(report(alone, given.moves), flush=True)
        there = TARGETS[given.moves % 2]
        if there != TARGETS[1]:  # where it was made
            argv = [program(), "migrate", SMALL, "--to", there, "--apply", "--wait", "--admin", federation.admin]
            subprocess.run(argv, check=True, capture_output=True, timeout=MOVE)
        with Jvm(full_jit=True) as jvm:
            together = trio.run(measure, federation, jvm, given.moves // 2, rate, TARGETS[(given.moves + 1) % 2])
        print("\nTogether with a second topic, and with the clients of three libraries on the same machine:\n")
        print(report(together, given.moves // 2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
