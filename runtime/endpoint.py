"""A process's private window: metrics and status over a Unix socket, for its parent on the same machine.

Just enough HTTP/1.1 for one GET per connection (`curl --unix-socket PATH http://kfed/metrics` works too). The socket
has mode 0600; every connection is bounded in size and time.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import trio

from runtime import logging

log = logging.get(__name__)

TIMEOUT = 5.0  # seconds for a whole exchange
MAX_REQUEST = 8192
MAX_RESPONSE = 64 << 20
MAX_CONNECTIONS = 16

Produce = Callable[[], tuple[str, bytes]]
"""Gives (content type, body) of one path."""


class EndpointError(Exception):
    """The other process does not answer, or answers with an error."""


def json_of(value: Callable[[], object]) -> Produce:
    """A path that answers with a JSON document."""
    return lambda: ("application/json", msgspec.json.encode(value()))


async def serve(
    path: str | Path,
    paths: Mapping[str, Produce],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled; `paths` maps `/metrics` and the like. A socket left behind by a dead process is replaced.

    Raises:
        OSError: the socket cannot be made (a path longer than 107 bytes, for example).
    """
    path = Path(path)
    if path.exists() and stat.S_ISSOCK(path.stat().st_mode):
        path.unlink()
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    before = os.umask(0o177)
    try:
        listening.bind(str(path))
    except BaseException:
        listening.close()
        raise
    finally:
        os.umask(before)
    listening.listen(MAX_CONNECTIONS)
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(listening))
    limit = trio.CapacityLimiter(MAX_CONNECTIONS)

    async def handle(stream: trio.SocketStream) -> None:
        with trio.move_on_after(TIMEOUT):
            async with limit:
                try:
                    await _answer(stream, paths)
                except trio.BrokenResourceError:
                    pass
        await trio.aclose_forcefully(stream)

    try:
        await trio.serve_listeners(handle, [listener], task_status=_Started(task_status))
    finally:
        path.unlink(missing_ok=True)


class _Started(trio.TaskStatus[list[trio.SocketListener]]):
    """Passes "started" on without the listeners."""

    def __init__(self, outer: trio.TaskStatus[None]) -> None:
        self._outer = outer

    def started(self, value: object = None) -> None:
        self._outer.started()


async def _answer(stream: trio.SocketStream, paths: Mapping[str, Produce]) -> None:
    request = b""
    while b"\r\n\r\n" not in request:
        data = await stream.receive_some(MAX_REQUEST)
        if not data or len(request) > MAX_REQUEST:
            return
        request += data
    words = request.split(b"\r\n", 1)[0].decode("ascii", "replace").split(" ")
    produce = paths.get(words[1].split("?")[0]) if len(words) == 3 and words[0] == "GET" else None
    status, kind, body = "404 Not Found", "text/plain", b"no such path\n"
    if produce is not None:
        try:
            kind, body = produce()
            status = "200 OK"
        except Exception:
            log.exception("a status path failed", path=words[1])
            status, kind, body = "500 Internal Server Error", "text/plain", b"failed, see the log\n"
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    await stream.send_all(head.encode() + body)


async def fetch(path: str | Path, target: str, *, timeout: float = TIMEOUT) -> bytes:
    """The body of `target` from the process behind the socket.

    Raises:
        EndpointError: it does not answer within `timeout` seconds, or not with 200.
    """
    data = bytearray()
    try:
        with trio.fail_after(timeout):
            async with await trio.open_unix_socket(str(path)) as stream:
                await stream.send_all(f"GET {target} HTTP/1.1\r\nHost: kfed\r\n\r\n".encode())
                async for part in stream:
                    data += part
                    if len(data) > MAX_RESPONSE:
                        raise EndpointError(f"{path}{target}: more than {MAX_RESPONSE} bytes")
    except (OSError, trio.TooSlowError, trio.BrokenResourceError) as error:
        raise EndpointError(f"{path}{target}: {str(error) or type(error).__name__}") from None
    head, _, body = bytes(data).partition(b"\r\n\r\n")
    if head.split(b" ")[1:2] != [b"200"]:
        raise EndpointError(f"{path}{target}: {head.partition(bytes((13, 10)))[0].decode(errors='replace')}")
    return body
