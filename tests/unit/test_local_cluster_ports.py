from __future__ import annotations

import socket

from tools.local_cluster.ports import Ports


def test_two_reservations_share_nothing() -> None:
    with Ports(5) as first, Ports(5) as second:
        assert not set(first.numbers) & set(second.numbers)


def test_consecutive_ports_follow_each_other() -> None:
    with Ports(20, consecutive=True) as ports:
        assert ports.numbers == tuple(range(ports.numbers[0], ports.numbers[0] + 20))


def test_a_reserved_port_can_be_bound() -> None:
    with Ports(1) as ports, socket.socket() as listener:
        listener.bind(("127.0.0.1", ports.numbers[0]))
