"""`make bench-mirror`: kfed's replicator next to MirrorMaker 2, in one run, interleaved.

Both mirror the same topics from one cluster to another, and are processes that are paused (SIGSTOP) while the source is
filled and while the other one works. A round begins when a process that has long been running is resumed in front of
a backlog, and ends when the target has it all; CPU is the process's own, all threads. One round goes before those that
count, so MirrorMaker is measured warm. Prints Markdown.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from tools.bench.__main__ import machine
from tools.bench.mirror_load import (
    RECORD,
    Filler,
    Shape,
    checkpoints,
    commit,
    create,
    log_of,
    number_records,
    paced,
    until,
    value_at,
)
from tools.bench.mirror_process import SOURCE, TARGET
from tools.bench.replicators import Kfed, MirrorMaker, Replication
from tools.local_cluster import Cluster, ClusterSpec, running

PARTITIONS, MANY = 8, 500
RATE = 200.0
PATIENCE = 240.0
PHASES = ("none", "lz4", "many", "latency", "behind", "offsets")
DISTANCES = (0, 1, 10, 100, 1000, 5000, 10_000, 25_000)
NUMBERED = 30_000  # records of each partition whose offsets are translated
GROUP = "readers"


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    rounds: int = 3
    megabytes: float = 256.0  # of records' values, a round
    warm: float = 128.0
    many: float = 32.0  # with 500 partitions
    many_rounds: int = 2
    seconds: float = 8.0  # of the steady rate, a round
    latency_rounds: int = 2
    behind: float = 1024.0  # what one partition has to catch up with


@dataclass
class Round:
    """Megabytes (10^6) are those of the source's log; `values` of the records' values."""

    megabytes: float
    values: float
    wall: float
    cpu: float


Found = dict[tuple[str, str], list[Round]]  # (phase, process)


@dataclass
class Bench:
    source: Cluster
    target: Cluster
    sizes: Sizes
    only: Sequence[str] = PHASES  # processes' names
    profile: Path | None = None
    tuned: bool = False
    rounds: Found = field(default_factory=dict)

    # -- processes ------------------------------------------------------------------------------------------------

    @contextmanager
    def both(
        self, alias: str, shapes: Sequence[Shape], settings: Mapping[str, str] | None = None
    ) -> Iterator[list[Replication]]:
        """Topics, and both processes mirroring them; paused."""
        create(self.source.bootstrap(), *shapes)
        makers: list[Replication] = []
        try:
            if "mm" in self.only:
                pattern = "|".join(one.topic for one in shapes)
                makers.append(MirrorMaker(self.source, self.target, alias, pattern, settings, tuned=self.tuned))
            if "kfed" in self.only:
                makers.insert(0, Kfed(self.source, self.target, [one.topic for one in shapes], self.profile))
            for shape in shapes:  # a first record through all of it
                Filler(self.source.bootstrap(), shape).fill(0)
            for maker in makers:
                for shape in shapes:
                    self._arrives(maker, shape, [0] * shape.partitions)
            yield makers
        finally:
            for maker in makers:
                maker.stop()

    def _arrives(self, maker: Replication, shape: Shape, before: Sequence[int]) -> None:
        copy = maker.target_of(shape.topic)
        with (
            log_of(self.source.bootstrap(), shape.topic, shape.partitions) as source,
            log_of(self.target.bootstrap(), copy, shape.partitions) as target,
        ):
            # A mirror's target has control records of its own, so ends are not simply equal.
            wanted = [at + max(end, 0) for at, end in zip(before, source.ends(), strict=True)]

            def there() -> bool:
                maker.check()
                if isinstance(maker, Kfed) and maker.ask("behind", shape.topic):
                    return False
                return all(end >= at for end, at in zip(target.ends(), wanted, strict=True))

            until(there, f"{maker.name}: {shape.topic}", PATIENCE, 0.005 if shape.partitions < 50 else 0.02)

    # -- throughput -----------------------------------------------------------------------------------------------

    def throughput(
        self, phase: str, makers: Sequence[Replication], shape: Shape, megabytes: float, rounds: int
    ) -> None:
        filler = Filler(self.source.bootstrap(), shape)
        for number in range(rounds + 1):
            for maker in makers:
                maker.pause()
            size = megabytes if number else min(megabytes, self.sizes.warm)
            with log_of(self.source.bootstrap(), shape.topic, shape.partitions) as log:
                bytes_before, ends_before = log.bytes(), log.ends()
                records = filler.fill(size)
                grown = (log.bytes() - bytes_before) / 1e6
            turn = number % len(makers)
            for maker in [*makers[turn:], *makers[:turn]]:
                one = self._round(maker, shape, ends_before, grown, records)
                if number:
                    self.rounds.setdefault((phase, maker.name), []).append(one)
                rate = one.megabytes / one.cpu if one.cpu else float("nan")
                print(
                    f"{phase} {maker.name} round {number}: {one.megabytes:.0f} MB, wall {one.wall:.2f} s, "
                    f"CPU {one.cpu:.2f} s, {rate:.0f} MB a CPU second",
                    file=sys.stderr,
                )
            for maker in makers:
                maker.resume()
        for maker in makers:
            with log_of(self.target.bootstrap(), maker.target_of(shape.topic), shape.partitions) as log:
                print(f"{phase} {maker.name}: the copy takes {log.bytes() / 1e6:.0f} MB", file=sys.stderr)

    def _round(self, maker: Replication, shape: Shape, before: Sequence[int], grown: float, records: int) -> Round:
        copy = maker.target_of(shape.topic)
        with (
            log_of(self.source.bootstrap(), shape.topic, shape.partitions) as source,
            log_of(self.target.bootstrap(), copy, shape.partitions) as target,
        ):
            wanted = [at + end - old for at, end, old in zip(target.ends(), source.ends(), before, strict=True)]
            cpu, start = maker.cpu(), time.perf_counter()
            maker.resume()
            until(
                lambda: all(end >= at for end, at in zip(target.ends(), wanted, strict=True)),
                f"{maker.name}: {shape.topic}",
                PATIENCE,
                0.005 if shape.partitions < 50 else 0.02,
            )
            wall, cpu = time.perf_counter() - start, maker.cpu() - cpu
            maker.pause()
        return Round(grown, records * RECORD / 1e6, wall, cpu)

    # -- latency --------------------------------------------------------------------------------------------------

    def latency(self, maker: Replication, shape: Shape, going: Callable[[float], bool]) -> tuple[list[float], ...]:
        """Sorted seconds: (until a consumer at the source, from there to one at the target)."""
        maker.resume()
        direct, added = paced(
            self.source.bootstrap(),
            shape.topic,
            self.target.bootstrap(),
            maker.target_of(shape.topic),
            range(shape.partitions),
            RATE,
            going,
        )
        maker.pause()
        return sorted(direct), sorted(added)

    def steady(self, makers: Sequence[Replication], shape: Shape) -> str:
        """Nothing else is going on. Rounds in turn; the medians of their percentiles."""
        seen: dict[str, list[tuple[float, ...]]] = {}
        for maker in makers:
            maker.pause()
        for number in range(self.sizes.latency_rounds + 1):
            for maker in makers:
                seconds = self.sizes.seconds if number else 2.0
                direct, added = self.latency(maker, shape, lambda since, end=seconds: since < end)  # type: ignore[misc]
                if number:
                    seen.setdefault(maker.name, []).append(
                        (_at(direct, 0.5), _at(direct, 0.99), _at(added, 0.5), _at(added, 0.99))
                    )
        rows = [
            (name, *(f"{statistics.median(column) * 1e3:.2f}" for column in zip(*some, strict=True)))
            for name, some in seen.items()
        ]
        return _table(("ms", "direct p50", "direct p99", "added p50", "added p99"), rows)

    def behind(self, makers: Sequence[Replication], big: Shape, live: Shape) -> str:
        """One partition has a backlog; others get records at the steady rate meanwhile."""
        filler = Filler(self.source.bootstrap(), big)
        for maker in makers:
            maker.pause()
        with log_of(self.source.bootstrap(), big.topic, 1) as source:
            before = source.ends()
            filler.fill(self.sizes.behind)
            count = source.ends()[0] - before[0]
        rows = []
        for maker in makers:
            with log_of(self.target.bootstrap(), maker.target_of(big.topic), 1) as target:
                wanted = target.ends()[0] + count
                took = [0.0]

                def going(since: float, target=target, wanted=wanted, took=took) -> bool:  # type: ignore[no-untyped-def]
                    if target.ends()[0] >= wanted:
                        took[0] = since
                        return False
                    return since < PATIENCE

                direct, added = self.latency(maker, live, going)
            rows.append(
                (
                    maker.name,
                    f"{took[0]:.1f}",
                    str(len(added)),
                    *(f"{one * 1e3:.1f}" for one in (_at(direct, 0.5), _at(direct, 0.99))),
                    *(f"{one * 1e3:.1f}" for one in (_at(added, 0.5), _at(added, 0.99), added[-1])),
                )
            )
        head = (
            "",
            "seconds until caught up",
            "live records",
            "direct p50 ms",
            "direct p99",
            "added p50",
            "added p99",
            "added worst",
        )
        return _table(head, rows)

    # -- offsets --------------------------------------------------------------------------------------------------

    def offsets(self, makers: Sequence[Replication], shape: Shape) -> str:
        """Committed offsets at several distances from the end, a partition each, carried over by either."""
        source, target = self.source.bootstrap(), self.target.bootstrap()
        places = list(zip(range(shape.partitions), DISTANCES, strict=True))
        with log_of(source, shape.topic, shape.partitions) as log:
            start = log.ends()
            for partition, _ in places:
                number_records(source, shape.topic, partition, start[partition], NUMBERED)
            ends = log.ends()
        for maker in makers:
            maker.resume()
        for maker in makers:
            self._arrives(maker, shape, [0] * shape.partitions)
        committed = {partition: ends[partition] - distance for partition, distance in places}
        commit(source, GROUP, shape.topic, committed)
        rows = []
        for maker in makers:
            copy = maker.target_of(shape.topic)
            if isinstance(maker, Kfed):
                found = {place: maker.ask("translate", shape.topic, place, at) for place, at in committed.items()}
            else:
                assert isinstance(maker, MirrorMaker)
                found = checkpoints(target, maker.alias, GROUP, copy, shape.partitions)
            with log_of(target, copy, shape.partitions) as log:
                last = log.ends()
            errors = []
            for place, at in committed.items():
                there = found[place]
                # A record holds the number that is its offset at the source.
                number = ends[place] if there >= last[place] else value_at(target, copy, place, there)
                errors.append(str(at - number))
            rows.append((maker.name, *errors))
        head = ("records read again, by distance of the committed offset from the end", *map(str, DISTANCES))
        return _table(head, rows)


# -- what it says -----------------------------------------------------------------------------------------------------


def _at(ordered: Sequence[float], share: float) -> float:
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(
        ["| " + " | ".join(head) + " |", "|---" * len(head) + "|", *("| " + " | ".join(row) + " |" for row in rows)]
    )


def throughputs(found: Found, shapes: Mapping[str, Shape]) -> str:
    """Medians, and the ratios to MirrorMaker of the same phase."""
    rows = []
    for (phase, name), some in found.items():
        shape = shapes[phase]
        cpu, wall, values = (
            statistics.median(one.megabytes / one.cpu for one in some),
            statistics.median(one.megabytes / one.wall for one in some),
            statistics.median(one.values / one.cpu for one in some),
        )
        other = found.get((phase, MirrorMaker.name)) if name != MirrorMaker.name else None
        ratios = ["", ""]
        if other is not None:
            ratios = [
                f"{cpu / statistics.median(one.megabytes / one.cpu for one in other):.1f}",
                f"{wall / statistics.median(one.megabytes / one.wall for one in other):.1f}",
            ]
        what = f"{shape.codec}, {shape.batch_kb} KB, {shape.partitions}"
        rows.append((what, name, f"{cpu:.0f}", f"{values:.0f}", f"{wall:.0f}", *ratios))
    head = (
        "codec, batch, partitions",
        "",
        "MB a CPU second",
        "values MB a CPU second",
        "MB/s",
        "CPU, times MirrorMaker",
        "wall clock, times",
    )
    return _table(head, rows)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.bench.mirror", description=__doc__)
    parser.add_argument("--rounds", type=int, default=Sizes.rounds)
    parser.add_argument("--quick", action="store_true", help="a tenth of the load, one round: to see that it works")
    parser.add_argument("--only", choices=("kfed", "mm"), help="leave the other one out")
    parser.add_argument(
        "--tuned", action="store_true", help="MirrorMaker with larger polls and batches than it comes with"
    )
    parser.add_argument("--phases", default=",".join(PHASES), help=f"some of {','.join(PHASES)}")
    parser.add_argument("--profile", type=Path, help="cProfile's figures of kfed's processes, into this directory")
    given = parser.parse_args()
    sizes = replace(Sizes(), rounds=given.rounds)
    if given.quick:
        sizes = Sizes(rounds=1, megabytes=32, warm=16, many=4, many_rounds=1, seconds=2, latency_rounds=1, behind=64)
    phases = given.phases.split(",")
    only = (given.only,) if given.only else ("kfed", "mm")
    broker = {"full_jit": True, "heap": "1g", "overrides": {"log.segment.bytes": str(1 << 30)}}
    spec = [ClusterSpec(name, **broker) for name in (SOURCE, TARGET)]  # type: ignore[arg-type]
    shapes = {
        f"{codec}{size}": Shape(f"mirror-{codec}-{size}", codec, size, PARTITIONS)
        for codec in ("none", "lz4")
        for size in (16, 64)
    }
    shapes["many"] = Shape("mirror-many", "none", 1, MANY)
    live, behind = Shape("mirror-live", "none", 1, PARTITIONS), Shape("mirror-behind", "none", 16, 1)
    numbered = Shape("mirror-numbered", "none", 1, len(DISTANCES))
    with running(*spec) as clusters:
        bench = Bench(clusters[SOURCE], clusters[TARGET], sizes, only, given.profile, given.tuned)
        tables: list[str] = []
        for codec in ("none", "lz4"):
            if codec in phases:
                some = {
                    name: one for name, one in shapes.items() if one.codec == codec and one.partitions == PARTITIONS
                }
                with bench.both(codec, list(some.values()), {"target.producer.compression.type": codec}) as makers:
                    for name, shape in some.items():
                        bench.throughput(name, makers, shape, sizes.megabytes, sizes.rounds)
        if "many" in phases:
            with bench.both("many", [shapes["many"]]) as makers:
                bench.throughput("many", makers, shapes["many"], sizes.many, sizes.many_rounds)
        if set(phases) & {"latency", "behind", "offsets"}:
            settings = {"emit.checkpoints.interval.seconds": "2", "refresh.groups.interval.seconds": "2"}
            with bench.both("live", [live, behind, numbered], settings) as makers:
                if "latency" in phases:
                    tables += [f"At {RATE:g} records/s, nothing else going on:", bench.steady(makers, live)]
                if "behind" in phases:
                    what = f"One partition is {sizes.behind:g} MB behind, {PARTITIONS} others get {RATE:g} records/s:"
                    tables += [what, bench.behind(makers, behind, live)]
                if "offsets" in phases:
                    tables += ["Offsets carried over:", bench.offsets(makers, numbered)]
        command = " ".join(["python -m tools.bench.mirror", *sys.argv[1:]])
        print(f"Machine: {machine()}.\nCommand: `make bench-mirror` (`{command}`).\n")
        print("\n\n".join([throughputs(bench.rounds, shapes), *tables]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
