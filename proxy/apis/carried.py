"""Positions of a group that still lie on clusters other than its home; metadata_service/carrying.py has the rules.

What the home does not have is asked of the clusters that count, as this client, on their own coordinator. What one of
them cannot say at the moment is never answered with "no position", which would make a consumer start anywhere:
UNSTABLE_OFFSET_COMMIT (COORDINATOR_LOAD_IN_PROGRESS where the version does not have it) makes it ask again. So does a
position on a cluster where the group is in conflict: it waits for the operator's decision.

Deleting goes to the home first, which judges it, then to the others; an error of theirs is the answer, and the client
tries again.
"""

from __future__ import annotations

from collections.abc import Iterable

import trio

from kafka_wire.codec import Message
from kafka_wire.errors import ERROR
from metadata_service.carrying import comes_from, counting
from metadata_service.models import HomeRecord
from metadata_service.view import ServedTopic, View
from proxy.apis.contract import Call, ClusterAway, Refused
from proxy.apis.mapping import ask, clean_text

OFFSET_FETCH, FIND_COORDINATOR, DELETE_GROUPS, OFFSET_DELETE = 9, 10, 42, 47
TIMEOUT = 5.0  # seconds for one cluster: the client waits behind it with everything else it asks
TRIES = 3
_MOVED = frozenset(
    {
        ERROR.NOT_COORDINATOR,
        ERROR.COORDINATOR_NOT_AVAILABLE,
        ERROR.COORDINATOR_LOAD_IN_PROGRESS,
        ERROR.REQUEST_TIMED_OUT,
    }
)

Found = dict[tuple[str, int], Message]
"""By topic name and partition: a partition of an OffsetFetch response."""


def sources(view: View, group: str) -> HomeRecord | None:
    """The group's record, where other clusters than its home have a say in its positions."""
    record = view.groups.get(group)
    return record if record is not None and (counting(view, record) or record.conflict) else None


def _topic_of(view: View, entry: Message, by_id: bool) -> ServedTopic | None:
    return view.topics_by_id.get(entry["topic_id"]) if by_id else view.topics.get(entry["name"])


def _open(view: View, answer: Message, by_id: bool) -> Found:
    """Partitions of the home's answer that have no position there."""
    return {
        (topic.name, one["partition_index"]): one
        for entry in answer["topics"]
        if (topic := _topic_of(view, entry, by_id)) is not None
        for one in entry["partitions"]
        if not one["error_code"] and one["committed_offset"] < 0
    }


async def complete(
    call: Call, view: View, record: HomeRecord, asked: Message, answer: Message, *, by_id: bool, stable: bool
) -> bool:
    """Fill in, in place, what the home's answer for one group lacks. `asked`: the group's part of the request (all of
    an old one), with `topics` None for everything.

    Returns False where a cluster that counts does not answer, and everything was asked for.
    """
    everything = asked["topics"] is None
    known = {} if not everything else _present(view, answer, by_id)
    lacking = _open(view, answer, by_id)
    for cluster in counting(view, record):
        wanted = [key for key in lacking if comes_from(view.topics[key[0]].record, cluster)]
        if not everything and not wanted:
            continue
        found = await _positions(call, view, cluster, record.name, None if everything else wanted, stable)
        if everything:
            if found is None:
                if cluster in record.unasked:
                    continue  # it was away when the group came up: most likely it has nothing
                return False
            there = [key for key in found if comes_from(view.topics[key[0]].record, cluster)]
            _add(view, answer, {key: found[key] for key in there if key not in known}, by_id)
            continue
        for key in wanted:
            if found is None:
                lacking[key]["error_code"] = ERROR.UNSTABLE_OFFSET_COMMIT
            elif key in found:
                _take(lacking[key], found[key])
    if not everything:
        await _undecided(call, view, record, lacking, stable)
    return True


async def _undecided(call: Call, view: View, record: HomeRecord, lacking: Found, stable: bool) -> None:
    """Positions on clusters where the group is in conflict are not merged, nor passed over: they wait."""
    for cluster in record.conflict:
        wanted = [key for key in lacking if comes_from(view.topics[key[0]].record, cluster)]
        if not wanted or cluster not in view.clusters or view.clusters[cluster].record.state != "active":
            continue
        found = await _positions(call, view, cluster, record.name, wanted, stable)
        for key in wanted:
            if found is None or (key in found and found[key]["committed_offset"] >= 0):
                lacking[key]["error_code"] = ERROR.UNSTABLE_OFFSET_COMMIT


def _present(view: View, answer: Message, by_id: bool) -> set[tuple[str, int]]:
    return {
        (topic.name, one["partition_index"])
        for entry in answer["topics"]
        if (topic := _topic_of(view, entry, by_id)) is not None
        for one in entry["partitions"]
    }


def _take(mine: Message, theirs: Message) -> None:
    for field in ("committed_offset", "committed_leader_epoch", "metadata", "error_code"):
        if field in theirs:
            mine[field] = theirs[field]


def _add(view: View, answer: Message, found: Found, by_id: bool) -> None:
    field = "topic_id" if by_id else "name"
    entries = {entry[field]: entry for entry in answer["topics"]}
    for (name, _), partition in found.items():
        key = view.topics[name].id if by_id else name
        if key not in entries:
            entries[key] = {field: key, "partitions": []}
            answer["topics"].append(entries[key])
        entries[key]["partitions"].append(partition)


