"""Metadata (3), DescribeCluster (60), DescribeTopicPartitions (75): one cluster, told from the view.

Versions 0-13, 0-2, 0. Topics by name, by logical id (v12), or all. Names the view does not have are looked up on the
clusters first; a topic is created only where the placement puts it and only where the federation creates topics by
itself at all. What the client may not describe is hidden, with the errors of a broker: 29 by name, 100 by id.
A broker list is never empty: librdkafka would disconnect for good; where nothing is known the connection is closed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from kafka_wire.codec import Buffer, Message, decode
from kafka_wire.errors import ERROR, error_text
from metadata_service.failures import DecisionFailed
from metadata_service.models import KAFKA_INTERNAL, is_internal
from metadata_service.store.contract import StoreError
from metadata_service.view import ServedTopic, View
from proxy.apis.contract import Call, ClusterAway, Handler, Refused
from proxy.apis.mapping import active_clusters, ask
from proxy.apis.metadata_encoding import (
    METADATA,
    brokers_of,
    cluster_id,
    controller_of,
    encoded_metadata,
    hidden,
    partitions_shown,
    topic_entry,
)
from proxy.moving.placing import told

CREATE_TOPICS, DESCRIBE_CLUSTER, DESCRIBE_TOPIC_PARTITIONS = 19, 60, 75
DESCRIBE, TOPIC, CLUSTER = 8, 2, 4  # AclOperation, ResourceType
CLUSTER_NAME = "kafka-cluster"  # Kafka's name of the one CLUSTER resource
TOPIC_OPERATIONS = (3, 4, 5, 6, 7, 8, 10, 11)
CLUSTER_OPERATIONS = (5, 7, 8, 9, 10, 11, 12)
NO_OPERATIONS = -2147483648  # "not asked for"
MAX_PARTITIONS_LISTED = 2000  # max.request.partition.size.limit of a broker
_NAME = re.compile(r"[a-zA-Z0-9._-]{1,249}")
_ZERO_ID = bytes(16)


def valid_name(name: str) -> bool:
    """Whether a topic may be called so."""
    return _NAME.fullmatch(name) is not None and name not in (".", "..")


@dataclass(slots=True)
class Named:
    """A topic a request names, and what was found: `topic`, or an error code."""

    name: str | None
    id: bytes = _ZERO_ID
    topic: ServedTopic | None = None
    error: int = 0


@dataclass(slots=True)
class Seen:
    """Topic names a principal may do something on; `unsure` are those whose cluster could not be asked."""

    names: set[str]
    unsure: set[str]


async def may(call: Call, view: View, names: Iterable[str], operation: int = DESCRIBE) -> Seen:
    """What this principal may do `operation` on; a name nobody has is asked of where it would go."""
    wanted: dict[str, list[str]] = {}
    for name in names:
        served = view.topics.get(name)
        cluster = served.cluster if served is not None else call.federation.place_topic(name)
        wanted.setdefault(cluster, []).append(name)
    out = Seen(set(), set())
    for cluster, mine in wanted.items():
        try:
            out.names |= await call.visible(cluster, operation, TOPIC, mine)
        except (ClusterAway, Refused):
            out.unsure.update(mine)
    return out


async def visible_topics(call: Call, view: View, names: Iterable[str], operation: int = DESCRIBE) -> set[str]:
    """The names of `may` alone: what cannot be checked is not shown."""
    return (await may(call, view, names, operation)).names


def unseen(view: View, name: str) -> bool:
    """Whether a name is to be looked up: also where another process has just made the topic, without its partitions."""
    topic = view.topics.get(name)
    if topic is None:
        return valid_name(name) and not _own(name)
    return hidden(view, topic)


async def find(call: Call, names: Iterable[str], ids: Iterable[bytes] = ()) -> View:
    """The newest view after names and ids it does not have were looked up on the clusters."""
    unknown = [name for name in names if unseen(call.view, name)]
    if unknown:
        await call.federation.find_topics(unknown)
    unknown_ids = [one for one in ids if one not in call.view.topics_by_id]
    if unknown_ids:
        await call.federation.find_topic_ids(unknown_ids)
    return call.latest() if unknown or unknown_ids else call.view


async def look(call: Call, names: Iterable[str], ids: Iterable[bytes] = ()) -> tuple[View, bool]:
    """As `find`, and whether everything could be looked up: what is known goes on being served where it could not."""
    try:
        return await find(call, names, ids), True
    except (DecisionFailed, StoreError):
        return call.latest(), False


def _own(name: str) -> bool:
    return is_internal(name) and name not in KAFKA_INTERNAL


async def _named(call: Call, version: int, request: Message) -> tuple[View, list[Named]]:
    """What the request names, in its order, judged by one view."""
    asked = request.get("topics")
    if asked is None or (version == 0 and not asked):
        view = call.view
        shown = await visible_topics(call, view, view.topics)
        topics = [topic for topic in view.topics.values() if topic.name in shown and not hidden(view, topic)]
        return view, [Named(topic.name, topic.id, topic) for topic in topics]
    entries = []
    for one in asked:
        name, topic_id = one.get("name"), one.get("topic_id", _ZERO_ID)
        if version >= 12 and topic_id != _ZERO_ID:
            name = None  # as brokers do: Java sends an empty name along with an id
        if name is None and (version < 12 or topic_id == _ZERO_ID):
            raise Refused(ERROR.INVALID_REQUEST, "a topic needs a name, or from version 12 on an id")
        entries.append(Named(name, topic_id))
    view, looked = await look(
        call, [one.name for one in entries if one.name is not None], [one.id for one in entries if one.name is None]
    )
    for one in entries:
        one.topic = view.topics.get(one.name) if one.name is not None else view.topics_by_id.get(one.id)
    names = {one.topic.name if one.topic else one.name for one in entries}
    seen = await may(call, view, [name for name in names if name is not None and valid_name(name)])
    for one in entries:
        if one.name is None:
            if one.topic is None or one.topic.name not in seen.names:
                one.topic, one.error = None, ERROR.UNKNOWN_TOPIC_ID  # clients ask again
        elif not valid_name(one.name):
            one.error = ERROR.INVALID_TOPIC_EXCEPTION
        elif one.name in seen.unsure:
            one.topic, one.error = None, ERROR.LEADER_NOT_AVAILABLE  # clients ask again
        elif one.name not in seen.names:
            one.topic, one.error = None, ERROR.TOPIC_AUTHORIZATION_FAILED
        elif one.topic is None:
            one.error = ERROR.UNKNOWN_TOPIC_OR_PARTITION if looked else ERROR.LEADER_NOT_AVAILABLE
    return view, entries


def auto_creates(call: Call) -> bool:
    """Whether the federation creates topics that clients merely mention (`proxy.auto_create_topics`)."""
    return bool(getattr(call.federation, "auto_create_topics", False))


async def _create(call: Call, view: View, entries: list[Named]) -> View:
    """Create what is unknown, each topic on the cluster where the placement puts it, with that cluster's defaults."""
    missing: dict[str, list[Named]] = {}
    for one in entries:
        if one.error == ERROR.UNKNOWN_TOPIC_OR_PARTITION and one.name is not None and not is_internal(one.name):
            missing.setdefault(call.federation.place_topic(one.name), []).append(one)
    created = False
    for cluster, ones in missing.items():
        topics: list[Message] = [
            {"name": name, "num_partitions": -1, "replication_factor": -1, "assignments": [], "configs": []}
            for name in dict.fromkeys(one.name for one in ones)
        ]
        try:
            answer = await ask(call, view, cluster, CREATE_TOPICS, {"topics": topics, "timeout_ms": 15_000})
        except (ClusterAway, Refused):
            continue  # stays unknown; the client asks again
        codes = {result["name"]: result["error_code"] for result in answer["topics"]}
        made = [name for name, code in codes.items() if code in (ERROR.NONE, ERROR.TOPIC_ALREADY_EXISTS)]
        if made:
            created = True
            await call.federation.topics_created(cluster, made)
        for one in ones:
            code = codes.get(one.name or "", ERROR.UNKNOWN_TOPIC_OR_PARTITION)
            if code in (ERROR.TOPIC_AUTHORIZATION_FAILED, ERROR.INVALID_TOPIC_EXCEPTION):
                one.error = code
    if created:
        view = call.latest()
        for one in entries:
            found = view.topics.get(one.name or "")
            if one.error == ERROR.UNKNOWN_TOPIC_OR_PARTITION and found is not None:
                one.topic, one.error = found, 0
    return view


