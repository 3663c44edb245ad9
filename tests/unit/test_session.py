"""Conversations over one session: order, pieces, large frames, and what ends it."""

from __future__ import annotations

import struct
import time

import pytest
import trio
import trio.testing

from kafka_wire.codec import Message, decode
from kafka_wire.frames import request_frame, response_frame
from proxy.apis.contract import Call
from proxy.session.session import MAX_IN_FLIGHT, MAX_MADE
from proxy.session.surroundings import Budget
from proxy.sweep import overdue
from runtime.settings import Limits
from tests.fixtures.calls import two_clusters, uuid, view_of
from tests.fixtures.sessions import Talk, exactly, frame_of, talking

PRODUCE, FETCH, METADATA, VERSIONS = 0, 1, 3, 18
HOST = b"broker-9.internal"


async def say(call: Call, version: int, request: Message) -> Message:
    """A handler whose answer is as large as the first topic's name says."""
    size = int(request["topics"][0]["name"]) if request["topics"] else 0
    return {"cluster_id": "x" * size, "topics": []}


def metadata(size: int, correlation: int) -> bytes:
    return request_frame(METADATA, 9, correlation, "c", {"topics": [{"name": str(size)}]})


def fetch(version: int, correlation: int, topic: str = "orders", topic_id: int = 101) -> bytes:
    named = {"topic_id": uuid(topic_id)} if version >= 13 else {"topic": topic}
    topics = [named | {"partitions": [{"partition": 0, "fetch_offset": 0, "partition_max_bytes": 1 << 20}]}]
    return request_frame(FETCH, version, correlation, "c", {"max_wait_ms": 1, "min_bytes": 1, "topics": topics})


def answer(version: int, correlation: int, parts: list[Message], endpoints: bool = False) -> bytes:
    named = {"topic_id": uuid(101)} if version >= 13 else {"topic": "orders"}
    message: Message = {"responses": [named | {"partitions": parts}]}
    if endpoints:
        message["node_endpoints"] = [{"node_id": 2, "host": HOST.decode(), "port": 9092}]
    return response_frame(FETCH, version, correlation, message)


def part(index: int, records: bytes | None, aborted: int = 0, **more: object) -> Message:
    return {
        "partition_index": index,
        "aborted_transactions": [{"producer_id": n, "first_offset": n} for n in range(aborted)],
        "records": records,
        "preferred_read_replica": -1,
        **more,
    }


def parts_of(version: int, frame: bytes) -> list[tuple[int, bytes, int, int]]:
    """(index, records, aborted transactions, preferred replica) of a response frame."""
    body = decode("response", FETCH, version, frame, 4 if version < 12 else 5)
    return [
        (
            one["partition_index"],
            bytes(one["records"] or b""),
            len(one["aborted_transactions"] or ()),
            one.get("preferred_read_replica", -1),
        )
        for topic in body["responses"]
        for one in topic["partitions"]
    ]


async def asked(talk: Talk, frame: bytes) -> trio.SocketStream:
    """Send a request that is passed on; the broker's end after it has arrived there, byte for byte."""
    await talk.client.send_all(frame)
    broker = await talk.upstream()
    assert await exactly(broker, len(frame)) == frame
    return broker


