"""TLS towards clients: server contexts that follow their files, and a hook for the name a client asks for.

A certificate is replaced by writing the new files; the next handshake uses them, open connections are left alone.
A rotation caught half-way (a key that does not fit its certificate) keeps the former context, with a warning.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from runtime import logging
from runtime.settings import TlsServer

log = logging.get(__name__)

LOOK_AGAIN = 1.0  # seconds between two looks at the files

Stamp = tuple[tuple[int, int, int], ...]
ServerName = Callable[[ssl.SSLObject | ssl.SSLSocket, str | None], int | None]
"""Called in every handshake with the name asked for, or None. An `ssl.ALERT_DESCRIPTION_*` refuses it."""


class ServerTls:
    """The server side of TLS for one listener.

    `context` is always the same object, which may be handed to whatever accepts connections; inside each handshake it
    is exchanged for one made from the files as they are now.

    Raises:
        OSError, ssl.SSLError: the files cannot be used at the start.
    """

    def __init__(self, settings: TlsServer, *, alpn: Sequence[str] = (), server_name: ServerName | None = None) -> None:
        self._settings = settings
        self._alpn = tuple(alpn)
        self._server_name = server_name
        self._stamp = self._look()
        self._current = self._load()
        self._looked = time.monotonic()
        self.context = self._load()
        self.context.sni_callback = self._handshake

    def _look(self) -> Stamp:
        paths = (self._settings.cert, self._settings.key, self._settings.client_ca)
        stats = [Path(path).stat() for path in paths if path is not None]
        return tuple((one.st_mtime_ns, one.st_size, one.st_ino) for one in stats)

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
        # An encrypted key without a password would make OpenSSL ask on the terminal.
        context.load_cert_chain(self._settings.cert, self._settings.key, password=lambda: "")
        if self._settings.client_ca is not None:
            context.load_verify_locations(self._settings.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
        if self._alpn:
            context.set_alpn_protocols(list(self._alpn))
        return context

    def fresh(self) -> ssl.SSLContext:
        """A context made from the files as they are now (looked at once a second at most)."""
        now = time.monotonic()
        if now - self._looked >= LOOK_AGAIN:
            self._looked = now
            try:
                stamp = self._look()
                if stamp != self._stamp:
                    self._current = self._load()
                    self._stamp = stamp
                    log.info("certificate re-read", cert=self._settings.cert)
            except (OSError, ssl.SSLError) as error:
                log.warning("keeping the former certificate", cert=self._settings.cert, error=str(error))
        return self._current

    def _handshake(self, tls: ssl.SSLObject | ssl.SSLSocket, name: str | None, _context: ssl.SSLContext) -> int | None:
        tls.context = self.fresh()
        return self._server_name(tls, name) if self._server_name is not None else None
