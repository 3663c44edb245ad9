"""Rights that a move needs: what of one cluster's ACLs another one lacks, and what the service itself lacks."""

from __future__ import annotations

from typing import Any, cast

import pytest

from kafka_client import ClusterClient
from kafka_wire.acls import (
    ALL,
    ALLOW,
    ALTER_CONFIGS,
    DENY,
    DESCRIBE,
    LITERAL,
    PREFIXED,
    READ,
    TOPIC,
    WRITE,
    Acl,
    acls_of,
    lost,
)
from kafka_wire.errors import ERROR
from metadata_service.migrating import rights, switches

EVERY_BIT = sum(1 << one for one in range(3, 12))


def rule(
    operation: int = READ,
    who: str = "User:a",
    name: str = "orders",
    pattern: int = LITERAL,
    permission: int = ALLOW,
    host: str = "*",
) -> Acl:
    return Acl(permission, who, operation, host, pattern, name)


@pytest.mark.parametrize(
    "there",
    [
        rule(),
        rule(who="User:*"),
        rule(ALL),
        rule(name="ord", pattern=PREFIXED),
        rule(name="*"),
    ],
    ids=str,
)
def test_a_rule_is_made_up_for_by_itself_or_a_wider_one(there: Acl) -> None:
    assert lost("orders", [rule(), rule(host="10.0.0.1")], [there]) == []


@pytest.mark.parametrize(
    "there",
    [
        rule(who="User:b"),
        rule(WRITE),
        rule(DESCRIBE),
        rule(name="orders2"),
        rule(name="orders2", pattern=PREFIXED),
        rule(host="10.0.0.1"),
        rule(permission=DENY),
        rule()._replace(kind=3),
    ],
    ids=str,
)
def test_and_by_nothing_else(there: Acl) -> None:
    assert lost("orders", [rule()], [there]) == [rule()]


def test_what_is_implied_is_implied_by_permissions_alone() -> None:
    assert lost("orders", [rule(DESCRIBE)], [rule(WRITE)]) == []
    denied = rule(DESCRIBE, permission=DENY)
    assert lost("orders", [denied], [rule(WRITE, permission=DENY)]) == [denied]
    assert lost("orders", [rule(name="others")], []) == []


class Broker:
    """Answers as one cluster's brokers; `bits`: by topic."""

    def __init__(self, name: str, bits: dict[str, int], rules: list[Acl] | None = None) -> None:
        self.name, self.bits, self.rules = name, bits, rules

    async def call(self, key: int, message: dict[str, Any], **_: object) -> dict[str, Any]:
        if key == rights.METADATA:
            told = {one["name"]: self.bits.get(one["name"]) for one in message["topics"]}
            missing, denied = int(ERROR.UNKNOWN_TOPIC_OR_PARTITION), int(ERROR.TOPIC_AUTHORIZATION_FAILED)
            return {
                "topics": [
                    {
                        "name": name,
                        "error_code": missing if bits is None else denied if not bits else 0,
                        "topic_authorized_operations": bits or -(1 << 31),
                    }
                    for name, bits in told.items()
                ]
            }
        if self.rules is None:
            return {"error_code": int(ERROR.SECURITY_DISABLED), "error_message": None, "resources": []}
        resources = [
            {
                "resource_type": one.kind,
                "resource_name": one.name,
                "pattern_type": one.pattern,
                "acls": [
                    {
                        "principal": one.principal,
                        "host": one.host,
                        "operation": one.operation,
                        "permission_type": one.permission,
                    }
                ],
            }
            for one in self.rules
        ]
        return {"error_code": 0, "error_message": None, "resources": resources}


def client(one: Broker) -> ClusterClient:
    return cast(ClusterClient, one)


async def test_the_services_own_rights_are_named() -> None:
    almost = EVERY_BIT & ~(1 << ALTER_CONFIGS) & ~(1 << WRITE)
    east = client(Broker("east", {"a": EVERY_BIT, "b": almost, "c": 0, switches.TOPIC: 1 << DESCRIBE}))
    assert await rights.own(east, rights.ON_SOURCE, ["a", "b", "c", "none"]) == [
        "east: the service needs WRITE, ALTER_CONFIGS on topic 'b'",
        "east: the service needs DESCRIBE on topic 'c'",
        f"east: the service needs WRITE on topic '{switches.TOPIC}'",
    ]


async def test_clients_lose_nothing_between_clusters_of_which_one_asks_for_no_rights() -> None:
    guarded, bare, open_ = (client(Broker("x", {}, rules)) for rules in ([rule()], [], None))
    wanted = [(TOPIC, "orders")]
    assert await rights.of_clients(guarded, bare, wanted) == [rule()]
    assert await rights.of_clients(guarded, open_, wanted) == await rights.of_clients(open_, bare, wanted) == []
    assert acls_of(await Broker("x", {}, [rule()]).call(rights.DESCRIBE_ACLS, {})) == {rule()}
