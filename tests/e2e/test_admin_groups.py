"""Admin calls about groups, transactions and producers with the Java client, directly and through the endpoint."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import pytest
import trio

from tests.fixtures.sides import Said, Side, Sides, attempt, until
from tools.java_client import Admin, Jvm


def _ordered(found: dict[str, Any]) -> dict[str, Any]:
    """Members in the order of their clients, since their ids are random."""
    for group in found.values():
        for member in group.get("members", ()):
            member["client"] = member["client"].replace("-1", "-N").rstrip("0123456789")
        group.get("members", []).sort(key=lambda member: (member.get("instance", ""), str(member.get("assignment"))))
    return found


async def _listed(side: Side, admin: Admin, **states: str) -> list[dict[str, Any]]:
    """This side's groups, once they are in these states."""

    async def look() -> list[dict[str, Any]]:
        return [{**each, "node": 0} for each in await admin.call("list_groups") if side.mine(each["group"])]

    wanted = {side.group(word): state for word, state in states.items()}
    found: list[dict[str, Any]] = await until(
        look, lambda groups: {each["group"]: each["state"] for each in groups} == wanted
    )
    return found


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
async def test_consumer_groups(sides: Sides, jvm: Jvm, protocol: Literal["classic", "consumer"]) -> None:
    async def script(side: Side, say: Said) -> None:
        topic, group, nobody = side.topic("orders"), side.group("g"), side.group("nobody")
        async with jvm.admin(side.java) as admin, jvm.producer(side.java) as producer:
            await admin.create_topic(topic, 2)
            await producer.send(topic, 10, partition=0)
            consumer = partial(jvm.consumer, side.java, group=group, protocol=protocol)
            async with consumer(instance_id="one", client_id="one") as one, consumer(client_id="two") as two:
                await one.subscribe(topic)
                await one.take(10)
                await one.commit([[topic, 0, 4, "so far"], [topic, 1, 0]])
                say("one", _ordered(await admin.call("describe_consumer_groups", groups=[group])))
                await two.subscribe(topic)
                with trio.fail_after(30):
                    while len(await two.assignment()) != 1 or len(await one.assignment()) != 1:
                        await one.read(timeout=0.1, events=1)

                async def members() -> dict[str, Any]:
                    return _ordered(await admin.call("describe_consumer_groups", groups=[group]))

                say("two", await until(members, lambda found: found[group]["state"] == "Stable"))
                found = _ordered(await admin.call("describe_classic_groups", groups=[group, nobody]))
                say("as classic", found)
                say("as share", await attempt(admin.call("describe_share_groups", groups=[group])))
                say("as streams", await attempt(admin.call("describe_streams_groups", groups=[group])))
                say("list", await _listed(side, admin, g="Stable"))
                say("delete, alive", await attempt(admin.call("delete_consumer_groups", groups=[group, nobody])))
                reset = [[topic, 0, 1]]
                call = admin.call("alter_consumer_group_offsets", group=group, offsets=reset)
                say("reset, alive", await attempt(call))
                call = admin.call("delete_consumer_group_offsets", group=group, partitions=[[topic, 0]])
                say("forget, alive", await attempt(call))
            say("remove", await attempt(admin.call("remove_members", group=group)))
            say("list empty", await _listed(side, admin, g="Empty"))
            say("committed", await admin.call("list_consumer_group_offsets", group=group))
            say("committed, nobody", await attempt(admin.call("list_consumer_group_offsets", group=nobody)))
            call = admin.call("alter_consumer_group_offsets", group=group, offsets=[[topic, 0, 1], [topic, 1, 0]])
            say("reset", await attempt(call))
            call = admin.call("alter_consumer_group_offsets", group=group, offsets=[[topic, 7, 1]])
            say("reset what is not there", await attempt(call))
            call = admin.call("alter_consumer_group_offsets", group=group, offsets=[[side("no-such"), 0, 1]])
            say("reset an unknown topic", await attempt(call))
            call = admin.call("alter_consumer_group_offsets", group=side.group("new"), offsets=[[topic, 0, 3]])
            say("a new group", await attempt(call))
            say("of new", await admin.call("list_consumer_group_offsets", group=side.group("new")))
            say("after", await admin.call("list_consumer_group_offsets", group=group))
            gone = [[topic, 1], [topic, 7], [side("no-such"), 0]]
            call = admin.call("delete_consumer_group_offsets", group=group, partitions=gone)
            say("forget", await attempt(call))
            call = admin.call("delete_consumer_group_offsets", group=nobody, partitions=[[topic, 1]])
            say("forget nobody's", await attempt(call))
            say("left", await admin.call("list_consumer_group_offsets", group=group))
            say("unknown", await attempt(admin.call("describe_consumer_groups", groups=[nobody])))
            say("share, unknown", await attempt(admin.call("describe_share_groups", groups=[nobody])))
            say("streams, unknown", await attempt(admin.call("describe_streams_groups", groups=[nobody])))
            say("delete", await attempt(admin.call("delete_consumer_groups", groups=[group, nobody])))
            say("gone", await attempt(admin.call("describe_consumer_groups", groups=[group])))
            say("list gone", await _listed(side, admin, new="Empty"))

    await sides.compare(script)


