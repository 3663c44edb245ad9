"""Fetch and Produce as the copy loop needs them: requests around bytes that are not copied, topics named by id."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from kafka_client.topics import FETCH, Fetched, Place, Topic, fetched
from kafka_wire.codec import Buffer, Message, decode, encode, read_uvarint, write_uvarint
from kafka_wire.frames import response_body

PRODUCE = 0
CLIENT_ID = b"kfed-replicator"
ACKS_ALL = -1
FLEXIBLE, FIRST_BY_ID, _IDS_FETCH = 9, 13, 13
_HEAD = struct.Struct(">hhih")
_ACKS = struct.Struct(">hi")
_I32 = struct.Struct(">i")
_TAGGED = struct.Struct(">Bi")  # no tags of the partition in front of it, index
_PART, _SMALL_PART = struct.Struct(">BiBBB"), struct.Struct(">BiBB")  # ... and a size of three bytes, of two
# Index, error, base offset, append time, log start, no errors of single records, no message, no tags.
_PLAIN = struct.Struct(">ihqqqbbb")
ANSWER_BYTES = _PLAIN.size  # an answer has at least so many for each partition
_FETCH = struct.Struct(">iiibii")  # wait, bytes at least and at most, isolation, session id and epoch
_WANTED = struct.Struct(">iiqiqib")  # index, leader epoch, offset, last epoch, log start, bytes, no tags
_FETCHED = struct.Struct(">ihqqq")  # index, error, high watermark, last stable offset, log start
_ABORTED = struct.Struct(">qqb")
_SESSION = struct.Struct(">ihi")  # throttle time, error, session id


def _request_head(key: int, version: int) -> bytearray:
    """Everything in front of the body; the correlation id is the connection's business."""
    return bytearray(_HEAD.pack(key, version, 0, len(CLIENT_ID)) + CLIENT_ID)


Batches = Mapping[Topic, Sequence[tuple[int, memoryview]]]  # (partition, batch) of each topic


def produce_request(version: int, by_topic: Batches, timeout_ms: int) -> tuple[bytearray, list[Buffer]]:
    """(head, parts) of a Produce with acks=all. At most one batch a partition: the caller sees to it.

    Two in one partition's records are refused with 87; a partition listed twice is answered with success, and only
    the last is stored.
    """
    out = _request_head(PRODUCE, version)
    if version < FLEXIBLE:
        data = [
            {"name": topic.name, "partition_data": [{"index": n, "records": batch} for n, batch in parts]}
            for topic, parts in by_topic.items()
        ]
        message: Message = {"acks": ACKS_ALL, "timeout_ms": timeout_ms, "topic_data": data}
        return out + encode("request", PRODUCE, version, message), []
    pieces: list[Buffer] = []
    out += b"\0\0"  # no tags, no transactional id
    out += _ACKS.pack(ACKS_ALL, timeout_ms)
    write_uvarint(out, len(by_topic) + 1)
    head = out
    pack, pack_small, add = _PART.pack, _SMALL_PART.pack, pieces.append
    for topic, parts in by_topic.items():
        if pieces:
            add(out := bytearray(2))  # no tags of the last partition and topic
        if version >= FIRST_BY_ID:
            out += topic.id
        else:
            name = topic.name.encode()
            write_uvarint(out, len(name) + 1)
            out += name
        write_uvarint(out, len(parts) + 1)
        first = True
        for partition, batch in parts:
            size = len(batch) + 1
            if 1 << 14 <= size < 1 << 21:
                some = pack(0, partition, size & 127 | 128, size >> 7 & 127 | 128, size >> 14)
            elif 1 << 7 <= size < 1 << 14:
                some = pack_small(0, partition, size & 127 | 128, size >> 7)
            else:
                long = bytearray(_TAGGED.pack(0, partition))
                write_uvarint(long, size)
                some = bytes(long)
            if first:
                out += some[1:]
                first = False
            else:
                add(some)
            add(batch)
    add(b"\0\0\0")  # no tags of partition, topic and request
    return head, pieces


