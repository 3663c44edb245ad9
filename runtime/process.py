"""Processes: ending on signals, and children that are supervised and cannot outlive their parent.

What a role's process does:

    async with trio.open_nursery() as nursery:
        stop = await nursery.start(process.watch_signals)   # a trio.Event, set by SIGTERM or the first Ctrl-C
        ...                                                 # bind, load the view
        process.say_ready()
        await stop.wait()
        ...                                                 # drain, at most DRAIN seconds

A parent starts its children with `Child`; they run under `runtime.child`, so that the kernel kills them when the
parent ends in whatever way, and a Ctrl-C, which reaches the whole process group, is left to the parent to pass on.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Literal

import trio

from runtime import logging
from runtime.clock import boottime

log = logging.get(__name__)

DRAIN = 10.0
"""Seconds between SIGTERM and the end, at most."""

READY = "ready"
"""The line on stdout that says: clients can connect."""

WRONG_CONFIGURATION = 2
"""The exit status of a process that cannot start with this configuration: starting it again would not help."""

PARENT = "KFED_PARENT_PID"
"""Set in the environment of supervised children."""

State = Literal["starting", "ready", "backing off", "draining", "ended"]


def say_ready() -> None:
    """Print the ready line. A closed stdout is no reason to stop."""
    try:
        sys.stdout.flush()
        # One write: an unbuffered print makes two, and a log line of another process may come between.
        os.write(sys.stdout.fileno(), f"{READY}\n".encode())
    except (OSError, ValueError):
        pass


def first_cause(error: BaseException) -> BaseException:
    """The first exception inside groups of groups: what to tell a user; the error itself where it is no group."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def supervised() -> bool:
    """Whether this process was started by `Child`."""
    return PARENT in os.environ


async def watch_signals(
    *, on_second: Callable[[], None] | None = None, task_status: trio.TaskStatus[trio.Event] = trio.TASK_STATUS_IGNORED
) -> None:
    """Runs until cancelled. The started value is an Event that the first SIGTERM or SIGINT sets.

    A second one calls `on_second`, and ends the process at once. A supervised child leaves SIGINT to its parent.
    """
    wanted = (signal.SIGTERM,) if supervised() else (signal.SIGTERM, signal.SIGINT)
    stop = trio.Event()
    with trio.open_signal_receiver(*wanted) as signals:
        task_status.started(stop)
        async for number in signals:
            if stop.is_set():
                if on_second is not None:
                    on_second()
                os._exit(128 + number)
            log.info("stopping", signal=signal.Signals(number).name)
            stop.set()


