"""The ACLs of every cluster, read by the service and never older than said.

Nothing is decided by rules older than `stale_after`: a cluster that cannot be asked refuses. (What topics a principal
may know of while their cluster is away is judged by `before`, in callers.py.)
"""

from __future__ import annotations

import logging
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import trio

from kafka_client import BrokerUnavailable, ClientError, Refused
from kafka_wire.acls import every_acl
from kafka_wire.errors import ERROR
from proxy.identity.acl import AclSet

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kafka_client import ClusterClient

log = logging.getLogger(__name__)

DESCRIBE_ACLS, DESCRIBE_CONFIGS = 29, 32
FRESH_FOR, STALE_AFTER, UNUSED_AFTER = 5.0, 15.0, 60.0  # seconds
READ_WITHIN = 8.0  # seconds; with FRESH_FOR less than STALE_AFTER: nobody waits for a cluster that has gone away
BROKER_CONFIG = 4
AUTHORIZER = "authorizer.class.name"
# Both decide by the same rules; the second is that of ZooKeeper times.
STANDARD = ("org.apache.kafka.metadata.authorizer.StandardAuthorizer", "kafka.security.authorizer.AclAuthorizer")

Kind = Literal["none", "standard", "other"]


@dataclass(frozen=True, slots=True)
class ClusterIdentity:
    """What the operator says about a cluster's authorizer.

    `authorizer`: `auto` asks the broker for the class (needs DESCRIBE_CONFIGS on the cluster). `super_users`
    (`User:admin`) and `allow_everyone` must repeat the brokers' own settings, which no broker tells.
    """

    authorizer: Literal["auto", "standard", "none", "other"] = "auto"
    super_users: frozenset[str] = frozenset()
    allow_everyone: bool = False


@dataclass(frozen=True, slots=True)
class Authority:
    """How a cluster decides, as of `at` (trio's clock). `acls` is set where it is the standard authorizer."""

    kind: Kind
    acls: AclSet | None
    at: float


class AuthorityUnknown(Exception):
    """How the cluster decides cannot be read, or not recently enough."""


@dataclass(slots=True)
class _Entry:
    lock: trio.Lock = field(default_factory=trio.Lock)
    known: Authority | None = None
    kind: Kind | None = None  # of a cluster with an authorizer
    error: str = ""
    away: bool = False  # the newest question was not answered
    asked_at: float = float("-inf")  # the newest question, whatever came of it
    used_at: float = float("-inf")


class AclCache:
    """`authority(cluster)`, read anew when older than `fresh_for`, used until `stale_after` (seconds)."""

    def __init__(
        self,
        services: Mapping[str, ClusterClient],
        settings: Mapping[str, ClusterIdentity],
        *,
        fresh_for: float = FRESH_FOR,
        stale_after: float = STALE_AFTER,
    ) -> None:
        self._services = services
        self._settings = settings
        self._fresh_for = fresh_for
        self._stale_after = stale_after
        self._entries: dict[str, _Entry] = {}
        self._polling = False

    async def authority(self, cluster: str) -> Authority:
        """How `cluster` decides, at most `stale_after` seconds old. Raises AuthorityUnknown."""
        entry = self._entries.setdefault(cluster, _Entry())
        entry.used_at = now = trio.current_time()
        if entry.known is not None and now - entry.known.at <= self._fresh_for:
            return entry.known
        usable = entry.known is not None and now - entry.known.at <= self._stale_after
        # A failure counts too: a cluster that does not tell is not asked again for every request. Where it was away,
        # whoever polls asks it again, and nobody waits for that; nor for an answer while the last one may be used.
        if not (entry.away and self._polling) and not (usable and entry.lock.locked()):
            async with entry.lock:
                if trio.current_time() - entry.asked_at > self._fresh_for:
                    await self._read(cluster, entry)
        if entry.known is None or trio.current_time() - entry.known.at > self._stale_after:
            raise AuthorityUnknown(f"{cluster}: its ACLs cannot be read: {entry.error}")
        return entry.known

    def before(self, cluster: str) -> Authority | None:
        """How a cluster that is away decided when it was last there; None: it is not away, or was never read."""
        entry = self._entries.get(cluster)
        return entry.known if entry is not None and entry.away else None

    async def renew(self, cluster: str) -> None:
        """Read a cluster's rules anew, where they are in use: what it has by now counts from then on."""
        entry = self._entries.get(cluster)
        if entry is not None and entry.known is not None:
            await self._poll(cluster, entry)

    def age(self, cluster: str) -> float | None:
        """Seconds since the ACLs were read; None: never."""
        entry = self._entries.get(cluster)
        return None if entry is None or entry.known is None else trio.current_time() - entry.known.at

    async def run(self) -> None:
        """Keep what is in use fresh, so that nobody waits for it. Runs until cancelled."""
        self._polling = True
        while True:
            await trio.sleep(self._fresh_for * random.uniform(0.6, 0.8))  # noqa: S311
            unused = trio.current_time() - UNUSED_AFTER
            async with trio.open_nursery() as nursery:
                for cluster, entry in self._entries.items():
                    if entry.used_at > unused:
                        nursery.start_soon(self._poll, cluster, entry)

    async def _poll(self, cluster: str, entry: _Entry) -> None:
        async with entry.lock:
            await self._read(cluster, entry)

    async def _read(self, cluster: str, entry: _Entry) -> None:
        entry.asked_at = trio.current_time()
        try:
            entry.known, entry.error, entry.away = await self._ask(cluster, entry), "", False
        except (ClientError, AuthorityUnknown) as error:
            entry.away = isinstance(error, BrokerUnavailable)
            if str(error) != entry.error:
                log.warning("%s: reading ACLs: %s", cluster, error)
            entry.error = str(error)

    async def _ask(self, cluster: str, entry: _Entry) -> Authority:
        service = self._services[cluster]
        said = self._settings.get(cluster, ClusterIdentity())
        at = trio.current_time()  # rules are as old as the question
        timeout = min(READ_WITHIN, self._stale_after)
        answer = await service.call(DESCRIBE_ACLS, every_acl(), timeout=timeout, retry=True)
        code = answer["error_code"]
        if code == ERROR.SECURITY_DISABLED:
            entry.kind = None
            return Authority("none", None, at)
        if said.authorizer == "none":
            raise AuthorityUnknown("configured to have no authorizer, but it has one")
        if said.authorizer == "other":
            return Authority("other", None, at)
        if code:
            # Without its message: brokers put their own connection's addresses into it.
            raise Refused("DescribeAcls", code, "the service needs DESCRIBE on the cluster")
        if entry.kind is None:
            entry.kind = "standard" if said.authorizer == "standard" else await self._kind(service)
        if entry.kind != "standard":
            return Authority("other", None, at)
        acls = AclSet.from_describe(answer, super_users=said.super_users, allow_everyone=said.allow_everyone)
        return Authority("standard", acls, at)

    async def _kind(self, service: ClusterClient) -> Kind:
        if not service.brokers:
            await service.refresh()
        broker = next(iter(service.brokers))
        named = {"resource_type": BROKER_CONFIG, "resource_name": str(broker), "configuration_keys": [AUTHORIZER]}
        answer = await service.call(DESCRIBE_CONFIGS, {"resources": [named]}, broker)
        result = answer["results"][0]
        if result["error_code"]:
            raise Refused("DescribeConfigs", result["error_code"], "the service needs DESCRIBE_CONFIGS on the cluster")
        values = {one["name"]: one["value"] for one in result["configs"]}
        return "standard" if values.get(AUTHORIZER) in STANDARD else "other"
