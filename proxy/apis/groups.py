"""Consumer groups: classic and KIP-848 membership, and what is told about groups.

JoinGroup 11 (0-9), Heartbeat 12 (0-4), LeaveGroup 13 (0-5), SyncGroup 14 (0-5), DescribeGroups 15 (0-6),
ListGroups 16 (0-5), DeleteGroups 42 (0-2), ConsumerGroupHeartbeat 68 (0-1), ConsumerGroupDescribe 69 (0-1).

All go to the group's home. Before a member joins, the topics it names that live elsewhere get their stubs. Regular
expressions of KIP-848 are resolved here as soon as there are several clusters: a coordinator would match the topics
of its own cluster only. While a group's home is moved, its members hear of it here (gathering.py). ListGroups tells
what this broker coordinates, as with a plain broker, without groups that are at home elsewhere; clients ask every
broker and add up.
"""

from __future__ import annotations

from collections.abc import Iterable

from kafka_wire.codec import DecodeError, Message, decode_named
from kafka_wire.errors import ERROR
from proxy.apis import gathering, subscriptions
from proxy.apis.carried import delete_group, sources
from proxy.apis.contract import Call, Handler, Refused
from proxy.apis.homes import require_group, split_by_home, stubs
from proxy.apis.mapping import forward, to_physical_ids
from proxy.apis.permissions import READ

JOIN, HEARTBEAT, LEAVE, SYNC = 11, 12, 13, 14
DESCRIBE, LIST, DELETE = 15, 16, 42
CONSUMER_HEARTBEAT, CONSUMER_DESCRIBE = 68, 69
SUBSCRIPTION_VERSIONS = 3


def subscribed_topics(protocols: Iterable[Message]) -> list[str]:
    """The topics of all ConsumerProtocolSubscriptions of a JoinGroup; metadata of other kinds names none."""
    names: dict[str, None] = {}
    for protocol in protocols:
        metadata = protocol["metadata"]
        if len(metadata) < 2:
            continue
        version = int.from_bytes(metadata[:2], "big", signed=True)
        if version < 0:
            continue
        try:
            found, _ = decode_named("ConsumerProtocolSubscription", min(version, SUBSCRIPTION_VERSIONS), metadata, 2)
        except DecodeError:
            continue  # the coordinator does not read it either
        names.update(dict.fromkeys(found["topics"]))
    return list(names)


async def join_group(call: Call, version: int, request: Message) -> Message:
    group = request["group_id"]
    await require_group(call, group, READ)
    if (moving := gathering.gathering(call.latest(), group)) is not None:
        return await gathering.join(call, request, moving)
    view = call.view
    if request["protocol_type"] == "consumer":
        view = await stubs(call, subscribed_topics(request["protocols"]))
    call.unbind()
    return _looked_again(call, group, await forward(call, view, JOIN, request))


async def sync_group(call: Call, version: int, request: Message) -> Message:
    await require_group(call, request["group_id"])
    call.unbind()
    return _looked_again(call, request["group_id"], await forward(call, call.view, SYNC, request))


def _looked_again(call: Call, group: str, response: Message) -> Message:
    """An answer that may have taken as long as a rebalance. Raises Refused, where the home has moved meanwhile."""
    if gathering.must_look_again(call, group):
        raise Refused(ERROR.NOT_COORDINATOR)
    return response


async def heartbeat(call: Call, version: int, request: Message) -> Message:
    await require_group(call, request["group_id"])
    response = await forward(call, call.view, HEARTBEAT, request)
    if not response["error_code"] and gathering.gathering(call.latest(), request["group_id"]) is not None:
        response["error_code"] = ERROR.REBALANCE_IN_PROGRESS
    return response


def _at_home(key: int) -> Handler:
    """A request that names one group and is passed on as it is."""

    async def handler(call: Call, version: int, request: Message) -> Message:
        await require_group(call, request["group_id"])
        return await forward(call, call.view, key, request)

    return handler


async def list_groups(call: Call, version: int, request: Message) -> Message:
    response = await forward(call, call.view, LIST, request)
    homes = call.view.groups
    response["groups"] = [
        group
        for group in response["groups"]
        if group["group_id"] not in homes or homes[group["group_id"]].cluster == call.cluster
    ]
    return response


_delete = split_by_home(DELETE, "groups_names", "results", "group_id")


async def delete_groups(call: Call, version: int, request: Message) -> Message:
    response = await _delete(call, version, request)
    view = call.latest()
    for one in response["results"]:
        record = sources(view, one["group_id"])
        if record is not None and record.cluster == call.cluster:
            one["error_code"] = await delete_group(call, view, record, one["error_code"])
    deleted = [one["group_id"] for one in response["results"] if one["error_code"] == ERROR.NONE]
    if deleted:
        await call.federation.groups_deleted(deleted)
    return response


async def consumer_heartbeat(call: Call, version: int, request: Message) -> Message:
    group = request["group_id"]
    await require_group(call, group, READ)
    if (moving := gathering.gathering(call.latest(), group)) is not None:
        return await gathering.consumer_heartbeat(call, version, request, moving)
    subscription = await subscriptions.follow(call, version, request)
    view = await stubs(call, subscription.names) if subscription.names else call.view
    asked = to_physical_ids(view, call.cluster, CONSUMER_HEARTBEAT, version, subscription.request)
    response = await forward(call, view, CONSUMER_HEARTBEAT, asked)
    if response["error_code"] == ERROR.GROUP_ID_NOT_FOUND:
        response["error_code"] = ERROR.UNKNOWN_MEMBER_ID  # its members come from a former home; 69 would end them
    subscriptions.answered(subscription, response)
    return response


HANDLERS: dict[int, Handler] = {
    JOIN: join_group,
    HEARTBEAT: heartbeat,
    LEAVE: _at_home(LEAVE),
    SYNC: sync_group,
    DESCRIBE: split_by_home(DESCRIBE, "groups", "groups", "group_id"),
    LIST: list_groups,
    DELETE: delete_groups,
    CONSUMER_HEARTBEAT: consumer_heartbeat,
    CONSUMER_DESCRIBE: split_by_home(CONSUMER_DESCRIBE, "group_ids", "groups", "group_id"),
}
