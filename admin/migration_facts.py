"""What a plan of a move asks the clusters: sizes, room, writers, readers, former copies. It changes nothing."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from kafka_client import ClientError, ClusterClient, UnsupportedApi
from kafka_client.topics import EARLIEST, LATEST, offsets
from kafka_wire.acls import TOPIC as ACL_TOPIC
from kafka_wire.acls import TRANSACTIONAL_ID
from kafka_wire.codec import Message
from metadata_service.asking import GROUP, list_groups, list_transactions, topics_by_name
from metadata_service.failures import Undecided
from metadata_service.inventory import TAGGED
from metadata_service.migrating import rights
from metadata_service.models import OWN_TRANSACTIONS, PlacementEpoch, TopicRecord, is_internal
from metadata_service.operations.judging import Standing
from metadata_service.operations.records import MigrationRecord
from metadata_service.operations.switching import former_table, serving_table
from metadata_service.view import PhysicalTopic
from offset_sync import serving
from offset_sync.table import Table
from offset_sync.tables import SHIP, Following
from replicator.prepare import Configs, is_closed

DESCRIBE_CONFIGS, DESCRIBE_LOG_DIRS, DESCRIBE_PRODUCERS = 32, 35, 61
CREATE_TOPICS, SHARE_DESCRIBE, SHARE_OFFSETS = 19, 77, 90
TOPIC, BROKER = 2, 4
OF_THE_TOPIC = 1  # a value set on the topic itself
TIMEOUT = 8.0
AT_ONCE = 100  # topics of one request
PARTITIONS_AT_ONCE = 1000
JOURNAL_SECONDS = 8.0
NO_ID = bytes(16)
CONSUMER_OFFSETS = "__consumer_offsets"
TRIAL = "__kfed_plan"  # never created: asked for to see a cluster's defaults


@dataclass(frozen=True, slots=True)
class Disks:
    """`sizes` of the largest replica, by topic and partition; `room` is what is free on all brokers together, -1 where
    one of them does not tell. Bytes."""

    sizes: Mapping[tuple[str, int], int]
    room: int

    def of(self, topic: str) -> int:
        return sum(size for (name, _), size in self.sizes.items() if name == topic)


async def disks(client: ClusterClient, topics: Collection[str]) -> Disks:
    """Of these topics' partitions, on all brokers. Raises ClientError."""
    asked = {name: len(one.partitions) for name, one in (await topics_of(client, topics)).items()}
    message = {"topics": [{"topic": name, "partitions": list(range(count))} for name, count in asked.items()]}
    sizes: dict[tuple[str, int], int] = {}
    rooms: list[int] = []
    for broker in await client.refresh(TIMEOUT):
        answer = await client.call(DESCRIBE_LOG_DIRS, message, broker, timeout=TIMEOUT, retry=True)
        for place in answer["results"]:
            if place["error_code"]:
                continue
            rooms.append(place.get("usable_bytes", -1))
            for topic in place["topics"]:
                for one in topic["partitions"]:
                    if not one["is_future_key"]:
                        key = (topic["name"], one["partition_index"])
                        sizes[key] = max(sizes.get(key, 0), one["partition_size"])
    return Disks(sizes, sum(rooms) if rooms and min(rooms) >= 0 else -1)


async def topics_of(client: ClusterClient, names: Collection[str]) -> dict[str, PhysicalTopic]:
    """Those that the cluster has. Raises ClientError."""
    try:
        return await topics_by_name(client, names, timeout=TIMEOUT)
    except Undecided as error:
        raise ClientError(str(error)) from error


