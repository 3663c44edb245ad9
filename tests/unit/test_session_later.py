"""Sessions whose answers are made later, or before their broker gives one: what the client sees keeps its order."""

from __future__ import annotations

import trio.testing

from kafka_wire.codec import Message
from kafka_wire.frames import request_frame, response_frame
from proxy.apis.contract import Call
from proxy.session.responses import nothing_fetched
from proxy.session.session import Kind, Slot
from tests.fixtures.calls import two_clusters
from tests.fixtures.sessions import Talk, exactly, frame_of, talking
from tests.unit.test_session import answer, asked, fetch, part

FETCH, METADATA, VERSIONS = 1, 3, 18


async def say(call: Call, version: int, request: Message) -> Message:
    return {"cluster_id": "x", "topics": []}


def later(talk: Talk, correlation: int) -> Slot:
    """As for a write that is held."""
    slot = Slot(Kind.LATER, METADATA, 9, correlation, "east")
    talk.session.push(slot)
    return slot


def made(correlation: int) -> bytes:
    return response_frame(METADATA, 9, correlation, {"cluster_id": "later", "topics": []})


def correlation_of(frame: bytes) -> int:
    return int.from_bytes(frame[:4], "big")


async def test_what_is_made_later_keeps_its_turn() -> None:
    """Before it an answer of the broker's, behind it one of the broker's that comes early, and one made here."""
    async with talking(two_clusters(), {METADATA: say}) as talk:
        broker = await asked(talk, fetch(11, 1))
        held = later(talk, 2)
        await asked(talk, fetch(11, 3))
        await talk.client.send_all(request_frame(METADATA, 9, 4, "c", {"topics": []}))
        await broker.send_all(answer(11, 1, [part(0, b"first")]) + answer(11, 3, [part(0, b"third")]))
        assert correlation_of(await frame_of(talk.client)) == 1
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert held is talk.session.first_owed() and not talk.session.client.writing_since
        talk.session.made(held, made(2))
        assert [correlation_of(await frame_of(talk.client)) for _ in range(3)] == [2, 3, 4]


async def test_questions_of_ours_are_answered_while_the_client_waits_for_what_is_made_later() -> None:
    """Otherwise what is made later would wait for them for ever."""
    async with talking(two_clusters(), {METADATA: say}) as talk:
        broker = await asked(talk, fetch(11, 1))
        await broker.send_all(answer(11, 1, [part(0, b"first")]))
        await frame_of(talk.client)
        held = later(talk, 2)
        slot = await talk.session.ask(VERSIONS, 0, {})
        size = len(request_frame(VERSIONS, 0, slot.correlation, "c", {}))
        await exactly(broker, size)
        await broker.send_all(response_frame(VERSIONS, 0, slot.correlation, {"error_code": 0, "api_keys": []}))
        assert slot.done is not None
        await slot.done.wait()
        assert slot.answer is not None
        talk.session.made(held, made(2))
        assert correlation_of(await frame_of(talk.client)) == 2


async def test_a_parked_fetch_is_answered_early_and_the_brokers_answer_thrown_away() -> None:
    async with talking(two_clusters(), {METADATA: say}) as talk:
        broker = await asked(talk, fetch(11, 1))
        slot = talk.session.slots[0]
        assert talk.session.cut(slot, nothing_fetched(slot))
        assert correlation_of(await frame_of(talk.client)) == 1
        # What is answered here need not wait for the broker, and what it says belongs to nobody.
        await talk.client.send_all(request_frame(METADATA, 9, 2, "c", {"topics": []}))
        assert correlation_of(await frame_of(talk.client)) == 2
        await asked(talk, fetch(11, 3))
        parked = answer(11, 1, [part(0, b"late" * 50_000)])
        await broker.send_all(parked + answer(11, 3, [part(0, b"new")]))
        frame = await frame_of(talk.client)
        assert correlation_of(frame) == 3 and b"new" in frame and b"late" not in frame


async def test_a_fetch_whose_answer_has_begun_to_arrive_is_not_cut() -> None:
    async with talking(two_clusters(), {}) as talk:
        broker = await asked(talk, fetch(11, 1))
        slot = talk.session.slots[0]
        whole = answer(11, 1, [part(0, b"r" * 100_000)])
        await broker.send_all(whole[:1000])
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert not talk.session.cut(slot, nothing_fetched(slot))
        await broker.send_all(whole[1000:])
        assert correlation_of(await frame_of(talk.client)) == 1
