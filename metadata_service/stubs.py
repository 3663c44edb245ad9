"""Stubs: empty, closed topics on a group's home with exactly the partition count of the topic they stand in for.

A stub is recorded before it is created and again with its id once the cluster has it. Whoever finds a half-made one
finishes it. Every step may be done twice.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
import trio

from kafka_client import ClientError, ClusterClient
from kafka_wire.codec import Message
from kafka_wire.errors import ERROR, error_name
from metadata_service.asking import topics_by_name
from metadata_service.failures import StubRefused, Undecided
from metadata_service.models import StubRecord, TopicRecord, stub_key
from metadata_service.operations.gates import CLOSED
from metadata_service.records import settle
from metadata_service.store.clock import Backoff
from metadata_service.store.contract import Store
from metadata_service.view import PhysicalTopic
from runtime import logging

log = logging.get(__name__)

CREATE_TOPICS, DELETE_TOPICS, DESCRIBE_CONFIGS, CREATE_PARTITIONS = 19, 20, 32, 37
TIMEOUT = 10.0
DESCRIBED_AT_ONCE = 200


def _creation(topic: str, partitions: int) -> Message:
    configs = [{"name": name, "value": value} for name, value in CLOSED.items()]
    one = {
        "name": topic,
        "num_partitions": partitions,
        "replication_factor": -1,
        "assignments": [],
        "configs": configs,
    }
    return {"topics": [one], "timeout_ms": int(TIMEOUT * 1000), "validate_only": False}


async def make_stub(
    store: Store, client: ClusterClient, record: StubRecord | None, topic: TopicRecord, wanted: int | None = None
) -> int:
    """Make or expand the stub of a topic on the client's cluster until it has `wanted` partitions (as the topic itself)
    that every broker of the cluster knows. `record` is what the view shows. Returns the store revision that shows the
    result.

    A stub with more partitions is left as it is: its topic is just being expanded, or that has failed, and there may be
    positions in it.

    Raises:
        StubRefused: an unrelated topic of that name with another partition count is there, or the cluster refuses.
        Undecided: the cluster does not answer, or does not get there, in time.
        StoreError: it could not be recorded.
    """
    return await _make(store, client, record, topic, topic.partitions if wanted is None else wanted)


def strange(record: StubRecord, topic: TopicRecord) -> bool:
    """Whether somebody else's topic stands in: neither made for it, nor its copy, nor where it was served before."""
    ours = {one.topic_id for one in topic.timeline if one.cluster == record.cluster}
    return record.borrowed and not record.mirrored and record.topic_id not in ours


async def _make(
    store: Store, client: ClusterClient, record: StubRecord | None, served: TopicRecord, wanted: int
) -> int:
    topic, stands_for, cluster = served.name, served.id, client.name
    key = stub_key(cluster, topic)
    present = (await topics_by_name(client, [topic])).get(topic)
    if record is None:
        borrowed = present is not None
        if present is not None and len(present.partitions) != wanted:
            raise StubRefused(
                cluster,
                topic,
                f"another topic of that name is there, with {len(present.partitions)} partitions instead of {wanted}",
            )
        intent = StubRecord(
            topic=topic, cluster=cluster, topic_id="", partitions=wanted, borrowed=borrowed, stands_for=stands_for
        )
        settled = await settle(store, key, StubRecord, lambda now: intent if now is None else now)
        assert settled.value is not None
        record = settled.value
    former = record.stands_for not in ("", stands_for) and not record.borrowed
    if present is not None and former and record.topic_id in ("", present.id.hex()):
        # It stood for a former topic of this name: what was committed to that one is void.
        await delete_stub(client, record)
        await gone_everywhere(client, topic)
        present = None
    if present is None:
        await _create(client, topic, wanted)
    elif len(present.partitions) < wanted:
        if strange(record, served):
            raise StubRefused(cluster, topic, f"another topic of that name is used, and has not {wanted} partitions")
        await _expand(client, topic, wanted)
    found = await known_everywhere(client, topic, wanted)
    if len(found.partitions) > wanted and strange(record, served):
        raise StubRefused(cluster, topic, f"another topic of that name is used, and has {len(found.partitions)}")

    def finished(now: StubRecord | None) -> StubRecord:
        base = now or StubRecord(topic=topic, cluster=cluster, topic_id="", partitions=0)
        return msgspec.structs.replace(
            base, topic_id=found.id.hex(), partitions=len(found.partitions), stands_for=stands_for
        )

    return (await settle(store, key, StubRecord, finished)).revision


def serves(record: StubRecord | None, topic: TopicRecord) -> bool:
    """Whether a stub can stand in for the topic as both are recorded."""
    fitted = record is not None and not strange(record, topic)
    return (
        record is not None
        and bool(record.topic_id)
        and record.stands_for in ("", topic.id)
        and (record.partitions == topic.partitions or (fitted and record.partitions > topic.partitions))
    )


