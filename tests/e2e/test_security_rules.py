"""Where a cluster gives no tokens: its rules are applied here, or nothing is done; and what is refused at the start."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from kafka_client import ClusterClient, Sasl, SecretValue, Security
from kafka_wire.codec import Message
from kafka_wire.errors import ERROR
from proxy.identity.acl import Operation, Resource
from tests.fixtures.clusters import USERS
from tests.fixtures.names import Names
from tests.fixtures.security import (
    PASSWORDS,
    PREFIXED,
    acl,
    client_of,
    coordinate,
    grant,
    make_topics,
    user_acls,
)
from tools.local_cluster import Cluster, ClusterSpec
from tools.local_cluster.spec import ADMIN
from tools.local_cluster.tls import Authority
from tools.local_federation import Federation, run_federation

METADATA, CREATE_TOPICS = 3, 19
DENIED = int(ERROR.TOPIC_AUTHORIZATION_FAILED)
SERVICE = {"mechanism": "SCRAM-SHA-256", "username": "kfed", "password": USERS["kfed"]}


@pytest.fixture(scope="module")
def tokenless(authority: Authority) -> Iterator[Cluster]:
    """Logins and ACLs, but no delegation tokens; everybody with a login may use "public-..."."""
    spec = ClusterSpec("tokenless", first_broker_id=31, listeners=("SASL_PLAINTEXT",), users=USERS, authorizer=True)
    public = acl("User:*", Operation.ALL, Resource.TOPIC, "public-", pattern=PREFIXED)
    with Cluster(spec) as cluster:
        trio.run(grant, cluster, *(*user_acls("west", authority.client("carol").principal), public))
        trio.run(coordinate, cluster)
        yield cluster


def over(
    first: Cluster, second: Cluster, directory: Path, **more: Any
) -> contextlib.AbstractContextManager[Federation]:
    """Names that end in "-west" live on the second one; `more` are its further settings."""
    return run_federation(
        [first, second],
        directory=directory,
        clusters={second.name: {"sasl": SERVICE, **more}},
        placement={"default": first.name, "rules": [{"topics": ".*-west", "cluster": second.name}]},
        proxy={"workers": 1},
        log={"level": "debug"},
    )


def through(federation: Federation, user: str | None) -> ClusterClient:
    sasl = None if user is None else Sasl("PLAIN", user, SecretValue(PASSWORDS[user]))
    return ClusterClient("endpoint", [federation.bootstrap()], Security(None, sasl))


def creation(name: str) -> Message:
    topic = {"name": name, "num_partitions": 1, "replication_factor": 1, "assignments": [], "configs": []}
    return {"topics": [topic], "timeout_ms": 10000, "validate_only": False}


async def created(client: ClusterClient, name: str) -> int:
    """The answer of the first cluster's broker to a creation on the second."""
    await client.refresh()
    answer = await client.call(CREATE_TOPICS, creation(name), min(client.brokers))
    code: int = answer["topics"][0]["error_code"]
    return code


async def seen(client: ClusterClient, *topics: str) -> dict[str, int]:
    wanted = {"topics": [{"name": name} for name in topics], "allow_auto_topic_creation": False}
    await client.refresh()
    answer = await client.call(METADATA, wanted, min(client.brokers), 8)
    return {one["name"]: one["error_code"] for one in answer["topics"]}


def clean(federation: Federation, *secrets: str) -> None:
    log = federation.daemon.log.read_text()
    assert "Traceback" not in log
    assert not [one for one in (*PASSWORDS.values(), *secrets) if one in log]


async def test_without_tokens_the_cluster_s_rules_decide(
    secured_east: Cluster, tokenless: Cluster, names: Names, tmp_path: Path
) -> None:
    await grant(secured_east, *user_acls("east", "User:nobody"))
    shared, orders, admins = (names.topic(word) + "-west" for word in ("shared", "orders", "admins"))
    with over(secured_east, tokenless, tmp_path, super_users=[f"User:{ADMIN}"]) as federation:
        async with through(federation, "alice") as alice, through(federation, "bob") as bob:
            assert await created(alice, shared) == 0
            assert await created(alice, orders) == DENIED  # what the service itself might do
            assert await created(bob, orders) == 0
            assert await seen(alice, shared, orders) == {shared: 0, orders: DENIED}
            assert await seen(bob, shared, orders) == {shared: 0, orders: 0}
        async with through(federation, ADMIN) as admin:
            assert await created(admin, admins) == 0
        clean(federation)


