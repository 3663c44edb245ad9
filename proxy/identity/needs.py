"""What a request needs on a cluster, as KafkaApis and ControllerApis of 4.3 check it. Pure.

Used where a cluster cannot be asked as the client itself and its ACLs are evaluated here before the service asks.
A request that is not in this table, or names resources only by id, is refused there: not knowing is no permission.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from proxy.identity.acl import CLUSTER_NAME, DENIED_CODE, Operation, Resource

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from kafka_wire.codec import Message


@dataclass(frozen=True, slots=True)
class Need:
    """One operation on one resource; `instead` names a need that suffices as well (CREATE on the cluster, say)."""

    operation: Operation
    resource: Resource
    name: str = CLUSTER_NAME
    instead: Need | None = None

    @property
    def code(self) -> int:
        """What a broker answers for the resource where this is refused."""
        return int(DENIED_CODE[self.resource])


class NotDecidable(LookupError):
    """The table cannot say what this request needs."""


def needs(key: int, message: Message) -> tuple[Need, ...]:
    """Everything the request must be allowed. Raises NotDecidable.

    What an answer shows beyond that (Metadata of all topics, ListGroups ...) is `answers.shown`'s to hide.
    """
    rule = _TABLE.get(key)
    if rule is None:
        raise NotDecidable(f"what API key {key} needs is not in the table")
    return tuple(dict.fromkeys(rule(message)))


def _name(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise NotDecidable("a resource is named by id only")
    return value


def _cluster(operation: Operation) -> Callable[[Message], Iterable[Need]]:
    need = Need(operation, Resource.CLUSTER)
    return lambda message: (need,)


def _each(
    operation: Operation, resource: Resource, items: str, field: str | None = None
) -> Callable[[Message], Iterable[Need]]:
    """`operation` on every element of `items`: structs' `field`, or plain names; a null list needs nothing."""

    def rule(message: Message) -> Iterable[Need]:
        for one in message.get(items) or ():
            yield Need(operation, resource, _name(one if field is None else one.get(field)))

    return rule


def _one(operation: Operation, resource: Resource, field: str) -> Callable[[Message], Iterable[Need]]:
    return lambda message: (Need(operation, resource, _name(message.get(field))),)


def _all(*rules: Callable[[Message], Iterable[Need]]) -> Callable[[Message], Iterable[Need]]:
    return lambda message: (need for rule in rules for need in rule(message))


def _nothing(message: Message) -> Iterable[Need]:
    return ()


def _create_topics(message: Message) -> Iterable[Need]:
    on_cluster = Need(Operation.CREATE, Resource.CLUSTER)
    for one in message["topics"]:
        yield Need(Operation.CREATE, Resource.TOPIC, _name(one["name"]), instead=on_cluster)


def _delete_topics(message: Message) -> Iterable[Need]:
    for one in message.get("topics") or ():
        yield Need(Operation.DELETE, Resource.TOPIC, _name(one.get("name")))
    for name in message.get("topic_names") or ():
        yield Need(Operation.DELETE, Resource.TOPIC, _name(name))


# ConfigResource types: what holds the permission for their configuration.
_TOPIC_CONFIG, _GROUP_CONFIG = 2, 32
_CLUSTER_CONFIGS = (4, 8, 16)  # broker, broker logger, client metrics


def _configs(operation: Operation) -> Callable[[Message], Iterable[Need]]:
    def rule(message: Message) -> Iterable[Need]:
        for one in message["resources"]:
            kind = one["resource_type"]
            if kind == _TOPIC_CONFIG:
                yield Need(operation, Resource.TOPIC, _name(one["resource_name"]))
            elif kind == _GROUP_CONFIG:
                yield Need(operation, Resource.GROUP, _name(one["resource_name"]))
            elif kind in _CLUSTER_CONFIGS:
                yield Need(operation, Resource.CLUSTER)
            else:
                raise NotDecidable(f"configuration resource type {kind}")

    return rule


def _find_coordinator(message: Message) -> Iterable[Need]:
    kinds = {0: Resource.GROUP, 1: Resource.TRANSACTIONAL_ID}
    kind = kinds.get(message.get("key_type", 0))
    if kind is None:
        raise NotDecidable("a coordinator of another kind")
    for name in message.get("coordinator_keys") or [message.get("key")]:
        yield Need(Operation.DESCRIBE, kind, _name(name))


