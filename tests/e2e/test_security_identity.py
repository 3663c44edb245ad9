"""Nobody sees or does through the endpoint what the clusters would refuse: two principals, each compared with what the
clusters themselves answer.

Of "orders-..." alice may use what lives on east and bob what lives on west, and that is all either may.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import trio
from aiokafka.record.default_records import DefaultRecordBatchBuilder

from kafka_client import ClusterClient
from kafka_wire.acls import every_acl
from kafka_wire.codec import Message
from kafka_wire.errors import ERROR
from tests.fixtures.names import Names
from tests.fixtures.security import SecuredFederation, acl, client_of, make_topics

PRODUCE, FETCH, LIST_OFFSETS, METADATA, OFFSET_COMMIT, OFFSET_FETCH, FIND_COORDINATOR = 0, 1, 2, 3, 8, 9, 10
WRONG_BROKER = int(ERROR.NOT_LEADER_OR_FOLLOWER)


def batch() -> bytes:
    """One record."""
    made = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, -1, 1 << 16)
    made.append(0, 1_700_000_000_000, None, b"value", [])
    return bytes(made.build())


def _named(value: Any, name: str) -> list[int]:
    """Every error code under what bears the name."""
    if isinstance(value, list):
        return [code for one in value for code in _named(one, name)]
    if not isinstance(value, dict):
        return []
    if name in (value.get("name"), value.get("topic"), value.get("topic_name"), value.get("resource_name")):
        return _codes(value)
    return [code for one in value.values() for code in _named(one, name)]


def _codes(value: Any) -> list[int]:
    if isinstance(value, list):
        return [code for one in value for code in _codes(one)]
    if not isinstance(value, dict):
        return []
    here = [one for key, one in value.items() if key == "error_code"]
    return here + [code for one in value.values() for code in _codes(one)]


@dataclass(frozen=True)
class Ask:
    """A request about one topic. `at_leader`: another broker than its leader answers so."""

    key: int
    message: Callable[[str], Message]
    version: int | None = None
    at_leader: bool = False


def _partitions(**fields: Any) -> Callable[[str], Message]:
    return lambda name: {"topics": [{"name": name, "topic": name, "partitions": [fields]}]}


ABOUT_A_TOPIC = {
    "Metadata": Ask(METADATA, lambda name: {"topics": [{"name": name}], "allow_auto_topic_creation": False}, 8),
    "DescribeTopicPartitions": Ask(75, lambda name: {"topics": [{"name": name}], "response_partition_limit": 10}),
    "DescribeConfigs": Ask(
        32, lambda name: {"resources": [{"resource_type": 2, "resource_name": name, "configuration_keys": None}]}
    ),
    "IncrementalAlterConfigs": Ask(
        44,
        lambda name: {"resources": [{"resource_type": 2, "resource_name": name, "configs": []}], "validate_only": True},
    ),
    "AlterConfigs": Ask(
        33,
        lambda name: {"resources": [{"resource_type": 2, "resource_name": name, "configs": []}], "validate_only": True},
    ),
    "CreateTopics": Ask(
        19,
        lambda name: {
            "topics": [{"name": name, "num_partitions": 1, "replication_factor": 1, "assignments": [], "configs": []}],
            "timeout_ms": 10000,
            "validate_only": True,
        },
    ),
    "CreatePartitions": Ask(
        37,
        lambda name: {
            "topics": [{"name": name, "count": 2, "assignments": None}],
            "timeout_ms": 10000,
            "validate_only": True,
        },
    ),
    "ListOffsets": Ask(
        LIST_OFFSETS,
        lambda name: {"replica_id": -1, **_partitions(partition_index=0, timestamp=-1)(name)},
        at_leader=True,
    ),
    "OffsetForLeaderEpoch": Ask(
        23,
        lambda name: {"replica_id": -1, **_partitions(partition=0, current_leader_epoch=-1, leader_epoch=0)(name)},
        at_leader=True,
    ),
    "DeleteRecords": Ask(
        21,
        lambda name: {"timeout_ms": 5000, **_partitions(partition_index=0, offset=0)(name)},
        at_leader=True,
    ),
    "DescribeProducers": Ask(61, lambda name: {"topics": [{"name": name, "partition_indexes": [0]}]}, at_leader=True),
    "Produce": Ask(
        PRODUCE,
        lambda name: {
            "transactional_id": None,
            "acks": -1,
            "timeout_ms": 5000,
            "topic_data": [{"name": name, "partition_data": [{"index": 0, "records": batch()}]}],
        },
        9,
        at_leader=True,
    ),
    "Fetch": Ask(
        FETCH,
        lambda name: {
            "replica_id": -1,
            "max_wait_ms": 0,
            "min_bytes": 0,
            "session_epoch": -1,
            **_partitions(partition=0, fetch_offset=0, partition_max_bytes=1000)(name),
            "forgotten_topics_data": [],
        },
        11,
        at_leader=True,
    ),
}


@dataclass
class Eyes:
    """One principal's clients: of each cluster itself, and of the endpoint."""

    user: str
    direct: dict[str, ClusterClient]
    endpoint: ClusterClient
    brokers: dict[str, int]  # cluster -> the node id of its one virtual broker

    @classmethod
    @asynccontextmanager
    async def of(cls, secured: SecuredFederation, user: str) -> AsyncIterator[Eyes]:
        async with AsyncExitStack() as stack:
            east = await stack.enter_async_context(client_of(secured.east, user))
            west = await stack.enter_async_context(client_of(secured.west, user))
            endpoint = await stack.enter_async_context(secured.client(user))
            await endpoint.refresh()
            low, high = sorted(endpoint.brokers)
            yield cls(user, {"east": east, "west": west}, endpoint, {"east": low, "west": high})

    async def settled(self, node: int, ask: Ask, name: str) -> Message:
        """The answer of one worker after it has seen the topic's leader, which another one may have found."""
        with trio.fail_after(20):
            while True:
                answer = await self.endpoint.call(ask.key, ask.message(name), node, ask.version)
                if ERROR.LEADER_NOT_AVAILABLE not in _named(answer, name):
                    return answer


