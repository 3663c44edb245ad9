"""Time that neither jumps with the wall clock nor stops while the machine sleeps."""

from __future__ import annotations

import time


def boottime() -> float:
    """Seconds on CLOCK_BOOTTIME: comparable between processes of one machine until it restarts.

    Leases, freshness and ages are counted on it: CLOCK_REALTIME jumps, CLOCK_MONOTONIC stands still in a suspend, and
    a process that wakes up after one must find its leases old.
    """
    return time.clock_gettime(time.CLOCK_BOOTTIME)
