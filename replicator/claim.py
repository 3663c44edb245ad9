"""Taking a unit over: an identity nobody else holds, the fence, the journal read, the target's tail scanned.

The order matters. The identity's id is in the registry before anything is written with it, so that no other mirror
takes our batches for somebody's. The fence is an aborted transaction over every partition of the unit and its part of
the journal; it is in force where its control record is in the log. What an older epoch had sent and is not in front of
that record will be refused.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import trio

from kafka_client import BrokerUnavailable, ClientError, ClusterClient, Refused
from kafka_client.cluster import TRANSACTION, backoff
from kafka_client.rights import DENIED, lacking, on_topic
from kafka_client.topics import EARLIEST, LATEST, LogReader, TopicInfo, describe, offsets
from kafka_wire.batches import walk
from kafka_wire.codec import Message
from kafka_wire.errors import ERROR
from kafka_wire.records import decode_records, fields_of, values_batch
from offset_sync import journal
from offset_sync.journal import Contents
from offset_sync.recovered import Found
from replicator.core import Identity
from replicator.wire import ACKS_ALL, PRODUCE

CREATE_TOPICS, INIT_PRODUCER_ID, ADD_PARTITIONS, END_TXN, DESCRIBE_CONFIGS = 19, 22, 24, 26, 32
BROKER, EXPIRATION = 4, "transactional.id.expiration.ms"
ADD_PARTITIONS_VERSION, END_TXN_VERSION = 3, 4  # later ones are for brokers, or raise the epoch once more (KIP-890)
TRANSACTION_TIMEOUT_MS = 60_000
FENCE_SECONDS = 60.0
SCAN_SECONDS = 600.0
_BUSY = {
    ERROR.CONCURRENT_TRANSACTIONS,
    ERROR.COORDINATOR_LOAD_IN_PROGRESS,
    ERROR.COORDINATOR_NOT_AVAILABLE,
    ERROR.NOT_COORDINATOR,
    ERROR.UNKNOWN_TOPIC_OR_PARTITION,
    ERROR.OPERATION_NOT_ATTEMPTED,
    ERROR.REQUEST_TIMED_OUT,
}


class Fenced(Exception):
    """Somebody else has taken this unit over meanwhile."""


@dataclass(slots=True)
class Tail:
    """A target partition as the scan found it. `end` is behind the fence's control record."""

    end: int
    batches: list[Found] = field(default_factory=list)


async def ensure_journal(target: ClusterClient) -> TopicInfo:
    """The journal's topic on the target, created where it does not exist. Raises Refused."""
    failures = 0
    while True:
        found = (await describe(target, [journal.TOPIC])).get(journal.TOPIC)
        if found is not None and len(found.partitions) >= journal.PARTITIONS:
            return found
        if found is None:
            configs = [{"name": name, "value": value} for name, value in journal.CONFIGS.items()]
            topic = {
                "name": journal.TOPIC,
                "num_partitions": journal.PARTITIONS,
                "replication_factor": -1,  # the cluster's default
                "configs": configs,
            }
            answer = await target.call(CREATE_TOPICS, {"topics": [topic], "timeout_ms": 10_000}, retry=True)
            one = answer["topics"][0]
            if one["error_code"] not in (0, ERROR.TOPIC_ALREADY_EXISTS):
                right = lacking(one["error_code"], on_topic("CREATE", journal.TOPIC))
                raise Refused(
                    f"{target.name}: creating {journal.TOPIC}{right}", one["error_code"], one["error_message"]
                )
        failures += 1
        if failures > 12:
            raise Refused(f"{target.name}: {journal.TOPIC} does not appear", ERROR.UNKNOWN_TOPIC_OR_PARTITION)
        await trio.sleep(backoff(failures))


async def read_registry(target: ClusterClient, *, expected: bool = True) -> dict[int, bytes]:
    """Every producer id that mirrors have ever used on this cluster, up to the registry's present end.

    Unless it is `expected` to exist, no registry is an empty one.
    """
    if not expected and journal.TOPIC not in await describe(target, [journal.TOPIC]):
        return {}
    end = (await offsets(target, journal.TOPIC, [journal.REGISTRY], LATEST))[journal.REGISTRY]
    contents = Contents()
    await _feed(target, journal.REGISTRY, contents, end=end)
    return contents.producers


