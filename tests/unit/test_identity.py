"""Identity without brokers: what answers mean, what requests need, what is hidden, how tokens live."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.lowlevel
from trio.testing import MockClock

from kafka_client import BrokerUnavailable, UnsupportedApi
from kafka_wire.codec import Message, encode
from kafka_wire.errors import ERROR
from kafka_wire.schema import by_key
from proxy.identity.acl import ALLOW, DENY, LITERAL, AclSet, Operation, Resource, Rule, host_text
from proxy.identity.answers import NOT_ASKED, shown
from proxy.identity.needs import _TABLE, Need, NotDecidable, needs
from proxy.identity.principal import ANONYMOUS, Principal, PrincipalUnknown, named, question
from proxy.identity.tokens import CREATE, DESCRIBE, EXPIRE, RENEW, SuperUserRefused, TokensUnavailable, TokenVault

ALICE, BOB = Principal("User", "alice"), Principal("User", "bob")

# -- principals ---------------------------------------------------------------------------------------------------


def answer(code: int, kind: str = "User", name: str = "alice") -> Message:
    return {"error_code": code, "principal_type": kind, "principal_name": name}


def test_who_an_answer_names() -> None:
    assert named(answer(ERROR.INVALID_PRINCIPAL_TYPE)) == ALICE
    assert named(answer(ERROR.DELEGATION_TOKEN_REQUEST_NOT_ALLOWED, name="ANONYMOUS")) == ANONYMOUS
    for wrong in (answer(0), answer(61), answer(65), answer(67, name=""), answer(67, kind="")):
        with pytest.raises(PrincipalUnknown):
            named(wrong)


def test_the_question_is_sent_at_every_version() -> None:
    for version in (1, 2, 3):
        assert encode("request", 38, version, question())


def test_principals_as_text() -> None:
    assert str(Principal.parse("User:CN=a:b,O=c")) == "User:CN=a:b,O=c"
    assert Principal.parse("User:alice") == ALICE
    for wrong in ("alice", "User:", ":alice", ""):
        with pytest.raises(ValueError, match="not a principal"):
            Principal.parse(wrong)


# -- hosts --------------------------------------------------------------------------------------------------------


def test_hosts_are_compared_as_java_prints_them() -> None:
    assert host_text("::1") == "0:0:0:0:0:0:0:1"
    assert host_text("2001:db8::00ff") == "2001:db8:0:0:0:0:0:ff"
    assert host_text("::ffff:10.0.0.1") == "10.0.0.1"
    assert host_text("fe80::1%eth0") == "fe80:0:0:0:0:0:0:1"
    rule = Rule(Resource.TOPIC, "t", LITERAL, "User:alice", "0:0:0:0:0:0:0:1", Operation.READ, ALLOW)
    assert AclSet([rule]).allows(ALICE, "::1", Operation.READ, Resource.TOPIC, "t")


# -- needs --------------------------------------------------------------------------------------------------------


def test_every_entry_names_fields_that_requests_have() -> None:
    """An entry that reads a field its request does not have would need nothing, and permit everything."""
    for key in _TABLE:
        definition = by_key("request")[key]
        filled = filled_in(definition.fields)
        if key in (16, 18, 60, 66):
            assert needs(key, filled) == ()
        else:
            assert needs(key, filled), definition.name


def filled_in(fields: Any) -> Message:
    made: Message = {}
    for one in fields:
        value: Any = "name" if one.type == "string" else 2 if one.type in ("int8", "int16", "int32", "int64") else None
        if one.fields:
            value = filled_in(one.fields)
        if one.name in ("key_type",):
            value = 1
        made[one.name] = [value] if one.array else value
    return made


def test_needs_of_some_requests() -> None:
    on_cluster = Need(Operation.CREATE, Resource.CLUSTER)
    assert needs(19, {"topics": [{"name": "t"}]}) == (Need(Operation.CREATE, Resource.TOPIC, "t", on_cluster),)
    assert needs(20, {"topics": [{"name": "t"}, {"name": "t"}]}) == (Need(Operation.DELETE, Resource.TOPIC, "t"),)
    assert needs(3, {"topics": None}) == ()
    configs = {"resources": [{"resource_type": 2, "resource_name": "t"}, {"resource_type": 4, "resource_name": "1"}]}
    assert needs(44, configs) == (
        Need(Operation.ALTER_CONFIGS, Resource.TOPIC, "t"),
        Need(Operation.ALTER_CONFIGS, Resource.CLUSTER),
    )
    assert needs(42, {"groups_names": ["g"]})[0].code == ERROR.GROUP_AUTHORIZATION_FAILED


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (0, {}),
        (20, {"topics": [{"name": None, "topic_id": b"x" * 16}]}),
        (3, {"topics": [{"name": None, "topic_id": b"x" * 16}]}),
        (32, {"resources": [{"resource_type": 99, "resource_name": "x"}]}),
        (10, {"key_type": 2, "coordinator_keys": ["g"]}),
    ],
)
def test_what_cannot_be_decided_is_not(key: int, message: Message) -> None:
    with pytest.raises(NotDecidable):
        needs(key, message)


# -- answers ------------------------------------------------------------------------------------------------------


def allow(kind: Resource, name: str, operation: Operation, who: str = "User:alice", permission: int = ALLOW) -> Rule:
    return Rule(kind, name, LITERAL, who, "*", operation, permission)


ACLS = AclSet(
    [
        allow(Resource.TOPIC, "mine", Operation.READ),
        allow(Resource.GROUP, "mine", Operation.DESCRIBE),
        allow(Resource.GROUP, "theirs", Operation.DESCRIBE),
        allow(Resource.TRANSACTIONAL_ID, "mine", Operation.DESCRIBE),
        allow(Resource.TOPIC, "secret", Operation.DESCRIBE, permission=DENY),
    ]
)


def cut(key: int, message: Message, request: Message | None = None) -> Message:
    return shown(ACLS, ALICE, None, key, request or {}, message)


def test_metadata_shows_own_topics_and_own_operations() -> None:
    both = [
        {"name": name, "error_code": 0, "topic_authorized_operations": 0xFFFF} for name in ("mine", "secret", "other")
    ]
    shown_now = cut(3, {"topics": both, "cluster_authorized_operations": 0xFFFF})
    assert [one["name"] for one in shown_now["topics"]] == ["mine"]
    assert shown_now["topics"][0]["topic_authorized_operations"] == 1 << Operation.READ | 1 << Operation.DESCRIBE
    assert shown_now["cluster_authorized_operations"] == 0
    not_asked = cut(3, {"topics": [{"name": "mine", "topic_authorized_operations": NOT_ASKED}]})
    assert not_asked["topics"][0]["topic_authorized_operations"] == NOT_ASKED


def test_lists_show_what_may_be_described() -> None:
    assert cut(16, {"groups": [{"group_id": "mine"}, {"group_id": "x"}]})["groups"] == [{"group_id": "mine"}]
    transactions = {"transaction_states": [{"transactional_id": "mine"}, {"transactional_id": "x"}]}
    assert cut(66, transactions)["transaction_states"] == [{"transactional_id": "mine"}]
    described = {"transaction_states": [{"topics": [{"topic": "mine"}, {"topic": "secret"}]}]}
    assert cut(65, described)["transaction_states"][0]["topics"] == [{"topic": "mine"}]
    offsets = {"groups": [{"group_id": "mine", "topics": [{"name": "mine"}, {"name": "secret"}, {"topic_id": b""}]}]}
    assert cut(9, offsets)["groups"][0]["topics"] == [{"name": "mine"}]
    shares = {"groups": [{"group_id": "mine", "topics": [{"topic_name": "mine"}, {"topic_name": "secret"}]}]}
    assert cut(90, shares)["groups"][0]["topics"] == [{"topic_name": "mine"}]


@pytest.mark.parametrize(
    "where",
    [
        {"members": [{"assignment": {"topic_partitions": [{"topic_name": "secret"}]}}]},
        {"members": [], "topology": {"subtopologies": [{"source_topics": ["secret"]}]}},
        {"members": [], "topology": {"subtopologies": [{"state_changelog_topics": [{"name": "secret"}]}]}},
    ],
)
def test_a_group_over_topics_that_may_not_be_seen_is_withheld(where: Message) -> None:
    group = {"group_id": "mine", "error_code": 0, "authorized_operations": 0xFFFF, **where}
    found = cut(69, {"groups": [group]})["groups"][0]
    assert found["error_code"] == ERROR.TOPIC_AUTHORIZATION_FAILED
    assert "secret" not in repr(found)
    kept = {"group_id": "mine", "error_code": 0, "authorized_operations": 0xFFFF, "members": []}
    assert cut(69, {"groups": [kept]})["groups"][0]["authorized_operations"] == 1 << Operation.DESCRIBE


# -- tokens -------------------------------------------------------------------------------------------------------

DAY = 86_400_000


class Controller:
    """Answers token requests as a cluster does; `codes` are errors to give instead, by key."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, Message]] = []
        self.codes: dict[int, int] = {}
        self.failure: Exception | None = None
        self.max_ms = 7 * DAY
        self.known = True
        self.made = 0

    def count(self, key: int) -> int:
        return sum(1 for asked, message in self.asked if asked == key and message != question())

    async def call(
        self,
        key: int,
        message: Message,
        broker: int | None = None,
        version: int | None = None,
        timeout: float = 10.0,
        *,
        retry: bool = False,
    ) -> Message:
        self.asked.append((key, message))
        await trio.lowlevel.checkpoint()
        if message == question():
            return answer(ERROR.INVALID_PRINCIPAL_TYPE, name="kfed")
        if self.failure is not None:
            raise self.failure
        if key in self.codes:
            return {"error_code": self.codes[key], "tokens": []}
        if key == CREATE:
            self.made += 1
            return {
                "error_code": 0,
                "token_id": f"id{self.made}",
                "hmac": b"h",
                "issue_timestamp_ms": 5_000_000,
                "expiry_timestamp_ms": 5_000_000 + DAY,
                "max_timestamp_ms": 5_000_000 + self.max_ms,
            }
        if key == DESCRIBE:
            return {"error_code": 0, "tokens": [{"token_id": f"id{self.made}"}] if self.known else []}
        return {"error_code": 0}


