"""Bounds on everything a connection may wait for, looked after by one sweep a second. The decision is pure."""

from __future__ import annotations

from dataclasses import dataclass

from runtime.settings import Limits

SLOWEST = 16384  # bytes a second that a large frame may take to arrive beyond the frame's timeout


@dataclass(frozen=True, slots=True)
class Waiting:
    """What a session is waiting for. Times are seconds on the monotonic clock, 0.0: not at all."""

    opened: float
    active: float  # the last request or answer
    asked: bool  # a whole request has come
    frame_since: float  # a request has begun and is not complete
    frame_size: int
    client_writing_since: float  # the client does not read
    upstream_writing_since: float  # the broker does not read
    busy: bool  # requests owe an answer, or one is being handled


def overdue(waiting: Waiting, limits: Limits, now: float) -> str | None:
    """Why the connection is to be closed now, or None."""
    if waiting.client_writing_since and now - waiting.client_writing_since > limits.write_timeout:
        return "client_does_not_read"
    if waiting.upstream_writing_since and now - waiting.upstream_writing_since > limits.write_timeout:
        return "broker_does_not_read"
    if not waiting.asked:
        return "no_request" if now - waiting.opened > limits.first_bytes_timeout else None
    if waiting.frame_since and not waiting.upstream_writing_since and not waiting.busy:
        if now - waiting.frame_since > limits.frame_timeout + waiting.frame_size / SLOWEST:
            return "request_too_slow"
    elif not waiting.busy and now - waiting.active > limits.idle_timeout:
        return "idle"
    return None
