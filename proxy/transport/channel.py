"""A byte channel to a client or a broker: plain TCP, or TLS.

Reading goes into memory that is lent while there is something to read; an idle channel owns none. A channel keeps
the time since which its present wait lasts (`reading_since`, `writing_since`, seconds on the monotonic clock, 0.0
while it does not wait), so that one sweep a second over all sessions can bound every wait, instead of a timer a call.
"""

from __future__ import annotations

import socket
import ssl
import time
from typing import Protocol

import trio

from runtime.loopback import unpaced_on_loopback

SCRATCH = 65536
# A task that always finds data ready would never let another run: after so many reads in a row it steps aside.
TURNS = 8


class ChannelClosed(Exception):
    """The peer closed or reset the connection, or it was closed here."""


class TornFrame(ChannelClosed):
    """The peer ended the stream inside a frame."""

    def __init__(self) -> None:
        super().__init__("the stream ended inside a frame")


class Channel(Protocol):
    """What sessions need of a connection."""

    writing_since: float
    reading_since: float
    peer: str
    login_due: float  # when a login made here is to be renewed (monotonic seconds); 0.0: none was made, or never

    async def recv_into(self, buffer: memoryview) -> int:
        """At least one byte into `buffer`, or 0 at the end of the stream. Raises ChannelClosed."""

    async def send(self, data: bytes | bytearray | memoryview, more: bool = False) -> None:
        """All of `data`; `more` says that the rest of a frame follows at once. Raises ChannelClosed."""

    def finish(self) -> None:
        """No more is sent (half close), as far as the transport can say so."""

    def close(self) -> None:
        """Close now; waiting calls raise ChannelClosed."""


class PlainChannel:
    """TCP. `data` passed to `send` may be lent memory: what cannot be sent at once is copied before waiting."""

    __slots__ = ("_drained", "_turns", "login_due", "peer", "reading_since", "sock", "writing_since")

    def __init__(self, sock: socket.socket, peer: str) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        unpaced_on_loopback(sock)
        self.sock = sock
        self.peer = peer
        self.reading_since = self.writing_since = self.login_due = 0.0
        self._turns = 0
        self._drained = False  # the last read took all there was: to ask at once for more would be in vain

    async def readable(self) -> None:
        """Wait until there is something to read."""
        self._turns = 0
        self.reading_since = time.monotonic()
        try:
            await trio.lowlevel.wait_readable(self.sock)
        except (trio.ClosedResourceError, OSError, ValueError):
            raise ChannelClosed("closed here") from None
        finally:
            self.reading_since = 0.0

    async def writable(self) -> None:
        """Wait until something can be written."""
        self._turns = 0
        if not self.writing_since:
            self.writing_since = time.monotonic()
        try:
            await trio.lowlevel.wait_writable(self.sock)
        except (trio.ClosedResourceError, OSError, ValueError):
            raise ChannelClosed("closed here") from None

    async def turn(self) -> None:
        """Step aside now and then, where no wait did so."""
        self._turns += 1
        if self._turns >= TURNS:
            self._turns = 0
            await trio.lowlevel.checkpoint()

    async def recv_into(self, buffer: memoryview) -> int:
        sock = self.sock
        if not self._drained:
            await self.turn()
        while True:
            if self._drained:  # as in `readable`, without a further coroutine: this is where latency is made
                self._turns = 0
                self.reading_since = time.monotonic()
                try:
                    await trio.lowlevel.wait_readable(sock)
                except (trio.ClosedResourceError, OSError, ValueError):
                    raise ChannelClosed("closed here") from None
                finally:
                    self.reading_since = 0.0
            try:
                got = sock.recv_into(buffer)
            except BlockingIOError:
                self._drained = True
            except OSError as error:
                raise ChannelClosed(error.strerror) from None
            else:
                self._drained = 0 < got < len(buffer)
                return got

    async def send(self, data: bytes | bytearray | memoryview, more: bool = False) -> None:
        flags = socket.MSG_NOSIGNAL | (socket.MSG_MORE if more else 0)
        try:
            sent = self.sock.send(data, flags)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            raise ChannelClosed(error.strerror) from None
        if sent == len(data):
            return
        rest = memoryview(bytes(memoryview(data)[sent:]))  # the lent memory is somebody else's after a wait
        await self._send_rest(rest, flags)

    async def send_own(self, data: memoryview) -> None:
        """`send` of memory that stays the caller's until it returns: nothing is copied."""
        await self._send_rest(data, socket.MSG_NOSIGNAL)

    async def _send_rest(self, rest: memoryview, flags: int) -> None:
        try:
            while rest:
                await self.writable()
                try:
                    sent = self.sock.send(rest, flags)
                except BlockingIOError:
                    continue
                except OSError as error:
                    raise ChannelClosed(error.strerror) from None
                rest = rest[sent:]
                self.writing_since = time.monotonic()
        finally:
            self.writing_since = 0.0

    def finish(self) -> None:
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def close(self) -> None:
        if self.sock.fileno() >= 0:
            trio.lowlevel.notify_closing(self.sock)
            self.sock.close()


