"""The shortest way through: both clusters are one for whoever connects to the endpoint."""

from __future__ import annotations

from tests.fixtures.names import Names
from tools.java_client import Jvm
from tools.local_federation import Federation


async def test_a_group_reads_both_clusters(federation: Federation, jvm: Jvm, names: Names) -> None:
    here, there, config = names.topic("a"), f"{names.topic('a')}-west", federation.java()
    async with jvm.admin(config) as admin, jvm.producer(config) as producer:
        await admin.create_topic(here, 2)
        await admin.create_topic(there, 2)
        await producer.send(here, 5)
        await producer.send(there, 5)
        async with jvm.consumer(config, group=names.group("g")) as consumer:
            await consumer.subscribe(here, there)
            taken = await consumer.take(10)
            assert sorted(record.topic for record in taken) == [here] * 5 + [there] * 5
