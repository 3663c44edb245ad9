"""Share groups and streams groups.

ShareGroupHeartbeat 76 (1), ShareGroupDescribe 77 (1), DescribeShareGroupOffsets 90 (0-1), AlterShareGroupOffsets 91
(0), DeleteShareGroupOffsets 92 (0), StreamsGroupHeartbeat 88 (0), StreamsGroupDescribe 89 (0). All at the group's home.

A share group's records are handed out by the leaders of its topics, with state on their own cluster: it can read
topics of its home only, and is told so. A streams group's source topics may live anywhere (stubs); its coordinator
creates the internal topics on the home, where they are found at first mention.
"""

from __future__ import annotations

from collections import OrderedDict

from kafka_wire.codec import Message
from kafka_wire.errors import ERROR
from metadata_service.view import View
from proxy.apis.contract import Call, Handler, Refused
from proxy.apis.homes import require_group, split_by_home, stubs, without_stub
from proxy.apis.mapping import forward, to_physical_ids
from proxy.apis.metadata import find
from proxy.apis.permissions import READ
from proxy.apis.refusals import refusal

SHARE_HEARTBEAT, SHARE_DESCRIBE = 76, 77
STREAMS_HEARTBEAT, STREAMS_DESCRIBE = 88, 89
DESCRIBE_OFFSETS, ALTER_OFFSETS, DELETE_OFFSETS = 90, 91, 92
LIMIT = 5_000  # streams groups whose source topics are remembered

_sources: OrderedDict[str, list[str]] = OrderedDict()


def _elsewhere(view: View, cluster: str, name: str) -> bool:
    topic = view.topics.get(name)
    return topic is not None and topic.cluster != cluster


def _advice(group: str, topic: str) -> str:
    return (
        f"share group {group!r} reads topics of one cluster, and topic {topic!r} lives on another than its home; "
        f"place the group there with a rule for `groups` before its first use, or move the topic"
    )


async def share_heartbeat(call: Call, version: int, request: Message) -> Message:
    group = request["group_id"]
    await require_group(call, group, READ)
    names = request.get("subscribed_topic_names") or []
    view = await find(call, names)
    for name in names:
        if _elsewhere(view, call.cluster, name):
            raise Refused(ERROR.INVALID_REQUEST, _advice(group, name))
    return await forward(call, view, SHARE_HEARTBEAT, request)


async def alter_offsets(call: Call, version: int, request: Message) -> Message:
    group = request["group_id"]
    await require_group(call, group, READ)
    names = [one["topic_name"] for one in request["topics"]]
    view = await find(call, names)
    away = [one for one in request["topics"] if _elsewhere(view, call.cluster, one["topic_name"])]
    if not away:
        return await forward(call, view, ALTER_OFFSETS, request)
    here = [one for one in request["topics"] if one not in away]
    text = _advice(group, away[0]["topic_name"])
    refused = refusal(ALTER_OFFSETS, version, {"topics": away}, ERROR.INVALID_REQUEST, text)
    response = await forward(call, view, ALTER_OFFSETS, {**request, "topics": here}) if here else {"responses": []}
    found = {one["topic_name"]: one for one in (*refused["responses"], *response["responses"])}
    response["responses"] = [found[name] for name in names if name in found]
    return response


async def delete_offsets(call: Call, version: int, request: Message) -> Message:
    await require_group(call, request["group_id"])
    return await forward(call, call.view, DELETE_OFFSETS, request)


async def streams_heartbeat(call: Call, version: int, request: Message) -> Message:
    group = request["group_id"]
    await require_group(call, group, READ)
    topology = request.get("topology")
    if topology is not None:
        # Said when a member joins; a source topic may come into being later, on another cluster.
        named = (name for one in topology["subtopologies"] for name in one["source_topics"])
        _sources[group] = list(dict.fromkeys(named))
        _sources.move_to_end(group)
        while len(_sources) > LIMIT:
            _sources.popitem(last=False)
    view = call.view
    names = _sources.get(group, [])
    if topology is not None or without_stub(view, call.cluster, names):
        view = await stubs(call, names)
    asked = to_physical_ids(view, call.cluster, STREAMS_HEARTBEAT, version, request)
    return await forward(call, view, STREAMS_HEARTBEAT, asked)


HANDLERS: dict[int, Handler] = {
    SHARE_HEARTBEAT: share_heartbeat,
    SHARE_DESCRIBE: split_by_home(SHARE_DESCRIBE, "group_ids", "groups", "group_id"),
    STREAMS_HEARTBEAT: streams_heartbeat,
    STREAMS_DESCRIBE: split_by_home(STREAMS_DESCRIBE, "group_ids", "groups", "group_id"),
    DESCRIBE_OFFSETS: split_by_home(DESCRIBE_OFFSETS, "groups", "groups", "group_id"),
    ALTER_OFFSETS: alter_offsets,
    DELETE_OFFSETS: delete_offsets,
}
