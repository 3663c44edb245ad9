"""What no client should send, on a real endpoint, while a producer and a consumer beside it must notice nothing."""

from __future__ import annotations

import re
import socket
import ssl
import struct
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import trio

from kafka_wire.codec import decode
from kafka_wire.frames import request_frame
from tests.fixtures.names import Names
from tests.history.loads import Load, create, librdkafka_works, working
from tools.local_cluster import Cluster
from tools.local_federation import Federation, run_federation

METADATA, VERSIONS, PRODUCE, FETCH = 3, 18, 0, 1
LIMITS = {
    "first_bytes_timeout": 2.0,
    "frame_timeout": 2.0,
    "write_timeout": 3.0,
    "connections_per_address": 600,
    "buffered_bytes": 32 << 20,
}
GRACE = 12.0  # seconds for what the limits bound, on a machine that is busy


@pytest.fixture(scope="module")
def endpoint(_east: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """One worker, so that all of it meets in one process."""
    directory = tmp_path_factory.mktemp("bad-input")
    with run_federation([_east], directory=directory, proxy={"workers": 1, "limits": LIMITS}) as federation:
        yield federation


def refusals(endpoint: Federation) -> dict[str, int]:
    text = str(endpoint.ask("/metrics"))
    found: dict[str, int] = {}
    for reason, value in re.findall(r'kfed_refusals_total\{[^}]*reason="(\w+)"[^}]*\} ([0-9.e+]+)', text):
        found[reason] = found.get(reason, 0) + int(float(value))
    return found


def resident(endpoint: Federation) -> int:
    """Bytes of the worker's memory."""
    (worker,) = endpoint.ask("/api/v1/proxies")["proxies"]
    status = Path(f"/proc/{worker['pid']}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


async def counted(endpoint: Federation, reason: str, before: dict[str, int], least: int = 1) -> None:
    deadline = trio.current_time() + GRACE
    while True:
        now = await trio.to_thread.run_sync(refusals, endpoint)
        if now.get(reason, 0) >= before.get(reason, 0) + least:
            return
        assert trio.current_time() < deadline, (reason, least, before, now)
        await trio.sleep(0.05)


@pytest.fixture(scope="module")
def _beside(endpoint: Federation) -> Iterator[Load]:
    create(endpoint.librdkafka(), "good")
    with working(*librdkafka_works(endpoint.librdkafka(), "good", "good", per_second=100)) as load:
        yield load


@pytest.fixture
async def beside(_beside: Load) -> AsyncIterator[Load]:
    """A producer and a consumer that must notice nothing: no error, no pause, no lost connection of theirs."""
    await _beside.alive(20)
    begin = time.monotonic()
    yield _beside
    await _beside.alive(20)
    assert not _beside.history.errors
    assert max(_beside.history.longest_pause(begin)) < 2.0


def connected(endpoint: Federation, source: str = "127.0.0.1") -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", endpoint.port), timeout=GRACE, source_address=(source, 0))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def closes(sock: socket.socket) -> float:
    """Seconds until the other side has closed without a word."""
    begin = time.monotonic()
    try:
        assert sock.recv(65536) == b""
    except ConnectionError:
        pass
    return time.monotonic() - begin


def exchange(sock: socket.socket, frame: bytes) -> bytes:
    """One request and its response's frame without size."""
    sock.sendall(frame)
    return reply(sock)


def reply(sock: socket.socket) -> bytes:
    data = b""
    while len(data) < 4 or len(data) < 4 + int.from_bytes(data[:4], "big"):
        piece = sock.recv(65536)
        if not piece:
            raise EOFError(f"closed after {len(data)} bytes")
        data += piece
    return data[4:]


HELLO = (
    b"\x16\x03\x01\x00\xc8\x01\x00\x00\xc4\x03\x03"
    + bytes(range(32))
    + b"\x00\x00\x02\x13\x01\x01\x00\x00\x99"
    + bytes(153)
)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(bytes(range(255, 0, -1)) * 16, "bad_frame_size", id="garbage that is no size"),
        pytest.param(struct.pack(">i", 40) + b"\xa5" * 40, "unknown_api", id="garbage that is a frame"),
        pytest.param(struct.pack(">i", 2_000_000_000), "bad_frame_size", id="2 GB"),
        pytest.param(struct.pack(">i", 104857601), "bad_frame_size", id="a byte above the limit"),
        pytest.param(struct.pack(">i", -1), "bad_frame_size", id="negative size"),
        pytest.param(struct.pack(">i", -(2**31)), "bad_frame_size", id="most negative size"),
        pytest.param(struct.pack(">ihhih", 10, 999, 0, 1, -1), "unknown_api", id="unknown API"),
        pytest.param(struct.pack(">ihhih", 10, 4, 0, 1, -1), "unknown_api", id="an API of brokers"),
        pytest.param(struct.pack(">ihhih", 10, METADATA, 200, 1, -1), "unknown_version", id="unknown version"),
        pytest.param(struct.pack(">ihhih", 10, PRODUCE, 99, 1, -1), "unknown_version", id="unknown version of Produce"),
        pytest.param(struct.pack(">ihhih", 10, PRODUCE, 9, 1, -1), "malformed_request", id="an empty Produce"),
        pytest.param(HELLO, "bad_frame_size", id="TLS on a plain port"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: kafka\r\n\r\n", "bad_frame_size", id="HTTP"),
        pytest.param(b"\x00\x00\x00\x64\x00\x03", "truncated_request", id="truncated"),
    ],
)
async def test_it_is_closed_and_counted(endpoint: Federation, beside: Load, data: bytes, reason: str) -> None:
    before = await trio.to_thread.run_sync(refusals, endpoint)

    def send() -> None:
        with connected(endpoint) as sock:
            sock.sendall(data)
            if reason == "truncated_request":
                sock.shutdown(socket.SHUT_WR)
            assert closes(sock) < GRACE

    for _ in range(3):
        await trio.to_thread.run_sync(send)
    await counted(endpoint, reason, before, 3)
    now = await trio.to_thread.run_sync(refusals, endpoint)
    assert {key for key in now if now[key] != before.get(key, 0)} == {reason}


async def test_tls_gets_no_answer_that_looks_like_one(endpoint: Federation, beside: Load) -> None:
    def attempt() -> None:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        with connected(endpoint) as sock, pytest.raises((ssl.SSLError, ConnectionError)):
            context.wrap_socket(sock)

    await trio.to_thread.run_sync(attempt)


async def test_versions_of_the_future_are_answered_with_what_is_known(endpoint: Federation, beside: Load) -> None:
    def ask() -> None:
        with connected(endpoint) as sock:
            frame = exchange(sock, struct.pack(">ihhih", 11, VERSIONS, 99, 7, -1) + b"\0")
            assert frame[:4] == struct.pack(">i", 7)
            answer = decode("response", VERSIONS, 0, frame, 4)
            assert answer["error_code"] == 35
            known = {one["api_key"]: one["max_version"] for one in answer["api_keys"]}
            assert 3 <= known[VERSIONS] < 99
            # and the connection goes on
            request = {"client_software_name": "x", "client_software_version": "1"}
            frame = exchange(sock, request_frame(VERSIONS, known[VERSIONS], 8, "x", request))
            assert decode("response", VERSIONS, known[VERSIONS], frame, 4)["error_code"] == 0

    await trio.to_thread.run_sync(ask)


async def test_a_slow_loris_is_cut_off(endpoint: Federation, beside: Load) -> None:
    """A byte at a time: on the first request, on a later one, inside a large frame, and with an answer outstanding."""
    before = await trio.to_thread.run_sync(refusals, endpoint)
    whole = request_frame(METADATA, 9, 1, "loris", {"topics": []})
    large = struct.pack(">ihhi", 30 << 20, METADATA, 9, 1)
    everything = {"partition": 0, "fetch_offset": 0, "partition_max_bytes": 1}
    topics = [{"topic": "good", "partitions": [everything]}]
    poll = request_frame(FETCH, 11, 5, "loris", {"max_wait_ms": 60_000, "min_bytes": 2**31 - 1, "topics": topics})

    def drip(first: bytes, then: bytes, rest: bytes) -> float:
        begin = time.monotonic()
        with connected(endpoint) as sock:
            if first:
                exchange(sock, first)
            sock.sendall(then)
            sock.settimeout(0.3)
            for at in range(len(rest)):
                try:
                    sock.sendall(rest[at : at + 1])
                    if sock.recv(1) == b"":
                        return time.monotonic() - begin
                except TimeoutError:
                    continue
                except ConnectionError:
                    return time.monotonic() - begin
                assert time.monotonic() - begin < GRACE + 30, "still open"
        raise AssertionError("it was never closed")

    took: list[float] = []

    async def one(first: bytes, then: bytes, rest: bytes) -> None:
        took.append(await trio.to_thread.run_sync(drip, first, then, rest))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(one, b"", b"", whole[:-1] + bytes(100))
        nursery.start_soon(one, whole, b"", whole[:-1] + bytes(100))
        nursery.start_soon(one, whole, poll, whole[:-1] + bytes(100))
        # As much memory as there is for large frames, promised and not sent: others wait, but not for long.
        nursery.start_soon(one, whole, large, bytes(200))
        nursery.start_soon(one, whole, large, bytes(200))
    assert max(took) < 60
    await counted(endpoint, "no_request", before)
    await counted(endpoint, "request_too_slow", before, 4)


async def test_a_client_that_never_reads_is_cut_off_and_costs_little(
    endpoint: Federation, beside: Load, names: Names
) -> None:
    topic = names.topic("unread")
    await trio.to_thread.run_sync(create, endpoint.librdkafka(), topic, 1)
    before = await trio.to_thread.run_sync(refusals, endpoint)

    def fill_and_find() -> int:
        from confluent_kafka import Producer

        producer = Producer({**endpoint.librdkafka(), "compression.type": "none"})
        for _ in range(64):
            producer.produce(topic, bytes(500_000))
        producer.flush(30)
        with connected(endpoint) as sock:
            frame = exchange(sock, request_frame(METADATA, 9, 1, "x", {"topics": [{"name": topic}]}))
            return int(decode("response", METADATA, 9, frame, 5)["brokers"][0]["port"])

    port = await trio.to_thread.run_sync(fill_and_find)
    rss = await trio.to_thread.run_sync(resident, endpoint)
    partition = {"partition": 0, "fetch_offset": 0, "partition_max_bytes": 50 << 20}
    wanted = {
        "max_wait_ms": 100,
        "min_bytes": 1,
        "max_bytes": 50 << 20,
        "topics": [{"topic": topic, "partitions": [partition]}],
    }
    loop = b"".join(request_frame(FETCH, 12, n, "x", wanted) for n in range(50))
    with ExitStack() as stack:
        socks = []
        for _ in range(30):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=GRACE))
            sock.sendall(loop)
            socks.append(sock)
        asks = []
        for _ in range(10):  # and what is answered here
            sock = stack.enter_context(connected(endpoint))
            sock.setblocking(False)
            asks.append(sock)
        everything = b"".join(request_frame(METADATA, 9, n, "x", {"topics": None}) for n in range(200))
        for _ in range(50):
            for sock in asks:
                try:
                    sock.send(everything)
                except (BlockingIOError, ConnectionError):
                    pass
            await trio.sleep(0.02)
        assert await trio.to_thread.run_sync(resident, endpoint) < rss + (60 << 20)
        await counted(endpoint, "client_does_not_read", before, 30)


