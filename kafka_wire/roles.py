"""What the fields of messages mean, at every version, and one walk that maps them in place.

Roles come from the definitions' own entity types, from names where these are unambiguous, and from the explicit
lists below. Every other field whose name or type looks as if it could identify a broker, a topic or a position has
to be in `HARMLESS`, with a reason; a test walks all definitions and fails on what nobody has classified.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache, lru_cache
from typing import Any

from kafka_wire.codec import TAGS, Message
from kafka_wire.schema import NEVER, Direction, Field, Versions, by_key


class Role(StrEnum):
    """What a field carries. ENDPOINT is a struct: a broker's node id, host and port (and perhaps rack) together."""

    TOPIC_NAME = "topic name"
    TOPIC_ID = "topic id"
    GROUP_ID = "group id"
    TRANSACTIONAL_ID = "transactional id"
    PRODUCER_ID = "producer id"
    NODE_ID = "node id"
    ENDPOINT = "endpoint"
    HOST = "host"
    PORT = "port"
    RACK = "rack"
    OFFSET = "offset"
    LEADER_EPOCH = "leader epoch"
    RECORDS = "records"
    CLUSTER_ID = "cluster id"
    ERROR_MESSAGE = "error message"
    RESOURCE_NAME = "resource name"


@dataclass(frozen=True, slots=True)
class RoleAt:
    """A field with a role: its dotted path and the versions that have it."""

    path: str
    role: Role
    versions: Versions
    field: Field


_BY_ENTITY = {
    "topicName": Role.TOPIC_NAME,
    "groupId": Role.GROUP_ID,
    "transactionalId": Role.TRANSACTIONAL_ID,
    "producerId": Role.PRODUCER_ID,
    "brokerId": Role.NODE_ID,
}

_BY_NAME = {
    "topic_id": Role.TOPIC_ID,
    "cluster_id": Role.CLUSTER_ID,
    "error_message": Role.ERROR_MESSAGE,
    "batch_index_error_message": Role.ERROR_MESSAGE,
    "acknowledge_error_message": Role.ERROR_MESSAGE,
    "status_detail": Role.ERROR_MESSAGE,
    "records": Role.RECORDS,
    "leader_id": Role.NODE_ID,
    "voter_id": Role.NODE_ID,
    "leader_epoch": Role.LEADER_EPOCH,
    "current_leader_epoch": Role.LEADER_EPOCH,
    "committed_leader_epoch": Role.LEADER_EPOCH,
    "last_fetched_epoch": Role.LEADER_EPOCH,
    "resource_name": Role.RESOURCE_NAME,
    "resource_name_filter": Role.RESOURCE_NAME,
    "offset": Role.OFFSET,
    "base_offset": Role.OFFSET,
    "first_offset": Role.OFFSET,
    "last_offset": Role.OFFSET,
    "start_offset": Role.OFFSET,
    "end_offset": Role.OFFSET,
    "fetch_offset": Role.OFFSET,
    "log_start_offset": Role.OFFSET,
    "log_end_offset": Role.OFFSET,
    "committed_offset": Role.OFFSET,
    "high_watermark": Role.OFFSET,
    "low_watermark": Role.OFFSET,
    "last_stable_offset": Role.OFFSET,
    "current_txn_start_offset": Role.OFFSET,
}

# (key, direction, path) -> role where neither entity type nor name says it.
_EXPLICIT: dict[tuple[int, Direction, str], Role] = {
    (1, "response", "responses.partitions.diverging_epoch.epoch"): Role.LEADER_EPOCH,
    (66, "response", "transaction_states.producer_id"): Role.PRODUCER_ID,
    (22, "response", "ongoing_txn_producer_id"): Role.PRODUCER_ID,
}
for _key in (83, 84, 85, 86, 87):
    _EXPLICIT[_key, "request", "group_id"] = Role.GROUP_ID

# Structs that are ENDPOINT although their addresses are a list below the node id: (key, direction, path) -> the list.
_ADDRESS_LISTS: dict[tuple[int, Direction, str], str] = {(55, "response", "nodes"): "listeners"}

