"""Committed positions of groups: OffsetCommit 8 (2-10), OffsetFetch 9 (1-10), OffsetDelete 47 (0).

They lie on the group's home, for topics of other clusters under a stub, and are logical offsets: what a client read
is what it commits, wherever the topic lives or has lived, so nothing is translated here. Topic ids (commit and fetch
version 10) are mapped to the home's own topic or stub, and back. What a group committed on other clusters before the
federation still counts where the home has nothing: see carried.py.
"""

from __future__ import annotations

from collections.abc import Iterable

from kafka_wire.codec import Message
from kafka_wire.errors import ERROR
from metadata_service.view import View
from proxy.apis.carried import complete, delete_positions, sources
from proxy.apis.contract import Call, Handler
from proxy.apis.homes import group_home, require_group, stubs
from proxy.apis.mapping import forward, to_physical_ids
from proxy.apis.metadata import find
from proxy.apis.permissions import READ
from proxy.apis.refusals import refusal

COMMIT, FETCH, DELETE = 8, 9, 47
IDS_FROM = 10  # version of OffsetCommit and OffsetFetch that names topics by id
GROUPS_FROM = 8  # version of OffsetFetch that names several groups
STABLE_FROM = 7  # version of OffsetFetch whose clients know UNSTABLE_OFFSET_COMMIT
RETRY = ERROR.COORDINATOR_LOAD_IN_PROGRESS  # what clients of any version ask again after


async def prepared(call: Call, topics: Iterable[Message], by_id: bool) -> tuple[View, list[Message], list[Message]]:
    """(view, topics to commit for, topics nobody knows), after the former have their stubs on this cluster."""
    items = list(topics)
    ids = [one["topic_id"] for one in items] if by_id else []
    view = await find(call, () if by_id else [one["name"] for one in items], ids)
    known: list[Message] = []
    unknown: list[Message] = []
    names: list[str] = []
    for one in items:
        topic = view.topics_by_id.get(one["topic_id"]) if by_id else view.topics.get(one["name"])
        (unknown if topic is None else known).append(one)
        if topic is not None:
            names.append(topic.name)
    view = await stubs(call, names)
    return view, known, unknown


def in_order(asked: Iterable[Message], field: str, *found: Iterable[Message]) -> list[Message]:
    """Results in the order in which the request names them."""
    by_name = {one[field]: one for results in found for one in results}
    return [by_name[one[field]] for one in asked if one[field] in by_name]


async def offset_commit(call: Call, version: int, request: Message) -> Message:
    await require_group(call, request["group_id"], READ)
    by_id = version >= IDS_FROM
    view, known, unknown = await prepared(call, request["topics"], by_id)
    if not unknown:
        answer = await forward(call, view, COMMIT, to_physical_ids(view, call.cluster, COMMIT, version, request))
        return _of_member(request, answer)
    code = ERROR.UNKNOWN_TOPIC_ID if by_id else ERROR.UNKNOWN_TOPIC_OR_PARTITION
    response = refusal(COMMIT, version, {"topics": unknown}, code)
    if known:
        asked = to_physical_ids(view, call.cluster, COMMIT, version, {**request, "topics": known})
        committed = _of_member(request, await forward(call, view, COMMIT, asked))
        field = "topic_id" if by_id else "name"
        committed["topics"] = in_order(request["topics"], field, committed["topics"], response["topics"])
        return committed
    return response


def _of_member(request: Message, response: Message) -> Message:
    """A member of a former home is unknown here, also where the whole group is: clients do not expect that."""
    if request["member_id"]:
        for topic in response["topics"]:
            for one in topic["partitions"]:
                if one["error_code"] == ERROR.GROUP_ID_NOT_FOUND:
                    one["error_code"] = ERROR.UNKNOWN_MEMBER_ID
    return response


