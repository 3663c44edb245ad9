"""Identity against real brokers: the broker sees who is asked for, and nobody gets more than it would give."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager

import pytest
import trio

from kafka_client import ClusterClient, Sasl, SecretValue, Security, Tls
from kafka_client.cluster import error_codes
from kafka_wire.acls import every_acl
from kafka_wire.codec import Message
from kafka_wire.errors import ERROR
from proxy.identity import ANONYMOUS, CallerPool, ClusterIdentity, IdentityRefused, Principal
from proxy.identity.acl import AclSet, Operation, Resource
from proxy.identity.principal import API_CREATE_DELEGATION_TOKEN, named, question
from proxy.identity.tokens import SuperUserRefused, TokensUnavailable, TokenVault
from tests.fixtures.clusters import USERS
from tests.fixtures.names import Names
from tools.local_cluster import Cluster, ClusterSpec, Listener
from tools.local_cluster.spec import ADMIN, ADMIN_PASSWORD

METADATA, CREATE_TOPICS, DELETE_TOPICS, DESCRIBE_ACLS, CREATE_ACLS, DELETE_ACLS = 3, 19, 20, 29, 30, 31
INIT_PRODUCER_ID, EXPIRE_TOKEN, DESCRIBE_TOKENS = 22, 40, 41
ALICE, BOB, SERVICE = Principal("User", "alice"), Principal("User", "bob"), Principal("User", "kfed")
ALLOW, DENY, LITERAL, PREFIXED = 3, 2, 3, 4
SUPER = frozenset({f"User:{ADMIN}"})
STANDARD = ClusterIdentity(super_users=SUPER)


def no_super_users(cluster: str) -> frozenset[str]:
    return frozenset()


def login(user: str, mechanism: str = "PLAIN", tls: Tls | None = None) -> Security:
    password = {ADMIN: ADMIN_PASSWORD, **USERS}[user]
    return Security(tls, Sasl(mechanism, user, SecretValue(password)))


def client(
    cluster: Cluster, user: str | None = ADMIN, listener: Listener | None = None, security: Security | None = None
) -> ClusterClient:
    chosen = security or (Security() if user is None else login(user))
    return ClusterClient(cluster.name, cluster.addresses(listener), chosen)


async def until(holds: Callable[[], Awaitable[bool]], seconds: float = 20.0) -> None:
    """What a controller has answered reaches the brokers a little later."""
    with trio.fail_after(seconds):
        while True:
            if await holds():
                return
            await trio.sleep(0.01)


def acl(
    principal: str,
    operation: int,
    kind: int,
    name: str,
    *,
    pattern: int = LITERAL,
    permission: int = ALLOW,
    host: str = "*",
) -> Message:
    return {
        "resource_type": kind,
        "resource_name": name,
        "resource_pattern_type": pattern,
        "principal": principal,
        "host": host,
        "operation": operation,
        "permission_type": permission,
    }


async def grant(admin: ClusterClient, *acls: Message) -> None:
    answer = await admin.call(CREATE_ACLS, {"creations": list(acls)})
    assert set(error_codes(answer)) <= {0}, answer
    wanted = {(one["resource_name"], one["principal"], one["operation"], one["host"]) for one in acls}

    async def there() -> bool:
        answer = await admin.call(DESCRIBE_ACLS, every_acl())
        return wanted <= {
            (one["resource_name"], rule["principal"], rule["operation"], rule["host"])
            for one in answer["resources"]
            for rule in one["acls"]
        }

    await until(there)


async def no_tokens(admin: ClusterClient) -> bool:
    return not (await admin.call(DESCRIBE_TOKENS, {"owners": None}))["tokens"]


async def create_topics(admin: ClusterClient, *names: str) -> None:
    topics = [{"name": name, "num_partitions": 1, "replication_factor": 1} for name in names]
    answer = await admin.call(CREATE_TOPICS, {"topics": topics, "timeout_ms": 10000})
    assert set(error_codes(answer)) <= {0}, answer

    async def there() -> bool:
        return not any(error_codes(await admin.metadata(names)))

    await until(there)


SERVICE_ACLS = (
    acl("User:kfed", Operation.DESCRIBE, Resource.CLUSTER, "kafka-cluster"),
    acl("User:kfed", Operation.DESCRIBE_CONFIGS, Resource.CLUSTER, "kafka-cluster"),
    acl("User:kfed", Operation.ALTER, Resource.CLUSTER, "kafka-cluster"),
    acl("User:kfed", Operation.CREATE_TOKENS, Resource.USER, "*"),
    acl("User:kfed", Operation.ALL, Resource.TOPIC, "*"),
    acl("User:kfed", Operation.ALL, Resource.GROUP, "*"),
)


@asynccontextmanager
async def pool(
    service: ClusterClient, settings: ClusterIdentity = STANDARD, **options: float
) -> AsyncIterator[CallerPool]:
    async with trio.open_nursery() as nursery:
        callers = CallerPool({service.name: service}, {service.name: settings}, **options)  # type: ignore[arg-type]
        nursery.start_soon(callers.run)
        yield callers
        nursery.cancel_scope.cancel()


@pytest.fixture(scope="module")
def _tokenless() -> Iterator[Cluster]:
    spec = ClusterSpec(
        "tokenless", listeners=("SASL_PLAINTEXT", "PLAINTEXT"), users=USERS, authorizer=True, delegation_tokens=False
    )
    with Cluster(spec) as cluster:
        yield cluster


@pytest.fixture
def tokenless(_tokenless: Cluster) -> Cluster:
    """ACLs but no delegation tokens; SASL_PLAINTEXT and PLAINTEXT."""
    _tokenless.mend()
    return _tokenless


async def visible_topics(answer: Message) -> set[str]:
    return {one["name"] for one in answer["topics"]}


# -- who is on a connection ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [1, 2, 3])
async def test_the_broker_names_the_principal_and_makes_nothing(secured_east: Cluster, version: int) -> None:
    async with client(secured_east, "alice") as alice:
        answer = await alice.call(API_CREATE_DELEGATION_TOKEN, question(), version=version)
        assert answer["error_code"] == ERROR.INVALID_PRINCIPAL_TYPE
        assert named(answer) == ALICE
        assert (await alice.call(DESCRIBE_TOKENS, {"owners": None}))["tokens"] == []


async def test_anonymous_certificate_and_token_connections_are_named_too(
    secured_east: Cluster, tokenless: Cluster
) -> None:
    async with client(tokenless, None, "PLAINTEXT") as nobody:
        answer = await nobody.call(API_CREATE_DELEGATION_TOKEN, question())
        assert (answer["error_code"], named(answer)) == (ERROR.DELEGATION_TOKEN_REQUEST_NOT_ALLOWED, ANONYMOUS)
    async with client(tokenless, "bob") as bob:
        assert named(await bob.call(API_CREATE_DELEGATION_TOKEN, question())) == BOB
    assert secured_east.authority is not None
    certificate = secured_east.authority.client("carol")
    tls = Tls(str(secured_east.ca_file), str(certificate.chain), str(certificate.key))
    async with client(secured_east, None, "SSL", Security(tls)) as carol:
        answer = await carol.call(API_CREATE_DELEGATION_TOKEN, question())
        assert named(answer).name.startswith("CN=carol,")
    async with client(secured_east, ADMIN) as admin:
        vault = TokenVault({"secured-east": admin}, super_users=no_super_users)
        sasl = await vault.credentials("secured-east", ALICE)
        await vault.known_at("secured-east", ALICE, 1)
        async with client(secured_east, None, security=Security(sasl=sasl)) as token:
            answer = await token.call(API_CREATE_DELEGATION_TOKEN, question())
            assert (answer["error_code"], named(answer)) == (ERROR.DELEGATION_TOKEN_REQUEST_NOT_ALLOWED, ALICE)
        await vault.close()


# -- delegation tokens --------------------------------------------------------------------------------------------


async def test_a_call_goes_as_the_principal_and_sees_what_it_would_see(secured_east: Cluster, names: Names) -> None:
    hers, his = names.topic("hers"), names.topic("his")
    async with client(secured_east) as admin, client(secured_east, "kfed") as service:
        await grant(
            admin,
            *SERVICE_ACLS,
            acl("User:alice", Operation.READ, Resource.TOPIC, hers),
            acl("User:bob", Operation.READ, Resource.TOPIC, his),
        )
        await create_topics(admin, hers, his)
        async with pool(service) as callers:
            everything_there = {"topics": None, "allow_auto_topic_creation": False}
            for who, topic, other in ((ALICE, hers, his), (BOB, his, hers)):
                found = await visible_topics(await callers.ask_as(who, service.name, METADATA, everything_there))
                assert topic in found
                assert other not in found
                probe = await callers.ask_as(who, service.name, API_CREATE_DELEGATION_TOKEN, question())
                assert named(probe) == who
                assert await callers.visible(who, None, service.name, Resource.TOPIC, [hers, his]) == {topic}
            with_token = await callers.ask_as(
                ALICE, service.name, CREATE_TOPICS, {"topics": [{"name": names.topic("new"), "num_partitions": 1}]}
            )
            assert with_token["topics"][0]["error_code"] == ERROR.TOPIC_AUTHORIZATION_FAILED
            tokens = (await admin.call(DESCRIBE_TOKENS, {"owners": None}))["tokens"]
            assert {one["principal_name"] for one in tokens if one["token_requester_principal_name"] == "kfed"} == {
                "alice",
                "bob",
            }
        # Dropped tokens are expired at the broker, not left to live for a day.
        await until(lambda: no_tokens(admin))


async def test_many_at_once_share_one_token(secured_east: Cluster) -> None:
    async with client(secured_east) as admin:
        vault = TokenVault({"secured-east": admin}, super_users=no_super_users)
        found = []

        async def one() -> None:
            found.append(await vault.credentials("secured-east", BOB))

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(one)
        assert len({sasl.username for sasl in found}) == 1
        assert "SecretValue()" in repr(found[0]) or "value" not in repr(found[0])
        await vault.close()
        await until(lambda: no_tokens(admin))


async def test_no_token_for_a_super_user_and_none_without_permission(secured_west: Cluster) -> None:
    async with client(secured_west, "bob") as bob:
        vault = TokenVault({"w": bob}, super_users=lambda cluster: SUPER)
        with pytest.raises(SuperUserRefused):
            await vault.credentials("w", Principal("User", ADMIN))
        with pytest.raises(TokensUnavailable, match="may not create tokens"):
            await vault.credentials("w", ALICE)


async def test_a_token_that_died_behind_our_back_is_replaced(secured_east: Cluster) -> None:
    async with client(secured_east) as admin, client(secured_east, "kfed") as service:
        await grant(admin, *SERVICE_ACLS)
        async with pool(service) as callers:
            empty = {"topics": [], "allow_auto_topic_creation": False}
            await callers.ask_as(ALICE, service.name, METADATA, empty)
            before = (await callers.vault.credentials(service.name, ALICE)).username
            token = (await service.call(DESCRIBE_TOKENS, {"owners": None}))["tokens"][0]
            assert token["token_id"] == before
            expired = await service.call(EXPIRE_TOKEN, {"hmac": token["hmac"], "expiry_time_period_ms": -1})
            assert expired["error_code"] == 0
            await until(lambda: no_tokens(admin))
            callers.forget(ALICE)
            await callers.ask_as(ALICE, service.name, METADATA, empty)
            assert (await callers.vault.credentials(service.name, ALICE)).username != before


async def test_tokens_are_renewed_and_replaced_at_the_end_of_their_life(secured_east: Cluster) -> None:
    async with client(secured_east) as admin:
        vault = TokenVault({"e": admin}, super_users=no_super_users, max_lifetime_ms=2000)
        first = await vault.credentials("e", ALICE)
        assert (await vault.credentials("e", ALICE)) == first

        async def replaced() -> bool:
            return (await vault.credentials("e", ALICE)).username != first.username

        await until(replaced)
        await vault.close()


async def test_the_creator_may_renew_a_token(secured_east: Cluster) -> None:
    async with client(secured_east) as admin, client(secured_east, "kfed") as service:
        await grant(admin, *SERVICE_ACLS)
        vault = TokenVault({"e": service}, super_users=no_super_users)
        first = await vault.credentials("e", ALICE)
        slot = vault._slots["e", ALICE]
        assert slot.token is not None
        await vault.known_at("e", ALICE, 1)
        renewed = await vault._renewed("e", slot.token)
        assert renewed is not None
        assert renewed.id == first.username
        assert renewed.renew_at > slot.token.renew_at
        await vault.close()


# -- without tokens -----------------------------------------------------------------------------------------------


async def test_without_tokens_the_rules_decide_and_answers_are_cut_down(tokenless: Cluster, names: Names) -> None:
    hers, his = names.topic("hers"), names.topic("his")
    async with client(tokenless) as admin, client(tokenless, "kfed") as service:
        await grant(admin, *SERVICE_ACLS, acl("User:alice", Operation.ALTER, Resource.TOPIC, hers))
        await create_topics(admin, hers, his)
        async with pool(service, acl_fresh_for=0.05) as callers, client(tokenless, "alice") as alice:
            request = {
                "topics": None,
                "allow_auto_topic_creation": False,
                "include_topic_authorized_operations": True,
            }
            own = await alice.call(METADATA, request)
            through = await callers.ask_as(ALICE, service.name, METADATA, request)
            assert own["topics"] == through["topics"]
            assert await visible_topics(through) & {hers, his} == {hers}
            grow = {"topics": [{"name": hers, "count": 2, "assignments": None}], "timeout_ms": 5000}
            answer = await callers.ask_as(ALICE, service.name, 37, grow)
            assert answer["results"][0]["error_code"] == 0
            with pytest.raises(IdentityRefused) as refused:
                await callers.ask_as(ALICE, service.name, DELETE_TOPICS, {"topics": [{"name": hers}], "timeout_ms": 1})
            assert [(one.operation, one.code) for one in refused.value.denied] == [(Operation.DELETE, 29)]
            with pytest.raises(IdentityRefused):
                await callers.ask_as(ALICE, service.name, DESCRIBE_ACLS, every_acl())
            with pytest.raises(IdentityRefused):  # not in the table
                await callers.ask_as(ALICE, service.name, 1, {"topics": []})
            # Super users get no token; the rules let them do everything.
            answer = await callers.ask_as(Principal("User", ADMIN), service.name, DESCRIBE_ACLS, every_acl())
            assert answer["error_code"] == 0


async def test_anonymous_connections(tokenless: Cluster, names: Names, west: Cluster) -> None:
    topic = names.topic("t")
    async with client(tokenless) as admin, client(tokenless, "kfed") as service:
        await grant(admin, *SERVICE_ACLS)
        await create_topics(admin, topic)
        async with pool(service) as callers:
            assert await callers.visible(ANONYMOUS, None, service.name, Resource.TOPIC, [topic]) == frozenset()
            answer = await callers.ask_as(ANONYMOUS, service.name, METADATA, {"topics": None})
            assert topic not in await visible_topics(answer)
    async with client(west, None) as service, pool(service, ClusterIdentity()) as callers:  # no authorizer at all
        assert (await callers.ask_as(ALICE, service.name, METADATA, {"topics": []}))["brokers"]
        assert await callers.visible(ALICE, None, service.name, Resource.TOPIC, ["x"]) == {"x"}


async def test_an_unknown_authorizer_is_refused(tokenless: Cluster) -> None:
    async with client(tokenless) as admin, client(tokenless, "kfed") as service:
        await grant(admin, *SERVICE_ACLS)
        for settings in (ClusterIdentity("other"), ClusterIdentity("none")):
            async with pool(service, settings) as callers:
                with pytest.raises(IdentityRefused):
                    await callers.ask_as(ALICE, service.name, METADATA, {"topics": []})
                with pytest.raises(IdentityRefused):
                    await callers.visible(ALICE, None, service.name, Resource.TOPIC, ["x"])


async def test_another_authorizer_is_asked_as_the_principal(secured_west: Cluster, names: Names) -> None:
    hers, his = names.topic("hers"), names.topic("his")
    async with client(secured_west) as admin, client(secured_west, "kfed") as service:
        await grant(admin, *SERVICE_ACLS, acl("User:alice", Operation.WRITE, Resource.TOPIC, hers))
        await create_topics(admin, hers, his)
        async with pool(service, ClusterIdentity("other")) as callers:
            for kind, there in ((Resource.TOPIC, {hers}), (Resource.GROUP, set())):
                assert await callers.visible(ALICE, None, service.name, kind, [hers, his]) == there
            with pytest.raises(IdentityRefused):
                await callers.visible(ALICE, None, service.name, Resource.TOPIC, [hers], Operation.WRITE)


async def test_old_rules_decide_nothing(tokenless: Cluster) -> None:
    async with client(tokenless) as admin, client(tokenless, "kfed") as service:
        await grant(admin, *SERVICE_ACLS, acl(str(ALICE), Operation.DESCRIBE, Resource.TOPIC, "hers"))
        async with pool(service, acl_fresh_for=0.2, acl_stale_after=0.6) as callers:
            await callers.visible(ALICE, None, service.name, Resource.TOPIC, ["x"])
            tokenless.brokers[0].kill()
            with trio.fail_after(20):
                while True:
                    try:
                        await callers.visible(ALICE, None, service.name, Resource.TOPIC, ["x"], Operation.READ)
                    except IdentityRefused:
                        break
                    await trio.sleep(0.05)
            with pytest.raises(IdentityRefused):
                await callers.visible(ALICE, None, service.name, Resource.GROUP, ["x"])
            # Only what may be listed is told as before: topics do not vanish with their cluster.
            assert await callers.visible(ALICE, None, service.name, Resource.TOPIC, ["hers", "x"]) == {"hers"}


# -- the same decisions as the broker's ---------------------------------------------------------------------------

NAMES = ["a", "ab", "abc", "abd", "b", "bc", "hardcode"]
PATTERNS = [(name, LITERAL) for name in [*NAMES, "*"]] + [(name, PREFIXED) for name in ("a", "ab", "abc", "b", "*")]
OPERATIONS = [one for one in range(2, 13) if one != Operation.CLUSTER_ACTION]
PEOPLE = ["User:alice", "User:bob", "User:*"]
HOSTS = ["*", "127.0.0.1", "10.1.2.3"]


def random_acls(source: random.Random, prefix: str) -> list[Message]:
    made = []
    for _ in range(source.randint(1, 8)):
        name, pattern = source.choice(PATTERNS)
        kind = source.choice([Resource.TOPIC, Resource.TOPIC, Resource.GROUP])
        full = name if name == "*" and pattern == LITERAL else prefix + name
        operations = [*OPERATIONS] if kind == Resource.TOPIC else [2, 3, 6, 8, 10, 11]
        operations = [one for one in operations if one != Operation.IDEMPOTENT_WRITE]
        made.append(
            acl(
                source.choice(PEOPLE),
                source.choice(operations),
                kind,
                full,
                pattern=pattern,
                permission=source.choice([ALLOW, ALLOW, DENY]),
                host=source.choice(HOSTS),
            )
        )
    return made


async def clear(admin: ClusterClient) -> None:
    rule = {
        "resource_type_filter": 1,
        "resource_name_filter": None,
        "pattern_type_filter": 1,
        "principal_filter": None,
        "host_filter": None,
        "operation": 1,
        "permission_type": 1,
    }
    await admin.call(DELETE_ACLS, {"filters": [rule]})

    async def empty() -> bool:
        return not (await admin.call(DESCRIBE_ACLS, every_acl()))["resources"]

    await until(empty)


async def producer_id(there: ClusterClient) -> Message:
    """InitProducerId, once the broker has ids to give (14 until then)."""
    with trio.fail_after(20):
        while True:
            answer = await there.call(INIT_PRODUCER_ID, {"transactional_id": None, "transaction_timeout_ms": 1000})
            if answer["error_code"] != ERROR.COORDINATOR_LOAD_IN_PROGRESS:
                return answer
            await trio.sleep(0.02)


@pytest.mark.parametrize("allow_everyone", [False, True])
@pytest.mark.timeout(240)
async def test_decisions_are_the_brokers(allow_everyone: bool, names: Names) -> None:
    spec = ClusterSpec(
        "oracle",
        listeners=("SASL_PLAINTEXT",),
        users=USERS,
        authorizer=True,
        allow_everyone_if_no_acl=allow_everyone,
    )
    seed = random.randrange(1 << 30)
    source = random.Random(seed)
    compared = 0
    oracle = Cluster(spec)
    try:
        await trio.to_thread.run_sync(oracle.start)
        async with client(oracle) as admin, client(oracle, "alice") as alice, client(oracle, "bob") as bob:
            topics = [names.topic("x") + name for name in NAMES]
            prefix = names.topic("x")
            await create_topics(admin, *topics)
            deadline = trio.current_time() + 8
            while trio.current_time() < deadline:
                await clear(admin)
                await grant(admin, *random_acls(source, prefix))
                answer = await admin.call(DESCRIBE_ACLS, every_acl())
                rules = AclSet.from_describe(answer, super_users=SUPER, allow_everyone=allow_everyone)
                for who, there in ((ALICE, alice), (BOB, bob)):
                    seen = await there.metadata(
                        topics, include_topic_authorized_operations=True, include_cluster_authorized_operations=True
                    )
                    for one in seen["topics"]:
                        expected = rules.operations(who, "127.0.0.1", Resource.TOPIC, one["name"])
                        hidden = one["error_code"] == ERROR.TOPIC_AUTHORIZATION_FAILED
                        assert hidden != bool(expected & 1 << Operation.DESCRIBE), (seed, who, one, answer)
                        if not hidden:
                            assert one["topic_authorized_operations"] == expected, (seed, who, one, answer)
                        compared += 8
                    described = await there.call(15, {"groups": topics, "include_authorized_operations": True})
                    for one in described["groups"]:
                        expected = rules.operations(who, "127.0.0.1", Resource.GROUP, one["group_id"])
                        hidden = one["error_code"] == ERROR.GROUP_AUTHORIZATION_FAILED
                        assert hidden != bool(expected & 1 << Operation.DESCRIBE), (seed, who, one, answer)
                        compared += 1
                    # "Any topic?" is what an idempotent producer needs.
                    started = await producer_id(there)
                    expected_any = rules.allows_any(who, "127.0.0.1", Operation.WRITE, Resource.TOPIC) or rules.allows(
                        who, "127.0.0.1", Operation.IDEMPOTENT_WRITE, Resource.CLUSTER, "kafka-cluster"
                    )
                    assert (started["error_code"] == 0) == expected_any, (seed, who, started, answer)
                    compared += 1
        assert compared > 1000
        print(f"{compared} decisions compared")
    finally:
        oracle.close()
