"""`kfed verify` on a running federation: while clients write through the endpoint, and after somebody meddled."""

from __future__ import annotations

import trio

from tests.e2e.test_mirrors import BETWEEN, client, copied
from tests.fixtures.kfed import Kfed
from tests.fixtures.mirrors import Load
from tests.fixtures.names import Names
from tests.history.loads import create as create_through
from tests.integration.test_mirror_cases import batch, write
from tools.local_cluster import Cluster
from tools.local_federation import Federation


async def test_a_mirror_is_verified_while_clients_write(
    federation: Federation, east: Cluster, west: Cluster, names: Names
) -> None:
    kfed, topic = Kfed(federation), names.topic("verified")
    create_through(federation.librdkafka(), topic, 2)
    load = Load(federation, topic, 2).running()  # type: ignore[arg-type]
    await trio.to_thread.run_sync(load.__enter__)
    try:
        await kfed("mirror", "create", topic, *BETWEEN, "--apply")
        deadline = trio.current_time() + 30
        while True:
            # From the first second on: a partition that nothing was copied of yet is said to be just that.
            found = (await kfed("verify", topic, *BETWEEN, "--json", check=False)).json
            assert not any(one["findings"] for one in found["partitions"]), found
            if found["identical"] and sum(one["records"]["identical"] for one in found["partitions"]) > 100:
                break
            assert trio.current_time() < deadline, found
    finally:
        await trio.to_thread.run_sync(load.__exit__, None, None, None)
    async with client(east) as there, client(west) as here:
        count = await copied(kfed, topic, there, here, 2)
        while True:
            found = (await kfed("verify", topic, "--json")).json
            assert found["identical"]
            if sum(one["records"]["identical"] for one in found["partitions"]) == count:
                break
            assert trio.current_time() < deadline + 30, found
        (at,) = await write(here, topic, batch(b"stranger"), partition=1)
        said = await kfed("verify", topic, check=False)
        assert said.status == 1
        assert f"{topic}-1 east -> west: extra: 1 record: of no mirror, west {at}" in said.out.splitlines()
        assert said.out.splitlines()[-1] == "Not identical."