async def known_everywhere(
    client: ClusterClient, topic: str, partitions: int, *, timeout: float = TIMEOUT
) -> PhysicalTopic:
    """Wait until every broker that answers knows `topic` with at least `partitions` partitions, all with leaders.

    Raises:
        Undecided: not within `timeout` seconds.
    """
    backoff = Backoff(0.01, 0.25)
    newest: PhysicalTopic | None = None
    with trio.move_on_after(timeout):
        while True:
            try:
                brokers = await client.refresh(timeout)
                known = [await _at(client, topic, number) for number in brokers]
            except ClientError as error:
                raise Undecided(client.name, str(error)) from error
            answered = [one for one in known if one is not _SILENT]
            if answered and all(_complete(one, partitions) for one in answered):
                newest = answered[0]
                assert newest is not None
                return newest
            await backoff.pause()
    raise Undecided(client.name, f"not every broker knows topic {topic!r} with {partitions} partitions")


async def gone_everywhere(client: ClusterClient, topic: str, *, timeout: float = TIMEOUT) -> None:
    """Wait until no broker that answers knows `topic`. Raises Undecided: not within `timeout` seconds."""
    backoff = Backoff(0.01, 0.25)
    with trio.move_on_after(timeout):
        while True:
            if not any(one not in (None, _SILENT) for one in [await _at(client, topic, n) for n in client.brokers]):
                return
            await backoff.pause()
    raise Undecided(client.name, f"topic {topic!r} is still known")


_SILENT = PhysicalTopic("", b"", False, ())


async def _at(client: ClusterClient, topic: str, broker: int) -> PhysicalTopic | None:
    try:
        return (await topics_by_name(client, [topic], broker=broker, timeout=1.0)).get(topic)
    except Undecided:
        return _SILENT  # a broker that is away cannot be the coordinator


def _complete(topic: PhysicalTopic | None, partitions: int) -> bool:
    return topic is not None and len(topic.partitions) >= partitions and all(p.leader >= 0 for p in topic.partitions)


async def _create(client: ClusterClient, topic: str, partitions: int) -> None:
    answer = await _change(client, CREATE_TOPICS, _creation(topic, partitions))
    one = answer["topics"][0]
    if one["error_code"] not in (0, ERROR.TOPIC_ALREADY_EXISTS):
        _refuse(client.name, topic, one)
    log.info("stub created", topic=topic, cluster=client.name, partitions=partitions)


async def _expand(client: ClusterClient, topic: str, partitions: int) -> None:
    one = {"name": topic, "count": partitions, "assignments": None}
    message = {"topics": [one], "timeout_ms": int(TIMEOUT * 1000), "validate_only": False}
    answer = (await _change(client, CREATE_PARTITIONS, message))["results"][0]
    # Another process may have done it meanwhile: the count is judged afterwards.
    if answer["error_code"] not in (0, ERROR.INVALID_PARTITIONS, ERROR.REASSIGNMENT_IN_PROGRESS):
        _refuse(client.name, topic, answer)
    log.info("stub expanded", topic=topic, cluster=client.name, partitions=partitions)


async def delete_stub(client: ClusterClient, record: StubRecord) -> None:
    """Delete a stub that stands for nothing; its cluster then purges the commits on it, as for any deleted topic.

    Nothing happens to a borrowed topic, or where the topic of that name is not the stub any longer.
    Raises Undecided.
    """
    if record.borrowed:
        return
    present = (await topics_by_name(client, [record.topic])).get(record.topic)
    if present is None or (record.topic_id and present.id.hex() != record.topic_id):
        return
    if not record.topic_id and not await is_closed(client, record.topic):
        return  # never finished, and what is there now is somebody's topic
    if present.id != bytes(16):  # by id (Kafka 2.8): a successor of its name is not hit
        target: Message = {"topics": [{"name": None, "topic_id": present.id}], "topic_names": []}
    else:
        target = {"topics": [{"name": record.topic}], "topic_names": [record.topic]}
    answer = await _change(client, DELETE_TOPICS, {**target, "timeout_ms": int(TIMEOUT * 1000)})
    code = answer["responses"][0]["error_code"]
    if code not in (0, ERROR.UNKNOWN_TOPIC_OR_PARTITION, ERROR.UNKNOWN_TOPIC_ID):
        raise Undecided(client.name, f"the stub of {record.topic!r} could not be deleted: {error_name(code)}")


async def is_closed(client: ClusterClient, topic: str) -> bool:
    """Whether the topic's own configuration is a stub's. Raises Undecided."""
    return bool(await closed_among(client, [topic]))


async def closed_among(client: ClusterClient, topics: Iterable[str]) -> set[str]:
    """Those of the topics whose configuration is a stub's. Raises Undecided."""
    names = sorted(CLOSED)
    resources = [{"resource_type": 2, "resource_name": one, "configuration_keys": names} for one in sorted(topics)]
    out: set[str] = set()
    for start in range(0, len(resources), DESCRIBED_AT_ONCE):
        answer = await _change(client, DESCRIBE_CONFIGS, {"resources": resources[start : start + DESCRIBED_AT_ONCE]})
        for result in answer["results"]:
            found = {one["name"]: one["value"] for one in result["configs"] or ()}
            if all(found.get(name) == value for name, value in CLOSED.items()):
                out.add(result["resource_name"])
    return out


async def _change(client: ClusterClient, key: int, message: Message) -> Message:
    try:
        return await client.call(key, message, timeout=TIMEOUT, retry=True)
    except ClientError as error:
        raise Undecided(client.name, str(error)) from error


def _refuse(cluster: str, topic: str, answer: Message) -> None:
    code = answer["error_code"]
    raise StubRefused(cluster, topic, f"{error_name(code)}: {answer.get('error_message') or ''}".rstrip(": "), code)