def home(name: str) -> str:
    return "west" if name.endswith("-west") else "east"


@pytest.fixture
async def topics(secured: SecuredFederation, names: Names) -> dict[str, str]:
    """What a name stands for, by name: some exist and some do not, on each cluster."""
    made: dict[str, str] = {}
    for ending in ("", "-west"):
        for word in ("orders", "hidden"):
            made[names.topic(word) + ending] = f"{word}{ending}"
            made[names.topic(f"{word}-absent") + ending] = f"{word}-absent{ending}"
    there = [name for name, kind in made.items() if "absent" not in kind]
    await make_topics(secured.east, *(name for name in there if home(name) == "east"))
    await make_topics(secured.west, *(name for name in there if home(name) == "west"))
    return made


@pytest.mark.parametrize("user", ["alice", "bob"])
async def test_about_a_topic_as_its_cluster_answers(
    secured: SecuredFederation, topics: dict[str, str], user: str
) -> None:
    wrong = []
    async with Eyes.of(secured, user) as eyes:
        for what, ask in ABOUT_A_TOPIC.items():
            for name, kind in topics.items():
                own = eyes.direct[home(name)]
                expected = _named(await own.call(ask.key, ask.message(name), version=ask.version), name)
                for via, node in eyes.brokers.items():
                    given = _named(await eyes.settled(node, ask, name), name)
                    allowed = [expected]
                    if ask.at_leader and via != home(name) and expected == [0]:
                        allowed = [[WRONG_BROKER]]
                    if given not in allowed:
                        wrong.append(f"{what} of {kind} by {user} at {via}: {given} instead of {allowed}")
    assert not wrong, "\n".join(wrong)


# What needs the cluster's permission: no client here has any.
ABOUT_THE_CLUSTER: dict[str, tuple[int, Message]] = {
    "DescribeAcls": (29, every_acl()),
    "CreateAcls": (30, {"creations": [acl("alice", 2, 2, "orders-")]}),
    "DeleteAcls": (
        31,
        {
            "filters": [
                {
                    "resource_type_filter": 2,
                    "resource_name_filter": None,
                    "pattern_type_filter": 1,
                    "principal_filter": None,
                    "host_filter": None,
                    "operation": 1,
                    "permission_type": 1,
                }
            ]
        },
    ),
    "DescribeClientQuotas": (48, {"components": [], "strict": False}),
    "AlterClientQuotas": (
        49,
        {
            "entries": [
                {
                    "entity": [{"entity_type": "user", "entity_name": "alice"}],
                    "ops": [{"key": "producer_byte_rate", "value": 1.0, "remove": False}],
                }
            ],
            "validate_only": True,
        },
    ),
    "DescribeUserScramCredentials": (50, {"users": [{"name": "alice"}]}),
    "AlterUserScramCredentials": (
        51,
        {
            "deletions": [],
            "upsertions": [
                {
                    "name": "alice",
                    "mechanism": 1,
                    "iterations": 4096,
                    "salt": b"salt",
                    "salted_password": b"p" * 32,
                }
            ],
        },
    ),
    "ListPartitionReassignments": (46, {"timeout_ms": 5000, "topics": None}),
    "ElectLeaders": (43, {"election_type": 0, "topic_partitions": None, "timeout_ms": 5000}),
    "DescribeConfigs of brokers": (
        32,
        {"resources": [{"resource_type": 4, "resource_name": "", "configuration_keys": None}]},
    ),
    "IncrementalAlterConfigs of brokers": (
        44,
        {"resources": [{"resource_type": 4, "resource_name": "", "configs": []}], "validate_only": True},
    ),
    "DescribeQuorum": (55, {"topics": [{"topic_name": "__cluster_metadata", "partitions": [{"partition_index": 0}]}]}),
    "UpdateFeatures": (57, {"timeout_ms": 5000, "feature_updates": [], "validate_only": True}),
    "ListConfigResources": (74, {"resource_types": []}),
    "DescribeLogDirs": (35, {"topics": None}),
}


