"""`make bench`: one real broker, directly and through one proxy worker, in one run, interleaved.

Prints Markdown: the machine, the command, the tables, the time Metadata of 10,000 partitions takes, and how the
figures stand to what the project asks of itself.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

from confluent_kafka.admin import AdminClient, NewTopic

from kafka_wire.frames import request_frame
from tools.bench.compare import Comparison, Endpoint, Sizes, compare, report
from tools.bench.raw import exchange
from tools.local_cluster import ClusterSpec, running
from tools.local_federation import Federation, run_federation

WIDE_TOPICS, WIDE_PARTITIONS = 100, 100
METADATA = 3


def worker_pid(federation: Federation) -> int:
    """The process that serves clients."""
    return int(federation.ask("/api/v1/proxies")["proxies"][0]["pid"])


def machine() -> str:
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    system = f"Linux {platform.release()}, Python {platform.python_version()}"
    return f"{os.cpu_count()} cores, {model}, {memory:.0f} GiB, {system}"


def wide_metadata(direct: str, endpoint: str) -> str:
    """Milliseconds of a Metadata request for all topics, with 10,000 partitions, next to the broker's own."""
    admin = AdminClient({"bootstrap.servers": direct})
    topics = [NewTopic(f"wide-{number}", WIDE_PARTITIONS, 1) for number in range(WIDE_TOPICS)]
    for start in range(0, WIDE_TOPICS, 10):
        for future in admin.create_topics(topics[start : start + 10]).values():
            future.result()
    frame = request_frame(METADATA, 12, 1, "bench", {"topics": None})
    deadline = time.monotonic() + 60
    names = [f"wide-{WIDE_TOPICS - 1}"]
    watching = AdminClient({"bootstrap.servers": endpoint})
    while names[0] not in watching.list_topics(timeout=10).topics and time.monotonic() < deadline:
        time.sleep(0.2)
    rows = []
    for name, address in (("direct", direct), ("kfed", endpoint)):
        with exchange(address) as ask:
            sizes = [len(ask(frame)) for _ in range(3)]
            times = []
            for _ in range(30):
                start_at = time.perf_counter()
                ask(frame)
                times.append((time.perf_counter() - start_at) * 1e3)
        rows.append(f"| {name} | {statistics.median(times):.2f} | {max(times):.2f} | {sizes[-1] / 1024:.0f} |")
    head = ["| Metadata, 10,000 partitions | median ms | worst ms | KiB |", "|---|---|---|---|"]
    return "\n".join(head + rows)


def targets(found: Comparison) -> str:
    """What is asked, and what was measured (best round against best round)."""
    name = "kfed"
    gb = found.sizes.big * 1024 / 1e9
    cpu = max(found.median(name, "cpu_p_big"), found.median(name, "cpu_c_big")) / gb
    held = found.connection_kib.get(name)
    rows = [
        ("producing 1 KiB, of direct", ">= 0.85", f"{found.ratio(name, 'p_big', True)[1]:.2f}"),
        ("consuming 1 KiB, of direct", ">= 0.80", f"{found.ratio(name, 'c_big', True)[1]:.2f}"),
        ("CPU s/GB in the proxy, the worse of both", "<= 0.40", f"{cpu:.2f}"),
        (f"p50 at {found.sizes.rate:g}/s, of direct", "<= 1.7", f"{found.ratio(name, 'p50', False)[1]:.2f}"),
        ("KiB an idle connection", "<= 32", f"{statistics.median(held):.0f}" if held else "-"),
    ]
    return "\n".join(["| what | asked | measured |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=Sizes.rounds)
    parser.add_argument("--quick", action="store_true", help="a tenth of the load, two rounds: to see that it works")
    parser.add_argument("--no-metadata", action="store_true", help="leave the 10,000 partitions out")
    given = parser.parse_args()
    sizes = replace(Sizes(), rounds=given.rounds)
    if given.quick:
        sizes = Sizes(rounds=2, big=30_000, small=100_000, seconds=2, connections=50)
    broker = ClusterSpec("bench", full_jit=True, heap="1g", overrides={"log.segment.bytes": str(1 << 30)})
    with (
        running(broker) as clusters,
        run_federation(clusters, proxy={"workers": 1}) as federation,
    ):
        direct = clusters["bench"].bootstrap()
        ends = {"direct": Endpoint(direct), "kfed": Endpoint(federation.bootstrap(), worker_pid(federation))}
        found = compare(ends, sizes)
        print(
            f"Machine: {machine()}.\nCommand: `make bench` (`{' '.join(['python -m tools.bench', *sys.argv[1:]])}`).\n"
        )
        print(report(found), end="\n\n")
        if not given.no_metadata:
            print(wide_metadata(direct, federation.bootstrap()), end="\n\n")
        print(targets(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
