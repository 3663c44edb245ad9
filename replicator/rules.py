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

from kafka_wire.acls import ALLOW, DENY, LITERAL, PREFIXED, TOPIC, Acl, acls_of
from kafka_wire.codec import Message

__all__ = [
    "ALLOW",
    "DENY",
    "LITERAL",
    "PREFIXED",
    "TOPIC",
    "Acl",
    "Difference",
    "Quotas",
    "acls_of",
    "compare",
    "creations",
    "quota_words",
    "quotas_of",
]

_ENTITIES = ("user", "client-id")  # quotas by address are about proxies here, and differ between sites


@dataclass(frozen=True, slots=True)
class Difference:
    """`create` is to be made on the target; the rest is for people. All sorted."""

    create: tuple[Acl, ...]
    extra: tuple[Acl, ...]  # rules of exactly this topic that only the target has
    wider_missing: tuple[Acl, ...]  # rules of a wider pattern that only the source has
    wider_extra: tuple[Acl, ...]  # ... that only the target has


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
