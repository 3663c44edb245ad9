"""A connection against a broker that is scripted, late, wrong or hostile."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from kafka_client import (
    AuthenticationFailed,
    BrokerUnavailable,
    CallTimeout,
    Connection,
    Sasl,
    SecretValue,
    Security,
    UnsupportedApi,
    open_connection,
)
from kafka_client.connection import choose_version
from kafka_client.duplex import Duplex, Lent
from kafka_wire.codec import Message, decode, is_flexible
from kafka_wire.errors import ERROR
from kafka_wire.frames import parse_request, peek_request, request_frame, response_frame
from kafka_wire.schema import Versions

LIST_GROUPS, HANDSHAKE, API_VERSIONS, AUTHENTICATE = 16, 17, 18, 36
OFFERED = {LIST_GROUPS: (0, 4), HANDSHAKE: (1, 1), API_VERSIONS: (0, 4), AUTHENTICATE: (1, 2), 0: (3, 9), 22: (0, 6)}


class Peer:
    """The broker's end: whole requests in, whatever bytes out."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._buffer = b""

    async def bytes(self, count: int) -> bytes:
        while len(self._buffer) < count:
            data = await self.stream.receive_some(1 << 16)
            if not data:
                raise trio.EndOfChannel
            self._buffer += data
        taken, self._buffer = self._buffer[:count], self._buffer[count:]
        return taken

    async def request(self) -> tuple[int, int, int, Message]:
        """(key, version, correlation id, message)."""
        (size,) = struct.unpack(">i", await self.bytes(4))
        frame = await self.bytes(size)
        key, version, correlation = peek_request(frame)
        header = parse_request(frame, is_flexible(key, version))
        return key, version, correlation, decode("request", key, version, frame, header.body)

    async def answer(self, key: int, version: int, correlation: int, message: Message) -> None:
        await self.stream.send_all(response_frame(key, version, correlation, message))

    async def negotiate(self) -> None:
        key, version, correlation, _ = await self.request()
        assert key == API_VERSIONS
        keys = [{"api_key": k, "min_version": a, "max_version": b} for k, (a, b) in OFFERED.items()]
        await self.answer(key, version, correlation, {"api_keys": keys})


Script = Callable[[Peer], Awaitable[None]]


@asynccontextmanager
async def serving(script: Script, *, negotiated: bool = True) -> AsyncIterator[int]:
    """A port that runs `script` for every connection."""

    async def handle(stream: trio.SocketStream) -> None:
        peer = Peer(stream)
        try:
            if negotiated:
                await peer.negotiate()
            await script(peer)
        except (trio.EndOfChannel, trio.BrokenResourceError):
            pass
        finally:
            await trio.aclose_forcefully(stream)

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, handle, 0)
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def connected(
    script: Script, *, security: Security | None = None, max_frame: int = 1 << 20, max_in_flight: int = 64
) -> AsyncIterator[Connection]:
    async with (
        serving(script) as port,
        open_connection(
            "127.0.0.1", port, security or Security(), max_frame=max_frame, max_in_flight=max_in_flight
        ) as connection,
    ):
        yield connection


def groups(name: str) -> Message:
    return {"groups": [{"group_id": name}]}


async def echo(peer: Peer) -> None:
    """Answers ListGroups with the first state asked for as the group's name."""
    while True:
        key, version, correlation, message = await peer.request()
        await peer.answer(key, version, correlation, groups((message["states_filter"] or [""])[0]))


async def ask(connection: Connection, name: str, timeout: float = 10.0) -> str:
    answer = await connection.call(LIST_GROUPS, {"states_filter": [name]}, timeout=timeout)
    return str(answer["groups"][0]["group_id"])


async def nothing(peer: Peer) -> None:
    await trio.sleep_forever()


async def until(holds: Callable[[], bool]) -> None:
    with trio.fail_after(5):
        while True:
            if holds():
                return
            await trio.sleep(0.001)


# -- calls --------------------------------------------------------------------------------------------------------


