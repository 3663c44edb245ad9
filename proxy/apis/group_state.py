"""Committed positions of groups: OffsetCommit 8 (2-10), OffsetFetch 9 (1-10), OffsetDelete 47 (0).

They lie on the group's home, for topics of other clusters under a stub, and are logical offsets: what a client read
is what it commits, wherever the topic lives or has lived, so nothing is translated here. Topic ids (commit and fetch
version 10) are mapped to the home's own topic or stub, and back.
"""

from __future__ import annotations

from collections.abc import Iterable

from kafka_wire.codec import Message
from kafka_wire.errors import ERROR
from metadata_service.view import View
from proxy.apis.contract import Call, Handler
from proxy.apis.homes import group_home, require_group, stubs
from proxy.apis.mapping import forward, to_physical_ids
from proxy.apis.metadata import find
from proxy.apis.refusals import refusal

COMMIT, FETCH, DELETE = 8, 9, 47
IDS_FROM = 10  # version of OffsetCommit and OffsetFetch that names topics by id
GROUPS_FROM = 8  # version of OffsetFetch that names several groups


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
    await require_group(call, request["group_id"])
    by_id = version >= IDS_FROM
    view, known, unknown = await prepared(call, request["topics"], by_id)
    if not unknown:
        return await forward(call, view, COMMIT, to_physical_ids(view, call.cluster, COMMIT, version, request))
    code = ERROR.UNKNOWN_TOPIC_ID if by_id else ERROR.UNKNOWN_TOPIC_OR_PARTITION
    response = refusal(COMMIT, version, {"topics": unknown}, code)
    if known:
        asked = to_physical_ids(view, call.cluster, COMMIT, version, {**request, "topics": known})
        committed = await forward(call, view, COMMIT, asked)
        field = "topic_id" if by_id else "name"
        committed["topics"] = in_order(request["topics"], field, committed["topics"], response["topics"])
        return committed
    return response


async def offset_fetch(call: Call, version: int, request: Message) -> Message:
    if version < GROUPS_FROM:
        await require_group(call, request["group_id"])
        return await forward(call, call.view, FETCH, request)
    homes = {one["group_id"]: await group_home(call, one["group_id"]) for one in request["groups"]}
    here = [one for one in request["groups"] if homes[one["group_id"]] == call.cluster]
    view = call.view
    if version >= IDS_FROM:
        ids = [topic["topic_id"] for one in here for topic in one["topics"] or ()]
        view = await find(call, (), ids)
    if not here:
        return refusal(FETCH, version, request, ERROR.NOT_COORDINATOR)
    asked = to_physical_ids(view, call.cluster, FETCH, version, {**request, "groups": here})
    response = await forward(call, view, FETCH, asked)
    if len(here) < len(request["groups"]):
        away = [one for one in request["groups"] if homes[one["group_id"]] != call.cluster]
        refused = refusal(FETCH, version, {"groups": away}, ERROR.NOT_COORDINATOR)
        response["groups"] = in_order(request["groups"], "group_id", response["groups"], refused["groups"])
    return response


async def offset_delete(call: Call, version: int, request: Message) -> Message:
    await require_group(call, request["group_id"])
    return await forward(call, call.view, DELETE, request)


HANDLERS: dict[int, Handler] = {COMMIT: offset_commit, FETCH: offset_fetch, DELETE: offset_delete}
