"""Real Kafka clusters on this machine, from a `ClusterSpec`.

    with Cluster(ClusterSpec("east")) as east:
        Producer(east.librdkafka())

Calls block: from trio go through `trio.to_thread.run_sync`. Several clusters start sooner together: see `running`.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from tools.kafka import jvm
from tools.local_cluster import storage
from tools.local_cluster.ports import Ports
from tools.local_cluster.probe import answers
from tools.local_cluster.process import Daemon
from tools.local_cluster.properties import Node, login, protocols, render, server_properties
from tools.local_cluster.spec import ADMIN, ClusterSpec, Listener, Mechanism
from tools.local_cluster.tls import Authority, Certificate

# What librdkafka's configuration takes.
Setting = str | int | float | bool

START_SECONDS = 90.0
_POLL_SECONDS = 0.05


class Broker(Daemon):
    """One node of a cluster: `kill`, `pause`, `resume`, `terminate`, and `start` again on the same ports and data."""

    def __init__(self, spec: ClusterSpec, node: Node) -> None:
        self.id = node.id
        self.data = node.directory / "data"
        self._ports = node.ports
        self._listeners = spec.listeners
        super().__init__(
            jvm.command(
                "kafka.Kafka",
                [str(node.directory / "server.properties")],
                heap=spec.heap,
                full_jit=spec.full_jit,
                properties={"kafka.logs.dir": str(node.directory)},
            ),
            log=node.directory / "broker.log",
            cwd=node.directory,
        )

    def port(self, listener: Listener | None = None) -> int:
        return self._ports[listener or self._listeners[0]]

    def wait_ready(self, timeout: float = START_SECONDS) -> None:
        """Until it answers ApiVersions on every listener."""
        deadline = time.monotonic() + timeout
        waiting = list(self._listeners)
        while waiting:
            if answers(self.port(waiting[0]), tls=waiting[0].endswith("SSL")):
                waiting.pop(0)
                continue
            if not self.running:
                raise RuntimeError(f"broker {self.id} ended:\n{self.last_words()}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"broker {self.id} is not ready after {timeout} s:\n{self.last_words()}")
            time.sleep(_POLL_SECONDS)


class Cluster:
    def __init__(self, spec: ClusterSpec, directory: Path | None = None, authority: Authority | None = None) -> None:
        """A cluster that does not run yet. Without a `directory` it gets one that ends with it."""
        self.spec = spec
        self.name = spec.name
        self.id = storage.random_id()
        self._temporary = directory is None
        base = directory or Path(tempfile.mkdtemp(prefix=f"kfed-{spec.name}-"))
        self.directory = base
        listeners = tuple(protocols(spec))
        self._ports = Ports(len(listeners) * spec.brokers)
        free = iter(self._ports.numbers)
        nodes = tuple(
            Node(id=number, directory=base / f"node-{number}", ports={name: next(free) for name in listeners})
            for number in spec.node_ids
        )
        self.authority = authority or (Authority(base / "tls") if spec.has_tls else None)
        certificate = self.authority.server(spec.name) if self.authority and spec.has_tls else None
        self.brokers = tuple(self._prepare(node, nodes, certificate) for node in nodes)

    def _prepare(self, node: Node, nodes: tuple[Node, ...], certificate: Certificate | None) -> Broker:
        node.directory.mkdir(parents=True, exist_ok=True)
        if not (node.directory / "data").exists():
            storage.format_directory(
                node.directory / "data",
                cluster_id=self.id,
                node_id=node.id,
                users=self.spec.all_users if self.spec.has_sasl else {},
            )
        ca_file = self.authority.ca_file if self.authority else None
        settings = server_properties(self.spec, node, nodes, certificate, ca_file)
        (node.directory / "server.properties").write_text(render(settings))
        return Broker(self.spec, node)

    # -- life

    def launch(self) -> None:
        """Starts every broker that does not run, and returns at once."""
        for broker in self.brokers:
            if not broker.running:
                broker.start()

    def wait_ready(self, timeout: float = START_SECONDS) -> None:
        """Until every running broker answers and is in the metadata, so that topics can be created."""
        deadline = time.monotonic() + timeout
        running = [broker for broker in self.brokers if broker.running]
        for broker in running:
            broker.wait_ready(max(0.1, deadline - time.monotonic()))
        expected = {broker.id for broker in running}
        admin = AdminClient({**self.librdkafka(), "log_level": 0})
        seen: set[int] = set()
        while time.monotonic() < deadline:
            try:
                seen = set(admin.list_topics(timeout=2).brokers)
            except KafkaException:
                seen = set()
            if seen >= expected:
                return
            time.sleep(_POLL_SECONDS)
        raise TimeoutError(f"{self.name}: brokers {sorted(expected)} expected, the metadata has {sorted(seen)}")

    def start(self) -> None:
        self.launch()
        self.wait_ready()

    def mend(self) -> None:
        """Resumes what is paused and starts what is dead; at once where nothing is wrong."""
        paused = [broker for broker in self.brokers if broker.running and broker.paused]
        dead = [broker for broker in self.brokers if not broker.running]
        for broker in paused:
            broker.resume()
        for broker in dead:
            broker.start()
        if paused or dead:
            self.wait_ready()

    def stop(self, *, graceful: bool = False) -> None:
        """Ends the brokers; by default the quick way, since nobody will read their data again."""
        for broker in self.brokers:
            if graceful:
                broker.terminate()
            else:
                broker.kill()

    def close(self) -> None:
        """Stops, gives the ports back and removes a temporary directory."""
        self.stop()
        self._ports.release()
        if self._temporary:
            shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Cluster:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- how to reach it

    def broker(self, broker_id: int) -> Broker:
        return next(broker for broker in self.brokers if broker.id == broker_id)

    def addresses(self, listener: Listener | None = None) -> list[str]:
        return [f"127.0.0.1:{broker.port(listener)}" for broker in self.brokers]

    def bootstrap(self, listener: Listener | None = None) -> str:
        return ",".join(self.addresses(listener))

    @property
    def ca_file(self) -> Path:
        if self.authority is None:
            raise ValueError(f"{self.name} has no TLS listener")
        return self.authority.ca_file

    def librdkafka(
        self,
        listener: Listener | None = None,
        *,
        user: str = ADMIN,
        password: str | None = None,
        mechanism: Mechanism = "PLAIN",
        certificate: Certificate | None = None,
    ) -> dict[str, Setting]:
        """A client's configuration, for librdkafka's names; on SASL listeners as ADMIN unless `user` says otherwise."""
        chosen = listener or self.spec.listeners[0]
        made: dict[str, Setting] = {"bootstrap.servers": self.bootstrap(chosen), "security.protocol": chosen}
        if chosen.endswith("SSL"):
            made["ssl.ca.location"] = str(self.ca_file)
            if certificate is not None:
                made["ssl.certificate.location"] = str(certificate.chain)
                made["ssl.key.location"] = str(certificate.key)
        if chosen.startswith("SASL"):
            made["sasl.mechanism"] = mechanism
            if mechanism == "OAUTHBEARER":
                made["enable.sasl.oauthbearer.unsecure.jwt"] = "true"
                made["sasl.oauthbearer.config"] = f"principal={user}"
            else:
                made["sasl.username"] = user
                made["sasl.password"] = self.spec.all_users[user] if password is None else password
        return made

    def java(
        self,
        listener: Listener | None = None,
        *,
        user: str = ADMIN,
        password: str | None = None,
        mechanism: Mechanism = "PLAIN",
        certificate: Certificate | None = None,
    ) -> dict[str, str]:
        """The same, for the Java clients' names (also what `--command-config` of the console tools takes)."""
        chosen = listener or self.spec.listeners[0]
        made = {"bootstrap.servers": self.bootstrap(chosen), "security.protocol": str(chosen)}
        if chosen.endswith("SSL"):
            made["ssl.truststore.type"] = "PEM"
            made["ssl.truststore.location"] = str(self.ca_file)
            if certificate is not None:
                made["ssl.keystore.type"] = "PEM"
                made["ssl.keystore.location"] = str(certificate.both)
        if chosen.startswith("SASL"):
            made["sasl.mechanism"] = mechanism
            if mechanism == "OAUTHBEARER":
                made["sasl.jaas.config"] = login(mechanism, unsecuredLoginStringClaim_sub=user)
            else:
                secret = self.spec.all_users[user] if password is None else password
                made["sasl.jaas.config"] = login(mechanism, username=user, password=secret)
        return made


@contextmanager
def running(*specs: ClusterSpec, directory: Path | None = None) -> Iterator[dict[str, Cluster]]:
    """Clusters by name. All are launched before the first is waited for."""
    clusters: dict[str, Cluster] = {}
    try:
        for spec in specs:
            clusters[spec.name] = Cluster(spec, None if directory is None else directory / spec.name)
            clusters[spec.name].launch()
        for cluster in clusters.values():
            cluster.wait_ready()
        yield clusters
    finally:
        for cluster in clusters.values():
            cluster.close()