def landed(version: int, frame: memoryview) -> list[tuple[bytes | str, list[tuple[int, int, int]]]] | None:
    """The topics of an answer where all went well, with (partition, base offset, log start); None for any other."""
    if version < FLEXIBLE or len(frame) < 6 or frame[4]:
        return None
    out: list[tuple[bytes | str, list[tuple[int, int, int]]]] = []
    try:
        topics, pos = read_uvarint(frame, 5)
        for _ in range(topics - 1):
            name: bytes | str
            if version >= FIRST_BY_ID:
                name, pos = bytes(frame[pos : pos + 16]), pos + 16
            else:
                size, pos = read_uvarint(frame, pos)
                name, pos = str(frame[pos : pos + size - 1], "utf-8"), pos + size - 1
            parts, pos = read_uvarint(frame, pos)
            end = pos + (parts - 1) * _PLAIN.size
            found: list[tuple[int, int, int]] = []
            for index, error, base, appended, start, one, two, three in _PLAIN.iter_unpack(frame[pos:end]):
                if error or appended >= 0 or one != 1 or two or three:
                    return None
                found.append((index, base, start))
            if frame[end]:
                return None
            out.append((name, found))
            pos = end + 1
    except (IndexError, struct.error):
        return None
    return out


class Produced(NamedTuple):
    """One partition's answer. `topic` is a name or an id."""

    topic: str | bytes
    partition: int
    error: int
    base_offset: int
    log_start: int
    message: str | None
    append_time: int = -1  # not -1: the topic has LogAppendTime


def produce_answer(version: int, frame: memoryview) -> list[Produced]:
    """The answers of a Produce response. DecodeError."""
    body = decode("response", PRODUCE, version, frame, response_body(PRODUCE, version, frame))
    key = "topic_id" if version >= FIRST_BY_ID else "name"
    return [
        Produced(
            topic[key],
            one["index"],
            one["error_code"],
            one["base_offset"],
            one.get("log_start_offset", -1),
            one.get("error_message"),
            one.get("log_append_time_ms", -1),
        )
        for topic in body["responses"]
        for one in topic["partition_responses"]
    ]


class Wanted(NamedTuple):
    """What is asked of one partition: an offset, the leader epoch of the batch in front of it (-1: unknown), bytes."""

    offset: int
    last_epoch: int
    max_bytes: int


