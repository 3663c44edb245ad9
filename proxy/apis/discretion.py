"""Around every handler: nobody learns or does through a decision made here what the clusters would refuse.

A broker says TOPIC_AUTHORIZATION_FAILED of a topic one may not use, whether it exists or not. A refusal made here
(another cluster serves it, nobody has it, it exists already) would tell, so it is replaced. And a group's home keeps
positions for topics of other clusters by its own rules, so the rules of those clusters are applied here before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import wraps

from kafka_wire.codec import Message
from kafka_wire.errors import ERROR, error_text
from metadata_service.view import View
from proxy.apis.contract import Call, Handler
from proxy.apis.homes import transaction_home
from proxy.apis.mapping import active_clusters, default_cluster
from proxy.apis.metadata import find
from proxy.apis.permissions import (
    ALTER,
    ALTER_CONFIGS,
    CLUSTER,
    CLUSTER_NAME,
    CREATE,
    DELETE,
    DESCRIBE,
    DESCRIBE_CONFIGS,
    READ,
    TRANSACTIONAL_ID,
    WRITE,
    permitted,
    permitted_topics,
)
from proxy.apis.refusals import refusal
from proxy.identity.answers import topic_names

PRODUCE, FETCH, OFFSET_COMMIT, OFFSET_FETCH, ADD_PARTITIONS, ADD_OFFSETS, TXN_COMMIT = 0, 1, 8, 9, 24, 25, 28
OFFSET_DELETE, SCRAM_USERS = 47, 50
TOPIC_DENIED = int(ERROR.TOPIC_AUTHORIZATION_FAILED)
TOPIC_RESOURCE = 2  # ConfigResource type
NO_OPERATIONS = -2147483648


@dataclass(frozen=True, slots=True)
class Results:
    """Where an answer has its result for each topic; `parts` is the list of partitions that hold the error."""

    items: str
    operation: int
    name: str = "name"
    parts: str | None = None
    code: str = "error_code"


_TOPICS: Mapping[int, Results] = {
    PRODUCE: Results("responses", WRITE, parts="partition_responses"),
    FETCH: Results("responses", READ, "topic", parts="partitions"),
    2: Results("topics", DESCRIBE, parts="partitions"),
    19: Results("topics", CREATE),
    20: Results("responses", DELETE),
    21: Results("topics", DELETE, parts="partitions"),
    23: Results("topics", DESCRIBE, "topic", parts="partitions"),
    ADD_PARTITIONS: Results(
        "results_by_topic_v3_and_below", WRITE, parts="results_by_partition", code="partition_error_code"
    ),
    32: Results("results", DESCRIBE_CONFIGS, "resource_name"),
    33: Results("responses", ALTER_CONFIGS, "resource_name"),
    37: Results("results", ALTER),
    44: Results("responses", ALTER_CONFIGS, "resource_name"),
    61: Results("topics", READ, parts="partitions"),
}
# What needs a permission on the cluster, and may be refused here for a topic nobody has: (results, list of partitions).
_CLUSTER: Mapping[int, tuple[str, str, int]] = {
    43: ("replica_election_results", "partition_result", ALTER),
    45: ("responses", "partitions", ALTER),
}
# Positions, judged before they are stored.
_POSITIONS = (OFFSET_COMMIT, TXN_COMMIT, OFFSET_DELETE)
_DESCRIBED_GROUPS = (69, 77, 89)


def _holders(one: Message, rule: Results) -> list[Message]:
    return [one] if rule.parts is None else list(one.get(rule.parts) or ())


def _name(view: View, one: Message, field: str = "name") -> str | None:
    """A result's topic by name, or by logical id."""
    name = one.get(field)
    if name:
        return str(name)
    known = view.topics_by_id.get(one.get("topic_id", b""))
    return None if known is None else known.name


def _deny(holder: Message, code: int, field: str = "error_code") -> None:
    holder[field] = code
    if "error_message" in holder:
        holder["error_message"] = error_text(code)


