"""Delegation tokens: how the service opens a connection as somebody else (KIP-48, KIP-373).

The service, which needs CREATE_TOKENS on the USER resource of the owner, creates a token owned by the principal and
names itself renewer. Tokens live in memory only, are never logged, are renewed well before they expire and are
expired at the broker when they are dropped. Super users get none: a token of theirs would be worth too much.
"""

from __future__ import annotations

import base64
import logging
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

import trio

from kafka_client import ClientError, Refused, Sasl, SecretValue, UnsupportedApi
from kafka_client.cluster import backoff
from kafka_wire.errors import ERROR, error_name
from proxy.identity.principal import Principal, PrincipalUnknown, named, question

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from kafka_wire.codec import Message

log = logging.getLogger(__name__)

CREATE, RENEW, EXPIRE, DESCRIBE = 38, 39, 40, 41
OWNER_VERSION = 3  # the first that can name an owner (KIP-373)
# Of a token's period; connections re-authenticate at 0.85 of what was left when they were opened, so a token in use
# has been renewed by then.
RENEW_AT = 0.6
# How long a refusal is believed before the broker is asked again, seconds.
OFF_FOR, DENIED_FOR = 60.0, 10.0
OWN_NAME_FOR = 60.0
RENEW_AGAIN_AFTER = 5.0
# A new token reaches the other brokers through the metadata log; measured 20 ms.
SPREAD_WITHIN = 5.0

_OFF = (ERROR.DELEGATION_TOKEN_AUTH_DISABLED, ERROR.DELEGATION_TOKEN_REQUEST_NOT_ALLOWED)
_GONE = (ERROR.DELEGATION_TOKEN_NOT_FOUND, ERROR.DELEGATION_TOKEN_EXPIRED)


class TokensUnavailable(Exception):
    """No token for this principal on this cluster: tokens are off there, or not ours to create."""


class SuperUserRefused(TokensUnavailable):
    """The principal is a super user of the cluster."""


class Caller(Protocol):
    """What is needed of a `ClusterClient` with the service's own credentials."""

    async def call(
        self,
        key: int,
        message: Message,
        broker: int | None = None,
        version: int | None = None,
        timeout: float = 10.0,
        *,
        retry: bool = False,
    ) -> Message: ...


@dataclass(frozen=True, slots=True)
class Token:
    """A token as we hold it. Times are trio's clock: brokers' wall clocks are only used for durations."""

    id: str
    hmac: bytes = field(repr=False)
    created: float
    renew_at: float
    expires_at: float
    last_possible: float  # no renewal reaches beyond


@dataclass(slots=True)
class _Slot:
    token: Token | None = None
    refusal: TokensUnavailable | None = None
    refused_until: float = 0.0
    lock: trio.Lock = field(default_factory=trio.Lock)
    spread: set[int] = field(default_factory=set)  # brokers known to know the token


