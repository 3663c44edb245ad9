"""What the store keeps, as frozen values, and the keys they are kept under.

Everything below `view/` is what workers follow: together it is the federation's state at one revision. What
workers write about themselves (registrations, acknowledged revisions) and what nobody decides by (inventory,
history) lies outside, so that an acknowledgement does not itself make a new revision to acknowledge.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from runtime.settings import Cluster, Placement

STRIDE = 100_000
MAX_CLUSTER_INDEX = 4094

KAFKA_INTERNAL = frozenset({"__consumer_offsets", "__transaction_state", "__share_group_state"})
OWN_PREFIX = "__kfed_"  # topics the federation keeps for itself on each cluster; clients never see them

OWN_TRANSACTIONS = "kfed-mirror."  # transactional ids the mirrors use; clients neither see nor use them

VIEW = "view/"
FEDERATION = "view/federation"
PLACEMENT = "view/placement"
FEATURES = "view/features"
CLUSTERS = "view/clusters/"
ADDRESSES = "view/addresses/"
TOPICS = "view/topics/"
GROUP_HOMES = "view/homes/groups/"
TRANSACTION_HOMES = "view/homes/transactions/"
STUBS = "view/stubs/"
OPERATIONS = "view/operations/"
EJECTED = "view/ejected/"  # <cluster>/<topic>
LINKS = "view/links/"  # <source>/<target>
MIRRORS = "view/mirrors/"  # <target>/<topic>/<source>
WORKERS = "workers/registered/"
LEASES = "workers/leases/"
INVENTORY = "inventory/"
HISTORY = "history/"
CONTROLLER = "controller"
IDENTITIES = "identities/"  # a Kafka cluster.id -> the one name it may have here
HEALTH = "health/"
AUDITS = "audits/"
# Outside the view: a worker that writes them must not thereby make a revision to acknowledge.
ASSIGNMENTS = "replicator/assignments/"  # <target>/<topic>/<source>/<unit>
COPIERS = "replicator/workers/"  # <instance>/<worker>, bound to its lease: who may be given units
REPORTS = "replicator/reports/"  # <instance>/<worker>/<target>/<topic>/<source>
FINISHED = "replicator/finished/"  # <target>/<topic>/<source>/<unit>
MIRRORS_CHANGED = "replicator/changed"  # written whenever mirrors are created: what may be depends on the others
WAITS = "migrations/waits/"  # <operation>: what it waits for, for people
TOMBSTONES = "tombstones/"  # physical topic ids just deleted, for a minute: a slow broker may still name them


class _Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Unknown keys are ignored on reading, so that a record of the next version is still understood."""


class FederationRecord(_Record, frozen=True):
    """Name and identity. `cluster_id` is what clients see as the logical cluster's id."""

    name: str
    cluster_id: str
    created: float


class ClusterRecord(_Record, frozen=True):
    """One physical cluster. `index` is given once, for ever; a removed cluster keeps its record and its index."""

    name: str
    index: int
    settings: Cluster
    state: Literal["active", "removed"] = "active"
    kafka_id: str | None = None  # its own cluster.id, once seen: another id behind the same name is refused


class AddressBook(_Record, frozen=True):
    """The ports of one listener's virtual brokers, `"east/1" -> 9301`; given once, never reused while listed."""

    ports: dict[str, int] = {}


class PlacementEpoch(_Record, frozen=True):
    """One entry of a topic's timeline: from logical offset `first[partition]` on it is served by `cluster`."""

    cluster: str
    topic_id: str  # the physical topic's id on that cluster, 32 hex digits
    first: dict[int, int] = {}
    first_physical: dict[int, int] = {}  # where `first` lies on `cluster`: its table's own part begins there
    physical_epochs: dict[int, tuple[tuple[int, int], ...]] = {}
    tag_producers: bool = False  # add placement_epoch << 52 to producer ids: this cluster has held the topic before


class TopicRecord(_Record, frozen=True):
    """A logical topic. `id` is its logical topic id (32 hex digits) and never changes; `timeline` never shrinks.

    `conflict` names the other clusters where an unrelated topic of the same name exists (hidden from clients).
    `hold` names the operation that is holding writes at this moment.
    """

    name: str
    id: str
    timeline: tuple[PlacementEpoch, ...]
    partitions: int
    standbys: tuple[str, ...] = ()
    writes: Literal["available", "leased"] = "available"
    conflict: tuple[str, ...] = ()
    hold: str | None = None
    created: float = 0.0
    adopted: bool = False  # existed before the federation knew it
    judged: int = 0  # the version of the placement rules by which `conflict` was last decided

    @property
    def cluster(self) -> str:
        """The cluster that serves it now."""
        return self.timeline[-1].cluster

    @property
    def epoch(self) -> int:
        """The placement epoch, 0 for a topic that never moved."""
        return len(self.timeline) - 1


