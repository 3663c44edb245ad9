"""`kfed offsets translate` on a running federation: every offset of both sides of an exchange."""

from __future__ import annotations

from functools import partial

import trio

from kafka_client import ClusterClient
from kafka_client.topics import LATEST, offsets
from tests.e2e.test_mirrors import client, write
from tests.fixtures.kfed import Kfed
from tests.fixtures.mirrors import Held, log_of
from tests.fixtures.names import Names
from tests.history.loads import create as create_through
from tests.integration.test_offset_translation import transactions
from tools.local_cluster import Cluster
from tools.local_federation import Federation


async def test_every_offset_by_the_admin_api_and_some_by_command(
    federation: Federation, east: Cluster, west: Cluster, names: Names
) -> None:
    kfed, topic = Kfed(federation), names.topic("translated")
    create_through(federation.librdkafka(), topic, 1)
    await kfed("mirror", "create", topic, "--from", "east", "--to", "west", "--both-ways", "--apply")
    async with client(east) as there, client(west) as here:
        for name, cluster in (("east", east), ("west", west)):
            values = [b"%s-%d" % (name.encode(), number) for number in range(20)]
            await trio.to_thread.run_sync(write, cluster.librdkafka(), topic, values)
            await trio.to_thread.run_sync(transactions, cluster, topic, name)
        # Until both have everything: an exchange ends with the union.
        logs: list[list[Held]] = []
        with trio.fail_after(60):
            while not logs or {one.value for one in logs[0]} != {one.value for one in logs[1]}:
                logs = [await log_of(one, topic, 0) for one in (there, here)]
                await trio.sleep(0.2)
        assert len(logs[0]) == 2 * (20 + 12)
        sides: list[tuple[str, str, ClusterClient, list[Held], list[Held]]] = [
            ("east", "west", there, logs[0], logs[1]),
            ("west", "east", here, logs[1], logs[0]),
        ]
        for source, target, at, log, other in sides:
            where = {one.value: one.offset for one in other}
            end = (await offsets(at, topic, [0], LATEST))[0]
            for offset in range(end):
                path = f"/api/v1/offsets/{topic}/0/{offset}?from={source}&to={target}"
                got = await trio.to_thread.run_sync(partial(federation.ask, path))
                coming = next((one for one in log if one.offset >= offset), None)
                if coming is None:
                    assert got["end"], (source, offset, got)
                else:
                    right = where[coming.value], coming.offset == offset
                    assert (got["offset"], got["exact"]) == right, (source, offset, got)

        async def ask(*arguments: str, status: int = 0) -> str:
            ran = await kfed("offsets", "translate", *arguments, check=False)
            assert ran.status == status, ran
            return ran.out.strip() if not status else ran.err.strip()

        between = ("--from", "east", "--to", "west")
        last = logs[0][-1]
        wanted = next(one.offset for one in logs[1] if one.value == last.value)
        assert await ask(topic, "0", str(last.offset), *between) == str(wanted)
        found = await kfed("offsets", "translate", topic, "0", str(last.offset), *between, "--json")
        assert found.json["offset"] == wanted and found.json["exact"] is True
        end = (await offsets(there, topic, [0], LATEST))[0]
        assert f"the log ends at {end}" in await ask(topic, "0", str(end + 1), *between, status=1)
        assert "no topic 'nobody'" in await ask("nobody", "0", "0", *between, status=1)
        assert "there are: east, west" in await ask(topic, "0", "0", "--from", "east", "--to", "north", status=1)
        lonely = names.topic("lonely")
        create_through(federation.librdkafka(), lonely, 1)
        said = await ask(lonely, "0", "0", *between, status=1)
        assert said.endswith(f"kfed mirror create {lonely} --from east --to west")
        assert "whole number" not in await ask(topic, "x", "0", *between, status=2)
