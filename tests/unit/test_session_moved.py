"""Topics that have moved, through one session: patched on the way in, translated in turn on the way out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pytest
import trio
import trio.testing

from kafka_wire.batches import Batch, intact, walk
from kafka_wire.codec import Message, decode
from kafka_wire.frames import parse_request, request_frame, response_frame
from kafka_wire.records import Record, body_of, decode_records, encode_batch
from metadata_service.models import PlacementEpoch
from metadata_service.view import ServedTopic, View
from offset_sync.guard import Verdict
from offset_sync.table import Table
from proxy.apis import data, translation
from tests.fixtures.calls import served, uuid, view_of
from tests.fixtures.sessions import Talk, exactly, frame_of, talking

PRODUCE, FETCH = 0, 1
PLACEMENT = 2
EPOCH = PLACEMENT << 20
LARGE = 300_000


def moved_view() -> View:
    """`orders` (logical id 9, here 11) was on east, went to west, and is back; `plain` has always been here."""
    timeline = (
        PlacementEpoch(cluster="east", topic_id=uuid(11).hex()),
        PlacementEpoch(cluster="west", topic_id=uuid(12).hex(), first={0: 5, 1: 5}),
        PlacementEpoch(cluster="east", topic_id=uuid(11).hex(), first={0: 10, 1: 10}, tag_producers=True),
    )
    topic = served("orders", "east", 9, 11, timeline=timeline)
    special = ServedTopic(topic.name, topic.id, topic.cluster, topic.physical_id, True, topic.record)
    return view_of([special, served("plain", "east", 13, 13)])


class Tables:
    """Logical 0 to 4 and 7 to 9 lie at 1 to 5 and 6 to 8, 9 is foreign; own from 10 on at 10. `known`: duplicates."""

    def __init__(self) -> None:
        self.made = Table()
        self.made.append(0, 1, 5)
        self.made.append(7, 6, 3)
        self.made.open(10, 10)
        self.known: dict[int, int] = {}

    def table(self, topic: ServedTopic, partition: int) -> Table | None:
        return self.made

    async def arrived(self, wanted: object) -> None:
        pass

    def guarded(self, cluster: str, topic: str, partition: int) -> bool:
        return bool(self.known)

    def judge(self, cluster: str, topic: str, partition: int, batch: Batch) -> Verdict:
        found = self.known.get(batch.base_sequence)
        return Verdict("unknown") if found is None else Verdict("duplicate", found)

    async def ready(self, migration: object) -> None:
        pass


@pytest.fixture(autouse=True)
def tables() -> Iterator[Tables]:
    made = Tables()
    translation.install(made, made)
    yield made
    translation.install(None)


def batch(first: int, count: int, size: int = 5, **more: int) -> bytes:
    records = [Record(first + n, 5, 0, body_of(None, b"%d" % (first + n) + b"." * size)) for n in range(count)]
    return bytes(encode_batch(records, leader_epoch=3, **more))  # type: ignore[arg-type]


def fetch(version: int, correlation: int, topics: Iterable[str] = ("orders",), epoch: int = 0) -> bytes:
    ids = {"orders": 9, "plain": 13}
    part = {"partition": 0, "fetch_offset": 3, "current_leader_epoch": -1, "partition_max_bytes": 1 << 20}
    asked = [{"topic": one, "topic_id": uuid(ids[one]), "partitions": [part]} for one in topics]
    return request_frame(
        FETCH, version, correlation, "c", {"max_wait_ms": 1, "topics": asked, "session_id": 7, "session_epoch": epoch}
    )


def answered(version: int, correlation: int, records: bytes, name: str = "orders") -> bytes:
    part = {
        "partition_index": 0,
        "high_watermark": 20,
        "last_stable_offset": 15,
        "log_start_offset": 0,
        "aborted_transactions": [{"producer_id": 7, "first_offset": 5}],
        "records": records,
        "preferred_read_replica": -1,
    }
    topic = {"topic": name, "topic_id": uuid(11 if name == "orders" else 13), "partitions": [part]}
    return response_frame(FETCH, version, correlation, {"responses": [topic], "session_id": 7})


def decoded(key: int, kind: str, version: int, frame: bytes) -> Message:
    if kind == "request":
        return decode("request", key, version, frame, parse_request(frame, version >= (12 if key else 9)).body)
    return decode("response", key, version, frame, 5 if version >= (12 if key else 9) else 4)


def told(message: Message) -> list[tuple[int, bytes]]:
    (topic,) = message["responses"]
    (part,) = topic["partitions"]
    records = part["records"]
    return [(one.offset, bytes(one.body)) for each in walk(records) for one in decode_records(records, each)]


async def through(talk: Talk, request: bytes, answer: bytes, cut: int) -> tuple[bytes, bytes]:
    """(what the client gets, what the broker was asked); the answer arrives in two pieces."""
    await talk.client.send_all(request)
    broker = await talk.upstream()
    asked = (await exactly(broker, len(request)))[4:]
    got: list[bytes] = []
    async with trio.open_nursery() as nursery:

        async def read() -> None:
            got.append(await frame_of(talk.client))

        nursery.start_soon(read)
        await broker.send_all(answer[:cut])
        await trio.testing.wait_all_tasks_blocked(0.001)
        await broker.send_all(answer[cut:])
    return got[0], asked


@pytest.mark.parametrize("size", [5, LARGE])
@pytest.mark.parametrize("cut", [8, 60, 100_000])
@pytest.mark.parametrize("version", [4, 11, 12, 13, 17])
async def test_a_fetch_is_asked_and_answered_in_the_right_offsets(version: int, cut: int, size: int) -> None:
    plain = batch(1, 5, size) + batch(6, 3) + batch(10, 3)
    mixed = batch(1, 5) + batch(5, 3) + batch(9, 1, size) + batch(10, 3, size) + batch(13, 2)[:-5]
    for records, wanted in ((plain, (1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12)), (mixed, (*range(1, 8), 10, 11, 12))):
        async with talking(moved_view(), {FETCH: data.fetch}) as talk:
            got, was_asked = await through(talk, fetch(version, 5), answered(version, 5, records), cut)
            message = decoded(FETCH, "response", version, got)
            asked = decoded(FETCH, "request", version, was_asked)["topics"][0]
            assert asked.get("topic_id", uuid(11)) == uuid(11)
            assert asked["partitions"][0]["fetch_offset"] == 4
            part = message["responses"][0]["partitions"][0]
            logical = {1: 0, 2: 1, 3: 2, 4: 3, 5: 4, 6: 7, 7: 8, 8: 9, 10: 10, 11: 11, 12: 12}
            found = told(message)
            if records is mixed:  # 5 lies in two batches there
                found = sorted(set(found))
            assert [offset for offset, _ in found] == [logical[n] for n in wanted]
            assert {one.leader_epoch for one in walk(part["records"])} == {EPOCH | 3}
            assert (part["high_watermark"], part["last_stable_offset"]) == (20, 15)
            assert part["aborted_transactions"] == [{"producer_id": 7, "first_offset": 4}]
            assert message["responses"][0].get("topic_id", uuid(9)) == uuid(9)


async def test_what_is_in_a_fetch_session_is_translated_though_the_request_does_not_name_it() -> None:
    async with talking(moved_view(), {FETCH: data.fetch}) as talk:
        for correlation, topics in ((5, ["plain", "orders"]), (6, []), (7, ["plain"])):
            frame, _ = await through(
                talk, fetch(13, correlation, topics, correlation - 5), answered(13, correlation, batch(6, 3)), 9
            )
            assert [offset for offset, _ in told(decoded(FETCH, "response", 13, frame))] == [7, 8, 9]
        frame, _ = await through(talk, fetch(13, 8, [], 3), answered(13, 8, batch(6, 3), "plain"), 9)
        assert [offset for offset, _ in told(decoded(FETCH, "response", 13, frame))] == [6, 7, 8]


def produce(version: int, correlation: int, records: bytes, transactional_id: str | None = None) -> bytes:
    rows = [{"index": 0, "records": records}]
    named = [{"name": "orders", "topic_id": uuid(9), "partition_data": rows}]
    message = {"transactional_id": transactional_id, "acks": -1, "timeout_ms": 9, "topic_data": named}
    return request_frame(PRODUCE, version, correlation, "c", message)


def stored(version: int, correlation: int, offset: int) -> bytes:
    part = {"index": 0, "base_offset": offset, "log_start_offset": 4}
    topic = {"name": "orders", "topic_id": uuid(11), "partition_responses": [part]}
    return response_frame(PRODUCE, version, correlation, {"responses": [topic]})


@pytest.mark.parametrize("size", [5, LARGE])
@pytest.mark.parametrize("version", [3, 8, 9, 12, 13])
async def test_writes_are_pipelined_with_their_producers_told_apart(version: int, size: int) -> None:
    async with talking(moved_view(), {PRODUCE: data.produce}) as talk:
        sent = [batch(0, 1, size, producer_id=5, producer_epoch=0, base_sequence=n) for n in range(3)]
        frames = [produce(version, n, one) for n, one in enumerate(sent)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(talk.client.send_all, b"".join(frames))
            broker = await talk.upstream()
            for frame in frames:  # all of them before the first is answered
                request = decoded(PRODUCE, "request", version, (await exactly(broker, len(frame)))[4:])
                (topic,) = request["topic_data"]
                assert topic.get("topic_id", uuid(11)) == uuid(11)
                records = topic["partition_data"][0]["records"]
                (one,) = walk(records)
                assert one.producer_id == 5 + (PLACEMENT << 52) and intact(records)
        await broker.send_all(b"".join(stored(version, n, 10 + n) for n in range(3)))
        for n in range(3):
            answer = decoded(PRODUCE, "response", version, await frame_of(talk.client))
            (topic,) = answer["responses"]
            (part,) = topic["partition_responses"]
            assert (part["error_code"], part["base_offset"]) == (0, 10 + n)
            assert topic.get("topic_id", uuid(9)) == uuid(9) and part.get("log_start_offset", 3) == 3


async def test_a_damaged_batch_stays_damaged() -> None:
    async with talking(moved_view(), {PRODUCE: data.produce}) as talk:
        damaged = bytearray(batch(0, 1, producer_id=5, producer_epoch=0, base_sequence=0))
        damaged[-1] ^= 1
        frame = produce(9, 1, bytes(damaged))
        await talk.client.send_all(frame)
        request = decoded(PRODUCE, "request", 9, (await exactly(await talk.upstream(), len(frame)))[4:])
        assert not intact(request["topic_data"][0]["partition_data"][0]["records"])


async def test_a_duplicate_succeeds_in_its_turn_and_is_not_sent_again(tables: Tables) -> None:
    tables.known = {3: 8}  # sequence 3 was stored elsewhere, at logical offset 8
    async with talking(moved_view(), {PRODUCE: data.produce}) as talk:
        first, again = (batch(0, 1, producer_id=5, producer_epoch=0, base_sequence=n) for n in (4, 3))
        await talk.client.send_all(produce(9, 1, first) + produce(9, 2, again))
        broker = await talk.upstream()
        await exactly(broker, len(produce(9, 1, first)))
        await trio.testing.wait_all_tasks_blocked(0.001)
        await broker.send_all(stored(9, 1, 10))
        offsets = []
        for _ in range(2):
            answer = decoded(PRODUCE, "response", 9, await frame_of(talk.client))
            offsets.append(answer["responses"][0]["partition_responses"][0]["base_offset"])
        assert offsets == [10, 8]
