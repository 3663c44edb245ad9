"""One connection to a broker: version negotiation, authentication, pipelined calls.

There is no task behind a connection. Whoever waits for an answer reads: one waiter at a time holds the reading role,
hands finished frames to their owners and passes the role on when its own answer is there, or when it is cancelled.
Brokers execute and answer a connection's requests in order, so a slow call (a long-polling Fetch) delays those behind
it: give such calls a connection of their own.

A call that is given up leaves its answer to be read and dropped by later ones; a connection whose bytes no longer
make sense is closed, and everything in flight on it fails with `BrokerUnavailable`.
"""

from __future__ import annotations

import select
import socket
import ssl
import struct
from collections import deque
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from kafka_client import sasl
from kafka_client.failures import AuthenticationFailed, BrokerUnavailable, CallTimeout, Refused, UnsupportedApi
from kafka_client.security import PLAINTEXT, Security, Tls, ssl_context
from kafka_wire.codec import DecodeError, Message, decode, encode, is_flexible
from kafka_wire.errors import ERROR, error_name
from kafka_wire.frames import response_body
from kafka_wire.schema import NEVER, Versions, by_key
from runtime.loopback import unpaced_on_loopback

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from kafka_wire.codec import Buffer

API_PRODUCE, SASL_HANDSHAKE, API_VERSIONS, SASL_AUTHENTICATE = 0, 17, 18, 36
SOFTWARE = {"client_software_name": "kfed", "client_software_version": "0.1.0"}
MAX_FRAME = 128 << 20
MAX_IN_FLIGHT = 64
REAUTHENTICATE_AT = 0.85  # of the session's lifetime; Java clients take 85 to 95 % (KIP-368)
REAUTHENTICATE_PAUSE = 1.05  # seconds; brokers answer 34 to a handshake within a second of the last
_READ, _GROW = 1 << 16, 1 << 18
_SIZE, _CORRELATION = struct.Struct(">i"), struct.Struct(">i")


def _known_versions(key: int) -> Versions | None:
    """The stable versions of our own definitions."""
    one = by_key("request").get(key)
    if one is None:
        return None
    return Versions(one.versions.low, one.versions.high - 1) if one.unstable else one.versions


def choose_version(offered: Mapping[int, Versions], key: int) -> int:
    """The highest version of `key` both sides know.

    Raises:
        UnsupportedApi: there is none.
    """
    ours, theirs = _known_versions(key), offered.get(key)
    if ours is not None and theirs is not None:
        high = min(ours.high, theirs.high)
        if high >= max(ours.low, theirs.low):
            return high
    raise UnsupportedApi(f"API key {key}: offered {theirs and (theirs.low, theirs.high)}, known here {ours}")


class Ticket:
    """A request on its way."""

    __slots__ = ("correlation", "counted", "done", "error", "frame", "given_up", "wake")

    def __init__(self, correlation: int, counted: bool) -> None:
        self.correlation = correlation
        self.counted = counted  # holds an in-flight slot
        self.done = False
        self.given_up = False
        self.frame: bytearray | None = None
        self.error: BrokerUnavailable | None = None
        self.wake = trio.Event()


