"""Which ACLs of a ship's target are created, which are only shown; quotas in words."""

from __future__ import annotations

from kafka_client.rights import lacking, on_topic
from replicator.rules import ALLOW, DENY, LITERAL, PREFIXED, Acl, acls_of, compare, creations, quota_words, quotas_of

READ, WRITE = 3, 4


def rule(name: str, who: str = "User:a", *, kind: int = LITERAL, operation: int = READ, permission: int = ALLOW) -> Acl:
    return Acl(permission, who, operation, "*", kind, name)


def test_only_what_names_the_topic_is_created_and_denials_first() -> None:
    allow, deny = rule("orders"), rule("orders", "User:z", permission=DENY)
    prefixed, everything, other = rule("ord", kind=PREFIXED), rule("*"), rule("bills")
    found = compare("orders", {allow, deny, prefixed, everything, other}, {rule("orders", operation=WRITE)})
    assert found.create == (deny, allow)
    assert found.extra == (rule("orders", operation=WRITE),)
    assert set(found.wider_missing) == {prefixed, everything} and found.wider_extra == ()
    assert compare("orders", {allow, everything}, {allow, everything}).create == ()
    # A literal name that is the beginning of another one, and the prefix that is a whole name.
    assert compare("orders-2", {allow}, set()).create == ()
    assert compare("orders", {rule("orders", kind=PREFIXED)}, set()).create == ()
    assert compare("*", {everything}, set()).create == ()
    # A wider rule on the target does not stand in for the one that names the topic.
    assert compare("orders", {allow}, {everything}).create == (allow,)
    assert compare("orders", {allow}, {everything}).wider_extra == (everything,)


def test_answers_are_read_and_written_as_they_were() -> None:
    acls = {rule("orders"), rule("ord", kind=PREFIXED, permission=DENY)}
    resources = [
        {
            "resource_type": one["resource_type"],
            "resource_name": one["resource_name"],
            "pattern_type": one["resource_pattern_type"],
            "acls": [one],
        }
        for one in creations(acls)
    ]
    group = {**resources[0], "resource_type": 3}
    assert acls_of({"resources": [*resources, group]}) == acls
    assert str(rule("ord", kind=PREFIXED, permission=DENY)) == "deny User:a READ from * on topics ord*"


def test_quotas_are_compared_by_entity_and_key() -> None:
    def answer(*entries: tuple[dict[str, str | None], dict[str, float]]) -> dict[str, object]:
        return {
            "entries": [
                {
                    "entity": [{"entity_type": kind, "entity_name": name} for kind, name in entity.items()],
                    "values": [{"key": key, "value": value} for key, value in values.items()],
                }
                for entity, values in entries
            ]
        }

    rate = "producer_byte_rate"
    theirs = quotas_of(answer(({"user": "a"}, {rate: 5.0}), ({"user": None}, {rate: 1.0}), ({"ip": "::1"}, {"x": 2.0})))
    ours = quotas_of(answer(({"user": "a"}, {rate: 6.0}), ({"user": None}, {rate: 1.0})))
    assert quota_words("east", theirs, "west", ours) == [f"quota {rate} of user a: 5 on east, 6 on west"]
    assert quota_words("east", theirs, "west", {})[0].startswith(f"quota {rate} of user <default>: 1 on east, not set")
    assert quotas_of({"entries": None}) == {}


def test_a_missing_right_is_named() -> None:
    assert lacking(29, on_topic("WRITE", "t")) == " (the service needs WRITE on topic 't')"
    assert lacking(3, on_topic("WRITE", "t")) == ""
