"""A mirror's target: created like its source, expanded with it, its configuration followed, its limits judged.

`judge` looks and changes nothing; `prepare` does what it says and judges what has become of it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import trio

from kafka_client import ClientError, ClusterClient, Refused
from kafka_client.cluster import backoff
from kafka_client.rights import DENIED, lacking, on_topic
from kafka_client.topics import EARLIEST, LATEST, LogReader, TopicInfo, describe, offsets
from kafka_wire.batches import walk
from kafka_wire.codec import Message
from kafka_wire.errors import ERROR
from kafka_wire.records import values_batch
from metadata_service.operations.gates import CLOSED
from replicator.preflight import FOREVER, SHIPPING, Problem, creation, drift, joining, problems, shipping_drift
from replicator.wire import ACKS_ALL, PRODUCE

CREATE_TOPICS, DESCRIBE_CONFIGS, CREATE_PARTITIONS, ALTER_CONFIGS = 19, 32, 37, 44
TOPIC = 2
OF_THE_TOPIC = 1  # a value set on the topic itself
SET, DELETE = 0, 1
APPEAR_SECONDS = 15.0
CRC_AT = 17  # in a record batch
_NO_ID = bytes(16)


@dataclass(frozen=True, slots=True)
class Configs:
    """A topic's configuration: every value in force, and the names of those that were set on the topic."""

    values: Mapping[str, str | None]
    changed: frozenset[str]

    def altered(self, values: Mapping[str, str | None]) -> Configs:
        """As it will be; what goes back to its default is then not known."""
        return Configs({**self.values, **values}, self.changed)


@dataclass(frozen=True, slots=True)
class Judged:
    """A target as it is, and what would be done to it. With `problems` nothing may be copied.

    `create`: the configuration of a topic that does not exist yet. `expand`: its partition count, where that is too
    small. `alter`: settings, None goes back to the default. `reopen`: it is a closed stand-in.
    """

    topic: str
    partitions: int  # the source's
    source_id: bytes
    target: TopicInfo | None
    create: Mapping[str, str] | None
    expand: int | None
    alter: Mapping[str, str | None]
    reopen: bool
    problems: tuple[Problem, ...]
    replicas: int = 1  # the source's


@dataclass(frozen=True, slots=True)
class Prepared:
    """The target as it is now. With `problems` nothing may be copied; `partitions` are to be copied."""

    problems: tuple[Problem, ...]
    partitions: int
    altered: Mapping[str, str | None]
    target_id: bytes = _NO_ID


class NoSource(Refused):
    """The source has no such topic."""


class StillClosed(Refused):
    """The target is closed, and a migration that names the topic has not had it opened yet."""


async def configs(client: ClusterClient, topic: str) -> Configs:
    """Raises Refused (3: no such topic), and as `ClusterClient.call`."""
    message = {"resources": [{"resource_type": TOPIC, "resource_name": topic, "configuration_keys": None}]}
    one = (await client.call(DESCRIBE_CONFIGS, message, retry=True))["results"][0]
    if one["error_code"]:
        right = lacking(one["error_code"], on_topic("DESCRIBE_CONFIGS", topic))
        raise Refused(f"{client.name}: configuration of {topic}{right}", one["error_code"], one["error_message"])
    values = {each["name"]: each["value"] for each in one["configs"]}
    return Configs(values, frozenset(e["name"] for e in one["configs"] if e["config_source"] == OF_THE_TOPIC))


def is_closed(values: Mapping[str, str | None]) -> bool:
    """Whether a topic's configuration is that of a stand-in that takes no records."""
    return all(values.get(name) == value for name, value in CLOSED.items())