async def test_share_groups(sides: Sides, jvm: Jvm) -> None:
    async def script(side: Side, say: Said) -> None:
        topic, group, nobody = side.topic("jobs"), side.group("share"), side.group("nobody")
        async with jvm.admin(side.java) as admin, jvm.producer(side.java) as producer:
            await admin.create_topic(topic, 1)
            await admin.done("alter_configs", changes=[["group", group, "share.auto.offset.reset", "earliest"]])
            await producer.send(topic, 5)
            async with jvm.share_consumer(side.java, group=group, client_id="one") as consumer:
                await consumer.subscribe(topic)
                say("taken", [record.value for record in await consumer.take(5)])
                say("acknowledged", await consumer.commit())
                say("described", _ordered(await admin.call("describe_share_groups", groups=[group])))
                say("delete, alive", await attempt(admin.call("delete_share_groups", groups=[group, nobody])))
                say("as consumer", await attempt(admin.call("describe_consumer_groups", groups=[group])))
            say("empty", await _listed(side, admin, share="Empty"))
            offsets = partial(admin.call, "list_share_group_offsets", group=group)
            say("offsets", await until(offsets, bool))
            say("alter", await attempt(admin.call("alter_share_group_offsets", group=group, offsets=[[topic, 0, 2]])))
            say("altered", await offsets())
            say("delete", await attempt(admin.call("delete_share_groups", groups=[group, nobody])))
            say("gone", await attempt(admin.call("describe_share_groups", groups=[group])))

    await sides.compare(script)


async def test_streams_groups(sides: Sides, jvm: Jvm) -> None:
    async def script(side: Side, say: Said) -> None:
        source, sink, app = side.topic("words"), side.topic("counts"), side.group("app")
        async with jvm.admin(side.java) as admin, jvm.producer(side.java) as producer:
            await admin.create_topic(source, 1)
            await admin.create_topic(sink, 1)
            await producer.send(source, 1)
            async with (
                jvm.streams(side.java, application_id=app) as streams,
                jvm.consumer(side.java) as consumer,
            ):
                await streams.start(source, sink=sink, count=True)
                await consumer.assign((sink, 0))
                say("counted", [record.value for record in await consumer.take(1, 60)])
                found = await admin.call("describe_streams_groups", groups=[app])
                say("state", {"state": found[app]["state"], "parts": found[app]["subtopologies"]})
                say("delete, alive", await attempt(admin.call("delete_streams_groups", groups=[app])))
            say("empty", await _listed(side, admin, app="Empty"))
            topics = [name for name in await admin.call("list_topics") if side.run in name]
            say("topics", sorted(name.replace(app, "app").replace(side(""), "") for name in topics))
            say("delete", await attempt(admin.call("delete_streams_groups", groups=[app])))

    await sides.compare(script)


async def test_transactions_and_producers(sides: Sides, jvm: Jvm) -> None:
    async def script(side: Side, say: Said) -> None:
        topic, mine, nobody = side.topic("orders"), side.transactional_id("t"), side.transactional_id("nobody")
        async with jvm.admin(side.java) as admin:
            await admin.create_topic(topic, 2)
            async with jvm.producer(side.java, transactional_id=mine) as producer:
                await producer.init_transactions()
                await producer.begin()
                await producer.send(topic, 3, partition=0)
                say("open", await attempt(admin.call("describe_transactions", transactional_ids=[mine, nobody])))
                listed = await admin.call("list_transactions")
                say("list", [each for each in listed if side.mine(each["transactional_id"])])
                producers = await admin.call("describe_producers", partitions=[[topic, 0], [topic, 1]])
                say("producers", producers)
                (state,) = producers[f"{topic}-0"]
                (told,) = [each for each in listed if each["transactional_id"] == mine]
                say("one producer id", told["producer_id"] == state["producer_id"])
                ids = {"producer_id": state["producer_id"], "producer_epoch": state["producer_epoch"]}
                wrong = {**ids, "producer_epoch": 99, "coordinator_epoch": 0}
                call = admin.call("abort_transaction", partition=[topic, 1], **{**wrong, "producer_id": 12345})
                say("abort nothing", await attempt(call))
                say("abort", await attempt(admin.call("abort_transaction", partition=[topic, 0], **ids)))
                say("producers after", await admin.call("describe_producers", partitions=[[topic, 0]]))
            say("fence", await attempt(admin.call("fence_producers", transactional_ids=[mine])))
            say("fenced", await attempt(admin.call("describe_transactions", transactional_ids=[mine])))
            say("no partition", await attempt(admin.call("describe_producers", partitions=[[topic, 9]])))

    await sides.compare(script)
