"""A directory of this process alone: sockets and files that its children need, gone when it ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

_PREFIX = "kfed-process-"


@contextlib.contextmanager
def directory() -> Iterator[Path]:
    """A new directory, mode 0700, with a short path (a Unix socket's has at most 107 bytes).

    What processes that were killed left behind is removed first.
    """
    base = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
    if not os.access(base, os.W_OK | os.X_OK):
        base = Path(tempfile.gettempdir())
    _remove_leftovers(base)
    made = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
    descriptor = os.open(made, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # says that it is in use, until this process ends in whatever way
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
        os.close(descriptor)


def _remove_leftovers(base: Path) -> None:
    for entry in base.glob(f"{_PREFIX}*"):
        try:
            descriptor = os.open(entry, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            if os.fstat(descriptor).st_uid == os.getuid():
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(entry, ignore_errors=True)
        except OSError:
            continue
        finally:
            os.close(descriptor)
