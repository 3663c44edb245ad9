"""`python -m tools.bench.store`: how fast the store is, with both backends, durable as in production. Prints Markdown.

The embedded server and etcd (one member) run in processes of their own; the client is this process.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from metadata_service.store.contract import MAX_OPERATIONS, Put, Store
from metadata_service.store.embedded import EmbeddedBackend
from metadata_service.store.embedded_server import default_socket
from metadata_service.store.etcd import EtcdBackend
from metadata_service.store.etcd_channel import EtcdSettings
from metadata_service.store.opened import open_backend
from tools.local_cluster.etcd import Etcd
from tools.local_cluster.process import Daemon

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

ROOT = Path(__file__).resolve().parents[2]
ROUNDS = 3
SECONDS = 2.0
VALUE = b"x" * 300
KEYS = 10_000


@contextlib.asynccontextmanager
async def embedded(directory: Path) -> AsyncIterator[EmbeddedBackend]:
    state = directory / "state"
    argv = [sys.executable, "-m", "metadata_service.store.embedded_server", str(state)]
    server = Daemon(argv, log=directory / "log", cwd=ROOT)
    server.start()
    backend = EmbeddedBackend(default_socket(state), deadline=20.0)
    try:
        yield backend
    finally:
        await backend.aclose()
        server.terminate()


@contextlib.asynccontextmanager
async def etcd(directory: Path) -> AsyncIterator[EtcdBackend]:
    server = Etcd(directory / "etcd")
    server.daemon.argv = tuple(word for word in server.daemon.argv if word != "--unsafe-no-fsync")
    with server:
        backend = EtcdBackend(EtcdSettings(endpoints=(server.endpoint,), prefix="/kfed/bench/"), deadline=20.0)
        try:
            yield backend
        finally:
            await backend.aclose()


async def rate(call: Callable[[int], Awaitable[object]], tasks: int) -> float:
    """Calls a second of so many tasks together; the best round."""
    best = 0.0
    for _ in range(ROUNDS):
        done = 0

        async def run(task: int) -> None:
            nonlocal done
            while True:
                await call(task)
                done += 1

        started = trio.current_time()
        with trio.move_on_after(SECONDS):
            async with trio.open_nursery() as nursery:
                for task in range(tasks):
                    nursery.start_soon(run, task)
        best = max(best, done / (trio.current_time() - started))
    return best


async def fill(store: Store) -> None:
    for first in range(0, KEYS, MAX_OPERATIONS):
        numbers = range(first, min(first + MAX_OPERATIONS, KEYS))
        await store.commit([], [Put(f"many/{number:05}", VALUE) for number in numbers])


async def range_seconds(store: Store) -> float:
    best = float("inf")
    for _ in range(ROUNDS):
        started = trio.current_time()
        assert len((await store.range("many/")).items) == KEYS
        best = min(best, trio.current_time() - started)
    return best


async def watch_lags(store: Store) -> list[float]:
    """Seconds from sending a commit until a follower has it, at 200 a second."""
    sent: dict[str, float] = {}
    lags: list[float] = []

    async def write() -> None:
        for number in range(400):
            key = f"lag/{number}"
            sent[key] = trio.current_time()
            await store.commit([], [Put(key, VALUE)])
            await trio.sleep(max(0.0, sent[key] + 0.005 - trio.current_time()))

    async with store.follow("lag/") as following, trio.open_nursery() as nursery:
        await anext(following)
        nursery.start_soon(write)
        while len(lags) < 400:
            await anext(following)
            lags.append(trio.current_time() - sent[f"lag/{len(lags)}"])
    return sorted(lags)


async def measure(store: Store) -> list[str]:
    async def commit(task: int) -> None:
        await store.commit([], [Put(f"rate/{task}", VALUE)])

    async def get(task: int) -> None:
        await store.get("many/00000")

    await fill(store)
    commits = [await rate(commit, tasks) for tasks in (1, 16)]
    gets = [await rate(get, tasks) for tasks in (1, 16)]
    whole = await range_seconds(store)
    lags = await watch_lags(store)
    return [
        *(f"{number:,.0f}" for number in commits),
        *(f"{number:,.0f}" for number in gets),
        f"{whole * 1000:.0f} ms",
        f"{statistics.median(lags) * 1000:.1f} / {lags[int(len(lags) * 0.99)] * 1000:.1f} ms",
    ]


async def main() -> None:
    columns: list[list[str]] = []
    for backend in (embedded, etcd):
        with tempfile.TemporaryDirectory() as directory:
            async with backend(Path(directory)) as opened:
                columns.append(await measure(await open_backend(opened)))
    names = (
        "commits a second, one writer",
        "commits a second, 16 writers",
        "reads of a key a second, one reader",
        "reads of a key a second, 16 readers",
        f"reading {KEYS:,} keys of {len(VALUE)} bytes",
        "commit to follower, median / 99 %",
    )
    print("| | embedded | etcd |\n| --- | --- | --- |")
    for name, *cells in zip(names, *columns, strict=True):
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    trio.run(main)