@dataclass(slots=True)
class FetchSession:
    """An incremental fetch session (KIP-227) on one connection: only what changed is sent, both ways."""

    version: int
    id: int = 0
    epoch: int = 0
    sent: dict[Place, Wanted] = field(default_factory=dict)

    @property
    def by_id(self) -> bool:
        return self.version >= _IDS_FETCH

    def request(
        self,
        wanted: Mapping[Place, Wanted],
        *,
        max_wait_ms: int,
        min_bytes: int = 1,
        max_bytes: int = 64 << 20,
        committed: bool = True,
    ) -> bytearray:
        """The frame that asks for all of `wanted`, of which the session knows most."""
        whole = self.epoch == 0
        sent = self.sent
        ask = wanted if whole else {k: one for k, one in wanted.items() if sent.get(k) != one}
        gone = [] if whole else [place for place in sent if place not in wanted]
        if self.by_id and self.version >= 15:
            self.sent = dict(wanted)
            numbers = (max_wait_ms, min_bytes, max_bytes, int(committed), self.id, self.epoch)
            return self._quick_request(numbers, ask, gone)
        message = {
            "max_wait_ms": max_wait_ms,
            "min_bytes": min_bytes,
            "max_bytes": max_bytes,
            "isolation_level": int(committed),
            "session_id": self.id,
            "session_epoch": self.epoch,
            "topics": self._topics({place: _asked(place[1], one) for place, one in ask.items()}),
            "forgotten_topics_data": self._topics({place: place[1] for place in gone}),
        }
        self.sent = dict(wanted)
        flexible = b"\0" if self.version >= 12 else b""
        return _request_head(FETCH, self.version) + flexible + encode("request", FETCH, self.version, message)

    def _quick_request(self, numbers: tuple[int, ...], ask: Mapping[Place, Wanted], gone: Sequence[Place]) -> bytearray:
        out = _request_head(FETCH, self.version)
        out.append(0)  # no tags
        out += _FETCH.pack(*numbers)
        by_topic: dict[bytes, list[bytes]] = {}
        pack = _WANTED.pack
        for (topic, partition), one in ask.items():
            by_topic.setdefault(topic.id, []).append(pack(partition, -1, one[0], one[1], -1, one[2], 0))
        forgotten: dict[bytes, list[bytes]] = {}
        for topic, partition in gone:
            forgotten.setdefault(topic.id, []).append(_I32.pack(partition))
        for topics in (by_topic, forgotten):
            write_uvarint(out, len(topics) + 1)
            for topic_id, parts in topics.items():
                out += topic_id
                write_uvarint(out, len(parts) + 1)
                out += b"".join(parts)
                out.append(0)
        out += b"\1\0"  # no rack, no tags
        return out

    def _topics(self, places: Mapping[Place, object]) -> list[Message]:
        grouped: dict[Topic, list[object]] = {}
        for (topic, _), one in places.items():
            grouped.setdefault(topic, []).append(one)
        return [{"topic": topic.name, "topic_id": topic.id, "partitions": parts} for topic, parts in grouped.items()]

    def answer(self, frame: memoryview) -> tuple[int, list[Fetched]]:
        """(error, the partitions that have something to say). After an error the session begins anew. DecodeError."""
        quick = _quick_fetched(frame) if self.by_id else None
        if quick is not None:
            self.id, found = quick
            self.epoch = self.epoch % 0x7FFFFFFF + 1 if self.id else 0
            return 0, found
        body = decode("response", FETCH, self.version, frame, response_body(FETCH, self.version, frame))
        if body["error_code"]:
            self.reset()
            return body["error_code"], []
        self.id = body["session_id"]
        self.epoch = self.epoch % 0x7FFFFFFF + 1 if self.id else 0
        key = "topic_id" if self.by_id else "topic"
        return 0, [fetched(topic[key], one) for topic in body["responses"] for one in topic["partitions"]]

    def begin_anew(self) -> None:
        """The next request asks for everything in a new session, and ends this one: then everything is told again."""
        self.epoch = 0
        self.sent = {}

    def reset(self) -> None:
        self.id = self.epoch = 0
        self.sent = {}


def _asked(partition: int, one: Wanted) -> Message:
    return {
        "partition": partition,
        "fetch_offset": one.offset,
        "last_fetched_epoch": one.last_epoch,
        "partition_max_bytes": one.max_bytes,
    }


def _quick_fetched(frame: memoryview) -> tuple[int, list[Fetched]] | None:
    """(session id, what was fetched) of an answer of version 13 on, where nothing is wrong with it; otherwise None."""
    out: list[Fetched] = []
    try:
        _, error, session = _SESSION.unpack_from(frame, 5)
        if error or frame[4]:
            return None
        topics, pos = read_uvarint(frame, 15)
        for _ in range(topics - 1):
            topic_id = bytes(frame[pos : pos + 16])
            parts, pos = read_uvarint(frame, pos + 16)
            for _ in range(parts - 1):
                index, error, high, stable, start = _FETCHED.unpack_from(frame, pos)
                count, pos = read_uvarint(frame, pos + _FETCHED.size)
                aborted: list[tuple[int, int]] = []
                for _ in range(count - 1):
                    producer_id, first, tags = _ABORTED.unpack_from(frame, pos)
                    if tags:
                        return None
                    aborted.append((producer_id, first))
                    pos += _ABORTED.size
                size, pos = read_uvarint(frame, pos + 4)  # in front of it the preferred replica
                end = pos + max(size - 1, 0)
                if frame[end]:  # tags: a log that diverges, another leader
                    return None
                out.append(Fetched(topic_id, index, error, high, stable, start, aborted, frame[pos:end], None))
                pos = end + 1
            if frame[pos]:
                return None
            pos += 1
        if frame[pos]:
            return None  # where leaders are
    except (IndexError, struct.error):
        return None
    return session, out
