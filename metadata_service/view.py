"""A worker's view: the federation's state at one store revision, joined with what the clusters say of themselves.

A view is a value. It is replaced as a whole when the store or a cluster's metadata changes; a request is judged
against one view from its first byte to its last (invariant I6). What the view does not know is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from metadata_service.models import (
    STRIDE,
    AddressBook,
    ClusterRecord,
    EjectedRecord,
    FeaturesRecord,
    FederationRecord,
    HomeRecord,
    LinkRecord,
    MirrorRecord,
    OperationRecord,
    StubRecord,
    TopicRecord,
)
from metadata_service.operations.records import MigrationRecord
from runtime.settings import Placement


@dataclass(frozen=True, slots=True)
class Broker:
    """A physical broker's address, as its cluster advertises it on the listener the federation uses."""

    id: int
    host: str
    port: int
    rack: str | None


@dataclass(frozen=True, slots=True)
class Partition:
    """A partition as its cluster's metadata tells it: physical broker ids, physical leader epoch."""

    index: int
    leader: int
    leader_epoch: int
    replicas: tuple[int, ...]
    isr: tuple[int, ...]
    offline: tuple[int, ...]
    error: int = 0


@dataclass(frozen=True, slots=True)
class PhysicalTopic:
    """A topic as one cluster knows it. `id` is 16 bytes (zeros before Kafka 2.8)."""

    name: str
    id: bytes
    internal: bool
    partitions: tuple[Partition, ...]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What one cluster said of itself, and when (seconds on CLOCK_BOOTTIME)."""

    cluster_id: str
    controller: int
    brokers: Mapping[int, Broker]
    topics: Mapping[str, PhysicalTopic]
    versions: Mapping[int, tuple[int, int]]  # API key -> versions every broker of the cluster speaks
    features: Mapping[str, tuple[int, int]]  # supported features
    taken: float
    reachable: bool = True  # False: the last refresh failed, this is what was known before
    finalized: Mapping[str, int] = field(default_factory=dict)  # finalized feature levels
    reason: str = ""  # why it is not reachable
    too_large: tuple[int, ...] = ()  # broker ids of STRIDE or more: they cannot be numbered, and are left out


_NO_ID = bytes(16)
EMPTY = Snapshot("", -1, {}, {}, {}, {}, 0.0, False)


@dataclass(frozen=True, slots=True)
class ClusterView:
    """A cluster: its record and its newest snapshot (EMPTY until it was reached once)."""

    record: ClusterRecord
    snapshot: Snapshot = EMPTY

    @property
    def name(self) -> str:
        return self.record.name

    def node(self, broker: int) -> int:
        """The virtual node id of a physical broker id; negative ids (none, unknown) pass."""
        return broker if broker < 0 else self.record.index * STRIDE + broker


@dataclass(frozen=True, slots=True)
class ServedTopic:
    """A logical topic as the hot path needs it. `special` asks for a closer look: a translation or a hold."""

    name: str
    id: bytes  # logical
    cluster: str
    physical_id: bytes  # on `cluster`
    special: bool
    record: TopicRecord


@dataclass(frozen=True)
class View:
    """One revision. `generation` grows with every change of any part, `served_generation[cluster]` whenever a topic
    stops being served by that cluster (fetch sessions that may name it are then closed)."""

    revision: int = 0
    generation: int = 0
    federation: FederationRecord | None = None
    placement: Placement | None = None
    placement_version: int = 0
    features: FeaturesRecord = field(default_factory=FeaturesRecord)
    clusters: Mapping[str, ClusterView] = field(default_factory=dict)
    addresses: Mapping[str, AddressBook] = field(default_factory=dict)  # by listener
    topics: Mapping[str, ServedTopic] = field(default_factory=dict)  # by name
    topics_by_id: Mapping[bytes, ServedTopic] = field(default_factory=dict)  # by logical id
    groups: Mapping[str, HomeRecord] = field(default_factory=dict)
    transactions: Mapping[str, HomeRecord] = field(default_factory=dict)
    stubs: Mapping[tuple[str, str], StubRecord] = field(default_factory=dict)  # by (cluster, topic)
    operations: Mapping[str, OperationRecord] = field(default_factory=dict)
    ejected: Mapping[tuple[str, str], EjectedRecord] = field(default_factory=dict)  # by (cluster, topic)
    links: Mapping[tuple[str, str], LinkRecord] = field(default_factory=dict)  # by (source, target)
    mirrors: Mapping[tuple[str, str, str], MirrorRecord] = field(default_factory=dict)  # by (target, topic, source)
    migrations: Mapping[str, MigrationRecord] = field(default_factory=dict)  # by operation
    migrations_changed: Mapping[str, int] = field(default_factory=dict)  # the store revision each was last seen at
    served_generation: Mapping[str, int] = field(default_factory=dict)

    def physical(self, topic: ServedTopic) -> PhysicalTopic | None:
        """The topic as its serving cluster knows it, or None where that cluster does not (any longer, or not yet)."""
        cluster = self.clusters.get(topic.cluster)
        found = cluster.snapshot.topics.get(topic.name) if cluster else None
        if found is None or (found.id != topic.physical_id and found.id != _NO_ID):
            return None  # a topic re-created behind our back is another topic
        return found

    def is_ejected(self, cluster: str, topic: PhysicalTopic) -> bool:
        """Whether this physical topic has left the federation; another one of its name has not."""
        mark = self.ejected.get((cluster, topic.name))
        return mark is not None and topic.id.hex() == mark.topic_id

    def cluster_of_node(self, node: int) -> tuple[ClusterView, int] | None:
        """(cluster, physical broker id) of a virtual node id, or None."""
        if node < 0:
            return None
        for cluster in self.clusters.values():
            if cluster.record.index == node // STRIDE:
                return cluster, node % STRIDE
        return None

    def to_logical_id(self, cluster: str, physical_id: bytes) -> bytes:
        """The logical id of a topic id as `cluster` knows it (a served topic's or a stub's); itself if unknown."""
        return self._id_maps.get(cluster, {}).get(physical_id, physical_id)

    def to_physical_id(self, cluster: str, logical_id: bytes) -> bytes:
        """The id `cluster` uses for a logical topic id: its own copy's or its stub's; itself if unknown."""
        topic = self.topics_by_id.get(logical_id)
        if topic is None:
            return logical_id
        if topic.cluster == cluster:
            return topic.physical_id
        stub = self.stubs.get((cluster, topic.name))
        return bytes.fromhex(stub.topic_id) if stub and stub.topic_id else logical_id

    def mirrors_of(self, topic: str) -> tuple[MirrorRecord, ...]:
        """The mirrors of a topic, in the order of their keys."""
        cached: dict[str, tuple[MirrorRecord, ...]] | None = self.__dict__.get("_mirrors_of_cache")
        if cached is None:
            cached = {}
            for _, mirror in sorted(self.mirrors.items()):
                cached[mirror.topic] = (*cached.get(mirror.topic, ()), mirror)
            self.__dict__["_mirrors_of_cache"] = cached
        return cached.get(topic, ())

    @property
    def _id_maps(self) -> dict[str, dict[bytes, bytes]]:
        """cluster -> physical id -> logical id, for those that differ; computed once per view."""
        cached: dict[str, dict[bytes, bytes]] | None = self.__dict__.get("_id_maps_cache")
        if cached is None:
            cached = {}
            for topic in self.topics.values():
                if topic.physical_id != topic.id:
                    cached.setdefault(topic.cluster, {})[topic.physical_id] = topic.id
            for (cluster, name), stub in self.stubs.items():
                if stub.topic_id and (served := self.topics.get(name)) is not None:
                    cached.setdefault(cluster, {})[bytes.fromhex(stub.topic_id)] = served.id
            self.__dict__["_id_maps_cache"] = cached
        return cached