def _offset_fetch(message: Message) -> Iterable[Need]:
    groups = message.get("groups") or [message]
    for one in groups:
        yield Need(Operation.DESCRIBE, Resource.GROUP, _name(one.get("group_id")))
        yield from _each(Operation.DESCRIBE, Resource.TOPIC, "topics", "name")(one)


def _share_offsets(operation: Operation, on_topics: Operation) -> Callable[[Message], Iterable[Need]]:
    def rule(message: Message) -> Iterable[Need]:
        for one in message.get("groups") or [message]:
            yield Need(operation, Resource.GROUP, _name(one.get("group_id")))
            yield from _each(on_topics, Resource.TOPIC, "topics", "topic_name")(one)

    return rule


_T, _G, _X = Resource.TOPIC, Resource.GROUP, Resource.TRANSACTIONAL_ID
_TABLE: dict[int, Callable[[Message], Iterable[Need]]] = {
    2: _each(Operation.DESCRIBE, _T, "topics", "name"),  # ListOffsets
    3: _each(Operation.DESCRIBE, _T, "topics", "name"),  # Metadata
    8: _all(_one(Operation.READ, _G, "group_id"), _each(Operation.READ, _T, "topics", "name")),  # OffsetCommit
    9: _offset_fetch,
    10: _find_coordinator,
    15: _each(Operation.DESCRIBE, _G, "groups"),  # DescribeGroups
    16: _nothing,  # ListGroups: filtered
    18: _nothing,  # ApiVersions
    19: _create_topics,
    20: _delete_topics,
    21: _each(Operation.DELETE, _T, "topics", "name"),  # DeleteRecords
    23: _each(Operation.DESCRIBE, _T, "topics", "topic"),  # OffsetForLeaderEpoch
    29: _cluster(Operation.DESCRIBE),  # DescribeAcls
    30: _cluster(Operation.ALTER),  # CreateAcls
    31: _cluster(Operation.ALTER),  # DeleteAcls
    32: _configs(Operation.DESCRIBE_CONFIGS),
    33: _configs(Operation.ALTER_CONFIGS),
    34: _cluster(Operation.ALTER),  # AlterReplicaLogDirs
    35: _cluster(Operation.DESCRIBE),  # DescribeLogDirs
    37: _each(Operation.ALTER, _T, "topics", "name"),  # CreatePartitions
    42: _each(Operation.DELETE, _G, "groups_names"),  # DeleteGroups
    43: _cluster(Operation.ALTER),  # ElectLeaders
    44: _configs(Operation.ALTER_CONFIGS),
    45: _cluster(Operation.ALTER),  # AlterPartitionReassignments
    46: _cluster(Operation.DESCRIBE),  # ListPartitionReassignments
    47: _all(_one(Operation.DELETE, _G, "group_id"), _each(Operation.READ, _T, "topics", "name")),  # OffsetDelete
    48: _cluster(Operation.DESCRIBE_CONFIGS),  # DescribeClientQuotas
    49: _cluster(Operation.ALTER_CONFIGS),  # AlterClientQuotas
    50: _cluster(Operation.DESCRIBE),  # DescribeUserScramCredentials
    51: _cluster(Operation.ALTER),  # AlterUserScramCredentials
    57: _cluster(Operation.ALTER),  # UpdateFeatures
    60: _nothing,  # DescribeCluster
    61: _each(Operation.READ, _T, "topics", "name"),  # DescribeProducers
    64: _cluster(Operation.ALTER),  # UnregisterBroker
    65: _each(Operation.DESCRIBE, _X, "transactional_ids"),  # DescribeTransactions
    66: _nothing,  # ListTransactions: filtered
    69: _each(Operation.DESCRIBE, _G, "group_ids"),  # ConsumerGroupDescribe
    74: _cluster(Operation.DESCRIBE_CONFIGS),  # ListConfigResources
    77: _each(Operation.DESCRIBE, _G, "group_ids"),  # ShareGroupDescribe
    89: _each(Operation.DESCRIBE, _G, "group_ids"),  # StreamsGroupDescribe
    90: _share_offsets(Operation.DESCRIBE, Operation.DESCRIBE),  # DescribeShareGroupOffsets
    91: _share_offsets(Operation.READ, Operation.READ),  # AlterShareGroupOffsets
    92: _share_offsets(Operation.DELETE, Operation.READ),  # DeleteShareGroupOffsets
}
