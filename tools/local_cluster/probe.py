"""Is a broker there? Asked the way a client asks, before any credentials: ApiVersions v0 over a fresh connection."""

from __future__ import annotations

import socket
import ssl
import struct
from contextlib import closing


def _read(connection: socket.socket, count: int) -> bytes:
    read = b""
    while len(read) < count:
        part = connection.recv(count - len(read))
        if not part:
            raise ConnectionError("closed")
        read += part
    return read


def answers(port: int, *, tls: bool = False, timeout: float = 2.0) -> bool:
    """Whether what listens there answers ApiVersions without an error."""
    client_id = b"probe"
    body = struct.pack(">hhih", 18, 0, 1, len(client_id)) + client_id
    try:
        connection = socket.create_connection(("127.0.0.1", port), timeout)
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            connection = context.wrap_socket(connection)
        with closing(connection):
            connection.sendall(struct.pack(">i", len(body)) + body)
            (size,) = struct.unpack(">i", _read(connection, 4))
            correlation_id, error = struct.unpack_from(">ih", _read(connection, size))
    except (OSError, struct.error):
        return False
    return bool(correlation_id == 1 and error == 0)
