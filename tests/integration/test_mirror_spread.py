"""Replicator processes that share mirrors: one joins, one is killed, one leaves; nothing is lost, doubled or late."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import yaml

from kafka_client import ClusterClient
from kafka_client.topics import LATEST, offsets
from tests.fixtures.kfed import Kfed
from tests.fixtures.mirrors import Load, log_of
from tests.fixtures.names import Names
from tests.history.loads import create
from tools.local_cluster import Cluster
from tools.local_cluster.ports import Ports
from tools.local_cluster.process import Daemon
from tools.local_federation import Federation, program, run_federation

BETWEEN = ("--from", "east", "--to", "west")
TAKE_OVER = 10.0  # seconds in which a killed worker's units go on elsewhere


class Worker:
    """`kfed serve replicator` with one process."""

    def __init__(self, federation: Federation, instance: str, directory: Path) -> None:
        self.instance = instance
        directory.mkdir()
        with Ports(1) as ports:
            admin = {"bind": "127.0.0.1", "port": ports.numbers[0]}
        settings = {**federation.settings, "admin": admin, "replicator": {"workers": 1}}
        (directory / "kfed.yaml").write_text(yaml.safe_dump(settings))
        argv = [program(), "serve", "replicator", "-c", "kfed.yaml", "--instance", instance]
        self.daemon = Daemon(argv, log=directory / "log", cwd=directory)

    def child(self) -> int:
        """The worker process itself."""
        pid = self.daemon.pid
        [child] = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return int(child)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Worker]:
        self.daemon.start()
        try:
            await until(self._ready, f"{self.instance} is not ready", 60)
            yield self
        finally:
            await trio.to_thread.run_sync(self.daemon.terminate)

    async def _ready(self) -> bool:
        return b"ready" in self.daemon.log.read_bytes().splitlines()


async def until(condition: Callable[[], Awaitable[bool]], what: str, seconds: float) -> float:
    """How long it took, in seconds."""
    start = trio.current_time()
    while True:
        if await condition():
            return trio.current_time() - start
        assert trio.current_time() - start < seconds, what
        await trio.sleep(0.05)


@asynccontextmanager
async def loaded(load: Load) -> AsyncIterator[None]:
    running = load.running()
    await trio.to_thread.run_sync(running.__enter__)
    try:
        yield
    finally:
        await trio.to_thread.run_sync(running.__exit__, None, None, None)


@pytest.mark.timeout(240)
async def test_joining_dying_and_leaving(east: Cluster, west: Cluster, names: Names, tmp_path: Path) -> None:
    small, other, large = names.topic("small"), names.topic("other"), names.topic("large")
    counts = {small: 3, other: 3, large: 70}
    with run_federation([east, west], proxy={"workers": 1}, replicator={"workers": 0}) as federation:
        kfed = Kfed(federation)
        for topic, partitions in counts.items():
            create(federation.librdkafka(), topic, partitions)
        mirrors: list[dict[str, Any]] = []

        def units() -> dict[tuple[str, str], str]:
            """The instance, by topic and unit."""
            found = ((one["topic"], number, who) for one in mirrors for number, who in one["units"].items())
            return {(topic, number): who.partition("/")[0] for topic, number, who in found}

        async def copying(**wanted: int) -> bool:
            """Everything copies, with so many units at each instance."""
            nonlocal mirrors
            mirrors = await kfed.mirrors(*counts)
            parts = sum(len(one["partitions"]) for one in mirrors)
            whole = parts == sum(counts.values()) and not any(one["waiting"] for one in mirrors)
            return whole and Counter(units().values()) == Counter(wanted)

        async with (
            ClusterClient("east", east.addresses()) as there,
            ClusterClient("west", west.addresses()) as here,
        ):

            async def arrived() -> int:
                return sum((await offsets(here, small, range(3), LATEST)).values())

            first, second = (Worker(federation, instance, tmp_path / instance) for instance in ("a", "b"))
            async with loaded(Load(federation, small, 3)), loaded(Load(federation, large, 70)):  # type: ignore[arg-type]
                async with second.running():
                    async with first.running():
                        await kfed("mirror", "create", *counts, *BETWEEN, "--apply")
                        await until(lambda: copying(a=3, b=2), "not spread", 30)
                        assert units()[small, "0"] == "a"
                        await trio.to_thread.run_sync(first.daemon.kill)
                        killed, had = trio.current_time(), await arrived()

                        async def more() -> bool:
                            return await arrived() > had + 3  # more than a fence writes

                        data = await until(more, "nothing comes any more", TAKE_OVER)
                        await until(lambda: copying(b=5), "not taken over", TAKE_OVER + 5)
                        taken = trio.current_time() - killed
                    before = units()
                    first.daemon.start()
                    joined = await until(lambda: copying(a=2, b=3), "not spread again", 30)
                    moved = [unit for unit, who in units().items() if before[unit] != who]
                    assert len(moved) == 2  # to the one who has joined, and none besides
                    # One that sleeps longer than its lease, and wakes up in the middle of its work.
                    child = first.child()
                    os.kill(child, signal.SIGSTOP)
                    try:
                        await until(lambda: copying(b=5), "not taken over from one that sleeps", TAKE_OVER + 5)
                    finally:
                        os.kill(child, signal.SIGCONT)
                    await until(lambda: copying(a=2, b=3), "not spread once more", 30)
                # The second has left in order: nobody waits for its lease to end.
                left = await until(lambda: copying(a=5), "not taken over from one who has left", 10)
            for topic, partitions in counts.items():
                ends = await offsets(there, topic, range(partitions), LATEST, committed=True)
                await kfed.caught_up({(topic, "west", number): end for number, end in ends.items()})
                for number in range(partitions):
                    source, target = await log_of(there, topic, number), await log_of(here, topic, number)
                    assert [one.content for one in source] == [one.content for one in target], (topic, number)
        await trio.to_thread.run_sync(first.daemon.terminate)
    print(f"killed: data after {data:.1f} s, shown after {taken:.1f} s; joined {joined:.1f} s, left {left:.1f} s")
