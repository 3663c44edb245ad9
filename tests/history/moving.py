"""Topics moved by the command line, as an operator does it, and processes killed and stopped meanwhile."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import trio

from metadata_service.operations.records import ENDED
from tests.fixtures.kfed import Kfed
from tools.local_federation import Federation
from tools.move_steps import Steps

MOVE = 60.0  # seconds a move may take, with a wide margin
REST = 120.0  # seconds until a move whose processes died has ended or got through
READY = 40.0  # seconds until what was killed is there again
# Around a fault, records sent with acks=0 may be lost without a word: what lies in buffers, and until clients know.
BEFORE, AFTER = 1.0, 6.0

STEPS = ("ship", "caught_up", "hold", "close", "settle", "finish", "release", "announce", "redirect")
"""Those at which a fault may come; drain and switch are over before anybody could act."""


class Move(NamedTuple):
    """Unix seconds. `good`: the command said so."""

    topics: tuple[str, ...]
    target: str
    began: float
    ended: float
    good: bool
    said: str


@dataclass
class Mover:
    """Carries out moves of a federation of two clusters."""

    federation: Federation
    steps: Steps
    made: list[Move] = field(default_factory=list)

    async def where(self, topic: str) -> str:
        """The cluster that serves it."""
        said = await Kfed(self.federation)("topics", topic, "--json")
        return str(_first(said.json)["cluster"])

    async def move(self, topics: Sequence[str], target: str) -> Move:
        """One command; returns when it has."""
        began = time.time()
        with trio.fail_after(MOVE + REST):
            ran = await Kfed(self.federation)("migrate", *topics, "--to", target, "--apply", "--wait", check=False)
        said = f"{ran.status}: {ran.out[-2000:]}{ran.err[-2000:]}"
        self.made.append(Move(tuple(topics), target, began, time.time(), ran.status == 0, said))
        return self.made[-1]

    def free(self, topics: Sequence[str]) -> bool:
        """Whether every earlier move of them that has not ended is one of them alone: then this one takes it over."""
        left = [one for one in self.steps.now.values() if one.step not in ENDED and set(topics) & one.topics.keys()]
        return all(one.topics.keys() <= set(topics) for one in left)

    async def at_rest(self, topics: Sequence[str]) -> None:
        """Until no migration of these topics is before its end or before clients are served by the target.

        Raises:
            AssertionError: one stands still.
        """
        deadline = trio.current_time() + REST
        while left := self.steps.under_way(topics):
            assert trio.current_time() < deadline, f"stands still: {left}"
            await self.steps.changed(1.0)

    def pause_of(self, move: Move) -> tuple[float, float] | None:
        """When writes were held, from the first hold's record to the release's (Unix seconds); None: never."""
        seen = [one for one in self.steps.of(move.topics, move.began) if one.at <= move.ended + 1]
        held = [one.at for one in seen if one.record.hold == "held"]
        released = [one.at for one in seen if one.record.hold in ("released", "announced")]
        return (held[0], released[0]) if held and released else None


def _first(document: object) -> dict[str, object]:
    """The one topic of `kfed topics NAME --json`."""
    assert isinstance(document, dict)
    found = document.get("topics", document)
    one = found[0] if isinstance(found, list) else found
    assert isinstance(one, dict)
    return one


@dataclass
class Faults:
    """Kills and stops processes of one `kfed run`; `windows` says when something was wrong (Unix seconds)."""

    federation: Federation
    chance: random.Random
    windows: list[tuple[float, float]] = field(default_factory=list)
    done: list[str] = field(default_factory=list)

    def pids(self, role: str) -> list[int]:
        """Of the processes with this word in their command line, sorted."""
        found = []
        for task in Path(f"/proc/{self.federation.daemon.pid}/task").iterdir():
            for pid in (task / "children").read_text().split():
                if any(role in word for word in Path(f"/proc/{pid}/cmdline").read_text().split("\0")[:6]):
                    found.append(int(pid))
        return sorted(found)

    async def kill(self, role: str) -> None:
        """kill -9 of one of them; it comes back by itself."""
        pid = self._choose(role)
        if pid is None:
            return
        os.kill(pid, signal.SIGKILL)
        await self._over(lambda: pid not in (now := self.pids(role)) and len(now) > 0)

    async def stop(self, role: str, seconds: float) -> None:
        pid = self.federation.daemon.pid if role == "controller" else self._choose(role)
        if pid is None:
            return
        begin = time.time()
        os.kill(pid, signal.SIGSTOP)
        try:
            await trio.sleep(seconds)  # the fault itself
        finally:
            os.kill(pid, signal.SIGCONT)
        self.windows.append((begin - BEFORE, time.time() + AFTER))

    async def kill_everything(self) -> None:
        """The parent, which is the controller, with all that belongs to it; and `kfed run` again."""
        begin = time.time()
        self.federation.kill()
        await trio.to_thread.run_sync(self.federation.start)
        self.windows.append((begin - BEFORE, time.time() + AFTER))

    def _choose(self, role: str) -> int | None:
        found = self.pids(role)
        return self.chance.choice(found) if found else None

    async def _over(self, condition: object) -> None:
        assert callable(condition)
        begin = time.time()
        deadline = trio.current_time() + READY
        while not condition():
            assert trio.current_time() < deadline, "what was killed did not come back"
            await trio.sleep(0.05)
        self.windows.append((begin - BEFORE, time.time() + AFTER))

    async def one(self, kind: str) -> None:
        """One fault by its name."""
        self.done.append(kind)
        what, _, role = kind.partition(" ")
        if kind == "kill everything":
            await self.kill_everything()
        elif what == "kill":
            await self.kill(role)
        else:
            await self.stop(role, self.chance.uniform(0.5, 6.0))


KINDS = ("kill proxy", "stop proxy", "kill replicator", "stop replicator", "stop controller", "kill everything")
