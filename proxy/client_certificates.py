"""Client certificates end at the proxy: their subject becomes a principal, served on its clusters by delegation token.

The name is made as Kafka's DefaultKafkaPrincipalBuilder makes it: `User:` and the subject in the form of RFC 2253.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import trio

from kafka_client import AuthenticationFailed, ClientError
from kafka_client.sasl import exchange
from kafka_wire.codec import DecodeError, Message
from kafka_wire.errors import error_name
from kafka_wire.frames import parse_response, request_frame
from proxy.apis.contract import ClusterAway
from proxy.identity import CallerPool, Principal
from proxy.identity.tokens import TokensUnavailable
from proxy.transport.channel import Channel, ChannelClosed, Inbox

SASL_HANDSHAKE, SASL_AUTHENTICATE = 17, 36
MECHANISM = "SCRAM-SHA-512"
LOGIN_TIMEOUT = 10.0
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

    def principal(self, certificate: Mapping[str, Any]) -> str:
        """`"User:CN=alice,O=Example"`."""
        return f"User:{distinguished_name(certificate)}"

    async def log_in(self, channel: Channel, cluster: str, principal: str) -> None:
        """Authenticate a fresh connection as `principal` with a delegation token of the cluster.

        Raises:
            ClusterAway: there is no token for it, or the broker does not take it. ChannelClosed.
        """
        try:
            with trio.fail_after(LOGIN_TIMEOUT):
                sasl = await self._pool.vault.credentials(cluster, Principal.parse(principal), MECHANISM)
                steps = exchange(sasl)
                await self._ask(channel, SASL_HANDSHAKE, 1, {"mechanism": MECHANISM})
                message: bytes | None = steps.start()
                while message is not None:
                    answer = await self._ask(channel, SASL_AUTHENTICATE, 2, {"auth_bytes": message})
                    message = steps.answer(answer["auth_bytes"])
        except (TokensUnavailable, AuthenticationFailed, ClientError, DecodeError) as error:
            channel.close()
            raise ClusterAway(cluster, f"no login for the certificate's principal: {error}") from None
        except trio.TooSlowError:
            channel.close()
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
        answer = parse_response(key, version, frame)[1]
        if answer["error_code"]:
            raise AuthenticationFailed(f"the broker answered {error_name(answer['error_code'])}", answer["error_code"])
        return answer