async def test_pipelined_calls_get_their_own_answers() -> None:
    async def late(peer: Peer) -> None:
        requests = [await peer.request() for _ in range(20)]  # all of them are in flight before any is answered
        frames = [response_frame(k, v, c, groups(m["states_filter"][0])) for k, v, c, m in requests]
        blob = b"".join(frames)
        for start in range(0, len(blob), 7):
            await peer.stream.send_all(blob[start : start + 7])
        await trio.sleep_forever()

    async with connected(late) as connection:
        found: dict[str, str] = {}

        async def one(name: str) -> None:
            found[name] = await ask(connection, name)

        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(one, f"g{number}")
        assert found == {name: name for name in found}
        assert len(found) == 20


async def test_a_cancelled_reader_hands_over() -> None:
    proceed = trio.Event()

    async def held(peer: Peer) -> None:
        first, second = await peer.request(), await peer.request()
        half = response_frame(*first[:3], groups("first"))
        await peer.stream.send_all(half[:9])  # the reader is cancelled in the middle of a frame
        await proceed.wait()
        await peer.stream.send_all(half[9:] + response_frame(*second[:3], groups("second")))
        await echo(peer)

    async with connected(held) as connection:
        found = []

        async def second() -> None:
            found.append(await ask(connection, "second"))

        async with trio.open_nursery() as nursery:
            scope = trio.CancelScope()

            async def first() -> None:
                with scope:
                    await ask(connection, "first")

            nursery.start_soon(first)
            await until(lambda: connection.load == 1)
            nursery.start_soon(second)
            await until(lambda: connection.load == 2)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
            await trio.testing.wait_all_tasks_blocked()
            proceed.set()
        assert found == ["second"]
        assert await ask(connection, "third") == "third"


async def test_a_late_answer_is_dropped_and_the_next_call_gets_its_own() -> None:
    async def slow(peer: Peer) -> None:
        first = await peer.request()
        second = await peer.request()  # only once the first was given up
        await peer.answer(*first[:3], groups("first"))
        await peer.answer(*second[:3], groups("second"))

    async with connected(slow) as connection:
        with pytest.raises(CallTimeout) as late:
            await ask(connection, "first", timeout=0.05)
        assert late.value.sent
        assert await ask(connection, "second") == "second"


async def test_in_flight_is_bounded() -> None:
    early: list[Message] = []

    async def count(peer: Peer) -> None:
        waiting = [await peer.request() for _ in range(2)]
        with trio.move_on_after(0.1):
            early.append((await peer.request())[3])
        for one in waiting:
            await peer.answer(*one[:3], groups("x"))
        await echo(peer)

    async with connected(count, max_in_flight=2) as connection:
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(ask, connection, "x")
        assert early == []


async def test_raw_exchange_keeps_the_callers_correlation() -> None:
    async with connected(echo) as connection:
        frame = request_frame(LIST_GROUPS, 4, 77, "me", {"states_filter": ["raw"]})[4:]
        answer = await connection.exchange(frame)
        assert bytes(answer) == response_frame(LIST_GROUPS, 4, 77, groups("raw"))[4:]
        assert await ask(connection, "typed") == "typed"


async def test_produce_without_acks_waits_for_nothing() -> None:
    got = []

    async def silent(peer: Peer) -> None:
        got.append(await peer.request())
        await echo(peer)

    async with connected(silent) as connection:
        assert await connection.call(0, {"acks": 0, "timeout_ms": 1, "topic_data": []}) == {}
        assert await ask(connection, "next") == "next"
        assert got[0][0] == 0


async def test_large_answers_arrive_whole() -> None:
    name = "x" * 900_000

    async def large(peer: Peer) -> None:
        while True:
            key, version, correlation, _ = await peer.request()
            answer = {"groups": [{"group_id": name[:32000]}] * 28}
            await peer.answer(key, version, correlation, answer)

    async with connected(large) as connection:
        for _ in range(3):
            answer = await connection.call(LIST_GROUPS, {})
            assert len(answer["groups"]) == 28
            assert all(one["group_id"] == name[:32000] for one in answer["groups"])


