"""SASL is relayed: the brokers authenticate, with every mechanism, and clients hear their words."""

from __future__ import annotations

import ssl

import pytest
import trio
from confluent_kafka import KafkaException

from kafka_client import Sasl, SecretValue
from kafka_client.sasl import exchange
from kafka_wire.codec import Message
from kafka_wire.errors import ERROR
from tests.e2e.raw import Closed, Raw, connected
from tests.e2e.security_clients import aiokafka_round, librdkafka_round, librdkafka_write
from tests.fixtures.clusters import USERS
from tests.fixtures.names import Names
from tests.fixtures.security import ListenerName, SecuredFederation, make_topics
from tools.java_client import JavaError, Jvm
from tools.local_cluster.spec import MECHANISMS, Mechanism

METADATA, SASL_HANDSHAKE, API_VERSIONS, SASL_AUTHENTICATE = 3, 17, 18, 36
CREATE_TOPICS, FETCH, LIST_GROUPS, DESCRIBE_CLUSTER = 19, 1, 16, 60
CLIENT = {"client_software_name": "raw", "client_software_version": "1"}
EVERYTHING = {"topics": None, "allow_auto_topic_creation": False}


async def both(secured: SecuredFederation, names: Names) -> tuple[str, str]:
    here, there = names.topic("shared"), names.topic("shared") + "-west"
    await make_topics(secured.east, here)
    await make_topics(secured.west, there)
    return here, there


@pytest.mark.parametrize("listener", ["plain", "tls"])
@pytest.mark.parametrize("mechanism", MECHANISMS)
async def test_every_mechanism_with_every_client(
    secured: SecuredFederation, names: Names, jvm: Jvm, mechanism: Mechanism, listener: ListenerName
) -> None:
    # On the other cluster than where they begin: a login at each.
    by_java, by_rdkafka, by_aiokafka = (f"{names.topic(f'shared-{client}')}-west" for client in ("java", "rd", "aio"))
    await make_topics(secured.west, by_java, by_rdkafka, by_aiokafka)
    java = secured.java("alice", listener, mechanism=mechanism)
    async with jvm.producer(java) as producer, jvm.consumer(java) as consumer:
        await consumer.assign((by_java, 0))
        sent = await producer.send(by_java, 3, prefix="java")
        assert [(one.offset, one.error) for one in sent] == [(0, None), (1, None), (2, None)]
        assert [one.offset for one in await consumer.take(3)] == [0, 1, 2]
    config = secured.librdkafka("alice", listener, mechanism=mechanism)
    await librdkafka_round(config, by_rdkafka, [b"one", b"two"])
    await aiokafka_round(config, by_aiokafka, [b"one", b"two"])


async def test_a_wrong_password_is_answered_as_by_the_broker(secured: SecuredFederation, jvm: Jvm) -> None:
    mechanisms: tuple[Mechanism, ...] = ("PLAIN", "SCRAM-SHA-512")
    for mechanism in mechanisms:
        heard: list[tuple[str, str]] = []
        for config in (
            secured.east.java("SASL_PLAINTEXT", user="alice", mechanism=mechanism, password="guessed"),
            secured.java("alice", mechanism=mechanism, password="guessed"),
        ):
            with pytest.raises(JavaError) as caught:
                async with jvm.admin(config) as admin:
                    await admin.call("list_topics")
            heard.append((caught.value.name, caught.value.message))
        assert heard[0] == heard[1]
        assert "SASL_AUTHENTICATION_FAILED" in heard[0][0]
        codes = []
        for rdkafka in (
            secured.east.librdkafka("SASL_PLAINTEXT", user="alice", mechanism=mechanism, password="guessed"),
            secured.librdkafka("alice", mechanism=mechanism, password="guessed"),
        ):
            with pytest.raises(KafkaException) as failed:
                await trio.to_thread.run_sync(librdkafka_write, rdkafka, "shared-any", [b"x"])
            codes.append(failed.value.args[0].code())
        assert codes[0] == codes[1]
    secured.secrets.add("guessed")


async def log_in(raw: Raw, user: str = "alice", mechanism: str = "PLAIN", *, version: int = 1) -> None:
    """As a client of that age does it: raw tokens after a handshake of version 0."""
    answer = await raw.ask(SASL_HANDSHAKE, version, {"mechanism": mechanism})
    assert answer["error_code"] == 0, answer
    steps = exchange(Sasl(mechanism, user, SecretValue(USERS[user])))
    token: bytes | None = steps.start()
    while token is not None:
        if version == 0:
            token = steps.answer(await raw.frame(token))
        else:
            answer = await raw.ask(SASL_AUTHENTICATE, 1, {"auth_bytes": token})
            assert answer["error_code"] == 0, answer
            token = steps.answer(answer["auth_bytes"])
    assert steps.finished


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
@pytest.mark.parametrize("version", [0, 1])
async def test_a_handshake_of_either_version(
    secured: SecuredFederation, names: Names, mechanism: str, version: int
) -> None:
    here, there = await both(secured, names)
    async with connected(secured.ports["plain"]) as raw:
        assert (await raw.ask(API_VERSIONS, 3, CLIENT))["error_code"] == 0
        await log_in(raw, "alice", mechanism, version=version)
        wanted = {"topics": [{"name": here}, {"name": there}], "allow_auto_topic_creation": False}
        seen = {one["name"]: one["error_code"] for one in (await raw.ask(METADATA, 8, wanted))["topics"]}
        assert seen == {here: 0, there: 0}


