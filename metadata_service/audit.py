"""Looks for what goes past the federation on each cluster, and for ACLs that cannot work behind it.

Best effort by hosts: a group member whose host is no proxy's came directly. On one machine (loopback) all hosts are
alike and nothing is found that way; a group that is live on a cluster which is not its home is found everywhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from kafka_client import ClientError, ClusterClient
from kafka_wire.acls import every_acl
from kafka_wire.codec import Message
from metadata_service.asking import FoundGroup, list_groups
from metadata_service.failures import Undecided
from metadata_service.member import Member
from metadata_service.models import AUDITS, WORKERS, AuditRecord, WorkerRecord
from metadata_service.records import read_all, settle
from metadata_service.store.contract import Unchanged

DESCRIBE_GROUPS, DESCRIBE_ACLS, CONSUMER_GROUP_DESCRIBE = 15, 29, 69
GROUPS_AT_ONCE = 200
HOSTS_SHOWN = 5
ACLS_SHOWN = 100
TIMEOUT = 5.0
GROUP = 0


async def audit(member: Member, guard: Unchanged) -> None:
    """One look at every reachable cluster; its record is replaced where something changed."""
    workers = await read_all(member.store, WORKERS, WorkerRecord)
    proxies = {one for worker in workers.values() if worker.role == "proxy" for one in worker.addresses}
    for name, cluster in member.view.clusters.items():
        client = member.clients.get(name)
        if client is None or not cluster.snapshot.reachable:
            continue
        try:
            found = AuditRecord(
                at=time.time(),
                direct_groups=await _direct_groups(member, client, proxies),
                host_acls=await _host_acls(client),
            )
        except (ClientError, Undecided):
            continue
        await settle(member.store, AUDITS + name, AuditRecord, _replacing(found), conditions=(guard,))


def _replacing(found: AuditRecord) -> Callable[[AuditRecord | None], AuditRecord]:
    """Keeps what is stored where only the time differs."""

    def decide(now: AuditRecord | None) -> AuditRecord:
        same = now is not None and (now.direct_groups, now.host_acls) == (found.direct_groups, found.host_acls)
        return now if now is not None and same else found

    return decide


async def _direct_groups(member: Member, client: ClusterClient, proxies: set[str]) -> dict[str, tuple[str, ...]]:
    direct: dict[str, tuple[str, ...]] = {}
    live = [one for one in (await list_groups(client)).values() if one.live]
    for group in sorted(live, key=lambda one: one.name)[:GROUPS_AT_ONCE]:
        home = member.view.groups.get(group.name)
        away_from_home = home is not None and home.cluster != client.name
        hosts = await _hosts(client, group)
        strangers = sorted(hosts if away_from_home else hosts - proxies) if proxies or away_from_home else []
        if strangers:
            direct[group.name] = tuple(strangers[:HOSTS_SHOWN])
    return direct


async def _hosts(client: ClusterClient, group: FoundGroup) -> set[str]:
    """The hosts of a group's members, as its coordinator sees them."""
    if group.kind in ("", "classic"):
        key, message = DESCRIBE_GROUPS, {"groups": [group.name], "include_authorized_operations": False}
    elif group.kind == "consumer":
        key, message = CONSUMER_GROUP_DESCRIBE, {"group_ids": [group.name], "include_authorized_operations": False}
    else:
        return set()
    answer: Message = await client.call_coordinator(GROUP, group.name, key, message, timeout=TIMEOUT, retry=True)
    return {one["client_host"].lstrip("/") for found in answer["groups"] for one in found["members"]}


async def _host_acls(client: ClusterClient) -> tuple[str, ...]:
    answer = await client.call(DESCRIBE_ACLS, every_acl(), timeout=TIMEOUT, retry=True)
    if answer["error_code"]:
        return ()  # no authorizer, or one that does not show its rules to us
    found = {
        f"{acl['principal']} on {resource['resource_name']} from {acl['host']}"
        for resource in answer["resources"]
        for acl in resource["acls"]
        if acl["host"] != "*"
    }
    return tuple(sorted(found)[:ACLS_SHOWN])