async def _feed(
    target: ClusterClient, partition: int, contents: Contents, *, end: int = -1, fence: Identity | None = None
) -> None:
    """Read a partition of the journal up to an offset, or to the control record of `fence`."""
    position = (await offsets(target, journal.TOPIC, [partition], EARLIEST))[partition]
    if 0 <= end <= position:
        return
    reader = LogReader(target, journal.TOPIC, partition, position, seconds=SCAN_SECONDS)
    while True:
        part = await reader.next()
        for one in walk(part):
            position = one.next_offset
            if one.control:
                if fence is not None and one.producer_id == fence.producer_id and one.producer_epoch >= fence.epoch:
                    return
            elif one.records:
                pairs = (fields_of(record.body)[:2] for record in decode_records(part, one))
                contents.feed(pairs)
        if 0 <= end <= position:
            return


async def claim_identity(target: ClusterClient, transactional_id: str) -> Identity:
    """A higher epoch of the id's producer, or a new producer id where the old one has expired."""
    message = {
        "transactional_id": transactional_id,
        "transaction_timeout_ms": TRANSACTION_TIMEOUT_MS,
        "producer_id": -1,
        "producer_epoch": -1,
    }
    answer = await _transaction(target, transactional_id, INIT_PRODUCER_ID, message)
    return Identity(answer["producer_id"], answer["producer_epoch"])


async def register(target: ClusterClient, identity: Identity, owner: str) -> None:
    """Write the id into the registry, unless it is there: durable before this returns."""
    if identity.producer_id in await read_registry(target):
        return
    batch = values_batch([journal.producer_pair(identity.producer_id, owner)], int(time.time() * 1000))
    failures = 0
    while True:
        info = await ensure_journal(target)
        place = {"index": journal.REGISTRY, "records": memoryview(batch)}
        data = {"name": journal.TOPIC, "topic_id": info.topic.id, "partition_data": [place]}
        message = {"acks": ACKS_ALL, "timeout_ms": 10_000, "topic_data": [data]}
        code: int = ERROR.LEADER_NOT_AVAILABLE
        text = None
        leader = info.partitions[journal.REGISTRY].leader
        if leader >= 0:
            try:
                answer = await target.call(PRODUCE, message, broker=leader)
                one = answer["responses"][0]["partition_responses"][0]
                code, text = one["error_code"], one.get("error_message")
            except BrokerUnavailable as error:
                text = str(error)
        if not code:
            return
        failures += 1
        if failures > 10 or code in DENIED:
            right = lacking(code, on_topic("WRITE", journal.TOPIC))
            raise Refused(f"{target.name}: registering producer id {identity.producer_id}{right}", code, text)
        await trio.sleep(backoff(failures))  # twice the same key is harmless


async def fence(
    target: ClusterClient, transactional_id: str, identity: Identity, places: Mapping[str, Sequence[int]]
) -> None:
    """Write the identity's epoch into every partition; in force where its control record is.

    Raises:
        Fenced: the id was taken over by somebody else meanwhile.
    """
    message = {
        "v3_and_below_transactional_id": transactional_id,
        "v3_and_below_producer_id": identity.producer_id,
        "v3_and_below_producer_epoch": identity.epoch,
        "v3_and_below_topics": [{"name": name, "partitions": list(numbers)} for name, numbers in places.items()],
    }
    await _transaction(target, transactional_id, ADD_PARTITIONS, message, ADD_PARTITIONS_VERSION)
    ended = {
        "transactional_id": transactional_id,
        "producer_id": identity.producer_id,
        "producer_epoch": identity.epoch,
        "committed": False,
    }
    await _transaction(target, transactional_id, END_TXN, ended, END_TXN_VERSION)


