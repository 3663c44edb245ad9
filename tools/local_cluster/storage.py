"""Formats a broker's directory.

Kafka's own tool does it, once for each kind of cluster: what it writes depends on the release and on the SCRAM users,
and the few ids in meta.properties are written here. A broker then starts with one JVM instead of two.
"""

from __future__ import annotations

import functools
import hashlib
import shutil
import subprocess
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from pathlib import Path

from tools.kafka import get, jvm
from tools.local_cluster.properties import render


def random_id() -> str:
    """An id as Kafka writes them; it refuses those that start with a dash."""
    while True:
        made = urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        if not made.startswith("-"):
            return made


def _format(users: Mapping[str, str], directory: Path) -> None:
    settings = directory / "format.properties"
    settings.write_text(
        render(
            {
                "process.roles": "broker,controller",
                "node.id": "1",
                "controller.quorum.voters": "1@127.0.0.1:1",
                "controller.listener.names": "CONTROLLER",
                "listeners": "PLAINTEXT://127.0.0.1:2,CONTROLLER://127.0.0.1:1",
                "log.dirs": str(directory / "data"),
            }
        )
    )
    scram = [
        argument
        for name, password in sorted(users.items())
        for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512")
        for argument in ("--add-scram", f"{mechanism}=[name={name},password={password}]")
    ]
    done = subprocess.run(
        jvm.command(
            "kafka.tools.StorageTool", ["format", "--config", str(settings), "--cluster-id", random_id(), *scram]
        ),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"formatting failed:\n{done.stdout}")


def format_directory(directory: Path, *, cluster_id: str, node_id: int, users: Mapping[str, str]) -> None:
    """Makes `directory` an empty broker's log directory."""
    key = hashlib.sha256(repr((get.libs().name, sorted(users.items()))).encode()).hexdigest()[:12]
    template = get.build_once(get.cache() / f"formatted-{key}", functools.partial(_format, users))
    shutil.copytree(template / "data", directory)
    (directory / "meta.properties").write_text(
        render({"version": "1", "cluster.id": cluster_id, "node.id": str(node_id), "directory.id": random_id()})
    )
