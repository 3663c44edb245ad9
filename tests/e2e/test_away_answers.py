"""What is answered while a cluster is away: in time, and nothing that makes clients give its topics up."""

from __future__ import annotations

import time

import pytest
import trio
from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, ResourceType

from tests.e2e.test_clusters_away import place, state, until
from tests.fixtures.names import Names
from tests.history.loads import create
from tools.local_cluster import Cluster, ClusterSpec
from tools.local_federation import run_federation

LONG_ENOUGH = 22.0  # seconds: what a proxy knew of the cluster's rules is too old by then
IN_TIME = 6.0


async def test_topics_of_a_cluster_that_is_away_stay_listed_and_nobody_waits(east: Cluster, names: Names) -> None:
    here, there = names.topic("e"), names.topic("l")
    with Cluster(ClusterSpec("late", first_broker_id=31)) as late:
        placement = {"rules": [place("l", "late")]}
        with run_federation([east, late], placement=placement) as federation:
            config = {**federation.librdkafka(), "log_level": 0}

            def before() -> None:
                for topic in (here, there):
                    create(federation.librdkafka(), topic, 2)
                assert {here, there} <= set(AdminClient(config).list_topics(timeout=10).topics)

            await trio.to_thread.run_sync(before)
            await trio.to_thread.run_sync(late.stop)
            await until(lambda: state(federation, "late")["state"] == "away")

            def meanwhile() -> float:
                admin = AdminClient(config)
                deadline, longest = time.monotonic() + LONG_ENOUGH, 0.0
                while time.monotonic() < deadline:
                    began = time.monotonic()
                    found = admin.list_topics(timeout=20).topics
                    longest = max(longest, time.monotonic() - began)
                    assert {here, there} <= set(found)
                    assert len(found[there].partitions) == 2
                return longest

            assert await trio.to_thread.run_sync(meanwhile) < IN_TIME

            def answers() -> None:
                admin = AdminClient(config)
                consumer = Consumer({**config, "group.id": names.group("e")})  # came up while the other cluster is away
                consumer.commit(offsets=[TopicPartition(here, 0, 1)], asynchronous=False)
                consumer.close()
                began = time.monotonic()
                offsets = admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(names.group("e"))])
                assert [one.offset for one in offsets[names.group("e")].result(20).topic_partitions] == [1]
                resources = [ConfigResource(ResourceType.TOPIC, name) for name in (here, there)]
                described = {resource.name: future for resource, future in admin.describe_configs(resources).items()}
                assert described[here].result(20)
                with pytest.raises(KafkaException):
                    described[there].result(20)
                made = admin.create_topics([NewTopic(names.topic("l2"), 1), NewTopic(names.topic("e2"), 1)])
                assert made[names.topic("e2")].result(20) is None
                with pytest.raises(KafkaException):
                    made[names.topic("l2")].result(20)
                assert time.monotonic() - began < 3 * IN_TIME

            await trio.to_thread.run_sync(answers)