class Connection:
    """An open, authenticated connection; made by `connect` or `open_connection`."""

    def __init__(
        self, stream: trio.abc.Stream, address: str, *, client_id: str | None, max_frame: int, max_in_flight: int
    ) -> None:
        self.address = address
        self.client_id = client_id
        self.versions: Mapping[int, Versions] = {}
        self.api_versions: Message = {}  # the broker's whole ApiVersions answer, with its features
        self.last_used = trio.current_time()
        self.calls = 0  # callers inside `call` or `exchange`
        self.grow = _GROW  # bytes a frame's buffer begins with: more where the broker is trusted not to lie about sizes
        self.distrusted = False  # the connection ended because TLS refused one side's certificate
        self._stream = stream
        self._raw: socket.socket | None = None
        self._max_frame = max_frame
        self._slots = trio.Semaphore(max_in_flight)
        self._turn = trio.Lock()  # who may write
        self._pending: deque[Ticket] = deque()
        self._reading = False
        self._correlation = 0
        self._failure: BrokerUnavailable | None = None
        self._retired = False
        self._reauthenticate_at: float | None = None
        self._security = PLAINTEXT
        self._head = bytearray()
        self._body: bytearray | None = None
        self._size = self._filled = 0

    # -- the public face ------------------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Closed, by us or through a failure: no further call succeeds."""
        return self._failure is not None

    @property
    def load(self) -> int:
        """Callers inside, and requests whose answers are still owed to nobody (given-up calls)."""
        return max(self.calls, len(self._pending))

    def usable(self) -> bool:
        """Whether a new call may go here: open, and, where nothing is in flight, not closed by the broker meanwhile."""
        if self._failure is not None or self._retired:
            return False
        if self._pending:
            return True
        # Nothing is owed to us: whatever makes the socket readable is its end (or noise before its end).
        poll = select.poll()
        poll.register(_socket_of(self._stream).fileno(), select.POLLIN)
        if not poll.poll(0):
            return True
        self._fail("closed by the broker")
        return False

    def retire(self) -> None:
        """Take no more calls from a pool; close when the callers inside have left."""
        self._retired = True
        if not self.calls:
            self.close()

    def version(self, key: int) -> int:
        """The version `call` would use. Raises UnsupportedApi."""
        return choose_version(self.versions, key)

    async def call(self, key: int, message: Message, version: int | None = None, timeout: float = 10.0) -> Message:
        """Send a request and return its decoded answer; error codes inside it are the caller's to judge.

        Produce with acks=0 has no answer: `{}` once it is sent. `timeout` is in seconds, for everything.

        Raises:
            BrokerUnavailable, CallTimeout: no answer; see `sent`.
            UnsupportedApi: no common version.
            AuthenticationFailed: a due re-authentication was refused.
        """
        if version is None:
            version = choose_version(self.versions, key)
        elif version not in self.versions.get(key, NEVER):
            raise UnsupportedApi(f"{self.address}: API key {key} version {version}")
        answered = not (key == API_PRODUCE and message.get("acks") == 0)
        api, rest = self._encoded(key, version, message)
        frame = await self._round_trip(api, rest, timeout, answered)
        return self._decoded(key, version, frame) if answered else {}

    async def exchange(self, frame: Buffer, *, timeout: float = 10.0, answered: bool = True) -> memoryview:
        """Send a whole request frame (header and body, no size prefix) and return the answer's frame likewise.

        The correlation id is replaced on the way out and restored in the answer, so any will do. With
        `answered=False` (Produce with acks=0) it returns an empty view once sent. Raises as `call` does.
        """
        view = memoryview(frame)
        if len(view) < 8:
            raise ValueError("a request frame has at least 8 bytes")
        answer = await self._round_trip(view[:4], view[8:], timeout, answered)
        if answered:
            answer[:4] = view[4:8]
        return memoryview(answer)

    def close(self) -> None:
        """Close at once; what is in flight fails. Idempotent."""
        self._fail("closed here")

    # -- for who takes it over: see `duplex` ----------------------------------------------------------------------

    @property
    def stream(self) -> trio.abc.Stream:
        return self._stream

    @property
    def raw(self) -> socket.socket | None:
        """The socket itself, non-blocking; None under TLS."""
        return self._raw if isinstance(self._stream, trio.SocketStream) else None

    @property
    def max_frame(self) -> int:
        return self._max_frame

    @property
    def reauthenticate_at(self) -> float | None:
        """When the login is to be renewed (trio's clock); None: never."""
        return self._reauthenticate_at

    async def reauthenticate(self) -> None:
        """Renew the login; nothing else may be in flight. Raises AuthenticationFailed, BrokerUnavailable."""
        await self._authenticate()

    def lost(self, error: BaseException) -> BrokerUnavailable:
        """Close because of this error of the socket; returns what is to be raised."""
        return self._lost(error)

    def failed(self, reason: str) -> BrokerUnavailable:
        """Close because what the broker says makes no sense; returns what is to be raised."""
        return self._fail(reason)

    # -- requests and answers -------------------------------------------------------------------------------------

    async def _round_trip(self, api: Buffer, rest: Buffer, timeout: float, answered: bool) -> bytearray:
        pending: Ticket | None = None
        self.calls += 1
        try:
            with trio.move_on_after(timeout):
                pending = await self._submit(api, rest, answered)
                return await self._answer(pending) if answered else bytearray()
            (key,) = struct.unpack_from(">h", api)
            reason = f"{self.address}: no answer to API key {key} in {timeout:g} s"
            raise CallTimeout(reason, sent=pending is not None)
        finally:
            self.calls -= 1
            if self._retired and not self.calls:
                self.close()

    def _encoded(self, key: int, version: int, message: Message) -> tuple[bytes, bytearray]:
        body = encode("request", key, version, message)
        name = self.client_id.encode() if self.client_id is not None else b""
        head = struct.pack(">h", len(name) if self.client_id is not None else -1) + name
        return struct.pack(">hh", key, version), bytearray(head) + (b"\0" if is_flexible(key, version) else b"") + body

    def _decoded(self, key: int, version: int, frame: Buffer) -> Message:
        try:
            return decode("response", key, version, frame, response_body(key, version, frame))
        except (DecodeError, IndexError) as error:
            raise self._fail(f"an answer to API key {key} v{version} that cannot be read: {error}") from None

    async def _submit(self, api: Buffer, rest: Buffer, answered: bool) -> Ticket:
        """Write one request in turn; holds an in-flight slot until its answer is read."""
        await self._slots.acquire()
        kept = False
        try:
            async with self._turn:
                due = self._reauthenticate_at
                if due is not None and trio.current_time() >= due:
                    await self._authenticate()
                pending = await self._write(api, rest, answered)
            kept = answered
            return pending
        finally:
            # After a failed write this gives back a second time what `_fail` gave back: on a closed connection a
            # surplus slot only lets the next caller in to be told so.
            if not kept:
                self._slots.release()

    async def _write(self, api: Buffer, rest: Buffer, answered: bool, counted: bool = True) -> Ticket:
        if self._failure is not None:
            raise BrokerUnavailable(str(self._failure))
        self._correlation = self._correlation + 1 & 0x7FFFFFFF
        pending = Ticket(self._correlation, counted)
        size = len(rest) + 8
        frame = b"".join((_SIZE.pack(size), api, _CORRELATION.pack(pending.correlation), rest))
        if answered:
            self._pending.append(pending)
        self.last_used = trio.current_time()
        try:
            await self._stream.send_all(frame)
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError) as error:
            raise self._lost(error) from error
        except BaseException:
            self._fail("a request was cut off in the middle")  # cancelled: the stream's framing is lost
            raise
        return pending

    async def _answer(self, mine: Ticket) -> bytearray:
        try:
            while not mine.done:
                if self._reading:
                    await mine.wake.wait()
                    mine.wake = trio.Event()
                else:
                    await self._read_for(mine)
        finally:
            mine.given_up = True
            if not self._reading:
                self._pass_role()
        if mine.error is not None:
            raise mine.error
        assert mine.frame is not None
        return mine.frame

    async def _read_for(self, mine: Ticket) -> None:
        """Hold the reading role until `mine` is done."""
        self._reading = True
        try:
            while not mine.done:
                frame = await self._read_frame()
                if frame is not None:
                    self._dispatch(frame)
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError) as error:
            self._lost(error)
        finally:
            self._reading = False

    def _pass_role(self) -> None:
        """Wake the first that still waits, to read for itself and the others."""
        for one in self._pending:
            if not one.given_up:
                one.wake.set()
                return

    def _dispatch(self, frame: bytearray) -> None:
        if not self._pending:
            raise self._fail("an answer nobody asked for")
        (correlation,) = _CORRELATION.unpack_from(frame)
        pending = self._pending[0]
        if correlation != pending.correlation:
            raise self._fail(f"an answer out of order: correlation {correlation}, not {pending.correlation}")
        self._pending.popleft()
        if pending.counted:
            self._slots.release()
        pending.frame, pending.done = frame, True
        pending.wake.set()
        self.last_used = trio.current_time()

    async def _read_frame(self) -> bytearray | None:
        """A whole frame, or None where more must be read. What was read survives a cancellation."""
        if self._body is None:
            if len(self._head) < 4:
                data = await self._stream.receive_some(_READ)
                if not data:
                    raise self._fail("closed by the broker")
                self._head += data
                if len(self._head) < 4:
                    return None
            (size,) = _SIZE.unpack_from(self._head)
            if not 4 <= size <= self._max_frame:
                hint = "; is this a TLS port?" if size >> 16 == 0x1503 else ""
                raise self._fail(f"a frame of {size} bytes (4 to {self._max_frame} are accepted){hint}")
            have = len(self._head) - 4
            if have >= size:
                frame = self._head[4 : 4 + size]
                del self._head[: 4 + size]
                return frame
            # Grown as it fills: a lie about the size costs no more memory than was really sent, twice.
            self._body = self._head + bytes(max(0, min(size, self.grow) - have))
            del self._body[:4]
            self._head.clear()
            self._size, self._filled = size, have
        body = self._body
        if self._filled == len(body):
            body += bytes(min(self._size, 2 * len(body)) - len(body))
        with memoryview(body)[self._filled :] as room:
            if isinstance(self._stream, trio.SocketStream):
                count = await self._stream.socket.recv_into(room)
            else:
                data = await self._stream.receive_some(min(len(room), _GROW))
                count = len(data)
                room[:count] = data
        if not count:
            raise self._fail("closed by the broker")
        self._filled += count
        if self._filled < self._size:
            return None
        self._body = None
        return body

    def _lost(self, error: BaseException) -> BrokerUnavailable:
        self.distrusted = self.distrusted or _refused_by_tls(error)
        return self._fail(_reason(error))

    def _fail(self, reason: str) -> BrokerUnavailable:
        """Close for good. Returns the failure, for `raise`."""
        if self._failure is None:
            self._failure = BrokerUnavailable(f"{self.address}: {reason}", sent=True)
            _socket_of(self._stream).close()
            for one in self._pending:
                if one.counted:
                    self._slots.release()
                # Each its own exception: a shared one would collect everybody's traceback.
                one.error, one.done = BrokerUnavailable(str(self._failure), sent=True), True
                one.wake.set()
            self._pending.clear()
        return self._failure

    # -- negotiation and authentication ---------------------------------------------------------------------------

    async def _plain_call(self, key: int, version: int, message: Message) -> Message:
        """A call of the handshake: by the holder of the turn, outside the in-flight bound."""
        pending = await self._write(*self._encoded(key, version, message), answered=True, counted=False)
        return self._decoded(key, version, await self._answer(pending))

    async def _negotiate(self) -> None:
        version = by_key("request")[API_VERSIONS].versions.high
        message: Message = dict(SOFTWARE)
        pending = await self._write(*self._encoded(API_VERSIONS, version, message), answered=True, counted=False)
        frame = await self._answer(pending)
        if len(frame) >= 6 and struct.unpack_from(">h", frame, 4)[0] == ERROR.UNSUPPORTED_VERSION:
            # An older broker answers at version 0, naming what it has (KIP-511).
            answer = self._decoded(API_VERSIONS, 0, frame)
            offered = [one for one in answer["api_keys"] if one["api_key"] == API_VERSIONS]
            version = min(version, offered[0]["max_version"]) if offered else 0
            answer = await self._plain_call(API_VERSIONS, max(version, 0), message)
        else:
            answer = self._decoded(API_VERSIONS, version, frame)
        if answer["error_code"]:
            raise Refused(f"{self.address}: ApiVersions", answer["error_code"])
        self.api_versions = answer
        self.versions = {one["api_key"]: Versions(one["min_version"], one["max_version"]) for one in answer["api_keys"]}

    async def _authenticate(self) -> None:
        """SASL with the credentials as of now; again before the session ends (KIP-368)."""
        settings = self._security.sasl
        assert settings is not None
        done = False
        try:
            lifetime = await self._sasl(sasl.exchange(settings), settings.mechanism)
            done = True
        except AuthenticationFailed as error:
            raise AuthenticationFailed(f"{self.address}: {error}", error.code) from None
        finally:
            if not done:
                self._fail("authentication failed or was cut off")  # the broker is in the middle of it
        now = trio.current_time()
        pause = max(lifetime / 1000 * REAUTHENTICATE_AT, REAUTHENTICATE_PAUSE)
        self._reauthenticate_at = now + pause if lifetime > 0 else None

    async def _sasl(self, exchange: sasl.Exchange, mechanism: str) -> int:
        """Runs the exchange; returns the session's lifetime in ms, 0 for unlimited."""
        shake = await self._plain_call(SASL_HANDSHAKE, 1, {"mechanism": mechanism})
        if shake["error_code"]:
            offered = ", ".join(shake["mechanisms"]) or "none"
            raise AuthenticationFailed(
                f"SASL mechanism {mechanism}: {error_name(shake['error_code'])}; the broker offers {offered}",
                shake["error_code"],
            )
        version = choose_version(self.versions, SASL_AUTHENTICATE)
        message: bytes | None = exchange.start()
        lifetime = 0
        while message is not None:
            answer = await self._plain_call(SASL_AUTHENTICATE, version, {"auth_bytes": message})
            if answer["error_code"]:
                reason = answer["error_message"] or error_name(answer["error_code"])
                raise AuthenticationFailed(f"{mechanism}: {reason}", answer["error_code"])
            lifetime = answer.get("session_lifetime_ms", 0)
            message = exchange.answer(answer["auth_bytes"])
        if not exchange.finished:
            raise AuthenticationFailed(f"{mechanism}: the exchange ended early")
        return lifetime