class HomeMove(_Record, frozen=True):
    """A group's home on its way from `source` to `to`.

    `gathering`: members commit at `source` and leave it. `closed`: no worker that knows passes anything of the group
    on, to either. `moved`: `to` is the home, what `source` had is being deleted.
    """

    operation: str
    source: str
    to: str
    state: Literal["gathering", "closed", "moved"] = "gathering"


class HomeRecord(_Record, frozen=True):
    """The cluster that coordinates a group or a transactional id.

    `written` is False for a transactional id that has named no topic yet: the first topic it names decides.
    `carry` names other clusters whose commits still count, for topics that come from there and have no commit at the
    home (see `carrying`). `conflict` names those where the group is as well, and which do not count: shown, and left
    to the operator. `unasked` names those that were away when the home was decided: what they may have counts too.
    `move`: the home is being moved; nobody but that operation changes the record. `left` names those that a
    transactional id has moved away from with its topics, and that remember it: what they know is over.
    """

    name: str
    cluster: str
    written: bool = True
    conflict: tuple[str, ...] = ()
    carry: tuple[str, ...] = ()
    unasked: tuple[str, ...] = ()
    move: HomeMove | None = None
    left: tuple[str, ...] = ()


class EjectedRecord(_Record, frozen=True):
    """A physical topic that has left the federation, and is not to be adopted again: this one, by its id. While it is
    leaving, `record` is what the federation knew of it, and its stubs stay. Unix seconds."""

    topic: str
    cluster: str
    topic_id: str
    operation: str
    at: float
    by: str
    record: TopicRecord | None = None


class StubRecord(_Record, frozen=True):
    """An empty, closed topic on a group's home that stands in for a topic which lives elsewhere.

    It is recorded before it is created, so that a half-made stub is never taken for somebody's topic: until its
    cluster is known to have it, `topic_id` is empty. `borrowed` marks a topic of the same name that was there
    before and is used as it is: never closed, expanded or deleted by us. `mirrored`: it is a mirror's target, expanded
    with its topic. `stands_for` is the logical id of the topic it was made for: positions of that one are void for
    another topic of its name.
    """

    topic: str
    cluster: str
    topic_id: str  # the stub's own id on `cluster`
    partitions: int
    borrowed: bool = False
    mirrored: bool = False
    stands_for: str = ""


class FeaturesRecord(_Record, frozen=True):
    """The finalized features clients are told: the minimum over the clusters, with an epoch that only grows."""

    epoch: int = 0
    levels: dict[str, int] = {}


class HealthRecord(_Record, frozen=True):
    """What the controller sees of a cluster. Times are Unix seconds. `refused`: not the cluster it was."""

    state: Literal["up", "away", "refused"]
    since: float
    reason: str = ""
    brokers: tuple[int, ...] = ()
    unreachable: dict[int, str] = {}
    too_large: tuple[int, ...] = ()  # broker ids of STRIDE or more, left out


class GroupUse(_Record, frozen=True):
    """A group's committed position in one topic. Lag in records over its partitions; -1 where it is not known."""

    lag: int
    partitions: int
    state: str = ""
    kind: str = ""


class InventoryRecord(_Record, frozen=True):
    """Who reads and writes a topic, as the controller last saw it (Unix seconds)."""

    at: float
    groups: dict[str, GroupUse] = {}
    producers: int = 0  # producer ids with state on the leaders; idempotent or transactional ones only
    last_write: float = 0.0  # the newest of their timestamps, Unix seconds
    direct: int = 0  # producers among them whose id no proxy gave out: they write past the federation
    last_direct: float = 0.0


class AuditRecord(_Record, frozen=True):
    """What on a cluster does not fit a federation, as the controller last looked (Unix seconds)."""

    at: float
    # Groups with members from hosts that are no proxy's, with some of those hosts. On one machine every host is the
    # same: then only groups that are live on a cluster which is not their home are found.
    direct_groups: dict[str, tuple[str, ...]] = {}
    host_acls: tuple[str, ...] = ()  # ACLs that name a host: brokers see the proxies' addresses, not the clients'


class ControllerRecord(_Record, frozen=True):
    """Which process is the active controller; bound to its lease."""

    instance: str
    pid: int
    host: str
    since: float


class WorkerRecord(_Record, frozen=True):
    """A registered process. The registration outlives its lease; an operator removes it when the process is dead."""

    instance: str
    worker: int
    role: Literal["proxy", "controller", "replicator"]
    pid: int
    host: str
    started: float
    version: str
    addresses: tuple[str, ...] = ()  # from which it reaches the clusters


def process_name(record: WorkerRecord) -> str:
    """What migrations call a registered process: it stands for this one, not for the next one under the same key."""
    return f"{record.instance}/{record.role}-{record.worker}@{record.started:.3f}"


class LeaseRecord(_Record, frozen=True):
    """Lives as long as the worker's lease. `acknowledged` is the newest store revision its view has applied."""

    acknowledged: int
    connections: int = 0


class OperationRecord(_Record, frozen=True):
    """A durable, resumable piece of work; each step is recorded before and after it is done."""

    id: str
    kind: str
    state: Literal["planned", "running", "paused", "done", "failed", "aborted"]
    step: str
    started: float
    by: str
    plan: dict[str, object] = {}
    result: dict[str, object] = {}


