"""What the service may not do, in words that name the operation and the resource. Pure."""

from __future__ import annotations

from kafka_wire.errors import ERROR

# A right is missing: tried again, with pauses, until somebody gives it.
DENIED = frozenset(
    {
        ERROR.TOPIC_AUTHORIZATION_FAILED,
        ERROR.GROUP_AUTHORIZATION_FAILED,
        ERROR.CLUSTER_AUTHORIZATION_FAILED,
        ERROR.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
    }
)


def on_topic(operation: str, topic: str) -> str:
    """A right, as `lacking` takes it."""
    return f"{operation} on topic {topic!r}"


def lacking(code: int, right: str) -> str:
    """ " (the service needs WRITE on topic 'orders')" where the code says that it is not allowed; else nothing."""
    return f" (the service needs {right})" if code in DENIED else ""
