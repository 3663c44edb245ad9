"""A group's members as its coordinator tells them, of either protocol, and how they are made to leave."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from kafka_client import ClientError, ClusterClient, UnsupportedApi
from kafka_wire.codec import DecodeError, Message, decode_named
from kafka_wire.errors import ERROR, error_name
from metadata_service.asking import GROUP
from metadata_service.failures import Undecided

LEAVE, DESCRIBE, CONSUMER_HEARTBEAT, CONSUMER_DESCRIBE = 13, 15, 68, 69
TIMEOUT = 5.0
SUBSCRIPTION_VERSIONS = 3
GONE = -1  # the epoch of a member that leaves
CONSUMER_MEMBER = 1  # member_type of ConsumerGroupDescribe; -1 where it is not told
_NOT_THERE = {ERROR.GROUP_ID_NOT_FOUND, ERROR.UNKNOWN_MEMBER_ID}


@dataclass(frozen=True, slots=True)
class GroupMember:
    """`classic`: it speaks the old protocol, whatever its group does. `topics`: what it names."""

    id: str
    instance: str | None
    client_id: str
    host: str
    classic: bool
    topics: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.instance or self.client_id or self.id} at {self.host.lstrip('/')}"


@dataclass(frozen=True, slots=True)
class GroupState:
    """`kind`: consumer, classic, or "" where there is no such group (any longer). `protocol`: a classic group's type,
    or the server's assignor."""

    kind: str = ""
    state: str = "Dead"
    protocol: str = ""
    members: tuple[GroupMember, ...] = field(default=())

    @property
    def mixed(self) -> bool:
        """Members of the old protocol in a group of the new one."""
        return self.kind == "consumer" and any(one.classic for one in self.members)


async def describe_group(client: ClusterClient, group: str) -> GroupState:
    """Asks the group's coordinator. Share and streams groups are none of this. Raises Undecided."""
    try:
        found = await _new(client, group)
        return found if found is not None else await _old(client, group)
    except ClientError as error:
        raise Undecided(client.name, str(error)) from error


async def _new(client: ClusterClient, group: str) -> GroupState | None:
    request: Message = {"group_ids": [group], "include_authorized_operations": False}
    try:
        answer = await client.call_coordinator(GROUP, group, CONSUMER_DESCRIBE, request, timeout=TIMEOUT, retry=True)
    except UnsupportedApi:
        return None
    one = answer["groups"][0]
    if one["error_code"] in (ERROR.GROUP_ID_NOT_FOUND, ERROR.UNSUPPORTED_VERSION):
        return None
    if one["error_code"]:
        raise Undecided(client.name, f"group {group!r}: {error_name(one['error_code'])}")
    members = tuple(
        GroupMember(
            each["member_id"],
            each["instance_id"],
            each["client_id"],
            each["client_host"],
            each.get("member_type", CONSUMER_MEMBER) == 0,
            tuple(each["subscribed_topic_names"] or ()),
        )
        for each in one["members"]
    )
    return GroupState("consumer", one["group_state"], one["assignor_name"], members)


async def _old(client: ClusterClient, group: str) -> GroupState:
    request: Message = {"groups": [group], "include_authorized_operations": False}
    answer = await client.call_coordinator(GROUP, group, DESCRIBE, request, timeout=TIMEOUT, retry=True)
    one = answer["groups"][0]
    if one["error_code"] == ERROR.GROUP_ID_NOT_FOUND or one["group_state"] == "Dead":
        return GroupState()
    if one["error_code"]:
        raise Undecided(client.name, f"group {group!r}: {error_name(one['error_code'])}")
    members = tuple(
        GroupMember(
            each["member_id"],
            each.get("group_instance_id"),
            each["client_id"],
            each["client_host"],
            True,
            _subscribed(each["member_metadata"]) if one["protocol_type"] == "consumer" else (),
        )
        for each in one["members"]
    )
    return GroupState("classic", one["group_state"], one["protocol_type"], members)


def _subscribed(metadata: bytes | memoryview) -> tuple[str, ...]:
    """The topics of a ConsumerProtocolSubscription; none where it cannot be read."""
    if len(metadata) < 2:
        return ()
    version = int.from_bytes(metadata[:2], "big", signed=True)
    try:
        found, _ = decode_named("ConsumerProtocolSubscription", min(version, SUBSCRIPTION_VERSIONS), metadata, 2)
    except DecodeError:
        return ()
    return tuple(found["topics"])


async def evict(client: ClusterClient, group: str, state: GroupState) -> None:
    """Makes members leave. Those that are gone already are no failure. Raises Undecided."""
    classic = [one for one in state.members if one.classic]
    try:
        if classic:
            await _leave(client, group, classic)
        for one in state.members:
            if not one.classic:
                await _leave_new(client, group, one)
    except ClientError as error:
        raise Undecided(client.name, str(error)) from error


async def _leave(client: ClusterClient, group: str, members: Iterable[GroupMember]) -> None:
    named = [{"member_id": one.id, "group_instance_id": one.instance, "reason": "its home is moved"} for one in members]
    answer = await client.call_coordinator(
        GROUP, group, LEAVE, {"group_id": group, "members": named}, timeout=TIMEOUT, retry=True
    )
    codes = {answer["error_code"], *(one["error_code"] for one in answer.get("members", ()))} - {0, *_NOT_THERE}
    if codes:
        raise Undecided(client.name, f"group {group!r}: members do not leave: {error_name(min(codes))}")


async def _leave_new(client: ClusterClient, group: str, member: GroupMember) -> None:
    message = {
        "group_id": group,
        "member_id": member.id,
        "member_epoch": GONE,
        "instance_id": member.instance,
        "rack_id": None,
        "rebalance_timeout_ms": -1,
        "subscribed_topic_names": None,
        "subscribed_topic_regex": None,
        "server_assignor": None,
        "topic_partitions": None,
    }
    answer = await client.call_coordinator(GROUP, group, CONSUMER_HEARTBEAT, message, timeout=TIMEOUT, retry=True)
    if answer["error_code"] not in (0, *_NOT_THERE):
        raise Undecided(client.name, f"group {group!r}: a member does not leave: {error_name(answer['error_code'])}")