async def settings(client: ClusterClient, topics: Iterable[str]) -> dict[str, Configs]:
    """The configuration of those that the cluster has. Raises ClientError."""
    names = sorted(topics)
    out: dict[str, Configs] = {}
    for start in range(0, len(names), AT_ONCE):
        asked = [
            {"resource_type": TOPIC, "resource_name": one, "configuration_keys": None}
            for one in names[start : start + AT_ONCE]
        ]
        answer = await client.call(DESCRIBE_CONFIGS, {"resources": asked}, timeout=TIMEOUT, retry=True)
        for one in answer["results"]:
            if not one["error_code"]:
                values = {each["name"]: each["value"] for each in one["configs"]}
                changed = {each["name"] for each in one["configs"] if each["config_source"] == OF_THE_TOPIC}
                out[one["resource_name"]] = Configs(values, frozenset(changed))
    return out


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a new topic would have on a cluster; `values` are empty where the cluster does not tell."""

    values: Mapping[str, str | None]
    replicas: int


async def defaults(client: ClusterClient) -> Defaults:
    """Nothing is created. Raises ClientError."""
    new: Message = {"name": TRIAL, "num_partitions": 1, "replication_factor": -1, "configs": []}
    answer = await client.call(
        CREATE_TOPICS, {"topics": [new], "timeout_ms": 5000, "validate_only": True}, timeout=TIMEOUT, retry=True
    )
    one = answer["topics"][0]
    told = one.get("configs") if not one["error_code"] else None
    replicas = one.get("replication_factor", -1) if not one["error_code"] else -1
    return Defaults({each["name"]: each["value"] for each in told or ()}, replicas if replicas > 0 else 1)


# -- who writes and reads ---------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Writer:
    """A producer id as the leaders of a topic know it. `last`: Unix seconds."""

    last: float = 0.0
    transactional: bool = False


async def writers(client: ClusterClient, topics: Iterable[PhysicalTopic]) -> dict[str, dict[int, Writer]]:
    """Topic -> producer id -> what its leaders know. Raises ClientError."""
    by_leader: dict[int, list[tuple[str, int]]] = {}
    for topic in topics:
        for one in topic.partitions:
            if one.leader >= 0:
                by_leader.setdefault(one.leader, []).append((topic.name, one.index))
    out: dict[str, dict[int, Writer]] = {}
    for leader, parts in by_leader.items():
        for start in range(0, len(parts), PARTITIONS_AT_ONCE):
            asked: dict[str, list[int]] = {}
            for name, index in parts[start : start + PARTITIONS_AT_ONCE]:
                asked.setdefault(name, []).append(index)
            message = {"topics": [{"name": name, "partition_indexes": some} for name, some in asked.items()]}
            answer = await client.call(DESCRIBE_PRODUCERS, message, leader, timeout=TIMEOUT, retry=True)
            for found in answer["topics"]:
                for part in found["partitions"]:
                    for state in part["active_producers"]:
                        writer = out.setdefault(found["name"], {}).setdefault(state["producer_id"], Writer())
                        writer.last = max(writer.last, state["last_timestamp"] / 1000)
                        if state["coordinator_epoch"] >= 0 or state["current_txn_start_offset"] >= 0:
                            writer.transactional = True
    return out


@dataclass(frozen=True, slots=True)
class Clients:
    """Who uses a cluster's topics. `ids`: transactional id -> the topics it writes. `committing`: ids among them that
    commit positions in their transactions. `own`: producer ids of mirrors. `share`: topic -> share groups."""

    writers: Mapping[str, Mapping[int, Writer]] = field(default_factory=dict)
    ids: Mapping[str, frozenset[str]] = field(default_factory=dict)
    committing: frozenset[str] = frozenset()
    own: frozenset[int] = frozenset()
    share: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def direct(self, topic: str) -> dict[int, float]:
        """Producers that write past the endpoint, with their last write: neither a proxy gave out their id, nor are
        they transactional, nor a mirror's."""
        return {
            number: one.last
            for number, one in self.writers.get(topic, {}).items()
            if number < TAGGED and not one.transactional and number not in self.own
        }


async def clients(client: ClusterClient, topics: Mapping[str, PhysicalTopic], served: Collection[str]) -> Clients:
    """`served`: every topic that the cluster serves, so that a transactional id's others are known too.

    Raises:
        ClientError, Undecided.
    """
    known = await writers(client, topics.values())
    listed = await list_transactions(client, own=True)
    names = {one.producer_id: name for name, one in listed.items()}
    ids: dict[str, set[str]] = {}
    committing: set[str] = set()
    writing = {names[number] for some in known.values() for number in some if number in names}
    if any(not name.startswith(OWN_TRANSACTIONS) for name in writing):
        rest = {name for name in served if name not in topics and not is_internal(name)} | {CONSUMER_OFFSETS}
        others = await writers(client, (await topics_of(client, rest)).values())
        for topic, some in {**others, **known}.items():
            for number in some:
                if (name := names.get(number)) in writing and name is not None:
                    if topic == CONSUMER_OFFSETS:
                        committing.add(name)
                    else:
                        ids.setdefault(name, set()).add(topic)
    own = frozenset(one.producer_id for name, one in listed.items() if name.startswith(OWN_TRANSACTIONS))
    return Clients(
        known,
        {name: frozenset(some) for name, some in ids.items() if not name.startswith(OWN_TRANSACTIONS)},
        frozenset(committing),
        own,
        await _share(client),
    )


async def lacking(
    source: ClusterClient, target: ClusterClient, topic: str, ids: Iterable[str], *, followed: bool, leave_acls: bool
) -> list[str]:
    """What a move of a topic lacks in rights: the service's own, and those of clients on the target. `followed`:
    mirrors create ACLs that name the topic itself. Raises ClientError."""
    out = await rights.own(source, rights.ON_SOURCE, [topic]) + await rights.own(target, rights.ON_TARGET, [topic])
    if leave_acls:
        return out
    resources = [(ACL_TOPIC, topic), *((TRANSACTIONAL_ID, one) for one in sorted(ids))]
    missing = await rights.of_clients(source, target, resources)
    left = [one for one in missing if not (followed and one.kind == ACL_TOPIC and one.names(topic))]
    if left:
        out.append(f"{rights.words(source.name, target.name, left)}: create them there first, or say --leave-acls")
    return out


