"""The clock that ages are measured on, and waiting between tries."""

from __future__ import annotations

import random

import trio

from runtime.clock import boottime

__all__ = ["Backoff", "boottime"]


class Backoff:
    """Growing pauses with jitter, so that many clients do not return together."""

    def __init__(self, first: float = 0.02, longest: float = 1.0) -> None:
        self._first = first
        self._longest = longest
        self._next = first

    def reset(self) -> None:
        self._next = self._first

    async def pause(self) -> None:
        pause, self._next = self._next, min(self._next * 2, self._longest)
        await trio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311
