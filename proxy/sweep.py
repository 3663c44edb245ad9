"""Bounds on everything a connection may wait for, looked after by one sweep a second. The decision is pure."""

from __future__ import annotations

from dataclasses import dataclass

from runtime.settings import Limits

SLOWEST = 16384  # bytes a second that a large frame may take to arrive beyond the frame's timeout
# While others wait for the memory that an unfinished frame has been given, it must come faster.
CROWDED_TIMEOUT = 2.0
CROWDED_SLOWEST = 1 << 20


@dataclass(frozen=True, slots=True)
class Waiting:
    """What a session is waiting for. Times are seconds on the monotonic clock, 0.0: not at all."""

    opened: float
    active: float  # the last request or answer
    asked: bool  # a whole request has come
    frame_waited: float  # seconds spent waiting for the rest of a request that has begun, 0.0 between requests
    frame_size: int  # of which so much has arrived, where that is known
    crowding: bool  # the request that is being read holds memory others wait for
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
    if waiting.frame_waited:
        allowed = limits.frame_timeout + waiting.frame_size / SLOWEST
        if waiting.crowding:
            allowed = min(allowed, CROWDED_TIMEOUT + waiting.frame_size / CROWDED_SLOWEST)
        return "request_too_slow" if waiting.frame_waited > allowed else None
    if not waiting.busy and now - waiting.active > limits.idle_timeout:
        return "idle"
    return None
