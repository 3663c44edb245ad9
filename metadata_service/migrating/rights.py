"""What a move needs of the authorizers of both clusters, found out before writes are held.

The service's own rights are told by the brokers (KIP-430). Whether clients keep theirs is compared by ACLs: what the
source allows or denies them on a resource that moves, the target must too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kafka_client import ClusterClient, Refused
from kafka_client.rights import lacking, on_topic
from kafka_wire.acls import (
    ALTER,
    ALTER_CONFIGS,
    DELETE,
    DESCRIBE,
    DESCRIBE_CONFIGS,
    OPERATIONS,
    READ,
    WRITE,
    Acl,
    acls_about,
    acls_of,
    lost,
)
from kafka_wire.errors import ERROR
from metadata_service.migrating import switches

METADATA, DESCRIBE_ACLS = 3, 29
TIMEOUT = 5.0
# Followed, probed, closed, and emptied when it has moved.
ON_SOURCE = (READ, WRITE, DELETE, DESCRIBE, DESCRIBE_CONFIGS, ALTER_CONFIGS)
ON_TARGET = (READ, WRITE, DELETE, ALTER, DESCRIBE, DESCRIBE_CONFIGS, ALTER_CONFIGS)
ON_NOTES = (WRITE, DESCRIBE)
_NOT_TOLD = -(1 << 31)
Resource = tuple[int, str]  # (resource type, name)


async def own(client: ClusterClient, wanted: Sequence[int], topics: Iterable[str]) -> list[str]:
    """The rights that the service lacks: of `wanted` on these topics, and on the internal one that a switch is written
    down in. Topics that are not there are passed over. Raises ClientError."""
    names = [*sorted(topics), switches.TOPIC]
    message = {
        "topics": [{"topic_id": bytes(16), "name": one} for one in names],
        "allow_auto_topic_creation": False,
        "include_topic_authorized_operations": True,
    }
    answer = await client.call(METADATA, message, timeout=TIMEOUT, retry=True)
    out = []
    for one in answer["topics"]:
        name, code = one["name"], one["error_code"]
        if code == ERROR.TOPIC_AUTHORIZATION_FAILED:
            out.append(f"{client.name}: the service needs {on_topic('DESCRIBE', name)}")
        bits = one.get("topic_authorized_operations", _NOT_TOLD)
        if code or bits == _NOT_TOLD:
            continue
        needed = ON_NOTES if name == switches.TOPIC else wanted
        missing = [OPERATIONS[each] for each in needed if not bits & 1 << each]
        if missing:
            out.append(f"{client.name}: the service needs {on_topic(', '.join(missing), name)}")
    return out


async def of_clients(source: ClusterClient, target: ClusterClient, resources: Iterable[Resource]) -> list[Acl]:
    """The source's rules about these resources that nothing on the target makes up for. A cluster without an authorizer
    has none. Raises ClientError."""
    out: set[Acl] = set()
    for kind, name in resources:
        theirs = await _rules(source, kind, name)
        ours = await _rules(target, kind, name) if theirs else None
        if theirs and ours is not None:
            out |= set(lost(name, theirs, ours))
    return sorted(out)


async def _rules(client: ClusterClient, kind: int, name: str) -> frozenset[Acl] | None:
    """Those that apply to a resource; None where the cluster has no authorizer. Raises ClientError."""
    answer = await client.call(DESCRIBE_ACLS, acls_about(kind, name), timeout=TIMEOUT, retry=True)
    code = answer["error_code"]
    if code == ERROR.SECURITY_DISABLED:
        return None
    if code:
        right = lacking(code, "DESCRIBE on the cluster")
        raise Refused(f"{client.name}: its ACLs{right}", code, answer["error_message"])
    return acls_of(answer, kind)


def words(source: str, target: str, missing: Sequence[Acl], shown: int = 5) -> str:
    """What clients would lose, or be given, as a sentence has it."""
    more = f" and {len(missing) - shown} more" if len(missing) > shown else ""
    return f"ACLs of {source} that {target} lacks: {', '.join(map(str, missing[:shown]))}{more}"