SHAPES = {
    "small": [part(0, b"r" * 50), part(1, None)],
    "many partitions": [part(n, bytes([n]) * 999) for n in range(200)],
    "one large": [part(0, bytes(range(256)) * 8000)],
    "large ones": [part(n, bytes([n]) * 300_000) for n in range(5)] + [part(9, b"")],
    "thousands of aborted transactions": [part(0, b"a" * 70_000, 3500), part(1, b"b", 9000), part(2, b"c" * 200_000)],
    "a unit as large as the scratch": [
        *(part(n, b"", aborted) for n, aborted in enumerate((3853, 3854, 3855, 4094, 4096))),
    ],
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("version", [4, 12, 18])
@pytest.mark.parametrize("first", [8, 9, 60, 65536, 1 << 22])
async def test_a_fetch_response_arrives_whole_however_it_is_cut(version: int, shape: str, first: int) -> None:
    async with talking(two_clusters()) as talk:
        broker = await asked(talk, fetch(version, 5) + fetch(version, 6))
        parts = [one | {"preferred_read_replica": 2} for one in SHAPES[shape]]
        # Back to back: the second begins where the first ends, in the same segment or not.
        both = answer(version, 5, parts) + answer(version, 6, parts[:1])
        got: list[bytes] = []

        async def read() -> None:
            got.append(await frame_of(talk.client))
            got.append(await frame_of(talk.client))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await broker.send_all(both[:first])
            await trio.testing.wait_all_tasks_blocked(0.001)
            await broker.send_all(both[first:])
        replica = 2 if version >= 11 else -1  # east's index is 0
        expected = [
            (one["partition_index"], one["records"] or b"", len(one["aborted_transactions"]), replica) for one in parts
        ]
        assert parts_of(version, got[0]) == expected
        assert parts_of(version, got[1]) == expected[:1]


async def test_thousands_of_aborted_transactions_are_not_looked_at_again_for_every_byte() -> None:
    """The list arrives in small segments behind a large frame; the walk starts over only when it has grown by half."""
    whole = answer(12, 5, [part(0, b"a" * 200_000), part(1, b"b", 3700)])
    async with talking(two_clusters()) as talk:
        broker = await asked(talk, fetch(12, 5))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(exactly, talk.client, len(whole))
            begin = trio.current_time()
            for at in range(0, len(whole), 1448):
                await broker.send_all(whole[at : at + 1448])
                await trio.lowlevel.checkpoint()
        assert trio.current_time() - begin < 5


@pytest.mark.parametrize("large", [False, True])
async def test_leader_hints_name_virtual_brokers_or_nobody(large: bool) -> None:
    view = view_of(two_clusters().topics.values(), first_index=3)
    async with talking(view) as talk:
        broker = await asked(talk, fetch(16, 5))
        moved = part(0, b"", error_code=6, current_leader={"leader_id": 2, "leader_epoch": 4})
        filler = [part(1, b"z" * 400_000)] if large else []
        await broker.send_all(answer(16, 5, [*filler, moved], endpoints=True))
        frame = await frame_of(talk.client)
        assert HOST not in frame
        body = decode("response", FETCH, 16, frame, 5)
        assert body["responses"][0]["partitions"][-1]["current_leader"]["leader_id"] == 300_002
        ends = body["node_endpoints"]
        assert ends == [] if large else (ends[0]["node_id"], ends[0]["host"]) == (300_002, "proxy.example")
        assert ("refresh", "east") in talk.told.told


async def test_answers_keep_the_order_of_their_requests() -> None:
    async with talking(two_clusters(), {METADATA: say}) as talk:
        one = answer(11, 1, [part(0, b"late")])
        await talk.client.send_all(fetch(11, 1) + metadata(10, 2) + fetch(11, 3) + metadata(20, 4))
        broker = await talk.upstream()
        for _ in range(2):
            await frame_of(broker)
        await broker.send_all(one + answer(11, 3, [part(0, b"later")]))
        order = [int.from_bytes((await frame_of(talk.client))[:4], "big") for _ in range(4)]
        assert order == [1, 2, 3, 4]


@pytest.mark.parametrize(("size", "most"), [(10, MAX_IN_FLIGHT), (200_000, MAX_MADE // 200_000 + 1)])
async def test_a_client_that_asks_and_does_not_read_is_not_read_from(size: int, most: int) -> None:
    """Its first request waits for the broker; what is answered here meanwhile is bounded in number and in bytes."""
    count = 1000

    async def ask(talk: Talk) -> None:
        for number in range(count):
            await talk.client.send_all(metadata(size, number + 2))

    async with talking(two_clusters(), {METADATA: say}) as talk:
        broker = await asked(talk, fetch(11, 1))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, talk)
            await trio.testing.wait_all_tasks_blocked(0.2)
            assert 1 < len(talk.session.slots) <= most
            assert talk.session.made_bytes <= MAX_MADE
            await broker.send_all(answer(11, 1, [part(0, b"")]))
            for number in range(count + 1):
                assert int.from_bytes((await frame_of(talk.client))[:4], "big") == number + 1
        assert talk.session.made_bytes == 0


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x7f\xff\xff\xff" + bytes(20), "bad_frame_size"),
        (struct.pack(">i", 2_000_000_000) + bytes(20), "bad_frame_size"),
        (struct.pack(">i", -1) + bytes(20), "bad_frame_size"),
        (struct.pack(">i", 0) + bytes(20), "bad_frame_size"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "bad_frame_size"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(60), "bad_frame_size"),
        (struct.pack(">ihhih", 10, 999, 0, 1, -1), "unknown_api"),
        (struct.pack(">ihhih", 10, METADATA, 99, 1, -1), "unknown_version"),
        (struct.pack(">ihhih", 10, METADATA, -1, 1, -1), "unknown_version"),
        (struct.pack(">ihhih", 10, FETCH, 3, 1, -1), "unknown_version"),
        (struct.pack(">ihhih", 10, PRODUCE, 2, 1, -1), "unknown_version"),
        (struct.pack(">ihhih", 10, METADATA, 9, 1, 30000), "malformed_request"),
        (struct.pack(">ihhih", 10, METADATA, 1, 1, -1), "malformed_request"),
        (struct.pack(">ihhih", 10, PRODUCE, 7, 1, -1), "malformed_request"),
        (struct.pack(">ihhih", 10, FETCH, 11, 1, -1), "malformed_request"),
        (struct.pack(">ihhih2s", 12, METADATA, 1, 1, 2, b"\xff\xfe"), "malformed_request"),
        (struct.pack(">ihhi", 100_000, METADATA, 9, 1) + b"\xff" * 100_000, "malformed_request"),
        (struct.pack(">ihhi", 100_000, PRODUCE, 9, 1) + b"\0\0\0" + b"\xff" * 99_997, "malformed_request"),
        (b"\0\0", "truncated_request"),
        (metadata(1, 1)[:-1], "truncated_request"),
        (struct.pack(">ihhi", 1_000_000, METADATA, 9, 1) + bytes(70_000), "truncated_request"),
    ],
)
async def test_what_is_no_request_ends_the_session_and_is_counted(data: bytes, reason: str) -> None:
    async with talking(two_clusters(), {METADATA: say}) as talk:
        await talk.client.send_all(data)
        if reason == "truncated_request":
            await talk.client.send_eof()
        try:
            assert await talk.client.receive_some() == b""
        except trio.BrokenResourceError:
            pass  # it had sent more than was read
        assert dict(talk.around.metrics.refusals) == {reason: 1}


async def test_memory_for_large_frames_is_not_kept_by_who_only_promises_them() -> None:
    limits = Limits(buffered_bytes=10 << 20, frame_timeout=60)
    async with talking(two_clusters(), {METADATA: say}, limits) as talk:
        await talk.client.send_all(metadata(1, 1))
        await frame_of(talk.client)
        await talk.client.send_all(struct.pack(">ihhi", 10 << 20, METADATA, 9, 1) + bytes(100_000))
        await trio.testing.wait_all_tasks_blocked(0.02)
        now = time.monotonic()
        assert overdue(talk.session.waiting(now), limits, now) is None
        assert overdue(talk.session.waiting(now + 30), limits, now + 30) is None  # nobody else needs it
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_wait_for, talk.around.budget)
            await trio.testing.wait_all_tasks_blocked(0.02)
            assert overdue(talk.session.waiting(now + 31), limits, now + 31) == "request_too_slow"
            nursery.cancel_scope.cancel()


