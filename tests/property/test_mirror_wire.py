"""The copy loop's own encoding and decoding against the codec, which follows the protocol's definitions."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from kafka_client.topics import FETCH, Topic
from kafka_wire.codec import Message, decode
from kafka_wire.frames import parse_request, response_frame
from replicator.wire import PRODUCE, FetchSession, Wanted, landed, produce_answer, produce_request

TOPICS = [Topic("orders", bytes(15) + b"\1"), Topic("bills-ünicode", bytes(15) + b"\2")]
PLACES = st.lists(st.tuples(st.sampled_from(TOPICS), st.integers(0, 300)), unique=True, max_size=8)


@settings(deadline=None)
@given(PLACES, st.integers(7, 13), st.data())
def test_produce_requests(places: list[tuple[Topic, int]], version: int, data: st.DataObject) -> None:
    batches = [(place, memoryview(data.draw(st.binary(min_size=1, max_size=300)))) for place in places]
    by_topic: dict[Topic, list[tuple[int, memoryview]]] = {}
    for (topic, partition), batch in batches:
        by_topic.setdefault(topic, []).append((partition, batch))
    head, parts = produce_request(version, by_topic, 1234)
    frame = b"".join([head, *parts])
    header = parse_request(frame, version >= 9)
    message = decode("request", PRODUCE, version, frame, header.body)
    assert (header.key, header.version, message["acks"], message["timeout_ms"]) == (PRODUCE, version, -1, 1234)
    key = "topic_id" if version >= 13 else "name"
    found = {
        (topic[key], one["index"]): bytes(one["records"])
        for topic in message["topic_data"]
        for one in topic["partition_data"]
    }
    assert found == {(t.id if version >= 13 else t.name, n): bytes(batch) for (t, n), batch in batches}


@settings(deadline=None)
@given(PLACES, st.integers(7, 13), st.data())
def test_produce_answers(places: list[tuple[Topic, int]], version: int, data: st.DataObject) -> None:
    topics: dict[Topic, list[dict[str, object]]] = {}
    expected = []
    for topic, partition in places:
        code = data.draw(st.sampled_from([0, 0, 0, 6, 45]))
        text = data.draw(st.sampled_from([None, "because"])) if code else None
        offset = data.draw(st.integers(-1, 1 << 60))
        appended = data.draw(st.sampled_from([-1, -1, 1 << 40]))
        one = {"index": partition, "error_code": code, "base_offset": offset, "log_start_offset": 3}
        one["log_append_time_ms"] = appended
        topics.setdefault(topic, []).append({**one, "error_message": text})
        name = topic.id if version >= 13 else topic.name
        expected.append((name, partition, code, offset, 3, text if version >= 8 else None, appended))
    message = {
        "responses": [{"name": t.name, "topic_id": t.id, "partition_responses": parts} for t, parts in topics.items()]
    }
    frame = memoryview(response_frame(PRODUCE, version, 5, message))[4:]
    quick = landed(version, frame)
    good = version >= 9 and not any(one[2] or one[6] >= 0 for one in expected)
    assert (quick is not None) == good
    if quick is not None:
        found = [(name, partition, base, start) for name, some in quick for partition, base, start in some]
        assert sorted(found, key=str) == sorted(((one[0], one[1], one[3], 3) for one in expected), key=str)
    assert sorted(map(tuple, produce_answer(version, frame)), key=str) == sorted(expected, key=str)


@settings(deadline=None)
@given(
    st.lists(st.dictionaries(st.tuples(st.sampled_from(TOPICS), st.integers(0, 4)), st.integers(0, 3)), max_size=8),
    st.integers(11, 18),
)
def test_a_fetch_session_tells_the_broker_everything(rounds: list[dict[tuple[Topic, int], int]], version: int) -> None:
    session = FetchSession(version)
    known: dict[tuple[object, int], int] = {}  # what the broker believes
    for number, wanted in enumerate(rounds):
        asked = {place: Wanted(offset, -1, 1 << 20) for place, offset in wanted.items()}
        frame = session.request(asked, max_wait_ms=5)
        header = parse_request(frame, version >= 12)
        message = decode("request", FETCH, version, frame, header.body)
        assert message["session_epoch"] == number % 5
        if message["session_epoch"] == 0:
            known.clear()
        key = "topic_id" if version >= 13 else "topic"
        for topic in message["topics"]:
            known.update({(topic[key], one["partition"]): one["fetch_offset"] for one in topic["partitions"]})
        for topic in message["forgotten_topics_data"]:
            for partition in topic["partitions"]:
                del known[topic[key], partition]
        assert known == {(t.id if version >= 13 else t.name, n): offset for (t, n), offset in wanted.items()}
        answer: Message = {"error_code": 71} if number % 5 == 4 else {"session_id": 9, "responses": []}
        error, found = session.answer(memoryview(bytearray(response_frame(FETCH, version, 1, answer)))[4:])
        assert (error, found) == (answer.get("error_code", 0), [])
