"""Child processes that cannot outlive us, however we end.

Linux kills a child when the *thread* that started it ends (PR_SET_PDEATHSIG), so all are started by one thread that
lives as long as this process. They stay in our process group: Ctrl-C reaches them too.
"""

from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import IO

Popen = subprocess.Popen[bytes]


class _Starter:
    def __init__(self) -> None:
        self._jobs: SimpleQueue[tuple[Callable[[], Popen], Future[Popen]]] = SimpleQueue()
        # A daemon: nothing waits for it, and it ends only with the process.
        Thread(target=self._run, name="process-starter", daemon=True).start()

    def _run(self) -> None:
        while True:
            job, result = self._jobs.get()
            try:
                result.set_result(job())
            except BaseException as error:
                result.set_exception(error)

    def start(self, job: Callable[[], Popen]) -> Popen:
        result: Future[Popen] = Future()
        self._jobs.put((job, result))
        return result.result()


@functools.cache
def _starter(pid: int) -> _Starter:
    # Keyed by pid: a fork has no threads, and needs a starter of its own.
    return _Starter()


def start(
    argv: Sequence[str],
    *,
    stdin: int = subprocess.DEVNULL,
    stdout: int | IO[bytes] = subprocess.DEVNULL,
    stderr: int | IO[bytes] = subprocess.DEVNULL,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Popen:
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise FileNotFoundError("setpriv is missing (Debian: util-linux)")

    def job() -> Popen:
        return subprocess.Popen(
            [setpriv, "--pdeathsig", "KILL", "--", *argv],
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            cwd=cwd,
            env=None if environment is None else {**os.environ, **environment},
        )

    return _starter(os.getpid()).start(job)


class Daemon:
    """A server in a process of its own, with its output in a file, that can be killed, paused and started again."""

    def __init__(
        self, argv: Sequence[str], *, log: Path, cwd: Path | None = None, environment: Mapping[str, str] | None = None
    ) -> None:
        self.argv = tuple(argv)
        self.log = log
        self._cwd = cwd
        self._environment = environment
        self._process: Popen | None = None
        self.paused = False

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        if self._process is None:
            raise RuntimeError(f"not started: {self.argv[0]}")
        return self._process.pid

    def start(self) -> None:
        if self.running:
            raise RuntimeError(f"already running: {self.argv[0]} (pid {self.pid})")
        with self.log.open("ab") as log:
            self._process = start(
                self.argv, stdout=log, stderr=subprocess.STDOUT, cwd=self._cwd, environment=self._environment
            )

    def _end(self, number: signal.Signals, timeout: float) -> None:
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(number)
            # A paused process acts on no signal but SIGKILL.
            self._process.send_signal(signal.SIGCONT)
            self.paused = False
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def kill(self) -> None:
        """kill -9; returns when it is gone."""
        self._end(signal.SIGKILL, 10)

    def terminate(self, timeout: float = 20) -> None:
        """SIGTERM, so that it shuts down in order; killed if that takes too long."""
        self._end(signal.SIGTERM, timeout)

    def pause(self) -> None:
        """SIGSTOP: it keeps its connections and its ports, and answers nothing."""
        os.kill(self.pid, signal.SIGSTOP)
        self.paused = True

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)
        self.paused = False

    def last_words(self, lines: int = 30) -> str:
        if not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
