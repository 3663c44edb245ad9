"""One conversation with the Java process: JSON lines, requests answered in any order.

The process and the thread that reads its answers outlive a single trio run, so one JVM serves a whole test session.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import trio

from tools.java_client import build
from tools.kafka import jvm
from tools.local_cluster import process

Answer = dict[str, Any]


class JavaError(Exception):
    """What a Java call threw. `name` and `code` are the protocol's where it has one for it, else "" and -1."""

    def __init__(self, kind: str, message: str, name: str = "", code: int = -1, retriable: bool = False) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind = kind
        self.message = message
        self.name = name
        self.code = code
        self.retriable = retriable


def failure(error: dict[str, Any]) -> JavaError:
    return JavaError(**error)


class Conversation:
    def __init__(
        self, log: Path, *, heap: str = "512m", full_jit: bool = False, properties: Mapping[str, str] | None = None
    ) -> None:
        self.log = log
        argv = jvm.command(
            build.MAIN, heap=heap, full_jit=full_jit, extra_classpath=[build.classes()], properties=properties
        )
        with log.open("ab") as errors:
            self._process = process.start(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors)
        self._ids = itertools.count(1)
        self._lock = threading.Lock()
        self._waiting: dict[int, Callable[[Answer], None]] = {}
        self._ended = False
        self._reader = threading.Thread(target=self._read, name="java-client", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def _read(self) -> None:
        answers = self._process.stdout
        assert answers is not None
        for line in answers:
            answer: Answer = json.loads(line)
            with self._lock:
                deliver = self._waiting.pop(answer["id"], None)
            if deliver is not None:
                deliver(answer)
        with self._lock:
            self._ended = True
            left, self._waiting = list(self._waiting.values()), {}
        for deliver in left:
            deliver({"error": {"kind": "Ended", "message": f"the JVM ended, see {self.log}"}})

    def _ask(self, deliver: Callable[[Answer], None], request: dict[str, Any]) -> int:
        number = next(self._ids)
        line = json.dumps({"id": number, **request}).encode() + b"\n"
        requests = self._process.stdin
        assert requests is not None
        with self._lock:
            if self._ended:
                raise JavaError("Ended", f"the JVM ended, see {self.log}")
            self._waiting[number] = deliver
            requests.write(line)
            requests.flush()
        return number

    @staticmethod
    def _result(answer: Answer) -> Any:
        if "error" in answer:
            raise failure(answer["error"])
        return answer["result"]

    async def ask(self, request: dict[str, Any]) -> Any:
        """From trio. A cancelled wait leaves the call going on in Java."""
        token = trio.lowlevel.current_trio_token()
        arrived = trio.Event()
        answers: list[Answer] = []

        def deliver(answer: Answer) -> None:
            answers.append(answer)
            try:
                token.run_sync_soon(arrived.set)
            except trio.RunFinishedError:
                pass

        number = self._ask(deliver, request)
        try:
            await arrived.wait()
        finally:
            with self._lock:
                self._waiting.pop(number, None)
        return self._result(answers[0])

    def ask_blocking(self, request: dict[str, Any], timeout: float) -> Any:
        future: Future[Answer] = Future()
        self._ask(future.set_result, request)
        return self._result(future.result(timeout))

    def close(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(5)
        if self._process.stdout is not None:
            self._process.stdout.close()
