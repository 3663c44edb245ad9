"""Separate roles over etcd: a controller, two proxies; the store goes away and comes back, a proxy is killed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
import yaml
from confluent_kafka import Consumer, KafkaError, Producer
from confluent_kafka.admin import AdminClient, NewTopic

from tests.fixtures.names import Names
from tools.local_cluster import Cluster
from tools.local_cluster.etcd import Etcd
from tools.local_cluster.ports import Ports
from tools.local_cluster.process import Daemon
from tools.local_federation import program

STEP = 0.05


@dataclass
class Role:
    """One process tree."""

    daemon: Daemon
    admin: int
    port: int

    def ask(self, path: str) -> tuple[int, Any]:
        try:
            with urlopen(f"http://127.0.0.1:{self.admin}{path}", timeout=20) as answer:
                return answer.status, json.loads(answer.read())
        except HTTPError as error:
            with error:
                return error.code, json.loads(error.read())


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(STEP)


@contextmanager
def role(name: str, instance: str, directory: Path, settings: dict[str, Any], ports: tuple[int, ...]) -> Iterator[Role]:
    """`kfed serve NAME`, ready. `ports`: admin, bootstrap, the virtual brokers' first and last."""
    admin, port, first, last = ports
    directory.mkdir()
    listener = {"name": "main", "port": port, "advertised": "127.0.0.1", "broker_ports": f"{first}-{last}"}
    own = {**settings, "proxy": {"listeners": [listener], "workers": 1}, "admin": {"port": admin}}
    (directory / "kfed.yaml").write_text(yaml.safe_dump(own))
    argv = [program(), "serve", name, "-c", "kfed.yaml", "--instance", instance]
    daemon = Daemon(argv, log=directory / "log", cwd=directory)
    daemon.start()
    try:
        until(lambda: b"ready" in (directory / "log").read_bytes().splitlines(), 60)
        yield Role(daemon, admin, port)
    finally:
        daemon.terminate()


@pytest.fixture
def roles(east: Cluster, west: Cluster, own_etcd: Etcd, tmp_path: Path) -> Iterator[dict[str, Role]]:
    settings = {
        "federation": "demo",
        "store": {"kind": "etcd", "endpoints": [own_etcd.endpoint]},
        "clusters": {"east": {"bootstrap": east.addresses()}, "west": {"bootstrap": west.addresses()}},
        "placement": {"default": "east", "rules": [{"topics": ".*-west", "cluster": "west"}]},
    }
    with ExitStack() as stack:
        ports = stack.enter_context(Ports(14, consecutive=True)).numbers
        started = {}
        # Both proxies are given the same virtual addresses: the ports are shared, as on one machine they can be.
        for number, (name, instance) in enumerate((("controller", "c"), ("proxy", "a"), ("proxy", "b"))):
            own = (ports[number], ports[3], ports[4], ports[13])
            started[instance] = stack.enter_context(role(name, instance, tmp_path / instance, settings, own))
        yield started


def test_instances_share_addresses_and_survive_the_store(roles: dict[str, Role], own_etcd: Etcd, names: Names) -> None:
    client: dict[str, str | int | float | bool] = {"bootstrap.servers": f"127.0.0.1:{roles['a'].port}", "log_level": 0}
    topics = [names.topic("t"), names.topic("t") + "-west"]
    admin = AdminClient(client)
    made = admin.create_topics([NewTopic(topic, 1, 1) for topic in topics], operation_timeout=20)
    for future in made.values():
        future.result(30)
    failed: list[str] = []
    producer = Producer({**client, "linger.ms": 0, "message.timeout.ms": 30_000})

    def delivered(error: KafkaError | None, _message: object) -> None:
        if error is not None:
            failed.append(str(error))

    def produce(number: int) -> None:
        for topic in topics:
            producer.produce(topic, str(number), on_delivery=delivered)
        assert producer.flush(30) == 0

    produce(0)
    for instance in ("a", "b"):
        status, document = roles[instance].ask("/api/v1/proxies")
        assert status == 200
        assert sorted((one["instance"], one["worker"]) for one in document["proxies"]) == [("a", 0), ("b", 0)]

    own_etcd.stop()
    produce(1)
    status, document = roles["c"].ask("/api/v1/status")
    assert status == 200, "what is known is still told"
    assert document["federation"] == "demo"
    until(lambda: roles["c"].ask("/api/v1/status")[1]["store"]["view_age"] > 3)
    produce(2)
    own_etcd.start()
    until(lambda: roles["c"].ask("/api/v1/status")[1]["store"]["view_age"] < 2, 40)

    roles["a"].daemon.kill()
    produce(3)
    consumer = Consumer({**client, "group.id": names.group("g"), "auto.offset.reset": "earliest"})
    try:
        consumer.subscribe(topics)
        seen: list[tuple[str | None, bytes | None]] = []
        deadline = time.monotonic() + 40
        while len(seen) < 8 and time.monotonic() < deadline:
            message = consumer.poll(0.2)
            if message is not None and message.error() is None:
                seen.append((message.topic(), message.value()))
    finally:
        consumer.close()
    assert sorted(seen, key=str) == sorted(((t, str(n).encode()) for t in topics for n in range(4)), key=str)
    assert failed == []
