"""`kfed run` and `kfed serve` as processes: what dies comes back, what is told to end ends, nothing is left over."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from confluent_kafka import Consumer

from tests.fixtures.names import Names
from tools.local_cluster import Cluster
from tools.local_cluster.ports import Ports
from tools.local_cluster.process import Daemon
from tools.local_federation import Federation, program, run_federation

STEP = 0.05


@pytest.fixture
def federation(east: Cluster, west: Cluster, tmp_path: Path) -> Iterator[Federation]:
    with run_federation([east, west], directory=tmp_path / "f") as running:
        yield running


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(STEP)


def kfed(*arguments: str, directory: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program(), *arguments], cwd=directory, text=True, capture_output=True, timeout=60)


def ask(federation: Federation, *arguments: str) -> Any:
    """A command's JSON document."""
    done = kfed(*arguments, "--json", "-c", str(federation.configuration), directory=federation.directory)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def workers(federation: Federation) -> dict[int, int]:
    """Worker -> pid, of those that are ready."""
    lines = ask(federation, "proxies")["proxies"]
    return {one["worker"]: one["pid"] for one in lines if one["alive"] and one.get("state") == "ready"}


def children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def child(federation: Federation, word: str) -> int:
    """The child process whose command line holds `word`."""
    (found,) = (one for one in children(federation.daemon.pid) if word in Path(f"/proc/{one}/cmdline").read_text())
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_killed_worker_comes_back(federation: Federation) -> None:
    before = workers(federation)
    assert sorted(before) == [0, 1]
    os.kill(before[0], signal.SIGKILL)
    until(lambda: workers(federation).get(0, before[0]) != before[0])
    after = workers(federation)
    assert after[1] == before[1], "the other one was left alone"
    assert ask(federation, "status")["proxies"] == 2
    text = federation.ask("/metrics")
    assert 'kfed_children_restarts_total{child="proxy-0"' in text
    assert 'worker="1"' in text


def test_a_killed_store_comes_back_and_nobody_else_ends(federation: Federation) -> None:
    before = workers(federation)
    os.kill(child(federation, "embedded_server"), signal.SIGKILL)
    until(lambda: len(children(federation.daemon.pid)) == 3)
    until(lambda: bool(ask(federation, "status")["store"]["view_age"] < 2))
    assert workers(federation) == before
    assert federation.ask("/readyz")["ready"]


def test_sigterm_ends_everything_in_time(federation: Federation, names: Names) -> None:
    pids = [federation.daemon.pid, *children(federation.daemon.pid)]
    assert {os.getpgid(pid) for pid in pids} == {os.getpgid(pids[0])}
    consumer = Consumer({**federation.librdkafka(), "group.id": names.group("g"), "log_level": 0})
    try:
        consumer.subscribe([names.topic("t")])
        consumer.poll(1.0)
        before = time.monotonic()
        os.kill(federation.daemon.pid, signal.SIGTERM)
        until(lambda: not any(alive(pid) for pid in pids), 12)
        assert time.monotonic() - before < 11
    finally:
        consumer.close()


def test_a_killed_parent_takes_its_children_along(federation: Federation) -> None:
    pids = children(federation.daemon.pid)
    federation.kill()
    until(lambda: not any(alive(pid) for pid in pids), 5)
    federation.start()
    assert sorted(workers(federation)) == [0, 1]


def test_the_second_signal_ends_at_once(federation: Federation) -> None:
    os.kill(child(federation, "worker\0001"), signal.SIGSTOP)  # so that draining takes its time
    pids = [federation.daemon.pid, *children(federation.daemon.pid)]
    os.kill(federation.daemon.pid, signal.SIGINT)
    until(lambda: "stopping" in federation.daemon.last_words())
    before = time.monotonic()
    os.kill(federation.daemon.pid, signal.SIGINT)
    until(lambda: not any(alive(pid) for pid in pids), 5)
    assert time.monotonic() - before < 3


def test_configuration_is_planned_applied_and_recorded(federation: Federation) -> None:
    federation.write(placement={"default": "west"})
    plan = ask(federation, "config", "diff")
    assert [one["key"] for one in plan["changes"]] == ["placement"]
    assert not ask(federation, "config", "apply")["applied"]
    assert ask(federation, "config", "diff")["changes"], "a plan changes nothing"
    assert ask(federation, "config", "apply", "--apply")["applied"]
    assert not ask(federation, "config", "diff")["changes"]
    (change,) = ask(federation, "history")["history"]
    assert change["what"] == "config apply"
    assert "@" in change["by"]
    assert change["result"] == {"changed": ["placement"]}
    assert change["at"] > 0


