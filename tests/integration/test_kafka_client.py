"""The client against real brokers: every way to log in, and brokers that die under calls."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from kafka_client import (
    AuthenticationFailed,
    BrokerUnavailable,
    ClusterClient,
    ClusterMismatch,
    Sasl,
    SecretFile,
    SecretValue,
    Security,
    Tls,
)
from kafka_client.cluster import GROUP
from tests.fixtures.names import Names
from tools.local_cluster import Cluster, ClusterSpec, Listener
from tools.local_cluster.spec import ADMIN, ADMIN_PASSWORD

METADATA, LIST_GROUPS, CREATE_TOPICS, DELETE_GROUPS = 3, 16, 19, 42


def unsecured_jwt(subject: str) -> str:
    """A token as brokers accept it that run without an identity provider (KIP-255)."""

    def part(value: dict[str, object]) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    now = int(time.time())
    return f"{part({'alg': 'none'})}.{part({'sub': subject, 'iat': now, 'exp': now + 600})}."


def tls_of(cluster: Cluster) -> Tls:
    return Tls(ca=str(cluster.ca_file))


@asynccontextmanager
async def client(
    cluster: Cluster, listener: Listener | None = None, sasl: Sasl | None = None, tls: Tls | None = None
) -> AsyncIterator[ClusterClient]:
    async with ClusterClient(cluster.name, cluster.addresses(listener), Security(tls, sasl)) as made:
        yield made


LOGINS = [
    Sasl("PLAIN", ADMIN, SecretValue(ADMIN_PASSWORD)),
    Sasl("SCRAM-SHA-256", ADMIN, SecretValue(ADMIN_PASSWORD)),
    Sasl("SCRAM-SHA-512", ADMIN, SecretValue(ADMIN_PASSWORD)),
    Sasl("OAUTHBEARER", token=SecretValue(unsecured_jwt(ADMIN))),
]


@pytest.mark.parametrize("encrypted", [False, True], ids=["plaintext", "tls"])
@pytest.mark.parametrize("sasl", LOGINS, ids=[one.mechanism for one in LOGINS])
async def test_logins(secured_east: Cluster, sasl: Sasl, encrypted: bool) -> None:
    listener: Listener = "SASL_SSL" if encrypted else "SASL_PLAINTEXT"
    async with client(secured_east, listener, sasl, tls_of(secured_east) if encrypted else None) as east:
        answer = await east.metadata([], include_cluster_authorized_operations=True)
        assert list(east.brokers) == [1]
        assert east.cluster_id == secured_east.id == answer["cluster_id"]
        assert (await east.call(LIST_GROUPS, {}))["error_code"] == 0  # as a super user


@pytest.mark.parametrize(
    "sasl",
    [
        Sasl("PLAIN", ADMIN, SecretValue("wrong")),
        Sasl("SCRAM-SHA-512", ADMIN, SecretValue("wrong")),
        Sasl("SCRAM-SHA-256", "nobody", SecretValue("wrong")),
        Sasl("OAUTHBEARER", token=SecretValue("no.jwt.")),
    ],
    ids=lambda sasl: f"{sasl.mechanism}-{sasl.username}",
)
async def test_refused_logins(secured_east: Cluster, sasl: Sasl) -> None:
    async with client(secured_east, "SASL_PLAINTEXT", sasl) as east:
        with pytest.raises(AuthenticationFailed) as refused:
            await east.refresh()
        assert refused.value.code == 58 or sasl.mechanism == "OAUTHBEARER"
        assert east.health.last_ok is None
        assert east.health.last_error


async def test_tls_trusts_only_its_authority_and_the_name(secured_east: Cluster, tmp_path: Path) -> None:
    import trustme

    stranger = tmp_path / "stranger.pem"
    trustme.CA().cert_pem.write_to_path(str(stranger))
    for tls in (Tls(str(stranger)), Tls()):
        async with client(secured_east, "SSL", tls=tls) as east:
            with pytest.raises(AuthenticationFailed):
                await east.refresh()
    # A TLS client on a port without TLS, and the other way round; with `retry` the reason is what is reported.
    async with client(secured_east, "SASL_PLAINTEXT", tls=tls_of(secured_east)) as east:
        with pytest.raises(BrokerUnavailable, match="SSL"):
            await east.refresh(timeout=1.0)
    async with client(secured_east, "SSL") as east:
        for retry in (False, True):
            with pytest.raises(BrokerUnavailable, match="is this a TLS port"):
                await east.call(METADATA, {"topics": []}, timeout=1.0, retry=retry)
    assert secured_east.authority is not None
    certificate = secured_east.authority.client("carol")
    mutual = Tls(str(secured_east.ca_file), str(certificate.chain), str(certificate.key))
    async with client(secured_east, "SSL", tls=mutual) as east:
        assert (await east.metadata([]))["brokers"]


async def test_a_rotated_password_applies_to_new_connections(secured_east: Cluster, tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_text("outdated")
    async with client(secured_east, "SASL_PLAINTEXT", Sasl("PLAIN", ADMIN, SecretFile(str(path)))) as east:
        with pytest.raises(AuthenticationFailed):
            await east.refresh()
        path.write_text(ADMIN_PASSWORD + "\n")
        assert await east.refresh()
        path.write_text("outdated")
        assert await east.refresh()  # the connection it has is left alone


async def test_sessions_are_extended_by_real_brokers() -> None:
    spec = ClusterSpec("shortlived", listeners=("SASL_PLAINTEXT",), overrides={"connections.max.reauth.ms": "1500"})
    cluster = Cluster(spec)

    async def keep_calling(sasl: Sasl) -> None:
        async with client(cluster, "SASL_PLAINTEXT", sasl) as made:
            broker = next(iter(await made.refresh()))
            async with made.dedicated(broker) as one:
                ends = trio.current_time() + 4  # two sessions and a half
                while trio.current_time() < ends:
                    await one.call(METADATA, {"topics": []})
                    await trio.sleep(0.02)

    try:
        await trio.to_thread.run_sync(cluster.start)
        async with trio.open_nursery() as nursery:
            for sasl in LOGINS:
                nursery.start_soon(keep_calling, sasl)
    finally:
        cluster.close()


async def test_what_a_cluster_offers(triple: Cluster) -> None:
    async with client(triple) as made:
        health = await made.probe()
        assert health.reachable == {21, 22, 23} == set(made.brokers)
        assert health.unreachable == {}
        features = made.features
        assert features.apis[METADATA].high >= 13
        assert features.finalized["metadata.version"][1] > 0
        assert features.epoch >= 0


async def test_any_broker_will_do_while_one_is_dead_and_again_when_it_is_back(triple: Cluster, names: Names) -> None:
    async with client(triple) as made:
        await made.probe()
        victim = triple.broker(22)
        victim.kill()
        for _ in range(20):
            assert (await made.call(METADATA, {"topics": []}, retry=True, timeout=20.0))["brokers"]
        with pytest.raises(BrokerUnavailable):
            await made.call(LIST_GROUPS, {}, broker=22, timeout=1.0)
        assert 22 not in made.health.reachable
        await trio.to_thread.run_sync(victim.start)
        await trio.to_thread.run_sync(victim.wait_ready)
        # With `retry` the caller simply waits for it.
        assert (await made.call(LIST_GROUPS, {}, broker=22, timeout=30.0, retry=True))["error_code"] == 0
        assert 22 in made.health.reachable


async def test_calls_survive_a_restart_under_load(west: Cluster) -> None:
    """Every call either succeeds or says what is wrong; with `retry` all succeed."""
    async with client(west) as made:
        await made.refresh()
        done = 0
        failures: list[BaseException] = []
        stop = trio.Event()

        async def caller() -> None:
            nonlocal done
            while not stop.is_set():
                try:
                    await made.call(METADATA, {"topics": []}, retry=True, timeout=60.0)
                    done += 1
                except Exception as error:
                    failures.append(error)
                    return

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(caller)
            await trio.sleep(0.3)
            before = done
            west.brokers[0].kill()
            await trio.to_thread.run_sync(west.mend)
            with trio.fail_after(60):
                after = done
                while True:
                    if done > after + 50:
                        break
                    await trio.sleep(0.02)
            stop.set()
        assert failures == []
        assert before > 0


async def test_a_call_in_flight_is_not_repeated_without_leave(west: Cluster) -> None:
    async with client(west) as made:
        await made.refresh()
        west.brokers[0].pause()
        caught: list[BrokerUnavailable] = []

        async def one() -> None:
            try:
                await made.call(LIST_GROUPS, {}, broker=11, timeout=20.0)
            except BrokerUnavailable as error:
                caught.append(error)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one)
            await trio.testing.wait_all_tasks_blocked(0.1)
            west.brokers[0].kill()
        assert [error.sent for error in caught] == [True]


async def test_coordinators_are_found_followed_and_forgotten(triple: Cluster, names: Names) -> None:
    group = names.group("g")
    async with client(triple) as made:
        first = await made.coordinator(GROUP, group, timeout=30.0)
        assert first in made.brokers
        assert await made.coordinator(GROUP, group) == first
        # Not asked for with the right broker: a wrong memory is corrected by the answer (16).
        wrong = next(one for one in made.brokers if one != first)
        made._coordinators[GROUP, group] = wrong
        answer = await made.call_coordinator(GROUP, group, DELETE_GROUPS, {"groups_names": [group]}, timeout=30.0)
        assert answer["results"][0]["error_code"] == 69  # no such group, says its coordinator
        assert await made.coordinator(GROUP, group) == first


async def test_many_calls_at_once_use_few_connections(east: Cluster) -> None:
    async with client(east) as made:
        await made.refresh()
        async with trio.open_nursery() as nursery:
            for _ in range(200):
                nursery.start_soon(made.call, METADATA, {"topics": []}, 1)
        assert sum(len(pool.connections) for pool in made._pools.values()) <= 4


async def test_another_cluster_at_the_same_name_is_refused(east: Cluster, west: Cluster) -> None:
    async with client(east) as made:
        await made.refresh()
        made._bootstrap = tuple(("127.0.0.1", one.port()) for one in west.brokers)
        made.brokers = {}
        with pytest.raises(ClusterMismatch):
            await made.refresh()


async def test_a_cluster_that_is_away_is_reported_not_raised() -> None:
    with trio.fail_after(20):
        async with ClusterClient("away", ["127.0.0.1:1"]) as away:
            health = await away.probe(timeout=0.5)
            assert health.reachable == frozenset()
            assert health.last_error
            with pytest.raises(BrokerUnavailable):
                await away.call(METADATA, {"topics": []}, timeout=0.5, retry=True)
