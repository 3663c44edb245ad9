"""Principals at work through the endpoint: lists, positions, tokens, super users, client certificates."""

from __future__ import annotations

import ssl
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import trio

from kafka_client import ClusterClient
from kafka_wire.codec import Message
from kafka_wire.errors import ERROR
from tests.e2e.raw import Closed, connected
from tests.e2e.security_clients import aiokafka_round, librdkafka_round
from tests.e2e.test_security_identity import Eyes
from tests.fixtures.names import Names
from tests.fixtures.security import SecuredFederation, client_of, make_topics, until
from tools.java_client import Jvm
from tools.local_cluster.spec import ADMIN
from tools.local_cluster.tls import Authority

METADATA, OFFSET_COMMIT, OFFSET_FETCH, LIST_GROUPS, SASL_HANDSHAKE, CREATE_TOPICS = 3, 8, 9, 16, 17, 19
DELETE_TOPICS, INIT_PRODUCER_ID, LIST_TRANSACTIONS, API_VERSIONS = 20, 22, 66, 18
DENIED = int(ERROR.TOPIC_AUTHORIZATION_FAILED)
ALL_TOPICS: Message = {"topics": None, "allow_auto_topic_creation": False}
GROUPS: Message = {"states_filter": [], "types_filter": []}
TRANSACTIONS: Message = {"state_filters": [], "producer_id_filters": [], "duration_filter": -1}


def commit(group: str, *topics: str) -> Message:
    partitions = [{"partition_index": 0, "committed_offset": 5, "committed_leader_epoch": -1, "committed_metadata": ""}]
    return {
        "group_id": group,
        "generation_id_or_member_epoch": -1,
        "member_id": "",
        "group_instance_id": None,
        "topics": [{"name": topic, "partitions": partitions} for topic in topics],
    }


def results(answer: Message) -> dict[str, int]:
    return {one["name"]: one["partitions"][0]["error_code"] for one in answer["topics"]}


async def listed(clients: Iterable[tuple[ClusterClient, int | None]], key: int, message: Message) -> set[str]:
    found: set[str] = set()
    for client, broker in clients:
        answer = await client.call(key, message, broker)
        for one in answer.get("topics") or answer.get("groups") or answer.get("transaction_states") or ():
            found.add(one.get("name") or one.get("group_id") or one.get("transactional_id"))
    return found


async def test_lists_show_what_the_clusters_show(secured: SecuredFederation, names: Names) -> None:
    here, there, hidden = names.topic("orders"), names.topic("orders") + "-west", names.topic("hidden")
    await make_topics(secured.east, here, hidden)
    await make_topics(secured.west, there, hidden + "-west")
    async with client_of(secured.east) as admin:
        answer = await admin.call(OFFSET_COMMIT, commit(names.group("hidden"), hidden), version=8)
        assert results(answer) == {hidden: 0}
    for user, mine in (("alice", ""), ("bob", "-west")):
        async with Eyes.of(secured, user) as eyes:
            node = eyes.brokers["west" if mine else "east"]
            answer = await eyes.endpoint.call(OFFSET_COMMIT, commit(names.group("orders") + mine, here + mine), node, 8)
            assert results(answer) == {here + mine: 0}
            init = {"transaction_timeout_ms": 9000, "producer_id": -1, "producer_epoch": -1}
            init["transactional_id"] = names.transactional_id("orders") + mine  # type: ignore[assignment]

            async def begun() -> bool:
                return not (await eyes.endpoint.call(INIT_PRODUCER_ID, init, node, 4))["error_code"]  # noqa: B023

            await until(begun)  # its coordinator may be loading
    for user, own in (("alice", here), ("bob", there)):
        async with Eyes.of(secured, user) as eyes:
            direct = [(one, None) for one in eyes.direct.values()]
            # Any virtual broker tells of all topics; groups and transactions are told by their coordinators.
            every = [(eyes.endpoint, node) for node in eyes.brokers.values()]
            for key, message in ((METADATA, ALL_TOPICS), (LIST_GROUPS, GROUPS), (LIST_TRANSACTIONS, TRANSACTIONS)):

                def of_this_run(found: set[str]) -> set[str]:
                    return {name for name in found if names.suffix in name}

                expected = of_this_run(await listed(direct, key, message))
                assert expected == {own}, (user, key)  # topic, group and id bear the same name

                async def seen() -> bool:
                    one_by_one = [[one] for one in every] if key == METADATA else [every]  # noqa: B023
                    found = [of_this_run(await listed(one, key, message)) for one in one_by_one]  # noqa: B023
                    assert all(one <= expected for one in found), (user, key, found)  # noqa: B023
                    return all(one == expected for one in found)  # noqa: B023

                await until(seen)


