"""Endpoints next to each other, in interleaved rounds; the first one is the baseline (a direct connection)."""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from confluent_kafka.admin import AdminClient, NewTopic

from tools.bench import load

Row = dict[str, float]


@dataclass(frozen=True)
class Endpoint:
    """An address, and the process whose CPU and memory are read (0: none)."""

    bootstrap: str
    pid: int = 0


@dataclass(frozen=True)
class Sizes:
    """How much is measured in each round."""

    rounds: int = 7
    big: int = 300_000  # records of 1 KiB
    small: int = 1_000_000  # records of 100 B
    rate: float = 500.0  # records a second in the latency phase
    seconds: float = 8.0  # its length
    connections: int = 500  # idle connections a batch; 0 leaves them out


@dataclass
class Comparison:
    """What was measured: a row a round for each endpoint."""

    sizes: Sizes
    base: str
    rows: dict[str, list[Row]] = field(default_factory=dict)
    idle_mib: dict[str, float] = field(default_factory=dict)
    connection_kib: dict[str, list[float]] = field(default_factory=dict)

    def median(self, name: str, key: str) -> float:
        return statistics.median(row[key] for row in self.rows[name])

    def ratio(self, name: str, key: str, faster: bool) -> tuple[float, float]:
        """To the baseline: (median of the rounds' ratios, best round against best round). `faster`: as a rate."""
        mine, theirs = self.rows[name], self.rows[self.base]
        median = statistics.median(a[key] / b[key] for a, b in zip(mine, theirs, strict=True))
        best = min(a[key] for a in mine) / min(b[key] for b in theirs)
        return (1 / median, 1 / best) if faster else (median, best)


def _measured(row: Row, key: str, pid: int, work: Callable[[], float]) -> None:
    before = load.cpu(pid)
    row[key] = work()
    row["cpu_" + key] = load.cpu(pid) - before


def _round(admin: AdminClient, number: int, name: str, end: Endpoint, sizes: Sizes) -> Row:
    topics = [f"bench-{name}-{number}-{kind}-{os.getpid()}" for kind in ("big", "small", "lat")]
    for future in admin.create_topics([NewTopic(one, load.PARTITIONS, 1) for one in topics]).values():
        future.result()
    time.sleep(0.5)  # leaders settle; not measured
    row: Row = {}
    _measured(row, "p_big", end.pid, lambda: load.produce(end.bootstrap, topics[0], load.BIG, sizes.big))
    _measured(row, "c_big", end.pid, lambda: load.consume(end.bootstrap, topics[0], sizes.big))
    _measured(row, "p_small", end.pid, lambda: load.produce(end.bootstrap, topics[1], load.SMALL, sizes.small))
    _measured(row, "c_small", end.pid, lambda: load.consume(end.bootstrap, topics[1], sizes.small))
    before = load.cpu(end.pid)
    lags = load.latency(end.bootstrap, topics[2], sizes.rate, sizes.seconds)
    row["cpu_lat"] = load.cpu(end.pid) - before
    row["p50"], row["p99"] = (lags[int(len(lags) * share)] * 1e3 for share in (0.5, 0.99))
    row["rss"] = load.resident(end.pid) / 1024
    for future in admin.delete_topics(topics).values():
        future.result()
    return row


def compare(ends: Mapping[str, Endpoint], sizes: Sizes) -> Comparison:
    """Measure; every endpoint must lead to the same cluster. The first round warms up and is not counted."""
    names = list(ends)
    found = Comparison(sizes, names[0], rows={name: [] for name in names})
    admin = AdminClient({"bootstrap.servers": ends[found.base].bootstrap})
    for name, end in ends.items():
        found.idle_mib[name] = load.resident(end.pid) / 1024
        if sizes.connections:
            found.connection_kib[name] = load.idle_connections(end.bootstrap, end.pid, sizes.connections)
    for number in range(sizes.rounds + 1):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            row = _round(admin, number, name, ends[name], sizes)
            if number:
                found.rows[name].append(row)
            print(f"round {number} {name} " + " ".join(f"{k}={v:.2f}" for k, v in row.items()), file=sys.stderr)
    return found


def _head(*columns: str) -> list[str]:
    names = ("endpoint", *columns)
    return ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]


def report(found: Comparison) -> str:
    """Two Markdown tables."""
    sizes = found.sizes
    gb, mb, mil = sizes.big * load.BIG / 1e9, sizes.big * load.BIG / 1e6, sizes.small / 1e6

    def ratios(name: str, key: str, faster: bool) -> str:
        return ", ".join(f"{one:.2f}" for one in found.ratio(name, key, faster))

    lines = [
        f"Medians of {sizes.rounds} interleaved rounds; in brackets the ratio to {found.base}:",
        "median of the rounds' ratios, best round against best round.",
        "",
        *_head(
            "produce 1 KiB MB/s",
            "produce 100 B kmsg/s",
            "consume 1 KiB MB/s",
            "consume 100 B kmsg/s",
            f"p50 ms at {sizes.rate:g}/s",
            "p99 ms",
        ),
    ]
    for name in found.rows:
        cells = [
            f"{work / found.median(name, key):.0f} ({ratios(name, key, True)})"
            for key, work in (("p_big", mb), ("p_small", mil * 1e3), ("c_big", mb), ("c_small", mil * 1e3))
        ]
        cells += [f"{found.median(name, key):.2f} ({ratios(name, key, False)})" for key in ("p50", "p99")]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "CPU seconds of the process itself (user and system), and resident memory.",
        "",
        *_head(
            "produce 1 KiB s/GB",
            "consume 1 KiB s/GB",
            "produce 100 B s/Mmsg",
            "consume 100 B s/Mmsg",
            f"s/Mmsg at {sizes.rate:g}/s",
            "RSS idle MiB",
            "RSS after load MiB",
            "KiB/idle connection",
        ),
    ]
    paced = sizes.rate * sizes.seconds / 1e6
    for name in found.rows:
        cells = [
            f"{found.median(name, 'cpu_' + key) / work:.2f}"
            for key, work in (("p_big", gb), ("c_big", gb), ("p_small", mil), ("c_small", mil), ("lat", paced))
        ]
        held = found.connection_kib.get(name)
        cells += [f"{found.idle_mib[name]:.0f}", f"{found.median(name, 'rss'):.0f}"]
        cells.append(f"{statistics.median(held):.0f}" if held else "-")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