_CLIENTS_OWN = "chosen by the client, not a broker's"
_COUNTER = "a counter of its own, no leader epoch"
_SETTING = "a number or flag of the request"
# Suspicious by name or type, and yet without a role: (key or None for all, path's last name) -> why.
HARMLESS: dict[tuple[int | None, str], str] = {
    (None, "replica_directory_id"): "a random id of a log directory, no address",
    (None, "voter_directory_id"): "a random id of a log directory, no address",
    (None, "replica_epoch"): "followers only; refused",
    (None, "session_epoch"): _COUNTER,
    (None, "share_session_epoch"): _COUNTER,
    (None, "producer_epoch"): "belongs to its producer id",
    (None, "ongoing_txn_producer_epoch"): "belongs to its producer id",
    (None, "v3_and_below_producer_epoch"): "belongs to its producer id",
    (None, "coordinator_epoch"): _COUNTER,
    (None, "member_epoch"): _COUNTER,
    (None, "generation_id_or_member_epoch"): _COUNTER,
    (None, "group_epoch"): _COUNTER,
    (None, "assignment_epoch"): _COUNTER,
    (None, "topology_epoch"): _COUNTER,
    (None, "state_epoch"): _COUNTER,
    (None, "endpoint_information_epoch"): _COUNTER,
    (None, "finalized_features_epoch"): "the federation's own, from its store",
    (None, "rack_id"): _CLIENTS_OWN,
    (None, "client_host"): "the address a broker saw: a proxy's",
    (None, "offset_lag"): "a difference",
    (None, "task_offset_interval_ms"): _SETTING,
    (None, "allow_replication_factor_change"): _SETTING,
    (None, "replication_factor"): _SETTING,
    (None, "include_cluster_authorized_operations"): _SETTING,
    (None, "cluster_authorized_operations"): _SETTING,
    (None, "include_fenced_brokers"): _SETTING,
    (None, "max_version_level"): _SETTING,
    (None, "client_instance_id"): _CLIENTS_OWN,
    (None, "leader"): "a group member's id",
    (None, "endpoint_type"): _SETTING,
    (10, "coordinator_keys"): "group or transactional ids, by key_type",
    (None, "host_filter"): "a client's host in an ACL",
    (1, "epoch"): "followers' snapshots only",
    (88, "epoch"): _COUNTER,
    (89, "epoch"): _COUNTER,
    (29, "host"): "a client's host in an ACL",
    (30, "host"): "a client's host in an ACL",
    (31, "host"): "a client's host in an ACL",
    (88, "host"): "the user endpoint of a streams application",
    (88, "port"): "the user endpoint of a streams application",
    (89, "host"): "the user endpoint of a streams application",
    (89, "port"): "the user endpoint of a streams application",
    (80, "host"): "a request that is refused",
    (80, "port"): "a request that is refused",
    (35, "is_cordoned"): _SETTING,
}

SUSPICIOUS = re.compile(
    r"host|port$|node|broker|leader|controller|replica|voter|observer|epoch|offset|watermark|rack|cluster|address"
    r"|endpoint|listener|producer_id|error_message|detail|topic_id|^records$|advertised|coordinator|isr|elr"
)


def is_suspicious(field: Field) -> bool:
    """Whether a leaf field must be classified on purpose."""
    return not field.fields and (field.type in ("uuid", "records") or SUSPICIOUS.search(field.name) is not None)


def _node_field(fields: tuple[Field, ...]) -> str | None:
    """The node id of a struct that names a broker and its address, else None."""
    names = {one.name for one in fields}
    if not {"host", "port"} <= names:
        return None
    return next((one.name for one in fields if one.entity == "brokerId" and not one.array), None)


def role_of(direction: Direction, key: int, path: str, field: Field) -> Role | None:
    """The role of one leaf field, looked at alone."""
    if explicit := _EXPLICIT.get((key, direction, path)):
        return explicit
    if field.entity is not None:
        return _BY_ENTITY[field.entity]
    if field.type == "bool" or (key, field.name) in HARMLESS:
        return None
    return _BY_NAME.get(field.name)


@cache
def roles(direction: Direction, key: int) -> tuple[RoleAt, ...]:
    """Every field with a role, parents before children; an ENDPOINT of path "" is the message itself.

    The node id, host, port and rack within an ENDPOINT are covered by it.
    """
    definition = by_key(direction)[key]
    out: list[RoleAt] = []
    root = Field("", "struct", False, definition.versions, NEVER, None, NEVER, None, None, None, definition.fields)
    covered: set[str] = set()
    for path, one in (("", root), *definition.walk()):
        prefix = path + "." if path else ""
        if one.fields:
            node = _node_field(one.fields)
            if node is not None:
                out.append(RoleAt(path, Role.ENDPOINT, one.versions, one))
                covered.update(prefix + name for name in (node, "host", "port", "rack"))
            elif listed := _ADDRESS_LISTS.get((key, direction, path)):
                out.append(RoleAt(path, Role.ENDPOINT, one.versions, one))
                covered.update(f"{prefix}{listed}.{name}" for name in ("name", "host", "port"))
        elif path not in covered and (role := role_of(direction, key, path, one)) is not None:
            out.append(RoleAt(path, role, one.versions, one))
    return tuple(out)


