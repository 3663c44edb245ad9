"""`python -m tools.bench.moved`: topics that have moved, next to one that never did, on one cluster through one worker.

One topic moved there, one moved there, away and back; the third was always there. All hold the same load, most of it
written before the moves. Every round consumes and produces all three, beginning with another one each time. Prints
Markdown; the ratios are to the topic that never moved: best round against best round, and medians.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable

import trio
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

from tools.bench.__main__ import machine, worker_pid
from tools.bench.load import BIG, PARTITIONS, PATIENCE, LoadFailed, consume, cpu, produce
from tools.hand_move import move
from tools.local_cluster import ClusterSpec, running
from tools.local_federation import Federation, run_federation

ROUTES = {"never": ("there",), "once": ("here", "there"), "and back": ("there", "here", "there")}
ASKED = 0.85  # of consuming what never moved


def topics(federation: Federation) -> dict[str, str]:
    """Made where their routes begin: names that end in "-west" live on the second cluster."""
    run = f"{os.getpid()}-{int(time.time())}"
    names = {
        kind: f"bench-{kind.replace(' ', '-')}-{run}" + ("-west" if route[0] == "there" else "")
        for kind, route in ROUTES.items()
    }
    admin = AdminClient(federation.librdkafka())
    for made in admin.create_topics([NewTopic(name, PARTITIONS, 1) for name in names.values()]).values():
        made.result(30)
    return names


def fill(bootstrap: str, topic: str, count: int) -> None:
    """Records in batches of one size, whatever else the machine does meanwhile: topics are compared with each other."""
    client = Producer(
        {
            "bootstrap.servers": bootstrap,
            "queue.buffering.max.messages": 1_000_000,
            "queue.buffering.max.kbytes": 2_000_000,
            "batch.num.messages": 64,
            "linger.ms": 2000,
            "compression.type": "none",
        }
    )
    value = os.urandom(BIG)
    for number in range(count + PARTITIONS):
        client.produce(topic, value, partition=number % PARTITIONS)
        if number % 1000 == 0:
            client.poll(0.001)
    if client.flush(PATIENCE):
        raise LoadFailed(f"{bootstrap}: records left unacknowledged")


def measure(
    federation: Federation, names: dict[str, str], rounds: int, count: int
) -> dict[str, dict[str, list[float]]]:
    """Seconds by kind and work; the first round is not counted. Reading comes first: writing grows the topics."""
    got: dict[str, dict[str, list[float]]] = {kind: {} for kind in names}
    address, pid, kinds = federation.bootstrap(), worker_pid(federation), list(names)
    works: dict[str, Callable[[str], float]] = {
        "consume": lambda topic: consume(address, topic, count),
        "produce": lambda topic: produce(address, topic, BIG, count // 4),
    }
    for work, run in works.items():
        for number in range(rounds + 1):
            turn = number % len(kinds)
            for kind in kinds[turn:] + kinds[:turn]:
                before = cpu(pid)
                seconds = run(names[kind])
                if number:
                    got[kind].setdefault(work, []).append(seconds)
                    got[kind].setdefault(work + " CPU", []).append(cpu(pid) - before)
    return got


def report(got: dict[str, dict[str, list[float]]], count: int) -> str:
    lines = ["| topic moved | consume MB/s | of never: best, median | CPU s/GB | produce MB/s | of never | CPU s/GB |"]
    lines.append("|---|---|---|---|---|---|---|")
    base = got["never"]
    for kind, works in got.items():
        cells = [kind]
        for work, records in (("consume", count), ("produce", count // 4)):
            mb = records * BIG / 1e6
            best = min(base[work]) / min(works[work])
            middle = statistics.median(base[work]) / statistics.median(works[work])
            cells += [
                f"{mb / statistics.median(works[work]):.0f}",
                f"{best:.2f}, {middle:.2f}",
                f"{statistics.mean(works[work + ' CPU']) / mb * 1e3:.2f}",
            ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.bench.moved", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--records", type=int, default=200_000, help="of 1 KiB, of each topic, a round")
    given = parser.parse_args()
    size = {"full_jit": True, "heap": "1g", "overrides": {"log.segment.bytes": str(1 << 30)}}
    specs = [ClusterSpec("east", **size), ClusterSpec("west", first_broker_id=11, **size)]  # type: ignore[arg-type]
    with running(*specs) as clusters, run_federation(clusters, proxy={"workers": 1}) as federation:
        places = {"here": clusters["east"], "there": clusters["west"]}
        names = topics(federation)
        for kind, name in names.items():
            fill(federation.bootstrap(), name, given.records)
            for source, target in zip(ROUTES[kind], ROUTES[kind][1:], strict=False):
                trio.run(move, federation, places[source], places[target], name)
        got = measure(federation, names, given.rounds, given.records)
        print(f"Machine: {machine()}.\n")
        print(report(got, given.records), end="\n\n")
        worst = min(min(got["never"]["consume"]) / min(got[kind]["consume"]) for kind in names)
        print(f"Asked: consuming >= {ASKED} of the topic that never moved; measured {worst:.2f} (best rounds).")
    return 0


if __name__ == "__main__":
    sys.exit(main())
