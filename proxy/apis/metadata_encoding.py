"""Metadata from the view: its entries, and whole answers as bytes from a bounded cache.

A topic's encoded entry is kept until the topic, or the addresses of the listener, change; so a new view costs only
what changed in it, and an answer is a join. Whole answers are kept for one generation of the view.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable

from kafka_wire.codec import Message, encode, is_flexible, write_uvarint
from kafka_wire.errors import ERROR
from metadata_service.view import Partition, PhysicalTopic, ServedTopic, View
from proxy.apis.contract import CloseConnection
from proxy.apis.mapping import active_clusters, default_cluster
from proxy.moving.placing import told

METADATA = 3
EPOCH_BITS = 20  # logical leader epoch = placement epoch << 20 | physical leader epoch
NO_OPERATIONS = -2147483648
# DescribeTopicPartitions has them; discovery does not know them, and Java takes no null for an answer.
NO_ELIGIBLE: Message = {"eligible_leader_replicas": [], "last_known_elr": []}

AddressOf = Callable[[str, int], tuple[str, int] | None]  # (cluster, physical broker id) -> advertised (host, port)


def cluster_id(view: View) -> str:
    """The logical cluster's id. Raises CloseConnection while the federation is not known."""
    if view.federation is None:
        raise CloseConnection("the federation is not known yet")
    return view.federation.cluster_id


def brokers_of(view: View, address: AddressOf) -> list[Message]:
    """The virtual brokers clients can reach, by node id.

    Raises:
        CloseConnection: there is none. An empty list would make librdkafka disconnect for good.
    """
    out = []
    for name in active_clusters(view):
        cluster = view.clusters[name]
        for broker in cluster.snapshot.brokers.values():
            place = address(name, broker.id)
            if place is not None:
                out.append(
                    {"node_id": cluster.node(broker.id), "host": place[0], "port": place[1], "rack": broker.rack}
                )
    if not out:
        raise CloseConnection("no broker of any cluster is known yet")
    return sorted(out, key=lambda one: one["node_id"])


def controller_of(view: View, address: AddressOf) -> int:
    """The virtual broker named as controller: the same on every proxy, and of a cluster that answers if one does.

    Every virtual broker takes controller requests, so any is right; a stable one saves clients reconnecting.
    """
    names = active_clusters(view)
    first = default_cluster(view) if names else ""
    for name in sorted(names, key=lambda one: (not view.clusters[one].snapshot.reachable, one != first)):
        cluster = view.clusters[name]
        for broker in sorted(cluster.snapshot.brokers):
            if address(name, broker) is not None:
                return cluster.node(broker)
    return -1


def logical_epoch(placement_epoch: int, physical: int) -> int:
    """A leader epoch as clients see it; -1 (unknown) passes."""
    return physical if physical < 0 else placement_epoch << EPOCH_BITS | physical


def partition_entry(view: View, topic: ServedTopic, index: int, known: Partition | None, address: AddressOf) -> Message:
    """A partition as Metadata and DescribeTopicPartitions list it; without a reachable leader: -1 and error 5."""
    if known is None:
        return {
            "error_code": ERROR.LEADER_NOT_AVAILABLE,
            "partition_index": index,
            "leader_id": -1,
            "replica_nodes": [],
            "isr_nodes": [],
            "offline_replicas": [],
            **NO_ELIGIBLE,
        }
    cluster = view.clusters[topic.cluster]
    node = cluster.node
    leader = known.leader if known.leader < 0 or address(topic.cluster, known.leader) is not None else -1
    return {
        "error_code": ERROR.LEADER_NOT_AVAILABLE if leader < 0 else known.error,
        "partition_index": index,
        "leader_id": node(leader),
        "leader_epoch": logical_epoch(topic.record.epoch, known.leader_epoch),
        "replica_nodes": [node(one) for one in known.replicas],
        "isr_nodes": [node(one) for one in known.isr],
        "offline_replicas": [node(one) for one in known.offline],
        **NO_ELIGIBLE,
    }


def hidden(view: View, topic: ServedTopic) -> bool:
    """Not on its cluster: deleted there directly, or made a moment ago. What was known of a cluster that is away is."""
    return view.physical(topic) is None and view.clusters[topic.cluster].snapshot.reachable


def partitions_shown(view: View, topic: ServedTopic) -> int:
    """How many partitions clients are told of: new ones once their leaders are known here, not leaderless before."""
    physical = view.physical(topic)
    if physical is None or not physical.partitions:
        return topic.record.partitions
    return min(topic.record.partitions, max(one.index for one in physical.partitions) + 1)