async def _transaction(
    target: ClusterClient, transactional_id: str, key: int, message: Message, version: int | None = None
) -> Message:
    """A call to the id's coordinator, again while it is busy with the transaction before. All three may be repeated."""
    deadline = trio.current_time() + FENCE_SECONDS
    failures = 0
    while True:
        left = max(deadline - trio.current_time(), 0.1)
        try:
            answer = await target.call_coordinator(
                TRANSACTION, transactional_id, key, message, version, left, retry=True
            )
        except Refused as error:
            if error.code in DENIED:
                raise Refused(
                    f"{target.name}: API key {key}{_right(error.code, transactional_id, {})}", error.code
                ) from None
            raise
        codes = {answer.get("error_code", 0)} | {
            one["partition_error_code"]
            for topic in answer.get("results_by_topic_v3_and_below", ())
            for one in topic["results_by_partition"]
        }
        codes.discard(0)
        if not codes:
            return answer
        if codes & {ERROR.INVALID_PRODUCER_EPOCH, ERROR.PRODUCER_FENCED, ERROR.INVALID_PRODUCER_ID_MAPPING}:
            raise Fenced(f"{target.name}: {transactional_id} was taken over")
        # An abort whose answer was lost finds the transaction ended already.
        if key == END_TXN and codes == {ERROR.INVALID_TXN_STATE}:
            return answer
        if not codes <= _BUSY or trio.current_time() >= deadline:
            code = max(codes & DENIED or codes - _BUSY or codes)
            right = _right(code, transactional_id, answer)
            raise Refused(f"{target.name}: API key {key} for {transactional_id}{right}", code)
        failures += 1
        await trio.sleep(min(backoff(failures), 0.2))


def _right(code: int, transactional_id: str, answer: Message) -> str:
    """What the service lacks, where that is what an answer about its transaction says."""
    topics = [
        topic["name"]
        for topic in answer.get("results_by_topic_v3_and_below", ())
        if any(one["partition_error_code"] == code for one in topic["results_by_partition"])
    ]
    return lacking(code, on_topic("WRITE", topics[0]) if topics else f"WRITE on transactional id {transactional_id!r}")


async def id_expiration(target: ClusterClient) -> float:
    """Seconds after which the cluster forgets a transactional id that nobody uses; seven days where it does not say."""
    try:
        broker = next(iter(target.brokers or await target.refresh()))
        asked = {"resource_type": BROKER, "resource_name": str(broker), "configuration_keys": [EXPIRATION]}
        answer = await target.call(DESCRIBE_CONFIGS, {"resources": [asked]}, broker=broker)
        return next(int(one["value"]) for one in answer["results"][0]["configs"] if one["name"] == EXPIRATION) / 1000
    except (ClientError, StopIteration, IndexError, TypeError, ValueError):
        return 7 * 86400.0


async def read_journal(target: ClusterClient, partition: int, identity: Identity) -> Contents:
    """A partition of the journal up to our fence: nothing in it that concerns the unit can be added any more."""
    contents = Contents()
    await _feed(target, partition, contents, fence=identity)
    return contents


async def scan(target: ClusterClient, info: TopicInfo, partition: int, start: int, identity: Identity) -> Tail:
    """The batch headers of a target partition from `start` on, up to our fence. Raises Refused."""
    tail = Tail(start)
    reader = LogReader(target, info.topic.name, partition, start, seconds=SCAN_SECONDS, info=info)
    while True:
        part = await reader.next()
        for one in walk(part):
            if one.next_offset <= start:
                continue
            if one.control:
                if one.producer_id == identity.producer_id and one.producer_epoch >= identity.epoch:
                    tail.end = one.next_offset
                    return tail
                continue
            if not one.records:
                continue
            found = Found(one.base_offset, one.producer_id, one.producer_epoch, one.base_sequence, one.records)
            tail.batches.append(found)


async def ends(target: ClusterClient, topic: str, partitions: Sequence[int]) -> tuple[dict[int, int], dict[int, int]]:
    """(log starts, high watermarks) of target partitions."""
    return await offsets(target, topic, partitions, EARLIEST), await offsets(target, topic, partitions, LATEST)