class Child:
    """A child process: started, watched, started again with a growing pause, and drained.

    `argv` is what follows `python -m`. The child prints the ready line on its stdout; everything else it prints there
    is passed on. It is ready within `ready_timeout` seconds, or it is killed and started again. With `must_start`, a
    first start that fails in any way is final.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        *,
        ready_timeout: float = 60.0,
        first_pause: float = 0.1,
        must_start: bool = False,
    ) -> None:
        self.name = name
        self.argv = tuple(argv)
        self.state: State = "starting"
        self.restarts = 0
        self.started_at = 0.0  # boottime
        self.exit_status: int | None = None  # of the last one that ended; negative: the signal that ended it
        self._ready_timeout = ready_timeout
        self._first_pause = first_pause
        self._must_start = must_start
        self._process: subprocess.Popen[bytes] | None = None
        self._ready = trio.Event()
        self._ever_ready = trio.Event()
        self._stop = trio.Event()
        self._ended = trio.Event()
        self._changed: list[Callable[[Child], None]] = []

    @property
    def pid(self) -> int | None:
        """None while it is not running."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    async def wait_ready(self) -> None:
        """Returns when it was ready for the first time."""
        await self._ever_ready.wait()

    def notify(self, changed: Callable[[Child], None]) -> None:
        """`changed` is called whenever the state changes."""
        self._changed.append(changed)

    def kill(self) -> None:
        """SIGKILL. `run` starts it again."""
        if self.pid is not None:
            os.kill(self.pid, signal.SIGKILL)

    def _enter(self, state: State) -> None:
        self.state = state
        for changed in self._changed:
            changed(self)

    async def run(self) -> None:
        """Keeps it running until cancelled; then it is killed (call `drain` before to end it in order).

        Raises:
            CannotStart: it ended before it was ever ready, with status 2 or where it must start.
        """
        pause = self._first_pause
        try:
            while not self._stop.is_set():
                begin = boottime()
                await self._run_once()
                if self._stop.is_set():
                    return
                if not self._ever_ready.is_set() and (self._must_start or self.exit_status == WRONG_CONFIGURATION):
                    raise CannotStart(self.name, self.exit_status)
                if boottime() - begin > 30:
                    pause = self._first_pause
                self._enter("backing off")
                self.restarts += 1
                log.warning("a child process ended", child=self.name, status=self.exit_status, again_in=round(pause, 1))
                with trio.move_on_after(pause):
                    await self._stop.wait()
                pause = min(pause * 2, 10.0)
        finally:
            self.kill()
            if self._process is not None:
                self._process.wait()
            self._enter("ended")
            self._ended.set()

    async def _run_once(self) -> None:
        self._ready = trio.Event()
        self._enter("starting")
        # From this thread, and not through trio: the kernel's parent-death signal follows the thread that forked.
        process = self._process = subprocess.Popen(  # noqa: ASYNC220
            [sys.executable, "-P", "-m", "runtime.child", *self.argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            env={**os.environ, PARENT: str(os.getpid())},
        )
        self.started_at = boottime()
        assert process.stdout is not None
        with process.stdout, trio.CancelScope() as gone:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch_ready)
                nursery.start_soon(self._read_output, process.stdout.fileno())
                await self._wait_exit(process)
                gone.cancel()
        self.exit_status = process.returncode

    async def _watch_ready(self) -> None:
        with trio.move_on_after(self._ready_timeout):
            await self._ready.wait()
            return
        log.error("a child process did not become ready in time", child=self.name, seconds=self._ready_timeout)
        self.kill()

    async def _read_output(self, descriptor: int) -> None:
        rest = b""
        while True:
            await trio.lowlevel.wait_readable(descriptor)
            data = os.read(descriptor, 65536)
            if not data:
                return
            *lines, rest = (rest + data).split(b"\n")
            rest = rest[-65536:]
            for line in lines:
                text = line.decode(errors="replace")
                if text == READY and not self._ready.is_set():
                    self._enter("ready")
                    self._ready.set()
                    self._ever_ready.set()
                elif text:
                    log.info("output of a child process", child=self.name, text=text)

    @staticmethod
    async def _wait_exit(process: subprocess.Popen[bytes]) -> None:
        descriptor = os.pidfd_open(process.pid)
        try:
            while not select.select([descriptor], [], [], 0)[0]:
                await trio.lowlevel.wait_readable(descriptor)
        finally:
            os.close(descriptor)
        process.wait()

    async def drain(self, seconds: float) -> None:
        """SIGTERM; SIGKILL where it has not ended after `seconds`. It is not started again."""
        self._stop.set()
        if self._process is None or self.pid is None:
            return
        self._enter("draining")
        self._process.send_signal(signal.SIGTERM)
        with trio.move_on_after(seconds):
            await self._ended.wait()
            return
        log.warning("a child process did not end in time and is killed", child=self.name, seconds=round(seconds, 1))
        self.kill()


class CannotStart(Exception):
    """A child process said, on stderr and in its own words, why it cannot start; trying again would not help."""

    def __init__(self, child: str, status: int | None) -> None:
        super().__init__(f"{child} could not start (exit status {status})")
        self.child = child
        self.status = status
