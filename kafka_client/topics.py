"""Topics as Metadata and ListOffsets show them, and reading a log from one offset on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import trio

from kafka_client.cluster import ClusterClient, backoff
from kafka_client.failures import BrokerUnavailable, Refused
from kafka_client.rights import lacking, on_topic
from kafka_wire.batches import tail
from kafka_wire.codec import Message
from kafka_wire.errors import ERROR

FETCH, LIST_OFFSETS, OFFSET_FOR_LEADER_EPOCH, DELETE_RECORDS = 1, 2, 23, 21
LATEST, EARLIEST = -1, -2
READ_BYTES = 8 << 20
RETRIABLE = frozenset(
    {
        ERROR.UNKNOWN_TOPIC_OR_PARTITION,
        ERROR.LEADER_NOT_AVAILABLE,
        ERROR.NOT_LEADER_OR_FOLLOWER,
        ERROR.REPLICA_NOT_AVAILABLE,
        ERROR.OFFSET_NOT_AVAILABLE,
        ERROR.FENCED_LEADER_EPOCH,
        ERROR.UNKNOWN_LEADER_EPOCH,
        ERROR.KAFKA_STORAGE_ERROR,
    }
)


class Topic(NamedTuple):
    """A topic on one cluster. Where the broker's version allows it is named by id, so that one created anew is seen."""

    name: str
    id: bytes


Place = tuple[Topic, int]


class Fetched(NamedTuple):
    """One partition's answer. `records` is writable and holds whatever was sent, perhaps an incomplete batch.

    `diverging` is (epoch, end offset) where the log before the asked offset is not what it was.
    """

    topic: str | bytes
    partition: int
    error: int
    high_watermark: int
    stable: int
    log_start: int
    aborted: list[tuple[int, int]]
    records: memoryview
    diverging: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class PartitionInfo:
    leader: int  # -1: none at the moment
    leader_epoch: int
    replicas: int = 1


@dataclass(frozen=True, slots=True)
class TopicInfo:
    topic: Topic
    partitions: Mapping[int, PartitionInfo]


async def describe(client: ClusterClient, names: Sequence[str]) -> dict[str, TopicInfo]:
    """Those of the topics that exist. Raises as `ClusterClient.metadata`; Refused where access is denied."""
    answer = await client.metadata(names)
    out = {}
    for one in answer["topics"]:
        code = one["error_code"]
        if code == ERROR.UNKNOWN_TOPIC_OR_PARTITION:
            continue
        if code not in (0, ERROR.LEADER_NOT_AVAILABLE):
            right = lacking(code, on_topic("DESCRIBE", one["name"]))
            raise Refused(f"{client.name}: topic {one['name']!r}{right}", code)
        partitions = {
            part["partition_index"]: PartitionInfo(
                part["leader_id"], part.get("leader_epoch", -1), max(len(part.get("replica_nodes") or ()), 1)
            )
            for part in one["partitions"]
        }
        out[one["name"]] = TopicInfo(Topic(one["name"], one.get("topic_id", bytes(16))), partitions)
    return out


async def offsets(
    client: ClusterClient, topic: str, partitions: Iterable[int], timestamp: int, *, committed: bool = False
) -> dict[int, int]:
    """Where logs begin (EARLIEST) or end (LATEST; `committed`: the last stable offset). Follows moving leaders.

    Raises:
        Refused, BrokerUnavailable: after about ten seconds without an answer from a leader.
    """
    out: dict[int, int] = {}
    waiting = set(partitions)
    failures = 0
    while waiting:
        found = (await describe(client, [topic])).get(topic)
        error = ERROR.UNKNOWN_TOPIC_OR_PARTITION
        by_leader: dict[int, list[int]] = {}
        for number in sorted(waiting):
            if found is not None and number in found.partitions and found.partitions[number].leader >= 0:
                by_leader.setdefault(found.partitions[number].leader, []).append(number)
        for leader, numbers in by_leader.items():
            asked = [{"partition_index": number, "timestamp": timestamp} for number in numbers]
            # -1: a consumer; a replica would be told the log's very end.
            message = {
                "replica_id": -1,
                "isolation_level": int(committed),
                "topics": [{"name": topic, "partitions": asked}],
            }
            try:
                answer = await client.call(LIST_OFFSETS, {**message, "timeout_ms": 5000}, broker=leader)
            except BrokerUnavailable:
                continue
            for one in answer["topics"][0]["partitions"]:
                if not one["error_code"]:
                    out[one["partition_index"]] = one["offset"]
                    waiting.discard(one["partition_index"])
                elif one["error_code"] not in RETRIABLE:
                    right = lacking(one["error_code"], on_topic("DESCRIBE", topic))
                    raise Refused(
                        f"{client.name}: offsets of {topic}-{one['partition_index']}{right}", one["error_code"]
                    )
                else:
                    error = ERROR(one["error_code"])
        if waiting:
            failures += 1
            if failures > 8:
                raise Refused(f"{client.name}: offsets of {topic}-{min(waiting)}", error)
            await trio.sleep(backoff(failures))
    return out