async def _hide_topics(call: Call, view: View, rule: Results, answer: Message) -> None:
    suspect: dict[str, list[Message]] = {}
    for one in answer.get(rule.items) or ():
        if rule.name == "resource_name" and one["resource_type"] != TOPIC_RESOURCE:
            continue
        holders = [holder for holder in _holders(one, rule) if holder.get(rule.code, 0) not in (0, TOPIC_DENIED)]
        name = _name(view, one, rule.name)
        if holders and name is not None:
            suspect.setdefault(name, []).extend(holders)
    if not suspect:
        return
    denied = set(suspect) - await permitted_topics(call, view, rule.operation, suspect)
    if denied and rule.operation == CREATE:
        for cluster in {call.federation.place_topic(name) for name in denied}:
            if await permitted(call, cluster, CREATE, CLUSTER, [CLUSTER_NAME]):
                denied -= {name for name in denied if call.federation.place_topic(name) == cluster}
    for name in denied:
        for holder in suspect[name]:
            _deny(holder, TOPIC_DENIED, rule.code)


async def _hide_behind_cluster(call: Call, view: View, key: int, answer: Message) -> None:
    results, parts, operation = _CLUSTER[key]
    if answer["error_code"] or not answer[results]:
        return
    if await permitted(call, default_cluster(view), operation, CLUSTER, [CLUSTER_NAME]):
        return
    code = int(ERROR.CLUSTER_AUTHORIZATION_FAILED)
    _deny(answer, code)
    for one in answer[results]:
        for part in one[parts]:
            if part["error_code"] == ERROR.UNKNOWN_TOPIC_OR_PARTITION:
                _deny(part, code)


def _elsewhere(call: Call, view: View, names: Iterable[str | None]) -> list[str]:
    return [
        name
        for name in dict.fromkeys(names)
        if name is not None and (served := view.topics.get(name)) is not None and served.cluster != call.cluster
    ]


async def _denied_elsewhere(call: Call, view: View, operation: int, names: Iterable[str | None]) -> set[str]:
    """Topics of other clusters that those do not let the principal use."""
    mine = _elsewhere(call, view, names)
    return set(mine) - await permitted_topics(call, view, operation, mine)


async def _positions(call: Call, key: int, version: int, request: Message, handler: Handler) -> Message:
    topics = request["topics"]
    ids = [one["topic_id"] for one in topics if not one.get("name")]
    view = await find(call, [one["name"] for one in topics if one.get("name")], ids)
    denied = await _denied_elsewhere(call, view, READ, (_name(view, one) for one in topics))
    if not denied:
        return await handler(call, version, request)
    refused = [one for one in topics if _name(view, one) in denied]
    rest = [one for one in topics if _name(view, one) not in denied]
    answer = refusal(key, version, {**request, "topics": refused}, TOPIC_DENIED)
    if rest:
        found = [*answer["topics"]]
        answer = await handler(call, version, {**request, "topics": rest})
        if not answer.get("error_code"):
            by_name = {_name(view, one): one for one in (*answer["topics"], *found)}
            answer["topics"] = [by_name[_name(view, one)] for one in topics if _name(view, one) in by_name]
    return answer


async def _fetched(call: Call, request: Message, answer: Message) -> None:
    """Positions stored under a topic of another cluster, shown to whom that cluster describes it."""
    view = call.latest()
    asked = {one["group_id"]: one.get("topics") for one in request.get("groups") or [request]}
    for group in answer.get("groups") or [answer]:
        topics = group.get("topics") or []
        denied = await _denied_elsewhere(call, view, DESCRIBE, (_name(view, one) for one in topics))
        if not denied:
            continue
        if asked.get(group.get("group_id", request.get("group_id"))) is None:  # all there are: left out
            group["topics"] = [one for one in topics if _name(view, one) not in denied]
            continue
        for one in topics:
            if _name(view, one) in denied:
                for part in one["partitions"]:
                    part |= {"committed_offset": -1, "committed_leader_epoch": -1, "metadata": ""}
                    part["error_code"] = TOPIC_DENIED


