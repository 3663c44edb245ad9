"""Kafka's command line tools on one side."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tests.fixtures.sides import Said, Side
from tools.java_client import Jvm
from tools.kafka.console import Completed

TIMEOUT = 60.0
# Log lines and stack traces of the clients inside the tools.
_NOISE = re.compile(
    r"\s+at |\d\d:\d\d:\d\d\.\d+ |\[\d{4}-|Caused by|\s+\.\.\. \d+|exit status|testclient\."
    r"|java\.util\.concurrent\.Exec"
)


def _said(text: str) -> list[str]:
    """What a tool itself says; a merged answer's error names the cluster it comes from."""
    return [re.sub(r"\b(?:east|west): ", "", line) for line in text.splitlines() if not _NOISE.match(line)]


@dataclass(frozen=True)
class Shell:
    """`await shell("kafka-topics", "--list")` runs a tool against its side; `shell.say` also tells what it printed."""

    side: Side
    jvm: Jvm
    said: Said
    directory: Path

    async def __call__(self, tool: str, *arguments: str, stdin: str = "", server: bool = True) -> Completed:
        where = ("--bootstrap-server", self.side.bootstrap) if server else ()
        return await self.jvm.tool(tool, *where, *arguments, stdin=stdin, timeout=TIMEOUT)

    async def create(self, topic: str, partitions: int = 1) -> None:
        """A topic that takes writes: the second tool waits for its leaders."""
        await self("kafka-topics", "--create", "--topic", topic, "--partitions", str(partitions))
        (await self("kafka-get-offsets", "--topic", topic)).check()

    async def say(
        self,
        label: str,
        tool: str,
        *arguments: str,
        stdin: str = "",
        server: bool = True,
        mine: bool = False,
        ordered: bool = True,
    ) -> Completed:
        """`mine`: only lines that name something of this side. Not `ordered`: a tool that prints as a map has it."""
        done = await self(tool, *arguments, stdin=stdin, server=server)
        out, err = _said(done.out), _said(done.err)
        if mine:
            out = [line for line in out if self.side.run in line]
        if not ordered:
            out, err = sorted(out, key=self.side.plain), sorted(err, key=self.side.plain)
        self.said(label, Completed(done.code, "\n".join(out), "\n".join(err)))
        return done

    def file(self, name: str, text: str) -> str:
        """A file for a tool to read; its path."""
        path = self.directory / f"{self.side.name}-{name}"
        path.write_text(text)
        return str(path)