def fetched(topic: str | bytes, one: Message) -> Fetched:
    """One partition of a decoded Fetch response."""
    diverging = one.get("diverging_epoch")
    records = one["records"]
    return Fetched(
        topic,
        one["partition_index"],
        one["error_code"],
        one["high_watermark"],
        one["last_stable_offset"],
        one["log_start_offset"],
        [(aborted["producer_id"], aborted["first_offset"]) for aborted in one["aborted_transactions"] or ()],
        records if records is not None else memoryview(bytearray()),
        (diverging["epoch"], diverging["end_offset"]) if diverging and diverging["epoch"] >= 0 else None,
    )


class LogReader:
    """Reads one log from an offset on: whole batches, aborted and control batches included, only what is replicated."""

    def __init__(
        self,
        client: ClusterClient,
        topic: str,
        partition: int,
        offset: int,
        *,
        seconds: float,
        committed: bool = False,
        read_bytes: int = READ_BYTES,
        info: TopicInfo | None = None,
    ) -> None:
        """`seconds` is the time for all of it, `read_bytes` about the size of one answer.

        `info` is what is known of the topic already.

        With `committed` it ends at the last stable offset, and `aborted` are the aborted transactions of what was read
        last, as (producer id, first offset).
        """
        self.offset = offset
        self.committed = committed
        self.aborted: list[tuple[int, int]] = []
        self._read_bytes = read_bytes
        self._client = client
        self._topic = topic
        self._partition = partition
        self._deadline = trio.current_time() + seconds
        self._info = info
        self._failures = 0

    async def next(self, wait_ms: int = 100) -> memoryview:
        """The next batches; none where the log ends and nothing came in time. Follows moving leaders.

        Raises:
            Refused: the leader refused for good, or the time is over.
        """
        while True:
            code = int(ERROR.LEADER_NOT_AVAILABLE)
            if self._info is None:
                self._info = (await describe(self._client, [self._topic])).get(self._topic)
            info = self._info.partitions.get(self._partition) if self._info is not None else None
            if self._info is not None and info is not None and info.leader >= 0:
                place = (self._info.topic, self._partition)
                try:
                    answer = await self._once(info.leader, place, wait_ms)
                except BrokerUnavailable:
                    pass
                else:
                    code = answer.error
                    if not code:
                        self._failures = 0
                        return self._take(answer)
            where = f"{self._client.name}: reading {self._topic}-{self._partition} at {self.offset}"
            if code not in RETRIABLE:
                raise Refused(where + lacking(code, on_topic("READ", self._topic)), code)
            if trio.current_time() > self._deadline:
                raise Refused(where, ERROR.REQUEST_TIMED_OUT)
            self._info = None
            self._failures += 1
            await trio.sleep(backoff(self._failures))

    def _take(self, answer: Fetched) -> memoryview:
        part, last = tail(answer.records)
        before = self.offset
        if last is not None:
            self.offset = max(self.offset, last.next_offset)
        if self.offset == before and trio.current_time() > self._deadline:
            where = f"{self._client.name}: {self._topic}-{self._partition} ends at {self.offset}"
            raise Refused(where, ERROR.REQUEST_TIMED_OUT)
        self.aborted = answer.aborted
        return part

    async def _once(self, leader: int, place: Place, wait_ms: int) -> Fetched:
        topic, partition = place
        asked = {"partition": partition, "fetch_offset": self.offset, "partition_max_bytes": self._read_bytes}
        message = {
            "max_wait_ms": wait_ms,
            "min_bytes": 1,
            "max_bytes": self._read_bytes,
            "isolation_level": int(self.committed),
            "session_epoch": -1,
            "topics": [{"topic": topic.name, "topic_id": topic.id, "partitions": [asked]}],
        }
        answer = await self._client.call(FETCH, message, broker=leader, answer_bytes=2 * self._read_bytes)
        if answer.get("error_code"):
            raise Refused(f"{self._client.name}: Fetch", answer["error_code"])
        return fetched(topic.name, answer["responses"][0]["partitions"][0])


async def delete_records(client: ClusterClient, topic: str, leader: int, before: Mapping[int, int]) -> dict[int, int]:
    """DeleteRecords at one leader: partition -> error code."""
    parts = [{"partition_index": number, "offset": offset} for number, offset in before.items()]
    message = {"topics": [{"name": topic, "partitions": parts}], "timeout_ms": 5000}
    answer = await client.call(DELETE_RECORDS, message, broker=leader)
    return {one["partition_index"]: one["error_code"] for one in answer["topics"][0]["partitions"]}