def unclassified(direction: Direction, key: int) -> list[str]:
    """Paths of suspicious leaf fields that have neither a role nor a reason to have none."""
    known = {at.path for at in roles(direction, key)}
    inside = {at.path for at in roles(direction, key) if at.role is Role.ENDPOINT}
    out = []
    for path, one in by_key(direction)[key].walk():
        if not is_suspicious(one) or path in known:
            continue
        if (key, one.name) in HARMLESS or (None, one.name) in HARMLESS:
            continue
        parent = path.rpartition(".")[0]
        if parent in inside or parent.rpartition(".")[0] in inside - {""}:
            continue
        out.append(path)
    return out


# One walk that maps. The plan of (direction, key, version, roles) is made once.

Mapper = Callable[[Any], Any]
Address = tuple[int, str, int]  # virtual node id, advertised host, port
NOWHERE: Address = (-1, "", -1)


class _Plan:
    """What to do with one struct."""

    __slots__ = ("children", "endpoint", "leaves")

    def __init__(self) -> None:
        self.leaves: list[tuple[str, bool, Role]] = []
        self.children: list[tuple[str, bool, _Plan]] = []
        self.endpoint: tuple[str, str | None] | None = None  # the node id's field, the list of addresses if it is one

    @property
    def empty(self) -> bool:
        return not (self.leaves or self.children or self.endpoint)


@lru_cache(maxsize=2048)
def _plan(direction: Direction, key: int, version: int | None, wanted: frozenset[Role]) -> _Plan:
    at = {one.path: one.role for one in roles(direction, key) if one.role in wanted}

    def build(fields: tuple[Field, ...], prefix: str, path: str) -> _Plan:
        plan = _Plan()
        if at.get(path) is Role.ENDPOINT:
            node = next(one.name for one in fields if one.entity == "brokerId" and not one.array)
            if version is None or any(one.name == node and version in one.versions for one in fields):
                plan.endpoint = (node, _ADDRESS_LISTS.get((key, direction, path)))
        for one in fields:
            if version is not None and version not in one.versions and version not in one.tagged:
                continue
            here = prefix + one.name
            if one.fields:
                child = build(one.fields, here + ".", here)
                if not child.empty:
                    plan.children.append((one.name, one.array, child))
            elif (role := at.get(here)) is not None:
                plan.leaves.append((one.name, one.array, role))
        return plan

    return build(by_key(direction)[key].fields, "", "")


def _apply(plan: _Plan, message: Message, mapping: Mapping[Role, Mapper]) -> bool:
    """Map one struct; False where it is an endpoint nobody may be told of."""
    message.pop(TAGS, None)
    if plan.endpoint is not None and plan.endpoint[1] is not None:
        message[plan.endpoint[1]] = []
    elif plan.endpoint is not None and plan.endpoint[0] in message:
        node = plan.endpoint[0]
        address: Address | None = mapping[Role.ENDPOINT](message[node])
        message[node], message["host"], message["port"] = address or NOWHERE
        if address is None:
            return False
    for name, array, role in plan.leaves:
        value = message.get(name)
        if value is not None:
            mapper = mapping[role]
            message[name] = [mapper(item) for item in value] if array else mapper(value)
    for name, array, child in plan.children:
        value = message.get(name)
        if value is None:
            continue
        if array:
            message[name] = [item for item in value if _apply(child, item, mapping)]
        else:
            _apply(child, value, mapping)
    return True


def rewrite(
    direction: Direction, key: int, version: int | None, message: Message, mapping: Mapping[Role, Mapper]
) -> Message:
    """Map the fields that have the roles of `mapping`, in place; nulls stay null. Returns `message`.

    `version` None stands for a message of any version. Tagged fields nobody knows here are left out on the way: what
    a newer broker says in them cannot be mapped, and may name a broker.

    ENDPOINT is mapped by a function of the physical node id that gives `(virtual node id, host, port)`, or None: the
    broker is then left out of its list, or shown as node -1 without an address where it stands alone. A list of
    addresses below a node id (DescribeQuorum) is emptied.
    """
    _apply(_plan(direction, key, version, frozenset(mapping)), message, mapping)
    return message
