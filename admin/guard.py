"""Who may call the admin API, and bounds for every request: a plain ASGI layer around the application.

A bearer token is required unless the port is bound to loopback and no token is configured. On loopback without a
token, what a web page in the operator's browser could send is refused: other Host names (DNS rebinding), foreign
Origins, and bodies that are not JSON (which a page may send without asking first). `/healthz` and `/readyz` need no
token.
"""

from __future__ import annotations

import hmac
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import trio

from runtime import logging
from runtime.settings import Admin, SettingsError, is_loopback

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.get(__name__)

OPEN_PATHS = frozenset({"/healthz", "/readyz"})
MAX_BODY = 1 << 20
MAX_IMPORT = 64 << 20
IMPORT_PATHS = frozenset({"/api/v1/store/import"})
BODY_TIMEOUT = 15.0  # seconds until a request's body is here
REQUEST_TIMEOUT = 25.0  # seconds for everything
IMPORT_TIMEOUT = 120.0  # an import waits until every process has noticed
CONCURRENT = 64


class Token:
    """The token in a file, re-read when the file changes.

    Raises:
        SettingsError: it cannot be read, or is shorter than 16 characters.
    """

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._stamp = (0, 0, 0)
        self._token = b""
        try:
            self._read()
        except OSError as error:
            raise SettingsError(f"admin.token_file: {path}: {error.strerror}") from None
        if len(self._token) < 16:
            raise SettingsError(f"admin.token_file: {path}: a token has at least 16 characters")

    def _read(self) -> None:
        found = self._path.stat()
        stamp = (found.st_mtime_ns, found.st_size, found.st_ino)
        if stamp != self._stamp:
            token = self._path.read_bytes().strip()
            # A file caught while it is being written must not open the door.
            if len(token) >= 16:
                self._token = token
                self._stamp = stamp

    def fits(self, given: bytes) -> bool:
        """Compared in constant time."""
        try:
            self._read()
        except OSError as error:
            log.warning("keeping the former token", file=str(self._path), error=str(error))
        return hmac.compare_digest(given, self._token)


def token_of(admin: Admin) -> Token | None:
    """The token that callers need, or None where none is needed (settings allow that on loopback only).

    Raises:
        SettingsError: it cannot be read.
    """
    return Token(admin.token_file) if admin.token_file is not None else None


class Refusal(Exception):
    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


class Guard:
    """The outermost ASGI application."""

    def __init__(self, app: ASGIApp, token: Token | None) -> None:
        self._app = app
        self._token = token
        self._limit = trio.CapacityLimiter(CONCURRENT)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # a WebSocket, which nothing here speaks and no check below would see
            await send({"type": "websocket.close", "code": 1008})
            return
        started = False

        async def sending(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            self._admit(scope)
            seconds = IMPORT_TIMEOUT if scope["path"] in IMPORT_PATHS else REQUEST_TIMEOUT
            with trio.move_on_after(seconds) as scope_of_time:
                async with self._limit:
                    body = await self._body(scope, receive)
                    await self._app(scope, _replay(body, receive), sending)
            if scope_of_time.cancelled_caught and not started:
                raise Refusal(504, f"no answer within {seconds:.0f} s")
        except Refusal as refusal:
            if refusal.status in (401, 403):
                peer = (scope.get("client") or ["?"])[0]
                log.warning("admin request refused", reason=refusal.text, peer=peer, path=scope["path"])
            await _answer(send, refusal)

    def _admit(self, scope: Scope) -> None:
        if scope["path"] in OPEN_PATHS:
            return
        headers = dict(scope["headers"])
        if self._token is not None:
            kind, _, given = headers.get(b"authorization", b"").partition(b" ")
            if kind.lower() != b"bearer" or not self._token.fits(given.strip()):
                raise Refusal(401, "the admin API needs its token (--token-file FILE, or KFED_TOKEN)")
        else:
            host = headers.get(b"host", b"").decode("latin-1")
            name = re.sub(r":\d+$", "", host).strip("[]")
            if not is_loopback(name):
                raise Refusal(403, "without a token, only requests to a loopback address are answered")
            origin = headers.get(b"origin")
            if origin is not None and origin.decode("latin-1").partition("://")[2] != host:
                raise Refusal(403, "requests of other origins are refused")
        if scope["method"] == "POST" and not headers.get(b"content-type", b"").startswith(b"application/json"):
            raise Refusal(415, "send Content-Type: application/json")

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        limit = MAX_IMPORT if scope["path"] in IMPORT_PATHS else MAX_BODY
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if announced.isdigit() and int(announced) > limit:
            raise Refusal(413, f"more than {limit} bytes")
        body = bytearray()
        with trio.move_on_after(BODY_TIMEOUT if scope["method"] == "POST" else math.inf):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Refusal(400, "the client went away")
                body += message.get("body", b"")
                if len(body) > limit:
                    raise Refusal(413, f"more than {limit} bytes")
                if not message.get("more_body", False):
                    return bytes(body)
        raise Refusal(408, f"the body did not arrive within {BODY_TIMEOUT:.0f} s")


def _replay(body: bytes, receive: Receive) -> Receive:
    """The body as one message, then whatever comes (a disconnect)."""
    given = False

    async def replaying() -> Message:
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return replaying


async def _answer(send: Send, refusal: Refusal) -> None:
    body = msgspec.json.encode({"error": refusal.text})
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if refusal.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
