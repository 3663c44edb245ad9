"""Quotas, users, ACLs, tokens and what is told of the cluster: the Java client, directly and through the endpoint."""

from __future__ import annotations

from functools import partial

from tests.fixtures.sides import Said, Side, Sides, attempt, until
from tools.java_client import Jvm
from tools.local_cluster import Cluster
from tools.local_federation import Federation


async def test_quotas(sides: Sides, jvm: Jvm, west: Cluster) -> None:
    async def script(side: Side, say: Said) -> None:
        async with jvm.admin(side.java) as admin:
            user, client = side.user("alice"), side("app")

            async def alter(label: str, entity: dict[str, str], **quotas: float | None) -> None:
                say(label, await attempt(admin.call("alter_quotas", entity=entity, quotas=quotas)))

            async def mine(count: int) -> list[dict[str, object]]:
                async def look() -> list[dict[str, object]]:
                    rows = await admin.call("describe_quotas")
                    return [row for row in rows if any(side.mine(str(name)) for name in row["entity"].values())]

                found: list[dict[str, object]] = await until(look, lambda rows: len(rows) == count)
                return found

            await alter("user", {"user": user}, producer_byte_rate=1e6, consumer_byte_rate=2e6)
            await alter("client", {"client-id": client}, request_percentage=50)
            await alter("both", {"user": user, "client-id": client}, producer_byte_rate=5e5)
            await alter("wrong key", {"user": user}, no_such_rate=1)
            await alter("wrong value", {"user": user}, producer_byte_rate=-1)
            await alter("wrong entity", {"planet": "mars"}, producer_byte_rate=1)
            say("all", await mine(3))
            await alter("away", {"user": user}, producer_byte_rate=None, consumer_byte_rate=None)
            await alter("away too", {"client-id": client}, request_percentage=None)
            await alter("and this", {"user": user, "client-id": client}, producer_byte_rate=None)
            say("none", await mine(0))

    await sides.compare(script)


async def test_quotas_reach_every_cluster(federation: Federation, east: Cluster, west: Cluster, jvm: Jvm) -> None:
    entity, quotas = {"client-id": "everywhere"}, {"producer_byte_rate": 1e9}
    async with (
        jvm.admin(federation.java()) as through,
        jvm.admin(east.java()) as on_east,
        jvm.admin(west.java()) as on_west,
    ):
        await through.call("alter_quotas", entity=entity, quotas=quotas)
        wanted = {"entity": entity, "quotas": quotas}
        for admin in (on_east, on_west, through):
            assert wanted in await until(partial(admin.call, "describe_quotas"), lambda rows: wanted in rows)
        await through.call("alter_quotas", entity=entity, quotas={"producer_byte_rate": None})


async def test_scram_users(sides: Sides, jvm: Jvm) -> None:
    async def script(side: Side, say: Said) -> None:
        alice = side.user("alice")
        async with jvm.admin(side.java) as admin:

            async def users(wanted: list[str]) -> dict[str, list[str]]:
                async def look() -> dict[str, list[str]]:
                    found = await admin.call("describe_scram")
                    return {name: sorted(kinds) for name, kinds in found.items() if side.mine(name)}

                found: dict[str, list[str]] = await until(look, lambda seen: seen.get(alice, []) == wanted)
                return found

            call = admin.call("upsert_scram", user=alice, password="secret")
            say("new", await attempt(call))
            call = admin.call("upsert_scram", user=alice, password="secret", mechanism="SCRAM-SHA-512")
            say("another", await attempt(call))
            say("users", await users(["SCRAM-SHA-256", "SCRAM-SHA-512"]))
            say("no name", await attempt(admin.call("upsert_scram", user="", password="secret")))
            say("away", await attempt(admin.call("delete_scram", user=alice)))
            say("users", await users(["SCRAM-SHA-512"]))
            say("nobody", await attempt(admin.call("delete_scram", user=side.user("nobody"))))
            say("away", await attempt(admin.call("delete_scram", user=alice, mechanism="SCRAM-SHA-512")))

    await sides.compare(script)


async def test_what_is_switched_off(sides: Sides, jvm: Jvm) -> None:
    """Neither cluster has an authorizer or tokens: the errors are a broker's."""

    async def script(side: Side, say: Said) -> None:
        row = ["User:alice", "allow", "read", "topic", "orders", "literal", "*"]
        async with jvm.admin(side.java) as admin:
            say("create ACL", await attempt(admin.call("create_acls", acls=[row])))
            say("describe ACLs", await attempt(admin.call("describe_acls")))
            say("delete ACL", await attempt(admin.call("delete_acls", acls=[row])))
            for operation in ("create_token", "describe_tokens", "renew_token", "expire_token"):
                refused = await attempt(admin.call(operation, hmac="c2VjcmV0"))
                # By design: of a broker's two reasons why it has none, the one that does not depend on the login.
                say(operation, refused["error"]["code"] in (61, 64))

    await sides.compare(script)


async def test_the_cluster(sides: Sides, jvm: Jvm, west: Cluster) -> None:
    async def script(side: Side, say: Said) -> None:
        async with jvm.admin(side.java) as admin:
            described = await admin.call("describe_cluster")
            say("id", isinstance(described["id"], str) and len(described["id"]) == 22)
            say("its broker", side.node in [node["id"] for node in described["nodes"]])
            say("its controller", described["controller"]["id"] in [node["id"] for node in described["nodes"]])
            # By design: the brokers of every cluster.
            assert sorted(node["id"] for node in described["nodes"]) == sorted([side.node, *side.others])
            features = await admin.call("describe_features")
            say("features", {"finalized": features["finalized"], "epoch": features["epoch"] > 0})
            quorum = await admin.call("describe_quorum")
            say("voters", quorum["voters"])

    await sides.compare(script)
