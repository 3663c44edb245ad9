"""Two proxy instances and two controllers on etcd, behind the same addresses; any of them dies, or etcd does."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
import yaml

from tests.fixtures.names import Names
from tests.history.loads import Load, aiokafka, create, java, librdkafka
from tools.java_client import Jvm
from tools.local_cluster import Cluster
from tools.local_cluster.cluster import Setting
from tools.local_cluster.etcd import Etcd
from tools.local_cluster.ports import Ports
from tools.local_cluster.process import Daemon
from tools.local_federation import cluster_settings, program

BROKER_PORTS = 6


class Role:
    """One `kfed serve`, with an admin port of its own."""

    def __init__(self, role: str, name: str, directory: Path, settings: dict[str, Any], admin: int) -> None:
        self.admin = admin
        path = directory / f"{name}.yaml"
        path.write_text(yaml.safe_dump({**settings, "admin": {"bind": "127.0.0.1", "port": admin}}))
        self.daemon = Daemon([program(), "serve", role, "-c", str(path)], log=directory / f"{name}.log", cwd=directory)

    def start(self) -> None:
        log = self.daemon.log
        begin = log.stat().st_size if log.exists() else 0
        self.daemon.start()
        deadline = time.monotonic() + 60
        while b"ready" not in log.read_bytes()[begin:].splitlines():
            if not self.daemon.running or time.monotonic() > deadline:
                raise RuntimeError(f"not ready:\n{self.daemon.last_words()}")
            time.sleep(0.03)

    def status(self) -> dict[str, Any]:
        return dict(httpx.get(f"http://127.0.0.1:{self.admin}/api/v1/status", timeout=10).json())

    def gauge(self, name: str) -> float:
        text = httpx.get(f"http://127.0.0.1:{self.admin}/metrics", timeout=10).text
        return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name + "{"))


class Estate:
    """etcd, controllers and proxies over the same listeners."""

    def __init__(self, clusters: list[Cluster], etcd: Etcd, directory: Path, ports: Ports) -> None:
        self.etcd = etcd
        self.port, *rest = ports.numbers
        brokers, admins = rest[:BROKER_PORTS], rest[BROKER_PORTS:]
        listener = {"bind": "127.0.0.1", "port": self.port, "broker_ports": f"{brokers[0]}-{brokers[-1]}"}
        self.settings = settings = {
            "federation": "estate",
            "store": {"kind": "etcd", "endpoints": [etcd.endpoint]},
            "clusters": {one.name: cluster_settings(one) for one in clusters},
            "placement": {"default": clusters[0].name, "rules": [{"topics": ".*-west", "cluster": clusters[-1].name}]},
            "proxy": {"listeners": [{"name": "main", **listener}], "workers": 1},
        }
        self.controllers = [Role("controller", f"controller-{n}", directory, settings, admins[n]) for n in range(2)]
        self.proxies = [Role("proxy", f"proxy-{n}", directory, settings, admins[2 + n]) for n in range(2)]

    @property
    def bootstrap(self) -> str:
        return f"127.0.0.1:{self.port}"

    def librdkafka(self) -> dict[str, Setting]:
        return {"bootstrap.servers": self.bootstrap}

    def mend(self) -> None:
        self.etcd.mend()
        for one in (*self.controllers, *self.proxies):
            if not one.daemon.running:
                one.start()

    def leader(self) -> Role:
        """The controller that is active."""
        deadline = time.monotonic() + 30
        while True:
            for one in self.controllers:
                if one.daemon.running and one.gauge("kfed_leader") == 1:
                    return one
            assert time.monotonic() < deadline, "nobody leads"
            time.sleep(0.05)


@pytest.fixture(scope="module")
def _estate(_east: Cluster, _west: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Estate]:
    directory = tmp_path_factory.mktemp("estate")
    ports = Ports(1 + BROKER_PORTS + 4, consecutive=True)
    with ExitStack() as stack:
        stack.callback(ports.release)
        estate = Estate([_east, _west], stack.enter_context(Etcd()), directory, ports)
        for one in (*estate.controllers, *estate.proxies):
            stack.callback(one.daemon.terminate)
            one.start()
        yield estate


@pytest.fixture
def estate(_estate: Estate, east: Cluster, west: Cluster) -> Estate:
    _estate.mend()
    return _estate


@asynccontextmanager
async def under_load(estate: Estate, jvm: Jvm, names: Names) -> AsyncIterator[list[Load]]:
    topics = [names.topic("c"), f"{names.topic('a')}-west", names.topic("j")]
    for topic in topics:
        await trio.to_thread.run_sync(create, estate.librdkafka(), topic)
    async with AsyncExitStack() as stack:
        loads = [
            await stack.enter_async_context(librdkafka(estate.librdkafka(), topics[0], names.group("c"))),
            await stack.enter_async_context(aiokafka(estate.bootstrap, topics[1], names.group("a"))),
            await stack.enter_async_context(
                java(jvm, {"bootstrap.servers": estate.bootstrap}, topics[2], names.group("j"))
            ),
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


async def new_topic(estate: Estate, names: Names, word: str) -> None:
    await trio.to_thread.run_sync(create, estate.librdkafka(), names.topic(word), 1)


async def test_an_instance_dies_and_the_other_goes_on(estate: Estate, jvm: Jvm, names: Names) -> None:
    async with under_load(estate, jvm, names) as loads:
        for victim in estate.proxies:
            await trio.to_thread.run_sync(victim.daemon.kill)
            await all_alive(loads)
            await trio.to_thread.run_sync(victim.start)


async def test_a_rolling_restart_of_everything_is_no_error_to_anybody(estate: Estate, jvm: Jvm, names: Names) -> None:
    async with under_load(estate, jvm, names) as loads:
        for one in (*estate.proxies, *estate.controllers):
            begin = trio.current_time()
            await trio.to_thread.run_sync(one.daemon.terminate)
            assert trio.current_time() - begin < 12
            await trio.to_thread.run_sync(one.start)
            await all_alive(loads)
        for load in loads:
            assert max(load.history.longest_pause()) < 5, load.name
    await new_topic(estate, names, "afterwards")


async def test_another_controller_takes_over(estate: Estate, names: Names) -> None:
    first = await trio.to_thread.run_sync(estate.leader)
    await trio.to_thread.run_sync(first.daemon.kill)
    begin = trio.current_time()
    second = await trio.to_thread.run_sync(estate.leader)
    assert second is not first
    assert trio.current_time() - begin < 20
    await new_topic(estate, names, "taken-over")


async def test_a_paused_controller_wakes_up_and_leaves_it_to_the_other(estate: Estate) -> None:
    first = await trio.to_thread.run_sync(estate.leader)
    first.daemon.pause()
    other = next(one for one in estate.controllers if one is not first)

    async def leads(one: Role, wanted: bool) -> None:
        deadline = trio.current_time() + 30
        while (await trio.to_thread.run_sync(one.gauge, "kfed_leader") == 1) != wanted:
            assert trio.current_time() < deadline
            await trio.sleep(0.05)

    await leads(other, True)
    first.daemon.resume()
    await leads(first, False)
    await leads(other, True)


@pytest.mark.parametrize("how", ["kill", "pause"])
async def test_etcd_goes_away_and_comes_back(estate: Estate, jvm: Jvm, names: Names, how: str) -> None:
    async with under_load(estate, jvm, names) as loads:
        await trio.to_thread.run_sync(estate.etcd.kill if how == "kill" else estate.etcd.pause)
        for _ in range(4):
            await all_alive(loads)
        await trio.to_thread.run_sync(estate.etcd.mend)
        await all_alive(loads)
        for load in loads:
            assert max(load.history.longest_pause()) < 5, load.name
    await new_topic(estate, names, "later")