async def _described(call: Call, answer: Message) -> None:
    """As a broker: a group that names a topic one may not describe is not described."""
    view = call.latest()
    for group in answer["groups"]:
        if not group["error_code"] and await _denied_elsewhere(call, view, DESCRIBE, topic_names(group)):
            _deny(group, TOPIC_DENIED)
            group |= {"members": [], "authorized_operations": NO_OPERATIONS}
            if "topology" in group:
                group["topology"] = None


async def _transaction(call: Call, key: int, version: int, request: Message, handler: Handler) -> Message:
    """A transactional id's home is decided by the first topic it names: only by whom may use both."""
    field = "v3_and_below_transactional_id" if key == ADD_PARTITIONS else "transactional_id"
    transactional_id = request[field]
    if key != PRODUCE and await transaction_home(call, transactional_id) != call.cluster:
        return await handler(call, version, request)  # which says so
    if not await permitted(call, call.cluster, WRITE, TRANSACTIONAL_ID, [transactional_id]):
        return refusal(key, version, request, ERROR.TRANSACTIONAL_ID_AUTHORIZATION_FAILED)
    if key != ADD_PARTITIONS:
        return await handler(call, version, request)
    topics = request["v3_and_below_topics"]
    names = {one["name"] for one in topics}
    denied = names - await permitted_topics(call, call.view, WRITE, names)
    if not denied:
        return await handler(call, version, request)
    refused = refusal(key, version, request, ERROR.OPERATION_NOT_ATTEMPTED)
    for one in refused["results_by_topic_v3_and_below"]:
        for part in one["results_by_partition"] if one["name"] in denied else ():
            part["partition_error_code"] = TOPIC_DENIED
    return refused


_CONCERNED = {*_TOPICS, *_CLUSTER, *_POSITIONS, *_DESCRIBED_GROUPS, OFFSET_FETCH, ADD_OFFSETS, SCRAM_USERS}


def _in_transaction(key: int, version: int, request: Message) -> bool:
    """Whether it may decide a transactional id's home (AddPartitionsToTxn 4 and 5 are refused to clients)."""
    if key == ADD_PARTITIONS:
        return version <= 3
    return key == ADD_OFFSETS or (key == PRODUCE and request["transactional_id"] is not None)


async def _all_scram_users(call: Call, version: int, request: Message, handler: Handler) -> Message:
    """Brokers of 4.3 fail over their own refusal to describe all users, and never answer it (measured)."""
    if not request["users"]:
        for cluster in active_clusters(call.view):
            if not await permitted(call, cluster, DESCRIBE, CLUSTER, [CLUSTER_NAME]):
                return refusal(SCRAM_USERS, version, request, ERROR.CLUSTER_AUTHORIZATION_FAILED)
    return await handler(call, version, request)


def discreet(key: int, handler: Handler) -> Handler:
    """`handler` with these rules applied; handlers they do not concern come back as they are."""
    if key not in _CONCERNED:
        return handler

    @wraps(handler)
    async def answer(call: Call, version: int, request: Message) -> Message:
        if key == SCRAM_USERS:
            return await _all_scram_users(call, version, request, handler)
        if key in _POSITIONS:
            return await _positions(call, key, version, request, handler)
        if _in_transaction(key, version, request):
            response = await _transaction(call, key, version, request, handler)
        else:
            response = await handler(call, version, request)
        if key == OFFSET_FETCH:
            await _fetched(call, request, response)
        elif key in _DESCRIBED_GROUPS:
            await _described(call, response)
        elif key in _CLUSTER:
            await _hide_behind_cluster(call, call.latest(), key, response)
        elif key in _TOPICS:
            await _hide_topics(call, call.latest(), _TOPICS[key], response)
        return response

    return answer