async def topic_operations(call: Call, view: View, names: list[str]) -> dict[str, int]:
    """Bit sets of the AclOperations this principal may do, by topic."""
    out = dict.fromkeys(names, 0)
    for operation in TOPIC_OPERATIONS:
        for name in await visible_topics(call, view, names, operation):
            out[name] |= 1 << operation
    return out


async def cluster_operations(call: Call, view: View) -> int:
    """The same for the logical cluster: what every cluster allows."""
    bits = 0
    for operation in CLUSTER_OPERATIONS:
        for cluster in active_clusters(view):
            try:
                if not await call.visible(cluster, operation, CLUSTER, [CLUSTER_NAME]):
                    break
            except (ClusterAway, Refused):
                break
        else:
            bits |= 1 << operation
    return bits


async def metadata(call: Call, version: int, request: Message) -> Message:
    view, entries = await _named(call, version, request)
    if (version < 4 or request.get("allow_auto_topic_creation", True)) and auto_creates(call):
        view = await _create(call, view, entries)
    response: Message = {
        "brokers": brokers_of(view, call.address),
        "cluster_id": cluster_id(view),
        "controller_id": controller_of(view, call.address),
        "topics": [],
    }
    operations: dict[str, int] = {}
    if request.get("include_topic_authorized_operations"):
        operations = await topic_operations(call, view, [one.topic.name for one in entries if one.topic is not None])
    for one in entries:
        if one.topic is None:
            internal = one.name in KAFKA_INTERNAL
            entry: Message = {"error_code": one.error, "name": one.name, "topic_id": one.id, "is_internal": internal}
            if version < 12 and one.name is None:
                entry["name"] = ""
        else:
            entry = topic_entry(view, told(view, one.topic), call.address)
        entry["topic_authorized_operations"] = operations.get(one.name or "", NO_OPERATIONS)
        if one.topic is not None:
            entry["topic_authorized_operations"] = operations.get(one.topic.name, NO_OPERATIONS)
        response["topics"].append(entry)
    if request.get("include_cluster_authorized_operations"):
        response["cluster_authorized_operations"] = await cluster_operations(call, view)
    return response


