"""A client that speaks bytes: for what no library would send, and for names no resolver knows."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from kafka_wire.codec import Message
from kafka_wire.frames import parse_response, request_frame

TIMEOUT = 10.0


class Closed(Exception):
    """The other side has closed the connection."""


class Raw:
    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self._held = b""
        self._correlation = 0

    async def _read(self, count: int) -> bytes:
        with trio.fail_after(TIMEOUT):
            while len(self._held) < count:
                try:
                    data = await self.stream.receive_some(65536)
                except trio.BrokenResourceError:
                    data = b""
                if not data:
                    raise Closed
                self._held += data
        data, self._held = self._held[:count], self._held[count:]
        return data

    async def frame(self, payload: bytes) -> bytes:
        """Bytes with a size before them, there and back."""
        await self.stream.send_all(len(payload).to_bytes(4, "big") + payload)
        return await self.answer()

    async def answer(self) -> bytes:
        return await self._read(int.from_bytes(await self._read(4), "big"))

    async def send(self, key: int, version: int, message: Message) -> None:
        self._correlation += 1
        await self.stream.send_all(request_frame(key, version, self._correlation, "raw", message))

    async def ask(self, key: int, version: int, message: Message) -> Message:
        """Raises Closed."""
        await self.send(key, version, message)
        return parse_response(key, version, await self.answer())[1]

    async def closed(self) -> bytes:
        """What still comes until the other side closes."""
        seen = b""
        with trio.fail_after(TIMEOUT):
            while True:
                try:
                    seen += await self._read(1)
                except Closed:
                    return seen


@asynccontextmanager
async def connected(port: int, tls: ssl.SSLContext | None = None, name: str = "127.0.0.1") -> AsyncIterator[Raw]:
    """A connection to a port of this machine; with `tls`, `name` is asked for and verified."""
    stream: trio.abc.Stream = await trio.open_tcp_stream("127.0.0.1", port)
    try:
        if tls is not None:
            assert isinstance(stream, trio.SocketStream)
            secured = trio.SSLStream(stream, tls, server_hostname=name, https_compatible=True)
            with trio.fail_after(TIMEOUT):
                await secured.do_handshake()
            stream = secured
        yield Raw(stream)
    finally:
        await trio.aclose_forcefully(stream)