def vault_of(controller: Controller, **options: Any) -> TokenVault:
    return TokenVault({"east": controller}, super_users=lambda cluster: frozenset({"User:admin"}), **options)


async def test_a_token_is_made_once_and_renewed_before_it_ends(mock_clock: MockClock) -> None:
    controller = Controller()
    vault = vault_of(controller)
    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(vault.credentials, "east", ALICE)
    assert controller.count(CREATE) == 1
    made = next(message for key, message in controller.asked if key == CREATE and message != question())
    assert made["renewers"] == [{"principal_type": "User", "principal_name": "kfed"}]
    assert (made["owner_principal_type"], made["owner_principal_name"]) == ("User", "alice")
    for _ in range(9):  # seven days at most, in steps of 0.7 of a day
        mock_clock.jump(DAY / 1000 * 0.7)
        assert (await vault.credentials("east", ALICE)).username == "id1"
    assert controller.count(CREATE) == 1
    assert controller.count(RENEW) == 9
    mock_clock.jump(DAY / 1000 * 0.7)
    assert (await vault.credentials("east", ALICE)).username == "id2"


async def test_a_renewal_that_fails_is_not_asked_for_all_the_time(mock_clock: MockClock) -> None:
    controller = Controller()
    vault = vault_of(controller)
    await vault.credentials("east", ALICE)
    controller.failure = BrokerUnavailable("away")
    mock_clock.jump(DAY / 1000 * 0.7)
    for _ in range(5):
        assert (await vault.credentials("east", ALICE)).username == "id1"
    assert controller.count(RENEW) == 1
    mock_clock.jump(DAY / 1000 * 0.5)  # over: no token is better than an expired one
    with pytest.raises(BrokerUnavailable):
        await vault.credentials("east", ALICE)
    controller.failure = None
    assert (await vault.credentials("east", ALICE)).username == "id2"


