"""TLS to clients and to brokers: every combination, data small and large, host names, certificates replaced."""

from __future__ import annotations

import socket
import ssl

import pytest
import trio

from kafka_wire.errors import ERROR
from tests.e2e.raw import Raw, connected
from tests.e2e.security_clients import aiokafka_round, librdkafka_round
from tests.e2e.test_security_sasl import API_VERSIONS, CLIENT, METADATA, SASL_HANDSHAKE, log_in
from tests.fixtures.names import Names
from tests.fixtures.security import ListenerName, SecuredFederation, make_topics
from tools.java_client import Jvm
from tools.local_cluster.tls import Authority, Certificate

LIST_OFFSETS = 2

SMALL, LARGE = b"s" * 100, b"L" * 700_000


async def ready(secured: SecuredFederation, names: Names) -> tuple[str, str]:
    """A topic on each cluster."""
    here, there = names.topic("shared"), names.topic("shared") + "-west"
    await make_topics(secured.east, here)
    await make_topics(secured.west, there)
    return here, there


@pytest.mark.parametrize("listener", ["plain", "tls"])
async def test_java_small_and_large(secured: SecuredFederation, names: Names, jvm: Jvm, listener: ListenerName) -> None:
    topics = await ready(secured, names)
    config = secured.java("alice", listener)
    async with jvm.producer(config, max_request_size="2000000") as producer:
        for topic in topics:
            sent = await producer.send(topic, 20, size=100) + await producer.send(topic, 3, size=700_000)
            assert [one.error for one in sent] == [None] * 23
    async with jvm.consumer(config, group=names.group("shared")) as consumer:
        await consumer.subscribe(*topics)
        taken = await consumer.take(46)
    assert sorted(record.topic for record in taken) == sorted([*topics] * 23)
    assert sorted(len(record.value or "") for record in taken) == [100] * 40 + [700_000] * 6


@pytest.mark.parametrize("listener", ["plain", "tls"])
async def test_librdkafka_and_aiokafka_small_and_large(
    secured: SecuredFederation, names: Names, listener: ListenerName
) -> None:
    config = secured.librdkafka("alice", listener)
    for number, client in enumerate((librdkafka_round, aiokafka_round)):
        for topic in await ready(secured, Names(f"{names.test}-{number}")):
            await client(config, topic, [SMALL, LARGE, SMALL, LARGE])


# -- host names behind one port -----------------------------------------------------------------------------------


def trusting(secured: SecuredFederation) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(secured.east.ca_file))


async def test_a_host_name_is_a_virtual_broker(secured: SecuredFederation, names: Names) -> None:
    here, there = await ready(secured, names)
    wanted = {"topics": [{"name": here}, {"name": there}], "allow_auto_topic_creation": False}
    hosts: dict[str, str] = {}
    async with connected(secured.ports["sni"], trusting(secured)) as raw:  # by address: bootstrap
        await log_in(raw)
        answer = await raw.ask(METADATA, 8, wanted)
        assert {one["port"] for one in answer["brokers"]} == {secured.ports["sni"]}
        by_node = {one["node_id"]: one["host"] for one in answer["brokers"]}
        assert set(by_node.values()) == {"b1.secured-east.localhost", "b11.secured-west.localhost"}
        for topic in answer["topics"]:
            hosts[topic["name"]] = by_node[topic["partitions"][0]["leader_id"]]
    assert hosts == {here: "b1.secured-east.localhost", there: "b11.secured-west.localhost"}
    for topic, other in ((here, there), (there, here)):
        for host in (hosts[topic], hosts[topic].upper()):
            async with connected(secured.ports["sni"], trusting(secured), host) as raw:
                await log_in(raw)
                answer = await raw.ask(LIST_OFFSETS, 1, offsets_of(topic, other))
                codes = {one["name"]: one["partitions"][0]["error_code"] for one in answer["topics"]}
                assert codes == {topic: 0, other: ERROR.NOT_LEADER_OR_FOLLOWER}


def offsets_of(*topics: str) -> dict[str, object]:
    partitions = [{"partition_index": 0, "timestamp": -1}]
    return {"replica_id": -1, "topics": [{"name": topic, "partitions": partitions} for topic in topics]}