class WaitsRecord(_Record, frozen=True):
    """What an operation waits for at a step, as a sentence. Nobody decides by it."""

    step: str
    text: str


class ChangeRecord(_Record, frozen=True):
    """History: who changed what, when, what was planned and what came of it."""

    at: float
    by: str
    what: str
    plan: dict[str, object] = {}
    result: dict[str, object] = {}


class PlacementRecord(_Record, frozen=True):
    """The live placement rules (seeded from the file once)."""

    placement: Placement
    version: int = 1


class LinkRecord(_Record, frozen=True):
    """Replication from one cluster to another. `rate` is bytes a second for all of its mirrors, 0 for no limit."""

    source: str
    target: str
    rate: float = 0.0
    state: Literal["running", "paused"] = "running"


class MirrorRecord(_Record, frozen=True):
    """One topic on a link.

    `operation` names the move this mirror belongs to; `generation` is the copy's, raised when it is begun anew.
    `final` are the target's configuration values to be set once the mirror has finished; while it ships, the target is
    CreateTime with widened limits. `rule`: made because the topic's record names the target as a standby, and removed
    when it does not any longer. `delete_copy`: of a mirror being removed, whether the target's topic goes as well.
    `ends`: where the source ends, of one that is `finishing`. `lent`: it was there before its `operation`, and goes on
    when that is given up.
    """

    topic: str
    source: str
    target: str
    mode: Literal["ship", "exchange"]
    created: float
    target_id: str = ""  # the target topic's id, 32 hex digits, once it exists
    generation: int = 0
    state: Literal["running", "paused", "finishing", "finished", "removing"] = "running"
    operation: str | None = None
    final: dict[str, str] = {}
    rule: bool = False
    delete_copy: bool = False
    ends: dict[int, int] = {}
    lent: bool = False


class AssignmentRecord(_Record, frozen=True):
    """Who copies a unit: claimed and given back by compare-and-swap, bound to the worker's lease, so that it is free
    again when that ends."""

    instance: str
    worker: int
    partitions: tuple[int, ...]
    since: float


class PartitionReport(_Record, frozen=True):
    """A partition's figures as its worker last wrote them; offsets are the source's."""

    condition: str
    position: int
    end: int
    lag_bytes: int = 0
    lag_seconds: float = 0.0
    detail: str = ""
    foreign: int = 0
    overtaken: int = 0


class ReportRecord(_Record, frozen=True):
    """What one worker says about one mirror (Unix seconds); written every few seconds, bound to its lease.

    `operation`, `generation`: of the mirror's record by which it was written; with others it is of an earlier mirror.
    """

    at: float
    operation: str | None = None
    generation: int = 0
    partitions: dict[int, PartitionReport] = {}
    rate: float = 0.0  # bytes a second, of late
    problems: tuple[str, ...] = ()  # what keeps it from beginning, or has come since
    error: str = ""  # why source and target could not be compared
    remarks: tuple[str, ...] = ()  # how the target's ACLs and quotas differ from the source's; for people to decide


class FinishedRecord(_Record, frozen=True):
    """A unit of a mirror that was `finishing` has copied everything below `ends` (the source's physical offsets, by
    partition), its last checkpoint is stored, and nothing of it is on its way any longer. It stands for this
    `operation` and `generation` only; whoever drops the mirror drops it as well."""

    operation: str
    generation: int
    ends: dict[int, int]


class CopierRecord(_Record, frozen=True):
    """A replicator worker that takes units."""

    pid: int
    host: str


def topic_key(name: str) -> str:
    return TOPICS + name


def worker_key(prefix: str, instance: str, role: str, worker: int) -> str:
    return f"{prefix}{instance}/{role}-{worker}"


def is_internal(topic: str) -> bool:
    """Kafka's own topics and ours: never placed by a rule, never moved, never stood in for."""
    return topic in KAFKA_INTERNAL or topic.startswith(OWN_PREFIX)


def stub_key(cluster: str, topic: str) -> str:
    return f"{STUBS}{cluster}/{topic}"


def ejected_key(cluster: str, topic: str) -> str:
    return f"{EJECTED}{cluster}/{topic}"


def link_key(source: str, target: str) -> str:
    return f"{LINKS}{source}/{target}"


def mirror_key(target: str, topic: str, source: str) -> str:
    return f"{MIRRORS}{target}/{topic}/{source}"


def assignment_key(target: str, topic: str, source: str, unit: int) -> str:
    return f"{ASSIGNMENTS}{target}/{topic}/{source}/{unit}"


def copier_key(instance: str, worker: int) -> str:
    return f"{COPIERS}{instance}/{worker}"


def finished_key(target: str, topic: str, source: str, unit: int) -> str:
    return f"{FINISHED}{target}/{topic}/{source}/{unit}"


def report_key(instance: str, worker: int, target: str, topic: str, source: str) -> str:
    return f"{REPORTS}{instance}/{worker}/{target}/{topic}/{source}"
