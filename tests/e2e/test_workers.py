"""Processes of one `kfed run` that die, stop and wake, under the load of three client libraries."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import trio
from confluent_kafka import Consumer

from tests.fixtures.names import Names
from tests.history.loads import Load, aiokafka, create, java, librdkafka
from tools.java_client import Jvm
from tools.local_cluster import Cluster
from tools.local_federation import Federation, run_federation

PAUSE = float(os.environ.get("KFED_TEST_PAUSE", "6"))  # seconds for which a process is stopped


@pytest.fixture(scope="module")
def _endpoint(_east: Cluster, _west: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    with run_federation([_east, _west], directory=tmp_path_factory.mktemp("workers")) as federation:
        yield federation


@pytest.fixture
def endpoint(_endpoint: Federation, east: Cluster, west: Cluster) -> Federation:
    """`kfed run` with two workers, of this module alone."""
    if not _endpoint.daemon.running:
        _endpoint.start()
    return _endpoint


@asynccontextmanager
async def under_load(endpoint: Federation, jvm: Jvm, names: Names) -> AsyncIterator[list[Load]]:
    """Each library with a topic and a group of its own, on both clusters; afterwards nothing may be lost or doubled."""
    topics = [names.topic("c"), f"{names.topic('a')}-west", names.topic("j")]
    for topic in topics:
        await trio.to_thread.run_sync(create, endpoint.librdkafka(), topic)
    async with AsyncExitStack() as stack:
        loads = [
            await stack.enter_async_context(librdkafka(endpoint.librdkafka(), topics[0], names.group("c"))),
            await stack.enter_async_context(aiokafka(endpoint.bootstrap(), topics[1], names.group("a"))),
            await stack.enter_async_context(java(jvm, endpoint.java(), topics[2], names.group("j"))),
        ]
        await all_alive(loads)
        yield loads
        await all_alive(loads)
    for load in loads:
        load.check()


async def all_alive(loads: list[Load]) -> None:
    async with trio.open_nursery() as nursery:
        for load in loads:
            nursery.start_soon(load.alive)


def children(endpoint: Federation) -> dict[str, int]:
    """What the parent's processes run -> pid."""
    found: dict[str, int] = {}
    for entry in Path(f"/proc/{endpoint.daemon.pid}/task").iterdir():
        for pid in (entry / "children").read_text().split():
            words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
            name = "store" if any("embedded_server" in word for word in words) else f"worker {pid}"
            found[name] = int(pid)
    return found


async def until_ready(endpoint: Federation, workers: int = 2) -> None:
    deadline = trio.current_time() + 30
    while True:
        try:
            text = await trio.to_thread.run_sync(endpoint.ask, "/api/v1/proxies")
            ready = [one for one in text["proxies"] if one.get("ready", one.get("state") == "ready")]
            if len(ready) == workers:
                return
        except OSError:
            pass
        assert trio.current_time() < deadline
        await trio.sleep(0.05)


async def works_for_newcomers(endpoint: Federation, names: Names) -> None:
    """A new topic and a new group: what needs a decision, and so the store."""
    topic = names.topic("new")

    def run() -> None:
        create(endpoint.librdkafka(), topic, 1)
        consumer = Consumer({**endpoint.librdkafka(), "group.id": names.group("new"), "auto.offset.reset": "earliest"})
        consumer.subscribe([topic])
        consumer.poll(0.2)
        from confluent_kafka import Producer

        producer = Producer(endpoint.librdkafka())
        producer.produce(topic, b"hello")
        assert producer.flush(20) == 0
        message = consumer.poll(20)
        assert message is not None
        assert message.value() == b"hello"
        consumer.close()

    await trio.to_thread.run_sync(run)


async def test_a_worker_dies(endpoint: Federation, jvm: Jvm, names: Names) -> None:
    async with under_load(endpoint, jvm, names) as loads:
        for _ in range(2):
            victim = next(pid for name, pid in children(endpoint).items() if name != "store")
            os.kill(victim, signal.SIGKILL)
            await all_alive(loads)
            await until_ready(endpoint)


async def test_a_worker_is_paused_and_wakes_up(endpoint: Federation, jvm: Jvm, names: Names) -> None:
    async with under_load(endpoint, jvm, names) as loads:
        victim = next(pid for name, pid in children(endpoint).items() if name != "store")
        os.kill(victim, signal.SIGSTOP)
        try:
            await trio.sleep(PAUSE)  # the fault itself
        finally:
            os.kill(victim, signal.SIGCONT)
        await all_alive(loads)
    await until_ready(endpoint)


async def test_the_store_stops_and_dies_and_comes_back(endpoint: Federation, jvm: Jvm, names: Names) -> None:
    async with under_load(endpoint, jvm, names) as loads:
        store = children(endpoint)["store"]
        os.kill(store, signal.SIGSTOP)
        try:
            for _ in range(3):
                await all_alive(loads)
        finally:
            os.kill(store, signal.SIGCONT)
        os.kill(store, signal.SIGKILL)
        await all_alive(loads)
        await works_for_newcomers(endpoint, names)
        for load in loads:
            assert max(load.history.longest_pause()) < 5, load.name


async def test_the_parent_dies_and_is_started_again(endpoint: Federation, jvm: Jvm, names: Names) -> None:
    async with under_load(endpoint, jvm, names):
        mine = children(endpoint)
        endpoint.kill()
        deadline = trio.current_time() + 5
        while any(os.path.exists(f"/proc/{pid}") for pid in mine.values()):  # noqa: ASYNC240, PTH110
            assert trio.current_time() < deadline, "children outlive their parent"
            await trio.sleep(0.02)
        await trio.to_thread.run_sync(endpoint.start)
    await works_for_newcomers(endpoint, names)


async def test_a_restart_in_order_is_no_error_to_anybody(endpoint: Federation, jvm: Jvm, names: Names) -> None:
    async with under_load(endpoint, jvm, names):
        begin = trio.current_time()
        await trio.to_thread.run_sync(endpoint.stop)
        assert trio.current_time() - begin < 12
        await trio.to_thread.run_sync(endpoint.start)