def test_the_store_is_exported_and_imported(federation: Federation) -> None:
    before = ask(federation, "status")["cluster_id"]
    ask(federation, "store", "export", "export.json")
    exported = federation.directory / "export.json"
    assert exported.stat().st_mode & 0o777 == 0o600
    federation.write(placement={"default": "west"})
    ask(federation, "config", "apply", "--apply")
    assert not ask(federation, "store", "import", "export.json")["applied"]
    assert not ask(federation, "config", "diff")["changes"]
    assert ask(federation, "store", "import", "export.json", "--apply")["applied"]
    assert [one["key"] for one in ask(federation, "config", "diff")["changes"]] == ["placement"]
    assert ask(federation, "status")["cluster_id"] == before
    assert ask(federation, "history")["history"][0]["what"] == "store import"
    until(lambda: sorted(workers(federation)) == [0, 1])


@contextmanager
def serving(federation: Federation, role: str, directory: Path, **changes: Any) -> Iterator[tuple[Daemon, str]]:
    """`kfed serve ROLE` on the federation's store, with ports of its own: the process and its admin API."""
    directory.mkdir()
    with Ports(18, consecutive=True) as ports:
        admin, port, *brokers = ports.numbers
        listener = {**federation.settings["proxy"]["listeners"][0], "port": port}
        settings = {
            **federation.settings,
            "proxy": {"listeners": [{**listener, "broker_ports": f"{brokers[0]}-{brokers[-1]}"}], "workers": 1},
            "admin": {"bind": "127.0.0.1", "port": admin},
            **changes,
        }
        (directory / "kfed.yaml").write_text(yaml.safe_dump(settings))
        daemon = Daemon([program(), "serve", role, "-c", "kfed.yaml"], log=directory / "log", cwd=directory)
        daemon.start()
        try:
            until(lambda: b"ready" in (directory / "log").read_bytes().splitlines())
            yield daemon, f"http://127.0.0.1:{admin}"
        finally:
            daemon.terminate()


def test_a_controller_of_its_own(federation: Federation, tmp_path: Path) -> None:
    with serving(federation, "controller", tmp_path / "c") as (_, admin):
        done = kfed("status", "--json", "--admin", admin, directory=tmp_path)
        assert json.loads(done.stdout)["federation"] == "demo"
        federation.write(placement={"default": "west"})
        arguments = ("config", "apply", "--apply", "-c", str(federation.configuration), "--admin", admin)
        assert kfed(*arguments, directory=tmp_path).returncode == 0
        assert not ask(federation, "config", "diff")["changes"]


def test_a_proxy_of_its_own_only_answers_questions(federation: Federation, tmp_path: Path) -> None:
    with serving(federation, "proxy", tmp_path / "p") as (_, admin):
        done = kfed("proxies", "--json", "--admin", admin, directory=tmp_path)
        lines = json.loads(done.stdout)["proxies"]
        assert len({one["instance"] for one in lines}) == 2
        assert len(lines) == 3
        federation.write(placement={"default": "west"})
        arguments = ("config", "apply", "--apply", "-c", str(federation.configuration), "--admin", admin)
        refused = kfed(*arguments, directory=tmp_path)
        assert refused.returncode == 1
        assert "ask a controller" in refused.stderr
        assert ask(federation, "config", "diff")["changes"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"placement": {"default": "north"}}, "placement.default"),
        ({"admin": {"bind": "0.0.0.0"}}, "admin.token_file"),
        ({"federation": "other"}, "federation: the store holds the federation 'demo'"),
    ],
)
def test_what_cannot_start_says_why_in_one_line(federation: Federation, change: dict[str, Any], words: str) -> None:
    federation.stop()
    federation.write(**change)
    done = kfed("run", "-c", str(federation.configuration), directory=federation.directory)
    assert done.returncode == 2
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if line.startswith("kfed: ")]
    assert len(lines) == 1
    assert words in lines[0]


def test_a_port_that_is_taken_is_said_once(federation: Federation) -> None:
    federation.stop()
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", federation.port))
        taken.listen()
        done = kfed("run", "-c", str(federation.configuration), directory=federation.directory)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "proxy.listeners[0].port: cannot listen" in done.stderr


def test_two_of_them_do_not_share_an_embedded_store(federation: Federation, tmp_path: Path) -> None:
    with Ports(1) as ports:
        settings = {**federation.settings, "admin": {"bind": "127.0.0.1", "port": ports.numbers[0]}}
        file = tmp_path / "second.yaml"
        file.write_text(yaml.safe_dump(settings))
        done = kfed("run", "-c", str(file), directory=tmp_path)
    assert done.returncode == 1
    assert "already serves the store" in done.stderr
    assert federation.daemon.running
