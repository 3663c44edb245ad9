"""The command line's side of the admin API: one request, one JSON document, and failures as one clear line."""

from __future__ import annotations

import getpass
import http.client
import json
import os
import socket
import ssl
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.settings import Settings

TIMEOUT = 130.0  # seconds for a whole request; the server's own bound is shorter


class ApiError(Exception):
    """The command failed; the message is for the user. `status` is the HTTP status, 0 where nobody answered."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Address:
    """Where the admin API is and how to talk to it. `certificate` is a PEM file whose first certificate is expected
    there, whatever names it has; without one, the system's authorities decide."""

    url: str
    token: str | None = None
    certificate: str | None = None


def address(settings: Settings | None, admin: str | None, token_file: str | None) -> Address:
    """From `--admin` (or KFED_ADMIN), else from the configuration file; the token likewise (or KFED_TOKEN).

    Raises:
        ApiError: neither names an admin API, or the token cannot be read.
    """
    admin = admin or os.environ.get("KFED_ADMIN")
    certificate = None
    if settings is not None:
        token_file = token_file or settings.admin.token_file
        certificate = settings.admin.tls.cert if settings.admin.tls else None
    if admin is None:
        if settings is None:
            raise ApiError("no admin API to ask: give -c FILE or --admin URL")
        if not settings.admin.port:
            raise ApiError("admin.port is 0 in the configuration file: give --admin URL")
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.admin.bind, settings.admin.bind)
        scheme = "https" if settings.admin.tls else "http"
        admin = f"{scheme}://{f'[{host}]' if ':' in host else host}:{settings.admin.port}"
    token = os.environ.get("KFED_TOKEN")
    if token_file is not None:
        try:
            token = Path(token_file).read_text().strip()
        except OSError as error:
            raise ApiError(f"{token_file}: {error.strerror}") from None
    return Address(admin.rstrip("/") if "://" in admin else f"http://{admin.rstrip('/')}", token, certificate)


def request(to: Address, method: str, path: str, body: object = None) -> Any:
    """The JSON document that the admin API answers with.

    Raises:
        ApiError: unreachable, or an error status (with the API's own message).
    """
    url = urllib.parse.urlsplit(to.url)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise ApiError(f"{to.url}: not an address; write it like http://127.0.0.1:9380")
    connection = _connection(to, url)
    headers = {"Accept": "application/json", "X-Kfed-User": _user()}
    if to.token:
        headers["Authorization"] = f"Bearer {to.token}"
    data = None
    if method == "POST":
        headers["Content-Type"] = "application/json"
        data = json.dumps(body if body is not None else {}).encode()
    try:
        connection.connect()
        if to.certificate is not None and isinstance(connection.sock, ssl.SSLSocket):
            _expect(connection.sock, to)
        connection.request(method, f"{url.path.rstrip('/')}/api/v1/{path}", body=data, headers=headers)
        response = connection.getresponse()
        text = response.read()
    except ssl.SSLError as error:
        raise ApiError(f"{to.url}: TLS failed: {error.reason or error}") from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ApiError(f"no admin API at {to.url} ({reason}): start kfed run -c ... or give --admin URL") from None
    finally:
        connection.close()
    try:
        document = json.loads(text)
    except ValueError:
        raise ApiError(f"{to.url}: answered with something that is no kfed admin API") from None
    if response.status >= 400:
        message = document.get("error", text.decode(errors="replace")) if isinstance(document, dict) else str(document)
        raise ApiError(str(message), response.status)
    return document


def _connection(to: Address, url: urllib.parse.SplitResult) -> http.client.HTTPConnection:
    assert url.hostname is not None
    if url.scheme == "http":
        return http.client.HTTPConnection(url.hostname, url.port or 80, timeout=TIMEOUT)
    context = ssl.create_default_context()
    if to.certificate is not None:  # the very certificate is compared instead (_expect)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return http.client.HTTPSConnection(url.hostname, url.port or 443, timeout=TIMEOUT, context=context)


def _expect(sock: ssl.SSLSocket, to: Address) -> None:
    """The peer shows the certificate that the configuration file names; nothing was sent to it yet."""
    assert to.certificate is not None
    try:
        text = Path(to.certificate).read_text()
        begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
        first = begin + text.partition(begin)[2].partition(end)[0] + end
        wanted = ssl.PEM_cert_to_DER_cert(first)
    except (OSError, ValueError) as error:
        raise ApiError(f"{to.certificate}: {error}") from None
    if sock.getpeercert(binary_form=True) != wanted:
        raise ApiError(f"{to.url}: shows another certificate than {to.certificate} (admin.tls.cert)")


def _user() -> str:
    """Who runs this command, for the history. It is a claim, as good as the token that comes with it."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        name = str(os.getuid())
    return f"{name}@{socket.gethostname()}"
