"""The admin clients of librdkafka and aiokafka, directly and through the endpoint."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

import trio
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError as AioError
from confluent_kafka import ConsumerGroupTopicPartitions, IsolationLevel, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, OffsetSpec
from confluent_kafka.admin import ConfigResource as Resource
from confluent_kafka.admin import NewPartitions as More
from confluent_kafka.admin import NewTopic as Topic

from tests.e2e.reading import BOUND, create, produce
from tests.fixtures.sides import Said, Side, Sides


def _each(call: Callable[[], Mapping[Any, Future[Any]]], shown: Callable[[Any], Any] = lambda _: "done") -> Any:
    """What each future of an answer gives, or its error's code."""
    out: dict[str, Any] = {}
    try:
        answers = call()
    except KafkaException as error:
        return {"code": error.args[0].code()}
    for key, future in answers.items():
        try:
            out[str(key)] = shown(future.result(BOUND))
        except KafkaException as error:
            out[str(key)] = {"code": error.args[0].code()}
    return out


async def test_librdkafka(sides: Sides) -> None:
    def work(side: Side, say: Said) -> None:
        admin = AdminClient({**side.librdkafka, "log_level": 0})
        topic, missing, group = side.topic("orders"), side.topic("no-such"), side.group("g")
        say("create", _each(lambda: admin.create_topics([Topic(topic, 2), Topic("a b", 1)])))
        say("create again", _each(lambda: admin.create_topics([Topic(topic, 2)])))
        say("replicas", _each(lambda: admin.create_topics([Topic(side("r"), 1, 5)])))
        say("wrong", _each(lambda: admin.create_topics([Topic(side("w"), 1, config={"retention.ms": "soon"})])))
        say("partitions", _each(lambda: admin.create_partitions([More(topic, 3), More(missing, 2)])))
        say("fewer", _each(lambda: admin.create_partitions([More(topic, 1)])))
        of_topic = Resource(Resource.Type.TOPIC, topic)
        entry = ConfigEntry("flush.ms", "7", incremental_operation=AlterConfigOpType.SET)
        changed = Resource(Resource.Type.TOPIC, topic, incremental_configs=[entry])
        say("alter", list(_each(lambda: admin.incremental_alter_configs([changed])).values()))

        def configs(found: dict[str, ConfigEntry]) -> dict[str, str | None]:
            return {name: each.value for name, each in found.items() if name.startswith(("flush", "retention"))}

        deadline = time.monotonic() + BOUND
        while True:  # brokers learn of it a little later
            (found,) = _each(lambda: admin.describe_configs([of_topic]), configs).values()
            if found["flush.ms"] == "7" or time.monotonic() > deadline:
                break
        say("describe", found)
        produce(side.librdkafka, [{"topic": topic, "partition": 0, "value": b"x"} for _ in range(5)])
        wanted = {
            TopicPartition(topic, 0): OffsetSpec.latest(),  # type: ignore[no-untyped-call]
            TopicPartition(topic, 1): OffsetSpec.earliest(),  # type: ignore[no-untyped-call]
        }
        level = IsolationLevel.READ_COMMITTED
        ends = _each(lambda: admin.list_offsets(wanted, isolation_level=level), lambda found: found.offset)
        say("offsets", sorted(ends.values()))
        offsets = [ConsumerGroupTopicPartitions(group, [TopicPartition(topic, 0, 3), TopicPartition(topic, 9, 1)])]

        def partitions(found: ConsumerGroupTopicPartitions) -> list[object]:
            return [(one.partition, one.offset, one.error and one.error.code()) for one in found.topic_partitions or ()]

        committed = _each(lambda: admin.alter_consumer_group_offsets(offsets), partitions)
        while (0, 3, KafkaError.COORDINATOR_LOAD_IN_PROGRESS) in committed[group]:  # the first group of a cluster
            assert time.monotonic() < deadline
            committed = _each(lambda: admin.alter_consumer_group_offsets(offsets), partitions)
        say("commit", committed)
        asked = [ConsumerGroupTopicPartitions(group)]
        say("committed", _each(lambda: admin.list_consumer_group_offsets(asked), partitions))
        say("group", _each(lambda: admin.describe_consumer_groups([group]), lambda found: found.state.name))
        listed = admin.list_consumer_groups().result(BOUND)
        say("groups", sorted(one.group_id for one in listed.valid if side.mine(one.group_id)))
        say("errors", len(listed.errors))
        say("delete records", list(_each(lambda: admin.delete_records([TopicPartition(topic, 0, 2)])).values()))
        say("delete group", _each(lambda: admin.delete_consumer_groups([group, side.group("nobody")])))
        cluster = admin.describe_cluster().result(BOUND)
        say("cluster", sorted(node.id for node in cluster.nodes) == sorted([side.node, *side.others]))
        metadata = admin.list_topics(topic, timeout=BOUND).topics[topic]
        say("metadata", {"leaders": {one.leader == side.node for one in metadata.partitions.values()} == {True}})
        say("delete", _each(lambda: admin.delete_topics([topic, missing])))

    async def script(side: Side, say: Said) -> None:
        await trio.to_thread.run_sync(work, side, say)

    await sides.compare(script)


