"""Mirrors between clusters with SASL, TLS and ACLs: what the service needs there, and the ACLs of its topics."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
import trio

from kafka_client import ClusterClient, Refused, Sasl, SecretValue, Security, Tls
from kafka_client.topics import delete_records, describe
from kafka_wire.codec import Message
from replicator import worker
from replicator.following import Following
from replicator.prepare import CREATE_PARTITIONS, alter, configs
from replicator.rules import DENY, LITERAL, PREFIXED, Acl, acls_of, creations
from replicator.worker import Mirror, Progress, Replicator
from tests.fixtures.clusters import USERS
from tests.fixtures.mirrors import log_of
from tests.fixtures.names import Names
from tests.fixtures.security import acl, client_of, grant, make_topics
from tests.integration.test_mirror_cases import batch, write
from tests.integration.test_mirror_conditions import polled
from tools.local_cluster import Cluster

DESCRIBE_ACLS, DELETE_ACLS, ALTER_QUOTAS = 29, 31, 49
ANY = 1
SERVICE = "bob"  # on these clusters `kfed` may do more than a mirror needs
KINDS = {"topic": 2, "cluster": 4, "transactional id": 5}
OPERATIONS = {
    "READ": 3,
    "WRITE": 4,
    "CREATE": 5,
    "DELETE": 6,
    "ALTER": 7,
    "DESCRIBE": 8,
    "DESCRIBE_CONFIGS": 10,
    "ALTER_CONFIGS": 11,
}
# As docs/operations/security.md has them. READ and WRITE imply DESCRIBE.
NEEDED_OF_A_SOURCE = {
    "DESCRIBE topic T",
    "DESCRIBE_CONFIGS topic T",
    "READ topic T",
    "DESCRIBE topic __kfed_mirror",
    "DESCRIBE cluster",
}
NEEDED_OF_A_TARGET = {
    "DESCRIBE topic T",
    "DESCRIBE_CONFIGS topic T",
    *(f"{one} topic T" for one in ("CREATE", "READ", "WRITE", "DELETE", "ALTER", "ALTER_CONFIGS")),
    *(f"{one} topic __kfed_mirror" for one in ("CREATE", "DESCRIBE", "READ", "WRITE")),
    "WRITE transactional id kfed-mirror.ship.T.0",
    "DESCRIBE cluster",
    "ALTER cluster",
}
NEEDS = re.compile(r"the service needs (\w+) on (?:the )?(topic|cluster|transactional id)(?: '([^']+)')?")


def as_service(cluster: Cluster) -> ClusterClient:
    sasl = Sasl("SCRAM-SHA-512", SERVICE, SecretValue(USERS[SERVICE]))
    return ClusterClient(cluster.name, cluster.addresses("SASL_SSL"), Security(Tls(str(cluster.ca_file)), sasl))


async def acls(client: ClusterClient, topic: str | None) -> frozenset[Acl]:
    message = {
        "resource_type_filter": 2,
        "resource_name_filter": topic,
        "pattern_type_filter": ANY,
        "principal_filter": None,
        "host_filter": None,
        "operation": ANY,
        "permission_type": ANY,
    }
    return acls_of(await client.call(DESCRIBE_ACLS, message))


@asynccontextmanager
async def replicating(*clusters: Cluster) -> AsyncIterator[tuple[Replicator, list[ClusterClient]]]:
    opened = [as_service(one) for one in clusters]
    replicator = Replicator({one.name: one for one in opened})
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(replicator.run)
            yield replicator, opened
            nursery.cancel_scope.cancel()
    finally:
        for one in opened:
            one.close()


async def revoke_all(clusters: Sequence[Cluster]) -> None:
    """Takes away every literal right that `SERVICE` has: those by prefix are other tests'."""
    message = {
        "resource_type_filter": ANY,
        "resource_name_filter": None,
        "pattern_type_filter": LITERAL,
        "principal_filter": f"User:{SERVICE}",
        "host_filter": None,
        "operation": ANY,
        "permission_type": ANY,
    }
    for cluster in clusters:
        async with client_of(cluster) as admin:
            await admin.call(DELETE_ACLS, {"filters": [message]})


def complaint(replicator: Replicator, progress: Progress) -> tuple[str, str]:
    """(cluster, what it says) of whatever keeps a mirror back; empty where nothing does."""
    said = [progress.error, progress.rules.error]
    said += [one.detail for _, _, one in replicator.statuses()]
    for text in said:
        if NEEDS.search(text):
            return text.partition(":")[0], text
    return "", ""