def _socket_of(stream: trio.abc.Stream) -> trio.socket.SocketType:
    inner = stream.transport_stream if isinstance(stream, trio.SSLStream) else stream
    assert isinstance(inner, trio.SocketStream)
    return inner.socket


def _reason(error: BaseException) -> str:
    cause = error.__cause__ or error
    return f"connection lost: {str(cause) or type(cause).__name__}"


def _refused_by_tls(error: BaseException) -> bool:
    """Whether TLS itself says that one side does not trust the other, as against a broken connection."""
    cause = error.__cause__ or error
    if isinstance(cause, ssl.SSLCertVerificationError):
        return True
    return isinstance(cause, ssl.SSLError) and "ALERT" in (cause.reason or "")


async def _secured(tcp: trio.SocketStream, host: str, tls: Tls) -> trio.abc.Stream:
    try:
        context = ssl_context(tls)
    except (OSError, ssl.SSLError) as error:
        raise AuthenticationFailed(f"TLS files cannot be used: {error}") from None
    # https_compatible: frames have sizes of their own, so a missing close_notify hides nothing.
    stream = trio.SSLStream(tcp, context, server_hostname=host, https_compatible=True)
    await stream.do_handshake()
    return stream


async def connect(
    host: str,
    port: int,
    security: Security = PLAINTEXT,
    *,
    client_id: str | None = "kfed",
    connect_timeout: float = 10.0,
    max_frame: int = MAX_FRAME,
    max_in_flight: int = MAX_IN_FLIGHT,
) -> Connection:
    """An open connection, negotiated and authenticated; the caller closes it.

    `connect_timeout` (seconds) covers TCP, TLS, ApiVersions and SASL together. `max_frame` bounds answers, in bytes.

    Raises:
        BrokerUnavailable, CallTimeout: not reachable, or not a Kafka broker.
        AuthenticationFailed: either side does not accept the other's credentials.
    """
    address = f"{host}:{port}"
    tcp: trio.SocketStream | None = None
    done = False
    try:
        with trio.move_on_after(connect_timeout):
            opened = await trio.open_tcp_stream(host, port)
            raw = socket.socket(fileno=opened.socket.detach())
            unpaced_on_loopback(raw)
            tcp = trio.SocketStream(trio.socket.from_stdlib_socket(raw))
            # trio keeps at most 16 KiB unsent on its streams; a request of megabytes would take hundreds of wake-ups.
            tcp.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, 0)
            stream: trio.abc.Stream = tcp if security.tls is None else await _secured(tcp, host, security.tls)
            connection = Connection(
                stream, address, client_id=client_id, max_frame=max_frame, max_in_flight=max_in_flight
            )
            connection._security, connection._raw = security, raw
            try:
                await connection._negotiate()
            except BrokerUnavailable as error:
                # TLS 1.3 reports a refused client certificate on the first read.
                if connection.distrusted:
                    raise AuthenticationFailed(str(error)) from None
                raise BrokerUnavailable(str(error)) from None
            if security.sasl is not None:
                await connection._authenticate()
            done = True
            return connection
        raise CallTimeout(f"{address}: not connected within {connect_timeout:g} s")
    except (OSError, trio.BrokenResourceError, ssl.SSLError, ssl.CertificateError) as error:
        if _refused_by_tls(error):
            raise AuthenticationFailed(f"{address}: {_reason(error)}") from None
        raise BrokerUnavailable(f"{address}: {_reason(error)}") from None
    finally:
        if tcp is not None and not done:
            tcp.socket.close()


@asynccontextmanager
async def open_connection(
    host: str,
    port: int,
    security: Security = PLAINTEXT,
    *,
    client_id: str | None = "kfed",
    connect_timeout: float = 10.0,
    max_frame: int = MAX_FRAME,
    max_in_flight: int = MAX_IN_FLIGHT,
) -> AsyncIterator[Connection]:
    """`connect` as an async context manager that closes the connection."""
    connection = await connect(
        host,
        port,
        security,
        client_id=client_id,
        connect_timeout=connect_timeout,
        max_frame=max_frame,
        max_in_flight=max_in_flight,
    )
    try:
        yield connection
    finally:
        connection.close()
