"""A real etcd cluster of several members."""

from __future__ import annotations

import socket
import subprocess
import time
from typing import TYPE_CHECKING, Self

from tools.local_cluster import etcd
from tools.local_cluster.ports import Ports
from tools.local_cluster.process import Daemon

if TYPE_CHECKING:
    from pathlib import Path

START_SECONDS = 30.0


class EtcdCluster:
    """`members` can be killed, paused and started again one by one."""

    def __init__(self, directory: Path, size: int) -> None:
        self._ports = Ports(2 * size)
        clients, peers = self._ports.numbers[:size], self._ports.numbers[size:]
        self.endpoints = tuple(f"http://127.0.0.1:{port}" for port in clients)
        initial = ",".join(f"m{number}=http://127.0.0.1:{port}" for number, port in enumerate(peers))
        self.members = [
            Daemon(
                [
                    etcd.program("etcd"),
                    f"--name=m{number}",
                    f"--data-dir={directory / f'm{number}'}",
                    f"--listen-client-urls={self.endpoints[number]}",
                    f"--advertise-client-urls={self.endpoints[number]}",
                    f"--listen-peer-urls=http://127.0.0.1:{peers[number]}",
                    f"--initial-advertise-peer-urls=http://127.0.0.1:{peers[number]}",
                    f"--initial-cluster={initial}",
                    "--log-level=warn",
                    "--unsafe-no-fsync",
                ],
                log=directory / f"m{number}.log",
            )
            for number in range(size)
        ]

    def wait_ready(self) -> None:
        """Every member listens, and the cluster answers through each."""
        deadline = time.monotonic() + START_SECONDS
        command = [etcd.program("etcdctl"), f"--endpoints={','.join(self.endpoints)}", "endpoint", "health"]
        while not self._listening() or subprocess.run(command, capture_output=True, check=False).returncode:
            if time.monotonic() > deadline:
                raise TimeoutError("\n".join(member.last_words() for member in self.members))
            time.sleep(0.1)

    def _listening(self) -> bool:
        for endpoint in self.endpoints:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", int(endpoint.rpartition(":")[2]))):
                    return False
        return True

    def __enter__(self) -> Self:
        for member in self.members:
            member.start()
        self.wait_ready()
        return self

    def __exit__(self, *error: object) -> None:
        for member in self.members:
            member.kill()
        self._ports.release()
