"""The client's side of SASL exchanges, without I/O: bytes in, bytes out.

PLAIN (RFC 4616), SCRAM-SHA-256/512 (RFC 5802, 7677; `tokenauth=true` for delegation tokens as in KIP-48) and
OAUTHBEARER (RFC 7628, KIP-255). `start` gives the first message; every challenge goes to `answer`, whose result is
the next message or None; the exchange is over when the broker has answered with `finished` true.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from typing import TYPE_CHECKING, Protocol

from kafka_client.failures import AuthenticationFailed

if TYPE_CHECKING:
    from kafka_client.security import Sasl, Secret

# A broker may dictate the work we do; brokers default to 4096 and allow up to 16384.
MIN_ITERATIONS, MAX_ITERATIONS = 4096, 1 << 20


class Exchange(Protocol):
    """One authentication; not reusable."""

    finished: bool

    def start(self) -> bytes: ...

    def answer(self, challenge: bytes) -> bytes | None: ...


class Plain:
    """PLAIN: one message, an empty answer."""

    def __init__(self, username: str, password: str) -> None:
        self._first = f"\0{username}\0{password}".encode()
        self.finished = False

    def start(self) -> bytes:
        return self._first

    def answer(self, challenge: bytes) -> bytes | None:
        self.finished = True
        return None


class OAuthBearer:
    """OAUTHBEARER: one message; a non-empty answer is a refusal that must be acknowledged (RFC 7628, 3.2.3)."""

    def __init__(self, token: str, extensions: tuple[tuple[str, str], ...] = ()) -> None:
        parts = "".join(f"{name}={value}\x01" for name, value in extensions)
        self._first = f"n,,\x01auth=Bearer {token}\x01{parts}\x01".encode()
        self.finished = False

    def start(self) -> bytes:
        return self._first

    def answer(self, challenge: bytes) -> bytes | None:
        if challenge:
            return b"\x01"
        self.finished = True
        return None


class Scram:
    """SCRAM: the password never travels, and the broker proves that it knows it too."""

    def __init__(
        self, algorithm: str, username: str, password: str, *, token_auth: bool = False, nonce: str | None = None
    ) -> None:
        self._algorithm = algorithm
        self._password = password
        self._nonce = nonce or secrets.token_urlsafe(24)
        name = username.replace("=", "=3D").replace(",", "=2C")
        self._bare = f"n={name},r={self._nonce}" + (",tokenauth=true" if token_auth else "")
        self._signature: bytes | None = None
        self.finished = False

    def start(self) -> bytes:
        return b"n,," + self._bare.encode()

    def answer(self, challenge: bytes) -> bytes | None:
        if self._signature is None:
            return self._prove(challenge)
        self._check(challenge)
        return None

    def _prove(self, challenge: bytes) -> bytes:
        fields = _fields(challenge)
        try:
            nonce, salt, rounds = fields["r"], base64.b64decode(fields["s"], validate=True), int(fields["i"])
        except (KeyError, ValueError):
            raise AuthenticationFailed("the broker's SCRAM challenge cannot be read") from None
        if not nonce.startswith(self._nonce) or len(nonce) == len(self._nonce):
            raise AuthenticationFailed("the broker's SCRAM nonce does not extend ours")
        if not MIN_ITERATIONS <= rounds <= MAX_ITERATIONS:
            raise AuthenticationFailed(f"the broker wants {rounds} SCRAM iterations")
        salted = hashlib.pbkdf2_hmac(self._algorithm, self._password.encode(), salt, rounds)
        client_key = self._hmac(salted, b"Client Key")
        without_proof = f"c=biws,r={nonce}"
        signed = ",".join((self._bare, challenge.decode(), without_proof)).encode()
        signature = self._hmac(hashlib.new(self._algorithm, client_key).digest(), signed)
        proof = bytes(a ^ b for a, b in zip(client_key, signature, strict=True))
        self._signature = self._hmac(self._hmac(salted, b"Server Key"), signed)
        return f"{without_proof},p={base64.b64encode(proof).decode()}".encode()

    def _check(self, challenge: bytes) -> None:
        fields = _fields(challenge)
        if "e" in fields:
            raise AuthenticationFailed("the broker refused the SCRAM proof")
        expected = base64.b64encode(self._signature or b"").decode()
        if not hmac.compare_digest(fields.get("v", "").encode(), expected.encode()):
            raise AuthenticationFailed("the broker could not prove that it knows the password")
        self.finished = True

    def _hmac(self, key: bytes, data: bytes) -> bytes:
        return hmac.digest(key, data, self._algorithm)


def _fields(message: bytes) -> dict[str, str]:
    try:
        parts = message.decode().split(",")
    except UnicodeDecodeError:
        raise AuthenticationFailed("the broker's SCRAM message is not UTF-8") from None
    return {part[0]: part[2:] for part in parts if part[1:2] == "="}


_HASHES = {"SCRAM-SHA-256": "sha256", "SCRAM-SHA-512": "sha512"}
MECHANISMS = ("PLAIN", *_HASHES, "OAUTHBEARER")


def exchange(sasl: Sasl) -> Exchange:
    """A fresh exchange with the credentials as of now (files are re-read).

    Raises:
        AuthenticationFailed: an unknown mechanism, or a credential that is missing or unreadable.
    """
    if sasl.mechanism == "OAUTHBEARER":
        return OAuthBearer(_read(sasl.token, "token"), sasl.extensions)
    if sasl.username is None:
        raise AuthenticationFailed(f"{sasl.mechanism} needs a username")
    if sasl.mechanism == "PLAIN":
        return Plain(sasl.username, _read(sasl.password, "password"))
    if sasl.mechanism in _HASHES:
        password = _read(sasl.password, "password")
        return Scram(_HASHES[sasl.mechanism], sasl.username, password, token_auth=sasl.delegation_token)
    raise AuthenticationFailed(f"SASL mechanism {sasl.mechanism} is not known here ({', '.join(MECHANISMS)})")


def _read(secret: Secret | None, what: str) -> str:
    if secret is None:
        raise AuthenticationFailed(f"no {what} configured")
    try:
        return secret.read()
    except (OSError, UnicodeDecodeError) as error:
        raise AuthenticationFailed(f"the {what} cannot be read: {type(error).__name__}") from None