@pytest.mark.parametrize("user", ["alice", "bob"])
async def test_about_the_clusters_as_each_answers(secured: SecuredFederation, user: str) -> None:
    wrong = []
    async with Eyes.of(secured, user) as eyes:
        for what, (key, message) in ABOUT_THE_CLUSTER.items():
            expected = {str(sorted(set(_codes(await one.call(key, message))))) for one in eyes.direct.values()}
            for via, node in eyes.brokers.items():
                answer = await eyes.endpoint.call(key, message, node)
                given = str(sorted(set(_codes(answer))))
                if {given} != expected:
                    wrong.append(f"{what} by {user} at {via}: {given} instead of {expected}")
        # A broker of 4.3 fails over its own refusal here and never answers (NullPointerException in getErrorResponse).
        for node in eyes.brokers.values():
            answer = await eyes.endpoint.call(50, {"users": None}, node)
            assert answer["error_code"] == ERROR.CLUSTER_AUTHORIZATION_FAILED
    assert not wrong, "\n".join(wrong)


def _join(group: str) -> Message:
    return {
        "group_id": group,
        "session_timeout_ms": 6000,
        "rebalance_timeout_ms": 6000,
        "member_id": "",
        "group_instance_id": None,
        "protocol_type": "consumer",
        "protocols": [{"name": "range", "metadata": b""}],
    }


ABOUT_A_GROUP: dict[str, tuple[int, Callable[[str], Message], int | None]] = {
    "FindCoordinator": (FIND_COORDINATOR, lambda group: {"key_type": 0, "coordinator_keys": [group]}, 4),
    "DescribeGroups": (15, lambda group: {"groups": [group], "include_authorized_operations": False}, None),
    "DeleteGroups": (42, lambda group: {"groups_names": [group]}, None),
    "JoinGroup": (11, _join, 5),
    "ConsumerGroupDescribe": (69, lambda group: {"group_ids": [group], "include_authorized_operations": False}, None),
    "Heartbeat": (12, lambda group: {"group_id": group, "generation_id": 1, "member_id": "m"}, None),
    "OffsetFetch": (
        OFFSET_FETCH,
        lambda group: {
            "groups": [{"group_id": group, "member_epoch": -1, "member_id": None, "topics": None}],
            "require_stable": False,
        },
        8,
    ),
    "InitProducerId": (
        22,
        lambda name: {
            "transactional_id": name,
            "transaction_timeout_ms": 5000,
            "producer_id": -1,
            "producer_epoch": -1,
        },
        4,
    ),
    "FindCoordinator of a transactional id": (
        FIND_COORDINATOR,
        lambda name: {"key_type": 1, "coordinator_keys": [name]},
        4,
    ),
    "DescribeTransactions": (65, lambda name: {"transactional_ids": [name]}, None),
    "AddPartitionsToTxn": (
        24,
        lambda name: {
            "v3_and_below_transactional_id": name,
            "v3_and_below_producer_id": 1,
            "v3_and_below_producer_epoch": 0,
            "v3_and_below_topics": [{"name": "orders-any", "partitions": [0]}],
        },
        3,
    ),
    "AddOffsetsToTxn": (
        25,
        lambda name: {"transactional_id": name, "producer_id": 1, "producer_epoch": 0, "group_id": name},
        3,
    ),
}
# Where a group or id is at home elsewhere, and one may know of it.
NOT_HERE = int(ERROR.NOT_COORDINATOR)
STARTING = {int(ERROR.COORDINATOR_NOT_AVAILABLE), int(ERROR.COORDINATOR_LOAD_IN_PROGRESS)}


@pytest.mark.parametrize("user", ["alice", "bob"])
async def test_about_groups_and_ids_as_their_home_answers(secured: SecuredFederation, names: Names, user: str) -> None:
    """What the home refuses is refused on every way to it, and nothing is recorded for whom everything is refused."""
    wrong = []
    kinds = {names.group(word) + end: word + end for word in ("orders", "hidden") for end in ("", "-west")}
    async with Eyes.of(secured, user) as eyes:
        for what, (key, message, version) in ABOUT_A_GROUP.items():
            for name, kind in kinds.items():

                async def codes(client: ClusterClient, node: int | None = None) -> set[int]:
                    with trio.fail_after(20):
                        while True:
                            found = set(_codes(await client.call(key, message(name), node, version)))  # noqa: B023
                            if not found & STARTING:
                                return found

                expected = await codes(eyes.direct[home(name)])
                for via, node in eyes.brokers.items():
                    given = await codes(eyes.endpoint, node)
                    # On other brokers than the home's, who may know of it (here or there) is told to look it up.
                    elsewhere = via != home(name) and kind.startswith("orders")
                    if given != expected and not (elsewhere and given == {NOT_HERE}):
                        wrong.append(f"{what} of {kind} by {user} at {via}: {given} instead of {expected}")
    assert not wrong, "\n".join(wrong)
    homes = secured.federation.ask("/api/v1/groups")
    assert not [one for one in str(homes).split("'") if one.startswith("hidden")]
