"""Who may use a ship's target, compared with its source: ACLs, and the quotas of clients. Pure.

A rule that names exactly the topic follows the source: it is created on the target where it is missing there, those
that deny first. Nothing is ever deleted. Which rules of a target a mirror has made is written nowhere, and a rule that
is there for a reason of its own (the target's operators, a reader that uses the standby directly) must not vanish
because a mirror does not know it; so what is extra is shown to people, and they decide. Rules of a wider pattern
(prefixes, `*`) speak of other topics too, and a quota of all that a client does on a cluster: they are compared only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from kafka_wire.codec import Message

TOPIC = 2  # ResourceType
LITERAL, PREFIXED = 3, 4  # PatternType
DENY, ALLOW = 2, 3  # AclPermissionType
WILDCARD = "*"
_OPERATIONS = (
    (
        "unknown any all read write create delete alter describe cluster_action describe_configs alter_configs "
        "idempotent_write create_tokens describe_tokens two_phase_commit"
    )
    .upper()
    .split()
)
_ENTITIES = ("user", "client-id")  # quotas by address are about proxies here, and differ between sites


class Acl(NamedTuple):
    """One rule about topics. Rules that deny sort first."""

    permission: int
    principal: str
    operation: int
    host: str
    pattern: int
    name: str

    def names(self, topic: str) -> bool:
        """Whether it is about this topic alone."""
        return self.pattern == LITERAL and self.name == topic and topic != WILDCARD

    def matches(self, topic: str) -> bool:
        """Whether it applies to the topic, among others perhaps."""
        if self.pattern == PREFIXED:
            return topic.startswith(self.name)
        return self.pattern == LITERAL and self.name in (topic, WILDCARD)

    def __str__(self) -> str:
        kind = "deny" if self.permission == DENY else "allow"
        named = self.operation < len(_OPERATIONS)
        operation = _OPERATIONS[self.operation] if named else f"operation {self.operation}"
        where = f"topics {self.name}*" if self.pattern == PREFIXED else f"topic {self.name}"
        return f"{kind} {self.principal} {operation} from {self.host} on {where}"


@dataclass(frozen=True, slots=True)
class Difference:
    """`create` is to be made on the target; the rest is for people. All sorted."""

    create: tuple[Acl, ...]
    extra: tuple[Acl, ...]  # rules of exactly this topic that only the target has
    wider_missing: tuple[Acl, ...]  # rules of a wider pattern that only the source has
    wider_extra: tuple[Acl, ...]  # ... that only the target has


def acls_of(answer: Message) -> frozenset[Acl]:
    """The rules about topics in a DescribeAcls answer."""
    return frozenset(
        Acl(
            one["permission_type"],
            one["principal"],
            one["operation"],
            one["host"],
            resource["pattern_type"],
            resource["resource_name"],
        )
        for resource in answer["resources"]
        if resource["resource_type"] == TOPIC
        for one in resource["acls"]
    )


def creations(acls: Iterable[Acl]) -> list[Message]:
    """As CreateAcls takes them."""
    return [
        {
            "resource_type": TOPIC,
            "resource_name": one.name,
            "resource_pattern_type": one.pattern,
            "principal": one.principal,
            "host": one.host,
            "operation": one.operation,
            "permission_type": one.permission,
        }
        for one in acls
    ]


def compare(topic: str, source: Iterable[Acl], target: Iterable[Acl]) -> Difference:
    """What of the rules that apply to a topic is on one side only."""
    theirs = {one for one in source if one.matches(topic)}
    ours = {one for one in target if one.matches(topic)}
    missing, extra = sorted(theirs - ours), sorted(ours - theirs)
    return Difference(
        tuple(one for one in missing if one.names(topic)),
        tuple(one for one in extra if one.names(topic)),
        tuple(one for one in missing if not one.names(topic)),
        tuple(one for one in extra if not one.names(topic)),
    )


Quotas = Mapping[tuple[str, str], float]  # (entity, key) -> value


def quotas_of(answer: Message) -> dict[tuple[str, str], float]:
    """The quotas of users and client ids in a DescribeClientQuotas answer."""
    out = {}
    for entry in answer["entries"] or ():
        parts = {one["entity_type"]: one["entity_name"] for one in entry["entity"]}
        if not parts.keys() <= set(_ENTITIES):
            continue
        entity = ", ".join(f"{kind} {'<default>' if name is None else name}" for kind, name in sorted(parts.items()))
        out.update({(entity, one["key"]): one["value"] for one in entry["values"]})
    return out


def quota_words(source: str, theirs: Quotas, target: str, ours: Quotas) -> list[str]:
    """Where two clusters' quotas differ, in words."""

    def said(value: float | None) -> str:
        return "not set" if value is None else f"{value:g}"

    return [
        f"quota {key} of {entity}: {said(theirs.get((entity, key)))} on {source}, "
        f"{said(ours.get((entity, key)))} on {target}"
        for entity, key in sorted(theirs.keys() | ours.keys())
        if theirs.get((entity, key)) != ours.get((entity, key))
    ]
