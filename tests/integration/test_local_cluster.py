"""The ground the other tests stand on: clusters that start, lose brokers and get them back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from tests.fixtures.names import Names
from tools.local_cluster import Cluster, Mechanism, Setting

ROOT = Path(__file__).resolve().parents[2]


def create(cluster: Cluster, topic: str, partitions: int = 1) -> None:
    # A name of its own: an admin client that is collected takes its pending futures with it.
    admin = AdminClient(cluster.librdkafka())
    admin.create_topics([NewTopic(topic, partitions)])[topic].result(20)


def produce(cluster: Cluster, topic: str, count: int, *, settings: dict[str, Setting] | None = None) -> list[int]:
    """The offsets that were acknowledged."""
    offsets: list[int] = []

    def delivered(error: KafkaError | None, message: Message) -> None:
        assert error is None, error
        offset = message.offset()
        assert offset is not None
        offsets.append(offset)

    producer = Producer({**cluster.librdkafka(), "acks": "all", "log_level": 0, **(settings or {})})
    for number in range(count):
        producer.produce(topic, f"{number}".encode(), partition=0, on_delivery=delivered)
    assert producer.flush(60) == 0
    return offsets


def read(cluster: Cluster, topic: str, count: int) -> list[int]:
    consumer = Consumer({**cluster.librdkafka(), "group.id": topic, "log_level": 0})
    consumer.assign([TopicPartition(topic, 0, 0)])
    offsets: list[int] = []
    deadline = time.monotonic() + 30
    while len(offsets) < count and time.monotonic() < deadline:
        message = consumer.poll(0.5)
        if message is not None:
            assert message.error() is None, message.error()
            offset = message.offset()
            assert offset is not None
            offsets.append(offset)
    consumer.close()
    return offsets


def test_three_brokers_lose_one_and_get_it_back(triple: Cluster, names: Names) -> None:
    topic = names.topic("kept")
    create(triple, topic)
    assert produce(triple, topic, 10) == list(range(10))
    leader = AdminClient(triple.librdkafka()).list_topics(topic).topics[topic].partitions[0].leader
    broker = triple.broker(leader)
    before = broker.pid
    broker.kill()
    assert not broker.running
    assert produce(triple, topic, 10) == list(range(10, 20))
    broker.start()
    triple.wait_ready()
    assert broker.pid != before
    assert produce(triple, topic, 10) == list(range(20, 30))
    assert read(triple, topic, 30) == list(range(30))


def test_a_killed_single_broker_keeps_its_port_and_its_data(east: Cluster, names: Names) -> None:
    topic = names.topic("kept")
    create(east, topic)
    produce(east, topic, 5)
    address = east.bootstrap()
    east.brokers[0].kill()
    east.mend()
    assert east.bootstrap() == address
    assert read(east, topic, 5) == list(range(5))


def test_a_paused_broker_answers_again_after_it_is_resumed(east: Cluster, names: Names) -> None:
    topic = names.topic("kept")
    create(east, topic)
    east.brokers[0].pause()
    admin = AdminClient({**east.librdkafka(), "log_level": 0})
    with pytest.raises(KafkaException):
        admin.list_topics(timeout=1)
    east.mend()
    assert topic in admin.list_topics(timeout=20).topics


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"])
def test_a_secured_cluster_knows_its_users_and_forbids_by_default(
    secured_east: Cluster, names: Names, mechanism: Mechanism
) -> None:
    topic = names.topic("mine")
    create(secured_east, topic)
    admin = AdminClient(secured_east.librdkafka("SASL_SSL", mechanism=mechanism))
    assert topic in admin.list_topics(timeout=20).topics
    alice = AdminClient(secured_east.librdkafka(user="alice", mechanism=mechanism))
    assert topic not in alice.list_topics(timeout=20).topics
    with pytest.raises(KafkaException):
        stranger = secured_east.librdkafka(user="alice", password="wrong", mechanism="SCRAM-SHA-256")
        AdminClient({**stranger, "log_level": 0}).list_topics(timeout=2)


def test_nothing_outlives_a_crash(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tools.local_cluster", "--names", "lost", "--directory", str(tmp_path)]
    parent = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    assert parent.stdout.readline().startswith(b"lost")
    children = Path(f"/proc/{parent.pid}/task").glob("*/children")
    pids = [int(pid) for file in children for pid in file.read_text().split()]
    assert pids
    os.kill(parent.pid, signal.SIGKILL)
    parent.stdout.close()
    parent.wait()
    deadline = time.monotonic() + 10
    while any(_lives(pid) for pid in pids):
        assert time.monotonic() < deadline, "a broker outlived what started it"
        time.sleep(0.05)


def _lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"