# -- versions -----------------------------------------------------------------------------------------------------


async def test_versions() -> None:
    async with connected(echo) as connection:
        assert connection.version(LIST_GROUPS) == 4
        assert connection.version(22) == 5  # version 6 is not stable in our own definitions
        with pytest.raises(UnsupportedApi):
            await connection.call(1, {})
        with pytest.raises(UnsupportedApi):
            await connection.call(LIST_GROUPS, {}, version=5)
    with pytest.raises(UnsupportedApi):
        choose_version({LIST_GROUPS: Versions(90, 99)}, LIST_GROUPS)


async def test_an_older_broker_is_asked_again_at_its_version() -> None:
    asked = []

    async def old(peer: Peer) -> None:
        for known in (False, True):
            key, version, correlation, _ = await peer.request()
            asked.append(version)
            keys = [{"api_key": API_VERSIONS, "min_version": 0, "max_version": 2}]
            error = ERROR.NONE if known else ERROR.UNSUPPORTED_VERSION
            await peer.answer(key, version if known else 0, correlation, {"error_code": error, "api_keys": keys})
        await trio.sleep_forever()

    async with serving(old, negotiated=False) as port, open_connection("127.0.0.1", port) as connection:
        assert asked == [4, 2]
        assert connection.versions == {API_VERSIONS: Versions(0, 2)}


# -- failures -----------------------------------------------------------------------------------------------------

BAD_FRAMES = {
    "2 GB": struct.pack(">i", 0x7FFFFFFF),
    "negative": struct.pack(">i", -1),
    "empty": struct.pack(">i", 0),
    "shorter than a correlation id": struct.pack(">i", 3) + b"abc",
    "just too large": struct.pack(">i", (1 << 20) + 1),
    "another's correlation id": response_frame(LIST_GROUPS, 4, 123456, {"groups": [{"group_id": "x"}]}),
    "garbage": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "no body": struct.pack(">ii", 4, 2),
    "a body that is no message": struct.pack(">ii", 10, 2) + b"\xff" * 6,
    "the end": b"",
}


@pytest.mark.parametrize("name", BAD_FRAMES)
async def test_bytes_that_make_no_sense_end_the_connection(name: str) -> None:
    async def bad(peer: Peer) -> None:
        await peer.request()
        await peer.stream.send_all(BAD_FRAMES[name])

    async with connected(bad) as connection:
        with pytest.raises(BrokerUnavailable) as lost:
            await ask(connection, "x")
        assert lost.value.sent
        assert connection.closed
        assert not connection.usable()
        with pytest.raises(BrokerUnavailable) as again:
            await ask(connection, "x")
        assert not again.value.sent


@pytest.mark.parametrize("garbage", [b"", b"\0\0\0\1x", b"SSH-2.0-OpenSSH_9.0\r\n", struct.pack(">ii", 6, 1) + b"zz"])
async def test_not_a_broker(garbage: bytes) -> None:
    async def other(peer: Peer) -> None:
        await peer.request()
        await peer.stream.send_all(garbage)

    async with serving(other, negotiated=False) as port:
        with pytest.raises(BrokerUnavailable):
            async with open_connection("127.0.0.1", port):
                pass


async def test_a_tls_port_is_recognised() -> None:
    async def tls(peer: Peer) -> None:
        await peer.request()
        await peer.stream.send_all(bytes.fromhex("15030300020250"))

    async with serving(tls, negotiated=False) as port:
        with pytest.raises(BrokerUnavailable, match="is this a TLS port"):
            async with open_connection("127.0.0.1", port):
                pass


async def test_a_silent_server_costs_the_connect_timeout() -> None:
    async with serving(nothing, negotiated=False) as port:
        with trio.fail_after(5), pytest.raises(CallTimeout):
            async with open_connection("127.0.0.1", port, connect_timeout=0.05):
                pass


