"""The admin API's server: hypercorn on trio, its sockets bound first, its certificate followed, its log ours."""

from __future__ import annotations

import logging as standard_logging
import socket
import ssl
from typing import TYPE_CHECKING, cast

import trio
from hypercorn.config import Config, Sockets
from hypercorn.trio.run import worker_serve
from hypercorn.utils import wrap_app

from runtime import logging
from runtime.settings import Admin, SettingsError
from runtime.tls import ServerTls

if TYPE_CHECKING:
    from hypercorn.typing import ASGIFramework

    from admin.guard import Guard

log = logging.get(__name__)

GRACE = 2.0  # seconds for requests that are being answered when the server ends


class _Config(Config):
    """hypercorn's configuration, with a TLS context that follows its files."""

    server_tls: ServerTls | None = None

    def create_ssl_context(self) -> ssl.SSLContext | None:
        return self.server_tls.context if self.server_tls is not None else None


def bind(admin: Admin) -> socket.socket:
    """A listening socket.

    Raises:
        SettingsError: the address cannot be bound.
    """
    family = socket.AF_INET6 if ":" in admin.bind else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        sock.bind((admin.bind, admin.port))
        sock.listen(128)
    except OSError as error:
        sock.close()
        raise SettingsError(f"admin.port: cannot listen on {admin.bind}:{admin.port}: {error.strerror}") from None
    sock.setblocking(False)
    return sock


def tls_of(admin: Admin) -> ServerTls | None:
    """Raises SettingsError where the files cannot be used."""
    if admin.tls is None:
        return None
    try:
        return ServerTls(admin.tls, alpn=("http/1.1",))
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(f"admin.tls: {error}") from None


async def serve(
    app: Guard,
    sock: socket.socket,
    tls: ServerTls | None,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled. A connection that makes the server stumble costs a restart of it, not the process."""
    config = _Config()
    config.server_tls = tls
    config.alpn_protocols = ["http/1.1"]
    config.errorlog = standard_logging.getLogger("hypercorn.error")
    config.errorlog.setLevel(standard_logging.WARNING)
    config.include_server_header = False
    config.keep_alive_timeout = 30.0
    config.read_timeout = 60
    config.ssl_handshake_timeout = 10.0
    config.graceful_timeout = GRACE
    config.shutdown_timeout = GRACE
    started = False

    async def once() -> None:
        nonlocal started
        # worker_serve closes the sockets it is given; ours stays bound, so that a restart never loses the port.
        own = sock.dup()
        sockets = Sockets([own], [], []) if tls is not None else Sockets([], [own], [])
        async with trio.open_nursery() as nursery:
            await nursery.start(
                lambda task_status: worker_serve(
                    wrap_app(cast("ASGIFramework", app), config.wsgi_max_body_size, "asgi"),
                    config,
                    sockets=sockets,
                    shutdown_trigger=trio.sleep_forever,
                    task_status=task_status,
                )
            )
            if not started:
                started = True
                task_status.started()

    try:
        while True:
            try:
                await once()
            except Exception as error:
                if not started:
                    raise
                log.error("the admin server stumbled and starts again", exc_info=error)
                await trio.sleep(0.1)
    finally:
        sock.close()
