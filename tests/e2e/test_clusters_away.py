"""Clusters and brokers that are not there, come back, or are not who they were."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import trio
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient, NewTopic

from tests.fixtures.names import Names
from tests.history.loads import create, java, librdkafka
from tools.java_client import Jvm
from tools.local_cluster import Cluster, ClusterSpec
from tools.local_federation import Federation, run_federation

NOTICED = 40.0  # seconds until a cluster's state is told


@pytest.fixture(scope="module")
def _late() -> Iterator[Cluster]:
    cluster = Cluster(ClusterSpec("late", first_broker_id=31))
    yield cluster
    cluster.close()


@pytest.fixture
def late(_late: Cluster) -> Cluster:
    """A cluster that does not run."""
    _late.stop()
    return _late


def state(federation: Federation, cluster: str) -> dict[str, Any]:
    found = {one["name"]: one for one in federation.ask("/api/v1/status")["clusters"]}
    return dict(found[cluster])


def kinds(federation: Federation) -> set[tuple[str, str]]:
    return {(one["kind"], one["subject"]) for one in federation.ask("/api/v1/doctor")["findings"]}


async def until(what: Callable[[], bool], seconds: float = NOTICED) -> None:
    deadline = trio.current_time() + seconds
    while not await trio.to_thread.run_sync(what):
        assert trio.current_time() < deadline, f"not within {seconds} s"
        await trio.sleep(0.1)


def brokers(federation: Federation) -> set[int]:
    """As a new client sees them; it raises where there is none."""
    admin = AdminClient({**federation.librdkafka(), "log_level": 0})
    return set(admin.list_topics(timeout=10).brokers)


def goes_through(federation: Federation, topic: str) -> None:
    producer = Producer({**federation.librdkafka(), "log_level": 0})
    producer.produce(topic, b"x")
    assert producer.flush(20) == 0
    reader = {"group.id": f"{topic}-g", "auto.offset.reset": "earliest", "log_level": 0}
    consumer = Consumer({**federation.librdkafka(), **reader})
    consumer.subscribe([topic])
    message = consumer.poll(20)
    consumer.close()
    assert message is not None
    assert message.error() is None


def place(word: str, cluster: str) -> dict[str, str]:
    return {"topics": f"{word}.*", "groups": f"{word}.*", "cluster": cluster}


async def test_a_broker_dies_and_comes_back(triple: Cluster, jvm: Jvm, names: Names) -> None:
    """New leaders; the hints of the protocol name virtual brokers; nobody loses anything."""
    with run_federation([triple]) as federation:
        topics = [names.topic("c"), names.topic("j")]
        for topic in topics:
            await trio.to_thread.run_sync(create, federation.librdkafka(), topic, 6)
        c, j = (names.group(word) for word in "cj")
        async with (
            librdkafka(federation.librdkafka(), topics[0], c) as one,
            java(jvm, federation.java(), topics[1], j) as two,
        ):
            for victim in triple.brokers[:2]:
                await trio.to_thread.run_sync(victim.kill)
                for load in (one, two):
                    await load.alive(60, 60)
                assert await trio.to_thread.run_sync(brokers, federation)
                await trio.to_thread.run_sync(triple.mend)
                for load in (one, two):
                    await load.alive(60, 60)
        for load in (one, two):
            load.check()


async def test_the_default_cluster_is_away_at_the_start_and_comes_later(
    east: Cluster, late: Cluster, names: Names
) -> None:
    here, there = names.topic("e"), names.topic("l")
    # One worker: of two, one may know the new cluster earlier, and a client is told by either.
    with run_federation([late, east], placement={"rules": [place("e", "east")]}, proxy={"workers": 1}) as federation:

        def meanwhile() -> None:
            assert state(federation, "late")["state"] == "away"
            assert state(federation, "late")["reason"]
            assert ("cluster away", "late") in kinds(federation)
            assert brokers(federation) == {100_001}
            create(federation.librdkafka(), here, 1)
            goes_through(federation, here)

        await trio.to_thread.run_sync(meanwhile)
        await trio.to_thread.run_sync(late.start)
        await until(lambda: state(federation, "late")["state"] == "up")
        await until(lambda: brokers(federation) == {31, 100_001})

        def afterwards() -> None:
            create(federation.librdkafka(), there, 1)
            goes_through(federation, there)
            goes_through(federation, here)

        await trio.to_thread.run_sync(afterwards)


async def test_topics_cannot_be_created_on_a_cluster_that_is_away_and_nobody_waits_long_for_that(
    east: Cluster, late: Cluster, names: Names
) -> None:
    """The first question after the start, when nothing of the cluster is known: nor are its rules waited for."""

    def run() -> None:
        rules = [{"topics": ".*-late", "cluster": "late"}]
        with run_federation([east, late], placement={"default": "east", "rules": rules}) as federation:
            admin = AdminClient(federation.librdkafka())
            there, here = names.topic("there") + "-late", names.topic("here")
            started = time.monotonic()
            futures = admin.create_topics([NewTopic(there, 1, 1), NewTopic(here, 1, 1)], request_timeout=30)
            futures[here].result(30)
            with pytest.raises(KafkaException) as refused:
                futures[there].result(30)
            assert refused.value.args[0].code() == KafkaError.REQUEST_TIMED_OUT
            assert "late" in refused.value.args[0].str()
            assert time.monotonic() - started < 10

    await trio.to_thread.run_sync(run)


async def test_a_cluster_goes_away_while_it_is_used(east: Cluster, late: Cluster, names: Names) -> None:
    await trio.to_thread.run_sync(late.start)
    here, there = names.topic("e"), names.topic("l")
    with run_federation([east, late], placement={"rules": [place("l", "late")]}) as federation:

        def before() -> None:
            for topic in (here, there):
                create(federation.librdkafka(), topic, 1)
            goes_through(federation, there)

        await trio.to_thread.run_sync(before)
        async with librdkafka(federation.librdkafka(), here, names.group("e")) as load:
            await trio.to_thread.run_sync(late.stop)
            await until(lambda: state(federation, "late")["state"] == "away")
            await load.alive(100)
            assert await trio.to_thread.run_sync(brokers, federation) >= {1}
            assert max(load.history.longest_pause()) < 5
            await trio.to_thread.run_sync(late.start)
            await until(lambda: state(federation, "late")["state"] == "up")
            await trio.to_thread.run_sync(goes_through, federation, there)
        load.check()


async def test_a_cluster_is_taken_out_of_the_configuration_and_another_put_under_its_name(
    east: Cluster, west: Cluster, late: Cluster, names: Names
) -> None:
    await trio.to_thread.run_sync(late.start)
    here, there = names.topic("e"), names.topic("l")
    with run_federation([east, late], placement={"rules": [place("l", "late")]}) as federation:

        def apply() -> None:
            command = [federation.daemon.argv[0], "config", "apply", "-c", str(federation.configuration), "--apply"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
            assert done.returncode == 0, done.stderr

        def out() -> None:
            for topic in (here, there):
                create(federation.librdkafka(), topic, 1)
                goes_through(federation, topic)
            federation.write(clusters={"late": None}, placement={"rules": []})
            federation.stop()
            federation.start()  # the store is the truth: the file alone changes nothing
            goes_through(federation, there)
            assert ("configuration", "clusters.late") in kinds(federation)
            apply()

        await trio.to_thread.run_sync(out)
        await until(lambda: ("removed cluster", "late") in kinds(federation))
        await until(lambda: brokers(federation) == {1})
        await trio.to_thread.run_sync(goes_through, federation, here)

        def stranger() -> None:
            federation.write(clusters={"late": {"bootstrap": west.addresses()}})
            apply()

        await trio.to_thread.run_sync(stranger)
        await until(lambda: ("wrong cluster", "late") in kinds(federation))
        assert await trio.to_thread.run_sync(brokers, federation) == {1}
        await trio.to_thread.run_sync(goes_through, federation, here)

        def back() -> None:
            federation.write(clusters={"late": {"bootstrap": late.addresses()}})
            apply()

        await trio.to_thread.run_sync(back)
        await until(lambda: state(federation, "late")["state"] == "up")
        await until(lambda: brokers(federation) == {1, 100_031})
        await trio.to_thread.run_sync(goes_through, federation, there)