async def test_everything_in_flight_fails_together() -> None:
    async def dies(peer: Peer) -> None:
        for _ in range(5):
            await peer.request()

    async with connected(dies) as connection:
        failures = []

        async def one() -> None:
            try:
                await ask(connection, "x")
            except BrokerUnavailable as error:
                failures.append(error)

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(one)
        assert len(failures) == 5
        assert len({id(one) for one in failures}) == 5


async def test_a_claimed_size_costs_no_memory() -> None:
    async def claims(peer: Peer) -> None:
        await peer.request()
        await peer.stream.send_all(struct.pack(">i", 100 << 20) + b"x" * 1000)
        await trio.sleep_forever()

    async with connected(claims, max_frame=128 << 20) as connection:
        tracemalloc.start()
        try:
            with pytest.raises(CallTimeout):
                await ask(connection, "x", timeout=0.2)
            assert tracemalloc.get_traced_memory()[1] < 4 << 20
        finally:
            tracemalloc.stop()


async def test_an_idle_connection_that_the_broker_closed_is_not_usable() -> None:
    async def once(peer: Peer) -> None:
        key, version, correlation, _ = await peer.request()
        await peer.answer(key, version, correlation, groups("x"))

    async with connected(once) as connection:
        assert connection.usable()
        await ask(connection, "x")
        await until(lambda: not connection.usable())


async def test_retiring_lets_callers_finish() -> None:
    proceed = trio.Event()

    async def held(peer: Peer) -> None:
        one = await peer.request()
        await proceed.wait()
        await peer.answer(*one[:3], groups("x"))
        await trio.sleep_forever()

    async with connected(held) as connection:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, connection, "x")
            await until(lambda: connection.load == 1)
            connection.retire()
            assert not connection.usable()
            assert not connection.closed
            proceed.set()
        assert connection.closed


# -- authentication -----------------------------------------------------------------------------------------------

PLAIN = Security(sasl=Sasl("PLAIN", "ann", SecretValue("pw")))


class Authenticating:
    """Accepts PLAIN ann/pw, counts logins, gives sessions `lifetime_ms`."""

    def __init__(self, lifetime_ms: int = 0) -> None:
        self.logins = 0
        self.lifetime_ms = lifetime_ms

    async def __call__(self, peer: Peer) -> None:
        while True:
            key, version, correlation, message = await peer.request()
            if key == HANDSHAKE:
                ok = message["mechanism"] == "PLAIN"
                error = ERROR.NONE if ok else ERROR.UNSUPPORTED_SASL_MECHANISM
                await peer.answer(key, version, correlation, {"error_code": error, "mechanisms": ["PLAIN"]})
            elif key == AUTHENTICATE:
                self.logins += 1
                ok = message["auth_bytes"] == b"\0ann\0pw"
                answer = {
                    "error_code": ERROR.NONE if ok else ERROR.SASL_AUTHENTICATION_FAILED,
                    "error_message": None if ok else "no",
                    "session_lifetime_ms": self.lifetime_ms,
                }
                await peer.answer(key, version, correlation, answer)
            else:
                await peer.answer(key, version, correlation, groups(message["states_filter"][0]))


async def test_sessions_are_renewed_before_they_end(mock_clock: MockClock) -> None:
    broker = Authenticating(lifetime_ms=100_000)
    async with connected(broker, security=PLAIN) as connection:
        assert broker.logins == 1
        mock_clock.jump(80)
        assert await ask(connection, "a") == "a"
        assert broker.logins == 1
        mock_clock.jump(6)  # 86 s of 100

        async def one(name: str) -> None:
            assert await ask(connection, name) == name

        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(one, f"g{number}")
        assert broker.logins == 2
        mock_clock.jump(80)
        assert await ask(connection, "b") == "b"
        assert broker.logins == 2


async def test_unlimited_sessions_stay(mock_clock: MockClock) -> None:
    broker = Authenticating()
    async with connected(broker, security=PLAIN) as connection:
        mock_clock.jump(1e6)
        assert await ask(connection, "a") == "a"
        assert broker.logins == 1