def topic_entry(view: View, topic: ServedTopic, address: AddressOf, indexes: Iterable[int] | None = None) -> Message:
    """A served topic with the partitions the federation has taken over (its cluster may already have more)."""
    physical = view.physical(topic)
    known = {} if physical is None else {one.index: one for one in physical.partitions}
    return {
        "error_code": ERROR.NONE,
        "name": topic.name,
        "topic_id": topic.id,
        "is_internal": physical is not None and physical.internal,
        "partitions": [
            partition_entry(view, topic, index, known.get(index), address)
            for index in (range(partitions_shown(view, topic)) if indexes is None else indexes)
        ],
        "topic_authorized_operations": NO_OPERATIONS,
    }


def _tail(version: int) -> int:
    """Bytes that follow the list of topics in a response."""
    tags = 1 if is_flexible(METADATA, version) else 0
    return tags + (4 if 8 <= version <= 10 else 0) + (2 if version >= 13 else 0)


def _same(one: object, other: object) -> bool:
    return one is other or one == other


class _Fragments:
    """Encoded entries of one (listener, version), while the addresses stay the same."""

    def __init__(self, places: object) -> None:
        self.places = places
        self.entries: dict[str, tuple[ServedTopic, PhysicalTopic | None, bytes]] = {}


class MetadataCache:
    """`answer` gives a whole response body. `limit` bounds the bytes of whole answers that are kept."""

    def __init__(self, limit: int = 32 * 1024 * 1024) -> None:
        self._limit = limit
        self._size = 0
        self._generation = -1
        self._answers: OrderedDict[tuple[str, int, tuple[str, ...] | None], bytes] = OrderedDict()
        self._fragments: dict[tuple[str, int], _Fragments] = {}

    def answer(
        self, view: View, listener: str, version: int, names: tuple[str, ...] | None, address: AddressOf
    ) -> bytes | None:
        """The body that names these topics (None: all of them), as somebody who may describe everything sees it.

        None where the view does not have a name: then the handler looks further. Raises CloseConnection as the
        handler does.
        """
        if view.generation != self._generation:
            self._answers.clear()
            self._size, self._generation = 0, view.generation
        key = (listener, version, names)
        body = self._answers.get(key)
        if body is not None:
            self._answers.move_to_end(key)
            return body
        if names is not None and any(name not in view.topics for name in names):
            return None
        body = self._assemble(view, listener, version, names, address)
        self._answers[key] = body
        self._size += len(body)
        while self._size > self._limit:
            _, dropped = self._answers.popitem(last=False)
            self._size -= len(dropped)
        return body

    def _assemble(
        self, view: View, listener: str, version: int, names: tuple[str, ...] | None, address: AddressOf
    ) -> bytes:
        brokers = brokers_of(view, address)
        frame: Message = {
            "brokers": brokers,
            "cluster_id": cluster_id(view),
            "controller_id": controller_of(view, address),
            "topics": [],
        }
        whole = encode("response", METADATA, version, frame)
        tail = _tail(version)
        count_size = 1 if is_flexible(METADATA, version) else 4
        head = len(whole) - tail - count_size
        fragments = self._current(view, listener, version, brokers)
        if len(fragments.entries) > len(view.topics):
            fragments.entries = {name: one for name, one in fragments.entries.items() if name in view.topics}
        parts = []
        for name in view.topics if names is None else names:
            topic = told(view, view.topics[name])
            if names is None and hidden(view, topic):
                continue  # brokers list a topic, or do not; who names it learns more
            physical = view.physical(topic)
            kept = fragments.entries.get(name)
            if kept is None or not _same(kept[0], topic) or not _same(kept[1], physical):
                frame["topics"] = [topic_entry(view, topic, address)]
                one = encode("response", METADATA, version, frame)
                kept = (topic, physical, bytes(one[head + count_size : len(one) - tail]))
                fragments.entries[name] = kept
            parts.append(kept[2])
        out = bytearray(whole[:head])
        if count_size == 1:
            write_uvarint(out, len(parts) + 1)
        else:
            out += len(parts).to_bytes(4, "big")
        out += b"".join(parts)
        out += whole[len(whole) - tail :]
        return bytes(out)

    def _current(self, view: View, listener: str, version: int, brokers: list[Message]) -> _Fragments:
        """Entries name nodes and hide unreachable leaders: they hold while the brokers and their places do."""
        kept = self._fragments.get((listener, version))
        if kept is None or kept.places != brokers:
            kept = self._fragments[listener, version] = _Fragments(brokers)
        return kept


_CACHE = MetadataCache()


def encoded_metadata(
    view: View, listener: str, version: int, names: tuple[str, ...] | None, address: AddressOf
) -> bytes | None:
    """`MetadataCache.answer` of this process's cache: for principals who may describe everything on every cluster."""
    return _CACHE.answer(view, listener, version, names, address)