async def test_aiokafka(sides: Sides) -> None:
    async def talk(side: Side, say: Said) -> None:
        topic = side.topic("orders")
        admin = AIOKafkaAdminClient(bootstrap_servers=side.bootstrap)

        async def told(label: str, call: Any, shown: Callable[[Any], Any]) -> None:
            try:
                say(label, shown(await call))
            except AioError as error:
                say(label, {"error": type(error).__name__})

        await admin.start()
        try:
            made = NewTopic(name=topic, num_partitions=2, replication_factor=1)
            codes = lambda answer: [tuple(one[:2]) for one in answer.topic_errors]  # noqa: E731
            await told("create", admin.create_topics([made]), codes)
            await told("create again", admin.create_topics([made]), codes)
            grown = {topic: NewPartitions(3)}
            await told(
                "partitions", admin.create_partitions(grown), lambda found: [one[1] for one in found.topic_errors]
            )
            found = await admin.describe_topics([topic])
            say("described", [(one["error_code"], one["topic"]) for one in found])
            say("leaders", {one["leader"] == side.node for one in found[0]["partitions"]} == {True})
            say("listed", topic in await admin.list_topics())
            resource = ConfigResource(ConfigResourceType.TOPIC, topic, configs={"retention.ms": "70000"})
            await told("alter", admin.alter_configs([resource]), lambda found: [one.resources[0][0] for one in found])
            described = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
            entries = described[0].resources[0][4]
            say("configs", [one[1] for one in entries if one[0] == "retention.ms"])
            cluster = await admin.describe_cluster()
            say("brokers", sorted(one["node_id"] for one in cluster["brokers"]) == sorted([side.node, *side.others]))
            await told(
                "delete", admin.delete_topics([topic]), lambda found: [one[1] for one in found.topic_error_codes]
            )
        finally:
            await admin.close()

    async def script(side: Side, say: Said) -> None:
        await trio.to_thread.run_sync(lambda: asyncio.run(talk(side, say)))

    await sides.compare(script)


async def test_aiokafka_offsets_of_groups(sides: Sides) -> None:
    async def talk(side: Side, say: Said) -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=side.bootstrap)
        await admin.start()
        try:
            committed = await admin.list_consumer_group_offsets(side.group("g"))
            say("committed", sorted((one.partition, value.offset) for one, value in committed.items()))
            groups = await admin.list_consumer_groups()
            say("groups", sorted(name for name, *_ in groups if side.mine(name)))
            (found,) = await admin.describe_consumer_groups([side.group("g")])
            say("described", [(code, state) for code, _, state, *_ in found.groups])
        finally:
            await admin.close()

    async def script(side: Side, say: Said) -> None:
        def work() -> None:
            topic, group = side.topic("orders"), side.group("g")
            create(side.librdkafka, topic, partitions=2)
            admin = AdminClient({**side.librdkafka, "log_level": 0})
            offsets = [ConsumerGroupTopicPartitions(group, [TopicPartition(topic, n, 0) for n in range(2)])]
            admin.alter_consumer_group_offsets(offsets)[group].result(BOUND)
            asyncio.run(talk(side, say))

        await trio.to_thread.run_sync(work)

    await sides.compare(script)
