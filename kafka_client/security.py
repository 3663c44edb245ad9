"""How a connection is secured: frozen values, and the SSL contexts made from them.

Files are named, not read, here: certificates and secrets are looked at again for every new connection and re-read
when they changed, so that rotation needs no restart and open connections are left alone.
"""

from __future__ import annotations

import logging
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

log = logging.getLogger(__name__)

Stamp = tuple[tuple[int, int, int], ...]


class Secret(Protocol):
    """Where a password or token comes from."""

    def read(self) -> str:
        """The secret as of now. Raises OSError where it cannot be read."""


@dataclass(frozen=True, slots=True)
class SecretValue:
    """A secret given as a value; never shown by repr."""

    value: str = field(repr=False)

    def read(self) -> str:
        return self.value


@dataclass(frozen=True, slots=True)
class SecretFile:
    """A secret in a file (UTF-8, one trailing newline is not part of it), re-read when the file changed."""

    path: str

    def read(self) -> str:
        stamp = _stamp(self.path)
        known = _secrets.get(self.path)
        if known is None or known[0] != stamp:
            text = Path(self.path).read_text(encoding="utf-8").removesuffix("\n").removesuffix("\r")
            known = _secrets[self.path] = (stamp, text)
        return known[1]


@dataclass(frozen=True, slots=True)
class Tls:
    """TLS to a broker; paths of PEM files.

    Without `ca` the system's authorities are trusted. `cert` may hold key and chain; `key` is the key's own file.
    `verify_hostname=False` still demands a trusted certificate, for any name.
    """

    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    verify_hostname: bool = True


@dataclass(frozen=True, slots=True)
class Sasl:
    """SASL credentials: PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 (username, password) or OAUTHBEARER (token).

    `delegation_token` marks username and password as a delegation token's id and base64 HMAC (KIP-48); only SCRAM.
    `extensions` are OAUTHBEARER's (KIP-342), in order.
    """

    mechanism: str
    username: str | None = None
    password: Secret | None = None
    token: Secret | None = None
    delegation_token: bool = False
    extensions: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Security:
    """TLS and SASL of a connection; neither is PLAINTEXT."""

    tls: Tls | None = None
    sasl: Sasl | None = None


PLAINTEXT = Security()

_secrets: dict[str, tuple[Stamp, str]] = {}
_contexts: dict[Tls, tuple[Stamp, ssl.SSLContext]] = {}


def _stamp(*paths: str | None) -> Stamp:
    stats = [Path(path).stat() for path in paths if path is not None]
    return tuple((one.st_mtime_ns, one.st_size, one.st_ino) for one in stats)


def ssl_context(tls: Tls) -> ssl.SSLContext:
    """The client context of `tls`, made again when one of its files changed.

    A rotation caught half-way (a key that does not fit its certificate yet) keeps the former context, with a warning.

    Raises:
        OSError, ssl.SSLError: the files cannot be used and never could.
    """
    known = _contexts.get(tls)
    try:
        stamp = _stamp(tls.ca, tls.cert, tls.key)
        if known is not None and known[0] == stamp:
            return known[1]
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=tls.ca)
        context.check_hostname = tls.verify_hostname
        if tls.cert is not None:
            # An encrypted key without a password would make OpenSSL ask on the terminal.
            context.load_cert_chain(tls.cert, tls.key, password=lambda: "")
    except (OSError, ssl.SSLError) as error:
        if known is None:
            raise
        log.warning("keeping the former TLS files: %s", error)
        return known[1]
    _contexts[tls] = (stamp, context)
    return context
