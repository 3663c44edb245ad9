"""Listening sockets, shared by all workers (SO_REUSEPORT), and the bounds on who may connect."""

from __future__ import annotations

import errno
import socket
from collections import defaultdict
from collections.abc import Awaitable, Callable

import trio

from runtime import logging

log = logging.get(__name__)

BACKLOG = 1024
Accepted = Callable[[socket.socket, str], Awaitable[None]]


class BindFailed(OSError):
    """An address cannot be listened on; the message names it."""


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises BindFailed."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((host, port))
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise BindFailed(f"cannot listen on {host}:{port}: {error.strerror}") from None
    return sock


class Doors:
    """How many connections are open, in all and from each address."""

    def __init__(self, total: int, per_address: int, refused: Callable[[str], None]) -> None:
        self._total = total
        self._per_address = per_address
        self._refused = refused
        self._open = 0
        self._by_address: defaultdict[str, int] = defaultdict(int)

    @property
    def open(self) -> int:
        return self._open

    def enter(self, address: str) -> bool:
        """Whether one more may come in; `leave` must follow if so."""
        if self._open >= self._total:
            return self._refuse(address, "too_many_connections")
        if self._by_address.get(address, 0) >= self._per_address:
            return self._refuse(address, "too_many_connections_from_address")
        self._open += 1
        self._by_address[address] += 1
        return True

    def failed(self) -> None:
        """Count a connection that ended by a mistake of ours."""
        self._refused("internal_error")

    def _refuse(self, address: str, reason: str) -> bool:
        self._refused(reason)
        log.warning("connection refused", peer=address, reason=reason)
        return False

    def leave(self, address: str) -> None:
        self._open -= 1
        self._by_address[address] -= 1
        if not self._by_address[address]:
            del self._by_address[address]


async def accept(listening: socket.socket, doors: Doors, nursery: trio.Nursery, accepted: Accepted) -> None:
    """Hand every connection to `accepted`, in `nursery`, until `listening` is closed."""

    async def one(sock: socket.socket, host: str, peer: str) -> None:
        try:
            await accepted(sock, peer)
        except Exception:  # one connection's trouble is nobody else's
            doors.failed()
            log.exception("connection failed", peer=peer)
        finally:
            doors.leave(host)
            sock.close()

    while True:
        try:
            await trio.lowlevel.wait_readable(listening)
            # As many as are there, but not without end: others want their turn.
            for _ in range(64):
                sock, address = listening.accept()
                host, port = address[0], address[1]
                if not doors.enter(host):
                    sock.close()
                    continue
                nursery.start_soon(one, sock, host, f"{host}:{port}")
        except BlockingIOError:
            continue
        except (trio.ClosedResourceError, ValueError):
            return
        except OSError as error:
            if error.errno in (errno.EBADF, errno.EINVAL):
                return
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
                log.error("cannot accept connections", error=error.strerror)
                await trio.sleep(0.2)  # until some descriptor is free again
            # anything else is that one connection's trouble (ECONNABORTED)