@pytest.mark.parametrize(
    ("sasl", "code"),
    [
        (Sasl("PLAIN", "ann", SecretValue("wrong-secret")), ERROR.SASL_AUTHENTICATION_FAILED),
        (Sasl("SCRAM-SHA-256", "ann", SecretValue("wrong-secret")), ERROR.UNSUPPORTED_SASL_MECHANISM),
        (Sasl("GSSAPI", "ann", SecretValue("wrong-secret")), None),
        (Sasl("PLAIN", "ann"), None),
    ],
)
async def test_refused_logins(sasl: Sasl, code: int | None) -> None:
    async with serving(Authenticating()) as port:
        with pytest.raises(AuthenticationFailed) as refused:
            async with open_connection("127.0.0.1", port, Security(sasl=sasl)):
                pass
        assert refused.value.code == code
        assert "wrong-secret" not in str(refused.value) + repr(sasl)


async def test_a_duplex_keeps_many_requests_on_their_way() -> None:
    """Small frames and large ones in parts; answers one by one, many at once, and cut in the middle."""
    sizes: list[int] = []

    async def script(peer: Peer) -> None:
        answers = b""
        for _ in range(4):
            (size,) = struct.unpack(">i", await peer.bytes(4))
            frame = await peer.bytes(size)
            sizes.append(size)
            assert frame[8:] == b"head" + b"".join(bytes([n % 256]) * (size // 1000) for n in range(1000))
            answers += struct.pack(">i", 8) + frame[4:8] + b"done"
        await peer.stream.send_all(answers[:30])
        await peer.stream.send_all(answers[30:])
        (size,) = struct.unpack(">i", await peer.bytes(4))
        frame = await peer.bytes(size)
        await peer.stream.send_all(struct.pack(">i", 4 + 300_000) + frame[4:8] + bytes(300_000))

    async with connected(script) as connection:
        duplex = Duplex(connection)
        for each in (1, 200, 20_000, 1):
            parts = [bytes([n % 256]) * each for n in range(1000)]
            duplex.put(bytearray(struct.pack(">hhi", 16, 0, 0) + b"head"), parts)
        assert not duplex.flush() and duplex.unsent  # more than a socket takes at once
        with trio.fail_after(10):
            await duplex.drain()
            got: list[bytes] = []
            while len(got) < 4:
                got += [bytes(one)[4:] for one in await duplex.answers(24)]
            assert got == [b"done"] * 4
            duplex.put(bytearray(struct.pack(">hhi", 16, 0, 0) + b"more"))
            await duplex.drain()
            lent = Lent(8 << 20)
            frame = await duplex.answer(lent.take)
            assert len(frame) == 4 + 300_000 and not any(frame[4:])
    assert sizes == [12 + 1000, 12 + 200_000, 12 + 20_000_000, 12 + 1000]


def test_lent_memory_is_used_again_once_nobody_looks_at_it() -> None:
    lent = Lent(10 << 20)
    first = lent.take(3 << 20)
    assert first is not None
    view = memoryview(first)[5:9]
    other = lent.take(3 << 20)
    assert other is not None and other is not first
    held = memoryview(other)
    assert lent.take(5 << 20) is None  # too much, while both are looked at
    view.release()
    assert lent.take(2 << 20) is first and not lent.full
    held.release()
    assert lent.take(9 << 20) is not None and lent.size == 9 << 20


async def test_a_duplex_refuses_answers_out_of_order() -> None:
    async def script(peer: Peer) -> None:
        await peer.bytes(4 + 12)
        await peer.stream.send_all(struct.pack(">ii", 8, 99) + b"done")

    async with connected(script) as connection:
        duplex = Duplex(connection)
        duplex.put(bytearray(struct.pack(">hhi", 16, 0, 0) + b"head"))
        assert duplex.flush()
        with pytest.raises(BrokerUnavailable, match="out of order"):
            await duplex.answers()
        assert connection.closed
