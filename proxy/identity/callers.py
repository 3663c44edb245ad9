"""Asking a cluster as a client: with a delegation token, or, where there is none, by the cluster's own rules.

In this order: the service's own connection where the principal is the service itself, or where the cluster has no
authorizer; a connection opened as the principal by delegation token; and where tokens are off, or the principal is a
super user, the cluster's ACLs are evaluated here and the service asks in the client's stead, its answer cut down to
what the client may see. Everything else is refused. Credentials of clients are never replayed.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from kafka_client import AuthenticationFailed, BrokerUnavailable, CallTimeout, ClusterClient, Security
from kafka_wire.errors import ERROR
from proxy.identity.acl import DENIED_CODE, AclSet, Operation, Resource
from proxy.identity.acl_cache import FRESH_FOR, STALE_AFTER, AclCache, Authority, AuthorityUnknown, ClusterIdentity
from proxy.identity.answers import shown
from proxy.identity.needs import Need, NotDecidable, needs
from proxy.identity.tokens import TokensUnavailable, TokenVault

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from kafka_client import Tls
    from kafka_wire.codec import Message
    from proxy.identity.principal import Principal

__all__ = ["CallerPool", "ClusterIdentity", "IdentityRefused"]

METADATA, DESCRIBE_GROUPS = 3, 15
MECHANISMS = ("SCRAM-SHA-512", "SCRAM-SHA-256")  # a token is good for every SCRAM mechanism a listener has
_NO_SCRAM = (ERROR.UNSUPPORTED_SASL_MECHANISM, ERROR.ILLEGAL_SASL_STATE)
# Answers of newer versions name topics by id only and could not be filtered.
_LAST_BY_NAME = {8: 9, 9: 9}


class IdentityRefused(Exception):
    """The request may not, or cannot safely, be made for this principal; nothing was sent.

    `denied` are the needs that the cluster's ACLs refuse (each with the error `code` a broker would give): a caller may
    answer those and ask for the rest. Empty where it is not a matter of single resources.
    """

    def __init__(self, reason: str, denied: tuple[Need, ...] = ()) -> None:
        super().__init__(reason)
        self.denied = denied


class RulesUnknown(IdentityRefused):
    """The cluster's rules cannot be read at the moment: asking again later may help."""


@dataclass(slots=True)
class _Client:
    token_id: str | None
    client: ClusterClient
    last_used: float
    users: int = 0