async def judge(
    source: ClusterClient,
    target: ClusterClient,
    topic: str,
    *,
    ship: bool,
    max_message: int | None = None,
    trial: bool = False,
    moving: bool = False,
) -> Judged:
    """What a mirror of `topic` would do to its target, and what keeps it from beginning.

    Only in a ship, whose target is nobody else's, is an existing topic altered. `max_message` is the source's own limit
    where it is closed. `trial`: the target's cluster is asked whether it would create the topic. `moving`: a migration
    names the topic, and what closing sets is set by that alone; what else a former copy served with is put right here.

    Raises:
        NoSource: the source has no such topic. Refused: a cluster refuses to tell, or (`trial`) to create it.
    """
    theirs = (await describe(source, [topic])).get(topic)
    if theirs is None:
        raise NoSource(f"{source.name}: topic {topic!r}", ERROR.UNKNOWN_TOPIC_OR_PARTITION)
    count = len(theirs.partitions)
    wanted = await configs(source, topic)
    limit = {"max.message.bytes": str(max_message)} if max_message is not None else {}
    changed = set(wanted.changed)
    replicas = min(len(source.brokers), len(target.brokers))
    shipped = creation(wanted.values, changed, max_message=max_message, replicas=replicas)
    new = shipped if ship else joining(wanted.values, changed)
    ours = (await describe(target, [topic])).get(topic)
    if ours is None:
        values = await _trial(target, topic, count, new) if trial else None
        if values is not None and ship:
            values = {**values, **drift(wanted.values, values)}
        found = [] if values is None else await _problems(source, target, topic, count, wanted, limit, values)
        most = max((one.replicas for one in theirs.partitions.values()), default=1)
        return Judged(topic, count, theirs.topic.id, None, new, None, {}, False, tuple(found), most)
    have = await configs(target, topic)
    reopen = ship and is_closed(have.values)
    alter: Mapping[str, str | None] = {}
    if ship:
        alter = {**drift(wanted.values, have.values), **(new if reopen else {})}
        if moving:
            alter = {**alter, **shipping_drift(have.values)}
            alter = {name: value for name, value in alter.items() if name not in CLOSED}
    found = []
    expand = count if len(ours.partitions) < count else None
    if len(ours.partitions) > count and ship:
        why = "keys would be found in other partitions"
        found.append(Problem("partitions", str(len(ours.partitions)), str(count), why))
    found += await _problems(source, target, topic, count, wanted, limit, have.altered(alter).values)
    return Judged(topic, count, theirs.topic.id, ours, None, expand, alter, reopen, tuple(found))


async def _problems(
    source: ClusterClient,
    target: ClusterClient,
    topic: str,
    count: int,
    wanted: Configs,
    limit: Mapping[str, str],
    have: Mapping[str, str | None],
) -> list[Problem]:
    before = have.get("message.timestamp.before.max.ms")
    # The age of the source's records matters only where the target has a limit to it.
    oldest = None if before is None or int(before) == FOREVER else await _oldest(source, topic, count)
    return problems(
        {**wanted.values, **limit},
        have,
        oldest=oldest,
        now=int(time.time() * 1000),
        source_replicas=len(source.brokers),
        target_replicas=len(target.brokers),
    )


def _creation_request(
    topic: str, count: int, made: Mapping[str, str], validate_only: bool, replicas: int = -1
) -> Message:
    """`replicas`: -1 for what is usual on the target."""
    new: Message = {
        "name": topic,
        "num_partitions": count,
        "replication_factor": replicas,
        "configs": [{"name": name, "value": value} for name, value in made.items()],
    }
    return {"topics": [new], "timeout_ms": 10_000, "validate_only": validate_only}


def _not_created(target: ClusterClient, topic: str, answer: Message) -> Refused:
    right = lacking(answer["error_code"], on_topic("CREATE", topic))
    return Refused(f"{target.name}: creating {topic}{right}", answer["error_code"], answer["error_message"])


async def _trial(
    target: ClusterClient, topic: str, count: int, made: Mapping[str, str]
) -> Mapping[str, str | None] | None:
    """The configuration the topic would have; None where the cluster does not tell. Raises Refused."""
    one = (await target.call(CREATE_TOPICS, _creation_request(topic, count, made, True), retry=True))["topics"][0]
    if one["error_code"]:
        raise _not_created(target, topic, one)
    told = one.get("configs")
    return {each["name"]: each["value"] for each in told} if told else None


def replicas_of(source: int, usual: int, brokers: int) -> int:
    """How many replicas a target gets: as many as the source has and as are usual there, as far as it has brokers."""
    return min(max(source, usual, 1), max(brokers, 1))


async def _replicas(target: ClusterClient, topic: str, judged: Judged) -> int:
    """For the creation: -1 where what is usual there is enough."""
    assert judged.create is not None
    if judged.replicas <= 1 or len(target.brokers) <= 1:
        return -1
    request = _creation_request(topic, judged.partitions, judged.create, True)
    one = (await target.call(CREATE_TOPICS, request, retry=True))["topics"][0]
    usual: int = one.get("replication_factor", -1) if not one["error_code"] else -1
    wanted = replicas_of(judged.replicas, usual, len(target.brokers))
    return -1 if wanted == usual else wanted