async def _wait_for(budget: Budget) -> None:
    async with budget.hold(1):
        pass


async def test_only_waits_for_the_client_count_as_its_slowness() -> None:
    """Requests of others, the broker or the federation may keep a frame waiting much longer than its client may."""
    limits = Limits(frame_timeout=10)
    release = trio.Event()

    async def slow(call: Call, version: int, request: Message) -> Message:
        await release.wait()
        return {"topics": []}

    async with talking(two_clusters(), {METADATA: slow}, limits) as talk:
        await talk.client.send_all(metadata(1, 1) + metadata(1, 2)[:9])
        await trio.testing.wait_all_tasks_blocked(0.02)
        now = time.monotonic()
        for later in (0, 20, 40):
            assert overdue(talk.session.waiting(now + later), limits, now + later) is None
        release.set()
        await frame_of(talk.client)
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert overdue(talk.session.waiting(now + 41), limits, now + 41) is None
        assert overdue(talk.session.waiting(now + 50), limits, now + 50) is None
        assert overdue(talk.session.waiting(now + 52), limits, now + 52) == "request_too_slow"


async def test_a_large_produce_that_is_torn_tears_the_brokers_connection_too() -> None:
    """What has gone upstream must not be completed by another request."""
    async with talking(two_clusters()) as talk:
        broker = await asked(talk, fetch(11, 1))
        rows = [{"index": 0, "records": b"x" * 500_000}]
        data = {"acks": -1, "topic_data": [{"name": "orders", "partition_data": rows}]}
        await talk.client.send_all(request_frame(PRODUCE, 9, 2, "c", data)[:300_000])
        await talk.client.aclose()
        got = 0
        try:
            while piece := await broker.receive_some():
                got += len(piece)
        except trio.BrokenResourceError:
            pass
        assert got <= 300_000
        assert talk.around.metrics.refusals["truncated_request"] == 1