async def test_host_names_of_nobody(secured: SecuredFederation) -> None:
    unverified = trusting(secured)
    unverified.check_hostname = False
    for host in (
        "kafka.example.org",
        "b1.secured-east.localhost.example.org",
        "x" * 63,
    ):  # bootstrap names of some kind
        async with connected(secured.ports["sni"], unverified, host) as raw:
            await log_in(raw)
            answer = await raw.ask(METADATA, 8, {"topics": [], "allow_auto_topic_creation": False})
            assert len(answer["brokers"]) == 2
    for host in ("b7.secured-east.localhost", "b1.elsewhere.localhost", "b999999.secured-west.localhost"):
        async with connected(secured.ports["sni"], unverified, host) as raw:
            assert (await raw.ask(API_VERSIONS, 3, CLIENT))["api_keys"]
            await raw.send(SASL_HANDSHAKE, 1, {"mechanism": "PLAIN"})
            assert await raw.closed() == b""
    assert "internal_error" not in secured.logs()


async def test_a_java_client_by_host_names(
    secured: SecuredFederation, names: Names, tmp_path_factory: pytest.TempPathFactory
) -> None:
    topics = await ready(secured, names)
    directory = tmp_path_factory.mktemp("hosts")
    # What DNS would say; a JVM can be told so.
    hosts = directory / "hosts"
    hosts.write_text("127.0.0.1 b1.secured-east.localhost b11.secured-west.localhost localhost\n")
    jvm = await trio.to_thread.run_sync(
        lambda: Jvm(directory / "java.log", properties={"jdk.net.hosts.file": str(hosts)})
    )
    with jvm:
        config = secured.java("alice", "sni")
        async with jvm.producer(config, max_request_size="2000000") as producer, jvm.consumer(config) as consumer:
            await consumer.assign(*((topic, 0) for topic in topics))
            for topic in topics:
                sent = await producer.send(topic, 3, size=700_000) + await producer.send(topic, 3, size=100)
                assert [one.error for one in sent] == [None] * 6
            assert len(await consumer.take(12)) == 12


async def test_aiokafka_by_host_names(
    secured: SecuredFederation, names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve = socket.getaddrinfo

    def local(host: object, *rest: object, **more: object) -> object:
        known = isinstance(host, str) and host.endswith(".localhost")
        return resolve("127.0.0.1" if known else host, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", local)
    for topic in await ready(secured, names):
        await aiokafka_round(secured.librdkafka("alice", "sni"), topic, [SMALL, LARGE])


# -- who is who ---------------------------------------------------------------------------------------------------


async def test_a_plain_client_at_a_tls_port_and_the_other_way_round(secured: SecuredFederation) -> None:
    async with connected(secured.ports["tls"]) as raw:
        await raw.send(API_VERSIONS, 3, CLIENT)
        assert len(await raw.closed()) < 16  # an alert at most
    with pytest.raises((trio.BrokenResourceError, ssl.SSLError)):
        async with connected(secured.ports["plain"], trusting(secured)):
            pass
    async with connected(secured.ports["tls"], trusting(secured)) as raw:
        assert (await raw.ask(API_VERSIONS, 3, CLIENT))["api_keys"]


# -- certificates replaced ----------------------------------------------------------------------------------------


def replace(old: Certificate, new: Certificate) -> None:
    """As an operator does it: one file after the other, each at once."""
    for path, source in ((old.chain, new.chain), (old.key, new.key)):
        fresh = path.with_suffix(".new")
        fresh.write_bytes(source.read_bytes())
        fresh.rename(path)


def serial(raw: Raw) -> str:
    assert isinstance(raw.stream, trio.SSLStream)
    found = raw.stream.getpeercert()
    return str(found["serialNumber"])


async def test_a_new_certificate_for_new_connections(secured: SecuredFederation, authority: Authority) -> None:
    wanted = {"topics": [], "allow_auto_topic_creation": False}
    other = authority.server("proxy-renewed", "*.secured-east.localhost", "*.secured-west.localhost")

    async def serials(count: int) -> set[str]:
        found = set()
        for number in range(count):  # both workers, and both kinds of listener
            port = secured.ports["tls" if number % 2 else "sni"]
            async with connected(port, trusting(secured)) as raw:
                assert (await raw.ask(API_VERSIONS, 3, CLIENT))["api_keys"]
                found.add(serial(raw))
        return found

    async with connected(secured.ports["tls"], trusting(secured)) as old:
        await log_in(old)
        former = serial(old)
        key = secured.certificate.key.read_bytes()
        secured.certificate.key.write_bytes(other.key.read_bytes())
        with trio.fail_after(10):  # caught between the two files: the former goes on
            while secured.logs().count("keeping the former certificate") < 1:
                assert await serials(4) == {former}
        secured.certificate.key.write_bytes(key)
        replace(secured.certificate, other)
        with trio.fail_after(20):
            while len(seen := await serials(16)) != 1 or former in seen:
                pass
        assert serial(old) == former
        assert len((await old.ask(METADATA, 8, wanted))["brokers"]) == 2
