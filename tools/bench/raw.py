"""One raw connection: frames out, frames in."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def exchange(address: str) -> Iterator[Callable[[bytes], bytes]]:
    """`ask(frame with its size) -> answer without its size`."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), 30) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def ask(frame: bytes) -> bytes:
            sock.sendall(frame)
            (size,) = struct.unpack(">i", _read(sock, 4))
            return _read(sock, size)

        yield ask


def _read(sock: socket.socket, size: int) -> bytes:
    out = bytearray(size)
    view = memoryview(out)
    while view:
        got = sock.recv_into(view)
        if not got:
            raise ConnectionError("closed")
        view = view[got:]
    return bytes(out)