async def test_an_idle_principals_token_is_replaced_after_its_end(mock_clock: MockClock) -> None:
    controller = Controller()
    vault = vault_of(controller)
    await vault.credentials("east", ALICE)
    mock_clock.jump(DAY / 1000 + 1)
    assert (await vault.credentials("east", ALICE)).username == "id2"
    assert controller.count(RENEW) == 0


@pytest.mark.parametrize(
    ("code", "asked_for_two"),
    [
        (ERROR.DELEGATION_TOKEN_AUTH_DISABLED, 1),
        (ERROR.DELEGATION_TOKEN_REQUEST_NOT_ALLOWED, 1),
        (ERROR.DELEGATION_TOKEN_AUTHORIZATION_FAILED, 2),  # of one principal, not of the cluster
    ],
)
async def test_refusals_are_believed_for_a_while(mock_clock: MockClock, code: int, asked_for_two: int) -> None:
    controller = Controller()
    controller.codes[CREATE] = code
    vault = vault_of(controller)
    for who in (ALICE, ALICE, BOB, BOB):
        with pytest.raises(TokensUnavailable):
            await vault.credentials("east", who)
    assert controller.count(CREATE) == asked_for_two
    controller.codes.clear()
    mock_clock.jump(61)
    assert (await vault.credentials("east", ALICE)).username == "id1"