@pytest.mark.parametrize("size", [100, 70_000, 140_000, 3_000_000])
async def test_produce_requests_of_any_size_pass_byte_for_byte(size: int) -> None:
    async with talking(two_clusters()) as talk:
        for number, cluster_topic in enumerate(("orders", "orders")):
            rows = [{"index": 0, "records": bytes(range(256)) * (size // 256 + 1)}]
            data = {"acks": -1, "topic_data": [{"name": cluster_topic, "partition_data": rows}]}
            frame = request_frame(PRODUCE, 9, number, "c", data)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(talk.client.send_all, frame)
                assert await exactly(await talk.upstream(), len(frame)) == frame


async def test_a_produce_of_many_partitions_may_be_larger_than_the_scratch() -> None:
    async with talking(two_clusters()) as talk:
        rows = [{"index": number, "records": bytes([number]) * 20_000} for number in range(40)]
        data = {"acks": 0, "topic_data": [{"name": "orders", "partition_data": rows}]}
        frame = request_frame(PRODUCE, 9, 1, "c", data)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(talk.client.send_all, frame)
            assert await exactly(await talk.upstream(), len(frame)) == frame
        assert not talk.session.slots  # acks=0: nobody answers


@pytest.mark.parametrize(
    "data",
    [
        struct.pack(">ii", 2, 5) + bytes(10),
        struct.pack(">ii", -5, 5) + bytes(10),
        struct.pack(">ii", 2_000_000_000, 5) + bytes(10),
        struct.pack(">ii", 30, 6) + bytes(26),
        struct.pack(">ii", 30, 5) + b"\xff" * 26,
        struct.pack(">ii", 5, 5) + b"\1",
    ],
)
async def test_a_broker_that_breaks_the_protocol_ends_the_session(data: bytes) -> None:
    async with talking(two_clusters(), limits=Limits(max_response_bytes=1 << 20)) as talk:
        broker = await asked(talk, fetch(12, 5))
        await broker.send_all(data)
        assert await talk.client.receive_some() == b""
        assert dict(talk.around.metrics.refusals) == {"broker_protocol": 1}


@pytest.mark.parametrize("frame", [fetch(11, 1), fetch(13, 1)])
async def test_a_broker_that_is_away_ends_the_session_and_is_counted(frame: bytes) -> None:
    async with talking(two_clusters()) as talk:
        talk.broker_away = True
        await talk.client.send_all(frame)
        assert await talk.client.receive_some() == b""
        assert dict(talk.around.metrics.refusals) == {"broker_away": 1}


async def test_what_was_sent_before_the_end_is_still_executed_and_answered() -> None:
    async with talking(two_clusters()) as talk:
        broker = await asked(talk, fetch(11, 1))
        await talk.client.send_eof()
        assert await broker.receive_some() == b""
        await broker.send_all(answer(11, 1, [part(0, b"last")]))
        assert b"last" in await frame_of(talk.client)
        assert await talk.client.receive_some() == b""


async def test_a_thousand_requests_at_once_leave_others_their_turn() -> None:
    turns: list[int] = []
    others = 0

    async def note(call: Call, version: int, request: Message) -> Message:
        turns.append(others)
        return {"topics": []}

    async def look_around() -> None:
        nonlocal others
        while True:
            others += 1
            await trio.lowlevel.checkpoint()

    async with talking(two_clusters(), {METADATA: note}) as talk, trio.open_nursery() as nursery:
        await talk.client.send_all(b"".join(metadata(1, number) for number in range(1000)))
        nursery.start_soon(look_around)
        for _ in range(1000):
            await frame_of(talk.client)
        nursery.cancel_scope.cancel()
    assert max(turns.count(turn) for turn in set(turns)) < 20, "it handled many without stepping aside"


async def test_a_bug_in_a_handler_ends_its_session_only_and_is_counted() -> None:
    async def broken(call: Call, version: int, request: Message) -> Message:
        raise KeyError("a bug")

    async with talking(two_clusters(), {METADATA: broken}) as talk:
        await talk.client.send_all(metadata(1, 1))
        assert await talk.client.receive_some() == b""
        assert dict(talk.around.metrics.refusals) == {"internal_error": 1}
