"""Child processes: ready, restarted when they die, drained, and gone with their parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from runtime import process
from runtime.process import CannotStart, Child

STEP = 0.02

GOOD = """
    import signal, sys, time
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    print("hello", flush=True)
    print("ready", flush=True)
    time.sleep(60)
"""
STUBBORN = """
    import signal, time
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Writes a module that children can run, and gives its name."""
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{Path(__file__).parents[2]}")

    def write(text: str) -> str:
        (tmp_path / "a_child.py").write_text(textwrap.dedent(text))
        return "a_child"

    return write


@asynccontextmanager
async def running(child: Child) -> AsyncIterator[None]:
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(child.run)
            yield
            nursery.cancel_scope.cancel()


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(20):
        while not condition():  # noqa: ASYNC110 (another process decides)
            await trio.sleep(STEP)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


async def test_a_child_becomes_ready_and_drains(module: Callable[[str], str]) -> None:
    child = Child("one", [module(GOOD)])
    async with running(child):
        await child.wait_ready()
        pid = child.pid
        assert pid is not None
        assert os.getpgid(pid) == os.getpgid(0), "it stays in its parent's process group"
        await child.drain(5)
        assert not alive(pid)
        assert child.exit_status == 0
    assert child.restarts == 0


async def test_a_killed_child_is_started_again(module: Callable[[str], str]) -> None:
    child = Child("one", [module(GOOD)])
    states: list[str] = []
    child.notify(lambda one: states.append(one.state))
    async with running(child):
        await child.wait_ready()
        first = child.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await until(lambda: child.state == "ready" and child.pid != first)
        assert child.restarts == 1
        assert child.exit_status == -signal.SIGKILL
        last = child.pid
        assert last is not None
    assert not alive(last), "cancelling kills"
    assert states == ["starting", "ready", "backing off", "starting", "ready", "ended"]


async def test_a_child_that_ignores_sigterm_is_killed(module: Callable[[str], str]) -> None:
    child = Child("one", [module(STUBBORN)])
    async with running(child):
        await child.wait_ready()
        before = trio.current_time()
        await child.drain(0.3)
        await until(lambda: child.pid is None)
        assert trio.current_time() - before < 5
    assert child.restarts == 0


async def test_pauses_between_restarts_grow(module: Callable[[str], str]) -> None:
    child = Child("one", [module("raise SystemExit(1)")], first_pause=0.05)
    async with running(child):
        await until(lambda: child.restarts >= 3)
        assert child.exit_status == 1


async def test_draining_while_it_waits_to_start_again(module: Callable[[str], str]) -> None:
    child = Child("one", [module("raise SystemExit(1)")], first_pause=30)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(child.run)
            await until(lambda: child.state == "backing off")
            await child.drain(1)
    assert child.state == "ended"


@pytest.mark.parametrize(("status", "must_start"), [(2, False), (1, True)])
async def test_what_cannot_start_is_not_tried_again(
    module: Callable[[str], str], status: int, must_start: bool
) -> None:
    child = Child("one", [module(f"raise SystemExit({status})")], must_start=must_start)
    with trio.fail_after(20), pytest.raises(CannotStart) as caught:
        await child.run()
    assert caught.value.status == status
    assert child.restarts == 0


async def test_one_that_is_never_ready_is_started_again(module: Callable[[str], str]) -> None:
    child = Child("one", [module("import time; time.sleep(60)")], ready_timeout=0.5)
    async with running(child):
        await until(lambda: child.restarts >= 1)
        assert child.exit_status == -signal.SIGKILL


def test_a_child_ends_with_its_killed_parent(module: Callable[[str], str], tmp_path: Path) -> None:
    name = module(GOOD)
    parent = textwrap.dedent(
        f"""
        import trio
        from runtime.process import Child
        async def main():
            child = Child("one", [{name!r}])
            async with trio.open_nursery() as nursery:
                nursery.start_soon(child.run)
                await child.wait_ready()
                print(child.pid, flush=True)
        trio.run(main)
        """
    )
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as started:
        assert started.stdout is not None
        pid = int(started.stdout.readline())
        assert alive(pid)
        started.kill()
    trio.run(until, lambda: not alive(pid))


async def test_the_first_signal_asks_to_stop() -> None:
    async with trio.open_nursery() as nursery:
        stop = await nursery.start(process.watch_signals)
        assert not stop.is_set()
        os.kill(os.getpid(), signal.SIGTERM)
        with trio.fail_after(5):
            await stop.wait()
        nursery.cancel_scope.cancel()


def test_the_second_signal_ends_at_once() -> None:
    text = textwrap.dedent(
        """
        import trio
        from runtime.process import watch_signals
        async def main():
            async with trio.open_nursery() as nursery:
                stop = await nursery.start(watch_signals)
                print("ready", flush=True)
                await stop.wait()
                print("draining", flush=True)
                await trio.sleep(60)
        trio.run(main)
        """
    )
    with subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True) as started:
        assert started.stdout is not None
        assert started.stdout.readline() == "ready\n"
        started.send_signal(signal.SIGINT)
        assert started.stdout.readline() == "draining\n"
        started.send_signal(signal.SIGINT)
        assert started.wait(10) == 128 + signal.SIGINT
