"""A mirror's target: created like its source, expanded with it, its configuration followed, its limits judged."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import trio

from kafka_client import ClusterClient, Refused
from kafka_client.cluster import backoff
from kafka_wire.batches import walk
from kafka_wire.codec import Message
from kafka_wire.errors import ERROR
from replicator.preflight import Problem, creation, drift, problems
from replicator.topics import EARLIEST, LATEST, LogReader, TopicInfo, describe, offsets

CREATE_TOPICS, DESCRIBE_CONFIGS, CREATE_PARTITIONS, ALTER_CONFIGS = 19, 32, 37, 44
TOPIC = 2
OF_THE_TOPIC = 1  # a value set on the topic itself
SET, DELETE = 0, 1
APPEAR_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class Configs:
    """A topic's configuration: every value in force, and the names of those that were set on the topic."""

    values: Mapping[str, str | None]
    changed: frozenset[str]


@dataclass(frozen=True, slots=True)
class Prepared:
    """The target as it is now. With `problems` nothing may be copied; `partitions` are to be copied."""

    problems: tuple[Problem, ...]
    partitions: int
    altered: Mapping[str, str | None]


async def configs(client: ClusterClient, topic: str) -> Configs:
    """Raises Refused (3: no such topic), and as `ClusterClient.call`."""
    message = {"resources": [{"resource_type": TOPIC, "resource_name": topic, "configuration_keys": None}]}
    one = (await client.call(DESCRIBE_CONFIGS, message, retry=True))["results"][0]
    if one["error_code"]:
        raise Refused(f"{client.name}: configuration of {topic}", one["error_code"], one["error_message"])
    values = {each["name"]: each["value"] for each in one["configs"]}
    return Configs(values, frozenset(e["name"] for e in one["configs"] if e["config_source"] == OF_THE_TOPIC))


async def prepare(
    source: ClusterClient, target: ClusterClient, topic: str, *, ship: bool, max_message: int | None = None
) -> Prepared:
    """Make the target fit: create it, add partitions, alter what is followed; then judge it. Idempotent.

    Only in a ship, whose target is nobody else's, is an existing topic altered. `max_message` is the source's own limit
    where it is closed.

    Raises:
        Refused: the source has no such topic, or the target cluster refuses.
    """
    theirs = (await describe(source, [topic])).get(topic)
    if theirs is None:
        raise Refused(f"{source.name}: topic {topic!r}", ERROR.UNKNOWN_TOPIC_OR_PARTITION)
    count = len(theirs.partitions)
    wanted = await configs(source, topic)
    ours = (await describe(target, [topic])).get(topic)
    if ours is None:
        made = creation(wanted.values, set(wanted.changed), max_message=max_message)
        new: Message = {
            "name": topic,
            "num_partitions": count,
            "replication_factor": -1,
            "configs": [{"name": name, "value": value} for name, value in made.items()],
        }
        answer = await target.call(CREATE_TOPICS, {"topics": [new], "timeout_ms": 10_000}, retry=True)
        one = answer["topics"][0]
        if one["error_code"] not in (0, ERROR.TOPIC_ALREADY_EXISTS):
            raise Refused(f"{target.name}: creating {topic}", one["error_code"], one["error_message"])
        ours = await _appears(target, topic, count)
    found: list[Problem] = []
    if len(ours.partitions) < count:
        grown = {"topics": [{"name": topic, "count": count, "assignments": None}], "timeout_ms": 10_000}
        one = (await target.call(CREATE_PARTITIONS, grown))["results"][0]
        if one["error_code"] not in (0, ERROR.INVALID_PARTITIONS):
            raise Refused(f"{target.name}: partitions of {topic}", one["error_code"], one["error_message"])
        ours = await _appears(target, topic, count)
    elif len(ours.partitions) > count and ship:
        why = "keys would be found in other partitions"
        found.append(Problem("partitions", str(len(ours.partitions)), str(count), why))
    have = await configs(target, topic)
    altered = drift(wanted.values, have.values, set(wanted.changed)) if ship else {}
    if altered:
        await alter(target, topic, altered)
        have = await configs(target, topic)
    limit = {"max.message.bytes": str(max_message)} if max_message is not None else {}
    found += problems(
        {**wanted.values, **limit},
        have.values,
        oldest=await _oldest(source, topic, count),
        now=int(time.time() * 1000),
        source_replicas=len(source.brokers),
        target_replicas=len(target.brokers),
    )
    return Prepared(tuple(found), count, altered)


async def alter(client: ClusterClient, topic: str, values: Mapping[str, str | None]) -> None:
    """Set values, or with None go back to the default. Raises Refused."""
    entries = [
        {"name": name, "config_operation": DELETE if value is None else SET, "value": value}
        for name, value in values.items()
    ]
    message = {"resources": [{"resource_type": TOPIC, "resource_name": topic, "configs": entries}]}
    one = (await client.call(ALTER_CONFIGS, message, retry=True))["responses"][0]
    if one["error_code"]:
        raise Refused(f"{client.name}: altering {topic}", one["error_code"], one["error_message"])


async def _appears(client: ClusterClient, topic: str, count: int) -> TopicInfo:
    deadline = trio.current_time() + APPEAR_SECONDS
    failures = 0
    while True:
        found = (await describe(client, [topic])).get(topic)
        if (
            found is not None
            and len(found.partitions) >= count
            and all(p.leader >= 0 for p in found.partitions.values())
        ):
            return found
        if trio.current_time() > deadline:
            raise Refused(f"{client.name}: {topic!r} does not appear", ERROR.UNKNOWN_TOPIC_OR_PARTITION)
        failures += 1
        await trio.sleep(min(backoff(failures), 0.2))


async def _oldest(client: ClusterClient, topic: str, count: int) -> int | None:
    """About the oldest record's timestamp: that of the first batch of partition 0 to `count` - 1 that has records."""
    starts = await offsets(client, topic, range(count), EARLIEST)
    ends = await offsets(client, topic, range(count), LATEST)
    times: list[int] = []

    async def look(number: int) -> None:
        part = await LogReader(client, topic, number, starts[number], seconds=10.0).next(wait_ms=0)
        times.extend(one.base_timestamp for one in list(walk(part))[:1] if one.base_timestamp >= 0)

    async with trio.open_nursery() as nursery:
        for number in list(range(count))[:32]:
            if starts[number] < ends[number]:
                nursery.start_soon(look, number)
    return min(times, default=None)
