"""The indexed decision against the rules written down as plainly as possible, and what must hold for any rules."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from proxy.identity.acl import ALLOW, DENY, LITERAL, PREFIXED, AclSet, Operation, Resource, Rule
from proxy.identity.principal import Principal

NAMES = ["a", "ab", "abc", "b", "*", "hardcode"]
WHO = [Principal("User", "alice"), Principal("User", "bob"), Principal("Group", "alice")]
HOSTS = ["10.0.0.1", "10.0.0.2"]

rules = st.builds(
    Rule,
    resource_type=st.sampled_from([Resource.TOPIC, Resource.GROUP]).map(int),
    name=st.sampled_from(NAMES),
    pattern=st.sampled_from([LITERAL, PREFIXED]),
    principal=st.sampled_from(["User:alice", "User:bob", "User:*", "Group:alice"]),
    host=st.sampled_from([*HOSTS, "*"]),
    operation=st.sampled_from(list(Operation)).map(int),
    permission=st.sampled_from([ALLOW, DENY]),
)
rule_sets = st.lists(rules, max_size=8)
operations = st.sampled_from([one for one in Operation if one != Operation.ALL])
resources = st.sampled_from([Resource.TOPIC, Resource.GROUP])
names = st.sampled_from([*NAMES, "abcd", "zz"])


def plainly(held: list[Rule], everyone: bool, who: str, host: str, operation: int, kind: int, name: str) -> bool:
    about = [
        one
        for one in held
        if one.resource_type == kind
        and (
            (one.pattern == LITERAL and one.name in (name, "*"))
            or (one.pattern == PREFIXED and name.startswith(one.name))
        )
    ]
    mine = [one for one in about if one.principal in (who, "User:*") and one.host in (host, "*")]
    if any(one.permission == DENY and one.operation in (operation, Operation.ALL) for one in mine):
        return False
    enough = {operation, Operation.ALL}
    if operation == Operation.DESCRIBE:
        enough |= {Operation.READ, Operation.WRITE, Operation.DELETE, Operation.ALTER}
    if operation == Operation.DESCRIBE_CONFIGS:
        enough |= {Operation.ALTER_CONFIGS}
    if any(one.permission == ALLOW and one.operation in enough for one in mine):
        return True
    return everyone and not about


@given(rule_sets, st.booleans(), st.sampled_from(WHO), st.sampled_from(HOSTS), operations, resources, names)
def test_decisions(
    held: list[Rule], everyone: bool, who: Principal, host: str, operation: Operation, kind: Resource, name: str
) -> None:
    decided = AclSet(held, allow_everyone=everyone).allows(who, host, operation, kind, name)
    assert decided == plainly(held, everyone, str(who), host, operation, kind, name)


@given(rule_sets, rules, st.sampled_from(WHO), st.sampled_from(HOSTS), operations, resources, names)
def test_a_further_deny_never_permits_and_without_allow_everyone_an_allow_never_forbids(
    held: list[Rule], more: Rule, who: Principal, host: str, operation: Operation, kind: Resource, name: str
) -> None:
    before = AclSet(held).allows(who, host, operation, kind, name)
    after = AclSet([*held, more]).allows(who, host, operation, kind, name)
    assert after <= before if more.permission == DENY else after >= before


@given(rule_sets, st.booleans(), st.sampled_from(WHO), operations, resources, names)
def test_an_unknown_host_is_never_better_off_than_a_known_one(
    held: list[Rule], everyone: bool, who: Principal, operation: Operation, kind: Resource, name: str
) -> None:
    acls = AclSet(held, allow_everyone=everyone)
    unknown = acls.allows(who, None, operation, kind, name)
    assert all(unknown <= acls.allows(who, host, operation, kind, name) for host in [*HOSTS, "192.168.0.9"])


@given(rule_sets, st.booleans(), st.sampled_from(WHO), st.sampled_from(HOSTS), operations, resources)
def test_allowed_somewhere(
    held: list[Rule], everyone: bool, who: Principal, host: str, operation: Operation, kind: Resource
) -> None:
    """By type is allowed only where some name is; the names that rules mention, and ones beside them, tell."""
    acls = AclSet(held, allow_everyone=everyone)
    if acls.allows_any(who, host, operation, kind):
        tried = {"hardcode", *NAMES} | {one.name + "\0" for one in held} | {one.name for one in held}
        assert any(acls.allows(who, host, operation, kind, name) for name in tried) or any(
            one.name == "*" and one.pattern == LITERAL and one.permission == ALLOW for one in held
        )


@given(rule_sets, st.sampled_from(HOSTS), operations, resources, names)
def test_super_users_may_do_everything(
    held: list[Rule], host: str, operation: Operation, kind: Resource, name: str
) -> None:
    acls = AclSet(held, super_users=["User:alice"])
    assert acls.allows(WHO[0], host, operation, kind, name)
    assert acls.allows_any(WHO[0], host, operation, kind)
