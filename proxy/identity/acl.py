"""What a broker's StandardAuthorizer decides, from the ACLs it would decide by. Pure.

The rules, as in StandardAuthorizerData and Authorizer.authorizeByResourceType of Kafka 4.3:
- a super user may do everything;
- rules of a resource are its literal ones, those of every prefix of its name, and those of the literal `*`;
- a rule matches the principal itself or `User:*` (whatever the type), the host itself or `*`, the operation itself or
  ALL; an ALLOW of READ, WRITE, DELETE or ALTER is also one of DESCRIBE, of ALTER_CONFIGS also one of DESCRIBE_CONFIGS;
  a DENY implies nothing;
- any matching DENY wins, then any matching ALLOW;
- allow-everyone applies only where no rule is about the resource, whoever the rules name.
"""

from __future__ import annotations

import ipaddress
from collections import defaultdict
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import TYPE_CHECKING

from kafka_wire.errors import ERROR

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from kafka_wire.codec import Message
    from proxy.identity.principal import Principal


class Operation(IntEnum):
    """AclOperation's codes; also the bit numbers of the protocol's authorized-operations fields (KIP-430)."""

    ALL = 2
    READ = 3
    WRITE = 4
    CREATE = 5
    DELETE = 6
    ALTER = 7
    DESCRIBE = 8
    CLUSTER_ACTION = 9
    DESCRIBE_CONFIGS = 10
    ALTER_CONFIGS = 11
    IDEMPOTENT_WRITE = 12
    CREATE_TOKENS = 13
    DESCRIBE_TOKENS = 14
    TWO_PHASE_COMMIT = 15


class Resource(IntEnum):
    """ResourceType's codes."""

    TOPIC = 2
    GROUP = 3
    CLUSTER = 4
    TRANSACTIONAL_ID = 5
    DELEGATION_TOKEN = 6
    USER = 7


LITERAL, PREFIXED = 3, 4
DENY, ALLOW = 2, 3
WILDCARD = "*"
EVERYBODY = "User:*"
CLUSTER_NAME = "kafka-cluster"  # the one name of the CLUSTER resource

DENIED_CODE = {
    Resource.TOPIC: ERROR.TOPIC_AUTHORIZATION_FAILED,
    Resource.GROUP: ERROR.GROUP_AUTHORIZATION_FAILED,
    Resource.CLUSTER: ERROR.CLUSTER_AUTHORIZATION_FAILED,
    Resource.TRANSACTIONAL_ID: ERROR.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
    Resource.DELEGATION_TOKEN: ERROR.DELEGATION_TOKEN_AUTHORIZATION_FAILED,
    Resource.USER: ERROR.DELEGATION_TOKEN_AUTHORIZATION_FAILED,
}

_IMPLY: dict[int, frozenset[int]] = {
    Operation.DESCRIBE: frozenset({Operation.READ, Operation.WRITE, Operation.DELETE, Operation.ALTER}),
    Operation.DESCRIBE_CONFIGS: frozenset({Operation.ALTER_CONFIGS}),
}


@dataclass(frozen=True, slots=True)
class Rule:
    """One ACL: codes as in the protocol, principal as text (`User:alice`)."""

    resource_type: int
    name: str
    pattern: int
    principal: str
    host: str
    operation: int
    permission: int