@pytest.mark.timeout(240)
async def test_every_missing_right_is_named_and_what_is_named_is_enough(
    secured_east: Cluster, secured_west: Cluster, names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service without any right is given exactly what it says it lacks, one by one, until everything works."""
    monkeypatch.setattr(worker, "RULES_SECONDS", 0.5)
    topic = names.topic("guarded")
    both = {one.name: one for one in (secured_east, secured_west)}
    await make_topics(secured_east, topic)
    granted: dict[str, list[str]] = {name: [] for name in both}
    await revoke_all([*both.values()])
    try:
        async with (
            client_of(secured_east) as there,
            client_of(secured_west) as here,
            replicating(secured_east, secured_west) as (replicator, _),
        ):
            await grant(secured_east, acl("carol", 3, 2, topic))
            await write(there, topic, batch(b"1"), batch(b"2"), batch(b"3"))
            progress = await replicator.add(Mirror(topic, "secured-east", "secured-west"))
            changed = False

            async def works() -> bool:
                """Everything a mirror does has been done."""
                nonlocal changed
                found = (await describe(here, [topic])).get(topic)
                if found is None:
                    return False
                if not changed:
                    if not any(one.records == 3 for _, _, one in replicator.statuses()):
                        return False
                    changed = True
                    deleted = await delete_records(there, topic, next(iter(there.brokers)), {0: 2})
                    assert deleted == {0: 0}
                    await write(there, topic, batch(b"4"))
                    more = {"topics": [{"name": topic, "count": 2, "assignments": None}], "timeout_ms": 5000}
                    await there.call(CREATE_PARTITIONS, more)
                    await alter(there, topic, {"retention.ms": "3600000"})
                    await write(there, topic, batch(b"other"), partition=1)
                try:
                    values = [[one.value for one in await log_of(here, topic, number)] for number in found.partitions]
                except Refused:
                    return False  # records are being deleted just now
                return (
                    values == [[b"3", b"4"], [b"other"]]
                    and (await configs(here, topic)).values["retention.ms"] == "3600000"
                    and any(one.principal == "User:carol" for one in await acls(here, topic))
                )

            deadline = trio.current_time() + 120
            while not await works():
                replicator.again()
                cluster, text = complaint(replicator, progress)
                found = NEEDS.search(text)
                if found is not None:
                    operation, kind, name = found.groups()
                    right = f"{operation} {kind} {name or ''}".strip()
                    if right not in granted[cluster]:
                        granted[cluster].append(right)
                        await grant(
                            both[cluster],
                            acl(SERVICE, OPERATIONS[operation], KINDS[kind], name or "kafka-cluster"),
                        )
                state = progress.error, progress.rules, list(replicator.statuses())
                if trio.current_time() > deadline:
                    pytest.fail(f"{granted} {state}")
                await trio.sleep(0.2)
            needed = {name: {right.replace(topic, "T") for right in rights} for name, rights in granted.items()}
            assert needed["secured-east"] == NEEDED_OF_A_SOURCE, needed
            assert needed["secured-west"] == NEEDED_OF_A_TARGET, needed
    finally:
        await revoke_all([*both.values()])


async def test_acls_follow_their_topic(secured_east: Cluster, secured_west: Cluster, names: Names) -> None:
    topic, prefix = names.topic("ruled"), names.topic("ruled")[:-2]
    for cluster in (secured_east, secured_west):
        await make_topics(cluster, topic)
    await grant(
        secured_east,
        acl("alice", 3, 2, topic),
        acl("bob", 4, 2, topic, host="10.0.0.1"),
        acl("mallory", 3, 2, topic, permission=DENY),
        acl("carol", 3, 2, prefix, pattern=PREFIXED),
    )
    await grant(secured_west, acl("dave", 3, 2, topic))
    async with client_of(secured_east) as there, client_of(secured_west) as here:
        planned = await Following().follow(there, here, topic, dry=True)
        assert len(planned.created) == 3 and planned.created[0].startswith("deny User:mallory READ")
        assert len(await acls(here, topic)) == 1  # nothing was done
        done = await Following().follow(there, here, topic)
        assert done.created == planned.created and not done.error
        assert any("User:dave" in one for one in done.extra)
        assert any("User:carol" in one and prefix in one for one in done.missing)
        wanted = {one for one in await acls(there, None) if one.name == topic}
        now = await polled(lambda: acls(here, topic), lambda found: len(found) == 4)
        assert wanted < now and {one.principal for one in now - wanted} == {"User:dave"}
        # What is taken away at the source stays on the target, and is said.
        gone = {**creations(wanted)[0]}
        filters: Message = {
            "resource_type_filter": 2,
            "resource_name_filter": topic,
            "pattern_type_filter": LITERAL,
            "principal_filter": gone["principal"],
            "host_filter": None,
            "operation": ANY,
            "permission_type": ANY,
        }
        await there.call(DELETE_ACLS, {"filters": [filters]})
        await polled(lambda: acls(there, topic), lambda found: len(found) == 2)
        later = await Following().follow(there, here, topic)
        assert later.created == () and any(gone["principal"] in one for one in later.extra)
        assert len(await acls(here, topic)) == 4
        # Quotas are compared and left alone.
        entity = [{"entity_type": "user", "entity_name": names("somebody")}]
        ops = [{"key": "producer_byte_rate", "value": 1000.0, "remove": False}]
        await there.call(ALTER_QUOTAS, {"entries": [{"entity": entity, "ops": ops}], "validate_only": False})
        told = await polled(lambda: Following().follow(there, here, topic), lambda one: bool(one.quotas))
        assert any(
            names("somebody") in one and "1000 on secured-east, not set on secured-west" in one for one in told.quotas
        )
        assert any("quota" in one for one in told.remarks)


async def test_without_an_authorizer_there_is_nothing_to_follow(east: Cluster, secured_west: Cluster) -> None:
    async with ClusterClient(east.name, east.addresses()) as there, client_of(secured_west) as here:
        assert await Following().follow(there, here, "any") == await Following().follow(here, there, "any")
        assert not (await Following().follow(there, here, "any")).remarks
