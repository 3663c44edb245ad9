"""A local etcd in each of its variants keeps its data over a kill."""

from __future__ import annotations

import subprocess

import pytest

from tools.local_cluster.etcd import Etcd, program
from tools.local_cluster.tls import Authority


def test_plain(own_etcd: Etcd) -> None:
    own_etcd.ctl("put", "a", "1")
    own_etcd.kill()
    own_etcd.mend()
    assert own_etcd.ctl("get", "a", "--print-value-only").strip() == "1"


def test_paused_and_resumed(own_etcd: Etcd) -> None:
    own_etcd.pause()
    own_etcd.mend()
    assert own_etcd.ctl("put", "a", "1").strip() == "OK"


def test_tls_and_a_password(authority: Authority) -> None:
    with Etcd(tls=authority, user="kfed", password="secret") as etcd:
        etcd.ctl("put", "a", "1")
        assert etcd.ctl("get", "a", "--print-value-only").strip() == "1"
        stranger = [program("etcdctl"), f"--endpoints={etcd.endpoint}", f"--cacert={authority.ca_file}", "get", "a"]
        with pytest.raises(subprocess.CalledProcessError) as refused:
            subprocess.run(stranger, check=True, capture_output=True, text=True, timeout=20)
        assert "user name is empty" in refused.value.stderr


def test_client_certificates(authority: Authority) -> None:
    with Etcd(tls=authority, client_certificates=True) as etcd:
        assert etcd.ctl("put", "a", "1").strip() == "OK"