class TlsChannel:
    """TLS over TCP, through trio's SSLStream."""

    __slots__ = ("_stream", "login_due", "peer", "reading_since", "writing_since")

    def __init__(self, stream: trio.SSLStream[trio.SocketStream], peer: str) -> None:
        self._stream = stream
        self.peer = peer
        self.reading_since = self.writing_since = self.login_due = 0.0

    async def recv_into(self, buffer: memoryview) -> int:
        self.reading_since = time.monotonic()
        try:
            data = await self._stream.receive_some(len(buffer))
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError) as error:
            raise ChannelClosed(str(error.__cause__ or error)) from None
        finally:
            self.reading_since = 0.0
        buffer[: len(data)] = data
        return len(data)

    async def send(self, data: bytes | bytearray | memoryview, more: bool = False) -> None:
        self.writing_since = time.monotonic()
        try:
            await self._stream.send_all(bytes(data))
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError) as error:
            raise ChannelClosed(str(error.__cause__ or error)) from None
        finally:
            self.writing_since = 0.0

    def finish(self) -> None:
        """TLS has no half close that brokers understand; the caller closes when it has drained."""

    def close(self) -> None:
        self._stream.transport_stream.socket.close()


async def tls_handshake(
    sock: socket.socket, context: ssl.SSLContext, peer: str, *, server_side: bool, hostname: str | None, timeout: float
) -> tuple[TlsChannel, trio.SSLStream[trio.SocketStream]]:
    """A channel after the TLS handshake, bounded by `timeout` seconds. Raises ChannelClosed; then `sock` is closed."""
    sock.setblocking(False)
    unpaced_on_loopback(sock)
    stream = trio.SSLStream(
        trio.SocketStream(trio.socket.from_stdlib_socket(sock)),
        context,
        server_hostname=hostname,
        server_side=server_side,
        https_compatible=True,
    )
    try:
        with trio.fail_after(timeout):
            await stream.do_handshake()
    except (trio.BrokenResourceError, trio.TooSlowError, ssl.SSLError, OSError) as error:
        sock.close()
        raise ChannelClosed(f"TLS handshake: {error.__cause__ or error!r}") from None
    return TlsChannel(stream, peer), stream


class Inbox:
    """What arrives on a channel, as windows over lent memory.

    A window returned by `window` is valid until the next `await`; what of it is not used up must be given back with
    `keep` before that. `scratch` is shared by all inboxes of a process.
    """

    __slots__ = ("_kept", "arrived", "channel", "read_size", "scratch")

    def __init__(self, channel: Channel, scratch: memoryview) -> None:
        self.channel = channel
        self.scratch = scratch
        self.read_size = len(scratch)
        self._kept: bytes = b""
        self.arrived = 0  # bytes of what `whole` fills at present

    @property
    def pending(self) -> bool:
        """Whether something was kept."""
        return bool(self._kept)

    def keep(self, rest: memoryview) -> None:
        """Hold the unused end of the last window until the next one."""
        self._kept = bytes(rest)

    async def window(self, at_least: int = 1) -> memoryview:
        """At least so many bytes (at most the scratch's size), writable; fewer only at the end of the stream."""
        kept = self._kept
        if not kept:
            scratch = self.scratch
            if self.read_size < len(scratch):
                scratch = scratch[: max(self.read_size, at_least)]
            got = await self.channel.recv_into(scratch)
            if got >= at_least or not got:
                return self.scratch[:got]
            kept = self._kept = bytes(self.scratch[:got])
        elif len(kept) >= at_least:
            self._kept = b""
            self.scratch[: len(kept)] = kept
            return self.scratch[: len(kept)]
        size = len(kept)
        while True:
            got = await self.channel.recv_into(self.scratch[size : max(self.read_size, size + 1, at_least)])
            if kept:
                # Written after the wait: while it lasted, the scratch was others'.
                self.scratch[: len(kept)] = kept
            size += got
            if size >= at_least or not got:
                self._kept = b""
                return self.scratch[:size]
            kept = bytes(self.scratch[:size])
            self._kept = kept

    async def whole(self, target: memoryview) -> None:
        """Fill `target` (owned memory). Raises ChannelClosed at an early end."""
        done = min(len(self._kept), len(target))
        target[:done] = self._kept[:done]
        self._kept = self._kept[done:]
        while done < len(target):
            self.arrived = done
            got = await self.channel.recv_into(target[done:])
            if not got:
                raise TornFrame
            done += got

    async def discard(self, count: int) -> None:
        """Read and drop `count` bytes."""
        done = min(len(self._kept), count)
        self._kept = self._kept[done:]
        count -= done
        while count:
            got = await self.channel.recv_into(self.scratch[: min(count, len(self.scratch))])
            if not got:
                raise TornFrame
            count -= got
