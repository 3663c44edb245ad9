"""Who is on a connection, by the broker's own word.

The principal is never derived from what a client sent (token ids, JWT claims and principal builders would all have to
be understood): the broker is asked on that very connection with CreateDelegationToken for a renewer of a type that does
not exist. It refuses, names the principal in the refusal and makes nothing: 67 after any named login, 64 for anonymous
connections and for those logged in with a delegation token; the same with tokens off and without an authorizer
(measured on 4.3, versions 1 to 3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kafka_wire.errors import ERROR, error_name

if TYPE_CHECKING:
    from kafka_wire.codec import Message

API_CREATE_DELEGATION_TOKEN = 38
# Brokers accept renewers of type "User" only.
NO_SUCH_TYPE = "Nobody"
_NAMING = (ERROR.INVALID_PRINCIPAL_TYPE, ERROR.DELEGATION_TOKEN_REQUEST_NOT_ALLOWED)


@dataclass(frozen=True, slots=True, order=True)
class Principal:
    """A Kafka principal; equal type and name on two clusters are taken to be the same person (the operator says so)."""

    type: str
    name: str

    @classmethod
    def parse(cls, text: str) -> Principal:
        """`"User:alice"`; the name may hold colons. Raises ValueError."""
        kind, colon, name = text.partition(":")
        if not colon or not kind or not name:
            raise ValueError(f"not a principal: {text!r}")
        return cls(kind, name)

    def __str__(self) -> str:
        return f"{self.type}:{self.name}"


ANONYMOUS = Principal("User", "ANONYMOUS")


class PrincipalUnknown(Exception):
    """The broker did not name anybody; nothing may be assumed."""


def question() -> Message:
    """The request (CreateDelegationToken, any version): makes nothing on any path through the broker.

    Should a broker ever accept the renewer, the token would last for one millisecond.
    """
    return {
        "owner_principal_type": None,
        "owner_principal_name": None,
        "renewers": [{"principal_type": NO_SUCH_TYPE, "principal_name": NO_SUCH_TYPE}],
        "max_lifetime_ms": 1,
    }


def named(answer: Message) -> Principal:
    """The principal an answer to `question` names.

    Raises:
        PrincipalUnknown: another error, or no name. Also where a token was made: that broker does not follow the rules.
    """
    code = answer["error_code"]
    kind, name = answer["principal_type"], answer["principal_name"]
    if code not in _NAMING or not kind or not name:
        raise PrincipalUnknown(f"asked for the principal, the broker answered {error_name(code)} ({code})")
    return Principal(kind, name)
