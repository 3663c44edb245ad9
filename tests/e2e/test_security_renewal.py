"""Logins and credentials that end while clients work: re-authentication, and passwords replaced."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from confluent_kafka import Consumer, Producer

from kafka_client import AuthenticationFailed, ClusterClient, Sasl, SecretValue, Security
from tests.e2e.raw import Closed, connected
from tests.e2e.test_security_sasl import log_in
from tests.fixtures.clusters import USERS
from tests.fixtures.names import Names
from tests.fixtures.security import coordinate, grant, make_topics, until, user_acls
from tools.java_client import Jvm
from tools.local_cluster import Cluster, ClusterSpec, Ports
from tools.local_cluster.cluster import Setting
from tools.local_cluster.spec import Mechanism
from tools.local_cluster.tls import Authority, Certificate
from tools.local_federation import Federation, run_federation

LIFETIME_MS = 3000
SECONDS = 8.0  # several lifetimes


class Renewing:
    """A cluster that wants a new login every few seconds, and a federation over it."""

    def __init__(
        self, cluster: Cluster, federation: Federation, certificates_port: int, carol: Certificate, password_file: Path
    ) -> None:
        self.carol = carol
        self.password_file = password_file
        self.cluster = cluster
        self.federation = federation
        self.certificates_port = certificates_port

    def java(self, mechanism: Mechanism = "SCRAM-SHA-512") -> dict[str, str]:
        made = self.cluster.java("SASL_PLAINTEXT", user="alice", mechanism=mechanism)
        return {**made, "bootstrap.servers": self.federation.bootstrap()}

    def librdkafka(self, mechanism: Mechanism = "SCRAM-SHA-512") -> dict[str, Setting]:
        made = self.cluster.librdkafka("SASL_PLAINTEXT", user="alice", mechanism=mechanism)
        return {**made, "bootstrap.servers": self.federation.bootstrap()}

    def count(self, metric: str, **labels: str) -> float:
        """The sum of a counter over all workers."""
        wanted = [f'{name}="{value}"' for name, value in labels.items()]
        lines = [line for line in self.federation.ask("/metrics").splitlines() if line.startswith(metric + "{")]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if all(one in line for one in wanted))


@pytest.fixture(scope="module")
def renewing(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Renewing]:
    spec = ClusterSpec(
        "renewing",
        listeners=("SASL_PLAINTEXT",),
        users=USERS,
        authorizer=True,
        delegation_tokens=True,
        overrides={"connections.max.reauth.ms": str(LIFETIME_MS)},
    )
    carol, proxy = authority.client("carol"), authority.server("renewing-proxy")
    with Cluster(spec) as cluster, Ports(9, consecutive=True) as ports:
        trio.run(grant, cluster, *user_acls("east", carol.principal))
        trio.run(coordinate, cluster)
        first = ports.numbers[0]
        certificates = {
            "name": "certificates",
            "bind": "127.0.0.1",
            "port": first,
            "broker_ports": f"{first + 1}-{first + 8}",
            "tls": {"cert": str(proxy.chain), "key": str(proxy.key), "client_ca": str(authority.ca_file)},
        }
        directory = tmp_path_factory.mktemp("renewing")
        password_file = directory / "password"
        password_file.write_text(USERS["kfed"])
        service = {"mechanism": "SCRAM-SHA-256", "username": "kfed", "password_file": str(password_file)}
        service["password"] = None  # type: ignore[assignment]
        with run_federation([cluster], directory=directory, clusters={"renewing": {"sasl": service}}) as federation:
            federation.stop()
            listeners = [*federation.settings["proxy"]["listeners"], certificates]
            federation.write(proxy={"listeners": listeners, "workers": 1}, log={"level": "debug"})
            federation.start()
            yield Renewing(cluster, federation, first, carol, password_file)


class Load:
    """Records written and read by librdkafka until `stop`, and what went wrong."""

    def __init__(self, config: dict[str, Setting], topic: str, group: str) -> None:
        self.errors: list[str] = []
        self.delivered = self.taken = 0
        self._stop = threading.Event()
        told = lambda error: self.errors.append(f"librdkafka: {error}")  # noqa: E731
        own = {**config, "error_cb": told}
        self._producer = Producer(own)
        self._consumer = Consumer({**own, "group.id": group, "auto.offset.reset": "earliest"})
        self._topic = topic

    def _answered(self, error: object, _: object) -> None:
        if error is None:
            self.delivered += 1
        else:
            self.errors.append(f"record: {error}")

    def run(self) -> None:
        self._consumer.subscribe([self._topic])
        following = time.monotonic()
        while not self._stop.is_set() or self.taken < self.delivered:
            if self._stop.is_set():
                self._producer.flush(10)
            elif time.monotonic() >= following:
                self._producer.produce(self._topic, b"r-", on_delivery=self._answered)
                following += 0.005
            self._producer.poll(0)
            message = self._consumer.poll(0.005)
            if message is not None and message.error():
                self.errors.append(f"read: {message.error()}")
            elif message is not None and (message.value() or b"").startswith(b"r-"):
                self.taken += 1
        self._producer.flush(10)
        self._consumer.close()

    def stop(self) -> None:
        self._stop.set()


async def work(jvm: Jvm, java: dict[str, str], load: Load, topic: str) -> None:
    """Both libraries under load for several lifetimes of a login, and not an error."""
    async with jvm.producer(java, linger_ms="0") as producer, jvm.consumer(java) as consumer:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, load.run)
            await consumer.assign((topic, 0))
            await producer.start(topic, per_second=50, prefix="j-")
            await trio.sleep(SECONDS)  # the load's length
            sent = await producer.stop()
            load.stop()
        assert [one.error for one in sent if one.error is not None] == []
        taken = await consumer.read(len(sent) + load.delivered, 20)
        assert [event for event in taken.events if event.kind == "error"] == []
        assert len(taken.records) == len(sent) + load.delivered > 100
    assert load.errors == []


async def test_logins_are_renewed_under_load(renewing: Renewing, names: Names, jvm: Jvm) -> None:
    mechanisms: tuple[Mechanism, ...] = ("PLAIN", "SCRAM-SHA-512", "OAUTHBEARER")
    topics = [names.topic(f"shared-{mechanism}") for mechanism in mechanisms]
    await make_topics(renewing.cluster, *topics)
    before = renewing.count("kfed_requests_total", api="SaslHandshake")
    accepted = renewing.count("kfed_connections_accepted_total")
    with trio.fail_after(90):
        async with trio.open_nursery() as nursery:
            for mechanism, topic in zip(mechanisms, topics, strict=True):
                load = Load(renewing.librdkafka(mechanism), topic, topic)
                nursery.start_soon(work, jvm, renewing.java(mechanism), load, topic)
    logins = renewing.count("kfed_requests_total", api="SaslHandshake") - before
    connections = renewing.count("kfed_connections_accepted_total") - accepted
    assert logins > 1.8 * connections, (logins, connections)


async def test_a_certificates_login_is_renewed_here(
    renewing: Renewing, authority: Authority, names: Names, jvm: Jvm
) -> None:
    """Clients with certificates know nothing of logins: none may end under them."""
    topic = names.topic("carols")
    await make_topics(renewing.cluster, topic)
    carol = renewing.carol
    address = f"127.0.0.1:{renewing.certificates_port}"
    rdkafka: dict[str, Setting] = {
        "bootstrap.servers": address,
        "security.protocol": "SSL",
        "ssl.ca.location": str(authority.ca_file),
        "ssl.certificate.location": str(carol.chain),
        "ssl.key.location": str(carol.key),
    }
    java = {
        "bootstrap.servers": address,
        "security.protocol": "SSL",
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(authority.ca_file),
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(carol.both),
    }
    accepted = renewing.count("kfed_connections_accepted_total", listener="certificates")
    with trio.fail_after(90):
        await work(jvm, java, Load(rdkafka, topic, names.group("carols")), topic)
    # Bootstrap, leader and coordinator of each client, once.
    assert renewing.count("kfed_connections_accepted_total", listener="certificates") - accepted <= 14


async def test_the_services_password_is_replaced(renewing: Renewing, names: Names, jvm: Jvm) -> None:
    """It is in use again within a login's lifetime; clients notice nothing."""
    topic = names.topic("shared")
    await make_topics(renewing.cluster, topic)
    renewed = "renewed-secret-of-the-service"
    load = Load(renewing.librdkafka("PLAIN"), topic, topic)
    accepted = renewing.count("kfed_connections_accepted_total")
    with trio.fail_after(90):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(work, jvm, renewing.java("PLAIN"), load, topic)
            async with jvm.admin(renewing.cluster.java()) as admin:
                await admin.done("upsert_scram", user="kfed", mechanism="SCRAM-SHA-256", password=renewed)
            fresh = renewing.password_file.with_suffix(".new")
            fresh.write_text(renewed + "\n")
            fresh.rename(renewing.password_file)
            former = Security(None, Sasl("SCRAM-SHA-256", "kfed", SecretValue(USERS["kfed"])))

            async def refused() -> bool:
                async with ClusterClient("renewing", renewing.cluster.addresses(), former) as client:
                    try:
                        await client.refresh()
                    except AuthenticationFailed:
                        return True
                return False

            await until(refused)
        # By now every login with the former password is over.
        async with jvm.admin(renewing.java("PLAIN")) as admin:
            await admin.create_topic(names.topic("shared-later"), 1)
            described = await admin.done("describe_topics", topics=[names.topic("shared-later")])
            assert described
    assert renewing.count("kfed_connections_accepted_total") - accepted <= 12
    log = renewing.federation.daemon.log.read_text()
    assert not [one for one in (*USERS.values(), renewed) if one in log]
    assert "Traceback" not in log


async def test_what_is_answered_here_ends_with_the_login_too(renewing: Renewing) -> None:
    metadata = {"topics": [], "allow_auto_topic_creation": False}
    async with connected(renewing.federation.port) as raw:
        await log_in(raw)
        began = trio.current_time()
        with pytest.raises(Closed), trio.fail_after(10):
            while True:
                assert (await raw.ask(3, 8, metadata))["brokers"]
        assert trio.current_time() - began > LIFETIME_MS / 1000 * 0.5
    async with connected(renewing.federation.port) as raw:
        await log_in(raw)
        began = last = trio.current_time()
        while trio.current_time() - began < LIFETIME_MS / 1000 * 1.5:
            assert (await raw.ask(3, 8, metadata))["brokers"]
            if trio.current_time() - last > 1.2:  # a broker takes no second login within a second
                await log_in(raw)
                last = trio.current_time()
