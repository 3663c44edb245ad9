"""From a spec to server.properties. Pure text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tools.local_cluster.spec import ADMIN, ADMIN_PASSWORD, MECHANISMS, ClusterSpec, Mechanism
from tools.local_cluster.tls import Certificate

CONTROLLER, INTERNAL = "CONTROLLER", "INTERNAL"
_LOGIN_MODULES: dict[Mechanism, str] = {
    "PLAIN": "org.apache.kafka.common.security.plain.PlainLoginModule",
    "SCRAM-SHA-256": "org.apache.kafka.common.security.scram.ScramLoginModule",
    "SCRAM-SHA-512": "org.apache.kafka.common.security.scram.ScramLoginModule",
    "OAUTHBEARER": "org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule",
}

# Small and quick: few internal partitions, one thread where one will do, timers short enough for a test to wait for.
_SMALL_AND_QUICK = {
    "num.partitions": "1",
    "offsets.topic.num.partitions": "3",
    "transaction.state.log.num.partitions": "3",
    "share.coordinator.state.topic.num.partitions": "3",
    "num.network.threads": "2",
    "num.io.threads": "3",
    "background.threads": "2",
    "log.cleaner.dedupe.buffer.size": "4194304",
    "num.recovery.threads.per.data.dir": "1",
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "1000",
    "group.consumer.min.session.timeout.ms": "3000",
    "group.consumer.min.heartbeat.interval.ms": "500",
    "group.consumer.heartbeat.interval.ms": "1000",
    "group.share.min.heartbeat.interval.ms": "500",
    "group.share.heartbeat.interval.ms": "1000",
    "group.streams.min.heartbeat.interval.ms": "500",
    "group.streams.heartbeat.interval.ms": "1000",
    "group.streams.initial.rebalance.delay.ms": "0",
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": "1000",
    # Also how long a killed broker that is back must wait for its former self to be forgotten.
    "broker.session.timeout.ms": "3000",
    "broker.heartbeat.interval.ms": "500",
    "controlled.shutdown.enable": "true",
}


@dataclass(frozen=True)
class Node:
    """One broker's place: its id, its directory, and the port of each of its listeners."""

    id: int
    directory: Path
    ports: Mapping[str, int]


def login(mechanism: Mechanism, **options: str) -> str:
    settings = "".join(f' {name}="{value}"' for name, value in options.items())
    return f"{_LOGIN_MODULES[mechanism]} required{settings};"


def protocols(spec: ClusterSpec) -> dict[str, str]:
    """Listener -> security protocol, the way a broker needs them."""
    among_brokers = "SASL_PLAINTEXT" if spec.has_internal_listener else "PLAINTEXT"
    listeners: dict[str, str] = {listener: listener for listener in spec.listeners}
    if spec.has_internal_listener:
        listeners[INTERNAL] = among_brokers
    return {**listeners, CONTROLLER: among_brokers}


def _sasl(spec: ClusterSpec, listener: str) -> dict[str, str]:
    prefix = f"listener.name.{listener.lower()}"
    own = listener in (CONTROLLER, INTERNAL)
    mechanisms: tuple[Mechanism, ...] = ("PLAIN",) if own else MECHANISMS
    users = {f"user_{name}": password for name, password in spec.all_users.items()}
    options: dict[Mechanism, dict[str, str]] = {
        "PLAIN": {"username": ADMIN, "password": ADMIN_PASSWORD, **users},
        "SCRAM-SHA-256": {},
        "SCRAM-SHA-512": {},
        "OAUTHBEARER": {"unsecuredLoginStringClaim_sub": ADMIN},
    }
    return {
        f"{prefix}.sasl.enabled.mechanisms": ",".join(mechanisms),
        **{f"{prefix}.{kind.lower()}.sasl.jaas.config": login(kind, **options[kind]) for kind in mechanisms},
    }


def server_properties(
    spec: ClusterSpec, node: Node, nodes: tuple[Node, ...], certificate: Certificate | None, ca_file: Path | None
) -> dict[str, str]:
    by_listener = protocols(spec)
    replication = str(spec.replication)
    in_sync = str(2 if spec.replication == 3 else 1)
    addresses = {name: f"{name}://127.0.0.1:{node.ports[name]}" for name in by_listener}
    made = {
        **_SMALL_AND_QUICK,
        "process.roles": "broker,controller",
        "node.id": str(node.id),
        "controller.quorum.voters": ",".join(f"{one.id}@127.0.0.1:{one.ports[CONTROLLER]}" for one in nodes),
        "controller.listener.names": CONTROLLER,
        "listeners": ",".join(addresses.values()),
        "advertised.listeners": ",".join(text for name, text in addresses.items() if name != CONTROLLER),
        "listener.security.protocol.map": ",".join(f"{name}:{protocol}" for name, protocol in by_listener.items()),
        "inter.broker.listener.name": INTERNAL if spec.has_internal_listener else "PLAINTEXT",
        "log.dirs": str(node.directory / "data"),
        "default.replication.factor": replication,
        "min.insync.replicas": in_sync,
        "offsets.topic.replication.factor": replication,
        "transaction.state.log.replication.factor": replication,
        "transaction.state.log.min.isr": in_sync,
        "share.coordinator.state.topic.replication.factor": replication,
        "share.coordinator.state.topic.min.isr": in_sync,
        "auto.create.topics.enable": str(spec.auto_create_topics).lower(),
    }
    if spec.has_internal_listener:
        made["sasl.mechanism.inter.broker.protocol"] = "PLAIN"
        made["sasl.mechanism.controller.protocol"] = "PLAIN"
    for listener, protocol in by_listener.items():
        if protocol.startswith("SASL"):
            made |= _sasl(spec, listener)
    if certificate is not None and ca_file is not None:
        made |= {
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(certificate.both),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(ca_file),
            # Asked for, not demanded: SSL serves clients with a certificate and anonymous ones.
            "ssl.client.auth": "requested",
        }
    if spec.authorizer:
        made |= {
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": ";".join((f"User:{ADMIN}", *spec.super_users)),
            "allow.everyone.if.no.acl.found": str(spec.allow_everyone_if_no_acl).lower(),
        }
    if spec.delegation_tokens:
        made["delegation.token.secret.key"] = f"{spec.name}-delegation-token-secret"
    return {**made, **spec.overrides}


def render(properties: Mapping[str, str]) -> str:
    def escaped(value: str) -> str:
        return value.replace("\\", "\\\\").replace("\n", "\\n")

    return "".join(f"{name}={escaped(value)}\n" for name, value in properties.items())
