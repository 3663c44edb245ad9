"""A local etcd in each of its variants keeps its data over a kill."""

from __future__ import annotations

import etcd3
import grpc
import pytest

from tools.local_cluster.etcd import Etcd
from tools.local_cluster.tls import Authority


def test_plain(own_etcd: Etcd) -> None:
    with etcd3.client(host="127.0.0.1", port=own_etcd.port) as client:
        client.put("a", "1")
    own_etcd.kill()
    own_etcd.mend()
    with etcd3.client(host="127.0.0.1", port=own_etcd.port) as client:
        assert client.get("a")[0] == b"1"


def test_paused_and_resumed(own_etcd: Etcd) -> None:
    own_etcd.pause()
    own_etcd.mend()
    with etcd3.client(host="127.0.0.1", port=own_etcd.port, timeout=10) as client:
        client.put("a", "1")


def test_tls_and_a_password(authority: Authority) -> None:
    with Etcd(tls=authority, user="kfed", password="secret") as etcd:
        ca = str(authority.ca_file)
        known = etcd3.client(host="127.0.0.1", port=etcd.port, ca_cert=ca, user="kfed", password="secret")
        with known as client:
            client.put("a", "1")
            assert client.get("a")[0] == b"1"
        with (
            pytest.raises(grpc.RpcError, match="user name is empty"),
            etcd3.client(host="127.0.0.1", port=etcd.port, ca_cert=ca) as stranger,
        ):
            stranger.get("a")


def test_client_certificates(authority: Authority) -> None:
    with Etcd(tls=authority, client_certificates=True) as etcd:
        mine = authority.client("kfed")
        with etcd3.client(
            host="127.0.0.1",
            port=etcd.port,
            ca_cert=str(authority.ca_file),
            cert_cert=str(mine.chain),
            cert_key=str(mine.key),
        ) as client:
            client.put("a", "1")
