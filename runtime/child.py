"""`python -m runtime.child MODULE [ARGUMENT...]`: a module as a child that ends with its parent.

The kernel sends SIGKILL when the parent's thread ends. Ctrl-C is blocked here: it reaches the whole process group,
and the parent decides in which order its children end.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys

from runtime.process import PARENT

PR_SET_PDEATHSIG = 1


def main() -> None:
    parent = int(os.environ[PARENT])
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    if os.getppid() != parent:  # it ended before the line above
        raise SystemExit(1)
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
