"""Any request of any API and version, in any pieces, whole, damaged or cut short: answered or refused, never stuck."""

from __future__ import annotations

import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kafka_wire.codec import DecodeError, Message, decode, is_flexible
from kafka_wire.frames import parse_request, request_frame, response_frame
from kafka_wire.schema import by_key
from proxy.apis.contract import Call, Handler
from proxy.apis.refusals import refusal
from proxy.apis.registry import HANDLERS
from tests.fixtures.calls import two_clusters
from tests.fixtures.sessions import Talk, frame_of, talking
from tests.fixtures.wire import SIZES, cut, messages

PRODUCE, FETCH, VERSIONS = 0, 1, 18
SASL = (17, 36)
KEYS = sorted((set(HANDLERS) | {PRODUCE, FETCH}) - set(SASL))
# What may become of a connection that sends anything at all.
REASONS = {"bad_frame_size", "unknown_api", "unknown_version", "malformed_request", "truncated_request"}


def refuses(key: int) -> Handler:
    async def handler(call: Call, version: int, request: Message) -> Message:
        return refusal(
            key, 0 if key == VERSIONS and version not in by_key("request")[key].versions else version, request, 35
        )

    return handler


FAKES = {key: refuses(key) for key in KEYS}


@st.composite
def requests(draw: st.DrawFn) -> tuple[int, int, Message]:
    key = draw(st.sampled_from(KEYS))
    known = by_key("request")[key].versions
    version = draw(st.integers(known.low, known.high))
    return key, version, draw(messages("request", key, version))


async def broker(talk: Talk) -> None:
    """Answers what is passed on with an error, as a broker would: in order, acks=0 not at all."""
    stream = await talk.upstream()
    while frame := await frame_of(stream):
        key, version = int.from_bytes(frame[:2], "big"), int.from_bytes(frame[2:4], "big")
        header = parse_request(frame, is_flexible(key, version))
        request = decode("request", key, version, frame, header.body)
        if key != PRODUCE or request["acks"]:
            await stream.send_all(response_frame(key, version, header.correlation, refusal(key, version, request, 35)))


async def send(talk: Talk, data: bytes, sizes: list[int]) -> None:
    try:
        for piece in cut(data, sizes):
            await talk.client.send_all(piece)
        await talk.client.send_eof()
    except trio.BrokenResourceError:
        pass  # refused half-way


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.lists(requests(), min_size=1, max_size=5), SIZES)
def test_every_request_is_answered_in_order_and_decodable(
    wanted: list[tuple[int, int, Message]], sizes: list[int]
) -> None:
    async def run() -> None:
        data, owed = b"", []
        for number, (key, version, request) in enumerate(wanted):
            data += request_frame(key, version, number, "fuzz", request)
            if key != PRODUCE or request["acks"]:
                owed.append((key, version, number))
        async with talking(two_clusters(), FAKES) as talk, trio.open_nursery() as nursery:
            nursery.start_soon(broker, talk)
            nursery.start_soon(send, talk, data, sizes)
            for key, version, number in owed:
                frame = await frame_of(talk.client)
                assert int.from_bytes(frame[:4], "big") == number, f"api {key} v{version}"
                decode("response", key, version, frame, 5 if key != VERSIONS and is_flexible(key, version) else 4)
            assert await talk.client.receive_some() == b""
            assert not talk.around.metrics.refusals
            nursery.cancel_scope.cancel()

    trio.run(run)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(requests(), SIZES, st.data())
def test_damaged_requests_end_the_session_and_nothing_else(
    wanted: tuple[int, int, Message], sizes: list[int], data: st.DataObject
) -> None:
    key, version, request = wanted
    whole = bytearray(request_frame(key, version, 1, "fuzz", request))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(4, len(whole) - 1))
        whole[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    if data.draw(st.booleans()):
        whole = whole[: data.draw(st.integers(0, len(whole)))]
    if data.draw(st.booleans()):
        whole[:4] = (len(whole) - 4 & 0x7FFFFFFF).to_bytes(4, "big")  # framed right, wrong inside

    async def run() -> None:
        async with talking(two_clusters(), FAKES) as talk, trio.open_nursery() as nursery:
            nursery.start_soon(_tolerant, talk)
            nursery.start_soon(send, talk, bytes(whole), sizes)
            try:
                while await talk.client.receive_some():
                    pass
            except trio.BrokenResourceError:
                pass
            assert set(talk.around.metrics.refusals) <= REASONS
            nursery.cancel_scope.cancel()

    trio.run(run)


async def _tolerant(talk: Talk) -> None:
    """A broker that is asked something else than it expects closes the connection."""
    try:
        await broker(talk)
    except DecodeError:
        await (await talk.upstream()).aclose()


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200), SIZES)
def test_garbage_ends_the_session(data: bytes, sizes: list[int]) -> None:
    async def run() -> None:
        async with talking(two_clusters(), FAKES) as talk, trio.open_nursery() as nursery:
            nursery.start_soon(_tolerant, talk)
            nursery.start_soon(send, talk, data, sizes)
            try:
                while await talk.client.receive_some():
                    pass
            except trio.BrokenResourceError:
                pass
            assert set(talk.around.metrics.refusals) <= REASONS
            nursery.cancel_scope.cancel()

    trio.run(run)