async def _positions(
    call: Call, view: View, cluster: str, group: str, wanted: Iterable[tuple[str, int]] | None, stable: bool
) -> Found | None:
    """What a cluster has for a group, of topics the view serves, with the errors it gives; None: it does not say now.

    Who may not ask there has no position there.
    """
    topics: list[Message] | None = None
    if wanted is not None:
        indexes: dict[str, list[int]] = {}
        for name, index in wanted:
            indexes.setdefault(name, []).append(index)
        # Named both ways: which one is sent depends on what the broker speaks.
        topics = [
            {"name": name, "topic_id": view.to_physical_id(cluster, view.topics[name].id), "partition_indexes": some}
            for name, some in indexes.items()
        ]
    one = {"group_id": group, "member_id": None, "member_epoch": -1, "topics": topics}
    request = {"group_id": group, "topics": topics, "groups": [one], "require_stable": stable}
    try:
        answer = await _coordinated(call, view, cluster, group, OFFSET_FETCH, request)
    except ClusterAway:
        return None
    except Refused:
        return {}
    answer = answer["groups"][0] if answer.get("groups") else answer
    if answer.get("error_code", 0) in (ERROR.GROUP_ID_NOT_FOUND, ERROR.GROUP_AUTHORIZATION_FAILED):
        return {}
    if answer.get("error_code", 0):
        return None
    found: Found = {}
    for entry in answer["topics"]:
        served = view.topics.get(entry["name"]) if entry.get("name") else view.topics_by_id.get(entry["topic_id"])
        if served is not None:
            found |= {(served.name, partition["partition_index"]): partition for partition in entry["partitions"]}
    return found


async def _coordinated(call: Call, view: View, cluster: str, group: str, key: int, request: Message) -> Message:
    """Ask the group's coordinator on another cluster; it is looked up each time, as this is rare. Raises ClusterAway,
    Refused."""
    for attempt in range(TRIES):
        if attempt:
            await trio.sleep(0.1 * attempt)
        lookup: Message = {"key": group, "key_type": 0, "coordinator_keys": [group]}
        answer = await call.ask(cluster, FIND_COORDINATOR, lookup, timeout=TIMEOUT)
        found = answer["coordinators"][0] if answer.get("coordinators") else answer
        if found["error_code"] in _MOVED:
            continue
        if found["error_code"]:
            raise Refused(found["error_code"], clean_text(view, cluster, found.get("error_message") or ""))
        answer = await ask(call, view, cluster, key, request, broker=found["node_id"], timeout=TIMEOUT)
        if not _codes(answer) & _MOVED:
            return answer
    raise ClusterAway(cluster, f"the coordinator of group {group!r} is moving")


def _codes(answer: Message) -> set[int]:
    """Error codes of an answer about one group, above its topics."""
    parts = [answer, *(answer.get("groups") or ()), *(answer.get("results") or ())]
    return {int(one["error_code"]) for one in parts if "error_code" in one}


async def delete_group(call: Call, view: View, record: HomeRecord, code: int) -> int:
    """The group is deleted at its home with `code`; the same where it still counts. Returns the code of both."""
    if code not in (ERROR.NONE, ERROR.GROUP_ID_NOT_FOUND):
        return code
    for cluster in counting(view, record):
        request: Message = {"groups_names": [record.name]}
        try:
            answer = await _coordinated(call, view, cluster, record.name, DELETE_GROUPS, request)
        except ClusterAway:
            return int(ERROR.COORDINATOR_NOT_AVAILABLE)
        except Refused as error:
            return error.code
        there = int(answer["results"][0]["error_code"])
        if there not in (ERROR.NONE, ERROR.GROUP_ID_NOT_FOUND):
            return there
        if there == ERROR.NONE:
            code = int(ERROR.NONE)
    return code


async def delete_positions(call: Call, view: View, record: HomeRecord, request: Message, answer: Message) -> Message:
    """An OffsetDelete, answered so by the home; the same where these positions still count."""
    if answer["error_code"] not in (ERROR.NONE, ERROR.GROUP_ID_NOT_FOUND):
        return answer
    results = {
        (topic["name"], one["partition_index"]): int(one["error_code"])
        for topic in answer["topics"]
        for one in topic["partitions"]
    }
    unknown = answer["error_code"] == ERROR.GROUP_ID_NOT_FOUND
    known = False
    for cluster in counting(view, record):
        topics = [
            topic
            for topic in request["topics"]
            if (served := view.topics.get(topic["name"])) is not None and comes_from(served.record, cluster)
        ]
        keys = [(topic["name"], one["partition_index"]) for topic in topics for one in topic["partitions"]]
        if not keys:
            continue
        there: dict[tuple[str, int], int] = {}
        try:
            found = await _coordinated(
                call, view, cluster, record.name, OFFSET_DELETE, {"group_id": record.name, "topics": topics}
            )
        except ClusterAway:
            there = dict.fromkeys(keys, int(ERROR.COORDINATOR_NOT_AVAILABLE))
        except Refused as error:
            there = dict.fromkeys(keys, error.code)
        else:
            if found["error_code"] == ERROR.GROUP_ID_NOT_FOUND:
                continue
            there = dict.fromkeys(keys, int(found["error_code"])) | {
                (topic["name"], one["partition_index"]): int(one["error_code"])
                for topic in found["topics"]
                for one in topic["partitions"]
            }
        known = True
        for key in keys:
            # Without a stub the home does not know the topic at all.
            if results.get(key, 0) in (ERROR.NONE, ERROR.UNKNOWN_TOPIC_OR_PARTITION):
                results[key] = there[key]
    if unknown and not known:
        return answer
    named = [
        {
            "name": topic["name"],
            "partitions": [
                {
                    "partition_index": one["partition_index"],
                    "error_code": results.get((topic["name"], one["partition_index"]), 0),
                }
                for one in topic["partitions"]
            ],
        }
        for topic in request["topics"]
    ]
    return {**answer, "error_code": ERROR.NONE, "topics": named}
