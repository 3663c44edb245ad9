"""The workers of this instance: child processes, each with a private endpoint for its metrics and status."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import msgspec
import trio

from runtime import endpoint, logging
from runtime.metrics import Metrics
from runtime.process import Child

log = logging.get(__name__)

SCRAPE = 3.0  # seconds a worker may take to answer


def counted(child: Child, metrics: Metrics) -> Child:
    """The child, with its state and its restarts in the metrics."""

    def changed(child: Child) -> None:
        metrics.child_up[child.name] = child.state == "ready"
        metrics.child_restarts[child.name] = child.restarts

    child.notify(changed)
    return child


class Workers:
    """`count` workers of a role; `directory` is private to this process, for their sockets and their configuration."""

    def __init__(
        self,
        count: int,
        instance: str,
        configuration: Path,
        directory: Path,
        metrics: Metrics,
        role: Literal["proxy", "replicator"] = "proxy",
    ) -> None:
        self.children: list[Child] = []
        self._sockets: list[Path] = []
        self._metrics = metrics
        for number in range(count):
            socket = directory / f"{role}-{number}.sock"
            arguments = ("--config", str(configuration), "--instance", instance, "--worker", str(number))
            child = Child(f"{role}-{number}", [role, *arguments, "--endpoint", str(socket)])
            self.children.append(counted(child, metrics))
            self._sockets.append(socket)

    @property
    def ready(self) -> int:
        """How many are ready at this moment."""
        return sum(child.state == "ready" for child in self.children)

    async def run(self) -> None:
        """Keeps them running until cancelled or drained. Raises CannotStart (runtime.process)."""
        async with trio.open_nursery() as nursery:
            for child in self.children:
                nursery.start_soon(child.run)

    async def wait_ready(self) -> None:
        """Until each has been ready once."""
        for child in self.children:
            await child.wait_ready()

    async def drain(self, seconds: float) -> None:
        """All at the same time."""
        async with trio.open_nursery() as nursery:
            for child in self.children:
                nursery.start_soon(child.drain, seconds)

    async def metrics(self) -> list[bytes]:
        """The Prometheus texts of those that answer; who does not is counted."""
        texts = await self._ask("/metrics")
        for number, child in enumerate(self.children):
            if child.started_at:  # some are begun only when there is work
                self._metrics.worker_scraped[child.name] = number in texts
        return list(texts.values())

    async def status(self) -> list[dict[str, Any]]:
        """One entry a worker: `worker`, `pid`, `state`, `restarts`, and under `live` what the worker says itself."""
        said = await self._ask("/status")
        return [
            {
                "worker": number,
                "pid": child.pid,
                "state": child.state,
                "restarts": child.restarts,
                "live": msgspec.json.decode(said[number]) if number in said else None,
            }
            for number, child in enumerate(self.children)
        ]

    async def _ask(self, target: str) -> dict[int, bytes]:
        answers: dict[int, bytes] = {}

        async def ask(number: int, store: Callable[[int, bytes], None]) -> None:
            try:
                store(number, await endpoint.fetch(self._sockets[number], target, timeout=SCRAPE))
            except endpoint.EndpointError as error:
                log.debug("a worker does not answer", worker=number, error=str(error))

        async with trio.open_nursery() as nursery:
            for number, child in enumerate(self.children):
                if child.state == "ready":
                    nursery.start_soon(partial(ask, number, answers.__setitem__))
        return dict(sorted(answers.items()))