async def offset_fetch(call: Call, version: int, request: Message) -> Message:
    if version < GROUPS_FROM:
        return await _fetch_one(call, version, request)
    homes = {one["group_id"]: await group_home(call, one["group_id"]) for one in request["groups"]}
    here = [one for one in request["groups"] if homes[one["group_id"]] == call.cluster]
    by_id = version >= IDS_FROM
    names = () if by_id else [topic["name"] for one in here if one["topics"] is not None for topic in one["topics"]]
    view = call.latest()
    carried = {one["group_id"]: record for one in here if (record := sources(view, one["group_id"])) is not None}
    if by_id or carried:
        ids = [topic["topic_id"] for one in here for topic in one["topics"] or ()] if by_id else ()
        view = await find(call, names if carried else (), ids)
    if not here:
        return refusal(FETCH, version, request, ERROR.NOT_COORDINATOR)
    asked, unasked = _without_unknown_there(view, call.cluster, here) if by_id else (here, {})
    asked_there = to_physical_ids(view, call.cluster, FETCH, version, {**request, "groups": asked})
    response = await forward(call, view, FETCH, asked_there)
    stable = bool(request.get("require_stable", False))
    for one in response["groups"]:
        group = one["group_id"]
        if one["error_code"]:
            continue
        one["topics"] += unasked.get(group, [])
        mine = next(each for each in here if each["group_id"] == group)
        if group in carried and not await complete(call, view, carried[group], mine, one, by_id=by_id, stable=stable):
            one |= {"topics": [], "error_code": ERROR.COORDINATOR_LOAD_IN_PROGRESS}
    if len(here) < len(request["groups"]):
        away = [one for one in request["groups"] if homes[one["group_id"]] != call.cluster]
        refused = refusal(FETCH, version, {"groups": away}, ERROR.NOT_COORDINATOR)
        response["groups"] = in_order(request["groups"], "group_id", response["groups"], refused["groups"])
    return response


async def _fetch_one(call: Call, version: int, request: Message) -> Message:
    """Versions that ask about one group."""
    await require_group(call, request["group_id"])
    record = sources(call.latest(), request["group_id"])
    view = call.latest() if record is None else await find(call, [one["name"] for one in request["topics"] or ()])
    response = await forward(call, view, FETCH, request)
    if record is None or response.get("error_code"):
        return response
    stable = bool(request.get("require_stable", False))
    whole = await complete(call, view, record, request, response, by_id=False, stable=stable)
    codes = {one["error_code"] for topic in response["topics"] for one in topic["partitions"]}
    if not whole or (version < STABLE_FROM and ERROR.UNSTABLE_OFFSET_COMMIT in codes):
        return refusal(FETCH, version, {**request, "topics": request["topics"] or []}, RETRY)
    return response


def _without_unknown_there(
    view: View, cluster: str, groups: Iterable[Message]
) -> tuple[list[Message], dict[str, list[Message]]]:
    """(the groups without topics that have no stub on their home, results for those by group): a broker refuses an id
    it does not know, and nothing can be committed there yet."""
    asked: list[Message] = []
    results: dict[str, list[Message]] = {}
    for group in groups:
        if group["topics"] is None:
            asked.append(group)
            continue
        strange = [
            one
            for one in group["topics"]
            if (topic := view.topics_by_id.get(one["topic_id"])) is not None
            and topic.cluster != cluster
            and not ((stub := view.stubs.get((cluster, topic.name))) is not None and stub.topic_id)
        ]
        asked.append({**group, "topics": [one for one in group["topics"] if one not in strange]})
        results[group["group_id"]] = [
            {
                "topic_id": one["topic_id"],
                "partitions": [
                    {
                        "partition_index": index,
                        "committed_offset": -1,
                        "committed_leader_epoch": -1,
                        "metadata": "",
                        "error_code": 0,
                    }
                    for index in one["partition_indexes"]
                ],
            }
            for one in strange
        ]
    return asked, results


async def offset_delete(call: Call, version: int, request: Message) -> Message:
    await require_group(call, request["group_id"])
    record = sources(call.latest(), request["group_id"])
    if record is None:
        return await forward(call, call.view, DELETE, request)
    view = await find(call, [one["name"] for one in request["topics"]])
    return await delete_positions(call, view, record, request, await forward(call, view, DELETE, request))


HANDLERS: dict[int, Handler] = {COMMIT: offset_commit, FETCH: offset_fetch, DELETE: offset_delete}
