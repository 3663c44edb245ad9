"""What the service asks clusters for itself: topics by name or id, the groups and transactional ids they know.

Questions that many callers have at the same moment are asked once: a caller joins the next round, never one that is
already under way, so its answer is not older than its question.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import trio

from kafka_client import ClientError, ClusterClient, UnsupportedApi
from kafka_wire.codec import Message
from kafka_wire.errors import ERROR, error_name
from metadata_service.failures import Undecided
from metadata_service.models import OWN_TRANSACTIONS
from metadata_service.store.clock import Backoff
from metadata_service.view import Partition, PhysicalTopic

T = TypeVar("T")

LIST_OFFSETS, METADATA, OFFSET_FETCH, LIST_GROUPS, LIST_TRANSACTIONS = 2, 3, 9, 16, 66
GROUP = 0  # key type of a coordinator
BY_NAME = 9  # the last version of OffsetFetch and OffsetCommit that names topics, not ids
NAMES_PER_CALL = 500
TIMEOUT = 5.0
LOADING = {ERROR.COORDINATOR_LOAD_IN_PROGRESS, ERROR.COORDINATOR_NOT_AVAILABLE}
NOT_LEADING_YET = {
    ERROR.UNKNOWN_TOPIC_OR_PARTITION,
    ERROR.LEADER_NOT_AVAILABLE,
    ERROR.NOT_LEADER_OR_FOLLOWER,
    ERROR.REPLICA_NOT_AVAILABLE,
}
LATEST = -1  # of ListOffsets
LIVE_STATES = frozenset({"Stable", "PreparingRebalance", "CompletingRebalance", "Assigning", "Reconciling", "NotReady"})


@dataclass(frozen=True, slots=True)
class FoundGroup:
    """A group as its coordinator lists it. `kind`: classic, consumer, share or streams ("" before Kafka 4)."""

    name: str
    state: str
    kind: str

    @property
    def live(self) -> bool:
        """It has members; otherwise it is there for its commits (or its emptiness) only."""
        return self.state in LIVE_STATES


@dataclass(frozen=True, slots=True)
class FoundTransaction:
    """A transactional id as its coordinator lists it."""

    name: str
    state: str
    producer_id: int

    @property
    def live(self) -> bool:
        """A transaction is open or being ended."""
        return self.state in ("Ongoing", "PrepareCommit", "PrepareAbort", "PrepareEpochFence")


@dataclass(frozen=True, slots=True)
class Position:
    """What a group has committed for one partition."""

    offset: int
    epoch: int
    metadata: str


Versions = Mapping[int, tuple[int, int]]
Positions = dict[tuple[str, int], Position]
"""By topic and partition."""


def turn(items: Sequence[T], after: T, count: int) -> list[T]:
    """The next `count` of sorted items behind `after`, from the beginning again at the end."""
    later = [one for one in items if one > after]  # type: ignore[operator]
    return (later or list(items))[:count]


class Rounds(Generic[T]):
    """Answers a question for everybody who asks while the round before is under way."""

    def __init__(self, ask: Callable[[], Awaitable[T]]) -> None:
        self._ask = ask
        self._busy = trio.Lock()
        self._begun = 0
        self._answered: tuple[int, T] | None = None

    async def __call__(self) -> T:
        """The answer of a round that began after this call. Raises what asking raises."""
        wanted = self._begun + 1
        async with self._busy:
            if self._answered is not None and self._answered[0] >= wanted:
                return self._answered[1]
            self._begun += 1
            mine = self._begun
            answer = await self._ask()
            self._answered = (mine, answer)
            return answer


def physical_topic(answer: Message) -> PhysicalTopic:
    """One topic of a decoded Metadata response."""
    partitions = [
        Partition(
            one["partition_index"],
            one["leader_id"],
            one["leader_epoch"],
            tuple(one["replica_nodes"]),
            tuple(one["isr_nodes"]),
            tuple(one["offline_replicas"]),
            one["error_code"],
        )
        for one in sorted(answer["partitions"], key=lambda one: int(one["partition_index"]))
    ]
    return PhysicalTopic(
        answer["name"] or "", answer.get("topic_id") or bytes(16), answer["is_internal"], tuple(partitions)
    )


async def topics_by_name(
    client: ClusterClient, names: Iterable[str], *, broker: int | None = None, timeout: float = TIMEOUT
) -> dict[str, PhysicalTopic]:
    """Those of `names` that one broker (or any) knows, with at least one partition.

    Raises:
        Undecided: no answer.
    """
    wanted = sorted(set(names))
    found: dict[str, PhysicalTopic] = {}
    for start in range(0, len(wanted), NAMES_PER_CALL):
        part = [{"name": one} for one in wanted[start : start + NAMES_PER_CALL]]
        for one in await _metadata(client, part, broker, timeout):
            if one["error_code"] in (0, ERROR.LEADER_NOT_AVAILABLE) and one["partitions"]:
                found[one["name"]] = physical_topic(one)
    return found


async def leaders_ready(client: ClusterClient, topics: Iterable[PhysicalTopic], *, timeout: float = TIMEOUT) -> None:
    """Until the leaders of new partitions take writes, at most `timeout` seconds.

    A broker's metadata has a partition some 10 ms before its log is open. An idempotent producer that sends two
    batches right then, has the first refused (6) and the second taken, cannot get over it: 45 for ever.
    """
    waiting: dict[int, dict[str, set[int]]] = {}
    for topic in topics:
        for one in topic.partitions:
            if one.leader >= 0:
                waiting.setdefault(one.leader, {}).setdefault(topic.name, set()).add(one.index)

    async def ask(leader: int, partitions: dict[str, set[int]]) -> None:
        backoff = Backoff(0.005, 0.1)
        while partitions:
            answer = await client.call(LIST_OFFSETS, _ends(partitions), broker=leader, timeout=timeout)
            late = {
                topic["name"]: {
                    one["partition_index"] for one in topic["partitions"] if one["error_code"] in NOT_LEADING_YET
                }
                for topic in answer["topics"]
            }
            partitions = {name: indexes for name, indexes in late.items() if indexes}
            if partitions:
                await backoff.pause()

    async def tried(leader: int, partitions: dict[str, set[int]]) -> None:
        try:
            await ask(leader, partitions)
        except ClientError:
            return  # it is not for this to say that a broker is away

    with trio.move_on_after(timeout):
        async with trio.open_nursery() as nursery:
            for leader, partitions in waiting.items():
                nursery.start_soon(tried, leader, partitions)


def _ends(partitions: Mapping[str, Iterable[int]]) -> Message:
    """A ListOffsets request for the ends of partitions."""
    topics = [
        {
            "name": name,
            "partitions": [
                {"partition_index": one, "current_leader_epoch": -1, "timestamp": LATEST} for one in sorted(indexes)
            ],
        }
        for name, indexes in partitions.items()
    ]
    return {"replica_id": -1, "isolation_level": 0, "topics": topics}


async def names_by_id(client: ClusterClient, ids: Iterable[bytes], *, timeout: float = TIMEOUT) -> dict[bytes, str]:
    """The names of those topic ids that a cluster knows. Raises Undecided."""
    wanted = [{"topic_id": one, "name": None} for one in sorted(set(ids))[:NAMES_PER_CALL]]
    answer = await _metadata(client, wanted, None, timeout)
    return {one["topic_id"]: one["name"] for one in answer if not one["error_code"] and one["name"]}


async def _metadata(
    client: ClusterClient, topics: Sequence[Message], broker: int | None, timeout: float
) -> list[Message]:
    message = {"topics": topics, "allow_auto_topic_creation": False}
    try:
        answer = await client.call(METADATA, message, broker, timeout=timeout, retry=True)
    except UnsupportedApi:
        return []
    except ClientError as error:
        raise Undecided(client.name, str(error)) from error
    topics_found: list[Message] = answer["topics"]
    return topics_found


async def list_groups(client: ClusterClient, *, timeout: float = 2 * TIMEOUT) -> dict[str, FoundGroup]:
    """Every group of a cluster, of every kind, also those with nothing but commits.

    Raises:
        Undecided: a broker does not answer, or a coordinator is still loading at the end of `timeout` (seconds).
    """
    answers = await _ask_brokers(client, LIST_GROUPS, {"states_filter": [], "types_filter": []}, timeout)
    return {
        one["group_id"]: FoundGroup(one["group_id"], one.get("group_state", ""), one.get("group_type", "").lower())
        for answer in answers.values()
        for one in answer["groups"]
    }


async def list_transactions(
    client: ClusterClient, *, own: bool = False, timeout: float = 2 * TIMEOUT
) -> dict[str, FoundTransaction]:
    """Every transactional id a cluster remembers; our own only with `own`. Raises Undecided as `list_groups`."""
    message = {"state_filters": [], "producer_id_filters": [], "duration_filter": -1}
    try:
        answers = await _ask_brokers(client, LIST_TRANSACTIONS, message, timeout)
    except UnsupportedApi:
        return {}  # before Kafka 3.0
    return {
        one["transactional_id"]: FoundTransaction(one["transactional_id"], one["transaction_state"], one["producer_id"])
        for answer in answers.values()
        for one in answer["transaction_states"]
        if own or not one["transactional_id"].startswith(OWN_TRANSACTIONS)
    }


async def committed(
    client: ClusterClient, group: str, versions: Versions, *, stable: bool, timeout: float = TIMEOUT
) -> Positions:
    """Everything a group has committed on a cluster; `versions`: what the cluster speaks. Nothing for no such group.

    Raises:
        Undecided: no answer, or (`stable`) a commit is pending in an open transaction.
    """
    asked = {"group_id": group, "member_id": None, "member_epoch": -1, "topics": None}
    message = {"group_id": group, "topics": None, "groups": [asked], "require_stable": stable}
    version = min(versions.get(OFFSET_FETCH, (0, BY_NAME))[1], BY_NAME)
    try:
        answer = await client.call_coordinator(
            GROUP, group, OFFSET_FETCH, message, version=version, timeout=timeout, retry=True
        )
    except ClientError as error:
        raise Undecided(client.name, str(error)) from error
    found = answer["groups"][0] if version >= 8 else answer
    if found["error_code"] == ERROR.GROUP_ID_NOT_FOUND:
        return {}
    if found["error_code"]:
        raise Undecided(client.name, f"group {group!r}: {error_name(found['error_code'])}")
    positions: Positions = {}
    for topic in found["topics"]:
        for one in topic["partitions"]:
            if one["error_code"] and stable:
                raise Undecided(client.name, f"group {group!r}: {error_name(one['error_code'])}")
            if not one["error_code"] and one["committed_offset"] >= 0:
                position = Position(one["committed_offset"], one["committed_leader_epoch"], one["metadata"] or "")
                positions[topic["name"], one["partition_index"]] = position
    return positions


async def _ask_brokers(client: ClusterClient, key: int, message: Message, timeout: float) -> Mapping[int, Message]:
    answers: dict[int, Message] = {}
    failed: list[Exception] = []
    deadline = trio.current_time() + timeout

    async def ask(broker: int) -> None:
        try:
            answers[broker] = await _ask_loaded(client, key, message, broker, deadline)
        except (ClientError, Undecided) as error:
            failed.append(error)

    try:
        brokers = await client.refresh(timeout)
    except ClientError as error:
        raise Undecided(client.name, str(error)) from error
    async with trio.open_nursery() as nursery:
        for broker in brokers:
            nursery.start_soon(ask, broker)
    if failed:
        if isinstance(failed[0], UnsupportedApi | Undecided):
            raise failed[0]
        raise Undecided(client.name, str(failed[0])) from failed[0]
    return answers


async def _ask_loaded(client: ClusterClient, key: int, message: Message, broker: int, deadline: float) -> Message:
    backoff = Backoff(0.05, 0.5)
    while True:
        left = max(deadline - trio.current_time(), 0.0)
        answer: dict[str, Any] = await client.call(key, message, broker, timeout=left, retry=True)
        code = answer["error_code"]
        if not code:
            return answer
        if code not in LOADING or trio.current_time() >= deadline:
            raise Undecided(client.name, f"broker {broker}: {error_name(code)}")
        await backoff.pause()