async def prepare(
    source: ClusterClient,
    target: ClusterClient,
    topic: str,
    *,
    ship: bool,
    max_message: int | None = None,
    follow: bool = True,
    moving: bool = False,
) -> Prepared:
    """Make the target fit: create it, add partitions, alter what is followed; then judge it. Idempotent.

    Without `follow` the configuration of a target that has records is left as it is: it is not known yet whether they
    are of this very source. `moving`: a migration names the topic, so nobody opens a closed target but that.

    Raises:
        NoSource: the source has no such topic. StillClosed. Refused: a cluster refuses.
    """
    judged = await judge(source, target, topic, ship=ship, max_message=max_message, moving=moving)
    if judged.reopen and moving:
        why = "closed; the operation that moves the topic has it opened"
        raise StillClosed(f"{target.name}: {topic!r}", ERROR.POLICY_VIOLATION, why)
    altered = judged.alter if follow or judged.reopen else {}
    if moving and not altered:
        # Also the policy: a former copy that compacts refuses records without keys. The plan knows whose copy it is.
        needed = {*SHIPPING, "cleanup.policy"}
        altered = {name: value for name, value in judged.alter.items() if name in needed}
    if judged.create is not None:
        replicas = await _replicas(target, topic, judged)
        request = _creation_request(topic, judged.partitions, judged.create, False, replicas)
        one = (await target.call(CREATE_TOPICS, request, retry=True))["topics"][0]
        if one["error_code"] not in (0, ERROR.TOPIC_ALREADY_EXISTS):
            raise _not_created(target, topic, one)
        await _appears(target, topic, judged.partitions)
    if judged.expand is not None:
        grown = {"topics": [{"name": topic, "count": judged.expand, "assignments": None}], "timeout_ms": 10_000}
        one = (await target.call(CREATE_PARTITIONS, grown))["results"][0]
        if one["error_code"] not in (0, ERROR.INVALID_PARTITIONS):
            right = lacking(one["error_code"], on_topic("ALTER", topic))
            raise Refused(f"{target.name}: partitions of {topic}{right}", one["error_code"], one["error_message"])
        await _appears(target, topic, judged.expand)
    if altered:
        await alter(target, topic, altered)
    if judged.reopen:
        await _open(target, topic)
    if judged.create is not None or judged.expand is not None:
        created = judged.create is not None
        judged = await judge(source, target, topic, ship=ship, max_message=max_message, moving=moving)
        if judged.alter and created:  # the clusters' defaults differ
            await alter(target, topic, judged.alter)
            altered = {**altered, **judged.alter}
    target_id = judged.target.topic.id if judged.target is not None else _NO_ID
    return Prepared(judged.problems, judged.partitions, altered, target_id)


async def alter(client: ClusterClient, topic: str, values: Mapping[str, str | None]) -> None:
    """Set values, or with None go back to the default. Raises Refused."""
    entries = [
        {"name": name, "config_operation": DELETE if value is None else SET, "value": value}
        for name, value in values.items()
    ]
    message = {"resources": [{"resource_type": TOPIC, "resource_name": topic, "configs": entries}]}
    one = (await client.call(ALTER_CONFIGS, message, retry=True))["responses"][0]
    if one["error_code"]:
        right = lacking(one["error_code"], on_topic("ALTER_CONFIGS", topic))
        raise Refused(f"{client.name}: altering {topic}{right}", one["error_code"], one["error_message"])


async def _open(client: ClusterClient, topic: str) -> None:
    """Returns when every leader takes batches of the topic again: a change of its configuration comes to them later.

    Each is sent a batch with a wrong checksum, which nobody appends: one that is open says so, one that is closed
    finds it too large first. Raises Refused.
    """
    batch = bytearray(values_batch([(b"", bytes(128))], 0))
    batch[CRC_AT] ^= 0xFF
    deadline = trio.current_time() + APPEAR_SECONDS
    failures = 0
    while True:
        found = (await describe(client, [topic])).get(topic)
        by_leader: dict[int, list[int]] = {}
        for number, part in found.partitions.items() if found is not None else ():
            by_leader.setdefault(part.leader, []).append(number)
        codes: set[int] = set()
        for leader, numbers in by_leader.items():
            if found is None or leader < 0:
                codes.add(ERROR.LEADER_NOT_AVAILABLE)
                continue
            parts = [{"index": number, "records": memoryview(batch)} for number in numbers]
            data = {"name": topic, "topic_id": found.topic.id, "partition_data": parts}
            message = {"acks": ACKS_ALL, "timeout_ms": 10_000, "topic_data": [data]}
            answer = await client.call(PRODUCE, message, broker=leader)
            codes |= {one["error_code"] for one in answer["responses"][0]["partition_responses"]}
        if codes == {ERROR.CORRUPT_MESSAGE}:
            return
        if trio.current_time() > deadline:
            code = max(codes & DENIED or codes, default=int(ERROR.LEADER_NOT_AVAILABLE))
            raise Refused(f"{client.name}: {topic!r} does not open{lacking(code, on_topic('WRITE', topic))}", code)
        failures += 1
        await trio.sleep(min(backoff(failures), 0.2))


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
    failures: list[ClientError] = []

    async def look(number: int) -> None:
        try:
            part = await LogReader(client, topic, number, starts[number], seconds=10.0).next(wait_ms=0)
        except ClientError as error:
            failures.append(error)
            nursery.cancel_scope.cancel()
            return
        times.extend(one.base_timestamp for one in list(walk(part))[:1] if one.base_timestamp >= 0)

    async with trio.open_nursery() as nursery:
        for number in list(range(count))[:32]:
            if starts[number] < ends[number]:
                nursery.start_soon(look, number)
    if failures:
        raise failures[0]
    return min(times, default=None)
