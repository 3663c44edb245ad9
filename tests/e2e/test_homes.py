"""Which groups and transactional ids are remembered: those somebody uses, not those that are only asked for."""

from __future__ import annotations

from typing import Any

import trio
from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from tests.fixtures.names import Names
from tests.history.loads import create
from tools.local_federation import Federation


async def test_asking_leaves_nothing_behind(federation: Federation, names: Names) -> None:
    group, other, identifier, topic = names("g"), names("g-west"), names("t"), names("orders")

    def remembered() -> set[str]:
        groups: dict[str, Any] = federation.ask("/api/v1/groups")
        return {one["name"] for one in groups["groups"]} & {group, other}

    def run() -> None:
        config = federation.librdkafka()
        create(config, topic, 1)
        admin = AdminClient(config)
        for name in (group, other):
            for done in admin.describe_consumer_groups([name]).values():
                done.exception(20)
            for positions in admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(name)]).values():
                positions.exception(20)
            consumer = Consumer({**config, "group.id": name})
            assert consumer.committed([TopicPartition(topic, 0)], timeout=10)[0].offset < 0
            consumer.close()
        assert remembered() == set()
        ids = federation.ask("/api/v1/status")["transactional_ids"]
        for name in (group, other):
            consumer = Consumer({**config, "group.id": name})
            consumer.commit(offsets=[TopicPartition(topic, 0, 3)], asynchronous=False)
            assert consumer.committed([TopicPartition(topic, 0)], timeout=10)[0].offset == 3
            consumer.close()
        assert remembered() == {group, other}
        producer = Producer({**config, "transactional.id": identifier})
        producer.init_transactions(20)
        assert federation.ask("/api/v1/status")["transactional_ids"] == ids + 1

    await trio.to_thread.run_sync(run)
