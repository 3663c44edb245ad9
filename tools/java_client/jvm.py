"""The JVM and what can be opened in it."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar

import trio

from tools.java_client.clients import Admin, Client, Consumer, Producer, ShareConsumer, Streams
from tools.java_client.wire import Conversation
from tools.kafka.console import MAIN_CLASSES, Completed

AnyClient = TypeVar("AnyClient", bound=Client)
CLOSE_SECONDS = 15.0


class Jvm:
    """Blocking to make and to close; everything else is for trio, in any number of runs."""

    def __init__(
        self,
        log: Path | None = None,
        *,
        heap: str = "512m",
        full_jit: bool = False,
        properties: Mapping[str, str] | None = None,
    ) -> None:
        """`properties` are the JVM's system properties."""
        self._temporary = Path(tempfile.mkdtemp(prefix="kfed-java-")) if log is None else None
        self._conversation = Conversation(
            log or Path(self._temporary or ".") / "java.log", heap=heap, full_jit=full_jit, properties=properties
        )
        self._names = itertools.count(1)

    @property
    def pid(self) -> int:
        return self._conversation.pid

    @property
    def log(self) -> Path:
        return self._conversation.log

    def close(self) -> None:
        self._conversation.close()
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)

    def __enter__(self) -> Jvm:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- command line tools

    async def tool(self, tool: str, *arguments: str, stdin: str = "", timeout: float = 60) -> Completed:
        """Runs one of Kafka's command line tools here; several may run at once."""
        with trio.fail_after(timeout):
            return Completed(**await self._conversation.ask(_tool(tool, arguments, stdin)))

    def tool_blocking(self, tool: str, *arguments: str, stdin: str = "", timeout: float = 60) -> Completed:
        return Completed(**self._conversation.ask_blocking(_tool(tool, arguments, stdin), timeout))

    # -- clients

    @asynccontextmanager
    async def _opened(self, made: type[AnyClient], kind: str, config: Mapping[str, str]) -> AsyncIterator[AnyClient]:
        client = made(self._conversation, f"{kind}-{next(self._names)}")
        await self._conversation.ask({"do": "open", "client": client.name, "kind": kind, "config": dict(config)})
        try:
            yield client
        finally:
            with trio.move_on_after(CLOSE_SECONDS, shield=True):
                await self._conversation.ask({"do": "close", "client": client.name})

    def producer(
        self, config: Mapping[str, str], *, transactional_id: str | None = None, **settings: str
    ) -> AbstractAsyncContextManager[Producer]:
        """`settings`: further properties, with underscores for dots (`acks="1"`, `compression_type="zstd"`)."""
        own = {} if transactional_id is None else {"transactional.id": transactional_id}
        return self._opened(Producer, "producer", {**config, **own, **_dotted(settings)})

    def consumer(
        self,
        config: Mapping[str, str],
        *,
        group: str | None = None,
        protocol: Literal["classic", "consumer"] = "classic",
        cooperative: bool = False,
        instance_id: str | None = None,
        read_committed: bool = False,
        auto_commit: bool = False,
        start: Literal["earliest", "latest", "none"] = "earliest",
        **settings: str,
    ) -> AbstractAsyncContextManager[Consumer]:
        own = {
            "enable.auto.commit": str(auto_commit).lower(),
            "auto.offset.reset": start,
            "isolation.level": "read_committed" if read_committed else "read_uncommitted",
            "group.protocol": protocol,
            # Else it looks for new topics and partitions every five minutes only.
            "metadata.max.age.ms": "1000",
        }
        if group is not None:
            own["group.id"] = group
        if instance_id is not None:
            own["group.instance.id"] = instance_id
        if protocol == "classic":
            own |= {"session.timeout.ms": "10000", "heartbeat.interval.ms": "500"}
        if cooperative:
            own["partition.assignment.strategy"] = "org.apache.kafka.clients.consumer.CooperativeStickyAssignor"
        return self._opened(Consumer, "consumer", {**config, **own, **_dotted(settings)})

    def share_consumer(
        self, config: Mapping[str, str], *, group: str, explicit: bool = False, **settings: str
    ) -> AbstractAsyncContextManager[ShareConsumer]:
        """A new share group starts at the end; set the group's `share.auto.offset.reset` to begin earlier."""
        own = {"group.id": group, "share.acknowledgement.mode": "explicit" if explicit else "implicit"}
        return self._opened(ShareConsumer, "share", {**config, **own, **_dotted(settings)})

    def streams(
        self,
        config: Mapping[str, str],
        *,
        application_id: str,
        protocol: Literal["classic", "streams"] = "streams",
        **settings: str,
    ) -> AbstractAsyncContextManager[Streams]:
        own = {
            "application.id": application_id,
            "group.protocol": protocol,
            "auto.offset.reset": "earliest",
            "commit.interval.ms": "200",
            "statestore.cache.max.bytes": "0",
            "num.stream.threads": "1",
            "state.dir": str(self.log.parent / f"streams-{application_id}"),
        }
        return self._opened(Streams, "streams", {**config, **own, **_dotted(settings)})

    def admin(self, config: Mapping[str, str], **settings: str) -> AbstractAsyncContextManager[Admin]:
        return self._opened(Admin, "admin", {**config, **_dotted(settings)})


def _dotted(settings: Mapping[str, str]) -> dict[str, str]:
    return {name.replace("_", "."): value for name, value in settings.items()}


def _tool(tool: str, arguments: tuple[str, ...], stdin: str) -> dict[str, Any]:
    return {
        "do": "tool",
        "arguments": {"main": MAIN_CLASSES[tool], "arguments": list(arguments), "stdin": stdin},
    }
