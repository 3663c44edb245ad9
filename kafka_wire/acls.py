"""ACLs (DescribeAcls, 29): which are asked for, one rule, and what of one cluster's rules another lacks. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from kafka_wire.codec import Message

ANY = 1  # of resource types, pattern types, operations and permissions alike
TOPIC, GROUP, TRANSACTIONAL_ID = 2, 3, 5  # ResourceType
MATCH, LITERAL, PREFIXED = 2, 3, 4  # PatternType
DENY, ALLOW = 2, 3  # AclPermissionType
ALL = 2  # AclOperation
WILDCARD = "*"
EVERYBODY = "User:*"
OPERATIONS = (
    (
        "unknown any all read write create delete alter describe cluster_action describe_configs alter_configs "
        "idempotent_write create_tokens describe_tokens two_phase_commit"
    )
    .upper()
    .split()
)
_KINDS = {TOPIC: "topic", GROUP: "group", TRANSACTIONAL_ID: "transactional id"}
READ, WRITE, CREATE, DELETE, ALTER, DESCRIBE, DESCRIBE_CONFIGS, ALTER_CONFIGS = 3, 4, 5, 6, 7, 8, 10, 11
_ALLOWED_WITH = {DESCRIBE: frozenset({READ, WRITE, DELETE, ALTER}), DESCRIBE_CONFIGS: frozenset({ALTER_CONFIGS})}


class Acl(NamedTuple):
    """One rule. Rules that deny sort first."""

    permission: int
    principal: str
    operation: int
    host: str
    pattern: int
    name: str
    kind: int = TOPIC

    def names(self, name: str) -> bool:
        """Whether it is about this resource alone."""
        return self.pattern == LITERAL and self.name == name and name != WILDCARD

    def matches(self, name: str) -> bool:
        """Whether it applies to the resource, among others perhaps."""
        if self.pattern == PREFIXED:
            return name.startswith(self.name)
        return self.pattern == LITERAL and self.name in (name, WILDCARD)

    def covers(self, other: Acl) -> bool:
        """Whether it says all that `other` says of a resource that both apply to."""
        if self.permission != other.permission or self.kind != other.kind:
            return False
        if self.principal not in (other.principal, EVERYBODY) or self.host not in (other.host, WILDCARD):
            return False
        implied = _ALLOWED_WITH.get(other.operation, frozenset()) if self.permission == ALLOW else frozenset()
        return self.operation in (other.operation, ALL) or self.operation in implied

    def __str__(self) -> str:
        word = "deny" if self.permission == DENY else "allow"
        named = self.operation < len(OPERATIONS)
        operation = OPERATIONS[self.operation] if named else f"operation {self.operation}"
        kind = _KINDS.get(self.kind, f"resource {self.kind}")
        where = f"{kind}s {self.name}*" if self.pattern == PREFIXED else f"{kind} {self.name}"
        return f"{word} {self.principal} {operation} from {self.host} on {where}"


def every_acl(resource_type: int = ANY) -> Message:
    """The request for all rules about resources of a type."""
    return acls_about(resource_type, None)


def acls_about(resource_type: int, name: str | None) -> Message:
    """The request for all rules that apply to a resource; None: to any of the type."""
    return {
        "resource_type_filter": resource_type,
        "resource_name_filter": name,
        "pattern_type_filter": ANY if name is None else MATCH,
        "principal_filter": None,
        "host_filter": None,
        "operation": ANY,
        "permission_type": ANY,
    }


def acls_of(answer: Message, kind: int = TOPIC) -> frozenset[Acl]:
    """The rules about resources of a kind in a DescribeAcls answer."""
    return frozenset(
        Acl(
            one["permission_type"],
            one["principal"],
            one["operation"],
            one["host"],
            resource["pattern_type"],
            resource["resource_name"],
            kind,
        )
        for resource in answer["resources"]
        if resource["resource_type"] == kind
        for one in resource["acls"]
    )


def lost(name: str, source: Iterable[Acl], target: Iterable[Acl]) -> list[Acl]:
    """The rules about a resource that only the source has, and that no wider one of the target makes up for. Sorted."""
    ours = [one for one in target if one.matches(name)]
    return sorted(one for one in source if one.matches(name) and not any(each.covers(one) for each in ours))
