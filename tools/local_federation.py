"""`kfed run` over local clusters, as a process of its own, from settings.

    with running(east, west) as clusters, run_federation(clusters) as federation:
        Producer(federation.librdkafka())

Topics, groups and transactional ids whose names end in "-west" live on west, where there is such a cluster; all else on
the first one. What else is wanted is given by the configuration file's keys, and laid over what is made here:
`run_federation(clusters, proxy={"workers": 1})`.
Calls block: from trio go through `trio.to_thread.run_sync`.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from tools.local_cluster.cluster import Cluster, Setting
from tools.local_cluster.ports import Ports
from tools.local_cluster.process import Daemon

START_SECONDS = 60.0
_POLL_SECONDS = 0.03
_BROKER_PORTS = 16

Values = Mapping[str, Any]


def program() -> str:
    """The console script of the environment this runs in."""
    return str(Path(sys.executable).parent / "kfed")


def cluster_settings(cluster: Cluster) -> dict[str, Any]:
    """How the federation reaches a cluster: by its first listener, as the cluster's administrator."""
    made: dict[str, Any] = {"bootstrap": cluster.addresses()}
    client = cluster.librdkafka()
    if "ssl.ca.location" in client:
        made["tls"] = {"ca": client["ssl.ca.location"]}
    if "sasl.username" in client:
        made["sasl"] = {
            "mechanism": client["sasl.mechanism"],
            "username": client["sasl.username"],
            "password": client["sasl.password"],
        }
    return made


def laid_over(base: Values, wanted: Values) -> dict[str, Any]:
    """`base` with `wanted` in it: mappings key by key, everything else as a whole. None takes a key away."""
    made = dict(base)
    for key, value in wanted.items():
        if value is None:
            made.pop(key, None)
        elif isinstance(value, Mapping) and isinstance(made.get(key), Mapping):
            made[key] = laid_over(made[key], value)
        else:
            made[key] = value
    return made


class Federation:
    """One `kfed run`: `start`, `stop`, `kill`, and again on the same ports and the same store."""

    def __init__(self, clusters: Iterable[Cluster], directory: Path, settings: Values) -> None:
        known = {cluster.name: cluster for cluster in clusters}
        self.directory = directory
        # All in one row, so that no other process's ports lie among the virtual brokers'.
        self._ports = Ports(_BROKER_PORTS + 2, consecutive=True)
        self.admin_port, self.port, *brokers = self._ports.numbers
        first = next(iter(known))
        west = dict.fromkeys(("topics", "groups", "transactional_ids"), ".*-west")
        rules = [{**west, "cluster": "west"}] if "west" in known else []
        listener = {
            "name": "main",
            "bind": "127.0.0.1",
            "port": self.port,
            "advertised": "127.0.0.1",
            "broker_ports": f"{brokers[0]}-{brokers[-1]}",
        }
        self.settings = laid_over(
            {
                "federation": "demo",
                "store": {"kind": "embedded", "path": str(directory / "state")},
                "clusters": {name: cluster_settings(cluster) for name, cluster in known.items()},
                "placement": {"default": first, "rules": rules},
                "proxy": {"listeners": [listener], "workers": 2},
                "admin": {"bind": "127.0.0.1", "port": self.admin_port},
            },
            settings,
        )
        self.configuration = directory / "kfed.yaml"
        self.write()
        self.daemon = Daemon(
            [program(), "run", "-c", str(self.configuration)],
            log=directory / "kfed.log",
            cwd=directory,
            environment={"PYTHONUNBUFFERED": "1"},
        )
        self._read_from = 0

    def write(self, **settings: Any) -> None:
        """Writes the configuration file, with further changes."""
        self.settings = laid_over(self.settings, settings)
        self.configuration.write_text(yaml.safe_dump(self.settings, sort_keys=False))

    # -- life

    def launch(self) -> None:
        log = self.daemon.log
        self._read_from = log.stat().st_size if log.exists() else 0
        self.daemon.start()

    def wait_ready(self, timeout: float = START_SECONDS) -> None:
        """Until it has printed `ready`."""
        deadline = time.monotonic() + timeout
        while b"ready" not in self.daemon.log.read_bytes()[self._read_from :].splitlines():
            if not self.daemon.running:
                raise RuntimeError(f"kfed ended:\n{self.daemon.last_words(60)}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"kfed is not ready after {timeout} s:\n{self.daemon.last_words(60)}")
            time.sleep(_POLL_SECONDS)

    def start(self) -> None:
        self.launch()
        self.wait_ready()

    def stop(self) -> None:
        """SIGTERM, as an operator would; `start` goes on with the same store."""
        self.daemon.terminate()

    def kill(self) -> None:
        self.daemon.kill()

    def close(self) -> None:
        """Stops it and gives the ports back; the directory stays."""
        self.stop()
        self._ports.release()

    # -- how to reach it

    @property
    def admin(self) -> str:
        return f"http://127.0.0.1:{self.admin_port}"

    def ask(self, path: str, timeout: float = 10) -> Any:
        """What the admin API answers to GET `path`, decoded where it is JSON."""
        with urllib.request.urlopen(self.admin + path, timeout=timeout) as answer:
            text = answer.read().decode()
            return json.loads(text) if "json" in answer.headers.get("content-type", "") else text

    def bootstrap(self) -> str:
        return f"127.0.0.1:{self.port}"

    def librdkafka(self) -> dict[str, Setting]:
        """A client's configuration, for librdkafka's names."""
        return {"bootstrap.servers": self.bootstrap(), "security.protocol": "PLAINTEXT"}

    def java(self) -> dict[str, str]:
        """The same, for the Java clients' names."""
        return {"bootstrap.servers": self.bootstrap(), "security.protocol": "PLAINTEXT"}


@contextmanager
def run_federation(
    clusters: Mapping[str, Cluster] | Iterable[Cluster], /, *, directory: Path | None = None, **settings: Any
) -> Iterator[Federation]:
    """A ready federation. Without a `directory` it gets one that ends with it, unless something failed."""
    chosen = clusters.values() if isinstance(clusters, Mapping) else clusters
    place = directory or Path(tempfile.mkdtemp(prefix="kfed-run-"))
    place.mkdir(parents=True, exist_ok=True)
    federation = Federation(chosen, place, settings)
    try:
        federation.start()
        yield federation
    except BaseException:
        print(f"kfed's log: {federation.daemon.log}; its end:\n{federation.daemon.last_words()}", file=sys.stderr)
        raise
    else:
        if directory is None and federation.daemon.running:
            federation.stop()
            shutil.rmtree(place, ignore_errors=True)
    finally:
        federation.close()


def main() -> None:
    """Two clusters and a federation over them, until Ctrl-C."""
    from tools.local_cluster import ClusterSpec, running

    with (
        running(ClusterSpec("east"), ClusterSpec("west", first_broker_id=11)) as clusters,
        run_federation(clusters) as federation,
    ):
        for name, cluster in clusters.items():
            print(f"{name}: {cluster.bootstrap()}")
        print(
            f"endpoint: {federation.bootstrap()}, admin: {federation.admin}, log: {federation.daemon.log}", flush=True
        )
        try:
            os.waitpid(federation.daemon.pid, 0)
        except KeyboardInterrupt:
            pass


if __name__ == "__main__":
    main()