class CallerPool:
    """Connections of principals to clusters. `run` must be running in a nursery of the owner's.

    `services` are the clients with the service's own credentials. At most `limit` principals (per cluster) have
    connections at a time, at most `per_broker` each and broker; unused ones are closed after `idle_close` seconds.
    """

    def __init__(
        self,
        services: Mapping[str, ClusterClient],
        settings: Mapping[str, ClusterIdentity],
        *,
        limit: int = 256,
        per_broker: int = 2,
        idle_close: float = 30.0,
        acl_fresh_for: float = FRESH_FOR,
        acl_stale_after: float = STALE_AFTER,
    ) -> None:
        self._services = services
        self._limit = limit
        self._per_broker = per_broker
        self._idle_close = idle_close
        self.acls = AclCache(services, settings, fresh_for=acl_fresh_for, stale_after=acl_stale_after)

        def super_users(cluster: str) -> frozenset[str]:
            return settings.get(cluster, ClusterIdentity()).super_users

        self.vault = TokenVault(services, super_users=super_users)
        self._clients: OrderedDict[tuple[str, Principal], _Client] = OrderedDict()
        self._mechanism: dict[str, str] = {}

    async def run(self) -> None:
        """Keeps ACLs fresh and closes idle connections until cancelled; then expires the tokens."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.acls.run)
                while True:
                    await trio.sleep(self._idle_close / 2)
                    self._close_idle()
                    await self.vault.expire_dropped()
        finally:
            for one in self._clients.values():
                one.client.close()
            self._clients.clear()
            await self.vault.close()

    async def ask_as(
        self,
        principal: Principal,
        cluster: str,
        key: int,
        message: Message,
        broker: int | None = None,
        *,
        version: int | None = None,
        timeout: float = 10.0,
        host: str | None = None,
        retry: bool = False,
    ) -> Message:
        """A request to `cluster` that does and shows only what the cluster would let `principal` do and see.

        `host` is the client's address for ACLs that name one; without it only rules for all hosts permit. `retry` as
        in `ClusterClient.call`.

        Raises:
            IdentityRefused: nothing was sent.
            KeyError: no such cluster. ClientError: as `ClusterClient.call`.
        """
        with trio.move_on_after(timeout):
            return await self._ask_as(principal, cluster, key, message, broker, version, timeout, host, retry)
        raise CallTimeout(f"{cluster}: no answer to API key {key} in {timeout:g} s", sent=True)

    async def _ask_as(
        self,
        principal: Principal,
        cluster: str,
        key: int,
        message: Message,
        broker: int | None,
        version: int | None,
        timeout: float,
        host: str | None,
        retry: bool,
    ) -> Message:
        service = self._services[cluster]
        if principal == await self.vault.own_name(cluster):
            return await service.call(key, message, broker, version, timeout, retry=retry)
        unknown: AuthorityUnknown | None = None
        authority: Authority | None = None
        try:
            authority = await self.acls.authority(cluster)
        except AuthorityUnknown as error:
            unknown = error  # with a token the broker itself decides
        if authority is not None and authority.kind == "none":
            return await service.call(key, message, broker, version, timeout, retry=retry)
        try:
            return await self._with_token(principal, cluster, key, message, broker, version, timeout, retry)
        except TokensUnavailable as error:
            if authority is None:
                raise RulesUnknown(f"{error}; {unknown}") from None
            if authority.acls is None:
                raise IdentityRefused(f"{error}; {cluster} has an authorizer whose rules are not known") from None
        self._judge(authority.acls, principal, host, cluster, key, message)
        last = _LAST_BY_NAME.get(key)
        if last is not None:
            version = last if version is None else min(version, last)
        answer = await service.call(key, message, broker, version, timeout, retry=retry)
        return shown(authority.acls, principal, host, key, message, answer)

    async def visible(
        self,
        principal: Principal,
        host: str | None,
        cluster: str,
        resource: Resource,
        names: Iterable[str],
        operation: Operation = Operation.DESCRIBE,
    ) -> frozenset[str]:
        """Those of `names` on which the cluster allows `operation`.

        Decided here by the cluster's ACLs; where its authorizer is another one, the broker is asked as the principal,
        which it can be about describing topics and groups.

        Raises:
            IdentityRefused: the cluster's rules are not known (`RulesUnknown`: for now); nothing may be shown.
            ClientError: the broker was asked and did not answer.
        """
        try:
            authority = await self.acls.authority(cluster)
        except AuthorityUnknown as error:
            # Topics do not vanish from lists with their cluster: clients would give them up. Nothing else is judged by
            # rules that may be old.
            before = self.acls.before(cluster)
            listed = (operation, resource) == (Operation.DESCRIBE, Resource.TOPIC)
            if before is None or before.kind == "other" or not listed:
                raise RulesUnknown(str(error)) from None
            authority = before
        if authority.kind == "none":
            return frozenset(names)
        if authority.acls is None:
            return await self._seen_by_broker(principal, cluster, resource, sorted(names), operation)
        allows = authority.acls.allows
        return frozenset(name for name in names if allows(principal, host, operation, resource, name))

    async def _seen_by_broker(
        self, principal: Principal, cluster: str, resource: Resource, names: list[str], operation: Operation
    ) -> frozenset[str]:
        if operation != Operation.DESCRIBE or resource not in (Resource.TOPIC, Resource.GROUP):
            raise IdentityRefused(f"{cluster} has an authorizer whose rules are not known")
        if not names:
            return frozenset()
        if resource == Resource.TOPIC:
            topics = [{"name": name} for name in names]
            message = {"topics": topics, "allow_auto_topic_creation": False}
            answer = await self.ask_as(principal, cluster, METADATA, message, retry=True)
            found = {one["name"]: one["error_code"] for one in answer["topics"]}
        else:
            answer = await self.ask_as(principal, cluster, DESCRIBE_GROUPS, {"groups": names}, retry=True)
            found = {one["group_id"]: one["error_code"] for one in answer["groups"]}
        denied = DENIED_CODE[resource]
        return frozenset(name for name in names if name in found and found[name] != denied)

    def forget(self, principal: Principal) -> None:
        """Close the idle connections of a principal on all clusters."""
        for key in [key for key, one in self._clients.items() if key[1] == principal and not one.users]:
            self._clients.pop(key).client.close()

    # -- inside ---------------------------------------------------------------------------------------------------

    def _judge(
        self, acls: AclSet, principal: Principal, host: str | None, cluster: str, key: int, message: Message
    ) -> None:
        try:
            wanted = needs(key, message)
        except NotDecidable as error:
            raise IdentityRefused(f"{cluster}: {error}") from None

        def allowed(need: Need) -> bool:
            if need.instead is not None and allowed(need.instead):
                return True
            return acls.allows(principal, host, need.operation, need.resource, need.name)

        denied = tuple(need for need in wanted if not allowed(need))
        if denied:
            first = denied[0]
            reason = f"{cluster}: {principal} may not {first.operation.name} {first.resource.name} {first.name}"
            raise IdentityRefused(reason, denied)

    async def _with_token(
        self,
        principal: Principal,
        cluster: str,
        key: int,
        message: Message,
        broker: int | None,
        version: int | None,
        timeout: float,
        retry: bool,
    ) -> Message:
        deadline = trio.current_time() + timeout
        again = True
        while True:
            mechanism = self._mechanism.get(cluster, MECHANISMS[0])
            sasl = await self.vault.credentials(cluster, principal, mechanism)
            entry = await self._client(cluster, principal, sasl.username, Security(self._tls(cluster), sasl))
            entry.users += 1
            try:
                return await self._ask(entry.client, principal, cluster, key, message, broker, version, deadline, retry)
            except AuthenticationFailed as error:
                self._drop(cluster, principal, entry)
                if error.code in _NO_SCRAM:
                    self._next_mechanism(cluster, mechanism)
                    continue
                # Expired behind our back, or the brokers' secret changed: one new token, then no more.
                self.vault.forget(cluster, principal, sasl.username)
                if not again:
                    raise IdentityRefused(f"{cluster} does not accept its own token for {principal}") from None
                again = False
            finally:
                entry.users -= 1
                entry.last_used = trio.current_time()

    async def _ask(
        self,
        client: ClusterClient,
        principal: Principal,
        cluster: str,
        key: int,
        message: Message,
        broker: int | None,
        version: int | None,
        deadline: float,
        retry: bool,
    ) -> Message:
        """One call; where any broker will do, one that answers the service is taken, another if it does not."""
        choices = [broker] if broker is not None else self._preferred(cluster)
        for position, one in enumerate(choices):
            await self.vault.known_at(cluster, principal, one)
            left = max(deadline - trio.current_time(), 0.0)
            try:
                return await client.call(key, message, one, version, left, retry=retry and len(choices) == 1)
            except BrokerUnavailable as error:
                if position == len(choices) - 1 or (error.sent and not retry):
                    raise
        raise BrokerUnavailable(f"{cluster}: no broker is known")

    def _preferred(self, cluster: str) -> list[int]:
        service = self._services[cluster]
        reachable = service.health.reachable
        return sorted(service.brokers, key=lambda one: (one not in reachable, one))

    def _tls(self, cluster: str) -> Tls | None:
        return self._services[cluster].security.tls

    def _next_mechanism(self, cluster: str, refused: str) -> None:
        position = MECHANISMS.index(refused) + 1
        if position == len(MECHANISMS):
            self._mechanism.pop(cluster, None)
            self.vault.tokens_off(cluster, "its listener has no SCRAM")
        else:
            self._mechanism[cluster] = MECHANISMS[position]

    async def _client(self, cluster: str, principal: Principal, token_id: str | None, security: Security) -> _Client:
        service = self._services[cluster]
        if not service.brokers:
            await service.refresh()
        key = (cluster, principal)
        entry = self._clients.get(key)
        if entry is None or entry.token_id != token_id or entry.client.security != security:
            if entry is not None:
                self._drop(cluster, principal, entry)
            addresses = [f"{one.host}:{one.port}" for one in service.brokers.values()]
            client = ClusterClient(
                cluster,
                addresses,
                security,
                service.client_id,
                idle_close=self._idle_close,
                per_broker=self._per_broker,
            )
            entry = self._clients[key] = _Client(token_id, client, trio.current_time())
            self._evict(keep=key)
        entry.client.adopt(service)
        self._clients.move_to_end(key)
        return entry

    def _drop(self, cluster: str, principal: Principal, entry: _Client) -> None:
        if self._clients.get((cluster, principal)) is entry:
            del self._clients[cluster, principal]
        entry.client.retire()

    def _evict(self, keep: tuple[str, Principal]) -> None:
        for key in list(self._clients):
            if len(self._clients) <= self._limit:
                return
            if key != keep and not self._clients[key].users:
                self._clients.pop(key).client.close()

    def _close_idle(self) -> None:
        oldest = trio.current_time() - self._idle_close
        for key, one in list(self._clients.items()):
            if not one.users and one.last_used < oldest:
                self._clients.pop(key).client.close()