class TokenVault:
    """Tokens by (cluster, principal): created when first needed, the least recently used dropped beyond `limit`."""

    def __init__(
        self,
        callers: Mapping[str, Caller],
        *,
        super_users: Callable[[str], frozenset[str]],
        limit: int = 1000,
        max_lifetime_ms: int = -1,
    ) -> None:
        """`super_users`: cluster -> principals as text, asked every time, since settings change while we run.

        `max_lifetime_ms`: of a token, -1 is the broker's own maximum.
        """
        self._callers = callers
        self._super_users = super_users
        self._limit = limit
        self._max_lifetime_ms = max_lifetime_ms
        self._slots: OrderedDict[tuple[str, Principal], _Slot] = OrderedDict()
        self._dropped: list[tuple[str, Token]] = []
        self._own: dict[str, tuple[Principal | None, float]] = {}
        self._off: dict[str, tuple[TokensUnavailable, float]] = {}

    async def credentials(self, cluster: str, principal: Principal, mechanism: str = "SCRAM-SHA-512") -> Sasl:
        """SASL settings that log in to `cluster` as `principal`; equal as long as the token is the same.

        Raises:
            TokensUnavailable, SuperUserRefused: there will be none, now and for a while.
            ClientError: the cluster could not be asked.
        """
        token = await self._token(cluster, principal)
        secret = SecretValue(base64.b64encode(token.hmac).decode())
        return Sasl(mechanism, token.id, secret, delegation_token=True)

    async def known_at(self, cluster: str, principal: Principal, broker: int, timeout: float = SPREAD_WITHIN) -> None:
        """Return once `broker` knows the principal's token, or after `timeout` seconds.

        Logging in too early costs a failed authentication, which brokers delay and report.
        """
        slot = self._slots.get((cluster, principal))
        if slot is None or slot.token is None or broker in slot.spread:
            return
        token, pause = slot.token, 0.005
        owner = {"principal_type": principal.type, "principal_name": principal.name}
        with trio.move_on_after(timeout):
            while slot.token is token:
                try:
                    answer = await self._callers[cluster].call(DESCRIBE, {"owners": [owner]}, broker, timeout=timeout)
                except ClientError:
                    return  # the login will tell
                if answer["error_code"] or any(one["token_id"] == token.id for one in answer["tokens"]):
                    slot.spread.add(broker)
                    return
                await trio.sleep(pause)
                pause = min(pause * 1.5, 0.025)

    def forget(self, cluster: str, principal: Principal, token_id: str | None) -> None:
        """The broker did not accept this token any more: the next `credentials` makes a new one."""
        slot = self._slots.get((cluster, principal))
        if slot is not None and slot.token is not None and slot.token.id == token_id:
            slot.token = None

    def tokens_off(self, cluster: str, reason: str) -> None:
        """Remember that tokens cannot be used on this cluster (its listener has no SCRAM, say)."""
        self._off[cluster] = (TokensUnavailable(f"{cluster}: {reason}"), trio.current_time() + OFF_FOR)

    async def close(self, timeout: float = 2.0) -> None:
        """Expire every token at its broker, as far as that works within `timeout` seconds; always forgets them."""
        held = [(cluster, slot.token) for (cluster, _), slot in self._slots.items() if slot.token is not None]
        self._dropped += held
        self._slots.clear()
        with trio.move_on_after(timeout) as scope:
            scope.shield = True
            await self.expire_dropped()

    async def expire_dropped(self) -> None:
        """Expire at the brokers what the limit has pushed out."""
        dropped, self._dropped = self._dropped, []
        async with trio.open_nursery() as nursery:
            for cluster, token in dropped:
                nursery.start_soon(self._expire, cluster, token)

    # -- inside ---------------------------------------------------------------------------------------------------

    async def _token(self, cluster: str, principal: Principal) -> Token:
        if str(principal) in self._super_users(cluster):
            raise SuperUserRefused(f"{cluster}: no token for the super user {principal}")
        now = trio.current_time()
        if cluster in self._off:
            refusal, until = self._off[cluster]
            if now < until:
                raise TokensUnavailable(str(refusal))
            del self._off[cluster]
        key = (cluster, principal)
        slot = self._slots.setdefault(key, _Slot())
        self._slots.move_to_end(key)
        if slot.token is not None and now < slot.token.renew_at:
            return slot.token
        async with slot.lock:  # one creation or renewal at a time; the others find its result
            now = trio.current_time()
            token = slot.token
            if token is not None and now < token.renew_at:
                return token
            if slot.refusal is not None and now < slot.refused_until:
                raise type(slot.refusal)(str(slot.refusal))
            if token is not None and now < token.expires_at:
                token = await self._renewed(cluster, token)
            else:
                token = None
            if token is None:
                token = await self._created(cluster, principal, slot)
                slot.spread.clear()
            slot.token = token
        self._evict(keep=key)
        return token

    async def own_name(self, cluster: str) -> Principal | None:
        """Who the service is on `cluster`, by the broker's word; None where it names nobody."""
        known = self._own.get(cluster)
        now = trio.current_time()
        if known is not None and now < known[1]:
            return known[0]
        answer = await self._callers[cluster].call(CREATE, question(), retry=True)
        try:
            name: Principal | None = named(answer)
        except PrincipalUnknown:
            name = None
        self._own[cluster] = (name, now + OWN_NAME_FOR)
        return name

    async def _renewers(self, cluster: str) -> list[Message]:
        """Ourselves, or nobody: having created a token gives no right to renew or expire it (63, measured)."""
        own = await self.own_name(cluster)
        if own is None or own.type != "User":
            return []
        return [{"principal_type": own.type, "principal_name": own.name}]

    async def _created(self, cluster: str, principal: Principal, slot: _Slot) -> Token:
        message = {
            "owner_principal_type": principal.type,
            "owner_principal_name": principal.name,
            "renewers": await self._renewers(cluster),
            "max_lifetime_ms": self._max_lifetime_ms,
        }
        asked_at = trio.current_time()
        try:
            answer = await self._callers[cluster].call(CREATE, message, version=OWNER_VERSION)
        except UnsupportedApi as error:
            self.tokens_off(cluster, f"no tokens for others: {error}")
            raise TokensUnavailable(str(error)) from None
        code = answer["error_code"]
        if code in _OFF:
            self.tokens_off(cluster, error_name(code))
            raise TokensUnavailable(f"{cluster}: {error_name(code)}")
        if code == ERROR.DELEGATION_TOKEN_AUTHORIZATION_FAILED:
            refusal = TokensUnavailable(f"{cluster}: the service may not create tokens for {principal}")
            slot.refusal, slot.refused_until = refusal, trio.current_time() + DENIED_FOR
            raise TokensUnavailable(str(refusal))
        if code:
            raise Refused(f"{cluster}: CreateDelegationToken", code)
        slot.refusal = None
        issued = answer["issue_timestamp_ms"]
        period = (answer["expiry_timestamp_ms"] - issued) / 1000
        return Token(
            id=answer["token_id"],
            hmac=answer["hmac"],
            created=asked_at,
            renew_at=asked_at + period * RENEW_AT,
            expires_at=asked_at + period,
            last_possible=asked_at + (answer["max_timestamp_ms"] - issued) / 1000,
        )

    async def _renewed(self, cluster: str, token: Token) -> Token | None:
        """The token with a later expiry, itself where that failed for now, or None where a new one is needed."""
        now = trio.current_time()
        if token.last_possible <= token.expires_at:
            return None
        try:
            answer = await self._callers[cluster].call(RENEW, {"hmac": token.hmac, "renew_period_ms": -1}, retry=True)
        except ClientError:
            return replace(token, renew_at=min(now + RENEW_AGAIN_AFTER, token.expires_at))  # still valid
        if answer["error_code"] in _GONE:
            return None
        if answer["error_code"]:
            log.warning("%s: renewing a token: %s", cluster, error_name(answer["error_code"]))
            return None
        # The answer is a broker's wall clock; the period is what creation showed it to be.
        period = token.expires_at - token.created if token.expires_at > token.created else 0.0
        expires_at = min(now + period, token.last_possible)
        return Token(
            id=token.id,
            hmac=token.hmac,
            created=now,
            renew_at=now + (expires_at - now) * RENEW_AT,
            expires_at=expires_at,
            last_possible=token.last_possible,
        )

    def _evict(self, keep: tuple[str, Principal]) -> None:
        for key in list(self._slots):
            if len(self._slots) <= self._limit:
                return
            slot = self._slots[key]
            if key == keep or slot.lock.statistics().locked:
                continue
            del self._slots[key]
            if slot.token is not None:
                self._dropped.append((key[0], slot.token))

    async def _expire(self, cluster: str, token: Token) -> None:
        message = {"hmac": token.hmac, "expiry_time_period_ms": -1}
        failures = 0
        try:
            while True:
                answer = await self._callers[cluster].call(EXPIRE, message, timeout=2.0)
                code = answer["error_code"]
                # The controller itself knows a token only some milliseconds after it has created it.
                if code != ERROR.DELEGATION_TOKEN_NOT_FOUND or trio.current_time() - token.created > SPREAD_WITHIN:
                    break
                failures += 1
                await trio.sleep(backoff(failures))
        except ClientError as error:
            log.info("%s: a token was left to expire by itself: %s", cluster, error)
        else:
            if code and code not in _GONE:
                log.info("%s: a token was left to expire by itself: %s", cluster, error_name(code))
