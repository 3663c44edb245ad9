"""Moves while processes die: the controller, whose work another one goes on with, and proxies, which an operator has to
declare dead."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import trio

from tests.e2e.test_instances import Estate, Role
from tests.e2e.test_migrate_commands import blocking, offsets, write
from tests.fixtures.kfed import Kfed
from tests.fixtures.names import Names
from tests.history.loads import create
from tools.local_cluster import Cluster
from tools.local_cluster.etcd import Etcd
from tools.local_cluster.ports import Ports
from tools.local_federation import Federation

BOUND = 60.0
REPLICATOR = 8  # which of the admin ports is its


@dataclass(frozen=True)
class Door:
    """One process's admin API."""

    role: Role

    @property
    def admin(self) -> str:
        return f"http://127.0.0.1:{self.role.admin}"


def commands(role: Role) -> Kfed:
    return Kfed(cast(Federation, Door(role)))


@pytest.fixture(scope="module")
def _estate(_east: Cluster, _west: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Estate]:
    directory: Path = tmp_path_factory.mktemp("moves")
    ports = Ports(1 + 6 + 5, consecutive=True)
    with ExitStack() as stack:
        stack.callback(ports.release)
        estate = Estate([_east, _west], stack.enter_context(Etcd()), directory, ports)
        settings = estate.settings
        replicator = Role("replicator", "replicator-0", directory, settings, ports.numbers[-1])
        for one in (*estate.controllers, *estate.proxies, replicator):
            stack.callback(one.daemon.terminate)
            one.start()
        yield estate


@pytest.fixture
def estate(_estate: Estate, east: Cluster, west: Cluster) -> Estate:
    _estate.mend()
    return _estate


async def until(kfed: Kfed, operation: str, true: Callable[[dict[str, Any]], bool]) -> None:
    """Until it shows so how far it is."""
    while True:
        if true((await kfed("operations", operation, "--json")).json["migration"]):
            return
        await trio.sleep(0.2)


async def test_the_controller_is_killed_and_a_move_goes_on(estate: Estate, names: Names) -> None:
    """Whoever waits for it with a command is told its end. What opens a former copy is waited for."""
    topic, config = names.topic("moved"), estate.librdkafka()
    await blocking(create, config, topic)
    await blocking(write, config, topic, 50)
    leader = await blocking(estate.leader)
    kfed = commands(next(one for one in estate.controllers if one is not leader))
    await kfed("migrate", topic, "--to", "west", "--apply", "--wait")
    results: list[Any] = []

    async def move() -> None:
        results.append(await kfed("migrate", topic, "--rollback", "--apply", "--wait", "--json", check=False))

    with trio.fail_after(BOUND):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(move)
            begun: list[Any] = []
            while len(begun) < 2:
                assert not results, results
                everything = (await kfed("operations", "--json")).json["operations"]
                begun = [one for one in everything if topic in one.get("topics", ())]
            await blocking(leader.daemon.kill)
            # Where it may have had something on its way, it is waited for until it has registered itself anew.
            assert await blocking(estate.leader) is not leader
            await blocking(leader.start)
    (ran,) = results
    assert ran.status == 0, ran
    (operation,) = ran.json["operations"]
    assert operation["migration"]["served"] and operation["migration"]["target"] == "east"
    await blocking(write, config, topic, 10)
    assert await blocking(offsets, config, topic, 60) == list(range(60))


async def test_a_proxy_that_was_killed_is_declared_dead(estate: Estate, names: Names) -> None:
    topic, config = names.topic("moved"), estate.librdkafka()
    await blocking(create, config, topic)
    await blocking(write, config, topic, 10)
    kfed, victim = commands(estate.controllers[0]), estate.proxies[1]
    known = {
        f"{one['instance']}/proxy-{one['worker']}": one["pid"]
        for one in (await kfed("proxies", "--json")).json["proxies"]
    }
    assert len(known) == 2
    await blocking(victim.daemon.kill)
    begun = (await kfed("migrate", topic, "--to", "west", "--apply", "--json")).json["migrations"][0]["id"]
    with trio.fail_after(BOUND):
        await until(kfed, begun, lambda shown: "without a lease" in (shown["waits"] or ""))
    findings = (await kfed("doctor", "--json")).json["findings"]
    (mend,) = {one["mend"] for one in findings if one["kind"] == "migration waits"}
    (dead,) = [one for one in known if one.split("/")[0].endswith(f"-{victim.admin}")]
    assert f"kfed proxies --dead {dead} --apply" in mend
    told = (await kfed("proxies", "--dead", dead, "--json")).json
    assert begun in told["waiting"] and not told["applied"]
    assert (await kfed("proxies", "--dead", dead, "--apply", "--json")).json["applied"]
    with trio.fail_after(BOUND):
        await until(kfed, begun, lambda shown: bool(shown["served"]))
    await blocking(victim.start)
    await blocking(write, config, topic, 5)
    assert await blocking(offsets, config, topic, 15) == list(range(15))