async def test_a_thousand_connections_opened_and_dropped(endpoint: Federation, beside: Load) -> None:
    begin = await trio.to_thread.run_sync(resident, endpoint)

    def storm() -> None:
        for number in range(1000):
            sock = connected(endpoint)
            if number % 3 == 1:
                sock.sendall(b"\0\0")
            elif number % 3 == 2:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
                sock.sendall(request_frame(METADATA, 9, 1, "x", {"topics": None}))
            sock.close()

    await trio.to_thread.run_sync(storm)
    await _connections(endpoint, lambda count: count < 20)
    assert await trio.to_thread.run_sync(resident, endpoint) < begin + (40 << 20)


async def _connections(endpoint: Federation, enough: Callable[[int], bool]) -> None:
    """Until so many client connections are open."""
    deadline = trio.current_time() + GRACE
    while True:
        text = str(await trio.to_thread.run_sync(endpoint.ask, "/metrics"))
        count = sum(int(float(value)) for value in re.findall(r"^kfed_connections\{[^}]*\} (\S+)$", text, re.M))
        if enough(count):
            return
        assert trio.current_time() < deadline, f"{count} connections"
        await trio.sleep(0.05)


async def test_idle_connections_are_held_and_one_address_gets_no_more_than_its_share(
    endpoint: Federation, beside: Load
) -> None:
    before = await trio.to_thread.run_sync(refusals, endpoint)
    begin = await trio.to_thread.run_sync(resident, endpoint)
    ask = request_frame(METADATA, 9, 1, "idle", {"topics": []})
    with ExitStack() as stack:

        def hold() -> list[socket.socket]:
            made = []
            for _ in range(500):
                sock = stack.enter_context(connected(endpoint, "127.0.0.2"))
                exchange(sock, ask)
                made.append(sock)
            return made

        idle = await trio.to_thread.run_sync(hold)
        grown = await trio.to_thread.run_sync(resident, endpoint) - begin
        assert grown < 500 * 40 * 1024, f"{grown / 500 / 1024:.0f} KiB for an idle connection"

        def more() -> int:
            refused = 0
            for _ in range(150):
                sock = stack.enter_context(connected(endpoint, "127.0.0.2"))
                try:
                    exchange(sock, ask)
                except (EOFError, ConnectionError):
                    refused += 1
            return refused

        assert await trio.to_thread.run_sync(more) == 50
        await counted(endpoint, "too_many_connections_from_address", before, 50)
        # Those that were there go on, and so does everybody else.
        for sock in idle[::100]:
            assert await trio.to_thread.run_sync(exchange, sock, ask)
        with connected(endpoint) as sock:
            assert await trio.to_thread.run_sync(exchange, sock, ask)


