"""TCP ports that stay free: for one process among many on this machine, over restarts of what listens on them.

Binding port 0 and closing it again is not enough: the next outgoing connection may take the port while a broker is
being restarted. So ports come from below the kernel's ephemeral range, and each is held by a file lock.
"""

from __future__ import annotations

import fcntl
import os
import random
import socket
import tempfile
from pathlib import Path
from types import TracebackType
from typing import IO

LOWEST, HIGHEST = 14_000, 32_000
_LOCKS = Path(tempfile.gettempdir()) / f"kfed-ports-{os.getuid()}"


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As servers do: connections of a former owner in TIME_WAIT do not make a port unusable.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


class Ports:
    """A reservation; it ends with `release`, the `with` block or the process."""

    def __init__(self, count: int, *, consecutive: bool = False) -> None:
        self._held: dict[int, IO[str]] = {}
        _LOCKS.mkdir(exist_ok=True)
        tries = 0
        while len(self._held) < count:
            tries += 1
            if tries > 2000:
                self.release()
                raise RuntimeError(f"no {count} free ports between {LOWEST} and {HIGHEST}")
            wanted = count if consecutive else 1
            first = random.randrange(LOWEST, HIGHEST - wanted)
            if not all(self._take(port) for port in range(first, first + wanted)) and consecutive:
                self.release()
        self.numbers: tuple[int, ...] = tuple(sorted(self._held))

    def _take(self, port: int) -> bool:
        if port in self._held:
            return False
        lock = (_LOCKS / str(port)).open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            return False
        if not _is_free(port):
            lock.close()
            return False
        self._held[port] = lock
        return True

    def release(self) -> None:
        for lock in self._held.values():
            lock.close()
        self._held.clear()

    def __enter__(self) -> Ports:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
