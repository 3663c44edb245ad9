"""Two real clusters, one endpoint: produce and consume across both, move a topic while it is used, mirror another.

In a terminal everything stays up afterwards, to be looked at; Ctrl-C cleans up. Otherwise it ends by itself, with
exit status 1 if anything was lost, read twice or refused.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping

from confluent_kafka import Consumer, TopicPartition
from rich.console import Console
from rich.table import Table

from tools.demo.traffic import Account, Live, consume, create, produce
from tools.local_cluster import Cluster, ClusterSpec, running
from tools.local_federation import Federation, program, run_federation

TOPICS = ["payments", "clicks", "orders-west", "invoices-west"]
GROUP = "billing"
EACH = 2000
MIRRORED = "payments"
MORE = 20_000  # records, while it is mirrored
MOVED = "clicks"
MOVE_SECONDS = 60.0  # until a move that does not end is an error
LIVE_RATE = 500  # records a second, while it moves
MIRROR_SECONDS = 30.0
# Wide enough for the tables where output is not a terminal.
out = Console(width=None if sys.stdout.isatty() else 100)


def ends(cluster: Cluster, topic: str) -> int:
    """Offsets of a topic on a physical cluster itself, asked directly; -1 where it does not exist. A mirror's copy has
    one more in each partition: the control record it began with."""
    client = Consumer({"bootstrap.servers": cluster.bootstrap(), "group.id": "demo-look"})
    try:
        known = client.list_topics(topic, timeout=10).topics[topic]
        if known.error is not None:
            return -1
        return sum(client.get_watermark_offsets(TopicPartition(topic, p), timeout=10)[1] for p in known.partitions)
    finally:
        client.close()


def where(clusters: Mapping[str, Cluster]) -> Table:
    """What the clusters themselves hold of each topic."""
    table = Table(
        "topic",
        *(f"offsets on {name}" for name in clusters),
        title=f"What the clusters themselves hold ({MIRRORED} on west: a copy, with the mirror's own marks)",
    )
    for topic in TOPICS:
        held = (ends(cluster, topic) for cluster in clusters.values())
        table.add_row(topic, *("-" if count < 0 else f"{count or 'stub'}" for count in held))
    return table


def verdict(account: Account, took: Mapping[str, float]) -> Table:
    table = Table("what", "result", title="What the clients saw, through one address")
    per_topic = Counter(topic for topic, _, _ in account.acknowledged)
    table.add_row("acknowledged", ", ".join(f"{topic} {count}" for topic, count in sorted(per_topic.items())))
    table.add_row(
        f"read by group {GROUP}", f"{sum(account.times_read.values())}, in two sittings with a commit between"
    )
    table.add_row("lost", str(account.lost))
    table.add_row("read twice", str(account.twice))
    table.add_row("errors", "; ".join(sorted(set(account.errors))) or "none")
    for what, seconds in took.items():
        table.add_row(what, f"{seconds:.1f} s")
    return table


def show(clusters: Mapping[str, Cluster], federation: Federation) -> bool:
    """The main job. Whether everything was as promised."""
    account = Account()
    endpoint = federation.bootstrap()
    out.print(f"[bold]creating[/] {', '.join(TOPICS)} through {endpoint}; names in -west are placed on west")
    create(endpoint, TOPICS)
    out.print(f"[bold]producing[/] {EACH} records to each, with one idempotent producer")
    took = {"producing": produce(endpoint, TOPICS, EACH, account)}
    total = EACH * len(TOPICS)
    out.print("[bold]reading[/] all four topics in one group, in two sittings")
    took["reading, first half"] = consume(endpoint, GROUP, TOPICS, total // 2, account)
    took["reading, second half"] = consume(endpoint, GROUP, TOPICS, total - total // 2, account)
    moved = move(federation)
    mirrored = mirror(federation)
    out.print(where(clusters))
    out.print(verdict(account, took))
    good = (
        moved
        and mirrored
        and not (account.lost or account.twice or account.errors)
        and len(account.acknowledged) == total
    )
    out.print("[bold green]as promised[/]" if good else "[bold red]not as promised[/]")
    return good


def move(federation: Federation) -> bool:
    """A topic goes to the other cluster and back under live traffic; whether nobody noticed."""
    table = Table("what", "result", title=f"{MOVED} moved under live traffic: what its clients saw")
    with Live(federation.bootstrap(), MOVED, "live", LIVE_RATE) as live:
        since, good = time.monotonic(), True
        for target in ("west", "east"):
            command = ["migrate", MOVED, "--to", target, "--apply", "--wait"]
            out.print(f"[bold]moving[/] kfed {' '.join(command)}, at {LIVE_RATE} records/s")
            start = time.monotonic()
            argv = [program(), *command, "--admin", federation.admin]
            try:
                ran = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=MOVE_SECONDS)
                failed = "" if ran.returncode == 0 else (ran.stdout + ran.stderr)[-500:]
            except subprocess.TimeoutExpired:
                failed = f"not within {MOVE_SECONDS:g} s"
            good &= not failed
            table.add_row(f"to {target}", failed or f"{time.monotonic() - start:.1f} s")
        time.sleep(1.0)
        written, arrived = live.pauses(since)
    account = live.account
    table.add_row("records acknowledged", str(len(account.acknowledged)))
    table.add_row("lost", str(account.lost))
    table.add_row("read twice", str(account.twice))
    table.add_row("errors", "; ".join(sorted(set(account.errors))) or "none")
    table.add_row("rebalances of its group", str(live.rebalances))
    table.add_row("longest pause", f"{written * 1e3:.0f} ms for the producer, {arrived * 1e3:.0f} ms for the consumer")
    out.print(table)
    return good and not (account.lost or account.twice or account.errors or live.rebalances)


def mirror(federation: Federation) -> bool:
    """Copy a topic to the other cluster while it is written; whether everything arrived."""
    command = ["mirror", "create", MIRRORED, "--from", "east", "--to", "west", "--apply"]
    out.print(f"[bold]mirroring[/] kfed {' '.join(command)}")
    subprocess.run([program(), *command, "--admin", federation.admin], check=True, stdout=subprocess.DEVNULL)
    account = Account()
    start = time.monotonic()
    writing = threading.Thread(target=produce, args=(federation.bootstrap(), [MIRRORED], MORE, account), daemon=True)
    writing.start()
    table = Table("after", "condition", "lag, records", "lag, seconds", "rate", title=f"{MIRRORED}: east -> west")
    while True:
        [line] = federation.ask(f"/api/v1/mirrors/{MIRRORED}")["mirrors"]
        after = time.monotonic() - start
        lag = {key: "-" if value is None else str(value) for key, value in line["lag"].items()}
        rate = f"{line['rate'] / 1000:.0f} KB/s"
        table.add_row(f"{after:.1f} s", line["condition"], lag["records"], lag["seconds"], rate)
        copied = sum(part["position"] or 0 for part in line["partitions"])
        if copied >= EACH + MORE or after > MIRROR_SECONDS:
            break
        time.sleep(1.0)
    writing.join(MIRROR_SECONDS)
    out.print(table)
    return verified(federation, EACH + MORE) and not account.errors


def verified(federation: Federation, records: int) -> bool:
    """Whether both sides hold the same, record by record, once the mirror has noted down how far it is."""
    command = ["verify", MIRRORED]
    deadline = time.monotonic() + MIRROR_SECONDS
    while True:
        ran = subprocess.run(
            [program(), *command, "--json", "--admin", federation.admin], check=False, capture_output=True, text=True
        )
        found = json.loads(ran.stdout)
        figures = {
            name: sum(each[name] for one in found["partitions"] for each in one["buckets"])
            for name in ("identical", "missing", "extra", "changed")
        }
        if figures["identical"] >= records or time.monotonic() > deadline:
            break
        time.sleep(0.5)
    told = ", ".join(f"{name} {count}" for name, count in figures.items())
    out.print(f"[bold]comparing[/] kfed {' '.join(command)}: {told}")
    return ran.returncode == 0 and figures["identical"] == records


def stay(clusters: Mapping[str, Cluster], federation: Federation) -> None:
    """Keep everything up until Ctrl-C."""
    kfed = os.path.relpath(program())
    out.print(f"\nEverything stays up. endpoint: [bold]{federation.bootstrap()}[/]")
    for name, cluster in clusters.items():
        out.print(f"  cluster {name}: {cluster.bootstrap()}")
    for command in ("status", "topics", "mirrors", f"groups {GROUP}", "doctor"):
        out.print(f"  {kfed} {command} --admin {federation.admin}")
    out.print("Ctrl-C ends it and cleans up.")
    while True:
        signal.pause()


def main() -> int:
    # SIGTERM ends it as Ctrl-C does, so that nothing is left behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    start = time.monotonic()
    try:
        out.print("[bold]starting[/] two Kafka clusters, east and west, and kfed run over them")
        with (
            running(ClusterSpec("east"), ClusterSpec("west", first_broker_id=11)) as clusters,
            run_federation(clusters) as federation,
        ):
            out.print(f"ready after {time.monotonic() - start:.1f} s")
            good = show(clusters, federation)
            if sys.stdout.isatty():
                stay(clusters, federation)
    except KeyboardInterrupt:
        out.print("ended; everything was cleaned up")
        return 0
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