async def test_requests_that_would_fill_memory_with_objects_are_refused(endpoint: Federation, beside: Load) -> None:
    """10 MB on the wire would be a gigabyte of objects."""
    before = await trio.to_thread.run_sync(refusals, endpoint)
    begin = await trio.to_thread.run_sync(resident, endpoint)
    count = 5_000_000
    head = struct.pack(">hhih", METADATA, 9, 1, -1) + b"\0"
    body = bytearray()
    number = count + 1
    while number > 0x7F:
        body.append(number & 0x7F | 0x80)
        number >>= 7
    body.append(number)
    frame = head + bytes(body) + b"\1\0" * count + b"\1\0\0\0"

    def send() -> None:
        with connected(endpoint) as sock:
            try:
                sock.sendall(struct.pack(">i", len(frame)) + frame)
            except ConnectionError:
                return
            closes(sock)

    await trio.to_thread.run_sync(send)
    await counted(endpoint, "malformed_request", before)
    assert await trio.to_thread.run_sync(resident, endpoint) < begin + (40 << 20)


async def test_whoever_was_there_all_the_time_has_lost_nothing(endpoint: Federation, _beside: Load) -> None:
    """And refusals were logged, though not without end."""
    _beside.stopping.set()
    await _beside.caught_up()
    _beside.check(again=False)
    lines = endpoint.daemon.log.read_text().splitlines()
    told = [line for line in lines if "connection refused" in line or "connection closed" in line]
    assert 0 < len(told) < 400  # thousands were refused
    assert not [line for line in lines if "Traceback" in line]
