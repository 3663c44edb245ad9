"""DescribeAcls (29): which rules are asked for."""

from __future__ import annotations

from kafka_wire.codec import Message

ANY = 1  # of resource types, pattern types, operations and permissions alike


def every_acl(resource_type: int = ANY) -> Message:
    """The request for all rules about resources of a type."""
    return {
        "resource_type_filter": resource_type,
        "resource_name_filter": None,
        "pattern_type_filter": ANY,
        "principal_filter": None,
        "host_filter": None,
        "operation": ANY,
        "permission_type": ANY,
    }