async def test_positions_on_topics_of_another_cluster(secured: SecuredFederation, names: Names) -> None:
    """East's rules would let alice commit for every "orders-...": for what lives on west, west is heard."""
    here, there, shared = names.topic("orders"), names.topic("orders") + "-west", names.topic("shared") + "-west"
    group = names.group("orders")
    await make_topics(secured.east, here)
    await make_topics(secured.west, there, shared)
    async with Eyes.of(secured, "alice") as alice, client_of(secured.east) as admin:
        east = alice.brokers["east"]
        answer = await alice.endpoint.call(OFFSET_COMMIT, commit(group, here, there, shared), east, 8)
        assert list(results(answer).items()) == [(here, 0), (there, DENIED), (shared, 0)]
        answer = await alice.endpoint.call(OFFSET_COMMIT, commit(group, there), east, 8)
        assert results(answer) == {there: DENIED}
        # No stub was made for what she may not know of.
        assert {one["name"]: one["error_code"] for one in (await admin.metadata([there, shared]))["topics"]} == {
            there: ERROR.UNKNOWN_TOPIC_OR_PARTITION,
            shared: 0,
        }
        # Bob, who may, has one made; what is stored under it for others stays hidden from alice.
        async with secured.client("bob") as bob:
            await bob.refresh()
            answer = await bob.call(OFFSET_COMMIT, commit(names.group("shared"), there), sorted(bob.brokers)[0], 8)
            assert results(answer) == {there: DENIED}  # east's rules, too: the position lies there
        await admin.call(OFFSET_COMMIT, commit(group, here, there), version=8)
        asked = [{"name": one, "partition_indexes": [0]} for one in (here, there, shared)]
        for topics in (asked, None):
            wanted = {"group_id": group, "topics": topics, "require_stable": False}
            found = await alice.endpoint.call(OFFSET_FETCH, wanted, east, 7)
            positions = {one["name"]: one["partitions"][0]["committed_offset"] for one in found["topics"]}
            assert {name: offset for name, offset in positions.items() if offset >= 0} == {here: 5, shared: 5}
            assert results(found).get(there) == (None if topics is None else DENIED)


async def test_calls_to_another_cluster_go_as_the_principal(secured: SecuredFederation, names: Names) -> None:
    def creation(name: str) -> Message:
        topic = {"name": name, "num_partitions": 1, "replication_factor": 1, "assignments": [], "configs": []}
        return {"topics": [topic], "timeout_ms": 10000, "validate_only": False}

    shared, orders, admins = (f"{names.topic(word)}-west" for word in ("shared", "orders", "admins"))
    codes: dict[str, int] = {}
    for user, name in (("alice", shared), ("alice", orders), (ADMIN, admins)):
        async with Eyes.of(secured, user) as eyes:
            answer = await eyes.endpoint.call(CREATE_TOPICS, creation(name), eyes.brokers["east"])
            codes[name] = answer["topics"][0]["error_code"]
    # The service itself might create each of them.
    assert codes == {shared: 0, orders: DENIED, admins: 0}
    for cluster in (secured.east, secured.west):
        tokens = [one for one in await secured.tokens(cluster) if one["token_requester_principal_name"] == "kfed"]
        owners = {one["principal_name"] for one in tokens}
        assert ADMIN not in owners  # super users get none
        if cluster is secured.west:
            assert "alice" in owners
    async with Eyes.of(secured, "alice") as eyes:
        deletion: Message = {"topics": [{"name": name} for name in (shared, admins)], "timeout_ms": 10000}
        answer = await eyes.endpoint.call(DELETE_TOPICS, deletion, eyes.brokers["east"])
        assert {one["name"]: one["error_code"] for one in answer["responses"]} == {shared: 0, admins: DENIED}


# -- client certificates ------------------------------------------------------------------------------------------


async def test_a_certificate_is_a_principal(secured: SecuredFederation, names: Names, jvm: Jvm) -> None:
    config = secured.librdkafka(listener="certificates", certificate=secured.carol)
    for number, client in enumerate((librdkafka_round, aiokafka_round)):
        own = Names(f"{names.test}-{number}")
        for ending, cluster in (("", secured.east), ("-west", secured.west)):
            await make_topics(cluster, own.topic("carols") + ending)
            settings: dict[str, Any] = {**config, "group.id": "carols-readers"}
            await client(settings, own.topic("carols") + ending, [b"one", b"L" * 300_000])
    java = secured.java(listener="certificates", certificate=secured.carol)
    topics = (names.topic("carols"), names.topic("carols") + "-west")
    async with jvm.admin(java) as admin, jvm.producer(java) as producer:
        for topic in topics:
            await admin.create_topic(topic, 2)
            assert [one.error for one in await producer.send(topic, 10)] == [None] * 10
        async with jvm.consumer(java, group=names.group("carols"), protocol="consumer") as consumer:
            await consumer.subscribe(*topics)
            assert len(await consumer.take(20, 30)) == 20
        await make_topics(secured.east, names.topic("others"))
        seen = await admin.call("list_topics")
        assert set(topics) <= set(seen) and names.topic("others") not in seen
    owners = set()
    for cluster in (secured.east, secured.west):
        owners |= {f"{one['principal_type']}:{one['principal_name']}" for one in await secured.tokens(cluster)}
    assert secured.carol.principal in owners


async def test_who_has_no_certificate_of_ours(secured: SecuredFederation, authority: Authority, tmp_path: Path) -> None:
    port = secured.ports["certificates"]
    stranger = Authority(tmp_path).client("carol")

    def context(certificate: Any) -> ssl.SSLContext:
        made = ssl.create_default_context(cafile=str(secured.east.ca_file))
        if certificate is not None:
            made.load_cert_chain(certificate.chain, certificate.key)
        return made

    for certificate in (None, stranger):
        with pytest.raises((Closed, trio.BrokenResourceError)):  # after the handshake, in TLS 1.3
            async with connected(port, context(certificate)) as raw:
                await raw.ask(API_VERSIONS, 0, {})
    async with connected(port, context(secured.carol)) as raw:
        assert (await raw.ask(API_VERSIONS, 0, {}))["api_keys"]
        await raw.send(SASL_HANDSHAKE, 1, {"mechanism": "PLAIN"})
        assert await raw.closed() == b""
    # A super user of a cluster gets no token for its certificate; somebody without any rights sees nothing.
    async with connected(port, context(authority.client("nobody"))) as raw:
        assert (await raw.ask(METADATA, 8, ALL_TOPICS))["topics"] == []