async def encoded(call: Call, version: int, frame: Buffer, position: int) -> bytes | None:
    """The body of the answer to the request at `position` of `frame`, from the cache; None: ask the handler.

    Raises:
        DecodeError: no request. CloseConnection: nothing is known yet.
    """
    request = decode("request", METADATA, version, frame, position)
    if request.get("include_topic_authorized_operations") or request.get("include_cluster_authorized_operations"):
        return None
    view, asked = call.view, request["topics"]
    if asked is None or (version == 0 and not asked):
        wanted, names = list(view.topics), None
    else:
        wanted = list(dict.fromkeys(one["name"] or "" for one in asked))
        names = tuple(wanted)
        if any(name not in view.topics or unseen(view, name) for name in wanted):
            return None
    seen = await visible_topics(call, view, wanted)
    if len(seen) < len(wanted):
        if names is not None:
            return None
        names = tuple(name for name in wanted if name in seen)
    return encoded_metadata(view, call.listener, version, names, call.address)


async def describe_cluster(call: Call, version: int, request: Message) -> Message:
    view = call.view
    kind = request.get("endpoint_type", 1)
    if kind != 1:
        # As a broker's listener answers who asks it for controllers (KIP-919).
        code = ERROR.MISMATCHED_ENDPOINT_TYPE if kind == 2 else ERROR.UNSUPPORTED_ENDPOINT_TYPE
        return {"error_code": code, "error_message": error_text(code), "endpoint_type": 1, "cluster_id": ""}
    response: Message = {
        "cluster_id": cluster_id(view),
        "controller_id": controller_of(view, call.address),
        "brokers": [{**one, "broker_id": one["node_id"]} for one in brokers_of(view, call.address)],
    }
    if request.get("include_cluster_authorized_operations"):
        response["cluster_authorized_operations"] = await cluster_operations(call, view)
    return response


def _described(view: View, call: Call, topic: ServedTopic, first: int, room: int) -> tuple[Message, int | None]:
    """(a topic's entry from partition `first` on with at most `room` partitions, the partition to go on with)."""
    count = partitions_shown(view, topic)
    entry = topic_entry(view, topic, call.address, range(first, min(first + room, count)))
    following = first + room if first + room < count else None
    return entry, following


async def describe_topic_partitions(call: Call, version: int, request: Message) -> Message:
    cursor = request.get("cursor")
    start, first = ("", 0) if cursor is None else (cursor["topic_name"], cursor["partition_index"])
    if first < 0:
        raise Refused(ERROR.INVALID_REQUEST, "a cursor's partition index must not be negative")
    asked = [one["name"] for one in request["topics"]]
    view = await find(call, asked) if asked else call.view
    every = asked or [topic.name for topic in view.topics.values() if not hidden(view, topic)]
    names = sorted(name for name in dict.fromkeys(every) if name >= start)
    seen = await may(call, view, [name for name in names if valid_name(name)])
    room = max(1, min(request.get("response_partition_limit", MAX_PARTITIONS_LISTED), MAX_PARTITIONS_LISTED))
    out: list[Message] = []
    refused: list[Message] = []
    described: list[str] = []
    response: Message = {"topics": out, "next_cursor": None}
    for name in names:
        topic = view.topics.get(name)
        if name not in seen.names:
            if asked:
                code = ERROR.TOPIC_AUTHORIZATION_FAILED if valid_name(name) else ERROR.INVALID_TOPIC_EXCEPTION
                if name in seen.unsure:
                    code = ERROR.LEADER_NOT_AVAILABLE
                refused.append({"error_code": code, "name": name})
            continue
        if topic is None:
            refused.append({"error_code": ERROR.UNKNOWN_TOPIC_OR_PARTITION, "name": name})
            continue
        if room <= 0:
            response["next_cursor"] = {"topic_name": name, "partition_index": 0}
            break
        entry, following = _described(view, call, told(view, topic), first if name == start else 0, room)
        out.append(entry)
        described.append(name)
        room -= len(entry["partitions"])
        if following is not None:
            response["next_cursor"] = {"topic_name": name, "partition_index": following}
            break
    operations = await topic_operations(call, view, described)
    for entry in out:
        entry["topic_authorized_operations"] = operations[entry["name"]]
    out += refused
    return response


HANDLERS: dict[int, Handler] = {
    METADATA: metadata,
    DESCRIBE_CLUSTER: describe_cluster,
    DESCRIBE_TOPIC_PARTITIONS: describe_topic_partitions,
}
