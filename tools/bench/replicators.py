"""What is compared: kfed's replicator and MirrorMaker 2, each a process that is paused while the other one works.

Both mirror the same topics of `source` to `target`, kfed under the same names, MirrorMaker with its alias of the
source in front (its default).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tools.bench import load
from tools.kafka import get, jvm
from tools.local_cluster import Cluster
from tools.local_cluster.process import start

HEAP = "768m"


class Replication(ABC):
    """A process that mirrors topics, and its CPU time."""

    name: str
    process: subprocess.Popen[bytes]

    @abstractmethod
    def target_of(self, topic: str) -> str:
        """What a source's topic is called on the target."""

    def cpu(self) -> float:
        """User and system seconds, of all threads, since it began."""
        return load.cpu(self.process.pid)

    def pause(self) -> None:
        """It keeps its connections and does nothing."""
        os.kill(self.process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.process.pid, signal.SIGCONT)

    def check(self) -> None:
        """Raises LoadFailed where it has ended."""
        if self.process.poll() is not None:
            raise load.LoadFailed(f"{self.name} ended with {self.process.returncode}")

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


class Kfed(Replication):
    """Ready when it returns."""

    name = "kfed"

    def __init__(self, source: Cluster, target: Cluster, topics: Sequence[str], profile: Path | None = None) -> None:
        """With `profile` it runs under cProfile, and leaves its figures there when it is asked to end."""
        settings = {"source": source.addresses(), "target": target.addresses(), "topics": list(topics)}
        run = ["-m", "tools.bench.mirror_process", json.dumps(settings)]
        if profile is not None:
            run = ["-m", "cProfile", "-o", str(profile), *run]
        self.process = start(
            [sys.executable, *run], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=sys.stderr.buffer
        )
        if self._line() != "copying":
            raise load.LoadFailed("kfed's replicator does not copy")

    def stop(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.resume()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            super().stop()

    def target_of(self, topic: str) -> str:
        return topic

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().decode().strip()

    def ask(self, *words: object) -> Any:
        """See `mirror_process`."""
        assert self.process.stdin is not None
        self.process.stdin.write((" ".join(map(str, words)) + "\n").encode())
        self.process.stdin.flush()
        return json.loads(self._line())


class MirrorMaker(Replication):
    """One that is started; topics that fit `topics` (a pattern) are mirrored some seconds later."""

    name = "MirrorMaker 2"

    def __init__(
        self,
        source: Cluster,
        target: Cluster,
        alias: str,
        topics: str,
        settings: Mapping[str, str] | None = None,
        *,
        tuned: bool = False,
    ) -> None:
        """`alias` is what it calls the source; it also names its own topics, so use one alias once.

        Its consumer and producer have their defaults; `tuned`: larger polls and batches.
        """
        self.alias = alias
        flow = f"{alias}->target"
        values = {
            "clusters": f"{alias}, target",
            f"{alias}.bootstrap.servers": source.bootstrap(),
            "target.bootstrap.servers": target.bootstrap(),
            f"{flow}.enabled": "true",
            f"target->{alias}.enabled": "false",
            f"{flow}.topics": topics,
            "emit.heartbeats.enabled": "false",
            "sync.topic.acls.enabled": "false",
            "replication.factor": "1",
            "offset-syncs.topic.replication.factor": "1",
            "checkpoints.topic.replication.factor": "1",
            "heartbeats.topic.replication.factor": "1",
            "offset.storage.replication.factor": "1",
            "status.storage.replication.factor": "1",
            "config.storage.replication.factor": "1",
            "refresh.topics.interval.seconds": "2",
            "tasks.max": "2",
            # It is paused while the other one works, and must not lose its tasks meanwhile.
            "target.session.timeout.ms": "120000",
            **({f"{alias}.consumer.max.poll.records": "4000", "target.producer.batch.size": "131072"} if tuned else {}),
            **(settings or {}),
        }
        self._directory = tempfile.TemporaryDirectory(prefix="kfed-bench-")
        directory = Path(self._directory.name)
        path = directory / "mm2.properties"
        path.write_text("".join(f"{key} = {value}\n" for key, value in values.items()))
        self.log = directory / "log"
        with self.log.open("wb") as log:
            self.process = start(
                jvm.command(
                    "org.apache.kafka.connect.mirror.MirrorMaker",
                    [str(path)],
                    heap=HEAP,
                    full_jit=True,
                    pom=get.CONNECT,
                ),
                stdout=log,
                stderr=log,
                cwd=directory,
            )

    def target_of(self, topic: str) -> str:
        return f"{self.alias}.{topic}"

    def check(self) -> None:
        if self.process.poll() is not None:
            raise load.LoadFailed(f"MirrorMaker ended: {self.log.read_text(errors='replace')[-3000:]}")

    def stop(self) -> None:
        super().stop()
        self._directory.cleanup()