async def test_old_brokers_and_super_users_have_no_tokens() -> None:
    controller = Controller()
    controller.failure = UnsupportedApi("CreateDelegationToken version 3")
    vault = vault_of(controller)
    with pytest.raises(TokensUnavailable):
        await vault.credentials("east", ALICE)
    controller.failure = None
    with pytest.raises(SuperUserRefused):
        await vault.credentials("east", Principal("User", "admin"))
    assert controller.made == 0


async def test_the_least_recently_used_is_dropped_and_expired() -> None:
    controller = Controller()
    vault = vault_of(controller, limit=2)
    for name in ("a", "b", "a", "c"):
        await vault.credentials("east", Principal("User", name))
    assert controller.made == 3
    await vault.expire_dropped()
    assert controller.count(EXPIRE) == 1
    await vault.credentials("east", Principal("User", "a"))
    assert controller.made == 3
    await vault.credentials("east", Principal("User", "b"))
    assert controller.made == 4
    await vault.close()
    assert controller.count(EXPIRE) == 4


async def test_closing_is_bounded(autojump_clock: MockClock) -> None:
    controller = Controller()
    vault = vault_of(controller)
    await vault.credentials("east", ALICE)
    controller.codes[EXPIRE] = ERROR.DELEGATION_TOKEN_NOT_FOUND
    started = trio.current_time()
    await vault.close(timeout=2.0)
    assert trio.current_time() - started <= 2.0


async def test_a_broker_that_never_learns_of_a_token_is_waited_for_only_so_long(autojump_clock: MockClock) -> None:
    controller = Controller()
    vault = vault_of(controller)
    await vault.credentials("east", ALICE)
    controller.known = False
    started = trio.current_time()
    await vault.known_at("east", ALICE, 1, timeout=5.0)
    assert trio.current_time() - started == pytest.approx(5.0)
    controller.known = True
    await vault.known_at("east", ALICE, 1)
    asked = len(controller.asked)
    await vault.known_at("east", ALICE, 1)
    assert len(controller.asked) == asked


async def test_tokens_are_shown_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    controller = Controller()
    vault = vault_of(controller)
    sasl = await vault.credentials("east", ALICE)
    assert sasl.password is not None
    held = vault._slots["east", ALICE].token
    assert sasl.password.read() not in repr(sasl) + repr(held) + caplog.text
