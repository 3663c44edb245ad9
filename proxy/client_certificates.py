"""Client certificates end at the proxy: their subject becomes a principal, served on its clusters by delegation token.

The name is made as Kafka's DefaultKafkaPrincipalBuilder makes it: `User:` and the subject in the form of RFC 2253.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import trio

from kafka_client import AuthenticationFailed, ClientError, ClusterClient, Sasl
from kafka_client.sasl import exchange
from kafka_wire.codec import DecodeError, Message
from kafka_wire.errors import ERROR, error_name
from kafka_wire.frames import parse_response, request_frame
from proxy.apis.contract import ClusterAway
from proxy.identity import CallerPool, Principal
from proxy.identity.tokens import TokensUnavailable
from proxy.transport.channel import Channel, ChannelClosed, Inbox
from runtime import logging
from runtime.settings import SettingsError

log = logging.get(__name__)

SASL_HANDSHAKE, SASL_AUTHENTICATE, DESCRIBE_TOKENS = 17, 36, 41
MECHANISMS = ("SCRAM-SHA-512", "SCRAM-SHA-256")  # a token is good for whichever a listener has
LOGIN_TIMEOUT = 10.0
RENEW_AT = 0.85  # of a login's lifetime (connections.max.reauth.ms)
_SHORT = {
    "commonName": "CN",
    "localityName": "L",
    "stateOrProvinceName": "ST",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "countryName": "C",
    "streetAddress": "STREET",
    "domainComponent": "DC",
    "userId": "UID",
}


def _escaped(value: str) -> str:
    """An attribute's value with what RFC 2253 (2.4) has escaped."""
    out = "".join("\\" + c if c in ',+"\\<>;' else c for c in value)
    if out[:1] in ("#", " "):
        out = "\\" + out
    if len(out) > 1 and out.endswith(" ") and not out.endswith("\\ "):
        out = out[:-1] + "\\ "
    return out


def distinguished_name(certificate: Mapping[str, Any]) -> str:
    """The subject of `SSLSocket.getpeercert()`'s dict, as RFC 2253 writes it: the last part first."""
    parts = []
    for relative in reversed(certificate["subject"]):
        parts.append("+".join(f"{_SHORT.get(name, name)}={_escaped(value)}" for name, value in relative))
    return ",".join(parts)


class ClientCertificates:
    """Logs connections in as the principal of a client's certificate."""

    def __init__(self, pool: CallerPool) -> None:
        self._pool = pool
        self._mechanisms: dict[str, str] = {}

    async def check(self, clusters: Mapping[str, ClusterClient | None]) -> None:
        """Whether every cluster can serve such clients. Raises SettingsError for one that says that it cannot."""
        for name, service in clusters.items():
            if service is None or service.security.sasl is None:
                why, what = "asks for no login", f"give clusters.{name}.sasl"
            else:
                try:
                    answer = await service.call(DESCRIBE_TOKENS, {"owners": []}, timeout=LOGIN_TIMEOUT)
                except ClientError as error:
                    log.warning(
                        "cannot tell yet whether a cluster has delegation tokens", cluster=name, error=str(error)
                    )
                    continue
                if answer["error_code"] != ERROR.DELEGATION_TOKEN_AUTH_DISABLED:
                    continue
                why, what = "has delegation tokens switched off", "set delegation.token.secret.key on its brokers"
            raise SettingsError(
                f"client_ca: clients with certificates are served by delegation tokens, but cluster {name} {why}: "
                f"{what}, or take client_ca away"
            )

    def principal(self, certificate: Mapping[str, Any]) -> str:
        """`"User:CN=alice,O=Example"`."""
        return f"User:{distinguished_name(certificate)}"

    async def log_in(self, channel: Channel, cluster: str, broker: int, principal: str) -> float:
        """Authenticate a fresh connection as `principal` with a delegation token of the cluster.

        Returns when to `renew` it (monotonic seconds; 0.0: never).

        Raises:
            ClusterAway: there is no token for it, or the broker does not take it. ChannelClosed.
        """

        async def ask(key: int, version: int, message: Message) -> Message:
            return await self._ask(channel, key, version, message)

        try:
            return await self.renew(ask, cluster, broker, principal)
        except ClusterAway:
            channel.close()
            raise

    async def renew(
        self, ask: Callable[[int, int, Message], Awaitable[Message]], cluster: str, broker: int, principal: str
    ) -> float:
        """The same over a connection in use (KIP-368): nothing else may be sent on it meanwhile. Raises ClusterAway."""
        vault, owner = self._pool.vault, Principal.parse(principal)
        mechanism = self._mechanisms.get(cluster, MECHANISMS[0])
        sasl: Sasl | None = None
        try:
            with trio.fail_after(LOGIN_TIMEOUT):
                sasl = await vault.credentials(cluster, owner, mechanism)
                await vault.known_at(cluster, owner, broker)
                steps = exchange(sasl)
                began = time.monotonic()
                greeting = await ask(SASL_HANDSHAKE, 1, {"mechanism": mechanism})
                others = [one for one in MECHANISMS if one in greeting["mechanisms"]]
                if others and mechanism not in others:
                    self._mechanisms[cluster] = others[0]  # the client's next connection takes it
                _checked(greeting)
                message: bytes | None = steps.start()
                lifetime = 0
                while message is not None:
                    answer = _checked(await ask(SASL_AUTHENTICATE, 2, {"auth_bytes": message}))
                    lifetime = answer["session_lifetime_ms"]
                    message = steps.answer(answer["auth_bytes"])
                return began + lifetime / 1000 * RENEW_AT if lifetime else 0.0
        except (TokensUnavailable, ClientError, DecodeError) as error:
            if isinstance(error, AuthenticationFailed) and sasl is not None:
                # Expired behind our back, or the brokers' secret changed: the next login makes a new one.
                vault.forget(cluster, owner, sasl.username)
            raise ClusterAway(cluster, f"no login as the client: {error}") from None
        except trio.TooSlowError:
            raise ClusterAway(cluster, f"no login within {LOGIN_TIMEOUT:g} s") from None

    async def _ask(self, channel: Channel, key: int, version: int, message: Message) -> Message:
        await channel.send(request_frame(key, version, 1, "kfed", message))
        inbox = Inbox(channel, memoryview(bytearray(4096)))
        prefix = bytearray(4)
        await inbox.whole(memoryview(prefix))
        size = int.from_bytes(prefix, "big")
        if size > 1 << 20:
            raise ChannelClosed("a SASL answer of more than 1 MiB")
        frame = bytearray(size)
        await inbox.whole(memoryview(frame))
        return parse_response(key, version, frame)[1]


def _checked(answer: Message) -> Message:
    if answer["error_code"]:
        raise AuthenticationFailed(f"the broker answered {error_name(answer['error_code'])}", answer["error_code"])
    return answer