async def _share(client: ClusterClient) -> dict[str, tuple[str, ...]]:
    """Topic -> share groups that read it, or have a position in it."""
    groups = sorted(name for name, one in (await list_groups(client)).items() if one.kind == "share")
    out: dict[str, list[str]] = {}
    for name in groups:
        topics: set[str] = set()
        described = {"group_ids": [name], "include_authorized_operations": False}
        positions = {"groups": [{"group_id": name, "topics": None}]}
        try:
            for key, message in ((SHARE_DESCRIBE, described), (SHARE_OFFSETS, positions)):
                answer = await client.call_coordinator(GROUP, name, key, message, timeout=TIMEOUT, retry=True)
                for group in answer["groups"]:
                    if not group["error_code"]:
                        topics.update(one["topic_name"] for one in group.get("topics", ()))
                        for member in group.get("members", ()):
                            topics.update(member["subscribed_topic_names"])
        except UnsupportedApi:
            continue
        for topic in topics:
            out.setdefault(topic, []).append(name)
    return {topic: tuple(some) for topic, some in out.items()}


# -- what is on the target already ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Copy:
    """A topic of the name on the target. `problem`: why it cannot be used."""

    standing: Standing
    log_start: Mapping[int, int]  # the serving cluster's, logical
    waits_for: int
    problem: str = ""


def left_last(record: TopicRecord, target: str, migrations: Iterable[MigrationRecord]) -> MigrationRecord | None:
    """The newest migration that took the topic away from the target."""
    away = [one for one in migrations if record.name in one.topics and one.source == target and one.switched_at]
    return max(away, key=lambda one: one.switched_at, default=None)


async def copy(
    source: ClusterClient,
    target: ClusterClient,
    record: TopicRecord,
    there: PhysicalTopic,
    configs: Mapping[str, str | None],
    migrations: Iterable[MigrationRecord],
    revision: int,
) -> Copy:
    """What is there, and whether a mirror may go on with it. `configs` are the target's, `revision` is the store's
    present one.

    Raises:
        ClientError, Damaged: a cluster does not answer, or its journal cannot be read.
    """
    numbers = range(len(there.partitions))
    epochs = [number for number, one in enumerate(record.timeline) if one.cluster == target.name]
    identifier = there.id.hex()
    starts = await offsets(target, record.name, numbers, EARLIEST)
    ends = await offsets(target, record.name, numbers, LATEST)
    kept = await Following(target, seconds=JOURNAL_SECONDS).follow(record.name, numbers)
    if not epochs:
        states = [kept[number, SHIP].state for number in numbers if ends[number] > starts[number]]
        source_id = bytes.fromhex(record.timeline[-1].topic_id)
        left = all(
            state is not None and state.source == source.name and state.source_id in (NO_ID, source_id)
            for state in states
        )
        left = left and (bool(states) or is_closed(configs))
        return Copy(Standing(identifier, left=left), {}, 0)
    last = epochs[-1]
    placement = record.timeline[last]
    if there.id != NO_ID and placement.topic_id != identifier:
        problem = (
            f"{record.name}: {target.name} has another topic of this name than the one that it has served: rename or "
            "delete that one first"
        )
        return Copy(Standing(identifier), {}, revision, problem)
    following = record.timeline[last + 1] if last + 1 < len(record.timeline) else None
    log_start: dict[int, int | None] = {}
    for number in numbers:
        one = kept[number, SHIP]
        if one.state is None and last:
            log_start[number] = None  # it was a mirror's target, and nothing tells what lies where
            continue
        table = serving_table(one.table if one.state is not None else Table(), placement, number)
        if following is not None:
            table = former_table(table, following, number)
        log_start[number] = serving.log_start(table, starts[number])
    away = left_last(record, target.name, migrations)
    clean = away is not None and away.ends.get(record.name) == ends
    standing = Standing(identifier, away is not None and away.emptied, clean, False, log_start)
    return Copy(standing, await _log_start(source, record), away.switched_at if away is not None else revision)


async def _log_start(source: ClusterClient, record: TopicRecord) -> dict[int, int]:
    """Where the topic begins now, logical, by partition. Raises ClientError, Damaged."""
    numbers = range(record.partitions)
    starts = await offsets(source, record.name, numbers, EARLIEST)
    if record.epoch == 0:
        return starts
    placement: PlacementEpoch = record.timeline[-1]
    kept = await Following(source, seconds=JOURNAL_SECONDS).follow(record.name, numbers)
    return {
        number: serving.log_start(serving_table(kept[number, SHIP].table, placement, number), starts[number])
        for number in numbers
    }
