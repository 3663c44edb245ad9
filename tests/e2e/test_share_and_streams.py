"""Share groups and streams applications on either cluster, and streams over both."""

from __future__ import annotations

from typing import Literal

import pytest
import trio

from tests.fixtures.sides import Said, Side, Sides
from tools.java_client import Jvm


@pytest.mark.parametrize("explicit", [False, True])
async def test_share_groups(sides: Sides, jvm: Jvm, explicit: bool) -> None:
    """On the cluster that is the group's home: taken once, released, rejected, redelivered."""

    async def script(side: Side, say: Said) -> None:
        topic, group = side.topic("jobs"), side.group("share")
        async with jvm.admin(side.java) as admin, jvm.producer(side.java) as producer:
            await admin.create_topic(topic, 2)
            await admin.done("alter_configs", changes=[["group", group, "share.auto.offset.reset", "earliest"]])
            await producer.send(topic, 6, partition=0)
            await producer.send(topic, 6, partition=1, first=6)
            async with (
                jvm.share_consumer(side.java, group=group, explicit=explicit) as one,
                jvm.share_consumer(side.java, group=group, explicit=explicit) as two,
            ):
                await one.subscribe(topic)
                await two.subscribe(topic)
                values: list[str] = []
                with trio.fail_after(60):
                    while len(values) < 12:
                        for consumer in (one, two):
                            records = await consumer.take(1, 1.0, once=True)
                            if explicit:
                                fresh = [each for each in records if each.delivery_count == 1]
                                await consumer.acknowledge(fresh, "release")
                                again = [each for each in records if each.delivery_count > 1]
                                await consumer.acknowledge(again)
                                records = again
                            assert await consumer.commit() == []
                            values += [each.value or "" for each in records]
                say("taken", sorted(values, key=int))

    await sides.compare(script)


@pytest.mark.parametrize("protocol", ["classic", "streams"])
async def test_streams_over_both_clusters(sides: Sides, jvm: Jvm, protocol: Literal["classic", "streams"]) -> None:
    """Sources of both clusters, one restart: each word is counted once."""
    config = sides.here.java
    sources = [sides.here.topic("words"), sides.there.topic("words")]
    sink, app = sides.here.topic("counts"), sides.here.group(f"app-{protocol}")
    async with (
        jvm.admin(config) as admin,
        jvm.producer(config) as producer,
        jvm.consumer(config) as consumer,
    ):
        for topic in (*sources, sink):
            await admin.create_topic(topic, 1)
        await consumer.assign((sink, 0))
        counts: list[tuple[str | None, str | None]] = []
        for number in range(2):
            # Its former self does not say goodbye.
            soon = {"session_timeout_ms": "3000", "heartbeat_interval_ms": "500"} if protocol == "classic" else {}
            async with jvm.streams(config, application_id=app, protocol=protocol, **soon) as streams:
                await streams.start(*sources, sink=sink, count=True)
                for topic in sources:
                    await producer.send(topic, 1)
                with trio.move_on_after(60):
                    while len(counts) < 2 * number + 2:
                        counts += [(each.key, each.value) for each in (await consumer.read(1, 0.5)).records]
                assert (await streams.state())["failure"] == ""
        assert counts == [("0", str(n)) for n in range(1, 5)]
        groups = {each["group"]: each["type"] for each in await admin.call("list_groups")}
        assert groups[app] == protocol.capitalize()