async def test_raw_tokens_and_the_next_request_in_one_piece(secured: SecuredFederation) -> None:
    async with connected(secured.ports["plain"]) as raw:
        assert (await raw.ask(SASL_HANDSHAKE, 0, {"mechanism": "PLAIN"}))["error_code"] == 0
        token = f"\0alice\0{USERS['alice']}".encode()
        await raw.stream.send_all(len(token).to_bytes(4, "big") + token)
        await raw.send(API_VERSIONS, 3, CLIENT)
        assert await raw.answer() == b""
        await raw.answer()
        assert (await raw.ask(METADATA, 9, EVERYTHING))["topics"] is not None


async def test_other_mechanisms_and_false_tokens_are_refused(secured: SecuredFederation) -> None:
    for mechanism in ("OAUTHBEARER", "GSSAPI", "NONSENSE"):
        async with connected(secured.ports["plain"]) as raw:
            # A token of theirs cannot be told from a request by its size or number.
            answer = await raw.ask(SASL_HANDSHAKE, 0, {"mechanism": mechanism})
            assert answer["error_code"] == ERROR.UNSUPPORTED_SASL_MECHANISM
    async with connected(secured.ports["plain"]) as raw:
        answer = await raw.ask(SASL_HANDSHAKE, 1, {"mechanism": "NONSENSE"})
        assert answer["error_code"] == ERROR.UNSUPPORTED_SASL_MECHANISM
        assert set(answer["mechanisms"]) == set(MECHANISMS)
    async with connected(secured.ports["plain"]) as raw:
        assert (await raw.ask(SASL_HANDSHAKE, 0, {"mechanism": "PLAIN"}))["error_code"] == 0
        with pytest.raises(Closed):  # a broker has no way to say more after version 0
            await raw.frame(b"\0alice\0guessed")
    async with connected(secured.ports["plain"]) as raw:
        assert (await raw.ask(SASL_HANDSHAKE, 1, {"mechanism": "PLAIN"}))["error_code"] == 0
        answer = await raw.ask(SASL_AUTHENTICATE, 1, {"auth_bytes": b"\0alice\0guessed"})
        assert answer["error_code"] == ERROR.SASL_AUTHENTICATION_FAILED
        assert await raw.closed() == b""


_GROUPS: Message = {"states_filter": [], "types_filter": []}
_TOPIC: Message = {
    "name": "shared-made",
    "num_partitions": 1,
    "replication_factor": 1,
    "assignments": [],
    "configs": [],
}


@pytest.mark.parametrize("listener", ["plain", "tls"])
@pytest.mark.parametrize(
    ("key", "version", "message"),
    [
        (METADATA, 9, EVERYTHING),
        (METADATA, 0, {"topics": []}),
        (DESCRIBE_CLUSTER, 0, {"include_cluster_authorized_operations": False}),
        (LIST_GROUPS, 4, _GROUPS),
        (CREATE_TOPICS, 5, {"topics": [_TOPIC], "timeout_ms": 1000, "validate_only": False}),
    ],
)
async def test_nothing_is_answered_before_the_login(
    secured: SecuredFederation, listener: ListenerName, key: int, version: int, message: Message
) -> None:
    context = None if listener == "plain" else ssl.create_default_context(cafile=str(secured.east.ca_file))
    for begin in ("at once", "after versions", "within the login", "after a refused login"):
        async with connected(secured.ports[listener], context) as raw:
            if begin != "at once":
                assert (await raw.ask(API_VERSIONS, 3, CLIENT))["api_keys"]
            if begin in ("within the login", "after a refused login"):
                assert (await raw.ask(SASL_HANDSHAKE, 1, {"mechanism": "SCRAM-SHA-256"}))["error_code"] == 0
            if begin == "after a refused login":
                await raw.send(SASL_AUTHENTICATE, 1, {"auth_bytes": b"n,,n=nobody,r=abc"})
                try:
                    await raw.answer()
                except Closed:
                    continue
            try:
                await raw.send(key, version, message)
                assert await raw.closed() == b""
            except trio.BrokenResourceError:
                pass
