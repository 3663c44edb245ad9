"""What moving a group's home needs of the authorizers of both clusters, found out while the old home still serves."""

from __future__ import annotations

from collections.abc import Iterable

from kafka_client import ClientError, ClusterClient
from kafka_wire.acls import ALL, DELETE, DESCRIBE, OPERATIONS, READ, TOPIC
from kafka_wire.acls import GROUP as GROUP_RESOURCE
from kafka_wire.errors import ERROR
from metadata_service import home_copying
from metadata_service.asking import GROUP
from metadata_service.failures import Undecided
from metadata_service.migrating import rights

DESCRIBE_GROUPS = 15
VERSION = 5  # the last that calls a group which is not there dead, and tells one's rights all the same
TIMEOUT = 5.0
NEEDED = (READ, DELETE, DESCRIBE)
OF_MEMBERS = frozenset({ALL, READ, DESCRIBE})  # on topics: what committing a position asks for
_NOT_TOLD = -(1 << 31)


async def own(client: ClusterClient, group: str) -> str:
    """The rights on the group that the service lacks, in words. Raises Undecided."""
    message = {"groups": [group], "include_authorized_operations": True}
    try:
        answer = await client.call_coordinator(
            GROUP, group, DESCRIBE_GROUPS, message, VERSION, timeout=TIMEOUT, retry=True
        )
    except ClientError as error:
        raise Undecided(client.name, str(error)) from error
    found = answer["groups"][0]
    bits = found.get("authorized_operations", _NOT_TOLD)
    if found["error_code"] == ERROR.GROUP_AUTHORIZATION_FAILED:
        bits = 0
    elif found["error_code"] or bits == _NOT_TOLD:
        return ""
    missing = [OPERATIONS[one] for one in NEEDED if not bits & 1 << one]
    return f"{client.name}: the service needs {', '.join(missing)} on group {group!r}" if missing else ""


async def to_copy(target: ClusterClient, group: str) -> str:
    """As `own`: the right to write the positions in a transaction. What an earlier copy had open is aborted."""
    try:
        await home_copying.fence(target, group)
    except home_copying.Denied:
        name = home_copying.transaction_of(group)
        return f"{target.name}: the service needs WRITE on transactional id {name!r}"
    return ""


async def of_members(source: ClusterClient, target: ClusterClient, group: str, topics: Iterable[str]) -> str:
    """The ACLs by which members of the group are at work on the source, and that the target lacks. Raises Undecided."""
    resources = [(GROUP_RESOURCE, group), *((TOPIC, one) for one in sorted(topics))]
    try:
        found = await rights.of_clients(source, target, resources)
    except ClientError as error:
        raise Undecided(source.name, str(error)) from error
    missing = [one for one in found if one.kind == GROUP_RESOURCE or one.operation in OF_MEMBERS]
    return f"{rights.words(source.name, target.name, missing)}: create them there first" if missing else ""
