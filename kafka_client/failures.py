"""What can go wrong between us and a broker. Messages name addresses and error codes, never credentials."""

from __future__ import annotations

from kafka_wire.errors import error_name, error_text


class ClientError(Exception):
    """Any failure of a call to a broker."""


class BrokerUnavailable(ClientError):
    """No connection, or it was lost. `sent` says whether the broker may have seen, and executed, the request."""

    def __init__(self, reason: str, sent: bool = False) -> None:
        super().__init__(reason)
        self.sent = sent


class CallTimeout(BrokerUnavailable):
    """No answer within the call's time; where `sent`, the broker may still execute it."""


class AuthenticationFailed(ClientError):
    """The broker refused our credentials, or we do not trust its certificate. Trying again does not help by itself.

    `code` is the broker's error code, where it gave one: 33 and 34 mean that the listener has no such mechanism.
    """

    def __init__(self, reason: str, code: int | None = None) -> None:
        super().__init__(reason)
        self.code = code


class UnsupportedApi(ClientError):
    """The broker does not offer this API, or no version of it that is known here."""


class ClusterMismatch(ClientError):
    """The addresses answer as another cluster than they did before."""


class Refused(ClientError):
    """The broker answered with an error code where a result was needed."""

    def __init__(self, what: str, code: int, message: str | None = None) -> None:
        super().__init__(f"{what}: {error_name(code)} ({code}): {message or error_text(code)}")
        self.code = code