@lru_cache(maxsize=4096)
def host_text(host: str) -> str:
    """An address the way Java prints it, which is what rules hold: IPv6 uncompressed, without leading zeros."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return ":".join(f"{int(part, 16):x}" for part in address.exploded.split(":"))


class AclSet:
    """The rules of a cluster at one moment, indexed; never changed once made."""

    def __init__(
        self, rules: Iterable[Rule] = (), *, super_users: Iterable[str] = (), allow_everyone: bool = False
    ) -> None:
        self.rules = frozenset(rules)
        self.super_users = frozenset(super_users)
        self.allow_everyone = allow_everyone
        self._literal: dict[tuple[int, str], list[Rule]] = defaultdict(list)
        self._prefixed: dict[tuple[int, str], list[Rule]] = defaultdict(list)
        for rule in self.rules:
            if rule.pattern == LITERAL:
                self._literal[rule.resource_type, rule.name].append(rule)
            elif rule.pattern == PREFIXED:
                self._prefixed[rule.resource_type, rule.name].append(rule)
        self._literal.default_factory = self._prefixed.default_factory = None
        lengths: dict[int, set[int]] = defaultdict(set)
        for resource_type, prefix in self._prefixed:
            lengths[resource_type].add(len(prefix))
        self._lengths = {kind: tuple(sorted(found)) for kind, found in lengths.items()}

    @classmethod
    def from_describe(cls, *answers: Message, super_users: Iterable[str] = (), allow_everyone: bool = False) -> AclSet:
        """From DescribeAcls answers; their error codes are the caller's to look at first."""
        rules = (
            Rule(
                resource["resource_type"],
                resource["resource_name"],
                resource.get("pattern_type", LITERAL),
                acl["principal"],
                acl["host"],
                acl["operation"],
                acl["permission_type"],
            )
            for answer in answers
            for resource in answer["resources"]
            for acl in resource["acls"]
        )
        return cls(rules, super_users=super_users, allow_everyone=allow_everyone)

    def is_super(self, principal: Principal) -> bool:
        return str(principal) in self.super_users

    def allows(self, principal: Principal, host: str | None, operation: int, resource_type: int, name: str) -> bool:
        """Whether the broker would let `principal`, coming from `host`, do it.

        With `host` None it may come from anywhere: denials for any host count, permissions only for all hosts.
        """
        who = str(principal)
        if who in self.super_users:
            return True
        found = allowed = False
        for rule in self._about(resource_type, name):
            found = True
            if not _matches(rule, who, host, operation):
                continue
            if rule.permission == DENY:
                return False
            allowed = True
        return allowed or (self.allow_everyone and not found)

    def allows_any(self, principal: Principal, host: str | None, operation: int, resource_type: int) -> bool:
        """Whether some resource of the type may exist on which it is allowed (authorizeByResourceType, KIP-679).

        Implied operations do not count here, except through the fixed name the broker tries first.
        """
        if self.allows(principal, host, operation, resource_type, "hardcode"):
            return True
        who = str(principal)
        denied: dict[int, set[str]] = {LITERAL: set(), PREFIXED: set()}
        allowed: dict[int, set[str]] = {LITERAL: set(), PREFIXED: set()}
        for rule in self.rules:
            if rule.resource_type != resource_type or rule.operation not in (operation, Operation.ALL):
                continue
            if rule.principal not in (who, EVERYBODY) or not _host_matches(rule, host):
                continue
            patterns = denied if rule.permission == DENY else allowed
            patterns[rule.pattern].add(rule.name)
        if WILDCARD in denied[LITERAL]:
            return False
        if WILDCARD in allowed[LITERAL]:
            return True

        def dominated(name: str) -> bool:
            return any(name[:n] in denied[PREFIXED] for n in range(1, len(name) + 1))

        literal = any(name not in denied[LITERAL] and not dominated(name) for name in allowed[LITERAL])
        return literal or any(not dominated(name) for name in allowed[PREFIXED])

    def operations(self, principal: Principal, host: str | None, resource_type: int, name: str) -> int:
        """The authorized-operations bit field brokers give for TOPIC, GROUP and CLUSTER (KIP-430)."""
        bits = 0
        for operation in _OPERATIONS_OF[Resource(resource_type)]:
            if self.allows(principal, host, operation, resource_type, name):
                bits |= 1 << operation
        return bits

    def _about(self, resource_type: int, name: str) -> Iterator[Rule]:
        yield from self._literal.get((resource_type, name), ())
        if name != WILDCARD:
            yield from self._literal.get((resource_type, WILDCARD), ())
        for length in self._lengths.get(resource_type, ()):
            if length > len(name):
                return
            yield from self._prefixed.get((resource_type, name[:length]), ())


# AclEntry.supportedOperations of Kafka 4.3.
_OPERATIONS_OF: dict[Resource, tuple[Operation, ...]] = {
    Resource.TOPIC: (
        Operation.READ,
        Operation.WRITE,
        Operation.CREATE,
        Operation.DELETE,
        Operation.ALTER,
        Operation.DESCRIBE,
        Operation.DESCRIBE_CONFIGS,
        Operation.ALTER_CONFIGS,
    ),
    Resource.GROUP: (
        Operation.READ,
        Operation.DELETE,
        Operation.DESCRIBE,
        Operation.DESCRIBE_CONFIGS,
        Operation.ALTER_CONFIGS,
    ),
    Resource.CLUSTER: (
        Operation.CREATE,
        Operation.ALTER,
        Operation.DESCRIBE,
        Operation.CLUSTER_ACTION,
        Operation.DESCRIBE_CONFIGS,
        Operation.ALTER_CONFIGS,
        Operation.IDEMPOTENT_WRITE,
    ),
}


def _host_matches(rule: Rule, host: str | None) -> bool:
    if rule.host == WILDCARD:
        return True
    return rule.permission == DENY if host is None else rule.host == host_text(host)


def _matches(rule: Rule, who: str, host: str | None, operation: int) -> bool:
    if rule.principal not in (who, EVERYBODY) or not _host_matches(rule, host):
        return False
    if rule.operation in (operation, Operation.ALL):
        return True
    return rule.permission == ALLOW and rule.operation in _IMPLY.get(operation, ())
