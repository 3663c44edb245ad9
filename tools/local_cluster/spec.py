"""What a local cluster shall be. Plain data: tests, demo and benchmarks name it, `Cluster` makes it run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Listener = Literal["PLAINTEXT", "SASL_PLAINTEXT", "SSL", "SASL_SSL"]
Mechanism = Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"]

MECHANISMS: tuple[Mechanism, ...] = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER")
# Every secured cluster knows this super user; brokers use it among themselves.
ADMIN, ADMIN_PASSWORD = "admin", "admin-secret"


@dataclass(frozen=True)
class ClusterSpec:
    name: str
    # 1: one combined node. 3: three combined nodes, replication factor 3, min.insync.replicas 2.
    brokers: int = 1
    first_broker_id: int = 1
    # The first one is what `bootstrap()` gives by default.
    listeners: tuple[Listener, ...] = ("PLAINTEXT",)
    # Name -> password, known to PLAIN and to both SCRAM mechanisms. ADMIN is always added.
    users: Mapping[str, str] = field(default_factory=dict)
    authorizer: bool = False
    # Principals ("User:alice"), besides ADMIN.
    super_users: tuple[str, ...] = ()
    allow_everyone_if_no_acl: bool = False
    delegation_tokens: bool = False
    auto_create_topics: bool = False
    # Server properties; they win over everything said here.
    overrides: Mapping[str, str] = field(default_factory=dict)
    heap: str = "256m"
    # The quick compiler is right for tests, the full one for measurements.
    full_jit: bool = False

    @property
    def node_ids(self) -> tuple[int, ...]:
        return tuple(range(self.first_broker_id, self.first_broker_id + self.brokers))

    @property
    def replication(self) -> int:
        return min(3, self.brokers)

    @property
    def has_sasl(self) -> bool:
        return any(listener.startswith("SASL") for listener in self.listeners)

    @property
    def has_tls(self) -> bool:
        return any(listener.endswith("SSL") for listener in self.listeners)

    @property
    def has_internal_listener(self) -> bool:
        """Brokers talk over a listener of their own, as ADMIN, unless everybody may do everything without a name."""
        return self.authorizer or "PLAINTEXT" not in self.listeners

    @property
    def all_users(self) -> dict[str, str]:
        return {ADMIN: ADMIN_PASSWORD, **self.users}


def secured(
    name: str, users: Mapping[str, str], *, brokers: int = 1, first_broker_id: int = 1, tls: bool = False
) -> ClusterSpec:
    """SASL with every mechanism, ACLs (nobody may do anything but ADMIN) and delegation tokens."""
    return ClusterSpec(
        name=name,
        brokers=brokers,
        first_broker_id=first_broker_id,
        listeners=("SASL_PLAINTEXT", "SASL_SSL", "SSL") if tls else ("SASL_PLAINTEXT",),
        users=users,
        authorizer=True,
        delegation_tokens=True,
    )