async def test_without_tokens_and_by_rules_unknown_nothing_is_done(
    secured_east: Cluster, tokenless: Cluster, names: Names, tmp_path: Path
) -> None:
    shared = names.topic("shared") + "-west"
    await make_topics(tokenless, shared)
    with over(secured_east, tokenless, tmp_path, authorizer="other") as federation:
        async with through(federation, "alice") as alice:
            assert await seen(alice, shared) == {shared: DENIED}
            code = await created(alice, names.topic("shared-new") + "-west")
            assert code in (DENIED, ERROR.CLUSTER_AUTHORIZATION_FAILED)
        async with client_of(tokenless) as admin:
            found = (await admin.metadata([names.topic("shared-new") + "-west"]))["topics"]
            assert found[0]["error_code"] == ERROR.UNKNOWN_TOPIC_OR_PARTITION
        clean(federation)


async def test_who_has_no_login_reaches_no_cluster_that_asks_for_one(
    east: Cluster, tokenless: Cluster, names: Names, tmp_path: Path
) -> None:
    """Its rules would let "everybody" in; but everybody there has logged in."""
    here, there = names.topic("public"), names.topic("public") + "-west"
    await make_topics(tokenless, there)
    with over(east, tokenless, tmp_path) as federation:
        async with through(federation, None) as nobody:
            assert await created(nobody, here) == 0
            assert await created(nobody, names.topic("public-new") + "-west") in (DENIED, 31)
            assert await seen(nobody, here, there) == {here: 0, there: DENIED}
        clean(federation)


# -- refused at the start, and the admin port ---------------------------------------------------------------------


def certificates(federation_port: int, authority: Authority) -> dict[str, Any]:
    certificate = authority.server("start")
    return {
        "name": "certificates",
        "bind": "127.0.0.1",
        "port": federation_port,
        "broker_ports": f"{federation_port + 1}-{federation_port + 12}",
        "tls": {"cert": str(certificate.chain), "key": str(certificate.key), "client_ca": str(authority.ca_file)},
    }


def test_certificates_need_tokens_everywhere(
    secured_east: Cluster, tokenless: Cluster, east: Cluster, authority: Authority, tmp_path: Path
) -> None:
    for number, (other, line) in enumerate(
        ((tokenless, "cluster tokenless has delegation tokens switched off"), (east, "give clusters.east.sasl"))
    ):
        federation = Federation([secured_east, other], tmp_path, {"store": {"path": str(tmp_path / f"store-{number}")}})
        try:
            if other is tokenless:
                federation.write(clusters={"tokenless": {"sasl": SERVICE}})
            federation.write(proxy={"listeners": [certificates(federation.port, authority)], "workers": 1})
            federation.launch()
            with pytest.raises(RuntimeError, match="kfed ended"):
                federation.wait_ready()
            told = [one for one in federation.daemon.last_words(60).splitlines() if one.startswith("kfed: ")]
            assert any("client_ca" in one and line in one for one in told), federation.daemon.last_words(60)
        finally:
            federation.close()


async def test_the_admin_port_needs_a_token_unless_it_is_on_loopback(east: Cluster, tmp_path: Path) -> None:
    token, renewed = "a-token-of-some-length", "another-token-of-some-length"
    file = tmp_path / "token"
    file.write_text(token)
    federation = Federation([east], tmp_path, {"proxy": {"workers": 1}, "admin": {"bind": "0.0.0.0"}})
    with contextlib.closing(federation):
        federation.launch()
        with pytest.raises(RuntimeError, match="kfed ended"):
            federation.wait_ready()
        assert "admin.token_file: needed, since admin.bind 0.0.0.0 is not loopback" in federation.daemon.last_words(20)
        federation.write(admin={"token_file": str(file)}, log={"level": "debug"})
        federation.start()
        async with httpx.AsyncClient(base_url=federation.admin) as client:

            async def status(given: str | None, path: str = "/api/v1/status") -> int:
                headers = {} if given is None else {"Authorization": f"Bearer {given}"}
                return (await client.get(path, headers=headers)).status_code

            for path in ("/api/v1/status", "/metrics", "/api/v1/topics", "/"):
                assert await status(None, path) == 401
                assert await status("a-token-of-some-lengtH", path) == 401
            assert await status(None, "/healthz") == 200
            assert await status(token) == 200
            file.write_text(renewed)
            assert (await status(token), await status(renewed)) == (401, 200)
        assert not [one for one in (token, renewed) if one in federation.daemon.log.read_text()]
        federation.stop()
        federation.write(admin={"bind": "127.0.0.2", "token_file": None})
        federation.start()
        async with httpx.AsyncClient(base_url=f"http://127.0.0.2:{federation.admin_port}") as client:
            assert (await client.get("/api/v1/status")).status_code == 200
            assert (await client.get("/api/v1/status", headers={"Host": "kafka.example.org"})).status_code == 403
